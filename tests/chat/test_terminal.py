"""palto chat in the terminal: one question, a pipe, a conversation, Ctrl-C."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palto import cli
from palto.chat.generate import Answer, Options, Reader, fit
from palto.chat.turns import checked, load
from palto.cli.chat import COMMANDS, Talk, shown

CERTAIN = Options(temperature=0, max_tokens=10)


@pytest.fixture
def wanted(found, reader):
    """``wanted(turns)``: the answer to a conversation."""

    def wanted(turns):
        prompt = fit(found, turns, 200, 10)
        answer = Answer(found, reader, reader.new_slot(), prompt.tokens, CERTAIN)
        list(answer)
        return answer.text

    return wanted


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture
def talk(found, reader):
    return Talk(found, reader, CERTAIN)


# --- One question --------------------------------------------------------------------------------


def run(monkeypatch, capsys, file, *words, given=""):
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    command = ["chat", "--model", str(file), "--temperature", "0", "--max-tokens", "10"]
    status = cli.main([*command, "--context", "200", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_question(monkeypatch, capsys, file, wanted):
    status, out, err = run(monkeypatch, capsys, file, "Hello,", "you", "--stats")
    assert (status, out) == (0, shown(wanted([user("Hello, you")])) + "\n")
    assert re.search(r"tokens read in .* written in", err)


def test_making_programs_is_no_reading(monkeypatch, capsys, file):
    making, read = [], Reader.read

    def slow_at_first(self, slot, tokens):
        if len(making) < 2:  # as where two programs are compiled
            making.append(len(tokens))
            time.sleep(1)
        return read(self, slot, tokens)

    monkeypatch.setattr(Reader, "read", slow_at_first)
    _, _, err = run(monkeypatch, capsys, file, "Hello", "--stats")
    reading, writing = re.findall(r"tokens (?:read|written) in ([\d.]+) s", err)
    assert float(reading) < 1 and float(writing) < 1


@pytest.fixture
def ready(monkeypatch, reader):
    """Programs are made for the tests' reader alone."""
    monkeypatch.setattr(cli.chat, "Reader", lambda found, context: reader)


def test_a_question_about_a_text(ready, monkeypatch, capsys, file, wanted):
    status, out, err = run(
        monkeypatch, capsys, file, "What?", "--system", "Be brief.", given="A text.\n"
    )
    turns = [{"role": "system", "content": "Be brief."}, user("What?\n\nA text.")]
    assert (status, out) == (0, shown(wanted(turns)) + "\n")
    assert "tokens read" not in err


def test_a_pipe(ready, monkeypatch, capsys, file, wanted):
    status, out, _ = run(monkeypatch, capsys, file, given="Hello\n")
    assert (status, out) == (0, shown(wanted([user("Hello")])) + "\n")


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        ((), "", "the input is empty"),
        (("--context", "99999", "x"), "", "from 16 to 256 tokens"),
        (("--top-p", "7", "x"), "", "--top-p should be"),
        (("--web", "x"), "", "leave this one out"),
        ((), "word " * 3000, "too long"),
        (("--model", "nowhere", "x"), "", "no file nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(monkeypatch, capsys, file, words, given, message):
    status, out, err = run(monkeypatch, capsys, file, *words, given=given)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_run_is_a_folder(ready, monkeypatch, capsys, folder, wanted):
    _, out, _ = run(monkeypatch, capsys, folder, "Hello")
    assert out == shown(wanted([user("Hello")])) + "\n"


def test_without_the_libraries(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert cli.main(["chat", "x"]) == 2
    assert "pip install 'palto[chat]'" in capsys.readouterr().err


# --- Commands ------------------------------------------------------------------------------------


def test_a_conversation(talk, wanted, capsys, tmp_path):
    talk.say("Hello")
    first = wanted([user("Hello")])
    assert talk.turns == [user("Hello"), assistant(first)]
    assert capsys.readouterr().out == shown(first) + "\n"
    talk.say("and?")
    whole = [user("Hello"), assistant(first), user("and?")]
    assert talk.turns == [*whole, assistant(wanted(whole))]
    talk.obey("/retry")
    assert talk.turns == [*whole, assistant(wanted(whole))]
    talk.obey("/undo")
    assert talk.turns == [user("Hello"), assistant(first)]
    path = tmp_path / "x.json"
    talk.obey(f"/save {path}")
    assert load(path) == talk.turns
    talk.obey("/system Be brief.")
    assert talk.turns[0] == {"role": "system", "content": "Be brief."}
    talk.obey("/system Be long.")
    talk.obey("/reset")
    assert talk.turns == [{"role": "system", "content": "Be long."}]
    talk.obey(f"/load {path}")
    assert talk.turns == [user("Hello"), assistant(first)]
    capsys.readouterr()
    talk.obey("/stats")
    assert re.search(r"\d+ tokens read in .*; \d+ written|tokens written", capsys.readouterr().out)
    talk.obey("/help")
    said = capsys.readouterr().out
    assert all(command.split()[0] in said for command in COMMANDS)


def test_options_are_set(talk, capsys):
    talk.obey("/set max_tokens 2")
    talk.say("Hello")
    assert "cut off after 2 tokens" in capsys.readouterr().err
    talk.obey("/set temperature 1.5")
    talk.obey("/set seed 3")
    talk.obey("/set")
    said = capsys.readouterr().out
    assert all(line in said for line in ("temperature 1.5\n", "max_tokens 2\n", "seed 3\n"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nothing", "no command /nothing; /help"),
        ("/retry", "nothing has been said"),
        ("/undo", "nothing has been said"),
        ("/save", "wants the name"),
        ("/load /nowhere/x.json", "nowhere"),
        ("/save /nowhere/x.json", "nowhere"),
        ("/set heat 3", "no option 'heat'"),
        ("/set top_k many", "wants a whole number"),
        ("/set top_k", "wants a whole number"),
        ("/set top_p 7", "top_p should be"),
    ],
)
def test_what_a_command_cannot_do(talk, line, message):
    with pytest.raises((OSError, ValueError), match=re.escape(message)):
        talk.obey(line)
    assert not talk.turns


def test_a_message_without_an_answer_is_no_turn(talk):
    with pytest.raises(ValueError, match="too long"):
        talk.say("word " * 3000)
    assert not talk.turns


def test_old_turns_are_forgotten_aloud(talk, capsys):
    for number in range(12):
        talk.say(f"{number}, many words, many more words")
    assert "have no room in the context any more" in capsys.readouterr().err
    assert len(talk.turns) == 24


@pytest.mark.parametrize(
    "contents",
    [
        "", "{", "7", "[]", '{"messages": []}', '{"messages": [{"role": "user"}]}', "[" * 100_000,
        '{"messages": [{"role": "boss", "content": "x"}]}', '{"turns": []}',
    ],
)  # fmt: skip
def test_files_that_hold_no_conversation(tmp_path, contents):
    (tmp_path / "x").write_text(contents)
    with pytest.raises(ValueError, match="holds no conversation"):
        load(tmp_path / "x")


def test_turns():
    turns = [user("a"), assistant(""), {"role": "system", "content": "x"}]
    assert checked([{**turn, "more": 1} for turn in turns]) == turns


def test_a_model_does_not_move_the_cursor():
    assert shown("a\x1b[2Jb\r\x07c\x9b\nd\te \x00é🙂👩‍👩‍👧 你") == "a[2Jbc\nd\te é🙂👩‍👩‍👧 你"


# --- In a terminal -------------------------------------------------------------------------------

pty = pytest.importorskip("pty", reason="there are no such terminals on this system")


class Terminal:
    """`palto chat` as a process at a terminal."""

    def __init__(self, file, *words):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "palto.cli", "chat", "--model", str(file)]
        self.process = subprocess.Popen(
            [*command, "--context", "200", *words], stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=controlling(slave),
        )  # fmt: skip
        os.close(slave)
        self.said = ""

    def type(self, text):
        os.write(self.master, text.encode())

    def interrupt(self):
        """Ctrl-C, once it sleeps: Python loses one that comes right before it waits for a line."""
        stat, asleep = Path(f"/proc/{self.process.pid}/stat"), 0
        for _ in range(600):
            time.sleep(0.05)
            sleeps = not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "S"
            asleep = asleep + 1 if sleeps else 0
            if asleep == 4:
                break
        self.type("\x03")

    def until(self, pattern, seconds=90):
        """What is said until a pattern comes; it is taken away."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.said)):
            assert time.monotonic() < end, self.said
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self.master, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert re.search(pattern, self.said), self.said
        text, self.said = self.said[: match.end()], self.said[match.end() :]
        return text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def controlling(slave):
    def prepare():
        import fcntl
        import termios

        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    return prepare


def test_at_a_terminal(file, tmp_path):
    words = ("--temperature", "2", "--top-k", "0", "--top-p", "1", "--max-tokens", "150")
    with Terminal(file, *words, "--seed", "1") as terminal:
        assert "tiny, 200 tokens of context" in terminal.until("> ")
        terminal.type("Hello\n")
        terminal.until("> ")
        terminal.type('"""two\nlines"""\n')
        terminal.until(r"\.\.\. ")
        terminal.until("\n> ")
        terminal.type(f"/save {tmp_path}/x.json\n")
        terminal.until("4 turns")
        terminal.type("/nothing\n")
        terminal.until(r"no command /nothing.*\n> ")
        terminal.interrupt()
        terminal.until(r"Ctrl-C again.*\n> ")
        terminal.type("/stats\n")  # so it does not leave
        terminal.until(r"tokens written.*\n> ")
        terminal.interrupt()
        terminal.until(r"Ctrl-C again.*\n> ")
        terminal.interrupt()
        terminal.until("written in .* a second")
        assert terminal.process.wait(30) == 0
    turns = load(tmp_path / "x.json")
    assert [turn["content"] for turn in turns[::2]] == ["Hello", "two\nlines"]


def test_ctrl_c_stops_the_answer_only(file, tmp_path, monkeypatch):
    # Slow answers: each step of the model waits.
    slow = tmp_path / "sitecustomize.py"
    slow.write_text(
        "import time\nfrom palto.chat import generate\nread = generate.Reader.read\n"
        "def slowly(*arguments):\n    time.sleep(0.05)\n    return read(*arguments)\n"
        "generate.Reader.read = slowly\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    words = ("--temperature", "2", "--top-k", "0", "--top-p", "1", "--max-tokens", "150")
    with Terminal(file, *words, "--seed", "1") as terminal:
        terminal.until("> ")
        terminal.type("/set max_tokens 1\nHello\n")
        terminal.until("cut off after 1 tokens.*\n> ")  # so the programs are there
        terminal.type("/set max_tokens 150\n")
        terminal.until("\n> ")
        terminal.type("and?\n")
        terminal.until(r"and\?\r\n[^\r]*\w")
        terminal.type("\x03")
        terminal.until("\n> ", 20)
        terminal.type(f"/save {tmp_path}/x.json\n")
        terminal.until("4 turns")
        terminal.type("/exit\n")
        terminal.until("written")
        assert terminal.process.wait(30) == 0
    turns = json.loads((tmp_path / "x.json").read_text())["messages"]
    assert turns[3]["content"]  # what had come is part of the conversation
    process = subprocess.Popen(
        [sys.executable, "-m", "palto.cli", "chat", "--model", str(file), *words, "Hello"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"")
    assert out.endswith(b"\n")
