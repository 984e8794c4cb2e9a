"""Where a classifier of two inputs draws its borders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from palto.data.sources.tables import Column
from palto.draw.figure import new_figure, save
from palto.nn.functional import softmax
from palto.tensor import Tensor
from palto.tensor import functions as F
from palto.tensor.dtypes import Array
from palto.tensor.graph import no_grad

#: Colours of classes, as Matplotlib's own first ten.
_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd",
    "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
)  # fmt: skip
_GRID = 240  # points a side
_STRONGEST = 0.55  # how much colour a sure region has


def decision_boundary(
    model: Callable[[Tensor], Tensor],
    inputs: Any,
    labels: Any,
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str | Column] = ("x1", "x2"),
    classes: Sequence[str] = (),
    title: str = "",
) -> None:
    """Draw which class a model gives to each point of the plane, and the examples upon it.

    A region has its class's colour, the stronger the surer the model is; black lines are where two
    classes are equally probable.

    Args:
        model: from points, float32 (M, 2), to logits, (M, classes), as Palto's classifiers give
            them; or, for two classes, to the probability of the second one, (M,) or (M, 1), as a
            neuron gives it.
        inputs: examples, (N, 2).
        labels: their classes, whole numbers (N,).
        path: the file to write, such as a .png or .svg.
        columns: the names of the two inputs; or the columns of a table's encoder, whose scale then
            is the axes'.
        classes: the names of the classes.
        title: what stands above.

    Raises:
        ValueError: inputs, labels or the model's answers of another shape; both are named.
        MissingExtraError: Matplotlib is not installed.
    """
    x, y = np.asarray(inputs), np.asarray(labels)
    if x.ndim != 2 or x.shape[1] != 2 or not len(x):
        raise ValueError(f"a plane has examples of shape (N, 2), got {x.shape}; choose two columns")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(
            f"labels of {len(x)} examples are whole numbers of shape ({len(x)},), got {y.shape} "
            f"{y.dtype}"
        )
    if len(columns) != 2:
        raise ValueError(f"columns are two names, got {len(columns)}")
    low, high = x.min(0), x.max(0)
    margin = 0.08 * np.where(high > low, high - low, 1)
    low, high = low - margin, high + margin
    lines = [np.linspace(low[k], high[k], _GRID) for k in (0, 1)]
    grid = np.stack(np.meshgrid(*lines), -1).reshape(-1, 2)
    probabilities = _probabilities(model, grid.astype(np.float32))
    count = probabilities.shape[1]
    if y.min() < 0 or y.max() >= count:
        raise ValueError(f"labels from {y.min()} to {y.max()}, but the model knows {count} classes")

    figure = new_figure(6.4, 4.8)
    axes = figure.add_subplot()
    named = [column if isinstance(column, Column) else Column(column) for column in columns]
    scale, mean = [column.scale for column in named], [column.mean for column in named]
    lines = [line * scale[k] + mean[k] for k, line in enumerate(lines)]
    places = x * scale + mean
    colours = np.array([_rgb(k) for k in range(count)])
    sureness = (probabilities.max(1, keepdims=True) - 1 / count) / (1 - 1 / count)
    shade = 1 - (1 - colours[probabilities.argmax(1)]) * sureness * _STRONGEST
    axes.imshow(
        shade.reshape(_GRID, _GRID, 3), origin="lower", aspect="auto", interpolation="bilinear",
        extent=(lines[0][0], lines[0][-1], lines[1][0], lines[1][-1]),
    )  # fmt: skip
    for k in range(count if count > 2 else 1):
        lead = probabilities[:, k] - np.delete(probabilities, k, axis=1).max(1)
        if lead.min() < 0 < lead.max():
            field = lead.reshape(_GRID, _GRID)
            axes.contour(*lines, field, levels=[0], colors="black", linewidths=1)
    for k in range(count):
        if (y == k).any():
            name = classes[k] if k < len(classes) else f"class {k}"
            axes.scatter(
                *places[y == k].T, s=22, color=colours[k], edgecolors="white", linewidths=0.6,
                label=name,
            )  # fmt: skip
    axes.set(xlabel=named[0].name, ylabel=named[1].name, title=title)
    axes.legend(framealpha=0.9)
    save(figure, path)


def _probabilities(model: Callable[[Tensor], Tensor], points: Array) -> Array:
    """The probability of each class, (M, classes)."""
    count = len(points)
    with no_grad():
        answers = F.asarray(model(F.asarray(points)))
        if answers.ndim == 2 and answers.shape[0] == count and answers.shape[1] > 1:
            return np.asarray(softmax(answers).numpy(), np.float64)
    if answers.shape not in ((count,), (count, 1)):
        raise ValueError(
            f"for {count} points the model is to give logits ({count}, classes) or probabilities "
            f"({count},), got {answers.shape}"
        )
    second = np.asarray(answers.numpy(), np.float64).reshape(count)
    if not ((second >= 0) & (second <= 1)).all():
        raise ValueError(
            "one number for a point is the probability of the second class, from 0 to 1, got "
            f"{second.min():.3g} to {second.max():.3g}; a logit becomes one by sigmoid"
        )
    return np.stack([1 - second, second], axis=1)


def _rgb(k: int) -> tuple[float, ...]:
    colour = _COLOURS[k % len(_COLOURS)]
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
