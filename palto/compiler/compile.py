"""``@palto.compile``: a function becomes a program at its first call."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, overload

import numpy as np

from palto.backprop import BackwardError
from palto.compiler.dynamic import (
    Declared,
    DynamicShapes,
    General,
    Samples,
    points,
    with_sizes,
)
from palto.compiler.executor import Executor, Explanation, Runnable, dense
from palto.compiler.executors import chosen
from palto.compiler.guards import Guards
from palto.compiler.llvm import machine
from palto.compiler.sizes import LEAST, Comparisons
from palto.compiler.trace import VALUE, Recording, difference, record
from palto.tensor import dtypes
from palto.tensor.graph import Array, Spec, current_trace, is_grad_enabled
from palto.tensor.tensor import Cell, Tensor, TraceError
from palto.tensor.tree import LEAF, Tree, flatten, rebuild

#: So many programs of one function are usual; more are worth a warning.
USUAL_PROGRAMS = 8
#: So many programs of one function are kept.
MOST_PROGRAMS = 64


@dataclass(slots=True)
class _Entry:
    """One program, and what must be so for it to be the right one."""

    guards: Guards
    recording: Recording
    program: Runnable
    #: For which run-time sizes it is the right one, if it has some.
    general: General | None = None
    #: Calls of plain arrays for which it is: whether gradients are on, then the shape and dtype of
    #: each.
    form: list[Any] | None = None
    #: The cells that backprop reaches; which of the tensors returned would require a gradient;
    #: whether one tensor alone is returned.
    graded: tuple[Cell, ...] = field(init=False)
    severed: list[int] = field(init=False)
    is_single: bool = field(init=False)

    def __post_init__(self) -> None:
        recording = self.recording
        self.graded = tuple(cell for cell, _ in recording.grads)
        self.severed = [place for place, severed in enumerate(recording.severed) if severed]
        self.is_single = recording.tree == LEAF and recording.returned[0] is VALUE

    def forget_plan(self) -> None:
        self.program.forget_plan()
        gc.collect()
        machine.give_back()

    def changed(self) -> str | None:
        fact = self.guards.changed()
        if fact is not None:
            return f"{fact.path} was {_short(fact.expected)} and is now {_short(fact.read())}"
        for reference, value in self.recording.arrays:
            now = reference()
            if now is not None and (now.shape != value.shape or now.tobytes() != value.tobytes()):
                return f"a NumPy array of shape {value.shape} that it uses has changed"
        return None


class CompiledFunction:
    """A function that runs as a program; made by :func:`palto.compile`."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        keep_grad: bool = False,
        keep_plan: bool = True,
        dynamic_shapes: Mapping[str, Any] = MappingProxyType({}),
        executor: str | Executor | None = None,
    ) -> None:
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise TypeError("palto.compile takes plain functions, no generators or coroutines")
        if not callable(function):
            raise TypeError(f"palto.compile takes a function, got {function!r}")
        self._function = function
        self._keep_grad, self._keep_plan = keep_grad, keep_plan
        self._executor = chosen(executor)
        self._dynamic = DynamicShapes(function, dynamic_shapes) if dynamic_shapes else None
        self._entries: dict[Any, list[_Entry]] = {}
        #: The same for calls with plain arrays in a row, by their shapes and dtypes.
        self._plain: dict[Any, list[_Entry]] = {}
        self._lock = threading.RLock()
        self._last_change: str | None = None
        self._latest: _Entry | None = None
        if hasattr(function, "__name__"):
            functools.update_wrapper(self, function)
        self._severed = (
            f"this tensor was computed by the compiled function {self._name!r}, whose graph is not "
            "kept; call backward() inside the compiled function"
        )

    @property
    def _name(self) -> str:
        name: str | None = getattr(self._function, "__name__", None)
        return repr(self._function) if name is None else name

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledFunction:
        return CompiledFunction(
            copy.deepcopy(self._function, memo),
            keep_grad=self._keep_grad,
            keep_plan=self._keep_plan,
            dynamic_shapes=self._dynamic.shapes if self._dynamic else {},
            executor=self._executor,
        )

    @property
    def program_count(self) -> int:
        """How many programs the calls so far have needed."""
        return sum(len(entries) for entries in self._entries.values())

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else _Method(self, instance)

    def __repr__(self) -> str:
        return f"palto.compile({self._name}), {self.program_count} programs"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program for these arguments, made at the first call of their kind."""
        if current_trace() is not None:
            return self._function(*args, **kwargs)  # part of the program around it
        found = None if kwargs else self._known(args)
        entry, arrays, sizes = found or self._prepare(args, kwargs)
        old = [cell for cell in entry.graded if cell._grad is not None]
        for cell in old:
            if cell.grad_is_pending:
                self._refuse_waiting(cell)
        returned, grads = entry.program.run(arrays, sizes)
        if self._keep_grad:
            for (cell, pending), grad in zip(entry.recording.grads, grads, strict=True):
                cell.set_grad(grad, pending=pending)
        else:
            for cell in old:
                cell.set_grad(None, pending=False)
        for place in entry.severed:
            returned[place].requires_grad, returned[place].severed = True, self._severed
        return returned[0] if entry.is_single else _delivered(entry.recording, returned)

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Say what the program does, step by step, and how long each step takes.

        The program runs several times on copies: no parameter and no other cell changes. Print
        what is returned: of a native program a `NativeExplanation`; of one by XLA an
        `XLAExplanation`, which knows no times of steps.

        Args:
            *args: those of a call, for whose program it is. Without any, it is the program of the
                last call, timed on arguments that are made up.
            **kwargs: likewise.

        Raises:
            ValueError: there are no arguments, and the function has not been called yet; or it was
                compiled with `keep_plan=False`.
        """
        return self._explain(args, kwargs, is_empty=not (args or kwargs))

    def _explain(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_empty: bool
    ) -> Explanation:
        if current_trace() is not None:
            raise TraceError(f"explain() runs {self._name}, which cannot be inside a program")
        if not self._keep_plan:
            raise ValueError(
                f"{self._name} was compiled with keep_plan=False, so nothing is known of its "
                "programs; compile it without that to explain() it"
            )
        if not is_empty or self._takes(args):
            entry, arrays, sizes = self._prepare(args, kwargs)
            return entry.program.explain(arrays, self._name, sizes)
        if self._latest is None:
            raise ValueError(
                f"{self._name} has no program yet: call it first, or give explain() the arguments "
                f"of a call, as in {self._name}.explain(inputs, targets)"
            )
        program = self._latest.program
        try:
            return program.explain(program.made_up(), self._name, program.greatest)
        except Exception as error:
            error.add_note(
                "explain() without arguments makes some up; give it those of a call instead"
            )
            raise

    def _takes(self, args: tuple[Any, ...]) -> bool:
        """Whether these arguments are enough."""
        try:
            inspect.signature(self._function).bind(*args)
        except TypeError:
            return False
        return True

    def _prepare(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Entry, list[Array], dict[str, int]]:
        """The program for some arguments, what it takes of them, and its run-time sizes."""
        leaves, tree = flatten((args, kwargs))
        arrays = [self._as_array(leaf) for leaf in leaves]
        declared: dict[int, Declared] = {}
        sizes: dict[str, int] = {}
        if self._dynamic is not None:
            declared = self._dynamic.of(tree, len(leaves))
            sizes = self._dynamic.sizes(declared, leaves, arrays)
        entry = None
        if sizes and min(sizes.values()) >= LEAST:
            entry = self._entry(leaves, arrays, tree, declared, sizes)
            tracer = functools.partial(self._tracer, leaves, arrays, tree, declared)
            if entry.general is None or not entry.general.is_for(sizes, tracer):
                entry = None
        if entry is None:
            entry, sizes = self._entry(leaves, arrays, tree, {}, {}), {}
        self._latest = entry
        return entry, [array for array in arrays if array is not None], sizes

    def _as_array(self, leaf: Any) -> Array | None:
        """The value of an argument that a program takes; None for one it is built for."""
        if isinstance(leaf, Cell):
            return None
        if isinstance(leaf, Tensor):
            if leaf.requires_grad and is_grad_enabled():
                raise TraceError(
                    f"an argument of shape {leaf.shape} requires a gradient, but the graph of a "
                    "compiled function ends with it; detach() the argument, or call backward() or "
                    "palto.grad inside the compiled function"
                )
            return self._executor.argument(leaf)
        if isinstance(leaf, float | complex):  # np.float64 among them: a Python number
            return None
        if isinstance(leaf, np.ndarray | np.generic):
            array = np.asarray(leaf)
            dtypes.as_dtype(array.dtype)
            return dense(array)
        return None

    def _known(self, args: tuple[Any, ...]) -> tuple[_Entry, list[Array], dict[str, int]] | None:
        """What `_prepare` gives, found in less time for plain arrays that have come before."""
        arrays: list[Array] = []
        form: list[Any] = [is_grad_enabled()]
        for value in args:
            kind = type(value)
            if kind is Tensor and not value.requires_grad and value._value is not None:
                value = value._value
            elif kind is not np.ndarray:
                return None
            if not value.flags.c_contiguous:
                return None
            arrays.append(value)
            form.append((value.shape, value.dtype))
        entry = self._latest
        if entry is not None and entry.form == form and entry.changed() is None:
            return entry, arrays, {}  # looked up by its hash, it would take twice as long
        for entry in self._plain.get(tuple(form), ()):
            if entry.changed() is None:
                self._latest = entry
                return entry, arrays, {}
        return None

    def _entry(
        self,
        leaves: Sequence[Any],
        arrays: Sequence[Array | None],
        tree: Tree,
        declared: dict[int, Declared],
        sizes: dict[str, int],
    ) -> _Entry:
        shapes: Sequence[Any] = [None if x is None else x.shape for x in arrays]
        given = leaves
        if declared:
            given, shapes = with_sizes(declared, leaves, shapes, {name: name for name in sizes})
        key = (tree, is_grad_enabled(), *[
            _static_key(leaf) if array is None else (shape, array.dtype)
            for leaf, array, shape in zip(given, arrays, shapes, strict=True)
        ])  # fmt: skip
        with self._lock:
            for entry in self._entries.get(key, ()):
                change = entry.changed()
                if change is None:
                    return entry
                self._last_change = change
            with _uncollected():
                entry = self._trace(leaves, arrays, tree, declared, sizes)
            if not self._keep_plan:
                entry.forget_plan()
            if self.program_count >= MOST_PROGRAMS:
                self._drop_oldest()
            entries = self._entries.setdefault(key, [])
            entries.append(entry)
            if not declared and tree == _flat_tree(len(leaves)) and None not in shapes:
                entry.form = [*key[1:]]
                self._plain[key[1:]] = entries
            if self.program_count == USUAL_PROGRAMS + 1:
                self._warn()
            return entry

    def _drop_oldest(self) -> None:
        key = next(iter(self._entries))
        self._entries[key].pop(0)
        self._plain.clear()
        if not self._entries[key]:
            del self._entries[key]

    def _trace(
        self,
        leaves: Sequence[Any],
        arrays: Sequence[Array | None],
        tree: Tree,
        declared: dict[int, Declared],
        sizes: Mapping[str, int],
    ) -> _Entry:
        dims = [self._dynamic.dims[name] for name in sizes] if self._dynamic else []
        comparisons = Comparisons(dims)
        traced = self._tracer(leaves, arrays, tree, declared, comparisons)
        statics = [
            leaf
            for place, (leaf, array) in enumerate(zip(leaves, arrays, strict=True))
            if array is None and place not in declared
        ]
        sampled = points(dims) if dims else [{}]
        guards = Guards(self._function, statics)
        drawn = _drawn()
        recording = traced(sampled[0])
        # What a trace reads from outside must be the same every time, and stay as it was.
        self._refuse_side_effect(guards)
        different = difference(recording, traced(sampled[0]))
        if different is None and drawn != _drawn():
            different = "it drew random numbers from Python or NumPy"
        if different is not None:
            raise TraceError(
                f"the function was traced twice and was not the same: {different}. A compiled "
                "function may not depend on a clock, Python's or NumPy's random numbers, a "
                "counter, or an iterator; use palto.random, a palto.Cell, or an argument"
            )
        general = None
        if dims:
            corners = Samples(sampled[0], recording)
            for x in sampled[1:-1]:
                corners = corners.and_at(x, traced(x))
            general = General(dims, comparisons, corners.and_at(sampled[-1], traced(sampled[-1])))
            tracer = functools.partial(self._tracer, leaves, arrays, tree, declared)
            general.is_for(sizes, tracer, corners)  # while these traces are at hand
            recording = general.take()
            del corners
        self._refuse_side_effect(guards)
        guards.add_cells(recording.reads)
        greatest = {dim.name: dim.max for dim in dims}
        program = self._executor.program(recording, greatest, keep_grad=self._keep_grad)
        return _Entry(guards, recording.without_graph(), program, general)

    def _tracer(
        self,
        leaves: Sequence[Any],
        arrays: Sequence[Array | None],
        tree: Tree,
        declared: dict[int, Declared],
        comparisons: Comparisons,
    ) -> Callable[[Mapping[str, int]], Recording]:
        """From run-time sizes to what the function does with arguments of those sizes."""
        shapes = [None if x is None else x.shape for x in arrays]

        def traced(sizes: Mapping[str, int]) -> Recording:
            with comparisons.noting(sizes) as seen:
                given, lengths = with_sizes(declared, leaves, shapes, seen)
                specs = [
                    None if array is None else Spec(shape, array.dtype)
                    for array, shape in zip(arrays, lengths, strict=True)
                ]
                return record(self._function, given, tree, specs)

        return traced

    def _refuse_side_effect(self, guards: Guards) -> None:
        fact = guards.changed()
        if fact is not None:
            raise TraceError(
                f"the compiled function changes Python state: {fact.path} was "
                f"{_short(fact.expected)} and became {_short(fact.read())}. Its program would not "
                "do that again; keep what changes in a palto.Cell, or return it"
            )

    def _refuse_waiting(self, cell: Cell) -> None:
        raise BackwardError(
            f"{cell.name or 'a parameter'} has a gradient that no optimiser has used yet, and "
            f"{self._name} computes another. Call optimizer.step() between, or add up the losses "
            "inside one compiled function"
        )

    def _warn(self) -> None:
        reason = self._last_change or "its arguments keep changing in shape, dtype or value"
        warnings.warn(
            f"{self._name} has been compiled {self.program_count} times: {reason}. Pass numbers "
            "that change as tensors (palto.asarray) or keep them in a palto.Cell; keep shapes the "
            "same",
            RuntimeWarning,
            stacklevel=5,
        )


class _Method(functools.partial):
    """A compiled function bound to an object."""

    def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """See :meth:`CompiledFunction.explain`."""
        is_empty = not (args or kwargs)
        function: Any = self.func
        found: Explanation = function._explain((*self.args, *args), kwargs, is_empty=is_empty)
        return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python's collector waits: of hundreds of thousands of new objects few are in cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _delivered(recording: Recording, tensors: Sequence[Tensor]) -> Any:
    ready = iter(tensors)
    filled = [next(ready) if leaf is VALUE else leaf for leaf in recording.returned]
    return rebuild(recording.tree, filled)


def _flat_tree(count: int) -> Tree:
    """The structure of a call with so many plain arguments."""
    return flatten((tuple(range(count)), {}))[1]


def _drawn() -> Any:
    """Where Python's and NumPy's own random numbers are."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), kind, np.asarray(keys).tobytes(), rest


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _static_key(leaf: Any) -> Any:
    """What tells one argument that is not a tensor from another."""
    if isinstance(leaf, bool | int | float | complex | str | bytes | type(None)):
        return type(leaf), repr(leaf) if isinstance(leaf, float | complex) else leaf
    return _Same(leaf)


class _Same:
    """An object as a key: equal to itself alone, and kept."""

    __slots__ = ("_object",)

    def __init__(self, value: Any) -> None:
        self._object = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._object is self._object

    def __hash__(self) -> int:
        return id(self._object)


@overload
def compile(
    function: Callable[..., Any],
    /,
    *,
    keep_grad: bool = False,
    keep_plan: bool = True,
    dynamic_shapes: Mapping[str, Any] = MappingProxyType({}),
    executor: str | Executor | None = None,
) -> CompiledFunction: ...
@overload
def compile(
    *,
    keep_grad: bool = False,
    keep_plan: bool = True,
    dynamic_shapes: Mapping[str, Any] = MappingProxyType({}),
    executor: str | Executor | None = None,
) -> Callable[[Callable[..., Any]], CompiledFunction]: ...
def compile(
    function: Callable[..., Any] | None = None,
    /,
    *,
    keep_grad: bool = False,
    keep_plan: bool = True,
    dynamic_shapes: Mapping[str, Any] = MappingProxyType({}),
    executor: str | Executor | None = None,
) -> Any:
    """Make a program of a function, at its first call with arguments of some shape and dtype.

    The program does whatever the function does with tensors: forward, ``loss.backward()``,
    ``optimizer.step()``, augmentation, metrics, random numbers, running statistics. Parameters and
    other cells are read and updated at every call; Python numbers, strings and flags that the
    function reads are guarded, and when one changes a new program is made.

    The function itself runs only while it is traced, so it must not look at a tensor's value
    (``if``, ``float()``), change Python state, or print what it wants to see at every step.

    Args:
        function: a plain function, method or module. It is called with tensors, NumPy arrays
            (which become tensors), nested tuples, lists, dicts and dataclasses of them, and other
            values, which the program is built for.
        keep_grad: leave gradients in ``.grad`` of the parameters after a call.
        keep_plan: remember what ``explain()`` tells. Without it a program of many layers takes
            tens of megabytes less.
        dynamic_shapes: by argument, the axes whose lengths may be another at every call of one
            program: ``{"images": {0: batch}, "labels": {0: batch}}`` with
            ``batch = palto.Dim("batch", max=256)``; for an argument that is a whole number, the
            Dim itself; for a list, tuple or dict, the same of these. Memory is planned for the
            greatest sizes, and a call takes time according to its own.
        executor: who makes and runs the program: ``"native"``, Palto's own compiler; ``"xla"``, by
            JAX, on a GPU or a TPU if there is one (extra ``palto[xla]``); or an object such as
            ``palto.compiler.XLA(devices=4)``. By default what `PALTO_EXECUTOR` says, or native.

    Returns:
        A function of the same arguments. What it returns is not connected to backprop outside.

    Raises:
        TraceError: at the first call, when the function does what a program cannot repeat.
        ValueError: there is no such executor; at a call, when a size is over its maximum, or two
            that should agree do not.
        MissingExtraError: at the first call, when the executor's library is not installed.
    """
    made = functools.partial(
        CompiledFunction,
        keep_grad=keep_grad,
        keep_plan=keep_plan,
        dynamic_shapes=dynamic_shapes,
        executor=executor,
    )
    return made if function is None else made(function)
