"""The command that trains the self-driving car."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from palto.cli.drive import duration
from palto.cli.rounds import INTERRUPTED, part, train, words
from palto.draw import new_figure, save
from palto.recipes import drive
from palto.recipes.drive import Plan, Round, Training

FIGURE = "rounds.svg"


@dataclass(frozen=True)
class Command(Plan):
    """Train a car to drive from its camera: imitation of a teacher, then its own mistakes.

    All of it, in about ten minutes on two cores: palto train drive

    A first look, in about two: palto train drive --rounds 2 --laps 4 --steps 300 --out runs/first

    Imitation alone, for comparison: palto train drive --method cloning --out runs/cloning

    The folder gets the weights, a record with all scores, and a picture. Ctrl-C stops; the same
    command goes on after the last whole round. Then: palto drive --run runs/drive
    """

    out: Path = Path("runs/drive")
    """The run's folder."""

    def run(self) -> int:
        """Do it."""
        plan = part(self, Plan)
        training = Training(self.out, plan)
        laps = train(training, lambda watch: drive.examine(training.model, plan, watch))
        if laps is None:
            return INTERRUPTED
        record = drive.save_pilot(training, laps, words())
        draw_rounds(self.out / FIGURE, training.rounds)
        console = Console()
        console.print(_table(record))
        console.print(f"see it drive: palto drive --run {self.out} --video lap.mp4")
        return 0


def _table(record: dict[str, Any]) -> Table:
    count, taken = len(record["tests"]["pilot"]["laps"]), duration(record["training seconds"])
    title = f"{count} tracks never seen, after {taken} of training"
    table = Table("driver", "mean score", "laps finished", "worst", title=title)
    for name, test in record["tests"].items():
        worst = min(lap["score"] for lap in test["laps"])
        table.add_row(
            name, f"{test['mean score']:.0f}", f"{test['laps finished']:.0%}", f"{worst:.0f}"
        )
    return table


def draw_rounds(path: Path, rounds: list[Round]) -> None:
    """Draw the score on the tracks for validation after each round."""
    figure = new_figure(7, 3.6)
    axes = figure.add_subplot()
    numbers = [x.number for x in rounds]
    axes.plot(numbers, [x.score for x in rounds], marker="o", label="mean score")
    axes.axhline(900, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("round")
    axes.set_ylabel("mean score, validation")
    axes.set_xticks(numbers)
    other = axes.twinx()
    other.plot(numbers, [100 * x.lost for x in rounds], marker="s", color="tab:red")
    other.set_ylabel("frames with the teacher's help, %", color="tab:red")
    axes.grid(alpha=0.3)
    save(figure, path)
