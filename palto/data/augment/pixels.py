"""Augmentations that change pixels where they are: colours, erased boxes, noise, normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from palto.data.augment.common import (
    Range,
    as_images,
    as_number,
    as_range,
    as_symmetric_range,
    between,
    box_mask,
    draws,
    per_image,
)
from palto.tensor import Tensor, dtypes, random
from palto.tensor import functions as F

#: How bright red, green and blue look: ITU-R BT.601.
LUMA = (0.2989, 0.587, 0.114)


def color_jitter(
    images: Any,
    brightness: Range = 0.0,
    contrast: Range = 0.0,
    saturation: Range = 0.0,
    hue: Range = 0.0,
    *,
    generator: random.Generator | None = None,
) -> Tensor:
    """Each image brighter or darker, with more or less contrast and colour, by its own amounts.

    In this order, each with a factor f drawn for each image, and held in [0, 1] after each step::

        brightness    f * x
        contrast      f * x + (1 - f) * (mean of the grey image)
        saturation    f * x + (1 - f) * (grey image)
        hue           the colour moved by h of the way around the colour circle

    (torchvision draws the order anew at each call.) Grey images, C = 1, take brightness and
    contrast only.

    Args:
        images: float32 (N, H, W, C) in [0, 1], C being 3 (red, green, blue) or 1.
        brightness: b for factors from max(0, 1 - b) to 1 + b, or (lowest, highest).
        contrast: the same.
        saturation: the same.
        hue: h for moves from -h to h, or (lowest, highest), from -0.5 to 0.5.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape in [0, 1].

    Raises:
        TypeError, ValueError: images of another shape or dtype, ranges that are none, or grey
            images with saturation or hue.
    """
    name = "color_jitter"
    x = as_images(name, images)
    brightness = _as_factors("brightness", brightness)
    contrast = _as_factors("contrast", contrast)
    saturation = _as_factors("saturation", saturation)
    moves = as_symmetric_range(name, "hue", hue)
    if not -0.5 <= moves[0] <= moves[1] <= 0.5:
        raise ValueError(f"{name} wants hue from -0.5 to 0.5, got {hue!r}")
    if x.shape[3] not in (1, 3):
        raise ValueError(
            f"{name} wants 3 channels (red, green, blue) or 1 (grey) on the last axis, got shape "
            f"{x.shape}"
        )
    if x.shape[3] == 1 and (saturation, moves) != ((1.0, 1.0), (0.0, 0.0)):
        raise ValueError(
            f"{name}: grey images, shape {x.shape}, have no saturation or hue; leave both at 0"
        )

    u = [per_image(F.astype(part, x.dtype)) for part in draws(4, x.shape[0], generator)]
    if brightness != (1.0, 1.0):
        x = F.clip(x * between(*brightness, u[0]), max=1.0)
    if contrast != (1.0, 1.0):
        mean = F.mean(_grey(x), (1, 2, 3), keepdims=True)
        x = _blended(x, mean, between(*contrast, u[1]))
    if saturation != (1.0, 1.0):
        x = _blended(x, _grey(x), between(*saturation, u[2]))
    if moves != (0.0, 0.0):
        x = _hue_moved(x, between(*moves, u[3]))
    return x


def _as_factors(name: str, value: Any) -> tuple[float, float]:
    if isinstance(value, Sequence):
        return as_range("color_jitter", name, value, low=0)
    amount = as_number("color_jitter", name, value, low=0)
    return max(0.0, 1 - amount), 1 + amount


def _blended(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """`x` for factor 1, `y` for factor 0, beyond `x` for more."""
    return F.clip(factor * x + (1 - factor) * y, 0.0, 1.0)


def _grey(x: Tensor) -> Tensor:
    """The brightness that is seen, (N, H, W, 1)."""
    if x.shape[3] == 1:
        return x
    red, green, blue = (x[..., i : i + 1] for i in range(3))
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _hue_moved(x: Tensor, turn: Tensor) -> Tensor:
    """Colours moved around the circle: from RGB to hue, chroma and value and back (Smith 1978).

    The value is the largest of red, green and blue, the chroma the largest less the smallest, and
    the hue a place on a circle of length 6 with red at 0, green at 2 and blue at 4.
    """
    red, green, blue = (x[..., i : i + 1] for i in range(3))
    value = F.maximum(F.maximum(red, green), blue)
    chroma = value - F.minimum(F.minimum(red, green), blue)
    divisor = F.where(chroma == 0, 1.0, chroma)  # grey has no hue; any will do
    hue = F.where(
        value == red,
        (green - blue) / divisor,
        F.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = (hue + 6 * turn) % 6
    # How much of the chroma each of them lacks.
    lacks = (2 - F.abs(hue - 3), F.abs(hue - 2) - 1, F.abs(hue - 4) - 1)
    return F.concat([value - chroma * F.clip(lack, 0.0, 1.0) for lack in lacks], axis=3)


def random_erasing(
    images: Any,
    probability: float = 0.5,
    scale: Sequence[float] = (0.02, 0.33),
    ratio: Sequence[float] = (0.3, 3.3),
    *,
    value: float | Literal["random"] = 0.0,
    generator: random.Generator | None = None,
) -> Tensor:
    """Each image, with the given probability, with a box of it erased.

    The box has the area ``uniform(scale) * H * W`` and the ratio of height to width
    ``exp(uniform(log(ratio)))``, rounded to whole pixels; all places are equally likely. A side
    longer than the image is cut to it.

    Args:
        images: float32 (N, H, W, C).
        probability: how often an image loses a box.
        scale: (lowest, highest) area of the box, as a fraction of the image.
        ratio: (lowest, highest) height over width of the box.
        value: what the box holds: a number, or "random" for noise from 0 to 1.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape.

    Raises:
        TypeError, ValueError: images of another shape or dtype, or ranges that are none.

    Source: Zhong, Zheng, Kang, Li, Yang: Random erasing data augmentation, AAAI 2020.
    """
    name = "random_erasing"
    x = as_images(name, images)
    count, height, width, _ = x.shape
    probability = as_number(name, "probability", probability, low=0, high=1)
    areas = as_range(name, "scale", scale, low=0, high=1)
    ratios = as_range(name, "ratio", ratio, low=0)
    if ratios[0] == 0:
        raise ValueError(f"{name} wants ratio above 0, got {ratio!r}")
    if value != "random":
        value = as_number(name, 'value (or "random")', value)

    u = draws(5, count, generator)
    area = between(*areas, u[0]) * (height * width)
    root = F.exp(0.5 * between(math.log(ratios[0]), math.log(ratios[1]), u[1]))
    side = F.sqrt(area)
    rows = F.minimum(F.round(side * root), float(height))
    columns = F.minimum(F.round(side / root), float(width))
    top = F.floor(u[2] * (height - rows + 1))
    left = F.floor(u[3] * (width - columns + 1))
    rows = F.where(u[4] < probability, rows, 0.0)  # a box without rows erases nothing
    erased = box_mask(top, top + rows, left, left + columns, height, width)
    held = (
        random.uniform(x.shape, dtype=x.dtype, generator=generator) if value == "random" else value
    )
    return F.where(erased, held, x)


def gaussian_noise(
    images: Any,
    std: float = 0.1,
    *,
    mean: float = 0.0,
    clip: bool = True,
    generator: random.Generator | None = None,
) -> Tensor:
    """Images with normally distributed noise added to every pixel and channel.

    Args:
        images: float32 (N, H, W, C).
        std: the standard deviation of the noise.
        mean: its mean.
        clip: whether to hold the result in [0, 1]; not for images that were normalised.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape.

    Raises:
        TypeError, ValueError: images of another shape or dtype, or a negative `std`.
    """
    x = as_images("gaussian_noise", images)
    std = as_number("gaussian_noise", "std", std, low=0)
    mean = as_number("gaussian_noise", "mean", mean)
    noise = random.normal(x.shape, mean, std, dtype=x.dtype, generator=generator)
    return F.clip(x + noise, 0.0, 1.0) if clip else x + noise


def convert_image_dtype(images: Any) -> Tensor:
    """Images of bytes from 0 to 255 as float32 from 0 to 1; those of floats stay as they are.

    For datasets whose images come out as bytes (``as_bytes``): the first line of a step, and of
    what tests. Nothing is drawn.

    Args:
        images: uint8 or float32 (N, H, W, C).

    Returns:
        Images of the same shape, the same numbers to the bit as a dataset's own float32.

    Raises:
        TypeError, ValueError: images of another shape or dtype.
    """
    x = F.asarray(images)
    if x.dtype == dtypes.uint8:
        x = F.astype(x, dtypes.float32) * (1 / 255)
    return as_images("convert_image_dtype", x)


def normalize(images: Any, mean: Range, std: Range) -> Tensor:
    """``(images - mean) / std`` for each channel; nothing is drawn.

    Args:
        images: float32 (N, H, W, C).
        mean: one number for all channels, or one for each.
        std: the same, above 0.

    Returns:
        Images of the same shape, not in [0, 1] any more: normalise last.

    Raises:
        TypeError, ValueError: images of another shape or dtype, another number of channels, or a
            `std` that is not above 0.
    """
    x = as_images("normalize", images)
    means = _per_channel(x, "mean", mean, -math.inf)
    deviations = _per_channel(x, "std", std, 0.0)
    if 0.0 in deviations:
        raise ValueError(f"normalize divides by std, which must be above 0, got {std!r}")
    return (x - F.asarray(means, dtype=x.dtype)) / F.asarray(deviations, dtype=x.dtype)


def _per_channel(images: Tensor, name: str, value: Any, low: float) -> list[float]:
    values = list(value) if hasattr(value, "__len__") else [value]
    numbers = [as_number("normalize", name, part, low) for part in values]
    if len(numbers) not in (1, images.shape[3]):
        raise ValueError(
            f"normalize wants one {name} or one for each of the {images.shape[3]} channels of "
            f"shape {images.shape}, got {len(numbers)}"
        )
    return numbers
