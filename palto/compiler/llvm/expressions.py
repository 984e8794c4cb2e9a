"""From a tensor and an index to code that computes the element, or a vector of neighbours."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from palto.compiler import index as ix
from palto.compiler import nests, views
from palto.compiler.index import Index, Variable
from palto.compiler.llvm import elementwise
from palto.compiler.llvm.builder import FLOATS, Function, Value, size_of
from palto.compiler.llvm.elementwise import LLVM_TYPES, Element
from palto.compiler.llvm.random import philox_word
from palto.compiler.memory import Buffer
from palto.compiler.sizes import Size, bounds, is_surely_less
from palto.tensor import dtypes
from palto.tensor.dtypes import DType
from palto.tensor.graph import Operation
from palto.tensor.tensor import Tensor

#: So many sums of an inner loop go on side by side.
_SUMS = 4


class Expressions:
    """Writes the code of elements into a function.

    Args:
        function: where to write.
        stored: the buffer that holds a tensor, or None for one that is computed where it is used.
        written: buffers that the function writes, whose loads stay where they stand.

    Attributes:
        counters: the uniform value of each loop variable, by key.
        vector: the variable along which lanes are neighbours, if any.
        lanes: how many lanes it has.
        known: tensors of which one element is in a register, with its place.
        round: tells apart what is written twice in one block for other counters.
        guard: an i1 without which nothing may be read, if any.
    """

    def __init__(
        self,
        function: Function,
        stored: Callable[[Tensor], Buffer | None],
        written: set[Buffer],
    ) -> None:
        self.function = function
        self.counters: dict[str, Value] = {}
        self.vector: Variable | None = None
        self.lanes = 1
        self.known: dict[int, tuple[Index, Element]] = {}
        self.round = 0
        self.guard: Value | None = None
        #: So many bytes on, a buffer is fetched that is read here, if it has at least so many.
        self.ahead = self.ahead_from = 0
        self._stored = stored
        self._written = written
        self.buffers: dict[Buffer, str] = {}

    def pointer(self, buffer: Buffer) -> Value:
        """The parameter that points to a buffer."""
        name = self.buffers.setdefault(buffer, f"buffer{len(self.buffers)}")
        return self.function.parameter("ptr", name)

    # Whole numbers

    def varies(self, index: Index) -> bool:
        """Whether an index differs between lanes."""
        return self.vector is not None and any(
            self._variable_varies(variable) for variable, _ in index.terms.values()
        )

    def _variable_varies(self, variable: Variable) -> bool:
        if variable.kind == "loop":
            return self.vector is not None and variable.key == self.vector.key
        if variable.kind == "element":
            return any(self.varies(i) for i in variable.source.indices)
        assert variable.index is not None
        return self.varies(variable.index)

    def value(self, index: Index) -> Value:
        """An index as an i64, with a lane each where it varies."""
        f = self.function
        result = f.constant(index.constant, "i64")
        for variable, c in index.terms.values():
            part = self._variable(variable)
            result = f.binary("add", result, f.binary("mul", part, f.constant(c, "i64")))
        return result

    def _variable(self, variable: Variable) -> Value:
        f = self.function
        if variable.kind == "loop":
            counter = self.counters[variable.key]
            if self.vector is not None and variable.key == self.vector.key and self.lanes > 1:
                return f.binary("add", counter, f.lanes("i64", self.lanes))
            return counter
        if variable.kind == "element":
            read: views.Read = variable.source
            found = self.read(read.tensor, read.indices)
            assert isinstance(found, Value)
            unsigned = read.tensor.dtype in dtypes.UNSIGNED
            wide = f.convert("zext" if unsigned else "sext", found, "i64")
            # Indices are checked elsewhere; here nothing may be read out of bounds.
            last = f.constant(max(variable.divisor, 1) - 1, "i64")
            wide = f.intrinsic("llvm.smax", wide, f.broadcast(f.constant(0, "i64"), wide.lanes))
            return f.intrinsic("llvm.smin", wide, f.broadcast(last, wide.lanes))
        assert variable.index is not None
        inside = self.value(variable.index)
        if variable.kind == "assumed":
            return inside
        # 32 bits divide faster; a number that may be negative is read under a guard only.
        op = "udiv" if variable.kind == "quotient" else "urem"
        if bounds(variable.index.high)[1] < 2**31:
            small = f.convert("trunc", inside, "i32")
            small = f.binary(op, small, f.constant(variable.divisor, "i32"))
            return f.convert("zext", small, "i64")
        return f.binary(op, inside, f.constant(variable.divisor, "i64"))

    def truth(self, conditions: Sequence[views.Condition]) -> Value | None:
        """Whether all conditions hold; None if there are none."""
        f = self.function
        result: Value | None = None
        for condition in conditions:
            index, tests = self._compared(condition), []
            if not is_surely_less(condition.low - 1, condition.index.low):
                tests.append(f.compare("sge", index, f.constant(condition.low, index.type)))
            if not is_surely_less(condition.index.high, condition.high):
                tests.append(f.compare("slt", index, f.constant(condition.high, index.type)))
            for test in tests:
                result = self.both(result, test)
        return result

    def _compared(self, condition: views.Condition) -> Value:
        """The index of a condition; lanes in 32 bits where they fit, four times as fast."""
        f, index = self.function, condition.index
        numbers = (index.low, index.high, condition.low, condition.high)
        limits = [limit for number in numbers for limit in bounds(number)]
        if self.varies(index) and min(limits) > -(2**31) and max(limits) < 2**31:
            base, stride = self._strided(index)
            if base is not None:
                lanes = f.binary("mul", f.lanes("i32", self.lanes), f.constant(stride, "i32"))
                return f.binary("add", f.convert("trunc", base, "i32"), lanes)
        return self.value(index)

    def both(self, a: Value | None, b: Value | None) -> Value | None:
        """Both of two i1, where None is always true."""
        if a is None or b is None:
            return b if a is None else a
        return self.function.binary("and", a, b)

    @contextmanager
    def guarded(self, condition: Value | None) -> Iterator[None]:
        """Read in this block only where the condition holds, too."""
        outside = self.guard
        self.guard = self.both(outside, condition)
        yield
        self.guard = outside

    # Elements

    def read(self, tensor: Tensor, indices: Sequence[Index]) -> Element:
        """The element of a tensor at indices."""
        known = self.known.get(id(tensor))
        if known is not None and known[0] == ix.linear(indices, tensor.shape):
            return known[1]
        if tensor._value is not None and tensor.size == 1:
            return self.immediate(tensor.array().item(), tensor.dtype)
        key = (
            "element", id(tensor), tuple(i.key for i in indices),
            self.guard and self.guard.text, self.lanes, self.round,
        )  # fmt: skip
        found: Element | None = self.function.recall(key)
        if found is None:
            buffer = self._stored(tensor)
            if buffer is not None:
                found = self.load(buffer, indices)
            else:
                assert tensor.operation is not None
                found = self.compute(tensor.operation, indices)
            self.function.remember(key, found)
        return found

    def compute(self, operation: Operation, indices: Sequence[Index]) -> Element:
        """The element that an operation gives at indices."""
        f = self.function
        name, params = operation.primitive.name, operation.params
        if name in views.TABLE:
            read = views.TABLE[name](operation, indices)
            fill = self.immediate(params.get("value", 0), read.tensor.dtype)
            return self.read_or(read, fill)
        if name in elementwise.TABLE:
            inputs = [self.read(x, indices) for x in operation.inputs]
            return elementwise.TABLE[name](f, operation, inputs)
        if name == "iota":
            return self.number(indices[params["axis"]], params["dtype"])
        if name == "random_bits":
            state = operation.inputs[0]
            seed, draw = (self.read(state, [Index(i)]) for i in range(2))
            assert isinstance(seed, Value) and isinstance(draw, Value)
            place = ix.linear(indices, operation.output().shape)
            return philox_word(f, seed, draw, self.value(place))
        if name == "window_put":
            first = [Index()] * (len(indices) - 2)
            (read, chosen), place = nests.covering(operation, indices, first)
            index = self.read_or(chosen, f.constant(-1, "i32"))
            assert isinstance(index, Value)
            here = f.compare("eq", index, f.convert("trunc", self.value(place), "i32"))
            zero = self.immediate(0, read.tensor.dtype)
            return self.choose(here, self.read_or(read, zero), zero)
        if name == "dynamic_update_slice":
            return self._updated(operation, indices)
        if name == "sum":
            return self._inner_sum(operation, indices)
        raise NotImplementedError(f"{name} is computed in a nest of its own")

    def read_or(self, read: views.Read, otherwise: Element) -> Element:
        """The element read, or another value where a condition does not hold."""
        if any(is_surely_less(x.high, x.low + 1) for x in read.conditions):
            return otherwise
        condition = self.truth(read.conditions)
        with self.guarded(condition):
            found = self.read(read.tensor, read.indices)
        return found if condition is None else self.choose(condition, found, otherwise)

    def _inner_sum(self, operation: Operation, indices: Sequence[Index]) -> Element:
        """A sum in loops of its own, the innermost of several sums that need not wait."""
        f = self.function
        variables = nests.inner_variables(operation)
        (read,) = nests.terms(operation, indices, [ix.of(v) for v in variables])
        long = [v for v in variables if v.length != 1]
        last = long[-1].length if long else 1
        count = 1 if isinstance(last, Size) else math.gcd(last, _SUMS)
        zero = parts_of(self.immediate(0, read.tensor.dtype))
        start = [f.broadcast(part, self.lanes) for part in zero]

        def loops(rest: Sequence[Variable], sums: list[list[Value]]) -> list[list[Value]]:
            if not rest:
                return [self.plus(sums[0], read.tensor, read.indices)]
            variable, *inner = rest
            step = 1 if inner else len(sums)
            if step == variable.length:
                return self._side_by_side(variable, f.constant(0, "i64"), sums, read)
            with f.loop(0, variable.length, step, nonempty=True) as loop:
                phis = [[loop.carry(part) for part in one] for one in sums]
                if inner:
                    self.counters[variable.key] = loop.counter
                    following = loops(inner, phis)
                else:
                    following = self._side_by_side(variable, loop.counter, phis, read)
                for olds, news in zip(phis, following, strict=True):
                    for phi, part in zip(olds, news, strict=True):
                        loop.update(phi, part)
            return [[loop.result(phi) for phi in one] for one in phis]

        elements = [joined(one) for one in loops(long, [start] * count)]
        return functools.reduce(self.sum_of, elements)

    def _side_by_side(
        self, variable: Variable, first: Value, sums: list[list[Value]], read: views.Read
    ) -> list[list[Value]]:
        """Sums, each with the term of another value of a variable, from `first` on."""
        following = []
        for number, one in enumerate(sums):
            self.round += 1
            place = self.function.constant(number, "i64")
            self.counters[variable.key] = self.function.binary("add", first, place)
            following.append(self.plus(one, read.tensor, read.indices))
        return following

    def plus(self, total: list[Value], x: Tensor, indices: Sequence[Index]) -> list[Value]:
        """The parts of `total` plus an element of a tensor; a product is added while multiplied."""
        f = self.function
        operation = x.operation if self._is_computed(x) else None
        name = operation.primitive.name if operation is not None else ""
        if name in ("add", "multiply") and x.dtype in dtypes.FLOATING:
            assert operation is not None
            a, b = operation.inputs
            if name == "add":
                return self.plus(self.plus(total, a, indices), b, indices)
            first, second = self.read(a, indices), self.read(b, indices)
            assert isinstance(first, Value) and isinstance(second, Value)
            return [f.fma(first, second, total[0])]
        return parts_of(self.sum_of(joined(total), self.read(x, indices)))

    def _is_computed(self, x: Tensor) -> bool:
        """Whether an element is computed where it is read."""
        return x._value is None and id(x) not in self.known and self._stored(x) is None

    def sum_of(self, a: Element, b: Element) -> Element:
        """The sum of two elements."""
        f = self.function
        if isinstance(a, tuple) and isinstance(b, tuple):
            return f.binary("fadd", a[0], b[0]), f.binary("fadd", a[1], b[1])
        assert isinstance(a, Value) and isinstance(b, Value)
        return f.binary("fadd" if a.type in FLOATS else "add", a, b)

    def _updated(self, operation: Operation, indices: Sequence[Index]) -> Element:
        """An element of the update where it covers this place, else of what is updated."""
        x, update, starts = operation.inputs
        conditions: list[views.Condition] = []
        inside = []
        for axis, (i, n, size) in enumerate(zip(indices, x.shape, update.shape, strict=True)):
            place = ix.total([(i, 1), (views.start_of(starts, axis, n, size), -1)])
            inside.append(views.spread(place, size, 1, conditions))
        read = views.Read(update, tuple(inside), tuple(conditions))
        return self.read_or(read, self.read(x, indices))

    def choose(self, condition: Value, a: Element, b: Element) -> Element:
        """`a` where the condition holds, else `b`."""
        f = self.function
        if isinstance(a, tuple) and isinstance(b, tuple):
            return f.select(condition, a[0], b[0]), f.select(condition, a[1], b[1])
        assert isinstance(a, Value) and isinstance(b, Value)
        return f.select(condition, a, b)

    def immediate(self, number: complex, dtype: DType) -> Element:
        """A Python number as an element."""
        f, kind = self.function, LLVM_TYPES[dtype]
        if dtype in dtypes.COMPLEX:
            number = complex(number)
            return f.constant(number.real, kind), f.constant(number.imag, kind)
        if dtype in dtypes.STORAGE:
            return f.constant(int(dtype.type(number).view("uint16")), kind)
        return f.constant(number, kind)

    def number(self, index: Index, dtype: DType) -> Element:
        """An index as an element of a dtype."""
        return elementwise.cast(self.function, self.value(index), dtypes.int64, dtype)

    # Memory

    def load(self, buffer: Buffer, indices: Sequence[Index]) -> Element:
        """The element of a buffer at indices."""
        place = buffer.place_of(indices)
        kind = LLVM_TYPES[buffer.dtype]
        if buffer.dtype in dtypes.COMPLEX:
            return self._load(buffer, place * 2, kind), self._load(buffer, place * 2 + 1, kind)
        return self._load(buffer, place, kind)

    def _load(self, buffer: Buffer, place: Index, kind: str) -> Value:
        f, guard = self.function, self.guard
        pointer = self.pointer(buffer)
        changes = buffer in self._written
        place = ix.without_assumptions(place)
        zero = f.constant(0, "i64")
        if not self.varies(place):
            address = self.value(place)
            if guard is not None:
                allowed = guard if guard.lanes == 1 else self._any(guard)
                address = f.select(allowed, address, zero)
            return f.load(pointer, address, kind, changes=changes)
        base, stride = self._strided(place)
        if base is None:
            address = self.value(place)
            if guard is not None:
                address = f.select(guard, address, zero)
            return f.gather(pointer, address, kind, changes=changes)
        if stride == 1:
            if guard is not None and guard.lanes == 1 and buffer.length >= self.lanes:
                base, guard = f.select(guard, base, zero), None
            elif guard is not None and size_of(kind) < 4 and buffer.role == "arena":
                # No machine loads some bytes of a vector: take them all, at most a vector outside.
                base = f.intrinsic("llvm.smax", base, f.constant(-self.lanes, "i64"))
                base = f.intrinsic("llvm.smin", base, f.constant(buffer.length, "i64"))
                guard = None
            if guard is None:
                size = size_of(kind)
                if self.ahead and buffer.length * size >= self.ahead_from:
                    further = f.constant(self.ahead // size, "i64")
                    f.prefetch(pointer, f.binary("add", base, further), kind)
                return f.load(pointer, base, kind, self.lanes, changes=changes)
            return f.masked_load(pointer, base, kind, f.broadcast(guard, self.lanes))
        result = Value("poison", kind, self.lanes)
        for lane in range(self.lanes):
            address = f.binary("add", base, f.constant(lane * stride, "i64"))
            if guard is not None:
                address = f.select(f.extract(guard, lane), address, zero)
            result = f.insert(result, f.load(pointer, address, kind, changes=changes), lane)
        return result

    def _any(self, guard: Value) -> Value:
        f = self.function
        name = f"llvm.vector.reduce.or.v{guard.lanes}i1"
        f.declarations.add(f"declare i1 @{name}({guard.full_type})")
        return f.pure(f"call i1 @{name}({guard.full_type} {{0}})", [guard], "i1")

    def _strided(self, place: Index) -> tuple[Value | None, int]:
        """The uniform first place and the distance between lanes, if that describes them."""
        assert self.vector is not None
        uniform, stride = {}, 0
        for key, (variable, c) in place.terms.items():
            if key == self.vector.key:
                stride = c
            elif self._variable_varies(variable):
                return None, 0
            else:
                uniform[key] = variable, c
        counter = self.counters[self.vector.key]
        f = self.function
        first = self.value(Index(place.constant, uniform))
        return f.binary("add", first, f.binary("mul", counter, f.constant(stride, "i64"))), stride

    def prefetch(self, buffer: Buffer, place: Index, *, write: bool) -> None:
        """Start to fetch an element, or a vector of neighbours; of other lanes nothing."""
        base: Value | None = None
        if not self.varies(place):
            base = self.value(place)
        else:
            first, stride = self._strided(place)
            base = first if stride == 1 else None
        if base is not None:
            kind = LLVM_TYPES[buffer.dtype]
            self.function.prefetch(self.pointer(buffer), base, kind, write=write)

    def store(self, buffer: Buffer, indices: Sequence[Index], element: Element) -> None:
        """Write an element, or its lanes, to a buffer."""
        place = ix.without_assumptions(buffer.place_of(indices))
        if isinstance(element, tuple):
            real, imaginary = (self._spread(part) for part in element)
            self._store(buffer, place * 2, real)
            self._store(buffer, place * 2 + 1, imaginary)
        else:
            self._store(buffer, place, self._spread(element))

    def _spread(self, x: Value) -> Value:
        return self.function.broadcast(x, self.lanes)

    def _store(self, buffer: Buffer, place: Index, value: Value) -> None:
        f, pointer = self.function, self.pointer(buffer)
        if value.lanes == 1:
            f.store(pointer, self.value(place), value)
            return
        base, stride = self._strided(place) if self.varies(place) else (None, 0)
        if base is not None and stride == 1:
            f.store(pointer, base, value)
            return
        places = f.broadcast(self.value(place), value.lanes)
        for lane in range(value.lanes):
            f.store(pointer, f.extract(places, lane), f.extract(value, lane))


def joined(parts: Sequence[Value]) -> Element:
    """An element from its one or two parts."""
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def parts_of(element: Element) -> list[Value]:
    """The value of an element, or its real and imaginary part."""
    return list(element) if isinstance(element, tuple) else [element]
