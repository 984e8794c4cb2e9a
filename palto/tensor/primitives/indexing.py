"""Gather and scatter-add at integer indices along neighbouring axes: transposes of each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.tensor import Shape, Tensor

#: So many numbers are added in one call of NumPy, which bounds the table of their places.
_AT_A_TIME = 2**18


def _require_indices(indices: tuple[Tensor, ...]) -> Shape:
    for index in indices:
        if index.dtype not in dtypes.INTEGER:
            raise TypeError(
                f"indices are integers, got {index.dtype.name}; cast with .astype(palto.int64)"
            )
        if index.shape != indices[0].shape:
            raise ValueError(
                f"indices into several axes have one shape, got {indices[0].shape} and "
                f"{index.shape}"
            )
    return indices[0].shape


def _require_range(indices: tuple[Array, ...], sizes: Shape, role: str) -> None:
    for index, size in zip(indices, sizes, strict=True):
        if index.size and not (0 <= index.min() and index.max() < size):
            bad = index[(index < 0) | (index >= size)].flat[0]
            allowed = f"from 0 to {size - 1}" if size else "absent: there is nothing to index"
            raise IndexError(f"{role} {bad} is out of range: it must be {allowed}")


def _gather_infer(x: Tensor, *indices: Tensor, axis: int, role: str) -> Spec:
    shape = _require_indices(indices)
    return Spec((*x.shape[:axis], *shape, *x.shape[axis + len(indices) :]), x.dtype)


def _gather_numpy(x: Array, *indices: Array, axis: int, role: str) -> Array:
    _require_range(indices, x.shape[axis : axis + len(indices)], role)
    if len(indices) == 1:
        return np.take(x, indices[0], axis)
    return np.asarray(x[(slice(None),) * axis + indices])


def _gather_gradient(operation: Operation, g: Tensor) -> Gradients:
    x, *indices = operation.inputs
    axis, role = operation.params["axis"], operation.params["role"]
    sizes = x.shape[axis : axis + len(indices)]
    into_x = F.scatter_add_at(indices, g, sizes=sizes, axis=axis, role=role)
    return [into_x, *(None for _ in indices)]


#: x[..., i, j, ...] for index tensors i, j of one shape, which takes the place of their axes, the
#: first of which is `axis`. `role` says in errors what the indices are.
gather = Primitive("gather", _gather_infer, _gather_numpy, _gather_gradient, flops=lambda op: 0)


def _scatter_infer(updates: Tensor, *indices: Tensor, sizes: Shape, axis: int, role: str) -> Spec:
    shape = _require_indices(indices)
    if updates.shape[axis : axis + len(shape)] != shape:
        raise ValueError(
            f"scatter_add along axis {axis}: updates of shape {updates.shape} do not match "
            f"indices of shape {shape}"
        )
    if updates.dtype not in dtypes.NUMERIC:
        raise TypeError(f"scatter_add does not take {updates.dtype.name}")
    rest = updates.shape[axis + len(shape) :]
    return Spec((*updates.shape[:axis], *sizes, *rest), updates.dtype)


def _scatter_numpy(updates: Array, *indices: Array, sizes: Shape, axis: int, role: str) -> Array:
    _require_range(indices, sizes, role)
    before, rest = updates.shape[:axis], updates.shape[axis + indices[0].ndim :]
    result = np.zeros((math.prod(sizes), *before, *rest), updates.dtype)
    flat = np.ravel_multi_index(tuple(index.reshape(-1) for index in indices), sizes)
    rows = np.moveaxis(updates.reshape(*before, flat.size, *rest), axis, 0)
    # NumPy is quick with one index per number, not per row: some thousand rows at a time.
    width = math.prod((*before, *rest))
    columns, target = np.arange(width), result.reshape(-1)
    step = max(_AT_A_TIME // max(width, 1), 1)
    for start in range(0, flat.size, step):
        part = slice(start, start + step)
        places = flat[part, None] * width + columns
        np.add.at(target, places.reshape(-1), rows[part].reshape(-1))
    return np.moveaxis(result, 0, axis).reshape(*before, *sizes, *rest)


def _scatter_gradient(operation: Operation, g: Tensor) -> Gradients:
    _, *indices = operation.inputs
    params: dict[str, Any] = operation.params
    into_updates = F.take_at(g, indices, axis=params["axis"], role=params["role"])
    return [into_updates, *(None for _ in indices)]


#: Zeros of lengths `sizes` from `axis` on, with every update added at its indices.
scatter_add = Primitive(
    "scatter_add",
    _scatter_infer,
    _scatter_numpy,
    _scatter_gradient,
    flops=lambda op: op.inputs[0].size,
)
