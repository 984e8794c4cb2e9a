"""Assembly: steps as functions that all threads run together, in one module of LLVM IR."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from palto.compiler import team
from palto.compiler.llvm.builder import Function
from palto.compiler.lowering import Body, Step, chains
from palto.compiler.memory import Buffer
from palto.compiler.nests import Check
from palto.compiler.sizes import Size
from palto.tensor.tensor import Tensor

#: Slots of a program's table: the run-time sizes come next, then the buffers.
ARENA, PROFILE, SIZES = 0, 1, 2


@dataclass(slots=True)
class Assembly:
    """Writes the module.

    Args:
        slots: where in the table each buffer's pointer is, by identity; others lie in the arena.
        sizes: the names of the run-time sizes.
        checks: the checks; a failure is known by its place among them.
        gated: the first step that writes a cell, if there is one.
    """

    slots: dict[int, int]
    sizes: Sequence[str]
    checks: Sequence[Check]
    gated: Step | None
    #: The names of functions by their text, and the texts with their names.
    _kernels: dict[str, str] = field(default_factory=dict)
    _bodies: list[str] = field(default_factory=list)
    _declarations: set[str] = field(default_factory=set)
    _counts: dict[int, tuple[str, list[tuple[str, str]]]] = field(default_factory=dict)
    _programs: list[str] = field(default_factory=list)
    _lines: list[str] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    #: What stands for a buffer that belongs to a loop around.
    _known: dict[int, str] = field(default_factory=dict)
    _noted: int = 0
    _may_leave: bool = True

    @property
    def kernel_count(self) -> int:
        """How many different nests there are."""
        return len(self._kernels)

    def text(self) -> str:
        """The whole module."""
        support = team.support()
        declarations = sorted(d for d in self._declarations if d not in support)
        return "\n".join([support, *declarations, *self._bodies, *self._programs, ""])

    def program(self, name: str, steps: Sequence[Step], *, after: bool = False) -> None:
        """Write the function of some steps, perhaps `after` one that is run from Python."""
        self._noted += after
        self._lines = [f"define void @{name}(ptr %table, ptr %sync, i64 %thread, i64 %threads) {{"]
        self._lines += ["entry:", "  %arena = load ptr, ptr %table"]
        self._load("profile", "ptr", PROFILE)
        for slot, size in enumerate(self.sizes, SIZES):
            self._load(f"size_{size}", "i64", slot)
        for chained in chains(steps):
            step = chained[0]
            if step.barrier:
                self._barrier()
            self._may_leave &= step is not self.gated
            if len(chained) > 1:
                self._chain(chained)
                continue
            if step.body is not None or (step.kernel is not None and step.kernel.units):
                self._note()
            self._step(step)
            self._noted += 1
        self._note()
        self._lines += ["  br label %end", "end:", "  ret void", "}"]
        self._programs += self._lines

    def _chain(self, steps: Sequence[Step]) -> None:
        """Steps part by part; each thread has some of the parts."""
        n, parts, start = next(self._numbers), steps[0].parts, self._noted
        for _ in steps:
            self._note()
            self._noted += 1
        self._note()
        end = self._noted
        self._share(f"part{n}", str(parts))
        passing = [(b, self._address(b), b.bytes // parts) for b in steps[0].passing]
        self._lines += [
            f"  br label %enter{n}",
            f"enter{n}:",
            f"  br label %head{n}",
            f"head{n}:",
            f"  %t{n} = phi i64 [ %first_part{n}, %enter{n} ], [ %following{n}, %inside{n} ]",
            f"  %following{n} = add i64 %t{n}, 1",
            f"  %more{n} = icmp slt i64 %t{n}, %last_part{n}",
            f"  br i1 %more{n}, label %inside{n}, label %exit{n}",
            f"inside{n}:",
            f"  %back{n} = sub i64 %first_part{n}, %t{n}",
        ]
        outside, self._known = self._known, dict(self._known)
        for i, (buffer, base, size) in enumerate(passing):
            # Every part of it lies where the first one of this thread would.
            self._line(f"%far{n}_{i} = mul i64 %back{n}, {size}")
            self._line(f"%own{n}_{i} = getelementptr i8, ptr {base}, i64 %far{n}_{i}")
            self._known[id(buffer)] = f"%own{n}_{i}"
        for number, step in enumerate(steps, start + 1):
            assert step.kernel is not None
            name, arguments, call = self._arguments(step)
            units = step.kernel.units // parts
            self._line(f"%first_{call} = mul i64 %t{n}, {units}")
            self._line(f"%last_{call} = add i64 %first_{call}, {units}")
            self._line(f"call void @{name}({', '.join(arguments)})")
            self._line(
                f"call void @palto_note_part(ptr %profile, i64 {number}, i64 {end}, i64 %thread)"
            )
        self._known = outside
        self._lines += [f"  br label %head{n}", f"exit{n}:"]

    # Lines

    def _note(self) -> None:
        """Note the time at which the next step begins."""
        self._line(f"call void @palto_note(ptr %profile, i64 {self._noted}, i64 %thread)")

    def _share(self, name: str, count: str) -> None:
        """The first of what this thread has of so many, and the one to stop before."""
        self._lines += [
            f"  %next_{name} = add i64 %thread, 1",
            f"  %low_{name} = mul i64 %thread, {count}",
            f"  %high_{name} = mul i64 %next_{name}, {count}",
            f"  %first_{name} = udiv i64 %low_{name}, %threads",
            f"  %last_{name} = udiv i64 %high_{name}, %threads",
        ]

    def _line(self, text: str) -> None:
        self._lines.append(f"  {text}")

    def _load(self, name: str, kind: str, slot: int) -> None:
        self._line(f"%slot_of_{name} = getelementptr ptr, ptr %table, i64 {slot}")
        self._line(f"%{name} = load {kind}, ptr %slot_of_{name}")

    def _barrier(self) -> None:
        number = next(self._numbers)
        self._line(f"%leave{number} = call i1 @palto_barrier(ptr %sync, i64 %thread, i64 %threads)")
        if self._may_leave:
            self._line(f"br i1 %leave{number}, label %end, label %go{number}")
            self._lines.append(f"go{number}:")

    def _address(self, buffer: Buffer) -> str:
        """Where a buffer begins."""
        if id(buffer) in self._known:
            return self._known[id(buffer)]
        if id(buffer) in self.slots:
            # Here and not once for all: LLVM takes minutes over thousands of values that live long.
            pointer = f"pointer{next(self._numbers)}"
            self._load(pointer, "ptr", self.slots[id(buffer)])
            return f"%{pointer}"
        name = f"%at{next(self._numbers)}"
        self._line(f"{name} = getelementptr i8, ptr %arena, i64 {buffer.offset}")
        return name

    def _count(self, count: int) -> str:
        """A whole number as an operand; where it depends on sizes, a function computes it."""
        if not isinstance(count, Size):
            return str(count)
        if count not in self._counts:
            f = Function(f"count{len(self._counts)}", [], "i64")
            value = f.constant(count, "i64")
            self._bodies.append(f.finish(value))
            self._counts[count] = f.function_name, f.signature
        function, signature = self._counts[count]
        given = ", ".join(f"{kind} %{parameter}" for kind, parameter in signature)
        name = f"%count{next(self._numbers)}"
        self._line(f"{name} = call i64 @{function}({given})")
        return name

    # Steps

    def _step(self, step: Step) -> None:
        if step.body is not None:
            self._loop(step.body, is_serial=step.is_serial)
        elif step.kernel is not None and step.kernel.units:
            self._call(step)

    def _arguments(self, step: Step) -> tuple[str, list[str], int]:
        """The name of a step's function, its arguments, and the number in the first two's names."""
        kernel = step.kernel
        assert kernel is not None
        self._declarations |= kernel.declarations
        name = self._kernels.get(kernel.text)
        if name is None:
            name = self._kernels[kernel.text] = f"nest{len(self._kernels)}"
            self._bodies.append(kernel.text.replace("@NAME(", f"@{name}(", 1))
        number = next(self._numbers)
        arguments = []
        for kind, parameter, buffer in kernel.arguments:
            if buffer is not None:
                text = self._address(buffer)
            elif parameter == "code":
                assert isinstance(step.nest, Check)
                text = str(self.checks.index(step.nest))
            elif parameter in ("first", "last"):
                text = f"%{parameter}_{number}"
            else:
                text = f"%{parameter}"
            arguments.append(f"{kind} {text}")
        return name, arguments, number

    def _call(self, step: Step) -> None:
        assert step.kernel is not None
        name, arguments, number = self._arguments(step)
        units = self._count(step.kernel.units)
        if step.is_serial:
            arguments[:2] = ["i64 0", f"i64 {units}"]
            self._begin_alone(number)
            self._line(f"call void @{name}({', '.join(arguments)})")
            self._end_alone(number)
            return
        self._share(str(number), units)
        self._line(f"call void @{name}({', '.join(arguments)})")

    def _begin_alone(self, number: int) -> None:
        """What follows is done by thread 0."""
        self._lines += [
            f"  %mine{number} = icmp eq i64 %thread, 0",
            f"  br i1 %mine{number}, label %do{number}, label %done{number}",
            f"do{number}:",
        ]

    def _end_alone(self, number: int) -> None:
        self._lines += [f"  br label %done{number}", f"done{number}:"]

    def _loop(self, body: Body, *, is_serial: bool) -> None:
        """The steps of a loop, again and again; what is carried changes places."""
        n = next(self._numbers)
        lowering, params = body.lowering, body.operation.params
        carries, sequences = params["carries"], body.sequences
        length = self._count(params["length"])
        inputs = [self._address(buffer) for buffer in body.inputs]
        outputs = [self._address(buffer) for buffer in body.outputs]
        spare = [(self._address(a), self._address(b)) for a, b in body.spare]
        graph = lowering.graph
        moving: list[tuple[Buffer, str, str]] = []  # with where it is first, and how far it moves
        for i in range(carries, carries + sequences):
            place = _of(body, graph.inputs[i])
            moving.append((place, inputs[i], self._bytes(place)))
        for i in range(carries, len(outputs)):
            place = _of(body, graph.outputs[i])
            is_stacked = len(body.outputs[i].shape) > len(place.shape)
            moving.append((place, outputs[i], self._bytes(place) if is_stacked else "0"))
        if is_serial:
            self._begin_alone(n)
        self._lines += [
            f"  br label %enter{n}",
            f"enter{n}:",
            f"  br label %head{n}",
            f"head{n}:",
            f"  %t{n} = phi i64 [ 0, %enter{n} ], [ %following{n}, %latch{n} ]",
        ]
        outside, self._known = self._known, dict(self._known)
        for i, ((first, second), base) in enumerate(zip(spare, inputs, strict=False)):
            old, new, other = (f"%{word}{n}_{i}" for word in ("old", "new", "other"))
            self._lines += [
                f"  {old} = phi ptr [ {base}, %enter{n} ], [ {new}, %latch{n} ]",
                f"  {new} = phi ptr [ {first}, %enter{n} ], [ {other}, %latch{n} ]",
                f"  {other} = phi ptr [ {second}, %enter{n} ], [ {new}, %latch{n} ]",
            ]
            self._known[id(_of(body, graph.inputs[i]))] = old
            self._known[id(_of(body, graph.outputs[i]))] = new
        self._lines += [
            f"  %more{n} = icmp slt i64 %t{n}, {length}",
            f"  br i1 %more{n}, label %inside{n}, label %exit{n}",
            f"inside{n}:",
        ]
        if params.get("reverse"):
            self._line(f"%left{n} = sub i64 {length}, %t{n}")
            self._line(f"%place{n} = sub i64 %left{n}, 1")
        else:
            self._line(f"%place{n} = add i64 %t{n}, 0")
        for i, (buffer, base, distance) in enumerate(moving):
            self._line(f"%far{n}_{i} = mul i64 %place{n}, {distance}")
            self._line(f"%here{n}_{i} = getelementptr i8, ptr {base}, i64 %far{n}_{i}")
            self._known[id(buffer)] = f"%here{n}_{i}"
        fixed = carries + sequences
        for x, base in zip(graph.inputs[fixed : len(inputs)], inputs[fixed:], strict=True):
            self._known[id(_of(body, x))] = base
        for i, (x, row) in enumerate(zip(graph.inputs[len(inputs) :], body.own, strict=True)):
            self._line(f"%slot{n}_{i} = add i64 %t{n}, {self.slots[id(row[0])]}")
            self._line(f"%entry{n}_{i} = getelementptr ptr, ptr %table, i64 %slot{n}_{i}")
            self._line(f"%own{n}_{i} = load ptr, ptr %entry{n}_{i}")
            self._known[id(_of(body, x))] = f"%own{n}_{i}"
        if not is_serial:
            self._barrier()
        elif self._may_leave:  # no barrier listens to Ctrl-C, or sees that a check has failed
            self._line("call void @palto_listen(ptr %sync)")
            self._line(f"%failed{n} = call i1 @palto_failed(ptr %sync)")
            self._line(f"br i1 %failed{n}, label %exit{n}, label %go_on{n}")
            self._lines.append(f"go_on{n}:")
        for step in lowering.steps:
            if step.barrier:
                self._barrier()
            self._step(step)
        self._known = outside
        self._lines += [
            f"  br label %latch{n}",
            f"latch{n}:",
            f"  %following{n} = add i64 %t{n}, 1",
            f"  br label %head{n}",
            f"exit{n}:",
        ]
        if not is_serial:
            self._barrier()
            self._begin_alone(n)
        for i in range(carries):
            size = self._bytes(_of(body, graph.outputs[i]))
            self._line(
                f"call void @llvm.memcpy.p0.p0.i64(ptr {outputs[i]}, ptr %old{n}_{i}, i64 {size}, "
                "i1 false)"
            )
        self._declarations.add("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        self._end_alone(n)

    def _bytes(self, buffer: Buffer) -> str:
        return self._count(math.prod(buffer.shape) * buffer.dtype.itemsize)


def _of(body: Body, x: Tensor) -> Buffer:
    """The buffer that an input or output of one step has."""
    buffer = body.lowering.buffer_of(x)
    assert buffer is not None
    return buffer
