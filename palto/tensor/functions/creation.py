"""Making tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor.dtypes import DType
from palto.tensor.graph import apply, current_trace, resolve
from palto.tensor.primitives import movement as rows
from palto.tensor.tensor import Array, Shape, Tensor, TraceError

_NUMBERS = (bool, int, float, complex)


def asarray(
    obj: Any, /, *, dtype: Any = None, copy: bool | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor from a number, nested lists, a NumPy array or another tensor.

    Python floats become float32; a NumPy array keeps its dtype.

    Args:
        obj: the numbers.
        dtype: the dtype wanted; by default the one `obj` has.
        copy: False takes a NumPy array without copying, for arrays that nobody writes to again.
        requires_grad: whether ``backward()`` shall leave a gradient in the tensor.

    Raises:
        TypeError: the data has a dtype that Palto does not hold, or is not numeric.
        ValueError: nested lists of unequal lengths.
    """
    wanted = None if dtype is None else dtypes.as_dtype(dtype)
    has_tensors = isinstance(obj, list | tuple) and _contains(obj, Tensor)
    if has_tensors or isinstance(obj, Tensor):
        tensor = _joined(obj) if has_tensors else resolve(obj)
        if wanted is not None and tensor.dtype != wanted:
            from palto.tensor.functions.elementwise import astype

            tensor = astype(tensor, wanted)
    else:
        with np.errstate(all="ignore"):  # 1e300 in float32 is infinity
            value = _array(obj, wanted, copy)
        tensor = Tensor(value.shape, value.dtype, value)
        trace = current_trace()
        if trace is not None and isinstance(obj, np.ndarray):
            trace.root.note_array(obj)
    if requires_grad:
        if current_trace() is not None:
            raise TraceError("requires_grad=True inside a compiled function; use palto.grad there")
        tensor = tensor.detach().requires_grad_()
    return tensor


def _array(obj: Any, wanted: DType | None, copy: bool | None) -> Array:
    if isinstance(obj, np.generic) or not isinstance(obj, (*_NUMBERS, list, tuple)):
        array = _numeric(np.asarray(obj), obj)
        dtype = wanted or dtypes.as_dtype(array.dtype)
        share = copy is False and array.dtype == dtype
        return array if share else np.array(array, dtype=dtype, order="C")
    if isinstance(obj, _NUMBERS):
        return _number(obj, wanted or dtypes.as_dtype(type(obj)))
    try:
        array = _numeric(np.array(obj, dtype=wanted), obj)
    except OverflowError as error:
        raise ValueError(f"asarray: a number is out of range: {error}") from None
    except ValueError as error:
        raise ValueError(f"asarray wants numbers in lists of equal lengths: {error}") from None
    if wanted is None and (array.size == 0 or not _contains(obj, np.ndarray | np.generic)):
        # Python's own floats have no dtype; these are the defaults.
        wanted = {"f": dtypes.float32, "c": dtypes.complex64}.get(array.dtype.kind)
    return array.astype(wanted or dtypes.as_dtype(array.dtype), copy=False)


def _numeric(array: Array, source: Any) -> Array:
    if array.dtype.kind in "OSUMm":
        raise TypeError(
            f"asarray wants numbers; {type(source).__name__} {str(source)[:40]!r} has none, or "
            "holds other things too"
        )
    return array


def _contains(obj: Any, kind: Any) -> bool:
    if isinstance(obj, list | tuple):
        return any(_contains(part, kind) for part in obj)
    return isinstance(obj, kind)


def _joined(parts: Sequence[Any]) -> Tensor:
    """Nested lists with tensors in them; gradients pass."""
    from palto.tensor.functions.elementwise import promote
    from palto.tensor.functions.manipulation import stack

    return stack(promote(*(asarray(p) if isinstance(p, list | tuple) else p for p in parts)))


def _number(value: Any, dtype: DType) -> Array:
    try:
        return np.array(value, dtype=dtype)
    except OverflowError:
        raise ValueError(f"the number {value} is out of range for {dtype.name}") from None


def as_shape(shape: Any) -> Shape:
    """A tuple of lengths from an int or a sequence of ints.

    Raises:
        TypeError, ValueError: not whole numbers, or negative.
    """
    lengths = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    for length in lengths:
        if isinstance(length, Tensor) and length.trace is not None:
            raise TraceError(
                "a shape depends on a tensor's value, which a compiled program cannot do; "
                "use a fixed size, or a mask"
            )
        if not hasattr(length, "__index__"):
            raise TypeError(f"a shape is made of whole numbers, got {length!r} in {lengths}")
    # What is an int stays what it is: the compiler has some that depend on run-time sizes.
    lengths = tuple(n if isinstance(n, int) else int(n) for n in lengths)
    if any(length < 0 for length in lengths):
        raise ValueError(f"a shape has no negative lengths, got {lengths}")
    return lengths


def constant(value: Any, dtype: DType) -> Tensor:
    """A tensor without axes.

    Raises:
        ValueError: an integer outside of the dtype's range.
    """
    with np.errstate(over="ignore"):
        return Tensor((), dtype, _number(value, dtype))


def full(shape: Any, fill_value: Any, *, dtype: Any = None) -> Tensor:
    """A tensor of one number (or of a tensor without axes) everywhere."""
    from palto.tensor.functions.manipulation import broadcast_to

    shape = as_shape(shape)
    if isinstance(fill_value, Tensor | np.ndarray):
        return broadcast_to(asarray(fill_value, dtype=dtype), shape)
    wanted = dtypes.as_dtype(type(fill_value) if dtype is None else dtype)
    return broadcast_to(constant(fill_value, wanted), shape)


def zeros(shape: Any, *, dtype: Any = dtypes.float32) -> Tensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype=dtype)


def ones(shape: Any, *, dtype: Any = dtypes.float32) -> Tensor:
    """A tensor of ones."""
    return full(shape, 1, dtype=dtype)


def full_like(x: Any, fill_value: Any, *, dtype: Any = None) -> Tensor:
    """One number everywhere, in the shape (and dtype) of `x`."""
    x = asarray(x)
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype)


def zeros_like(x: Any, *, dtype: Any = None) -> Tensor:
    """Zeros in the shape (and dtype) of `x`."""
    return full_like(x, 0, dtype=dtype)


def ones_like(x: Any, *, dtype: Any = None) -> Tensor:
    """Ones in the shape (and dtype) of `x`."""
    return full_like(x, 1, dtype=dtype)


def iota(shape: Shape, axis: int, *, dtype: Any = dtypes.int64) -> Tensor:
    """0, 1, 2 ... along `axis`, the same along the others."""
    result: Tensor = apply(rows.iota, shape=shape, axis=axis, dtype=dtypes.as_dtype(dtype))
    return result


def arange(
    start: float, stop: float | None = None, step: float = 1, *, dtype: Any = None
) -> Tensor:
    """The numbers from `start` (or 0) up to but without `stop`, `step` apart.

    Raises:
        ValueError: a step of zero.
    """
    if stop is None:
        start, stop = 0, start
    from palto.tensor.functions.elementwise import astype

    for part in (start, stop, step):
        if isinstance(part, Tensor):
            raise TypeError("arange wants Python numbers: its length must be known")
    if step == 0:
        raise ValueError("arange wants a step other than 0")
    whole = all(hasattr(part, "__index__") for part in (start, stop, step))
    wanted = dtypes.as_dtype(dtype or (int if whole else float))
    if whole:
        steps = iota((count_between(start, stop, step),), 0)
    else:
        length = max(math.ceil((stop - start) / step), 0)
        steps = iota((length,), 0, dtype=wanted if wanted in dtypes.FLOATING else dtypes.float32)
    # Counted in int64 or floating point, so that no step or sum is cut to a narrow dtype.
    if (start, step) != (0, 1):
        steps = steps * step + start
    return astype(steps, wanted)


def count_between(start: Any, stop: Any, step: Any) -> int:
    """How many numbers there are from `start` up to but without `stop`, `step` apart."""
    numbers = (n if isinstance(n, int) else operator.index(n) for n in (start, stop, step))
    first, last, apart = numbers
    way = last - first if apart > 0 else first - last
    return max(-(-way // abs(apart)), 0)


def linspace(start: float, stop: float, num: int, *, dtype: Any = dtypes.float32) -> Tensor:
    """`num` numbers at equal distances from `start` to `stop`, both included."""
    steps = iota((num,), 0, dtype=dtype)
    t = steps / max(num - 1, 1)
    return start * (1 - t) + stop * t


def eye(
    rows_: int, columns: int | None = None, *, k: int = 0, dtype: Any = dtypes.float32
) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere."""
    from palto.tensor.functions.elementwise import astype

    shape = (rows_, rows_ if columns is None else columns)
    return astype(iota(shape, 1) - iota(shape, 0) == k, dtype)


def tril(x: Any, *, k: int = 0) -> Tensor:
    """The last two axes with everything above the k-th diagonal set to zero."""
    return _triangle(x, k, lower=True)


def triu(x: Any, *, k: int = 0) -> Tensor:
    """The last two axes with everything below the k-th diagonal set to zero."""
    return _triangle(x, k, lower=False)


def _triangle(x: Any, k: int, *, lower: bool) -> Tensor:
    from palto.tensor.functions.elementwise import where

    x = asarray(x)
    if x.ndim < 2:
        raise ValueError(f"tril and triu want at least two axes, got shape {x.shape}")
    difference = iota(x.shape, x.ndim - 1) - iota(x.shape, x.ndim - 2)
    return where(difference <= k if lower else difference >= k, x, zeros_like(x))


__all__ = [
    "arange", "as_shape", "asarray", "constant", "eye", "full", "full_like", "iota",
    "linspace", "ones", "ones_like", "tril", "triu", "zeros", "zeros_like",
]  # fmt: skip
