"""What commands that train applications in rounds have in common."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


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
