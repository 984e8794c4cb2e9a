"""Explain: what XLA has made of a program, by its own account.

XLA says what it has fused, how much a call computes and moves, and what memory it takes. It does
not say how long a part of a program takes; JAX's profiler does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from palto.compiler.executor import Explanation
from palto.compiler.explain import (
    count_text,
    rate,
    shortened,
    size_text,
    table_text,
    time_text,
)
from palto.tensor.primitives import TABLE

_LINE = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>\S+) = (?P<type>.*?) (?P<kind>[a-z][\w\-]*)\((?P<rest>.*)"
)
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) (?:\(.*)?\{$")
_TYPE = re.compile(r"(?P<dtype>[a-z]+\d*)\w*\[(?P<shape>[\d,]*)\]")
_NAME = re.compile(r'op_name="(?P<path>[^"]*)"')
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?(?P<name>[\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="(?P<name>[^"]*)"')
_Line = dict[str, str]
#: What computes nothing, or is no work of its own.
_SILENT = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
#: What sends numbers from one device to others.
_BETWEEN = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True, slots=True)
class Row:
    """An operation of XLA's, on each device.

    Attributes:
        name: XLA's own.
        kind: XLA's word, such as "fusion", "dot", "convolution", "while", "all-reduce", or what a
            "custom-call" calls.
        layers: the layers that it belongs to; most of it to the first.
        primitives: what of Palto's operations is in it.
        shape: of its result; of the first of several.
        read: bytes of what it is given.
        written: bytes of what it gives.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    primitives: tuple[str, ...]
    shape: str
    read: int
    written: int


@dataclass(frozen=True, slots=True, repr=False)
class XLAExplanation(Explanation):
    """What XLA says of a program. Print it.

    Attributes:
        name: of the function.
        rows: the operations of a call, in XLA's order.
        seconds: the least time of a call.
        devices: how many share the work. All numbers below are of each.
        flops: floating-point operations, as XLA counts them; loops count once.
        moved: bytes read and written, likewise.
        argument_bytes: memory for arguments and cells.
        result_bytes: for results and the cells' new values, of which `donated_bytes` are written
            over the old ones.
        donated_bytes: see there.
        inside_bytes: for what lives inside a call only.
    """

    name: str
    rows: tuple[Row, ...]
    seconds: float
    devices: int
    flops: int
    moved: int
    argument_bytes: int
    result_bytes: int
    donated_bytes: int
    inside_bytes: int

    @property
    def between(self) -> list[Row]:
        """What devices send each other."""
        return [row for row in self.rows if row.kind.startswith(_BETWEEN)]

    def heaviest(self, count: int = 10) -> list[Row]:
        """The operations that read and write most, the heaviest first."""
        return sorted(self.rows, key=lambda row: -(row.read + row.written))[:count]

    def table(self, rows: Sequence[Row], width: int | None = None) -> str:
        """A table of some operations, in lines of so many characters."""
        lines = [
            (
                row.kind,
                " +".join([*row.layers[:1], *([str(len(row.layers) - 1)] * (len(row.layers) > 1))]),
                shortened(row.primitives), row.shape, size_text(row.read), size_text(row.written),
            )
            for row in rows
        ]  # fmt: skip
        return table_text(("kind", "layer", "computes", "shape", "read", "written"), lines, width)

    def summary(self) -> str:
        """The totals."""
        many = "s, all numbers of each" if self.devices > 1 else ""
        lines = [
            f"{self.name}: {len(self.rows)} operations of XLA on {self.devices} device{many}",
            f"time      {time_text(self.seconds)} a call",
            f"work      {count_text(self.flops)} floating-point operations, "
            f"{rate(self.flops, self.seconds):,.1f} GFLOP/s; {size_text(self.moved)} read and "
            f"written, {rate(self.moved, self.seconds):,.1f} GB/s; as XLA counts, loops once",
            f"memory    {size_text(self.argument_bytes)} for arguments and cells, "
            f"{size_text(self.result_bytes)} for results, {size_text(self.donated_bytes)} of them "
            f"over old values, {size_text(self.inside_bytes)} for what lives inside a call",
        ]
        if self.devices > 1:
            sent = sum(row.written for row in self.between)
            lines.insert(3, f"between   {len(self.between)} exchanges of {size_text(sent)}")
        return "\n".join([*lines, "times of operations are seen by JAX's profiler"])

    def profile(self, width: int | None = None) -> str:
        """See the base."""
        return self.table(self.heaviest(len(self.rows)), width) + "\n" + self.summary()

    def __str__(self) -> str:
        parts = [self.table(self.rows)]
        if len(self.rows) > 10:
            parts += ["what reads and writes most:", self.table(self.heaviest())]
        return "\n".join([*parts, self.summary()])

    __repr__ = __str__


def explain(compiled: Any, name: str, seconds: float, devices: int) -> XLAExplanation:
    """What XLA says of a compiled program of JAX's."""
    cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return XLAExplanation(
        name, tuple(_rows(compiled.as_text())), seconds, devices,
        int(cost.get("flops", 0)), int(cost.get("bytes accessed", 0)),
        memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
    )  # fmt: skip


def _rows(text: str) -> Iterator[Row]:
    """The operations of a program in XLA's language, those inside others counted to them."""
    computations: dict[str, list[_Line]] = {}
    inside: list[_Line] = []
    entry = inside
    for written in text.splitlines():
        head = _COMPUTATION.match(written)
        if head:
            inside = computations[head["name"]] = []
            entry = inside if head["entry"] else entry
        elif found := _LINE.match(written):
            inside.append(found.groupdict())
    types = {line["name"]: line["type"] for line in entry}
    for line in entry:
        if line["kind"] in _SILENT:
            continue
        operands, _, attributes = line["rest"].partition(")")
        target = _TARGET.search(attributes)
        paths = [*_paths(line, computations)]
        layers = dict.fromkeys(layer for layer, _ in paths if layer)
        names = [name for _, name in paths if name]
        counts = {layer: sum(layer == x for x, _ in paths) for layer in layers}
        given = re.findall(r"%([\w.\-]+)", operands)
        shape = _TYPE.search(line["type"])
        yield Row(
            name=line["name"],
            kind=line["kind"] if target is None else target["name"],
            layers=tuple(sorted(layers, key=lambda layer: -counts[layer])),
            primitives=tuple(names),
            shape="" if shape is None else shape["shape"].replace(",", "x") or "1",
            read=sum(_bytes(types.get(x, "")) for x in given),
            written=_bytes(line["type"]),
        )


def _paths(
    line: _Line, computations: dict[str, list[_Line]], depth: int = 0
) -> Iterator[tuple[str, str]]:
    """For each operation of JAX's in a line, or called by it, its layer and Palto's primitive."""
    called = [x["name"] for x in _CALLED.finditer(line["rest"]) if x["name"] in computations]
    if called and depth < 8:
        for name in called:
            for inner in computations[name]:
                if inner["kind"] not in _SILENT:
                    yield from _paths(inner, computations, depth + 1)
        return
    path = _NAME.search(line["rest"])
    parts = [] if path is None else path["path"].split("/")[1:]
    layers = [part for part in parts[:-1][:1] if part not in TABLE and "(" not in part]
    names = [part for part in parts if part in TABLE and part != "composite"]
    yield (layers or [""])[0], (names or [""])[-1]


def _bytes(kind: str) -> int:
    """How many bytes a value of one of XLA's types takes, or all parts of a tuple."""
    total = 0
    for found in _TYPE.finditer(re.sub(r"\{[^}]*\}", "", kind)):
        bits = re.search(r"\d+", found["dtype"])
        each = 8 if bits is None else int(bits[0])  # a truth value is a byte
        each = 2 * each if found["dtype"].startswith("c") and bits is None else each
        total += math.prod(int(n) for n in found["shape"].split(",") if n) * each // 8
    return total
