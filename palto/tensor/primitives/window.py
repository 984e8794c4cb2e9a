"""Window reductions: pooling, over channels-last images of one to three dimensions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.tensor import Shape, Tensor

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def require_geometry(name: str, dims: int, padding: Pairs, **steps: Ints) -> None:
    """Demand a pair of paddings, and a step of each kind of at least 1, per axis of space.

    Raises:
        ValueError: anything else.
    """
    for what, values in steps.items():
        if not isinstance(values, tuple) or len(values) != dims or min(values) < 1:
            raise ValueError(
                f"{name}: {what} wants a tuple of {dims} whole numbers of at least 1, got {values}"
            )
    pairs = isinstance(padding, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in padding
    )
    if not pairs or len(padding) != dims:
        raise ValueError(
            f"{name}: padding wants a tuple of {dims} pairs (before, after), got {padding}"
        )


def dilate(x: Array, padding: Pairs, dilation: Ints, value: Any) -> Array:
    """`x` (N, ...space, C) with gaps between the pixels and a border; negative borders crop."""
    if all(pair == (0, 0) for pair in padding) and all(gap == 1 for gap in dilation):
        return x
    spread = [max((n - 1) * gap + 1, 0) for n, gap in zip(x.shape[1:-1], dilation, strict=True)]
    shape = [n + low + high for n, (low, high) in zip(spread, padding, strict=True)]
    result = np.full((x.shape[0], *shape, x.shape[-1]), value, x.dtype)
    target, source = [], []
    for n, length, gap, (low, _) in zip(x.shape[1:-1], shape, dilation, padding, strict=True):
        first = -(low // gap) if low < 0 else 0
        last = min(n, -(-(length - low) // gap))
        start = low + first * gap
        source.append(slice(first, max(last, first)))
        target.append(slice(start, start + max((last - first - 1) * gap + 1, 0), gap))
    result[(slice(None), *target)] = x[(slice(None), *source)]
    return result


def windows(x: Array, window: Ints, stride: Ints, dilation: Ints) -> Array:
    """A view (N, ...out, ...window, C) of every window of `x` (N, ...space, C)."""
    batch, *space, channels = x.shape
    steps = x.strides[1:-1]
    out = [
        (n - (k - 1) * gap - 1) // step + 1
        for n, k, gap, step in zip(space, window, dilation, stride, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(
        x,
        (batch, *out, *window, channels),
        (
            x.strides[0],
            *(size * step for size, step in zip(steps, stride, strict=True)),
            *(size * gap for size, gap in zip(steps, dilation, strict=True)),
            x.strides[-1],
        ),
        writeable=False,
    )


def _pooled(space: Shape, window: Ints, stride: Ints, padding: Pairs, name: str) -> Shape:
    out = []
    for n, k, step, (low, high) in zip(space, window, stride, padding, strict=True):
        if n + low + high < k:
            raise ValueError(
                f"{name}: a window of {window} does not fit into an image of {space} "
                f"with padding {padding}"
            )
        out.append((n + low + high - k) // step + 1)
    return tuple(out)


def _require_image(name: str, x: Tensor, window: Ints) -> None:
    if x.ndim != len(window) + 2:
        raise ValueError(
            f"{name} with a window of {window} wants (N, ...space, C) with {len(window)} axes of "
            f"space, got shape {x.shape}"
        )
    if x.dtype not in dtypes.FLOATING:
        raise TypeError(f"{name} wants float32 or float64, got {x.dtype.name}")


def _places(space: Shape, out: Shape, offset: Ints, stride: Ints, padding: Pairs) -> Any:
    """Which outputs' windows have a pixel at `offset`, and which pixel that is."""
    outputs, pixels = [], []
    for n, m, o, step, (low, _) in zip(space, out, offset, stride, padding, strict=True):
        first = max(0, -(-(low - o) // step))
        last = min(m - 1, (n - 1 + low - o) // step)
        count = max(last - first + 1, 0)
        outputs.append(slice(first, first + count))
        start = first * step + o - low
        pixels.append(slice(start, start + max((count - 1) * step + 1, 0), step))
    return (slice(None), *outputs), (slice(None), *pixels)


# max: the values, and where in its window each was found, which is all that backprop needs


def _max_infer(x: Tensor, *, window: Ints, stride: Ints, padding: Pairs) -> tuple[Spec, Spec]:
    _require_image("max pooling", x, window)
    require_geometry("max pooling", len(window), padding, window=window, stride=stride)
    for k, (low, high) in zip(window, padding, strict=True):
        if 2 * max(low, high) > k:
            raise ValueError(f"max pooling: padding {padding} is more than half of {window}")
    out = _pooled(x.shape[1:-1], window, stride, padding, "max pooling")
    shape = (x.shape[0], *out, x.shape[-1])
    return Spec(shape, x.dtype), Spec(shape, dtypes.int32)


def _max_numpy(x: Array, *, window: Ints, stride: Ints, padding: Pairs) -> tuple[Array, Array]:
    out = _pooled(x.shape[1:-1], window, stride, padding, "max pooling")
    shape = (x.shape[0], *out, x.shape[-1])
    values, indices = np.full(shape, -np.inf, x.dtype), np.full(shape, -1, np.int32)
    for position, offset in enumerate(itertools.product(*map(range, window))):
        outputs, pixels = _places(x.shape[1:-1], out, offset, stride, padding)
        best, seen, candidate = values[outputs], indices[outputs], x[pixels]
        better = (candidate > best) | np.isnan(candidate) & ~np.isnan(best) | (seen < 0)
        np.copyto(best, candidate, where=better)
        np.copyto(seen, np.int32(position), where=better)
    return values, indices


def _max_gradient(operation: Operation, g: Tensor, _: Tensor | None) -> Gradients:
    x = operation.inputs[0]
    return [F.window_put(g, operation.output(1), space=x.shape[1:-1], **operation.params)]


window_max = Primitive(
    "window_max",
    _max_infer,
    _max_numpy,
    _max_gradient,
    flops=lambda op: op.output().size * math.prod(op.params["window"]),
)


def _take_infer(x: Tensor, indices: Tensor, *, window: Ints, stride: Ints, padding: Pairs) -> Spec:
    return Spec(indices.shape, x.dtype)


def _take_numpy(x: Array, indices: Array, *, window: Ints, stride: Ints, padding: Pairs) -> Array:
    result = np.zeros(indices.shape, x.dtype)
    for position, offset in enumerate(itertools.product(*map(range, window))):
        outputs, pixels = _places(x.shape[1:-1], indices.shape[1:-1], offset, stride, padding)
        np.copyto(result[outputs], x[pixels], where=indices[outputs] == position)
    return result


def _take_gradient(operation: Operation, g: Tensor) -> Gradients:
    x, indices = operation.inputs
    return [F.window_put(g, indices, space=x.shape[1:-1], **operation.params), None]


#: From each window the pixel that `indices` names.
window_take = Primitive("window_take", _take_infer, _take_numpy, _take_gradient)


def _put_infer(
    g: Tensor, indices: Tensor, *, space: Shape, window: Ints, stride: Ints, padding: Pairs
) -> Spec:
    return Spec((g.shape[0], *space, g.shape[-1]), g.dtype)


def _put_numpy(
    g: Array, indices: Array, *, space: Shape, window: Ints, stride: Ints, padding: Pairs
) -> Array:
    result = np.zeros((g.shape[0], *space, g.shape[-1]), g.dtype)
    for position, offset in enumerate(itertools.product(*map(range, window))):
        outputs, pixels = _places(space, g.shape[1:-1], offset, stride, padding)
        result[pixels] += np.where(indices[outputs] == position, g[outputs], g.dtype.type(0))
    return result


def _put_gradient(operation: Operation, g: Tensor) -> Gradients:
    params = {k: v for k, v in operation.params.items() if k != "space"}
    return [F.window_take(g, operation.inputs[1], **params), None]


#: Each value added to the pixel of its window that `indices` names: the transpose of window_take.
window_put = Primitive("window_put", _put_infer, _put_numpy, _put_gradient)

# sum


def _sum_infer(
    x: Tensor, *, window: Ints, stride: Ints, padding: Pairs, input_dilation: Ints
) -> Spec:
    _require_image("sum pooling", x, window)
    steps = {"window": window, "stride": stride, "input_dilation": input_dilation}
    require_geometry("sum pooling", len(window), padding, **steps)
    space = tuple(
        max((n - 1) * gap + 1, 0) for n, gap in zip(x.shape[1:-1], input_dilation, strict=True)
    )
    out = _pooled(space, window, stride, padding, "sum pooling")
    return Spec((x.shape[0], *out, x.shape[-1]), x.dtype)


def _sum_numpy(
    x: Array, *, window: Ints, stride: Ints, padding: Pairs, input_dilation: Ints
) -> Array:
    padded = dilate(x, padding, input_dilation, 0)
    view = windows(padded, window, stride, (1,) * len(window))
    result = np.zeros(view.shape[: len(window) + 1] + x.shape[-1:], x.dtype)
    front = (slice(None),) * (len(window) + 1)
    for offset in itertools.product(*map(range, window)):
        result += view[front + offset]
    return result


def _sum_gradient(operation: Operation, g: Tensor) -> Gradients:
    x, params = operation.inputs[0], operation.params
    padding = []
    for axis, k in enumerate(params["window"]):
        spread = (x.shape[axis + 1] - 1) * params["input_dilation"][axis] + 1
        low = k - 1 - params["padding"][axis][0]
        covered = (g.shape[axis + 1] - 1) * params["stride"][axis] + 1
        padding.append((low, spread + k - 1 - covered - low))
    return [
        F.window_sum(
            g,
            window=params["window"],
            stride=params["input_dilation"],
            padding=tuple(padding),
            input_dilation=params["stride"],
        )
    ]


window_sum = Primitive(
    "window_sum",
    _sum_infer,
    _sum_numpy,
    _sum_gradient,
    flops=lambda op: op.output().size * math.prod(op.params["window"]),
)
