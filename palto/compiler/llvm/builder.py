"""Writes one LLVM function as text: typed values, loops, and every operation where it belongs.

A value belongs to the innermost block that any of its operands needs; operations that do not
depend on a loop are written before it, and the same operation on the same operands is written
once. So the text needs no optimisation passes, and code that emits an expression inside a loop
need not think about what could stand outside.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from palto.compiler.sizes import Size, is_surely_less

FLOATS = ("float", "double")
_SIZES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "float": 4, "double": 8}


@dataclass(slots=True)  # not frozen, which takes three times as long to make
class Value:
    """A register or a constant.

    Attributes:
        text: how the IR names it.
        type: the LLVM type of one lane: i1, i8, i16, i32, i64, float, double or ptr.
        lanes: 1, or the number of lanes of a vector.
        level: how many blocks deep it is known; 0 in the whole function.
    """

    text: str
    type: str
    lanes: int = 1
    level: int = 0

    @property
    def full_type(self) -> str:
        """The LLVM type, vector included."""
        return vector(self.type, self.lanes)


def vector(kind: str, lanes: int) -> str:
    """The LLVM type of so many lanes."""
    return kind if lanes == 1 else f"<{lanes} x {kind}>"


def size_of(kind: str) -> int:
    """How many bytes of memory an element of an LLVM type takes."""
    return _SIZES[kind]


@dataclass(slots=True)
class _Frame:
    """An open block: a loop's body, a branch, or the function itself."""

    lines: list[str]
    label: str
    known: dict[Any, Value] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict)
    #: Whether what is read in it may not be read before it.
    keeps_reads: bool = False


class Loop:
    """An open loop: its counter, and values carried from one iteration to the next."""

    def __init__(self, function: Function, counter: Value) -> None:
        self._function = function
        self.counter = counter
        #: (phi, first value, next value) of everything carried.
        self.carried: list[list[Value]] = []

    def carry(self, first: Value) -> Value:
        """A value that starts as `first`; `update` says what the next iteration sees."""
        phi = self._function.name(first.type, first.lanes)
        self.carried.append([phi, first, phi])
        return phi

    def update(self, phi: Value, value: Value) -> None:
        """What a carried value becomes. After the loop, `result(phi)` is its last value."""
        for entry in self.carried:
            if entry[0] is phi:
                entry[2] = value

    def result(self, phi: Value) -> Value:
        """A carried value after the loop has ended."""
        return next(entry[3] for entry in self.carried if entry[0] is phi)


class Function:
    """One LLVM function, written top to bottom.

    Args:
        name: its name; "@" is added.
        parameters: (LLVM type, name) of each; pointers do not alias unless `noalias` is False.
        result: the LLVM type returned.
    """

    def __init__(
        self, name: str, parameters: Sequence[tuple[str, str]], result: str = "void"
    ) -> None:
        self.function_name = name
        self._result = result
        self._parameters = list(parameters)
        self.parameters = {n: Value(f"%{n}", kind) for kind, n in parameters}
        self._frames = [_Frame([], "entry")]
        self._count = 0
        self._scratch = "float", 0
        #: Declarations that the module needs, each once.
        self.declarations: set[str] = set()

    @property
    def signature(self) -> list[tuple[str, str]]:
        """LLVM type and name of each parameter, in order."""
        return list(self._parameters)

    def parameter(self, kind: str, name: str) -> Value:
        """A parameter of that name, added if it is not there yet."""
        if name not in self.parameters:
            self._parameters.append((kind, name))
            self.parameters[name] = Value(f"%{name}", kind)
        return self.parameters[name]

    def recall(self, key: Any) -> Any:
        """What `remember` was given in a block that is still open; None if nothing."""
        for frame in reversed(self._frames):
            if key in frame.memory:
                return frame.memory[key]
        return None

    def remember(self, key: Any, value: Any) -> None:
        """Keep something until the block being written ends."""
        self._frames[-1].memory[key] = value

    # Names, constants

    @property
    def level(self) -> int:
        """How deep the block is that is being written."""
        return len(self._frames) - 1

    def name(self, kind: str, lanes: int = 1, level: int | None = None) -> Value:
        """A register not used yet."""
        self._count += 1
        return Value(f"%v{self._count}", kind, lanes, self.level if level is None else level)

    def constant(self, number: Any, kind: str, lanes: int = 1) -> Value:
        """A number as a value of a type; one that depends on run-time sizes is computed."""
        if isinstance(number, Size):
            value = self.convert("trunc", self._size(number), kind)
            return self.broadcast(value, lanes)
        if kind == "float":
            (rounded,) = struct.unpack("f", struct.pack("f", _finite_float32(number)))
            text = _hex_of(rounded)
        elif kind == "double":
            text = _hex_of(float(number))
        elif kind == "i1":
            text = "true" if number else "false"
        else:
            bits = size_of(kind) * 8
            wrapped = int(number) & ((1 << bits) - 1)
            text = str(wrapped - (1 << bits) if wrapped >> (bits - 1) else wrapped)
        if lanes > 1:
            text = f"splat ({kind} {text})"
        return Value(text, kind, lanes)

    def _size(self, size: Size) -> Value:
        """A whole number that depends on run-time sizes, which are parameters."""
        total = self.constant(0, "i64")
        for atoms, factor in size.terms.items():
            product = self.constant(factor, "i64")
            for atom in atoms:
                if atom.kind:
                    parts = self.constant(atom.dividend, "i64"), self.constant(atom.divisor, "i64")
                    value = self.binary("udiv" if atom.kind == "/" else "urem", *parts)
                else:
                    value = self.parameter("i64", f"size_{atom.name}")
                product = self.binary("mul", value, product)
            total = self.binary("add", total, product)
        return total

    def lanes(self, kind: str, lanes: int) -> Value:
        """The vector 0, 1, 2, ..."""
        if lanes == 1:
            return self.constant(0, kind)
        items = ", ".join(f"{kind} {self.constant(i, kind).text}" for i in range(lanes))
        return Value(f"<{items}>", kind, lanes)

    # Operations

    def pure(
        self, text: str, operands: Sequence[Value], kind: str, lanes: int = 1, least: int = 0
    ) -> Value:
        """An operation without side effects, `{0}`, `{1}` ... standing for its operands' names.

        It stands in the outermost block that knows them, from the level `least` on.
        """
        level = max([least, *(x.level for x in operands)])
        frame = self._frames[level]  # the only one where it can be known
        texts = [x.text for x in operands]
        key = (text, *texts)
        result = frame.known.get(key)
        if result is None:
            result = frame.known[key] = self.name(kind, lanes, level)
            frame.lines.append(f"  {result.text} = {text.format(*texts)}")
        return result

    def line(self, text: str) -> None:
        """An instruction with a side effect, in the block being written."""
        self._frames[-1].lines.append(f"  {text}")

    def same_lanes(self, *values: Value) -> list[Value]:
        """The values with as many lanes as the widest of them has."""
        lanes = max([x.lanes for x in values])
        return [self.broadcast(x, lanes) for x in values]

    def broadcast(self, x: Value, lanes: int) -> Value:
        """The value in every lane."""
        if x.lanes == lanes:
            return x
        if not x.text.startswith("%") and not x.text.startswith("<"):
            return Value(f"splat ({x.type} {x.text})", x.type, lanes)
        wide = vector(x.type, lanes)
        first = self.pure(f"insertelement {wide} poison, {x.type} {{0}}, i64 0", [x], x.type, lanes)
        return self.pure(
            f"shufflevector {wide} {{0}}, {wide} poison, <{lanes} x i32> zeroinitializer",
            [first], x.type, lanes,
        )  # fmt: skip

    def binary(self, op: str, a: Value, b: Value) -> Value:
        """``add``, ``fmul``, ``and`` ...: an instruction of two operands of one type."""
        if a.lanes != b.lanes:
            a, b = self.same_lanes(a, b)
        if op in ("add", "sub", "mul") and a.type == "i64" and a.lanes == 1:
            folded = self._folded(op, a, b)
            if folded is not None:
                return folded
        return self.pure(f"{op} {a.full_type} {{0}}, {{1}}", [a, b], a.type, a.lanes)

    def _folded(self, op: str, a: Value, b: Value) -> Value | None:
        """Arithmetic of addresses whose operands are known."""
        x, y = _number(a), _number(b)
        if x is not None and y is not None:
            return self.constant({"add": x + y, "sub": x - y, "mul": x * y}[op], "i64")
        if (y == 0 and op in ("add", "sub")) or (y == 1 and op == "mul"):
            return a
        if (x == 0 and op == "add") or (x == 1 and op == "mul"):
            return b
        if op == "mul" and (x == 0 or y == 0):
            return self.constant(0, "i64")
        return None

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """A * b + c, rounded once."""
        a, b, c = self.same_lanes(a, b, c)
        return self.intrinsic("llvm.fma", a, b, c)

    def negate(self, a: Value) -> Value:
        """-a."""
        if a.type in FLOATS:
            return self.pure(f"fneg {a.full_type} {{0}}", [a], a.type, a.lanes)
        return self.binary("sub", self.constant(0, a.type), a)

    def compare(self, predicate: str, a: Value, b: Value) -> Value:
        """An i1 for each lane: ``olt`` ... between floats, ``slt``, ``ult``, ``eq`` ... else."""
        a, b = self.same_lanes(a, b)
        kind = "fcmp" if a.type in FLOATS else "icmp"
        return self.pure(f"{kind} {predicate} {a.full_type} {{0}}, {{1}}", [a, b], "i1", a.lanes)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """`a` where the condition holds, else `b`."""
        if a.text == b.text:
            return a
        if condition.text == "true":
            return a
        if condition.text == "false":
            return b
        a, b = self.same_lanes(a, b)
        if condition.lanes > 1 or a.lanes > 1:
            condition, a, b = self.same_lanes(condition, a, b)
        return self.pure(
            f"select {condition.full_type} {{0}}, {a.full_type} {{1}}, {a.full_type} {{2}}",
            [condition, a, b], a.type, a.lanes,
        )  # fmt: skip

    def convert(self, op: str, a: Value, kind: str) -> Value:
        """``sext``, ``zext``, ``trunc``, ``sitofp``, ``fptosi``, ``fpext``, ``bitcast`` ..."""
        if a.type == kind:
            return a
        return self.pure(f"{op} {a.full_type} {{0}} to {vector(kind, a.lanes)}", [a], kind, a.lanes)

    def intrinsic(self, name: str, *operands: Value, extra: str = "") -> Value:
        """An LLVM intrinsic overloaded on its operands' one type: llvm.sqrt, llvm.fma ..."""
        a = operands[0]
        code = _intrinsic_code(a)
        types = ", ".join(x.full_type for x in operands)
        tail = f", {extra}" if extra else ""
        self.declarations.add(
            f"declare {a.full_type} @{name}.{code}({types}{', i1' if extra else ''})"
        )
        arguments = ", ".join(f"{x.full_type} {{{i}}}" for i, x in enumerate(operands))
        return self.pure(
            f"call {a.full_type} @{name}.{code}({arguments}{tail})", list(operands), a.type, a.lanes
        )

    def external(self, name: str, *operands: Value) -> Value:
        """A function of the C library from numbers of one type to one such, lane by lane."""
        operands = tuple(self.same_lanes(*operands))
        a = operands[0]
        self.declarations.add(f"declare {a.type} @{name}({', '.join([a.type] * len(operands))})")
        arguments = ", ".join(f"{a.type} {{{i}}}" for i in range(len(operands)))
        call = f"call {a.type} @{name}({arguments})"
        if a.lanes == 1:
            return self.pure(call, operands, a.type)
        result = Value("poison", a.type, a.lanes)
        for lane in range(a.lanes):
            parts = [self.extract(x, lane) for x in operands]
            result = self.insert(result, self.pure(call, parts, a.type), lane)
        return result

    def extract(self, x: Value, lane: int) -> Value:
        """One lane."""
        if x.lanes == 1:
            return x
        return self.pure(f"extractelement {x.full_type} {{0}}, i64 {lane}", [x], x.type)

    def insert(self, x: Value, y: Value, lane: int) -> Value:
        """The vector with another value in one lane."""
        return self.pure(
            f"insertelement {x.full_type} {{0}}, {y.type} {{1}}, i64 {lane}", [x, y],
            x.type, x.lanes,
        )  # fmt: skip

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        """Lanes of `a` and `b` side by side, in another order."""
        mask = ", ".join(f"i32 {lane}" for lane in lanes)
        order = f"<{len(lanes)} x i32> <{mask}>"
        return self.pure(
            f"shufflevector {a.full_type} {{0}}, {b.full_type} {{1}}, {order}", [a, b],
            a.type, len(lanes),
        )  # fmt: skip

    # Memory

    def offset(self, pointer: Value, index: Value, kind: str) -> Value:
        """The address of an element, `index` elements of a type after `pointer`."""
        if index.text == "0":
            return pointer
        memory = "i8" if kind == "i1" else kind
        return self.pure(f"getelementptr {memory}, ptr {{0}}, i64 {{1}}", [pointer, index], "ptr")

    def load(
        self, pointer: Value, index: Value, kind: str, lanes: int = 1, *, changes: bool = False
    ) -> Value:
        """Neighbouring elements, from `index` on. An i1 lies in memory as a byte.

        Args:
            pointer: where element 0 is.
            index: an i64, uniform.
            kind: the LLVM type.
            lanes: how many.
            changes: whether the load must stay in its place: this function writes to the buffer.
        """
        memory = "i8" if kind == "i1" else kind
        address = self.offset(pointer, index, kind)
        wide = vector(memory, lanes)
        text = f"load {wide}, ptr {{0}}, align {size_of(memory)}"
        if changes:
            result = self.name(memory, lanes)
            self.line(f"{result.text} = {text.format(address.text)}")
        else:
            kept = (i for i, frame in enumerate(self._frames) if frame.keeps_reads)
            result = self.pure(text, [address], memory, lanes, max(kept, default=0))
        return self.to_bool(result) if kind == "i1" else result

    def to_bool(self, x: Value) -> Value:
        """The i1 of a byte."""
        return self.compare("ne", x, self.constant(0, x.type))

    def gather(self, pointer: Value, index: Value, kind: str, *, changes: bool = False) -> Value:
        """An element for each lane of the i64 vector `index`."""
        if index.lanes == 1:
            return self.load(pointer, index, kind, changes=changes)
        result: Value | None = None
        for lane in range(index.lanes):
            place = self.extract(index, lane)
            part = self.load(pointer, place, kind, changes=changes)
            blank = Value("poison", part.type, index.lanes)
            result = self.insert(blank if result is None else result, part, lane)
        assert result is not None
        return result

    def masked_load(self, pointer: Value, index: Value, kind: str, mask: Value) -> Value:
        """Neighbouring elements, from `index` on, of which only those under the mask are read."""
        memory = "i8" if kind == "i1" else kind
        address = self.offset(pointer, index, kind)
        wide, bits = vector(memory, mask.lanes), f"<{mask.lanes} x i1>"
        blank = self.constant(0, memory, mask.lanes)
        name = f"llvm.masked.load.{_intrinsic_code(blank)}.p0"
        self.declarations.add(f"declare {wide} @{name}(ptr, i32, {bits}, {wide})")
        result = self.name(memory, mask.lanes)
        self.line(
            f"{result.text} = call {wide} @{name}(ptr {address.text}, i32 {size_of(memory)}, "
            f"{bits} {mask.text}, {wide} {blank.text})"
        )
        return self.to_bool(result) if kind == "i1" else result

    def prefetch(
        self, pointer: Value, index: Value, kind: str, *, write: bool = False, level: int = 1
    ) -> None:
        """Start to fetch the line of an element that is read soon, or written, into a cache.

        The address may be anything.
        """
        self.declarations.add("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        address = self.offset(pointer, index, kind)
        hint = f"i32 {int(write)}, i32 {4 - level}, i32 1"
        self.line(f"call void @llvm.prefetch.p0(ptr {address.text}, {hint})")

    def scratch(self, kind: str, count: int) -> Value:
        """Memory for so many elements, on the stack and the same at each call of this method."""
        size = max(count, self._scratch[1]) if kind == self._scratch[0] else count
        self._scratch = kind, size
        return Value("%scratch", "ptr")

    def store(self, pointer: Value, index: Value, value: Value) -> None:
        """Write neighbouring elements, from `index` on."""
        address = self.offset(pointer, index, value.type)
        if value.type == "i1":
            value = self.convert("zext", value, "i8")
        self.line(
            f"store {value.full_type} {value.text}, ptr {address.text}, align {size_of(value.type)}"
        )

    # Blocks

    def _label(self) -> str:
        self._count += 1
        return f"b{self._count}"

    @contextmanager
    def loop(
        self, start: Value | int, stop: Value | int, step: int = 1, *, nonempty: bool = False
    ) -> Iterator[Loop]:
        """A loop whose i64 counter goes from `start` to below `stop`.

        Args:
            start: the first counter.
            stop: where it ends.
            step: what is added.
            nonempty: promises at least one iteration; then the end is tested last.
        """
        if isinstance(stop, Size):
            nonempty = nonempty and isinstance(start, int) and is_surely_less(start, stop)
        start = self.constant(start, "i64") if isinstance(start, int) else start
        stop = self.constant(stop, "i64") if isinstance(stop, int) else stop
        outer = self._frames[-1]
        head, body, end = self._label(), self._label(), self._label()
        self._frames.append(_Frame([], head if nonempty else body))
        loop = Loop(self, self.name("i64"))
        yield loop
        frame = self._frames.pop()
        before, counter = outer.label, loop.counter
        following = f"%{head}n"
        lines = outer.lines
        lines += [f"  br label %{head}", f"{head}:"]
        last = frame.label
        lines.append(
            f"  {counter.text} = phi i64 [ {start.text}, %{before} ], [ {following}, %{last} ]"
        )
        for phi, first, following_value, *_ in loop.carried:
            lines.append(
                f"  {phi.text} = phi {phi.full_type} [ {first.text}, %{before} ], "
                f"[ {following_value.text}, %{last} ]"
            )
        if not nonempty:
            lines += [
                f"  %{head}c = icmp slt i64 {counter.text}, {stop.text}",
                f"  br i1 %{head}c, label %{body}, label %{end}",
                f"{body}:",
            ]
        lines += frame.lines
        lines.append(f"  {following} = add i64 {counter.text}, {step}")
        if nonempty:
            lines += [
                f"  %{head}c = icmp slt i64 {following}, {stop.text}",
                f"  br i1 %{head}c, label %{head}, label %{end}",
            ]
        else:
            lines.append(f"  br label %{head}")
        lines.append(f"{end}:")
        outer.label = end
        for entry in loop.carried:
            # Copied by a phi of one entry, so that it belongs to the block after the loop.
            source = entry[2] if nonempty else entry[0]
            after = self.name(source.type, source.lanes)
            lines.append(
                f"  {after.text} = phi {after.full_type} [ {source.text}, "
                f"%{last if nonempty else head} ]"
            )
            entry.append(after)

    @contextmanager
    def when(self, condition: Value, *, is_safe: bool = False) -> Iterator[None]:
        """Instructions that run only where a uniform i1 holds.

        Args:
            condition: the i1.
            is_safe: whether addresses are in bounds also where it does not hold; then what is read
                may be read before.
        """
        outer = self._frames[-1]
        body, end = self._label(), self._label()
        self._frames.append(_Frame([], body, keeps_reads=not is_safe))
        yield
        frame = self._frames.pop()
        outer.lines += [
            f"  br i1 {condition.text}, label %{body}, label %{end}",
            f"{body}:",
            *frame.lines,
            f"  br label %{end}",
            f"{end}:",
        ]
        outer.label = end

    def finish(self, result: Value | None = None) -> str:
        """The whole function as text."""
        parameters = ", ".join(f"{kind} %{name}" for kind, name in self._parameters)
        returned = f"ret {self._result} {result.text}" if result else "ret void"
        kind, count = self._scratch
        scratch = [f"  %scratch = alloca [{count} x {kind}], align 64"] if count else []
        return "\n".join(
            [
                f"define internal {self._result} @{self.function_name}({parameters}) {{",
                "entry:",
                *scratch,
                *self._frames[0].lines,
                f"  {returned}",
                "}",
            ]
        )


def _finite_float32(number: Any) -> float:
    value = float(number)
    if value != value or value in (float("inf"), float("-inf")):
        return value
    largest = 3.4028234663852886e38
    return value if abs(value) <= largest else float("inf") * (1 if value > 0 else -1)


def _hex_of(number: float) -> str:
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"


def _number(x: Value) -> int | None:
    text = x.text
    return int(text) if text.lstrip("-").isdigit() else None


def _intrinsic_code(x: Value) -> str:
    code = {"float": "f32", "double": "f64"}.get(x.type, x.type)
    return code if x.lanes == 1 else f"v{x.lanes}{code}"
