"""The command that trains a network to converse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from palto import data
from palto.cli.rounds import INTERRUPTED, Watch, part, words
from palto.draw import new_figure, save
from palto.recipes import dialogue
from palto.recipes.dialogue import Plan, Round, Training

FIGURE = "rounds.svg"


@dataclass(frozen=True)
class Command(Plan):
    """Train a network to converse, on conversations alone.

    An hour, on two people's small talk (chitchat, 8 MB to fetch): palto train chat

    A first look: palto train chat --minutes 10 --out runs/first

    On your own: palto train chat --data talks.jsonl, in each line a conversation, a list of
    messages such as {"role": "user", "content": "Hello"}; or talks.txt, in each line what one of
    two people says, with an empty line between conversations.

    The folder gets the weights and the tokenizer as Hugging Face has them, a record with all
    scores, and a picture. Ctrl-C saves; the same command goes on, to the bit. Then:
    palto chat --model runs/chat
    """

    data: Path | None = None
    """Conversations of your own, .jsonl or .txt."""
    out: Path = Path("runs/chat")
    """The run's folder."""

    def run(self) -> int:
        """Do it."""
        plan = part(self, Plan)
        console = Console()
        dialogues = data.chitchat() if self.data is None else data.dialogue_file(self.data)
        training = Training(self.out, plan, dialogues)
        if training.rounds:
            console.print(f"{self.out}: going on after step {training.rounds[-1].steps}")
        try:
            with Watch(console) as watch:
                training.run(watch.told)
                training.take_best()
                dialogue.round_weights(training.model)
                tests = dialogue.examine(training, watch.told)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on where it was")
            return INTERRUPTED
        record = dialogue.save_model(training, tests, words())
        draw_rounds(self.out / FIGURE, training.rounds)
        console.print(_table(record["tests"]))
        console.print(f"talk to it: palto chat --model {self.out}", soft_wrap=True)
        return 0


def _table(tests: dict[str, Any]) -> Table:
    table = Table("", "network", "baseline", title="conversations never seen")
    bits = tests["bits per byte"]
    table.add_row("bits per byte", f"{bits['network']:.3f}", f"xz {bits['xz']:.3f}")
    if "reply ranking" in tests:
        found = tests["reply ranking"]
        table.add_row(
            "the true reply found among ten",
            f"{found['network']:.1%}",
            f"TF-IDF {found['TF-IDF']:.1%}",
        )
    return table


def draw_rounds(path: Path, rounds: list[Round]) -> None:
    """Draw the bits per byte of the conversations for validation after each round."""
    shown = [x for x in rounds if x.bits is not None]
    figure = new_figure(7, 3.6)
    axes = figure.add_subplot()
    axes.plot([x.seconds / 60 for x in shown], [x.bits for x in shown], marker=".")
    axes.set_xlabel("minutes")
    axes.set_ylabel("bits per byte, validation")
    axes.grid(alpha=0.3)
    save(figure, path)
