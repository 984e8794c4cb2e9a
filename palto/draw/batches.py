"""What a batch's size does, drawn: throughput, the gradient's noise, what is learned."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from palto.draw.figure import new_figure, save
from palto.train import BatchStudy

_MEASURED, _THEORY = "#1f6fb4", "#c2410c"


def batch_study(study: BatchStudy, path: str | os.PathLike[str]) -> None:
    """Draw a batch study: four panels over the batch size, or over the time that it took.

    Args:
        study: what `palto.train.batch_study` answers.
        path: the picture, ``.svg`` or ``.png``.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    sizes = np.array([row.size for row in study.rows], float)
    seconds = np.array([row.seconds for row in study.rows])
    noise = np.array([row.noise for row in study.rows])
    losses = np.array([row.loss for row in study.rows])
    figure = new_figure(9, 6.4)
    (speed, spread), (learned, timed) = figure.subplots(2, 2)

    speed.loglog(sizes, sizes / seconds, "o-", color=_MEASURED)
    speed.set(title="Throughput", xlabel="batch size", ylabel="examples a second")

    spread.loglog(sizes, noise, "o", color=_MEASURED, label="measured")
    scale = np.exp(np.mean(np.log(noise * np.sqrt(sizes))))
    spread.loglog(sizes, scale / np.sqrt(sizes), color=_THEORY, label=r"falls as 1/√size")
    if np.isfinite(study.noise_scale) and study.noise_scale > 0:
        spread.axvline(study.noise_scale, color="#777777", linestyle=":", label="noise scale")
    spread.set(title="The gradient's noise", xlabel="batch size", ylabel="||g_B − g|| / ||g||")
    spread.legend(frameon=False)

    learned.semilogx(sizes, losses, "o-", color=_MEASURED)
    learned.set(title=f"After {study.examples:,} examples each", xlabel="batch size", ylabel="loss")

    took = seconds * study.examples / sizes
    timed.plot(took, losses, "o-", color=_MEASURED)
    for row, x in zip(study.rows, took, strict=True):
        timed.annotate(
            f"{row.size:,}", (x, row.loss), (5, 5), textcoords="offset points", fontsize=8
        )
    timed.set(title="The same, by the time it took", xlabel="seconds", ylabel="loss")
    for panel in (speed, spread, learned, timed):
        _finish(panel)
    save(figure, path)


def _finish(panel: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (panel.xaxis, panel.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is panel.yaxis else (1,)))
            axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
            axis.set_minor_formatter(NullFormatter())
    panel.grid(which="major", color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
