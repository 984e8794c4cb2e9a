"""Functions that reduce axes, and order along an axis."""

from __future__ import annotations

import builtins
import math
from typing import Any

from palto.tensor import dtypes
from palto.tensor.functions.control import composite
from palto.tensor.functions.creation import asarray, constant, iota, ones_like
from palto.tensor.functions.elementwise import (
    astype,
    bitwise_invert,
    conj,
    detach,
    exp,
    isfinite,
    isnan,
    log,
    real,
    sqrt,
    where,
)
from palto.tensor.functions.manipulation import (
    as_axes,
    as_axis,
    broadcast_to,
    concat,
    flip,
    reshape,
)
from palto.tensor.graph import Primitive, apply
from palto.tensor.primitives import reduce as rows
from palto.tensor.primitives import sorting
from palto.tensor.tensor import Axes, Tensor

_SMALL_SIGNED = (dtypes.bool, dtypes.int8, dtypes.int32)
_SMALL_UNSIGNED = (dtypes.uint8, dtypes.uint32)


def _reduced(row: Primitive, x: Tensor, axis: Axes, keepdims: builtins.bool) -> Tensor:
    axes = as_axes(axis, x.ndim)
    result: Tensor = apply(row, x, axes=axes) if axes else x
    if keepdims:
        kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        result = reshape(result, kept)
    return result


def _counting(x: Tensor) -> Tensor:
    """Small integers are added up in int64, so that a sum does not wrap around."""
    if x.dtype in _SMALL_SIGNED or x.dtype in _SMALL_UNSIGNED:
        return astype(x, dtypes.int64)
    return x


def sum(x: Any, axis: Axes = None, *, keepdims: builtins.bool = False) -> Tensor:
    """The sum over `axis`, or over everything. Integers and bool add up in int64."""
    return _reduced(rows.sum, _counting(asarray(x)), axis, keepdims)


def count(x: Tensor, axis: Axes = None) -> int:
    """How many elements a reduction over `axis` joins."""
    return math.prod(x.shape[i] for i in as_axes(axis, x.ndim))


def mean(x: Any, axis: Axes = None, *, keepdims: builtins.bool = False) -> Tensor:
    """The mean over `axis`, or over everything.

    Raises:
        TypeError: integers; cast them first.
    """
    x = asarray(x)
    if x.dtype not in dtypes.INEXACT:
        raise TypeError(f"mean wants floating point, got {x.dtype.name}; cast it to float32 first")
    return sum(x, axis, keepdims=keepdims) / count(x, axis)


def var(
    x: Any, axis: Axes = None, *, correction: float = 0, keepdims: builtins.bool = False
) -> Tensor:
    """The mean squared distance from the mean; divided by n - `correction`."""
    x = asarray(x)
    centred = x - mean(x, axis, keepdims=True)
    squared = real(centred * conj(centred))
    return sum(squared, axis, keepdims=keepdims) / builtins.max(count(x, axis) - correction, 0)


def std(
    x: Any, axis: Axes = None, *, correction: float = 0, keepdims: builtins.bool = False
) -> Tensor:
    """The square root of the variance; zero has the gradient zero."""
    variance = var(x, axis, correction=correction, keepdims=keepdims)
    is_zero = variance == 0
    return where(is_zero, 0.0, sqrt(where(is_zero, 1.0, variance)))


def max(x: Any, axis: Axes = None, *, keepdims: builtins.bool = False) -> Tensor:
    """The largest element; NaN if any is. Equal ones share the gradient."""
    return _reduced(rows.max, asarray(x), axis, keepdims)


def min(x: Any, axis: Axes = None, *, keepdims: builtins.bool = False) -> Tensor:
    """The smallest element; NaN if any is. Equal ones share the gradient."""
    return _reduced(rows.min, asarray(x), axis, keepdims)


def _truth(x: Any) -> Tensor:
    tensor = asarray(x)
    return tensor if tensor.dtype == dtypes.bool else tensor != 0


def any(x: Any, axis: Axes = None, *, keepdims: builtins.bool = False) -> Tensor:
    """Whether any element is true (or not zero)."""
    return sum(_truth(x), axis, keepdims=keepdims) > 0


def all(x: Any, axis: Axes = None, *, keepdims: builtins.bool = False) -> Tensor:
    """Whether every element is true (or not zero)."""
    x = _truth(x)
    return sum(x, axis, keepdims=keepdims) == count(x, axis)


@composite
def prod(x: Any, axis: Axes = None, *, keepdims: builtins.bool = False) -> Tensor:
    """The product over `axis`, or over everything."""
    x = _counting(asarray(x))
    axes = as_axes(axis, x.ndim)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    rest = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    order = [i for i in range(x.ndim) if i not in axes] + list(axes)
    from palto.tensor.functions.manipulation import permute_dims

    x = reshape(permute_dims(x, order), (*rest, count(x, axes)))
    # Halves times halves: the gradient is right where elements are zero.
    while x.shape[-1] > 1:
        if x.shape[-1] % 2:
            x = concat([x, ones_like(x[..., :1])], axis=-1)
        half = x.shape[-1] // 2
        x = x[..., :half] * x[..., half:]
    if x.shape[-1] == 0:
        return broadcast_to(constant(1, x.dtype), kept if keepdims else rest)
    return reshape(x, kept if keepdims else rest)


@composite
def logsumexp(x: Any, axis: Axes = None, *, keepdims: builtins.bool = False) -> Tensor:
    """log(sum(exp(x))), without overflow for any finite x."""
    x = asarray(x)
    top = max(x, axis, keepdims=True)
    top = detach(where(isfinite(top), top, 0.0))
    result = log(sum(exp(x - top), axis, keepdims=True)) + top
    if keepdims:
        return result
    axes = as_axes(axis, x.ndim)
    return reshape(result, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def argmax(x: Any, axis: int | None = None, *, keepdims: builtins.bool = False) -> Tensor:
    """Where the largest element is, the first of equals; over everything by default. int64."""
    x = asarray(x)
    shape = x.shape
    if axis is None:
        x, place = reshape(x, (-1,)), 0
    else:
        place = as_axis(axis, x.ndim)
    result: Tensor = apply(sorting.argmax, x, axis=place)
    if keepdims:
        ones = (1,) * len(shape)
        kept = ones if axis is None else (*shape[:place], 1, *shape[place + 1 :])
        result = reshape(result, kept)
    return result


def argmin(x: Any, axis: int | None = None, *, keepdims: builtins.bool = False) -> Tensor:
    """Where the smallest element is, the first of equals; over everything by default. int64."""
    x = asarray(x)
    # Turning the bits around turns the order around, for every integer and without overflow.
    turned = -x if x.dtype in dtypes.FLOATING else bitwise_invert(x)
    return argmax(turned, axis, keepdims=keepdims)


def cumulative_sum(x: Any, *, axis: int = -1) -> Tensor:
    """The running sum along `axis`."""
    x = _counting(asarray(x))
    result: Tensor = apply(sorting.cumulative_sum, x, axis=as_axis(axis, x.ndim))
    return result


def _sorted(x: Any, axis: int, descending: builtins.bool) -> tuple[Tensor, Tensor]:
    x = asarray(x)
    if x.ndim == 0:
        raise ValueError("sort wants a tensor with at least one axis")
    axis = as_axis(axis, x.ndim)
    if descending:
        # Back to front, sorted, back to front: descending, equal ones still in their order.
        values, indices = apply(sorting.sort, flip(x, axis=axis), axis=axis)
        return flip(values, axis=axis), x.shape[axis] - 1 - flip(indices, axis=axis)
    values, indices = apply(sorting.sort, x, axis=axis)
    return values, indices


def sort(x: Any, *, axis: int = -1, descending: builtins.bool = False) -> Tensor:
    """The elements in order along `axis`; NaN counts as the largest."""
    return _sorted(x, axis, descending)[0]


def argsort(x: Any, *, axis: int = -1, descending: builtins.bool = False) -> Tensor:
    """The indices that sort along `axis`; equal elements keep their order. int64."""
    return _sorted(x, axis, descending)[1]


@composite
def top_k(x: Any, k: int, *, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The `k` largest elements along `axis`, largest first, and their indices (int64).

    Raises:
        ValueError: `k` is more than the axis has.
    """
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ValueError(f"top_k: k = {k}, but axis {axis} of shape {x.shape} has {x.shape[axis]}")
    front = (builtins.slice(None),) * axis + (builtins.slice(0, k),)
    values, indices = _sorted(x, axis, True)
    return values[front], indices[front]


def median(x: Any, axis: int, *, keepdims: builtins.bool = False) -> Tensor:
    """The middle element in order, or the mean of the middle two; NaN if any is."""
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    n = x.shape[axis]
    front = (builtins.slice(None),) * axis
    in_order = sort(x, axis=axis)
    middle = in_order[(*front, builtins.slice((n - 1) // 2, n // 2 + 1))]
    last = in_order[(*front, builtins.slice(n - 1, n))]  # NaN if there is one
    return mean(where(isnan(last), last, middle), axis, keepdims=keepdims)


def one_hot(indices: Any, classes: int, *, dtype: Any = dtypes.float32) -> Tensor:
    """Ones at the indices, zeros elsewhere, along a new last axis of length `classes`.

    An index outside of 0 to `classes` - 1 has zeros only.
    """
    indices = asarray(indices)
    if indices.dtype not in dtypes.INTEGER:
        raise TypeError(f"one_hot wants integer indices, got {indices.dtype.name}; cast them first")
    shape = (*indices.shape, classes)
    # In int64, because a narrow dtype may not count as far as `classes`.
    chosen = reshape(astype(indices, dtypes.int64), (*indices.shape, 1))
    return astype(iota(shape, len(shape) - 1) == chosen, dtype)


__all__ = [
    "all", "any", "argmax", "argmin", "argsort", "count", "cumulative_sum", "logsumexp",
    "max", "mean", "median", "min", "one_hot", "prod", "sort", "std", "sum", "top_k", "var",
]  # fmt: skip
