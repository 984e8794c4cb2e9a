"""All activations, and their derivatives."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from palto import nn
from palto.backprop import grad
from palto.draw.figure import new_figure, save
from palto.tensor import Tensor
from palto.tensor import functions as F
from palto.tensor.dtypes import Array


class Curve(NamedTuple):
    """An activation as a function of one number."""

    layer: nn.Module
    note: str = ""  # what is drawn of one that has several numbers
    around: Callable[[Tensor], Tensor] = lambda x: x  # its input, made of x: (M,) to (M, ...)


def _beside(size: float) -> Callable[[Tensor], Tensor]:
    return lambda x: F.stack([x, size * x], axis=-1)


#: Each class of palto.nn's activations, the lecture's first.
CURVES = (
    Curve(nn.Sigmoid()),
    Curve(nn.Tanh()),
    Curve(nn.ReLU()),
    Curve(nn.LeakyReLU(0.1), "slope 0.1 below 0"),
    Curve(nn.ELU()),
    Curve(nn.Maxout(2), "of x and -x / 2", _beside(-0.5)),
    Curve(nn.PReLU(), "slope 0.25 below 0, learned", lambda x: F.expand_dims(x, -1)),
    Curve(nn.GELU()),
    Curve(nn.SiLU()),
    Curve(nn.Softplus()),
    Curve(nn.Hardtanh()),
    Curve(nn.Softmax(), "of x and 0: the first", _beside(0)),
    Curve(nn.LogSoftmax(), "of x and 0: the first", _beside(0)),
    Curve(nn.Identity()),
)


def activations(path: str | os.PathLike[str]) -> None:
    """Draw each activation of `palto.nn` from -4 to 4, and its derivative, which backprop computes.

    Args:
        path: the file to write, such as a .png or .svg.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    columns = 4
    rows = -(-len(CURVES) // columns)
    figure = new_figure(2.6 * columns, 2.1 * rows)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).reshape(-1)
    x = np.linspace(-4, 4, 401)
    for axes, curve in zip(grid, CURVES, strict=False):
        value, derivative = curve_of(curve, x)
        axes.axhline(0, color="0.85", linewidth=0.8)
        axes.axvline(0, color="0.85", linewidth=0.8)
        axes.plot(x, value, label="value")
        axes.plot(x, derivative, "--", label="derivative")
        axes.set_title(type(curve.layer).__name__, fontsize=10)
        axes.text(0.97, 0.05, curve.note, transform=axes.transAxes, fontsize=7.5, ha="right")
        axes.set_ylim(-1.3, 2.2)
        axes.tick_params(labelsize=7.5)
    for axes in grid[len(CURVES) :]:
        axes.set_axis_off()
    grid[0].legend(fontsize=7.5, loc="lower right")
    save(figure, path)


def curve_of(curve: Curve, x: Array) -> tuple[Array, Array]:
    """Values and derivatives at points (M,)."""

    def values(points: Tensor) -> Tensor:
        result: Tensor = curve.layer(curve.around(points))
        return result[:, 0] if result.ndim > 1 else result

    points = F.asarray(x.astype(np.float32))
    slopes: Tensor = grad(lambda points: F.sum(values(points)))(points)
    return values(points).detach().numpy(), slopes.numpy()
