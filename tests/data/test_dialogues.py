"""Conversations: chitchat out of a wheel made here, and files of one's own."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest

from palto import data
from palto.data import Dialogues, Turn
from palto.data.fetch import Contents, Files
from palto.data.sources import dialogues as source


def said(*texts, sender="a"):
    return [{"text": x, "timestamp": "2018-05-02T19:38:15Z", "sender": sender} for x in texts]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    conversations = {
        "one": {"messages": [said("Hello", "who is there? "), said("me", sender="b")]},
        "alone": {"messages": [said("Hello?", "  ", "anybody?")]},
        "empty": {"messages": [said("Hello?"), said(" ", sender="b"), said("no?")]},
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("chitchat_dataset/dataset.json", json.dumps(conversations))
    (tmp_path / source.WHEEL).write_bytes(packed.getvalue())
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    known = {source.WHEEL: Contents(digest, len(packed.getvalue()))}
    monkeypatch.setattr(source, "FILES", Files("chitchat", known))
    return tmp_path


def test_turns_are_what_one_says_before_the_other(folder):
    found = data.chitchat(folder)
    assert list(found) == [(Turn("a", "Hello\nwho is there?"), Turn("b", "me"))]
    assert (found.name, found.licence, found.keys) == ("chitchat", "MIT", ["one"])
    content = bytearray((folder / source.WHEEL).read_bytes())
    content[50] ^= 1
    (folder / source.WHEEL).write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        data.chitchat(folder)


def test_chitchat_is_listed_with_its_licence():
    (row,) = [x for x in data.available() if x.name == "chitchat"]
    assert row.licence == "MIT"
    with pytest.raises(ValueError, match=r"no examples .*train chat. .*palto\.data\.chitchat"):
        data.open_source("chitchat")


def test_no_conversation_is_in_two_parts():
    names = [f"conversation {k}" for k in range(400)]
    every = Dialogues([[Turn("a", x), Turn("b", "yes")] for x in names + names[:50]])
    parts = every.split(0.05)
    assert [len({turns[0].text for turns in part}) for part in parts] == [360, 20, 20]
    assert sum(map(len, parts)) == 450
    texts = [{turns[0].text for turns in part} for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    # In which order they come does not matter.
    order = np.random.default_rng(0).permutation(450)
    again = Dialogues([every[int(k)] for k in order]).split(0.05)
    assert [{turns[0].text for turns in part} for part in again] == texts
    with pytest.raises(ValueError, match="2 different conversations; wanted are three"):
        Dialogues([[Turn("a", "x")], [Turn("a", "y")], [Turn("a", "y")]]).split()


def test_files_of_one_s_own(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(
        '[{"role": "user", "content": "Привет"}, {"role": "user", "content": "there"},'
        ' {"speaker": "Bob", "content": "hi"}]\n\n'
        '{"messages": [{"role": "system", "content": "Be kind."}]}\n',
        encoding="utf-8",
    )
    found = data.dialogue_file(path)
    assert list(found) == [
        (Turn("user", "Привет\nthere"), Turn("Bob", "hi")), (Turn("system", "Be kind."),)
    ]  # fmt: skip
    assert found.name == "talks.jsonl"
    path = tmp_path / "talks.TXT"
    path.write_text("\ufeffhello\nhi \n\n\n  what?\n", encoding="utf-8")
    assert list(data.dialogue_file(path)) == [
        (Turn("user", "hello"), Turn("assistant", "hi")), (Turn("user", "what?"),)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"x", r"a\.csv is no file of conversations.*\.jsonl file"),
        ("a.jsonl", b"", "holds no conversation"),
        ("a.txt", b"\n \n", "holds no conversation"),
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.jsonl", b"[]\n{", "line 2: this is no JSON"),
        ("a.jsonl", b'\n"x"', 'line 2: wanted is a list of messages.*got "x"'),
        ("a.jsonl", b'{"text": "x"}', "line 1: wanted is a list of messages"),
        ("a.jsonl", b'[{"role": "user"}]', 'line 1: a message has a "role"'),
        ("a.jsonl", b'[{"role": "user", "content": 1}]', 'line 1: a message has a "role"'),
        ("a.jsonl", b"[7]", "line 1: a message has.*got 7"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told):
        data.dialogue_file(tmp_path / name)
