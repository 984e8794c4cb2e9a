"""Lowering: a graph as steps, each a nest with its code, and the buffers that they use."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from palto.compiler import index as ix
from palto.compiler import nests
from palto.compiler.checks import checks_of, condition_error
from palto.compiler.fuse import Fuser
from palto.compiler.kept import lasting_operations
from palto.compiler.likeness import Wanted, kernels
from palto.compiler.llvm import tiling
from palto.compiler.llvm.loops import Emitter, Kernel
from palto.compiler.memory import Buffer
from palto.compiler.nests import Check, Group, Member, Nest, Single
from palto.compiler.prepare import RULES
from palto.compiler.rolling import checks_before, rolled
from palto.compiler.simplify import simplify
from palto.tensor.graph import Array, Graph, Operation
from palto.tensor.primitives import control, elementwise
from palto.tensor.tensor import Tensor

#: A step of fewer simple operations than this is left to one thread.
SMALL = 2**14
#: Added to a loop's position: later than every step of its body, before the next step.
_ALMOST = 1 - 2.0**-20


@dataclass(slots=True)
class Step:
    """A nest in the program.

    Attributes:
        nest: what it computes.
        kernel: its code; None for a loop, and for what is run from Python.
        reads, writes: the buffers it uses.
        work: about how many simple operations it takes.
        barrier: whether all threads meet before it.
        writes_cells: whether it changes what lives on after the call.
        body: the steps that a loop repeats, where they are part of the program.
        parts: into how many parts the chain is divided that the step belongs to.
        follows: whether each of its parts comes after the same part of the step before.
        passing: buffers that nobody reads but the chain, in the part that writes them.
    """

    nest: Nest
    kernel: Kernel | None
    reads: list[Buffer]
    writes: list[Buffer]
    work: int
    barrier: bool = False
    writes_cells: bool = False
    body: Body | None = None
    parts: int = 1
    follows: bool = False
    passing: list[Buffer] = field(default_factory=list)

    @property
    def is_serial(self) -> bool:
        """Whether one thread does all of it."""
        if self.body is not None:
            return all(step.is_serial for step in self.body.lowering.steps)
        return self.kernel is None or int(self.kernel.units) < 2 or self.work < SMALL


def chains(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps, with those together that run part by part."""
    result: list[list[Step]] = []
    for step in steps:
        if step.follows:
            result[-1].append(step)
        else:
            result.append([step])
    return result


class Lowering:
    """A graph as steps, and the buffers that they use.

    Args:
        graph: what to compute.
        writes: for each output that a cell takes, its number and the number of the input that is
            the cell's old value, or None.
        conditions: the numbers of outputs that must be true before a cell is written, with what
            is said otherwise.
        constants: the arrays that stand in the program, to which this one's are added.
        lasting: the numbers of inputs that are cells which the program does not write.
        rolls: whether repeats may stay loops.
        is_checked: whether what it demands of values is checked outside, before a loop.

    Attributes:
        graph: the graph, prepared.
        checks: all that is checked, also inside loops.
        steps: the steps, in order.
        kept: how many of them, the first, calls skip that know their results.
    """

    def __init__(
        self,
        graph: Graph,
        writes: dict[int, int | None],
        conditions: dict[int, str],
        constants: list[Array],
        lasting: Sequence[int] = (),
        *,
        rolls: bool = False,
        is_checked: bool = False,
    ) -> None:
        stay = rolled(graph, writes) if rolls else {}
        self.graph = simplify(graph, inline=True, rules=RULES, copy_outputs=True, rolled=stay)
        self.checks = [] if is_checked else [*checks_of(self.graph), *checks_before(self.graph)]
        self.checks += [
            Check(self.graph.outputs[number], None, None, False,
                  functools.partial(condition_error, message))
            for number, message in conditions.items()
        ]  # fmt: skip
        late = {id(self.graph.outputs[number]) for number in writes}
        # A scan may find an index out of range, too.
        early = [o.output() for o in self.graph.operations if o.primitive.name == "scan"]
        updates = _updates(self.graph, writes)
        elsewhere = [*self.graph.outputs, *early, *(check.tensor for check in self.checks)]
        kept = lasting_operations(self.graph, lasting, elsewhere) if lasting else set()
        new_values = [new for new, _ in updates]
        self._fuser = Fuser(self.graph, self.checks, early, late, new_values, kept)
        if any(_is_read_after(self._fuser, new, old) for new, old in updates):
            if stay:  # a loop cannot wait with what it writes
                Lowering.__init__(self, graph, writes, conditions, constants, lasting)
                return
            updates = []
            self._fuser = Fuser(self.graph, self.checks, early, late, kept=kept)
        self._copies: list[Tensor] = []
        self._buffers: dict[int, Buffer] = {}
        self.constants = constants
        self._place_inputs()
        self._place_outputs(writes, [new for new, _ in updates])
        self._place_arena()
        self._share_rows()
        found = iter(kernels(
            [Wanted(nest, self._written(nest)) for nest in self._fuser.nests if _is_native(nest)],
            self.stored, self._fuser.is_stored, self._write,
        ))  # fmt: skip
        self.steps = [
            self._step(nest, next(found) if _is_native(nest) else None)
            for nest in self._fuser.nests
        ]
        self.kept = self._fuser.kept
        for step in self.steps[: self.kept]:
            for buffer in step.writes:
                if buffer.last >= self.kept:  # nothing else ever lies there
                    buffer.last = len(self.steps)

    # Buffers

    def _place_inputs(self) -> None:
        for number, x in enumerate(self.graph.inputs):
            self._buffers.setdefault(id(x), Buffer(x.shape, x.dtype, "input", number))

    def _place_outputs(self, writes: dict[int, int | None], updated: list[Tensor]) -> None:
        #: The numbers of the graph's outputs that no cell takes.
        self.results: list[int] = []
        for number, x in enumerate(self.graph.outputs):
            if number not in writes:
                self._buffers[id(x)] = Buffer(x.shape, x.dtype, "output", len(self.results))
                self.results.append(number)
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

    def _share_rows(self) -> None:
        """Let what passes over rows have read use the memory of a result.

        The result is first written in the pass that reads last what lay there, or in a later one.
        """
        readers: dict[int, set[int]] = {}
        for nest in self._fuser.nests:
            for x, _ in nest.reads:
                readers.setdefault(id(x), set()).add(nest.position)
        for nest in self._fuser.nests:
            if not isinstance(nest, Group) or nest.rows is None:
                continue
            begins: dict[int, int] = {}  # by buffer, the pass that first writes what is shared
            own = [(m.tensor, m.phase) for m in nest.members if m.kind == "map"]
            for x, phase in [*own, *((x, -1) for x in self._read_in_place(nest))]:
                buffer = self._buffers.get(id(x))
                if buffer is None or buffer.role != "arena" or readers[id(x)] != {nest.position}:
                    continue
                last = max(m.phase for m in nest.members if self._reads(m, x))
                for other in nest.members:
                    home = self._buffers.get(id(other.tensor))
                    if (
                        home is not None
                        and home is not buffer
                        and home.role in ("arena", "output")
                        and other.kind == "map"
                        and other.source is other.tensor
                        # The home is first written in a pass no earlier than the last that reads x.
                        and begins.get(id(home), other.phase) >= last > phase
                        and other.tensor.shape == x.shape
                        and other.tensor.dtype == x.dtype
                    ):
                        # Each element is read before the result's is written in its place.
                        shared = [key for key, b in self._buffers.items() if b is buffer]
                        self._buffers |= dict.fromkeys(shared, home)
                        # What x shares its own memory with may have been written before it.
                        begins[id(home)] = begins.get(id(buffer), phase)
                        break

    def _read_in_place(self, nest: Group) -> list[Tensor]:
        """What earlier nests computed, and this one reads only at the place that it is at."""
        found: dict[int, Tensor] = {}
        elsewhere: set[int] = set()
        for x, indices in nest.reads:
            home = self._fuser.home.get(id(x))
            if indices is None or ix.linear(indices, x.shape) != nest.place():
                elsewhere.add(id(x))
            elif home is None or home is nest:
                continue
            elif not home.position < self._fuser.kept <= nest.position:  # calls keep such ones
                found[id(x)] = x
        return [x for key, x in found.items() if key not in elsewhere]

    def _reads(self, member: Member, x: Tensor) -> bool:
        """Whether a member of a group reads a tensor."""
        walk = nests.Walk(self._fuser.is_stored)
        at = [ix.of(v) for v in nests.variables("w", member.source.shape)]
        walk.visit(member.source, at, inside=member.source is member.tensor)
        return any(tensor is x for tensor, _ in walk.reads)

    def _is_read_later(self, nest: Nest, x: Tensor) -> bool:
        """Whether a later pass of a group reads what an earlier one computes for each place."""
        if not isinstance(nest, Group):
            return False
        mine = next((m for m in nest.members if m.tensor is x), None)
        if mine is None or mine.kind != "map":
            return False
        return any(m.phase > mine.phase and self._reads(m, x) for m in nest.members)

    def is_stored(self, x: Tensor) -> bool:
        """Whether steps read a tensor, and do not compute it on their way."""
        return self._fuser.is_stored(x)

    def buffer_of(self, x: Tensor) -> Buffer | None:
        """The memory of a tensor, if it has any."""
        return self._buffers.get(id(x))

    def stored(self, x: Tensor) -> Buffer | None:
        """The memory of a tensor or constant that a step reads or writes."""
        buffer = self._buffers.get(id(x))
        if buffer is None and x._value is not None:
            buffer = Buffer(x.shape, x.dtype, "constant", len(self.constants))
            self.constants.append(np.ascontiguousarray(x.array()))
            self._buffers[id(x)] = buffer
        return buffer

    # Steps

    def _written(self, nest: Nest) -> list[Buffer]:
        """The buffers that a nest writes."""
        if not isinstance(nest, Group):
            return [b for x in nest.outputs if (b := self._buffers.get(id(x))) is not None]
        written = [b for m in nest.members if (b := self._buffers.get(id(m.tensor)))]
        if nest.product is not None:
            own = self._buffers.get(id(nest.product.result))
            written += [own] if own is not None else []
        return written

    def _write(self, wanted: Wanted) -> Kernel:
        machine = tiling.Machine.host()
        emitter = Emitter(self.stored, self._fuser.is_stored, set(wanted.written), machine)
        return emitter.kernel(wanted.nest)

    def _step(self, nest: Nest, kernel: Kernel | None) -> Step:
        writes = self._written(nest)
        reads = [b for x, _ in nest.reads if (b := self.stored(x)) is not None]
        if kernel is not None:
            known = {*reads, *writes}
            scratch = [b for _, _, b in kernel.arguments if b is not None and b not in known]
            reads += [b for b in scratch if b.role != "arena"]
            writes += [b for b in scratch if b.role == "arena"]
        body, inner = None, dict[int, Buffer]()
        end: float = nest.position
        if isinstance(nest, Single) and nest.kind in nests.LOOPS:
            body = Body.of(nest.operation, self.stored, self.constants)
        if body is not None:
            self.checks += body.lowering.checks
            end = nest.position + _ALMOST
            inner = body.adopt(nest.position)
            writes += [*inner.values(), *body.places(), *body.updated]
        for buffer in (*reads, *writes):
            if id(buffer) not in inner:
                buffer.used(nest.position)
                buffer.used(end)
        step = Step(nest, kernel, reads, writes, _work(nest, self.is_stored), body=body)
        step.writes_cells = any(b.role in ("cell", "input") for b in writes)
        return step

    @property
    def is_native(self) -> bool:
        """Whether nothing is run from Python."""
        return all(step.kernel is not None or step.body is not None for step in self.steps)

    def buffers(self) -> Iterator[Buffer]:
        """All buffers that steps use, also inside loops; perhaps more than once."""
        for step in self.steps:
            yield from (*step.reads, *step.writes)
            if step.body is not None:
                yield from step.body.lowering.buffers()


@dataclass(slots=True)
class Body:
    """What a scan or a repeat does again and again, as part of the program around it.

    Attributes:
        lowering: one step of the loop.
        operation: the loop.
        sequences: how many inputs are cut into steps.
        inputs: its inputs: what is carried, the sequences, then what stays the same.
        outputs: its outputs: what is carried, then what is stacked; where nobody reads one,
            a place for one element of it.
        spare: for each carried value, two places for what it becomes.
        own: each input that a step of a repeat has of its own: those of all steps.
        updated: those of `own` that the steps write into.
    """

    lowering: Lowering
    operation: Operation
    sequences: int
    inputs: list[Buffer]
    outputs: list[Buffer]
    spare: list[tuple[Buffer, Buffer]]
    own: list[list[Buffer]]
    updated: list[Buffer]

    @staticmethod
    def of(
        operation: Operation, stored: Callable[[Tensor], Buffer | None], constants: list[Array]
    ) -> Body | None:
        """The body of a loop; None if a part of it is run from Python."""
        params, count = operation.params, len(constants)
        carries, updates = params["carries"], params.get("updates", ())
        inputs, times = operation.inputs, list[Sequence[Tensor]]()
        if is_repeat := operation.primitive.name == "repeat":
            carry, same, times = control.divided(inputs, **params)
            inputs = (*carry, *same)
        writes: dict[int, int | None] = {
            carries + i: len(inputs) + number for i, number in enumerate(updates)
        }
        lowering = Lowering(params["body"], writes, {}, constants, is_checked=is_repeat)
        if not lowering.is_native:
            del constants[count:]
            return None
        results = lowering.graph.outputs

        def found(x: Tensor) -> Buffer:
            buffer = stored(x)
            assert buffer is not None
            return buffer

        own = [list(map(found, row)) for row in zip(*times, strict=True)]
        outputs = [
            stored(x) or Buffer(one.shape, one.dtype, "arena")
            for x, one in zip(
                operation.outputs, results[: len(results) - len(updates)], strict=False
            )
        ]
        spare = [
            (Buffer(x.shape, x.dtype, "arena"), Buffer(x.shape, x.dtype, "arena"))
            for x in results[:carries]
        ]
        return Body(
            lowering, operation, params.get("sequences", 0), [found(x) for x in inputs], outputs,
            spare, own, [b for number in updates for b in own[number]],
        )  # fmt: skip

    def adopt(self, position: int) -> dict[int, Buffer]:
        """The memory that each step needs anew, where the loop is one step of the program."""
        span = len(self.lowering.steps) + 1
        inner = {id(b): b for b in self.lowering.buffers() if b.role == "arena"}
        for buffer in inner.values():
            buffer.first = position + buffer.first / span
            buffer.last = position + buffer.last / span
        return inner

    def places(self) -> list[Buffer]:
        """The memory that the loop needs from its first step to its last."""
        return [*(b for pair in self.spare for b in pair),
                *(b for b in self.outputs if b.role == "arena")]  # fmt: skip


def _updates(graph: Graph, writes: dict[int, int | None]) -> list[tuple[Tensor, Tensor]]:
    """What is written into a cell's old value and becomes the cell's new value: (new, old)."""
    found = []
    for number, source in writes.items():
        copy = graph.outputs[number]
        assert copy.operation is not None
        new = copy.operation.inputs[0]
        operation = new.operation if new._value is None else None
        if source is None or operation is None or not new.size:
            continue
        old, name = graph.inputs[source], operation.primitive.name
        if name == "repeat" or (name == "dynamic_update_slice" and operation.inputs[0] is old):
            found.append((new, old))
    return found


def _is_read_after(fuser: Fuser, new: Tensor, old: Tensor) -> bool:
    """Whether a nest needs a cell's old value when it has been overwritten."""
    home = fuser.home[id(new)]
    is_loop = isinstance(home, Single) and home.kind == "repeat"  # which updates all of it itself
    return home.early or any(
        tensor is old and nest.position >= home.position + is_loop
        for nest in fuser.nests
        for tensor, _ in nest.reads
    )


def _is_native(nest: Nest) -> bool:
    """Whether a nest is a kernel, and no loop around others, and not run from Python."""
    return not (isinstance(nest, Single) and nest.kind in ("library", *nests.LOOPS))


def _work(nest: Nest, is_stored: Callable[[Tensor], bool]) -> int:
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
        return int(places) * max(_inner(x, is_stored) for x in operation.inputs)
    return max(int(x.size) for x in (*operation.inputs, operation.output()))


def _inner(x: Tensor, is_stored: Callable[[Tensor], bool]) -> int:
    """How many elements the sums inside the expression of an element are of."""
    found: dict[int, int] = {}

    def visit(x: Tensor) -> int:
        operation = x.operation
        if is_stored(x) or operation is None:
            return 1
        if id(x) not in found:
            found[id(x)] = max((visit(y) for y in operation.inputs), default=1)
            if operation.primitive.name == "sum":
                found[id(x)] *= int(math.prod(nests.reduced_shape(operation)))
        return found[id(x)]

    return visit(x)
