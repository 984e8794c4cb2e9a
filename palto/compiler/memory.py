"""Memory: which buffer holds which tensor, and where in one arena the program's own ones lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

from palto.compiler import index as ix
from palto.compiler.index import Index
from palto.tensor.dtypes import DType
from palto.tensor.tensor import Shape

#: Buffers begin at multiples of a cache line.
ALIGNMENT = 64


class Buffer:
    """Memory for the elements of one tensor.

    Args:
        shape: the tensor's shape.
        dtype: its dtype.
        role: "input", "cell", "constant", "output": memory that is there already, known by
            `number`; "arena": the program's own.
        number: which argument, cell, constant or output.

    Attributes:
        strides: elements between neighbours along each axis.
        start: where the first element lies; more than 0 inside a border.
        length: how many elements there is room for, at the greatest run-time sizes.
        offset: where in the arena it begins, in bytes.
        first: the step of the program that first writes it; inside a loop, a part of one step.
        last: the last step that uses it.
    """

    def __init__(self, shape: Shape, dtype: DType, role: str, number: int = 0) -> None:
        self.shape, self.dtype, self.role, self.number = shape, dtype, role, number
        self.strides = ix.strides_of(shape)
        self.start = 0
        self.length = int(math.prod(shape))
        self.offset = 0
        self.first: float = -1
        self.last: float = -1

    @property
    def bytes(self) -> int:
        """How much memory it takes."""
        return self.length * self.dtype.itemsize

    def place_of(self, indices: Sequence[Index]) -> Index:
        """Where the element at indices lies."""
        return ix.total([*zip(indices, self.strides, strict=True), (Index(self.start), 1)])

    def used(self, step: float) -> None:
        """Note that a step of the program uses it."""
        self.first = step if self.first < 0 else min(self.first, step)
        self.last = max(self.last, step)

    def __repr__(self) -> str:
        return f"{self.role}{self.number}: {self.dtype.name}{list(self.shape)}"


def plan(buffers: Sequence[Buffer], *, gap: int = 0) -> int:
    """Give every buffer of the arena its place; two that are alive together never overlap.

    Args:
        buffers: the arena's buffers, with their first and last step.
        gap: bytes left free after each, to see who writes out of bounds.

    Returns:
        The size of the arena in bytes.
    """
    placed: list[tuple[int, int, Buffer]] = []
    size = 0
    for buffer in sorted(buffers, key=lambda b: (-b.bytes, b.first)):
        length = -(-(buffer.bytes + gap) // ALIGNMENT) * ALIGNMENT
        taken = sorted(
            (low, high)
            for low, high, other in placed
            if other.first <= buffer.last and buffer.first <= other.last
        )
        offset = 0
        for low, high in taken:
            if offset + length <= low:
                break
            offset = max(offset, high)
        buffer.offset = offset
        placed.append((offset, offset + length, buffer))
        size = max(size, offset + length)
    return size
