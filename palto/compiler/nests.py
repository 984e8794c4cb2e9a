"""Nests: the pieces that a program is made of, each some loops around some expressions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from palto.compiler import index as ix
from palto.compiler import views
from palto.compiler.index import Index, Variable
from palto.compiler.views import Condition, Read
from palto.tensor.graph import Operation
from palto.tensor.tensor import Shape, Tensor


@dataclass(eq=False, slots=True)
class Nest:
    """Loops that compute some tensors.

    Attributes:
        reads: what is read from memory, and at which indices; None where any may be.
        early: whether it must come before the first cell is written.
        position: its place in the program.
    """

    reads: list[tuple[Tensor, tuple[Index, ...] | None]] = field(default_factory=list, kw_only=True)
    early: bool = field(default=False, kw_only=True)
    position: int = field(default=-1, kw_only=True)

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors computed."""
        raise NotImplementedError


@dataclass(eq=False, slots=True)
class Member:
    """One tensor computed in a group.

    Attributes:
        tensor: the tensor.
        kind: "map": an element for each place of the group; "row": one for each row; "reduce": one
            for each row, from all places of the row.
        phase: in which pass over the row; a "row" comes after that pass.
        source: what is computed at a place: the tensor itself, what is reduced, or a part of a
            concatenation.
        offset: for such a part, the axis and where on it the part begins.
    """

    tensor: Tensor
    kind: str
    phase: int
    source: Tensor
    offset: tuple[int, int] | None = None


@dataclass(eq=False, slots=True)
class Product:
    """A matrix product or a convolution as a contraction of affine reads.

    Attributes:
        operation: the operation.
        result: what is computed: its output, or that in another order of axes.
        batch, rows, summed: variables of each kind of axis.
        column: the variable of the columns.
        a, b: what is read; the columns are neighbours in `b`.
        indices: the result's indices.
        needless: indices that are above 0 only where nothing need be summed (`zeros`); none with
            run-time sizes.
    """

    operation: Operation
    result: Tensor
    batch: tuple[Variable, ...]
    rows: tuple[Variable, ...]
    column: Variable
    summed: tuple[Variable, ...]
    a: Read
    b: Read
    indices: tuple[Index, ...]
    needless: tuple[Index, ...] = ()


@dataclass(eq=False, slots=True)
class Group(Nest):
    """Tensors computed together over one range of places, row by row.

    Attributes:
        shape: the lengths of the range.
        variables: its loop variables.
        rows: how many of them, from the first, are rows; None while no member reduces.
        product: what the members are computed from while it is in registers, if anything.
        members: what is computed.
        size: how many places there are.
    """

    shape: Shape
    variables: tuple[Variable, ...]
    rows: int | None = None
    product: Product | None = None
    members: list[Member] = field(default_factory=list)
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = math.prod(self.shape)

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors computed."""
        found = {id(m.tensor): m.tensor for m in self.members}
        if self.product is not None:
            found[id(self.product.result)] = self.product.result
        return list(found.values())

    def place(self) -> Index:
        """The place in the range, counted row by row."""
        return ix.linear([ix.of(v) for v in self.variables], self.shape)

    def row(self) -> Index:
        """The number of the row."""
        assert self.rows is not None
        return ix.linear([ix.of(v) for v in self.variables[: self.rows]], self.shape[: self.rows])

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return math.prod(self.shape[: self.rows])


def source_indices(member: Member, place: Index, row: Index) -> list[Index]:
    """Where a member's source is read, for a place and its row."""
    return ix.along(row if member.kind == "row" else place, member.source.shape)


def target_indices(member: Member, place: Index, row: Index) -> list[Index]:
    """Where the member's element goes."""
    if member.kind == "reduce":
        return ix.along(row, member.tensor.shape)
    indices = source_indices(member, place, row)
    if member.offset is not None:
        axis, start = member.offset
        indices[axis] = indices[axis] + start
    return indices


#: Operations that run a body again and again.
LOOPS = ("scan", "repeat")


@dataclass(eq=False, slots=True)
class Single(Nest):
    """One operation in loops of its own.

    Attributes:
        operation: the operation.
        kind: "reduce", "running", "scatter", "update", "winograd", "library" or one of `LOOPS`.
        variables: one for each axis of the result.
        reduced: one for each axis that is summed over.
    """

    operation: Operation
    kind: str
    variables: tuple[Variable, ...] = ()
    reduced: tuple[Variable, ...] = ()

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors computed."""
        return list(self.operation.outputs)


@dataclass(eq=False, slots=True)
class Check(Nest):
    """Something that must hold before a cell is written.

    Attributes:
        tensor: what is looked at, all of it or the element at `place`.
        low, high: the values allowed, `high` not among them; None for any.
        allows_zero: whether 0 is allowed.
        error: from the offending value to the error.
        place: a single element to look at.
    """

    tensor: Tensor
    low: int | None
    high: int | None
    allows_zero: bool
    error: Any
    place: int | None = None

    @property
    def outputs(self) -> list[Tensor]:
        """Nothing is computed."""
        return []


def variables(prefix: str, shape: Sequence[int]) -> tuple[Variable, ...]:
    """Loop variables, one for each axis."""
    return tuple(Variable(f"{prefix}{axis}", n) for axis, n in enumerate(shape))


Reads = list[tuple[Tensor, tuple[Index, ...] | None]]


@dataclass(slots=True)
class Walk:
    """What an expression reads from memory, and the numbers that it computes with.

    Attributes:
        is_stored: whether a tensor is read from memory.
        reads: stored tensors with their indices; None where any may be read.
        numbers: indices whose values matter apart from places in memory.
    """

    is_stored: Callable[[Tensor], bool]
    reads: Reads = field(default_factory=list)
    numbers: list[Index] = field(default_factory=list)
    _seen: set[Any] = field(default_factory=set)

    def visit(self, x: Tensor, at: Sequence[Index], *, inside: bool = False) -> None:
        """Follow the expression of an element; `inside` means into a stored tensor, too."""
        key = id(x), tuple(i.key for i in at)
        if key in self._seen:
            return
        self._seen.add(key)
        for i in at:
            self._elements(i)
        if self.is_stored(x) and not inside:
            self.reads.append((x, tuple(at)))
            return
        operation = x.operation
        assert operation is not None
        name = operation.primitive.name
        if name in views.TABLE:
            self.follow(views.TABLE[name](operation, at))
        elif name == "dynamic_update_slice":
            self.numbers += at
            for source in operation.inputs:
                self.reads += [(t, None) for t, _ in reads_of(source, self.is_stored)]
        elif name == "random_bits":
            self.visit(operation.inputs[0], [Index()])
            self.numbers.append(ix.linear(at, x.shape))
        elif name == "window_put":
            reads, place = covering(operation, at, [Index()] * (x.ndim - 2))
            self.numbers.append(place)
            for read in reads:
                self.follow(read)
        elif name == "iota":
            self.numbers.append(at[operation.params["axis"]])
        elif name == "sum":
            over = [ix.of(v) for v in inner_variables(operation)]
            self.follow(*terms(operation, at, over))
        else:
            for source in operation.inputs:
                self.visit(source, at)

    def follow(self, read: Read) -> None:
        """Follow a read with its conditions."""
        for condition in read.conditions:
            self.numbers.append(condition.index)
            self._elements(condition.index)
        self.visit(read.tensor, read.indices)

    def _elements(self, index: Index) -> None:
        """Indices that are themselves elements of tensors."""
        for variable, _ in index.terms.values():
            if variable.kind == "element":
                self.visit(variable.source.tensor, variable.source.indices)
            elif variable.index is not None:
                self._elements(variable.index)


def reads_of(x: Tensor, is_stored: Callable[[Tensor], bool]) -> Reads:
    """What the whole of a tensor reads."""
    walk = Walk(is_stored)
    walk.visit(x, [ix.of(v) for v in variables("w", x.shape)])
    return walk.reads


def covering(
    operation: Operation, at: Sequence[Index], over: Sequence[Index]
) -> tuple[list[Read], Index]:
    """One of the windows that may cover a pixel: the value and index there, and its place in it.

    `over` counts back, along each axis, from the last window that begins at or before the pixel.
    """
    params = operation.params
    conditions: list[Condition] = []
    windows, places = [], []
    for pixel, back, k, step, (low, _), n in zip(
        at[1:-1], over, params["window"], params["stride"], params["padding"],
        operation.inputs[0].shape[1:-1], strict=True,
    ):  # fmt: skip
        last, rest = ix.split(pixel + low, step)
        place = ix.total([(rest, 1), (back, step)])
        if place.high >= k:  # the window ends before the pixel
            conditions.append(Condition(place, 0, k))
        windows.append(views.spread(ix.total([(last, 1), (back, -1)]), n, 1, conditions))
        places.append(place)
    where = (at[0], *windows, at[-1])
    reads = [Read(x, where, tuple(conditions)) for x in operation.inputs]
    return reads, ix.linear(places, params["window"])


#: Reductions: which are over axes of the input, and which over windows.
OVER_AXES = ("sum", "max", "min", "argmax")


def reduced_shape(operation: Operation) -> Shape:
    """The lengths that a reduction runs over for each element of its result."""
    name, params = operation.primitive.name, operation.params
    x = operation.inputs[0]
    if name in ("sum", "max", "min"):
        return tuple(x.shape[axis] for axis in params["axes"])
    if name == "argmax":
        return (x.shape[params["axis"]],)
    if name == "conv":
        return operation.inputs[1].shape[:-1]
    if name == "matmul":
        return (x.shape[-1],)
    if name == "window_put":
        return tuple(-(-k // s) for k, s in zip(params["window"], params["stride"], strict=True))
    return tuple(params["window"])


def inner_variables(operation: Operation) -> tuple[Variable, ...]:
    """What a sum runs over that is a loop inside an expression."""
    return variables(f"s{operation.sequence}_", reduced_shape(operation))


def terms(operation: Operation, out: Sequence[Index], over: Sequence[Index]) -> list[Read]:
    """What a reduction reads for the element `out` of its result at the place `over`."""
    name, params = operation.primitive.name, operation.params
    x = operation.inputs[0]
    if name in OVER_AXES:
        axes = params["axes"] if "axes" in params else (params["axis"],)
        kept, reduced = iter(out), dict(zip(axes, over, strict=True))
        return [Read(x, tuple(reduced[i] if i in reduced else next(kept) for i in range(x.ndim)))]
    if name == "matmul":
        batch, (m, n), (k,) = out[:-2], out[-2:], over
        return [Read(x, (*batch, m, k)), Read(operation.inputs[1], (*batch, k, n))]
    if name == "conv":
        channels, share = operation.inputs[1].shape[-2], out_share(operation)
        group, _ = ix.split(out[-1], share)
        space = under(out[1:-1], over[:-1], params["stride"], params["kernel_dilation"])
        channel = ix.total([(group, channels), (over[-1], 1)])
        return [
            Read(x, (out[0], *space, channel)),
            Read(operation.inputs[1], (*over, out[-1])),
        ]
    if name == "window_sum":
        space = under(out[1:-1], over, params["stride"], (1,) * len(over))
        return [Read(x, (out[0], *space, out[-1]))]
    if name == "window_max":
        conditions: list[Condition] = []
        pixels = [
            views.spread(views.total_of(o, step, k, -low), n, 1, conditions)
            for o, step, k, (low, _), n in zip(
                out[1:-1], params["stride"], over, params["padding"], x.shape[1:-1], strict=True
            )
        ]
        return [Read(x, (out[0], *pixels, out[-1]), tuple(conditions))]
    assert name == "window_put"
    return covering(operation, out, over)[0]


def under(
    out: Sequence[Index], over: Sequence[Index], stride: Sequence[int], gaps: Sequence[int]
) -> list[Index]:
    """Pixels under windows without padding."""
    parts = zip(out, over, stride, gaps, strict=True)
    return [views.total_of(o, step, k, 0, gap) for o, k, step, gap in parts]


def out_share(operation: Operation) -> int:
    """Output channels of one group of a convolution."""
    return int(operation.inputs[1].shape[-1]) // int(operation.params["groups"])
