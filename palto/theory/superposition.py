"""The network of the universal approximation theorem, and how exactly it computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palto.nn import Module, Parameter, init
from palto.nn.functional import sigmoid
from palto.nn.linear import linear
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.dtypes import Array


class Superposition(Module):
    """A superposition of sigmoids: a(x) = sum over h of alpha_h sigma(<x, w_h> - w_0h).

    It is a layer of neurons and a weighted sum of what they say; alpha starts uniform in
    +-1 / sqrt(H), the neurons as those of `nn.Linear`.

    Args:
        dimension: n, how many numbers an input has.
        units: H, how many neurons.
        dtype: the format of the parameters. In float64 a certificate is precise to about 1e-12.

    Attributes:
        weight: w, shape (H, n).
        threshold: w_0, shape (H,).
        alpha: shape (H,).

    Cybenko, "Approximation by superpositions of a sigmoidal function", 1989.
    """

    def __init__(self, dimension: int, units: int, dtype: Any = dtypes.float64) -> None:
        inner, outer = 1 / math.sqrt(max(dimension, 1)), 1 / math.sqrt(max(units, 1))
        self.weight = Parameter(F.zeros((units, dimension), dtype=dtype))
        self.threshold = Parameter(F.zeros(units, dtype=dtype))
        self.alpha = Parameter(F.zeros(units, dtype=dtype))
        for parameter, bound in (
            (self.weight, inner), (self.threshold, inner), (self.alpha, outer),
        ):  # fmt: skip
            init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) -> (...)."""
        answers = sigmoid(linear(F.asarray(x), self.weight) - self.threshold)
        return F.matmul(answers, self.alpha.read())

    def extra_repr(self) -> str:
        """The dimension and the number of units."""
        units, dimension = self.weight.shape
        return f"{dimension}, {units}"


def superposition(weight: Array, threshold: Array, alpha: Array) -> Superposition:
    """A network of these parameters, in float64."""
    network = Superposition(weight.shape[1], len(weight))
    network.load_state_dict({"weight": weight, "threshold": threshold, "alpha": alpha})
    return network


class Arithmetic:
    """The network's parameters as float64, and how far from the formula computed values may lie.

    With u the unit roundoff, a sum of k products in any order, with or without fused operations,
    is wrong by at most k u / (1 - k u) times the sum of their absolute values; sigma of a number is
    wrong by at most 16 u (measured: 3 u, run at once and compiled) besides what its argument is
    wrong by, of which it passes on a quarter at most. (Higham, "Accuracy and stability of numerical
    algorithms", 2002, chapter 3.)

    Attributes:
        w: weights, float64 (H, n).
        w0: thresholds, float64 (H,).
        alpha: float64 (H,).
        is_sound: whether all sums are finite, in any order.
        argument: by how much each <x, w_h> - w_0h may be wrong in float64, (H,).
        here: by how much a(x) may be wrong as it is computed here, in float64.
        network: by how much it may be wrong as the network computes it, in its own dtype.
    """

    def __init__(self, network: Superposition) -> None:
        parameters = (network.weight, network.threshold, network.alpha)
        self.w, self.w0, self.alpha = (np.asarray(x.numpy(), np.float64) for x in parameters)
        unit = max(float(np.finfo(x.dtype).eps) / 2 for x in parameters)
        largest = min(float(np.finfo(x.dtype).max) for x in parameters) / 4
        with np.errstate(over="ignore", invalid="ignore"):  # infinite weights have no certificate
            sums = [*(np.abs(self.w).sum(1) + np.abs(self.w0)), np.abs(self.alpha).sum()]
            self.is_sound = bool((np.array(sums) < largest).all())
            self.argument = self._argument(2.0**-53)
            self.here = self._output(2.0**-53)
            self.network = self._output(unit)

    def _argument(self, unit: float) -> Array:
        error: Array = _gamma(self.w.shape[1] + 2, unit) * (np.abs(self.w).sum(1) + np.abs(self.w0))
        return error

    def _output(self, unit: float) -> float:
        each = np.minimum(self._argument(unit) / 4, 1) + 16 * unit
        sizes = np.abs(self.alpha)
        tiny = len(sizes) * 2.0**-120  # numbers that count as zero for being so small
        return float((sizes * (each + 1.1 * _gamma(len(sizes) + 2, unit))).sum() + tiny)

    def neurons(self, x: Array) -> tuple[Array, Array]:
        """Arguments and values of sigma, (N, H) each, at points (N, n)."""
        z = x @ self.w.T - self.w0
        return z, logistic(z)


def _gamma(count: int, unit: float) -> float:
    return count * unit / (1 - count * unit) if count * unit < 0.5 else math.inf


def logistic(z: Array) -> Array:
    """1 / (1 + exp(-z)), in NumPy."""
    e = np.exp(-np.abs(z))
    result: Array = np.where(z >= 0, 1.0, e) / (1 + e)
    return result
