"""Gather and scatter-add along one axis: transposes of each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.tensor import Tensor


def _require_indices(indices: Tensor) -> None:
    if indices.dtype not in dtypes.INTEGER:
        raise TypeError(
            f"indices are integers, got {indices.dtype.name}; cast with .astype(palto.int64)"
        )


def _require_range(indices: Array, size: int, role: str) -> None:
    if indices.size and not (0 <= indices.min() and indices.max() < size):
        bad = indices[(indices < 0) | (indices >= size)].flat[0]
        raise IndexError(f"{role} {bad} is out of range: it must be from 0 to {size - 1}")


def _gather_infer(x: Tensor, indices: Tensor, *, axis: int, role: str) -> Spec:
    _require_indices(indices)
    return Spec((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


def _gather_numpy(x: Array, indices: Array, *, axis: int, role: str) -> Array:
    _require_range(indices, x.shape[axis], role)
    return np.take(x, indices, axis)


def _gather_gradient(operation: Operation, g: Tensor) -> Gradients:
    x, indices = operation.inputs
    axis, role = operation.params["axis"], operation.params["role"]
    return [F.scatter_add(indices, g, size=x.shape[axis], axis=axis, role=role), None]


#: x[..., indices, ...] along `axis`. `role` says in errors what the indices are.
gather = Primitive("gather", _gather_infer, _gather_numpy, _gather_gradient, flops=lambda op: 0)


def _scatter_infer(indices: Tensor, updates: Tensor, *, size: int, axis: int, role: str) -> Spec:
    _require_indices(indices)
    if updates.shape[axis : axis + indices.ndim] != indices.shape:
        raise ValueError(
            f"scatter_add along axis {axis}: updates of shape {updates.shape} do not match "
            f"indices of shape {indices.shape}"
        )
    if updates.dtype not in dtypes.NUMERIC:
        raise TypeError(f"scatter_add does not take {updates.dtype.name}")
    rest = updates.shape[axis + indices.ndim :]
    return Spec((*updates.shape[:axis], size, *rest), updates.dtype)


def _scatter_numpy(indices: Array, updates: Array, *, size: int, axis: int, role: str) -> Array:
    _require_range(indices, size, role)
    before, rest = updates.shape[:axis], updates.shape[axis + indices.ndim :]
    result = np.zeros((*before, size, *rest), updates.dtype)
    flat = updates.reshape(*before, indices.size, *rest)
    # One row of the result per index, in the order of the indices.
    np.add.at(np.moveaxis(result, axis, 0), indices.reshape(-1), np.moveaxis(flat, axis, 0))
    return result


def _scatter_gradient(operation: Operation, g: Tensor) -> Gradients:
    params: dict[str, Any] = operation.params
    return [None, F.take(g, operation.inputs[0], axis=params["axis"], role=params["role"])]


#: Zeros of length `size` along `axis`, with every update added at its index.
scatter_add = Primitive(
    "scatter_add",
    _scatter_infer,
    _scatter_numpy,
    _scatter_gradient,
    flops=lambda op: op.inputs[1].size,
)
