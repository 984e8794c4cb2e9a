"""How parameters start.

Each function gives a parameter new values, drawn from `palto.random`, and returns it. A weight of
two axes is (out, in); one of more axes is a convolution's (...kernel, in, out).
"""

from __future__ import annotations

import functools
import math
from typing import TypeVar

import numpy as np

from palto.compiler import CompiledFunction, Dim, compile
from palto.tensor import Cell, Tensor, functions, random
from palto.tensor.random import Generator
from palto.tensor.tensor import Shape

CellT = TypeVar("CellT", bound=Cell)

#: From so many numbers on, a program draws them.
_MANY = 2**18


def constant_(cell: CellT, value: float) -> CellT:
    """One number everywhere."""
    cell.assign(value)
    return cell


def zeros_(cell: CellT) -> CellT:
    """Zeros."""
    return constant_(cell, 0)


def ones_(cell: CellT) -> CellT:
    """Ones."""
    return constant_(cell, 1)


def uniform_(
    cell: CellT, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None
) -> CellT:
    """Numbers between `low` and `high`, all equally likely."""
    if cell.size < _MANY or generator is not None:
        cell.assign(random.uniform(cell.shape, low, high, dtype=cell.dtype, generator=generator))
        return cell
    below = np.nextafter(np.float32(high), np.float32(low))  # rounding must not reach `high`
    return _assign(cell, _drawn("uniform")(cell.size, np.array([low, high, below], np.float32)))


def normal_(
    cell: CellT, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> CellT:
    """Normally distributed numbers."""
    if cell.size < _MANY or generator is not None:
        cell.assign(random.normal(cell.shape, mean, std, dtype=cell.dtype, generator=generator))
        return cell
    return _assign(cell, _drawn("normal")(cell.size, np.array([mean, std], np.float32)))


@functools.cache
def _drawn(name: str) -> CompiledFunction:
    """A program that draws any number of numbers."""

    def uniform(count: int, limits: Tensor) -> Tensor:
        low, high, below = limits[0], limits[1], limits[2]
        return functions.minimum(random.uniform((count,)) * (high - low) + low, below)

    def normal(count: int, moments: Tensor) -> Tensor:
        return random.normal((count,)) * moments[1] + moments[0]

    draw = {"uniform": uniform, "normal": normal}[name]
    return compile(draw, dynamic_shapes={"count": Dim("count", max=2**31)})


def _assign(cell: CellT, values: Tensor) -> CellT:
    cell.assign(functions.astype(functions.reshape(values, cell.shape), cell.dtype))
    return cell


def fans(shape: Shape) -> tuple[int, int]:
    """How many inputs each output of a weight depends on, and how many outputs each input affects.

    Args:
        shape: (out, in) of a linear layer or (...kernel, in, out) of a convolution.

    Raises:
        ValueError: fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(f"fans are those of a weight of at least two axes, got shape {shape}")
    if len(shape) == 2:
        return shape[1], shape[0]
    kernel = math.prod(shape[:-2])
    return kernel * shape[-2], kernel * shape[-1]


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights before an activation are larger, to keep the signal's size.

    Args:
        nonlinearity: "linear", "sigmoid", "tanh", "relu", "leaky_relu" or "selu".
        param: the slope of leaky_relu below zero, 0.01 by default.

    Raises:
        ValueError: another name.
    """
    slope = 0.01 if param is None else param
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + slope**2)),
        "selu": 3 / 4,
    }
    if nonlinearity not in gains:
        raise ValueError(f"no gain is known for {nonlinearity!r}, only for {', '.join(gains)}")
    return gains[nonlinearity]


def xavier_uniform_(cell: CellT, gain: float = 1.0, *, generator: Generator | None = None) -> CellT:
    """Uniform in +-gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    bound = math.sqrt(3) * _xavier_std(cell.shape, gain)
    return uniform_(cell, -bound, bound, generator=generator)


def xavier_normal_(cell: CellT, gain: float = 1.0, *, generator: Generator | None = None) -> CellT:
    """Normal, with the variance gain^2 * 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""
    return normal_(cell, 0.0, _xavier_std(cell.shape, gain), generator=generator)


def _xavier_std(shape: Shape, gain: float) -> float:
    return gain * math.sqrt(2 / max(sum(fans(shape)), 1))


def kaiming_uniform_(
    cell: CellT,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: Generator | None = None,
) -> CellT:
    """Uniform in +-gain * sqrt(3 / fan) (He, Zhang, Ren and Sun, 2015).

    Args:
        cell: the weight.
        a: the slope below zero of the leaky_relu that follows; 0 is relu.
        mode: "fan_in" keeps the size of the signal, "fan_out" that of its gradient.
        nonlinearity: what follows; see :func:`calculate_gain`.
        generator: where the numbers come from.
    """
    bound = math.sqrt(3) * _kaiming_std(cell.shape, a, mode, nonlinearity)
    return uniform_(cell, -bound, bound, generator=generator)


def kaiming_normal_(
    cell: CellT,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    generator: Generator | None = None,
) -> CellT:
    """Normal, with the variance gain^2 / fan; arguments as :func:`kaiming_uniform_`."""
    std = _kaiming_std(cell.shape, a, mode, nonlinearity)
    return normal_(cell, 0.0, std, generator=generator)


def _kaiming_std(shape: Shape, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode is 'fan_in' or 'fan_out', got {mode!r}")
    fan = fans(shape)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def orthogonal_(cell: CellT, gain: float = 1.0, *, generator: Generator | None = None) -> CellT:
    """A matrix with orthogonal rows or columns, times `gain` (Saxe, McClelland, Ganguli, 2013).

    The matrix has a row for each output, so a convolution's has (out, kernel * in).
    """
    fans(cell.shape)
    transposed = len(cell.shape) > 2
    rows = cell.shape[-1] if transposed else cell.shape[0]
    columns = cell.size // rows if rows else 0
    tall = (max(rows, columns), min(rows, columns))
    q, r = np.linalg.qr(random.normal(tall, generator=generator).array())
    q = q * np.where(np.diagonal(r) < 0, -1, 1)  # uniform over all orthogonal matrices
    matrix = q if rows >= columns else q.T
    matrix = gain * (matrix.T if transposed else matrix)
    cell.assign(functions.asarray(matrix.reshape(cell.shape), dtype=cell.dtype))
    return cell
