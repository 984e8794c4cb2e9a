"""Rows that carry a body: named composites, scan and repeat.

A composite is a function of other primitives that stays one operation in a trace, so that the
compiler can schedule a softmax as a softmax; its gradient is a composite whose body is derived by
backprop and recomputes what it needs. A scan is a loop with carried state; its gradient computes
each step again from the state before it, but keeps the results of scans that stand in it. A repeat
is one function again and again, with other cells each time, such as the layers of a transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palto.tensor import functions as F
from palto.tensor.dtypes import DIFFERENTIABLE, DType
from palto.tensor.graph import (
    Array,
    Gradients,
    Graph,
    Operation,
    Primitive,
    Spec,
    Trace,
    apply,
    is_grad_enabled,
    resolve,
    set_grad_enabled,
)
from palto.tensor.tensor import Cell, Shape, Tensor


@dataclass(frozen=True, slots=True)
class Body:
    """A function as a graph.

    Attributes:
        graph: its inputs are the function's arguments, then one for each of `captured`.
        captured: tensors from outside that the function uses.
        assigned: the cells it assigns; their values are the graph's last outputs.
    """

    graph: Graph
    captured: tuple[Tensor, ...]
    assigned: tuple[Cell, ...]


def trace_body(
    function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor], *, grad: bool = True
) -> Body:
    """Run `function` on valueless tensors like `examples` and keep the graph.

    Args:
        function: from tensors to a sequence of tensors.
        examples: of its arguments.
        grad: whether scans inside keep what backprop wants.
    """
    trace = Trace(is_body=True)
    with trace.active(), set_grad_enabled(grad):
        inputs = [
            trace.placeholder(x.shape, x.dtype, requires_grad=x.requires_grad) for x in examples
        ]
        outputs = [resolve(F.asarray(output)) for output in function(*inputs)]
        assigned = tuple(trace.assignments)
        outputs += [trace.assignments[cell] for cell in assigned]
    outer = tuple(outside for outside, _ in trace.captured.values())
    inputs += [inside for _, inside in trace.captured.values()]
    graph = Graph.reaching(inputs, outputs, trace.tensors)
    trace.forget()
    return Body(graph, outer, assigned)


def call(
    name: str,
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    statics: dict[str, Any],
    *,
    recompute: bool = False,
    gradient: Callable[..., Gradients] | None = None,
) -> tuple[Tensor, ...]:
    """Apply `function` as one operation. Cells it assigns are assigned after it.

    Args:
        name: what it is called in printed graphs, and what a compiler may schedule it by.
        function: from tensors to a sequence of tensors.
        inputs: the tensors.
        statics: what else it was called with, for whoever schedules it.
        recompute: backprop computes its inside again instead of keeping it.
        gradient: a better one than that of its body, as that of a row: from the operation and its
            outputs' gradients.
    """
    body = trace_body(function, inputs)
    operands = (*inputs, *body.captured)
    outputs: tuple[Tensor, ...] = apply(
        composite, *operands, name=name, body=body.graph, statics=statics, recompute=recompute,
        gradient=gradient,
    )  # fmt: skip
    for output, inner in zip(outputs, body.graph.outputs, strict=True):
        output.requires_grad = output.requires_grad and inner.requires_grad
    count = len(outputs) - len(body.assigned)
    for cell, value in zip(body.assigned, outputs[count:], strict=True):
        cell.assign(value)
    return outputs[:count]


def _specs(graph: Graph) -> tuple[Spec, ...]:
    return tuple(Spec(x.shape, x.dtype) for x in graph.outputs)


def _composite_gradient(operation: Operation, *grads: Tensor | None) -> Gradients:
    params = operation.params
    gradient: Callable[..., Gradients] | None = params["gradient"]
    if gradient is not None:
        return gradient(operation, *grads)
    return _gradient_through(
        params["body"].replay, f"{params['name']}.gradient", operation, grads, params["statics"],
        recompute=params["recompute"],
    )  # fmt: skip


def _gradient_through(
    replay: Callable[..., Sequence[Tensor]],
    name: str,
    operation: Operation,
    grads: Sequence[Tensor | None],
    statics: dict[str, Any],
    *,
    recompute: bool,
) -> Gradients:
    """A composite that computes an operation's outputs again, by `replay`, and their gradient."""
    from palto.backprop import gradients

    wanted = [i for i, x in enumerate(operation.inputs) if x.requires_grad]
    used = [i for i, g in enumerate(grads) if g is not None]
    count = len(operation.inputs)

    def backward(*tensors: Tensor) -> list[Tensor]:
        inputs, incoming = tensors[:count], tensors[count:]
        outputs = replay(*inputs)
        found = gradients(
            [outputs[i] for i in used], incoming, [inputs[i] for i in wanted], create_graph=True
        )
        return [
            F.zeros_like(inputs[i]) if g is None else g for i, g in zip(wanted, found, strict=True)
        ]

    results = call(
        name, backward, [*operation.inputs, *(g for g in grads if g is not None)], statics,
        recompute=recompute,
    )  # fmt: skip
    filled: list[Tensor | None] = [None] * count
    for i, g in zip(wanted, results, strict=True):
        filled[i] = g
    return filled


def _body_flops(graph: Graph) -> int:
    return sum(operation.primitive.flops(operation) for operation in graph.operations)


composite = Primitive(
    "composite",
    lambda *inputs, body, **others: _specs(body),
    lambda *arrays, body, **others: body.evaluate(*arrays),
    _composite_gradient,
    flops=lambda op: _body_flops(op.params["body"]),
)

# scan


def _split(inputs: Sequence[Any], carries: int, sequences: int) -> tuple[Any, Any, Any]:
    last = carries + sequences
    return inputs[:carries], inputs[carries:last], inputs[last:]


def _scan_infer(
    *inputs: Tensor, body: Graph, carries: int, sequences: int, length: int, reverse: bool
) -> tuple[Spec, ...]:
    carry, xs, _ = _split(inputs, carries, sequences)
    for given, produced in zip(carry, body.outputs, strict=False):
        if (given.shape, given.dtype) != (produced.shape, produced.dtype):
            raise ValueError(
                f"scan: the carried state must keep its shape and dtype: it starts as "
                f"{given.dtype.name}{given.shape} and a step makes it "
                f"{produced.dtype.name}{produced.shape}"
            )
    for x in xs:
        if x.shape[:1] != (length,):
            raise ValueError(
                f"scan: every sequence must have {length} steps on its first axis, got {x.shape}"
            )
    stacked = tuple(Spec((length, *y.shape), y.dtype) for y in body.outputs[carries:])
    return (*(Spec(x.shape, x.dtype) for x in carry), *stacked)


def _scan_numpy(
    *inputs: Array, body: Graph, carries: int, sequences: int, length: int, reverse: bool
) -> tuple[Array, ...]:
    carry, xs, constants = _split(inputs, carries, sequences)
    ys = [np.empty((length, *y.shape), y.dtype) for y in body.outputs[carries:]]
    for step in reversed(range(length)) if reverse else range(length):
        results = body.evaluate(*carry, *(x[step] for x in xs), *constants)
        carry = results[:carries]
        for y, value in zip(ys, results[carries:], strict=True):
            y[step] = value
    return (*carry, *ys)


def _scan_gradient(operation: Operation, *grads: Tensor | None) -> Gradients:
    return _gradient_of_scan(operation.params, operation.inputs, operation.outputs, grads)


def _gradient_of_scan(
    params: dict[str, Any],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    from palto.backprop import gradients

    body: Graph = params["body"]
    carries, sequences = params["carries"], params["sequences"]
    carry, xs, constants = _split(inputs, carries, sequences)
    # apply_scan added to the outputs what is kept of each step; the state before it comes last.
    last = len(outputs) - carries
    known, history = outputs[last - len(_results_of_scans(body)) : last], outputs[last:]

    moving = [i for i, x in enumerate(carry) if x.dtype in DIFFERENTIABLE]
    along = [i for i, x in enumerate(xs) if x.requires_grad]
    fixed = [i for i, x in enumerate(constants) if x.requires_grad]
    used = [i for i in range(carries, len(outputs)) if grads[i] is not None]

    def incoming(i: int) -> Tensor:
        g = grads[i]
        return F.zeros_like(outputs[i]) if g is None else g

    @set_grad_enabled(True)
    def backward(*tensors: Tensor) -> list[Tensor]:
        d_carry, rest = tensors[: len(moving)], tensors[len(moving) :]
        d_fixed, rest = rest[: len(fixed)], rest[len(fixed) :]
        state, rest = rest[:carries], rest[carries:]
        x, rest = rest[:sequences], rest[sequences:]
        inner, rest = rest[: len(known)], rest[len(known) :]
        dy, inner_constants = rest[: len(used)], rest[len(used) :]
        results = body.replay(*state, *x, *inner_constants, by=_apply_knowing(iter(inner)))
        targets = [
            *(state[i] for i in moving),
            *(x[i] for i in along),
            *(inner_constants[i] for i in fixed),
        ]
        found = gradients(
            [results[i] for i in moving] + [results[i] for i in used],
            [*d_carry, *dy],
            targets,
            create_graph=True,
        )
        filled = [F.zeros_like(t) if g is None else g for t, g in zip(targets, found, strict=True)]
        d_state, rest_found = filled[: len(moving)], filled[len(moving) :]
        d_x, d_constants = rest_found[: len(along)], rest_found[len(along) :]
        return [*d_state, *(a + b for a, b in zip(d_fixed, d_constants, strict=True)), *d_x]

    results = apply_scan(
        backward,
        [*(incoming(i) for i in moving), *(F.zeros_like(constants[i]) for i in fixed)],
        # The gradients of what is known go through the inputs of the scans that gave it.
        [*history, *xs, *(F.detach(x) for x in known), *(incoming(i) for i in used)],
        list(constants),
        length=params["length"],
        reverse=not params["reverse"],
    )
    filled: list[Tensor | None] = [None] * len(inputs)
    places = [
        *moving,
        *(carries + sequences + i for i in fixed),
        *(carries + i for i in along),
    ]
    for place, g in zip(places, results, strict=True):
        filled[place] = g
    return filled


def _results_of_scans(body: Graph) -> list[Tensor]:
    return [x for o in body.operations if o.primitive is scan for x in o.outputs]


def _apply_knowing(known: Iterator[Tensor]) -> Callable[..., Any]:
    """`apply`, but for scans, whose results are known: only their gradients are computed."""

    def applied(primitive: Primitive, *inputs: Tensor, **params: Any) -> Any:
        if primitive is not scan:
            return apply(primitive, *inputs, **params)
        results = [next(known) for _ in params["body"].outputs]
        count = len(results)

        def gradient(operation: Operation, *grads: Tensor | None) -> Gradients:
            found = _gradient_of_scan(params, operation.inputs[count:], operation.outputs, grads)
            return [*(None for _ in range(count)), *found]

        return call(
            "scan.known", lambda *tensors: tensors[:count], [*results, *inputs], {},
            gradient=gradient,
        )  # fmt: skip

    return applied


def apply_scan(
    step: Callable[..., Sequence[Tensor]],
    carry: Sequence[Tensor],
    xs: Sequence[Tensor],
    constants: Sequence[Tensor],
    *,
    length: int,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """Run `step(*carry, *x, *constants)` for every x; it returns the new carry, then outputs.

    Returns:
        The last carry, then the outputs stacked along a new first axis.
    """

    def example(shape: Shape, dtype: DType) -> Tensor:
        # Whether or not the first state requires a gradient, that of later steps may.
        return Tensor(shape, dtype, requires_grad=dtype in DIFFERENTIABLE)

    examples = [example(x.shape, x.dtype) for x in carry]
    examples += [example(x.shape[1:], x.dtype) for x in xs]
    examples += constants
    body = trace_body(step, examples, grad=is_grad_enabled())
    if body.assigned:
        names = ", ".join(repr(cell.name or "a cell") for cell in body.assigned)
        raise ValueError(
            f"scan: a step may not assign {names}; carry the value as state, and draw random "
            "numbers before the scan and pass them as a sequence"
        )
    graph = body.graph
    outputs = len(graph.outputs)
    operands = (*carry, *xs, *constants, *body.captured)
    if is_grad_enabled() and any(x.requires_grad for x in operands):
        # Backprop wants the state before every step, and what it shall not compute again.
        graph = Graph(
            graph.inputs,
            graph.operations,
            (*graph.outputs, *_results_of_scans(graph), *graph.inputs[: len(carry)]),
            graph.tensors,
        )
    results: tuple[Tensor, ...] = apply(
        scan,
        *operands,
        body=graph,
        carries=len(carry),
        sequences=len(xs),
        length=length,
        reverse=reverse,
    )
    return results[:outputs]


scan = Primitive(
    "scan",
    _scan_infer,
    _scan_numpy,
    _scan_gradient,
    flops=lambda op: op.params["length"] * _body_flops(op.params["body"]),
)

# repeat


def divided(
    inputs: Sequence[Any], *, carries: int, shared: int, length: int, **_: Any
) -> tuple[Sequence[Any], Sequence[Any], list[Sequence[Any]]]:
    """The inputs of a repeat: what is carried, what stays the same, and what each time has."""
    carry, same, rest = _split(inputs, carries, shared)
    width = len(rest) // length
    return carry, same, [rest[time * width : (time + 1) * width] for time in range(length)]


def unrolled(
    inputs: Sequence[Any], once: Callable[..., Sequence[Any]], *, carries: int, **others: Any
) -> tuple[Any, ...]:
    """The outputs of a repeat, of tensors or arrays.

    Args:
        inputs: those of the repeat.
        once: what one time computes: what is carried, then what its own inputs become.
        carries: how many values are carried.
        others: the repeat's other parameters.
    """
    carry, same, times = divided(inputs, carries=carries, **others)
    rest: list[Any] = []
    for own in times:
        results = once(*carry, *same, *own)
        carry = results[:carries]
        rest += results[carries:]
    return (*carry, *rest)


def _repeat_gradient(operation: Operation, *grads: Tensor | None) -> Gradients:
    params = operation.params

    def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
        return unrolled(inputs, params["body"].replay, **params)

    return _gradient_through(replay, "repeat.gradient", operation, grads, {}, recompute=False)


#: A function again and again. Its parameters: `body`; how many values are carried, and how many
#: stay the same (`shared`); the `length`; and `updates`: of which of a time's own inputs its
#: further outputs are the new values.
repeat = Primitive(
    "repeat",
    lambda *inputs, body, **others: unrolled(inputs, lambda *_: _specs(body), **others),
    lambda *arrays, body, **others: unrolled(arrays, body.evaluate, **others),
    _repeat_gradient,
    flops=lambda op: op.params["length"] * _body_flops(op.params["body"]),
)
