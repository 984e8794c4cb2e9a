"""A picture of what each augmentation does."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

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
from palto.tensor import Tensor, random

Augmentation = Callable[..., Tensor]


def _examples(count: int, channels: int) -> dict[str, Augmentation]:
    """One call of each augmentation, by the text that is written beside it."""
    labels = np.arange(count)
    jitter = {"brightness": 0.5, "contrast": 0.5}
    if channels == 3:
        jitter |= {"saturation": 0.5, "hue": 0.1}
    settings = ", ".join(f"{name}={value}" for name, value in jitter.items())
    return {
        "random_crop\n4": lambda x, **g: random_crop(x, 4, **g),
        'random_crop\n4, mode="reflect"': lambda x, **g: random_crop(x, 4, mode="reflect", **g),
        "random_horizontal_flip": random_horizontal_flip,
        "random_vertical_flip": random_vertical_flip,
        "random_rotation\n30": lambda x, **g: random_rotation(x, 30, **g),
        "random_affine\n15, (0.1, 0.1), (0.7, 1.2), 20": lambda x, **g: random_affine(
            x, 15, (0.1, 0.1), (0.7, 1.2), 20, **g
        ),
        f"color_jitter\n{settings}": lambda x, **g: color_jitter(x, **jitter, **g),
        "random_erasing\n0.8": lambda x, **g: random_erasing(x, 0.8, **g),
        "gaussian_noise\n0.1": lambda x, **g: gaussian_noise(x, 0.1, **g),
        "mixup": lambda x, **g: mixup(x, labels, classes=count, **g)[0],
        "cutmix": lambda x, **g: cutmix(x, labels, classes=count, **g)[0],
    }


def picture_sheet(images: Any, path: str | os.PathLike[str], *, seed: int = 0) -> None:
    """Write a PNG file that shows each augmentation: a row each, the original first, then draws.

    Args:
        images: float32 (N, H, W, C) in [0, 1], grey or of colour. Rows show one after the other;
            mixup and cutmix take their partners from the rest. Eight are enough.
        path: the file to write.
        seed: equal seeds give equal pictures.

    Raises:
        ImportError: matplotlib is missing.
        TypeError, ValueError: images of another shape or dtype.
    """
    x = as_images("picture_sheet", images)
    if x.shape[0] == 0 or x.shape[3] not in (1, 3):
        raise ValueError(
            f"picture_sheet wants at least one image (N, H, W, C) of 1 or 3 channels, got {x.shape}"
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "picture_sheet draws with matplotlib, which is not installed: pip install 'palto[plot]'"
        ) from error

    generator = random.Generator(seed)
    draws = 6
    examples = _examples(x.shape[0], x.shape[3])
    figure = Figure(figsize=(8, 0.9 * len(examples)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(examples), 1 + draws)
    for row, (text, augmentation) in enumerate(examples.items()):
        place = row % x.shape[0]
        shown = [x[place]]
        shown += [augmentation(x, generator=generator)[place] for _ in range(draws)]
        for axis, image in zip(axes[row], shown, strict=True):
            axis.imshow(image.array(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.savefig(path, format="png", dpi=100)
