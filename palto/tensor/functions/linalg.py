"""Products of matrices and norms."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

from palto.tensor import dtypes
from palto.tensor.functions.control import composite
from palto.tensor.functions.creation import asarray
from palto.tensor.functions.elementwise import (
    abs,
    astype,
    conj,
    multiply,
    promote,
    real,
    sqrt,
    where,
)
from palto.tensor.functions.elementwise import pow as power
from palto.tensor.functions.manipulation import (
    as_axis,
    broadcast_shapes,
    broadcast_to,
    expand_dims,
    permute_dims,
    reshape,
    squeeze,
)
from palto.tensor.functions.reductions import max, min, sum
from palto.tensor.graph import apply
from palto.tensor.primitives import contract as rows
from palto.tensor.tensor import Axes, Tensor


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product over the last two axes; the axes before them broadcast.

    Args:
        a: shape (..., m, k), or (k,) for a row.
        b: shape (..., k, n), or (k,) for a column.

    Returns:
        Shape (..., m, n), without the axis of a row or column.

    Raises:
        ValueError: the inner lengths differ; both shapes are named.
    """
    a, b = promote(a, b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul wants axes, got shapes {a.shape} and {b.shape}")
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(
            f"matmul: shapes {a.shape} and {b.shape} do not fit: the last axis of the first has "
            f"{a.shape[-1]}, the {'second to last' if b.ndim > 1 else 'only'} axis of the second "
            f"{b.shape[-2 if b.ndim > 1 else 0]}"
        )
    row, column = a.ndim == 1, b.ndim == 1
    if row:
        a = expand_dims(a, 0)
    if column:
        b = expand_dims(b, 1)
    if b.ndim == 2 and a.ndim > 2:
        # One multiplication of all rows, not a batch of small ones.
        joined = reshape(a, (math.prod(a.shape[:-1]), a.shape[-1]))
        result: Tensor = apply(rows.matmul, joined, b)
        result = reshape(result, (*a.shape[:-1], b.shape[-1]))
    else:
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2], name="matmul")
        a = broadcast_to(a, (*batch, *a.shape[-2:]))
        b = broadcast_to(b, (*batch, *b.shape[-2:]))
        result = apply(rows.matmul, a, b)
    if row:
        result = squeeze(result, -2)
    if column:
        result = squeeze(result, -1)
    return result


def vecdot(x: Any, y: Any, *, axis: int = -1) -> Tensor:
    """The sum of conj(x) * y along `axis`."""
    return sum(multiply(conj(x), y), axis)


def outer(x: Any, y: Any) -> Tensor:
    """Every element of the vector x times every element of the vector y."""
    x, y = asarray(x), asarray(y)
    if x.ndim != 1 or y.ndim != 1:
        raise ValueError(f"outer wants two vectors, got shapes {x.shape} and {y.shape}")
    return expand_dims(x, 1) * expand_dims(y, 0)


def tensordot(x: Any, y: Any, *, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Tensor:
    """Multiply and sum over pairs of axes: the last n of x with the first n of y, or as named."""
    x, y = promote(x, y)
    if isinstance(axes, int):
        if not 0 <= axes <= builtins.min(x.ndim, y.ndim):
            raise ValueError(f"tensordot: {axes} axes of {x.shape} and {y.shape}")
        left = list(range(x.ndim - axes, x.ndim))
        right = list(range(axes))
    else:
        left = [as_axis(a, x.ndim) for a in axes[0]]
        right = [as_axis(a, y.ndim) for a in axes[1]]
    if [x.shape[a] for a in left] != [y.shape[a] for a in right]:
        raise ValueError(
            f"tensordot: axes {left} of {x.shape} and {right} of {y.shape} differ in length"
        )
    keep_left = [a for a in range(x.ndim) if a not in left]
    keep_right = [a for a in range(y.ndim) if a not in right]
    inner = math.prod(x.shape[a] for a in left)
    shape_left = tuple(x.shape[a] for a in keep_left)
    shape_right = tuple(y.shape[a] for a in keep_right)
    a = reshape(permute_dims(x, keep_left + left), (math.prod(shape_left), inner))
    b = reshape(permute_dims(y, right + keep_right), (inner, math.prod(shape_right)))
    return reshape(matmul(a, b), (*shape_left, *shape_right))


def einsum(equation: str, *operands: Any) -> Tensor:
    """Einstein's summation, for example ``einsum("bij,bjk->bik", x, y)``.

    Args:
        equation: letters for the axes of each operand; without "->" the letters that stand once,
            in alphabetical order, remain. A letter may not stand twice in one operand.
        operands: tensors; several are joined from left to right.

    Raises:
        ValueError: the equation does not fit the operands.
    """
    equation = equation.replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow:
        output = "".join(sorted(c for c in set(inputs) - {","} if inputs.count(c) == 1))
    tensors = promote(*operands)
    sizes: dict[str, int] = {}
    if len(terms) != len(tensors):
        raise ValueError(f"einsum {equation!r} has {len(terms)} terms for {len(tensors)} tensors")
    for term, x in zip(terms, tensors, strict=True):
        if len(term) != x.ndim or len(set(term)) != len(term) or (not term.isalpha() and term):
            raise ValueError(
                f"einsum {equation!r}: the term {term!r} does not name the {x.ndim} axes of shape "
                f"{x.shape} with one letter each"
            )
        for letter, length in zip(term, x.shape, strict=True):
            if sizes.setdefault(letter, length) != length:
                raise ValueError(
                    f"einsum {equation!r}: axis {letter!r} has both {sizes[letter]} and {length}"
                )
    if not set(output) <= set(sizes) or len(set(output)) != len(output):
        raise ValueError(f"einsum {equation!r}: the output {output!r} does not fit the terms")
    term, result = terms[0], tensors[0]
    for i in range(1, len(tensors)):
        later = set("".join(terms[i + 1 :])) | set(output)
        term, result = _einsum_pair(term, result, terms[i], tensors[i], later)
    gone = [i for i, letter in enumerate(term) if letter not in output]
    result = sum(result, gone) if gone else result
    term = "".join(letter for letter in term if letter in output)
    return permute_dims(result, [term.index(letter) for letter in output])


def _einsum_pair(
    left: str, x: Tensor, right: str, y: Tensor, later: set[str]
) -> tuple[str, Tensor]:
    """Two operands joined into one by a batched matmul; letters in `later` remain."""
    alone_left = [i for i, c in enumerate(left) if c not in right and c not in later]
    alone_right = [i for i, c in enumerate(right) if c not in left and c not in later]
    x = sum(x, alone_left) if alone_left else x
    y = sum(y, alone_right) if alone_right else y
    left = "".join(c for i, c in enumerate(left) if i not in alone_left)
    right = "".join(c for i, c in enumerate(right) if i not in alone_right)
    batch = [c for c in left if c in right and c in later]
    inner = [c for c in left if c in right and c not in later]
    rows_ = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    sizes = dict(zip(left + right, x.shape + y.shape, strict=True))

    def lengths(letters: list[str]) -> tuple[int, ...]:
        return tuple(sizes[c] for c in letters)

    def arranged(term: str, tensor: Tensor, *groups: list[str]) -> Tensor:
        order = [term.index(c) for group in groups for c in group]
        shape = (*lengths(groups[0]), *(math.prod(lengths(g)) for g in groups[1:]))
        return reshape(permute_dims(tensor, order), shape)

    product = matmul(
        arranged(left, x, batch, rows_, inner), arranged(right, y, batch, inner, columns)
    )
    letters = batch + rows_ + columns
    return "".join(letters), reshape(product, lengths(letters))


@composite
def vector_norm(x: Any, *, axis: Axes = None, keepdims: bool = False, ord: float = 2) -> Tensor:
    """The length of the vectors along `axis`; zero has the gradient zero.

    Args:
        x: a tensor.
        axis: the axes of a vector; all of them by default.
        keepdims: keep them, with length 1.
        ord: 2 for Euclid's, 1 for the sum of sizes, inf or -inf for the largest or smallest, or
            any other number p for the p-norm.
    """
    x = asarray(x)
    if x.dtype not in dtypes.INEXACT:
        raise TypeError(f"vector_norm wants floating point, got {x.dtype.name}; cast it first")
    size = abs(x)
    if ord == math.inf:
        return max(size, axis, keepdims=keepdims)
    if ord == -math.inf:
        return min(size, axis, keepdims=keepdims)
    if ord == 1:
        return sum(size, axis, keepdims=keepdims)
    if ord == 0:
        return sum(astype(size != 0, size.dtype), axis, keepdims=keepdims)
    if ord == 2:
        powers = real(x * conj(x))
    elif ord > 0:
        powers = where(size == 0, 0.0, power(where(size == 0, 1.0, size), ord))
    else:
        powers = power(size, ord)
    total = sum(powers, axis, keepdims=keepdims)
    safe = where(total == 0, 1.0, total)
    return where(total == 0, 0.0, sqrt(safe) if ord == 2 else power(safe, 1 / ord))


__all__ = [
    "einsum", "matmul", "outer", "tensordot", "vecdot", "vector_norm",
]  # fmt: skip
