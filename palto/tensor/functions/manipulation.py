"""Functions that move elements and change shapes."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor.functions.creation import as_shape, asarray, constant
from palto.tensor.graph import apply
from palto.tensor.primitives import movement as rows
from palto.tensor.tensor import Axes, Shape, Tensor


def as_axis(axis: int, ndim: int) -> int:
    """An axis counted from the front.

    Raises:
        ValueError: there is no such axis.
    """
    if not isinstance(axis, int) and not hasattr(axis, "__index__"):
        raise TypeError(f"an axis is a whole number, got {axis!r}")
    axis = int(axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} is out of range for a tensor of {ndim} axes")
    return axis % ndim


def as_axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """All axes for None, else one or several, counted from the front, in order.

    Raises:
        ValueError: an axis that does not exist or is named twice.
    """
    if axis is None:
        return tuple(range(ndim))
    named = (axis,) if isinstance(axis, int | np.integer) else tuple(axis)
    axes = tuple(sorted(as_axis(a, ndim) for a in named))
    if len(set(axes)) != len(axes):
        raise ValueError(f"axes {named} name an axis twice")
    return axes


def are_same_lengths(some: Sequence[int], others: Sequence[int]) -> bool:
    """Whether lengths are equal; in a trace of run-time sizes, whether they are for all sizes."""
    return [getattr(n, "size", n) for n in some] == [getattr(n, "size", n) for n in others]


def broadcast_shapes(*shapes: Shape, name: str = "broadcasting") -> Shape:
    """The shape that `shapes` broadcast to.

    Raises:
        ValueError: they do not broadcast; both are named.
    """
    result: Shape = shapes[0]
    for shape in shapes[1:]:
        if shape == result:
            continue
        length = max(len(result), len(shape))
        left = (1,) * (length - len(result)) + result
        right = (1,) * (length - len(shape)) + shape
        if any(n != m and 1 not in (n, m) for n, m in zip(left, right, strict=True)):
            raise ValueError(
                f"{name}: shapes {result} and {shape} do not broadcast: from the last axis "
                "backwards lengths must be equal or 1"
            )
        result = tuple(m if n == 1 else n for n, m in zip(left, right, strict=True))
    return result


def broadcast_to(x: Any, shape: Any) -> Tensor:
    """`x` repeated along new leading axes and axes of length 1."""
    shape = as_shape(shape)
    result = asarray(x)
    if result.shape != shape:
        result = apply(rows.expand, result, shape=shape)
    return result


def broadcast_arrays(*arrays: Any) -> list[Tensor]:
    """All of them in the shape they broadcast to."""
    tensors = [asarray(x) for x in arrays]
    shape = broadcast_shapes(*(x.shape for x in tensors))
    return [broadcast_to(x, shape) for x in tensors]


def reshape(x: Any, shape: Any) -> Tensor:
    """The same elements, in the same order, in another shape; one length may be -1.

    Raises:
        ValueError: another number of elements.
    """
    x = asarray(x)
    wanted = [shape] if isinstance(shape, int | np.integer) else list(shape)
    if wanted.count(-1) > 1:
        raise ValueError(f"reshape: only one length may be -1, got {tuple(wanted)}")
    if -1 in wanted:
        known = math.prod(n for n in wanted if n != -1)
        if known == 0 or x.size % known:
            raise ValueError(f"cannot reshape {x.shape} ({x.size} elements) to {tuple(wanted)}")
        wanted[wanted.index(-1)] = x.size // known
    target = as_shape(wanted)
    result: Tensor = x
    if not are_same_lengths(target, x.shape):
        result = apply(rows.reshape, x, shape=target)
    return result


def flatten(x: Any, start_axis: int = 0, end_axis: int = -1) -> Tensor:
    """The axes from `start_axis` to `end_axis`, both included, joined into one."""
    x = asarray(x)
    if x.ndim == 0:
        return reshape(x, (1,))
    start, end = as_axis(start_axis, x.ndim), as_axis(end_axis, x.ndim)
    if start > end:
        raise ValueError(f"flatten from axis {start} to {end}: the first comes after the last")
    joined = math.prod(x.shape[start : end + 1])
    return reshape(x, (*x.shape[:start], joined, *x.shape[end + 1 :]))


def permute_dims(x: Any, axes: Sequence[int]) -> Tensor:
    """The axes in another order."""
    x = asarray(x)
    order = tuple(as_axis(axis, x.ndim) for axis in axes)
    result: Tensor = x
    if order != tuple(range(x.ndim)):
        result = apply(rows.permute, x, axes=order)
    return result


def matrix_transpose(x: Any) -> Tensor:
    """The last two axes swapped."""
    x = asarray(x)
    if x.ndim < 2:
        raise ValueError(f"a transpose wants at least two axes, got shape {x.shape}")
    return permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def moveaxis(x: Any, source: int, destination: int) -> Tensor:
    """One axis moved to another place, the others kept in order."""
    x = asarray(x)
    source, destination = as_axis(source, x.ndim), as_axis(destination, x.ndim)
    order = [axis for axis in range(x.ndim) if axis != source]
    order.insert(destination, source)
    return permute_dims(x, order)


def expand_dims(x: Any, axis: int = 0) -> Tensor:
    """A new axis of length 1 at `axis`."""
    x = asarray(x)
    place = as_axis(axis, x.ndim + 1)
    return reshape(x, (*x.shape[:place], 1, *x.shape[place:]))


def squeeze(x: Any, axis: Axes) -> Tensor:
    """Without the named axes.

    Raises:
        ValueError: one of them is longer than 1.
    """
    x = asarray(x)
    axes = as_axes(axis, x.ndim)
    if any(x.shape[a] != 1 for a in axes):
        raise ValueError(f"squeeze: axes {axes} of shape {x.shape} are not all of length 1")
    return reshape(x, tuple(n for a, n in enumerate(x.shape) if a not in axes))


def flip(x: Any, *, axis: Axes = None) -> Tensor:
    """Back to front along `axis`, or along all."""
    x = asarray(x)
    axes = as_axes(axis, x.ndim)
    result: Tensor = x
    if axes:
        result = apply(rows.flip, x, axes=axes)
    return result


def roll(x: Any, shift: int, *, axis: int) -> Tensor:
    """Moved `shift` places along `axis`, what falls off at the end coming back at the front."""
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    length = x.shape[axis]
    cut = (-shift) % length if length else 0
    front = (builtins.slice(None),) * axis
    return concat(
        [x[(*front, builtins.slice(cut, None))], x[(*front, builtins.slice(0, cut))]], axis=axis
    )


def concat(arrays: Sequence[Any], *, axis: int = 0) -> Tensor:
    """Several tensors one after the other along `axis`.

    Raises:
        ValueError: none given, or shapes that differ elsewhere.
    """
    from palto.tensor.functions.elementwise import promote

    if not arrays:
        raise ValueError("concat wants at least one tensor")
    tensors = promote(*arrays)
    if tensors[0].ndim == 0:
        raise ValueError("concat wants tensors with axes; stack joins tensors without")
    axis = as_axis(axis, tensors[0].ndim)
    if len(tensors) == 1:
        return tensors[0]
    result: Tensor = apply(rows.concat, *tensors, axis=axis)
    return result


def stack(arrays: Sequence[Any], *, axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    tensors = [asarray(x) for x in arrays]
    if not tensors:
        raise ValueError("stack wants at least one tensor")
    for x in tensors:
        if x.shape != tensors[0].shape:
            raise ValueError(f"stack: shapes {tensors[0].shape} and {x.shape} differ")
    return concat([expand_dims(x, axis) for x in tensors], axis=as_axis(axis, tensors[0].ndim + 1))


def split(x: Any, sections: int | Sequence[int], *, axis: int = 0) -> list[Tensor]:
    """`sections` equal parts, or parts of the given lengths, along `axis`.

    Raises:
        ValueError: the lengths do not add up.
    """
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    length = x.shape[axis]
    if isinstance(sections, int | np.integer):
        if sections < 1 or length % sections:
            raise ValueError(f"an axis of {length} does not split into {sections} equal parts")
        sections = [length // sections] * sections
    if sum(sections) != length:
        raise ValueError(f"parts of {list(sections)} do not add up to an axis of {length}")
    parts, start = [], 0
    for part in sections:
        parts.append(x[(builtins.slice(None),) * axis + (builtins.slice(start, start + part),)])
        start += part
    return parts


def unstack(x: Any, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices along `axis`, without it."""
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    return tuple(x[(builtins.slice(None),) * axis + (i,)] for i in range(x.shape[axis]))


def repeat(x: Any, repeats: int, *, axis: int) -> Tensor:
    """Every element along `axis` `repeats` times in a row."""
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    shape = (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :])
    return flatten(broadcast_to(expand_dims(x, axis + 1), shape), axis, axis + 1)


def tile(x: Any, repetitions: Sequence[int]) -> Tensor:
    """The whole tensor repeated along each axis."""
    x = asarray(x)
    counts = (1,) * (x.ndim - len(repetitions)) + tuple(repetitions)
    x = reshape(x, (1,) * (len(counts) - x.ndim) + x.shape)
    paired = [part for n in x.shape for part in (1, n)]
    grown = [part for n, count in zip(x.shape, counts, strict=True) for part in (count, n)]
    shape = tuple(n * count for n, count in zip(x.shape, counts, strict=True))
    return reshape(broadcast_to(reshape(x, paired), grown), shape)


def pad_widths(
    x: Tensor,
    low: tuple[int, ...],
    high: tuple[int, ...],
    interior: tuple[int, ...] | None = None,
    value: Any = 0,
) -> Tensor:
    """A constant before, after and between the elements of each axis."""
    gaps = interior or (0,) * x.ndim
    if not any((*low, *high, *gaps)):
        return x
    result: Tensor = apply(
        rows.pad, x, low=tuple(low), high=tuple(high), interior=gaps, value=value
    )
    return result


def pad(x: Any, widths: Sequence[tuple[int, int]], *, value: float = 0) -> Tensor:
    """A border of `value`: (before, after) for each axis, as in numpy.pad.

    Raises:
        ValueError: not one pair per axis, negative widths, or a value out of range.
        TypeError: a value of another kind than the tensor's.
    """
    x = asarray(x)
    if value:  # zero is a number of every dtype
        constant(value, dtypes.scalar_dtype(value, x.dtype))
    pairs = [tuple(pair) for pair in widths]
    if len(pairs) != x.ndim or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"pad wants one (before, after) per axis of {x.shape}, got {widths}")
    return pad_widths(x, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), value=value)


def dynamic_slice(x: Any, starts: Any, sizes: Any) -> Tensor:
    """The box of `sizes` that starts at the position in the integer tensor `starts` (ndim,).

    Raises:
        IndexError: the box reaches outside of `x`.
    """
    result: Tensor = apply(rows.dynamic_slice, asarray(x), asarray(starts), sizes=as_shape(sizes))
    return result


def dynamic_update_slice(x: Any, update: Any, starts: Any) -> Tensor:
    """`x` with the box that starts at `starts` replaced by `update`.

    Raises:
        IndexError: the box reaches outside of `x`.
    """
    parts = asarray(x), asarray(update), asarray(starts)
    result: Tensor = apply(rows.dynamic_update_slice, *parts)
    return result
