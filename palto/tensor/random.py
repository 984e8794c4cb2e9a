"""Random tensors: pure functions of a seed, a draw's number and an element's index.

The state is a cell, so a compiled program continues the sequence where the eager one left it and
draws the same numbers, on any number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import apply
from palto.tensor.primitives import random as rows
from palto.tensor.tensor import Cell, Tensor


class Generator:
    """A sequence of random draws.

    Args:
        seed: any whole number; equal seeds give equal draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self.state = Cell(_state(seed), name="random state")

    def manual_seed(self, seed: int) -> Generator:
        """Start the sequence of `seed` from its beginning."""
        self.state.assign(_state(seed))
        return self

    def bits(self, shape: Any) -> Tensor:
        """Uniform random words, uint32."""
        state = self.state.read()
        self.state.assign(state + np.array([0, 1]))
        result: Tensor = apply(rows.random_bits, state, shape=F.as_shape(shape))
        return result


def _state(seed: int) -> np.ndarray[Any, Any]:
    if not isinstance(seed, int | np.integer):
        raise TypeError(f"a seed is a whole number, got {seed!r}")
    wrapped = (int(seed) + 2**63) % 2**64 - 2**63
    return np.array([wrapped, 0], np.int64)


#: What every random function draws from unless it is given another.
default_generator = Generator()


def manual_seed(seed: int) -> None:
    """Start the default sequence of random numbers anew."""
    default_generator.manual_seed(seed)


def uniform(
    shape: Any,
    low: float = 0.0,
    high: float = 1.0,
    *,
    dtype: Any = dtypes.float32,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers from `low` up to but without `high`, all equally likely, in steps of 2^-24."""
    bits = (generator or default_generator).bits(shape)
    result = F.astype(bits >> 8, dtypes.float32) * 2.0**-24
    if (low, high) != (0.0, 1.0):
        # Rounding must not reach `high`.
        below = float(np.nextafter(np.float32(high), np.float32(low)))
        result = F.minimum(result * (high - low) + low, below)
    return F.astype(result, _floating(dtype))


def normal(
    shape: Any,
    mean: float = 0.0,
    std: float = 1.0,
    *,
    dtype: Any = dtypes.float32,
    generator: Generator | None = None,
) -> Tensor:
    """Normally distributed numbers, by Box and Muller's transform (1958)."""
    generator = generator or default_generator
    shape = F.as_shape(shape)
    # One draw gives both words of an element; the radius' word is never zero.
    words = generator.bits((2, *shape))
    radius = (F.astype(words[0] >> 8, dtypes.float32) + 1.0) * 2.0**-24
    angle = F.astype(words[1] >> 8, dtypes.float32) * (2 * math.pi * 2.0**-24)
    result = F.sqrt(-2 * F.log(radius)) * F.cos(angle)
    if (mean, std) != (0.0, 1.0):
        result = result * std + mean
    return F.astype(result, _floating(dtype))


def _floating(dtype: Any) -> dtypes.DType:
    wanted = dtypes.as_dtype(dtype)
    if wanted not in (*dtypes.FLOATING, *dtypes.STORAGE):
        raise TypeError(
            f"uniform and normal give floating-point numbers, not {wanted.name}; "
            "random.integers gives whole ones"
        )
    return wanted


def integers(
    shape: Any,
    low: int,
    high: int,
    *,
    dtype: Any = dtypes.int64,
    generator: Generator | None = None,
) -> Tensor:
    """Whole numbers from `low` up to but without `high`.

    Raises:
        ValueError: an empty or too wide range; at most 2^31 numbers are told apart.
    """
    if not 0 < high - low <= 2**31:
        raise ValueError(f"integers wants low < high, at most 2**31 apart, got {low} and {high}")
    bits = (generator or default_generator).bits(shape)
    scaled = (F.astype(bits, dtypes.int64) * (high - low)) >> 32
    return F.astype(scaled + low, dtype)


def bernoulli(shape: Any, probability: float, *, generator: Generator | None = None) -> Tensor:
    """True with the given probability, to 2^-24."""
    return uniform(shape, generator=generator) < probability


def permutation(n: int, *, generator: Generator | None = None) -> Tensor:
    """The numbers 0 to n - 1 in a random order, int64."""
    return F.argsort((generator or default_generator).bits((n,)))
