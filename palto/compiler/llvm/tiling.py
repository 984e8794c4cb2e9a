"""How contractions are cut into tiles: matrix products and convolutions, in every direction.

    result[batch..., rows..., column] = sum over summed... of
        a[batch..., rows..., summed...] * b[batch..., summed..., column]

`plan` cuts the result into tiles that fit the registers: some neighbours of the last row axis by
a few vectors of columns. It cuts the summed axes into blocks, and the work into units, which
threads divide among themselves. See palto.compiler.llvm.contract for the code.

A convolution forward has rows (image, output row, output column) and summed axes (kernel row,
kernel column x channel); its weight gradient has rows (kernel row, kernel column x channel) and
summed axes (image, output row, output column). Groups are a batch axis.

Each sum is added in the order of the summed axes, in blocks whose sizes depend on the shape
alone, so a result depends neither on the tiles nor on how threads divide the units.

Where the memory of a or b is walked in large steps, a unit may first copy what it reads again and
again: tiles of a, and of b a panel at a time. So b may also be transposed.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from palto.compiler.llvm.builder import size_of
from palto.compiler.sizes import Size, bounds

#: Summed elements in a block, about: a block's panel of b should stay in the first cache.
SUMMED_BLOCK = 384
#: Up to so many summed elements are not cut.
SUMMED_WHOLE = 800
#: The least multiplications and additions that make a unit of their own.
UNIT_FLOPS = 1 << 18
#: What each doubling costs of what a unit walks through again and again, from half of the second
#: cache on.
AWAY = 0.05
#: What copies cost, in time of a tile's multiplications: of a tile's rows, and of a panel of b.
COPY_A, COPY_B = 0.3, 1.2
#: What a panel of b costs that comes from beyond the second cache.
FETCH_B = 0.5
#: Bytes of a page of memory, and of a line of the cache.
_PAGE, _LINE = 4096, 64
#: From so many bytes between neighbours along more summed elements, they share few places of the
#: first cache; what each doubling costs where they are not copied.
FAR_A, FAR_B, FAR_LENGTH, FAR = 512, 256, 64, 0.06
#: What units of some of the columns cost. Of some of the rows, a weight's gradient and update are
#: made by the thread that reads these weights in the forward product, whose cache holds them then.
COLUMNS = 1.04
#: With up to so many summed elements for each element of a result larger than twice the second
#: cache, memory decides: tiles of so few rows, and wide ones, go through few pages at once.
FEW_SUMMED, FLAT = 128, 4
#: Of a matrix times a vector: rows of a tile, and vectors side by side along each. More rows would
#: share few places of the first cache, where they are long.
LENGTHWISE = 4, 2


@dataclass(frozen=True, slots=True)
class Machine:
    """What a tile has to fit.

    Attributes:
        vector_bytes: size of a vector register.
        registers: how many there are.
        l1: bytes of a core's first data cache.
        l2: bytes of its second.
        fused: whether it multiplies and adds in one instruction.
        threads: how many threads share the units.
    """

    vector_bytes: int
    registers: int
    l1: int = 32 << 10
    l2: int = 512 << 10
    fused: bool = True
    threads: int = 16

    def crowds(self, distance: int, count: int) -> bool:
        """Whether lines so many bytes apart are for fewer places of the first cache than they are.

        A line's place in it is that in its page, and each place holds as many lines as the cache
        has pages.
        """
        places = _PAGE // max(math.gcd(distance, _PAGE), _LINE)
        return count > places * (self.l1 // _PAGE)

    @staticmethod
    @functools.cache
    def host() -> Machine:
        """This computer."""
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
        l1, l2 = _cache_size(1, 32 << 10), _cache_size(2, 512 << 10)
        arm = platform.machine().lower() in ("arm64", "aarch64")
        fused = arm or bool(features.get("fma"))
        vector_bytes, registers = 16, 32 if arm else 16
        if features.get("avx512f"):
            vector_bytes, registers = 64, 32
        elif features.get("avx2") and fused:
            vector_bytes = 32
        return Machine(vector_bytes, registers, l1, l2, fused, os.cpu_count() or 1)


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
class Needless:
    """Where nothing need be summed: where a sum is above 0.

    Attributes:
        row, column, summed: 1, 0 or -1 times the index along the last row axis, of the column, and
            along the only summed axis.
        constant: what is added.
    """

    row: int
    column: int
    summed: int
    constant: int


@dataclass(frozen=True, slots=True)
class Contraction:
    """What is to be computed.

    Attributes:
        kind: "float" or "double".
        batch: axes of all three.
        rows: axes of a and the result; tiles run along the last.
        columns: length of the last axis of b and the result; neighbours in b.
        summed: axes of a and b.
        wide_a: whether `load_a` also takes a number of neighbours, as `load_b` does.
        column_b: elements between neighbouring columns in b. Where it is not 1, b is always copied,
            so it may lie in memory the other way round, as weights (outputs, inputs) do.
        needless: what is left out by whole tiles, and by whole indices along the summed axis.
    """

    kind: str
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: int
    summed: tuple[Axis, ...]
    wide_a: bool = False
    column_b: int = 1
    needless: tuple[Needless, ...] = ()


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
        packs_a: whether a unit first copies its block of a together, tile after tile.
        packs_b: whether it copies the block of b of each panel together.
        panels_stay: whether neighbouring units have the same panels, not the same rows.
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
    packs_a: bool = False
    packs_b: bool = False
    panels_stay: bool = False

    def describe(self) -> str:
        """Its tile, what is copied, and into how many blocks what is summed is cut."""
        height, width = (max((x.size for x in y), default=0) for y in (self.tiles, self.panels))
        copied = [name for name, packs in (("a", self.packs_a), ("b", self.packs_b)) if packs]
        text = f"{height}x{width}"
        if copied:
            text += f", copies {' and '.join(copied)}"
        return text + (f", {self.blocks} blocks" if self.blocks != 1 else "")

    @property
    def is_fixed(self) -> bool:
        """Whether no length depends on run-time sizes."""
        return _fixed(self.contraction) == self.contraction

    @property
    def lengthwise(self) -> bool:
        """Whether vectors run along the last summed axis, as there is one column."""
        return _is_lengthwise(self.contraction, self.lanes)

    @property
    def lanes(self) -> int:
        """Elements of a vector register."""
        return self.machine.vector_bytes // size_of(self.contraction.kind)

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
            -(-_most(self.panel_count) // int(self.panel_blocks)),
            -(-_most(self.lines) // int(self.line_blocks)),
            -(-_most(self.tile_count) // int(self.tile_blocks)),
        )

    @property
    def panel_bytes(self) -> int:
        """Bytes of b that a unit walks through in a block."""
        width = max((x.size for x in self.panels), default=0)
        return self.unit_shape[0] * width * self.block_length * size_of(self.contraction.kind)

    @property
    def tile_sums(self) -> int:
        """The most sums of a tile."""
        height, width = (max((x.size for x in y), default=0) for y in (self.tiles, self.panels))
        return height * width

    @property
    def kept(self) -> int:
        """Elements of unfinished sums that a unit keeps."""
        return _whole_lines(math.prod(self.unit_shape) * self.tile_sums) if self.blocks != 1 else 0

    @property
    def block_length(self) -> int:
        """The most summed elements of a block."""
        x = self.contraction.summed[self.cut :]
        if not x:
            return 1
        inner = int(math.prod(y.length for y in x[1:]))
        length = -(-int(x[0].length) // int(self.cuts)) * inner
        # Where there are fewer cuts, one may be longer.
        return max(length, SUMMED_BLOCK + inner) if isinstance(self.cuts, Size) else length

    @property
    def outer_length(self) -> int:
        """The least length of a block along the outermost axis that it walks; 0 if unknown."""
        x = self.contraction.summed[self.cut :]
        return 0 if not x or isinstance(x[0].length, Size) else x[0].length // self.cuts

    @property
    def tile_copy(self) -> int:
        """Elements of a copy of a tile's rows of a, over a block."""
        height = max((x.size for x in self.tiles), default=0)
        return _whole_lines(height * self.block_length)

    @property
    def copied_a(self) -> int:
        """Elements of the copy of a that a unit keeps."""
        return math.prod(self.unit_shape[1:]) * self.tile_copy if self.packs_a else 0

    @property
    def copied_b(self) -> int:
        """Elements of the copy of b that a unit keeps."""
        width = max((x.size for x in self.panels), default=0)
        return _whole_lines(width * self.block_length) if self.packs_b else 0

    @property
    def share(self) -> int:
        """Elements of the buffer that a unit needs."""
        return self.kept + self.copied_a + self.copied_b

    @property
    def partial(self) -> int:
        """Elements of the buffer for unfinished sums; a call touches one unit's share."""
        return _most(self.units) * self.share

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        x = self.contraction
        axes = (*x.batch, *x.rows, *x.summed)
        return int(2 * x.columns * math.prod(axis.length for axis in axes))


def _most(size: int) -> int:
    """The greatest value that a size may have."""
    return bounds(size)[1]


def _whole_lines(elements: int) -> int:
    """As many elements or more, so that what follows begins with a line of the cache."""
    return -(-elements // 16) * 16


def plan(contraction: Contraction, machine: Machine) -> Plan:
    """Choose tiles, blocks and units for a contraction, by the greatest run-time sizes."""
    x = replace(contraction, summed=_merged(contraction.summed))
    if x.columns == 1:
        x = replace(x, column_b=1)
    length = x.rows[-1].length if x.rows else 1
    lines = math.prod(axis.length for axis in x.rows[:-1])
    pieces = vector_lanes(int(x.columns), machine.vector_bytes // size_of(x.kind))
    is_flat = (
        math.prod(int(axis.length) for axis in x.summed) <= FEW_SUMMED
        and int(lines * length * x.columns) * size_of(x.kind) > 2 * machine.l2
        and not any(isinstance(n, Size) for n in (lines, length, x.columns))
    )
    height, vectors = _tile(int(length), len(pieces), machine.registers, is_flat=is_flat)
    cut, cuts = _cut(x)
    if _is_lengthwise(x, machine.vector_bytes // size_of(x.kind)):
        height, cut, cuts = LENGTHWISE[0], 0, 1
    tiles = _spans([1] * int(length), height)
    panels = _spans(pieces, vectors)
    turned = x.column_b != 1
    whole = Plan(_fixed(x), machine, tiles, panels, int(lines), cut=cut, cuts=cuts, packs_b=turned)
    best = min(_divisions(whole), key=_cost)
    best = replace(best, panels_stay=_panels_stay(best))
    if whole.contraction == x:
        return best
    if isinstance(length, Size):
        tiles = _loose_spans(length, [(1,) * n for n in _powers(height)])
    if isinstance(x.columns, Size):
        lanes = machine.vector_bytes // size_of(x.kind)
        wide = [(lanes,) * n for n in _powers(vectors)]
        panels = _loose_spans(x.columns, [*((n,) for n in (1, 2, 4, 8, 16) if n < lanes), *wide])
    if cuts > 1 and isinstance(x.summed[cut].length, Size):
        inner = math.prod(axis.length for axis in x.summed[cut + 1 :])
        cuts = -(-x.summed[cut].length * inner // SUMMED_BLOCK)
    return replace(best, contraction=x, tiles=tiles, panels=panels, lines=lines, cuts=cuts)


def _is_lengthwise(x: Contraction, lanes: int) -> bool:
    """Whether vectors of a row of a, times vectors of b, are what to add up."""
    if x.columns != 1 or isinstance(x.columns, Size) or not x.summed or not x.wide_a:
        return False
    last = x.summed[-1]
    is_long = not isinstance(last.length, Size) and last.length >= LENGTHWISE[1] * lanes
    return is_long and last.a == last.b == 1


def _fixed(x: Contraction) -> Contraction:
    """The contraction at the greatest run-time sizes."""

    def fixed(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(Axis(int(n.length), int(n.a), int(n.b)) for n in axes)

    return replace(
        x, batch=fixed(x.batch), rows=fixed(x.rows), columns=int(x.columns),
        summed=fixed(x.summed), column_b=int(x.column_b),
    )  # fmt: skip


def _loose_spans(length: int, shapes: Sequence[tuple[int, ...]]) -> tuple[Span, ...]:
    """Tiles along a length known at run time: the largest shape, then ever smaller ones."""
    result: list[Span] = []
    first: int = 0
    rest = length
    for shape in reversed(shapes):
        size = sum(shape)
        count, start = rest // size, length - rest
        result.append(Span(first, count, start, shape))
        first, rest = first + count, rest % size
    return tuple(result)


def vector_lanes(length: int, most: int) -> list[int]:
    """Lanes of the vectors that cover a length, without a mask."""
    rest = length % most
    return [most] * (length // most) + [size for size in (8, 4, 2, 1) if rest & size]


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


def _tile(rows: int, vectors: int, registers: int, *, is_flat: bool = False) -> tuple[int, int]:
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

    flat = (registers - 1) // (FLAT + 1)
    if is_flat and vectors >= flat:
        return height(flat), flat
    best = min(range(1, registers // 2 + 1), key=cost)
    # Two vectors read least of b at a time: given up for a clear gain only.
    width = best if cost(best) < 0.95 * cost(2) else 2
    return height(width), width


def _cut(x: Contraction) -> tuple[int, int]:
    """Which summed axis is cut, and into how many parts."""
    lengths = [int(axis.length) for axis in x.summed]
    if math.prod(lengths) <= SUMMED_WHOLE:
        return 0, 1
    for i in range(len(lengths)):
        inner = math.prod(lengths[i + 1 :])
        if inner <= SUMMED_BLOCK:
            return i, -(-lengths[i] * inner // SUMMED_BLOCK)
    return 0, 1


def _divisions(whole: Plan) -> Iterator[Plan]:
    """The plan divided into units, with and without copies, in the ways worth considering."""
    yield whole
    if not whole.flops:
        return
    far_a, far_b = (far > 0 for far in _far(whole))
    far_b = far_b or whole.packs_b
    rows = [(n, 1) for n in _powers(whole.lines)]
    rows += [(whole.lines, n) for n in _powers(whole.tile_count)[1:]]
    columns = _powers(whole.panel_count)
    columns += [3 * n for n in columns if 3 * n < whole.panel_count]
    for (line_blocks, tile_blocks), panel_blocks in itertools.product(rows, columns):
        p = replace(
            whole, line_blocks=line_blocks, tile_blocks=tile_blocks, panel_blocks=panel_blocks
        )
        if p.units > max(whole.units, p.flops // UNIT_FLOPS):
            continue
        for packs_a, packs_b in itertools.product({False, far_a}, {whole.packs_b, far_b}):
            yield replace(p, packs_a=packs_a, packs_b=packs_b)


def _powers(most: int) -> list[int]:
    """The powers of two below a number, then the number."""
    return [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]


def _cost(p: Plan) -> float:
    """The time of all units, about, in multiplications of one tile with one panel."""
    panels, lines, tiles = p.unit_shape
    rows = lines * tiles
    far_a, far_b = _far(p)
    each = 1.0 + far_a * (not p.packs_a) + far_b * (not p.packs_b)
    # A block of a that leaves the second cache comes from farther away for each panel, and so do
    # unfinished sums for each block.
    again = _block_bytes(p) + p.kept * size_of(p.contraction.kind)
    each += AWAY * math.log2(max(1.0, 2 * again / p.machine.l2))
    copies = COPY_A * rows * p.packs_a + COPY_B * panels * p.packs_b
    is_near = _panels_stay(p) and p.panel_bytes <= p.machine.l2 // 2
    unit = each * panels * rows + copies + FETCH_B * panels * (not is_near) + 0.1
    unit *= COLUMNS if p.panel_blocks > 1 else 1.0
    # Fewer threads than planned for should find enough units too.
    threads = p.machine.threads, max(1, 3 * p.machine.threads // 4)
    return sum(unit * -(-p.units // n) * n for n in threads)


def _panels_stay(p: Plan) -> bool:
    """Whether a unit's panels of b, which the next one may use again, are larger than its rows."""
    return p.panel_bytes > _block_bytes(p)


def _far(p: Plan) -> tuple[float, float]:
    """How much longer a multiplication takes because a, or b, is read at large distances."""
    x = p.contraction
    if not x.summed or p.lengthwise:
        return 0.0, 0.0
    size, inner = size_of(x.kind), x.summed[-1]
    distances = (abs(inner.a) * size, FAR_A), (abs(inner.b) * size, FAR_B)
    far_a, far_b = (FAR * math.log2(2 * n / least) if n >= least else 0.0 for n, least in distances)
    if p.block_length > FAR_LENGTH:
        return far_a, far_b
    # What fits in the first cache lies there, unless its lines are for few places of it.
    return 0.0, far_b if p.machine.crowds(distances[1][0], p.block_length) else 0.0


def _block_bytes(p: Plan) -> int:
    """About how many bytes of a a unit reads in a block."""
    x, size = p.contraction, size_of(p.contraction.kind)
    if p.packs_a:
        return p.copied_a * size
    inner = list(x.summed[p.cut :])
    if inner:
        inner[0] = replace(inner[0], length=-(-inner[0].length // p.cuts))
    left, axes = p.unit_shape[1], inner
    for axis in reversed(x.rows[:-1]):
        axes.append(replace(axis, length=min(axis.length, left)))
        left = -(-left // axis.length)
    if x.rows:
        axes.append(replace(x.rows[-1], length=-(-x.rows[-1].length // p.tile_blocks)))
    extent = 1 + sum((axis.length - 1) * abs(axis.a) for axis in axes)
    return min(extent, math.prod(axis.length for axis in axes)) * size
