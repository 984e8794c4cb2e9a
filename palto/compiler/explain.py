"""Explain: what a program does, step by step, and how near each comes to the machine's best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from palto.compiler import team
from palto.compiler.executor import Explanation
from palto.compiler.index import Index
from palto.compiler.llvm import machine, tiling
from palto.compiler.llvm.builder import Function, Value, size_of
from palto.compiler.llvm.elementwise import LLVM_TYPES
from palto.compiler.nests import Check, Group, Single
from palto.tensor import dtypes
from palto.tensor.graph import Array, Operation
from palto.tensor.tensor import Shape, Tensor

if TYPE_CHECKING:
    from palto.compiler.native import Native, Step
    from palto.compiler.program import Program
from palto.compiler.sizes import at, shape_at
from palto.compiler.zeros import needed_share

#: For how long a program is run to be profiled.
_SECONDS = 0.3
#: What says nothing of what a step computes, as long as it computes anything.
_QUIET = ("detach", "expand", "permute", "reshape")
#: How often each microbenchmark runs at least, and for how long; the best counts.
_TRIES, _TRYING = 5, 0.15
#: Multiplications with additions in the body of the microbenchmark's loop: enough sums side by side
#: that none waits for the one before, in registers together with two factors. A run is so short
#: that on a busy machine some run has all processors for itself.
_CHAINS, _LINKS, _TURNS = 12, 4, 1 << 14
#: Bytes that the other microbenchmark copies: more than caches hold.
_COPIED = 1 << 26


@dataclass(frozen=True, slots=True)
class Row:
    """A step of a program.

    Attributes:
        number: its place in the program.
        kind: "matmul", "conv" or "winograd"; "map", "rows" (in several passes over each),
            "reduce", "running", "scatter", "update"; "check" of values; "repeat",
            layers alike; "library" and "scan", which Python runs.
        layers: the layers that it belongs to, most of it to the first; a gradient belongs to the
            layer of what it is the gradient of.
        primitives: what is computed in it, in order, with repetition; last, what is checked.
        dtype: of its first result.
        shape: the places that it computes a result for.
        summed: how many elements go into each sum of a contraction or reduction; 1 elsewhere.
        tile: how a contraction's tiles lie: rows x columns of one, what is copied, blocks of sums.
        units: independent pieces of work.
        threads: how many take part.
        waits: whether all threads meet before it.
        kept: whether a call skips it, because no parameter has changed since an earlier one.
        read: bytes of memory read, each once.
        written: bytes of memory written.
        flops: floating-point operations; a multiply-add counts as two.
        seconds: the least time that it took.
        peak: the part of what the machine can do: of its multiply-adds for contractions, of its
            copying for others (which may be more than 1 inside caches).
    """

    number: int
    kind: str
    layers: tuple[str, ...]
    primitives: tuple[str, ...]
    dtype: str
    shape: Shape
    summed: int
    tile: str
    units: int
    threads: int
    waits: bool
    kept: bool
    read: int
    written: int
    flops: int
    seconds: float
    peak: float

    @property
    def gflops(self) -> float:
        """10^9 floating-point operations a second."""
        return rate(self.flops, self.seconds)

    @property
    def bandwidth(self) -> float:
        """10^9 bytes read and written a second."""
        return rate(self.read + self.written, self.seconds)


@dataclass(frozen=True, slots=True, repr=False)
class NativeExplanation(Explanation):
    """All steps of a native program, and the totals. Print it.

    Attributes:
        name: of the function.
        rows: the steps, in order.
        seconds: the least time of a whole run, from Python and back.
        threads: how many ran it.
        arena_bytes: the memory for what lives inside a run only.
        lowering_seconds: how long it took to plan and write the program.
        code_seconds: how long LLVM took, or the cache of compiled code.
        kernels: how many different pieces of code the steps share.
        flops_peak: multiply-adds of float32 that the machine does, in 10^9 operations a second: as
            many as were measured, or as some step did.
        copy_peak: 10^9 bytes a second read and written, copying what no cache holds.
    """

    name: str
    rows: tuple[Row, ...]
    seconds: float
    threads: int
    arena_bytes: int
    lowering_seconds: float
    code_seconds: float
    kernels: int
    flops_peak: float
    copy_peak: float

    @property
    def shares(self) -> dict[str, float]:
        """The part of the steps' time that each kind takes, largest first."""
        total = self._total or 1.0
        found: dict[str, float] = {}
        for row in self._each_call:
            found[row.kind] = found.get(row.kind, 0.0) + row.seconds / total
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def _total(self) -> float:
        return sum(row.seconds for row in self._each_call)

    @property
    def _each_call(self) -> list[Row]:
        return [row for row in self.rows if not row.kept]

    def slowest(self, count: int = 10) -> list[Row]:
        """The steps of every call that take the most time, the slowest first."""
        return sorted(self._each_call, key=lambda row: -row.seconds)[:count]

    def summary(self) -> str:
        """The totals."""
        rows = self._each_call
        flops = sum(row.flops for row in rows)
        moved = sum(row.read + row.written for row in rows)
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in self.shares.items())
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        lines = [
            f"{self.name}: {len(self.rows)} steps, {self.kernels} kernels, {threads}",
            f"time      {time_text(self.seconds)} a call, {time_text(self._total)} of it in steps"
            + (f": {shares}" if shares else ""),
            f"work      {count_text(flops)} floating-point operations, "
            f"{rate(flops, self.seconds):,.1f} GFLOP/s; {size_text(moved)} read and written, "
            f"{rate(moved, self.seconds):,.1f} GB/s",
            f"machine   {self.flops_peak:,.1f} GFLOP/s in float32 and {self.copy_peak:,.1f} GB/s "
            "copied, measured on these threads",
            f"memory    {size_text(self.arena_bytes)} for what lives inside a call or is kept",
            f"compiled  in {time_text(self.lowering_seconds)}, and "
            f"{time_text(self.code_seconds)} for machine code",
        ]
        return "\n".join(lines)

    def table(self, rows: Sequence[Row], width: int | None = None) -> str:
        """A table of some steps.

        Args:
            rows: the steps.
            width: how many characters a line has room for; in a narrow table columns are missing.
        """
        total = self._total or 1.0
        return table_text(_COLUMNS, [_cells(row, total) for row in rows], width)

    def profile(self, width: int | None = None) -> str:
        """See the base."""
        return self.table(self.slowest(len(self.rows)), width) + "\n" + self.summary()

    def __str__(self) -> str:
        parts = [self.table(self.rows)]
        if len(self.rows) > 10:
            parts += ["the slowest:", self.table(self.slowest())]
        return "\n".join([*parts, self.summary()])

    __repr__ = __str__


_COLUMNS = (
    "step", "kind", "layer", "computes", "shape", "dtype", "tile", "units", "threads", "waits",
    "read", "written", "FLOPs", "time", "share", "GFLOP/s", "GB/s", "of peak",
)  # fmt: skip
_TEXTS = ("kind", "layer", "computes", "shape", "dtype", "tile")
#: Columns in the order in which they leave a table that is too wide.
_LEAVING = (
    "dtype", "units", "read", "written", "waits", "FLOPs", "threads", "tile", "GB/s", "shape",
    "GFLOP/s",
)  # fmt: skip


def table_text(
    names: Sequence[str], lines: Sequence[Sequence[str]], width: int | None = None
) -> str:
    """A table with these columns; in a narrow one some are missing."""
    columns = {name: tuple(line[i] for line in lines) for i, name in enumerate(names)}
    for name in _LEAVING:
        if width is not None and _width(columns) > width:
            columns.pop(name, None)
    for name in ("computes", "layer"):
        if width is not None and (excess := _width(columns) - width) > 0:
            room = max(max(map(len, columns[name]), default=0) - excess, len(name))
            columns[name] = tuple(
                x if len(x) <= room else x[: room - 1] + "…" for x in columns[name]
            )
    padded = []
    for name, cells in columns.items():
        longest = max(map(len, (name, *cells)))
        pad = str.ljust if name in _TEXTS else str.rjust
        padded.append([pad(x, longest) for x in (name, *cells)])
    head, *rows = ("  ".join(line).rstrip() for line in zip(*padded, strict=True))
    return "\n".join([head, "-" * _width(columns), *rows])


def _width(columns: dict[str, tuple[str, ...]]) -> int:
    """How wide a table is."""
    return sum(2 + max(map(len, (name, *cells))) for name, cells in columns.items()) - 2


def _cells(row: Row, total: float) -> tuple[str, ...]:
    layer = row.layers[0] if row.layers else ""
    if len(row.layers) > 1:
        layer += f" +{len(row.layers) - 1}"
    shape = "x".join(map(str, row.shape)) or "1"
    return (
        str(row.number), row.kind, layer, shortened(row.primitives),
        shape + (f" of {row.summed}" if row.summed > 1 else ""), row.dtype, row.tile,
        str(row.units or "-"), str(row.threads), "yes" if row.waits else "",
        size_text(row.read), size_text(row.written), count_text(row.flops), time_text(row.seconds),
        "kept" if row.kept else f"{row.seconds / total:.1%}",
        f"{row.gflops:,.1f}", f"{row.bandwidth:,.1f}", f"{row.peak:.0%}",
    )  # fmt: skip


def shortened(primitives: Sequence[str], longest: int = 40) -> str:
    """Names of operations, as many as fit, each with how often it comes."""
    counts: dict[str, int] = {}
    for name in primitives:
        counts[name] = counts.get(name, 0) + 1
    parts = [name if n == 1 else f"{n} {name}" for name, n in counts.items()]
    text = ", ".join(parts)
    while len(text) > longest and len(parts) > 1:
        parts.pop()
        text = ", ".join(parts) + f", +{len(counts) - len(parts)}"
    return text


def rate(amount: int, seconds: float) -> float:
    """10^9 of something a second."""
    return amount / seconds / 1e9 if seconds > 0 else 0.0


def time_text(seconds: float) -> str:
    """Seconds with a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e6:.1f} us"


def size_text(count: int) -> str:
    """Bytes with a fitting unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def count_text(count: int) -> str:
    """A number with a fitting unit."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


# From a program to its rows


def explain(
    program: Program, arguments: Sequence[Array], name: str, sizes: Mapping[str, int]
) -> NativeExplanation:
    """Profile a program on some arguments. See :meth:`CompiledFunction.explain`."""
    native = program.native
    threads = team.thread_count()
    *times, whole = program.profile(arguments, _SECONDS, sizes)
    rows = [
        _row(native, step, seconds, threads, sizes)
        for step, seconds in zip(native.steps, times, strict=True)
    ]
    # A step that does more than was measured shows that others were busy during the measurement.
    most: dict[str, float] = {}
    for row in rows:
        if row.tile:
            most[row.dtype] = max(most.get(row.dtype, 1.0), row.peak)
    rows = [replace(x, peak=x.peak / most[x.dtype]) if x.tile else x for x in rows]
    return NativeExplanation(
        name, tuple(rows), whole, threads, native.arena_bytes, native.lowering_seconds,
        native.code_seconds, native.kernel_count,
        flops_peak("float", threads) * most.get("float32", 1.0), copy_peak(threads),
    )  # fmt: skip


def _row(native: Native, step: Step, seconds: float, threads: int, sizes: Mapping[str, int]) -> Row:
    nest, kernel = step.nest, step.kernel
    operations = _operations(native, step)
    tile = "" if kernel is None else kernel.tile
    if isinstance(nest, Group):
        kind = "map" if nest.rows is None else "rows"
        shape, first = nest.shape, nest.outputs[0]
        if nest.product is not None:
            kind, first = nest.product.operation.primitive.name, nest.product.result
            shape = first.shape
            summed = math.prod(v.length for v in nest.product.summed)
        else:
            summed = 1 if nest.rows is None else math.prod(nest.shape[nest.rows :])
    elif isinstance(nest, Check):
        kind, first, summed = "check", nest.tensor, 1
        shape = first.shape if nest.place is None else ()
    else:
        assert isinstance(nest, Single)
        kind, first = nest.kind, nest.outputs[0]
        shape, summed = first.shape, math.prod(v.length for v in nest.reduced)
    named = [x.primitive.name for x in operations]
    loud = [name for name in named if name not in _QUIET]
    if isinstance(nest, Check):
        loud.append(_condition(nest))
    read, written = at(_bytes_read(native, step), sizes), at(_bytes_written(native, step), sizes)
    flops = at(sum(x.primitive.flops(x) for x in operations), sizes)
    if isinstance(nest, Group) and nest.product is not None and nest.product.needless:
        whole = nest.product.operation.primitive.flops(nest.product.operation)
        flops -= round(whole * (1 - needed_share(nest.product.needless)))
    if not tile:
        peak = rate(read + written, seconds) / copy_peak(threads)
    else:
        peak = rate(flops, seconds) / flops_peak(LLVM_TYPES[first.dtype], threads)
    return Row(
        number=nest.position,
        kind=kind,
        layers=_layers(operations),
        primitives=tuple(loud or named[:1]),
        dtype=first.dtype.name,
        shape=shape_at(shape, sizes),
        summed=at(summed, sizes),
        tile=tile,
        units=0 if kernel is None else at(kernel.units, sizes),
        threads=1 if step.is_serial else threads,
        waits=step.barrier,
        kept=nest.position < native.kept,
        read=read,
        written=written,
        flops=flops,
        seconds=seconds,
        peak=peak,
    )


def _condition(nest: Check) -> str:
    """What values must be."""
    if nest.tensor.dtype == dtypes.bool:
        return "x"
    low = "" if nest.low is None else f"{nest.low} <= "
    high = "" if nest.high is None else f" < {nest.high}"
    return f"{low}x{high}" if low or high else "x != 0"


def _operations(native: Native, step: Step) -> list[Operation]:
    """What is computed in a step, in an order in which it can be."""
    nest = step.nest
    found: dict[int, Operation] = {}

    def visit(x: Tensor, *, inside: bool = False) -> None:
        operation = x.operation if x._value is None else None
        if operation is None or operation.sequence in found:
            return
        if inside or not native.is_stored(x):
            found[operation.sequence] = operation
            for source in operation.inputs:
                visit(source)

    if isinstance(nest, Group):
        if nest.product is not None:
            visit(nest.product.result, inside=True)
            visit(nest.product.operation.output(), inside=True)
        for member in nest.members:
            if member.source is member.tensor:
                visit(member.tensor, inside=True)
            else:
                visit(member.source)
                assert member.tensor.operation is not None
                found[member.tensor.operation.sequence] = member.tensor.operation
    elif isinstance(nest, Check):
        visit(nest.tensor)
    else:
        for x in nest.outputs:
            visit(x, inside=True)
    return [found[sequence] for sequence in sorted(found)]


def _layers(operations: Iterable[Operation]) -> tuple[str, ...]:
    """The layers that operations belong to; those that they take most of first."""
    count: dict[str, int] = {}
    for operation in operations:
        if operation.scope:
            name = ".".join(operation.scope)
            count[name] = count.get(name, 0) + operation.primitive.flops(operation)
    return tuple(sorted(count, key=lambda name: -count[name]))


def _bytes_written(native: Native, step: Step) -> int:
    nest = step.nest
    amounts = [(x, x.size) for x in nest.outputs]
    if isinstance(nest, Group) and nest.members:
        amounts = [
            (m.tensor, m.tensor.size if m.offset is None else m.source.size) for m in nest.members
        ]
        if nest.product is not None:
            amounts.append((nest.product.result, nest.product.result.size))
    elif isinstance(nest, Single) and nest.kind == "update":
        amounts = [(nest.outputs[0], nest.operation.inputs[1].size)]
    stored = [(x, size) for x, size in amounts if native.buffer_of(x) is not None]
    return sum(size * x.dtype.itemsize for x, size in stored)


def _bytes_read(native: Native, step: Step) -> int:
    """What a step reads: of each tensor no more than all, and than loops go to."""
    own = {id(x) for x in step.nest.outputs}
    amounts: dict[int, int] = {}
    sizes: dict[int, int] = {}
    reads: Sequence[tuple[Tensor, tuple[Index, ...] | None]] = step.nest.reads
    for x, indices in reads:
        is_number = x._value is not None and x.size == 1  # which stands in the code
        if not is_number and id(x) not in own and native.buffer_of(x) is not None:
            sizes[id(x)] = x.size * x.dtype.itemsize
            places = x.size if indices is None else _least(x.size, _places(indices))
            amounts[id(x)] = amounts.get(id(x), 0) + places * x.dtype.itemsize
    return sum(min(amount, sizes[key]) for key, amount in amounts.items())


def _places(indices: Sequence[Index]) -> int:
    """No fewer than indices take different values."""
    lengths: dict[str, int] = {}

    def visit(index: Index) -> None:
        for variable, _ in index.terms.values():
            if variable.kind == "element":
                for inner in variable.source.indices:
                    visit(inner)
            elif variable.index is not None:
                visit(variable.index)
            else:
                lengths[variable.key] = variable.length

    for index in indices:
        visit(index)
    return _least(math.prod(lengths.values()), math.prod(i.high - i.low + 1 for i in indices))


def _least(a: int, b: int) -> int:
    """The smaller number, at the greatest run-time sizes."""
    return min(a, b, key=int)


# What the machine can do


def _compiled(write: Callable[[Function], None]) -> machine.Code:
    """A function of table, sync, thread and threads, named "measured"."""
    function = Function(
        "measured", [("ptr", "table"), ("ptr", "sync"), ("i64", "thread"), ("i64", "threads")]
    )
    write(function)
    text = function.finish().replace("define internal", "define", 1)
    return machine.load("\n".join([*sorted(function.declarations), text, ""]))


def _least_seconds(code: machine.Code, memory: Array, threads: int) -> float:
    """The best of several runs."""
    address, table = code.address("measured"), memory.__array_interface__["data"][0]
    found: list[float] = []
    end = time.perf_counter() + _TRYING
    while len(found) < _TRIES or time.perf_counter() < end:
        begun = time.perf_counter()
        team.run(address, table, threads)
        found.append(time.perf_counter() - begun)
    return min(found)


@cache
def flops_peak(kind: str, threads: int) -> float:
    """10^9 floating-point operations a second of multiply-adds in registers, on so many threads."""
    host = tiling.Machine.host()
    lanes = host.vector_bytes // size_of(kind)
    code = _compiled(partial(_write_chains, kind, lanes, host.fused))
    seconds = _least_seconds(code, np.zeros(threads * host.vector_bytes, np.uint8), threads)
    return rate(2 * lanes * _CHAINS * _LINKS * _TURNS * threads, seconds)


def _write_chains(kind: str, lanes: int, fused: bool, f: Function) -> None:
    factor, term = f.constant(0.5, kind, lanes), f.constant(1, kind, lanes)

    def link(x: Value) -> Value:
        if fused:
            return f.fma(x, factor, term)
        return f.binary("fadd", f.binary("fmul", x, factor), term)

    with f.loop(0, _TURNS, nonempty=True) as loop:
        sums = [loop.carry(f.constant(i, kind, lanes)) for i in range(_CHAINS)]
        links = list(sums)
        for _ in range(_LINKS):
            links = [link(x) for x in links]
        for phi, value in zip(sums, links, strict=True):
            loop.update(phi, value)
    total, *others = (loop.result(x) for x in sums)
    for x in others:
        total = f.binary("fadd", total, x)
    place = f.binary("mul", f.parameters["thread"], f.constant(lanes, "i64"))
    f.store(f.parameters["table"], place, total)


@cache
def copy_peak(threads: int) -> float:
    """10^9 bytes a second read and written by a copy in memory, on so many threads."""
    lanes = tiling.Machine.host().vector_bytes // 4
    code = _compiled(partial(_write_copy, lanes))
    return rate(2 * _COPIED, _least_seconds(code, np.empty(2 * _COPIED, np.uint8), threads))


def _write_copy(lanes: int, f: Function) -> None:
    """From the first half of the table to the second, in lines of 64 bytes."""
    table, thread, threads = (f.parameters[name] for name in ("table", "thread", "threads"))
    lines = f.constant(_COPIED // 64, "i64")
    ends = [thread, f.binary("add", thread, f.constant(1, "i64"))]
    line = f.constant(16, "i64")
    first, last = (
        f.binary("mul", f.binary("udiv", f.binary("mul", end, lines), threads), line)
        for end in ends
    )
    with f.loop(first, last, 16) as loop:
        for shift in range(0, 16, lanes):
            place = f.binary("add", loop.counter, f.constant(shift, "i64"))
            target = f.binary("add", place, f.constant(_COPIED // 4, "i64"))
            f.store(table, target, f.load(table, place, "float", lanes))
