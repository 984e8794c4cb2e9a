"""Order along an axis: sort, argmax, running sums."""

from __future__ import annotations

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.tensor import Tensor


def _require_ordered(name: str, x: Tensor) -> None:
    if x.dtype not in dtypes.ORDERED:
        raise TypeError(f"{name} does not take {x.dtype.name}")


def _sort_infer(x: Tensor, *, axis: int) -> tuple[Spec, Spec]:
    _require_ordered("sort", x)
    return Spec(x.shape, x.dtype), Spec(x.shape, dtypes.int64)


def _sort_numpy(x: Array, *, axis: int) -> tuple[Array, Array]:
    indices = np.argsort(x, axis=axis, kind="stable")
    return np.take_along_axis(x, indices, axis), indices.astype(np.int64, copy=False)


def _sort_gradient(operation: Operation, g: Tensor, _: Tensor | None) -> Gradients:
    axis = operation.params["axis"]
    where = operation.output(1)
    return [F.take_along_axis(g, F.argsort(where, axis=axis), axis=axis)]


#: The elements in ascending order, NaN last, and where each came from; equal ones keep their order.
sort = Primitive("sort", _sort_infer, _sort_numpy, _sort_gradient)


def _argmax_infer(x: Tensor, *, axis: int) -> Spec:
    _require_ordered("argmax", x)
    if x.shape[axis] == 0:
        raise ValueError(f"argmax of no elements: shape {x.shape} along axis {axis}")
    return Spec((*x.shape[:axis], *x.shape[axis + 1 :]), dtypes.int64)


#: Where the largest element is, the first of equals; NaN counts as the largest.
argmax = Primitive(
    "argmax",
    _argmax_infer,
    lambda x, *, axis: np.argmax(x, axis).astype(np.int64, copy=False),
    None,
    flops=lambda op: op.inputs[0].size,
)


def _cumsum_infer(x: Tensor, *, axis: int) -> Spec:
    if x.dtype not in dtypes.NUMERIC:
        raise TypeError(f"cumulative_sum does not take {x.dtype.name}")
    return Spec(x.shape, x.dtype)


def _cumsum_gradient(operation: Operation, g: Tensor) -> Gradients:
    axis = operation.params["axis"]
    return [F.flip(F.cumulative_sum(F.flip(g, axis=axis), axis=axis), axis=axis)]


cumulative_sum = Primitive(
    "cumulative_sum",
    _cumsum_infer,
    lambda x, *, axis: np.cumsum(x, axis, dtype=x.dtype),
    _cumsum_gradient,
)
