"""A network beside the function that it approximates."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from palto.draw.figure import new_figure, save
from palto.tensor import Tensor
from palto.tensor import functions as F
from palto.tensor.dtypes import Array
from palto.tensor.graph import no_grad


def approximation(
    function: Callable[[Array], Any],
    network: Callable[[Tensor], Tensor],
    tolerance: float,
    path: str | os.PathLike[str],
    *,
    dimension: int = 1,
) -> None:
    """Draw a function on [0, 1]^n and a network that is to be within a tolerance of it.

    In one dimension: the band of the tolerance around the function, and the network in it. In two:
    the function, the network, and the error.

    Args:
        function: from points, float64 (N, n), to values, (N,) or (N, 1).
        network: the same for tensors.
        tolerance: half the height of the band, the ends of the error's scale.
        path: the file to write, such as a .png or .svg.
        dimension: n, 1 or 2.

    Raises:
        ValueError: another dimension.
        MissingExtraError: Matplotlib is not installed.
    """
    if dimension not in (1, 2):
        raise ValueError(f"functions of 1 or 2 numbers can be drawn, got {dimension}")
    line = np.linspace(0, 1, 2001 if dimension == 1 else 161)
    points = np.stack(np.meshgrid(*[line] * dimension), -1).reshape(-1, dimension)
    wanted = np.asarray(function(points), np.float64).reshape(-1)
    with no_grad():
        found = F.asarray(network(F.asarray(points))).numpy().reshape(-1)
    figure = new_figure(7, 4) if dimension == 1 else new_figure(10.5, 3.4)
    if dimension == 1:
        axes = figure.add_subplot()
        band = f"within {tolerance:g}"
        axes.fill_between(line, wanted - tolerance, wanted + tolerance, color="0.88", label=band)
        axes.plot(line, wanted, color="0.4", linewidth=1, label="function")
        axes.plot(line, found, linewidth=1.2, label="network")
        axes.set(xlabel="x", xlim=(0, 1))
        axes.legend()
    else:
        low, high = min(wanted.min(), found.min()), max(wanted.max(), found.max())
        for axes, name, values, ends, colours in zip(
            figure.subplots(1, 3),
            ("function", "network", "network minus function"),
            (wanted, found, found - wanted),
            ((low, high), (low, high), (-tolerance, tolerance)),
            ("viridis", "viridis", "RdBu"),
            strict=True,
        ):
            shown = axes.imshow(
                values.reshape(len(line), len(line)), origin="lower", extent=(0, 1, 0, 1),
                vmin=ends[0], vmax=ends[1], cmap=colours,
            )  # fmt: skip
            axes.set(title=name, xlabel="x1", ylabel="x2")
            figure.colorbar(shown, ax=axes, shrink=0.8)
    save(figure, path)
