"""Prepare: the same graph in the form that nests like, primitive by primitive.

Convolutions and sum pooling get their padding and their gaps by explicit `pad` rows, so that a
kernel has no edge cases, and a pad of a permuted image becomes a permuted pad, so that a layer's
forward and backward share one. Pads that are added up to fill an axis are joined. A sum into few
elements becomes two sums, so that all cores help and rounding stays small; the split depends on the
shape alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from palto.compiler import index as ix
from palto.compiler import views, winograd
from palto.compiler.simplify import Apply, Rule
from palto.compiler.sizes import Size
from palto.tensor.graph import Operation
from palto.tensor.primitives import contract, elementwise, movement, reduce, window
from palto.tensor.tensor import Tensor

#: A reduction of at least so many elements into fewer than `_FEW` is made in two stages; into fewer
#: than `_FEW_ROWS`, if what is reduced lies side by side, for then rows are pieces of work already.
_MANY, _FEW, _FEW_ROWS = 2**15, 256, 16
#: The most pieces of a first stage.
_PIECES = 64
#: The most parts of an axis that are joined.
_MOST_PARTS = 16


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


def _padded(x: Tensor, low: list[int], high: list[int], gap: list[int], apply: Apply) -> Tensor:
    """`x` with zeros around and between; negative widths crop."""
    if not any((*low, *high, *gap)):
        return x
    moved = _pad_behind(x, low, high, gap, apply)
    if moved is not None:
        return moved
    if any(gap) and min(*low, *high) < 0:
        zeros = [0] * len(low)
        x, gap = _padded(x, zeros, zeros, gap, apply), zeros
    lengths = [n + sum(widths) for n, *widths in zip(x.shape, low, high, strict=True)]
    # What is cropped may be all of an axis, and of the padding on its other side.
    starts = [min(max(-w, 0), n) for n, w in zip(x.shape, low, strict=True)]
    stops = [max(n - max(-w, 0), s) for n, w, s in zip(x.shape, high, starts, strict=True)]
    if starts != [0] * x.ndim or stops != list(x.shape):
        ones = (1,) * x.ndim
        x = apply(movement.slice_, x, starts=tuple(starts), stops=tuple(stops), steps=ones)
    missing = [length - n for length, n in zip(lengths, x.shape, strict=True)]
    low = [min(max(n, 0), most) for n, most in zip(low, missing, strict=True)]
    high = [most - n for n, most in zip(low, missing, strict=True)]
    if any((*low, *high, *gap)):
        x = apply(movement.pad, x, low=tuple(low), high=tuple(high), interior=tuple(gap), value=0)
    return x


def _pad_behind(
    x: Tensor, low: list[int], high: list[int], gap: list[int], apply: Apply
) -> Tensor | None:
    """The pad of what `x` is another view of, viewed likewise; None if `x` is no view."""
    padded_axes = [axis for axis in range(x.ndim) if any((low[axis], high[axis], gap[axis]))]
    chain: list[tuple[Operation, list[int]]] = []  # with where the padded axes are in its output
    base, axes = x, padded_axes
    while base._value is None and base.operation is not None:
        operation = base.operation
        source = operation.inputs[0]
        if operation.primitive.name == "permute":
            behind: list[int | None] = [operation.params["axes"][axis] for axis in axes]
        elif operation.primitive.name == "reshape":
            behind = [_same_axis(base.shape, axis, source.shape) for axis in axes]
        else:
            break
        found = [axis for axis in behind if axis is not None]
        if len({*found}) != len(axes):  # two axes of length 1 may be one behind a reshape
            return None
        chain.append((operation, axes))
        base, axes = source, found
    if not chain:
        return None
    widths = []
    for given in (low, high, gap):
        width = [0] * base.ndim
        for axis, place in zip(axes, padded_axes, strict=True):
            width[axis] = given[place]
        widths.append(width)
    padded = _padded(base, widths[0], widths[1], widths[2], apply)
    lengths = [padded.shape[axis] for axis in axes]
    for operation, axes in reversed(chain):
        if operation.primitive.name == "permute":
            padded = apply(movement.permute, padded, **operation.params)
        else:
            shape = list(operation.output().shape)
            for axis, length in zip(axes, lengths, strict=True):
                shape[axis] = length
            padded = apply(movement.reshape, padded, shape=tuple(shape))
    return padded


def _same_axis(shape: Sequence[int], axis: int, other: Sequence[int]) -> int | None:
    """Which axis of another shape of the same elements is this one, if one is."""
    before = math.prod(shape[:axis])
    for place, length in enumerate(other):
        if length == shape[axis] and math.prod(other[:place]) == before:
            return place
    return None


def _without_padding(name: str) -> Rule:
    def rule(operation: Operation, inputs: Sequence[Tensor], apply: Apply) -> Any:
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
        params["input_dilation"] = (1,) * dims
        row = window.window_sum if name == "window_sum" else contract.conv
        if row is contract.conv and not any(gap):
            params["padding"] = tuple(zip(low[1:-1], high[1:-1], strict=True))
            result = winograd.rewritten(x, inputs[1], params, apply)
            if result is not None:
                return result
        x = _padded(x, low, high, gap, apply)
        params["padding"] = ((0, 0),) * dims
        if row is contract.conv:  # another padding may have been refused
            for rewrite in (winograd.rewritten, _image_by_image):
                result = rewrite(x, inputs[1], params, apply)
                if result is not None:
                    return result
        return apply(row, x, *inputs[1:], **params)

    return rule


def _image_by_image(x: Tensor, w: Tensor, params: dict[str, Any], apply: Apply) -> Tensor | None:
    """The gradient of a depthwise kernel, summed over images at the end; None for anything else.

    As a convolution it has a group for each channel, and the images as channels of a group. So
    ordered it is one number at a time; image by image, channels are neighbours.
    """
    groups, images = params["groups"], w.shape[-2]
    if groups < _FEW_ROWS or w.shape[-1] != groups or images == 1:
        return None
    front, axes = x.shape[:-1], tuple(range(x.ndim - 1))
    x = apply(movement.reshape, x, shape=(*front, groups, images))
    x = apply(movement.permute, x, axes=(*axes, x.ndim - 1, x.ndim - 2))
    x = apply(movement.reshape, x, shape=(*front, images * groups))
    w = apply(movement.reshape, w, shape=(*w.shape[:-2], 1, images * groups))
    each = apply(contract.conv, x, w, **{**params, "groups": images * groups})
    each = apply(movement.reshape, each, shape=(*each.shape[:-1], images, groups))
    result: Tensor = apply(reduce.sum, each, axes=(each.ndim - 2,))
    return result


def _in_two_stages(row: Any) -> Rule:
    def rule(operation: Operation, inputs: Sequence[Tensor], apply: Apply) -> Any:
        x, axes = inputs[0], operation.params["axes"]
        count = math.prod(n for axis, n in enumerate(x.shape) if axis not in axes)
        few = _FEW_ROWS if x.ndim - 1 in axes else _FEW
        fixed = [axis for axis in axes if not isinstance(x.shape[axis], Size)]
        if not fixed or int(count) >= few or int(x.size) < _MANY:
            return apply(row, x, axes=axes)
        axis = max(fixed, key=lambda a: (x.shape[a] >= 8, -a))
        n = x.shape[axis]
        pieces = max(p for p in range(1, min(_PIECES, n) + 1) if n % p == 0)
        if pieces < 4:
            if n < 8:
                return apply(row, x, axes=axes)
            # A prime length: most of it in pieces, and the rest.
            whole = n // 8 * 8
            parts = [_part(x, axis, 0, whole, apply), _part(x, axis, whole, n, apply)]
            sums = [rule(_like(operation, part), [part], apply) for part in parts]
            return apply(_COMBINE[row], *sums)
        shape = (*x.shape[:axis], pieces, n // pieces, *x.shape[axis + 1 :])
        split = apply(movement.reshape, x, shape=shape)
        moved = tuple(a + (a >= axis) for a in axes)
        first = apply(row, split, axes=moved)
        place = axis - sum(a < axis for a in axes)
        return apply(row, first, axes=(place,))

    return rule


_COMBINE = {
    reduce.sum: elementwise.add, reduce.max: elementwise.maximum, reduce.min: elementwise.minimum,
}  # fmt: skip


def _side_by_side(operation: Operation, inputs: Sequence[Tensor], apply: Apply) -> Any:
    """A sum of pads that fill an axis, as the gradient of all slices of a tensor is, joined.

    So each part is written where it belongs by those who compute it.
    """
    parts: list[Operation] = []
    stack = [*inputs]
    while stack:
        below = stack.pop().operation
        name = None if below is None else below.primitive.name
        if below is not None and name == "add":
            stack += below.inputs
        elif below is None or name != "pad" or len(parts) > _MOST_PARTS:
            break
        else:
            parts.append(below)
    else:
        shape = operation.output().shape
        padded = [
            axis
            for axis, n in enumerate(shape)
            if any(pad.inputs[0].shape[axis] != n for pad in parts)
        ]
        plain = not any(pad.params["value"] or any(pad.params["interior"]) for pad in parts)
        if len(padded) == 1 and plain:
            (axis,) = padded
            parts.sort(key=lambda pad: int(pad.params["low"][axis]))
            pieces = [pad.inputs[0] for pad in parts]
            ends = [*itertools.accumulate(x.shape[axis] for x in pieces)]
            starts = [pad.params["low"][axis] for pad in parts]
            fixed = not any(isinstance(n, Size) for n in (*starts, *ends))
            if fixed and [0, *ends] == [*starts, shape[axis]]:
                return apply(movement.concat, *pieces, axis=axis)
    return apply(elementwise.add, *inputs)


def _part(x: Tensor, axis: int, start: int, stop: int, apply: Apply) -> Any:
    starts = tuple(start if i == axis else 0 for i in range(x.ndim))
    stops = tuple(stop if i == axis else n for i, n in enumerate(x.shape))
    return apply(movement.slice_, x, starts=starts, stops=stops, steps=(1,) * x.ndim)


def _like(operation: Operation, x: Tensor) -> Operation:
    return Operation(operation.primitive, (x,), operation.params)


#: Rules by primitive: from an operation and its new inputs to the new output.
RULES: dict[str, Rule] = {
    "add": _side_by_side,
    "conv": _without_padding("conv"),
    "window_sum": _without_padding("window_sum"),
    "sum": _in_two_stages(reduce.sum),
    "max": _in_two_stages(reduce.max),
    "min": _in_two_stages(reduce.min),
}
