"""The graph: primitives applied to tensors, at once or in a trace.

``apply`` is the single door. Outside a trace it computes with NumPy; inside one it records an
Operation without computing. Backprop reads the operations; executors run a Graph of them.
"""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palto.tensor.dtypes import DIFFERENTIABLE, Array, DType
from palto.tensor.tensor import Cell, Shape, Tensor, TraceError

Gradients = Sequence[Tensor | None]


@dataclass(frozen=True, slots=True)
class Spec:
    """What is known of a tensor before it has a value."""

    shape: Shape
    dtype: DType


@dataclass(frozen=True, slots=True, eq=False)
class Primitive:
    """One row of the table: what an operation is to shapes, to NumPy and to backprop.

    Attributes:
        name: its name in messages and printed graphs.
        infer: from the inputs (their shape and dtype) and parameters to the output's Spec, or a
            tuple of Specs for several outputs. Raises for the user's mistakes.
        numpy: the meaning: arrays and parameters in, array (or tuple of arrays) out.
        gradient: from the operation and the gradients of its outputs (None where an output was
            not used) to one gradient, or None, per input; built of tensor functions, so that it
            can be differentiated again. None if the operation has no derivative.
        flops: floating-point operations, by the usual count (a multiply-add is two).
    """

    name: str
    infer: Callable[..., Spec | tuple[Spec, ...]]
    numpy: Callable[..., Any]
    gradient: Callable[..., Gradients] | None = None
    flops: Callable[[Operation], int] = field(default=lambda operation: operation.output().size)

    def __repr__(self) -> str:
        return self.name


class Operation:
    """A primitive applied to inputs."""

    __slots__ = (
        "_outputs", "_saved", "inputs", "is_recomputed", "params", "primitive", "scope", "sequence",
    )  # fmt: skip

    def __init__(
        self, primitive: Primitive, inputs: tuple[Tensor, ...], params: dict[str, Any]
    ) -> None:
        self.primitive = primitive
        self.inputs = inputs
        self.params = params
        #: The layers inside which this was applied, outermost first.
        self.scope = _state.scope
        #: Whether backprop computes here again what it did not keep.
        self.is_recomputed = False
        #: Grows along every path of the graph.
        self.sequence = next(_sequence)
        # A tensor holds its operation; weak references the other way leave no cycle, so memory
        # is freed at once. The values of several outputs are kept, since one may be dropped.
        self._outputs: list[weakref.ref[Tensor]] = []
        self._saved: tuple[Array, ...] = ()

    def set_outputs(self, outputs: tuple[Tensor, ...]) -> None:
        """Called once, by `apply`."""
        self._outputs = [weakref.ref(output) for output in outputs]
        if len(outputs) > 1 and outputs[0].trace is None:
            self._saved = tuple(output.array() for output in outputs)

    @property
    def output_count(self) -> int:
        """How many outputs there are."""
        return len(self._outputs)

    def output(self, index: int = 0) -> Tensor:
        """One of the outputs."""
        output = self._outputs[index]()
        if output is None:
            value = self._saved[index]
            differentiable = value.dtype in DIFFERENTIABLE
            output = Tensor(
                value.shape,
                value.dtype,
                value,
                requires_grad=differentiable and any(x.requires_grad for x in self.inputs),
                operation=self,
                index=index,
            )
            self._outputs[index] = weakref.ref(output)
        return output

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """All outputs."""
        return tuple(self.output(index) for index in range(self.output_count))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{x.dtype.name}{list(x.shape)}" for x in self.inputs)
        return f"{self.primitive.name}({shapes})"


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the values of a graph lie while NumPy runs it: inputs, constants, then results."""

    constants: list[Array]
    #: Operation, its outputs' specs, its inputs' places, its outputs' first place, places now dead.
    steps: list[tuple[Operation, list[Spec], list[int], int, list[int]]]
    outputs: list[int]
    length: int


@dataclass(eq=False)
class Graph:
    """Operations in an order in which they can run, from inputs to outputs.

    An input of an operation is a graph input, an output of an earlier operation, or a constant:
    a tensor that has a value.
    """

    inputs: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[Tensor, ...]
    # Operations know their outputs weakly only; the graph keeps them.
    tensors: tuple[Tensor, ...] = field(repr=False)

    @classmethod
    def reaching(
        cls, inputs: Sequence[Tensor], outputs: Sequence[Tensor], tensors: Sequence[Tensor]
    ) -> Graph:
        """The graph of what `outputs` need; everything else is dropped."""
        found: dict[int, Operation] = {}
        stack = list(outputs)
        while stack:
            tensor = stack.pop()
            # A tensor that has a value is a constant, however it was computed.
            operation = tensor.operation if tensor._value is None else None
            if operation is not None and operation.sequence not in found:
                found[operation.sequence] = operation
                stack.extend(operation.inputs)
        operations = tuple(found[sequence] for sequence in sorted(found))
        return cls(tuple(inputs), operations, tuple(outputs), tuple(tensors))

    def evaluate(self, *arrays: Array) -> tuple[Array, ...]:
        """Run the graph with NumPy. An operation's mistake is reported with its layer."""
        values: list[Any] = [*arrays, *self._plan.constants]
        values += [None] * (self._plan.length - len(values))
        for operation, specs, inputs, first, dead in self._plan.steps:
            try:
                results = run(
                    operation.primitive, [values[i] for i in inputs], operation.params, specs
                )
            except Exception as error:
                if operation.scope:
                    error.add_note(f"in layer {'.'.join(operation.scope)}")
                raise
            values[first : first + len(results)] = results
            for place in dead:
                values[place] = None
        return tuple([values[place] for place in self._plan.outputs])

    @functools.cached_property
    def _plan(self) -> _Plan:
        places = {id(tensor): place for place, tensor in enumerate(self.inputs)}
        constants: list[Array] = []
        for tensor in (*(x for o in self.operations for x in o.inputs), *self.outputs):
            if tensor._value is not None and id(tensor) not in places:
                places[id(tensor)] = len(self.inputs) + len(constants)
                constants.append(tensor.array())
        length = len(self.inputs) + len(constants)
        steps: list[tuple[Operation, list[Spec], list[int], int, list[int]]] = []
        last: dict[int, int] = {}
        for position, operation in enumerate(self.operations):
            outputs = operation.outputs
            inputs = [places[id(x)] for x in operation.inputs]
            places.update({id(x): length + i for i, x in enumerate(outputs)})
            last.update(dict.fromkeys(inputs, position))
            specs = [Spec(x.shape, x.dtype) for x in outputs]
            steps.append((operation, specs, inputs, length, []))
            length += len(outputs)
        kept = [places[id(x)] for x in self.outputs]
        for place, position in last.items():
            if place not in kept:
                steps[position][-1].append(place)
        return _Plan(constants, steps, kept, length)

    def replay(self, *inputs: Tensor, by: Callable[..., Any] | None = None) -> tuple[Tensor, ...]:
        """Apply the graph's operations anew to other inputs, by `apply` or what is given."""
        by = apply if by is None else by
        mapped = {id(old): new for old, new in zip(self.inputs, inputs, strict=True)}
        for operation in self.operations:
            arguments = [mapped.get(id(x), x) for x in operation.inputs]
            with scope(operation.scope):
                results = by(operation.primitive, *arguments, **operation.params)
            if isinstance(results, Tensor):
                results = (results,)
            for old, new in zip(operation.outputs, results, strict=True):
                if not old.requires_grad and any(x.requires_grad for x in operation.inputs):
                    new.requires_grad = False  # it was cut off
                mapped[id(old)] = new
        return tuple(mapped.get(id(x), x) for x in self.outputs)


class Trace:
    """What is recorded while a function runs without values.

    A trace inside another is a *body*: of a composite, a scan, a checkpoint. Tensors from outside
    become inputs of the body (`captured`).
    """

    def __init__(self, *, is_body: bool = False) -> None:
        self.parent = _state.trace if is_body else None
        self.closed = False
        #: Every tensor made here, kept alive.
        self.tensors: list[Tensor] = []
        #: Tensors from outside, by identity, and the inputs that stand for them.
        self.captured: dict[int, tuple[Tensor, Tensor]] = {}
        #: The first read of each cell.
        self.reads: dict[Cell, Tensor] = {}
        #: What each cell holds now.
        self.leaves: dict[Cell, Tensor] = {}
        #: The last assignment of each cell.
        self.assignments: dict[Cell, Tensor] = {}
        #: Conditions that must hold before a cell is written, each with its message.
        self.checks: list[tuple[Tensor, str]] = []
        #: NumPy arrays that became constants (weakly), and the values they had.
        self.arrays: list[tuple[weakref.ref[Array], Array]] = []
        self.grads: dict[Cell, Tensor] = {}
        self.pending: set[Cell] = set()
        self._is_body = is_body

    @property
    def root(self) -> Trace:
        """The outermost trace."""
        return self if self.parent is None else self.parent.root

    def forget(self) -> None:
        """Let go of all tensors. They know their trace, so memory would wait for the collector."""
        self.tensors, self.captured = [], {}
        self.reads, self.leaves, self.assignments = {}, {}, {}

    @contextmanager
    def active(self) -> Iterator[Trace]:
        """Record what is applied in this block."""
        outside = _state.trace
        _state.trace = self
        try:
            yield self
        finally:
            _state.trace = outside
            self.closed = True

    def placeholder(self, shape: Shape, dtype: DType, *, requires_grad: bool = False) -> Tensor:
        """A tensor whose value will be known when the program runs."""
        tensor = Tensor(shape, dtype, requires_grad=requires_grad, trace=self)
        self.tensors.append(tensor)
        return tensor

    def read(self, cell: Cell) -> Tensor:
        """What the cell holds at this point of the trace."""
        leaf = self.leaves.get(cell)
        if leaf is None:
            if self._is_body:
                with within(self.parent):
                    outer = cell.read()
                leaf = self.capture(outer)
            else:
                leaf = self.placeholder(cell.shape, cell.dtype, requires_grad=cell.requires_grad)
                leaf.cell = cell
                self.reads[cell] = leaf
            self.leaves[cell] = leaf
        return leaf

    def assign(self, cell: Cell, value: Tensor) -> None:
        """Record that the cell holds `value` from here on."""
        value = resolve(value)
        self.assignments[cell] = value
        leaf = value.detach()  # a new identity: the gradient of a later read stops here
        leaf.requires_grad = cell.requires_grad
        leaf.cell = cell
        self.leaves[cell] = leaf

    def capture(self, tensor: Tensor) -> Tensor:
        """An input of this body that stands for a tensor from outside."""
        if not self._is_body:
            if tensor.requires_grad and tensor.cell is None:
                raise TraceError(
                    f"a tensor of shape {tensor.shape} that requires a gradient was made outside "
                    "the compiled function; pass it as an nn.Parameter or palto.Cell, detach it, "
                    "or compute it inside"
                )
            return tensor  # a constant
        if tensor.trace is None and tensor.ndim == 0 and not tensor.requires_grad:
            return tensor
        if id(tensor) not in self.captured:
            inner = self.placeholder(tensor.shape, tensor.dtype, requires_grad=tensor.requires_grad)
            self.captured[id(tensor)] = (tensor, inner)
        return self.captured[id(tensor)][1]

    def note_array(self, array: Array) -> None:
        """Remember a NumPy array that becomes a constant, to see later whether it has changed."""
        while isinstance(array.base, np.ndarray):  # a view changes with what it looks at
            array = array.base
        if all(known() is not array for known, _ in self.arrays):
            self.arrays.append((weakref.ref(array), array.copy()))

    def encloses(self, other: Trace | None) -> bool:
        """Whether `other` is recorded inside this trace."""
        while other is not None:
            if other is self:
                return True
            other = other.parent
        return False


class _State(threading.local):
    trace: Trace | None = None
    grad: bool = True
    scope: tuple[str, ...] = ()


_state = _State()
_sequence = itertools.count()
_mutations = itertools.count(1)
#: Grows whenever an attribute of a module or an optimiser changes; a compiled function that sees
#: the number it knows need not look further.
mutation_count = 0


def note_mutation() -> None:
    """Say that Python state which compiled functions may depend on has changed."""
    global mutation_count
    mutation_count = next(_mutations)


_changes = itertools.count(1)
#: Grows whenever a cell changes of which a program keeps what it has computed.
change_count = 0
#: Grows whenever a program begins to keep what it computes of cells.
keeping_count = 0


def note_change() -> None:
    """Say that the value of such a cell has changed."""
    global change_count
    change_count = next(_changes)


def note_keeping() -> None:
    """Say that more cells than before are such cells."""
    global keeping_count
    keeping_count = next(_changes)


class Watched:
    """The base of objects whose attributes shape a program: modules, optimisers.

    Every change of an attribute is noted, so that a compiled function sees at one glance that
    nothing has changed.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        note_mutation()

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        note_mutation()


def current_trace() -> Trace | None:
    """The trace that records at the moment in this thread, if any."""
    return _state.trace


def is_grad_enabled() -> bool:
    """Whether operations remember their inputs for backprop."""
    return _state.grad


@contextmanager
def set_grad_enabled(enabled: bool) -> Iterator[None]:
    """Switch the recording for backprop on or off in a block, or in a decorated function."""
    before = _state.grad
    _state.grad = enabled
    try:
        yield
    finally:
        _state.grad = before


def no_grad(function: Callable[..., Any] | None = None) -> Any:
    """No recording for backprop in this block (or decorated function)."""
    off = set_grad_enabled(False)
    return off if function is None else off(function)


@contextmanager
def scope(names: tuple[str, ...]) -> Iterator[None]:
    """Operations applied in this block belong to the layer at this path."""
    before = _state.scope
    _state.scope = names
    try:
        yield
    finally:
        _state.scope = before


def current_scope() -> tuple[str, ...]:
    """The layers being called at the moment, outermost first."""
    return _state.scope


@contextmanager
def within(trace: Trace | None) -> Iterator[None]:
    """Record in this trace in a block; None computes at once."""
    inside = _state.trace
    _state.trace = trace
    try:
        yield
    finally:
        _state.trace = inside


def resolve(tensor: Tensor) -> Tensor:
    """The tensor as the current trace (or no trace) can use it.

    Raises:
        TraceError: the tensor belongs to a trace that has ended or does not enclose this one.
    """
    if isinstance(tensor, Cell):
        tensor = tensor.read()
    trace = _state.trace
    if tensor.trace is trace:
        return tensor
    if tensor.trace is None:
        assert trace is not None
        return trace.capture(tensor)
    if tensor.trace.closed or trace is None or not tensor.trace.encloses(trace):
        raise TraceError(tensor._no_value())
    return trace.capture(tensor)


def apply(primitive: Primitive, *inputs: Tensor, **params: Any) -> Any:
    """Apply a primitive: compute with NumPy now, or record when a trace is active.

    Returns:
        A Tensor, or a tuple of them for a primitive of several outputs.
    """
    inputs = tuple([resolve(x) for x in inputs])
    trace = _state.trace
    inferred = primitive.infer(*inputs, **params)
    specs = inferred if isinstance(inferred, tuple) else (inferred,)

    requires_grad = (
        _state.grad
        and primitive.gradient is not None
        and any([x.requires_grad for x in inputs])
        and any([spec.dtype in DIFFERENTIABLE for spec in specs])
    )
    severed = None
    if requires_grad:
        severed = next((x.severed for x in inputs if x.requires_grad and x.severed), None)
    operation = None
    if trace is not None or (requires_grad and severed is None):
        operation = Operation(primitive, inputs, params)

    if trace is None:
        values: Sequence[Array | None] = run(primitive, [x.array() for x in inputs], params, specs)
    else:
        values = (None,) * len(specs)
    outputs = tuple(
        [
            Tensor(
                spec.shape,
                spec.dtype,
                value,
                requires_grad=requires_grad and spec.dtype in DIFFERENTIABLE,
                operation=operation,
                index=index,
                trace=trace,
            )
            for index, (spec, value) in enumerate(zip(specs, values, strict=True))
        ]
    )
    if severed is not None:
        for output in outputs:
            output.severed = severed
    if operation is not None:
        operation.set_outputs(outputs)
    if trace is not None:
        trace.tensors.extend(outputs)
    return outputs if isinstance(inferred, tuple) else outputs[0]


def run(
    primitive: Primitive, inputs: Sequence[Array], params: dict[str, Any], specs: Sequence[Spec]
) -> tuple[Array, ...]:
    """The NumPy meaning, held to the shape rule."""
    with np.errstate(all="ignore"):  # IEEE arithmetic: infinities and NaN are values
        result = primitive.numpy(*inputs, **params)
    results = result if isinstance(result, tuple) else (result,)
    arrays = tuple([np.asarray(value) for value in results])
    for array, spec in zip(arrays, specs, strict=True):
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise RuntimeError(
                f"defect in Palto's primitive {primitive.name!r}: its shape rule says "
                f"{spec.dtype.name}{spec.shape}, NumPy gave {array.dtype.name}{array.shape}"
            )
    return arrays


def check(condition: Tensor, message: str) -> None:
    """Demand that a condition holds: now, or before a compiled program writes its first cell.

    Args:
        condition: one bool.
        message: what is said when it does not hold.

    Raises:
        FloatingPointError: with `message`, now or when the program runs.
    """
    trace = _state.trace
    if trace is None:
        if not bool(condition):
            raise FloatingPointError(message)
    elif trace.parent is not None or trace._is_body:
        raise TraceError("a check cannot stand inside a scan, a checkpoint or a composite")
    else:
        trace.checks.append((resolve(condition), message))
