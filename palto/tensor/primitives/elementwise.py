"""Elementwise rows: one output element from the input elements at the same place.

All inputs have one shape; the tensor functions broadcast and promote before they get here.
Gradients follow PyTorch at kinks and, for complex numbers, its convention: the gradient of a real
loss with respect to z is dL/dx + i dL/dy, so a holomorphic f passes on g * conj(f'(z)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from palto.tensor import dtypes, special
from palto.tensor import functions as F
from palto.tensor.dtypes import DType
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.tensor import Tensor

Kinds = tuple[DType, ...]
BITS: Kinds = (dtypes.bool, *dtypes.INTEGER)
ANY: Kinds = dtypes.SUPPORTED


def _require(name: str, kinds: Kinds, *inputs: Tensor) -> None:
    first = inputs[0]
    for x in inputs:
        if x.dtype not in kinds:
            remedy = "cast it to float32 first" if dtypes.float32 in kinds else "cast it first"
            raise TypeError(
                f"{name} does not take {x.dtype.name}; it takes "
                f"{', '.join(kind.name for kind in kinds)}: {remedy}"
            )
        if x.shape != first.shape or x.dtype != first.dtype:
            raise ValueError(
                f"{name} wants inputs of one shape and dtype, got "
                f"{first.dtype.name}{first.shape} and {x.dtype.name}{x.shape}"
            )


#: From the operation and its output's gradient to one input's gradient.
Formula = Callable[[Operation, Tensor], Tensor]


def _row(
    name: str,
    kinds: Kinds,
    numpy: Callable[..., Any],
    *formulas: Formula,
    output: DType | None = None,
) -> Primitive:
    """A row whose output has the inputs' shape, and their dtype unless `output` says another.

    `formulas` give the gradient towards each input; none, if there is no derivative.
    """

    def infer(*inputs: Tensor) -> Spec:
        _require(name, kinds, *inputs)
        return Spec(inputs[0].shape, output or inputs[0].dtype)

    def meaning(*arrays: Array) -> Array:
        dtype = output or arrays[0].dtype
        return np.asarray(numpy(*arrays)).astype(dtype, copy=False)

    def gradient(operation: Operation, g: Tensor) -> Gradients:
        return [
            formula(operation, g) if x.requires_grad else None
            for formula, x in zip(formulas, operation.inputs, strict=True)
        ]

    return Primitive(name, infer, meaning, gradient if formulas else None)


def _zero(operation: Operation, g: Tensor) -> Tensor:
    """A step function: its derivative is zero wherever it has one."""
    return F.zeros_like(g)


# One input

negative = _row("negative", dtypes.NUMERIC, np.negative, lambda op, g: -g)
sign = _row("sign", dtypes.REAL, np.sign, _zero)
floor = _row("floor", dtypes.FLOATING, np.floor, _zero)
round = _row("round", dtypes.FLOATING, np.rint, _zero)
exp = _row("exp", dtypes.INEXACT, np.exp, lambda op, g: g * F.conj(op.output()))
expm1 = _row("expm1", dtypes.FLOATING, np.expm1, lambda op, g: g * (op.output() + 1))
log = _row("log", dtypes.FLOATING, np.log, lambda op, g: g / op.inputs[0])
log1p = _row("log1p", dtypes.FLOATING, np.log1p, lambda op, g: g / (op.inputs[0] + 1))
sqrt = _row("sqrt", dtypes.FLOATING, np.sqrt, lambda op, g: g / (2 * op.output()))
sin = _row("sin", dtypes.FLOATING, np.sin, lambda op, g: g * F.cos(op.inputs[0]))
cos = _row("cos", dtypes.FLOATING, np.cos, lambda op, g: -g * F.sin(op.inputs[0]))
tanh = _row("tanh", dtypes.FLOATING, np.tanh, lambda op, g: g * (1 - op.output() ** 2))
erf = _row(
    "erf",
    dtypes.FLOATING,
    special.erf,
    lambda op, g: g * (2 / math.sqrt(math.pi)) * F.exp(-(op.inputs[0] ** 2)),
)
invert = _row("bitwise_invert", BITS, np.invert)


def _abs_gradient(operation: Operation, g: Tensor) -> Gradients:
    x, y = operation.inputs[0], operation.output()
    if x.dtype not in dtypes.COMPLEX:
        return [g * F.sign(x)]
    safe = F.where(y == 0, 1.0, y)
    return [F.astype(F.where(y == 0, 0.0, g / safe), x.dtype) * x]


def _abs_infer(x: Tensor) -> Spec:
    _require("abs", dtypes.NUMERIC, x)
    return Spec(x.shape, dtypes.float32 if x.dtype == dtypes.complex64 else x.dtype)


abs = Primitive("abs", _abs_infer, np.abs, _abs_gradient)


def _complex_part(name: str, numpy: Callable[[Array], Array], unit: float | Any) -> Primitive:
    def infer(x: Tensor) -> Spec:
        _require(name, dtypes.COMPLEX, x)
        return Spec(x.shape, dtypes.float32)

    def gradient(operation: Operation, g: Tensor) -> Gradients:
        return [F.astype(g, dtypes.complex64) * unit]

    return Primitive(name, infer, numpy, gradient)


real = _complex_part("real", np.real, 1)
imag = _complex_part("imag", np.imag, 1j)


def _cast_numpy(x: Array, *, dtype: DType) -> Array:
    if x.dtype.kind == "c" and dtype.kind != "c":
        x = x.real
    if dtype in dtypes.STORAGE:  # rounded twice, as compiled
        x = x.astype(np.float32)
    return x.astype(dtype)


def _cast_gradient(operation: Operation, g: Tensor, **_: Any) -> Gradients:
    return [F.astype(g, operation.inputs[0].dtype)]


#: Another dtype; complex to real takes the real part, float to integer cuts towards zero.
cast = Primitive(
    "cast",
    lambda x, *, dtype: Spec(x.shape, dtype),
    _cast_numpy,
    _cast_gradient,
)

#: The same value, through which no gradient passes.
detach = Primitive(
    "detach", lambda x: Spec(x.shape, x.dtype), lambda x: x, None, flops=lambda operation: 0
)

# Two inputs

add = _row("add", dtypes.NUMERIC, np.add, lambda op, g: g, lambda op, g: g)
subtract = _row("subtract", dtypes.NUMERIC, np.subtract, lambda op, g: g, lambda op, g: -g)
multiply = _row(
    "multiply",
    dtypes.NUMERIC,
    np.multiply,
    lambda op, g: g * F.conj(op.inputs[1]),
    lambda op, g: g * F.conj(op.inputs[0]),
)


divide = _row(
    "divide",
    dtypes.INEXACT,
    np.divide,
    lambda op, g: g / F.conj(op.inputs[1]),
    lambda op, g: -g / F.conj(op.inputs[1]) * F.conj(op.output()),
)


def _floor_divide(x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu" and not y.all():
        raise ZeroDivisionError("integer division by zero; use float tensors for infinities")
    return np.floor_divide(x, y)


def _remainder(x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu" and not y.all():
        raise ZeroDivisionError("integer remainder by zero")
    return np.remainder(x, y)


floor_divide = _row("floor_divide", dtypes.REAL, _floor_divide, _zero, _zero)
remainder = _row(
    "remainder",
    dtypes.REAL,
    _remainder,
    lambda op, g: g,
    lambda op, g: -g * F.floor(op.inputs[0] / op.inputs[1]),
)


def _power_base_gradient(operation: Operation, g: Tensor) -> Tensor:
    x, y = operation.inputs
    return F.where(y == 0, 0.0, g * y * F.pow(x, y - 1))


def _power_exponent_gradient(operation: Operation, g: Tensor) -> Tensor:
    x, y = operation.inputs
    log_x = F.where(x == 0, -math.inf, F.log(F.where(x == 0, 1.0, x)))
    return F.where((x == 0) & (y >= 0), 0.0, g * operation.output() * log_x)


def _power(x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu" and (y < 0).any():
        raise ValueError("an integer tensor to a negative power; cast it to float32 first")
    return np.asarray(np.power(x, y))


power = _row("pow", dtypes.REAL, _power, _power_base_gradient, _power_exponent_gradient)


def _per_squared_radius(operation: Operation, g: Tensor) -> Tensor:
    """`g` over the square of the distance from the origin, at which atan2 has the gradient 0."""
    y, x = operation.inputs
    squared = y * y + x * x
    return g / F.where(squared == 0, 1.0, squared)


atan2 = _row(
    "atan2",
    dtypes.FLOATING,
    np.arctan2,
    lambda op, g: _per_squared_radius(op, g) * op.inputs[1],
    lambda op, g: -_per_squared_radius(op, g) * op.inputs[0],
)


def _chosen(place: int) -> Formula:
    """The gradient goes to the chosen input; half to each where they are equal, as in PyTorch."""

    def gradient(operation: Operation, g: Tensor) -> Tensor:
        this, other = operation.inputs[place], operation.inputs[1 - place]
        share = F.where(this == operation.output(), g, F.zeros_like(g))
        return F.where(this == other, g * 0.5, share)

    return gradient


maximum = _row("maximum", dtypes.REAL, np.maximum, _chosen(0), _chosen(1))
minimum = _row("minimum", dtypes.REAL, np.minimum, _chosen(0), _chosen(1))

equal = _row("equal", ANY, np.equal, output=dtypes.bool)
less = _row("less", dtypes.ORDERED, np.less, output=dtypes.bool)
less_equal = _row("less_equal", dtypes.ORDERED, np.less_equal, output=dtypes.bool)

bitwise_and = _row("bitwise_and", BITS, np.bitwise_and)
bitwise_or = _row("bitwise_or", BITS, np.bitwise_or)
bitwise_xor = _row("bitwise_xor", BITS, np.bitwise_xor)
shift_left = _row("bitwise_left_shift", dtypes.INTEGER, np.left_shift)
shift_right = _row("bitwise_right_shift", dtypes.INTEGER, np.right_shift)


def _complex_infer(x: Tensor, y: Tensor) -> Spec:
    _require("complex", (dtypes.float32,), x, y)
    return Spec(x.shape, dtypes.complex64)


def _complex_numpy(x: Array, y: Array) -> Array:
    result = np.empty(x.shape, np.complex64)
    result.real, result.imag = x, y
    return result


#: A complex number from its real and imaginary part.
complex = Primitive("complex", _complex_infer, _complex_numpy, lambda op, g: [F.real(g), F.imag(g)])

# Three inputs


def _where_infer(condition: Tensor, x: Tensor, y: Tensor) -> Spec:
    if condition.dtype != dtypes.bool:
        raise TypeError(f"where wants a bool condition, not {condition.dtype.name}")
    if condition.shape != x.shape:
        raise ValueError(f"where: condition {condition.shape} and values {x.shape} differ")
    _require("where", ANY, x, y)
    return Spec(x.shape, x.dtype)


def _where_gradient(operation: Operation, g: Tensor) -> Gradients:
    condition, x, y = operation.inputs
    zero = F.zeros_like(g)
    return [
        None,
        F.where(condition, g, zero) if x.requires_grad else None,
        F.where(condition, zero, g) if y.requires_grad else None,
    ]


where = Primitive("where", _where_infer, np.where, _where_gradient)
