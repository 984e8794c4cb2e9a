"""What `palto tune` says of itself; `palto tune NAME` is cli/tune_NAME.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Tune:
    """Adapt a trained network to data of your own: palto tune chat --help."""

    what: Positional[Literal["chat"]]
    """chat: a language model, to conversations."""

    def run(self) -> int:
        """Never reached: `palto tune chat` is a command of its own."""
        raise NotImplementedError
