"""The general neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from palto.nn import init
from palto.nn.activations import sigmoid
from palto.nn.linear import linear
from palto.nn.module import Module, Parameter
from palto.tensor import Tensor
from palto.tensor import functions as F

Function = Callable[[Tensor], Tensor]


class Neuron(Module):
    """One neuron: sigma(sum over i of w_i f_i(x) - w_0).

    With f_i(x) = x_i it is the classical one, and a Linear followed by an activation is a layer of
    those; with products of coordinates as features it separates what no plane can.

    Args:
        features: the functions f_i, each from x, shape (..., d), to shape (...); or a number d, for
            f_i(x) = x_i.
        activation: sigma.

    Attributes:
        weight: w, one number for each feature.
        threshold: w_0, one number.
    """

    def __init__(self, features: int | Sequence[Function], activation: Function = sigmoid) -> None:
        self.features = None if isinstance(features, int) else list(features)
        self.activation = activation
        count = features if isinstance(features, int) else len(features)
        bound = 1 / math.sqrt(max(count, 1))
        self.weight = init.uniform_(Parameter(F.zeros(count)), -bound, bound)
        self.threshold = init.uniform_(Parameter(F.zeros(())), -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (...)."""
        x = F.asarray(x)
        if self.features is not None:
            x = F.stack([feature(x) for feature in self.features], axis=-1)
        total = linear(x, F.expand_dims(self.weight.read(), 0))
        return self.activation(F.squeeze(total, -1) - self.threshold)

    def extra_repr(self) -> str:
        """How many features."""
        return str(self.weight.size)
