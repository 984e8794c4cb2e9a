"""Convolution and pooling over channels-last images, in their general form."""

from __future__ import annotations

from typing import Any

from palto.tensor.functions.creation import asarray
from palto.tensor.functions.elementwise import promote
from palto.tensor.graph import apply
from palto.tensor.primitives import contract
from palto.tensor.primitives import window as rows
from palto.tensor.tensor import Shape, Tensor

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def conv(
    x: Any,
    w: Any,
    *,
    stride: Ints | None = None,
    padding: Pairs | None = None,
    input_dilation: Ints | None = None,
    kernel_dilation: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution (cross-correlation) over one to three axes of space.

    Args:
        x: images, shape (N, ...space, C).
        w: kernels, shape (...kernel, C / groups, O).
        stride: the step of the kernel along each axis of space; 1 by default.
        padding: zeros (before, after) along each axis; a negative number crops.
        input_dilation: the distance between neighbouring pixels; above 1, zeros stand between.
        kernel_dilation: the distance between neighbouring kernel elements.
        groups: output channels are split into this many groups, each seeing its share of C.

    Returns:
        Shape (N, ...space', O).

    Raises:
        ValueError: shapes that do not fit, both named.
    """
    x, w = promote(x, w)
    ones = (1,) * (x.ndim - 2)
    result: Tensor = apply(
        contract.conv,
        x,
        w,
        stride=stride or ones,
        padding=padding or ((0, 0),) * len(ones),
        input_dilation=input_dilation or ones,
        kernel_dilation=kernel_dilation or ones,
        groups=groups,
    )
    return result


def window_max(x: Tensor, *, window: Ints, stride: Ints, padding: Pairs) -> tuple[Tensor, Tensor]:
    """The largest pixel of each window, and its place in the window (int32, row by row)."""
    result: tuple[Tensor, Tensor] = apply(
        rows.window_max, asarray(x), window=window, stride=stride, padding=padding
    )
    return result


def window_take(
    x: Tensor, indices: Tensor, *, window: Ints, stride: Ints, padding: Pairs
) -> Tensor:
    """From each window the pixel at its index."""
    result: Tensor = apply(
        rows.window_take, x, indices, window=window, stride=stride, padding=padding
    )
    return result


def window_put(
    x: Tensor, indices: Tensor, *, space: Shape, window: Ints, stride: Ints, padding: Pairs
) -> Tensor:
    """Each value added to the pixel of its window at its index, in an image of size `space`."""
    result: Tensor = apply(
        rows.window_put, x, indices, space=space, window=window, stride=stride, padding=padding
    )
    return result


def window_sum(
    x: Tensor,
    *,
    window: Ints,
    stride: Ints,
    padding: Pairs,
    input_dilation: Ints | None = None,
) -> Tensor:
    """The sum of the pixels of each window."""
    result: Tensor = apply(
        rows.window_sum,
        asarray(x),
        window=window,
        stride=stride,
        padding=padding,
        input_dilation=input_dilation or (1,) * len(window),
    )
    return result
