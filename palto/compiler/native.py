"""A graph as native code: its steps in memory, one function that all threads run, and its calls.

The function's table holds pointers: the arena, a profile or null, the run-time sizes, then every
buffer that is not in the arena. Threads run the same steps; a step is divided by its units, or left
to thread 0 where it is small. A barrier stands before a step that touches what an earlier one still
may be using.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from palto.compiler import chain, memory, team
from palto.compiler.addresses import Pointing, address_of
from palto.compiler.assembly import ARENA, PROFILE, SIZES, Assembly
from palto.compiler.llvm import machine
from palto.compiler.lowering import Lowering, Step, chains
from palto.compiler.memory import Buffer
from palto.compiler.nests import Check, Single
from palto.compiler.sizes import Size, at, shape_at
from palto.tensor.dtypes import DType
from palto.tensor.graph import Array, Graph, Operation, Spec, run
from palto.tensor.tensor import Cell, Shape, Tensor

#: What of a `Native` a call wants, and `Native.forget_plan` leaves.
_RUNNING = {
    "_address", "_arena", "_between", "_code", "_debug", "_errors", "_fill", "_firsts", "_fixed",
    "_functions", "_given", "_is_empty", "_is_serial", "_keep", "_keeps_serially", "_pointers",
    "_sizes", "_start", "_state", "constants", "kept", "watched",
}  # fmt: skip
#: With PALTO_DEBUG=1: bytes around every buffer, and what they hold; as a float it is NaN.
_GUARD, _PATTERN = 64, 0xFF


class Native(Lowering):
    """A graph, compiled.

    Args:
        graph: what to compute.
        writes: see `Lowering`.
        conditions: see `Lowering`.
        sizes: the names of the run-time sizes.
        reads: the cells whose values are the last inputs.
        written: the cells whose values are the targets.
    """

    def __init__(
        self,
        graph: Graph,
        writes: dict[int, int | None],
        conditions: dict[int, str],
        sizes: Sequence[str] = (),
        reads: Sequence[Cell] = (),
        written: Sequence[Cell] = (),
    ) -> None:
        started = time.perf_counter()
        self._debug = os.environ.get("PALTO_DEBUG", "") not in ("", "0")
        self._sizes = list(sizes)
        arguments = len(graph.inputs) - len(reads)
        own = {*writes.values()}
        lasting = [n for n in range(arguments, len(graph.inputs)) if n not in own]
        super().__init__(graph, writes, conditions, [], lasting, rolls=True)
        #: Which state of the cells the kept results are of.
        self._state: int | None = None
        #: The cells that they are computed of.
        self.watched = [
            reads[buffer.number - arguments]
            for step in self.steps[: self.kept]
            for buffer in step.reads
            if buffer.role == "input"
        ]
        self._plan()
        text = self._text()
        #: How long it took to choose and write the program, and to compile or load it.
        self.lowering_seconds = time.perf_counter() - started
        self._code = machine.load(text)
        self.code_seconds = time.perf_counter() - started - self.lowering_seconds
        self._functions = [
            self._code.address(f"program{number}") for number in range(len(self._segments))
        ]
        self._keep = self._code.address("keep") if self.kept else 0
        # A load of some bytes of a vector may reach over both ends.
        self._arena = np.empty(self.arena_bytes + 3 * memory.ALIGNMENT, np.uint8)
        start = address_of(self._arena) + memory.ALIGNMENT
        self._start = start + -start % memory.ALIGNMENT
        self._point(len(writes), reads, written)

    def _point(self, targets: int, reads: Sequence[Cell], written: Sequence[Cell]) -> None:
        """Make the table, and what fills it at each call."""
        count = len(self.graph.inputs)
        arguments = count - len(reads)
        #: The first place of each role among inputs, targets and outputs, side by side.
        self._firsts = {"input": 0, "cell": count, "output": count + targets}
        first = SIZES + len(self._sizes)
        spare = first + len(self._table)  # for a cell that is written but not looked at
        self._pointers = np.zeros(spare + 1, np.uint64)
        self._pointers[ARENA] = self._start
        self._address = address_of(self._pointers)
        #: Slots and places of all but the constants.
        self._given: list[tuple[int, int]] = []
        for slot, buffer in enumerate(self._table, first):
            if buffer.role == "constant":
                self._pointers[slot] = address_of(self.constants[buffer.number])
            else:
                self._given.append((slot, self._firsts[buffer.role] + buffer.number))
        slots = {place: slot for slot, place in self._given}
        items = [(slot, place) for slot, place in self._given if place < arguments]
        items += [
            (slot, place - self._firsts["output"] + arguments)
            for slot, place in self._given
            if place >= self._firsts["output"]
        ]
        cells = [
            (cell, slots[place], False)
            for place, cell in enumerate(reads, arguments)
            if place in slots
        ]
        cells += [
            (cell, slots.get(place, spare), True)
            for place, cell in enumerate(written, self._firsts["cell"])
        ]
        is_whole = not self._between and not self._debug
        self._fill = Pointing(self._pointers, items, cells) if is_whole else None

    def _plan(self) -> None:
        for steps in (self.steps[: self.kept], self.steps[self.kept :]):
            chain.find(steps, self.buffer_of)
        found = {id(b): b for b in self.buffers()}
        arena = [b for b in found.values() if b.role == "arena"]
        if self._debug:  # nothing shares memory, so that what lies between belongs to nobody
            for buffer in arena:
                buffer.first, buffer.last = 0, len(self.steps)
        self.arena_bytes = memory.plan(arena, gap=_GUARD if self._debug else 0)
        # The inputs and outputs of a loop's steps are parts of other buffers.
        own = {id(b) for step in self.steps for b in (*step.reads, *step.writes)}
        # What the steps of a repeat have of their own stands in a row.
        rows = {
            id(b): b
            for step in self.steps
            for row in (step.body.own if step.body is not None else ())
            for b in row
        }
        self._table = [*rows.values(), *(
            b for key, b in found.items()
            if key not in rows
            and (b.role == "constant" or (b.role != "arena" and key in own))
        )]  # fmt: skip
        self._segments: list[list[Step]] = [[]]
        #: What is run from Python between the segments.
        self._between: list[Step] = []
        for step in self.steps[self.kept :]:
            if step.kernel is None and step.body is None:
                self._between.append(step)
                self._segments.append([])
            else:
                self._segments[-1].append(step)
        for segment in (self.steps[: self.kept], *self._segments):
            _place_barriers(segment)
        self._is_empty = [not segment for segment in self._segments]
        self._is_serial = [all(step.is_serial for step in segment) for segment in self._segments]
        self._keeps_serially = all(step.is_serial for step in self.steps[: self.kept])
        self._errors = [check.error for check in self.checks]
        #: The first step that writes a cell waits until every check has been made.
        self._gated = next((step for step in self.steps if step.writes_cells), None)
        if self._gated is not None:
            self._gated.barrier = True
            later = self.steps[self.steps.index(self._gated) :]
            assert not any(isinstance(step.nest, Check) for step in later), "a check comes too late"

    def _text(self) -> str:
        first = SIZES + len(self._sizes)
        slots = {id(b): first + i for i, b in enumerate(self._table)}
        assembly = Assembly(slots, self._sizes, self.checks, self._gated)
        if self.kept:
            assembly.program("keep", self.steps[: self.kept])
        for number, segment in enumerate(self._segments):
            assembly.program(f"program{number}", segment, after=number > 0)
        self.kernel_count = assembly.kernel_count
        return assembly.text()

    def forget_plan(self) -> None:
        """Let go of the graph and the steps, which no call wants; `profile` may not follow.

        Where a part is run from Python, and in debugging, they are wanted, and stay.
        """
        if not (self._between or self._debug):
            assert self._fixed is not None  # is known from now on
            self.__dict__ = {name: x for name, x in vars(self).items() if name in _RUNNING}

    # Running

    def call(
        self, arguments: Sequence[Array], sizes: Mapping[str, int], state: int
    ) -> list[Array] | None:
        """Run once on the cells' own arrays.

        Args:
            arguments: the values of the inputs that are no cells, dense.
            sizes: the run-time sizes.
            state: of all cells that are watched; another one after each change.

        Returns:
            What `run` returns; None, and nothing done, where `run` is needed: somebody else holds
            the value of a cell that is to be written, or a part is run from Python.
        """
        if self._fill is None:
            return None
        shapes = self._shapes(sizes) if sizes else self._fixed
        outputs = [np.empty(shape, dtype) for shape, dtype in shapes]
        if not self._fill((*arguments, *outputs)):
            return None
        if sizes:
            for slot, name in enumerate(self._sizes, SIZES):
                self._pointers[slot] = sizes[name]
        threads = team.thread_count()
        if self._state != state and self.kept:
            self._run_kept(threads, state)
        self._run_segment(0, threads, sizes)
        return outputs

    def run(
        self,
        inputs: Sequence[Array],
        targets: Sequence[Array],
        sizes: Mapping[str, int] = MappingProxyType({}),
        state: int | None = None,
    ) -> list[Array]:
        """Run once.

        Args:
            inputs: the values of the graph's inputs, dense.
            targets: for each of `writes`, the array that takes the new value; where there is an old
                one, that input's array itself.
            sizes: the run-time sizes.
            state: as in `call`; None where the inputs may be anything.

        Returns:
            The other outputs.
        """
        if self._debug:
            return self._run_guarded(inputs, targets, sizes)
        outputs = [np.empty(shape, dtype) for shape, dtype in self._shapes(sizes)]
        self._execute(inputs, targets, outputs, sizes, state)
        return outputs

    def _shapes(self, sizes: Mapping[str, int]) -> list[tuple[Shape, DType]]:
        if not sizes:
            return self._fixed
        return [(shape_at(shape, sizes), dtype) for shape, dtype in self._fixed]

    @functools.cached_property
    def _fixed(self) -> list[tuple[Shape, DType]]:
        """The shapes of the results, at the greatest run-time sizes, and their dtypes."""
        found = [self.graph.outputs[number] for number in self.results]
        return [(x.shape, x.dtype) for x in found]

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
            for i, (shape, dtype) in enumerate(self._shapes(sizes))
        ]
        self._arena[:] = _PATTERN
        self._execute(copies, into, outputs, sizes)
        start = self._start - address_of(self._arena)
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
        self,
        inputs: Sequence[Array],
        targets: Sequence[Array],
        sizes: Mapping[str, int],
        state: int | None,
    ) -> Array:
        """Run once; the clock of `team` at the beginning of each step, and at the end."""
        outputs = [np.empty(shape, dtype) for shape, dtype in self._shapes(sizes)]
        notes = np.zeros(len(self.steps) + 1, np.int64)
        self._execute(inputs, targets, outputs, sizes, state, notes)
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
        state: int | None = None,
        notes: Array | None = None,
    ) -> None:
        flat = [*inputs, *targets, *outputs]
        table = self._pointers
        for slot, name in enumerate(self._sizes, SIZES):
            table[slot] = sizes[name]
        for slot, place in self._given:
            table[slot] = address_of(flat[place])
        threads = team.thread_count()
        table[PROFILE] = 0 if notes is None else address_of(notes)
        try:
            if self.kept and (state is None or self._state != state):
                self._run_kept(threads, state)
            for number, is_empty in enumerate(self._is_empty):
                if not is_empty:
                    self._run_segment(number, threads, sizes)
                if number < len(self._between):
                    self._run_from_python(self._between[number], flat, sizes)
                    if notes is not None:
                        notes[self._between[number].nest.position + 1] = team.clock()
        finally:
            table[PROFILE] = 0

    def _run_kept(self, threads: int, state: int | None) -> None:
        """Compute what later calls find computed, for as long as the cells' state is this."""
        self._state = None
        team.run(self._keep, self._address, 1 if self._keeps_serially else threads)
        self._state = state

    def _run_segment(self, number: int, threads: int, sizes: Mapping[str, int]) -> None:
        if self._is_serial[number]:
            threads = 1  # nobody else need be woken
        failure = team.run(self._functions[number], self._address, threads)
        if failure is not None:
            raise self._errors[failure.code](failure.value, sizes)

    def _run_from_python(self, step: Step, flat: Sequence[Array], sizes: Mapping[str, int]) -> None:
        nest = step.nest
        assert isinstance(nest, Single)
        shift = self._start - address_of(self._arena)

        def view(x: Tensor) -> Array:
            buffer = self.stored(x)
            shape = shape_at(x.shape, sizes)
            if buffer is None:  # nobody reads this output
                return np.empty(shape, x.dtype)
            if buffer.role == "constant":
                return self.constants[buffer.number]
            if buffer.role != "arena":
                return flat[self._firsts[buffer.role] + buffer.number]
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


def _place_barriers(steps: Sequence[Step]) -> None:
    """Let all threads meet before each step that may not begin before another has ended."""
    pending: list[Step] = []
    for chained in chains(steps):
        if any(_conflict(earlier, step) for earlier in pending for step in chained):
            chained[0].barrier = True
            pending = []
        pending += chained
        for step in chained:
            if step.body is not None:
                _place_barriers(step.body.lowering.steps)


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


class Scan:
    """A loop driven from Python, because a part of its step is: a sort, or an FFT."""

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
