"""The command `palto`, its subcommands by subject."""

from __future__ import annotations

import functools
import operator
import sys
from typing import Annotated, Any

import tyro

from palto.cli.compare import Compare
from palto.cli.export import Export
from palto.cli.label import Label
from palto.cli.look import Data, Summary
from palto.cli.runs import Evaluate, Predict, Profile, Report, Resume, Train, preset_named
from palto.cli.serve import Serve
from palto.data import DataUnavailableError
from palto.extras import MissingExtraError
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
    "label": Label,
}

#: Errors whose message says all: where in Palto they were noticed helps nobody here.
_EXPLAINED = (
    OSError, ValueError, TypeError, DataUnavailableError, MissingExtraError, TrainingStopped,
)  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Run the command line; the words after `palto` by default."""
    words = sys.argv[1:] if words is None else words
    markers = {name: tyro.conf.subcommand(name) for name in _COMMANDS}
    markers["train"] = tyro.conf.subcommand("train", default=preset_named(words))
    kinds = [Annotated[kind, markers[name]] for name, kind in _COMMANDS.items()]
    any_of_them: Any = functools.reduce(operator.or_, kinds)
    command = tyro.cli(
        any_of_them,
        prog="palto",
        description="Deep learning that fits the computer you have.",
        args=words,
    )
    try:
        return int(command.run())
    except _EXPLAINED as error:
        print(f"palto: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(f"       {note}", file=sys.stderr)
        return 2
