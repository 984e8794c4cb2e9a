"""Where an element lies: whole-number arithmetic on loop counters, exact where it can be.

An `Index` is a constant plus multiples of variables. Most views (permuted, sliced, broadcast,
reshaped along whole axes) are such sums. What is not, such as the quotient that a reshape needs,
becomes a variable with a definition; sums that undo it again find the original back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from palto.compiler.sizes import is_surely_less


class Variable:
    """A whole number from 0 to length - 1.

    Attributes:
        key: equal for equal variables.
        length: how many values it may have.
        kind: "loop" for a counter; "quotient" or "remainder" of `index` by `divisor`; "assumed",
            `index` itself where a guard keeps it in range; "element", an element of a tensor.
        index: what it is computed from.
        divisor: see `kind`.
        source: for "element": the tensor and the indices into it.
    """

    __slots__ = ("divisor", "index", "key", "kind", "length", "source")

    def __init__(
        self,
        key: str,
        length: int,
        kind: str = "loop",
        index: Index | None = None,
        divisor: int = 1,
        source: Any = None,
    ) -> None:
        self.key, self.length, self.kind = key, length, kind
        self.index, self.divisor, self.source = index, divisor, source

    def __repr__(self) -> str:
        return self.key


class Index:
    """``constant + sum of coefficient * variable``."""

    __slots__ = ("_key", "constant", "terms")

    def __init__(
        self, constant: int = 0, terms: dict[str, tuple[Variable, int]] | None = None
    ) -> None:
        self.constant = constant
        self.terms = terms or {}
        self._key: str | None = None

    @property
    def key(self) -> str:
        """Equal for equal sums."""
        if self._key is None:
            parts = [f"{self.terms[key][1]}*{key}" for key in sorted(self.terms)]
            self._key = "+".join([*parts, str(self.constant)])
        return self._key

    def __repr__(self) -> str:
        return self.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Index) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def low(self) -> int:
        """The least value that it can have."""
        return self.constant + sum(c * (v.length - 1) for v, c in self.terms.values() if c < 0)

    @property
    def high(self) -> int:
        """The greatest value that it can have."""
        return self.constant + sum(c * (v.length - 1) for v, c in self.terms.values() if c > 0)

    def within(self, length: int) -> bool:
        """Whether it is always from 0 to length - 1."""
        return is_surely_less(-1, self.low) and is_surely_less(self.high, length)

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.constant + other, self.terms)
        return total([(self, 1), (other, 1)])

    def __mul__(self, factor: int) -> Index:
        return total([(self, factor)])


def of(variable: Variable) -> Index:
    """The variable itself. One of length 1 is 0."""
    return Index(0, {variable.key: (variable, 1)}) if variable.length not in (0, 1) else Index()


def total(parts: Iterable[tuple[Index, int]]) -> Index:
    """The sum of indices times numbers."""
    constant = 0
    terms: dict[str, tuple[Variable, int]] = {}
    for index, factor in parts:
        constant += index.constant * factor
        for key, (variable, c) in index.terms.items():
            terms[key] = variable, terms[key][1] + c * factor if key in terms else c * factor
    terms = {key: term for key, term in terms.items() if term[1]}
    # A quotient times its divisor and the remainder are the number that was divided.
    for variable, c in terms.values():
        if variable.kind == "remainder" and variable.index is not None:
            quotient = _key("quotient", variable.index, variable.divisor)
            if quotient in terms and terms[quotient][1] == c * variable.divisor:
                rest = {k: t for k, t in terms.items() if k not in (quotient, variable.key)}
                return total([(Index(constant, rest), 1), (variable.index, c)])
    return Index(constant, terms)


def _key(kind: str, index: Index, divisor: int) -> str:
    return f"({index.key}{'/' if kind == 'quotient' else '%'}{divisor})"


def split(index: Index, divisor: int) -> tuple[Index, Index]:
    """Quotient and remainder of a number that is not negative."""
    if divisor == 1:
        return index, Index()
    whole = {k: (v, c // divisor) for k, (v, c) in index.terms.items() if c % divisor == 0}
    part = {k: t for k, t in index.terms.items() if t[1] % divisor}
    remainder = Index(index.constant % divisor, part)
    if remainder.within(divisor):
        return Index(index.constant // divisor, whole), remainder
    # (i * 6 + j) / 12 is i / 2 where j is below 6: divide what varies less away first.
    for step in sorted({abs(c) for _, c in part.values()}, key=int, reverse=True):
        if step != 1 and is_surely_less(step, divisor) and divisor % step == 0:
            small = Index(
                index.constant % step, {k: t for k, t in index.terms.items() if t[1] % step}
            )
            if small.within(step):
                large, small = split(index, step)
                quotient, rest = _opaque(large, divisor // step)
                return quotient, total([(rest, step), (small, 1)])
    if not is_surely_less(-1, remainder.low):
        return _opaque(index, divisor)
    quotient, rest = _opaque(remainder, divisor)
    return total([(quotient, 1), (Index(index.constant // divisor, whole), 1)]), rest


def _opaque(index: Index, divisor: int) -> tuple[Index, Index]:
    if index.within(divisor):
        return Index(), index
    high = max(index.high, 0, key=int)
    quotient = Variable(
        _key("quotient", index, divisor), high // divisor + 1, "quotient", index, divisor
    )
    remainder = Variable(_key("remainder", index, divisor), divisor, "remainder", index, divisor)
    return of(quotient), of(remainder)


def assume(index: Index, length: int) -> Index:
    """The same number, known to be in range because a guard says so."""
    if index.within(length):
        return index
    return of(Variable(f"[{index.key}<{length}]", max(length, 1), "assumed", index))


def without_assumptions(index: Index) -> Index:
    """The same number as a sum of what the assumed variables stand for."""
    parts: list[tuple[Index, int]] = [(Index(index.constant), 1)]
    for variable, c in index.terms.values():
        if variable.kind == "assumed" and variable.index is not None:
            parts.append((without_assumptions(variable.index), c))
        else:
            parts.append((of(variable), c))
    return total(parts)


def replace(index: Index, values: dict[str, Index]) -> Index:
    """The same sum of other numbers, for variables that are loop counters."""
    parts: list[tuple[Index, int]] = [(Index(index.constant), 1)]
    for key, (variable, c) in index.terms.items():
        parts.append((values.get(key, of(variable)), c))
    return total(parts)


def divided(index: Index) -> set[str]:
    """The loop counters that an index divides."""
    found: set[str] = set()
    for variable, _ in index.terms.values():
        if variable.kind == "element":
            for i in variable.source.indices:
                found |= divided(i)
        elif variable.index is not None:
            inside = variable.index
            found |= divided(inside) if variable.kind == "assumed" else counters(inside)
    return found


def counters(index: Index) -> set[str]:
    """The loop counters that an index depends on."""
    found: set[str] = set()
    for variable, _ in index.terms.values():
        parts = variable.source.indices if variable.kind == "element" else [variable.index]
        inner = [part for part in parts if part is not None]
        found |= set().union(*map(counters, inner)) if inner else {variable.key}
    return found


def strides_of(shape: Sequence[int]) -> list[int]:
    """Distances between neighbours along each axis of a dense array."""
    strides, size = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        strides[axis] = size
        size *= shape[axis]
    return strides


def linear(indices: Sequence[Index], shape: Sequence[int]) -> Index:
    """The place in a dense array."""
    return total(zip(indices, strides_of(shape), strict=True))


def along(place: Index, shape: Sequence[int]) -> list[Index]:
    """The index along each axis of a dense array from the place in it."""
    indices: list[Index] = []
    for axis in reversed(range(len(shape))):
        if axis == 0 and place.within(max(shape[0], 1)):
            indices.append(place)
            break
        place, index = split(place, max(shape[axis], 1))
        indices.append(index)
    return indices[::-1]
