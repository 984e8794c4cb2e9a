"""What a reduction does with each element: its start, its step, and how two of them join.

A state is a list of values: a sum, a sum's real and imaginary part, or the best element and where
it was. A state may have lanes, each a reduction of its own, which `fold` joins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from palto.compiler.index import Index
from palto.compiler.llvm import elementwise
from palto.compiler.llvm.builder import FLOATS, Value
from palto.compiler.llvm.elementwise import LLVM_TYPES, Element
from palto.compiler.llvm.expressions import Expressions, joined, parts_of
from palto.tensor import dtypes
from palto.tensor.graph import Operation

#: Where among what is reduced, as one number, and whether anything is there.
Place = tuple[Index, Value | None]


class Reduction:
    """One reduction of a primitive.

    Args:
        expressions: where code is written.
        operation: the operation; its first input's dtype is that of the elements.
    """

    def __init__(self, expressions: Expressions, operation: Operation) -> None:
        self._e, self._f = expressions, expressions.function
        self._operation = operation
        self._name = operation.primitive.name
        self._dtype = operation.inputs[0].dtype
        self._kind = LLVM_TYPES[self._dtype]
        self._where = {"argmax": "i64", "window_max": "i32"}.get(self._name)

    def start(self, lanes: int) -> list[Value]:
        """The state before the first element."""
        f, kind = self._f, self._kind
        if self._where:
            return [f.constant(0, kind, lanes), f.constant(-1, self._where, lanes)]
        if self._name in ("max", "min"):
            return [f.constant(self._worst(), kind, lanes)]
        zero = f.constant(0, kind, lanes)
        return [zero, zero] if self._dtype in dtypes.COMPLEX else [zero]

    def _worst(self) -> float | int:
        sign = -1 if self._name == "max" else 1
        if self._dtype == dtypes.bool:
            return sign > 0
        if self._dtype in dtypes.FLOATING:
            return sign * math.inf
        limits = np.iinfo(self._dtype)
        return int(limits.min if sign < 0 else limits.max)

    def add(
        self, state: list[Value], elements: Sequence[Element], place: Place | None
    ) -> list[Value]:
        """The state after one more element, or the elements that make it up."""
        f = self._f
        if self._where:
            assert place is not None
            over, present = place
            at = f.convert("trunc", self._e.value(over), self._where)
            (element,) = elements
            assert isinstance(element, Value)
            better = self._is_better(element, state[0])
            better = f.binary("or", better, f.compare("slt", state[1], f.constant(0, at.type)))
            if present is not None:
                better = f.binary("and", better, present)
            return [f.select(better, element, state[0]), f.select(better, at, state[1])]
        if self._name in ("max", "min"):
            (element,) = elements
            assert isinstance(element, Value)
            return [self._extremum(state[0], element)]
        if self._name in ("matmul", "conv"):
            return self._product(state, elements)
        if self._name == "window_put":
            assert place is not None
            update, chosen = elements
            over, present = place
            assert isinstance(chosen, Value)
            here = f.convert("trunc", self._e.value(over), "i32")
            named = f.compare("eq", chosen, here)
            if present is not None:
                named = f.binary("and", named, present)
            zero = self._e.immediate(0, self._dtype)
            return parts_of(self._e.sum_of(joined(state), self._e.choose(named, update, zero)))
        return parts_of(self._e.sum_of(joined(state), elements[0]))

    def _product(self, state: list[Value], elements: Sequence[Element]) -> list[Value]:
        f, (a, b) = self._f, elements
        if isinstance(a, Value) and isinstance(b, Value):
            if a.type in FLOATS:
                return [f.fma(a, b, state[0])]
            return [f.binary("add", state[0], f.binary("mul", a, b))]
        product = elementwise.TABLE["multiply"](f, self._operation, [a, b])
        return parts_of(self._e.sum_of(joined(state), product))

    def _extremum(self, a: Value, b: Value) -> Value:
        if self._dtype == dtypes.bool:
            return self._f.binary("or" if self._name == "max" else "and", a, b)
        row = elementwise.TABLE["maximum" if self._name == "max" else "minimum"]
        result = row(self._f, self._operation, [a, b])
        assert isinstance(result, Value)
        return result

    def _is_better(self, a: Value, b: Value) -> Value:
        """Whether `a` takes the place of an earlier `b`: it is larger, or the first NaN."""
        f = self._f
        if a.type not in FLOATS:
            unsigned = self._dtype in dtypes.UNSIGNED or self._dtype == dtypes.bool
            return f.compare("ugt" if unsigned else "sgt", a, b)
        first_nan = f.binary("and", f.compare("uno", a, a), f.compare("ord", b, b))
        return f.binary("or", f.compare("ogt", a, b), first_nan)

    def merge(self, a: list[Value], b: list[Value]) -> list[Value]:
        """The state of all elements of two states."""
        f = self._f
        if self._where:
            zero = f.constant(0, self._where)
            same = f.binary("and", *[
                f.compare("eq", self._is_better(x, y), f.constant(0, "i1"))
                for x, y in ((a[0], b[0]), (b[0], a[0]))
            ])  # fmt: skip
            lower = f.binary("and", same, f.compare("slt", b[1], a[1]))
            better = f.binary("or", self._is_better(b[0], a[0]), lower)
            seen = f.compare("sge", b[1], zero)
            chosen = f.binary("and", seen, better)
            chosen = f.binary("or", chosen, f.compare("slt", a[1], zero))
            return [f.select(chosen, y, x) for x, y in zip(a, b, strict=True)]
        if self._name in ("max", "min"):
            return [self._extremum(a[0], b[0])]
        return parts_of(self._e.sum_of(joined(a), joined(b)))

    def fold(self, state: list[Value]) -> list[Value]:
        """One state from the lanes of a state, halves first."""
        lanes = state[0].lanes
        if lanes == 1:
            return state
        half = lanes // 2
        low, high = ([self._part(x, start, half) for x in state] for start in (0, half))
        return self.fold(self.merge(low, high))

    def _part(self, x: Value, start: int, count: int) -> Value:
        if count == 1:
            return self._f.extract(x, start)
        return self._f.shuffle(x, x, range(start, start + count))

    def results(self, state: list[Value]) -> list[Element]:
        """The elements of the operation's outputs."""
        if self._name == "argmax":
            return [state[1]]
        return list(state) if self._where else [joined(state)]
