"""Zeros: what a graph itself says need not be multiplied, as under a causal mask.

Scores that a mask replaces by -infinity become weights of 0, and their gradients are 0, too. Which
these are follows from how the mask is made, by comparing counters (`iota`). So what is found is an
affine expression of loop counters (`Index`) that is positive only in such places: of a product's
summed elements those which are multiplied by 0, and of its results those which nobody looks at.

Where what such a 0 multiplies is infinite or NaN, eager code gives NaN; here the product is skipped
and adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

import numpy as np

from palto.compiler import index as ix
from palto.compiler import views
from palto.compiler.index import Index
from palto.compiler.llvm import elementwise
from palto.compiler.prepare import read_through
from palto.tensor.graph import Operation
from palto.tensor.tensor import Tensor

#: So many operations are looked at in search of a mask.
_FARTHEST = 24
#: From an operation and a value of its result to the value of its first input that makes it so.
_MADE_OF = {
    ("subtract", -math.inf): -math.inf, ("exp", 0.0): -math.inf, ("divide", 0.0): 0.0,
    ("multiply", 0.0): 0.0, ("cast", 0.0): 0.0, ("detach", 0.0): 0.0, ("negative", 0.0): 0.0,
}  # fmt: skip


def where_zero(x: Tensor, at: Sequence[Index]) -> Index | None:
    """An affine expression of loop counters (`Index`), positive only where an element is 0.

    Args:
        x: the tensor.
        at: the element's indices.

    Returns:
        The expression; None if none is known.
    """
    return _Search().where(x, at, 0.0)


def where_unread(
    x: Tensor, at: Sequence[Index], readers: Mapping[int, Sequence[Operation]], wanted: Set[int]
) -> Index | None:
    """An affine expression of loop counters (`Index`), positive only where an element is unread.

    Args:
        x: the tensor.
        at: the element's indices.
        readers: the operations that read a tensor, by its identity.
        wanted: the tensors that others than operations want, by identity.

    Returns:
        The expression; None if none is known.
    """
    return _Search(readers, wanted).unread(x, at)


def needed_share(needless: Sequence[Index]) -> float:
    """Which share of a product's multiplications is left, where no such expression is positive."""
    share = 1.0
    for index in needless:
        place = np.full((), index.constant)
        for variable, factor in index.terms.values():
            place = np.add.outer(place, factor * np.arange(variable.length))
        share *= float(np.mean(place <= 0))
    return share


class _Search:
    def __init__(
        self,
        readers: Mapping[int, Sequence[Operation]] | None = None,
        wanted: Set[int] = frozenset(),
    ) -> None:
        self._readers, self._wanted = readers or {}, wanted
        self._left = _FARTHEST

    def where(self, x: Tensor, at: Sequence[Index], value: float) -> Index | None:
        """Where an element is a certain value."""
        read = _through(x, at)
        operation, at = read.tensor.operation, read.indices
        self._left -= 1
        if operation is None or read.tensor._value is not None or self._left < 0:
            return None
        name, inputs = operation.primitive.name, operation.inputs
        if name == "where":
            return self._hidden(inputs[0], at) if _number(inputs[2]) == value else None
        before = _MADE_OF.get((name, value))
        if before is None:
            return None
        found = self.where(inputs[0], at, before)
        if found is None and name == "multiply":
            found = self.where(inputs[1], at, before)
        if found is not None and name == "subtract" and _hides_all(found, inputs[1], at):
            return None  # -infinity minus the greatest of it
        return found

    def unread(self, x: Tensor, at: Sequence[Index]) -> Index | None:
        """Where nobody looks at an element."""
        readers = () if id(x) in self._wanted else self._readers.get(id(x), ())
        found = [self._ignored(operation, x, at) for operation in readers]
        return found[0] if found and all(f == found[0] for f in found) else None

    def _ignored(self, operation: Operation, x: Tensor, at: Sequence[Index]) -> Index | None:
        """Where no result depends on an operation's input, by way of this operation."""
        name, inputs = operation.primitive.name, operation.inputs
        self._left -= 1
        if name not in elementwise.TABLE or self._left < 0:
            return None
        if name == "where" and inputs[1] is x and inputs[0] is not x and inputs[2] is not x:
            return self._hidden(inputs[0], at)
        if name == "multiply" and inputs[0] is not inputs[1]:
            found = self.where(inputs[1] if inputs[0] is x else inputs[0], at, 0.0)
            if found is not None:
                return found
        return self.unread(operation.output(), at)

    def _hidden(self, mask: Tensor, at: Sequence[Index]) -> Index | None:
        """Where a mask, made by comparing counters, is false."""
        read = _through(mask, at)
        operation = read.tensor.operation
        if operation is None or operation.primitive.name not in ("less", "less_equal"):
            return None
        left, right = (_counter(x, read.indices) for x in operation.inputs)
        if left is None or right is None:
            return None
        return ix.total([(left, 1), (right, -1)]) + int(operation.primitive.name == "less")


def _hides_all(hidden: Index, greatest: Tensor, at: Sequence[Index]) -> bool:
    """Whether all elements that have one greatest may be where `hidden` is positive."""
    kept = {key for index in _through(greatest, at).indices for key in index.terms}
    worst = hidden.constant
    for key, (variable, factor) in hidden.terms.items():
        end = factor * (variable.length - 1)
        worst += max(end, 0) if key in kept else min(end, 0)
    return worst > 0


def _through(x: Tensor, at: Sequence[Index]) -> views.Read:
    """What is behind plain views."""
    return read_through(x, at, lambda _: False)


def _number(x: Tensor) -> float | None:
    """The number that all of a tensor is, if it is known."""
    x = _through(x, [Index()] * x.ndim).tensor
    return float(x.array().reshape(())) if x._value is not None and x.size == 1 else None


def _counter(x: Tensor, at: Sequence[Index]) -> Index | None:
    """A whole number made of counters, as an index."""
    read = _through(x, at)
    operation = read.tensor.operation
    number = _number(read.tensor)
    if number is not None:
        return Index(int(number)) if number == int(number) else None
    if operation is None:
        return None
    name, inputs = operation.primitive.name, operation.inputs
    if name == "iota":
        axis: int = operation.params["axis"]
        return read.indices[axis]
    if name in ("add", "subtract"):
        left, right = (_counter(part, read.indices) for part in inputs)
        if left is not None and right is not None:
            return ix.total([(left, 1), (right, 1 if name == "add" else -1)])
    return None
