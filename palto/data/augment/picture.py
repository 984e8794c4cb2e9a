"""A picture of what each augmentation does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from palto.data.augment.common import as_images
from palto.data.augment.geometry import (
    random_affine,
    random_crop,
    random_horizontal_flip,
    random_rotation,
    random_vertical_flip,
)
from palto.data.augment.mixing import cutmix, mixup
from palto.data.augment.pixels import color_jitter, gaussian_noise, random_erasing
from palto.extras import require
from palto.tensor import Tensor, random

#: How many draws a row shows.
DRAWS = 7

# Inches, of 120 pixels: an image of 28 x 28 is shown three times as large.
_IMAGE, _GAP, _NAMES, _HEADINGS = 0.7, 0.05, 2.25, 0.3


class _Row(NamedTuple):
    name: str
    settings: str  # how the parameters are written beside the name
    augment: Callable[[Tensor, random.Generator], Tensor]


def _rows(count: int, channels: int) -> list[_Row]:
    labels = np.arange(count)

    def jittered(x: Tensor, generator: random.Generator) -> Tensor:
        colours = (0.5, 0.1) if channels == 3 else (0.0, 0.0)
        return color_jitter(x, 0.5, 0.5, *colours, generator=generator)

    return [
        _Row("random_horizontal_flip", "", lambda x, g: random_horizontal_flip(x, generator=g)),
        _Row("random_vertical_flip", "", lambda x, g: random_vertical_flip(x, generator=g)),
        _Row("random_crop", "padding=4", lambda x, g: random_crop(x, 4, generator=g)),
        _Row(
            "random_crop",
            'padding=4, mode="reflect"',
            lambda x, g: random_crop(x, 4, mode="reflect", generator=g),
        ),
        _Row("random_rotation", "degrees=30", lambda x, g: random_rotation(x, 30, generator=g)),
        _Row(
            "random_affine",
            "degrees=15, translate=(0.1, 0.1),\nscale=(0.7, 1.2), shear=20",
            lambda x, g: random_affine(x, 15, (0.1, 0.1), (0.7, 1.2), 20, generator=g),
        ),
        _Row(
            "color_jitter",
            "brightness=0.5, contrast=0.5" + ",\nsaturation=0.5, hue=0.1" * (channels == 3),
            jittered,
        ),
        _Row(
            "random_erasing",
            "probability=0.8, value=0.5",
            lambda x, g: random_erasing(x, 0.8, value=0.5, generator=g),
        ),
        _Row("gaussian_noise", "std=0.1", lambda x, g: gaussian_noise(x, 0.1, generator=g)),
        _Row("mixup", "alpha=1", lambda x, g: mixup(x, labels, 1.0, count, generator=g)[0]),
        _Row("cutmix", "alpha=1", lambda x, g: cutmix(x, labels, 1.0, count, generator=g)[0]),
    ]


def picture_sheet(images: Any, path: str | os.PathLike[str], *, seed: int = 0) -> None:
    """Write a PNG file that shows each augmentation: a row each, the original first, then draws.

    Args:
        images: float32 (N, H, W, C) in [0, 1], grey or in colour. Each row shows the next one;
            mixup and cutmix take their partners from the others. The first dozen is used.
        path: the file to write.
        seed: equal seeds give equal pictures.

    Raises:
        MissingExtraError: matplotlib is not installed.
        TypeError, ValueError: images of another shape or dtype, or none.
    """
    x = as_images("picture_sheet", images)[:12]
    count, channels = x.shape[0], x.shape[3]
    if count == 0 or channels not in (1, 3):
        raise ValueError(
            "picture_sheet wants at least one image (N, H, W, C) of 1 or 3 channels, got shape "
            f"{x.shape}"
        )
    figures = require("matplotlib.figure", "plot", "picture_sheet")

    rows = _rows(count, channels)
    generator = random.Generator(seed)
    step = _IMAGE + _GAP
    width, height = _NAMES + (DRAWS + 1) * step + 3 * _GAP, _HEADINGS + len(rows) * step
    # The figure alone, without pyplot: no window, no state shared with the user's own figures.
    figure = figures.Figure(figsize=(width, height), dpi=120)
    axes = figure.add_axes((0, 0, 1, 1))  # one for all, in inches from the top left

    def left(column: int) -> float:
        return _NAMES + column * step + 2 * _GAP * (column > 0)

    grey: dict[str, Any] = {"color": "0.35", "size": 8}
    axes.text(left(0), _HEADINGS - 0.08, "original", **grey)
    axes.text(left(1), _HEADINGS - 0.08, f"{DRAWS} draws", **grey)
    for row, (name, settings, augment) in enumerate(rows):
        top = _HEADINGS + row * step
        middle = top + _IMAGE / 2
        bold: dict[str, Any] = {"size": 9.5, "family": "monospace", "weight": "bold"}
        axes.text(0.1, middle, name, va="bottom" if settings else "center", **bold)
        axes.text(0.1, middle + 0.03, settings, va="top", **grey)
        place = row % count
        shown = [x[place], *(augment(x, generator)[place] for _ in range(DRAWS))]
        for column, image in enumerate(shown):
            box = _fitted(left(column), top, image.shape[1] / image.shape[0])
            look: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
            axes.imshow(image.array(), extent=box, interpolation="nearest", **look)
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    # Without the name of the program, the same pictures are the same bytes.
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def _fitted(left: float, top: float, ratio: float) -> tuple[float, float, float, float]:
    """Where an image of width over height `ratio` goes: left, right, bottom, top."""
    width, height = _IMAGE * min(ratio, 1), _IMAGE / max(ratio, 1)
    left, top = left + (_IMAGE - width) / 2, top + (_IMAGE - height) / 2
    return left, left + width, top + height, top
