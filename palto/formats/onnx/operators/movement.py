"""Operators that move elements, or make them from a shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from palto.formats.onnx.operators.elementwise import numpy_dtype
from palto.formats.onnx.table import Call, operator
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F


@operator("Shape", shape_only=True)
def shape(call: Call, x: Tensor) -> Tensor:
    """The lengths of the axes, or of some of them."""
    part = slice(call.attribute("start", 0), call.attribute("end"))
    return F.asarray(np.array(x.shape[part], np.int64))


@operator("Size", shape_only=True)
def size(call: Call, x: Tensor) -> Tensor:
    """The number of elements."""
    return F.asarray(np.array(x.size, np.int64))


@operator("Reshape", static=(1,))
def reshape(call: Call, x: Tensor, target: Tensor | None = None) -> Tensor:
    """Other axes; 0 keeps the length that is there, -1 takes what is left."""
    wanted = call.attribute("shape", ()) if target is None else call.ints(target, "the shape")
    if not call.attribute("allowzero", 0):
        if any(n == 0 and axis >= x.ndim for axis, n in enumerate(wanted)):
            raise call.error(f"the shape {list(wanted)} keeps an axis that {x.shape} has not")
        wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
    return F.reshape(x, tuple(wanted))


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Two axes: what comes before `axis`, and what comes from it on."""
    axis = call.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return F.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def _axes_given(call: Call, axes: Tensor | None) -> Sequence[int] | None:
    found: Sequence[int] | None = call.attribute("axes")
    return found if axes is None else call.ints(axes, "which axes")


@operator("Squeeze", static=(1,))
def squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without axes of length 1."""
    given = _axes_given(call, axes)
    if given is None:
        given = [axis for axis, n in enumerate(x.shape) if n == 1]
    gone = call.axes(x, given)
    if any(x.shape[axis] != 1 for axis in gone):
        raise call.error(f"axes {gone} of {x.shape} are not of length 1")
    return F.reshape(x, tuple(n for axis, n in enumerate(x.shape) if axis not in gone))


@operator("Unsqueeze", static=(1,))
def unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """With new axes of length 1."""
    given = _axes_given(call, axes) or ()
    rank = x.ndim + len(given)
    new = {axis + rank if axis < 0 else axis for axis in given}
    if len(new) != len(given) or not new <= set(range(rank)):
        raise call.error(f"new axes {list(given)} for a tensor of shape {x.shape}")
    rest = iter(x.shape)
    return F.reshape(x, tuple(1 if axis in new else next(rest) for axis in range(rank)))


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """The axes in another order, by default the reverse."""
    return F.permute_dims(x, call.attribute("perm", tuple(reversed(range(x.ndim)))))


@operator("Expand", static=(1,))
def expand(call: Call, x: Tensor, target: Tensor) -> Tensor:
    """Repeated so that it has the shape that broadcasting with another gives."""
    wanted = F.broadcast_shapes(x.shape, tuple(call.ints(target, "the shape")))
    return F.broadcast_to(x, call.bounded(wanted))


@operator("Tile", static=(1, 2))
def tile(call: Call, x: Tensor, counts: Tensor, axis: Tensor | None = None) -> Tensor:
    """The whole repeated along each axis."""
    numbers = call.ints(counts, "the number of repetitions")
    if axis is not None:  # before version 6: one number, for one axis
        place = call.axes(x, call.ints(axis, "the axis"))[0]
        numbers = [numbers[0] if i == place else 1 for i in range(x.ndim)]
    if len(numbers) != x.ndim:
        raise call.error(f"repetitions {numbers} for a tensor of shape {x.shape}")
    call.bounded([n * count for n, count in zip(x.shape, numbers, strict=True)])
    return F.tile(x, numbers)


@operator("Concat")
def concat(call: Call, *inputs: Tensor) -> Tensor:
    """One after the other along an axis."""
    axis = call.axis(inputs[0], 1)
    shape = list(inputs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in inputs)
    call.bounded(shape)
    return F.concat(inputs, axis=axis)


@operator("Split", static=(1,))
def split(call: Call, x: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    """Pieces of given lengths, or of nearly equal ones."""
    axis = call.axis(x, 0)
    n = x.shape[axis]
    parts = call.attribute("split") if lengths is None else call.ints(lengths, "the lengths")
    if parts is None:
        count = len(call.node.outputs)
        if call.attribute("num_outputs", count) != count or not count:
            raise call.error(f"{call.attribute('num_outputs')} pieces for {count} outputs")
        piece = -(-n // count)
        parts = [min(piece, n - i * piece) for i in range(count)]
    if sum(parts) != n or min(parts, default=0) < 0:
        raise call.error(f"the lengths {list(parts)} do not divide axis {axis} of {x.shape}")
    ends = np.cumsum(parts).tolist()
    front = (slice(None),) * axis
    return [x[(*front, slice(end - part, end))] for part, end in zip(parts, ends, strict=True)]


@operator("Slice", static=(1, 2, 3, 4))
def cut(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """From a start towards an end in steps, along some axes; negative steps go backwards."""
    first = call.attribute("starts") if starts is None else call.ints(starts, "where it starts")
    last = call.attribute("ends") if ends is None else call.ints(ends, "where it ends")
    places = _axes_given(call, axes)
    places = call.axes(x, range(len(first)) if places is None else places)
    step = [1] * len(first) if steps is None else call.ints(steps, "the steps")
    index = [slice(None)] * x.ndim
    for axis, start, end, by in zip(places, first, last, step, strict=True):
        if by == 0:
            raise call.error("a step of 0")
        index[axis] = _as_slice(start, end, by, x.shape[axis])
    return x[tuple(index)]


def _as_slice(start: int, end: int, step: int, n: int) -> slice:
    """Python's slice for ONNX's, which counts from the end once and then holds within bounds."""
    start, end = (place + n if place < 0 else place for place in (start, end))
    if step > 0:
        return slice(min(max(start, 0), n), min(max(end, 0), n), step)
    start, end = min(max(start, 0), n - 1), min(max(end, -1), n - 1)
    return slice(start, None if end == -1 else end, step) if n else slice(None)


@operator("Pad", static=(1, 2, 3))
def pad(
    call: Call,
    x: Tensor,
    widths: Tensor | None = None,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """A border: of a number, of the edge, mirrored, or from the other side; negative ones crop."""
    if widths is None:
        given = call.attribute("pads", call.attribute("paddings", ()))
    else:
        given = call.ints(widths, "the border")
    places = call.axes(x, None if axes is None else call.ints(axes, "the axes"))
    if len(given) != 2 * len(places):
        raise call.error(f"borders {list(given)} for {len(places)} axes")
    low, high = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(places):
        low[axis], high[axis] = given[i], given[i + len(places)]
    call.bounded([max(a, 0) + n + max(b, 0) for a, n, b in zip(low, x.shape, high, strict=True)])
    mode = call.attribute("mode", "constant")
    if mode == "constant":
        number = call.attribute("value", 0.0) if value is None else call.known(value, "it").item()
        number = number if x.dtype in dtypes.FLOATING else int(number)
        positive = [(max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True)]
        x = F.pad(x, positive, value=bool(number) if x.dtype == dtypes.bool else number)
        return x[tuple(slice(max(-a, 0), n - max(-b, 0))
                       for a, b, n in zip(low, high, x.shape, strict=True))]  # fmt: skip
    for axis in range(x.ndim):
        if low[axis] or high[axis]:
            n = x.shape[axis]
            if n == 0:
                raise call.error(f"mode {mode!r} has nothing to repeat along axis {axis}")
            where = np.arange(-low[axis], n + high[axis])
            if mode == "edge":
                where = where.clip(0, n - 1)
            elif mode == "wrap":
                where = where % n
            else:  # reflect: without the edge itself
                period = max(2 * n - 2, 1)
                where = np.abs((where + n - 1) % period - (n - 1)) if n > 1 else where * 0
            x = F.take(x, where, axis=axis)
    return x


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels become blocks of pixels."""
    block = call.attribute("blocksize")
    n, c, h, w = x.shape
    if call.attribute("mode", "DCR") == "DCR":
        x = F.reshape(x, (n, block, block, c // block**2, h, w))
        x = F.permute_dims(x, (0, 3, 4, 1, 5, 2))
    else:
        x = F.reshape(x, (n, c // block**2, block, block, h, w))
        x = F.permute_dims(x, (0, 1, 4, 2, 5, 3))
    return F.reshape(x, (n, c // block**2, h * block, w * block))


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Blocks of pixels become channels."""
    block = call.attribute("blocksize")
    n, c, h, w = x.shape
    x = F.reshape(x, (n, c, h // block, block, w // block, block))
    if call.attribute("mode", "DCR") == "DCR":
        x = F.permute_dims(x, (0, 3, 5, 1, 2, 4))
    else:
        x = F.permute_dims(x, (0, 1, 3, 5, 2, 4))
    return F.reshape(x, (n, c * block**2, h // block, w // block))


@operator("Trilu", static=(1,))
def triangle(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The upper or lower triangle of matrices, zeros elsewhere."""
    diagonal = 0 if k is None else call.ints(k, "which diagonal")[0]
    shape = x.shape[-2:]
    place = F.iota(shape, 1) - F.iota(shape, 0)
    keep = place >= diagonal if call.attribute("upper", 1) else place <= diagonal
    return F.where(keep, x, F.zeros_like(x))


# Tensors out of nothing


@operator("ConstantOfShape", static=(0,))
def constant_of_shape(call: Call, target: Tensor) -> Tensor:
    """One number everywhere."""
    value = call.attribute("value")
    number = F.asarray(np.zeros(1, np.float32)) if value is None else value
    shape = call.bounded(call.ints(target, "the shape"))
    return F.broadcast_to(F.reshape(number, ()), shape)


@operator("Range", static=(0, 1, 2))
def arange(call: Call, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """Numbers from a start towards a limit in equal steps."""
    first, last, by = (call.known(x, "the range").reshape(()).item() for x in (start, limit, step))
    if by == 0 or not math.isfinite((last - first) / by):
        raise call.error(f"a range from {first} to {last} by {by}")
    count = max(math.ceil((last - first) / by), 0)
    call.bounded((count,))
    return F.asarray((first + by * np.arange(count)).astype(start.dtype))


@operator("EyeLike", shape_only=True)
def eye_like(call: Call, x: Tensor) -> Tensor:
    """Ones on a diagonal."""
    number = call.attribute("dtype")
    dtype = x.dtype if number is None else numpy_dtype(call, number)
    place = F.iota(x.shape, 1) - F.iota(x.shape, 0)
    return F.astype(place == call.attribute("k", 0), dtype)


@operator("OneHot", static=(1,))
def one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """One number at each index of a new axis, another elsewhere."""
    length = call.ints(depth, "the number of classes")[0]
    places = F.astype(indices, dtypes.int64)
    places = F.where(places < 0, places + length, places)
    axis = call.attribute("axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    shape = call.bounded((*indices.shape[:axis], length, *indices.shape[axis:]))
    chosen = F.iota(shape, axis) == F.expand_dims(places, axis)
    return F.where(chosen, values[1], values[0])
