"""Operators that run graphs: branches and loops. Loops are unrolled."""

from __future__ import annotations

from typing import Any

from palto.formats.onnx.graph import Graph
from palto.formats.onnx.table import Call, operator
from palto.tensor import Tensor
from palto.tensor import functions as F

#: A loop that takes more steps is refused, rather than run for who knows how long.
MOST_STEPS = 10_000


@operator("If", static=(0,))
def branch(call: Call, condition: Tensor) -> list[Tensor]:
    """One graph or the other."""
    holds = bool(call.known(condition, "which branch is taken").reshape(()))
    return call.run(call.attribute("then_branch" if holds else "else_branch"), [])


@operator("OptionalHasElement", shape_only=True)
def has_element(call: Call, x: Tensor | None = None) -> Tensor:
    """Whether an input is there."""
    return F.asarray(x is not None)


@operator("OptionalGetElement")
def get_element(call: Call, x: Tensor) -> Tensor:
    """An input that is there."""
    return x


@operator("Loop", static=(0, 1))
def loop(
    call: Call, count: Tensor | None, condition: Tensor | None = None, *state: Tensor
) -> list[Tensor]:
    """Steps with carried state, until their number is reached or the condition ends."""
    body: Graph = call.attribute("body")
    most = None if count is None else call.ints(count, "the number of steps")[0]
    holds = condition is None or bool(call.known(condition, "whether a step follows"))
    carried, outputs = list(state), [[] for _ in body.outputs[1 + len(state) :]]  # type: ignore[var-annotated]
    step = 0
    while holds and (most is None or step < most):
        _require_few(call, step)
        results = call.run(body, [F.asarray(step), F.asarray(True), *carried])
        if condition is not None or most is None:
            holds = bool(call.known(results[0], "whether a step follows"))
        carried = results[1 : 1 + len(state)]
        for rows, row in zip(outputs, results[1 + len(state) :], strict=True):
            rows.append(row)
        step += 1
    return [*carried, *(_stacked(call, body, rows, 1 + len(state) + i)
                        for i, rows in enumerate(outputs))]  # fmt: skip


def _require_few(call: Call, step: int) -> None:
    if step >= MOST_STEPS:
        raise call.refusal(f"a loop of more than {MOST_STEPS:,} steps")


def _stacked(call: Call, body: Graph, rows: list[Tensor], place: int) -> Tensor:
    if rows:
        call.bounded((len(rows), *rows[0].shape))
        return F.stack(rows)
    value = body.outputs[place]
    shape = [n if isinstance(n, int) else 0 for n in value.shape or ()]
    return F.zeros((0, *call.bounded(shape)), dtype=value.dtype or "float32")


@operator("Scan")
def scan(call: Call, *inputs: Any) -> list[Tensor]:
    """Steps along axes of the inputs, with carried state and stacked outputs."""
    body: Graph = call.attribute("body")
    count = call.attribute("num_scan_inputs")
    if call.version < 9:
        return _scan_of_batches(call, body, count, inputs)
    states = len(inputs) - count
    outputs = len(body.outputs) - states

    def of_each(name: str, length: int) -> tuple[int, ...]:
        found: tuple[int, ...] = call.attribute(name, (0,) * length)
        return found

    carried, xs = list(inputs[:states]), list(inputs[states:])
    axes = [
        call.axes(x, [axis])[0]
        for x, axis in zip(xs, of_each("scan_input_axes", count), strict=True)
    ]
    lengths = {x.shape[axis] for x, axis in zip(xs, axes, strict=True)}
    if len(lengths) != 1:
        raise call.error(f"sequences of the lengths {sorted(lengths)}")
    length = lengths.pop()
    _require_few(call, length - 1)
    backwards = of_each("scan_input_directions", count)
    rows: list[list[Tensor]] = [[] for _ in range(outputs)]
    for step in range(length):
        now = [
            x[(*(slice(None),) * axis, length - 1 - step if is_back else step)]
            for x, axis, is_back in zip(xs, axes, backwards, strict=True)
        ]
        results = call.run(body, [*carried, *now])
        carried = results[:states]
        for row, result in zip(rows, results[states:], strict=True):
            row.append(result)
    stacked = []
    directions = of_each("scan_output_directions", outputs)
    places = of_each("scan_output_axes", outputs)
    for i, (row, is_back, axis) in enumerate(zip(rows, directions, places, strict=True)):
        made = _stacked(call, body, row[::-1] if is_back else row, states + i)
        stacked.append(F.moveaxis(made, 0, axis))
    return [*carried, *stacked]


def _scan_of_batches(call: Call, body: Graph, count: int, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Version 8: an axis of batches first, and perhaps the length of each sequence."""
    if inputs[0] is not None or any(call.attribute("directions", ())):
        raise call.refusal("sequences of several lengths, or backwards, in version 8")
    given = inputs[1:]
    states = len(given) - count
    made: list[list[Tensor]] = []
    for batch in range(given[0].shape[0]):
        carried, xs = [x[batch] for x in given[:states]], [x[batch] for x in given[states:]]
        _require_few(call, xs[0].shape[0] - 1)
        rows: list[list[Tensor]] = [[] for _ in body.outputs[states:]]
        for step in range(xs[0].shape[0]):
            results = call.run(body, [*carried, *(x[step] for x in xs)])
            carried = results[:states]
            for row, result in zip(rows, results[states:], strict=True):
                row.append(result)
        made.append(carried + [F.stack(row) for row in rows])
    return [F.stack(parts) for parts in zip(*made, strict=True)]
