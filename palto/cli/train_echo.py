"""The command that trains the echo canceller."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from palto.cli.rounds import INTERRUPTED, part, train, words
from palto.draw import new_figure, save
from palto.recipes import echo
from palto.recipes.echo import Plan, Round, Training

FIGURE = "rounds.svg"


@dataclass(frozen=True)
class Command(Plan):
    """Train a filter that takes the loudspeaker's echo out of a microphone's sound.

    All of it: palto train echo

    A first look, in some minutes: palto train echo --steps 600 --scenes 50 --out runs/first

    Speech is fetched (50 MB), and rooms for it are simulated, once for each folder. The folder gets
    the weights, a record with all scores, and a picture. Ctrl-C stops; the same command goes on
    after the last whole round. Then: palto echo --run runs/echo -x far.wav -y mic.wav -o out.wav
    """

    out: Path = Path("runs/echo")
    """The run's folder."""

    def run(self) -> int:
        """Do it."""
        plan = part(self, Plan)
        training = Training(self.out, plan)
        tests = train(training, lambda watch: echo.examine(training.model, plan, watch))
        if tests is None:
            return INTERRUPTED
        record = echo.save_filter(training, tests, words())
        draw_rounds(self.out / FIGURE, training.rounds)
        console = Console()
        for kind, scores in record["tests"].items():
            console.print(_table(kind, scores))
        console.print(f"use it: palto echo --run {self.out} -x far.wav -y mic.wav -o out.wav")
        return 0


def _table(kind: str, scores: dict[str, Any]) -> Table:
    """The mean scores of each method."""
    names = list(next(iter(scores.values())))
    titles = {"erle": "ERLE, dB", "stoi": "STOI", "pesq": "PESQ wide-band"}
    table = Table("", *(titles[x] for x in names), title=f"{kind}, voices and rooms never heard")
    for method, found in scores.items():
        table.add_row(method, *(f"{found[x]:.2f}" for x in names))
    return table


def draw_rounds(path: Path, rounds: list[Round]) -> None:
    """Draw by how much the echo of the scenes for validation is lowered after each round."""
    figure = new_figure(7, 3.6)
    axes = figure.add_subplot()
    axes.plot([x.steps for x in rounds], [x.erle for x in rounds], marker="o")
    for before, after in itertools.pairwise(rounds):
        if after.frames != before.frames:
            axes.axvline(before.steps, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("steps; dashed: longer sequences")
    axes.set_ylabel("ERLE, validation, dB")
    axes.grid(alpha=0.3)
    save(figure, path)
