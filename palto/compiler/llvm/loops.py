"""From a nest to the code of its loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from palto.compiler import index as ix
from palto.compiler import nests, winograd
from palto.compiler.index import Index, Variable
from palto.compiler.llvm import contract, tiling
from palto.compiler.llvm import winograd as llvm_winograd
from palto.compiler.llvm.builder import Function, Value
from palto.compiler.llvm.elementwise import LLVM_TYPES, Element
from palto.compiler.llvm.expressions import Expressions
from palto.compiler.llvm.reduction import Reduction
from palto.compiler.memory import Buffer
from palto.compiler.nests import Check, Group, Member, Nest, Product, Single
from palto.compiler.prepare import read_through
from palto.compiler.sizes import Size, is_surely_less
from palto.tensor import dtypes
from palto.tensor.graph import Operation
from palto.tensor.tensor import Shape, Tensor

#: Elements along the last axis in one piece of work.
_PIECE = 8192
#: Pieces of work that are enough to share out evenly.
_ENOUGH = 64
#: Vectors side by side, so that one sum need not wait for the other.
_UNROLL = 4
#: The places of a window that are written out one after the other.
_WINDOW = 9
#: A reduction that walks through memory once has so many bytes fetched ahead, beyond the page,
#: where processors' own prefetching ends; not of what the nearest cache holds.
_STREAMED, _BEYOND_NEAREST = 4096, 2**14
#: What a division of each lane's own index counts, in divisions of an index that lanes share.
_DIVIDED_LANES = 1000

#: Layers of one size share their plan.
_planned = functools.lru_cache(maxsize=1024)(tiling.plan)

Stored = Callable[[Tensor], Buffer | None]


@dataclass(slots=True)
class Kernel:
    """A nest as a function of its buffers and of the units to do.

    Attributes:
        text: the LLVM function, "@NAME" where its name goes.
        declarations: what the module must declare for it.
        arguments: LLVM type, name and (for pointers to one) buffer of each parameter.
        units: how many independent pieces of work there are.
        tile: how a contraction is cut, for a reader; empty for what is none.
    """

    text: str
    declarations: set[str]
    arguments: list[tuple[str, str, Buffer | None]]
    units: int
    tile: str = ""


class Emitter:
    """Writes one nest.

    Args:
        stored: the buffer of a tensor, if it has one.
        is_stored: whether a tensor is read, from a buffer or a register, and not computed again.
        written: the buffers that the nest writes.
        machine: what to write for.
    """

    def __init__(
        self,
        stored: Stored,
        is_stored: Callable[[Tensor], bool],
        written: set[Buffer],
        machine: tiling.Machine,
    ) -> None:
        self._stored, self._is_stored = stored, is_stored
        self.machine = machine
        self.f = Function("NAME", [("i64", "first"), ("i64", "last")])
        self.e = Expressions(self.f, stored, written)
        self.lanes = machine.vector_bytes // 4
        self.units = 1
        self.plan: tiling.Plan | None = None
        self._pending: list[tuple[Buffer, list[Index], Element]] = []

    def kernel(self, nest: Nest) -> Kernel:
        """The finished function."""
        if isinstance(nest, Group):
            self._product(nest, nest.product) if nest.product else self._group(nest)
        elif isinstance(nest, Check):
            self._check(nest)
        else:
            assert isinstance(nest, Single)
            {
                "reduce": self._reduce, "running": self._running, "scatter": self._scatter,
                "update": self._update, "winograd": self._winograd_gradient,
            }[nest.kind](nest)  # fmt: skip
        named = {name: buffer for buffer, name in self.e.buffers.items()}
        arguments = [(kind, name, named.get(name)) for kind, name in self.f.signature]
        tile = "" if self.plan is None else self.plan.describe()
        return Kernel(self.f.finish(), self.f.declarations, arguments, self.units, tile)

    # Loops

    def _nested(
        self,
        axes: Sequence[tuple[Variable, int]],
        carried: list[Value],
        body: Callable[[list[Value]], list[Value]],
    ) -> list[Value]:
        """Loops around `body`, which turns carried values into those of the next iteration."""
        if not axes:
            return body(carried)
        (variable, length), *rest = axes
        if length == 1:
            self.e.counters[variable.key] = self.f.constant(0, "i64")
            return self._nested(rest, carried, body)
        with self.f.loop(0, length, nonempty=True) as loop:
            self.e.counters[variable.key] = loop.counter
            phis = [loop.carry(x) for x in carried]
            for phi, value in zip(phis, self._nested(rest, phis, body), strict=True):
                loop.update(phi, value)
        return [loop.result(phi) for phi in phis]

    def _along(
        self,
        variable: Variable,
        start: Value | int,
        stop: Value | int,
        body: Callable[[int], None],
    ) -> None:
        """A loop of vectors along a variable, then one of single elements for the rest."""
        f, lanes = self.f, self._lanes_for(variable.length)
        start = f.constant(start, "i64") if isinstance(start, int) else start
        stop = f.constant(stop, "i64") if isinstance(stop, int) else stop
        span = f.binary("sub", stop, start)
        whole = f.binary("sub", span, f.binary("and", span, f.constant(lanes - 1, "i64")))
        middle = f.binary("add", start, whole)
        for width, low, high in ((lanes, start, middle), (1, middle, stop)):
            if width == 1 and (lanes == 1 or variable.length % lanes == 0):
                continue
            self._vector(variable, width, low, high, body)
        if lanes == 1:
            self._vector(variable, 1, start, stop, body)

    def _vector(
        self, variable: Variable, width: int, low: Value, high: Value, body: Callable[[int], None]
    ) -> None:
        if int(variable.length) < width:
            return
        with self.f.loop(low, high, width) as loop:
            self.e.counters[variable.key] = loop.counter
            self.e.vector, self.e.lanes = (variable, width) if width > 1 else (None, 1)
            body(width)
            self.e.vector, self.e.lanes = None, 1

    def _lanes_for(self, length: int) -> int:
        """As many lanes as the machine has, or as fit."""
        return min(self.lanes, 1 << (length.bit_length() - 1)) if length else 1

    # Groups

    def _merged(self, nest: Group) -> Group:
        """The same places with as few loops as address all memory without a division."""
        rows = nest.rows
        shape = nest.shape
        best = self._numbered(shape, rows)
        fewest = self._divisions(nest, best)
        axis = len(shape) - 2
        while axis >= 0:
            if rows is None or axis + 1 != rows:
                joined = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
                fewer = None if rows is None else rows - (axis + 1 < rows)
                candidate = self._numbered(joined, fewer)
                divisions = self._divisions(nest, candidate)
                if divisions <= fewest:
                    shape, rows, best, fewest = joined, fewer, candidate, divisions
            axis -= 1
        return best

    @staticmethod
    def _numbered(shape: Shape, rows: int | None) -> Group:
        return Group(shape, nests.variables("i", shape), rows)

    def _divisions(self, nest: Group, places: Group) -> int:
        """How many indices need a division when the nest runs over these places.

        One whose lanes differ counts more than any number of others.
        """
        place = places.place()
        row = place if places.rows is None else places.row()
        last = places.variables[-1].key if places.variables else ""
        count = 0

        def look(index: Index) -> None:
            nonlocal count
            keys = ix.divided(ix.without_assumptions(index))
            count += bool(keys) + _DIVIDED_LANES * (last in keys)

        for member in nest.members:
            walk = nests.Walk(self._is_stored)
            at = nests.source_indices(member, place, row)
            walk.visit(member.source, at, inside=member.source is member.tensor)
            for tensor, indices in walk.reads:
                buffer = self._stored(tensor)
                if buffer is not None and indices is not None:
                    look(buffer.place_of(indices))
            for index in walk.numbers:
                look(index)
            buffer = self._stored(member.tensor)
            if buffer is not None:
                look(buffer.place_of(nests.target_indices(member, place, row)))
        return count

    def _group(self, nest: Group) -> None:
        if 0 in nest.shape:
            self.units = 0
            return
        places = self._merged(nest)
        if nest.rows is None:
            self._map(nest, places)
        else:
            self._rows(nest, places)

    def _map(self, nest: Group, places: Group) -> None:
        f = self.f
        shape = places.shape or (1,)
        *lengths, last = shape
        taken = self._outer(lengths)
        outer = math.prod(lengths[:taken])
        is_cut = int(outer) < _ENOUGH and int(last) > 2 * _PIECE
        pieces = -(-last // _PIECE) if is_cut else 1
        whole = (outer, *lengths[taken:], last)
        variables = nests.variables("i", whole)
        place = ix.linear([ix.of(v) for v in variables], whole)
        self.units = outer * pieces
        with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
            unit = loop.counter
            start: Value | int = 0
            stop: Value | int = last
            if is_cut:
                piece = f.binary("urem", unit, f.constant(pieces, "i64"))
                unit = f.binary("udiv", unit, f.constant(pieces, "i64"))
                start = f.binary("mul", piece, f.constant(_PIECE, "i64"))
                end = f.binary("add", start, f.constant(_PIECE, "i64"))
                stop = f.intrinsic("llvm.smin", end, f.constant(last, "i64"))
            self.e.counters[variables[0].key] = unit

            def body(_: int) -> None:
                for member in nest.members:
                    self._member(member, place, place)
                self._flush()
                self.e.known.clear()

            def inside(carried: list[Value]) -> list[Value]:
                self._along(variables[-1], start, stop, body)
                return carried

            self._nested([(v, v.length) for v in variables[1:-1]], [], inside)

    @staticmethod
    def _outer(lengths: Sequence[int]) -> int:
        """How many axes, from the first, make enough pieces of work."""
        taken = 0
        while taken < len(lengths) and int(math.prod(lengths[:taken])) < _ENOUGH:
            taken += 1
        return taken

    def _member(self, member: Member, place: Index, row: Index) -> Element:
        """Compute a member's source here, and note it for those who read it at this place."""
        e, source = self.e, member.source
        at = nests.source_indices(member, place, row)
        if source is member.tensor:
            assert source.operation is not None
            element = e.compute(source.operation, at)
        else:
            element = e.read(source, at)
        if member.kind != "reduce":
            self._keep(member, element, place, row)
        return element

    def _keep(self, member: Member, element: Element, place: Index, row: Index) -> None:
        where = place if member.kind == "map" else row
        if member.source.size == member.tensor.size or member.kind == "reduce":  # no mere part
            self.e.known[id(member.tensor)] = where, element
        buffer = self._stored(member.tensor)
        if buffer is not None:
            self._pending.append((buffer, nests.target_indices(member, place, row), element))

    def _flush(self) -> None:
        """Store what was computed, after everything has been read."""
        for buffer, indices, element in self._pending:
            self.e.store(buffer, indices, element)
        self._pending = []

    def _rows(self, nest: Group, places: Group) -> None:
        """Row after row, each in as many passes as its reductions need."""
        f, e = self.f, self.e
        count, inner = places.row_count, places.shape[places.rows :] or (1,)
        variables = nests.variables("k", inner)
        row = Variable("row", count)
        at_row = ix.of(row)
        place = ix.total([(at_row, math.prod(inner)),
                          (ix.linear([ix.of(v) for v in variables], inner), 1)])  # fmt: skip
        # Neighbours on the last axis, if there are many: then parts of that axis are whole units.
        most = int(max(2048 // max(int(math.prod(inner)), 1), 1))
        length = nest.shape[nest.rows - 1] if nest.rows else 1
        fits = [n for n in range(1, most + 1) if isinstance(length, Size) or length % n == 0]
        together = fits[-1]
        self.units = -(-count // together)
        size = f.constant(together, "i64")
        start = f.binary("mul", f.parameters["first"], size)
        end = f.binary("mul", f.parameters["last"], size)
        stop = f.intrinsic("llvm.smin", end, f.constant(count, "i64"))
        with f.loop(start, stop) as loop:
            e.counters[row.key] = loop.counter
            for phase in range(max(m.phase for m in nest.members) + 1):
                members = [m for m in nest.members if m.phase == phase]
                self._pass([m for m in members if m.kind != "row"], variables, place, at_row)
                for member in members:
                    if member.kind == "row":
                        self._member(member, place, at_row)
                self._flush()
            e.known.clear()

    def _pass(
        self,
        members: list[Member],
        variables: tuple[Variable, ...],
        place: Index,
        row: Index,
    ) -> None:
        """One pass over a row: elements, and reductions over them."""
        reducers = [m for m in members if m.kind == "reduce"]
        if not members:
            return
        reductions = []
        for member in reducers:
            assert member.tensor.operation is not None
            reductions.append(Reduction(self.e, member.tensor.operation))

        def body(states: list[list[Value]]) -> list[list[Value]]:
            following = []
            for member in members:
                element = self._member(member, place, row)
                if member.kind == "reduce":
                    number = reducers.index(member)
                    following.append(reductions[number].add(states[number], [element], None))
            self._flush()
            for member in members:
                if member.kind == "map":
                    self.e.known.pop(id(member.tensor), None)
            return following

        states = self._reduced(variables, reductions, body)
        for member, reduction, state in zip(reducers, reductions, states, strict=True):
            self._keep(member, reduction.results(state)[0], place, row)

    def _reduced(
        self,
        variables: Sequence[Variable],
        reductions: Sequence[Reduction],
        body: Callable[[list[list[Value]]], list[list[Value]]],
    ) -> list[list[Value]]:
        """Loops over variables that carry the states of reductions, vectors along the last."""
        f, e = self.f, self.e
        *outer, last = variables
        lanes = self._lanes_for(last.length)
        whole = last.length // lanes * lanes
        spans = [(lanes, 0, whole)] if whole else []
        if whole != last.length:
            spans.append((1, whole, last.length))
        starts = [r.start(width) for width, _, _ in spans for r in reductions]
        counts = [len(state) for state in starts]

        def cut(flat: list[Value]) -> list[list[Value]]:
            places = iter(flat)
            return [[next(places) for _ in range(count)] for count in counts]

        def inside(flat: list[Value]) -> list[Value]:
            states, result = cut(flat), []
            for number, (width, low, high) in enumerate(spans):
                mine = states[number * len(reductions) : (number + 1) * len(reductions)]
                with f.loop(low, high, width, nonempty=True) as loop:
                    e.counters[last.key] = loop.counter
                    e.vector, e.lanes = (last, width) if width > 1 else (None, 1)
                    phis = [[loop.carry(x) for x in state] for state in mine]
                    for olds, news in zip(phis, body(phis), strict=True):
                        for phi, value in zip(olds, news, strict=True):
                            loop.update(phi, value)
                    e.vector, e.lanes = None, 1
                result += [loop.result(phi) for state in phis for phi in state]
            return result

        flat = self._nested(
            [(v, v.length) for v in outer], [x for state in starts for x in state], inside
        )
        states = cut(flat)
        final = []
        for number, reduction in enumerate(reductions):
            folded = reduction.fold(states[number])
            if len(spans) > 1:
                folded = reduction.merge(folded, states[len(reductions) + number])
            final.append(folded)
        return final

    # Products

    def _product(self, nest: Group, product: Product) -> None:
        """A contraction, whose finished sums go through the members while in registers."""
        if product.operation.primitive is winograd.winograd:
            self._winograd(nest, product)
            return
        f, e = self.f, self.e
        out = product.result
        kind = LLVM_TYPES[out.dtype]
        a, b = self._operand(product.a), self._operand(product.b)

        def step(place: Index, variable: Variable) -> int:
            return place.terms[variable.key][1] if variable.key in place.terms else 0

        def axes(variables: Sequence[Variable]) -> list[tuple[Variable, tiling.Axis]]:
            return [
                (v, tiling.Axis(v.length, step(a[1], v), step(b[1], v)))
                for v in variables
                if v.length > 1
            ]

        batch = axes(product.batch)
        # Rows whose b does not differ are rows all the same.
        shared = [item for item in batch if not item[1].b]
        batch = [item for item in batch if item[1].b]
        rows = sorted(axes(product.rows) + shared, key=lambda item: -abs(int(item[1].a)))
        summed = sorted(axes(product.summed), key=lambda item: -abs(int(item[1].a)))
        rows, values = _merge_rows(rows)
        spec = tiling.Contraction(
            kind,
            tuple(axis for _, axis in batch),
            tuple(axis for _, axis in rows),
            product.column.length,
            tuple(axis for _, axis in summed),
            wide_a=True,
            column_b=step(b[1], product.column) if product.column.length > 1 else 1,
            needless=_needless(product, rows, summed),
        )
        self.plan = plan = _planned(spec, self.machine)
        self.units = plan.units
        partial = None
        if plan.partial:
            partial = e.pointer(Buffer((plan.partial,), out.dtype, "arena"))
        place = ix.linear([ix.replace(i, values) for i in product.indices], out.shape)
        outer = [variable for variable, _ in (*batch, *rows)]

        def finish(batch_at: list[Value], rows_at: list[Value], column: Value, sums: Value) -> None:
            self._finished(nest, product, place, outer, [*batch_at, *rows_at], column, sums)

        far = self._far_from(nest, product, place)

        def expect(batch_at: list[Value], rows_at: list[Value], column: Value, count: int) -> None:
            self._expect(product, far, outer, [*batch_at, *rows_at], column, count)

        def load(operand: tuple[Buffer, Index], index: Value, lanes: int) -> Value:
            buffer, at = operand
            index = f.binary("add", index, f.constant(at.constant, "i64"))
            return f.load(e.pointer(buffer), index, kind, lanes)

        def prefetch(operand: tuple[Buffer, Index], index: Value, level: int = 1) -> None:
            buffer, at = operand
            index = f.binary("add", index, f.constant(at.constant, "i64"))
            f.prefetch(e.pointer(buffer), index, kind, level=level)

        contract.emit(
            f, plan, lambda i, lanes=1: load(a, i, lanes), lambda i, lanes: load(b, i, lanes),
            partial, f.parameters["first"], f.parameters["last"], finish,
            lambda i: prefetch(b, i), prefetch_a=lambda i, level: prefetch(a, i, level),
            expect=expect if far else None,
        )  # fmt: skip

    def _far_from(
        self, nest: Group, product: Product, place: Index
    ) -> list[tuple[Buffer, Index, bool]]:
        """What finished sums read and write beyond the first cache: where, and if it is written."""
        walk = nests.Walk(self._is_stored)
        targets = [(product.result, ix.along(place, product.result.shape))]
        for member in nest.members:
            at = nests.source_indices(member, place, place)
            walk.visit(member.source, at, inside=member.source is member.tensor)
            targets.append((member.tensor, nests.target_indices(member, place, place)))
        far: dict[Any, tuple[Buffer, Index, bool]] = {}
        reads = [(tensor, [*at]) for tensor, at in walk.reads if at is not None]
        for places, writes in ((targets, True), (reads, False)):
            for tensor, indices in places:
                buffer = self._stored(tensor)
                if buffer is not None and buffer.bytes > self.machine.l1:
                    there = ix.without_assumptions(buffer.place_of(indices))
                    far.setdefault((buffer, there.key), (buffer, there, writes))
        return list(far.values())

    def _count(
        self, product: Product, outer: Sequence[Variable], at: Sequence[Value], column: Value,
        lanes: int,
    ) -> None:  # fmt: skip
        """Set the counters to a vector of a product's columns."""
        e = self.e
        e.counters.update({v.key: value for v, value in zip(outer, at, strict=True)})
        e.counters[product.column.key] = column
        e.lanes = lanes
        e.vector = product.column if lanes > 1 else None

    def _expect(
        self, product: Product, far: Sequence[tuple[Buffer, Index, bool]],
        outer: Sequence[Variable], at: Sequence[Value], column: Value, count: int,
    ) -> None:  # fmt: skip
        """Fetch what so many finished sums will need, line by line of the cache."""
        f, e = self.f, self.e
        for start in range(0, count, 64 // product.result.dtype.itemsize):
            first = f.binary("add", column, f.constant(start, "i64"))
            self._count(product, outer, at, first, self.lanes)
            for buffer, there, writes in far:
                e.prefetch(buffer, there, write=writes)
        e.vector, e.lanes = None, 1

    def _finished(
        self, nest: Group, product: Product, place: Index, outer: Sequence[Variable],
        at: Sequence[Value], column: Value, sums: Value,
    ) -> None:  # fmt: skip
        """Take finished sums through the members of a nest, and store what is wanted."""
        e, out = self.e, product.result
        e.round += 1
        self._count(product, outer, at, column, sums.lanes)
        e.known[id(out)] = place, sums
        buffer = self._stored(out)
        if buffer is not None:
            self._pending.append((buffer, ix.along(place, out.shape), sums))
        for member in nest.members:
            self._member(member, place, place)
        self._flush()
        e.known.clear()
        e.vector, e.lanes = None, 1

    def _winograd(self, nest: Group, product: Product) -> None:
        f, e, out = self.f, self.e, product.result
        (x, at), (u, _) = self._operand(product.a), self._operand(product.b)
        outer = [*product.batch, *product.rows]
        group, *space = [at.terms[v.key][1] if v.key in at.terms else 0 for v in outer]
        layout = llvm_winograd.Layout(
            *_convolved(product.operation, out), product.batch[0].length,
            product.summed[0].length, product.column.length, product.b.tensor.shape[3],
            (space[0], space[1], space[2], group), at.constant, self.machine,
        )  # fmt: skip
        self.units, self.plan = layout.units, layout.plan
        scratch = e.pointer(Buffer((layout.units * layout.scratch,), out.dtype, "arena"))
        place = ix.linear(product.indices, out.shape)
        far = self._far_from(nest, product, place)
        llvm_winograd.emit(
            f, layout, self._source(x), self._source(u).load, scratch,
            lambda at, column, sums: self._finished(nest, product, place, outer, at, column, sums),
            lambda at, column, count: self._expect(product, far, outer, at, column, count),
        )  # fmt: skip

    def _winograd_gradient(self, nest: Single) -> None:
        f, e, operation = self.f, self.e, nest.operation
        out = operation.output()
        sources, places = [], []
        for tensor in operation.inputs:
            variables = nests.variables("m", tensor.shape)
            read = read_through(tensor, [ix.of(v) for v in variables], self._is_stored)
            buffer, at = self._operand(read)
            steps = [at.terms[v.key][1] if v.key in at.terms else 0 for v in variables]
            assert steps[3] == 1, "channels are neighbours"
            sources.append(self._source(buffer))
            places.append(((steps[0], steps[1], steps[2]), at.constant))
        g, groups = operation.inputs[1], operation.params["groups"]
        target = self._stored(out)
        assert target is not None
        layout = llvm_winograd.GradientLayout(
            *_convolved(operation, g), groups, out.shape[1], g.shape[3] // groups,
            places[0], places[1], self.machine,
        )  # fmt: skip
        self.units, self.plan = layout.units, layout.plan
        scratch = e.pointer(Buffer((layout.units * layout.scratch,), out.dtype, "arena"))
        llvm_winograd.emit_gradient(f, layout, sources[0], sources[1], e.pointer(target), scratch)

    def _source(self, buffer: Buffer) -> llvm_winograd.Source:
        f, pointer = self.f, self.e.pointer(buffer)
        return llvm_winograd.Source(
            lambda i, lanes: f.load(pointer, i, "float", lanes),
            lambda i: f.prefetch(pointer, i, "float"),
        )

    def _operand(self, read: nests.Read) -> tuple[Buffer, Index]:
        buffer = self._stored(read.tensor)
        assert buffer is not None
        return buffer, buffer.place_of(read.indices)

    # Operations in loops of their own

    def _reduce(self, nest: Single) -> None:
        operation, e, f = nest.operation, self.e, self.f
        out = operation.output()
        over_at = [ix.of(v) for v in nest.reduced]
        shape = self._undivided(operation, tuple(n for n in out.shape if n != 1) or (1,), over_at)
        over = tuple(v for v in nest.reduced if v.length != 1)
        if 0 in shape:
            self.units = 0
            return
        x, params = operation.inputs[0], operation.params
        axes = params.get("axes", (params.get("axis"),)) if operation.primitive.name in (
            nests.OVER_AXES) else ()  # fmt: skip
        inner = [axis for axis, n in enumerate(x.shape) if n != 1]
        lengthwise = bool(over) and (bool(inner and inner[-1] in axes) or shape == (1,))
        reduction = Reduction(e, operation)
        place_in = ix.linear(over_at, [v.length for v in nest.reduced])
        lanes = self._lanes_for(shape[-1])
        *lengths, last = shape
        unroll = min(_UNROLL, max(int(last) // lanes, 1))
        block = lanes * unroll
        if not lengthwise and int(last) <= block:
            e.ahead, e.ahead_from = _STREAMED, _BEYOND_NEAREST
        taken = len(lengths) if lengthwise else self._outer(lengths)
        variables = (
            Variable("unit", math.prod(lengths[:taken])),
            *nests.variables("j", lengths[taken:]),
            Variable("i", last),
        )
        place = ix.linear([ix.of(v) for v in variables], [v.length for v in variables])
        at = ix.along(place, out.shape)
        if operation.primitive.name == "window_put":
            place_in = nests.covering(operation, at, over_at)[1]
        empty = any(v.length == 0 for v in over)

        def term(state: list[Value]) -> list[Value]:
            e.round += 1
            reads = nests.terms(operation, at, over_at)
            if operation.primitive.name == "sum":
                return e.plus(state, reads[0].tensor, reads[0].indices)
            elements = [e.read_or(read, e.immediate(0, read.tensor.dtype)) for read in reads]
            return reduction.add(state, elements, (place_in, e.truth(reads[0].conditions)))

        def store(state: list[Value]) -> None:
            for output, element in zip(operation.outputs, reduction.results(state), strict=True):
                buffer = self._stored(output)
                if buffer is not None:
                    e.store(buffer, at, element)

        if lengthwise and not empty:
            self.units = variables[0].length * last
            with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
                length = f.constant(last, "i64")
                e.counters["unit"] = f.binary("udiv", loop.counter, length)
                e.counters["i"] = f.binary("urem", loop.counter, length)
                (state,) = self._reduced(over, [reduction], lambda states: [term(states[0])])
                store(state)
            return

        # Many short pieces of work would spend their time on finding out where they are.
        pieces = -(-last // block) if int(variables[0].length) < _ENOUGH else 1
        self.units = variables[0].length * pieces

        def side_by_side(first: Value, width: int, count: int) -> None:
            """The reductions of `count` vectors of neighbouring results."""
            e.vector, e.lanes = (variables[-1], width) if width > 1 else (None, 1)
            starts = [reduction.start(width) for _ in range(count)]
            size = len(starts[0])

            def select(number: int) -> None:
                e.counters["i"] = f.binary("add", first, f.constant(number * width, "i64"))

            def body(flat: list[Value]) -> list[Value]:
                result: list[Value] = []
                for number in range(count):
                    select(number)
                    result += term(flat[number * size : (number + 1) * size])
                return result

            flat = [x for state in starts for x in state]
            lengths = [int(v.length) for v in over]
            if math.prod(lengths) <= _WINDOW and not any(isinstance(v.length, Size) for v in over):
                # One after the other, so that what depends on the place alone is computed before.
                for place in itertools.product(*map(range, lengths)):
                    for v, number in zip(over, place, strict=True):
                        e.counters[v.key] = f.constant(number, "i64")
                    flat = body(flat)
            else:
                flat = self._nested([(v, v.length) for v in over], flat, body)
            for number in range(count):
                select(number)
                store(flat[number * size : (number + 1) * size])
            e.vector, e.lanes = None, 1

        def along(piece: Value | None) -> None:
            """All of the last axis, or one piece of it."""
            whole, rest = last - last % block, last - last % lanes
            spans = ((block, unroll, 0, whole), (lanes, 1, whole, rest), (1, 1, rest, last))
            for step, count, low, high in spans:
                if is_surely_less(high, low + 1):
                    continue
                start, stop = f.constant(low, "i64"), f.constant(high, "i64")
                if piece is not None:
                    end = f.binary("add", piece, f.constant(block, "i64"))
                    start = f.intrinsic("llvm.smax", start, piece)
                    stop = f.intrinsic("llvm.smin", stop, end)
                with f.loop(start, stop, step) as loop:
                    side_by_side(loop.counter, step // count, count)

        def inside(carried: list[Value]) -> list[Value]:
            along(None)
            return carried

        with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
            if pieces == 1:
                e.counters["unit"] = loop.counter
                self._nested([(v, v.length) for v in variables[1:-1]], [], inside)
            else:
                # Neighbouring pieces read the same elements, where windows overlap.
                count = f.constant(variables[0].length, "i64")
                e.counters["unit"] = f.binary("urem", loop.counter, count)
                piece = f.binary("udiv", loop.counter, count)
                along(f.binary("mul", piece, f.constant(block, "i64")))

    def _undivided(self, operation: Operation, shape: Shape, over_at: list[Index]) -> Shape:
        """The shape, its last axis cut where reading it divides, so that lanes are neighbours."""
        place = ix.linear([ix.of(v) for v in nests.variables("i", shape)], shape)
        at = ix.along(place, operation.output().shape)
        walk = nests.Walk(self._is_stored)
        for read in nests.terms(operation, at, over_at):
            walk.follow(read)
        *_, last = shape
        for _, indices in walk.reads:
            for index in indices or ():
                for variable, _ in index.terms.values():
                    d = variable.divisor
                    fits = type(last) is type(d) is int and self.lanes <= d < last
                    if variable.kind in ("quotient", "remainder") and fits and last % d == 0:
                        return (*shape[:-1], last // d, d)
        return shape

    def _running(self, nest: Single) -> None:
        """Running sums: along the axis one after the other, across it side by side."""
        operation, e, f = nest.operation, self.e, self.f
        x, axis = operation.inputs[0], operation.params["axis"]
        before, length = math.prod(x.shape[:axis]), x.shape[axis]
        after = math.prod(x.shape[axis + 1 :])
        buffer = self._stored(operation.output())
        if not x.size or buffer is None:
            self.units = 0
            return
        along, across = Variable("k", length), Variable("i", after)
        unit = Variable("unit", before)
        place = ix.linear([ix.of(unit), ix.of(along), ix.of(across)], (before, length, after))
        at = ix.along(place, x.shape)
        reduction = Reduction(e, operation)
        self.units = before
        with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
            e.counters["unit"] = loop.counter

            def body(width: int) -> None:
                def add(state: list[Value]) -> list[Value]:
                    e.round += 1
                    state = reduction.add(state, [e.read(x, at)], None)
                    e.store(buffer, at, reduction.results(state)[0])
                    return state

                self._nested([(along, length)], reduction.start(width), add)

            self._along(across, 0, after, body)

    def _scatter(self, nest: Single) -> None:
        """Zeros, then every update at its indices; threads divide the columns of the rows."""
        operation, e, f = nest.operation, self.e, self.f
        updates, *places = operation.inputs
        sizes, axis = operation.params["sizes"], operation.params["axis"]
        out = operation.output()
        buffer = self._stored(out)
        if not out.size or buffer is None:
            self.units = 0
            return
        before, size = math.prod(out.shape[:axis]), math.prod(sizes)
        rest = math.prod(out.shape[axis + len(sizes) :])
        count = places[0].size
        lanes = self._lanes_for(rest)
        block = max(lanes, -(-int(rest) // 16) // lanes * lanes)
        pieces = -(-rest // block)
        self.units = before * pieces
        unit, column = Variable("unit", before), Variable("i", rest)
        number, target = Variable("u", count), Variable("t", size)
        zero = e.immediate(0, out.dtype)
        chosen = ix.along(ix.of(number), places[0].shape)
        into = ix.linear(
            [nests.views.element(p, chosen, n) for p, n in zip(places, sizes, strict=True)], sizes
        )
        whole = (before, size, rest)
        source = ix.along(
            ix.linear([ix.of(unit), ix.of(number), ix.of(column)], (before, count, rest)),
            updates.shape,
        )
        with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
            e.counters["unit"] = f.binary("udiv", loop.counter, f.constant(pieces, "i64"))
            piece = f.binary("urem", loop.counter, f.constant(pieces, "i64"))
            start = f.binary("mul", piece, f.constant(block, "i64"))
            end = f.binary("add", start, f.constant(block, "i64"))
            stop = f.intrinsic("llvm.smin", end, f.constant(rest, "i64"))

            def clear(_: int) -> None:
                at = ix.linear([ix.of(unit), ix.of(target), ix.of(column)], whole)
                e.store(buffer, ix.along(at, out.shape), zero)

            def clear_row(carried: list[Value]) -> list[Value]:
                self._along(column, start, stop, clear)
                return carried

            def add(_: int) -> None:
                place = ix.linear([ix.of(unit), into, ix.of(column)], whole)
                at = ix.along(place, out.shape)
                update, old = e.read(updates, source), e.load(buffer, at)
                e.store(buffer, at, e.sum_of(old, update))

            def add_row(carried: list[Value]) -> list[Value]:
                self._along(column, start, stop, add)
                return carried

            self._nested([(target, size)], [], clear_row)
            if count:
                self._nested([(number, count)], [], add_row)

    def _update(self, nest: Single) -> None:
        """Write a box into the buffer that it belongs to; the rest stays as it is."""
        e, f = self.e, self.f
        _, update, starts = nest.operation.inputs
        out = nest.operation.output()
        buffer = self._stored(out)
        assert buffer is not None
        *lengths, last = update.shape or (1,)
        unit, inner = Variable("unit", math.prod(lengths)), Variable("i", last)
        self.units = unit.length if last else 0
        at = ix.along(ix.linear([ix.of(unit), ix.of(inner)], (unit.length, last)), update.shape)
        parts = zip(at, out.shape, update.shape, strict=True)
        target = [
            ix.total([(i, 1), (nests.views.start_of(starts, axis, n, size), 1)])
            for axis, (i, n, size) in enumerate(parts)
        ]
        with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
            e.counters["unit"] = loop.counter
            self._along(inner, 0, last, lambda _: e.store(buffer, target, e.read(update, at)))

    def _check(self, nest: Check) -> None:
        """Look at every element; record the first that may not be."""
        e, f, tensor = self.e, self.f, nest.tensor
        size = tensor.size if nest.place is None else 1
        if not size:
            self.units = 0
            return
        variable = Variable("i", size)
        place = ix.of(variable) if nest.place is None else Index(nest.place)
        shared, code = f.parameter("ptr", "sync"), f.parameter("i64", "code")
        with f.loop(0, size, nonempty=True) as loop:
            e.counters["i"] = loop.counter
            found = e.read(tensor, ix.along(place, tensor.shape))
            assert isinstance(found, Value)
            signed = tensor.dtype in dtypes.SIGNED
            if found.type in ("float", "double"):
                bad = f.compare("oeq", found, f.constant(0, found.type))
                wide = f.constant(0, "i64")
            else:
                wide = f.convert("sext" if signed else "zext", found, "i64")
                bad = f.constant(0, "i1")
                for predicate, bound in (("slt", nest.low), ("sge", nest.high)):
                    if bound is not None:
                        test = f.compare(predicate, wide, f.constant(bound, "i64"))
                        bad = f.binary("or", bad, test)
                if not nest.allows_zero:
                    bad = f.binary("or", bad, f.compare("eq", wide, f.constant(0, "i64")))
            with f.when(bad):
                f.line(
                    f"call void @palto_fail(ptr {shared.text}, i64 {code.text}, i64 {wide.text})"
                )


def _convolved(
    operation: Operation, results: Tensor
) -> tuple[int, tuple[int, int], tuple[int, int], int, tuple[int, int]]:
    """What a Winograd convolution's layout begins with: `llvm_winograd.Results`."""
    (n, *pixels, _), params = operation.inputs[0].shape, operation.params
    (top, _), (left, _) = params["padding"]
    size = results.shape[1], results.shape[2]
    return n, (pixels[0], pixels[1]), size, params["kernel"], (top, left)


def _needless(
    product: Product,
    rows: Sequence[tuple[Variable, tiling.Axis]],
    summed: Sequence[tuple[Variable, tiling.Axis]],
) -> tuple[tiling.Needless, ...]:
    """What a contraction with these axes can leave out."""
    if not rows or len(summed) > 1:
        return ()
    keys = rows[-1][0].key, product.column.key, summed[0][0].key if summed else ""
    found: list[tiling.Needless] = []
    for index in product.needless:
        signs = [index.terms[key][1] if key in index.terms else 0 for key in keys]
        if index.terms.keys() <= {*keys} and all(sign in (-1, 0, 1) for sign in signs):
            found.append(tiling.Needless(signs[0], signs[1], signs[2], index.constant))
    return tuple(found)


def _merge_rows(
    rows: list[tuple[Variable, tiling.Axis]],
) -> tuple[list[tuple[Variable, tiling.Axis]], dict[str, Index]]:
    """Neighbouring row axes with one step joined; and what the old variables are in the new."""
    groups: list[list[tuple[Variable, tiling.Axis]]] = []
    for item in rows:
        if groups and groups[-1][-1][1].a == item[1].a * item[1].length:
            groups[-1].append(item)
        else:
            groups.append([item])
    merged: list[tuple[Variable, tiling.Axis]] = []
    values: dict[str, Index] = {}
    for group in groups:
        if len(group) == 1:
            merged.append(group[0])
            continue
        shape = tuple(axis.length for _, axis in group)
        variable = Variable("+".join(v.key for v, _ in group), math.prod(shape))
        merged.append((variable, tiling.Axis(variable.length, group[-1][1].a)))
        parts = ix.along(ix.of(variable), shape)
        values.update({v.key: part for (v, _), part in zip(group, parts, strict=True)})
    return merged, values
