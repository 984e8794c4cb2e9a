"""Summary: what a model's layers give, hold and cost."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from palto.nn.module import Module, Parameter, observers
from palto.tensor import Cell, Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Trace, no_grad
from palto.tensor.tensor import Shape
from palto.tensor.tree import flatten


@dataclass(frozen=True, slots=True)
class Row:
    """One module, without what the modules inside it hold and do.

    Attributes:
        path: its name, as in ``named_modules()``.
        kind: its class.
        outputs: the shapes of what its last call gave; none if it was not called.
        calls: how often it was called.
        parameters: how many numbers its own parameters have.
        flops: floating-point operations of all calls.
    """

    path: str
    kind: str
    outputs: tuple[Shape, ...]
    calls: int
    parameters: int
    flops: int


@dataclass(frozen=True, slots=True, repr=False)
class Summary:
    """All modules of a model, outermost first, and the totals. Print it.

    Attributes:
        rows: the modules.
        parameters: how many numbers all parameters have; tied ones count once.
        trainable: how many of them training changes.
        flops: floating-point operations of one call; a multiply-add counts as two.
        bytes: the size of all parameters and buffers.
    """

    rows: tuple[Row, ...]
    parameters: int
    trainable: int
    flops: int
    bytes: int

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE, show_footer=True)
        table.add_column("layer", "total", overflow="fold")
        table.add_column("type", f"{self.bytes / 2**20:,.2f} MB")
        table.add_column("output")
        table.add_column("parameters", f"{self.parameters:,}", justify="right")
        table.add_column("FLOPs", f"{self.flops:,}", justify="right")
        for row in self.rows:
            shapes = ", ".join(map(str, row.outputs)) or "not called"
            times = f" x {row.calls}" if row.calls > 1 else ""
            table.add_row(
                row.path, row.kind, shapes + times, _number(row.parameters), _number(row.flops)
            )
        if self.trainable != self.parameters:
            table.caption = f"{self.trainable:,} of the parameters are trained"
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=max(80, self._width()), color_system=None).print(self)
        lines = (line.rstrip() for line in text.getvalue().splitlines())
        return "\n".join(line for line in lines if line)

    __repr__ = __str__

    def _width(self) -> int:
        """As wide as it takes to keep a layer on its line."""
        longest = (len(row.path) + len(row.kind) + len(str(row.outputs)) for row in self.rows)
        return max(longest, default=0) + 60


def _number(n: int) -> str:
    return f"{n:,}" if n else "-"


def summarize(model: Module, inputs: Sequence[Any]) -> Summary:
    """See :meth:`palto.nn.Module.summary`."""
    ledger = _Ledger()
    with _inference(model), ledger.trace.active(), no_grad():
        arguments = [_placeholder(ledger.trace, given) for given in inputs]
        observers.append(ledger)
        try:
            model(*arguments)
        finally:
            observers.remove(ledger)
    counted: set[Cell] = set()
    rows = []
    for path, module in model.named_modules():
        own = {cell for _, cell in module.own_cells()} - counted
        counted |= own
        entry = ledger.entries.get(module, _Entry())
        rows.append(
            Row(
                path,
                type(module).__name__,
                entry.outputs,
                entry.calls,
                sum(cell.size for cell in own if isinstance(cell, Parameter)),
                entry.flops,
            )
        )
    return Summary(
        tuple(rows),
        parameters=sum(row.parameters for row in rows),
        trainable=sum(p.size for p in model.parameters() if p.requires_grad),
        flops=sum(row.flops for row in rows),
        bytes=sum(cell.size * cell.dtype.itemsize for cell in counted),
    )


@contextmanager
def _inference(model: Module) -> Iterator[None]:
    """All modules as in inference in this block, then as they were."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _placeholder(trace: Trace, given: Any) -> Tensor:
    if isinstance(given, Tensor):
        return trace.placeholder(given.shape, given.dtype)
    shape, dtype = given, dtypes.float32
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], tuple | list):
        shape, dtype = given[0], dtypes.as_dtype(given[1])
    return trace.placeholder(F.as_shape(shape), dtype)


@dataclass(slots=True)
class _Entry:
    outputs: tuple[Shape, ...] = ()
    calls: int = 0
    flops: int = 0


class _Ledger:
    """Books every operation of a trace to the innermost module that applied it."""

    def __init__(self) -> None:
        self.trace = Trace()
        self.entries: dict[Module, _Entry] = {}
        self._booked: set[int] = set()
        #: How many tensors there were when each of the calls under way began.
        self._starts: list[int] = []

    def enter(self, module: Module) -> None:
        """A call begins."""
        self._starts.append(len(self.trace.tensors))

    def leave(self, module: Module, output: Any) -> None:
        """A call has come to its end: what nobody inside has booked is the module's own."""
        entry = self.entries.setdefault(module, _Entry())
        entry.calls += 1
        entry.outputs = tuple(x.shape for x in flatten(output)[0] if isinstance(x, Tensor))
        for tensor in self.trace.tensors[self._starts.pop() :]:
            operation = tensor.operation
            if operation is not None and operation.sequence not in self._booked:
                self._booked.add(operation.sequence)
                entry.flops += operation.primitive.flops(operation)
