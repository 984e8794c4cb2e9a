"""Operators that read images between their pixels, and the Fourier transform."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from palto.formats.onnx.table import Call, operator
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.dtypes import Array

# Resize: along each axis by itself, every output is a weighted sum of a few inputs


def _origins(mode: str, n: int, out: int, scale: float, region: tuple[float, float]) -> Array:
    """Where along an axis of `n` the `out` outputs lie."""
    place, length = np.arange(out, dtype=np.float64), scale * n
    if mode == "align_corners":
        return place * (n - 1) / (length - 1) if length != 1 else place * 0
    if mode == "asymmetric":
        return place / scale
    if mode == "tf_half_pixel_for_nn":
        return (place + 0.5) / scale
    if mode == "tf_crop_and_resize":
        start, end = region
        if out == 1:
            return place + 0.5 * (start + end) * (n - 1)
        return start * (n - 1) + place * (end - start) * (n - 1) / (out - 1)
    origin = (place + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return origin + n / 2 * (1 - out / length)
    if mode == "pytorch_half_pixel":
        return origin if out > 1 else place * 0
    if mode == "half_pixel":
        return origin
    raise ValueError(f"there is no coordinate_transformation_mode {mode!r}")


_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _cubic(x: Array, a: float) -> Array:
    """Keys' kernel (1981)."""
    x = np.abs(x)
    inner = (a + 2) * x**3 - (a + 3) * x**2 + 1
    return np.where(x <= 1, inner, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0))


def _taps(call: Call, origin: Array, n: int, scale: float, kind: str) -> tuple[Array, Array]:
    """Of each output the inputs and their weights, both (taps, out)."""
    if kind == "nearest":
        where = _NEAREST[call.attribute("nearest_mode", "round_prefer_floor")](origin)
        return where[None].astype(np.int64), np.ones((1, len(origin)))
    reach = 1 if kind == "linear" else 2
    narrow = min(scale, 1.0) if call.attribute("antialias", 0) else 1.0
    first = math.floor(-reach / narrow) + 1
    offsets = np.arange(first, 2 - first)[:, None]
    if offsets.size > 2**12 or offsets.size * len(origin) > 2**26:
        raise call.refusal("that many weights")
    base = np.floor(origin)
    distance = (offsets - (origin - base)) * narrow
    if kind == "linear":
        weights = np.clip(1 - np.abs(distance), 0, 1)
    else:
        weights = _cubic(distance, call.attribute("cubic_coeff_a", -0.75))
    where = (base + offsets).astype(np.int64)
    if call.attribute("exclude_outside", 0):
        weights = np.where((where >= 0) & (where < n), weights, 0)
    return where, weights / weights.sum(0)


def _resized(call: Call, x: Tensor, axis: int, out: int, scale: float, kind: str,
             region: tuple[float, float], mode: str) -> Tensor:  # fmt: skip
    n = x.shape[axis]
    origin = _origins(mode, n, out, scale, region)
    where, weights = _taps(call, origin, n, scale, kind)
    held = where.clip(0, max(n - 1, 0))
    shape = [1] * x.ndim
    shape[axis] = out
    if kind == "nearest":
        result = F.take(x, held[0], axis=axis)
    else:
        result = F.zeros((), dtype=x.dtype)
        for places, factors in zip(held, weights, strict=True):
            factor = F.asarray(factors.reshape(shape).astype(x.dtype))
            result = result + F.take(x, places, axis=axis) * factor
    if mode == "tf_crop_and_resize":
        is_inside = F.asarray(((origin >= 0) & (origin <= n - 1)).reshape(shape))
        result = F.where(is_inside, result, call.attribute("extrapolation_value", 0.0))
    return result


@operator("Resize", static=(1, 2, 3))
def resize(
    call: Call,
    x: Tensor,
    region: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """An image of another size."""
    if call.version < 11:
        return _scaled(call, x, region, call.attribute("mode", "nearest"))
    axes = call.axes(x, call.attribute("axes"))
    if sizes is not None and sizes.size:
        wanted = call.ints(sizes, "the size")
        factors = [m / max(x.shape[axis], 1) for m, axis in zip(wanted, axes, strict=True)]
        policy = call.attribute("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(axes)
            wanted = [math.floor(factor * x.shape[axis] + 0.5) for axis in axes]
    elif scales is not None:
        factors = [float(s) for s in call.known(scales, "the scale")]
        if len(factors) != len(axes) or not all(0 < s < math.inf for s in factors):
            raise call.error(f"the scales {factors}")
        wanted = [math.floor(s * x.shape[axis]) for s, axis in zip(factors, axes, strict=True)]
    else:
        raise call.error("neither scales nor sizes")
    mode = call.attribute("coordinate_transformation_mode", "half_pixel")
    corners = [0.0] * len(axes) + [1.0] * len(axes)
    if mode == "tf_crop_and_resize" and region is not None:
        corners = [float(part) for part in call.known(region, "the region")]
    shape = list(x.shape)
    for i, axis in enumerate(axes):
        shape[axis] = wanted[i]
        call.bounded(shape)
        if (wanted[i], factors[i]) != (x.shape[axis], 1.0) or mode == "tf_crop_and_resize":
            x = _resized(
                call, x, axis, wanted[i], factors[i], call.attribute("mode", "nearest"),
                (corners[i], corners[i + len(axes)]), mode,
            )  # fmt: skip
    return x


@operator("Upsample", static=(1,))
def upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    """What Resize was called before version 10."""
    return _scaled(call, x, scales, call.attribute("mode", "nearest"))


def _scaled(call: Call, x: Tensor, scales: Tensor | None, mode: str) -> Tensor:
    given = call.attribute("scales") if scales is None else call.known(scales, "the scale")
    kind = "linear" if mode == "bilinear" else mode
    for axis, scale in enumerate(given):
        out = math.floor(float(scale) * x.shape[axis])
        call.bounded((*x.shape[:axis], out, *x.shape[axis + 1 :]))
        if out != x.shape[axis]:
            origin = np.arange(out) / float(scale)
            x = _at_origins(x, axis, origin, kind)
    return x


def _at_origins(x: Tensor, axis: int, origin: Array, kind: str) -> Tensor:
    n = x.shape[axis]
    low = np.floor(origin).astype(np.int64).clip(0, n - 1)
    if kind == "nearest":
        return F.take(x, low, axis=axis)
    shape = [1] * x.ndim
    shape[axis] = -1
    share = F.asarray((origin - low).astype(x.dtype).reshape(shape))
    high = (low + 1).clip(0, n - 1)
    return F.take(x, low, axis=axis) * (1 - share) + F.take(x, high, axis=axis) * share


# Reading at places that are computed


@operator("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """An image (N, C, ...space) read at the places of a grid (N, ...out, axes), from -1 to 1."""
    dims = x.ndim - 2
    if grid.ndim != x.ndim or grid.shape[-1] != dims or not 1 <= dims <= 3:
        raise call.error(f"a grid of shape {grid.shape} for an image of shape {x.shape}")
    call.bounded((x.shape[0], *grid.shape[1:-1], x.shape[1]))
    kind = {"bilinear": "linear", "bicubic": "cubic"}.get(
        call.attribute("mode", "linear"), call.attribute("mode", "linear")
    )
    is_aligned = call.attribute("align_corners", 0)
    beyond = call.attribute("padding_mode", "zeros")
    choices = []
    for axis in range(dims):
        n = x.shape[axis + 2]
        place = grid[..., dims - 1 - axis]
        place = (place + 1) / 2 * (n - 1) if is_aligned else ((place + 1) * n - 1) / 2
        if kind == "nearest":
            place = F.round(place)
        low, high = (0.0, n - 1.0) if is_aligned else (-0.5, n - 0.5)
        if beyond == "border":
            place = F.clip(place, 0.0, float(n - 1))
        elif beyond == "reflection":
            place = _reflected(place, low, high)
        choices.append(_choices(place, n, kind, beyond, (low, high)))
    pixels = F.permute_dims(x, (0, *range(2, x.ndim), 1))
    batch = F.iota(grid.shape[:-1], 0)
    result: Tensor | None = None
    for chosen in itertools.product(*choices):
        part = F.take_at(pixels, [batch, *(where for where, _ in chosen)])
        weight = chosen[0][1]
        for _, factor in chosen[1:]:
            weight = weight * factor
        part = part * F.expand_dims(weight, -1)
        result = part if result is None else result + part
    assert result is not None
    return F.permute_dims(result, (0, x.ndim - 1, *range(1, x.ndim - 1)))


def _reflected(place: Tensor, low: float, high: float) -> Tensor:
    """Mirrored at the borders, as often as it takes."""
    span = high - low
    if span <= 0:
        return place * 0 + low
    around = F.remainder(place - low, 2 * span)
    return low + F.where(around > span, 2 * span - around, around)


def _choices(
    place: Tensor, n: int, kind: str, beyond: str, borders: tuple[float, float]
) -> list[tuple[Tensor, Tensor]]:
    """The pixels along an axis that a place is read from, with their weights."""
    base = F.floor(place) if kind != "nearest" else F.round(place)
    ratio = place - base
    if kind == "nearest":
        weights = {0: F.ones_like(ratio)}
    elif kind == "linear":
        weights = {0: 1 - ratio, 1: ratio}
    else:
        weights = {i: _cubic_weight(F.abs(ratio - i)) for i in range(-1, 3)}
    found = []
    for offset, weight in weights.items():
        where = base + offset
        if beyond == "reflection":
            where = F.round(_reflected(where, *borders))
        elif beyond == "zeros":
            weight = F.where((where >= 0) & (where <= n - 1), weight, 0.0)
        held = F.clip(F.where(F.isfinite(where), where, 0.0), 0.0, float(n - 1))
        found.append((F.astype(held, dtypes.int64), weight))
    return found


def _cubic_weight(x: Tensor, a: float = -0.75) -> Tensor:
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = ((x - 5) * x + 8) * x * a - 4 * a
    return F.where(x <= 1, inner, F.where(x < 2, outer, 0.0))


@operator("Col2Im", static=(1, 2))
def columns_to_image(call: Call, x: Tensor, image: Tensor, block: Tensor) -> Tensor:
    """Blocks (N, C block, places) added up into an image."""
    space, size = call.ints(image, "the image's size"), call.ints(block, "the block's size")
    dims = len(space)
    stride = call.attribute("strides", (1,) * dims)
    dilation = call.attribute("dilations", (1,) * dims)
    pads = call.attribute("pads", (0,) * (2 * dims))
    whole = [n + pads[i] + pads[i + dims] for i, n in enumerate(space)]
    channels = x.shape[1] // math.prod(size)
    call.bounded((x.shape[0], channels, *whole))
    counts = [(whole[i] - dilation[i] * (size[i] - 1) - 1) // stride[i] + 1 for i in range(dims)]
    parts = F.reshape(x, (x.shape[0], channels, *size, *counts))
    where = []
    for i in range(dims):
        within = F.iota((*size, *counts), i) * dilation[i]
        where.append(within + F.iota((*size, *counts), dims + i) * stride[i])
    result = F.scatter_add_at(where, parts, sizes=tuple(whole), axis=2)
    inside = [slice(pads[i], pads[i] + n) for i, n in enumerate(space)]
    return result[(slice(None), slice(None), *inside)]


# Fourier


@operator("DFT", static=(1, 2))
def fourier(
    call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    """The discrete Fourier transform; real and imaginary parts lie along the last axis."""
    given = call.attribute("axis", 1 if call.version < 20 else -2)
    place = call.axes(x, [given] if axis is None else call.ints(axis, "the axis"))[0]
    is_inverse, is_half = call.attribute("inverse", 0), call.attribute("onesided", 0)
    n = x.shape[place]
    if length is not None:
        n = call.ints(length, "the length")[0]
    elif is_inverse and is_half:
        n = 2 * (n - 1)
    if x.dtype != dtypes.float32:
        raise call.refusal(f"the Fourier transform of {x.dtype.name}; Palto's is of float32")
    call.bounded((*x.shape[:place], n, *x.shape[place + 1 :]))
    imaginary = x[..., 1] if x.shape[-1] == 2 else F.zeros_like(x[..., 0])
    numbers = F.complex(x[..., 0], imaginary)
    if is_inverse and is_half:
        return F.expand_dims(F.irfft(numbers, n=n, axis=place), -1)
    transform = F.ifft if is_inverse else F.fft
    result = transform(numbers, n=n, axis=place)
    if is_half:
        result = result[(*(slice(None),) * place, slice(0, n // 2 + 1))]
    return F.stack([F.real(result), F.imag(result)], axis=-1)


@operator("STFT", static=(1, 3))
def short_time_fourier(
    call: Call,
    x: Tensor,
    step: Tensor,
    window: Tensor | None = None,
    length: Tensor | None = None,
) -> Tensor:
    """The Fourier transforms of frames of signals (N, length, 1 or 2), each times a window."""
    every = call.ints(step, "the step")[0]
    if length is None and window is None:
        raise call.error("neither a window nor a frame's length")
    n = window.shape[0] if window is not None else 0
    n = n if length is None else call.ints(length, "the frame's length")[0]
    if x.dtype != dtypes.float32:
        raise call.refusal(f"the Fourier transform of {x.dtype.name}; Palto's is of float32")
    if every < 1 or not 1 <= n <= x.shape[1]:
        raise call.error(f"frames of {n} every {every} in {x.shape[1]}")
    count = (x.shape[1] - n) // every + 1
    call.bounded((x.shape[0], count, n, 2))
    places = F.iota((count, n), 0) * every + F.iota((count, n), 1)
    frames = F.take(x, places, axis=1)  # (N, frames, n, parts)
    if window is not None:
        frames = frames * window[:, None]
    imaginary = frames[..., 1] if x.shape[-1] == 2 else F.zeros_like(frames[..., 0])
    result = F.fft(F.complex(frames[..., 0], imaginary))
    if call.attribute("onesided", 1):
        result = result[..., : n // 2 + 1]
    return F.stack([F.real(result), F.imag(result)], axis=-1)
