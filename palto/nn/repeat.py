"""Layers of one kind one after another, which a compiled function knows as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from palto.compiler.trace import equal, graph_difference
from palto.nn.module import Module, observers
from palto.tensor import Cell, Tensor, TraceError
from palto.tensor import functions as F
from palto.tensor.graph import Graph, apply, current_trace, is_grad_enabled
from palto.tensor.primitives.control import Body, repeat, trace_body

#: A layer, and what it takes beside a tensor.
Call = tuple[Module, tuple[Any, ...]]
#: By the identity of what belongs to one layer, what stands in its place in another.
Counterparts = dict[int, Any]


def repeated(layers: Sequence[Module], x: Tensor, arguments: Sequence[tuple[Any, ...]]) -> Tensor:
    """``x = layer(x, *its_arguments)`` for one layer after the other.

    In a compiled function, layers in a row that differ in their parameters and buffers alone are
    traced as one, and one loop runs them all: a model of many layers is compiled, and fits into
    memory, as if it had one. They must be frozen (``requires_grad_(False)``), or gradients off.

    Args:
        layers: those of a run keep the shape and dtype of their tensor.
        x: what the first one takes, of any shape.
        arguments: of each layer what else it takes; cells among them may be another one each time.

    Returns:
        What the last one gives.

    Raises:
        ValueError: there are not as many arguments as layers.
    """
    if len(layers) != len(arguments):
        raise ValueError(
            f"repeated got {len(layers)} layers and arguments for {len(arguments)}; give a tuple "
            "for each layer, () where it takes nothing else"
        )
    x = F.asarray(x)
    calls: list[Call] = list(zip(layers, arguments, strict=True))
    for first, others in _alike(calls):
        found = None
        cells = [cell for _, known in others[:1] for cell in known.values()]
        trains = is_grad_enabled() and any(
            isinstance(t, Tensor) and t.requires_grad for t in (x, *cells)
        )
        if others and not trains:
            found = _as_operation(first, others, x)
        if found is None:
            for layer, given in (first, *(call for call, _ in others)):
                x = layer(x, *given)
        else:
            x = found
    return x


def _alike(calls: Sequence[Call]) -> Iterator[tuple[Call, list[tuple[Call, Counterparts]]]]:
    """Each first call of some that are alike, and the others, with their counterparts."""
    may_be = current_trace() is not None and not observers
    while calls:
        first, *calls = calls
        others: list[tuple[Call, Counterparts]] = []
        for call in calls if may_be else ():
            counterparts: Counterparts = {}
            if not _corresponds(first, call, counterparts):
                break
            others.append((call, counterparts))
        yield first, others
        calls = calls[len(others) :]


def _corresponds(one: Any, other: Any, known: Counterparts) -> bool:
    """Whether two things differ in their cells alone; notes what stands for what."""
    if one is None or isinstance(one, bool | int | float | str | bytes):
        return type(one) is type(other) and repr(one) == repr(other)  # tells -0.0 from 0.0
    if id(one) in known:
        return known[id(one)] is other
    known[id(one)] = other
    if type(one) is not type(other):
        return False
    if isinstance(one, Cell):
        return (one.shape, one.dtype, one.requires_grad) == (
            other.shape, other.dtype, other.requires_grad
        )  # fmt: skip
    if isinstance(one, Module):
        if any(vars(kind).get("__slots__") for kind in type(one).__mro__):
            return False
        mine, yours = ({k: v for k, v in vars(m).items() if k != "_name"} for m in (one, other))
        return [*mine] == [*yours] and all(_corresponds(mine[k], yours[k], known) for k in mine)
    if type(one) is dict:
        return [*one] == [*other] and all(_corresponds(one[k], other[k], known) for k in one)
    if type(one) in (tuple, list):
        return len(one) == len(other) and all(
            _corresponds(a, b, known) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, Tensor) and one.cell is not None:  # what a cell held, which stays that
        return one is other and _corresponds(one.cell, one.cell, known)
    return one is other


def _as_operation(
    first: Call, others: Sequence[tuple[Call, Counterparts]], x: Tensor
) -> Tensor | None:
    """The calls as one operation; None, and nothing is done, where they cannot be one."""
    try:
        body = trace_body(partial(_listed, first), [x])
        last = trace_body(partial(_listed, others[-1][0]), [x])
    except TraceError:  # what no body can do
        return None
    counterparts = [known for _, known in others]
    # What the attributes do not tell, such as what a closure holds, shows in what is computed.
    if not _is_alike(body, last, counterparts[-1]):
        return None
    cells = [tensor.cell for tensor in body.captured]
    own = [
        i for i, cell in enumerate(cells)
        if cell is not None and any(known.get(id(cell), cell) is not cell for known in counterparts)
    ]  # fmt: skip
    same = [i for i in range(len(cells)) if i not in own]
    mine = [cell for i in own if (cell := cells[i]) is not None]
    times = [mine, *([known.get(id(cell), cell) for cell in mine] for known in counterparts)]
    distinct = {id(cell) for time in times for cell in time}
    place = {id(cell): number for number, cell in enumerate(mine)}
    graph = body.graph
    if (
        not own
        or len(distinct) < len(times) * len(own)  # one time needs what another one has
        or any(id(cells[i]) in distinct for i in same)
        or any(id(cell) not in place for cell in body.assigned)
        or (graph.outputs[0].shape, graph.outputs[0].dtype) != (x.shape, x.dtype)
    ):
        return None
    updates = tuple(place[id(cell)] for cell in body.assigned)
    inputs = graph.inputs
    inputs = (inputs[0], *(inputs[1 + i] for i in (*same, *own)))
    found = apply(
        repeat, x, *(body.captured[i] for i in same), *(cell.read() for t in times for cell in t),
        body=Graph(inputs, graph.operations, graph.outputs, graph.tensors),
        carries=1, shared=len(same), length=len(times), updates=updates,
    )  # fmt: skip
    result, *values = (found,) if isinstance(found, Tensor) else found
    updated = [time[number] for time in times for number in updates]
    for cell, value in zip(updated, values, strict=True):
        cell.assign(value)
    return result


def _listed(call: Call, x: Tensor) -> list[Tensor]:
    layer, given = call
    return [layer(x, *given)]


def _is_alike(body: Body, other: Body, known: Counterparts) -> bool:
    """Whether two bodies compute the same of cells that stand for one another."""

    def stands_for(a: Tensor, b: Tensor) -> bool:
        if a.cell is not None:
            return known.get(id(a.cell), a.cell) is b.cell
        return a is b or (a.trace is b.trace is None and equal(a.array(), b.array()))

    for mine, yours in ((body.captured, other.captured), (body.assigned, other.assigned)):
        if len(mine) != len(yours) or not all(map(stands_for, mine, yours)):
            return False
    return graph_difference(body.graph, other.graph) is None
