"""The code of a Winograd convolution: a block of tiles at a time goes through all three steps.

See palto.compiler.winograd for what is computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from palto.compiler.llvm import contract, tiling
from palto.compiler.llvm.builder import Function, Value
from palto.compiler.llvm.tiling import Axis, Contraction, Machine, Plan
from palto.compiler.winograd import PIXELS, results_of

#: The most tiles of a block, and a register tile's height, of which it is a multiple. So many tiles
#: need not fit into the second cache, as they are read in order.
_MOST_TILES, _ROWS = 48, 6
#: Of a kernel's gradient: the most channels and outputs of a unit.
_PARTS = 128, 96
#: Units for each thread that are about as much for all, however many remain.
_MANY_UNITS = 4
#: The most tiles of its blocks, whatever the number of threads: sums are divided by them.
_GRADIENT_TILES = 64
#: The tile whose pixels are fetched while one is transformed: so many further on.
_TILES_AHEAD = 1
#: Elements after each of the 36 parts of a block, so that they do not share places of the cache.
_GAP = 16


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a convolution.

    Attributes:
        images: how many.
        pixels: height and width of an image.
        size: height and width of its results.
        kernel: pixels along a side of the kernel.
        before: rows and columns of zeros before those of an image.
    """

    images: int
    pixels: tuple[int, int]
    size: tuple[int, int]
    kernel: int
    before: tuple[int, int]

    @property
    def side(self) -> int:
        """Results along a side of a tile."""
        return results_of(self.kernel)

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles along a result's height and width."""
        return -(-self.size[0] // self.side), -(-self.size[1] // self.side)

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
        """Tiles of a block, with the least to do for a thread; kernels are read for each block."""
        threads = self.machine.threads
        most = max(min(self.total // (2 * threads), _MOST_TILES), _ROWS)
        return min(
            range(_ROWS, most + 1, _ROWS),
            key=lambda n: math.ceil(self.total / (n * threads)) * (n + _ROWS),
        )

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
        """Channels and outputs of a unit: many, for more work with what has been transformed."""
        lanes = self.machine.vector_bytes // 4
        return _part_of(self.channels, _PARTS[0], lanes), _part_of(self.share, _PARTS[1], lanes)

    @property
    def lines(self) -> int:
        """Of the six lines of sums, those of a unit: fewer, so that all threads have work."""
        channels, outputs = self.parts
        units = self.groups * (self.channels // channels) * (self.share // outputs)
        threads = self.machine.threads
        for lines in (6, 3, 2):
            count = units * PIXELS // lines
            if count % threads == 0 or count >= _MANY_UNITS * threads:
                return lines
        return 1

    @property
    def units(self) -> int:
        """Pieces of work, each for all tiles."""
        channels, outputs = self.parts
        divided = (self.channels // channels) * (self.share // outputs)
        return self.groups * divided * PIXELS // self.lines

    @property
    def block(self) -> int:
        """Tiles of a block."""
        return -(-self.total // -(-self.total // _GRADIENT_TILES))

    @property
    def part(self) -> int:
        """Elements from one of the parts of transformed tiles to the next."""
        return self.block * self.parts[0] + _GAP

    @property
    def other_part(self) -> int:
        """Likewise, of the transformed gradient."""
        return self.block * self.parts[1] + _GAP

    @property
    def sums_part(self) -> int:
        """Likewise, of the sums of products."""
        return math.prod(self.parts) + _GAP

    @property
    def scratch(self) -> int:
        """Elements that a unit needs."""
        return self.lines * PIXELS * (self.part + self.other_part + self.sums_part)

    @property
    def plan(self) -> Plan:
        """The matrix products of a block of tiles."""
        channels, outputs = self.parts
        found = tiling.plan(
            Contraction(
                "float",
                (Axis(self.lines * PIXELS, self.part, self.other_part),),
                (Axis(channels, 1),),
                outputs,
                (Axis(self.block, channels, outputs),),
                wide_a=True,
            ),
            self.machine,
        )
        return replace(found, packs_a=False, packs_b=False)


def _part_of(count: int, most: int, lanes: int) -> int:
    """The largest part of a count, of whole vectors, that is no more than `most`."""
    return max(n for n in range(lanes, min(count, most) + 1, lanes) if count % n == 0)


@dataclass(frozen=True, slots=True)
class Source:
    """What is transformed.

    Attributes:
        load: gives so many neighbouring elements from an offset on.
        fetch: starts to fetch them.
    """

    load: Callable[[Value, int], Value]
    fetch: Callable[[Value], None]


#: An offset, and whether there is anything.
Place = tuple[Value, Value]
#: So many neighbouring elements, from an offset on.
Load = Callable[[Value, int], Value]
#: Takes group, image, row and pixel, the first output's number in the group, and results.
Finish = Callable[[list[Value], Value, Value], None]
#: Is told where such results will be finished, and how many, so that it can fetch what they need.
Expect = Callable[[list[Value], Value, int], None]


def emit(
    f: Function, layout: Layout, x: Source, load_u: Load, scratch: Value, finish: Finish,
    expect: Expect,
) -> None:  # fmt: skip
    """Write the loops over the units from parameter `first` to parameter `last`.

    Args:
        f: where to write.
        layout: what is convolved.
        x: the input.
        load_u: gives so many neighbouring elements of the transformed kernels.
        scratch: a pointer to `layout.units` times `layout.scratch` elements.
        finish: takes finished results.
        expect: is told of those that come soon.
    """
    with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
        region = f.binary("mul", f.parameters["first"], f.constant(layout.scratch, "i64"))
        _Emitter(f, layout, scratch, x, load_u, region, finish, expect).unit(loop.counter)


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
        self, tile: Value, base: Value, strides: Sequence[int], source: Source, channels: int,
        target: Value, part: int, lines: slice = slice(None),
    ) -> None:  # fmt: skip
        """Transform the pixels of a tile to some lines, for some channels from an offset on."""
        f, side = self.f, self.layout.side
        grid = self.pixels_of(tile, base, strides)
        # Those that the next tile shares with this one come on their own.
        later = self.pixels_of(self.add(tile, _TILES_AHEAD), base, strides)
        with f.loop(0, channels, self.lanes) as loop:
            for row in later:
                for at, _ in row[-side:]:
                    source.fetch(self.add(at, loop.counter))
            pixels = [[self.read(source, place, loop.counter) for place in row] for row in grid]
            down = turned([self.of_pixels(line) for line in turned(pixels)])
            place = self.add(target, loop.counter)
            for i, line in enumerate(down[lines]):
                for j, value in enumerate(self.of_pixels(line)):
                    self.store(self.add(place, (PIXELS * i + j) * part), value)

    def pixels_of(self, tile: Value, base: Value, strides: Sequence[int]) -> list[list[Place]]:
        """Where each pixel of a tile is."""
        image, *first = self.where(tile)
        first = [self.add(at, -n) for at, n in zip(first, self.layout.before, strict=True)]
        return self.grid(image, first, self.layout.pixels, PIXELS, base, strides)

    def grid(
        self, image: Value, first: Sequence[Value], size: tuple[int, int], count: int, base: Value,
        strides: Sequence[int],
    ) -> list[list[Place]]:  # fmt: skip
        """The offsets of some rows and columns of an image, and whether it has them."""
        f = self.f
        base = self.add(base, self.times(image, strides[0]))
        axes: list[list[Place]] = []
        for at, length, stride in zip(first, size, strides[1:3], strict=True):
            axes.append([])
            for place in (self.add(at, i) for i in range(count)):
                near = f.intrinsic("llvm.smax", self.at_most(place, length - 1), self.constant(0))
                is_there = f.compare("eq", near, place)
                axes[-1].append((self.times(near, stride), is_there))
        return [
            [(self.add(base, self.add(i, j)), f.binary("and", is_row, is_column))
             for j, is_column in axes[1]]
            for i, is_row in axes[0]
        ]  # fmt: skip

    def read(self, source: Source, place: Place, further: Value) -> Value:
        """A vector of an image, zero where there is none."""
        at, is_there = place
        value = source.load(self.add(at, further), self.lanes)
        return self.f.select(is_there, value, self.f.constant(0, "float", self.lanes))

    def where(self, tile: Value) -> tuple[Value, Value, Value]:
        """The image of a tile, and the row and the pixel of its first result."""
        f, (down, across) = self.f, self.layout.tiles
        line = f.binary("udiv", tile, self.constant(across))
        column = f.binary("sub", tile, self.times(line, across))
        image = f.binary("udiv", line, self.constant(down))
        row = f.binary("sub", line, self.times(image, down))
        return image, self.times(row, self.layout.side), self.times(column, self.layout.side)

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
        found = [self.sum(self.sum(m[0], a), c)]
        for power in range(1, self.layout.side):
            x, y = (b, d) if power % 2 else (a, c)
            if power == self.layout.side - 1:
                x = self.sum(m[5], x)
            found.append(self.plus(x, 2**power, y))
        return found

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
    x: Source
    load_u: Load
    region: Value
    finish: Finish
    expect: Expect

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
        self.of_tile(tile, base, x.strides, self.x, x.channels, target, x.part)

    def results(self, group: Value, slot: Value, tile: Value, first: Value) -> None:
        """The results of a tile, for each output of a panel."""
        f, x, lanes = self.f, self.layout, self.lanes
        image, row, column = self.where(tile)
        later = self.where(self.add(tile, _TILES_AHEAD))
        source = self.sums_at(self.constant(0), slot)
        with f.loop(0, x.panel, lanes) as loop:
            at = self.add(source, loop.counter)
            for i in range(x.side):
                for j in range(x.side):
                    there = [group, later[0], self.add(later[1], i), self.add(later[2], j)]
                    self.expect(there, self.add(first, loop.counter), lanes)
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
        if size % self.layout.side == 0:
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
    f: Function, layout: GradientLayout, x: Source, g: Source, target: Value, scratch: Value
) -> None:
    """Write the loops over the units from parameter `first` to parameter `last`.

    Args:
        f: where to write.
        layout: what is computed.
        x: the input.
        g: the results' gradient.
        target: a pointer to the 36 sums of products, (36, channels, all outputs).
        scratch: a pointer to `layout.units` times `layout.scratch` elements.
    """
    with f.loop(f.parameters["first"], f.parameters["last"]) as loop:
        region = f.binary("mul", f.parameters["first"], f.constant(layout.scratch, "i64"))
        emitter = _GradientEmitter(f, layout, scratch, x, g, region, target)
        emitter.unit(loop.counter)


@dataclass(slots=True)
class _GradientEmitter(_Tiles):
    layout: GradientLayout
    x: Source
    g: Source
    region: Value
    target: Value

    def unit(self, number: Value) -> None:
        """All tiles, for some channels, outputs and lines of sums of a group."""
        f, x = self.f, self.layout
        channels, outputs = x.parts
        columns, rows = x.share // outputs, x.channels // channels
        column = f.binary("urem", number, self.constant(columns))
        number = f.binary("udiv", number, self.constant(columns))
        row = f.binary("urem", number, self.constant(rows))
        number = f.binary("udiv", number, self.constant(rows))
        group = f.binary("urem", number, self.constant(x.groups))
        some = f.binary("udiv", number, self.constant(x.groups))
        first_channel = self.times(row, channels)
        first_output = self.add(self.times(group, x.share), self.times(column, outputs))
        from_x = self.add(self.add(self.times(group, x.channels), first_channel), x.x[1])
        from_g = self.add(first_output, x.g[1])
        sums_count = x.lines * PIXELS
        other = self.add(self.region, sums_count * x.part)
        sums_at = self.add(other, sums_count * x.other_part)
        plan = x.plan
        with f.loop(0, -(-x.total // x.block)) as blocks:
            first = self.times(blocks.counter, x.block)
            begins = f.compare("eq", blocks.counter, self.constant(0))
            for part in range(PIXELS // x.lines):
                lines = slice(part * x.lines, (part + 1) * x.lines)
                with (
                    f.when(f.compare("eq", some, self.constant(part))),
                    f.loop(0, x.block) as loop,
                ):
                    slot = loop.counter
                    tile = self.at_most(self.add(first, slot), x.total - 1)
                    place = self.add(self.region, self.times(slot, channels))
                    self.of_tile(tile, from_x, x.x[0], self.x, channels, place, x.part, lines)
                    # In the last block, some tiles do not exist: their gradient is zero.
                    is_tile = f.compare("slt", self.add(first, slot), self.constant(x.total))
                    place = self.add(other, self.times(slot, outputs))
                    self.of_gradient(tile, is_tile, from_g, place, lines)

            def add_up(part: list[Value], line: list[Value], column: Value, sums: Value) -> None:
                place = self.add(self.times(part[0], x.sums_part), self.times(line[0], outputs))
                place = self.add(self.add(place, sums_at), column)
                before = self.load(place, sums.lanes)
                zero = f.constant(0, "float", sums.lanes)
                self.store(place, self.sum(f.select(begins, zero, before), sums))

            contract.emit(
                f, plan,
                lambda at, lanes=1: self.load(self.add(self.region, at), lanes),
                lambda at, lanes: self.load(self.add(other, at), lanes),
                None, self.constant(0), self.constant(plan.units), add_up, private=True,
            )  # fmt: skip
        with f.loop(0, sums_count) as each, f.loop(0, channels) as channel:
            source = self.add(self.times(each.counter, x.sums_part), sums_at)
            source = self.add(source, self.times(channel.counter, outputs))
            place = self.add(self.times(some, sums_count), each.counter)
            place = self.add(self.times(place, x.channels), first_channel)
            place = self.times(self.add(place, channel.counter), x.groups * x.share)
            place = self.add(place, first_output)
            with f.loop(0, outputs, self.lanes) as loop:
                sums = self.load(self.add(source, loop.counter), self.lanes)
                f.store(self.target, self.add(place, loop.counter), sums)

    def of_gradient(
        self, tile: Value, is_tile: Value, base: Value, target: Value, lines: slice
    ) -> None:
        """Transform the gradient of a tile's results to some lines; beyond the results it is 0."""
        f, x = self.f, self.layout
        grid = self.results_of(tile, base)
        later = self.results_of(self.add(tile, _TILES_AHEAD), base)
        with f.loop(0, x.parts[1], self.lanes) as loop:
            for at, _ in itertools.chain(*later):
                self.g.fetch(self.add(at, loop.counter))
            values = [
                [self.read(self.g, (at, f.binary("and", is_tile, is_result)), loop.counter)
                 for at, is_result in row]
                for row in grid
            ]  # fmt: skip
            down = turned([self.of_results(line) for line in turned(values)])
            place = self.add(target, loop.counter)
            for i, across in enumerate(down[lines]):
                for j, value in enumerate(self.of_results(across)):
                    self.store(self.add(place, (PIXELS * i + j) * x.other_part), value)

    def results_of(self, tile: Value, base: Value) -> list[list[Place]]:
        """Where each result of a tile is."""
        image, *first = self.where(tile)
        x = self.layout
        return self.grid(image, first, x.size, x.side, base, x.g[0])

    def of_results(self, y: list[Value]) -> list[Value]:
        """From a side's numbers to six: `of_sums` backwards."""
        a, b = y[:2]
        c, d = y[:2]
        for power, value in enumerate(y[2:], 2):
            factor = 2 ** (power - power % 2)
            if power % 2:
                b, d = self.sum(b, value), self.plus(d, factor, value)
            else:
                a, c = self.sum(a, value), self.plus(c, factor, value)
        return [
            y[0], self.sum(a, b), self.minus(a, b), self.plus(c, 2, d), self.plus(c, -2, d), y[-1],
        ]  # fmt: skip
