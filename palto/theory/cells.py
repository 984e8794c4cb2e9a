"""A guaranteed bound of how far a network is from a function, over all points: branch and bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from palto.tensor.dtypes import Array
from palto.theory.superposition import Arithmetic, Superposition, logistic
from palto.theory.target import Function, NotCertifiedError, Target, is_finite

#: The size of sigma's second derivative at most, 1 / (6 sqrt(3)).
_CURVATURE = 0.09622504486493763 * (1 + 1e-12)
#: How many neurons are computed before giving up, and at once; how many cells wait.
_MOST_NEURONS, _AT_ONCE = 1_000_000_000, 1 << 17
_MOST_WAITING = 1_000_000
#: Cells are halved so often at most.
_DEEPEST = 40
#: Bounds are computed in float64, too; this covers the roundings that are relative to them.
_ROUNDED_UP = 1 + 1e-9


class RefutedError(NotCertifiedError):
    """There is a point where the network is not as good."""


class Cell(NamedTuple):
    """The cell with the largest bound, and the parts that this is the sum of."""

    bound: float
    centre: float  # the error in its centre
    network: float  # by how much the network may change from there
    function: float  # by how much the function may
    rounding: float


def certify(
    network: Superposition,
    function: Function,
    tolerance: float,
    *,
    lipschitz: float | None = None,
    modulus: Callable[[Array], Any] | None = None,
) -> float:
    """A number below `tolerance` that abs(a(x) - f(x)) does not exceed anywhere on [0, 1]^n.

    It does not matter where the network comes from. The cube is divided into cells. In each, the
    error is that in its centre, plus what the function may change from there by its modulus, plus
    what the network may change, by its gradient in the centre and bounds of sigma's second
    derivative over the cell. Cells where this is not below the tolerance are halved, unless an
    error in a centre shows that the network is not as good.

    The certificate is for the network as it computes, in its own dtype, run at once or compiled;
    and for the function that takes the values computed, to 8 units of their dtype's precision, and
    changes as is said. Values are searched for contradictions of that; not to find one is no proof.

    Args:
        network: a(x).
        function: f, from points, float64 (N, n), to values, (N,).
        tolerance: what to stay below.
        lipschitz: L, with abs(f(x) - f(y)) <= L |x - y| in Euclidean distance.
        modulus: instead of it omega, with abs(f(x) - f(y)) <= omega(|x - y|), as `approximate`
            takes it.

    Returns:
        The bound.

    Raises:
        NotCertifiedError: it cannot be shown, or is not so; the message says what, and the remedy.
        TypeError: the network is another module.
    """
    if not isinstance(network, Superposition):
        raise TypeError(
            f"a Superposition is certified, got a {type(network).__name__}; give the weights of a "
            "network of one hidden layer of sigmoids to one by load_state_dict"
        )
    target = Target(function, network.weight.shape[1], lipschitz, modulus)
    target.refuse_contradiction()
    return worst_cell(network, target, require_tolerance(tolerance)).bound


def require_tolerance(tolerance: float) -> float:
    """The tolerance, if it is one.

    Raises:
        NotCertifiedError: it is none.
    """
    if not (is_finite(tolerance) and tolerance > 0):
        raise NotCertifiedError(f"a tolerance is a positive number, got {tolerance!r}")
    return float(tolerance)


def worst_cell(network: Superposition, target: Target, tolerance: float) -> Cell:
    """The cell with the largest bound, which is below the tolerance.

    Raises:
        NotCertifiedError: there is one whose bound is not, or it takes too long.
    """
    n = target.dimension
    arithmetic = Arithmetic(network)
    if not arithmetic.is_sound:
        raise NotCertifiedError("the network has weights that are NaN, infinite or too large")
    refuse_too_many(target, tolerance, len(arithmetic.alpha))
    corners = np.stack(np.meshgrid(*[(-1.0, 1.0)] * n, indexing="ij"), -1).reshape(-1, n)
    at_once = max(_AT_ONCE // max(len(arithmetic.alpha), 1), 1)
    worst = Cell(0.0, 0.0, 0.0, 0.0, 0.0)
    # Cells of the same size, by their centres, and the largest bound of those that they are in.
    waiting: list[tuple[int, Array, float]] = [(0, np.full((1, n), 0.5), math.inf)]
    neurons = 0
    while waiting:
        # Large cells first, as long as there is room for all the small ones.
        first = 0 if sum(len(centres) for _, centres, _ in waiting) < _MOST_WAITING else -1
        level, centres, above = waiting.pop(first)
        if len(centres) > at_once:
            waiting.insert(0 if first == 0 else len(waiting), (level, centres[at_once:], above))
            centres = centres[:at_once]
        neurons += len(centres) * len(arithmetic.alpha)
        cells = _Cells(arithmetic, target, centres, 0.5 ** (level + 1))
        wrong = int(np.argmax(cells.error))
        if cells.error[wrong] - cells.rounding >= tolerance:
            raise RefutedError(
                f"the network is not as good: at x = {np.round(centres[wrong], 6).tolist()} its "
                f"error is {cells.error[wrong]:.4g}, and the tolerance {tolerance:g}. Train it "
                "longer, give it more units, or ask for less"
            )
        large = cells.bounds >= tolerance
        k = int(np.argmax(np.where(large, -math.inf, cells.bounds)))
        if not large[k] and cells.bounds[k] > worst.bound:
            worst = cells.cell(k)
        if large.any():
            reached = float(cells.bounds.max())
            if level == _DEEPEST or neurons > _MOST_NEURONS or cells.rounding >= tolerance:
                best = max(reached, worst.bound, *(bound for *_, bound in waiting))
                raise NotCertifiedError(
                    f"cells of width {2 * cells.half:.2g} with {neurons:.2g} neurons computed do "
                    f"not show it: the best bound is {best:.4g}, the tolerance {tolerance:g}; "
                    f"{cells.rounding:.2g} of it are rounding. Ask for less, give a sharper bound "
                    "of how fast the function changes, or a network that is better or less steep",
                    bound=best,
                )
            parts = centres[large][:, None, :] + cells.half / 2 * corners
            waiting.append((level + 1, parts.reshape(-1, n), reached))
    return worst


def refuse_too_many(target: Target, tolerance: float, units: int) -> None:
    """Refuse at once what would take too long: the function alone asks for small cells.

    Raises:
        NotCertifiedError: it would.
    """
    n, level = target.dimension, 0
    while target.spread(0.5 ** (level + 1) * math.sqrt(n)) >= tolerance and level < _DEEPEST:
        level += 1
    if (count := 2 ** (n * level) * units) > _MOST_NEURONS:
        raise NotCertifiedError(
            f"the function may change by {tolerance:g} within cells of width {0.5**level:.2g}, so "
            f"{2 ** (n * level):,} or more must be looked at, with {count:.2g} neurons to compute: "
            f"{_MOST_NEURONS:.2g} at most are tried. Ask for less, or give a sharper bound of how "
            "fast the function changes"
        )


class _Cells:
    """Cells of one size: cubes around `centres`, (N, n), of half the width `half`.

    Attributes:
        half: half their width.
        error: the error in each centre, (N,).
        network: by how much the network may change from there, (N,).
        function: by how much the function may.
        rounding: by how much all of it may be wrong for being computed.
        bounds: the sum, (N,).
    """

    def __init__(self, arithmetic: Arithmetic, target: Target, centres: Array, half: float) -> None:
        self.half = half
        z, s = arithmetic.neurons(centres)
        values = target(centres)
        target.check(centres[:-1], values[:-1], centres[1:], values[1:])
        self.error = np.abs(s @ arithmetic.alpha - values)
        self.network = _variation(arithmetic, z, s, half) * _ROUNDED_UP
        self.function = target.spread(half * math.sqrt(target.dimension) * _ROUNDED_UP)
        self.rounding = arithmetic.here + arithmetic.network + target.rounding
        self.bounds = (self.error + self.network + self.function + self.rounding) * _ROUNDED_UP

    def cell(self, k: int) -> Cell:
        """One of them."""
        return Cell(
            float(self.bounds[k]), float(self.error[k]), float(self.network[k]), self.function,
            self.rounding,
        )  # fmt: skip


def _variation(a: Arithmetic, z: Array, s: Array, half: float) -> Array:
    """By how much the network may change from a cell's centre to a point of the cell, (N,).

    Args:
        a: its parameters.
        z: the arguments of sigma in the centres, (N, H).
        s: the values of sigma there, (N, H).
        half: half the width of the cells.
    """
    sizes = np.abs(a.alpha)
    reach = half * np.abs(a.w).sum(1) + a.argument  # how far an argument may go from z
    steep = reach > 1.0
    flat = ~steep
    variation: Array = np.zeros(len(z))
    if flat.any():
        # Taylor: the gradient of all these neurons together, where much cancels out, and for each
        # a bound of sigma'' = sigma' (1 - 2 sigma) over the cell: it changes no faster than sigma',
        # which grows no faster than exp.
        slope, far = s[:, flat] * (1 - s[:, flat]), reach[flat]
        gradient = (slope * a.alpha[flat]) @ a.w[flat]
        curvature = slope * (np.abs(1 - 2 * s[:, flat]) + far * np.exp(far)) + 2.0**-46
        curvature = np.minimum(curvature, _CURVATURE)
        variation += half * np.abs(gradient).sum(1) + curvature @ (sizes[flat] * far**2 / 2)
        # What the gradient may be wrong by for being computed.
        precision = a.argument[flat] / 4 + (len(sizes) + 40) * 2.0**-53
        variation += float((sizes[flat] * far * precision).sum())
    if steep.any():
        # Sigma is monotone: its values at both ends.
        middle, far = z[:, steep], reach[steep]
        up, down = logistic(middle + far) - s[:, steep], s[:, steep] - logistic(middle - far)
        variation += (np.maximum(up, down) + 2.0**-48) @ sizes[steep]
    return variation
