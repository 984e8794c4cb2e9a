"""Learning rates that change: functions of the number of finished steps, computed in the graph.

Give one to an optimiser as ``lr``. Multiply one by a number for another scale, call one with a
number (or a tensor of numbers, for a plot) to see its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Watched


class Schedule(Watched):
    """A function from the number k of finished steps, 0 in the first, to a learning rate.

    Args:
        function: the function of a float64 tensor, to a tensor of its shape.
        text: what ``repr`` shows.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], text: str) -> None:
        self._function = function
        self._text = text

    def __call__(self, step: Any) -> Tensor:
        """The rate after `step` finished steps, in float64."""
        return self._function(F.asarray(step, dtype=dtypes.float64))

    def __mul__(self, factor: float) -> Schedule:
        return Schedule(lambda k: factor * self._function(k), f"{factor} * {self._text}")

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return self._text


def constant(lr: float) -> Schedule:
    """Always `lr`."""
    return Schedule(lambda k: F.full_like(k, lr), f"constant({lr})")


def warmup(after: float | Schedule, steps: int) -> Schedule:
    """A straight line up in the first `steps` steps, then `after` from its beginning.

    In step k < steps the rate is after(0) (k + 1) / (steps + 1), then after(k - steps).

    Args:
        after: a number or a schedule.
        steps: the length of the warm-up.
    """
    schedule = after if isinstance(after, Schedule) else constant(after)
    return _warmed_up(schedule, steps, f"warmup({after}, {steps})")


def _warmed_up(schedule: Schedule, steps: int, text: str) -> Schedule:
    if steps < 0:
        raise ValueError(f"{text}: the warm-up has at least 0 steps")

    def rate(k: Tensor) -> Tensor:
        rising = schedule(F.zeros_like(k)) * ((k + 1) / (steps + 1))
        return F.where(k < steps, rising, schedule(F.maximum(k - steps, 0.0)))

    return Schedule(rate if steps else schedule, text)


def cosine(lr: float, steps: int, *, warmup: int = 0, final: float = 0.0) -> Schedule:
    """From `lr` down to `final` along half a cosine; `final` from there on.

        final + (lr - final) (1 + cos(pi k / steps)) / 2

    Args:
        lr: the highest rate.
        steps: the length of the run, with the warm-up.
        warmup: the number of first steps in which the rate rises in a straight line.
        final: the last rate.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", 2017.
    """
    text = f"cosine({lr}, {steps}, warmup={warmup}, final={final})"
    if steps <= warmup:
        raise ValueError(f"{text}: the run must be longer than its warm-up")

    def rate(k: Tensor) -> Tensor:
        return final + (lr - final) * 0.5 * (1 + _cosine(k / (steps - warmup)))

    return _warmed_up(Schedule(rate, text), warmup, text)


def one_cycle(
    max_lr: float,
    steps: int,
    *,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Schedule:
    """Up from max_lr / div_factor and down to that / final_div_factor, along cosines.

    PyTorch's OneCycleLR; the last rate from there on.

    Args:
        max_lr: the highest rate.
        steps: the length of the run.
        pct_start: the part of it that goes up.
        div_factor: how much lower the rate starts.
        final_div_factor: how much lower than at the start it ends.

    Smith and Topin, "Super-convergence: very fast training of neural networks using large
    learning rates", 2018.
    """
    top = pct_start * steps - 1  # the step of the highest rate
    if not 0 < top < steps - 1:
        raise ValueError(
            f"one_cycle: the highest rate must lie inside the run, got step {top} of {steps}; "
            "change pct_start, or take more steps"
        )
    start, end = max_lr / div_factor, max_lr / div_factor / final_div_factor

    def rate(k: Tensor) -> Tensor:
        up = max_lr + (start - max_lr) * 0.5 * (1 + _cosine(k / top))
        down = end + (max_lr - end) * 0.5 * (1 + _cosine((k - top) / (steps - 1 - top)))
        return F.where(k <= top, up, down)

    return Schedule(rate, f"one_cycle({max_lr}, {steps})")


def step(lr: float, every: int, factor: float = 0.1) -> Schedule:
    """`lr`, times `factor` after `every` steps, and so on."""
    if every < 1:
        raise ValueError(f"step: the rate changes every 1 steps or more, got {every}")
    return Schedule(lambda k: lr * factor ** (k // every), f"step({lr}, {every}, {factor})")


def exponential(lr: float, factor: float) -> Schedule:
    """`lr`, times `factor` after every step."""
    return Schedule(lambda k: lr * factor**k, f"exponential({lr}, {factor})")


def _cosine(part: Tensor) -> Tensor:
    """Half a cosine, from 1 at 0 to -1 at 1, constant before and after."""
    return F.cos(math.pi * F.clip(part, 0.0, 1.0))
