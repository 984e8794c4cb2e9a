"""Elementary functions of float32 vectors, as arithmetic without calls, branches or tables.

Each reduces its argument to a small interval and evaluates a polynomial there, whose coefficients
(highest power first) minimise the largest relative error and are rounded to float32 one after the
other. Where 24 bits do not carry the result, the lanes are widened to float64. Infinities, NaN and
zeros come out as in C; numbers below the smallest normal one may count as zero. The errors are
those that tests/compiler/llvm/test_elementwise.py allows: 1 to 2.5 units in the last place, 4.6 for
tanh and erf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from palto.compiler.llvm.builder import FLOATS, Function, Value


@dataclass(frozen=True, slots=True)
class Lanes:
    """A Value with Python's operators; a Python number takes the type of the Value beside it."""

    function: Function
    value: Value

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._binary("add", other)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._binary("sub", other)

    def __rsub__(self, other: float) -> Lanes:
        return self.number(other) - self

    def __neg__(self) -> Lanes:
        return Lanes(self.function, self.function.negate(self.value))

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._binary("mul", other)

    def __truediv__(self, other: Lanes | float) -> Lanes:
        return self._binary("div", other)

    def __rtruediv__(self, other: float) -> Lanes:
        return self.number(other) / self

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._binary("and", other)

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._binary("or", other)

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self._binary("xor", other)

    def __lshift__(self, other: int) -> Lanes:
        return self._binary("shl", other)

    def __rshift__(self, other: int) -> Lanes:
        """Zeros come in from the left."""
        return self._binary("lshr", other)

    def _binary(self, op: str, other: Lanes | float) -> Lanes:
        if self.value.type in FLOATS:
            op = f"f{op}"
        return Lanes(self.function, self.function.binary(op, self.value, self.of(other)))

    def number(self, number: float) -> Lanes:
        """A number of this type in each of these lanes."""
        value = self.value
        return Lanes(self.function, self.function.constant(number, value.type, value.lanes))

    def of(self, other: Lanes | float) -> Value:
        """The Value of an operand."""
        return other.value if isinstance(other, Lanes) else self.number(other).value

    def fma(self, factor: Lanes | float, term: Lanes | float) -> Lanes:
        """Times `factor` plus `term`, rounded once."""
        f = self.function
        return Lanes(f, f.fma(self.value, self.of(factor), self.of(term)))

    def is_(self, predicate: str, other: Lanes | float) -> Lanes:
        """Where a comparison, as LLVM names it, holds."""
        f = self.function
        return Lanes(f, f.compare(predicate, self.value, self.of(other)))

    def where(self, condition: Lanes, other: Lanes | float) -> Lanes:
        """These lanes where the condition holds, else the other ones."""
        f = self.function
        return Lanes(f, f.select(condition.value, self.value, self.of(other)))

    def at_least(self, bound: float) -> Lanes:
        """The larger of the two; NaN stays."""
        return self.number(bound).where(self.is_("olt", bound), self)

    def at_most(self, bound: float) -> Lanes:
        """The smaller of the two; NaN stays."""
        return self.number(bound).where(self.is_("ogt", bound), self)

    def unary(self, name: str) -> Lanes:
        """An intrinsic of one operand: ``rint``, ``fabs``, ``sqrt`` ..."""
        return Lanes(self.function, self.function.intrinsic(f"llvm.{name}", self.value))

    def to(self, op: str, kind: str) -> Lanes:
        """A conversion, as LLVM names it, to a type."""
        return Lanes(self.function, self.function.convert(op, self.value, kind))

    def bits(self) -> Lanes:
        """A float's bits as an integer, or the other way round."""
        other = {"float": "i32", "double": "i64", "i32": "float", "i64": "double"}
        return self.to("bitcast", other[self.value.type])


def polynomial(x: Lanes, coefficients: Sequence[float]) -> Lanes:
    """A polynomial, from the highest power's coefficient down.

    Odd and even powers are summed apart: fewer roundings follow one another, and less waiting.
    """
    square, count = x * x, len(coefficients)
    odd, even = (_horner(square, coefficients[(count + first) % 2 :: 2]) for first in range(2))
    return odd.fma(x, even)


def _horner(x: Lanes, coefficients: Sequence[float]) -> Lanes:
    result = x.number(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result.fma(x, coefficient)
    return result


_SMALLEST = 2.0**-126  # of the normal numbers
_SIGN = 1 << 31
#: Adding one of these rounds to an integer, which is then in the lowest bits of the sum.
_ROUND_FLOAT, _ROUND_DOUBLE = 1.5 * 2.0**23, 1.5 * 2.0**52

# Exponentials: x = n log 2 + r with |r| <= log 2 / 2, so exp(x) = 2^n exp(r).

_LOG2_HIGH, _LOG2_LOW = 0.6931471824645996, -1.90465421e-09  # their sum is log 2
_EXPM1_TAIL = (0.00139379222, 0.00836655591, 0.0416664332, 0.166665435, 0.5)
_EXP_LOWEST, _EXP_HIGHEST = -87.33654, 88.72283  # beyond lie 0 and infinity


def _reduced_exponential(x: Lanes) -> tuple[Lanes, Lanes]:
    """Exp(r) - 1, and n shifted to the place of the exponent."""
    shifted = x.fma(1 / math.log(2), _ROUND_FLOAT)
    n = shifted - _ROUND_FLOAT
    r = n.fma(-_LOG2_LOW, n.fma(-_LOG2_HIGH, x))
    return (r * r).fma(polynomial(r, _EXPM1_TAIL), r), shifted.bits() << 23


def _exp(x: Lanes) -> Lanes:
    part, exponent = _reduced_exponential(x)
    result = ((part + 1.0).bits() + exponent).bits()
    result = result.where(x.is_("oge", _EXP_LOWEST), 0.0)
    return result.where(x.is_("ole", _EXP_HIGHEST), x + math.inf)


def _expm1(x: Lanes) -> Lanes:
    part, exponent = _reduced_exponential(x.at_least(-30.0))
    half = (exponent + (126 << 23)).bits()  # of 2^n, which itself may not be a float32
    result = part.fma(half, half - 0.5) * 2.0
    result = result.where(x.is_("ole", _EXP_HIGHEST), x + math.inf)
    return x.where(x.is_("oeq", 0.0), result)  # -0 stays


# Logarithms: x = 2^k (1 + g) with 1 + g between sqrt(1/2) and sqrt(2).

_SQRT_HALF = 0x3F3504F3  # its bits
_LOG_TAIL = (-0.0763583109, 0.127618968, -0.131596774, 0.142016247, -0.166234076, 0.200012401,
             -0.250008196, 0.333333313)  # fmt: skip


def _exponent_and_fraction(x: Lanes) -> tuple[Lanes, Lanes]:
    """The integer k, and g."""
    distance = x.bits() - _SQRT_HALF
    f = x.function
    k = Lanes(f, f.binary("ashr", distance.value, distance.of(23)))
    return k, ((distance & 0x7FFFFF) + _SQRT_HALF).bits() - 1.0


def _log_with(x: Lanes, correction: Lanes | None) -> Lanes:
    """The logarithm of x + correction, of which the second is at most an ulp of the first."""
    exponent, g = _exponent_and_fraction(x)
    if correction is not None:
        scale = 127 - exponent
        scale = scale.where(scale.is_("sgt", 0), 0) << 23
        g = correction.fma(scale.bits(), g)
    k, square = exponent.to("sitofp", "float"), g * g
    low = k.fma(_LOG2_LOW, square * g * polynomial(g, _LOG_TAIL))
    result = k.fma(_LOG2_HIGH, g + square.fma(-0.5, low))
    below = x.number(math.nan).where(x.is_("olt", 0.0), -math.inf)
    result = result.where(x.is_("oge", _SMALLEST), below)
    return result.where(x.is_("olt", math.inf), x)


def _log(x: Lanes) -> Lanes:
    return _log_with(x, None)


def _log1p(x: Lanes) -> Lanes:
    y = x + 1.0
    lost = (x - (y - 1.0)).where(x.is_("olt", 1.0), 1.0 - (y - x))
    return x.where(x.is_("oeq", 0.0), _log_with(y, lost))  # -0 stays


# tanh and erf: x P(x^2) / Q(x^2) up to where they round to 1. All coefficients are positive, so
# that nothing cancels; their last bits are those that made the least error in float32.

_TANH = (
    9.02,
    (5.68438736e-08, 3.53734649e-05, 0.00448872149, 0.154368103, 1.11979675),
    (8.25796764e-10, 1.81126586e-06, 0.000471145235, 0.0310603976, 0.527633667, 1.11979675),
)
_ERF = (
    3.95,
    (3.02066746e-06, 0.000424473081, 0.00567799294, 0.0788378865, 0.285603315, 1.68242753),
    (5.64077927e-05, 0.00174556288, 0.0224472787, 0.170809597, 0.750112593, 1.49101257),
)


def _sigmoid(
    x: Lanes, highest: float, numerator: Sequence[float], denominator: Sequence[float]
) -> Lanes:
    x = x.at_least(-highest).at_most(highest)
    square = x * x
    ratio = x * polynomial(square, numerator) / polynomial(square, denominator)
    return ratio.at_least(-1.0).at_most(1.0)


# Sine and cosine: x = (n + q) pi/2 with |q| <= 1/2.

#: 2/pi as a sum of two, and 2^52 times it modulo 4.
_QUARTERS = (0.6366197723675814, -3.935735335036497e-17)
_FAR_QUARTERS = (1.3227502381170073, 4.585413994155514e-17)
_SINE_TAIL = (2.8327654e-06, -0.000198530746, 0.0083333794, -0.166666672)
_COSINE_TAIL = (2.44325638e-05, -0.00138873106, 0.0416666456)


def _sine(x: Lanes, ahead: int) -> Lanes:
    """The sine, `ahead` quarters of a turn further on."""
    size = x.unary("fabs")
    wide = size.to("fpext", "double")
    # Only the remainder of x * 2/pi by 4 counts: with 106 bits of 2/pi it is right up to 2^76, and
    # beyond that so is the remainder of (x / 2^52) * (2^52 * 2/pi).
    near = size.is_("olt", 2.0**76)
    wide = wide.where(near, wide * 2.0**-52)
    high, low = (
        wide.number(a).where(near, b) for a, b in zip(_QUARTERS, _FAR_QUARTERS, strict=True)
    )
    product = wide * high
    rest = wide.fma(low, wide.fma(high, -product))
    turns = (product * 0.25).unary("rint")
    quarters = turns.fma(-4.0, product) + rest
    shifted = quarters + _ROUND_DOUBLE
    n = shifted.bits().to("trunc", "i32") + ahead
    angle = ((quarters - (shifted - _ROUND_DOUBLE)) * (math.pi / 2)).to("fptrunc", "float")

    square = angle * angle
    sine = (square * angle).fma(polynomial(square, _SINE_TAIL), angle)
    cosine = (square * square).fma(polynomial(square, _COSINE_TAIL), square.fma(-0.5, 1.0))
    sign = (n & 2) << 30
    if ahead == 0:
        sign = sign ^ (x.bits() & _SIGN)
    return (sine.where((n & 1).is_("eq", 0), cosine).bits() ^ sign).bits()


# atan2: the arctangent of a ratio at most 1, and where in the plane it is.

_ARCTANGENT_TAIL = (
    0.00113452214, -0.00742536318, 0.022777617, -0.0449832566, 0.0676364899, -0.0882146209,
    0.110612333, -0.142803431, 0.199997157, -0.333333284,
)  # fmt: skip


def _atan2(y: Lanes, x: Lanes) -> Lanes:
    high, wide = y.unary("fabs"), x.unary("fabs")
    steep = high.is_("ogt", wide)
    small, large = wide.where(steep, high), high.where(steep, wide)
    # Of two zeros the ratio is 0, of two infinities 1.
    same = large.number(1.0).where(large.is_("ogt", 0.0), 0.0)
    ratio = same.where(small.is_("oeq", large), small / large)
    square = ratio * ratio
    angle = (square * ratio).fma(polynomial(square, _ARCTANGENT_TAIL), ratio)
    angle = (math.pi / 2 - angle).where(steep, angle)
    angle = (math.pi - angle).where(x.bits().is_("slt", 0), angle)
    return (angle.bits() | (y.bits() & _SIGN)).bits()


# pow: 2^(y log2 |x|) in float64, and the sign.

_LOG2_SERIES = (0.28293990958254822, 0.31990310883287215, 0.41220930993146626, 0.5770779418647628,
                0.96179669411469626, 2.8853900817778504)  # fmt: skip
_EXP2 = (1.5201715956790506e-05, 0.0001546955363133361, 0.0013333925498220567,
         0.0096180264405947586, 0.055504103472494584, 0.2402265120416858, 0.69314718073116388,
         0.99999999996107103)  # fmt: skip


def _pow(x: Lanes, y: Lanes) -> Lanes:
    size = x.unary("fabs")
    exponent, g = _exponent_and_fraction(size)
    k = exponent.to("sitofp", "float").where(size.is_("oge", _SMALLEST), -math.inf)
    k = k.where(size.is_("olt", math.inf), size)  # infinite or NaN
    wide = g.to("fpext", "double")
    s = wide / (wide + 2.0)
    log2 = s.fma(polynomial(s * s, _LOG2_SERIES), k.to("fpext", "double"))

    product = log2 * y.to("fpext", "double")
    is_one = log2.is_("oeq", 0.0) | y.is_("oeq", 0.0)  # whatever the other one is, even NaN
    product = log2.number(0.0).where(is_one, product).at_least(-300.0).at_most(300.0)
    shifted = product + _ROUND_DOUBLE
    power = ((shifted.bits() << 52) + (1023 << 52)).bits()
    r = product - (shifted - _ROUND_DOUBLE)
    result = (polynomial(r, _EXP2) * power).to("fptrunc", "float")

    half = y * 0.5
    is_whole = y.unary("rint").is_("oeq", y)
    is_even = half.unary("rint").is_("oeq", half)
    negated = (result.bits() ^ (x.bits() & _SIGN)).bits()
    result = result.where(is_even, negated.where(is_whole, result))
    is_real = is_whole | x.is_("uge", 0.0) | x.is_("oeq", -math.inf)
    return result.where(is_real, math.nan)


def _call(formula: Callable[..., Lanes]) -> Callable[..., Value]:
    def function(f: Function, *inputs: Value) -> Value:
        return formula(*(Lanes(f, x) for x in f.same_lanes(*inputs))).value

    return function


#: From the name of a function to code for it: ``FLOAT32["exp"](function, x)``.
FLOAT32: dict[str, Callable[..., Value]] = {
    "exp": _call(_exp),
    "expm1": _call(_expm1),
    "log": _call(_log),
    "log1p": _call(_log1p),
    "tanh": _call(lambda x: _sigmoid(x, *_TANH)),
    "erf": _call(lambda x: _sigmoid(x, *_ERF)),
    "sin": _call(lambda x: _sine(x, 0)),
    "cos": _call(lambda x: _sine(x, 1)),
    "atan2": _call(_atan2),
    "pow": _call(_pow),
}
