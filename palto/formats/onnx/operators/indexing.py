"""Operators that read and write at indices."""

from __future__ import annotations

import math

import numpy as np

from palto.formats.onnx.table import Call, operator
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F


def _from_front(indices: Tensor, length: int) -> Tensor:
    """Indices as int64, those below zero counted from the end."""
    places = F.astype(indices, dtypes.int64)
    return F.where(places < 0, places + length, places)


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices along an axis, at indices."""
    axis = call.axis(x, 0)
    call.bounded((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    return F.take(x, _from_front(indices, x.shape[axis]), axis=axis)


@operator("ai.onnx.ml.ArrayFeatureExtractor")
def extract_features(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Columns, at indices."""
    call.bounded((x.size // max(x.shape[-1], 1), indices.size))
    return F.take(F.reshape(x, (-1, x.shape[-1])), F.reshape(indices, (-1,)), axis=-1)


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """One element for each index."""
    axis = call.axis(x, 0)
    shape, wanted = list(x.shape), list(indices.shape)
    if len(shape) != len(wanted) or any(
        m > n for i, (n, m) in enumerate(zip(shape, wanted, strict=True)) if i != axis
    ):
        raise call.error(f"indices of shape {indices.shape} into {x.shape}")
    places = [
        _from_front(indices, shape[axis]) if i == axis else F.iota(indices.shape, i)
        for i in range(x.ndim)
    ]
    return F.take_at(x, places)


def _positions(indices: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """From vectors of indices, one tensor of indices for each axis."""
    return [_from_front(indices[..., i], shape[i]) for i in range(indices.shape[-1])]


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices at vectors of indices, in each of some leading batches."""
    batches = call.attribute("batch_dims", 0)
    count = indices.shape[-1]
    if batches + count > x.ndim or x.shape[:batches] != indices.shape[:batches]:
        raise call.error(f"indices of shape {indices.shape} into {x.shape}")
    call.bounded((*indices.shape[:-1], *x.shape[batches + count :]))
    where = _positions(indices, x.shape[batches : batches + count])
    leading = [F.iota(indices.shape[:-1], axis) for axis in range(batches)]
    if not leading + where:
        return x
    return F.take_at(x, [*leading, *where])


# Writing


def _scattered(call: Call, x: Tensor, where: list[Tensor], updates: Tensor, kind: str) -> Tensor:
    """`x` with updates at index tensors of one shape for its first axes."""
    sizes, rest = x.shape[: len(where)], x.shape[len(where) :]
    if x.size == 0 or updates.size == 0:
        return x
    if kind == "add" and x.dtype in dtypes.NUMERIC:
        return x + F.scatter_add_at(where, updates, sizes=sizes)
    combine = {
        "none": None, "mul": F.multiply, "max": F.maximum, "min": F.minimum, "add": F.logical_or,
    }[kind]  # fmt: skip
    total = math.prod(sizes)
    flat = where[0]
    for index, n in zip(where[1:], sizes[1:], strict=True):
        flat = flat * n + index
    flat = F.reshape(flat, (-1,))
    count = flat.size
    # In the order of their places: those that meet are neighbours, the last one at the end.
    order = F.argsort(flat)
    flat, rows = F.take(flat, order), F.take(F.reshape(updates, (count, *rest)), order)
    shift = 1
    while combine is not None and shift < count:  # each joined with twice as many before it
        meets = F.reshape(flat[shift:] == flat[:-shift], (-1, *(1,) * len(rest)))
        joined = F.where(meets, combine(rows[:-shift], rows[shift:]), rows[shift:])
        rows = F.concat([rows[:shift], joined])
        shift *= 2
    is_last = flat != F.concat([flat[1:], F.full((1,), -1, dtype=dtypes.int64)])
    number = F.where(is_last, F.iota((count,), 0) + 1, 0)
    last = F.scatter_add(flat, number, size=total) - 1
    written = F.take(rows, F.maximum(last, 0))
    before = F.reshape(x, (total, *rest))
    if combine is not None:
        written = combine(before, written)
    is_written = F.reshape(last >= 0, (total, *(1,) * len(rest)))
    return F.reshape(F.where(is_written, written, before), x.shape)


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """`x` with one element replaced, or combined, for each index."""
    axis = call.axis(x, 0)
    where = [
        _from_front(indices, x.shape[axis]) if i == axis else F.iota(indices.shape, i)
        for i in range(x.ndim)
    ]
    return _scattered(call, x, where, updates, call.attribute("reduction", "none"))


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """`x` with slices replaced, or combined, at vectors of indices."""
    if indices.shape[-1] > x.ndim:
        raise call.error(f"indices of shape {indices.shape} into {x.shape}")
    where = _positions(indices, x.shape)
    return _scattered(call, x, where, updates, call.attribute("reduction", "none"))


@operator("TensorScatter", static=(2,))
def tensor_scatter(call: Call, x: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
    """A cache with some steps of each sequence replaced, from a start on, or around the end."""
    axis = call.axis(x, -2)
    n, length = x.shape[axis], update.shape[axis]
    first = F.zeros((x.shape[0],), dtype=dtypes.int64) if starts is None else starts
    first = F.reshape(first, (-1, *(1,) * (x.ndim - 1)))
    offset = F.iota(x.shape, axis) - first
    if call.attribute("mode", "linear") == "circular":
        offset = F.remainder(offset, n)
    is_new = (offset >= 0) & (offset < length)
    places = F.where(is_new, offset, F.zeros_like(offset))
    return F.where(is_new, F.take_along_axis(update, places, axis=axis), x)


@operator("ReverseSequence")
def reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """The first elements of each sequence in reverse, the others as they are."""
    batch, time = call.attribute("batch_axis", 1), call.attribute("time_axis", 0)
    shape = [1] * x.ndim
    shape[batch] = x.shape[batch]
    count = F.reshape(F.astype(lengths, dtypes.int64), tuple(shape))
    place = F.iota(x.shape, time)
    return F.take_along_axis(x, F.where(place < count, count - 1 - place, place), axis=time)


# Results whose length depends on values: at once only


@operator("NonZero", static=(0,))
def nonzero(call: Call, x: Tensor) -> Tensor:
    """The indices of what is not zero, one row for each axis."""
    return F.asarray(np.array(np.nonzero(call.known(x, "the result's length")), np.int64))


@operator("Compress", static=(1,))
def compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    """What is chosen along an axis, or of everything."""
    chosen = np.nonzero(call.known(condition, "the result's length"))[0]
    if call.attribute("axis") is None:
        return F.take(F.reshape(x, (-1,)), chosen)
    return F.take(x, chosen, axis=call.axis(x, 0))


@operator("Unique", static=(0,))
def unique(call: Call, x: Tensor) -> list[Tensor]:
    """What there is, each once; where first, which of them each is, and how often."""
    array = call.known(x, "the result's length")
    axis = call.attribute("axis")
    values, first, inverse, counts = np.unique(
        array, return_index=True, return_inverse=True, return_counts=True, axis=axis
    )
    inverse = inverse.reshape(-1)
    if not call.attribute("sorted", 1):
        order = np.argsort(first)
        values = np.take(values, order, axis=0 if axis is None else axis)
        first, counts = first[order], counts[order]
        inverse = np.argsort(order)[inverse]
    return [F.asarray(np.ascontiguousarray(part)) for part in (values, first, inverse, counts)]
