"""Trace: run a function once without values and keep everything it does as one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palto.tensor.graph import Array, Graph, Operation, Spec, Trace, resolve
from palto.tensor.tensor import Cell, Tensor, TraceError
from palto.tensor.tree import Tree, flatten, rebuild

#: Stands for a tensor in `Recording.returned`.
VALUE = object()

#: A NumPy array larger than this is refused as a constant of a program.
LARGEST_CONSTANT = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """All that one call of a function does.

    Attributes:
        graph: its inputs are the argument tensors, then the values of the cells in `reads`; its
            outputs the tensors returned, then the new values of the cells in `writes`, then the
            conditions of `checks`, then the gradients of the cells in `grads`.
        reads: the cells read.
        writes: the cells assigned.
        checks: the message of each condition that must hold before a cell is written.
        grads: the cells that backprop reached, with whether an optimiser has yet to use it.
        returned: what the function returns, VALUE in the place of a tensor.
        tree: the structure around `returned`.
        severed: for each tensor returned, whether it would require a gradient.
        arrays: NumPy arrays of the outside that became constants, and the values they had.
    """

    graph: Graph
    reads: tuple[Cell, ...]
    writes: tuple[Cell, ...]
    checks: tuple[str, ...]
    grads: tuple[tuple[Cell, bool], ...]
    returned: tuple[Any, ...]
    tree: Tree
    severed: tuple[bool, ...]
    arrays: tuple[tuple[Callable[[], Array | None], Array], ...]

    def wanted(self, *, gradients: bool) -> Graph:
        """The graph; without the gradients where they are not wanted."""
        graph = self.graph
        count = len(graph.outputs) - (0 if gradients else len(self.grads))
        return Graph(graph.inputs, graph.operations, graph.outputs[:count], graph.tensors)

    def without_graph(self) -> Recording:
        """The same with an empty graph: for a program that was made of it."""
        return replace(self, graph=Graph((), (), (), ()))


def record(
    function: Callable[..., Any], leaves: Sequence[Any], tree: Tree, specs: Sequence[Spec | None]
) -> Recording:
    """Trace ``function(*args, **kwargs)``.

    Args:
        function: the function.
        leaves: the flat arguments.
        tree: the structure (args, kwargs) around them.
        specs: shape and dtype of each leaf that is a tensor at run time, None for the others.

    Raises:
        TraceError: the function does what a program cannot repeat.
    """
    trace = Trace()
    with trace.active():
        inputs = [None if s is None else trace.placeholder(s.shape, s.dtype) for s in specs]
        given = [leaf if x is None else x for leaf, x in zip(leaves, inputs, strict=True)]
        args, kwargs = rebuild(tree, given)
        result = function(*args, **kwargs)
        _refuse_changed_arguments((args, kwargs), given, tree)
        returned, result_tree = flatten(result)
        for leaf in returned:
            _refuse_output(leaf)
        tensors = [resolve(leaf) for leaf in returned if _is_value(leaf)]
        writes = tuple(trace.assignments)
        outputs = [
            *tensors,
            *(trace.assignments[cell] for cell in writes),
            *(condition for condition, _ in trace.checks),
            *(resolve(g) for g in trace.grads.values()),
        ]
    reads = tuple(trace.reads)
    recording = Recording(
        graph=Graph.reaching(
            [x for x in inputs if x is not None] + [trace.reads[cell] for cell in reads],
            outputs,
            trace.tensors,
        ),
        reads=reads,
        writes=writes,
        checks=tuple(message for _, message in trace.checks),
        grads=tuple((cell, cell in trace.pending) for cell in trace.grads),
        returned=tuple(VALUE if _is_value(leaf) else leaf for leaf in returned),
        tree=result_tree,
        severed=tuple(x.requires_grad for x in tensors),
        arrays=tuple(_lasting(trace)),
    )
    trace.forget()
    return recording


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, Cell)


def _refuse_output(leaf: Any) -> None:
    plain = (Tensor, bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype)
    if not isinstance(leaf, plain):
        raise TraceError(
            f"a compiled function returns tensors, numbers, strings, None, or tuples, lists and "
            f"dicts of them; this one returned {type(leaf).__name__}"
        )


def _refuse_changed_arguments(arguments: Any, given: Sequence[Any], tree: Tree) -> None:
    after, after_tree = flatten(arguments)
    if after_tree != tree or any(a is not b for a, b in zip(after, given, strict=True)):
        raise TraceError(
            "the compiled function changes a list, dict or object that it was given, which its "
            "program would not do again; return the new value instead"
        )


def _lasting(trace: Trace) -> list[tuple[Callable[[], Array | None], Array]]:
    """The arrays that live on after the trace: somebody may change them."""
    lasting: list[tuple[Callable[[], Array | None], Array]] = []
    for reference, value in trace.arrays:
        if reference() is None:
            continue
        if value.nbytes > LARGEST_CONSTANT:
            raise TraceError(
                f"the compiled function uses a NumPy array of shape {value.shape} "
                f"({value.nbytes / 2**20:.0f} MB) from outside, which would become part of the "
                "program; make it a tensor once, by palto.asarray outside, or pass it as an "
                "argument"
            )
        lasting.append((reference, value))
    return lasting


def difference(first: Recording, second: Recording, *, is_other_size: bool = False) -> str | None:
    """What tells two traces of one function apart; None if they are the same program.

    Args:
        first: one trace.
        second: another.
        is_other_size: whether lengths, other whole numbers and constants may differ.
    """
    if len(first.reads) != len(second.reads) or any(
        a is not b for a, b in zip(first.reads, second.reads, strict=True)
    ):
        return "it read other cells"
    if len(first.writes) != len(second.writes) or any(
        a is not b for a, b in zip(first.writes, second.writes, strict=True)
    ):
        return "it assigned other cells"
    if first.tree != second.tree or not equal(first.returned, second.returned):
        return f"it returned {first.returned!r} once and {second.returned!r} again"
    return graph_difference(first.graph, second.graph, is_other_size)


def graph_difference(first: Graph, second: Graph, is_other_size: bool = False) -> str | None:
    """What tells two graphs apart; None if they compute the same."""
    names: dict[int, int] = {}  # the second graph's tensors by the first's

    def same(a: Tensor, b: Tensor) -> bool:
        if id(a) in names:
            return names[id(a)] == id(b)
        # A constant: equal by value.
        return (
            a._value is not None
            and b._value is not None
            and (a is b or is_other_size or equal(a.array(), b.array()))
        )

    def pair(olds: Sequence[Tensor], news: Sequence[Tensor]) -> None:
        names.update({id(a): id(b) for a, b in zip(olds, news, strict=True)})

    if len(first.inputs) != len(second.inputs):
        return "it used other tensors of the outside"
    pair(first.inputs, second.inputs)
    for a, b in zip(first.operations, second.operations, strict=False):
        if a.primitive is not b.primitive:
            return f"it applied {named(a)} once and {named(b)} again"
        for x, y in zip(a.inputs, b.inputs, strict=False):
            if not same(x, y):
                if x._value is not None and y._value is not None and x.size == y.size == 1:
                    return f"{named(a)} used the number {x.item()} once and {y.item()} again"
                return f"{named(a)} had other inputs"
        if len(a.inputs) != len(b.inputs):
            return f"{named(a)} had {len(a.inputs)} inputs once and {len(b.inputs)} again"
        for name, value in a.params.items():
            other = b.params[name]
            if isinstance(value, Graph):
                inner = graph_difference(value, other, is_other_size)
                if inner is not None:
                    return inner
            elif is_other_size and _is_alike(value, other):
                continue
            elif name not in ("statics", "gradient") and not equal(value, other):
                return f"{named(a)} had {name}={value!r} once and {other!r} again"
        pair(a.outputs, b.outputs)
    if len(first.operations) != len(second.operations):
        return f"it applied {len(first.operations)} operations once, {len(second.operations)} again"
    if not all(same(a, b) for a, b in zip(first.outputs, second.outputs, strict=True)):
        return "its outputs came from other operations"
    return None


def _is_alike(a: Any, b: Any) -> bool:
    """Whether parameters differ in whole numbers alone."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_is_alike, a, b))
    is_number = all(isinstance(x, int) and not isinstance(x, bool) for x in (a, b))
    return is_number or equal(a, b)


def named(operation: Operation) -> str:
    """What an operation is called in messages."""
    where = f" in layer {'.'.join(operation.scope)}" if operation.scope else ""
    return f"{operation.params.get('name', operation.primitive.name)}{where}"


def equal(a: Any, b: Any) -> bool:
    """Whether two values are the same; arrays to the bit, and NaN is itself."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, tuple | list) and type(a) is type(b):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a is b or a == b or (a != a and b != b))
