"""The function to be approximated: what is known of it, and whether its values agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from palto.tensor.dtypes import Array

Function = Callable[[Array], Any]

#: Values are taken to be right to so many units of their dtype's precision.
_TRUSTED = 8
#: Numbers so small may count as zero.
_TINY = 1e-300
#: The shortest distance over which values are compared, and a modulus is asked.
_SHORTEST = 2.0**-26
#: By what share values may exceed what is allowed: arguments are rounded in the function, too.
_SLACK = 1e-6


class NotCertifiedError(ValueError):
    """No network can be certified to approximate this function so well.

    The message says what was tried and what to do.

    Attributes:
        bound: the smallest guaranteed bound that was reached; infinite where there was none.
    """

    def __init__(self, message: str, bound: float = math.inf) -> None:
        super().__init__(message)
        self.bound = bound


class Target:
    """A function on [0, 1]^n with a modulus of continuity.

    Args:
        function: from points, float64 (N, n), to values, (N,) or (N, 1).
        dimension: n.
        lipschitz: L, with abs(f(x) - f(y)) <= L |x - y| in Euclidean distance.
        modulus: instead of it omega, with abs(f(x) - f(y)) <= omega(|x - y|): from distances (K,)
            to bounds (K,), which do not fall as the distance grows.

    Attributes:
        samples: at how many points the function was asked.

    Raises:
        NotCertifiedError: neither `lipschitz` nor `modulus` is there, or both; it is no modulus.
    """

    def __init__(
        self,
        function: Function,
        dimension: int,
        lipschitz: float | None,
        modulus: Callable[[Array], Any] | None,
    ) -> None:
        if not callable(function):
            raise NotCertifiedError(f"function is to be called with points, got {function!r}")
        if isinstance(dimension, bool) or dimension not in (1, 2, 3):
            raise NotCertifiedError(
                f"the dimension is 1, 2 or 3, got {dimension!r}: the number of cells that must be "
                "looked at grows with its power"
            )
        self.function, self.dimension = function, int(dimension)
        self.lipschitz, self.modulus = lipschitz, modulus
        self.samples = 0
        self._largest, self._precision = 0.0, float(np.finfo(np.float64).eps)
        if lipschitz is not None and modulus is not None:
            raise NotCertifiedError("give lipschitz or modulus, not both")
        if lipschitz is not None and not (is_finite(lipschitz) and lipschitz >= 0):
            raise NotCertifiedError(
                f"a Lipschitz constant is a number from 0 up, got {lipschitz!r}"
            )
        if lipschitz is None and modulus is None:
            raise self._opaque()
        distances = np.geomspace(_SHORTEST, math.sqrt(dimension), 1024)
        if (np.diff(self.change(distances)) < 0).any():
            raise NotCertifiedError("a modulus of continuity grows with the distance; this one not")

    def _opaque(self) -> NotCertifiedError:
        start, end = self._pairs()
        slopes = np.abs(self(start) - self(end)) / np.linalg.norm(start - end, axis=1)
        return NotCertifiedError(
            "between two points where it was asked, a function may do anything, so values alone "
            "prove nothing. Say how fast it can change: lipschitz=L, with abs(f(x) - f(y)) <= "
            f"L |x - y| for all points. (The steepest pair of {len(start):,} tried has a slope of "
            f"{slopes.max():.4g}; L is at least that.) For a function such as the square root, "
            "give modulus=omega, that bound as a function of the distance."
        )

    def __call__(self, points: Array) -> Array:
        """Values, float64 (N,), at points (N, n).

        Raises:
            NotCertifiedError: they have another shape, or are no finite real numbers.
        """
        count = len(points)
        self.samples += count
        try:
            with np.errstate(all="ignore"):
                values = np.asarray(self.function(points.copy()))
        except Exception as error:
            error.add_note(f"the function was called with points, float64 {points.shape}")
            raise
        if values.shape not in ((count,), (count, 1)):
            raise NotCertifiedError(
                f"for points of shape {points.shape}, a row each, the function is to give values "
                f"of shape ({count},), got {values.shape}"
            )
        if values.dtype.kind not in "fiub":
            raise NotCertifiedError(f"the function is to give real numbers, got {values.dtype}")
        if values.dtype.kind == "f":
            self._precision = max(self._precision, float(np.finfo(values.dtype).eps))
        values = values.reshape(count).astype(np.float64)
        finite = np.isfinite(values)
        if not finite.all():
            place = int(np.argmin(finite))
            raise NotCertifiedError(
                f"the function is {values[place]} at {_shown(points[place])}; only functions that "
                "are finite on the whole of [0, 1]^n can be approximated"
            )
        self._largest = max(self._largest, float(np.abs(values).max(initial=0)))
        return values

    @property
    def rounding(self) -> float:
        """How far the values may be from the function that is meant, for being computed."""
        return _TRUSTED * self._precision * self._largest + _TINY

    def change(self, distances: Array) -> Array:
        """By how much the function changes at most over such distances, (K,).

        Raises:
            NotCertifiedError: the modulus gives something else than finite numbers from 0 up.
        """
        if self.modulus is None:
            assert self.lipschitz is not None
            return self.lipschitz * distances * (1 + 1e-12)
        bounds = np.asarray(self.modulus(distances.copy()))
        fits = bounds.shape == distances.shape and bounds.dtype.kind in "fiu"
        if not fits or not (np.isfinite(bounds) & (bounds >= 0)).all():
            raise NotCertifiedError(
                f"modulus is to give, for {len(distances)} distances, as many finite numbers from "
                f"0 up, got {bounds!r:.200}"
            )
        result: Array = bounds.astype(np.float64) * (1 + 1e-12)
        return result

    def spread(self, distance: float) -> float:
        """`change` over one distance."""
        return float(self.change(np.array([distance]))[0])

    def refuse_contradiction(self) -> None:
        """Compare values at many pairs of points, near and far.

        Raises:
            NotCertifiedError: they differ by more than the function is said to change.
        """
        start, end = self._pairs()
        self.compare(start, self(start), end, self(end))

    def compare(self, start: Array, first: Array, end: Array, second: Array) -> None:
        """Look where the function changes most, between points (N, n) with known values.

        Pairs whose values differ most are halved again and again: a jump stays as large, and shows.

        Raises:
            NotCertifiedError: values differ by more than the function is said to change.
        """
        ratio = self.check(start, first, end, second)
        steep = np.argsort(ratio)[-16:]
        start, first, end, second = start[steep], first[steep], end[steep], second[steep]
        while len(start):
            middle = (start + end) / 2
            value = self(middle)
            left = (np.abs(value - first) > np.abs(second - value))[:, None]
            start, end = np.where(left, start, middle), np.where(left, middle, end)
            left = left[:, 0]
            first, second = np.where(left, first, value), np.where(left, value, second)
            self.check(start, first, end, second)
            long = np.linalg.norm(start - end, axis=1) > _SHORTEST
            start, first, end, second = start[long], first[long], end[long], second[long]

    def check(self, start: Array, first: Array, end: Array, second: Array) -> Array:
        """The changes between points in relation to those that are allowed, (N,).

        Raises:
            NotCertifiedError: one is above.
        """
        distance = np.linalg.norm(start - end, axis=1)
        allowed = self.change(distance)
        actual = np.abs(second - first)
        above = actual - 2 * self.rounding > allowed * (1 + _SLACK)
        if above.any():
            k = int(np.argmax(actual - allowed))
            said = "the modulus" if self.modulus is not None else f"lipschitz={self.lipschitz:g}"
            raise NotCertifiedError(
                f"{said} is not true of this function: from {_shown(start[k])} to "
                f"{_shown(end[k])}, a distance of {distance[k]:.3g}, it changes by "
                f"{actual[k]:.4g}, and should by {allowed[k]:.4g} at most, so its slope is "
                f"{actual[k] / distance[k]:.4g} there. Give a bound that holds everywhere; a "
                "function that jumps has none, and no continuous network comes near it."
            )
        ratio: Array = actual / np.maximum(allowed, 1e-300)
        return ratio

    def _pairs(self) -> tuple[Array, Array]:
        """Neighbours of a grid, and random pairs of all distances."""
        n = self.dimension
        steps = (1024, 48, 16)[n - 1]
        lines = np.linspace(0, 1, steps + 1)
        grid = np.stack(np.meshgrid(*[lines] * n, indexing="ij"), -1)
        starts, ends = [], []
        for axis in range(n):
            rows = np.moveaxis(grid, axis, 0)
            starts.append(rows[:-1].reshape(-1, n))
            ends.append(rows[1:].reshape(-1, n))
        rng = np.random.default_rng(0)
        start = rng.uniform(size=(4096, n))
        way = rng.normal(size=start.shape)
        way *= 10 ** rng.uniform(-6, 0, (4096, 1)) / np.linalg.norm(way, axis=1, keepdims=True)
        end = np.clip(start + way, 0, 1)
        apart = np.linalg.norm(start - end, axis=1) > _SHORTEST
        return np.concatenate([*starts, start[apart]]), np.concatenate([*ends, end[apart]])


def is_finite(number: Any) -> bool:
    """Whether this is a real number, and neither NaN nor infinite."""
    return isinstance(number, Real) and math.isfinite(number)


def _shown(point: Array) -> str:
    return "x = (" + ", ".join(f"{x:.6g}" for x in point) + ")"
