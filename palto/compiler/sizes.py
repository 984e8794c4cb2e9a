"""Sizes that are known only when a program runs, as numbers to calculate with.

A `Size` is a sum of products of run-time sizes and of quotients of such sums. It stands where a
shape, a stride or an offset is an int; as an int it is its value at the greatest sizes, by which
plans are made. Equality is that for all sizes; a comparison that depends on the sizes raises.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from palto.tensor.tensor import TraceError


@dataclass(frozen=True, slots=True)
class Dim:
    """A run-time size: an axis, or a whole number, of which one program takes all values.

    Args:
        name: a word; arguments that name one Dim have equal sizes.
        max: the largest size, for which memory is planned.

    Raises:
        ValueError: the name is no word, or there is no room for different sizes.
    """

    name: str
    max: int

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a Dim's name is a word, got {self.name!r}")
        if self.max < _LEAST_MAX:
            raise ValueError(
                f"Dim {self.name!r} has max={self.max}, which leaves no different sizes; it must "
                f"be {_LEAST_MAX} or more"
            )


#: Smaller sizes have programs of their own, since an axis of length 1 is repeated where it must.
LEAST = 2
#: The least maximum: below it there are no three sizes to trace at.
_LEAST_MAX = 6


@dataclass(frozen=True, slots=True)
class Atom:
    """What a Size is made of: a run-time size, or a quotient or remainder of sizes.

    Attributes:
        name: equal for equal atoms.
        low, high: the least and greatest value.
        kind: "" for a run-time size, "/" for a quotient, "%" for a remainder.
        dividend, divisor: what is divided by what.
    """

    name: str
    low: int
    high: int
    kind: str = ""
    dividend: int = 0
    divisor: int = 1

    def at(self, sizes: Mapping[str, int] | None) -> int:
        """Its value; without sizes, where they are greatest."""
        if not self.kind:
            return self.high if sizes is None else sizes[self.name]
        dividend, divisor = at(self.dividend, sizes), at(self.divisor, sizes)
        return dividend // divisor if self.kind == "/" else dividend % divisor


Terms = dict[tuple[Atom, ...], int]


class Size(int):
    """A whole number that depends on run-time sizes.

    Attributes:
        terms: the factor of each product of atoms; of the empty product, the constant.
    """

    terms: Terms
    #: What the function `bounds` has found.
    _bounds: tuple[int, int] | None = None

    @staticmethod
    def of(dim: Dim, least: int = LEAST) -> Size:
        """A run-time size itself."""
        result = _of_atom(Atom(dim.name, least, dim.max))
        assert isinstance(result, Size)
        return result

    def __repr__(self) -> str:
        parts = [
            "*".join([*([str(factor)] if factor != 1 or not atoms else []),
                      *(atom.name for atom in atoms)])
            for atoms, factor in self.terms.items()
        ]  # fmt: skip
        return f"({'+'.join(parts)})" if len(parts) > 1 else parts[0]

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(str(self) if not spec else int(self), spec)

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __reduce__(self) -> Any:
        return _sum, (self.terms, int(self))

    # Arithmetic

    def __add__(self, other: int) -> int:
        terms = dict(self.terms)
        for atoms, factor in _terms(other).items():
            terms[atoms] = terms.get(atoms, 0) + factor
        return _sum(terms, int(self) + int(other))

    def __mul__(self, other: int) -> int:
        value = int(self) * int(other)
        if not isinstance(other, Size):
            return _sum({atoms: factor * other for atoms, factor in self.terms.items()}, value)
        terms: Terms = {}
        for (a, x), (b, y) in itertools.product(self.terms.items(), other.terms.items()):
            atoms = tuple(sorted((*a, *b), key=lambda atom: atom.name))
            terms[atoms] = terms.get(atoms, 0) + x * y
        return _sum(terms, value)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> int:
        return self * -1

    def __sub__(self, other: int) -> int:
        terms = dict(self.terms)
        for atoms, factor in _terms(other).items():
            terms[atoms] = terms.get(atoms, 0) - factor
        return _sum(terms, int(self) - int(other))

    def __rsub__(self, other: int) -> int:
        return self * -1 + other

    def __abs__(self) -> int:
        return self if bounds(self)[0] >= 0 else self * -1

    def __floordiv__(self, other: int) -> int:
        return _divided(self, other)[0]

    def __rfloordiv__(self, other: int) -> int:
        return _divided(other, self)[0]

    def __mod__(self, other: int) -> int:
        return _divided(self, other)[1]

    def __rmod__(self, other: int) -> int:
        return _divided(other, self)[1]

    # Comparisons

    def __eq__(self, other: object) -> bool:
        # Unequal where the sizes are greatest, it is unequal: what is soon known.
        return isinstance(other, int) and int.__eq__(self, other) and self.terms == _terms(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: int) -> bool:
        return _less(self, other)

    def __gt__(self, other: int) -> bool:
        return _less(other, self)

    def __le__(self, other: int) -> bool:
        return not _less(other, self)

    def __ge__(self, other: int) -> bool:
        return not _less(self, other)


def bounds(x: int) -> tuple[int, int]:
    """Numbers that a size is never below and never above."""
    if not isinstance(x, Size):
        return x, x
    if x._bounds is not None:
        return x._bounds
    low = high = 0
    for atoms, factor in x.terms.items():
        least = math.prod(atom.low for atom in atoms)
        most = math.prod(atom.high for atom in atoms)
        low += factor * (least if factor > 0 else most)
        high += factor * (most if factor > 0 else least)
    x._bounds = low, high
    return x._bounds


def is_surely_less(x: int, y: int) -> bool:
    """Whether x < y for all sizes."""
    if type(x) is int and type(y) is int:
        return x < y
    return bounds(y - x)[0] > 0


def at(x: int, sizes: Mapping[str, int] | None) -> int:
    """A size's value; without sizes, where they are greatest."""
    if not isinstance(x, Size):
        return x
    return _value(x.terms, sizes)


def _value(terms: Terms, sizes: Mapping[str, int] | None) -> int:
    return sum(f * math.prod([a.at(sizes) for a in atoms]) for atoms, f in terms.items())


def shape_at(shape: Sequence[int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape's lengths."""
    return tuple([at(n, sizes) for n in shape])


def names_in(x: int) -> Iterator[str]:
    """The run-time sizes that a size depends on."""
    for atom in {atom for atoms in _terms(x) for atom in atoms}:
        if atom.kind:
            yield from names_in(atom.dividend)
            yield from names_in(atom.divisor)
        else:
            yield atom.name


def _terms(x: int) -> Terms:
    if isinstance(x, Size):
        return x.terms
    return {(): int(x)} if x else {}


def _sum(terms: Terms, value: int) -> int:
    """A size; a plain number, if it depends on nothing.

    Args:
        terms: its terms; a factor may be 0.
        value: what it is where sizes are greatest.
    """
    terms = {atoms: factor for atoms, factor in terms.items() if factor}
    if not any(terms):
        return terms.get((), 0)
    result = Size(value)
    result.terms = terms
    return result


def _of_atom(atom: Atom) -> int:
    return _sum({(atom,): 1}, atom.at(None))


def _less(x: int, y: int) -> bool:
    low, high = bounds(y - x)
    if low > 0 or high <= 0:
        return low > 0
    raise TraceError(
        f"whether {x} is less than {y} depends on the run-time size, so one program cannot do; "
        "declare a smaller range, or no dynamic shape"
    )


def _divided(x: int, y: int) -> tuple[int, int]:
    """The whole part of x / y, and what remains of x."""
    if bounds(x)[1] <= 0 and x != 0:  # as in -(-x // y), the quotient rounded up
        above = _divided(y - 1 - x, y)[0]
        return -above, x + above * y
    whole = _multiple(x, y)
    rest = x - whole * y
    low, high = bounds(rest)
    if low < 0:
        steps = -(low // bounds(y)[0])
        whole, rest = whole - steps, rest + steps * y
        low, high = bounds(rest)
    if low >= 0 and is_surely_less(rest, y):
        return whole, rest
    least, most = bounds(y)
    divisor = f"({y})" if "*" in str(y) else str(y)
    quotient = Atom(f"({rest}/{divisor})", max(low, 0) // most, high // least, "/", rest, y)
    remainder = Atom(f"({rest}%{divisor})", 0, min(most - 1, high), "%", rest, y)
    return whole + _of_atom(quotient), _of_atom(remainder)


def _multiple(x: int, y: int) -> int:
    """What of x / y is exact: the terms divided by the leading one of y, one after the other."""
    divisor, factor = max(_terms(y).items(), key=lambda item: _degree(item[0]))
    whole: int = 0
    passed: set[tuple[Atom, ...]] = set()
    while True:
        left = {atoms: f for atoms, f in _terms(x).items() if atoms not in passed}
        if not left:
            return whole
        atoms, f = max(left.items(), key=lambda item: _degree(item[0]))
        passed.add(atoms)
        rest = _without(atoms, divisor)
        if rest is not None and f // factor:
            terms = {rest: f // factor}
            step = _sum(terms, _value(terms, None))
            if f % factor and len(_terms(y)) > 1:
                continue
            whole, x = whole + step, x - step * y


def _degree(atoms: tuple[Atom, ...]) -> tuple[int, tuple[str, ...]]:
    return len(atoms), tuple(atom.name for atom in atoms)


def _without(atoms: tuple[Atom, ...], divisor: tuple[Atom, ...]) -> tuple[Atom, ...] | None:
    """The product divided by another; None if it does not divide."""
    rest = list(atoms)
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


# In a trace


class Comparisons:
    """What traces at some run-time sizes ask that other sizes may answer differently.

    A trace follows the way of its own sizes: where it asks which of two lengths is less, the other
    answer may lead elsewhere. So its sizes are numbers that note such questions; sizes for which
    all answers are the same go the same way.

    Args:
        dims: the run-time sizes.
    """

    def __init__(self, dims: Sequence[Dim]) -> None:
        self._symbols = {dim.name: Size.of(dim) for dim in dims}
        #: Whether a size is greater than 0 (">"), or is 0 ("="); and of what sizes the traces were
        #: that asked it.
        self._asked: dict[tuple[str, int], list[Mapping[str, int]]] = {}
        self._about_numbers: set[Any] = set()
        self._sizes: Mapping[str, int] | None = None

    @contextmanager
    def noting(self, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
        """The sizes of a trace, as numbers that note what they are asked in this block."""
        self._sizes = sizes
        try:
            yield {name: Seen.of(n, self._symbols[name], self) for name, n in sizes.items()}
        finally:
            self._sizes = None

    def note(self, kind: str, difference: int) -> None:
        """Somebody asks a difference of sizes."""
        if self._sizes is None or not isinstance(difference, Size):
            return
        low, high = bounds(difference)
        if not (low <= 0 < high or (kind == "=" and low <= 0 <= high)):
            return
        question = kind, difference
        if question not in self._asked and _without_constant(question) in self._about_numbers:
            return
        asked = self._asked.setdefault(question, [])
        if self._sizes not in asked:
            asked.append(self._sizes)

    def settle(self, traces: Sequence[Mapping[str, int]]) -> None:
        """Leave out what only seems to be a question, now that all of these traces have been made.

        A number that NumPy has computed of a size is a plain one. Compared with the size, it is
        another number in every trace; what a function asks is the same.
        """
        alike: dict[Any, list[tuple[str, int]]] = {}
        for question, asked in self._asked.items():
            if len(asked) < len(traces):
                alike.setdefault(_without_constant(question), []).append(question)
        for kind, questions in alike.items():
            names = set(names_in(questions[0][1]))
            askers = [self._asked[question] for question in questions]
            are_numbers = all(sum(sizes in asked for asked in askers) for sizes in traces) and all(
                all(sizes[name] == asked[0][name] for name in names for sizes in asked)
                for asked in askers
            )
            if are_numbers:
                self._about_numbers.add(kind)
                for question in questions:
                    del self._asked[question]

    def answers(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """To all that has been asked, for some sizes.

        Two sizes that are equal, where one is asked to be greater, have an answer of their own: the
        numbers that both ways lead to agree there, and only there.
        """
        values = ((kind, at(size, sizes)) for kind, size in self._asked)
        return tuple([n == 0 if kind == "=" else (n > 0) - (n < 0) for kind, n in values])

    def least(self, traces: Sequence[Mapping[str, int]]) -> dict[str, int]:
        """The sizes from which on some questions are answered as at all of these traces."""
        found = dict.fromkeys(self._symbols, LEAST)
        for kind, size in self._asked:
            factors = {atoms: f for atoms, f in _terms(size).items() if atoms}
            ((atom, *others), factor), *more = factors.items()
            answers = {at(size, sizes) > 0 for sizes in traces}
            if kind == ">" and not (others or more or atom.kind) and answers == {factor > 0}:
                while (at(size, found) > 0) != (factor > 0):
                    found[atom.name] += 1
        return found


class Seen(int):
    """A run-time size, or a number computed from some, in a trace: an int that notes comparisons.

    Attributes:
        size: what it is for all sizes.
        comparisons: where it notes.
    """

    size: Size
    comparisons: Comparisons

    @staticmethod
    def of(value: int, size: int, comparisons: Comparisons) -> int:
        """A number; a plain one, if it does not depend on the sizes."""
        if not isinstance(size, Size):
            return int(value)
        result = Seen(value)
        result.size, result.comparisons = size, comparisons
        return result

    __hash__ = int.__hash__

    def __reduce__(self) -> Any:
        return int, (int(self),)

    def __neg__(self) -> int:
        return Seen.of(-int(self), -self.size, self.comparisons)

    def __pos__(self) -> int:
        return self

    def __abs__(self) -> int:
        return -self if self < 0 else self

    def __bool__(self) -> bool:
        return self != 0

    def __pow__(self, other: int, modulo: int | None = None) -> Any:
        if type(other) is int and 0 <= other < _MOST_POWER and modulo is None:
            return math.prod([self] * other)
        return pow(int(self), other, modulo)

    def __divmod__(self, other: int) -> tuple[int, int]:
        return self // other, self % other

    def __rdivmod__(self, other: int) -> tuple[int, int]:
        return other // self, other % self

    def __eq__(self, other: object) -> bool:
        return self._is("=", self, other) if isinstance(other, int) else int.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other if isinstance(other, int) else int.__ne__(self, other)

    def __lt__(self, other: int) -> bool:
        return self._is(">", other, self) if isinstance(other, int) else int.__lt__(self, other)

    def __gt__(self, other: int) -> bool:
        return self._is(">", self, other) if isinstance(other, int) else int.__gt__(self, other)

    def __le__(self, other: int) -> bool:
        return not self > other if isinstance(other, int) else int.__le__(self, other)

    def __ge__(self, other: int) -> bool:
        return not self < other if isinstance(other, int) else int.__ge__(self, other)

    def _is(self, kind: str, x: int, y: int) -> bool:
        (low, high), (least, most) = bounds(_size(x)), bounds(_size(y))
        if low <= most and (high >= least if kind == "=" else high > least):
            self.comparisons.note(kind, _size(x) - _size(y))
        return int(x) == int(y) if kind == "=" else int(x) > int(y)


_MOST_POWER = 5


def _without_constant(question: tuple[str, int]) -> Any:
    kind, size = question
    return kind, frozenset((atoms, f) for atoms, f in _terms(size).items() if atoms)


def _size(x: int) -> int:
    return x.size if isinstance(x, Seen) else int(x)


def _calculating(name: str) -> Callable[[Seen, Any], Any]:
    """A method of `Seen`: the numbers' result, and that of the sizes that they stand for."""
    on_numbers = getattr(int, name)

    def method(self: Seen, other: Any) -> Any:
        value = on_numbers(self, other)
        if not isinstance(other, int):
            return value
        own, others = self.size, _size(other)
        divisor = own if name.startswith("__r") else others
        if ("mod" in name or "div" in name) and bounds(divisor)[0] < 1:
            return value  # which no comparison is noted of
        return Seen.of(value, getattr(own, name)(others), self.comparisons)

    return method


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    for _kind in (f"__{_name}__", f"__r{_name}__"):
        setattr(Seen, _kind, _calculating(_kind))
