"""The command that adapts a chat model to conversations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from palto import data
from palto.chat import models
from palto.cli.rounds import INTERRUPTED, Watch, part, words
from palto.cli.train_chat import FIGURE, draw_rounds
from palto.recipes import dialogue
from palto.recipes.dialogue import Tune, Tuning


@dataclass(frozen=True)
class Command(Tune):
    """Teach a language model the tone of conversations, by small layers beside its own (LoRA).

    SmolLM2-135M-Instruct on two people's small talk, both fetched: palto tune chat

    On your own: palto tune chat --data talks.jsonl, in each line a conversation, a list of
    messages such as {"role": "user", "content": "Hello"}; or talks.txt, in each line what one of
    two people says, with an empty line between conversations.

    The folder gets the small layers as the library PEFT has them, a record with the scores before
    and after, and a picture. Ctrl-C saves; the same command goes on, to the bit. Then:
    palto chat --adapter runs/tuned
    """

    model: Path | None = None
    """A .gguf file, or a folder with config.json, tokenizer.json and *.safetensors."""
    data: Path | None = None
    """Conversations of your own, .jsonl or .txt."""
    out: Path = Path("runs/tuned")
    """The run's folder."""

    def run(self) -> int:
        """Do it."""
        plan = part(self, Tune)
        console = Console()
        dialogues = data.chitchat() if self.data is None else data.dialogue_file(self.data)
        tuning = Tuning(self.out, plan, dialogues, models.load(self.model))
        if tuning.rounds:
            console.print(f"{self.out}: going on after step {tuning.rounds[-1].steps}")
        try:
            with Watch(console) as watch:
                tuning.run(watch.told)
                tuning.take_best()
                dialogue.round_weights(tuning.adapter)
                tests = tuning.examine(watch.told)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on where it was")
            return INTERRUPTED
        tuning.save(tests, words())
        draw_rounds(self.out / FIGURE, tuning.rounds)
        bits = tests["bits per byte"]
        console.print(
            f"conversations never seen: {bits['before']:.3f} bits per byte before, "
            f"{bits['after']:.3f} after"
        )
        chosen = "" if self.model is None else f" --model {self.model}"
        console.print(f"talk to it: palto chat{chosen} --adapter {self.out}", soft_wrap=True)
        return 0
