"""Prepare: the same graph in the form that nests like, primitive by primitive.

Convolutions and sum pooling get their padding and their gaps by explicit `pad` rows, so that a
kernel has no edge cases, and a pad of a permuted image becomes a permuted pad, so that a layer's
forward and backward share one. A sum into few elements becomes two sums, so that all cores help and
rounding stays small; the split depends on the shape alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from palto.compiler import index as ix
from palto.compiler import views
from palto.compiler.index import Variable
from palto.compiler.sizes import Size
from palto.tensor import functions as F
from palto.tensor.graph import Operation, Primitive, apply
from palto.tensor.primitives import contract, elementwise, movement, reduce, window
from palto.tensor.tensor import Tensor

#: A reduction of at least so many elements into fewer than `_FEW` is made in two stages; into fewer
#: than `_FEW_ROWS`, if what is reduced lies side by side, for then rows are pieces of work already.
_MANY, _FEW, _FEW_ROWS = 2**15, 256, 16
#: The most pieces of a first stage.
_PIECES = 64

Rule = Callable[[Operation, Sequence[Tensor]], Any]


def _apply(row: Primitive, *inputs: Tensor, **params: Any) -> Tensor:
    """Apply a primitive of one output."""
    result: Tensor = apply(row, *inputs, **params)
    return result


def read_through(
    tensor: Tensor, indices: Sequence[ix.Index], stop: Callable[[Tensor], bool]
) -> views.Read:
    """The tensor behind plain views, and the indices there."""
    read = views.Read(tensor, tuple(indices))
    while True:
        operation = read.tensor.operation if read.tensor._value is None else None
        if stop(read.tensor) or operation is None or operation.primitive.name not in views.PLAIN:
            return read
        read = views.TABLE[operation.primitive.name](operation, read.indices)


def _padded(x: Tensor, low: list[int], high: list[int], gap: list[int]) -> Tensor:
    """`x` with zeros around and between; negative widths crop."""
    if not any((*low, *high, *gap)):
        return x
    moved = _pad_behind(x, low, high, gap)
    if moved is not None:
        return moved
    if any(gap) and min(*low, *high) < 0:
        zeros = [0] * len(low)
        x, gap = _padded(x, zeros, zeros, gap), zeros
    lengths = [n + sum(widths) for n, *widths in zip(x.shape, low, high, strict=True)]
    # What is cropped may be all of an axis, and of the padding on its other side.
    starts = [min(max(-w, 0), n) for n, w in zip(x.shape, low, strict=True)]
    stops = [max(n - max(-w, 0), s) for n, w, s in zip(x.shape, high, starts, strict=True)]
    if starts != [0] * x.ndim or stops != list(x.shape):
        ones = (1,) * x.ndim
        x = _apply(movement.slice_, x, starts=tuple(starts), stops=tuple(stops), steps=ones)
    missing = [length - n for length, n in zip(lengths, x.shape, strict=True)]
    low = [min(max(n, 0), most) for n, most in zip(low, missing, strict=True)]
    high = [most - n for n, most in zip(low, missing, strict=True)]
    if any((*low, *high, *gap)):
        x = _apply(movement.pad, x, low=tuple(low), high=tuple(high), interior=tuple(gap), value=0)
    return x


def _pad_behind(x: Tensor, low: list[int], high: list[int], gap: list[int]) -> Tensor | None:
    """The pad of what `x` is a permutation of, permuted; None if `x` is none."""
    axes = [Variable(f"p{axis}", n) for axis, n in enumerate(x.shape)]
    read = read_through(x, [ix.of(axis) for axis in axes], lambda tensor: False)
    base = read.tensor
    if base is x or base.size != x.size or x.size == 0:
        return None
    order: list[int] = []  # for each long axis of the base, the axis of x
    for i in read.indices:
        if not i.terms:
            continue
        ((variable, c),) = i.terms.values() if len(i.terms) == 1 else ((None, 0),)
        if variable is None or c != 1 or i.constant or variable.kind != "loop":
            return None
        order.append(int(variable.key[1:]))
    long = [axis for axis, n in enumerate(base.shape) if n > 1]
    if len(order) != len(long) or any(
        (low[axis], high[axis], gap[axis]) != (0, 0, 0)
        for axis in range(x.ndim)
        if axis not in order
    ):
        return None
    widths = []
    for given in (low, high, gap):
        width = [0] * base.ndim
        for axis, place in zip(long, order, strict=True):
            width[axis] = given[place]
        widths.append(width)
    padded = _padded(base, *widths)
    squeezed = F.reshape(padded, tuple(padded.shape[axis] for axis in long))
    turned = F.permute_dims(squeezed, tuple(order.index(axis) for axis in sorted(order)))
    lengths = dict(zip(order, squeezed.shape, strict=True))
    return F.reshape(turned, tuple(lengths.get(axis, n) for axis, n in enumerate(x.shape)))


def _without_padding(name: str) -> Rule:
    def rule(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
        params = dict(operation.params)
        x, dims = inputs[0], inputs[0].ndim - 2
        kernel = params["window"] if name == "window_sum" else inputs[1].shape[:dims]
        gaps = params.get("kernel_dilation", (1,) * dims)
        low, high = [0] * x.ndim, [0] * x.ndim
        for axis in range(dims):
            n = (x.shape[axis + 1] - 1) * params["input_dilation"][axis] + 1
            reach = (kernel[axis] - 1) * gaps[axis] + 1
            out = operation.output().shape[axis + 1]
            used = (out - 1) * params["stride"][axis] + reach
            low[axis + 1] = params["padding"][axis][0]
            high[axis + 1] = used - n - low[axis + 1]  # no more than the last window needs
        gap = [0, *(step - 1 for step in params["input_dilation"]), 0]
        params["padding"] = ((0, 0),) * dims
        params["input_dilation"] = (1,) * dims
        row = window.window_sum if name == "window_sum" else contract.conv
        return _apply(row, _padded(x, low, high, gap), *inputs[1:], **params)

    return rule


def _in_two_stages(row: Any) -> Rule:
    def rule(operation: Operation, inputs: Sequence[Tensor]) -> Tensor:
        x, axes = inputs[0], operation.params["axes"]
        count = math.prod(n for axis, n in enumerate(x.shape) if axis not in axes)
        few = _FEW_ROWS if x.ndim - 1 in axes else _FEW
        fixed = [axis for axis in axes if not isinstance(x.shape[axis], Size)]
        if not fixed or int(count) >= few or int(x.size) < _MANY:
            return _apply(row, x, axes=axes)
        axis = max(fixed, key=lambda a: (x.shape[a] >= 8, -a))
        n = x.shape[axis]
        pieces = max(p for p in range(1, min(_PIECES, n) + 1) if n % p == 0)
        if pieces < 4:
            if n < 8:
                return _apply(row, x, axes=axes)
            # A prime length: most of it in pieces, and the rest.
            whole = n // 8 * 8
            parts = [_part(x, axis, 0, whole), _part(x, axis, whole, n)]
            sums = [rule(_like(operation, part), [part]) for part in parts]
            return _COMBINE[row](*sums)
        split = F.reshape(x, (*x.shape[:axis], pieces, n // pieces, *x.shape[axis + 1 :]))
        moved = tuple(a + (a >= axis) for a in axes)
        first = _apply(row, split, axes=moved)
        place = axis - sum(a < axis for a in axes)
        return _apply(row, first, axes=(place,))

    return rule


_COMBINE: dict[Any, Callable[..., Tensor]] = {
    reduce.sum: lambda a, b: _apply(elementwise.add, a, b),
    reduce.max: lambda a, b: _apply(elementwise.maximum, a, b),
    reduce.min: lambda a, b: _apply(elementwise.minimum, a, b),
}


def _part(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    starts = tuple(start if i == axis else 0 for i in range(x.ndim))
    stops = tuple(stop if i == axis else n for i, n in enumerate(x.shape))
    return _apply(movement.slice_, x, starts=starts, stops=stops, steps=(1,) * x.ndim)


def _like(operation: Operation, x: Tensor) -> Operation:
    return Operation(operation.primitive, (x,), operation.params)


#: Rules by primitive: from an operation and its new inputs to the new output.
RULES: dict[str, Rule] = {
    "conv": _without_padding("conv"),
    "window_sum": _without_padding("window_sum"),
    "sum": _in_two_stages(reduce.sum),
    "max": _in_two_stages(reduce.max),
    "min": _in_two_stages(reduce.min),
}
