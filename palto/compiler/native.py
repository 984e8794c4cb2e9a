"""A graph as native code: nests, memory, one function that all threads run, and its calls.

The function's table holds pointers: the arena, a profile or null, then every buffer that is not in
the arena. Threads run the same steps; a step is divided by its units, or left to thread 0 where it
is small. A barrier stands before a step that touches what an earlier one still may be using.
"""

from __future__ import annotations

import functools
import math
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from palto.compiler import index as ix
from palto.compiler import memory, nests, team
from palto.compiler.fuse import Fuser
from palto.compiler.llvm import contract, machine
from palto.compiler.llvm.builder import Function
from palto.compiler.llvm.loops import Emitter, Kernel
from palto.compiler.memory import Buffer
from palto.compiler.nests import Check, Group, Nest, Single
from palto.compiler.prepare import RULES, read_through
from palto.compiler.simplify import simplify
from palto.compiler.sizes import Size, at, is_surely_less, shape_at
from palto.tensor import dtypes
from palto.tensor.dtypes import DType
from palto.tensor.graph import Array, Graph, Operation, Spec, run
from palto.tensor.primitives import elementwise
from palto.tensor.tensor import Shape, Tensor

#: A step of fewer simple operations than this is left to one thread.
SMALL = 2**14
#: Slots of the table: the run-time sizes come before the first buffer.
_ARENA, _PROFILE, _SIZES = 0, 1, 2
#: With PALTO_DEBUG=1: bytes around every buffer, and what they hold; as a float it is NaN.
_GUARD, _PATTERN = 64, 0xFF


@dataclass(slots=True)
class Step:
    """A nest in the program.

    Attributes:
        nest: what it computes.
        kernel: its code; None for what is run from Python.
        reads, writes: the buffers it uses.
        work: about how many simple operations it takes.
        barrier: whether all threads meet before it.
        writes_cells: whether it changes what lives on after the call.
    """

    nest: Nest
    kernel: Kernel | None
    reads: list[Buffer]
    writes: list[Buffer]
    work: int
    barrier: bool = False
    writes_cells: bool = False

    @property
    def is_serial(self) -> bool:
        """Whether one thread does all of it."""
        return self.kernel is None or int(self.kernel.units) < 2 or self.work < SMALL


class Native:
    """A graph, compiled.

    Args:
        graph: what to compute.
        writes: for each output that a cell takes, its number and the number of the input that is
            the cell's old value, or None.
        conditions: the numbers of outputs that must be true before a cell is written, with what
            is said otherwise.
        sizes: the names of the run-time sizes.
    """

    def __init__(
        self,
        graph: Graph,
        writes: dict[int, int | None],
        conditions: dict[int, str],
        sizes: Sequence[str] = (),
    ) -> None:
        started = time.perf_counter()
        self._debug = os.environ.get("PALTO_DEBUG", "") not in ("", "0")
        self.graph = simplify(graph, inline=True, rules=RULES, copy_outputs=True)
        self._sizes = list(sizes)
        self._first = _SIZES + len(self._sizes)
        self._targets = list(writes)
        self.checks = _checks(self.graph)
        self.checks += [
            Check(self.graph.outputs[number], None, None, False,
                  functools.partial(_condition_error, message))
            for number, message in conditions.items()
        ]  # fmt: skip
        late = {id(self.graph.outputs[number]) for number in writes}
        # A scan may find an index out of range, too.
        early = [o.output() for o in self.graph.operations if o.primitive.name == "scan"]
        updates = _updates(self.graph, writes)
        self._fuser = Fuser(self.graph, self.checks, early, late, [new for new, _ in updates])
        if any(_is_read_after(self._fuser, new, old) for new, old in updates):
            updates = []
            self._fuser = Fuser(self.graph, self.checks, early, late)
        self._copies: list[Tensor] = []
        self._buffers: dict[int, Buffer] = {}
        self._constants: list[Array] = []
        self._place_inputs()
        self._place_outputs(writes, [new for new, _ in updates])
        self._place_arena()
        self.steps = [self._step(nest) for nest in self._fuser.nests]
        self._plan()
        text = self._text()
        #: How long it took to choose and write the program, and to compile or load it.
        self.lowering_seconds = time.perf_counter() - started
        self._code = machine.load(text)
        self.code_seconds = time.perf_counter() - started - self.lowering_seconds
        self._functions = [
            self._code.address(f"program{number}") for number in range(len(self._segments))
        ]
        self._arena = np.empty(self.arena_bytes + 2 * memory.ALIGNMENT, np.uint8)
        start = self._arena.__array_interface__["data"][0]
        self._start = start + -start % memory.ALIGNMENT
        self._pointers = np.zeros(self._first + len(self._table), np.uint64)
        self._pointers[_ARENA] = self._start
        self._address = self._pointers.__array_interface__["data"][0]
        #: The array that each pointer of the table belongs to.
        self._pointed: list[Callable[[], Array | None]] = [lambda: None] * len(self._table)

    # Buffers

    def _place_inputs(self) -> None:
        for number, x in enumerate(self.graph.inputs):
            self._buffers.setdefault(id(x), Buffer(x.shape, x.dtype, "input", number))

    def _place_outputs(self, writes: dict[int, int | None], updated: list[Tensor]) -> None:
        self._outputs: list[int] = []
        for number, x in enumerate(self.graph.outputs):
            if number not in writes:
                self._buffers[id(x)] = Buffer(x.shape, x.dtype, "output", len(self._outputs))
                self._outputs.append(number)
        for place, (number, source) in enumerate(writes.items()):
            x = self.graph.outputs[number]
            target = Buffer(x.shape, x.dtype, "cell", place)
            if source is None:
                self._buffers[id(x)] = target
                continue
            old = self.graph.inputs[source]
            target = self._buffers[id(old)]
            new = x.operation.inputs[0] if x.operation is not None else x
            if any(new is x for x in updated):
                self._buffers[id(x)] = self._buffers[id(new)] = target
            elif self._may_overwrite(x, old):
                self._buffers[id(x)] = target
            else:
                self._copy_late(x, target)

    def _may_overwrite(self, x: Tensor, old: Tensor) -> bool:
        """Whether a cell's new value can be written where the old one lies."""
        home = self._fuser.home.get(id(x))
        if not isinstance(home, Group):
            return x.size == 0
        if any(m.phase for m in home.members):
            return False
        for nest in self._fuser.nests:
            for tensor, indices in nest.reads:
                if tensor is not old or nest.position < home.position:
                    continue
                if nest is not home or indices is None:
                    return False
                if ix.linear(indices, old.shape) != home.place():
                    return False
        return True

    def _copy_late(self, x: Tensor, target: Buffer) -> None:
        """Copy a cell's new value into the cell at the end."""
        operation = Operation(elementwise.detach, (x,), {})
        copy = Tensor(x.shape, x.dtype, operation=operation, trace=x.trace)
        operation.set_outputs((copy,))
        self._copies.append(copy)
        if x.size:
            self._fuser.append_copy(copy)
        self._buffers[id(copy)] = target

    def _place_arena(self) -> None:
        """Give memory to every root that another nest, or a later pass, reads."""
        for nest in self._fuser.nests:
            for x, _ in nest.reads:
                home = self._fuser.home.get(id(x))
                if home is None or id(x) in self._buffers:
                    continue
                if home is not nest or isinstance(nest, Single) or self._is_read_later(nest, x):
                    self._buffers[id(x)] = Buffer(x.shape, x.dtype, "arena")

    def _is_read_later(self, nest: Nest, x: Tensor) -> bool:
        """Whether a later pass of a group reads what an earlier one computes for each place."""
        if not isinstance(nest, Group):
            return False
        mine = next((m for m in nest.members if m.tensor is x), None)
        if mine is None or mine.kind != "map":
            return False
        for member in nest.members:
            if member.phase > mine.phase:
                walk = nests.Walk(self._fuser.is_stored)
                at = [ix.of(v) for v in nests.variables("w", member.source.shape)]
                walk.visit(member.source, at, inside=member.source is member.tensor)
                if any(tensor is x for tensor, _ in walk.reads):
                    return True
        return False

    def is_stored(self, x: Tensor) -> bool:
        """Whether steps read a tensor, and do not compute it on their way."""
        return self._fuser.is_stored(x)

    def buffer_of(self, x: Tensor) -> Buffer | None:
        """The memory of a tensor, if it has any."""
        return self._buffers.get(id(x))

    def _stored(self, x: Tensor) -> Buffer | None:
        buffer = self._buffers.get(id(x))
        if buffer is None and x._value is not None:
            buffer = Buffer(x.shape, x.dtype, "constant", len(self._constants))
            self._constants.append(np.ascontiguousarray(x.array()))
            self._buffers[id(x)] = buffer
        return buffer

    # Steps

    def _step(self, nest: Nest) -> Step:
        writes = [b for x in nest.outputs if (b := self._buffers.get(id(x))) is not None]
        if isinstance(nest, Group):
            writes = [b for m in nest.members if (b := self._buffers.get(id(m.tensor)))]
            if nest.product is not None:
                own = self._buffers.get(id(nest.product.result))
                writes += [own] if own is not None else []
        kernel = None
        reads = [b for x, _ in nest.reads if (b := self._stored(x)) is not None]
        if not (isinstance(nest, Single) and nest.kind in ("library", "scan")):
            emitter = Emitter(
                self._stored, self._fuser.is_stored, set(writes), contract.Machine.host()
            )
            kernel = emitter.kernel(nest)
            known = {*reads, *writes}
            scratch = [b for _, _, b in kernel.arguments if b is not None and b not in known]
            reads += [b for b in scratch if b.role != "arena"]
            writes += [b for b in scratch if b.role == "arena"]
        for buffer in (*reads, *writes):
            buffer.used(nest.position)
        step = Step(nest, kernel, reads, writes, _work(nest))
        step.writes_cells = any(b.role in ("cell", "input") for b in writes)
        return step

    def _plan(self) -> None:
        found = {id(b): b for step in self.steps for b in (*step.reads, *step.writes)}
        arena = [b for b in found.values() if b.role == "arena"]
        if self._debug:  # nothing shares memory, so that what lies between belongs to nobody
            for buffer in arena:
                buffer.first, buffer.last = 0, len(self.steps)
        self.arena_bytes = memory.plan(arena, gap=_GUARD if self._debug else 0)
        self._table = [b for b in found.values() if b.role != "arena"]
        self._slots = {id(b): self._first + i for i, b in enumerate(self._table)}
        self._segments: list[list[Step]] = [[]]
        self._between: list[Step] = []
        pending: list[Step] = []
        for step in self.steps:
            if step.kernel is None:
                self._between.append(step)
                self._segments.append([])
                pending = []
                continue
            if any(_conflict(earlier, step) for earlier in pending):
                step.barrier = True
                pending = []
            pending.append(step)
            self._segments[-1].append(step)
        self._gate()

    def _gate(self) -> None:
        """The first step that writes a cell waits until every check has been made."""
        self._gated: Step | None = None
        for segment in self._segments:
            for step in segment:
                if step.writes_cells:
                    step.barrier = True
                    self._gated = step
                    return

    # Text

    def _text(self) -> str:
        declarations: set[str] = set()
        functions: dict[str, str] = {}
        bodies: list[str] = []
        programs: list[str] = []
        self._counts: dict[int, str] = {}  # functions of run-time sizes
        self._signatures: dict[int, tuple[str, list[tuple[str, str]]]] = {}
        number = 0
        before_gate = True
        for place, segment in enumerate(self._segments):
            lines = ["  %arena = load ptr, ptr %table", *self._loads(segment)]
            lines += [
                f"  %profile_slot = getelementptr ptr, ptr %table, i64 {_PROFILE}",
                "  %profile = load ptr, ptr %profile_slot",
            ]
            for slot, size in enumerate(self._sizes, _SIZES):
                lines += [
                    f"  %size_slot{slot} = getelementptr ptr, ptr %table, i64 {slot}",
                    f"  %size_{size} = load i64, ptr %size_slot{slot}",
                ]
            for step in segment:
                assert step.kernel is not None
                declarations |= step.kernel.declarations
                name = functions.get(step.kernel.text)
                if name is None:
                    name = functions[step.kernel.text] = f"nest{len(functions)}"
                    bodies.append(step.kernel.text.replace("@NAME(", f"@{name}(", 1))
                if step.barrier:
                    lines.append(
                        f"  %leave{number} = call i1 @palto_barrier(ptr %sync, i64 %thread, "
                        "i64 %threads)"
                    )
                    if before_gate:
                        lines += [
                            f"  br i1 %leave{number}, label %end, label %go{number}",
                            f"go{number}:",
                        ]
                before_gate &= step is not self._gated
                lines += self._call(step, name, number)
                number += 1
            lines += [
                f"  call void @note(ptr %profile, i64 {number}, i64 %thread)",
                "  br label %end",
                "end:",
                "  ret void",
                "}",
            ]
            number += 1  # of the step between this segment and the next
            header = (
                f"define void @program{place}(ptr %table, ptr %sync, i64 %thread, i64 %threads)"
            )
            programs += [header + " {", "entry:", *lines]
        self.kernel_count = len(functions)
        support = team.SUPPORT + _NOTE
        declarations = {d for d in declarations if d not in support}
        bodies += self._counts.values()
        return "\n".join([support, *sorted(declarations), *bodies, *programs, ""])

    def _loads(self, segment: Sequence[Step]) -> list[str]:
        kernels = [step.kernel for step in segment if step.kernel is not None]
        used = {id(b) for kernel in kernels for _, _, b in kernel.arguments if b is not None}
        lines = []
        for buffer in self._table:
            if id(buffer) in used:
                slot = self._slots[id(buffer)]
                lines += [
                    f"  %slot{slot} = getelementptr ptr, ptr %table, i64 {slot}",
                    f"  %pointer{slot} = load ptr, ptr %slot{slot}",
                ]
        return lines

    def _call(self, step: Step, name: str, number: int) -> list[str]:
        kernel = step.kernel
        assert kernel is not None
        if not kernel.units:
            return []
        lines = [f"  call void @note(ptr %profile, i64 {number}, i64 %thread)"]
        arguments = []
        for kind, parameter, buffer in kernel.arguments:
            if parameter == "sync":
                text = "%sync"
            elif parameter == "code":
                assert isinstance(step.nest, Check)
                text = str(self.checks.index(step.nest))
            elif parameter.startswith("size_"):
                text = f"%{parameter}"
            elif buffer is None:
                text = f"%{parameter}{number}"
            elif buffer.role == "arena":
                text = f"%at{number}_{parameter}"
                lines.append(f"  {text} = getelementptr i8, ptr %arena, i64 {buffer.offset}")
            else:
                text = f"%pointer{self._slots[id(buffer)]}"
            arguments.append(f"{kind} {text}")
        units = self._count(kernel.units, number, lines)
        if step.is_serial:
            arguments[:2] = ["i64 0", f"i64 {units}"]
            return [
                *lines,
                f"  %mine{number} = icmp eq i64 %thread, 0",
                f"  br i1 %mine{number}, label %do{number}, label %done{number}",
                f"do{number}:",
                f"  call void @{name}({', '.join(arguments)})",
                f"  br label %done{number}",
                f"done{number}:",
            ]
        return [
            *lines,
            f"  %next{number} = add i64 %thread, 1",
            f"  %low{number} = mul i64 %thread, {units}",
            f"  %high{number} = mul i64 %next{number}, {units}",
            f"  %first{number} = udiv i64 %low{number}, %threads",
            f"  %last{number} = udiv i64 %high{number}, %threads",
            f"  call void @{name}({', '.join(arguments)})",
        ]

    def _count(self, units: int, number: int, lines: list[str]) -> str:
        """A number of units as an operand; where it depends on sizes, a function computes it."""
        if not isinstance(units, Size):
            return str(units)
        if units not in self._counts:
            f = Function(f"units{len(self._counts)}", [], "i64")
            value = f.constant(units, "i64")
            self._counts[units] = f.finish(value)
            self._signatures[units] = f.function_name, f.signature
        name, signature = self._signatures[units]
        given = ", ".join(f"{kind} %{parameter}" for kind, parameter in signature)
        lines.append(f"  %units{number} = call i64 @{name}({given})")
        return f"%units{number}"

    # Running

    def run(
        self,
        inputs: Sequence[Array],
        targets: Sequence[Array],
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> list[Array]:
        """Run once.

        Args:
            inputs: the values of the graph's inputs, dense.
            targets: for each of `writes`, the array that takes the new value; where there is an old
                one, that input's array itself.
            sizes: the run-time sizes.

        Returns:
            The other outputs.
        """
        if self._debug:
            return self._run_guarded(inputs, targets, sizes)
        outputs = [np.empty(shape, dtype) for shape, dtype in self._results(sizes)]
        self._execute(inputs, targets, outputs, sizes)
        return outputs

    def _results(self, sizes: Mapping[str, int]) -> list[tuple[Shape, DType]]:
        found = [self.graph.outputs[number] for number in self._outputs]
        return [(shape_at(x.shape, sizes) if sizes else x.shape, x.dtype) for x in found]

    def _run_guarded(
        self, inputs: Sequence[Array], targets: Sequence[Array], sizes: Mapping[str, int]
    ) -> list[Array]:
        """Run on copies between guards of a known pattern, and look at the guards afterwards."""
        guards: list[tuple[str, Array]] = []

        def guarded(what: str, shape: Shape, dtype: DType) -> Array:
            count = math.prod(shape) * dtype.itemsize
            memory_ = np.full(count + 2 * _GUARD, _PATTERN, np.uint8)
            guards.append((what, memory_[:_GUARD]))
            guards.append((what, memory_[_GUARD + count :]))
            return memory_[_GUARD : _GUARD + count].view(dtype).reshape(shape)

        def copy(what: str, x: Array) -> Array:
            result = guarded(what, x.shape, x.dtype)
            result[...] = x
            return result

        copies = [copy(f"input {i}", x) for i, x in enumerate(inputs)]
        places = {id(x): i for i, x in enumerate(inputs)}
        into = [
            copies[places[id(x)]] if id(x) in places else copy(f"cell {i}", x)
            for i, x in enumerate(targets)
        ]
        outputs = [
            guarded(f"output {i}", shape, dtype)
            for i, (shape, dtype) in enumerate(self._results(sizes))
        ]
        self._arena[:] = _PATTERN
        self._execute(copies, into, outputs, sizes)
        start = -self._arena.__array_interface__["data"][0] % memory.ALIGNMENT
        free = np.ones(self._arena.shape, np.bool_)
        for buffer in {b for step in self.steps for b in (*step.reads, *step.writes)}:
            if buffer.role == "arena":
                low = start + buffer.offset
                free[low : low + buffer.bytes] = False
        guards.append(("the arena", self._arena[free]))
        for what, guard in guards:
            if (guard != _PATTERN).any():
                raise RuntimeError(
                    f"defect in Palto's compiler: a program wrote out of bounds of {what}; please "
                    "report it with the function that was compiled"
                )
        for target, result in zip(targets, into, strict=True):
            target[...] = result
        return [np.array(x) for x in outputs]

    def profile(
        self, inputs: Sequence[Array], targets: Sequence[Array], sizes: Mapping[str, int]
    ) -> Array:
        """Run once; the clock of `team` at the beginning of each step, and at the end."""
        outputs = [np.empty(shape, dtype) for shape, dtype in self._results(sizes)]
        notes = np.zeros(len(self.steps) + 1, np.int64)
        self._execute(inputs, targets, outputs, sizes, notes)
        notes[-1] = max(notes)
        for number in reversed(range(len(self.steps))):  # a step of nothing takes no note
            notes[number] = notes[number] or notes[number + 1]
        return notes

    def _execute(
        self,
        inputs: Sequence[Array],
        targets: Sequence[Array],
        outputs: Sequence[Array],
        sizes: Mapping[str, int],
        notes: Array | None = None,
    ) -> None:
        arrays = {
            "input": inputs, "output": outputs, "cell": targets, "constant": self._constants,
        }  # fmt: skip
        table, start = self._pointers, self._start
        table[_PROFILE] = 0 if notes is None else notes.__array_interface__["data"][0]
        for slot, name in enumerate(self._sizes, _SIZES):
            table[slot] = sizes[name]
        for slot, buffer in enumerate(self._table):
            array = arrays[buffer.role][buffer.number]
            if self._pointed[slot]() is not array:  # asking NumPy for an address takes long
                table[self._first + slot] = array.__array_interface__["data"][0]
                self._pointed[slot] = weakref.ref(array)
        address = self._address
        threads = team.thread_count()
        for number, function in enumerate(self._functions):
            if self._segments[number]:
                failure = team.run(function, address, threads)
                if failure is not None:
                    raise self.checks[failure.code].error(failure.value, sizes)
            if number < len(self._between):
                self._run_from_python(self._between[number], arrays, start, sizes)
                if notes is not None:
                    notes[self._between[number].nest.position + 1] = team.clock()

    def _run_from_python(
        self,
        step: Step,
        arrays: dict[str, Sequence[Array]],
        start: int,
        sizes: Mapping[str, int],
    ) -> None:
        nest = step.nest
        assert isinstance(nest, Single)
        shift = start - self._arena.__array_interface__["data"][0]

        def view(x: Tensor) -> Array:
            buffer = self._stored(x)
            shape = shape_at(x.shape, sizes)
            if buffer is None:  # nobody reads this output
                return np.empty(shape, x.dtype)
            if buffer.role != "arena":
                return arrays[buffer.role][buffer.number]
            low = shift + buffer.offset
            high = low + math.prod(shape) * x.dtype.itemsize
            return self._arena[low:high].view(x.dtype).reshape(shape)

        operation = nest.operation
        values = [view(x) for x in operation.inputs]
        if nest.kind == "scan":
            results: Sequence[Array] = self._scans[id(operation)].run(values, sizes)
        else:
            specs = [Spec(shape_at(x.shape, sizes), x.dtype) for x in operation.outputs]
            params = {
                name: at(value, sizes) if isinstance(value, Size) else value
                for name, value in operation.params.items()
            }
            results = run(operation.primitive, values, params, specs)
        for x, value in zip(operation.outputs, results, strict=True):
            np.copyto(view(x), value)

    @functools.cached_property
    def _scans(self) -> dict[int, Scan]:
        return {
            id(step.nest.operation): Scan(step.nest.operation, self._sizes)
            for step in self._between
            if isinstance(step.nest, Single) and step.nest.kind == "scan"
        }


class Scan:
    """A loop whose step is a native program."""

    def __init__(self, operation: Operation, sizes: Sequence[str]) -> None:
        self._params = operation.params
        self._step = Native(operation.params["body"], {}, {}, sizes)

    def run(self, inputs: Sequence[Array], sizes: Mapping[str, int]) -> list[Array]:
        """The last state and the stacked outputs."""
        params = self._params
        carries, sequences = params["carries"], params["sequences"]
        carry = [np.ascontiguousarray(x).reshape(x.shape) for x in inputs[:carries]]
        xs, constants = inputs[carries : carries + sequences], inputs[carries + sequences :]
        outputs = self._step.graph.outputs[carries:]
        length = at(params["length"], sizes)
        ys = [np.empty((length, *shape_at(y.shape, sizes)), y.dtype) for y in outputs]
        steps = range(length)
        for t in reversed(steps) if params["reverse"] else steps:
            results = self._step.run([*carry, *(x[t, ...] for x in xs), *constants], [], sizes)
            carry = results[:carries]
            for y, value in zip(ys, results[carries:], strict=True):
                y[t] = value
        return [*carry, *ys]


# Threads 0's clock at the beginning of each step, if somebody asks.
_NOTE = """
define internal void @note(ptr %profile, i64 %step, i64 %thread) {
entry:
  %address = ptrtoint ptr %profile to i64
  %whether = or i64 %address, %thread
  %off = icmp eq i64 %address, 0
  %other = icmp ne i64 %thread, 0
  %skip = or i1 %off, %other
  br i1 %skip, label %end, label %write
write:
  %now = call i64 @palto_clock()
  %place = getelementptr i64, ptr %profile, i64 %step
  store i64 %now, ptr %place, align 8
  br label %end
end:
  ret void
}
"""


def _updates(graph: Graph, writes: dict[int, int | None]) -> list[tuple[Tensor, Tensor]]:
    """Boxes written into a cell's old value that become the cell's new value: (new, old)."""
    found = []
    for number, source in writes.items():
        copy = graph.outputs[number]
        assert copy.operation is not None
        new = copy.operation.inputs[0]
        operation = new.operation if new._value is None else None
        if source is None or operation is None or not new.size:
            continue
        old = graph.inputs[source]
        if operation.primitive.name == "dynamic_update_slice" and operation.inputs[0] is old:
            found.append((new, old))
    return found


def _is_read_after(fuser: Fuser, new: Tensor, old: Tensor) -> bool:
    """Whether a nest needs a cell's old value when it has been overwritten."""
    home = fuser.home[id(new)]
    return home.early or any(
        tensor is old and nest.position >= home.position
        for nest in fuser.nests
        for tensor, _ in nest.reads
    )


def _conflict(earlier: Step, later: Step) -> bool:
    """Whether a step may not begin before another has ended on all threads."""
    if earlier.is_serial and later.is_serial:
        return False  # both on thread 0, in order
    return any(
        _overlap(a, b)
        for mine, theirs in (
            (earlier.writes, later.reads), (earlier.writes, later.writes),
            (earlier.reads, later.writes),
        )
        for a in mine
        for b in theirs
    )  # fmt: skip


def _overlap(a: Buffer, b: Buffer) -> bool:
    if a is b:
        return True
    if a.role != "arena" or b.role != "arena":
        return False
    return a.offset < b.offset + b.bytes and b.offset < a.offset + a.bytes


def _work(nest: Nest) -> int:
    if isinstance(nest, Group):
        work = int(math.prod(nest.shape)) * (len(nest.members) + len(nest.reads))
        if nest.product is not None:
            work += int(nest.product.operation.primitive.flops(nest.product.operation)) // 16
        return work
    if isinstance(nest, Check):
        return 0  # one thread looks at all
    assert isinstance(nest, Single)
    operation = nest.operation
    if nest.kind == "reduce":
        places = operation.output().size * math.prod(v.length for v in nest.reduced)
        return int(places)
    return max(int(x.size) for x in (*operation.inputs, operation.output()))


# Checks

#: From the offending value and the run-time sizes to the error.
Error = Callable[[int, Mapping[str, int]], Exception]


def _checks(graph: Graph) -> list[Check]:
    """What operations demand of their inputs' values."""
    found: list[Check] = []
    for operation in graph.operations:
        name, inputs, params = operation.primitive.name, operation.inputs, operation.params
        if name in ("gather", "scatter_add"):
            x, *places = inputs
            axis = params["axis"]
            sizes = params.get("sizes") or x.shape[axis : axis + len(places)]
            for place, size in zip(places, sizes, strict=True):
                error = functools.partial(_index_error, params["role"], size)
                found += _check(place, 0, size, _located(operation, error))
        elif name in ("dynamic_slice", "dynamic_update_slice"):
            starts = inputs[-1]
            sizes = params["sizes"] if name == "dynamic_slice" else inputs[1].shape
            for axis, (n, size) in enumerate(zip(inputs[0].shape, sizes, strict=True)):
                error = functools.partial(_start_error, axis, n, size)
                found += _check(starts, 0, n - size + 1, _located(operation, error), axis)
        elif name in ("floor_divide", "remainder") and inputs[1].dtype in dtypes.INTEGER:
            error = functools.partial(_zero_error, name)
            found += _check(inputs[1], None, None, _located(operation, error))
        elif name == "pow" and inputs[1].dtype in dtypes.SIGNED:
            found += _check(inputs[1], 0, None, _located(operation, _power_error))
    return found


def _check(
    x: Tensor,
    low: int | None,
    high: int | None,
    error: Error,
    place: int | None = None,
) -> list[Check]:
    """The check, unless it is sure to succeed."""
    if place is None:
        whole = [ix.of(v) for v in nests.variables("w", x.shape)]
        kept = ("reshape", "permute", "expand")  # views that show every element
        x = read_through(
            x, whole, lambda t: t.operation is None or t.operation.primitive.name not in kept
        ).tensor
    if x._value is not None:
        values = x.array() if place is None else x.array()[place]
        bad = np.zeros(np.shape(values), np.bool_)
        if low is None and high is None:
            bad |= values == 0
        if low is not None:
            bad |= values < low
        if high is not None:
            bad |= values >= high
        if not bad.any():
            return []
    elif x.operation is not None and x.operation.primitive.name == "iota":
        length = x.shape[x.operation.params["axis"]]
        if high is not None and not is_surely_less(high, length + 1) and length <= high:
            return []
    allows_zero = low is not None or high is not None
    return [Check(x, low, high, allows_zero, error, place)]


def _located(operation: Operation, error: Error) -> Error:
    """The error with a note of the layer it happened in."""

    def make(value: int, sizes: Mapping[str, int]) -> Exception:
        result = error(value, sizes)
        if operation.scope:
            result.add_note(f"in layer {'.'.join(operation.scope)}")
        return result

    return make


def _index_error(role: str, size: int, value: int, sizes: Mapping[str, int]) -> Exception:
    size = at(size, sizes)
    allowed = f"from 0 to {size - 1}" if size else "absent: there is nothing to index"
    return IndexError(f"{role} {value} is out of range: it must be {allowed}")


def _start_error(axis: int, n: int, size: int, value: int, sizes: Mapping[str, int]) -> Exception:
    n, size = at(n, sizes), at(size, sizes)
    return IndexError(
        f"start {value} is out of range on axis {axis}: a box of {size} in {n} "
        f"may start at 0 to {n - size}"
    )


def _zero_error(name: str, value: int, sizes: Mapping[str, int]) -> Exception:
    what = "division" if name == "floor_divide" else "remainder"
    hint = "; use float tensors for infinities" if name == "floor_divide" else ""
    return ZeroDivisionError(f"integer {what} by zero{hint}")


def _power_error(value: int, sizes: Mapping[str, int]) -> Exception:
    return ValueError("an integer tensor to a negative power; cast it to float32 first")


def _condition_error(message: str, value: int, sizes: Mapping[str, int]) -> Exception:
    return FloatingPointError(message)
