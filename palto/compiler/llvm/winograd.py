"""The code of a Winograd convolution: a block of tiles at a time, whose numbers stay in the cache.

See palto.compiler.winograd for what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from palto.compiler.llvm import contract, tiling
from palto.compiler.llvm.builder import Function, Value
from palto.compiler.llvm.tiling import Axis, Contraction, Machine, Plan
from palto.compiler.winograd import PIXELS, RESULTS

#: Bytes that the transformed tiles of a block may take.
_BLOCK = 600 << 10
#: The most tiles of a block, and the multiple of a register tile's height that it has.
_MOST_TILES, _ROWS = 48, 6
#: Of a kernel's gradient: the channels and outputs of a unit, and the tiles of a block.
_PARTS, _GRADIENT_BLOCK = ((64, 64), (64, 32), (32, 32)), 32
#: Elements after each of the 36 parts of a block, so that they do not share places of the cache.
_GAP = 16


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a convolution.

    Attributes:
        images: how many.
        size: height and width of each.
    """

    images: int
    size: tuple[int, int]

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along a result's height and width."""
        return -(-self.size[0] // RESULTS), -(-self.size[1] // RESULTS)

    @property
    def total(self) -> int:
        """All tiles of a group."""
        return self.images * math.prod(self.tiles)


@dataclass(frozen=True, slots=True)
class Layout(Results):
    """What is convolved, and how it is cut.

    Attributes:
        groups: how many groups of channels.
        channels: of the input, in a group.
        share: outputs of a group.
        panel: outputs side by side.
        strides: elements between images, rows, pixels and groups of the input.
        start: the input's first element.
        machine: what it is planned for.
    """

    groups: int
    channels: int
    share: int
    panel: int
    strides: tuple[int, int, int, int]
    start: int
    machine: Machine

    @property
    def block(self) -> int:
        """Tiles of a block."""
        most = min(_BLOCK // (4 * PIXELS**2 * self.channels), _MOST_TILES)
        even = -(-self.total // (2 * self.machine.threads))  # something to do for every thread
        return max(min(most, even) // _ROWS, 1) * _ROWS

    @property
    def blocks(self) -> int:
        """Blocks of tiles, of all groups."""
        return self.groups * -(-self.total // self.block)

    @property
    def columns(self) -> int:
        """Into how many parts the outputs are divided: blocks may be too few for all threads."""
        panels, threads = self.share // self.panel, self.machine.threads
        parts = [n for n in range(1, panels + 1) if panels % n == 0]
        even = (n for n in parts if self.blocks * n % threads == 0)
        return next(even, parts[-1]) if self.blocks < 2 * threads else 1

    @property
    def units(self) -> int:
        """Blocks of tiles, for each part of the outputs."""
        return self.blocks * self.columns

    @property
    def part(self) -> int:
        """Elements from one of the 36 parts of the transformed tiles to the next."""
        return self.block * self.channels + _GAP

    @property
    def sums_part(self) -> int:
        """Likewise, of the sums of a panel."""
        return self.block * self.panel + _GAP

    @property
    def scratch(self) -> int:
        """Elements that a unit needs."""
        return PIXELS**2 * (self.part + self.sums_part)

    @property
    def plan(self) -> Plan:
        """The 36 matrix products of a block and a panel."""
        panels = self.groups * self.share // self.panel
        return tiling.plan(
            Contraction(
                "float",
                (Axis(PIXELS**2, self.part, panels * self.channels * self.panel),),
                (Axis(self.block, self.channels),),
                self.panel,
                (Axis(self.channels, 1, self.panel),),
            ),
            self.machine,
        )


@dataclass(frozen=True, slots=True)
class GradientLayout(Results):
    """The gradient of a kernel, and how it is cut: by channels and outputs, not by tiles.

    Attributes:
        groups, channels, share, machine: as in `Layout`.
        x: elements between images, rows and pixels of the input, and its first element.
        g: the same of the results' gradient.
    """

    groups: int
    channels: int
    share: int
    x: tuple[tuple[int, int, int], int]
    g: tuple[tuple[int, int, int], int]
    machine: Machine

    @property
    def parts(self) -> tuple[int, int]:
        """Channels and outputs of a unit: many, for more work with what has been transformed.

        Fewer, where threads would have nothing to do.
        """
        found = 0, 0
        for channels, outputs in _PARTS:
            found = _part_of(self.channels, channels), _part_of(self.share, outputs)
            units = self.groups * (self.channels // found[0]) * (self.share // found[1])
            if units >= self.machine.threads:
                break
        return found

    @property
    def units(self) -> int:
        """Pieces of work, each for all tiles."""
        channels, outputs = self.parts
        return self.groups * (self.channels // channels) * (self.share // outputs)

    @property
    def part(self) -> int:
        """Elements from one of the 36 parts of transformed tiles to the next."""
        return _GRADIENT_BLOCK * self.parts[0] + _GAP

    @property
    def other_part(self) -> int:
        """Likewise, of the transformed gradient."""
        return _GRADIENT_BLOCK * self.parts[1] + _GAP

    @property
    def scratch(self) -> int:
        """Elements that a unit needs."""
        return PIXELS**2 * (self.part + self.other_part)

    @property
    def plan(self) -> Plan:
        """The 36 matrix products of a block of tiles."""
        channels, outputs = self.parts
        found = tiling.plan(
            Contraction(
                "float",
                (Axis(PIXELS**2, self.part, self.other_part),),
                (Axis(channels, 1),),
                outputs,
                (Axis(_GRADIENT_BLOCK, channels, outputs),),
                wide_a=True,
            ),
            self.machine,
        )
        return replace(found, packs_a=False, packs_b=False)


def _part_of(count: int, most: int) -> int:
    """The largest part of a count, a multiple of 16, that is no more than `most`."""
    return max(n for n in range(16, min(count, most) + 1, 16) if count % n == 0)


#: So many neighbouring elements, from an offset on.
Load = Callable[[Value, int], Value]
#: Takes group, image, row and pixel, the first output's number in the group, and results.
Finish = Callable[[list[Value], Value, Value], None]


def emit(
    f: Function, layout: Layout, load_x: Load, load_u: Load, scratch: Value, finish: Finish
) -> None:
    """Write the loops over the units from parameter `first` to parameter `last`.

    Args:
        f: where to write.
        layout: what is convolved.
        load_x: so many neighbouring elements of the input, from an offset on.
        load_u: likewise of the transformed kernels.
        scratch: a pointer to `layout.units` times `layout.scratch` elements.
        finish: takes finished results.
    """
    with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
        region = f.binary("mul", f.parameters["first"], f.constant(layout.scratch, "i64"))
        _Emitter(f, layout, scratch, load_x, load_u, region, finish).unit(loop.counter)


def turned(grid: list[list[Value]]) -> list[list[Value]]:
    """The columns of a grid."""
    return [list(line) for line in zip(*grid, strict=True)]


@dataclass(slots=True)
class _Tiles:
    """What both directions do with a tile."""

    f: Function
    layout: Layout | GradientLayout
    scratch: Value

    def of_tile(
        self,
        tile: Value,
        base: Value,
        strides: Sequence[int],
        load: Load,
        channels: int,
        target: Value,
        part: int,
    ) -> None:
        """Transform the pixels of a tile, for some channels from an offset on."""
        f, lanes = self.f, self.lanes
        image, row, column = self.where(tile)
        base = self.add(base, self.times(image, strides[0]))
        # Below the last row there is nothing; what is computed there is not wanted.
        rows, columns = (
            [self.times(self.at_most(self.add(at, i), size + 1), stride) for i in range(PIXELS)]
            for at, size, stride in zip((row, column), self.layout.size, strides[1:3], strict=True)
        )
        with f.loop(0, channels, lanes) as loop:
            at = self.add(base, loop.counter)
            pixels = [[load(self.add(at, self.add(i, j)), lanes) for j in columns] for i in rows]
            down = turned([self.of_pixels(line) for line in turned(pixels)])
            place = self.add(target, loop.counter)
            for i, line in enumerate(down):
                for j, value in enumerate(self.of_pixels(line)):
                    self.store(self.add(place, (PIXELS * i + j) * part), value)

    def where(self, tile: Value) -> tuple[Value, Value, Value]:
        """The image of a tile, and the row and the pixel of its first result."""
        f, (down, across) = self.f, self.layout.tiles
        line = f.binary("udiv", tile, self.constant(across))
        column = f.binary("sub", tile, self.times(line, across))
        image = f.binary("udiv", line, self.constant(down))
        row = f.binary("sub", line, self.times(image, down))
        return image, self.times(row, RESULTS), self.times(column, RESULTS)

    # Transformations along a side; the matrices are in palto.compiler.winograd

    def of_pixels(self, d: list[Value]) -> list[Value]:
        a, b = self.plus(d[4], -4, d[2]), self.plus(d[3], -4, d[1])
        c, e = self.minus(d[4], d[2]), self.minus(d[3], d[1])
        return [
            self.plus(self.plus(d[4], -5, d[2]), 4, d[0]),
            self.sum(a, b),
            self.minus(a, b),
            self.plus(c, 2, e),
            self.plus(c, -2, e),
            self.plus(self.plus(d[5], -5, d[3]), 4, d[1]),
        ]

    def of_sums(self, m: list[Value]) -> list[Value]:
        a, b = self.sum(m[1], m[2]), self.minus(m[1], m[2])
        c, d = self.sum(m[3], m[4]), self.minus(m[3], m[4])
        return [
            self.sum(self.sum(m[0], a), c),
            self.plus(b, 2, d),
            self.plus(a, 4, c),
            self.plus(self.sum(m[5], b), 8, d),
        ]

    def sum(self, a: Value, b: Value) -> Value:
        return self.f.binary("fadd", a, b)

    def minus(self, a: Value, b: Value) -> Value:
        return self.f.binary("fsub", a, b)

    def plus(self, a: Value, factor: float, b: Value) -> Value:
        """A number plus another times a factor."""
        number = self.f.constant(factor, "float", b.lanes)
        if self.layout.machine.fused:
            return self.f.fma(number, b, a)
        return self.sum(a, self.f.binary("fmul", number, b))

    # Places

    @property
    def lanes(self) -> int:
        return self.layout.machine.vector_bytes // 4

    def load(self, at: Value, lanes: int) -> Value:
        return self.f.load(self.scratch, at, "float", lanes, changes=True)

    def store(self, at: Value, value: Value) -> None:
        self.f.store(self.scratch, at, value)

    def constant(self, x: int) -> Value:
        return self.f.constant(x, "i64")

    def add(self, x: Value, y: int | Value) -> Value:
        return self.f.binary("add", x, self.constant(y) if isinstance(y, int) else y)

    def times(self, x: Value, y: int) -> Value:
        return self.f.binary("mul", x, self.constant(y))

    def at_most(self, x: Value, y: int) -> Value:
        return self.f.intrinsic("llvm.smin", x, self.constant(y))


@dataclass(slots=True)
class _Emitter(_Tiles):
    layout: Layout
    load_x: Load
    load_u: Load
    region: Value
    finish: Finish

    def unit(self, number: Value) -> None:
        """A block of tiles of one group, for a part of the outputs."""
        f, x = self.f, self.layout
        blocks = self.constant(x.blocks // x.groups)
        group = part = self.constant(0)
        if x.columns > 1:
            whole = self.constant(x.blocks)
            part, number = f.binary("udiv", number, whole), f.binary("urem", number, whole)
        if x.groups > 1:
            group, number = f.binary("udiv", number, blocks), f.binary("urem", number, blocks)
        first = f.binary("mul", number, self.constant(x.block))
        rest = f.binary("sub", self.constant(x.total), first)
        count = f.intrinsic("llvm.smin", rest, self.constant(x.block))
        with f.loop(0, count) as loop:
            self.transform(group, loop.counter, self.add(first, loop.counter))
        panels, plan = x.share // x.panel, x.plan
        start = self.times(part, panels // x.columns)
        with f.loop(start, self.add(start, self.constant(panels // x.columns))) as loop:
            panel = self.add(self.times(group, panels), loop.counter)
            kernels = self.times(panel, x.channels * x.panel)
            contract.emit(
                f, plan,
                lambda at, lanes=1: self.load(self.add(self.region, at), lanes),
                lambda at, lanes: self.load_u(self.add(kernels, at), lanes),
                None, self.constant(0), self.constant(plan.units),
                lambda part, row, column, sums: self.store(
                    self.add(self.sums_at(part[0], row[0]), column), sums
                ),
                private=True,
            )  # fmt: skip
            with f.loop(0, count) as inner:
                tile = self.add(first, inner.counter)
                self.results(group, inner.counter, tile, self.times(loop.counter, x.panel))

    def transform(self, group: Value, slot: Value, tile: Value) -> None:
        """The 36 numbers of a tile, for each channel."""
        x = self.layout
        base = self.add(self.times(group, x.strides[3]), x.start)
        target = self.add(self.region, self.times(slot, x.channels))
        self.of_tile(tile, base, x.strides, self.load_x, x.channels, target, x.part)

    def results(self, group: Value, slot: Value, tile: Value, first: Value) -> None:
        """The 16 results of a tile, for each output of a panel."""
        f, x, lanes = self.f, self.layout, self.lanes
        image, row, column = self.where(tile)
        source = self.sums_at(self.constant(0), slot)
        with f.loop(0, x.panel, lanes) as loop:
            at = self.add(source, loop.counter)
            sums = [
                [self.load(self.add(at, (PIXELS * i + j) * x.sums_part), lanes)
                 for j in range(PIXELS)]
                for i in range(PIXELS)
            ]  # fmt: skip
            down = turned([self.of_sums(line) for line in turned(sums)])
            output = self.add(first, loop.counter)
            for i, line in enumerate(down):
                with self.inside(self.add(row, i), x.size[0]) as y:
                    for j, value in enumerate(self.of_sums(line)):
                        with self.inside(self.add(column, j), x.size[1]) as pixel:
                            self.finish([group, image, y, pixel], output, value)

    @contextmanager
    def inside(self, at: Value, size: int) -> Iterator[Value]:
        """What is done only for a row, or a pixel, of the result."""
        if size % RESULTS == 0:
            yield at
            return
        with self.f.when(self.f.compare("slt", at, self.constant(size))):
            yield at

    def sums_at(self, part: Value, slot: Value) -> Value:
        """Where the sums of a tile are."""
        x = self.layout
        place = self.add(self.times(part, x.sums_part), self.times(slot, x.panel))
        return self.add(self.add(self.region, place), PIXELS**2 * x.part)


def emit_gradient(
    f: Function, layout: GradientLayout, load_x: Load, load_g: Load, target: Value, scratch: Value
) -> None:
    """Write the loops over the units from parameter `first` to parameter `last`.

    Args:
        f: where to write.
        layout: what is computed.
        load_x: of the input.
        load_g: of the results' gradient.
        target: a pointer to the 36 sums of products, (36, channels, all outputs).
        scratch: a pointer to `layout.units` times `layout.scratch` elements.
    """
    with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
        region = f.binary("mul", f.parameters["first"], f.constant(layout.scratch, "i64"))
        emitter = _GradientEmitter(f, layout, scratch, load_x, load_g, region, target)
        emitter.unit(loop.counter)


@dataclass(slots=True)
class _GradientEmitter(_Tiles):
    layout: GradientLayout
    load_x: Load
    load_g: Load
    region: Value
    target: Value

    def unit(self, number: Value) -> None:
        """All tiles, for some channels and outputs of a group."""
        f, x = self.f, self.layout
        channels, outputs = x.parts
        columns, rows = x.share // outputs, x.channels // channels
        column = f.binary("urem", number, self.constant(columns))
        number = f.binary("udiv", number, self.constant(columns))
        row = f.binary("urem", number, self.constant(rows))
        group = f.binary("udiv", number, self.constant(rows))
        first_channel = self.times(row, channels)
        first_output = self.add(self.times(group, x.share), self.times(column, outputs))
        from_x = self.add(self.add(self.times(group, x.channels), first_channel), x.x[1])
        from_g = self.add(first_output, x.g[1])
        other = self.add(self.region, PIXELS**2 * x.part)
        plan, width = x.plan, x.groups * x.share
        with f.loop(0, -(-x.total // _GRADIENT_BLOCK)) as blocks:
            first = self.times(blocks.counter, _GRADIENT_BLOCK)
            begins = f.compare("eq", blocks.counter, self.constant(0))
            with f.loop(0, _GRADIENT_BLOCK) as loop:
                slot = loop.counter
                tile = self.at_most(self.add(first, slot), x.total - 1)
                place = self.add(self.region, self.times(slot, channels))
                self.of_tile(tile, from_x, x.x[0], self.load_x, channels, place, x.part)
                # In the last block, some tiles do not exist: their gradient is zero.
                is_tile = f.compare("slt", self.add(first, slot), self.constant(x.total))
                self.of_gradient(tile, is_tile, from_g, self.add(other, self.times(slot, outputs)))

            def add_up(part: list[Value], line: list[Value], column: Value, sums: Value) -> None:
                channel = self.add(first_channel, line[0])
                place = self.add(self.times(part[0], x.channels), channel)
                place = self.add(self.add(self.times(place, width), first_output), column)
                before = f.load(self.target, place, "float", sums.lanes, changes=True)
                zero = f.constant(0, "float", sums.lanes)
                before = f.select(begins, zero, before)
                f.store(self.target, place, self.sum(before, sums))

            contract.emit(
                f, plan,
                lambda at, lanes=1: self.load(self.add(self.region, at), lanes),
                lambda at, lanes: self.load(self.add(other, at), lanes),
                None, self.constant(0), self.constant(plan.units), add_up, private=True,
            )  # fmt: skip

    def of_gradient(self, tile: Value, is_tile: Value, base: Value, target: Value) -> None:
        """Transform the gradient of a tile's 16 results, zero where there is no result."""
        f, x, lanes = self.f, self.layout, self.lanes
        image, row, column = self.where(tile)
        base = self.add(base, self.times(image, x.g[0][0]))
        lines, pixels = (
            [
                (
                    self.times(self.at_most(self.add(at, i), size - 1), stride),
                    f.compare("slt", self.add(at, i), self.constant(size)),
                )
                for i in range(RESULTS)
            ]
            for at, size, stride in zip((row, column), x.size, x.g[0][1:], strict=True)
        )
        zero = f.constant(0, "float", lanes)
        with f.loop(0, x.parts[1], lanes) as loop:
            at = self.add(base, loop.counter)
            grid: list[list[Value]] = []
            for line, is_line in lines:
                grid.append([])
                for pixel, is_pixel in pixels:
                    value = self.load_g(self.add(at, self.add(line, pixel)), lanes)
                    there = f.binary("and", is_tile, f.binary("and", is_line, is_pixel))
                    grid[-1].append(f.select(there, value, zero))
            down = turned([self.of_results(line) for line in turned(grid)])
            place = self.add(target, loop.counter)
            for i, across in enumerate(down):
                for j, value in enumerate(self.of_results(across)):
                    self.store(self.add(place, (PIXELS * i + j) * x.other_part), value)

    def of_results(self, y: list[Value]) -> list[Value]:
        """From four numbers to six: `of_sums` backwards."""
        a, b = self.sum(y[0], y[2]), self.sum(y[1], y[3])
        c, d = self.plus(y[0], 4, y[2]), self.plus(y[1], 4, y[3])
        return [
            y[0], self.sum(a, b), self.minus(a, b), self.plus(c, 2, d), self.plus(c, -2, d), y[3],
        ]  # fmt: skip
