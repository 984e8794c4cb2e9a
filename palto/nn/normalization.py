"""Normalisation: numbers brought to mean 0 and variance 1 over some axes, then scaled and shifted.

Channels are the last axis throughout. The statistics' axes are what tells the layers apart: the
batch and space (batch norm), one example's features (layer norm), its space and a group of
channels (group norm), its space alone (instance norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from palto.nn.module import Buffer, Module, Parameter
from palto.tensor import Cell, Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.functions import composite
from palto.tensor.tensor import Axes


def _normalised(x: Tensor, axes: Axes, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(var + eps) over `axes`, the mean and the (biased) variance."""
    mean = F.mean(x, axes, keepdims=True)
    centred = x - mean
    var = F.mean(centred * centred, axes, keepdims=True)
    return centred * F.rsqrt(var + eps), mean, var


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _scale_and_shift(
    shape: int | Sequence[int], affine: bool, bias: bool = True
) -> tuple[Parameter | None, Parameter | None]:
    """A weight of ones and a bias of zeros, or None for those not wanted."""
    return (
        Parameter(F.ones(shape)) if affine else None,
        Parameter(F.zeros(shape)) if affine and bias else None,
    )


# Batch norm


def _batch_norm_gradient(
    results: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of :func:`batch_norm_training`: the same two sums serve all three arguments."""
    (_, mean, var), axes, count = results, tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    grad, of_mean, of_var = grads
    grad = F.zeros_like(x) if grad is None else grad
    centred, scale = x - mean, F.rsqrt(var + eps)
    of_bias, of_weight = F.sum(grad, axes), F.sum(grad * (centred * scale), axes)
    rest = grad - of_bias / count - centred * (scale * of_weight / count)
    found = rest * (scale if weight is None else scale * weight)
    if of_mean is not None:
        found = found + of_mean / count
    if of_var is not None:
        found = found + centred * (2 * of_var / count)
    return found, of_weight, of_bias


@composite(gradient=_batch_norm_gradient)
def batch_norm_training(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`x` (..., C) normalised over the batch, and the mean and variance, (1, ..., C), it had."""
    x = F.asarray(x)
    y, mean, var = _normalised(x, tuple(range(x.ndim - 1)), eps)
    return _affine(y, weight, bias), mean, var


@composite
def batch_norm_inference(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """`x` (..., C) normalised by statistics (C,) from elsewhere."""
    scale = F.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return F.asarray(x) * scale + shift  # a program keeps both, and has one operation for each x


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: Any = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel to mean 0 and variance 1 over the batch, then times weight plus bias.

    y = (x - mean) / sqrt(var + eps) * weight + bias

    Args:
        x: shape (..., C).
        running_mean: the mean to use in inference, shape (C,); in training, a cell that moves
            towards the batch's mean.
        running_var: the same for the variance, which the batch estimates without bias.
        weight: shape (C,), or None for 1.
        bias: shape (C,), or None for 0.
        training: whether to use the batch's statistics or the running ones.
        momentum: how far the running statistics move: new = (1 - momentum) old + momentum batch.
        eps: keeps the root away from 0.

    Returns:
        The shape of `x`.

    Raises:
        ValueError: the wrong number of channels, or in training only one value for each.

    Source: Ioffe and Szegedy: Batch normalization (2015).
    """
    x = F.asarray(x)
    for part in (running_mean, running_var, weight, bias):
        if part is not None and (x.ndim < 2 or x.shape[-1:] != part.shape):
            raise ValueError(
                f"batch norm of {part.size} channels wants an input of shape (N, ..., {part.size}),"
                f" got {x.shape}"
            )
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("batch norm in inference wants running_mean and running_var")
        return batch_norm_inference(x, running_mean, running_var, weight, bias, eps)
    count = x.size // x.shape[-1] if x.shape[-1] else 0
    if count <= 1:
        raise ValueError(
            f"batch norm in training wants more than 1 value per channel, got shape {x.shape}; "
            "use a larger batch, or call model.eval()"
        )
    y, mean, var = batch_norm_training(x, weight, bias, eps)
    unbiased = var * count / (count - 1)  # whole numbers, which a program knows for any batch
    for running, seen in ((running_mean, mean), (running_var, unbiased)):
        if isinstance(running, Cell):
            old = F.detach(running)
            moved = old + momentum * (F.reshape(F.detach(seen), old.shape) - old)
            running.assign(F.astype(moved, running.dtype))
    return y


class _BatchNorm(Module):
    layouts: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        self.weight, self.bias = _scale_and_shift(num_features, affine)
        self.running_mean = Buffer(F.zeros(num_features)) if track_running_stats else None
        self.running_var = Buffer(F.ones(num_features)) if track_running_stats else None
        self.num_batches_tracked = Buffer(np.int64(0)) if track_running_stats else None

    def reset_running_stats(self) -> None:
        """Forget all batches."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.assign(0)
            self.running_var.assign(1)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.assign(0)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ..., num_features), kept."""
        x = F.asarray(x)
        if x.ndim not in [layout.count(",") + 1 for layout in self.layouts]:
            raise ValueError(
                f"{type(self).__name__} wants an input of shape {' or '.join(self.layouts)}, got "
                f"{x.shape}"
            )
        training = self.training or self.running_mean is None
        counter = self.num_batches_tracked if self.training else None
        count = None if counter is None else counter + 1
        momentum: Any = self.momentum
        if momentum is None and count is not None:
            momentum = 1 / F.astype(count, dtypes.float32)
        y = batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, momentum,
            self.eps,
        )  # fmt: skip
        if counter is not None:
            counter.assign(count)
        return y

    def extra_repr(self) -> str:
        """The channels, and what differs from the usual."""
        parts = [str(self.num_features)]
        if self.eps != 1e-5:
            parts.append(f"eps={self.eps}")
        if self.momentum != 0.1:
            parts.append(f"momentum={self.momentum}")
        if self.weight is None:
            parts.append("affine=False")
        if not self.track_running_stats:
            parts.append("track_running_stats=False")
        return ", ".join(parts)


class BatchNorm1d(_BatchNorm):
    """Batch norm of rows (N, C) or sequences (N, L, C); see :class:`BatchNorm2d`."""

    layouts = ("(N, C)", "(N, L, C)")


class BatchNorm2d(_BatchNorm):
    """Each channel of images (N, H, W, C) to mean 0 and variance 1, then times weight plus bias.

    y = (x - mean) / sqrt(var + eps) * weight + bias. In training, mean and variance are those of
    the batch, and the running statistics move towards them; in inference they are the running ones.

    Args:
        num_features: C.
        eps: keeps the root away from 0.
        momentum: how far the running statistics move at each batch, new = (1 - momentum) old +
            momentum batch; None for the mean over all batches.
        affine: whether there are a weight and a bias.
        track_running_stats: whether there are running statistics; without them, inference uses
            the batch's, too.

    Attributes:
        weight: shape (C,), starts at 1; or None.
        bias: shape (C,), starts at 0; or None.
        running_mean: shape (C,), starts at 0.
        running_var: shape (C,), starts at 1; batches estimate it without bias.
        num_batches_tracked: how many batches the running statistics have seen, int64.

    Raises:
        ValueError: in training, only one value per channel.

    Source: Ioffe and Szegedy: Batch normalization (2015).
    """

    layouts = ("(N, H, W, C)",)


# Layer norm


@composite
def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each example's features to mean 0 and variance 1, then times weight plus bias.

    Args:
        x: shape (..., *normalized_shape).
        normalized_shape: the axes that are normalised together, the last ones.
        weight: shape `normalized_shape`, or None for 1.
        bias: shape `normalized_shape`, or None for 0.
        eps: keeps the root away from 0.

    Source: Ba, Kiros and Hinton: Layer normalization (2016).
    """
    x = F.asarray(x)
    axes = _last_axes("layer norm", x, normalized_shape)
    return _affine(_normalised(x, axes, eps)[0], weight, bias)


def _last_axes(what: str, x: Tensor, shape: int | Sequence[int]) -> tuple[int, ...]:
    shape = _as_shape(shape)
    if not shape or x.shape[-len(shape) :] != shape:
        lengths = ", ".join(map(str, shape))
        raise ValueError(f"{what} wants an input of shape (..., {lengths}), got {x.shape}")
    return tuple(range(x.ndim - len(shape), x.ndim))


def _as_shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


class LayerNorm(Module):
    """Each example's features to mean 0 and variance 1, then times weight plus bias.

    Args:
        normalized_shape: the length of the last axis, or the lengths of the last axes, which are
            normalised together.
        eps: keeps the root away from 0.
        elementwise_affine: whether there are a weight and a bias.
        bias: whether there is a bias.

    Attributes:
        weight: shape `normalized_shape`, starts at 1; or None.
        bias: shape `normalized_shape`, starts at 0; or None.

    Source: Ba, Kiros and Hinton: Layer normalization (2016).
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        self.normalized_shape = _as_shape(normalized_shape)
        self.eps = eps
        self.weight, self.bias = _scale_and_shift(self.normalized_shape, elementwise_affine, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape), kept."""
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The normalised axes."""
        shape = self.normalized_shape
        return str(shape[0] if len(shape) == 1 else shape)


@composite
def rms_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Each example's features divided by the root of their mean square, then times weight.

    Args:
        x: shape (..., *normalized_shape).
        normalized_shape: the axes that are normalised together, the last ones.
        weight: shape `normalized_shape`, or None for 1.
        eps: keeps the root away from 0; by default the dtype's precision.

    Source: Zhang and Sennrich: Root mean square layer normalization (2019).
    """
    x = F.asarray(x)
    axes = _last_axes("rms norm", x, normalized_shape)
    least = float(np.finfo(x.dtype).eps) if eps is None else eps
    y = x * F.rsqrt(F.mean(x * x, axes, keepdims=True) + least)
    return _affine(y, weight, None)


class RMSNorm(Module):
    """Each example's features divided by the root of their mean square, then times weight.

    Args:
        normalized_shape: the length of the last axis, or the lengths of the last axes, which are
            normalised together.
        eps: keeps the root away from 0; by default the dtype's precision.
        elementwise_affine: whether there is a weight.

    Attributes:
        weight: shape `normalized_shape`, starts at 1; or None.

    Source: Zhang and Sennrich: Root mean square layer normalization (2019).
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        self.normalized_shape = _as_shape(normalized_shape)
        self.eps = eps
        self.weight, _ = _scale_and_shift(self.normalized_shape, elementwise_affine, False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape), kept."""
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        """The normalised axes."""
        shape = self.normalized_shape
        return str(shape[0] if len(shape) == 1 else shape)


# Group and instance norm


@composite
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each group of channels of each example to mean 0 and variance 1.

    Args:
        x: shape (N, ..., C).
        num_groups: the channels are split into so many groups of neighbours.
        weight: shape (C,), or None for 1.
        bias: shape (C,), or None for 0.
        eps: keeps the root away from 0.

    Raises:
        ValueError: groups that do not divide the channels.

    Source: Wu and He: Group normalization (2018).
    """
    x = F.asarray(x)
    if x.ndim < 2 or x.shape[-1] % num_groups:
        raise ValueError(
            f"group norm of {num_groups} groups wants an input of shape (N, ..., C) with a "
            f"multiple of {num_groups} channels, got {x.shape}"
        )
    batch, *space, channels = x.shape
    grouped = F.reshape(x, (batch, *space, num_groups, channels // num_groups))
    axes = (*range(1, len(space) + 1), grouped.ndim - 1)
    return _affine(F.reshape(_normalised(grouped, axes, eps)[0], x.shape), weight, bias)


class GroupNorm(Module):
    """Each group of channels of each example to mean 0 and variance 1.

    Args:
        num_groups: the channels are split into so many groups of neighbours.
        num_channels: C of the input (N, ..., C).
        eps: keeps the root away from 0.
        affine: whether there are a weight and a bias.

    Attributes:
        weight: shape (C,), starts at 1; or None.
        bias: shape (C,), starts at 0; or None.

    Raises:
        ValueError: groups that do not divide the channels.

    Source: Wu and He: Group normalization (2018).
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        if num_groups < 1 or num_channels % num_groups:
            raise ValueError(
                f"GroupNorm: {num_groups} groups do not divide {num_channels} channels"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.weight, self.bias = _scale_and_shift(num_channels, affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ..., num_channels), kept."""
        x = F.asarray(x)
        _require_channels("GroupNorm", x, self.num_channels)
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Groups and channels."""
        return f"{self.num_groups}, {self.num_channels}"


def _require_channels(what: str, x: Tensor, channels: int) -> None:
    if x.ndim < 2 or x.shape[-1] != channels:
        raise ValueError(f"{what} wants an input of shape (N, ..., {channels}), got {x.shape}")


@composite
def instance_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Each channel of each example to mean 0 and variance 1 over space.

    Args:
        x: shape (N, ...space, C).
        weight: shape (C,), or None for 1.
        bias: shape (C,), or None for 0.
        eps: keeps the root away from 0.

    Raises:
        ValueError: no more than one pixel.

    Source: Ulyanov, Vedaldi and Lempitsky: Instance normalization (2016).
    """
    x = F.asarray(x)
    axes = tuple(range(1, x.ndim - 1))
    if x.ndim < 3 or F.count(x, axes) <= 1:
        raise ValueError(
            f"instance norm wants an input of shape (N, ...space, C) with more than 1 pixel, got "
            f"{x.shape}"
        )
    return _affine(_normalised(x, axes, eps)[0], weight, bias)


class InstanceNorm2d(Module):
    """Each channel of each image (N, H, W, C) to mean 0 and variance 1.

    Args:
        num_features: C.
        eps: keeps the root away from 0.
        affine: whether there are a weight and a bias.

    Attributes:
        weight: shape (C,), starts at 1; or None.
        bias: shape (C,), starts at 0; or None.

    Source: Ulyanov, Vedaldi and Lempitsky: Instance normalization (2016).
    """

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = False) -> None:
        self.num_features = num_features
        self.eps = eps
        self.weight, self.bias = _scale_and_shift(num_features, affine)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, num_features), kept."""
        x = F.asarray(x)
        _require_channels("InstanceNorm2d", x, self.num_features)
        return instance_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The channels."""
        return f"{self.num_features}{', affine=True' if self.weight is not None else ''}"


# Local response norm


@composite
def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Each pixel divided by a power of the mean square of its neighbours across the channels.

    y_c = x_c / (k + alpha / size * sum of x_j^2)^beta, where j runs over the `size` channels
    around c, from c - size // 2 on; channels beyond the ends count as 0.

    Args:
        x: shape (N, ..., C).
        size: how many channels are neighbours.
        alpha: the weight of the squares.
        beta: the power.
        k: the number that is added.

    Source: Krizhevsky, Sutskever, Hinton: ImageNet classification with deep convolutional neural
    networks (2012), section 3.3 (there alpha is not divided by size).
    """
    x = F.asarray(x)
    if size < 1 or x.ndim < 2:
        raise ValueError(
            f"local response norm wants a size of at least 1 and an input of shape (N, ..., C), "
            f"got size {size} and {x.shape}"
        )
    channels = x.shape[-1]
    border = (size // 2, (size - 1) // 2)
    squares = F.pad(x * x, ((0, 0),) * (x.ndim - 1) + (border,))
    total = squares[..., :channels]
    for offset in range(1, size):
        total = total + squares[..., offset : offset + channels]
    scale = k + (alpha / size) * total
    if beta == 0.75:  # AlexNet's; two square roots are cheaper than a power
        root = F.sqrt(scale)
        return x / (root * F.sqrt(root))
    return x / scale**beta


class LocalResponseNorm(Module):
    """AlexNet's normalisation across neighbouring channels; see :func:`local_response_norm`.

    Args:
        size: how many channels are neighbours; 5 in AlexNet.
        alpha: the weight of the squares; they are divided by `size`, so AlexNet's is 5e-4.
        beta: the power.
        k: the number that is added; 2 in AlexNet.
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """(N, ..., C), kept."""
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        """All numbers."""
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"
