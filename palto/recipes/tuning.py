"""A network that can talk already learns the tone of some conversations.

It has read much of the web, and stays as it is; what is trained are small layers beside its own
(LoRA).

    palto tune chat
    palto chat --adapter runs/tuned
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import palto
from palto import nn, optim
from palto.chat.models import ChatModel
from palto.data import Dialogues, Turn
from palto.formats.whole import write_whole
from palto.recipes.dialogue import (
    EPS,
    Batches,
    Judge,
    Learning,
    as_bytes,
    compiled_step,
    hash_of,
)
from palto.train import Watch, save_weights


@dataclass(frozen=True)
class Tune:
    """How a network that can talk already learns from conversations."""

    minutes: float = 10.0
    """How long to learn; how many steps that makes is measured in the first ones."""
    steps: int = 0
    """Steps of the optimiser; 0: as many as the minutes allow."""
    rank: int = 8
    """The width of the small layers that learn."""
    alpha: float = 16.0
    """How much their corrections count, in units of their rank."""
    context: int = 256
    """Tokens in a row."""
    batch_size: int = 2
    """Rows in a step."""
    lr: float = 1e-3
    """The learning rate that warming up leads to; it then falls to zero."""
    share: float = 0.05
    """The share of the conversations for validation, and for the test."""
    measured: int = 20
    """How many conversations of the test are read before and after."""
    seed: int = 0
    """Of everything that is random."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a number out of range.
        """
        for name in ("rank", "batch_size", "measured"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        for name in ("lr", "minutes", "alpha"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not 0 < self.share < 0.5:
            raise ValueError(f"share must be between 0 and 0.5, got {self.share}")
        if self.context < 16 or self.context % 8:
            raise ValueError(f"context must be 16 or more, in whole 8s, got {self.context}")


class Tuning(Learning):
    """A run of `palto tune chat` in a folder.

    Args:
        folder: where it lies, or will lie.
        plan: how to train.
        dialogues: what to learn from, and to measure on.
        chat: the network, as `palto.chat.models.load` gives it; small layers are put into it.

    Raises:
        ValueError: too little to learn from, rows longer than the network overlooks; or see
            `Learning`.
        OSError: the folder cannot be written to.
    """

    WARMUP, TIMED = 20, slice(3, 13)

    def __init__(
        self, folder: str | os.PathLike[str], plan: Tune, dialogues: Dialogues, chat: ChatModel
    ) -> None:
        if plan.context > chat.context:
            raise ValueError(
                f"context must be at most {chat.context}, which {chat.name} overlooks, got "
                f"{plan.context}"
            )
        learn, validation, test = dialogues.split(plan.share)
        self._chat = chat
        self.test, self._held = (
            Dialogues(x[k] for k in range(min(plan.measured, len(x)))) for x in (test, validation)
        )
        tokens = self._encoded(learn)
        self.batches = Batches(tokens, plan.context, plan.batch_size, plan.seed)
        palto.manual_seed(plan.seed)
        self.model = nn.lora.adapt(chat.model, plan.rank, plan.alpha)
        self.adapter = nn.lora.Adapter(self.model)
        optimizer = optim.Adam(self.adapter, lr=plan.lr, eps=EPS)
        super().__init__(folder, plan, self.adapter, optimizer, hash_of(tokens))
        self._judge = Judge(self.model, plan.context, rows=plan.batch_size)
        self._step = compiled_step(self.model, self.adapter, optimizer)

    def step(self, tokens: np.ndarray, following: np.ndarray) -> palto.Tensor:
        """Learn from a batch; its loss, in nats per token."""
        return self._step(tokens, following)

    def validate(self) -> float:
        """Bits per byte of some of the conversations for validation."""
        return self.bits_per_byte(self._held)

    def bits_per_byte(self, dialogues: Dialogues) -> float:
        """Bits that the network needs for each byte of `as_bytes`.

        What its chat template adds, such as who speaks, it has to foresee, too.
        """
        return self._judge.total(self._encoded(dialogues)) / len(as_bytes(dialogues))

    def examine(self, watch: Watch) -> dict[str, Any]:
        """Bits per byte of some conversations of the test, before and after."""
        watch("test", 0.0, "after")
        after = self.bits_per_byte(self.test)
        learned = {name: x for name, x in self.adapter.state_dict().items() if "lora_B" in name}
        watch("test", 0.5, "before")
        zeros = {name: palto.zeros_like(x) for name, x in learned.items()}
        self.adapter.load_state_dict(zeros, strict=False)
        before = self.bits_per_byte(self.test)
        self.adapter.load_state_dict(learned, strict=False)
        return {
            "conversations": len(self.test),
            "bytes": len(as_bytes(self.test)),
            "bits per byte": {"before": round(before, 4), "after": round(after, 4)},
        }

    def save(self, tests: dict[str, Any], command: str) -> dict[str, Any]:
        """Write the adapter as PEFT has it, and its record adapter_model.json, and return that."""
        about = {
            "command": command,
            "model": self._chat.name,
            "plan": asdict(self.plan),
            "parameters": sum(x.size for x in self.adapter.parameters()),
            "rounds": [asdict(x) for x in self.rounds],
            "training seconds": self.rounds[-1].seconds,
            "tests": tests,
        }
        config = nn.lora.config(self.model) | {"base_model_name_or_path": self._chat.name}
        write_whole(
            self.folder / "adapter_config.json", (json.dumps(config, indent=1) + "\n").encode()
        )
        return save_weights(self.folder, "adapter_model", self.adapter, about, dtype=palto.bfloat16)

    def _encoded(self, dialogues: Dialogues) -> list[np.ndarray]:
        """The tokens of each conversation, in the network's own layout."""
        tokenizer = self._chat.tokenizer
        return [
            np.array(tokenizer.encode(tokenizer.lay_out(_in_roles(turns), answer=False)), np.int64)
            for turns in dialogues
        ]


def _in_roles(turns: Sequence[Turn]) -> list[Any]:
    """Turns as chat templates take them; who speaks first is the user where no roles are given."""
    speakers = list(dict.fromkeys(turn.speaker for turn in turns))
    roles = dict(zip(speakers, ("user", *["assistant"] * len(speakers)), strict=False))
    if set(speakers) <= {"system", "user", "assistant"}:
        roles = {speaker: speaker for speaker in speakers}
    return [{"role": roles[turn.speaker], "content": turn.text} for turn in turns]
