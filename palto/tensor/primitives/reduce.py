"""Reductions: one output element from all the elements along some axes, which disappear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.tensor import Shape, Tensor


def _row(
    name: str,
    kinds: tuple[dtypes.DType, ...],
    numpy: Callable[..., Any],
    gradient: Callable[..., Gradients],
    *,
    has_identity: bool,
) -> Primitive:
    def infer(x: Tensor, *, axes: tuple[int, ...]) -> Spec:
        if x.dtype not in kinds:
            raise TypeError(f"{name} does not take {x.dtype.name}; cast the tensor first")
        if not has_identity and any(x.shape[axis] == 0 for axis in axes):
            raise ValueError(f"{name} of no elements: shape {x.shape} over axes {axes}")
        return Spec(tuple(n for axis, n in enumerate(x.shape) if axis not in axes), x.dtype)

    def meaning(x: Array, *, axes: tuple[int, ...]) -> Array:
        return np.asarray(numpy(x, axis=axes))

    return Primitive(name, infer, meaning, gradient, flops=lambda op: op.inputs[0].size)


def _keep(x: Tensor, axes: tuple[int, ...], shape: Shape) -> Tensor:
    """Put the reduced axes back and repeat `x` along them."""
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    return F.broadcast_to(F.reshape(x, kept), shape)


def _sum_gradient(operation: Operation, g: Tensor) -> Gradients:
    return [_keep(g, operation.params["axes"], operation.inputs[0].shape)]


def _extremum_gradient(operation: Operation, g: Tensor) -> Gradients:
    """Shared evenly between equal elements, as PyTorch's amax does."""
    x, axes = operation.inputs[0], operation.params["axes"]
    chosen = F.astype(x == _keep(operation.output(), axes, x.shape), g.dtype)
    count = F.sum(chosen, axes)
    return [chosen * _keep(g / count, axes, x.shape)]


def _sum(x: Array, *, axis: tuple[int, ...]) -> Array:
    return np.asarray(np.sum(x, axis=axis, dtype=x.dtype))


sum = _row("sum", dtypes.NUMERIC, _sum, _sum_gradient, has_identity=True)
max = _row("max", dtypes.ORDERED, np.max, _extremum_gradient, has_identity=False)
min = _row("min", dtypes.ORDERED, np.min, _extremum_gradient, has_identity=False)
