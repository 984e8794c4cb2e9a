"""Linear layers, and the flattening that leads up to them."""

from __future__ import annotations

import math

from palto.nn import init
from palto.nn.module import Module, Parameter
from palto.tensor import Tensor
from palto.tensor import functions as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + b along the last axis.

    Args:
        x: shape (..., in).
        weight: W, shape (out, in).
        bias: b, shape (out,), or None.

    Returns:
        Shape (..., out).

    Raises:
        ValueError: the last axis of `x` is not `in`.
    """
    x = F.asarray(x)
    outputs, inputs = weight.shape
    if x.ndim == 0 or x.shape[-1] != inputs:
        hint = ""
        if x.ndim > 2 and math.prod(x.shape[1:]) == inputs:
            hint = "; put nn.Flatten() before it"
        raise ValueError(
            f"a linear layer from {inputs} to {outputs} wants an input of shape (..., {inputs}), "
            f"got {x.shape}{hint}"
        )
    result = F.matmul(x, weight.mT)
    return result if bias is None else result + bias


class Linear(Module):
    """W x + b along the last axis: `out_features` neurons without their activation.

    Weights and biases start uniform in +-1 / sqrt(in_features).

    Args:
        in_features: the length of the last axis of the input, (..., in_features).
        out_features: the length of the last axis of the output, (..., out_features).
        bias: whether there is a b.

    Attributes:
        weight: W, shape (out_features, in_features).
        bias: b, shape (out_features,), or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.in_features = in_features
        self.out_features = out_features
        bound = 1 / math.sqrt(in_features) if in_features else 0.0
        self.weight = Parameter(F.zeros((out_features, in_features)))
        self.bias = Parameter(F.zeros(out_features)) if bias else None
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes."""
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.in_features}, {self.out_features}{bias}"


class Flatten(Module):
    """Axes joined into one: images (N, H, W, C) to rows (N, H * W * C), channels running fastest.

    Args:
        start_axis: the first axis to join.
        end_axis: the last axis to join.
    """

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis = start_axis
        self.end_axis = end_axis

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, features)."""
        return F.flatten(F.asarray(x), self.start_axis, self.end_axis)

    def extra_repr(self) -> str:
        """Axes, unless they are the usual ones."""
        usual = (self.start_axis, self.end_axis) == (1, -1)
        return "" if usual else f"start_axis={self.start_axis}, end_axis={self.end_axis}"
