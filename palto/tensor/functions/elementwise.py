"""Elementwise functions, with broadcasting and promotion."""

from __future__ import annotations

import builtins
import math
from typing import Any

from palto.tensor import dtypes
from palto.tensor.dtypes import DType
from palto.tensor.functions.creation import asarray, constant
from palto.tensor.functions.manipulation import broadcast_shapes, broadcast_to
from palto.tensor.graph import Primitive, apply
from palto.tensor.primitives import elementwise as rows
from palto.tensor.tensor import Tensor

_PYTHON_NUMBERS = (builtins.bool, int, float, builtins.complex)


def promote(*values: Any) -> list[Tensor]:
    """Tensors of one dtype from tensors, arrays and Python numbers.

    Raises:
        TypeError: dtypes that do not mix without a cast.
    """
    tensors = [None if isinstance(v, _PYTHON_NUMBERS) else asarray(v) for v in values]
    dtype: DType | None = None
    for tensor in tensors:
        if tensor is not None:
            dtype = tensor.dtype if dtype is None else dtypes.result_dtype(dtype, tensor.dtype)
    if dtype is None:  # Python numbers alone meet in the widest of their kinds
        alone = [dtypes.scalar_dtype(value, None) for value in values]
        dtype = builtins.max(alone, key=lambda d: "bifc".index(d.kind))
    for value, tensor in zip(values, tensors, strict=True):
        if tensor is None:
            dtype = dtypes.scalar_dtype(value, dtype)
    return [
        constant(value, dtype)
        if tensor is None
        else (tensor if tensor.dtype == dtype else astype(tensor, dtype))
        for value, tensor in zip(values, tensors, strict=True)
    ]


def _together(row: Primitive, *values: Any) -> Tensor:
    tensors = promote(*values)
    shape = broadcast_shapes(*(x.shape for x in tensors), name=row.name)
    result: Tensor = apply(
        row, *[x if x.shape == shape else broadcast_to(x, shape) for x in tensors]
    )
    return result


def astype(x: Any, dtype: Any) -> Tensor:
    """The same numbers in another dtype; the tensor itself when it has it already."""
    result, dtype = asarray(x), dtypes.as_dtype(dtype)
    if result.dtype != dtype:
        result = apply(rows.cast, result, dtype=dtype)
    return result


def detach(x: Any) -> Tensor:
    """The same value, cut off from backprop."""
    result: Tensor = apply(rows.detach, asarray(x))
    return result


def _unary(row: Primitive, x: Any) -> Tensor:
    result: Tensor = apply(row, asarray(x))
    return result


def positive(x: Any) -> Tensor:
    """`x` itself."""
    return asarray(x)


def negative(x: Any) -> Tensor:
    """-x."""
    return _unary(rows.negative, x)


def abs(x: Any) -> Tensor:
    """The absolute value; of a complex number, a real one."""
    return _unary(rows.abs, x)


def sign(x: Any) -> Tensor:
    """-1, 0 or 1."""
    return _unary(rows.sign, x)


def exp(x: Any) -> Tensor:
    """E to the power of x."""
    return _unary(rows.exp, x)


def expm1(x: Any) -> Tensor:
    """exp(x) - 1, accurate near zero."""
    return _unary(rows.expm1, x)


def log(x: Any) -> Tensor:
    """The natural logarithm."""
    return _unary(rows.log, x)


def log1p(x: Any) -> Tensor:
    """log(1 + x), accurate near zero."""
    return _unary(rows.log1p, x)


def log2(x: Any) -> Tensor:
    """The logarithm to base 2."""
    return log(x) * (1 / math.log(2))


def log10(x: Any) -> Tensor:
    """The logarithm to base 10."""
    return log(x) * (1 / math.log(10))


def sqrt(x: Any) -> Tensor:
    """The square root."""
    return _unary(rows.sqrt, x)


def rsqrt(x: Any) -> Tensor:
    """1 / sqrt(x)."""
    return 1 / sqrt(x)


def reciprocal(x: Any) -> Tensor:
    """1 / x."""
    return 1 / asarray(x)


def square(x: Any) -> Tensor:
    """X times x."""
    x = asarray(x)
    return multiply(x, x)


def sin(x: Any) -> Tensor:
    """The sine of x radians."""
    return _unary(rows.sin, x)


def cos(x: Any) -> Tensor:
    """The cosine of x radians."""
    return _unary(rows.cos, x)


def tan(x: Any) -> Tensor:
    """The tangent of x radians."""
    return sin(x) / cos(x)


def asin(x: Any) -> Tensor:
    """The inverse of sin, in radians."""
    x = asarray(x)
    return atan2(x, sqrt(1 - x) * sqrt(1 + x))


def acos(x: Any) -> Tensor:
    """The inverse of cos, in radians."""
    x = asarray(x)
    return atan2(sqrt(1 - x) * sqrt(1 + x), x)


def atan(x: Any) -> Tensor:
    """The inverse of tan, in radians."""
    x = asarray(x)
    return atan2(x, 1.0)


def atan2(y: Any, x: Any) -> Tensor:
    """The angle of the point (x, y), in radians."""
    return _together(rows.atan2, y, x)


def sinh(x: Any) -> Tensor:
    """The hyperbolic sine."""
    x = asarray(x)
    return 0.5 * (expm1(x) - expm1(-x))


def cosh(x: Any) -> Tensor:
    """The hyperbolic cosine."""
    x = asarray(x)
    return 0.5 * (exp(x) + exp(-x))


def tanh(x: Any) -> Tensor:
    """The hyperbolic tangent."""
    return _unary(rows.tanh, x)


def asinh(x: Any) -> Tensor:
    """The inverse of sinh."""
    x = asarray(x)
    negative_ = x < 0
    size = where(negative_, -x, x)
    # Far out, where the square overflows, asinh(x) is log(2 x).
    is_far = size > 1e8
    near, far = where(is_far, 1.0, size), where(is_far, size, 1.0)
    squared = near * near
    near = log1p(near + squared / (1 + sqrt(squared + 1)))
    result = where(is_far, log(far) + math.log(2), near)
    return where(negative_, -result, result)


def acosh(x: Any) -> Tensor:
    """The inverse of cosh."""
    t = asarray(x) - 1
    return log1p(t + sqrt(t) * sqrt(t + 2))


def atanh(x: Any) -> Tensor:
    """The inverse of tanh."""
    x = asarray(x)
    return 0.5 * (log1p(x) - log1p(-x))


def erf(x: Any) -> Tensor:
    """The error function."""
    return _unary(rows.erf, x)


def floor(x: Any) -> Tensor:
    """The largest whole number not above x."""
    x = asarray(x)
    return x if x.dtype in dtypes.INTEGER else _unary(rows.floor, x)


def ceil(x: Any) -> Tensor:
    """The smallest whole number not below x."""
    x = asarray(x)
    return x if x.dtype in dtypes.INTEGER else -floor(-x)


def round(x: Any) -> Tensor:
    """The nearest whole number; halves go to the even one."""
    x = asarray(x)
    return x if x.dtype in dtypes.INTEGER else _unary(rows.round, x)


def trunc(x: Any) -> Tensor:
    """The whole number next to x on the way to zero."""
    x = asarray(x)
    return where(x < 0, ceil(x), floor(x))


def isnan(x: Any) -> Tensor:
    """Whether an element is not a number."""
    x = asarray(x)
    return not_equal(x, x)


def isfinite(x: Any) -> Tensor:
    """Whether an element is neither infinite nor not a number."""
    x = asarray(x)
    if x.dtype in dtypes.COMPLEX:
        return isfinite(real(x)) & isfinite(imag(x))
    return abs(_computable(x)) < math.inf if x.dtype in dtypes.DIFFERENTIABLE else x == x


def isinf(x: Any) -> Tensor:
    """Whether an element is infinite."""
    x = asarray(x)
    if x.dtype in dtypes.COMPLEX:
        return isinf(real(x)) | isinf(imag(x))
    return abs(_computable(x)) == math.inf if x.dtype in dtypes.DIFFERENTIABLE else x != x


def _computable(x: Tensor) -> Tensor:
    return astype(x, dtypes.float32) if x.dtype in dtypes.STORAGE else x


def real(x: Any) -> Tensor:
    """The real part."""
    x = asarray(x)
    return _unary(rows.real, x) if x.dtype in dtypes.COMPLEX else x


def imag(x: Any) -> Tensor:
    """The imaginary part of a complex tensor."""
    return _unary(rows.imag, x)


def conj(x: Any) -> Tensor:
    """The complex conjugate; a real tensor itself."""
    x = asarray(x)
    return complex(real(x), -imag(x)) if x.dtype in dtypes.COMPLEX else x


def complex(real_part: Any, imaginary_part: Any) -> Tensor:
    """A complex64 tensor from two of float32."""
    return _together(rows.complex, real_part, imaginary_part)


def add(x: Any, y: Any) -> Tensor:
    """X + y."""
    return _together(rows.add, x, y)


def subtract(x: Any, y: Any) -> Tensor:
    """X - y."""
    return _together(rows.subtract, x, y)


def multiply(x: Any, y: Any) -> Tensor:
    """X * y."""
    return _together(rows.multiply, x, y)


def divide(x: Any, y: Any) -> Tensor:
    """X / y of floating-point numbers.

    Raises:
        TypeError: integers; use ``//``, or cast them first.
    """
    return _together(rows.divide, x, y)


def floor_divide(x: Any, y: Any) -> Tensor:
    """The largest whole number not above x / y."""
    return _together(rows.floor_divide, x, y)


def remainder(x: Any, y: Any) -> Tensor:
    """X - y * floor(x / y), with the sign of y."""
    return _together(rows.remainder, x, y)


def pow(x: Any, y: Any) -> Tensor:
    """X to the power of y."""
    if isinstance(y, int | float) and not isinstance(x, _PYTHON_NUMBERS):
        base = asarray(x)
        dtypes.scalar_dtype(y, base.dtype)  # an integer tensor takes no float exponent
        if y == 1:
            return base
        if y == 2:
            return base * base
        if y == 3:
            return base * base * base
        if y == 0.5:
            return sqrt(base)
        if y == -1:
            return reciprocal(base)
    return _together(rows.power, x, y)


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of x and y; NaN if either is."""
    return _together(rows.maximum, x, y)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of x and y; NaN if either is."""
    return _together(rows.minimum, x, y)


def clip(x: Any, min: Any = None, max: Any = None) -> Tensor:
    """`x` held between `min` and `max`; the gradient passes at the bounds themselves."""
    held = asarray(x)
    if min is not None:
        held = where(held < min, min, held)
    if max is not None:
        held = where(held > max, max, held)
    return held


def equal(x: Any, y: Any) -> Tensor:
    """X == y."""
    return _together(rows.equal, x, y)


def not_equal(x: Any, y: Any) -> Tensor:
    """X != y."""
    return _unary(rows.invert, equal(x, y))


def less(x: Any, y: Any) -> Tensor:
    """X < y."""
    return _together(rows.less, x, y)


def less_equal(x: Any, y: Any) -> Tensor:
    """X <= y."""
    return _together(rows.less_equal, x, y)


def greater(x: Any, y: Any) -> Tensor:
    """X > y."""
    return _together(rows.less, y, x)


def greater_equal(x: Any, y: Any) -> Tensor:
    """X >= y."""
    return _together(rows.less_equal, y, x)


def _logical(x: Any) -> Tensor:
    tensor = asarray(x)
    if tensor.dtype != dtypes.bool:
        raise TypeError(f"a logical function wants bool, got {tensor.dtype.name}; compare it first")
    return tensor


def logical_and(x: Any, y: Any) -> Tensor:
    """Whether both are true."""
    return bitwise_and(_logical(x), _logical(y))


def logical_or(x: Any, y: Any) -> Tensor:
    """Whether one or both are true."""
    return bitwise_or(_logical(x), _logical(y))


def logical_xor(x: Any, y: Any) -> Tensor:
    """Whether exactly one is true."""
    return bitwise_xor(_logical(x), _logical(y))


def logical_not(x: Any) -> Tensor:
    """Whether it is false."""
    return bitwise_invert(_logical(x))


def bitwise_and(x: Any, y: Any) -> Tensor:
    """The bits set in both."""
    return _together(rows.bitwise_and, x, y)


def bitwise_or(x: Any, y: Any) -> Tensor:
    """The bits set in either."""
    return _together(rows.bitwise_or, x, y)


def bitwise_xor(x: Any, y: Any) -> Tensor:
    """The bits set in one of them."""
    return _together(rows.bitwise_xor, x, y)


def bitwise_invert(x: Any) -> Tensor:
    """The bits not set; of bool, not."""
    return _unary(rows.invert, x)


def bitwise_left_shift(x: Any, y: Any) -> Tensor:
    """The bits moved y places up."""
    return _together(rows.shift_left, x, y)


def bitwise_right_shift(x: Any, y: Any) -> Tensor:
    """The bits moved y places down."""
    return _together(rows.shift_right, x, y)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """`x` where the condition is true, `y` elsewhere. No gradient, NaN or not, leaks across."""
    condition = asarray(condition)
    x, y = promote(x, y)
    shape = broadcast_shapes(condition.shape, x.shape, y.shape, name="where")
    result: Tensor = apply(rows.where, *(broadcast_to(part, shape) for part in (condition, x, y)))
    return result
