"""Augmentations that move pixels: crops, flips, rotations, affine maps."""

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
    as_whole,
    between,
    draws,
    faded,
    per_image,
)
from palto.tensor import Tensor, dtypes, random
from palto.tensor import functions as F

CropMode = Literal["constant", "edge", "reflect", "symmetric"]


def random_crop(
    images: Any,
    padding: int = 0,
    *,
    size: int | Sequence[int] | None = None,
    mode: CropMode = "constant",
    fill: float = 0.0,
    generator: random.Generator | None = None,
) -> Tensor:
    """Each image with a border around it, cut to `size` at a place of its own.

    All places are equally likely. With ``padding=4`` and no `size`, an image moves up to 4 pixels
    in each direction: the augmentation of He et al. (2016) for CIFAR-10.

    Args:
        images: float32 (N, H, W, C).
        padding: the width of the border on all four sides.
        size: (height, width) of the crop, or one number for both; by default that of the images.
        mode: what the border shows, named as in numpy.pad: "constant" `fill`, "edge" the last
            pixel, "reflect" the image mirrored at its last pixel, "symmetric" mirrored behind it.
        fill: the value of a constant border.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Crops (N, *size, C).

    Raises:
        TypeError, ValueError: images of another shape or dtype, an unknown mode, a crop that is
            larger than image and border.

    Source: He, Zhang, Ren, Sun: Deep residual learning for image recognition, CVPR 2016.
    """
    x = as_images("random_crop", images)
    count, height, width, _ = x.shape
    padding = as_whole("random_crop", "padding", padding, low=0)
    fill = as_number("random_crop", "fill", fill)
    if mode not in _BORDERS:
        raise ValueError(f"random_crop wants mode as one of {', '.join(_BORDERS)}, got {mode!r}")
    lengths = _as_size(size, height, width)
    if lengths[0] > height + 2 * padding or lengths[1] > width + 2 * padding:
        raise ValueError(
            f"random_crop cannot cut {lengths} from images of {(height, width)} with a border of "
            f"{padding}; ask for a smaller size or a larger padding"
        )
    rows = _window(count, height, lengths[0], padding, generator)
    columns = _window(count, width, lengths[1], padding, generator)
    shown = _BORDERS[mode]
    crops = _pixels(x, shown(rows, height), shown(columns, width))
    if mode == "constant" and padding:
        inside_rows = (rows >= 0) & (rows < height)
        inside_columns = (columns >= 0) & (columns < width)
        inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
        crops = F.where(inside, crops, fill)
    return crops


def _as_size(size: Any, height: int, width: int) -> tuple[int, int]:
    if size is None:
        return height, width
    parts = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(parts) != 2:
        raise ValueError(f"random_crop wants size as (height, width), got {size!r}")
    rows, columns = (as_whole("random_crop", "size", part, low=1) for part in parts)
    return rows, columns


def _window(
    count: int, length: int, size: int, padding: int, generator: random.Generator | None
) -> Tensor:
    """Where `size` neighbouring places of each crop lie in the image, (N, size).

    The border's places are below 0 and from `length` on.
    """
    start = random.integers((count,), -padding, length + padding - size + 1, generator=generator)
    return start[:, None] + F.arange(size)


def _edge(places: Tensor, length: int) -> Tensor:
    return F.minimum(F.maximum(places, 0), length - 1)


def _reflect(places: Tensor, length: int) -> Tensor:
    # A mirror at both ends makes the image repeat after a walk there and back.
    period = 2 * max(length - 1, 1)
    there = places % period
    return F.minimum(F.minimum(there, period - there), length - 1)


def _symmetric(places: Tensor, length: int) -> Tensor:
    there = places % (2 * length)
    return F.minimum(there, 2 * length - 1 - there)


#: From places that may lie in the border to those of the image that they show. A constant border
#: shows none; there any will do, and is replaced.
_BORDERS = {"constant": _edge, "edge": _edge, "reflect": _reflect, "symmetric": _symmetric}


def _pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixel (rows[n, i], columns[n, j]) of image n at [n, i, j]: (N, rows, columns, C)."""
    count, height, width, channels = images.shape
    # One index into the list of all pixels: NumPy gathers along one axis fastest.
    first_row = F.arange(count)[:, None] * height
    index = ((first_row + rows) * width)[:, :, None] + columns[:, None, :]
    return F.take(F.reshape(images, (count * height * width, channels)), index, role="pixel")


def random_horizontal_flip(
    images: Any, probability: float = 0.5, *, generator: random.Generator | None = None
) -> Tensor:
    """Each image, with the given probability, mirrored left to right.

    Args:
        images: float32 (N, H, W, C).
        probability: how often an image is mirrored.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape.

    Raises:
        TypeError, ValueError: images of another shape or dtype, a probability outside of [0, 1].
    """
    return _flip("random_horizontal_flip", images, 2, probability, generator)


def random_vertical_flip(
    images: Any, probability: float = 0.5, *, generator: random.Generator | None = None
) -> Tensor:
    """Each image, with the given probability, mirrored top to bottom.

    Args:
        images: float32 (N, H, W, C).
        probability: how often an image is mirrored.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape.

    Raises:
        TypeError, ValueError: images of another shape or dtype, a probability outside of [0, 1].
    """
    return _flip("random_vertical_flip", images, 1, probability, generator)


def _flip(
    function: str,
    images: Any,
    axis: int,
    probability: float,
    generator: random.Generator | None,
) -> Tensor:
    x = as_images(function, images)
    probability = as_number(function, "probability", probability, low=0, high=1)
    chosen = random.bernoulli((x.shape[0],), probability, generator=generator)
    return F.where(per_image(chosen), F.flip(x, axis=axis), x)


def random_rotation(
    images: Any,
    degrees: Range,
    *,
    fill: float = 0.0,
    generator: random.Generator | None = None,
) -> Tensor:
    """Each image turned about its centre by an angle of its own, with bilinear sampling.

    Angles count counter-clockwise; all in the range are equally likely. Quarter turns of square
    images are exact. Corners that leave the image are lost.

    Args:
        images: float32 (N, H, W, C).
        degrees: the range of angles: d for (-d, d), or (lowest, highest).
        fill: what is seen where the image does not reach.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape.

    Raises:
        TypeError, ValueError: images of another shape or dtype, or no range of angles.
    """
    x = as_images("random_rotation", images)
    low, high = as_symmetric_range("random_rotation", "degrees", degrees)
    fill = as_number("random_rotation", "fill", fill)
    (angle,) = draws(1, x.shape[0], generator)
    cos, sin = _cos_and_sin(between(low, high, angle))
    centred = F.zeros_like(cos)
    # Rows point down, so the inverse of a counter-clockwise turn has its minus in the first row.
    return _sampled(x, ((cos, -sin), (sin, cos)), (centred, centred), fill)


def random_affine(
    images: Any,
    degrees: Range = 0.0,
    translate: Sequence[float] | None = None,
    scale: Sequence[float] | None = None,
    shear: Range | None = None,
    *,
    fill: float = 0.0,
    generator: random.Generator | None = None,
) -> Tensor:
    """Each image sheared, scaled, turned and moved, by amounts of its own, sampled bilinearly.

    A pixel at p, counted from the image's centre with x to the right and y down, moves to::

        scale * R(angle) @ [[1, 0], [-tan(shear_y), 1]] @ [[1, -tan(shear_x)], [0, 1]] @ p + shift

    where R turns counter-clockwise, as `random_rotation` does. (torchvision's RandomAffine turns
    clockwise; for a symmetric range it is the same.)

    Args:
        images: float32 (N, H, W, C).
        degrees: the range of angles: d for (-d, d), or (lowest, highest).
        translate: (a, b): moves by up to a * W to the left or right and b * H up or down, by whole
            pixels, so that a move alone does not blur; fractions from 0 to 1.
        scale: (lowest, highest) factor, above 0.
        shear: the range of the angle in degrees that columns lean: s for (-s, s), or (lowest,
            highest), or four numbers, of which the last two are the range for rows.
        fill: what is seen where the image does not reach.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape.

    Raises:
        TypeError, ValueError: images of another shape or dtype, or ranges that are none.

    Source: Jaderberg, Simonyan, Zisserman, Kavukcuoglu: Spatial transformer networks, NeurIPS 2015
    (sampling); the parameters are those of torchvision's RandomAffine.
    """
    name = "random_affine"
    x = as_images(name, images)
    count, height, width, _ = x.shape
    angles = as_symmetric_range(name, "degrees", degrees)
    moves = _as_fractions(translate)
    factors = (1.0, 1.0) if scale is None else as_range(name, "scale", scale, low=0)
    if factors[0] == 0:
        raise ValueError(f"{name} wants scale above 0, got {scale!r}")
    leans_x, leans_y = _as_shear(shear)
    fill = as_number(name, "fill", fill)

    u = draws(6, count, generator)
    cos, sin = _cos_and_sin(between(*angles, u[0]))
    tan_x = F.tan(between(*leans_x, u[1]) * (math.pi / 180))
    tan_y = F.tan(between(*leans_y, u[2]) * (math.pi / 180))
    factor = between(*factors, u[3])
    shift_x = F.round(between(-moves[0], moves[0], u[4]) * width)
    shift_y = F.round(between(-moves[1], moves[1], u[5]) * height)
    # The map without the scale is [[a, b], [c, d]]; its determinant is 1, and so its inverse is
    # [[d, -b], [-c, a]].
    bend = 1 + tan_x * tan_y
    a, b = cos - sin * tan_y, sin * bend - cos * tan_x
    c, d = -sin - cos * tan_y, cos * bend + sin * tan_x
    inverse = ((d / factor, -b / factor), (-c / factor, a / factor))
    return _sampled(x, inverse, (shift_x, shift_y), fill)


def _as_fractions(translate: Any) -> tuple[float, float]:
    if translate is None:
        return 0.0, 0.0
    if not isinstance(translate, Sequence) or isinstance(translate, str) or len(translate) != 2:
        raise TypeError(
            f"random_affine wants translate as two fractions (of the width, of the height), got "
            f"{translate!r}"
        )
    x, y = (as_number("random_affine", "translate", part, 0, 1) for part in translate)
    return x, y


def _as_shear(shear: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    if shear is None:
        return (0.0, 0.0), (0.0, 0.0)
    both = isinstance(shear, Sequence) and len(shear) == 4
    ranges = (shear[:2], shear[2:]) if both else (shear, (0.0, 0.0))
    x, y = (as_symmetric_range("random_affine", "shear", part) for part in ranges)
    if max(map(abs, (*x, *y))) >= 90:
        raise ValueError(f"random_affine wants shear between -90 and 90 degrees, got {shear!r}")
    return x, y


def _cos_and_sin(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine and sine of angles in degrees, exact for quarter turns."""
    quarters = F.round(degrees / 90)
    rest = (degrees - 90 * quarters) * (math.pi / 180)
    cos, sin = F.cos(rest), F.sin(rest)
    is_odd = quarters % 2 == 1
    cos, sin = F.where(is_odd, -sin, cos), F.where(is_odd, cos, sin)
    is_half_turned = quarters % 4 >= 2
    return F.where(is_half_turned, -cos, cos), F.where(is_half_turned, -sin, sin)


def _sampled(
    images: Tensor,
    inverse: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    shift: tuple[Tensor, Tensor],
    fill: float,
) -> Tensor:
    """Image n seen through an affine map: pixel p shows what was at ``inverse @ (p - shift)``.

    Places count from the centre of the image, (x, y), x to the right and y down. What lies between
    pixels is their mean, weighted by nearness (bilinear); around the image all is `fill`.

    Args:
        images: (N, H, W, C).
        inverse: two rows of two tensors (N,).
        shift: two tensors (N,).
        fill: a number.
    """
    count, height, width, channels = images.shape
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    x = F.arange(width, dtype=dtypes.float32) - centre_x - shift[0][:, None]
    y = F.arange(height, dtype=dtypes.float32) - centre_y - shift[1][:, None]
    # Columns and rows apart until the last sum, so that little is computed for every pixel.
    (xx, xy), (yx, yy) = ((part[:, None] for part in row) for row in inverse)
    source_x = (xx * x)[:, None, :] + (xy * y + centre_x)[:, :, None]
    source_y = (yx * x)[:, None, :] + (yy * y + centre_y)[:, :, None]

    # With a border around the image, everything outside looks the same as places on the border.
    left, right_share = _cell(source_x, width)
    top, bottom_share = _cell(source_y, height)
    bordered = F.pad(images, [(0, 0), (1, 2), (1, 2), (0, 0)], value=fill)
    stride, size = width + 3, (height + 3) * (width + 3)
    pixels = F.reshape(bordered, (count * size, channels))
    first = F.arange(count) * size + stride + 1  # where pixel (0, 0) of each image is
    index = top * stride + left + first[:, None, None]

    def corner(offset: int) -> Tensor:
        # The list cut off in front, which costs nothing, instead of larger indices.
        return F.take(pixels[offset:], index, role="pixel")

    right_share = F.astype(right_share, images.dtype)[..., None]
    bottom_share = F.astype(bottom_share, images.dtype)[..., None]
    upper = faded(corner(0), corner(1), right_share)
    lower = faded(corner(stride), corner(stride + 1), right_share)
    return faded(upper, lower, bottom_share)


def _cell(source: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The pixel before each place, int64 from -1 to `length`, and how far behind it is."""
    place = F.minimum(F.maximum(source, -1.0), float(length))
    before = F.floor(place)
    return F.astype(before, dtypes.int64), place - before
