"""What commands that train applications in rounds have in common."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from palto.train import RoundTraining
from palto.train import Watch as Told

Plan = TypeVar("Plan")
Tests = TypeVar("Tests")

#: What a command returns that was interrupted.
INTERRUPTED = 130


class Watch:
    """Shows what is being done, and keeps a line of what is worth keeping.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[remark]}"),
            TimeElapsedColumn(), console=console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=1.0, remark="")

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def told(self, what: str, done: float, remark: str) -> None:
        """See `palto.train.Watch`."""
        self._bar.update(self._task, description=what, completed=done, remark=remark)
        if done == 1:
            self._console.print(f"{what}: {remark}", highlight=False, soft_wrap=True)


def part(command: Plan, kind: type[Plan]) -> Plan:
    """The plan that a command's options are, without the options that are the command's own."""
    names = [x.name for x in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(command, name) for name in names})


def train(training: RoundTraining[Any, Any], examine: Callable[[Told], Tests]) -> Tests | None:
    """Train until all rounds are done, then examine the best.

    Returns:
        What has been found; None if somebody has stopped it before.
    """
    console = Console()
    if training.rounds:
        console.print(f"{training.folder}: going on after {len(training.rounds)} rounds")
    try:
        with Watch(console) as watch:
            training.run(watch.told)
            training.take_best()
            return examine(watch.told)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on after the last whole round")
        return None


def words() -> str:
    """The command as it was typed."""
    return " ".join(["palto", *sys.argv[1:]])
