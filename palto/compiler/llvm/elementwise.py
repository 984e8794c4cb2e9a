"""What each elementwise primitive is in LLVM: one table, from its name to its code.

The meaning is that of palto.tensor.primitives.elementwise, so NumPy's, for any number of lanes.
What NumPy reports instead (an integer divided by zero, a negative integer power) is defined here,
to some value, and reported elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from palto.compiler.llvm.builder import FLOATS, Function, Value, size_of
from palto.compiler.llvm.mathematics import FLOAT32, Lanes
from palto.tensor import dtypes
from palto.tensor.dtypes import DType
from palto.tensor.graph import Operation

#: A real value, or the real and the imaginary part of a complex64.
Element = Value | tuple[Value, Value]
Row = Callable[[Function, Operation, Sequence[Element]], Element]

#: The type of an element: a bool is a byte in memory, a float of 16 bits those, a complex64 a pair.
LLVM_TYPES: dict[DType, str] = {
    dtypes.bool: "i1", dtypes.int8: "i8", dtypes.uint8: "i8", dtypes.int32: "i32",
    dtypes.uint32: "i32", dtypes.int64: "i64", dtypes.float32: "float", dtypes.float64: "double",
    dtypes.float16: "i16", dtypes.bfloat16: "i16", dtypes.complex64: "float",
}  # fmt: skip


def _pair(f: Function, x: Element) -> tuple[Lanes, Lanes]:
    assert isinstance(x, tuple)
    return Lanes(f, x[0]), Lanes(f, x[1])


def _values(inputs: Sequence[Element]) -> list[Value]:
    values = [x for x in inputs if isinstance(x, Value)]
    assert len(values) == len(inputs)
    return values


def _real(
    code: Callable[..., Lanes], complex_code: Callable[..., tuple[Lanes, Lanes]] | None = None
) -> Row:
    """A row from a formula of real inputs, and perhaps one of the parts of complex inputs."""

    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        if isinstance(inputs[0], tuple):
            assert complex_code is not None
            real, imaginary = complex_code(*(part for x in inputs for part in _pair(f, x)))
            return real.value, imaginary.value
        return code(*(Lanes(f, x) for x in f.same_lanes(*_values(inputs)))).value

    return row


def _by_kind(**rows: Row) -> Row:
    """A row for each kind of dtype, as NumPy calls them: b(ool), i(nteger), u(nsigned) ..."""

    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        return rows[operation.inputs[-1].dtype.kind](f, operation, inputs)

    return row


def _instruction(**names: str) -> Row:
    """One instruction of two operands for each kind."""

    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        a, b = _values(inputs)
        return f.binary(names[operation.inputs[0].dtype.kind], a, b)

    return row


def _comparison(**predicates: str) -> Row:
    """An ordered comparison for each kind."""

    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        a, b = _values(inputs)
        return f.compare(predicates[operation.inputs[0].dtype.kind], a, b)

    return row


# Conversions


def cast(f: Function, x: Element, source: DType, target: DType) -> Element:
    """Another dtype: complex to real takes the real part, float to integer cuts towards zero."""
    if source == target:
        return x
    if target.kind == "c":
        real = cast(f, x, source, dtypes.float32)
        assert isinstance(real, Value)
        return real, f.constant(0, "float", real.lanes)
    if isinstance(x, tuple):
        return cast(f, x[0], dtypes.float32, target)
    if source in dtypes.STORAGE:
        return cast(f, _widen(f, x, source), dtypes.float32, target)
    if target in dtypes.STORAGE:
        single = cast(f, x, source, dtypes.float32)
        assert isinstance(single, Value)
        return _narrow(f, single, target)
    kind, from_size, to_size = LLVM_TYPES[target], source.itemsize, target.itemsize
    if target.kind == "b":
        return f.compare("une" if x.type in FLOATS else "ne", x, f.constant(0, x.type))
    if source.kind == "f":
        if target.kind == "f":
            return f.convert("fpext" if to_size > from_size else "fptrunc", x, kind)
        cut = _truncate_unsigned if target == dtypes.uint32 else _truncate
        return cut(Lanes(f, x), "i64" if kind == "i64" else "i32").to("trunc", kind).value
    if target.kind == "f":
        return f.convert("sitofp" if source.kind == "i" else "uitofp", x, kind)
    extension = "sext" if source.kind == "i" else "zext"
    return f.convert("trunc" if size_of(kind) < size_of(x.type) else extension, x, kind)


def _truncate(x: Lanes, kind: str) -> Lanes:
    """A float cut to an integer; what does not fit becomes the lowest one, as on x86."""
    limit = 2.0 ** (8 * size_of(kind) - 1)
    fits = x.is_("oge", -limit) & x.is_("olt", limit)
    return x.to("fptosi", kind).where(fits, -int(limit))


def _truncate_unsigned(x: Lanes, kind: str) -> Lanes:
    """Likewise, with the range from 2^31 on moved down and back again."""
    is_upper = x.is_("oge", 2.0**31)
    low = _truncate((x - 2.0**31).where(is_upper, x), kind)
    return (low ^ -(1 << 31)).where(is_upper, low)


def _widen(f: Function, x: Value, source: DType) -> Value:
    """The float32 of 16 bits; a bfloat16 is its upper half."""
    if source == dtypes.float16:
        return f.convert("fpext", f.convert("bitcast", x, "half"), "float")
    return (Lanes(f, x).to("zext", "i32") << 16).bits().value


def _narrow(f: Function, single: Value, target: DType) -> Value:
    """The bits of the nearest number of 16 bits, the even one of two."""
    if target == dtypes.float16:
        return f.convert("bitcast", f.convert("fptrunc", single, "half"), "i16")
    x = Lanes(f, single)
    bits = x.bits()
    upper = bits >> 16
    rounded = (bits + (upper & 1) + 0x7FFF) >> 16
    return rounded.where(x.is_("oeq", x), upper | 0x40).to("trunc", "i16").value


def _cast(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
    return cast(f, inputs[0], operation.inputs[0].dtype, operation.params["dtype"])


# One input


def _function(name: str) -> Row:
    """Of float32 as vector code, of float64 the C library's."""

    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        values = _values(inputs)
        return FLOAT32[name](f, *values) if values[0].type == "float" else f.external(name, *values)

    return row


def _complex_exp(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
    real, imaginary = _pair(f, inputs[0])
    # The root of the size is a float32 also where only its product with the cosine is one.
    root = Lanes(f, FLOAT32["exp"](f, (real * 0.5).value))
    cosine, sine = (Lanes(f, FLOAT32[name](f, imaginary.value)) for name in ("cos", "sin"))
    # What has no direction is still zero or infinite; on the real axis it stays real.
    is_limit = cosine.is_("uno", cosine) & real.unary("fabs").is_("oeq", math.inf)
    result = root.where(is_limit, root * cosine * root)
    is_zero = is_limit & real.is_("olt", 0.0)
    is_real = imaginary.is_("oeq", 0.0)
    return result.value, imaginary.where(is_real, root.where(is_zero, root * sine * root)).value


def _complex_abs(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
    a, b = (part.unary("fabs") for part in _pair(f, inputs[0]))
    wide_a, wide_b = a.to("fpext", "double"), b.to("fpext", "double")  # nothing can overflow
    length = (wide_a * wide_a + wide_b * wide_b).unary("sqrt").to("fptrunc", "float")
    is_infinite = a.is_("oeq", math.inf) | b.is_("oeq", math.inf)
    return a.number(math.inf).where(is_infinite, length).value


def _sign(x: Lanes) -> Lanes:
    if x.value.type in FLOATS:
        below = x.number(-1.0).where(x.is_("olt", 0.0), x + 0.0)  # -0 becomes 0, NaN stays
        return x.number(1.0).where(x.is_("ogt", 0.0), below)
    return x.number(1).where(x.is_("sgt", 0), x.number(-1).where(x.is_("slt", 0), 0))


# Two inputs


def _complex_product(a: Lanes, b: Lanes, c: Lanes, d: Lanes) -> tuple[Lanes, Lanes]:
    return a * c - b * d, a * d + b * c


def _complex_quotient(a: Lanes, b: Lanes, c: Lanes, d: Lanes) -> tuple[Lanes, Lanes]:
    """(a + bi) / (c + di) by Smith's method, as NumPy has it."""
    c_size, d_size = c.unary("fabs"), d.unary("fabs")
    is_flat = c_size.is_("oge", d_size)
    large, small = c.where(is_flat, d), d.where(is_flat, c)
    first, second = a.where(is_flat, b), b.where(is_flat, a)
    ratio = small / large
    scale = 1.0 / (large + small * ratio)
    real, imaginary = (first + second * ratio) * scale, (second - first * ratio) * scale
    imaginary = imaginary.where(is_flat, -imaginary)
    is_zero = c_size.is_("oeq", 0.0) & d_size.is_("oeq", 0.0)
    return (a / c_size).where(is_zero, real), (b / c_size).where(is_zero, imaginary)


def _known_integer(x: Value) -> int | None:
    """A constant's number."""
    text = x.text.removeprefix(f"splat ({x.type} ").removesuffix(")")
    return int(text) if text.lstrip("-").isdigit() else None


def _safe_divisor(x: Lanes, y: Lanes, *, signed: bool) -> Lanes:
    """The divisor, or 1 where there is no quotient: y = 0, and the lowest integer by -1."""
    if _known_integer(y.value) not in (None, 0, -1):
        return y  # a known divisor becomes a multiplication
    bad = y.is_("eq", 0)
    if signed:
        lowest = -(1 << (8 * size_of(x.value.type) - 1))
        bad = bad | (x.is_("eq", lowest) & y.is_("eq", -1))
    return y.number(1).where(bad, y)


def _divide_integers(name: str) -> Row:
    """``floor_divide`` or ``remainder``, rounded down as in Python."""

    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        x, y = (Lanes(f, value) for value in f.same_lanes(*_values(inputs)))
        signed = operation.inputs[0].dtype.kind == "i"
        y = _safe_divisor(x, y, signed=signed)
        prefix = "s" if signed else "u"
        quotient = Lanes(f, f.binary(f"{prefix}div", x.value, y.value))
        rest = x - quotient * y
        if not signed:
            return (quotient if name == "floor_divide" else rest).value
        is_above = rest.is_("ne", 0) & (rest ^ y).is_("slt", 0)
        if name == "floor_divide":
            return (quotient - 1).where(is_above, quotient).value
        return (rest + y).where(is_above, rest).value

    return row


def _float_remainder(x: Lanes, y: Lanes) -> Lanes:
    """With the divisor's sign."""
    f = x.function
    rest = Lanes(f, f.binary("frem", x.value, y.value))
    is_opposite = (rest.is_("olt", 0.0) ^ y.is_("olt", 0.0)) & rest.is_("une", 0.0)
    signed_zero = Lanes(f, f.intrinsic("llvm.copysign", rest.of(0.0), y.value))
    # A remainder by zero is NaN, by NumPy's formula and by this one.
    return (rest + y).where(is_opposite, signed_zero.where(rest.is_("oeq", 0.0), rest))


def _float_floor_divide(x: Lanes, y: Lanes) -> Lanes:
    """The whole number nearest to (x - remainder) / y, which only rounding keeps from being one."""
    f = x.function
    rest = Lanes(f, f.binary("frem", x.value, y.value))
    quotient = (x - rest) / y
    is_opposite = (rest.is_("olt", 0.0) ^ y.is_("olt", 0.0)) & rest.is_("une", 0.0)
    quotient = (quotient - 1.0).where(is_opposite, quotient)
    below = quotient.unary("floor")
    whole = (below + 1.0).where((quotient - below).is_("ogt", 0.5), below)
    signed_zero = Lanes(f, f.intrinsic("llvm.copysign", x.of(0.0), (x / y).value))
    whole = signed_zero.where(quotient.is_("oeq", 0.0), whole)
    return (x / y).where(y.is_("oeq", 0.0), whole)


def _integer_power(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
    x, y = f.same_lanes(*_values(inputs))
    with f.loop(0, 8 * size_of(x.type), nonempty=True) as loop:
        result = loop.carry(f.constant(1, x.type, x.lanes))
        base, exponent = loop.carry(x), loop.carry(y)
        is_odd = f.convert("trunc", exponent, "i1")
        loop.update(result, f.select(is_odd, f.binary("mul", result, base), result))
        loop.update(base, f.binary("mul", base, base))
        loop.update(exponent, f.binary("lshr", exponent, f.constant(1, x.type)))
    return loop.result(result)


def _extreme(predicate: str) -> Callable[[Lanes, Lanes], Lanes]:
    """The larger or smaller float, or the NaN among the two."""

    def code(a: Lanes, b: Lanes) -> Lanes:
        return a.where(a.is_("uno", a), a.where(a.is_(predicate, b), b))

    return code


def _intrinsic(name: str) -> Row:
    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        return f.intrinsic(f"llvm.{name}", *f.same_lanes(*_values(inputs)))

    return row


def _equal(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
    if isinstance(inputs[0], tuple):
        (a, b), (c, d) = (_pair(f, x) for x in inputs)
        return (a.is_("oeq", c) & b.is_("oeq", d)).value
    x, y = _values(inputs)
    dtype = operation.inputs[0].dtype
    if dtype in dtypes.STORAGE:
        x, y = _widen(f, x, dtype), _widen(f, y, dtype)
    return f.compare("oeq" if x.type in FLOATS else "eq", x, y)


def _shift(op: str) -> Row:
    """By the width or more, or by a negative number, all bits leave."""

    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        x, y = (Lanes(f, value) for value in f.same_lanes(*_values(inputs)))
        last = 8 * size_of(x.value.type) - 1
        fits = y.is_("ule", last)
        shifted = Lanes(f, f.binary(op, x.value, y.where(fits, last).value))
        return shifted.value if op == "ashr" else shifted.where(fits, 0).value

    return row


def _where(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
    condition, x, y = inputs
    assert isinstance(condition, Value)
    if isinstance(x, tuple) and isinstance(y, tuple):
        real, imaginary = (f.select(condition, a, b) for a, b in zip(x, y, strict=True))
        return real, imaginary
    return f.select(condition, *_values(inputs[1:]))


def _part(place: int) -> Row:
    def row(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
        x = inputs[0]
        assert isinstance(x, tuple)
        return x[place]

    return row


def _complex(f: Function, operation: Operation, inputs: Sequence[Element]) -> Element:
    real, imaginary = f.same_lanes(*_values(inputs))
    return real, imaginary


#: The code of each primitive, by its name.
TABLE: dict[str, Row] = {
    "negative": _real(lambda x: -x, lambda a, b: (-a, -b)),
    "sign": _by_kind(
        f=_real(_sign),
        i=_real(_sign),
        u=_real(lambda x: x.number(1).where(x.is_("ne", 0), 0)),
    ),
    "floor": _intrinsic("floor"),
    "round": _intrinsic("rint"),
    "exp": _by_kind(f=_function("exp"), c=_complex_exp),
    "expm1": _function("expm1"),
    "log": _function("log"),
    "log1p": _function("log1p"),
    "sqrt": _intrinsic("sqrt"),
    "sin": _function("sin"),
    "cos": _function("cos"),
    "tanh": _function("tanh"),
    "erf": _function("erf"),
    "bitwise_invert": _real(lambda x: x ^ -1),
    "abs": _by_kind(
        f=_intrinsic("fabs"),
        i=_real(lambda x: (-x).where(x.is_("slt", 0), x)),
        u=_real(lambda x: x),
        c=_complex_abs,
    ),
    "real": _part(0),
    "imag": _part(1),
    "cast": _cast,
    "detach": lambda f, operation, inputs: inputs[0],
    "add": _real(lambda x, y: x + y, lambda a, b, c, d: (a + c, b + d)),
    "subtract": _real(lambda x, y: x - y, lambda a, b, c, d: (a - c, b - d)),
    "multiply": _real(lambda x, y: x * y, _complex_product),
    "divide": _real(lambda x, y: x / y, _complex_quotient),
    "floor_divide": _by_kind(
        f=_real(_float_floor_divide),
        i=_divide_integers("floor_divide"),
        u=_divide_integers("floor_divide"),
    ),
    "remainder": _by_kind(
        f=_real(_float_remainder),
        i=_divide_integers("remainder"),
        u=_divide_integers("remainder"),
    ),
    "pow": _by_kind(f=_function("pow"), i=_integer_power, u=_integer_power),
    "atan2": _function("atan2"),
    "maximum": _by_kind(f=_real(_extreme("ogt")), i=_intrinsic("smax"), u=_intrinsic("umax")),
    "minimum": _by_kind(f=_real(_extreme("olt")), i=_intrinsic("smin"), u=_intrinsic("umin")),
    "equal": _equal,
    "less": _comparison(b="ult", u="ult", i="slt", f="olt"),
    "less_equal": _comparison(b="ule", u="ule", i="sle", f="ole"),
    "bitwise_and": _real(lambda x, y: x & y),
    "bitwise_or": _real(lambda x, y: x | y),
    "bitwise_xor": _real(lambda x, y: x ^ y),
    "bitwise_left_shift": _shift("shl"),
    "bitwise_right_shift": _by_kind(i=_shift("ashr"), u=_shift("lshr")),
    "complex": _complex,
    "where": _where,
}
