"""What each primitive is in JAX: the table of the XLA executor.

A row takes the lowering that it is part of, the operation's inputs as JAX arrays and its
parameters, and gives what the primitive's NumPy meaning gives. Indices need not be looked at here:
the program's checks do that, and no value that they refuse reaches a cell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from palto.tensor.primitives.control import unrolled
from palto.tensor.primitives.random import KEY_STEPS, MULTIPLIERS, ROUNDS

if TYPE_CHECKING:
    from palto.compiler.xla.lowering import Lowering

Array = Any
Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]
Row = Callable[..., Any]

#: Products are computed in their operands' precision, also where the hardware offers less.
_PRECISION = lax.Precision.HIGHEST


def _plain(function: Callable[..., Any]) -> Row:
    """A row that does not need to know its lowering."""

    def row(lowering: Lowering, *inputs: Array, **params: Any) -> Any:
        return function(*inputs, **params)

    return row


# Elementwise


def _cast(x: Array, *, dtype: Any) -> Array:
    if jnp.iscomplexobj(x) and np.dtype(dtype).kind != "c":
        x = x.real
    return x.astype(dtype)


# Movement


def _pad(x: Array, *, low: Ints, high: Ints, interior: Ints, value: Any) -> Array:
    widths = tuple(zip(low, high, interior, strict=True))
    return lax.pad(x, jnp.asarray(value).astype(x.dtype), widths)


def _places(starts: Array, count: int) -> list[Array]:
    return [starts[axis].astype(jnp.int64) for axis in range(count)]


def _dynamic_slice(x: Array, starts: Array, *, sizes: Ints) -> Array:
    return lax.dynamic_slice(x, _places(starts, x.ndim), sizes)


def _dynamic_update_slice(x: Array, update: Array, starts: Array) -> Array:
    return lax.dynamic_update_slice(x, update, _places(starts, x.ndim))


def _iota(*, shape: Ints, axis: int, dtype: Any) -> Array:
    return lax.broadcasted_iota(jnp.int64, shape, axis).astype(dtype)


# Contractions


def _conv(
    x: Array,
    w: Array,
    *,
    stride: Ints,
    padding: Pairs,
    input_dilation: Ints,
    kernel_dilation: Ints,
    groups: int,
) -> Array:
    last = x.ndim - 1
    space = tuple(range(1, last))
    return lax.conv_general_dilated(
        x, w, stride, padding,
        lhs_dilation=input_dilation, rhs_dilation=kernel_dilation, feature_group_count=groups,
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, last, *space), (last, last - 1, *range(last - 1)), (0, last, *space)
        ),
        precision=_PRECISION,
    )  # fmt: skip


# Windows: the pixels at one place of every window are a slice in steps, so a window is a few slices


def _offsets(window: Ints) -> Iterator[tuple[int, Ints]]:
    return enumerate(itertools.product(*map(range, window)))


def _pixels(padded: Array, offset: Ints, out: Ints, stride: Ints) -> Array:
    """Of every window the pixel at `offset`."""
    starts = (0, *offset, 0)
    reach = [o + (m - 1) * step + 1 for o, m, step in zip(offset, out, stride, strict=True)]
    return lax.slice(
        padded, starts, (padded.shape[0], *reach, padded.shape[-1]), (1, *stride, 1)
    )  # fmt: skip


def _bordered(x: Array, padding: Pairs, value: Any) -> Array:
    widths = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), widths)


def _window_max(x: Array, *, window: Ints, stride: Ints, padding: Pairs) -> tuple[Array, Array]:
    padded = _bordered(x, padding, -math.inf)
    inside = _bordered(jnp.ones((1, *x.shape[1:-1], 1), jnp.bool_), padding, False)
    out = tuple(
        (n - k) // step + 1 for n, k, step in zip(padded.shape[1:-1], window, stride, strict=True)
    )
    best = jnp.full((x.shape[0], *out, x.shape[-1]), -math.inf, x.dtype)
    seen = jnp.full(best.shape, -1, jnp.int32)
    for position, offset in _offsets(window):
        candidate = _pixels(padded, offset, out, stride)
        better = (candidate > best) | (jnp.isnan(candidate) & ~jnp.isnan(best)) | (seen < 0)
        better &= _pixels(inside, offset, out, stride)
        best = jnp.where(better, candidate, best)
        seen = jnp.where(better, jnp.int32(position), seen)
    return best, seen


def _window_take(x: Array, indices: Array, *, window: Ints, stride: Ints, padding: Pairs) -> Array:
    padded = _bordered(x, padding, 0)
    result = jnp.zeros(indices.shape, x.dtype)
    for position, offset in _offsets(window):
        here = _pixels(padded, offset, indices.shape[1:-1], stride)
        result = jnp.where(indices == position, here, result)
    return result


def _window_put(
    g: Array, indices: Array, *, space: Ints, window: Ints, stride: Ints, padding: Pairs
) -> Array:
    result = jnp.zeros((g.shape[0], *space, g.shape[-1]), g.dtype)
    zero = jnp.zeros((), g.dtype)
    for position, offset in _offsets(window):
        widths = [(0, 0, 0)]
        for n, m, o, step, (low, _) in zip(
            space, g.shape[1:-1], offset, stride, padding, strict=True
        ):
            before = o - low
            widths.append((before, n - before - (m - 1) * step - 1, step - 1))
        widths.append((0, 0, 0))
        result = result + lax.pad(jnp.where(indices == position, g, zero), zero, widths)
    return result


def _window_sum(
    x: Array, *, window: Ints, stride: Ints, padding: Pairs, input_dilation: Ints
) -> Array:
    spread = zip(padding, input_dilation, strict=True)
    widths = ((0, 0, 0), *((low, high, gap - 1) for (low, high), gap in spread), (0, 0, 0))
    padded = lax.pad(x, jnp.zeros((), x.dtype), widths)
    return lax.reduce_window(
        padded, jnp.zeros((), x.dtype), lax.add, (1, *window, 1), (1, *stride, 1), "valid"
    )


# Indexing


def _gather(lowering: Lowering, x: Array, *indices: Array, axis: int, role: str) -> Array:
    rest = x.shape[axis + len(indices) :]
    if 0 in x.shape[axis : axis + len(indices)]:  # no index is in range
        return jnp.zeros((*x.shape[:axis], *indices[0].shape, *rest), x.dtype)
    where = (slice(None),) * axis + tuple(index.astype(jnp.int64) for index in indices)
    return lowering.shared(x.at[where].get(mode="clip"))


def _scatter_add(updates: Array, *indices: Array, sizes: Ints, axis: int, role: str) -> Array:
    rest = updates.shape[axis + indices[0].ndim :]
    result = jnp.zeros((*updates.shape[:axis], *sizes, *rest), updates.dtype)
    if 0 in sizes:
        return result
    where = (slice(None),) * axis + tuple(index.astype(jnp.int64) for index in indices)
    return result.at[where].add(updates, mode="drop")


# Order


def _sort(x: Array, *, axis: int) -> tuple[Array, Array]:
    places = lax.broadcasted_iota(jnp.int64, x.shape, axis)
    found = lax.sort((x, places), dimension=axis, is_stable=True, num_keys=1)
    return found[0], found[1]


def _fft(x: Array, *, axis: int, inverse: bool) -> Array:
    if inverse:
        return jnp.fft.ifft(x, axis=axis, norm="forward")
    return jnp.fft.fft(x, axis=axis)


def _random_bits(state: Array, *, shape: Ints) -> Array:
    """See :mod:`palto.tensor.primitives.random`."""
    low, half = jnp.uint64(0xFFFFFFFF), jnp.uint64(32)
    seed, draw = (lax.bitcast_convert_type(state[i], jnp.uint64) for i in range(2))
    size = math.prod(shape)
    block = lax.iota(jnp.uint64, -(-size // 4))
    words = [block & low, block >> half, draw & low, draw >> half]
    key = [seed & low, seed >> half]
    for _ in range(ROUNDS):
        first, second = words[0] * jnp.uint64(MULTIPLIERS[0]), words[2] * jnp.uint64(MULTIPLIERS[1])
        words = [
            (second >> half) ^ words[1] ^ key[0], second & low,
            (first >> half) ^ words[3] ^ key[1], first & low,
        ]  # fmt: skip
        key = [(k + jnp.uint64(step)) & low for k, step in zip(key, KEY_STEPS, strict=True)]
    drawn = jnp.stack(jnp.broadcast_arrays(*words), axis=-1).astype(jnp.uint32)
    return drawn.reshape(-1)[:size].reshape(shape)


# Rows with a body


def _composite(
    lowering: Lowering, *inputs: Array, body: Any, name: str, recompute: bool, **_: Any
) -> Sequence[Array]:
    if recompute and name.endswith(".gradient"):
        # XLA would find the forward's results and keep them, which a checkpoint is there to avoid.
        inputs = lax.optimization_barrier(inputs)
    return lowering.evaluate(body, inputs)


def _scan(
    lowering: Lowering,
    *inputs: Array,
    body: Any,
    carries: int,
    sequences: int,
    length: int,
    reverse: bool,
) -> Sequence[Array]:
    carry, rest = inputs[:carries], inputs[carries:]
    xs, constants = rest[:sequences], rest[sequences:]

    def step(state: Any, x: Any) -> Any:
        results, failures = lowering.inside(body, (*state, *x, *constants))
        return tuple(results[:carries]), (tuple(results[carries:]), failures)

    last, (stacked, failures) = lax.scan(step, carry, xs, length=length, reverse=reverse)
    lowering.add_of_steps(failures)
    return (*last, *stacked)


def _repeat(lowering: Lowering, *inputs: Array, body: Any, **others: Any) -> Sequence[Array]:
    return unrolled(inputs, lambda *arrays: lowering.evaluate(body, arrays), **others)


_PLAIN: dict[str, Callable[..., Any]] = {
    "negative": jnp.negative,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "round": jnp.rint,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tanh": jnp.tanh,
    "erf": lax.erf,
    "bitwise_invert": jnp.bitwise_invert,
    "abs": jnp.abs,
    "real": jnp.real,
    "imag": jnp.imag,
    "cast": _cast,
    "detach": lambda x: x,
    "add": jnp.add,
    "subtract": jnp.subtract,
    "multiply": jnp.multiply,
    "divide": jnp.divide,
    "floor_divide": jnp.floor_divide,
    "remainder": jnp.remainder,
    "pow": jnp.power,
    "atan2": jnp.arctan2,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "equal": jnp.equal,
    "less": jnp.less,
    "less_equal": jnp.less_equal,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    "bitwise_left_shift": jnp.left_shift,
    "bitwise_right_shift": jnp.right_shift,
    "complex": lax.complex,
    "where": jnp.where,
    "sum": lambda x, *, axes: jnp.sum(x, axes, dtype=x.dtype),
    "max": lambda x, *, axes: jnp.max(x, axes),
    "min": lambda x, *, axes: jnp.min(x, axes),
    "reshape": lambda x, *, shape: jnp.reshape(x, shape),
    "permute": lambda x, *, axes: jnp.transpose(x, axes),
    "expand": lambda x, *, shape: jnp.broadcast_to(x, shape),
    "pad": _pad,
    "slice": lambda x, *, starts, stops, steps: lax.slice(x, starts, stops, steps),
    "flip": lambda x, *, axes: lax.rev(x, axes),
    "concat": lambda *inputs, axis: lax.concatenate(inputs, axis),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "iota": _iota,
    "matmul": lambda a, b: jnp.matmul(a, b, precision=_PRECISION),
    "conv": _conv,
    "window_max": _window_max,
    "window_take": _window_take,
    "window_put": _window_put,
    "window_sum": _window_sum,
    "scatter_add": _scatter_add,
    "sort": _sort,
    "argmax": lambda x, *, axis: jnp.argmax(x, axis).astype(jnp.int64),
    "cumulative_sum": lambda x, *, axis: lax.cumsum(x, axis),
    "fft": _fft,
    "random_bits": _random_bits,
}

#: By the primitive's name.
TABLE: dict[str, Row] = {
    **{name: _plain(function) for name, function in _PLAIN.items()},
    "gather": _gather,
    "composite": _composite,
    "scan": _scan,
    "repeat": _repeat,
}
