"""The command that lets the self-driving car drive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from tyro.conf import arg

from palto.extras import require

if TYPE_CHECKING:
    from palto.recipes.drive import Lap


@dataclass(frozen=True)
class Drive:
    """Drive a car by its camera, on tracks that it has never seen.

    At once, with the pilot that comes with Palto: palto drive

    As a video: palto drive --tracks 1 --video lap.mp4

    With a pilot of your own, from `palto train drive`: palto drive --run runs/drive

    For comparison: palto drive --driver teacher

    The score is CarRacing's: 1000 for the whole track, less 0.1 for each of the 50 frames a second;
    a lap ends after 1,000 frames. Needs: pip install 'palto[drive]'
    """

    run_folder: Annotated[Path | None, arg(name="run")] = None
    """The folder of a training; by default the pilot that comes with Palto."""
    tracks: int = 4
    """How many laps, each on another track."""
    first: int = 2_000_000
    """The number of the first track; equal numbers are equal tracks."""
    driver: Literal["pilot", "teacher", "chance"] = "pilot"
    """Who drives: the network, the teacher who reads the track's plan, or nobody."""
    cars: int = 4
    """How many drive at a time, each in a process of its own."""
    video: Path | None = None
    """Write a video: what the network looks at, steering and pedal, the laps. An .mp4 file."""

    def run(self) -> int:
        """Do it."""
        require("gymnasium", "drive", "palto drive")
        require("Box2D", "drive", "palto drive")
        from palto.recipes import drive

        for name in ("tracks", "cars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.first < 0:
            raise ValueError(f"first must be at least 0, got {self.first}")
        if self.video is not None and self.driver != "pilot":
            raise ValueError("a video shows what the network looks at: leave --driver pilot")
        console, tracks = Console(), range(self.first, self.first + self.tracks)
        wheels: dict[str, drive.Wheel] = {"teacher": drive.teacher, "chance": drive.chance()}
        if self.driver == "pilot":
            model, record = drive.load_pilot(self.run_folder or drive.SHIPPED)
            wheels["pilot"] = drive.wheel(model)
            console.print(
                f"a pilot trained for {duration(record['training seconds'])}: {record['command']}",
                highlight=False,
            )
        try:
            with _Laps(console) as watch:
                if self.video is not None:
                    laps = drive.film(model, tracks, self.video, watch.told)
                else:
                    laps = drive.drive(
                        wheels[self.driver], tracks, cars=self.cars, watch=watch.told
                    )
        except KeyboardInterrupt:
            console.print("stopped")
            return 130
        console.print(lap_table(laps))
        console.print(
            f"mean score {drive.mean_score(laps):.1f}, {drive.share_finished(laps):.0%} of laps "
            "finished",
            highlight=False,
        )
        if self.video is not None:
            console.print(f"video: {self.video}", soft_wrap=True)
        return 0


class _Laps:
    """Shows that cars are driving, and how far they are."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("driving")
        self._steps = self._laps = 0

    def __enter__(self) -> _Laps:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def told(self, lap: Lap | None) -> None:
        """See `palto.recipes.drive.drive`."""
        self._steps, self._laps = self._steps + (lap is None), self._laps + (lap is not None)
        self._bar.update(
            self._task, description=f"driving: {self._laps} laps over, {self._steps:,} frames"
        )


def lap_table(laps: list[Lap]) -> Table:
    """A row for each lap."""
    table = Table("track", "score", "time", "off the road")
    for lap in laps:
        table.add_row(
            str(lap.track),
            f"{lap.score:.1f}",
            f"{lap.frames / 50:.1f} s" if lap.finished else "not finished",
            f"{lap.lost:.1%}",
        )
    return table


def duration(seconds: float) -> str:
    """Seconds, or minutes where there are many, as text."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
