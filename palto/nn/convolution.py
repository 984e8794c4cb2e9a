"""Convolutions over one, two or three axes of space, and their transposes.

Images are channels-last, (N, ...space, C). A kernel is (...kernel, C_in / groups, C_out): the
output channels are contiguous, and they are what the compiled kernels compute side by side in a
vector. PyTorch's (C_out, C_in / groups, ...kernel) becomes this layout by moving its first two axes
to the end and swapping them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from palto.nn import init
from palto.nn.module import Module, Parameter
from palto.tensor import Tensor
from palto.tensor import functions as F
from palto.tensor.tensor import Shape

Ints = tuple[int, ...]
IntOrInts = int | Sequence[int]


def per_axis(value: IntOrInts, dims: int, name: str, *, least: int) -> Ints:
    """One whole number for each axis of space from one for all, or from a sequence.

    Raises:
        TypeError: not whole numbers.
        ValueError: another count, or a number below `least`.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if isinstance(value, str) or not all(hasattr(v, "__index__") for v in values):
        raise TypeError(f"{name} is a whole number or {dims} of them, got {value!r}")
    numbers = tuple(int(v) for v in values)
    if len(numbers) != dims or min(numbers) < least:
        raise ValueError(f"{name} is {dims} numbers of at least {least}, got {value!r}")
    return numbers


def short(value: Any) -> Any:
    """One number for several equal ones."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def require_image(x: Tensor, dims: int, what: str, channels: int | None = None) -> None:
    """Refuse what is not a batch of channels-last images.

    Raises:
        ValueError: another number of axes, or of channels.
    """
    space = {1: "L", 2: "H, W", 3: "D, H, W"}[dims]
    wanted = f"(N, {space}, {'C' if channels is None else channels})"
    if x.ndim == dims + 1:
        hint = "; a single image becomes a batch by x[None]"
    elif x.ndim == dims + 2 and channels in (None, x.shape[-1]):
        return
    elif x.ndim == dims + 2 and x.shape[1] == channels:
        order = ", ".join(map(str, (0, *range(2, dims + 2), 1)))
        hint = f"; images are channels-last: x.permute({order}) makes them so"
    else:
        hint = ""
    raise ValueError(f"{what} wants an input of shape {wanted}, got {x.shape}{hint}")


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: IntOrInts | str,
    dilation: IntOrInts,
    groups: int,
    dims: int,
) -> Tensor:
    x = F.asarray(x)
    require_image(x, dims, f"conv{dims}d", weight.shape[-2] * groups)
    strides = per_axis(stride, dims, "stride", least=1)
    dilations = per_axis(dilation, dims, "dilation", least=1)
    result = F.conv(
        x,
        weight,
        stride=strides,
        padding=_borders(padding, weight.shape[:dims], strides, dilations),
        kernel_dilation=dilations,
        groups=groups,
    )
    return result if bias is None else result + bias


def _borders(
    padding: IntOrInts | str, kernel: Shape, stride: Ints, dilation: Ints
) -> tuple[tuple[int, int], ...]:
    dims = len(kernel)
    if padding == "same":
        if set(stride) != {1}:
            raise ValueError(f"padding='same' wants stride 1, got {stride}")
        total = [(k - 1) * gap for k, gap in zip(kernel, dilation, strict=True)]
        return tuple((n // 2, n - n // 2) for n in total)
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise ValueError(f"padding is a number, {dims} numbers, 'same' or 'valid', got {padding!r}")
    return tuple((n, n) for n in per_axis(padding, dims, "padding", least=0))


def _convolve_transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrInts,
    padding: IntOrInts,
    output_padding: IntOrInts,
    groups: int,
    dilation: IntOrInts,
    dims: int,
) -> Tensor:
    x = F.asarray(x)
    require_image(x, dims, f"conv_transpose{dims}d", weight.shape[-2] * groups)
    strides = per_axis(stride, dims, "stride", least=1)
    dilations = per_axis(dilation, dims, "dilation", least=1)
    extra = per_axis(output_padding, dims, "output_padding", least=0)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            f"output_padding {extra} must be smaller than the stride {strides} or the dilation "
            f"{dilations}"
        )
    crop = per_axis(padding, dims, "padding", least=0)
    reach = [(k - 1) * gap for k, gap in zip(weight.shape, dilations, strict=False)]
    # Every pixel stamps the kernel onto the output: a convolution of the pixels, spread apart by
    # the stride, with the kernel turned around.
    result = F.conv(
        x,
        F.flip(weight, axis=tuple(range(dims))),
        padding=tuple((r - c, r - c + e) for r, c, e in zip(reach, crop, extra, strict=True)),
        input_dilation=strides,
        kernel_dilation=dilations,
        groups=groups,
    )
    return result if bias is None else result + bias


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution of sequences (N, L, C) with a kernel (K, C / groups, O); see :func:`conv2d`."""
    return _convolve(x, weight, bias, stride, padding, dilation, groups, 1)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution (cross-correlation) of images.

    y[n, i, j, o] = b[o] + sum over p, q, c of
    x[n, i s + p d - pad, j s + q d - pad, c] w[p, q, c, o]

    Args:
        x: shape (N, H, W, C).
        weight: shape (KH, KW, C / groups, O).
        bias: shape (O,), or None.
        stride: the step s of the kernel, one number or one for each axis.
        padding: zeros on either side, one number or one for each axis; "same" keeps the size,
            "valid" is 0.
        dilation: the distance d between the pixels under neighbouring kernel elements.
        groups: the output channels are split into so many groups, each of which sees its share of
            the input channels.

    Returns:
        Shape (N, H', W', O) with H' = (H + 2 padding - dilation (KH - 1) - 1) // stride + 1.

    Raises:
        ValueError: shapes that do not fit.
    """
    return _convolve(x, weight, bias, stride, padding, dilation, groups, 2)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts | str = 0,
    dilation: IntOrInts = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution of volumes (N, D, H, W, C) with a kernel (KD, KH, KW, C / groups, O)."""
    return _convolve(x, weight, bias, stride, padding, dilation, groups, 3)


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Tensor:
    """Transposed convolution of sequences (N, L, C); see :func:`conv_transpose2d`."""
    return _convolve_transposed(
        x, weight, bias, stride, padding, output_padding, groups, dilation, 1
    )


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Tensor:
    """Transposed convolution of images: each pixel stamps the kernel onto a larger image.

    y[n, i s + p d - pad, j s + q d - pad, o] = b[o] + sum over i, j, p, q, c that lead there of
    x[n, i, j, c] w[p, q, c, o]

    Args:
        x: shape (N, H, W, C).
        weight: shape (KH, KW, C / groups, O), as a convolution's from C to O channels. PyTorch's
            (C, O / groups, KH, KW) becomes this layout, for one group, by permute(2, 3, 0, 1).
        bias: shape (O,), or None.
        stride: the distance s between the stamps.
        padding: how much is cut off on either side of the result.
        output_padding: how much is added back at the end.
        groups: as in :func:`conv2d`.
        dilation: the distance d between the elements of a stamp.

    Returns:
        Shape (N, H', W', O) with
        H' = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1.

    Raises:
        ValueError: shapes that do not fit, or an output_padding that is not below the stride.
    """
    return _convolve_transposed(
        x, weight, bias, stride, padding, output_padding, groups, dilation, 2
    )


def conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrInts = 1,
    padding: IntOrInts = 0,
    output_padding: IntOrInts = 0,
    groups: int = 1,
    dilation: IntOrInts = 1,
) -> Tensor:
    """Transposed convolution of volumes (N, D, H, W, C); see :func:`conv_transpose2d`."""
    return _convolve_transposed(
        x, weight, bias, stride, padding, output_padding, groups, dilation, 3
    )


class _Convolution(Module):
    """What all convolutions have: their sizes, a kernel and a bias."""

    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts,
        padding: IntOrInts | str,
        dilation: IntOrInts,
        groups: int,
        bias: bool,
    ) -> None:
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{type(self).__name__}: groups={groups} must divide in_channels={in_channels} "
                f"and out_channels={out_channels}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = per_axis(kernel_size, self.dims, "kernel_size", least=1)
        self.stride = per_axis(stride, self.dims, "stride", least=1)
        self.padding = (
            padding
            if isinstance(padding, str)
            else per_axis(padding, self.dims, "padding", least=0)
        )
        self.dilation = per_axis(dilation, self.dims, "dilation", least=1)
        self.groups = groups
        shape = (*self.kernel_size, in_channels // groups, out_channels)
        self.weight = Parameter(F.zeros(shape))
        self.bias = Parameter(F.zeros(out_channels)) if bias else None
        bound = 1 / math.sqrt(max(self._fan(), 1))
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                init.uniform_(parameter, -bound, bound)

    def _fan(self) -> int:
        """How many weights each output pixel depends on."""
        return math.prod(self.kernel_size) * self.in_channels // self.groups

    def extra_repr(self) -> str:
        """Sizes, and what differs from the usual."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={short(self.kernel_size)}"]
        for name, usual in (
            ("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1),
        ):  # fmt: skip
            value = getattr(self, name, usual)
            if short(value) != usual:
                parts.append(f"{name}={short(value)!r}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)


class _Forward(_Convolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts | str = 0,
        dilation: IntOrInts = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        # Says now, not at the first call, what is wrong with a padding.
        _borders(self.padding, self.kernel_size, self.stride, self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...space, in_channels) -> (N, ...space', out_channels)."""
        return _convolve(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            self.dims,
        )  # fmt: skip


class _Transposed(_Convolution):
    padding: Ints

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrInts,
        stride: IntOrInts = 1,
        padding: IntOrInts = 0,
        output_padding: IntOrInts = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrInts = 1,
    ) -> None:
        self.output_padding = per_axis(output_padding, self.dims, "output_padding", least=0)
        borders = per_axis(padding, self.dims, "padding", least=0)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, borders, dilation, groups, bias
        )

    def _fan(self) -> int:
        # PyTorch's choice: that of the convolution of which this is the transpose.
        return math.prod(self.kernel_size) * self.out_channels // self.groups

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...space, in_channels) -> (N, ...space', out_channels)."""
        return _convolve_transposed(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding,
            self.groups, self.dilation, self.dims,
        )  # fmt: skip


class Conv1d(_Forward):
    """Convolution of sequences (N, L, C); see :class:`Conv2d`."""

    dims = 1


class Conv2d(_Forward):
    """Convolution of images; see :func:`conv2d` for the formula.

    Weights and biases start uniform in +-1 / sqrt(KH * KW * in_channels / groups).

    Args:
        in_channels: channels of the input (N, H, W, in_channels).
        out_channels: channels of the output (N, H', W', out_channels).
        kernel_size: K, or (KH, KW).
        stride: the step of the kernel.
        padding: zeros on either side: a number, a pair, "same" or "valid".
        dilation: the distance between neighbouring kernel elements.
        groups: output channels are split into so many groups, each seeing its share of the input.
        bias: whether there is a bias.

    Attributes:
        weight: shape (KH, KW, in_channels / groups, out_channels).
        bias: shape (out_channels,), or None.

    Raises:
        ValueError: groups that do not divide the channels, or sizes that are not numbers.
    """

    dims = 2


class Conv3d(_Forward):
    """Convolution of volumes (N, D, H, W, C); see :class:`Conv2d`."""

    dims = 3


class ConvTranspose1d(_Transposed):
    """Transposed convolution of sequences (N, L, C); see :class:`ConvTranspose2d`."""

    dims = 1


class ConvTranspose2d(_Transposed):
    """Transposed convolution of images; see :func:`conv_transpose2d` for the formula.

    Args:
        in_channels: channels of the input (N, H, W, in_channels).
        out_channels: channels of the output (N, H', W', out_channels).
        kernel_size: K, or (KH, KW).
        stride: the distance between the stamps of neighbouring pixels.
        padding: how much is cut off on either side of the result.
        output_padding: how much is added back at the end; below the stride or the dilation.
        groups: output channels are split into so many groups, each seeing its share of the input.
        bias: whether there is a bias.
        dilation: the distance between the elements of a stamp.

    Attributes:
        weight: shape (KH, KW, in_channels / groups, out_channels).
        bias: shape (out_channels,), or None.
    """

    dims = 2


class ConvTranspose3d(_Transposed):
    """Transposed convolution of volumes (N, D, H, W, C); see :class:`ConvTranspose2d`."""

    dims = 3
