"""The command that talks: in the terminal, or on a page."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from palto import web
from palto.chat.generate import Answer, Options, Progress, Reader, fit
from palto.chat.turns import Turn, load, save
from palto.extras import require

if TYPE_CHECKING:
    from palto.chat.models import ChatModel

CONTEXT = 2048  # tokens, if the model has learned to look back on so many
COMMANDS = {
    "/help": "this list",
    "/reset": "begin a new conversation",
    "/retry": "another answer to the last message",
    "/undo": "forget the last message and its answer",
    "/system TEXT": "tell the model what it is to be; without TEXT, show what it was told",
    "/set NAME VALUE": "temperature, top_k, top_p, min_p, repetition_penalty, seed, max_tokens; "
    "without them, show all",
    "/save FILE": "keep the conversation, as JSON",
    "/load FILE": "go on with one that was kept",
    "/stats": "how much has been read and written, and how fast",
    "/exit": "leave, as Ctrl-D does",
}
OPTIONS = tuple(x.name for x in dataclasses.fields(Options))


@dataclass(frozen=True, kw_only=True)
class Chat(Options, web.ServerOptions):
    r"""Talk with a small language model, on this computer alone.

    In the terminal, with SmolLM2-135M-Instruct, which is fetched (93 MB): palto chat

    One question: palto chat "Why is the sky blue?"

    About a text: palto chat "What is this about?" < letter.txt

    On a page in the browser, and for programs that speak OpenAI's protocol: palto chat --web

    Another model of Llama's architecture: palto chat --model some.gguf, or the folder of one from
    Hugging Face, or a run of palto train chat

    A model of this size is good for small talk, and is often wrong. /help in a conversation lists
    commands; Ctrl-C stops an answer. Needs: pip install 'palto[chat]'
    """

    question: Positional[tuple[str, ...]] = ()
    """What to ask; without it, a conversation begins."""
    model: Path | None = None
    """A .gguf file, or a folder with config.json, tokenizer.json and *.safetensors, such as palto
    train chat makes."""
    adapter: Path | None = None
    """A folder of `palto tune chat`: what the model has learned besides."""
    system: str | None = None
    """What the model is told to be."""
    context: int | None = None
    """The longest conversation, in tokens; by default 2048, or what the model can look back
    on."""
    stats: bool = False
    """Say after each answer how fast it came."""
    web: bool = False
    """Open a page instead, for several people at once."""
    slots: int = 4
    """With --web: how many conversations are remembered, and answered at a time."""
    queue: int = 32
    """With --web: how many may wait; further ones are told to come again (503)."""

    def run(self) -> int:
        """Do it."""
        for module in ("gguf", "tokenizers", "jinja2"):
            require(module, "chat", "palto chat")
        from palto.chat import models

        options = Options(**{name: getattr(self, name) for name in OPTIONS})
        options.check()
        if self.web and self.question:
            raise ValueError("--web opens a page, where questions are asked: leave this one out")
        found = models.load(self.model, self.adapter)
        context = min(CONTEXT, found.context) if self.context is None else self.context
        reader = Reader(found, context)
        if self.web:
            return self._serve(found, reader, options)
        talk = Talk(found, reader, options, self.system, stats=self.stats)
        question = " ".join(self.question)
        if not sys.stdin.isatty():
            given = sys.stdin.read().strip()
            question = "\n\n".join(part for part in (question, given) if part)
            if not question:
                raise ValueError("there is nothing to answer: the input is empty")
        if question:
            talk.say(question)
            return 130 if talk.was_stopped else 0
        talk.converse()
        return 0

    def _serve(self, found: ChatModel, reader: Reader, options: Options) -> int:
        require("starlette", "web", "palto chat --web")
        from palto.chat import server

        aside("getting ready ...")
        app = server.application(
            found, reader, options, system=self.system, slots=self.slots, queue=self.queue
        )
        web.Server(app, self, body_bytes=server.BODY_BYTES).run("talk at")
        return 0


class Talk:
    """A conversation in the terminal.

    Args:
        found: the model.
        reader: what reads for it.
        options: how to answer.
        system: what the model is told to be.
        stats: whether to say after each answer how fast it came.

    Attributes:
        turns: who said what.
        was_stopped: whether Ctrl-C has stopped the last answer.
    """

    def __init__(
        self,
        found: ChatModel,
        reader: Reader,
        options: Options,
        system: str | None = None,
        *,
        stats: bool = False,
    ) -> None:
        self._found, self._reader, self._options, self._stats = found, reader, options, stats
        self._slot = reader.new_slot()
        self._warm_up: threading.Thread | None = None
        self._totals = {"reading": (0, 0.0), "writing": (0, 0.0)}
        self.turns: list[Turn] = []
        self.was_stopped = False
        if system:
            self.turns.append({"role": "system", "content": system})

    # One answer

    def say(self, message: str) -> None:
        """Answer a message: the text appears as it comes.

        Raises:
            ValueError: it is too long, or the model takes no such conversation.
        """
        self.turns.append({"role": "user", "content": message})
        text = ""
        try:
            text = self._answer()
        finally:
            if text:
                self.turns.append({"role": "assistant", "content": text})
            else:
                self.turns.pop()

    def _answer(self) -> str:
        prompt = fit(self._found, self.turns, self._reader.context, self._options.max_tokens)
        if prompt.dropped:
            aside(f"(the first {prompt.dropped} turns have no room in the context any more)")
        answer = Answer(self._found, self._reader, self._slot, prompt.tokens, self._options)
        with _ctrl_c() as pressed:
            self._await_programs()
            progress = _Progress()
            for piece in answer:
                if isinstance(piece, Progress):
                    progress.show(piece)
                else:
                    progress.clear()
                    sys.stdout.write(shown(piece))
                    sys.stdout.flush()
                if pressed():
                    break
            progress.clear()
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.was_stopped = answer.reason is None
        if answer.reason == "length":
            aside(f"(cut off after {answer.count} tokens: /set max_tokens allows more)")
        for phase, count in (("reading", answer.read), ("writing", answer.count)):
            tokens, seconds = self._totals[phase]
            self._totals[phase] = tokens + count, seconds + answer.seconds[phase]
        if self._stats:
            rates = {"reading": (answer.read, answer.seconds["reading"]),
                     "writing": (answer.count, answer.seconds["writing"])}  # fmt: skip
            aside(f"({rate_text(rates)})")
        return answer.text

    def _await_programs(self) -> None:
        """Wait until they are made, so that this counts neither as reading nor as writing."""
        if self._warm_up is None and self._reader.program_count:
            return
        progress = _Progress()
        if self._warm_up is None or self._warm_up.is_alive():
            progress.say("getting ready ...")
        if self._warm_up is None:
            self._reader.warm_up()
        else:
            self._warm_up.join()
        progress.clear()
        self._warm_up = None

    # A conversation

    def converse(self) -> None:
        """Talk until the user leaves."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines and remembers them from now on
        # While the first message is being written.
        self._warm_up = threading.Thread(target=self._reader.warm_up, daemon=True)
        self._warm_up.start()
        print(f"{shown(self._found.name)}, {self._reader.context:,} tokens of context; /help")
        is_leaving = False
        while True:
            try:
                message = read_message()
            except EOFError:
                break
            except KeyboardInterrupt:
                if is_leaving:
                    break
                is_leaving = True
                print("\n(Ctrl-C again, or /exit, leaves)")
                continue
            is_leaving = False
            if message.split(maxsplit=1)[:1] in (["/exit"], ["/quit"], ["/bye"]):
                break
            try:
                if message.startswith("/"):
                    self.obey(message)
                elif message:
                    self.say(message)
            except (OSError, ValueError) as error:
                aside(f"palto: {error}")
        print()
        if self._totals["writing"][0]:
            aside(rate_text(self._totals))

    def obey(self, line: str) -> None:
        """Do what a line that begins with a slash says.

        Raises:
            OSError: a file cannot be read or written.
            ValueError: it cannot be done.
        """
        command, _, rest = line.partition(" ")
        rest = rest.strip()
        if command == "/help":
            width = max(map(len, COMMANDS))
            for name, text in COMMANDS.items():
                print(f"{name:{width}}  {text}")
            print('"""' + " " * (width - 3) + "  begins and ends a message of several lines")
        elif command == "/reset":
            self.turns = [turn for turn in self.turns[:1] if turn["role"] == "system"]
            print("a new conversation")
        elif command in ("/retry", "/undo"):
            message = self._forget()
            if command == "/retry":
                self.say(message)
            else:
                print("forgotten")
        elif command == "/system":
            self._tell(rest)
        elif command == "/set":
            self._set(rest)
        elif command == "/save":
            save(_named(rest, command), self.turns)
            print(f"{rest}: {len(self.turns)} turns")
        elif command == "/load":
            self.turns = load(_named(rest, command))
            print(f"{len(self.turns)} turns, the last one:\n{shown(self.turns[-1]['content'])}")
        elif command == "/stats":
            print(rate_text(self._totals))
        else:
            raise ValueError(f"there is no command {command}; /help lists them")

    def _forget(self) -> str:
        """Take the last message out, and its answer."""
        places = [k for k, turn in enumerate(self.turns) if turn["role"] == "user"]
        if not places:
            raise ValueError("nothing has been said yet")
        message = self.turns[places[-1]]["content"]
        del self.turns[places[-1] :]
        return message

    def _tell(self, text: str) -> None:
        has_system = bool(self.turns) and self.turns[0]["role"] == "system"
        if text:
            self.turns[: int(has_system)] = [{"role": "system", "content": text}]
        elif has_system:
            print(shown(self.turns[0]["content"]))
        else:
            print("nothing but what the model's own template says")

    def _set(self, rest: str) -> None:
        names = [name for name in OPTIONS if name != "stop"]
        if not rest:
            for name in names:
                print(f"{name} {getattr(self._options, name)}")
            return
        name, _, value = rest.partition(" ")
        if name not in names:
            raise ValueError(f"there is no option {name!r}; those that are: {', '.join(names)}")
        is_whole = name in ("top_k", "seed", "max_tokens")
        try:
            number = int(value) if is_whole else float(value)
        except ValueError:
            kind = "a whole number" if is_whole else "a number"
            raise ValueError(f"{name} wants {kind}, got {value!r}") from None
        changed: dict[str, Any] = {name: number}
        options = dataclasses.replace(self._options, **changed)
        options.check()
        self._options = options
        print(f"{name} {number}")


def read_message() -> str:
    '''A message from the keyboard; one that begins with """ goes on until a line ends so.

    Raises:
        EOFError: there is no more.
        KeyboardInterrupt: Ctrl-C.
    '''
    line = input("> ").strip()
    if not line.startswith('"""'):
        return line
    lines = [line[3:]]
    while not lines[-1].endswith('"""'):
        lines.append(input("... "))
    return "\n".join(lines)[:-3].strip()


def shown(text: str) -> str:
    """A text without characters that would move a terminal's cursor or change its colours."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable() or c == "\u200d")


def rate_text(rates: dict[str, tuple[int, float]]) -> str:
    """How many tokens in how many seconds, in words."""
    texts = []
    for phase, (tokens, seconds) in rates.items():
        done = "read" if phase == "reading" else "written"
        rate = f", {tokens / seconds:,.0f} a second" if seconds else ""
        texts.append(f"{tokens:,} tokens {done} in {seconds:.1f} s{rate}")
    return "; ".join(texts)


def aside(text: str) -> None:
    """Tell the user what is no part of the conversation."""
    print(text, file=sys.stderr, flush=True)


def _named(path: str, command: str) -> str:
    if not path:
        raise ValueError(f"{command} wants the name of a file")
    return path


class _Progress:
    """Says what goes on before an answer comes, where somebody looks on."""

    def __init__(self) -> None:
        self._is_there = False
        self._begun = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Another part has been read."""
        slow = time.monotonic() - self._begun > 1
        if slow and progress.done < progress.total:
            self.say(f"reading: {progress.done:,} of {progress.total:,} tokens")

    def say(self, text: str) -> None:
        """Show a text for the time being."""
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._is_there = True

    def clear(self) -> None:
        """Make room for the answer."""
        if self._is_there:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._is_there = False


@contextlib.contextmanager
def _ctrl_c() -> Iterator[Any]:
    """Ctrl-C is only noted, so that it hits between two tokens; a second one goes through."""
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: count > 0
    finally:
        signal.signal(signal.SIGINT, before)
