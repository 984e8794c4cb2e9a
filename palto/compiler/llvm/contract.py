"""The code of a contraction: loops around one register tile, and the copies that they read.

See palto.compiler.llvm.tiling for what is computed, and for how it is cut.

`emit` writes the loops over some units. A tile keeps its sums in registers while it walks the
summed axes, reads one element of `a` a row and multiplies it with the vectors of `b`. Between
blocks, unfinished sums lie in a buffer, beside the copies of a and b that the plan wants. Finished
sums are handed over to the caller, a vector at a time.

A matrix times a vector, whose summed elements are neighbours in both, is read as it lies: vectors
run along the summed axis, and each row's are added up at the end.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from palto.compiler.llvm.builder import Function, Value, size_of
from palto.compiler.llvm.tiling import LENGTHWISE, Axis, Plan, Span, vector_lanes
from palto.compiler.sizes import Size

#: How many lines ahead a's rows are fetched.
LINES_AHEAD = 2
#: Fewer rows of a tile reach their next lines without that.
FEW_ROWS = 12
#: The fewest summed elements for each row of a tile, so that what its results need is fetched by
#: and by while they are summed.
PART = 3

#: One element of a at an offset; with `wide_a` also neighbours, given how many.
LoadA = Callable[..., Value]
LoadB = Callable[[Value, int], Value]
Finish = Callable[[list[Value], list[Value], Value, Value], None]
Expect = Callable[[list[Value], list[Value], Value, int], None]


def emit(
    f: Function,
    plan: Plan,
    load_a: LoadA,
    load_b: LoadB,
    partial: Value | None,
    first: Value,
    last: Value,
    finish: Finish,
    prefetch_b: Callable[[Value], None] | None = None,
    *,
    prefetch_a: Callable[[Value, int], None] | None = None,
    expect: Expect | None = None,
    private: bool = False,
) -> None:
    """Write the loops over some units.

    Args:
        f: where to write.
        plan: how the contraction is cut.
        load_a: gives one element of a, at an i64 offset in elements.
        load_b: gives so many neighbouring elements of b from an offset on.
        partial: a buffer of `plan.partial` elements, where that is not 0.
        first: the first unit, an i64.
        last: the unit to stop before.
        finish: takes a vector of finished sums: the index along each batch axis and each row
            axis, the column of its first lane, and the sums.
        prefetch_b: starts to fetch what `load_b` will read; 1-5 % for a b that the caches do not
            hold. The offset may lie beyond b.
        prefetch_a: likewise for a, into the first or second cache.
        expect: is told while a tile is summed, of each row of the next one, the indices, the first
            column and how many columns will be finished, so that it can fetch what that needs. The
            row may lie beyond the last.
        private: whether no other thread uses the buffer; then `plan.share` elements are enough.
    """
    if plan.units:
        with f.loop(first, last) as loop:
            # One call needs one unit's share, which no other call touches: that of its first.
            region = f.binary("mul", first, f.constant(0 if private else plan.share, "i64"))
            emitter = _Emitter(
                f, plan, load_a, load_b, partial, region, finish, prefetch_b, prefetch_a,
                expect,
            )  # fmt: skip
            emitter.unit(loop.counter)


Bounds = tuple[Value | int, Value | int]
#: Where a walk over a block begins, and how far it steps along each summed axis.
Stream = tuple[Value, Sequence[int]]
Grid = list[list[Value]]
Body = Callable[[list[Value], list[Value]], list[Value]]


@dataclass(slots=True)
class _Emitter:
    """Writes a unit: blocks of the summed axes, panels, lines and tiles, from outside in."""

    f: Function
    plan: Plan
    load_a: LoadA
    load_b: LoadB
    partial: Value | None
    region: Value
    finish: Finish
    prefetch_b: Callable[[Value], None] | None
    prefetch_a: Callable[[Value, int], None] | None
    expect: Expect | None

    def unit(self, number: Value) -> None:
        """The loops of one unit."""
        p, x = self.plan, self.plan.contraction
        cuts = (p.line_blocks, p.tile_blocks, p.panel_blocks)
        turn = 2 if p.panels_stay else 0
        *batch, one, two, three = self.indices(
            number, [*(axis.length for axis in x.batch), *cuts[turn:], *cuts[:turn]]
        )
        line_block, tile_block, panel_block = (two, three, one) if turn else (one, two, three)
        lines = self.part(line_block, p.lines, p.line_blocks)
        tiles = self.part(tile_block, p.tile_count, p.tile_blocks)
        panels = self.part(panel_block, p.panel_count, p.panel_blocks)
        with self.unless_empty(lines, tiles, panels):
            self.blocks(self.offsets(x.batch, batch), batch, lines, tiles, panels)

    @contextmanager
    def unless_empty(self, *parts: Bounds) -> Iterator[None]:
        """Skip a unit that smaller run-time sizes than the greatest leave without work."""
        tests = [
            self.f.compare("slt", self.constant(start), self.constant(stop))
            for start, stop in parts
            if not (isinstance(start, int) and isinstance(stop, int))
        ]
        if self.plan.is_fixed or not tests:
            yield
            return
        with self.f.when(functools.reduce(functools.partial(self.f.binary, "and"), tests)):
            yield

    def blocks(
        self,
        base: tuple[Value, Value],
        batch: list[Value],
        lines: Bounds,
        tiles: Bounds,
        panels: Bounds,
    ) -> None:
        """The blocks of the summed axes, for some lines, tiles and panels."""
        p, x = self.plan, self.plan.contraction
        firsts = (panels[0], lines[0], tiles[0])
        with self.loop(0, p.blocks) as block:
            cut_axes, axes = x.summed[: p.cut], x.summed[p.cut :]
            *outer, cut = self.indices(block, [*(axis.length for axis in cut_axes), p.cuts])
            walked = self.part(cut, axes[0].length if axes else 1, p.cuts)
            block_a, block_b = self.offsets(cut_axes, outer, base)
            strides_a, strides_b = [axis.a for axis in axes], [axis.b for axis in axes]

            def a_of(line: Value, tile: Span, number: Value, row: Value) -> tuple[Stream, Stream]:
                """A tile's rows of a, where they are and where they are copied to."""
                start, _ = self.offsets(x.rows, self.row_indices(line, row), (block_a, block_b))
                slot = self.number((line, number), firsts[1:], p.unit_shape[1:])
                place = self.times(slot, p.tile_copy)
                return (start, strides_a), self.copied(tile.size, self.add(place, p.kept), walked)

            if p.packs_a:
                for line, tile in self.each_span(lines):
                    self.copy_a(tile, tiles, lambda *at, line=line: a_of(line, *at), walked)
            for panel in p.panels:
                with self.tile_loop(panel, panels) as (panel_number, column):
                    b: Stream = self.add(block_b, self.times(column, x.column_b)), strides_b
                    if p.packs_b:
                        place = self.constant(p.kept + p.copied_a)
                        copied = self.copied(panel.size, place, walked)
                        self.copy_b(panel, b, copied, walked)
                        b = copied
                    for line, tile, number, row in self.each_tile(lines, tiles):
                        a = a_of(line, tile, number, row)[p.packs_a]
                        rows = self.row_indices(line, row)
                        ahead = None
                        if self.expect and not p.lengthwise:
                            ahead = functools.partial(
                                self.fetch, block, batch, tile, rows, column, panel
                            )
                        needed = self.needed(tile, row, panel, column, walked)
                        sums = self.sums(tile, panel, a, b, needed, ahead)
                        slot = self.number((panel_number, line, number), firsts, p.unit_shape)
                        sums = self.unfinished(block, slot, sums)
                        with self.in_last(block):
                            self.hand_over(batch, rows, column, panel, sums)

    def fetch(
        self, block: Value, batch: list[Value], tile: Span, rows: list[Value], column: Value,
        panel: Span, which: Value,
    ) -> None:  # fmt: skip
        """Fetch what the finished sums of one of the next tile's rows will need."""
        assert self.expect is not None
        with self.in_last(block):
            self.expect(batch, self.row_at(rows, self.add(which, tile.size)), column, panel.size)

    def needed(self, tile: Span, row: Value, panel: Span, column: Value, walked: Bounds) -> Bounds:
        """What must be walked along the summed axis, of a block, for any element of a tile."""
        f = self.f
        start, stop = map(self.constant, walked)
        for x in self.plan.contraction.needless:
            least = self.constant(x.constant)
            for sign, first, size in ((x.row, row, tile.size), (x.column, column, panel.size)):
                end = first if sign > 0 else self.add(first, size - 1)
                least = self.add(least, self.times(end, sign)) if sign else least
            if x.summed > 0:
                end = f.binary("sub", self.constant(1), least)
                stop = f.intrinsic("llvm.smin", stop, end)
            elif x.summed < 0:
                start = f.intrinsic("llvm.smax", start, least)
            else:
                is_needless = f.compare("sgt", least, self.constant(0))
                stop = f.select(is_needless, start, stop)
        is_all = not self.plan.contraction.needless
        return walked if is_all else (start, f.intrinsic("llvm.smax", start, stop))

    @property
    def buffer(self) -> Value:
        """Where unfinished sums and copies of b are kept."""
        assert self.partial is not None, "the plan needs a buffer for unfinished sums"
        return self.partial

    # Indices

    def constant(self, x: int | Value) -> Value:
        return self.f.constant(x, "i64") if isinstance(x, int) else x

    def add(self, x: Value, y: int | Value) -> Value:
        return self.f.binary("add", x, self.constant(y))

    def times(self, x: Value, y: int) -> Value:
        return self.f.binary("mul", x, self.constant(y))

    def over(self, x: Value, y: int) -> Value:
        return x if y == 1 else self.f.binary("udiv", x, self.constant(y))

    def indices(self, number: Value, lengths: Sequence[int]) -> list[Value]:
        """The index along each axis of the number of an element."""
        result: list[Value] = []
        for length in reversed(lengths[1:]):
            quotient = self.over(number, length)
            rest = self.f.binary("sub", number, self.times(quotient, length))
            result.append(self.constant(0) if length == 1 else rest)
            number = quotient
        return [number, *reversed(result)] if lengths else []

    def offsets(
        self,
        axes: Sequence[Axis],
        indices: Sequence[Value],
        base: tuple[Value, Value] | None = None,
    ) -> tuple[Value, Value]:
        """How far into a and b some indices are."""
        a, b = base or (self.constant(0), self.constant(0))
        for axis, index in zip(axes, indices, strict=True):
            a = self.add(a, self.times(index, axis.a))
            b = self.add(b, self.times(index, axis.b))
        return a, b

    def part(self, number: Value, length: int, parts: int) -> Bounds:
        """Where one of so many parts of a length begins and ends."""
        if parts == 1:
            return 0, length
        ends = (number, self.add(number, 1))
        start, stop = (self.over(self.times(end, length), parts) for end in ends)
        return start, stop

    @contextmanager
    def loop(
        self, start: Value | int, stop: Value | int, *, nonempty: bool = True
    ) -> Iterator[Value]:
        """A loop, or none where there is one index."""
        if start == 0 and stop == 1:
            yield self.constant(0)
            return
        with self.f.loop(start, stop, nonempty=nonempty) as loop:
            yield loop.counter

    @contextmanager
    def tile_loop(self, span: Span, bounds: Bounds) -> Iterator[tuple[Value, Value]]:
        """A loop over a span's tiles inside some bounds: a tile's number and first element."""
        start, stop = bounds
        end = span.first + span.count
        if isinstance(start, int) and isinstance(stop, int):
            if span.count == 1:
                yield self.constant(span.first), self.constant(span.start)
                return
            start, stop = span.first, end
        else:
            start = self.f.intrinsic("llvm.smax", self.constant(start), self.constant(span.first))
            stop = self.f.intrinsic("llvm.smin", self.constant(stop), self.constant(end))
        with self.f.loop(start, stop) as loop:
            shift = span.start - span.first * span.size
            yield loop.counter, self.add(self.times(loop.counter, span.size), shift)

    def each_tile(self, lines: Bounds, tiles: Bounds) -> Iterator[tuple[Value, Span, Value, Value]]:
        """Loops over the tiles of some lines: line, span, tile's number, its first row."""
        for line, tile in self.each_span(lines):
            with self.tile_loop(tile, tiles) as (number, row):
                yield line, tile, number, row

    def each_span(self, lines: Bounds) -> Iterator[tuple[Value, Span]]:
        """A loop over some lines, and the spans of tiles in each."""
        # Units are divided for the greatest sizes: with smaller ones, some have no lines.
        with self.loop(*lines, nonempty=not isinstance(self.plan.lines, Size)) as line:
            for tile in self.plan.tiles:
                yield line, tile

    def row_indices(self, line: Value, row: Value) -> list[Value]:
        """The index along each row axis."""
        axes = self.plan.contraction.rows
        return [*self.indices(line, [x.length for x in axes[:-1]]), row][: len(axes)]

    def number(
        self, indices: Sequence[Value], starts: Sequence[Value | int], lengths: Sequence[int]
    ) -> Value:
        """The number, counted from some first indices on, of an element of a grid."""
        result = self.constant(0)
        for index, start, length in zip(indices, starts, lengths, strict=True):
            inside = self.f.binary("sub", index, self.constant(start))
            result = self.add(self.times(result, length), inside)
        return result

    # Copies and sums

    def copied(self, width: int, place: Value, walked: Bounds) -> Stream:
        """A copy of a block that has so many neighbours for each index of the summed axes."""
        strides: list[int] = []
        for axis in reversed(self.plan.contraction.summed[self.plan.cut :]):
            strides.insert(0, width)
            width *= axis.length
        place = self.add(self.region, place)
        if strides:
            place = self.add(place, self.times(self.constant(walked[0]), -strides[0]))
        return place, strides

    def copy_a(
        self,
        tile: Span,
        tiles: Bounds,
        place_of: Callable[[Span, Value, Value], tuple[Stream, Stream]],
        walked: Bounds,
    ) -> None:
        """Copy rows of a, tile after tile, neighbours for each index of the summed axes."""
        x = self.plan.contraction
        step = x.rows[-1].a if x.rows else 0
        wide = x.wide_a and step == 1
        pieces = vector_lanes(tile.size, self.plan.lanes) if wide else [1] * tile.size

        def copy(source: Value, target: Value) -> None:
            shift = 0
            for lanes in pieces:
                place = self.add(source, shift * step)
                value = self.load_a(place) if lanes == 1 else self.load_a(place, lanes)
                self.f.store(self.buffer, self.add(target, shift), value)
                shift += lanes

        if not wide:
            with self.tile_loop(tile, tiles) as (number, row):
                self.walk_over(place_of(tile, number, row), copy, walked)
            return
        # Neighbours lie in other tiles: memory is read in its own order.
        zero = self.constant(0)

        def copy_all(source: Value, target: Value) -> None:
            with self.tile_loop(tile, tiles) as (number, row):
                (start, _), (place, _) = place_of(tile, number, row)
                copy(self.add(source, start), self.add(target, place))

        (_, strides_a), (_, strides) = place_of(tile, zero, zero)
        self.walk_over(((zero, strides_a), (zero, strides)), copy_all, walked)

    def walk_over(
        self, streams: tuple[Stream, Stream], body: Callable[[Value, Value], None], walked: Bounds
    ) -> None:
        """Loops over a block's summed axes."""

        def each(places: list[Value], sums: list[Value]) -> list[Value]:
            body(*places)
            return sums

        self.walk([*streams], [], each, walked)

    def copy_b(self, panel: Span, source: Stream, target: Stream, walked: Bounds) -> None:
        """Copy a panel of b, neighbours for each index of the summed axes."""
        f, step, lanes = self.f, self.plan.contraction.column_b, self.plan.lanes
        axes = self.plan.contraction.summed[self.plan.cut :]
        pieces = [(sum(panel.pieces[:i]), n) for i, n in enumerate(panel.pieces)]

        def body(places: list[Value], sums: list[Value]) -> list[Value]:
            if self.prefetch_b and step == 1:  # the next panel's part, on the same page
                self.prefetch_b(self.add(places[0], panel.size))
            singles = [(i + j, 1) for i, n in pieces for j in range(n)]
            for shift, n in pieces if step == 1 else singles:
                value = self.load_b(self.add(places[0], shift * step), n)
                f.store(self.buffer, self.add(places[1], shift), value)
            return sums

        def turned(places: list[Value], sums: list[Value]) -> list[Value]:
            """The innermost axis, whose indices are neighbours: squares, then what is left."""
            low, high = walked if len(axes) == 1 else (0, axes[-1].length)
            start, stop = self.constant(low), self.constant(high)
            squares = self.times(self.over(f.binary("sub", stop, start), lanes), lanes)
            middle = self.add(start, squares)
            for first, last, many in ((start, middle, lanes), (middle, stop, 1)):
                with f.loop(first, last, many) as loop:
                    at = self.add(places[0], loop.counter)
                    to = self.add(places[1], self.times(loop.counter, panel.size))
                    for shift, n in pieces:
                        columns = [self.add(at, (shift + j) * step) for j in range(n)]
                        vectors = [self.load_b(column, many) for column in columns]
                        if n == many > 1:
                            square = self.transposed(vectors)
                            parts = [(lane, 0, vector) for lane, vector in enumerate(square)]
                        else:
                            parts = [
                                (lane, j, f.extract(vector, lane))
                                for j, vector in enumerate(vectors)
                                for lane in range(many)
                            ]
                        for lane, j, part in parts:
                            place = self.add(to, shift + j + lane * panel.size)
                            f.store(self.buffer, place, part)
            return sums

        if step != 1 and axes and axes[-1].b == 1:
            self.walk([source, target], [], turned, walked, last=len(axes) - 1)
        else:
            self.walk([source, target], [], body, walked)

    def transposed(self, rows: list[Value]) -> list[Value]:
        """The columns of a square of vectors."""
        lanes, half = len(rows), len(rows) // 2
        while half:
            for i in range(lanes):
                if not i & half:
                    x, y = rows[i], rows[i + half]
                    even = [n if not n & half else lanes + n - half for n in range(lanes)]
                    odd = [n + half if not n & half else lanes + n for n in range(lanes)]
                    rows[i], rows[i + half] = self.f.shuffle(x, y, even), self.f.shuffle(x, y, odd)
            half //= 2
        return rows

    def sums(
        self, tile: Span, panel: Span, a: Stream, b: Stream, walked: Bounds,
        ahead: Callable[[Value], None] | None,
    ) -> Grid:  # fmt: skip
        """The sums of a tile over a block, vectors of columns for each row.

        `ahead` fetches what one of the next tile's rows will need. All rows at once would be more
        than the processor waits for without a pause, so the sums are made in as many parts.
        """
        f, p, lanes = self.f, self.plan, panel.pieces
        if p.lengthwise:
            return self.sums_of_rows(tile, a, b, walked)
        step = p.contraction.rows[-1].a if p.contraction.rows and not p.packs_a else 1
        read_a = self.read_copy if p.packs_a else self.load_a
        read_b = self.read_copy if p.packs_b else self.load_b

        def body(places: list[Value], sums: list[Value]) -> list[Value]:
            """The microkernel: each row's element times the vectors of b, added to the sums."""
            self.fetch_rows(tile, places[0])
            vectors = [read_b(self.add(places[1], sum(lanes[:i])), n) for i, n in enumerate(lanes)]
            result: list[Value] = []
            for row in range(tile.size):
                element = read_a(self.add(places[0], row * step))
                for vector in vectors:
                    result.append(self.multiply_add(element, vector, sums[len(result)]))
            return result

        zeros = [f.constant(0, p.contraction.kind, n) for _ in range(tile.size) for n in lanes]
        if ahead is None:
            flat = self.walk([a, b], zeros, body, walked)
        elif p.outer_length >= PART * tile.size:
            flat = self.walk_in_parts([a, b], zeros, body, walked, tile.size, ahead)
        else:
            with self.loop(0, tile.size) as which:
                ahead(which)
            flat = self.walk([a, b], zeros, body, walked)
        return [flat[i : i + len(lanes)] for i in range(0, len(flat), len(lanes))]

    def fetch_rows(self, tile: Span, place: Value) -> None:
        """Fetch of one of a's rows what is used soon, and of the next tile what is used here.

        All rows of a tile reach their next line at the same time, more than the processor waits for
        without a pause; so each summed element fetches another row's.
        """
        p, line = self.plan, 64 // size_of(self.plan.contraction.kind)
        axes = p.contraction.summed[p.cut :]
        few = tile.size < FEW_ROWS
        if not self.prefetch_a or p.packs_a or few or not axes or axes[-1].a != 1:
            return
        step = p.contraction.rows[-1].a
        row = self.f.binary("and", place, self.constant(line - 1))
        place = self.add(place, self.times(row, step - 1))
        self.prefetch_a(self.add(place, LINES_AHEAD * line), 1)
        self.prefetch_a(self.add(place, tile.size * step), 2)

    def sums_of_rows(self, tile: Span, a: Stream, b: Stream, walked: Bounds) -> Grid:
        """The sums of a tile of one column: of each row some vectors, then what is left over."""
        f, p, lanes, across = self.f, self.plan, self.plan.lanes, LENGTHWISE[1]
        kind, axes = p.contraction.kind, p.contraction.summed[p.cut :]
        step = p.contraction.rows[-1].a if p.contraction.rows else 0
        length = axes[-1].length
        middle = length - length % (across * lanes)

        def body(places: list[Value], sums: list[Value]) -> list[Value]:
            count = tile.size * across
            result: list[Value] = []
            for start, stop, wide, many, mine in (
                (0, middle, lanes, across, sums[:count]), (middle, length, 1, 1, sums[count:]),
            ):  # fmt: skip
                if start == stop:
                    result += mine
                    continue
                with f.loop(start, stop, wide * many, nonempty=True) as loop:
                    at_a, at_b = (self.add(place, loop.counter) for place in places)
                    vectors = [self.load_b(self.add(at_b, i * wide), wide) for i in range(many)]
                    carried = [loop.carry(x) for x in mine]
                    for number, total in enumerate(carried):
                        row, i = divmod(number, many)
                        x = self.load_a(self.add(at_a, row * step + i * wide), wide)
                        loop.update(total, self.multiply_add(x, vectors[i], total))
                result += [loop.result(phi) for phi in carried]
            return result

        zeros = [f.constant(0, kind, lanes)] * (tile.size * across)
        zeros += [f.constant(0, kind)] * tile.size
        flat = self.walk([a, b], zeros, body, walked, last=len(axes) - 1)
        result: Grid = []
        for row in range(tile.size):
            total, *others = flat[row * across : (row + 1) * across]
            for other in others:
                total = f.binary("fadd", total, other)
            while (half := total.lanes // 2) > 1:
                parts = [f.shuffle(total, total, range(n, n + half)) for n in (0, half)]
                total = f.binary("fadd", *parts)
            total = f.binary("fadd", f.extract(total, 0), f.extract(total, 1))
            result.append([f.binary("fadd", total, flat[tile.size * across + row])])
        return result

    def multiply_add(self, x: Value, y: Value, total: Value) -> Value:
        """A product added to a sum."""
        if self.plan.machine.fused:
            return self.f.fma(x, y, total)
        return self.f.binary("fadd", self.f.binary("fmul", x, y), total)

    def read_copy(self, place: Value, lanes: int = 1) -> Value:
        """Neighbours in a copy; it changes, so the load stays where it is written."""
        kind = self.plan.contraction.kind
        return self.f.load(self.buffer, place, kind, lanes, changes=True)

    def walk(
        self,
        streams: list[Stream],
        sums: list[Value],
        body: Body,
        bounds: Bounds,
        depth: int = 0,
        last: int | None = None,
    ) -> list[Value]:
        """Loops over a block's summed axes, up to the last, that carry places and sums."""
        axes = self.plan.contraction.summed[self.plan.cut :]
        if any(axis.length == 0 for axis in axes):
            return sums
        places = [place for place, _ in streams]
        if depth == (len(axes) if last is None else last):
            return body(places, sums)
        start, stop = bounds if depth == 0 else (0, axes[depth].length)
        steps = [strides[depth] for _, strides in streams]
        places = [
            self.add(place, self.times(self.constant(start), step))
            for place, step in zip(places, steps, strict=True)
        ]
        surely = depth > 0 or not self.plan.contraction.needless
        with self.f.loop(start, stop, nonempty=surely) as loop:
            moving = [loop.carry(place) for place in places]
            carried = [loop.carry(x) for x in sums]
            inner = [(place, strides) for place, (_, strides) in zip(moving, streams, strict=True)]
            after = self.walk(inner, carried, body, bounds, depth + 1, last)
            for place, step in zip(moving, steps, strict=True):
                loop.update(place, self.add(place, step))
            for phi, value in zip(carried, after, strict=True):
                loop.update(phi, value)
        return [loop.result(phi) for phi in carried]

    def walk_in_parts(
        self, streams: list[Stream], sums: list[Value], body: Body, bounds: Bounds, parts: int,
        before: Callable[[Value], None],
    ) -> list[Value]:  # fmt: skip
        """Loops over a block's summed axes, the outermost in parts; something comes before each."""
        start, stop = map(self.constant, bounds)
        length = self.f.binary("sub", stop, start)
        with self.f.loop(0, parts, nonempty=True) as loop:
            carried = [loop.carry(x) for x in sums]
            before(loop.counter)
            ends = [
                self.f.binary("add", start, self.over(self.f.binary("mul", n, length), parts))
                for n in (loop.counter, self.add(loop.counter, 1))
            ]
            after = self.walk(streams, carried, body, (ends[0], ends[1]))
            for phi, value in zip(carried, after, strict=True):
                loop.update(phi, value)
        return [loop.result(phi) for phi in carried]

    # What becomes of the sums

    def unfinished(self, block: Value, slot: Value, sums: Grid) -> Grid:
        """Add what earlier blocks have summed, and keep it for later ones."""
        f, x = self.f, self.plan.contraction
        if self.plan.blocks == 1:
            return sums
        base = self.add(self.region, self.times(slot, self.plan.tile_sums))
        begins = f.compare("eq", block, self.constant(0))
        place = 0
        result: Grid = []
        for row in sums:
            result.append([])
            for value in row:
                address = self.add(base, place)
                before = f.load(self.buffer, address, x.kind, value.lanes, changes=True)
                zero = f.constant(0, x.kind, value.lanes)
                value = f.binary("fadd", value, f.select(begins, zero, before))
                f.store(self.buffer, address, value)
                result[-1].append(value)
                place += value.lanes
        return result

    @contextmanager
    def in_last(self, block: Value) -> Iterator[None]:
        """What is done in the last block only."""
        if self.plan.blocks == 1:
            yield
            return
        is_last = self.f.compare("eq", block, self.constant(self.plan.blocks - 1))
        with self.f.when(is_last, is_safe=True):
            yield

    def hand_over(
        self, batch: list[Value], rows: list[Value], column: Value, panel: Span, sums: Grid
    ) -> None:
        """Give finished sums to the caller, row by row from memory.

        Written out for each row, what the caller does would be more code than the first cache
        of instructions holds.
        """
        f, places = self.f, list(itertools.accumulate(panel.pieces, initial=0))
        if len(sums) == 1 or self.plan.lengthwise:
            for i, row in enumerate(sums):
                here = self.row_at(rows, self.constant(i))
                for place, value in zip(places, row, strict=False):
                    self.finish(batch, here, self.add(column, place), value)
            return
        memory = f.scratch(self.plan.contraction.kind, self.plan.tile_sums)
        for i, row in enumerate(sums):
            for place, value in zip(places, row, strict=False):
                f.store(memory, self.constant(i * panel.size + place), value)
        with f.loop(0, len(sums), nonempty=True) as loop:
            here, first = self.row_at(rows, loop.counter), self.times(loop.counter, panel.size)
            for place, lanes in zip(places, panel.pieces, strict=False):
                kind = self.plan.contraction.kind
                value = f.load(memory, self.add(first, place), kind, lanes, changes=True)
                self.finish(batch, here, self.add(column, place), value)

    def row_at(self, rows: list[Value], number: Value) -> list[Value]:
        """The indices of one of a tile's rows, from those of its first."""
        return [*rows[:-1], self.f.binary("add", rows[-1], number)] if rows else []
