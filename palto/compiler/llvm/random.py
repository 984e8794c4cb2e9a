"""Random words, many at a time: palto.tensor.primitives.random as LLVM code."""

from __future__ import annotations

from palto.compiler.llvm.builder import Function, Value
from palto.compiler.llvm.mathematics import Lanes
from palto.tensor.primitives.random import KEY_STEPS, MULTIPLIERS, ROUNDS

_LOW = 0xFFFFFFFF


def philox_word(f: Function, seed: Value, draw: Value, index: Value) -> Value:
    """The i32 word of each element that the i64 lanes `index` number.

    Args:
        f: where the code is written.
        seed: the first half of the random state, an i64.
        draw: the second half, an i64.
        index: the elements, in an i64 of any number of lanes.
    """
    place, block = Lanes(f, index) & 3, Lanes(f, index) >> 2
    # All words are in 64-bit lanes whose upper halves are not cleared: a multiplication clears
    # that of its operand, and nothing else can carry into the lower half.
    words = [block, block >> 32, Lanes(f, draw), Lanes(f, draw) >> 32]
    key = Lanes(f, seed), Lanes(f, seed) >> 32
    for _ in range(ROUNDS):
        first, second = ((words[2 * i] & _LOW) * MULTIPLIERS[i] for i in range(2))
        words = [
            (second >> 32) ^ (words[1] ^ key[0]),
            second,
            (first >> 32) ^ (words[3] ^ key[1]),
            first,
        ]
        key = key[0] + KEY_STEPS[0], key[1] + KEY_STEPS[1]
    word = words[0]
    for number in range(1, 4):
        word = words[number].where(place.is_("eq", number), word)
    return word.to("trunc", "i32").value
