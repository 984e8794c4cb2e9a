"""Operators that go element by element. Shapes broadcast; dtypes are equal, as ONNX demands."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from palto.formats.onnx.table import Call, operator
from palto.nn import functional as N
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.dtypes import DType

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Acos": F.acos, "Acosh": F.acosh, "Asin": F.asin, "Asinh": F.asinh, "Atan": F.atan,
    "Atanh": F.atanh, "BitwiseNot": F.bitwise_invert, "Ceil": F.ceil, "Cos": F.cos,
    "Cosh": F.cosh, "Erf": F.erf, "Exp": F.exp, "Floor": F.floor, "Identity": F.positive,
    "IsNaN": F.isnan, "Log": F.log, "Neg": F.negative, "Not": F.logical_not,
    "Reciprocal": F.reciprocal, "Relu": N.relu, "Round": F.round, "Sigmoid": N.sigmoid,
    "Sign": F.sign, "Sin": F.sin, "Sinh": F.sinh, "Softplus": N.softplus, "Sqrt": F.sqrt,
    "Tan": F.tan, "Tanh": F.tanh,
}  # fmt: skip

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": F.add, "And": F.logical_and, "BitwiseAnd": F.bitwise_and, "BitwiseOr": F.bitwise_or,
    "BitwiseXor": F.bitwise_xor, "Equal": F.equal, "Greater": F.greater,
    "GreaterOrEqual": F.greater_equal, "Less": F.less, "LessOrEqual": F.less_equal,
    "Mul": F.multiply, "Or": F.logical_or, "Sub": F.subtract, "Xor": F.logical_xor,
}  # fmt: skip

#: From the first operators on, these take any number of inputs.
_ANY_NUMBER = {"Max": F.maximum, "Min": F.minimum, "Sum": F.add, "Mean": F.add}


def _unary(call: Call, x: Tensor, *, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(x)


def _binary(
    call: Call, x: Tensor, y: Tensor, *, function: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    return function(x, _beside(call, x, y))


def _beside(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """The second operand, ready to broadcast: before version 7, its axes began at `axis`."""
    if call.version < 7 and call.attribute("broadcast", 0):
        axis = call.attribute("axis", x.ndim - y.ndim)
        y = F.reshape(y, (*y.shape, *(1,) * (x.ndim - axis - y.ndim)))
    call.bounded(F.broadcast_shapes(x.shape, y.shape))
    return y


for _name, _function in _UNARY.items():
    operator(_name)(functools.partial(_unary, function=_function))
for _name, _pair in _BINARY.items():
    operator(_name)(functools.partial(_binary, function=_pair))


@operator("Max", "Min", "Sum", "Mean")
def of_all(call: Call, *inputs: Tensor) -> Tensor:
    """The largest, the smallest, the sum or the mean of any number of tensors."""
    result = inputs[0]
    for x in inputs[1:]:
        call.bounded(F.broadcast_shapes(result.shape, x.shape))
        result = _ANY_NUMBER[call.node.operator](result, x)
    return result / len(inputs) if call.node.operator == "Mean" else result


@operator("Abs")
def absolute(call: Call, x: Tensor) -> Tensor:
    """|x|; unsigned numbers are as they are."""
    return x if x.dtype in dtypes.UNSIGNED else F.abs(x)


@operator("Div")
def divide(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """The quotient, of whole numbers cut towards zero."""
    y = _beside(call, x, y)
    if x.dtype not in dtypes.INTEGER:
        return F.divide(x, y)
    quotient, rest = F.floor_divide(x, y), F.remainder(x, y)
    crosses_zero = (rest != 0) & ((x < 0) != (y < 0))
    return quotient + F.astype(crosses_zero, x.dtype)


@operator("Mod")
def modulo(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """The remainder, with the sign of y, or (`fmod`) with the sign of x."""
    rest = F.remainder(x, _beside(call, x, y))
    if not call.attribute("fmod", 0):
        return rest
    return F.where((rest != 0) & ((rest < 0) != (x < 0)), rest - y, rest)


@operator("Pow")
def power(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """X to the power of y, in the dtype of x."""
    y = _beside(call, x, y)
    if y.trace is None and y.ndim == 0 and x.dtype in dtypes.FLOATING:
        number = y.item()
        return F.pow(x, int(number) if float(number).is_integer() else number)
    if x.dtype in dtypes.INTEGER and y.dtype in dtypes.FLOATING:
        wide = F.pow(F.astype(x, dtypes.float64), F.astype(y, dtypes.float64))
        return F.astype(wide, x.dtype)
    return F.pow(x, F.astype(y, x.dtype))


@operator("BitShift")
def shift(call: Call, x: Tensor, y: Tensor) -> Tensor:
    """Bits moved to the left or right; unsigned, so zeros come after."""
    call.bounded(F.broadcast_shapes(x.shape, y.shape))
    is_left = call.attribute("direction") == "LEFT"
    return F.bitwise_left_shift(x, y) if is_left else F.bitwise_right_shift(x, y)


@operator("Where")
def where(call: Call, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """X where the condition holds, y elsewhere."""
    call.bounded(F.broadcast_shapes(condition.shape, x.shape, y.shape))
    return F.where(condition, x, y)


# Dtypes


def numpy_dtype(call: Call, number: int) -> DType:
    """The dtype that ONNX gives this number."""
    from palto.formats.onnx.reading import Reader

    return Reader({}, None).dtype(number, str(call.node))


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Another dtype."""
    return F.astype(x, numpy_dtype(call, call.attribute("to")))


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """The dtype of another tensor."""
    return F.astype(x, like.dtype)


@operator("BitCast", static=(0,))
def bit_cast(call: Call, x: Tensor) -> Tensor:
    """The same bits, read as another dtype. At once only."""
    dtype = numpy_dtype(call, call.attribute("to"))
    if dtype.itemsize != x.dtype.itemsize:
        raise call.error(f"bits of {x.dtype.name} as {dtype.name}")
    return F.asarray(np.ascontiguousarray(call.known(x, "the result")).view(dtype).reshape(x.shape))


@operator("IsInf")
def is_infinite(call: Call, x: Tensor) -> Tensor:
    """Whether a number is infinite, of the signs that are asked for."""
    found = F.isinf(x)
    if not call.attribute("detect_negative", 1):
        found = found & (x > 0)
    if not call.attribute("detect_positive", 1):
        found = found & (x < 0)
    return found


# Activations


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """`x` held between bounds; the upper one goes first where they cross."""
    least = call.attribute("min") if low is None else low
    most = call.attribute("max") if high is None else high
    x = x if least is None else F.maximum(x, least)
    return x if most is None else F.minimum(x, most)


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """X above zero, `alpha` x below."""
    return N.leaky_relu(x, call.attribute("alpha", 0.01))


@operator("PRelu")
def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """X above zero, `slope` x below."""
    if call.version < 7 and slope.ndim == 1 and x.ndim > 1:
        slope = F.reshape(slope, (-1, *(1,) * (x.ndim - 2)))
    return F.where(x < 0, x * slope, x)


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """X above zero, alpha (exp(x) - 1) below."""
    return N.elu(x, call.attribute("alpha", 1.0))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """X above zero, alpha (exp(x / alpha) - 1) below."""
    alpha = call.attribute("alpha", 1.0)
    return F.where(x > 0, x, alpha * F.expm1(F.where(x > 0, 0.0, x) / alpha))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """`gamma` times an ELU."""
    gamma: float = call.attribute("gamma", 1.0507009873554805)
    return N.elu(x, call.attribute("alpha", 1.6732632423543772)) * gamma


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """X times the probability that a normal number is below it."""
    return N.gelu(x, call.attribute("approximate", "none"))


@operator("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    """X sigmoid(alpha x)."""
    alpha: float = call.attribute("alpha", 1.0)
    return x * N.sigmoid(x * alpha)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """A line held between 0 and 1."""
    line = x * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5)
    return F.minimum(F.maximum(line, 0.0), 1.0)


@operator("HardSwish")
def hard_swish(call: Call, x: Tensor) -> Tensor:
    """X times a line held between 0 and 1."""
    return x * F.minimum(F.maximum(x * (1 / 6) + 0.5, 0.0), 1.0)


@operator("Mish")
def mish(call: Call, x: Tensor) -> Tensor:
    """X tanh(softplus(x))."""
    return x * F.tanh(N.softplus(x))


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """X above `alpha`, 0 elsewhere."""
    return F.where(x > call.attribute("alpha", 1.0), x, F.zeros_like(x))


@operator("ai.onnx.ml.Binarizer")
def binarizer(call: Call, x: Tensor) -> Tensor:
    """1 above a threshold, 0 elsewhere."""
    return F.astype(x > call.attribute("threshold", 0.0), x.dtype)


def activation(name: str, alpha: float | None, beta: float | None) -> Callable[[Tensor], Tensor]:
    """An activation of recurrent layers by its name."""
    first, second = alpha, beta

    def value(given: float | None, default: float) -> float:
        return default if given is None else given

    table: dict[str, Callable[[Tensor], Any]] = {
        "relu": N.relu,
        "tanh": F.tanh,
        "sigmoid": N.sigmoid,
        "affine": lambda x: value(first, 1.0) * x + value(second, 0.0),
        "leakyrelu": lambda x: N.leaky_relu(x, value(first, 0.01)),
        "thresholdedrelu": lambda x: F.where(x > value(first, 1.0), x, 0.0),
        "scaledtanh": lambda x: value(first, 1.0) * F.tanh(value(second, 1.0) * x),
        "hardsigmoid": lambda x: F.minimum(
            F.maximum(value(first, 0.2) * x + value(second, 0.5), 0.0), 1.0
        ),
        "elu": lambda x: N.elu(x, value(first, 1.0)),
        "softsign": lambda x: x / (1 + F.abs(x)),
        "softplus": N.softplus,
    }
    if name.lower() not in table:
        raise ValueError(f"there is no activation {name!r}; there are {', '.join(table)}")
    return table[name.lower()]
