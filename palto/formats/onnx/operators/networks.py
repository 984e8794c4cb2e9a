"""Layers: convolution, pooling, normalisation, dropout. ONNX's images are (N, C, ...space)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from palto.formats.onnx.operators.elementwise import numpy_dtype
from palto.formats.onnx.table import Call, operator
from palto.nn import functional as N
from palto.tensor import Tensor, dtypes, random
from palto.tensor import functions as F

Pairs = tuple[tuple[int, int], ...]
#: Pixels, and where each lies.
Pixels = tuple[Tensor, Tensor]


def _channels_last(x: Tensor) -> Tensor:
    return F.permute_dims(x, (0, *range(2, x.ndim), 1))


def _channels_first(x: Tensor) -> Tensor:
    return F.permute_dims(x, (0, x.ndim - 1, *range(1, x.ndim - 1)))


#: Windows of more places are joined along one axis after the other.
_LARGEST_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel or window goes over an image.

    Attributes:
        size, stride, dilation: along each axis of space.
        padding: before and after, as the model says.
        extra: more of it after, so that a last window fits that begins inside.
        out: the length of the result along each axis.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: Pairs
    extra: tuple[int, ...]
    out: tuple[int, ...]


def _window(call: Call, x: Tensor, size: Sequence[int]) -> Window:
    dims = x.ndim - 2
    if not 1 <= dims <= 3 or len(size) != dims:
        raise call.refusal(f"a window of {tuple(size)} over an image of shape {x.shape}")
    stride = call.attribute("strides", (1,) * dims)
    dilation = call.attribute("dilations", (1,) * dims)
    pads = call.attribute("pads", (0,) * (2 * dims))
    if len(stride) != dims or len(dilation) != dims or len(pads) != 2 * dims:
        raise call.error("strides, dilations or pads of another number of axes")
    if min((*size, *stride, *dilation)) < 1 or min(pads) < 0:
        raise call.error("sizes, strides and dilations are at least 1, pads at least 0")
    auto = call.attribute("auto_pad", "NOTSET")
    padding, extra, out = [], [], []
    for axis, n in enumerate(x.shape[2:]):
        step = stride[axis]
        reach = (size[axis] - 1) * dilation[axis] + 1
        low, high = pads[axis], pads[axis + dims]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-n // step) - 1) * step + reach - n, 0)
            low = total // 2 if auto == "SAME_UPPER" else total - total // 2
            high = total - low
        elif auto == "VALID":
            low = high = 0
        room = n + low + high - reach
        count = room // step + 1
        if call.attribute("ceil_mode", 0) and room % step and count * step < n + low:
            count += 1
        if room < 0:
            raise call.error(f"a window that reaches over {reach} in an axis of {n + low + high}")
        padding.append((low, high))
        extra.append(max((count - 1) * step + reach - (n + low + high), 0))
        out.append(count)
    call.bounded((*x.shape[:2], *(n + a + b for n, (a, b) in zip(x.shape[2:], padding,
                                                                 strict=True))))  # fmt: skip
    return Window(tuple(size), tuple(stride), tuple(dilation), tuple(padding), tuple(extra),
                  tuple(out))  # fmt: skip


# Convolution


@operator("Conv")
def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Convolution with kernels (O, C / groups, ...kernel)."""
    window = _window(call, x, call.attribute("kernel_shape", w.shape[2:]))
    call.bounded((x.shape[0], w.shape[0], *window.out))
    result = F.conv(
        _channels_last(x),
        F.permute_dims(w, (*range(2, w.ndim), 1, 0)),
        stride=window.stride,
        padding=window.padding,
        kernel_dilation=window.dilation,
        groups=call.attribute("group", 1),
    )
    return _channels_first(result if b is None else result + b)


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """The transpose of a convolution; kernels (C, O / groups, ...kernel)."""
    dims, groups = x.ndim - 2, call.attribute("group", 1)
    if not 1 <= dims <= 3 or w.ndim != x.ndim or w.shape[0] % groups:
        raise call.refusal(f"a kernel of shape {w.shape} for an image of shape {x.shape}")
    kernel = w.shape[2:]
    stride = call.attribute("strides", (1,) * dims)
    dilation = call.attribute("dilations", (1,) * dims)
    after = call.attribute("output_padding", (0,) * dims)
    pads = call.attribute("pads", (0,) * (2 * dims))
    auto = call.attribute("auto_pad", "NOTSET")
    target = call.attribute("output_shape")
    if target is not None:
        target = target[-dims:]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        target = tuple(n * step for n, step in zip(x.shape[2:], stride, strict=True))
    padding = []
    for axis, n in enumerate(x.shape[2:]):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        low, high = pads[axis], pads[axis + dims]
        if target is not None:
            total = stride[axis] * (n - 1) + after[axis] + reach - target[axis]
            low = total // 2 if auto == "SAME_UPPER" else total - total // 2
            high = total - low
        padding.append((reach - 1 - low, reach - 1 - high + after[axis]))
    spread = [(n - 1) * step + 1 + low + high for n, step, (low, high)
              in zip(x.shape[2:], stride, padding, strict=True)]  # fmt: skip
    call.bounded((x.shape[0], max(x.shape[1], w.shape[1] * groups), *spread))
    each = w.shape[0] // groups
    turned = F.reshape(w, (groups, each, *w.shape[1:]))
    turned = F.permute_dims(turned, (*range(3, 3 + dims), 1, 0, 2))
    turned = F.reshape(turned, (*kernel, each, groups * w.shape[1]))
    result = F.conv(
        _channels_last(x),
        F.flip(turned, axis=tuple(range(dims))),
        padding=tuple(padding),
        input_dilation=tuple(stride),
        kernel_dilation=tuple(dilation),
        groups=groups,
    )
    return _channels_first(result if b is None else result + b)


# Pooling


def _padded(x: Tensor, window: Window, value: float) -> Tensor:
    widths = [(low, high + more) for (low, high), more
              in zip(window.padding, window.extra, strict=True)]  # fmt: skip
    return F.pad(x, [(0, 0), (0, 0), *widths], value=value)


def _places(x: Tensor, window: Window, axis: int) -> Iterator[Tensor]:
    """For each place in the window along one axis, that pixel of all windows."""
    step, gap, n = window.stride[axis], window.dilation[axis], window.out[axis]
    for k in range(window.size[axis]):
        where = slice(k * gap, k * gap + (n - 1) * step + 1, step)
        yield x[(*(slice(None),) * (axis + 2), where)]


def _joined(x: Tensor, window: Window, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What joins the pixels of each window, one axis after the other."""
    for axis in range(len(window.size)):
        x = functools.reduce(combine, _places(x, window, axis))
    return x


def _is_small(window: Window) -> bool:
    """Whether Palto's own pooling does it, which goes over each place in the window."""
    return set(window.dilation) == {1} and math.prod(window.size) <= _LARGEST_WINDOW


def _summed(x: Tensor, window: Window) -> Tensor:
    """The sum of each window, nothing beyond the border."""
    padded = _padded(x, window, 0)
    if not _is_small(window):
        return _joined(padded, window, F.add)
    none = ((0, 0),) * len(window.size)
    pixels = F.window_sum(
        _channels_last(padded), window=window.size, stride=window.stride, padding=none
    )
    return _channels_first(pixels)


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean of each window, of its pixels alone or of the padding, too."""
    window = _window(call, x, call.attribute("kernel_shape"))
    counts = np.ones((), np.int64)
    for axis, n in enumerate(x.shape[2:]):
        first = np.arange(window.out[axis]) * window.stride[axis] - window.padding[axis][0]
        places = first[:, None] + np.arange(window.size[axis]) * window.dilation[axis]
        low, high = window.padding[axis] if call.attribute("count_include_pad", 0) else (0, 0)
        inside = ((places >= -low) & (places < n + high)).sum(1)
        counts = np.multiply.outer(counts, inside)
    return _summed(x, window) / F.asarray(np.maximum(counts, 1).astype(x.dtype))


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    window = _window(call, x, call.attribute("kernel_shape"))
    p = call.attribute("p", 2)
    return F.pow(_summed(F.pow(F.abs(x), p), window), 1 / p)


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The largest pixel of each window, and where it is in the whole tensor."""
    window = _window(call, x, call.attribute("kernel_shape"))
    is_float = x.dtype in dtypes.FLOATING
    lowest = -math.inf if is_float else int(np.iinfo(x.dtype).min)
    padded = _padded(x, window, lowest)
    if is_float and _is_small(window) and not call.wants(1):
        none = ((0, 0),) * len(window.size)
        pixels, _ = F.window_max(
            _channels_last(padded), window=window.size, stride=window.stride, padding=none
        )
        return _channels_first(pixels)
    if not call.wants(1):
        return _joined(padded, window, F.maximum)
    space = x.shape[2:]
    is_column = call.attribute("storage_order", 0)
    places = F.arange(x.size)
    if is_column:  # numbered with the first axis of space the fastest
        places = F.reshape(places, (*x.shape[:2], *reversed(space)))
        places = F.permute_dims(places, (0, 1, *reversed(range(2, x.ndim))))
    numbers = _padded(F.reshape(places, x.shape), window, 0)

    def larger(a: Pixels, b: Pixels) -> Pixels:
        is_better = b[0] > a[0]
        return F.where(is_better, b[0], a[0]), F.where(is_better, b[1], a[1])

    best: Pixels = (padded, numbers)
    for axis in reversed(range(len(space))):  # of equal pixels, the first one by rows
        pairs = zip(*(_places(x, window, axis) for x in best), strict=True)
        best = functools.reduce(larger, pairs)
    return best


@operator("MaxUnpool", static=(2,))
def max_unpool(call: Call, x: Tensor, indices: Tensor, target: Tensor | None = None) -> Tensor:
    """Each value at the place where it was the largest, zeros elsewhere."""
    dims = x.ndim - 2
    size = call.attribute("kernel_shape")
    stride = call.attribute("strides", (1,) * dims)
    pads = call.attribute("pads", (0,) * 2 * dims)
    inferred = (
        *x.shape[:2],
        *((n - 1) * s - pads[i] - pads[i + dims] + k
          for i, (n, s, k) in enumerate(zip(x.shape[2:], stride, size, strict=True))),
    )  # fmt: skip
    wanted = inferred if target is None else tuple(call.ints(target, "the shape"))
    call.bounded(wanted)
    places = F.reshape(indices, (-1,))
    if target is not None:  # the indices are those of the smaller image
        rest, parts = places, []
        for n in reversed(inferred):
            parts.append(F.remainder(rest, n))
            rest = F.floor_divide(rest, n)
        places = parts[-1]
        for part, n in zip(parts[-2::-1], wanted[1:], strict=True):
            places = places * n + part
    flat = F.scatter_add(places, F.reshape(x, (-1,)), size=math.prod(wanted))
    return F.reshape(flat, wanted)


@operator("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean of each channel."""
    return F.mean(x, tuple(range(2, x.ndim)), keepdims=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """The largest pixel of each channel."""
    return F.max(x, tuple(range(2, x.ndim)), keepdims=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm of each channel."""
    p = call.attribute("p", 2)
    return F.pow(F.sum(F.pow(F.abs(x), p), tuple(range(2, x.ndim)), keepdims=True), 1 / p)


# Normalisation


def _per_channel(x: Tensor, like: Tensor) -> Tensor:
    return F.reshape(x, (x.shape[0], *(1,) * (like.ndim - 2)))


@operator("BatchNormalization", statistics=(3, 4))
def batch_norm(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor | list[Tensor]:
    """Each channel normalised by given statistics, or (training_mode) by the batch's own."""
    eps = call.attribute("epsilon", 1e-5)
    if not call.attribute("training_mode", 0):
        if call.version < 9 and not call.attribute("spatial", 1):
            return (x - mean) / F.sqrt(var + eps) * weight + bias
        return _channels_first(N.batch_norm(_channels_last(x), mean, var, weight, bias, eps=eps))
    axes = (0, *range(2, x.ndim))
    now, spread = F.mean(x, axes), F.var(x, axes)
    y = (x - _per_channel(now, x)) * _per_channel(F.rsqrt(spread + eps) * weight, x)
    keep = call.attribute("momentum", 0.9)
    return [
        y + _per_channel(bias, x),
        mean * keep + now * (1 - keep),
        var * keep + spread * (1 - keep),
    ]


@operator("LayerNormalization")
def layer_norm(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """All axes from `axis` on normalised together; the mean and 1 over the deviation as well."""
    eps = call.attribute("epsilon", 1e-5)
    axes = tuple(range(call.axis(x, -1), x.ndim))
    shape = x.shape[axes[0] :]
    if weight.shape == shape and not (call.wants(1) or call.wants(2)):
        return N.layer_norm(x, shape, weight, bias, eps)
    mean = F.mean(x, axes, keepdims=True)
    centred = x - mean
    inverse = F.rsqrt(F.mean(centred * centred, axes, keepdims=True) + eps)
    y = centred * inverse * weight
    return y if bias is None else y + bias, mean, inverse


@operator("InstanceNormalization")
def instance_norm(call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each channel of each image normalised by itself."""
    axes = tuple(range(2, x.ndim))
    centred = x - F.mean(x, axes, keepdims=True)
    spread = F.mean(centred * centred, axes, keepdims=True)
    y = centred * F.rsqrt(spread + call.attribute("epsilon", 1e-5))
    return y * _per_channel(weight, x) + _per_channel(bias, x)


@operator("GroupNormalization")
def group_norm(call: Call, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Groups of channels of each image normalised together."""
    groups = call.attribute("num_groups")
    parts = F.reshape(x, (x.shape[0], groups, -1))
    centred = parts - F.mean(parts, -1, keepdims=True)
    spread = F.mean(centred * centred, -1, keepdims=True)
    y = centred * F.rsqrt(spread + call.attribute("epsilon", 1e-5))
    if weight.shape[0] == groups and call.version < 21:
        return F.reshape(y * weight[:, None] + bias[:, None], x.shape)
    return F.reshape(y, x.shape) * _per_channel(weight, x) + _per_channel(bias, x)


@operator("LRN")
def local_response_norm(call: Call, x: Tensor) -> Tensor:
    """Divided by a power of the squares of neighbouring channels."""
    size = call.attribute("size")
    if not 1 <= size <= _LARGEST_WINDOW:
        raise call.refusal(f"{size} neighbouring channels")
    low, high = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = _channels_last(x * x)
    channels = x.shape[1]
    flat = F.reshape(squares, (-1, channels, 1))
    summed = F.window_sum(flat, window=(size,), stride=(1,), padding=((low, high),))
    total = _channels_first(F.reshape(summed, squares.shape))
    alpha = call.attribute("alpha", 1e-4) / size
    scale = call.attribute("bias", 1.0) + alpha * total
    return x / F.pow(scale, call.attribute("beta", 0.75))


# Quantised numbers


def _along(call: Call, part: Tensor, x: Tensor) -> Tensor:
    """A scale or zero for each slice, or block of slices, of an axis, ready to broadcast."""
    if part.ndim == 0 or part.size == 1:
        return F.reshape(part, ())
    axis, block = call.axis(x, 1), call.attribute("block_size", 0)
    if part.ndim == 1:
        return F.reshape(part, (-1, *(1,) * (x.ndim - 1 - axis)))
    if block < 1 or part.ndim != x.ndim:
        raise call.error(f"scales of shape {part.shape} for {x.shape}")
    return F.repeat(part, block, axis=axis)[(*(slice(None),) * axis, slice(0, x.shape[axis]))]


@operator("DequantizeLinear")
def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero) times scale."""
    numbers = F.astype(x, scale.dtype)
    if zero is not None:
        numbers = numbers - _along(call, F.astype(zero, scale.dtype), x)
    return numbers * _along(call, scale, x)


@operator("QuantizeLinear")
def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """X over scale, rounded to even, plus zero, held within what a small whole number can be."""
    number = call.attribute("output_dtype", 0)
    dtype = dtypes.uint8 if zero is None else zero.dtype
    dtype = numpy_dtype(call, number) if number else dtype
    if dtype not in (dtypes.int8, dtypes.uint8):
        raise call.refusal(f"quantised numbers of {dtype.name}")
    steps = F.round(F.astype(x, scale.dtype) / _along(call, scale, x))
    if zero is not None:
        steps = steps + _along(call, F.astype(zero, steps.dtype), x)
    limits = np.iinfo(dtype)
    return F.astype(F.clip(steps, float(limits.min), float(limits.max)), dtype)


# Random


@operator("Dropout", static=(1, 2), draws=True)
def dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """In training some elements dropped, the others scaled up; and which were kept."""
    is_on = training is not None and bool(call.known(training, "whether it is on"))
    p = 0.5 if ratio is None else float(call.known(ratio, "the ratio"))
    if not is_on or p == 0:
        return x, F.ones(x.shape, dtype=dtypes.bool)
    keep = random.uniform(x.shape) >= p
    return F.where(keep, x / (1 - p), F.zeros_like(x)), keep


@operator("Bernoulli", draws=True)
def bernoulli(call: Call, x: Tensor) -> Tensor:
    """1 with the probability that each element is, else 0."""
    number = call.attribute("dtype")
    dtype = x.dtype if number is None else numpy_dtype(call, number)
    return F.astype(random.uniform(x.shape, dtype=x.dtype) < x, dtype)


@operator("RandomUniform", "RandomNormal", draws=True)
@operator("RandomUniformLike", "RandomNormalLike", shape_only=True, draws=True)
def drawn(call: Call, like: Tensor | None = None) -> Tensor:
    """Random numbers from Palto's generator."""
    number = call.attribute("dtype")
    dtype = like.dtype if like is not None else dtypes.float32
    dtype = dtype if number is None else numpy_dtype(call, number)
    shape = call.bounded(call.attribute("shape", ()) if like is None else like.shape)
    if "Uniform" in call.node.operator:
        low, high = call.attribute("low", 0.0), call.attribute("high", 1.0)
        return random.uniform(shape, low, high, dtype=dtype)
    mean, scale = call.attribute("mean", 0.0), call.attribute("scale", 1.0)
    return random.normal(shape, mean, scale, dtype=dtype)
