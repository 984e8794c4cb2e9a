"""Augmentations that mix images of a batch, and their labels with them."""

from __future__ import annotations

import math
from typing import Any

from palto.data.augment.common import (
    as_images,
    as_number,
    as_whole,
    box_mask,
    draws,
    faded,
    per_image,
)
from palto.tensor import Tensor, dtypes, random
from palto.tensor import functions as F


def mixup(
    images: Any,
    labels: Any,
    alpha: float = 1.0,
    classes: int | None = None,
    *,
    generator: random.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Each image faded into another one of the batch, and its label with it.

    ::

        weight ~ Beta(alpha, alpha)
        image  = weight * image + (1 - weight) * other image
        label  = weight * label + (1 - weight) * other label

    The others are the batch in a random order; each image has a weight of its own (the paper draws
    one for the batch). A small `alpha`, such as 0.2, changes most images little.

    Args:
        images: float32 (N, H, W, C).
        labels: whole numbers (N,), or soft labels (N, classes), which an earlier mix may have made.
        alpha: above 0: the larger, the closer to half and half.
        classes: how many there are; needed when the labels are whole numbers.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape, and soft labels, float32 (N, classes), each with the sum 1.

    Raises:
        TypeError, ValueError: images or labels of another shape or dtype, no `classes`, an `alpha`
            not above 0.
        IndexError: a label that is not below `classes`.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz: mixup: beyond empirical risk minimization, ICLR 2018.
    """
    x, y = _as_batch("mixup", images, labels, classes)
    weight = _symmetric_beta("mixup", x.shape[0], alpha, generator)
    others = random.permutation(x.shape[0], generator=generator)
    mixed = faded(F.take(x, others), x, per_image(F.astype(weight, x.dtype)))
    return mixed, _mixed_labels(y, others, weight)


def cutmix(
    images: Any,
    labels: Any,
    alpha: float = 1.0,
    classes: int | None = None,
    *,
    generator: random.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Each image with a box of another one of the batch in it, the label mixed by area.

    With ``weight ~ Beta(alpha, alpha)``, the box measures sqrt(1 - weight) of the height and of the
    width, its centre anywhere in the image; what reaches over the edge is cut off. The label keeps
    the fraction of pixels that the image keeps. Partners and weights are drawn as in `mixup`.

    Args:
        images: float32 (N, H, W, C).
        labels: whole numbers (N,), or soft labels (N, classes), which an earlier mix may have made.
        alpha: above 0; 1 makes all areas equally likely.
        classes: how many there are; needed when the labels are whole numbers.
        generator: what to draw from, by default the sequence of ``palto.manual_seed``.

    Returns:
        Images of the same shape, and soft labels, float32 (N, classes), each with the sum 1.

    Raises:
        TypeError, ValueError: images or labels of another shape or dtype, no `classes`, an `alpha`
            not above 0.
        IndexError: a label that is not below `classes`.

    Source: Yun, Han, Oh, Chun, Choe, Yoo: CutMix: regularization strategy to train strong
    classifiers with localizable features, ICCV 2019.
    """
    x, y = _as_batch("cutmix", images, labels, classes)
    count, height, width, _ = x.shape
    weight = _symmetric_beta("cutmix", count, alpha, generator)
    others = random.permutation(count, generator=generator)
    u = draws(2, count, generator)
    half = 0.5 * F.sqrt(1 - weight)
    top, bottom = _span(u[0], half, height)
    left, right = _span(u[1], half, width)
    pasted = box_mask(top, bottom, left, right, height, width)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return F.where(pasted, F.take(x, others), x), _mixed_labels(y, others, kept)


def _span(uniform: Tensor, half: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """From where to where a box reaches, in whole pixels; `half` is a fraction of the length."""
    centre, reach = F.floor(uniform * length), F.floor(half * length)
    return F.maximum(centre - reach, 0.0), F.minimum(centre + reach, float(length))


def _as_batch(
    function: str, images: Any, labels: Any, classes: int | None
) -> tuple[Tensor, Tensor]:
    """Images, and labels as float32 (N, classes)."""
    x, y = as_images(function, images), F.asarray(labels)
    if classes is not None:
        classes = as_whole(function, "classes", classes, low=1)
    if y.dtype in dtypes.INTEGER and y.shape == x.shape[:1]:
        if classes is None:
            raise ValueError(
                f"{function} makes one-hot labels of whole numbers; say how many classes there "
                "are: classes=10"
            )
        # Rows of the identity, not one_hot: a label out of range raises.
        return x, F.take(F.eye(classes), y, role="label")
    if y.dtype in dtypes.FLOATING and y.ndim == 2 and y.shape[0] == x.shape[0]:
        if classes not in (None, y.shape[1]):
            raise ValueError(
                f"{function} got labels of shape {y.shape} and classes={classes}; leave classes out"
            )
        return x, y
    raise ValueError(
        f"{function} wants labels of whole numbers {x.shape[:1]}, or soft labels "
        f"({x.shape[0]}, classes), with images of shape {x.shape}; got {y.dtype.name}{y.shape}"
    )


def _mixed_labels(labels: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    return faded(F.take(labels, others), labels, F.astype(weight, labels.dtype)[:, None])


def _symmetric_beta(
    function: str, count: int, alpha: float, generator: random.Generator | None
) -> Tensor:
    """Numbers distributed as Beta(alpha, alpha), (N,), from two uniform numbers each.

    If T has Student's t distribution with 2 alpha degrees of freedom, then
    (1 + T / sqrt(2 alpha + T^2)) / 2 has this one. Bailey (Polar generation of random variates with
    the t-distribution, Mathematics of Computation 62, 1994) gives T without a rejection, which a
    program of fixed shapes could not do: T^2 = 2 alpha (U^(-1/alpha) - 1) cos^2(2 pi V).
    """
    alpha = as_number(function, "alpha", alpha, low=0)
    if alpha == 0:
        raise ValueError(f"{function} wants alpha above 0, got 0; leave {function} out instead")
    u, v = draws(2, count, generator)
    logarithm = F.log1p(-u) / alpha  # 1 - u is uniform too, and never 0
    power, rest = F.exp(logarithm), -F.expm1(logarithm)
    cos = F.cos(2 * math.pi * v)
    # T^2 / (2 alpha + T^2), multiplied by the power so that nothing overflows.
    squared = rest * cos * cos
    distance = F.sqrt(squared / (power + squared))
    return 0.5 * (1 + F.where(cos < 0, -distance, distance))
