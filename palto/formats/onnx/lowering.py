"""From Palto's primitives to ONNX's operators: one row for each primitive.

A row is given the builder and an operation, writes nodes, and says what holds the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from palto.compiler.sizes import Size
from palto.compiler.trace import named
from palto.formats.onnx.building import Builder, Held, matched
from palto.formats.onnx.complex_numbers import is_complex, parts, write_parts
from palto.formats.onnx.errors import UnsupportedError
from palto.tensor import dtypes
from palto.tensor.graph import Graph, Operation
from palto.tensor.primitives import TABLE
from palto.tensor.primitives.control import unrolled
from palto.tensor.tensor import Tensor

Row = Callable[[Builder, Operation], None]

#: By primitive. Its keys are those of the table of primitives.
LOWERINGS: dict[str, Row] = {}
#: By the name of a composite; False from a row means that its body is to be written instead.
COMPOSITES: dict[str, Callable[[Builder, Operation], bool]] = {}


def lower(build: Builder, graph: Graph) -> None:
    """Write the operations of a graph whose inputs are held.

    Raises:
        UnsupportedError: ONNX has no way to say what an operation does.
    """
    for operation in graph.operations:
        build.scope = operation.scope
        _write(build, operation)


def _write(build: Builder, operation: Operation) -> None:
    has_body = isinstance(operation.params.get("body"), Graph)
    if not has_body and any(map(is_complex, (*operation.inputs, *operation.outputs))):
        _complex(build, operation)
    else:
        LOWERINGS[operation.primitive.name](build, operation)


def _row(*names: str) -> Callable[[Row], Row]:
    def add(function: Row) -> Row:
        LOWERINGS.update(dict.fromkeys(names, function))
        return function

    return add


def _refused(reason: str) -> Row:
    def refuse(build: Builder, operation: Operation) -> None:
        name = operation.primitive.name
        raise UnsupportedError(name, f"{named(operation)} cannot be written as ONNX: {reason}")

    return refuse


@_row("complex", "real", "imag", "fft")
def _complex(build: Builder, operation: Operation) -> None:
    write_parts(build, operation, _write)


LOWERINGS["random_bits"] = _refused(
    "it draws random numbers, which would be others; call model.eval() first"
)
for _name in ("window_take", "window_put"):
    LOWERINGS[_name] = _refused("only the gradient of max pooling does this")


# Element by element

_SAME = {
    "negative": "Neg", "sign": "Sign", "floor": "Floor", "round": "Round", "exp": "Exp",
    "log": "Log", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos", "tanh": "Tanh", "erf": "Erf",
    "abs": "Abs", "detach": "Identity", "add": "Add", "subtract": "Sub", "multiply": "Mul",
    "divide": "Div", "equal": "Equal", "maximum": "Max", "minimum": "Min", "pow": "Pow",
    "bitwise_and": "BitwiseAnd", "bitwise_or": "BitwiseOr", "bitwise_xor": "BitwiseXor",
    "bitwise_invert": "BitwiseNot",
}  # fmt: skip
_OF_TRUTH = {
    "bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor", "bitwise_invert": "Not",
}  # fmt: skip
_COMPARISONS = {"less": "Less", "less_equal": "LessOrEqual"}


@_row(*_SAME)
def _same(build: Builder, operation: Operation) -> None:
    name = operation.primitive.name
    is_truth = operation.inputs[0].dtype == dtypes.bool
    operator = _OF_TRUTH.get(name, _SAME[name]) if is_truth else _SAME[name]
    build.elementwise(operator, operation.output(), *operation.inputs)


class _Steps:
    """Several nodes element by element, written as one expression."""

    def __init__(self, build: Builder, *inputs: Tensor) -> None:
        self._build, self.dtype = build, inputs[0].dtype
        self.names, self._form = build.together(inputs)

    def number(self, value: float, dtype: Any = None) -> str:
        return self._build.constant(value, dtype or self.dtype)

    def __call__(self, operator: str, *inputs: str | float, **attributes: Any) -> str:
        names = [x if isinstance(x, str) else self.number(x) for x in inputs]
        name: str = self._build.node(operator, *names, **attributes)
        return name

    def finish(self, result: Tensor, name: str) -> None:
        """Say that the last node holds the result."""
        self._build.hold_as(result, replace(self._form, name=name))


@_row(*_COMPARISONS)
def _compare(build: Builder, operation: Operation) -> None:
    do = _Steps(build, *operation.inputs)
    names = [_as_numbers(build, operation.inputs[0], name) for name in do.names]
    do.finish(operation.output(), do(_COMPARISONS[operation.primitive.name], *names))


@_row("expm1")
def _expm1(build: Builder, operation: Operation) -> None:
    """tanh(x / 2) (exp(x) + 1), which keeps its digits around 0."""
    do = _Steps(build, *operation.inputs)
    (x,) = do.names
    half = do("Tanh", do("Mul", x, 0.5))
    do.finish(operation.output(), do("Mul", half, do("Add", do("Exp", x), 1.0)))


@_row("log1p")
def _log1p(build: Builder, operation: Operation) -> None:
    """log(u) x / (u - 1) with u = 1 + x as it is rounded, which keeps the digits around 0."""
    do = _Steps(build, *operation.inputs)
    (x,) = do.names
    u = do("Add", x, 1.0)
    log = do("Log", u)
    is_small = do("Less", do("Abs", x), 1.0)
    is_none = do("Equal", u, 1.0)
    below = do("Where", is_none, do.number(1.0), do("Sub", u, 1.0))
    near = do("Where", is_none, x, do("Mul", log, do("Div", x, below)))
    do.finish(operation.output(), do("Where", is_small, near, log))


@_row("floor_divide", "remainder")
def _divide_down(build: Builder, operation: Operation) -> None:
    do = _Steps(build, *operation.inputs)
    x, y = do.names
    is_float = do.dtype in dtypes.FLOATING
    if not is_float:
        rest = do("Mod", x, y)
    else:
        rest = do("Mod", x, y, fmod=1)
        is_other = do("Less", do("Mul", do("Sign", rest), do("Sign", y)), 0.0)
        rest = do("Where", is_other, do("Add", rest, y), rest)
    if operation.primitive.name == "floor_divide":
        rest = do("Floor", do("Div", x, y)) if is_float else do("Div", do("Sub", x, rest), y)
    do.finish(operation.output(), rest)


@_row("bitwise_left_shift", "bitwise_right_shift")
def _shift(build: Builder, operation: Operation) -> None:
    """Bits of unsigned numbers; others are multiplied, or divided and rounded down."""
    do = _Steps(build, *operation.inputs)
    x, y = do.names
    is_left = operation.primitive.name == "bitwise_left_shift"
    if do.dtype in dtypes.UNSIGNED:
        name = do("BitShift", x, y, direction="LEFT" if is_left else "RIGHT")
    else:
        factor = do("Pow", do.number(2), y)
        name = do("Mul", x, factor) if is_left else ""
        if not is_left:
            name = do("Div", do("Sub", x, do("Mod", x, factor)), factor)
    do.finish(operation.output(), name)


@_row("atan2")
def _atan2(build: Builder, operation: Operation) -> None:
    do = _Steps(build, *operation.inputs)
    y, x = do.names
    are_infinite = do("And", do("IsInf", x), do("IsInf", y))
    y = do("Where", are_infinite, do("Sign", y), y)
    x = do("Where", are_infinite, do("Sign", x), x)
    is_none = do("Equal", x, 0.0)
    angle = do("Atan", do("Div", y, do("Where", is_none, do.number(1.0), x)))
    upright = do("Mul", do("Sign", y), math.pi / 2)
    angle = do("Where", is_none, upright, angle)

    def is_below(z: str) -> str:  # 1 / -0.0 is -infinity
        return do("Less", do("Where", do("Equal", z, 0.0), do("Div", do.number(1.0), z), z), 0.0)

    turn = do("Where", is_below(y), do.number(-math.pi), do.number(math.pi))
    is_upright = do("And", is_none, do("Not", do("Equal", y, 0.0)))
    is_behind = do("And", is_below(x), do("Not", is_upright))
    name = do("Where", is_behind, do("Add", angle, turn), angle)
    do.finish(operation.output(), name)


@_row("cast")
def _cast(build: Builder, operation: Operation) -> None:
    number = build.number_of(operation.params["dtype"])
    build.elementwise("Cast", operation.output(), *operation.inputs, to=number)


@_row("where")
def _where(build: Builder, operation: Operation) -> None:
    rectified, result = _rectified(operation), operation.output()
    if rectified is not None:
        build.elementwise("Relu", result, rectified)
    elif result.dtype == dtypes.bool:  # ONNX Runtime chooses between numbers
        do = _Steps(build, *operation.inputs)
        condition, x, y = do.names
        do.finish(result, do("Or", do("And", condition, x), do("And", do("Not", condition), y)))
    else:
        build.elementwise("Where", result, *operation.inputs)


def _rectified(operation: Operation) -> Tensor | None:
    """X, if this is `where(x <= 0, 0, x)`."""
    condition, zero, x = operation.inputs
    compared = condition.operation
    if compared is None or compared.primitive is not TABLE["less_equal"]:
        return None
    is_it = compared.inputs[0] is x and _number(compared.inputs[1]) == 0 == _number(zero)
    return x if is_it and x.dtype in dtypes.FLOATING else None


def _number(x: Tensor) -> float | None:
    """The one number that a tensor repeats."""
    while x._value is None and x.operation is not None:
        if x.operation.primitive.name not in ("expand", "reshape"):
            return None
        x = x.operation.inputs[0]
    return float(x.array().reshape(-1)[0]) if x._value is not None and x.size == 1 else None


def _as_numbers(build: Builder, x: Tensor, name: str) -> str:
    """Truth values as numbers, for operators that runtimes have for numbers alone."""
    if x.dtype != dtypes.bool:
        return name
    return build.once("Cast", name, to=build.number_of(dtypes.int32))


def _as_before(build: Builder, x: Tensor, name: str) -> str:
    """Numbers as truth values again, if `x` holds those."""
    return name if x.dtype != dtypes.bool else build.once("Cast", name, to=build.number_of(x.dtype))


# Movement


@_row("reshape")
def _reshape(build: Builder, operation: Operation) -> None:
    (x,), result = operation.inputs, operation.output()
    held, pairs = build.held(x), matched(x.shape, result.shape)
    if pairs is not None and all(axis in pairs for axis in held.axes):
        axes = tuple(pairs[axis] for axis in held.axes)
        build.hold_as(result, Held(held.name, axes, held.shape))
        return
    is_dynamic = [isinstance(n, Size) for n in result.shape]
    if sum(is_dynamic) == 1 and 0 not in result.shape:  # what is left over
        numbers = [-1 if d else n for n, d in zip(result.shape, is_dynamic, strict=True)]
        name = build.node("Reshape", build.whole(x), build.constant(numbers))
    else:
        name = build.node("Reshape", build.whole(x), build.lengths(result.shape), allowzero=1)
    build.hold(result, name)


@_row("permute")
def _permute(build: Builder, operation: Operation) -> None:
    held, order = build.held(operation.inputs[0]), operation.params["axes"]
    axes = tuple(order.index(axis) for axis in held.axes)
    build.hold_as(operation.output(), Held(held.name, axes, held.shape))


@_row("expand")
def _expand(build: Builder, operation: Operation) -> None:
    (x,), result = operation.inputs, operation.output()
    held, new = build.held(x), result.ndim - x.ndim
    axes = tuple(axis + new for axis in held.axes)
    build.hold_as(result, Held(held.name, axes, held.shape))


def _per_axis(held: Held, values: Sequence[Any]) -> list[Any]:
    """A tensor's parameters in the order of the axes of what holds it."""
    return [values[axis] for axis in held.axes]


@_row("pad")
def _pad(build: Builder, operation: Operation) -> None:
    (x,), params, result = operation.inputs, operation.params, operation.output()
    low, high, gaps = params["low"], params["high"], params["interior"]
    order = build.held(x).axes if len(build.held(x).axes) == x.ndim else tuple(range(x.ndim))
    name = _as_numbers(build, x, build.whole(x, order))
    dtype = dtypes.int32 if x.dtype == dtypes.bool else x.dtype
    lengths = [x.shape[axis] for axis in order]
    for place, axis in enumerate(order):
        if gaps[axis]:
            name = _spread(build, name, lengths, place, gaps[axis], params["value"], dtype)
            lengths[place] = (lengths[place] - 1) * (gaps[axis] + 1) + 1
    widths = [low[axis] for axis in order] + [high[axis] for axis in order]
    if any(widths):
        value = build.constant(params["value"], dtype)
        name = build.node("Pad", name, build.lengths(widths), value)
    build.hold(result, _as_before(build, x, name), order)


def _spread(
    build: Builder, name: str, lengths: list[Any], place: int, gap: int, value: Any, dtype: Any
) -> str:
    """Gaps between the elements of an axis: a new axis, padded, joined with it, its end cut off."""
    name = build.node("Unsqueeze", name, build.constant([place + 1]))
    widths = [0] * (len(lengths) + 1)
    after = widths.copy()
    after[place + 1] = gap
    name = build.node("Pad", name, build.constant(widths + after), build.constant(value, dtype))
    joined = [*lengths[:place], lengths[place] * (gap + 1), *lengths[place + 1 :]]
    name = build.node("Reshape", name, build.lengths(joined))
    ends = build.lengths([(lengths[place] - 1) * (gap + 1) + 1])
    cut: str = build.node("Slice", name, build.constant([0]), ends, build.constant([place]))
    return cut


@_row("slice")
def _slice(build: Builder, operation: Operation) -> None:
    (x,), params, result = operation.inputs, operation.params, operation.output()
    held = build.held(x)
    if any(stored != x.shape[axis] for axis, stored in zip(held.axes, held.shape, strict=True)):
        build.hold(x, build.whole(x))
        held = build.held(x)
    steps = _per_axis(held, params["steps"])
    starts, stops = _per_axis(held, params["starts"]), _per_axis(held, params["stops"])
    changed = [
        place for place, axis in enumerate(held.axes)
        if not (starts[place] == 0 and steps[place] == 1 and stops[place] == x.shape[axis])
    ]  # fmt: skip
    name = held.name
    if changed:
        name = build.node(
            "Slice", name,
            build.lengths([starts[i] for i in changed]), build.lengths([stops[i] for i in changed]),
            build.constant(changed), build.lengths([steps[i] for i in changed]),
        )  # fmt: skip
    shape = tuple(result.shape[axis] for axis in held.axes)
    build.hold_as(result, Held(name, held.axes, shape))


@_row("flip")
def _flip(build: Builder, operation: Operation) -> None:
    (x,), result = operation.inputs, operation.output()
    held = build.held(x)
    places = [i for i, axis in enumerate(held.axes) if axis in operation.params["axes"]]
    name = held.name
    if places:
        back = build.constant([-1] * len(places))
        ends = build.constant([np.iinfo(np.int64).min] * len(places))
        name = build.node("Slice", name, back, ends, build.constant(places), back)
    build.hold_as(result, Held(name, held.axes, held.shape))


@_row("concat")
def _concat(build: Builder, operation: Operation) -> None:
    result = operation.output()
    orders = {build.held(x).axes for x in operation.inputs}
    order = orders.pop() if len(orders) == 1 else ()
    if len(order) != result.ndim:
        order = tuple(range(result.ndim))
    names = [build.whole(x, order) for x in operation.inputs]
    build.hold(
        result, build.node("Concat", *names, axis=order.index(operation.params["axis"])), order
    )


@_row("iota")
def _iota(build: Builder, operation: Operation) -> None:
    shape, axis, dtype = (operation.params[key] for key in ("shape", "axis", "dtype"))
    n = shape[axis]
    if isinstance(n, Size):
        scalar = build.once("Squeeze", build.lengths([n]), build.constant([0]))
        name = build.once("Range", build.constant(0), scalar, build.constant(1))
        if dtype != dtypes.int64:
            name = build.once("Cast", name, to=build.number_of(dtype))
    else:
        name = build.constant(np.arange(int(n)), dtype)
    build.hold_as(operation.output(), Held(name, (axis,), (n,)))


@_row("dynamic_slice")
def _dynamic_slice(build: Builder, operation: Operation) -> None:
    x, starts = operation.inputs
    if not x.ndim:
        build.hold_as(operation.output(), build.held(x))
        return
    first = build.node("Cast", build.whole(starts), to=build.number_of(dtypes.int64))
    ends = build.node("Add", first, build.lengths(operation.params["sizes"]))
    axes = build.constant(list(range(x.ndim)))
    build.hold(operation.output(), build.node("Slice", build.whole(x), first, ends, axes))


@_row("dynamic_update_slice")
def _dynamic_update(build: Builder, operation: Operation) -> None:
    x, update, starts = operation.inputs
    if not x.ndim:
        build.hold_as(operation.output(), build.held(update))
        return
    ones = build.node("Expand", build.constant(True, dtypes.bool), build.lengths(update.shape))
    places = build.node("Transpose", build.node("NonZero", ones), perm=[1, 0])
    first = build.node("Cast", build.whole(starts), to=build.number_of(dtypes.int64))
    places = build.node("Add", places, first)
    flat = build.node("Reshape", build.whole(update), build.constant([-1]))
    build.hold(operation.output(), build.node("ScatterND", build.whole(x), places, flat))


# Joining elements

_REDUCTIONS = {"sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin"}


@_row(*_REDUCTIONS)
def _reduce(build: Builder, operation: Operation) -> None:
    (x,), result, axes = operation.inputs, operation.output(), operation.params["axes"]
    held = build.held(x)
    if not axes:
        build.hold_as(result, held)
        return
    order = held.axes if len(held.axes) == x.ndim else tuple(range(x.ndim))
    name = _as_numbers(build, x, build.whole(x, order))
    places = [place for place, axis in enumerate(order) if axis in axes]
    operator = _REDUCTIONS[operation.primitive.name]
    name = _as_before(build, x, build.node(operator, name, build.constant(places), keepdims=0))
    rest = sorted(axis for axis in order if axis not in axes)
    build.hold(result, name, [rest.index(axis) for axis in order if axis not in axes])


@_row("sort")
def _sort(build: Builder, operation: Operation) -> None:
    (x,), axis = operation.inputs, operation.params["axis"]
    count = build.lengths([x.shape[axis]])
    name = _as_numbers(build, x, build.whole(x))
    values, places = build.node("TopK", name, count, outputs=2, axis=axis, largest=0, sorted=1)
    build.hold(operation.output(0), _as_before(build, x, values))
    build.hold(operation.output(1), places)


@_row("argmax")
def _argmax(build: Builder, operation: Operation) -> None:
    (x,), axis = operation.inputs, operation.params["axis"]
    name = _as_numbers(build, x, build.whole(x))
    build.hold(operation.output(), build.node("ArgMax", name, axis=axis, keepdims=0))


@_row("cumulative_sum")
def _running(build: Builder, operation: Operation) -> None:
    axis = build.constant(operation.params["axis"])
    build.hold(operation.output(), build.node("CumSum", build.whole(operation.inputs[0]), axis))


@_row("gather")
def _gather(build: Builder, operation: Operation) -> None:
    x, *indices = operation.inputs
    axis, result = operation.params["axis"], operation.output()
    if len(indices) == 1:
        names = build.whole(x), build.whole(indices[0])
        build.hold(result, build.node("Gather", *names, axis=axis))
        return
    count, rank = len(indices), indices[0].ndim
    front = [*range(axis, axis + count)]
    rest = [i for i in range(x.ndim) if i not in front]
    name = build.node("GatherND", build.whole(x, front + rest), _vectors(build, indices))
    # (indices, before, after) -> (before, indices, after)
    order = [*range(axis, axis + rank), *range(axis), *range(axis + rank, result.ndim)]
    build.hold(result, name, order)


def _vectors(build: Builder, indices: Sequence[Tensor]) -> str:
    """Index tensors side by side along a new last axis, int64."""
    last = build.constant([-1])
    names = [build.node("Unsqueeze", build.whole(index), last) for index in indices]
    joined = build.node("Concat", *names, axis=-1)
    result: str = build.node("Cast", joined, to=build.number_of(dtypes.int64))
    return result


@_row("scatter_add")
def _scatter(build: Builder, operation: Operation) -> None:
    updates, *indices = operation.inputs
    axis, result = operation.params["axis"], operation.output()
    rank, count = indices[0].ndim, len(indices)
    places = [*range(axis, axis + rank)]
    order = places + [i for i in range(updates.ndim) if i not in places]
    front = [*range(axis, axis + count)]
    target = front + [i for i in range(result.ndim) if i not in front]
    zero = build.constant(0, updates.dtype)
    zeros = build.node("Expand", zero, build.lengths([result.shape[i] for i in target]))
    name = build.node(
        "ScatterND", zeros, _vectors(build, indices), build.whole(updates, order), reduction="add"
    )
    build.hold(result, name, target)


# Products and windows


@_row("matmul")
def _matmul(build: Builder, operation: Operation) -> None:
    a, b = operation.inputs
    result, held = operation.output(), [build.held(x) for x in (a, b)]
    is_plain = a.ndim == 2 and a.dtype in dtypes.FLOATING and all(
        sorted(h.axes) == [0, 1] and h.shape == tuple(x.shape[axis] for axis in h.axes)
        for x, h in zip((a, b), held, strict=True)
    )  # fmt: skip
    if is_plain:
        turned = [int(h.axes == (1, 0)) for h in held]
        names = [h.name for h in held]
        build.hold(result, build.node("Gemm", *names, transA=turned[0], transB=turned[1]))
        return
    names = []
    for x, h in zip((a, b), held, strict=True):
        last = dict(zip(h.axes, h.shape, strict=True))
        is_there = all(last.get(axis) == x.shape[axis] for axis in (x.ndim - 2, x.ndim - 1))
        names.append(build.arranged(h, range(x.ndim)) if is_there else build.whole(x))
    name = build.node("MatMul", *names)
    batch = range(a.ndim - 2)
    if any(all(axis not in h.axes or h.shape[h.axes.index(axis)] != n for h in held)
           for axis, n in zip(batch, result.shape, strict=False)):  # fmt: skip
        name = build.node("Expand", name, build.lengths(result.shape))
    build.hold(result, name)


def _first(rank: int) -> tuple[int, ...]:
    """Where the axes of a channels-first image are in a channels-last one."""
    return (0, rank - 1, *range(1, rank - 1))


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [low for low, _ in padding] + [high for _, high in padding]


def _image(build: Builder, x: Tensor, params: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """A channels-first image with its gaps filled and cropped, and the padding that is left."""
    order = _first(x.ndim)
    name, lengths = build.whole(x, order), [x.shape[axis] for axis in order]
    for place, gap in enumerate(params["input_dilation"], 2):
        if gap > 1:
            name = _spread(build, name, lengths, place, gap - 1, 0, x.dtype)
            lengths[place] = (lengths[place] - 1) * gap + 1
    padding = params["padding"]
    if min(_pads(padding)) < 0:
        starts = [max(-low, 0) for low, _ in padding]
        ends = [n - max(-high, 0) for n, (_, high) in zip(lengths[2:], padding, strict=True)]
        places = build.constant(list(range(2, x.ndim)))
        name = build.node("Slice", name, build.lengths(starts), build.lengths(ends), places)
    return name, [(max(low, 0), max(high, 0)) for low, high in padding]


@_row("conv")
def _conv(build: Builder, operation: Operation) -> None:
    x, w = operation.inputs
    params = operation.params
    dims, order = x.ndim - 2, _first(x.ndim)
    name, padding = _image(build, x, params)
    kernel = build.whole(w, (w.ndim - 1, w.ndim - 2, *range(dims)))
    name = build.node(
        "Conv", name, kernel, kernel_shape=list(map(int, w.shape[:dims])),
        strides=params["stride"], pads=_pads(padding), dilations=params["kernel_dilation"],
        group=params["groups"],
    )  # fmt: skip
    build.hold(operation.output(), name, order)


@_row("window_max")
def _window_max(build: Builder, operation: Operation) -> None:
    (x,), params = operation.inputs, operation.params
    order = _first(x.ndim)
    name = build.node(
        "MaxPool", build.whole(x, order), kernel_shape=params["window"], strides=params["stride"],
        pads=_pads(params["padding"]),
    )  # fmt: skip
    build.hold(operation.output(0), name, order)


@_row("window_sum")
def _window_sum(build: Builder, operation: Operation) -> None:
    (x,), params = operation.inputs, operation.params
    order, window = _first(x.ndim), params["window"]
    name, padding = _image(build, x, params)
    pads = _pads(padding)
    if any(pads):
        low, high = pads[: len(window)], pads[len(window) :]
        widths = build.constant([0, 0, *low, 0, 0, *high])
        name = build.node("Pad", name, widths, build.constant(0, x.dtype))
    name = build.node("AveragePool", name, kernel_shape=window, strides=params["stride"])
    name = build.node("Mul", name, build.constant(math.prod(window), x.dtype))
    build.hold(operation.output(), name, order)


# What carries a body


@_row("composite")
def _composite(build: Builder, operation: Operation) -> None:
    row = COMPOSITES.get(operation.params["name"])
    if row is None or not row(build, operation):
        _inline(build, operation.params["body"], operation)


def _inline(build: Builder, body: Graph, operation: Operation) -> None:
    _same_parts(build, body.inputs, operation.inputs)
    lower(build, body)
    _same_parts(build, operation.outputs, body.outputs)


@_row("repeat")
def _repeat(build: Builder, operation: Operation) -> None:
    """ONNX has no loop whose steps have weights of their own: each time is written out."""
    body: Graph = operation.params["body"]

    def once(*inputs: Tensor) -> list[Tensor]:
        _same_parts(build, body.inputs, inputs)
        lower(build, body)
        results = [Tensor(x.shape, x.dtype) for x in body.outputs]
        _same_parts(build, results, body.outputs)
        return results

    results = unrolled(operation.inputs, once, **operation.params)
    _same_parts(build, operation.outputs, results)


def _same_parts(build: Builder, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Say that tensors are held as others are."""
    for one, other in zip(parts(build, tensors), parts(build, others), strict=True):
        build.hold_as(one, build.held(other))


@_row("scan")
def _scan(build: Builder, operation: Operation) -> None:
    """ONNX's own Scan: carried state, then what is cut into steps; the rest is read by name."""
    params, body = operation.params, operation.params["body"]
    begins, ends = params["carries"], params["carries"] + params["sequences"]
    outer = parts(build, operation.inputs[ends:])
    for x, other in zip(parts(build, body.inputs[ends:]), outer, strict=True):
        build.hold(x, build.whole(other))
    names = [build.whole(x) for x in parts(build, operation.inputs[:ends])]
    carries = len(parts(build, operation.inputs[:begins]))
    sequences = len(names) - carries
    if not sequences:
        names.append(build.node("Expand", build.constant(0), build.lengths([params["length"]])))
    outside, build.nodes = build.nodes, []
    inputs = []
    for inner in parts(build, body.inputs[:ends]):
        name = build.fresh("step")
        build.hold(inner, name)
        inputs.append(build.value_info(name, inner))
    if not sequences:
        inputs.append(
            build.helper.make_tensor_value_info(
                build.fresh("step"), build.number_of(dtypes.int64), []
            )
        )
    with build.apart():
        lower(build, body)
        outputs = [
            build.value_info(build.node("Identity", build.whole(x)), x)
            for x in parts(build, body.outputs)
        ]
    inside, build.nodes = build.nodes, outside
    graph = build.helper.make_graph(inside, "step", inputs, outputs)
    stacked, back = len(outputs) - carries, int(params["reverse"])
    attributes: dict[str, Any] = {"scan_input_directions": [back] * max(sequences, 1)}
    if stacked:
        attributes["scan_output_directions"] = [back] * stacked
    results = build.node(
        "Scan", *names, outputs=len(outputs), body=graph, num_scan_inputs=max(sequences, 1),
        **attributes,
    )  # fmt: skip
    results = [results] if len(outputs) == 1 else results
    for x, name in zip(parts(build, operation.outputs), results, strict=True):
        build.hold(x, name)


# Composites that ONNX has an operator for


def _statics(operation: Operation, kind: type) -> list[Any]:
    return [x for x in operation.params["statics"]["leaves"] if type(x) is kind]


def _named(*names: str) -> Callable[[Any], Any]:
    def add(function: Callable[[Builder, Operation], bool]) -> Any:
        COMPOSITES.update(dict.fromkeys(names, function))
        return function

    return add


@_named("softmax", "log_softmax")
def _softmax(build: Builder, operation: Operation) -> bool:
    (x,), axis = operation.inputs, (_statics(operation, int) or [-1])[0]
    operator = "Softmax" if operation.params["name"] == "softmax" else "LogSoftmax"
    name = build.node(operator, build.whole(x), axis=axis)
    build.hold(operation.output(), name)
    return True


@_named("sigmoid", "softplus", "elu", "gelu")
def _activation(build: Builder, operation: Operation) -> bool:
    name = operation.params["name"]
    attributes: dict[str, Any] = {}
    if name == "elu":
        attributes["alpha"] = float((_statics(operation, float) + _statics(operation, int)
                                     + [1.0])[0])  # fmt: skip
    if name == "gelu":
        attributes["approximate"] = (_statics(operation, str) or ["none"])[0]
    build.elementwise(name.capitalize(), operation.output(), *operation.inputs, **attributes)
    return True


@_named("layer_norm")
def _layer_norm(build: Builder, operation: Operation) -> bool:
    if len(operation.inputs) != 3 or operation.inputs[0].dtype != dtypes.float32:
        return False
    x, weight, _ = operation.inputs
    name = build.node(
        "LayerNormalization", *(build.whole(part) for part in operation.inputs),
        axis=x.ndim - weight.ndim, epsilon=(_statics(operation, float) or [1e-5])[0],
    )  # fmt: skip
    build.hold(operation.output(), name)
    return True


@_named("batch_norm_inference")
def _batch_norm(build: Builder, operation: Operation) -> bool:
    if len(operation.inputs) != 5:
        return False
    x, mean, var, weight, bias = operation.inputs
    order = _first(x.ndim)
    name = build.node(
        "BatchNormalization", build.whole(x, order),
        *(build.whole(part) for part in (weight, bias, mean, var)),
        epsilon=_statics(operation, float)[-1],
    )  # fmt: skip
    build.hold(operation.output(), name, order)
    return True
