"""Dropout."""

from __future__ import annotations

from palto.nn.module import Module
from palto.tensor import Tensor, random
from palto.tensor import functions as F
from palto.tensor.random import Generator


def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, *, generator: Generator | None = None
) -> Tensor:
    """Each element is dropped with probability p; what stays is divided by 1 - p.

    So the mean stays as it is, and inference uses `x` itself.

    Args:
        x: any shape.
        p: the probability, from 0 to 1.
        training: False gives `x` itself.
        generator: where the choice comes from.

    Raises:
        ValueError: `p` is no probability.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov: Dropout (JMLR 2014).
    """
    _require_probability(p)
    x = F.asarray(x)
    if not training or p == 0:
        return x
    if p == 1:
        return F.zeros_like(x)
    return F.where(random.bernoulli(x.shape, 1 - p, generator=generator), x * (1 / (1 - p)), 0.0)


def _require_probability(p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"dropout wants a probability from 0 to 1, got {p}")


class Dropout(Module):
    """In training drops each element with probability p and divides the others by 1 - p.

    In inference it does nothing.

    Args:
        p: the probability, from 0 to 1.
        generator: where the choice comes from; by default Palto's default generator.

    Raises:
        ValueError: `p` is no probability.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov: Dropout (JMLR 2014).
    """

    def __init__(self, p: float = 0.5, *, generator: Generator | None = None) -> None:
        _require_probability(p)
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return dropout(x, self.p, self.training, generator=self.generator)

    def extra_repr(self) -> str:
        """The probability."""
        return str(self.p)
