"""Conversations: chitchat, and those in a file of one's own.

Chitchat: students of Brigham Young University write to each other in pairs, in English; Myers,
Etchart and Fulda: Conversational scaffolding (2020), https://github.com/BYU-PCCL/chitchat-dataset.
MIT.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from palto.data.dataset import Dataset
from palto.data.fetch import Contents, Files
from palto.data.sources.checks import a_file

WHEEL = "chitchat_dataset-0.9.0-py3-none-any.whl"
FILES = Files(
    name="chitchat",
    contents={
        WHEEL: Contents("7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e", 8105664)
    },
    pip="chitchat-dataset==0.9.0",
)
KINDS = (
    "a .jsonl file, in each line a conversation: a list of messages such as "
    '{"role": "user", "content": "Hello"}, or {"messages": [...]}; or a .txt file, in each line '
    "what one of two people says, with an empty line between conversations"
)


class Turn(NamedTuple):
    """What somebody says before somebody else does.

    Attributes:
        speaker: who.
        text: what; lines that were sent one by one are lines of it.
    """

    speaker: str
    text: str


class Dialogues(Dataset):
    """Conversations, each a tuple of turns; no two turns in succession are of one speaker.

    Args:
        dialogues: for each its turns.
        keys: for each what decides into which part it falls (`split`); by default its text, so that
            the same conversation never falls into two.
        name: what they are called.
        licence: under which terms they may be used.
    """

    def __init__(
        self,
        dialogues: Iterable[Sequence[Turn]],
        keys: Sequence[str] | None = None,
        name: str | None = None,
        licence: str | None = None,
    ) -> None:
        self.dialogues = [tuple(turns) for turns in dialogues]
        self.name, self.licence = name, licence
        self.keys = [repr(turns) for turns in self.dialogues] if keys is None else list(keys)

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, index: int) -> tuple[Turn, ...]:
        return self.dialogues[index]

    def split(self, share: float = 0.05) -> tuple[Dialogues, Dialogues, Dialogues]:
        """Those to learn from, those for validation and those for the test, always the same.

        Args:
            share: of all for validation, and as many for the test; at least one each.

        Raises:
            ValueError: there are fewer than three different ones.
        """
        places = {key: hashlib.sha256(key.encode()).digest() for key in self.keys}
        order = sorted(places, key=lambda key: places[key])
        count = max(round(share * len(order)), 1)
        if len(order) < 2 * count + 1:
            raise ValueError(
                f"{self.name or 'this data'} has {len(order)} different conversations; wanted are "
                "three or more, to learn from, for validation and for the test"
            )
        part = dict.fromkeys(order, 0)
        part |= dict.fromkeys(order[:count], 2) | dict.fromkeys(order[count : 2 * count], 1)
        learn, validation, test = (self._those([part[x] == k for x in self.keys]) for k in range(3))
        return learn, validation, test

    def _those(self, wanted: list[bool]) -> Dialogues:
        dialogues = list(itertools.compress(self.dialogues, wanted))
        keys = list(itertools.compress(self.keys, wanted))
        return Dialogues(dialogues, keys, self.name, self.licence)


def joined(messages: Iterable[Turn]) -> tuple[Turn, ...]:
    """The turns of a conversation: a speaker's messages in succession become one, line by line.

    Messages without text are left out.
    """
    said = (x for x in messages if x.text.strip())
    return tuple(
        Turn(speaker, "\n".join(x.text.strip() for x in group))
        for speaker, group in itertools.groupby(said, key=lambda x: x.speaker)
    )


def chitchat(folder: str | os.PathLike[str] | None = None) -> Dialogues:
    """4,017 conversations of two, 135,565 turns, 12 MB of text.

    (Those in which nobody has answered are left out.)

    Args:
        folder: where the .whl file of the Python package `chitchat-dataset` is. By default it is
            looked for as `fashion_mnist` says, or fetched with pip; 8 MB, kept in the cache.

    Raises:
        FileNotFoundError: the folder named lacks the file.
        ValueError: the file in the folder named is damaged.
        DataUnavailableError: the package can be found nowhere.
    """
    with zipfile.ZipFile(io.BytesIO(FILES.read(folder)[WHEEL])) as files:
        conversations = json.loads(files.read("chitchat_dataset/dataset.json"))
    found = {
        key: joined(Turn(x["sender"], x["text"]) for turn in one["messages"] for x in turn)
        for key, one in conversations.items()
    }
    found = {key: turns for key, turns in found.items() if len(turns) > 1}
    return Dialogues(found.values(), list(found), name="chitchat", licence="MIT")


def dialogue_file(path: str | os.PathLike[str]) -> Dialogues:
    """The conversations in a file.

    Args:
        path: a .jsonl file: in each line a conversation, a list of messages with the keys "role"
            (or "speaker") and "content", or an object with such a list as "messages". Or a .txt
            file: in each line what one of two people says, in turn, and an empty line between
            conversations.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, or something in it is; the message names the line.
    """
    where = a_file(path)
    readers = {".jsonl": _json_lines, ".txt": _plain_text}
    if where.suffix.lower() not in readers:
        raise ValueError(f"{where} is no file of conversations that Palto knows: it reads {KINDS}")
    try:
        lines = where.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not in UTF-8 ({error.reason}); save it as UTF-8") from None
    found = [turns for turns in readers[where.suffix.lower()](where, lines) if turns]
    if not found:
        raise ValueError(f"{where} holds no conversation; wanted is {KINDS}")
    return Dialogues(found, name=where.name)


def _json_lines(where: Path, lines: list[str]) -> Iterator[tuple[Turn, ...]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}, line {number}: this is no JSON ({error})") from None
        messages = one.get("messages") if isinstance(one, dict) else one
        if not isinstance(messages, list):
            raise ValueError(
                f"{where}, line {number}: wanted is a list of messages, or an object with one as "
                f'"messages", got {_shortened(one)}'
            )
        yield joined(_message(x, f"{where}, line {number}") for x in messages)


def _message(one: Any, where: str) -> Turn:
    if isinstance(one, dict):
        speaker, text = one.get("role", one.get("speaker")), one.get("content")
        if isinstance(speaker, str) and isinstance(text, str):
            return Turn(speaker, text)
    raise ValueError(
        f'{where}: a message has a "role" (or "speaker") and a "content", both texts, got '
        f"{_shortened(one)}"
    )


def _shortened(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _plain_text(_: Path, lines: list[str]) -> Iterator[tuple[Turn, ...]]:
    for is_text, group in itertools.groupby(lines, key=lambda line: bool(line.strip())):
        if is_text:
            yield tuple(
                Turn(speaker, line.strip())
                for speaker, line in zip(itertools.cycle(("user", "assistant")), group)
            )
