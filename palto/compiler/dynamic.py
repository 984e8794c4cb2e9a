"""Dynamic shapes: one recording for all sizes of some axes, from traces at a few sizes.

The function is traced at large sizes, at one less along each, and once more in the middle. The
graphs must be the same but for whole numbers (lengths, starts, constants); each is taken for the
multilinear function through its values, and must follow it in the middle, too.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palto.compiler.sizes import LEAST, Comparisons, Dim, Seen, Size, at, bounds, names_in
from palto.compiler.trace import Recording, difference, equal, named
from palto.tensor import functions as F
from palto.tensor.graph import Array, Graph, Operation, Trace, apply, scope, set_grad_enabled
from palto.tensor.primitives import movement
from palto.tensor.tensor import Tensor, TraceError
from palto.tensor.tree import Tree, rebuild

#: Up to so many whole numbers in a list, such as where a box begins, may follow the sizes.
_LONGEST_LIST = 16
#: So many small and great lengths of an axis, and others between, are looked at for exceptions.
_LOOKED_AT = 24
#: At how many further sizes with the same answers to all comparisons a function is traced, to
#: confirm that it does the same.
_TRIED = 2
#: Of one flat argument: itself, or which of its axes, is a run-time size.
Declared = Dim | dict[int, Dim]
#: Takes where comparisons are noted; gives a function from sizes to the recording at those sizes.
Tracer = Callable[[Comparisons], Callable[[Mapping[str, int]], Recording]]


class DynamicShapes:
    """Which axes of a function's arguments are run-time sizes.

    Args:
        function: the function.
        shapes: by argument; see :func:`palto.compile`.

    Raises:
        TypeError: it does not say a Dim for an axis or a whole number.
        ValueError: two Dims have one name.
    """

    def __init__(self, function: Callable[..., Any], shapes: Mapping[str, Any]) -> None:
        self._function = function
        self.shapes = shapes
        self._known: dict[Tree, dict[int, Declared]] = {}
        self.dims: dict[str, Dim] = {}
        if not isinstance(shapes, Mapping):
            raise TypeError(
                "dynamic_shapes is a dict from the names of parameters, such as "
                f"{{'x': {{0: palto.Dim('batch', max=64)}}}}; got {shapes!r}"
            )
        for name, spec in shapes.items():
            self._note(name, spec)

    def _note(self, name: str, spec: Any) -> None:
        if isinstance(spec, Dim):
            if self.dims.setdefault(spec.name, spec) != spec:
                raise ValueError(f"dynamic_shapes has two different Dims named {spec.name!r}")
        elif isinstance(spec, Mapping):
            for part in spec.values():
                self._note(name, part)
        elif isinstance(spec, list | tuple):
            for part in spec:
                self._note(name, part)
        elif spec is not None:
            raise TypeError(
                f"dynamic_shapes[{name!r}] wants {{axis: palto.Dim}} for a tensor, a palto.Dim for "
                f"a whole number, or a list, tuple or dict of these; got {spec!r}"
            )

    def of(self, tree: Tree, count: int) -> dict[int, Declared]:
        """What is declared of each flat argument."""
        if tree not in self._known:
            found: dict[int, Declared] = {}
            args, kwargs = rebuild(tree, list(range(count)))
            function = getattr(self._function, "forward", self._function)
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            for name, spec in self.shapes.items():
                if name not in given:
                    raise TypeError(
                        f"dynamic_shapes names the argument {name!r}; this call has "
                        f"{', '.join(given) or 'none'}"
                    )
                _match(name, spec, given[name], found)
            self._known[tree] = found
        return self._known[tree]

    def sizes(
        self, declared: dict[int, Declared], leaves: Sequence[Any], arrays: Sequence[Array | None]
    ) -> dict[str, int]:
        """The sizes of a call.

        Raises:
            ValueError: one is over its maximum, or an axis disagrees with another.
        """
        found: dict[str, int] = {}
        for place, spec in declared.items():
            for dim, size in _sizes_of(spec, leaves[place], arrays[place]):
                if found.setdefault(dim.name, size) != size:
                    raise ValueError(
                        f"axes declared as {dim.name!r} have the different sizes "
                        f"{found[dim.name]} and {size}"
                    )
                if size > dim.max:
                    raise ValueError(f"{dim.name!r} is {size}, and was declared with max={dim.max}")
        return found


def _match(name: str, spec: Any, places: Any, found: dict[int, Declared]) -> None:
    if spec is None:
        return
    if isinstance(places, int):
        is_axes = isinstance(spec, Mapping) and all(isinstance(axis, int) for axis in spec)
        if isinstance(spec, Dim):
            found[places] = spec
        elif is_axes:
            found[places] = dict(spec)
        else:
            raise TypeError(f"dynamic_shapes[{name!r}] has {spec!r} for one tensor or number")
    elif isinstance(places, dict) and isinstance(spec, Mapping):
        for key, part in spec.items():
            _match(f"{name}[{key!r}]", part, places[key], found)
    elif isinstance(places, list | tuple) and isinstance(spec, list | tuple):
        for i, (part, place) in enumerate(zip(spec, places, strict=False)):
            _match(f"{name}[{i}]", part, place, found)
    else:
        raise TypeError(f"dynamic_shapes[{name!r}] is not built like the argument")


def _sizes_of(spec: Declared, leaf: Any, array: Array | None) -> list[tuple[Dim, int]]:
    if isinstance(spec, Dim):
        if array is not None or isinstance(leaf, bool) or not isinstance(leaf, int):
            raise TypeError(f"the Dim {spec.name!r} stands for a Python int, got {leaf!r}")
        return [(spec, leaf)]
    if array is None:
        raise TypeError(f"dynamic_shapes has axes for {leaf!r}, which is no tensor")
    result = []
    for axis, dim in spec.items():
        if not -array.ndim <= axis < array.ndim:
            raise ValueError(
                f"dynamic_shapes names axis {axis} of an argument of shape {array.shape}"
            )
        result.append((dim, array.shape[axis]))
    return result


def with_sizes(
    declared: dict[int, Declared], leaves: Sequence[Any], shapes: Sequence[Any], sizes: Any
) -> tuple[list[Any], list[Any]]:
    """Flat arguments and their shapes (None for what is no tensor) at other sizes.

    Args:
        declared: what is declared of them.
        leaves: the arguments.
        shapes: their shapes.
        sizes: by name, what stands in the place of a size.
    """
    leaves, shapes = list(leaves), list(shapes)
    for place, spec in declared.items():
        if isinstance(spec, Dim):
            leaves[place] = sizes[spec.name]
        else:
            shape = list(shapes[place])
            for axis, dim in spec.items():
                shape[axis] = sizes[dim.name]
            shapes[place] = tuple(shape)
    return leaves, shapes


def points(dims: Sequence[Dim]) -> list[dict[str, int]]:
    """The sizes to trace at: first the largest, last one in the middle.

    Not the greatest, at which a slice of a cache may be all of it; and in the middle an odd number,
    which is hardly ever the length of another axis.
    """
    corners = [
        {dim.name: dim.max - 1 - less for dim, less in zip(dims, chosen, strict=True)}
        for chosen in itertools.product((0, 1), repeat=len(dims))
    ]
    return [*corners, {dim.name: max(dim.max // 2 - 1, LEAST) | 1 for dim in dims}]


@dataclass(frozen=True, slots=True)
class _Constant:
    """A constant of a trace: a short one by its bytes, another by what they hash to."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    content: bytes

    @classmethod
    def of(cls, value: Array) -> _Constant:
        content = value.tobytes()
        is_long = value.size > _LONGEST_LIST
        return cls(
            value.dtype, value.shape, hashlib.sha256(content).digest() if is_long else content
        )

    def array(self) -> Array:
        """The values of a short one."""
        return np.frombuffer(self.content, self.dtype).reshape(self.shape)


class Samples:
    """Traces of one function at some sizes, of equal structure.

    The first is kept whole. Of the others only the numbers are kept, since the trace of a large
    model takes as much memory as all else that the compiler keeps: whatever may differ stands at a
    place, and what it is in one trace after the other is its history. A model of many layers has
    few different ones.

    Args:
        sizes: those of the first trace.
        recording: the first trace.

    Attributes:
        first: the first trace.
        sizes: of each trace, its sizes.
        places: in the order of `_varying`, which history is there.
        histories: whole numbers, seen or plain, or constants: one for each trace.
    """

    def __init__(self, sizes: Mapping[str, int], recording: Recording) -> None:
        self.first = recording
        self.sizes: tuple[Mapping[str, int], ...] = ()
        self.places: Sequence[int] = ()
        self.histories: list[tuple[Any, ...]] = []
        self._add(sizes, recording)

    def and_at(self, sizes: Mapping[str, int], recording: Recording) -> Samples:
        """These and one more.

        Raises:
            TraceError: the function does something else there.
        """
        different = difference(self.first, recording, is_other_size=True)
        if different is not None:
            raise TraceError(
                f"the function does not do the same for {told(self.sizes[0])} and for "
                f"{told(sizes)}: {different}. With dynamic_shapes, only lengths and numbers that "
                "follow the size may differ"
            )
        result = copy.copy(self)
        result._add(sizes, recording)
        return result

    def _add(self, sizes: Mapping[str, int], recording: Recording) -> None:
        pasts = self.histories
        places: Iterator[int] = iter(self.places) if pasts else itertools.repeat(0)
        known: dict[Any, int] = {}
        self.histories = []
        now = array("i")
        for past, value in zip(places, _varying(recording.graph), strict=bool(pasts)):
            # Numbers that are equal may depend on sizes in different ways.
            key = past, (int(value), value.size) if isinstance(value, Seen) else value
            found = known.setdefault(key, len(known))
            if found == len(self.histories):
                self.histories.append((*(pasts[past] if pasts else ()), value))
            now.append(found)
        self.places = now
        self.sizes = (*self.sizes, dict(sizes))


def _varying(graph: Graph) -> Iterator[int | _Constant]:
    """What may differ between traces, in the order in which `_Fit` asks for it."""
    for x in graph.inputs:
        yield from x.shape
    for operation in graph.operations:
        for x in operation.inputs:
            if x._value is not None:
                yield _Constant.of(x.array())
        for name, value in operation.params.items():
            if name not in _UNVARYING:
                yield from _numbers_in(value)
        for x in operation.outputs:
            yield from x.shape
    for x in graph.outputs:
        if x._value is not None:
            yield _Constant.of(x.array())


#: Parameters that are no numbers.
_UNVARYING = ("statics", "gradient")


def _numbers_in(value: Any) -> Iterator[int | _Constant]:
    if isinstance(value, Graph):
        yield from _varying(value)
    elif isinstance(value, tuple):
        for part in value:
            yield from _numbers_in(part)
    elif _is_number(value):
        yield value


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def sampled(
    points: Sequence[Mapping[str, int]], traced: Callable[[Mapping[str, int]], Recording]
) -> Samples:
    """Traces at some sizes."""
    samples = Samples(points[0], traced(points[0]))
    for sizes in points[1:]:
        samples = samples.and_at(sizes, traced(sizes))
    return samples


class General:
    """What a function does for all sizes that it does the same for.

    Args:
        dims: the run-time sizes.
        comparisons: what the traces asked of these.
        samples: the traces at `points`.

    Attributes:
        least: the sizes below which it does something else.

    Raises:
        TraceError: the function does something else at one of the points.
    """

    def __init__(self, dims: Sequence[Dim], comparisons: Comparisons, samples: Samples) -> None:
        self._dims, self._comparisons = dims, comparisons
        comparisons.settle(samples.sizes)
        self._recording: Recording | None
        self._recording, self.least = generalise(dims, comparisons, samples)
        #: Sizes that have been tried, and whether they are of this recording.
        self._tried = [(sizes, True) for sizes in samples.sizes]
        self._by_answers = self._sorted()

    def take(self) -> Recording:
        """What the function does. It is handed over, as nothing here needs it any more."""
        recording, self._recording = self._recording, None
        assert recording is not None
        return recording

    def is_for(
        self, sizes: Mapping[str, int], tracer: Tracer, corners: Samples | None = None
    ) -> bool:
        """Whether the function does the same for other sizes.

        For each new set of answers the function is traced once at these sizes, and at up to
        `_TRIED` others with the same answers.

        Args:
            sizes: the sizes.
            tracer: traces the function, with the questions noted where these are noted.
            corners: the traces at `points` but the last, if they are at hand.
        """
        if any(sizes[name] < least for name, least in self.least.items()):
            return False
        answers = self._comparisons.answers(sizes)
        if answers not in self._by_answers:
            self._tried.append((sizes, self._fits(sizes, tracer(self._comparisons), corners)))
            self._by_answers = self._sorted()  # with what this trace has asked in addition
            answers = self._comparisons.answers(sizes)
        return self._by_answers[answers]

    def _fits(
        self,
        sizes: Mapping[str, int],
        traced: Callable[[Mapping[str, int]], Recording],
        corners: Samples | None,
    ) -> bool:
        """Whether a trace at these sizes, and some that answer alike, are of the recording."""
        try:
            own = traced(sizes)  # what the function itself refuses is raised
        except TraceError:
            return False
        like = some_like(self._dims, self._comparisons, sizes)[:_TRIED]
        try:
            samples = (corners or sampled(points(self._dims)[:-1], traced)).and_at(sizes, own)
            del own
            for other in like:
                samples = samples.and_at(other, traced(other))
            generalise(self._dims, self._comparisons, samples)
        except (TraceError, ValueError, IndexError):
            return False
        return True

    def exception(self, tracer: Tracer) -> Mapping[str, int] | None:
        """Sizes for which the function does something else; None if none are found.

        Small, great and some other ones are looked at, one for each set of answers.
        """
        lengths = []
        for dim in self._dims:
            step = max(dim.max // _LOOKED_AT, 1)
            near = *range(LEAST, LEAST + _LOOKED_AT), *range(dim.max - _LOOKED_AT, dim.max + 1)
            found = {*near, *range(LEAST, dim.max, step)}
            lengths.append([n for n in sorted(found) if LEAST <= n <= dim.max])
        for values in itertools.product(*lengths):
            sizes = {dim.name: n for dim, n in zip(self._dims, values, strict=True)}
            # Sizes that the function itself refuses, with no TraceError, are nobody's.
            with suppress(ValueError, IndexError):
                if not self.is_for(sizes, tracer):
                    return sizes
        return None

    def _sorted(self) -> dict[tuple[int, ...], bool]:
        answers = ((self._comparisons.answers(sizes), fits) for sizes, fits in self._tried)
        return dict(sorted(answers, key=lambda found: not found[1]))


def some_like(
    dims: Sequence[Dim], comparisons: Comparisons, sizes: Mapping[str, int]
) -> list[dict[str, int]]:
    """Some sizes, far ones first, to which comparisons answer as to these."""
    far = [(dim.max, dim.max - 2, dim.max // 3, 3, LEAST) for dim in dims]
    near = [range(sizes[dim.name] - 2, sizes[dim.name] + 3) for dim in dims]
    answers = comparisons.answers(sizes)
    found = (
        {dim.name: n for dim, n in zip(dims, values, strict=True)}
        for lengths in (far, near)
        for values in itertools.product(*lengths)
        if all(LEAST <= n <= dim.max for n, dim in zip(values, dims, strict=True))
    )
    return [other for other in found if comparisons.answers(other) == answers]


def generalise(
    dims: Sequence[Dim], comparisons: Comparisons, samples: Samples
) -> tuple[Recording, dict[str, int]]:
    """One recording for all sizes, and the least sizes that it is for.

    Args:
        dims: the run-time sizes.
        comparisons: what the traces asked of these.
        samples: the traces at `points`; those after the corners may be at any sizes, and are what
            is checked.

    Raises:
        TraceError: the function does something else for other sizes.
    """
    first = samples.first
    least = comparisons.least(samples.sizes)
    # Sizes at which a length would be 0 are found by a first attempt.
    for _ in range(2):
        fit = _Fit(dims, least, comparisons, samples)
        trace = Trace()
        with trace.active(), set_grad_enabled(False):
            graph = fit.graph(first.graph, trace)
        trace.forget()
        if fit.needed == least:
            break
        least = dict(fit.needed)
    returned = tuple(int(x) if isinstance(x, Seen) else x for x in first.returned)
    return replace(first, graph=graph, returned=returned), least


class _Fit:
    """The first of some traces, with numbers that follow the sizes as those of all do."""

    def __init__(
        self,
        dims: Sequence[Dim],
        least: dict[str, int],
        comparisons: Comparisons,
        samples: Samples,
    ) -> None:
        self._dims = dims
        self._symbols = {dim.name: Size.of(dim, least[dim.name]) for dim in dims}
        self._sizes = samples.sizes
        self.needed = dict(least)
        #: Of each trace, some sizes for which it would be the same.
        self._alike = [some_like(dims, comparisons, own) for own in samples.sizes]
        self._histories, self._places = samples.histories, iter(samples.places)
        #: The numbers through the histories that have been met.
        self._numbers: dict[int, int] = {}

    def graph(self, graph: Graph, trace: Trace) -> Graph:
        """The graph for all sizes."""
        new: dict[int, Tensor] = {}
        for x in graph.inputs:
            new[id(x)] = trace.placeholder(self._shape(x, "an input"), x.dtype)
        for old in graph.operations:
            where = named(old)
            with scope(old.scope):
                inputs = [
                    self._constant(x, where) if x._value is not None else new[id(x)]
                    for x in old.inputs
                ]
                params = {
                    name: value if name in _UNVARYING else self._value(value, where)
                    for name, value in old.params.items()
                }
                operation = Operation(old.primitive, tuple(inputs), params)
            outputs = []
            for x in old.outputs:
                output = Tensor(
                    self._shape(x, where), x.dtype, operation=operation, index=x.index, trace=trace
                )
                trace.tensors.append(output)
                new[id(x)] = output
                outputs.append(output)
            operation.set_outputs(tuple(outputs))
        inputs = [new[id(x)] for x in graph.inputs]
        ends = [
            self._constant(x, "the result") if x._value is not None else new[id(x)]
            for x in graph.outputs
        ]
        return Graph.reaching(inputs, ends, trace.tensors)

    def _shape(self, x: Tensor, where: str) -> tuple[int, ...]:
        shape = tuple([self._number(where) for _ in x.shape])
        for n in shape:
            if isinstance(n, Size):
                self._need(n, where)
        return shape

    def _need(self, n: Size, where: str) -> None:
        """Leave out the sizes at which a length is less than 1."""
        if int(n) < bounds(n)[1]:
            raise TraceError(
                f"{where} has an axis of length {n}, which shrinks as the size grows; dynamic "
                "shapes are for axes that grow"
            )
        names = set(names_in(n))
        while at(n, self.needed) < 1:
            for name in names:
                self.needed[name] += 1

    def _value(self, value: Any, where: str) -> Any:
        """A parameter for all sizes."""
        if isinstance(value, Graph):
            trace = Trace(is_body=True)
            with trace.active():
                return self.graph(value, trace)
        if isinstance(value, tuple):
            return tuple([self._value(part, where) for part in value])
        return self._number(where) if _is_number(value) else value

    def _number(self, where: str) -> int:
        """The whole number through the next place's history."""
        place = next(self._places)
        if place not in self._numbers:
            self._numbers[place] = self._checked(self._histories[place], where)
        return self._numbers[place]

    def _checked(self, values: Sequence[int], where: str) -> int:
        result = self._through(values)
        for value, sizes, alike in zip(values, self._sizes, self._alike, strict=True):
            fits = at(result, sizes) == int(value)
            if isinstance(value, Seen):
                fits = fits and all(at(result, x) == at(value.size, x) for x in alike)
            if not fits:
                raise TraceError(
                    f"{where} uses the number {values[0]} where {told(self._sizes[0])}, "
                    f"{values[1]} where {told(self._sizes[1])}, and {values[-1]} where "
                    f"{told(self._sizes[-1])}: it does not follow the size in a straight line, so "
                    "one program cannot know it"
                )
        return result

    def _through(self, values: Sequence[int]) -> int:
        numbers = [int(value) for value in values]
        if all(number == numbers[0] for number in numbers):
            return numbers[0]
        corners = numbers[: 2 ** len(self._dims)]
        result: int = 0
        for chosen in itertools.product((0, 1), repeat=len(self._dims)):
            # Backward differences along the chosen sizes, times the steps from the largest.
            change = sum(
                (-1) ** sum(less) * value
                for less, value in zip(
                    itertools.product((0, 1), repeat=len(self._dims)), corners, strict=True
                )
                if all(a <= b for a, b in zip(less, chosen, strict=True))
            )
            steps = [
                self._symbols[dim.name] - self._sizes[0][dim.name]
                for dim, is_chosen in zip(self._dims, chosen, strict=True)
                if is_chosen
            ]
            result = result + math.prod(steps, start=change)
        return result

    def _constant(self, x: Tensor, where: str) -> Tensor:
        """A constant; where it depends on the sizes, the computation of it."""
        constants = self._histories[next(self._places)]
        first = constants[0]
        if all(constant == first for constant in constants):
            return x
        is_list = all(c.shape == first.shape and c.dtype.kind in "iu" for c in constants)
        if is_list and x.ndim == 1 and x.size <= _LONGEST_LIST:
            lists = [constant.array().tolist() for constant in constants]
            items = [self._checked(ns, where) for ns in zip(*lists, strict=True)]
            return F.stack([_number_of(n, x.dtype) for n in items])
        if x.ndim:
            raise TraceError(
                f"{where} uses a constant of shape {first.shape} at one size and of "
                f"{constants[1].shape}, or with other values, at another; compute it by Palto's "
                "functions (palto.arange, palto.ones ...) inside"
            )
        arrays = [constant.array() for constant in constants]
        numbers, dtype = [value.item() for value in arrays], x.dtype
        if all(float(n).is_integer() for n in numbers):
            return _number_of(self._checked([int(n) for n in numbers], where), dtype)
        inverse = [round(1 / n) if n else 0 for n in numbers]
        if all(
            n and equal(np.asarray(1 / n, dtype), a) for n, a in zip(inverse, arrays, strict=True)
        ):
            one = F.asarray(np.asarray(1, dtype))
            return F.divide(one, _number_of(self._checked(inverse, where), dtype))
        raise TraceError(
            f"{where} uses the number {numbers[0]} where {told(self._sizes[0])} and "
            f"{numbers[1]} where {told(self._sizes[1])}. One program knows whole numbers that "
            "follow the size, and 1 over such; compute others from palto.asarray(size) inside"
        )


def told(sizes: Mapping[str, int]) -> str:
    """Sizes in a message."""
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _number_of(number: int, dtype: Any) -> Tensor:
    """A tensor that holds a whole number: the last element of a range."""
    line = apply(movement.iota, shape=(number + 1,), axis=0, dtype=dtype)
    end = apply(movement.slice_, line, starts=(number,), stops=(number + 1,), steps=(1,))
    result: Tensor = F.reshape(end, ())
    return result
