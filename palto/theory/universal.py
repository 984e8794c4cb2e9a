"""The universal approximation theorem: for a function and a tolerance, the network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from palto.tensor.dtypes import Array
from palto.theory.cells import (
    Cell,
    RefutedError,
    refuse_too_many,
    require_tolerance,
    worst_cell,
)
from palto.theory.staircase import staircase
from palto.theory.superposition import Superposition, logistic, superposition
from palto.theory.target import Function, NotCertifiedError, Target

#: A fit is worth certifying where its largest error at test points is below this share.
_PROMISING = 0.75
#: Units of the smallest and of the largest fit.
_FEWEST, _MOST_FITTED = 8, 2048
#: How strongly output weights are drawn to 0 in a fit: small ones change little within a cell.
_DECAY = 1e-6


@dataclass(frozen=True)
class Approximation:
    """A network that is near a function everywhere on [0, 1]^n, and why.

    Attributes:
        network: a(x) = sum over h of alpha_h sigma(<x, w_h> - w_0h), in float64.
        bound: abs(a(x) - f(x)) is at most this for all x, and this is below the tolerance.
        tolerance: what was asked for.
        units: H, how many neurons there are.
        method: "staircase", the theorem's proof in one dimension, or "cells".
        parts: the names and sizes of what the bound is the sum of; of cells, in the worst one.
        samples: at how many points the function was asked.
    """

    network: Superposition
    bound: float
    tolerance: float
    units: int
    method: str
    parts: dict[str, float]
    samples: int

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size:.3g}" for name, size in self.parts.items())
        return (
            f"{self.units} units, error at most {self.bound:.6g} < {self.tolerance:g} ({parts}), "
            f"from {self.samples:,} samples"
        )


def approximate(
    function: Function,
    tolerance: float,
    dimension: int = 1,
    *,
    lipschitz: float | None = None,
    modulus: Callable[[Array], Any] | None = None,
    max_units: int = 10_000,
) -> Approximation:
    """A network with abs(a(x) - f(x)) <= bound < tolerance for all x in [0, 1]^n: a certificate.

    The theorem says that for any continuous f and any tolerance there are H, alpha, w and w_0 with
    which a(x) = sum over h of alpha_h sigma(<x, w_h> - w_0h) is that near. This finds them.

    In one dimension it is the proof: a staircase of steep sigmoids, with few steps where the
    function is flat; the bound follows from how it is made (`palto.theory.staircase`). In two and
    three dimensions the hidden neurons are drawn at random and the output weights fitted to values
    of the function (with twice as many neurons, and steeper ones, until that is good enough); then
    all cells of the cube are looked at (`certify`).

    No number of samples proves anything of the points between them, so it must be known how fast
    the function can change. The certificate is for the network as it computes, in float64, run at
    once or compiled, and for the function that takes the values computed, to 8 units of their
    dtype's precision, and changes as is said. Training the network further ends it.

    Args:
        function: f, from points, float64 (N, n), to values, (N,) or (N, 1).
        tolerance: what the error must stay below.
        dimension: n, 1 to 3.
        lipschitz: L, with abs(f(x) - f(y)) <= L |x - y| in Euclidean distance.
        modulus: instead of it omega, a modulus of continuity, abs(f(x) - f(y)) <= omega(|x - y|):
            from distances, float64 (K,), to bounds, (K,), which do not fall as the distance grows;
            np.sqrt for the square root.
        max_units: how large H may become (in two and three dimensions at most 2,048).

    Raises:
        NotCertifiedError: there is no such network, or it cannot be shown; the message says what
            was tried and what to do. So it is with neither `lipschitz` nor `modulus`, with one that
            values contradict, with values that are not finite or of a wrong shape.

    Sources: Cybenko, "Approximation by superpositions of a sigmoidal function", 1989, and the
    lecture "Introduction to deep learning, part 1". Barron, "Universal approximation bounds for
    superpositions of a sigmoidal function", 1993, says how fast the error falls with H.
    """
    tolerance = require_tolerance(tolerance)
    if not isinstance(max_units, int) or max_units < 1:
        raise NotCertifiedError(f"max_units is a whole number from 1 up, got {max_units!r}")
    target = Target(function, dimension, lipschitz, modulus)
    target.refuse_contradiction()
    if target.dimension == 1:
        network, parts = staircase(target, tolerance, max_units)
        method, bound = "staircase", sum(parts.values()) * (1 + 1e-12)
        if not bound < tolerance:
            raise NotCertifiedError(
                f"the best bound is {bound:.6g}, and not below {tolerance:g}, for "
                f"{parts['rounding']:.2g} of it are rounding: ask for less",
                bound,
            )
    else:
        refuse_too_many(target, tolerance, _FEWEST)
        network, cell = _fitted(target, tolerance, max_units)
        method, bound = "cells", cell.bound
        parts = {
            "in the centre": cell.centre, "the network around it": cell.network,
            "the function around it": cell.function, "rounding": cell.rounding,
        }  # fmt: skip
    units = network.weight.shape[0]
    return Approximation(network, bound, tolerance, units, method, parts, target.samples)


class _Fit(NamedTuple):
    weight: Array
    threshold: Array
    alpha: Array
    error: float  # the largest at points that were not fitted to


def _fitted(target: Target, tolerance: float, max_units: int) -> tuple[Superposition, Cell]:
    """The smallest network of those tried that is good enough, and its worst cell.

    Raises:
        NotCertifiedError: none is, or it takes too long to show it.
    """
    n = target.dimension
    most = min(max_units, _MOST_FITTED)
    rng = np.random.default_rng(0)
    # Half of the test points are a coarse grid's, which has the corners and edges.
    test = np.concatenate([rng.integers(0, 9, (4096, n)) / 8, rng.uniform(size=(4096, n))])
    # More points lie near the faces of the cube, where fits are worst.
    points = 0.5 - 0.5 * np.cos(np.pi * rng.uniform(size=(max(4096, 4 * most), n)))
    values, wanted = target(points), target(test)
    best, units = np.inf, min(_FEWEST, most)
    while True:
        count = max(4096, 4 * units)
        fits = [
            _fit(points[:count], values[:count], test, wanted, units, steepness)
            for steepness in 4 * max(units / 16, 1) ** (1 / n) * np.array([0.5, 1.0, 2.0])
        ]
        fit = min(fits, key=lambda fit: fit.error)
        if fit.error <= _PROMISING * tolerance:
            network = superposition(fit.weight, fit.threshold, fit.alpha)
            with suppress(RefutedError):  # by a point between those of the test
                return network, worst_cell(network, target, tolerance)
        best = min(best, fit.error)
        if units >= most:
            raise NotCertifiedError(
                f"networks of {min(_FEWEST, most)} to {most:,} units were fitted; the best one is "
                f"wrong by {best:.4g} at a test point, too near to the tolerance {tolerance:g} or "
                "above it, or by more at another. Ask for less"
                + (", or give a larger max_units" if max_units < _MOST_FITTED else "")
            )
        units = min(2 * units, most)


def _fit(
    points: Array, values: Array, test: Array, wanted: Array, units: int, steepness: float
) -> _Fit:
    """Random neurons of one steepness, the first of which is a constant; the best output weights.

    That is linear least squares, with a decay.
    """
    rng = np.random.default_rng(units)
    n = points.shape[1]
    weight = rng.normal(size=(units, n))
    weight *= steepness / np.linalg.norm(weight, axis=1, keepdims=True)
    threshold = (weight * rng.uniform(size=(units, n))).sum(1)  # each rises through the cube
    weight[0] = threshold[0] = 0
    answers = logistic(points @ weight.T - threshold)
    count = len(points)
    alpha = np.linalg.solve(
        answers.T @ answers / count + _DECAY * np.eye(units), answers.T @ values / count
    )
    error = np.abs(logistic(test @ weight.T - threshold) @ alpha - wanted).max()
    return _Fit(weight, threshold, alpha, float(error))
