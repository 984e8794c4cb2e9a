"""Random bits: a pure function of the seed, the draw's number and the element's index.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011).
Its 128-bit counter is (block low, block high, draw low, draw high), its key the seed; element i is
word i % 4 of block i // 4. So every executor, on any number of threads, draws the same numbers.
"""

from __future__ import annotations

import math

import numpy as np

from palto.tensor import dtypes
from palto.tensor.graph import Array, Primitive, Spec
from palto.tensor.tensor import Shape, Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_CHUNK = 2**13  # blocks at a time, so that all rounds stay in the cache


def philox(counter: tuple[Array, Array, Array, Array], key: tuple[int, int]) -> tuple[Array, ...]:
    """Four words of 32 bits, as uint64 arrays, for each counter."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        first, second = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (second >> _HALF) ^ c1 ^ np.uint64(k0),
            second & _LOW,
            (first >> _HALF) ^ c3 ^ np.uint64(k1),
            first & _LOW,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _infer(state: Tensor, *, shape: Shape) -> Spec:
    if state.shape != (2,) or state.dtype != dtypes.int64:
        raise ValueError(
            f"a random state is int64(2,): seed and draw; got {state.dtype.name}{state.shape}"
        )
    return Spec(shape, dtypes.uint32)


def _numpy(state: Array, *, shape: Shape) -> Array:
    seed, draw = (int(part) & 0xFFFFFFFFFFFFFFFF for part in state)
    key = seed & 0xFFFFFFFF, seed >> 32
    low, high = np.uint64(draw & 0xFFFFFFFF), np.uint64(draw >> 32)
    size = math.prod(shape)
    words = np.empty((-(-size // 4), 4), np.uint32)
    for start in range(0, len(words), _CHUNK):
        block = np.arange(start, min(start + _CHUNK, len(words)), dtype=np.uint64)
        counter = block & _LOW, block >> _HALF, np.full_like(block, low), np.full_like(block, high)
        for place, word in enumerate(philox(counter, key)):
            words[start : start + _CHUNK, place] = word
    return words.reshape(-1)[:size].reshape(shape)


#: Uniform 32-bit words from the state (seed, draw).
random_bits = Primitive("random_bits", _infer, _numpy, None)
