"""Contractions: matrix products and convolutions in every direction, around one register tile.

    result[batch..., rows..., column] = sum over summed... of
        a[batch..., rows..., summed...] * b[batch..., summed..., column]

`plan` cuts the result into tiles that fit the registers: some neighbours of the last row axis by
a few vectors of columns. A tile keeps its sums in registers while it walks the summed axes, reads
one element of `a` a row and multiplies it with the vectors of `b`. `emit` writes the loops.

A convolution forward has rows (image, output row, output column) and summed axes (kernel row,
kernel column x channel); its weight gradient has rows (kernel row, kernel column x channel) and
summed axes (image, output row, output column). Groups are a batch axis.

Each sum is added in the order of the summed axes, in blocks whose sizes depend on the shape
alone, so a result does not depend on how its units are divided among threads.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from palto.compiler.llvm.builder import Function, Value, size_of

#: Summed elements in a block, about: a block's panel of b should stay in the first cache.
SUMMED_BLOCK = 384
#: Below so many summed elements nothing is cut.
SUMMED_WHOLE = 1024
#: Pieces of work that are worth having, and the least multiplications and additions in one.
UNITS = 64
PACK_ROWS = 48
UNIT_FLOPS = 1 << 20


@dataclass(frozen=True, slots=True)
class Machine:
    """What a tile has to fit.

    Attributes:
        vector_bytes: size of a vector register.
        registers: how many there are.
        l1: bytes of a core's first data cache.
        l2: bytes of its second.
        fused: whether it multiplies and adds in one instruction.
    """

    vector_bytes: int
    registers: int
    l1: int = 32 << 10
    l2: int = 512 << 10
    fused: bool = True

    @staticmethod
    def host() -> Machine:
        """This computer."""
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
        l1, l2 = _cache_size(1, 32 << 10), _cache_size(2, 512 << 10)
        if features.get("avx512f"):
            return Machine(64, 32, l1, l2)
        if features.get("avx2") and features.get("fma"):
            return Machine(32, 16, l1, l2)
        arm = platform.machine().lower() in ("arm64", "aarch64")
        return Machine(16, 32 if arm else 16, l1, l2, fused=arm or bool(features.get("fma")))


def _cache_size(level: int, default: int) -> int:
    """Bytes of a data cache, where Linux tells."""
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (folder / "type").read_text().strip()
            if kind != "Instruction" and int((folder / "level").read_text()) == level:
                return int((folder / "size").read_text().strip().removesuffix("K")) << 10
        except (OSError, ValueError):
            continue
    return default


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a contraction.

    Attributes:
        length: how many indices.
        a: elements between neighbours in a.
        b: elements between neighbours in b.
    """

    length: int
    a: int = 0
    b: int = 0


@dataclass(frozen=True, slots=True)
class Contraction:
    """What is to be computed.

    Attributes:
        kind: "float" or "double".
        batch: axes of all three.
        rows: axes of a and the result; tiles run along the last.
        columns: length of the last axis of b and the result; neighbours in b.
        summed: axes of a and b.
    """

    kind: str
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: int
    summed: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tiles of one shape, along the last row axis or along the columns.

    Attributes:
        first: number of the first tile.
        count: how many tiles.
        start: index of the first tile's first element.
        pieces: elements of each piece of a tile: ones for rows, lanes of the vectors for columns.
    """

    first: int
    count: int
    start: int
    pieces: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements of a tile."""
        return sum(self.pieces)


@dataclass(frozen=True)
class Plan:
    """How a contraction is cut.

    Attributes:
        contraction: with neighbouring summed axes merged where strides allow it.
        machine: what it was planned for.
        tiles: along the last row axis, of at most two heights.
        panels: along the columns.
        lines: product of the row axes but the last.
        line_blocks: into how many blocks of lines the units divide the rows.
        tile_blocks: into how many blocks of tiles they divide the last row axis.
        panel_blocks: into how many blocks of panels they divide the columns.
        cut: the summed axis that is cut; blocks hold one index of each axis before it.
        cuts: into how many parts it is cut.
        packs: whether a unit first copies a panel's block of b together.
    """

    contraction: Contraction
    machine: Machine
    tiles: tuple[Span, ...]
    panels: tuple[Span, ...]
    lines: int
    line_blocks: int = 1
    tile_blocks: int = 1
    panel_blocks: int = 1
    cut: int = 0
    cuts: int = 1
    packs: bool = False

    @property
    def tile_count(self) -> int:
        """Tiles along the last row axis."""
        return sum(x.count for x in self.tiles)

    @property
    def panel_count(self) -> int:
        """Panels of columns."""
        return sum(x.count for x in self.panels)

    @property
    def units(self) -> int:
        """Independent pieces of work, which threads divide among themselves."""
        if not self.lines * self.tile_count * self.panel_count:
            return 0
        batch = math.prod(x.length for x in self.contraction.batch)
        return batch * self.line_blocks * self.tile_blocks * self.panel_blocks

    @property
    def blocks(self) -> int:
        """Into how many blocks each sum is cut."""
        return math.prod(x.length for x in self.contraction.summed[: self.cut]) * self.cuts

    @property
    def unit_shape(self) -> tuple[int, int, int]:
        """The most panels, lines and tiles along the last row axis that a unit has."""
        return (
            -(-self.panel_count // self.panel_blocks),
            -(-self.lines // self.line_blocks),
            -(-self.tile_count // self.tile_blocks),
        )

    @property
    def tile_sums(self) -> int:
        """The most sums of a tile."""
        height, width = (max((x.size for x in y), default=0) for y in (self.tiles, self.panels))
        return height * width

    @property
    def kept(self) -> int:
        """Elements of unfinished sums that a unit keeps."""
        return math.prod(self.unit_shape) * self.tile_sums if self.blocks > 1 else 0

    @property
    def packed(self) -> int:
        """Elements of the copied part of b that a unit keeps."""
        if not self.packs:
            return 0
        x = self.contraction.summed[self.cut :]
        length = -(-x[0].length // self.cuts) * math.prod(y.length for y in x[1:]) if x else 1
        return length * max(y.size for y in self.panels)

    @property
    def partial(self) -> int:
        """Elements of the buffer for unfinished sums; a call touches one unit's share."""
        return self.units * (self.kept + self.packed)

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        x = self.contraction
        axes = (*x.batch, *x.rows, *x.summed)
        return 2 * x.columns * math.prod(axis.length for axis in axes)


def plan(contraction: Contraction, machine: Machine) -> Plan:
    """Choose tiles, blocks and units for a contraction."""
    x = replace(contraction, summed=_merged(contraction.summed))
    lanes = machine.vector_bytes // size_of(x.kind)
    length = x.rows[-1].length if x.rows else 1
    lines = math.prod(axis.length for axis in x.rows[:-1])
    pieces = [lanes] * (x.columns // lanes)
    pieces += [size for size in (8, 4, 2, 1) if x.columns % lanes & size]
    height, vectors = _tile(length, len(pieces), machine.registers)
    tiles = _spans([1] * length, height)
    panels = _spans(pieces, vectors)
    cut, cuts = _cut(x)
    packs = length * lines >= PACK_ROWS
    return _units(Plan(x, machine, tiles, panels, lines, cut=cut, cuts=cuts, packs=packs))


def _merged(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The same walk with fewer axes."""
    result: list[Axis] = []
    for axis in axes:
        if axis.length == 1:
            continue
        if result:
            outer, span = result[-1], axis.length
            if outer.a == axis.a * span and outer.b == axis.b * span:
                result[-1] = Axis(outer.length * span, axis.a, axis.b)
                continue
        result.append(axis)
    return tuple(result)


def _parts(length: int, most: int) -> list[tuple[int, int]]:
    """(how many, of which size): a length in the fewest parts of at most `most`, balanced."""
    count = -(-length // most)
    if not count:
        return []
    size = -(-length // count)
    larger = length - count * (size - 1)
    return [(n, s) for n, s in ((larger, size), (count - larger, size - 1)) if n]


def _spans(pieces: Sequence[int], most: int) -> tuple[Span, ...]:
    """Tiles of at most so many pieces; neighbours of one shape together."""
    result: list[Span] = []
    place = first = start = 0
    for count, size in _parts(len(pieces), most):
        for _ in range(count):
            shape = tuple(pieces[place : place + size])
            if result and result[-1].pieces == shape:
                result[-1] = replace(result[-1], count=result[-1].count + 1)
            else:
                result.append(Span(first, 1, start, shape))
            place, first, start = place + size, first + 1, start + sum(shape)
    return tuple(result)


def _tile(rows: int, vectors: int, registers: int) -> tuple[int, int]:
    """The height and width of a tile, in rows and vectors, that takes the least time.

    Two multiplications start in a cycle, and two loads; a sum waits 4 cycles for the one before,
    so fewer than 8 sums leave gaps.
    """

    def cost(width: int) -> int:
        return sum(
            n * m * max(h * w, h + w, 8)
            for n, h in _parts(rows, height(width))
            for m, w in _parts(vectors, width)
        )

    def height(width: int) -> int:
        # A tile of one row takes b from memory, without a register.
        return min(rows, max(1, (registers - 1 - width) // width)) or 1

    best = min(range(1, registers // 2 + 1), key=cost)
    # Two vectors read least of b at a time: given up for a clear gain only.
    width = best if cost(best) < 0.95 * cost(2) else 2
    return height(width), width


def _cut(x: Contraction) -> tuple[int, int]:
    """Which summed axis is cut, and into how many parts."""
    lengths = [axis.length for axis in x.summed]
    if math.prod(lengths) <= SUMMED_WHOLE:
        return 0, 1
    for i in range(len(lengths)):
        inner = math.prod(lengths[i + 1 :])
        if inner <= SUMMED_BLOCK:
            return i, -(-lengths[i] * inner // SUMMED_BLOCK)
    return 0, 1


def _footprint(axes: Sequence[Axis]) -> int:
    """About how many different elements of a such axes reach."""
    extent = 1 + sum((axis.length - 1) * abs(axis.a) for axis in axes)
    return min(extent, math.prod(axis.length for axis in axes))


def _units(whole: Plan) -> Plan:
    """Cut the rows so that a block of a stays in the second cache, then into enough units."""
    x = whole.contraction
    inner = list(x.summed[whole.cut :])
    if inner:
        inner[0] = replace(inner[0], length=-(-inner[0].length // whole.cuts))

    def block_bytes(p: Plan) -> int:
        left = -(-p.lines // p.line_blocks)
        axes = []
        for axis in reversed(x.rows[:-1]):
            axes.append(replace(axis, length=min(axis.length, left)))
            left = -(-left // axis.length)
        if x.rows:
            axes.append(replace(x.rows[-1], length=-(-x.rows[-1].length // p.tile_blocks)))
        return _footprint([*axes, *inner]) * size_of(x.kind)

    def finer_rows(p: Plan) -> Plan:
        if p.line_blocks < p.lines:
            return replace(p, line_blocks=min(p.lines, 2 * p.line_blocks))
        return replace(p, tile_blocks=min(p.tile_count, 2 * p.tile_blocks))

    def finer_columns(p: Plan) -> Plan:
        return replace(p, panel_blocks=min(p.panel_count, 2 * p.panel_blocks))

    p = whole
    if not p.units:
        return p
    while block_bytes(p) > p.machine.l2 // 2 and finer_rows(p) != p:
        p = finer_rows(p)
    for finer in (finer_columns, finer_rows):
        while p.units < UNITS and p.flops > p.units * UNIT_FLOPS and finer(p) != p:
            p = finer(p)
    return p


LoadA = Callable[[Value], Value]
LoadB = Callable[[Value, int], Value]
Finish = Callable[[list[Value], list[Value], Value, Value], None]


def emit(
    f: Function,
    plan: Plan,
    load_a: LoadA,
    load_b: LoadB,
    partial: Value | None,
    first: Value,
    last: Value,
    finish: Finish,
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
    """
    if plan.units:
        with f.loop(first, last) as loop:
            # One call needs one unit's share, which no other call touches: that of its first.
            region = f.binary("mul", first, f.constant(plan.kept + plan.packed, "i64"))
            _Emitter(f, plan, load_a, load_b, partial, region, finish).unit(loop.counter)


Bounds = tuple[Value | int, Value | int]
Offsets = tuple[Value, Value]
Grid = list[list[Value]]
Body = Callable[[Offsets, list[Value]], list[Value]]


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

    def unit(self, number: Value) -> None:
        """The loops of one unit."""
        p, x = self.plan, self.plan.contraction
        cuts = (p.line_blocks, p.tile_blocks, p.panel_blocks)
        *batch, line_block, tile_block, panel_block = self.indices(
            number, [*(axis.length for axis in x.batch), *cuts]
        )
        lines = self.part(line_block, p.lines, p.line_blocks)
        tiles = self.part(tile_block, p.tile_count, p.tile_blocks)
        panels = self.part(panel_block, p.panel_count, p.panel_blocks)
        base = self.offsets(x.batch, batch)
        with self.loop(0, p.blocks) as block:
            cut_axes = x.summed[: p.cut]
            *outer, cut = self.indices(block, [*(axis.length for axis in cut_axes), p.cuts])
            walked = self.part(cut, x.summed[p.cut].length if x.summed else 1, p.cuts)
            block_base = self.offsets(cut_axes, outer, base)
            for panel in p.panels:
                with self.tile_loop(panel, panels) as (panel_number, column):
                    here = (block_base[0], self.add(block_base[1], column))
                    axes = x.summed[p.cut :]
                    if p.packs:
                        axes, here = self.pack(panel, here, axes, walked)
                    with self.loop(*lines) as line:
                        outer_rows = self.indices(line, [y.length for y in x.rows[:-1]])
                        for tile in p.tiles:
                            with self.tile_loop(tile, tiles) as (tile_number, row):
                                rows = [*outer_rows, row][: len(x.rows)]
                                start = self.offsets(x.rows, rows, here)
                                sums = self.sums(start, axes, tile.size, panel.pieces, walked)
                                numbers = (panel_number, line, tile_number)
                                slot = self.slot(numbers, (panels, lines, tiles))
                                sums = self.unfinished(block, slot, sums)
                                with self.in_last(block):
                                    self.hand_over(batch, rows, column, panel, sums)

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
        base: Offsets | None = None,
    ) -> Offsets:
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
    def loop(self, start: Value | int, stop: Value | int) -> Iterator[Value]:
        """A loop that runs at least once, or no loop where there is one index."""
        if start == 0 and stop == 1:
            yield self.constant(0)
            return
        with self.f.loop(start, stop, nonempty=True) as loop:
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

    # Sums

    def pack(
        self, panel: Span, base: Offsets, axes: Sequence[Axis], walked: Bounds
    ) -> tuple[tuple[Axis, ...], Offsets]:
        """Copy a panel's block of b; gives the axes of the copy and where it is."""
        packed: list[Axis] = []
        width = panel.size
        for axis in reversed(axes):
            packed.insert(0, replace(axis, b=width))
            width *= axis.length
        target = self.add(self.region, self.plan.kept)
        if packed:
            target = self.add(target, self.times(self.constant(walked[0]), -packed[0].b))
        # The same walk, from b on one side to the copy on the other.
        both = [Axis(x.length, x.b, y.b) for x, y in zip(axes, packed, strict=True)]

        def copy(base: Offsets, sums: list[Value]) -> list[Value]:
            for i, lanes in enumerate(panel.pieces):
                shift = sum(panel.pieces[:i])
                value = self.load_b(self.add(base[0], shift), lanes)
                self.f.store(self.buffer, self.add(base[1], shift), value)
            return sums

        if all(axis.length for axis in axes):
            self.walk(both, (base[1], target), [], copy, walked)
        return tuple(packed), (base[0], target)

    def sums(
        self,
        base: Offsets,
        axes: Sequence[Axis],
        height: int,
        lanes: Sequence[int],
        walked: Bounds,
    ) -> Grid:
        """The sums of a tile over a block, vectors of columns for each row."""
        x = self.plan.contraction
        zeros = [self.f.constant(0, x.kind, n) for _ in range(height) for n in lanes]
        if any(axis.length == 0 for axis in axes):
            flat = zeros
        else:
            multiply = functools.partial(self.multiply, lanes)
            flat = self.walk(axes, base, zeros, multiply, walked)
        return [flat[i * len(lanes) : (i + 1) * len(lanes)] for i in range(height)]

    def walk(
        self,
        axes: Sequence[Axis],
        base: Offsets,
        sums: list[Value],
        body: Body,
        bounds: Bounds | None = None,
    ) -> list[Value]:
        """Loops over summed axes that carry the offsets and the sums."""
        if not axes:
            return body(base, sums)
        axis = axes[0]
        start, stop = bounds or (0, axis.length)
        base = self.offsets([axis], [self.constant(start)], base)
        with self.f.loop(start, stop, nonempty=True) as loop:
            a, b = loop.carry(base[0]), loop.carry(base[1])
            carried = [loop.carry(x) for x in sums]
            after = self.walk(axes[1:], (a, b), carried, body)
            loop.update(a, self.add(a, axis.a))
            loop.update(b, self.add(b, axis.b))
            for phi, value in zip(carried, after, strict=True):
                loop.update(phi, value)
        return [loop.result(phi) for phi in carried]

    def multiply(self, lanes: Sequence[int], base: Offsets, sums: list[Value]) -> list[Value]:
        """The microkernel: each row's element times the vectors of b, added to the sums."""
        f, x = self.f, self.plan.contraction
        stride = x.rows[-1].a if x.rows else 0
        vectors = []
        for i, n in enumerate(lanes):
            place = self.add(base[1], sum(lanes[:i]))
            if self.plan.packs:
                vectors.append(f.load(self.buffer, place, x.kind, n, changes=True))
            else:
                vectors.append(self.load_b(place, n))
        result = []
        for i, total in enumerate(sums):
            row, vector = i // len(lanes), vectors[i % len(lanes)]
            element = self.load_a(self.add(base[0], row * stride))
            if self.plan.machine.fused:
                result.append(f.fma(element, vector, total))
            else:
                result.append(f.binary("fadd", f.binary("fmul", element, vector), total))
        return result

    # What becomes of the sums

    def slot(self, numbers: Sequence[Value], bounds: Sequence[Bounds]) -> Value:
        """Where a tile's unfinished sums are."""
        place = self.constant(0)
        for number, (start, _), most in zip(numbers, bounds, self.plan.unit_shape, strict=True):
            inside = self.f.binary("sub", number, self.constant(start))
            place = self.add(self.times(place, most), inside)
        return self.add(self.region, self.times(place, self.plan.tile_sums))

    def unfinished(self, block: Value, slot: Value, sums: Grid) -> Grid:
        """Add what earlier blocks have summed, and keep it for later ones."""
        f, x = self.f, self.plan.contraction
        if self.plan.blocks == 1:
            return sums
        begins = f.compare("eq", block, self.constant(0))
        place = 0
        result: Grid = []
        for row in sums:
            result.append([])
            for value in row:
                address = self.add(slot, place)
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
        with self.f.when(self.f.compare("eq", block, self.constant(self.plan.blocks - 1))):
            yield

    def hand_over(
        self, batch: list[Value], rows: list[Value], column: Value, panel: Span, sums: Grid
    ) -> None:
        """Give finished sums to the caller."""
        for i, row in enumerate(sums):
            here = [*rows[:-1], self.add(rows[-1], i)] if rows else []
            for j, value in enumerate(row):
                self.finish(batch, here, self.add(column, sum(panel.pieces[:j])), value)
