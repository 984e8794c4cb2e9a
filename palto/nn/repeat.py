"""Layers of one kind one after another, which a compiled function knows as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from palto.nn.module import Module, observers
from palto.tensor import Cell, Tensor
from palto.tensor.graph import current_trace, is_grad_enabled
from palto.tensor.primitives import control


def repeated(layers: Sequence[Module], x: Tensor, arguments: Sequence[tuple[Any, ...]]) -> Tensor:
    """``x = layer(x, *its_arguments)`` for one layer after the other.

    In a compiled function without gradients, layers in a row that differ in their parameters and
    buffers alone are traced once, and one loop runs them all: a model of many layers is compiled,
    and fits into memory, as if it had one.

    Args:
        layers: from a tensor of some shape and dtype to another such.
        x: what the first one takes.
        arguments: of each layer what else it takes; cells among them may be another one each time.

    Returns:
        What the last one gives.
    """
    calls = list(zip(layers, arguments, strict=True))
    while calls:
        layer, others = calls.pop(0)
        cells: list[dict[Cell, Cell]] = []
        if current_trace() is not None and not observers:
            while len(cells) < len(calls):
                same: dict[Cell, Cell] = {}
                if not _corresponds((layer, others), calls[len(cells)], same):
                    break
                cells.append({old: new for old, new in same.items() if old is not new})
        found = None
        if cells and not (is_grad_enabled() and any(t.requires_grad for t in (x, *cells[0]))):
            found = control.apply_repeat(partial(_listed, layer, others), [x], cells)
        if found is None:
            x = layer(x, *others)
        else:
            (x,), calls = found, calls[len(cells) :]
    return x


def _listed(layer: Module, others: tuple[Any, ...], x: Tensor) -> list[Tensor]:
    return [layer(x, *others)]


def _corresponds(one: Any, other: Any, cells: dict[Cell, Cell]) -> bool:
    """Whether two things differ in their cells alone; notes which cell stands for which."""
    if isinstance(one, Cell):
        alike = isinstance(other, Cell) and (
            (one.shape, one.dtype, one.requires_grad)
            == (other.shape, other.dtype, other.requires_grad)
        )
        return alike and cells.setdefault(one, other) is other
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Module):
        return _corresponds(_attributes(one), _attributes(other), cells)
    if isinstance(one, dict):
        return [*one] == [*other] and _corresponds([*one.values()], [*other.values()], cells)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(
            _corresponds(a, b, cells) for a, b in zip(one, other, strict=True)
        )
    return isinstance(one, bool | int | float | str | bytes) and bool(one == other)


def _attributes(module: Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name != "_name"}
