"""Views: which element of which input an element of a movement's output is.

A view is read by computing indices, not by copying. Where an output element may come from nowhere
(padding), the read carries conditions, each ``low <= index < high`` or ``index == 0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from palto.compiler import index as ix
from palto.compiler.index import Index, Variable
from palto.tensor.graph import Operation
from palto.tensor.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Condition:
    """That an index is from `low` to below `high`."""

    index: Index
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Read:
    """An element of a tensor, there only if all conditions hold."""

    tensor: Tensor
    indices: tuple[Index, ...]
    conditions: tuple[Condition, ...] = ()


def _reshape(operation: Operation, indices: Sequence[Index]) -> Read:
    x, shape = operation.inputs[0], operation.params["shape"]
    if shape == x.shape:
        return Read(x, tuple(indices))
    if x.size == 0:
        return Read(x, tuple(Index() for _ in x.shape))
    return Read(x, tuple(ix.along(ix.linear(indices, shape), x.shape)))


def _permute(operation: Operation, indices: Sequence[Index]) -> Read:
    source = [Index()] * len(indices)
    for position, axis in enumerate(operation.params["axes"]):
        source[axis] = indices[position]
    return Read(operation.inputs[0], tuple(source))


def _expand(operation: Operation, indices: Sequence[Index]) -> Read:
    x = operation.inputs[0]
    tail = indices[len(indices) - x.ndim :]
    return Read(x, tuple(i if n != 1 else Index() for i, n in zip(tail, x.shape, strict=True)))


def _flip(operation: Operation, indices: Sequence[Index]) -> Read:
    x, axes = operation.inputs[0], operation.params["axes"]
    flipped = (i * -1 + (n - 1) for i, n in zip(indices, x.shape, strict=True))
    return Read(x, tuple(
        f if axis in axes else i for axis, (f, i) in enumerate(zip(flipped, indices, strict=True))
    ))  # fmt: skip


def _slice(operation: Operation, indices: Sequence[Index]) -> Read:
    starts, steps = operation.params["starts"], operation.params["steps"]
    parts = zip(indices, starts, steps, strict=True)
    return Read(operation.inputs[0], tuple(i * step + start for i, start, step in parts))


def _pad(operation: Operation, indices: Sequence[Index]) -> Read:
    x, params = operation.inputs[0], operation.params
    conditions: list[Condition] = []
    source = [
        spread(i + -low, n, gap + 1, conditions)
        for i, n, low, gap in zip(indices, x.shape, params["low"], params["interior"], strict=True)
    ]
    return Read(x, tuple(source), tuple(conditions))


def spread(index: Index, length: int, gap: int, conditions: list[Condition]) -> Index:
    """Which of `length` elements, `gap` apart, lies at a place; conditions are added to a list."""
    reach = (length - 1) * gap + 1 if length else 0
    if not index.within(reach):
        conditions.append(Condition(index, 0, reach))
        index = ix.assume(index, reach)
    if gap == 1:
        return index
    quotient, remainder = ix.split(index, gap)
    if remainder.high > 0 or remainder.low < 0:
        conditions.append(Condition(remainder, 0, 1))
    return quotient


def element(tensor: Tensor, indices: Sequence[Index], length: int) -> Index:
    """A whole number that is itself an element of a tensor, from 0 to length - 1."""
    place = ",".join(i.key for i in indices)
    variable = Variable(
        f"t{id(tensor)}[{place}]<{length}", max(length, 2), "element", None, length,
        Read(tensor, tuple(indices)),
    )  # fmt: skip
    return ix.of(variable)


def _gather(operation: Operation, indices: Sequence[Index]) -> Read:
    x, *places = operation.inputs
    axis, rank = operation.params["axis"], places[0].ndim
    inner = indices[axis : axis + rank]
    chosen = [element(place, inner, x.shape[axis + i]) for i, place in enumerate(places)]
    return Read(x, (*indices[:axis], *chosen, *indices[axis + rank :]))


def _dynamic_slice(operation: Operation, indices: Sequence[Index]) -> Read:
    x, starts = operation.inputs
    return Read(x, tuple(
        i + start_of(starts, axis, x.shape[axis], size)
        for axis, (i, size) in enumerate(zip(indices, operation.params["sizes"], strict=True))
    ))  # fmt: skip


def start_of(starts: Tensor, axis: int, length: int, size: int) -> Index:
    """Where a box of `size` begins along an axis of `length`."""
    if length == size:
        return Index()
    return element(starts, [Index(axis)], length - size + 1)


def _window_take(operation: Operation, indices: Sequence[Index]) -> Read:
    x, chosen = operation.inputs
    params = operation.params
    place = element(chosen, indices, math.prod(params["window"]))
    conditions: list[Condition] = []
    offsets = ix.along(place, params["window"])
    source = [
        spread(total_of(o, step, offset, -low), n, 1, conditions)
        for o, step, offset, (low, _), n in zip(
            indices[1:-1], params["stride"], offsets, params["padding"], x.shape[1:-1], strict=True
        )
    ]
    return Read(x, (indices[0], *source, indices[-1]), tuple(conditions))


def total_of(outer: Index, step: int, offset: Index, constant: int, gap: int = 1) -> Index:
    """``outer * step + offset * gap + constant``: a pixel under a window."""
    return ix.total([(outer, step), (offset, gap), (Index(constant), 1)])


#: Views by primitive: from the operation and an output element's indices to what is read.
TABLE: dict[str, Callable[[Operation, Sequence[Index]], Read]] = {
    "reshape": _reshape,
    "permute": _permute,
    "expand": _expand,
    "flip": _flip,
    "slice": _slice,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "window_take": _window_take,
}

#: Of these, the ones whose every element is an element of the input at an affine place.
PLAIN = ("reshape", "permute", "expand", "flip", "slice")
