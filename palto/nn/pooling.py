"""Pooling: windows of channels-last images (N, ...space, C) reduced to one pixel each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from palto.nn.convolution import IntOrInts, Ints, per_axis, require_image, short
from palto.nn.module import Module
from palto.tensor import Tensor
from palto.tensor import functions as F


def _sizes(
    x: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dims: int,
    what: str,
) -> tuple[Ints, Ints, tuple[tuple[int, int], ...]]:
    """The window, its step and the border, as the tensor functions want them."""
    require_image(x, dims, what)
    window = per_axis(kernel_size, dims, "kernel_size", least=1)
    border = per_axis(padding, dims, "padding", least=0)
    if any(2 * p > k for p, k in zip(border, window, strict=True)):
        raise ValueError(f"{what}: padding {border} is more than half of the window {window}")
    step = window if stride is None else per_axis(stride, dims, "stride", least=1)
    return window, step, tuple((p, p) for p in border)


def _max_pool(
    x: Tensor, kernel_size: IntOrInts, stride: IntOrInts | None, padding: IntOrInts, dims: int
) -> Tensor:
    x = F.asarray(x)
    window, step, border = _sizes(x, kernel_size, stride, padding, dims, f"max_pool{dims}d")
    largest, _ = F.window_max(x, window=window, stride=step, padding=border)
    return largest


def _avg_pool(
    x: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    count_include_pad: bool,
    dims: int,
) -> Tensor:
    x = F.asarray(x)
    window, step, border = _sizes(x, kernel_size, stride, padding, dims, f"avg_pool{dims}d")
    total = F.window_sum(x, window=window, stride=step, padding=border)
    if count_include_pad or not any(map(any, border)):
        return total * (1 / math.prod(window))
    ones = F.ones((1, *x.shape[1:-1], 1), dtype=x.dtype)
    return total / F.window_sum(ones, window=window, stride=step, padding=border)


def max_pool1d(
    x: Tensor, kernel_size: IntOrInts, stride: IntOrInts | None = None, padding: IntOrInts = 0
) -> Tensor:
    """The largest element of each window of sequences (N, L, C); see :func:`max_pool2d`."""
    return _max_pool(x, kernel_size, stride, padding, 1)


def max_pool2d(
    x: Tensor, kernel_size: IntOrInts, stride: IntOrInts | None = None, padding: IntOrInts = 0
) -> Tensor:
    """The largest pixel of each window, channel by channel; NaN if any is.

    Of equal pixels the first gets the gradient.

    Args:
        x: shape (N, H, W, C).
        kernel_size: the size of the window, one number or one for each axis.
        stride: the step of the window; by default its size.
        padding: a border that is never the largest, at most half of the window.

    Returns:
        Shape (N, H', W', C) with H' = (H + 2 padding - kernel_size) // stride + 1.
    """
    return _max_pool(x, kernel_size, stride, padding, 2)


def avg_pool1d(
    x: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of sequences (N, L, C); see :func:`avg_pool2d`."""
    return _avg_pool(x, kernel_size, stride, padding, count_include_pad, 1)


def avg_pool2d(
    x: Tensor,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window, channel by channel.

    Args:
        x: shape (N, H, W, C).
        kernel_size: the size of the window, one number or one for each axis.
        stride: the step of the window; by default its size.
        padding: zeros on either side, at most half of the window.
        count_include_pad: whether the zeros count as elements of the mean.

    Returns:
        Shape (N, H', W', C) with H' = (H + 2 padding - kernel_size) // stride + 1.
    """
    return _avg_pool(x, kernel_size, stride, padding, count_include_pad, 2)


def _adaptive_avg_pool(x: Tensor, output_size: int | Sequence[int | None], dims: int) -> Tensor:
    x = F.asarray(x)
    require_image(x, dims, f"adaptive_avg_pool{dims}d")
    space = x.shape[1:-1]
    wanted = (output_size,) * dims if isinstance(output_size, int) else tuple(output_size)
    known = per_axis([1 if n is None else n for n in wanted], dims, "output_size", least=1)
    out = [n if w is None else m for n, w, m in zip(space, wanted, known, strict=True)]
    if set(out) == {1}:
        return F.mean(x, tuple(range(1, dims + 1)), keepdims=True)
    if all(n % m == 0 for n, m in zip(space, out, strict=True)):
        window = tuple(n // m for n, m in zip(space, out, strict=True))
        return _avg_pool(x, window, None, 0, True, dims)
    for axis, (n, m) in enumerate(zip(space, out, strict=True), 1):
        front = (slice(None),) * axis
        parts = [
            F.mean(x[(*front, slice(i * n // m, -(-(i + 1) * n // m)))], axis, keepdims=True)
            for i in range(m)
        ]
        x = F.concat(parts, axis=axis)
    return x


def adaptive_avg_pool1d(x: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """Means of windows that give sequences (N, output_size, C) from any (N, L, C)."""
    return _adaptive_avg_pool(x, output_size, 1)


def adaptive_avg_pool2d(x: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """Means of windows chosen so that the result has a given size.

    Window i of m along an axis of n goes from floor(i n / m) up to ceil((i + 1) n / m).

    Args:
        x: shape (N, H, W, C).
        output_size: m, or (m for H, m for W), None for unchanged; 1 is global pooling.

    Returns:
        Shape (N, *output_size, C).
    """
    return _adaptive_avg_pool(x, output_size, 2)


class _Pool(Module):
    dims: ClassVar[int]

    def __init__(
        self, kernel_size: IntOrInts, stride: IntOrInts | None = None, padding: IntOrInts = 0
    ) -> None:
        self.kernel_size = per_axis(kernel_size, self.dims, "kernel_size", least=1)
        self.stride: Ints = (
            self.kernel_size if stride is None else per_axis(stride, self.dims, "stride", least=1)
        )
        self.padding = per_axis(padding, self.dims, "padding", least=0)

    def extra_repr(self) -> str:
        """Sizes."""
        parts = [str(short(self.kernel_size))]
        if self.stride != self.kernel_size:
            parts.append(f"stride={short(self.stride)}")
        if any(self.padding):
            parts.append(f"padding={short(self.padding)}")
        return ", ".join(parts)


class _MaxPool(_Pool):
    def forward(self, x: Tensor) -> Tensor:
        """(N, ...space, C) -> (N, ...space', C)."""
        return _max_pool(x, self.kernel_size, self.stride, self.padding, self.dims)


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: IntOrInts = 0,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...space, C) -> (N, ...space', C)."""
        return _avg_pool(
            x, self.kernel_size, self.stride, self.padding, self.count_include_pad, self.dims
        )


class MaxPool1d(_MaxPool):
    """The largest element of each window of sequences (N, L, C); see :class:`MaxPool2d`."""

    dims = 1


class MaxPool2d(_MaxPool):
    """The largest pixel of each window of images (N, H, W, C), channel by channel.

    Args:
        kernel_size: the size of the window, one number or one for each axis.
        stride: the step of the window; by default its size.
        padding: a border that is never the largest, at most half of the window.
    """

    dims = 2


class AvgPool1d(_AvgPool):
    """The mean of each window of sequences (N, L, C); see :class:`AvgPool2d`."""

    dims = 1


class AvgPool2d(_AvgPool):
    """The mean of each window of images (N, H, W, C), channel by channel.

    Args:
        kernel_size: the size of the window, one number or one for each axis.
        stride: the step of the window; by default its size.
        padding: zeros on either side, at most half of the window.
        count_include_pad: whether the zeros count as elements of the mean.
    """

    dims = 2


class _AdaptiveAvgPool(Module):
    dims: ClassVar[int]

    def __init__(self, output_size: int | Sequence[int | None]) -> None:
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...space, C) -> (N, *output_size, C)."""
        return _adaptive_avg_pool(x, self.output_size, self.dims)

    def extra_repr(self) -> str:
        """The output's size."""
        return str(self.output_size)


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    """Means of windows that give sequences (N, output_size, C) from any (N, L, C)."""

    dims = 1


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    """Means of windows that give images (N, *output_size, C) from any (N, H, W, C).

    Args:
        output_size: a number, or one for each axis, None for unchanged; 1 is global pooling.
    """

    dims = 2
