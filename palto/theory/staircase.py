"""The theorem's proof in one dimension, as a construction: a staircase of steep sigmoids.

A step of height d at t is d sigma(s (x - t)) with a large s. The function is known at the points of
a fine grid, and by its modulus of continuity within an interval between them, up to a little. The
staircase stays on one height c for as many intervals as the function stays within r of c: many
where it is flat, few where it is steep. The last interval of a step is also the first one of the
next, so within it the function is within r of both heights, and of all between: there the sigmoid
rises, by whatever curve. Elsewhere it is within eta of 0 or 1. So for every x

    abs(a(x) - f(x)) <= r + eta * sum of all abs(d)

and rounding is added. A function that rises and falls by V in all takes about V / (2 r) steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from palto.tensor.dtypes import Array
from palto.theory.superposition import Arithmetic, Superposition, superposition
from palto.theory.target import NotCertifiedError, Target

#: The finest grid that is tried.
_MOST_INTERVALS = 1 << 21
#: Shares of the tolerance: what the function may change within an interval; what is left for the
#: sigmoids' edges and for rounding.
_WITHIN, _LEFT = 1 / 32, 1 / 64


class Step(NamedTuple):
    """A height, and the intervals over which the staircase stays on it, the last one included."""

    height: float
    first: int
    last: int
    miss: float  # by how much the function is above or below at most


def staircase(
    target: Target, tolerance: float, max_units: int
) -> tuple[Superposition, dict[str, float]]:
    """The network, and the parts that its bound is the sum of.

    Raises:
        NotCertifiedError: the function changes too fast for this tolerance.
    """
    intervals = 64
    while intervals < _MOST_INTERVALS and target.spread(1 / intervals) > tolerance * _WITHIN:
        intervals *= 2
    if target.spread(1 / intervals) >= tolerance:
        raise NotCertifiedError(
            f"at points {1 / intervals:.1g} apart the function may still change by "
            f"{target.spread(1 / intervals):.3g}, no less than the tolerance {tolerance:g}; finer "
            "grids are not tried. Give a larger tolerance, or a sharper bound of how fast it "
            "changes"
        )
    points = np.arange(intervals + 1)[:, None] / intervals
    values = target(points)
    target.compare(points[:-1], values[:-1], points[1:], values[1:])
    inside = target.spread(0.5 / intervals) + target.rounding
    lowest = np.minimum(values[:-1], values[1:]) - inside
    highest = np.maximum(values[:-1], values[1:]) + inside

    steps = []
    for step in _steps(lowest, highest, tolerance * (1 - _LEFT)):
        steps.append(step)
        if len(steps) > max_units:
            raise NotCertifiedError(
                f"at x = {step.first / intervals:.3g}, the staircase has {max_units:,} units "
                "already. Give a larger tolerance, or max_units"
            )
    heights = np.array([step.height for step in steps])
    places = (np.array([step.last for step in steps[:-1]]) + 0.5) / intervals
    rises = np.diff(heights)
    total = float(np.abs(rises).sum())
    eta = min(tolerance * _LEFT / 4 / total, 0.01) if total else 0.01
    steepness = 2 * intervals * math.log(1 / eta)  # so that sigma(-steepness / 2 intervals) < eta
    # The first height is a neuron that always says one half.
    network = superposition(
        np.concatenate([[0.0], np.full(len(rises), steepness)])[:, None],
        np.concatenate([[0.0], steepness * places]),
        np.concatenate([[2 * heights[0]], rises]),
    )
    return network, {
        "steps": max(step.miss for step in steps),
        "edges": eta * total * (1 + 1e-9),
        "rounding": Arithmetic(network).network * (1 + 1e-9),
    }


def _steps(lowest: Array, highest: Array, radius: float) -> Iterator[Step]:
    """As few steps as keep within `radius`, from bounds of the function in each interval.

    Raises:
        NotCertifiedError: the function changes too much within two neighbouring intervals.
    """
    count, first, length = len(lowest), 0, 64
    while True:
        low = np.minimum.accumulate(lowest[first : first + length])
        high = np.maximum.accumulate(highest[first : first + length])
        reach = int(np.searchsorted(high - low, 2 * radius, side="right"))
        if reach == len(low) and first + reach < count:
            length *= 2  # it goes on beyond what was looked at
            continue
        last = first + reach - 1
        if reach < 2 and last < count - 1:
            k = min(first + 1, count - 1)
            width = max(highest[first], highest[k]) - min(lowest[first], lowest[k])
            raise NotCertifiedError(
                f"near x = {k / count:.6g} the function may change by {width:.3g} within two "
                f"intervals of {1 / count:.1g}, which no step of this tolerance spans; finer "
                "grids are not tried. Give a larger tolerance, or a sharper bound of how fast it "
                "changes",
                bound=width / 2 / (1 - _LEFT),
            )
        a, b = float(low[reach - 1]), float(high[reach - 1])
        height = a + (b - a) / 2
        # Which of both is farther is a matter of rounding.
        yield Step(height, first, last, max(b - height, height - a) * (1 + 1e-15))
        if last == count - 1:
            return
        first, length = last, max(64, 2 * reach)
