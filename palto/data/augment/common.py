"""What the augmentations share: checks of what the user gave, draws, boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from palto.tensor import Tensor, dtypes, random
from palto.tensor import functions as F

#: One number or a pair (lowest, highest).
Range = float | Sequence[float]


def as_images(function: str, images: Any) -> Tensor:
    """Images as a tensor (N, H, W, C).

    Raises:
        TypeError: another dtype than float32 (or float64, for tests of gradients).
        ValueError: another number of axes, or images without pixels.
    """
    x = F.asarray(images)
    if x.dtype == dtypes.uint8:
        raise TypeError(
            f"{function} wants float32 images in [0, 1], got uint8{x.shape}; make them "
            "floats first: images = augment.convert_image_dtype(images)"
        )
    if x.dtype not in (dtypes.float32, dtypes.float64):
        raise TypeError(
            f"{function} wants float32 images in [0, 1], got {x.dtype.name}{x.shape}; cast them "
            "with palto.astype(images, palto.float32)"
        )
    if x.ndim == 3:
        raise ValueError(
            f"{function} wants a batch of images (N, H, W, C), got shape {x.shape}; add an axis: "
            "images[None] to one image (H, W, C), images[..., None] to grey images (N, H, W)"
        )
    if x.ndim != 4:
        raise ValueError(f"{function} wants images (N, H, W, C), got shape {x.shape}; reshape them")
    if 0 in x.shape[1:]:
        raise ValueError(f"{function} wants images with pixels, got shape {x.shape}")
    return x


def as_number(
    function: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> float:
    """A finite Python number from `low` to `high`.

    Raises:
        TypeError: no number.
        ValueError: a number outside of the bounds, infinite or NaN.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(
            f"{function} wants {name} as a Python number, got {value!r}; it is fixed when the "
            "function runs or is compiled"
        )
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        raise ValueError(f"{function} wants {name} {_bounds(low, high)}, got {value}")
    return number


def _bounds(low: float, high: float) -> str:
    if math.isfinite(high):
        return f"from {low:g} to {high:g}"
    return f"of at least {low:g}" if math.isfinite(low) else "finite"


def as_whole(function: str, name: str, value: Any, low: int) -> int:
    """A whole Python number of at least `low`.

    Raises:
        TypeError: no whole number.
        ValueError: a smaller one.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{function} wants {name} as a whole number, got {value!r}")
    if value < low:
        raise ValueError(f"{function} wants {name} of at least {low}, got {value}")
    return int(value)


def as_range(
    function: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> tuple[float, float]:
    """A pair (lowest, highest), both from `low` to `high`.

    Raises:
        TypeError: no pair of numbers.
        ValueError: out of bounds or out of order.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{function} wants {name} as a pair (lowest, highest), got {value!r}")
    lowest, highest = (as_number(function, name, part, low, high) for part in value)
    if lowest > highest:
        raise ValueError(
            f"{function} wants {name} as (lowest, highest), got {value!r}; swap the two"
        )
    return lowest, highest


def as_symmetric_range(function: str, name: str, value: Any) -> tuple[float, float]:
    """(-value, value) for a number, a pair as it is.

    Raises:
        TypeError, ValueError: a negative number, or no pair.
    """
    if isinstance(value, Real):
        limit = as_number(function, name, value, low=0)
        return -limit, limit
    return as_range(function, name, value)


def between(low: float, high: float, uniform: Tensor) -> Tensor:
    """Numbers from `low` to `high` for uniform ones from 0 to 1; exactly `low` if both agree."""
    return low + (high - low) * uniform


def draws(count: int, images: int, generator: random.Generator | None) -> tuple[Tensor, ...]:
    """`count` uniform numbers from 0 up to 1 for each image, in one draw: tensors (N,)."""
    return F.unstack(random.uniform((count, images), generator=generator))


def per_image(values: Tensor) -> Tensor:
    """One number for each image, (N,), in the shape that broadcasts against images."""
    return F.reshape(values, (*values.shape, 1, 1, 1))


def box_mask(
    top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int
) -> Tensor:
    """Which pixels lie in each image's box, bool (N, H, W, 1); bottom and right do not belong."""
    rows, columns = F.arange(height, dtype=top.dtype), F.arange(width, dtype=left.dtype)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])
    return in_rows[:, :, None, None] & in_columns[:, None, :, None]


def faded(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """``(1 - share) * first + share * second``, for shares from 0 to 1.

    Exactly `first` for share 0 and where both agree; rounding never leads out of [0, 1].
    """
    return first + (second - first) * share
