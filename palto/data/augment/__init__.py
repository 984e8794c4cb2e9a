"""Augmentation: functions from a batch of images to a batch of changed images.

Images are float32 (N, H, W, C), from 0 to 1. Every image of a batch gets draws of its own, from
``palto.random``; so the functions run inside a compiled training step too, and draw the same there.
"""

from palto.data.augment.geometry import (
    random_affine,
    random_crop,
    random_horizontal_flip,
    random_rotation,
    random_vertical_flip,
)
from palto.data.augment.mixing import cutmix, mixup
from palto.data.augment.picture import picture_sheet
from palto.data.augment.pixels import (
    color_jitter,
    convert_image_dtype,
    gaussian_noise,
    normalize,
    random_erasing,
)

__all__ = [
    "color_jitter", "convert_image_dtype", "cutmix", "gaussian_noise", "mixup", "normalize",
    "picture_sheet", "random_affine", "random_crop", "random_erasing", "random_horizontal_flip",
    "random_rotation", "random_vertical_flip",
]  # fmt: skip
