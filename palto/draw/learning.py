"""Learning curves: how good a method becomes with more examples, and what that takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from palto.draw.figure import new_figure, save

#: A number of examples, a mean accuracy from 0 to 1, the standard deviation of the runs.
Point = tuple[int, float, float]

_MARKS = "osD^vPX*"


def learning_curves(
    path: str | os.PathLike[str], curves: Mapping[str, Sequence[Point]], *, title: str = ""
) -> None:
    """Draw accuracy against the number of examples, which is on a logarithmic axis.

    Args:
        path: the file to write; its name says what kind.
        curves: the points of each method, by its name; deviations are drawn as bars.
        title: what is written above.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = new_figure(7, 4.6)
    axes = figure.add_subplot()
    _curves(axes, curves)
    axes.set_ylabel("test images right, %")
    axes.set_title(title)
    save(figure, path)


def learning_gain(
    path: str | os.PathLike[str],
    curves: Mapping[str, Sequence[Point]],
    gains: Sequence[Point],
    *,
    title: str = "",
) -> None:
    """Draw learning curves, and beside them what the last one gains over the first.

    Args:
        path: the file to write.
        curves: as in `learning_curves`.
        gains: (examples, mean gain, standard deviation), accuracies from 0 to 1.
        title: what is written above.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    _curves(left, curves)
    left.set_ylabel("test images right, %")
    _curves(right, {"gain": gains})
    right.axhline(0, color="grey", linewidth=0.8)
    right.set_ylabel("gain, points of a hundred")
    right.get_legend().remove()
    figure.suptitle(title)
    save(figure, path)


def time_against_accuracy(
    path: str | os.PathLike[str],
    points: Mapping[str, Sequence[tuple[float, float, int]]],
    *,
    title: str = "",
) -> None:
    """Draw accuracy against training time, a line for each method, from few examples to many.

    Args:
        path: the file to write.
        points: (seconds, accuracy from 0 to 1, examples) of each method, by its name.
        title: what is written above.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = new_figure(7, 4.6)
    axes = figure.add_subplot()
    for (name, line), mark in zip(points.items(), cycle(_MARKS), strict=False):
        seconds, shares, _ = zip(*line, strict=True)
        axes.plot(seconds, [100 * x for x in shares], marker=mark, markersize=5, label=name)
        at, share, examples = line[-1]
        axes.annotate(
            f"{examples:,}", (at, 100 * share), xytext=(4, 4), textcoords="offset points",
            fontsize=7,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("test images right, %")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)


def _curves(axes: Any, curves: Mapping[str, Sequence[Point]]) -> None:
    sizes: set[int] = set()
    for (name, points), mark in zip(curves.items(), cycle(_MARKS), strict=False):
        examples, means, deviations = zip(*points, strict=True)
        sizes.update(examples)
        axes.errorbar(
            examples,
            [100 * x for x in means],
            [100 * x for x in deviations],
            marker=mark,
            markersize=5,
            capsize=3,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(sizes), [f"{x:,}" for x in sorted(sizes)], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("labelled examples")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
