"""The command `palto`, its subcommands by subject."""

from __future__ import annotations

import functools
import importlib
import operator
import sys
from typing import Annotated, Any

import tyro

from palto.cli.chat import Chat
from palto.cli.compare import Compare
from palto.cli.drive import Drive
from palto.cli.echo import Echo
from palto.cli.export import Export
from palto.cli.label import Label
from palto.cli.look import Data, Summary
from palto.cli.runs import Evaluate, Predict, Profile, Report, Resume, Train, preset_named
from palto.cli.serve import Serve
from palto.cli.tune import Tune
from palto.cli.wording import in_options
from palto.data import DataUnavailableError
from palto.extras import MissingExtraError, require
from palto.train.trainer import TrainingStopped

#: Each is a dataclass of its options with a method `run`, which returns the exit status.
_COMMANDS: dict[str, Any] = {
    "train": Train,
    "resume": Resume,
    "evaluate": Evaluate,
    "predict": Predict,
    "serve": Serve,
    "export": Export,
    "report": Report,
    "profile": Profile,
    "compare": Compare,
    "summary": Summary,
    "data": Data,
    "tune": Tune,
    "label": Label,
    "drive": Drive,
    "echo": Echo,
    "chat": Chat,
}

#: `palto train NAME` and `palto tune NAME` are the class `Command` of cli/train_NAME.py and so on,
#: which is imported only then, for it may need its extra's libraries: the extra is NAME, one of the
#: libraries is given here.
_APPLICATIONS = {
    ("train", "drive"): "gymnasium",
    ("train", "echo"): "av",
    ("train", "chat"): "tokenizers",
    ("tune", "chat"): "tokenizers",
}

#: Errors whose message says all: where in Palto they were noticed helps nobody here.
_EXPLAINED = (
    OSError, ValueError, TypeError, DataUnavailableError, MissingExtraError, TrainingStopped,
)  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Run the command line; the words after `palto` by default."""
    words = sys.argv[1:] if words is None else words
    command = None
    try:
        command = _command(words)
        return int(command.run())
    except KeyboardInterrupt:  # where nothing is kept: a program is being compiled, say
        return 130
    except _EXPLAINED as error:
        print(f"palto: {in_options(str(error), command)}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(f"       {note}", file=sys.stderr)
        return 2


def _command(words: list[str]) -> Any:
    """The command that the words ask for, with its options.

    Raises:
        MissingExtraError: the libraries of an application are not installed.
        SystemExit: help was asked for, or something that is not understood.
    """
    if len(words) > 1 and (library := _APPLICATIONS.get((words[0], words[1]))):
        verb, name = words[:2]
        require(library, name, f"palto {verb} {name}")
        kind = importlib.import_module(f"palto.cli.{verb}_{name}").Command
        return tyro.cli(kind, prog=f"palto {verb} {name}", args=words[2:])
    if words and words[0] in _COMMANDS:
        name, *options = words
        kind, prog = _COMMANDS[name], f"palto {name}"
        if kind is Train:
            return tyro.cli(Train, prog=prog, args=options, default=preset_named(options))
        return tyro.cli(kind, prog=prog, args=options)
    kinds = [Annotated[kind, tyro.conf.subcommand(name)] for name, kind in _COMMANDS.items()]
    any_of_them: Any = functools.reduce(operator.or_, kinds)
    return tyro.cli(
        any_of_them,
        prog="palto",
        description="Deep learning that fits the computer you have.",
        args=words,
    )
