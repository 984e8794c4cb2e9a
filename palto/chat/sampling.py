"""Which token comes next: drawn from what a model finds likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. Each limit applies to what the one before has left."""

    temperature: float = 0.2
    """Above 1 bolder, below 1 more careful, 0: always the likeliest token."""
    top_k: int = 40
    """Only so many of the likeliest tokens; 0: all."""
    top_p: float = 0.9
    """Only the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Only tokens with at least this part of the likeliest one's probability."""
    repetition_penalty: float = 1.1
    """Above 1, tokens that the answer has had already become less likely; 1: not so."""
    seed: int | None = None
    """The same seed gives the same answer; by default each answer is another."""

    def check(self) -> None:
        """Raise a ValueError if a number makes no sense."""
        for name, fine, wanted in (
            ("temperature", 0 <= self.temperature <= 100, "from 0 to 100"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0.1 <= self.repetition_penalty <= 10, "from 0.1 to 10"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
        ):
            if not fine:
                raise ValueError(f"{name} should be {wanted}, got {getattr(self, name)}")


class Sampler:
    """Draws tokens, one after the other.

    Args:
        options: how.
    """

    def __init__(self, options: Sampling) -> None:
        options.check()
        self._options = options
        self._random = np.random.default_rng(options.seed)

    def __call__(self, logits: np.ndarray, before: Sequence[int] = ()) -> int:
        """The next token.

        Args:
            logits: of all tokens, float32 (vocabulary,).
            before: the answer so far, for the repetition penalty.

        Raises:
            ValueError: the logits are no numbers: the model is broken.
        """
        if not self._options.temperature:
            logits = penalised(logits, before, self._options.repetition_penalty)
            likeliest = int(np.argmax(logits))
            if not np.isfinite(logits[likeliest]):
                raise ValueError("the model's output is no number: its file may be damaged")
            return likeliest
        tokens, shares = distribution(logits, self._options, before)
        place = int(np.searchsorted(np.cumsum(shares), self._random.random(), side="right"))
        return int(tokens[min(place, len(tokens) - 1)])


def penalised(logits: np.ndarray, before: Sequence[int], penalty: float) -> np.ndarray:
    """Logits with those of earlier tokens made smaller: divided if positive, else multiplied.

    Source: Keskar et al.: CTRL (2019), as others compute it.
    """
    if penalty == 1 or not before:
        return logits
    seen = np.unique(np.asarray(before, np.int64))
    logits = logits.copy()
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def distribution(
    logits: np.ndarray, options: Sampling, before: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may come next, the likeliest first, and their probabilities.

    Args:
        logits: of all tokens, float32 (vocabulary,).
        options: limits and temperature, which is not 0.
        before: the answer so far.

    Returns:
        Tokens, int64 (count,), and probabilities, float64 (count,), whose sum is 1.

    Raises:
        ValueError: the logits are no numbers: the model is broken.
    """
    logits = penalised(logits, before, options.repetition_penalty)
    if 0 < options.top_k < len(logits):
        tokens = np.argpartition(logits, -options.top_k)[-options.top_k :]
    else:
        tokens = np.arange(len(logits))
    tokens = tokens[np.argsort(-logits[tokens], kind="stable")]
    scores = logits[tokens].astype(np.float64)
    if not np.isfinite(scores[0]) or np.isnan(scores[-1]):
        raise ValueError("the model's output is no number: its file may be damaged")
    shares = np.exp((scores - scores[0]) / options.temperature)
    shares /= shares.sum()
    if options.top_p < 1:
        # Up to the token with which the sum reaches top_p.
        count = int(np.searchsorted(np.cumsum(shares), options.top_p)) + 1
        tokens, shares = tokens[:count], shares[:count] / shares[:count].sum()
    if options.min_p:
        count = int(np.count_nonzero(shares >= options.min_p * shares[0]))
        tokens, shares = tokens[:count], shares[:count] / shares[:count].sum()
    return tokens, shares
