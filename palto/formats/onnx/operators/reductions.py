"""Operators that join the elements along axes: sums, extrema, softmax, products of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from palto.formats.onnx.table import Call, operator
from palto.nn import functional as N
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F

_EMPTY = {"ReduceMax": -math.inf, "ReduceMin": math.inf}


def _real(x: Tensor) -> Tensor:
    return x if x.dtype in dtypes.FLOATING else F.astype(x, dtypes.float64)


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    if x.dtype in dtypes.FLOATING:
        return F.mean(x, axes, keepdims=True)
    return F.floor(F.mean(_real(x), axes, keepdims=True))


#: From a tensor and axes, which stay with length 1; the dtype is that of the tensor again.
_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "ReduceSum": lambda x, axes: F.sum(x, axes, keepdims=True),
    "ReduceMean": _mean,
    "ReduceMax": lambda x, axes: F.max(x, axes, keepdims=True),
    "ReduceMin": lambda x, axes: F.min(x, axes, keepdims=True),
    "ReduceProd": lambda x, axes: F.prod(x, axes, keepdims=True),
    "ReduceL1": lambda x, axes: F.sum(F.abs(x), axes, keepdims=True),
    "ReduceL2": lambda x, axes: F.sqrt(_real(F.sum(x * x, axes, keepdims=True))),
    "ReduceLogSum": lambda x, axes: F.log(_real(F.sum(x, axes, keepdims=True))),
    "ReduceLogSumExp": lambda x, axes: F.logsumexp(_real(x), axes, keepdims=True),
    "ReduceSumSquare": lambda x, axes: F.sum(x * x, axes, keepdims=True),
}


@operator(*_REDUCTIONS, static=(1,))
def reduce(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """A sum, a mean, an extremum ... along axes."""
    given: Sequence[int] | None = call.attribute("axes")
    given = given if axes is None else call.ints(axes, "which axes")
    if not given:
        if call.attribute("noop_with_empty_axes", 0):
            return _REDUCTIONS[call.node.operator](x, ())
        given = None
    places = call.axes(x, given)
    kept = tuple(1 if axis in places else n for axis, n in enumerate(x.shape))
    name = call.node.operator
    if x.size == 0 and name in _EMPTY and 0 not in kept:
        result = _least_of_none(x, kept, name)
    elif x.size == 0 and name == "ReduceLogSumExp":
        result = F.full(kept, -math.inf, dtype=x.dtype)
    else:
        result = F.astype(_REDUCTIONS[name](x, places), x.dtype)
    if call.attribute("keepdims", 1):
        return result
    return F.reshape(result, tuple(n for axis, n in enumerate(x.shape) if axis not in places))


def _least_of_none(x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if x.dtype in dtypes.FLOATING:
        return F.full(shape, _EMPTY[name], dtype=x.dtype)
    if x.dtype == dtypes.bool:
        return F.full(shape, name == "ReduceMin", dtype=x.dtype)
    limits = np.iinfo(x.dtype)
    return F.full(shape, limits.min if name == "ReduceMax" else limits.max, dtype=x.dtype)


@operator("ArgMax", "ArgMin")
def arg_extremum(call: Call, x: Tensor) -> Tensor:
    """Where the largest or smallest element is: the first of equals, or the last."""
    axis = call.axis(x, 0)
    find = F.argmax if call.node.operator == "ArgMax" else F.argmin
    is_last = call.attribute("select_last_index", 0)
    found = find(F.flip(x, axis=axis) if is_last else x, axis, keepdims=True)
    if is_last:
        found = x.shape[axis] - 1 - found
    return found if call.attribute("keepdims", 1) else F.squeeze(found, axis)


@operator("TopK", static=(1,))
def top_k(call: Call, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest or smallest elements in order, and where they are."""
    axis = call.axis(x, -1)
    count = call.attribute("k") if k is None else call.ints(k, "how many")[0]
    if not 0 <= count <= x.shape[axis]:
        raise call.error(f"k is {count}, and axis {axis} has {x.shape[axis]}")
    if call.attribute("largest", 1):
        return F.top_k(x, count, axis=axis)
    front = (*(slice(None),) * axis, slice(0, count))
    where = F.argsort(x, axis=axis)[front]
    return F.take_along_axis(x, where, axis=axis), where


@operator("CumSum", "CumProd", static=(1,))
def running(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    """The running sum or product: without the element itself (`exclusive`), from the end."""
    place = call.axes(x, call.ints(axis, "the axis"))[0]
    is_sum = call.node.operator == "CumSum"
    x = F.flip(x, axis=place) if call.attribute("reverse", 0) else x
    if call.attribute("exclusive", 0):
        front = (slice(None),) * place
        first = F.full_like(x[(*front, slice(0, 1))], 0 if is_sum else 1)
        x = F.concat([first, x[(*front, slice(0, -1))]], axis=place)
    result = F.astype(F.cumulative_sum(x, axis=place), x.dtype) if is_sum else _products(x, place)
    return F.flip(result, axis=place) if call.attribute("reverse", 0) else result


def _products(x: Tensor, axis: int) -> Tensor:
    """Running products: each joined with twice as many before it."""
    front, shift = (slice(None),) * axis, 1
    while shift < x.shape[axis]:
        early, late = x[(*front, slice(0, -shift))], x[(*front, slice(shift, None))]
        x = F.concat([x[(*front, slice(0, shift))], early * late], axis=axis)
        shift *= 2
    return x


# Along an axis, of the same shape


def _softmaxed(call: Call, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Before version 13, all axes from `axis` on are one."""
    axis = call.axis(x, -1 if call.version >= 13 else 1)
    if call.version >= 13:
        return function(x, axis)
    flat = F.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
    return F.reshape(function(flat, 1), x.shape)


@operator("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Any numbers to probabilities."""
    return _softmaxed(call, x, N.softmax)


@operator("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    """The logarithm of softmax."""
    return _softmaxed(call, x, N.log_softmax)


@operator("Hardmax")
def hardmax(call: Call, x: Tensor) -> Tensor:
    """1 where the largest element is, the first of equals, 0 elsewhere."""

    def function(x: Tensor, axis: int) -> Tensor:
        best = F.argmax(x, axis, keepdims=True)
        return F.astype(F.iota(x.shape, axis) == best, x.dtype)

    return _softmaxed(call, x, function)


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Divided by its norm along an axis; zeros stay zeros."""
    axis = call.axis(x, -1)
    if call.attribute("p", 2) == 1:
        norm = F.sum(F.abs(x), axis, keepdims=True)
    else:
        norm = F.sqrt(F.sum(x * x, axis, keepdims=True))
    return F.where(norm == 0, 0.0, x / F.where(norm == 0, 1.0, norm))


# Products


@operator("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices, or of stacks of them."""
    if a.ndim > 1 and b.ndim > 1:
        batch = F.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        call.bounded((*batch, a.shape[-2], b.shape[-1]))
    return F.matmul(a, b)


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Alpha a @ b + beta c, either matrix transposed."""
    a = F.matrix_transpose(a) if call.attribute("transA", 0) else a
    b = F.matrix_transpose(b) if call.attribute("transB", 0) else b
    call.bounded((a.shape[0], b.shape[-1]))
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    result = F.matmul(a, b)
    result = result if alpha == 1 else result * _factor(alpha, result)
    if c is None or beta == 0:
        return result
    return result + (c if beta == 1 else c * _factor(beta, c))


def _factor(number: float, x: Tensor) -> float | int:
    return number if x.dtype in dtypes.FLOATING else int(number)


@operator("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    """Products and sums by the letters of axes."""
    equation = call.attribute("equation").replace(" ", "")
    terms, arrow, right = _without_dots(call, equation, inputs).partition("->")
    diagonals = [_diagonal(t, x) for t, x in zip(terms.split(","), inputs, strict=True)]
    _require_bounded(call, diagonals, right)
    equation = ",".join(term for term, _ in diagonals) + arrow + right
    return F.einsum(equation, *(x for _, x in diagonals))


def _require_bounded(call: Call, operands: Sequence[tuple[str, Tensor]], result: str) -> None:
    """Refuse products, joined one after the other, that are too large."""
    lengths = {letter: n for term, x in operands for letter, n in zip(term, x.shape, strict=True)}
    joined: set[str] = set()
    for place, (term, _) in enumerate(operands, 1):
        later = set(result).union(*(other for other, _ in operands[place:]))
        joined = (joined | set(term)) & later
        call.bounded([lengths[letter] for letter in joined])


def _diagonal(term: str, x: Tensor) -> tuple[str, Tensor]:
    """A term of different letters: of axes with one letter, the elements at equal indices."""
    for axis in range(len(term) - 1, 0, -1):
        first = term.index(term[axis])
        if first < axis:
            is_equal = F.iota(x.shape, first) == F.iota(x.shape, axis)
            x = F.sum(F.where(is_equal, x, F.zeros_like(x)), axis)
            term = term[:axis] + term[axis + 1 :]
    return term, x


def _without_dots(call: Call, equation: str, inputs: Sequence[Tensor]) -> str:
    """Letters of their own for the axes that dots stand for, and the result's letters."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(inputs):
        raise call.error(f"{equation!r} names {len(terms)} tensors, and there are {len(inputs)}")
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    most = 0
    for place, (term, x) in enumerate(zip(terms, inputs, strict=True)):
        if "..." in term:
            count = x.ndim - (len(term) - 3)
            most = max(most, count)
            terms[place] = term.replace("...", "".join(free[len(free) - count :]))
    dots = "".join(free[len(free) - most :])
    if not arrow:
        letters = "".join(terms)
        once = sorted(x for x in set(letters) if letters.count(x) == 1 and x not in dots)
        right = dots + "".join(once)
    return ",".join(terms) + "->" + right.replace("...", dots)


@operator("Det")
def determinant(call: Call, x: Tensor) -> Tensor:
    """The determinant of matrices, by elimination with the largest element first."""
    n = x.shape[-1]
    if x.ndim < 2 or x.shape[-2] != n:
        raise call.error(f"the determinant of shape {x.shape}")
    result = F.ones(x.shape[:-2], dtype=x.dtype)
    for size in range(n, 0, -1):
        row = F.argmax(F.abs(x[..., 0]), -1, keepdims=True)  # (..., 1)
        is_row = F.expand_dims(F.iota((*x.shape[:-2], size), x.ndim - 2) == row, -1)
        pivot_row = F.sum(F.where(is_row, x, 0.0), -2, keepdims=True)
        first = x[..., :1, :]
        pivot = pivot_row[..., 0, 0]
        result = result * F.where(row[..., 0] == 0, pivot, -pivot)
        swapped = F.where(is_row, first, x)[..., 1:, :]
        safe = F.where(pivot == 0, 1.0, pivot)[..., None, None]
        x = (swapped - swapped[..., :1] * pivot_row / safe)[..., 1:]
    return result
