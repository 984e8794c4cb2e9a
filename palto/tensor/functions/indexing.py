"""Indexing: slices, integers, None, ..., integer tensors and masks, as in NumPy and PyTorch."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor.functions.creation import asarray, count_between, iota, zeros
from palto.tensor.functions.elementwise import astype, where
from palto.tensor.functions.manipulation import (
    are_same_lengths,
    as_axis,
    broadcast_arrays,
    broadcast_shapes,
    broadcast_to,
    dynamic_update_slice,
    flip,
    pad_widths,
    permute_dims,
    reshape,
)
from palto.tensor.graph import apply
from palto.tensor.primitives import indexing as rows
from palto.tensor.primitives import movement
from palto.tensor.tensor import Shape, Tensor, TraceError

_Slice = builtins.slice


def take(x: Any, indices: Any, *, axis: int = 0, role: str = "index") -> Tensor:
    """The slices of `x` along `axis` at `indices`, whose axes stand in place of that axis.

    Args:
        x: the tensor.
        indices: integers from 0 to the length of the axis - 1.
        axis: the axis.
        role: what the indices are called in an error.

    Raises:
        IndexError: an index out of range; it names the value.
    """
    x = asarray(x)
    return take_at(x, [asarray(indices)], axis=as_axis(axis, x.ndim), role=role)


def take_at(x: Tensor, indices: Sequence[Tensor], *, axis: int = 0, role: str = "index") -> Tensor:
    """``x[..., i, j, ...]`` for index tensors of one shape along neighbouring axes from `axis`.

    Raises:
        IndexError: an index out of range; it names the value.
    """
    result: Tensor = apply(rows.gather, x, *indices, axis=axis, role=role)
    return result


def scatter_add(
    indices: Any, updates: Any, *, size: int, axis: int = 0, role: str = "index"
) -> Tensor:
    """Zeros of length `size` along `axis`, every slice of `updates` added at its index.

    Args:
        indices: integers from 0 to `size` - 1.
        updates: a tensor that has the axes of `indices` in place of `axis`.
        size: the length of the axis in the result.
        axis: the axis of the result.
        role: what the indices are called in an error.

    Raises:
        IndexError: an index out of range; it names the value.
    """
    indices, updates = asarray(indices), asarray(updates)
    axis = as_axis(axis, updates.ndim - indices.ndim + 1)
    return scatter_add_at([indices], updates, sizes=(size,), axis=axis, role=role)


def scatter_add_at(
    indices: Sequence[Tensor],
    updates: Tensor,
    *,
    sizes: Shape,
    axis: int = 0,
    role: str = "index",
) -> Tensor:
    """The transpose of `take_at`: zeros of lengths `sizes`, every update added at its indices.

    Raises:
        IndexError: an index out of range; it names the value.
    """
    result: Tensor = apply(rows.scatter_add, updates, *indices, sizes=sizes, axis=axis, role=role)
    return result


def take_along_axis(x: Any, indices: Any, *, axis: int = -1, role: str = "index") -> Tensor:
    """One element of `x` for each index, at the same place on the other axes.

    Args:
        x: a tensor.
        indices: integers, of the shape of `x` but for the length along `axis`.
        axis: the axis that the indices run along.
        role: what the indices are called in an error.

    Raises:
        IndexError: an index out of range; it names the value.
    """
    x, indices = asarray(x), asarray(indices)
    axis = as_axis(axis, x.ndim)
    others = [*x.shape[:axis], *x.shape[axis + 1 :]]
    if indices.ndim != x.ndim or [*indices.shape[:axis], *indices.shape[axis + 1 :]] != others:
        raise ValueError(
            f"take_along_axis along axis {axis}: indices of shape {indices.shape} do not match "
            f"{x.shape} on the other axes"
        )
    places = [indices if i == axis else iota(indices.shape, i) for i in range(x.ndim)]
    return take_at(x, places, role=role)


def getitem(x: Tensor, index: Any) -> Tensor:
    """``x[index]``.

    Raises:
        IndexError: too many indices, or one out of range.
        TypeError: something that is not an index.
    """
    plan = _Plan(x, index)
    result = plan.sliced_from(x)
    return result if plan.advanced is None else plan.gathered(result)


class _Plan:
    """An index taken apart: a basic part (slices, integers, None), then tensors of integers."""

    def __init__(self, x: Tensor, index: Any) -> None:
        parts = _parts(index, x)
        # As in NumPy, a whole number counts as a tensor where there are others.
        places = [i for i, part in enumerate(parts) if isinstance(part, int | Tensor)]
        self._adjacent = places == list(range(places[0], places[-1] + 1)) if places else True
        fill = [_Slice(None)] * (x.ndim - sum(_consumes(part) for part in parts))
        at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
        parts = [*parts[:at], *fill, *parts[at + 1 :]]

        self.starts: list[int] = []
        self.stops: list[int] = []
        self.steps: list[int] = []
        #: The shape of the box with an axis for every slice and None, none for an integer.
        self.shape: list[int] = []
        #: Tensors of integers by the axis of `shape` that they index.
        tensors: dict[int, Tensor] = {}
        axis = 0
        for part in parts:
            if part is None:
                self.shape.append(1)
                continue
            length = x.shape[axis]
            if isinstance(part, _Slice):
                start, step, count = _place(part, length)
                self._box(start, step, count, length)
                self.shape.append(count)
            elif isinstance(part, Tensor):
                tensors[len(self.shape)] = _from_front(part, length)
                self._box(0, 1, length, length)
                self.shape.append(length)
            else:
                place = part + length if part < 0 else part
                if not 0 <= place < length:
                    raise IndexError(
                        f"index {part} is out of range for axis {axis} of shape {x.shape}"
                    )
                self._box(place, 1, 1, length)
            axis += 1
        self.advanced = tensors or None

    def _box(self, start: int, step: int, count: int, length: int) -> None:
        if step < 0:  # seen from the other end
            start, step = length - 1 - start, -step
            self.steps.append(-step)
        else:
            self.steps.append(step)
        start = start if count else 0
        self.starts.append(start)
        self.stops.append(start + max(count - 1, 0) * step + (1 if count else 0))

    @property
    def flipped(self) -> tuple[int, ...]:
        """The axes of `x` that a negative step runs backwards along."""
        return tuple(axis for axis, step in enumerate(self.steps) if step < 0)

    def sliced_from(self, x: Tensor) -> Tensor:
        """The basic part, of a tensor of the shape that the plan was made for."""
        x = flip(x, axis=self.flipped) if self.flipped else x
        steps = tuple(builtins.abs(step) for step in self.steps)
        whole = all(
            step == 1 and are_same_lengths((start, stop), (0, n))
            for start, stop, step, n in zip(self.starts, self.stops, steps, x.shape, strict=True)
        )
        if not whole:
            x = apply(
                movement.slice_,
                x,
                starts=tuple(self.starts),
                stops=tuple(self.stops),
                steps=steps,
            )
        return reshape(x, tuple(self.shape))

    def gathered(self, x: Tensor) -> Tensor:
        """The tensors of integers applied to the basic part."""
        assert self.advanced is not None
        axes = list(self.advanced)
        try:
            indices = broadcast_arrays(*self.advanced.values())
        except ValueError as error:
            raise IndexError(f"the index tensors do not fit together: {error}") from None
        others = [axis for axis in range(x.ndim) if axis not in axes]
        result = take_at(permute_dims(x, [*axes, *others]), indices)
        # Neighbouring index tensors leave their axes in place; others put them first.
        if not self._adjacent:
            return result
        count = indices[0].ndim
        before = axes[0]
        order = [*range(count, count + before), *range(count), *range(count + before, result.ndim)]
        return permute_dims(result, order)


def _parts(index: Any, x: Tensor) -> list[Any]:
    """An index in one form: ints, slices, None, int64 tensors, and '...' at most once."""
    given = [_part(part) for part in (index if isinstance(index, tuple) else (index,))]
    if sum(part is Ellipsis for part in given) > 1:
        raise IndexError("an index may have only one '...'")
    consumed = sum(_consumes(part) for part in given)
    if consumed > x.ndim:
        raise IndexError(f"{consumed} indices for a tensor of {x.ndim} axes, shape {x.shape}")
    result: list[Any] = []
    axis = 0
    for part in given:
        if isinstance(part, Tensor) and part.dtype == dtypes.bool:
            result.extend(_mask_indices(part, x.shape[axis : axis + part.ndim]))
        else:
            result.append(part)
        axis += x.ndim - consumed if part is Ellipsis else _consumes(part)
    return result


def _part(part: Any) -> Any:
    if part is None or part is Ellipsis:
        return part
    if isinstance(part, _Slice):
        return _plain_slice(part)
    if isinstance(part, bool | np.bool_):
        raise TypeError("a Python bool is no index; use a bool tensor as a mask")
    if not isinstance(part, Tensor | np.ndarray) and hasattr(part, "__index__"):
        return part if isinstance(part, int) else part.__index__()
    if not isinstance(part, Tensor | np.ndarray | list | tuple | range):
        raise TypeError(f"{part!r} is no index; use whole numbers, slices, None, ..., or tensors")
    tensor = asarray(part)
    if tensor.size == 0 and not isinstance(part, Tensor | np.ndarray):
        tensor = astype(tensor, dtypes.int64)
    if tensor.dtype == dtypes.bool and tensor.ndim:
        return tensor
    if tensor.dtype not in dtypes.INTEGER:
        raise TypeError(
            f"an index tensor holds integers, or bool for a mask, not "
            f"{tensor.dtype.name}{tensor.shape}"
        )
    return astype(tensor, dtypes.int64)  # room for the length added to negative indices


def _consumes(part: Any) -> int:
    """How many axes an index takes."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, Tensor) and part.dtype == dtypes.bool else 1


def _from_front(index: Tensor, length: int) -> Tensor:
    """Negative indices counted from the front; one out of range stays, so that errors name it."""
    if index.trace is None and index.array().min(initial=0) >= 0:
        return index
    return where((index < 0) & (index >= -length), index + length, index)


def _plain_slice(part: _Slice) -> _Slice:
    bounds: list[int | None] = []
    for bound in (part.start, part.stop, part.step):
        if bound is None:
            bounds.append(None)
            continue
        if isinstance(bound, Tensor) and bound.trace is not None:
            raise TraceError(
                "a slice bound is a tensor's value, which is known only when the program runs; "
                "use palto.dynamic_slice, which has a fixed size"
            )
        if not hasattr(bound, "__index__"):
            raise TypeError(f"slice bounds are whole numbers, got {bound!r}")
        bounds.append(bound if isinstance(bound, int) else bound.__index__())
    return _Slice(*bounds)


def _place(part: _Slice, length: int) -> tuple[int, int, int]:
    """Where a slice of an axis begins, its step, and how many places it has.

    As of ``part.indices(length)``, by comparisons that a trace of run-time sizes can note.
    """
    step = 1 if part.step is None else part.step
    if step == 0:
        raise ValueError("slice step cannot be zero")
    low, high = (0, length) if step > 0 else (-1, length - 1)

    def inside(bound: int | None, missing: int) -> int:
        if bound is None:
            return missing
        return min(max(bound + length if bound < 0 else bound, low), high)

    first, last = (low, high) if step > 0 else (high, low)
    start = inside(part.start, first)
    return start, step, count_between(start, inside(part.stop, last), step)


def _mask_indices(mask: Tensor, shape: Shape) -> list[Tensor]:
    if mask.shape != shape:
        raise IndexError(f"a mask of shape {mask.shape} does not fit axes of shape {shape}")
    return list(nonzero(mask))


def nonzero(x: Any) -> tuple[Tensor, ...]:
    """Where the elements are that are not zero: one int64 tensor of indices per axis.

    Raises:
        TraceError: inside a compiled function, where a shape cannot depend on values.
    """
    x = asarray(x)
    if x.trace is not None:
        raise TraceError(
            "the number of elements chosen by a mask is known only when the program runs; "
            "use palto.where(mask, x, 0), or palto.top_k with a fixed k"
        )
    return tuple(asarray(i, copy=False) for i in np.nonzero(x.array()))


class At:
    """``x.at[index]``: changed copies of `x`."""

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def __getitem__(self, index: Any) -> _Place:
        return _Place(self._x, index)


class _Place:
    def __init__(self, x: Tensor, index: Any) -> None:
        self._x = x
        self._plan = _Plan(x, index)

    def set(self, value: Any) -> Tensor:
        """`x` with the indexed elements replaced by `value`.

        Raises:
            TypeError: the index holds tensors of integers, which may name an element twice.
        """
        x, plan = self._x, self._plan
        if plan.advanced is not None:
            raise TypeError(
                "set() takes slices and whole numbers; an index tensor may name an element twice. "
                "Use .add(), or palto.where with a mask"
            )
        value = self._shaped(value)
        steps = [builtins.abs(step) for step in plan.steps]
        if all(step == 1 or n == 1 for step, n in zip(steps, self._counts, strict=True)):
            return dynamic_update_slice(
                x, flip(value, axis=plan.flipped) if plan.flipped else value,
                asarray(np.array(self._from_front(), np.int64)),
            )  # fmt: skip
        mask = self._spread(asarray(np.ones(value.shape, np.bool_)))
        return where(mask, self._spread(value), x)

    def add(self, value: Any) -> Tensor:
        """`x` with `value` added to the indexed elements, as often as each is named."""
        x, plan = self._x, self._plan
        if plan.advanced is None:
            return x + self._spread(self._shaped(value))
        # What is added is the transpose of the indexing itself.
        places = iota((x.size,), 0)
        chosen = plan.gathered(plan.sliced_from(reshape(places, x.shape)))
        updates = broadcast_to(_like(value, x), chosen.shape)
        flat = scatter_add(reshape(chosen, (-1,)), reshape(updates, (-1,)), size=x.size)
        return x + reshape(flat, x.shape)

    @property
    def _counts(self) -> list[int]:
        plan = self._plan
        return [
            -(-(stop - start) // builtins.abs(step))
            for start, stop, step in zip(plan.starts, plan.stops, plan.steps, strict=True)
        ]

    def _from_front(self) -> list[int]:
        plan = self._plan
        return [
            n - stop if step < 0 else start
            for n, start, stop, step in zip(
                self._x.shape, plan.starts, plan.stops, plan.steps, strict=True
            )
        ]

    def _shaped(self, value: Any) -> Tensor:
        value = _like(value, self._x)
        if broadcast_shapes(value.shape, tuple(self._plan.shape)) != tuple(self._plan.shape):
            raise ValueError(
                f"a value of shape {value.shape} does not fit a place of {tuple(self._plan.shape)}"
            )
        return reshape(broadcast_to(value, tuple(self._plan.shape)), self._counts)

    def _spread(self, value: Tensor) -> Tensor:
        """`value` at its place, zeros around it."""
        plan = self._plan
        if 0 in value.shape:
            return zeros(self._x.shape, dtype=value.dtype)
        steps = [builtins.abs(step) for step in plan.steps]
        high = tuple(n - stop for n, stop in zip(self._x.shape, plan.stops, strict=True))
        spread = pad_widths(value, tuple(plan.starts), high, tuple(step - 1 for step in steps))
        return flip(spread, axis=plan.flipped) if plan.flipped else spread


def _like(value: Any, x: Tensor) -> Tensor:
    if isinstance(value, bool | int | float | complex):
        return asarray(value, dtype=dtypes.scalar_dtype(value, x.dtype))
    tensor = asarray(value)
    if tensor.dtype != x.dtype:
        raise TypeError(
            f"cannot write {tensor.dtype.name} into a tensor of {x.dtype.name}; cast it first"
        )
    return tensor


__all__ = [
    "At", "getitem", "nonzero", "scatter_add", "scatter_add_at", "take", "take_along_axis",
    "take_at",
]  # fmt: skip
