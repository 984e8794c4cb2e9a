"""Movement: the same elements elsewhere. No arithmetic, any dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.tensor import Shape, Tensor

Ints = tuple[int, ...]


def _free(operation: Operation) -> int:
    return 0


# reshape


def _reshape_infer(x: Tensor, *, shape: Shape) -> Spec:
    if math.prod(shape) != x.size or any(n < 0 for n in shape):
        raise ValueError(f"cannot reshape {x.shape} ({x.size} elements) to {shape}")
    return Spec(shape, x.dtype)


reshape = Primitive(
    "reshape",
    _reshape_infer,
    lambda x, *, shape: x.reshape(shape),
    lambda op, g: [F.reshape(g, op.inputs[0].shape)],
    flops=_free,
)

# permute


def _permute_infer(x: Tensor, *, axes: Ints) -> Spec:
    if sorted(axes) != list(range(x.ndim)):
        raise ValueError(f"{axes} is not an order of the {x.ndim} axes of shape {x.shape}")
    return Spec(tuple(x.shape[axis] for axis in axes), x.dtype)


permute = Primitive(
    "permute",
    _permute_infer,
    lambda x, *, axes: x.transpose(axes),
    lambda op, g: [F.permute_dims(g, tuple(int(i) for i in np.argsort(op.params["axes"])))],
    flops=_free,
)

# expand


def _expand_infer(x: Tensor, *, shape: Shape) -> Spec:
    tail = shape[len(shape) - x.ndim :]
    if x.ndim > len(shape) or any(n not in (1, m) for n, m in zip(x.shape, tail, strict=True)):
        raise ValueError(f"shape {x.shape} does not broadcast to {shape}")
    return Spec(shape, x.dtype)


def _expand_gradient(operation: Operation, g: Tensor) -> Gradients:
    shape = operation.inputs[0].shape
    new = g.ndim - len(shape)
    stretched = tuple(
        axis for axis in range(g.ndim) if axis < new or shape[axis - new] != g.shape[axis]
    )
    return [F.reshape(F.sum(g, stretched), shape)]


#: Repeat along new leading axes and along axes of length 1.
expand = Primitive(
    "expand",
    _expand_infer,
    lambda x, *, shape: np.broadcast_to(x, shape),
    _expand_gradient,
    flops=_free,
)

# pad


def _pad_infer(x: Tensor, *, low: Ints, high: Ints, interior: Ints, value: Any) -> Spec:
    if min((0, *low, *high, *interior)) < 0:
        raise ValueError(f"pad wants widths of at least 0, got {low}, {high}, {interior}")
    shape = tuple(
        before + n + max(n - 1, 0) * gap + after
        for n, before, after, gap in zip(x.shape, low, high, interior, strict=True)
    )
    return Spec(shape, x.dtype)


def _pad_numpy(x: Array, *, low: Ints, high: Ints, interior: Ints, value: Any) -> Array:
    spec = _pad_infer(Tensor(x.shape, x.dtype), low=low, high=high, interior=interior, value=value)
    result = np.full(spec.shape, value, x.dtype)
    result[_interior(x.shape, low, interior)] = x
    return result


def _interior(shape: Shape, low: Ints, interior: Ints) -> tuple[slice, ...]:
    return tuple(
        slice(before, before + n + max(n - 1, 0) * gap, gap + 1)
        for n, before, gap in zip(shape, low, interior, strict=True)
    )


def _pad_gradient(operation: Operation, g: Tensor) -> Gradients:
    params = operation.params
    where = _interior(operation.inputs[0].shape, params["low"], params["interior"])
    return [F.getitem(g, where)]


#: A constant before, after and (`interior`) between the elements of each axis.
pad = Primitive("pad", _pad_infer, _pad_numpy, _pad_gradient, flops=_free)

# slice


def _slice_infer(x: Tensor, *, starts: Ints, stops: Ints, steps: Ints) -> Spec:
    lengths = []
    for n, start, stop, step in zip(x.shape, starts, stops, steps, strict=True):
        if not 0 <= start <= stop <= n or step < 1:
            raise ValueError(f"slice {start}:{stop}:{step} of an axis of {n}")
        lengths.append(-(-(stop - start) // step))
    return Spec(tuple(lengths), x.dtype)


def _slice_numpy(x: Array, *, starts: Ints, stops: Ints, steps: Ints) -> Array:
    where = tuple(slice(*part) for part in zip(starts, stops, steps, strict=True))
    return np.asarray(x[where])


def _slice_gradient(operation: Operation, g: Tensor) -> Gradients:
    params, shape = operation.params, operation.inputs[0].shape
    high = []
    for n, m, start, step in zip(shape, g.shape, params["starts"], params["steps"], strict=True):
        covered = start + m + max(m - 1, 0) * (step - 1)
        high.append(n - covered)
    interior = tuple(step - 1 for step in params["steps"])
    return [F.pad_widths(g, params["starts"], tuple(high), interior)]


#: A box of the elements, every `step`-th of them; a negative step is a flip first.
slice_ = Primitive("slice", _slice_infer, _slice_numpy, _slice_gradient, flops=_free)

# flip

flip = Primitive(
    "flip",
    lambda x, *, axes: Spec(x.shape, x.dtype),
    lambda x, *, axes: np.flip(x, axes),
    lambda op, g: [F.flip(g, axis=op.params["axes"])],
    flops=_free,
)

# concat


def _concat_infer(*inputs: Tensor, axis: int) -> Spec:
    first = inputs[0]
    for x in inputs:
        same = x.ndim == first.ndim and all(
            n == m or i == axis for i, (n, m) in enumerate(zip(x.shape, first.shape, strict=True))
        )
        if not same:
            raise ValueError(
                f"concat along axis {axis}: shapes {first.shape} and {x.shape} differ elsewhere"
            )
        if x.dtype != first.dtype:
            raise TypeError(f"concat: {first.dtype.name} and {x.dtype.name}; cast one first")
    total = sum(x.shape[axis] for x in inputs)
    return Spec((*first.shape[:axis], total, *first.shape[axis + 1 :]), first.dtype)


def _concat_gradient(operation: Operation, g: Tensor) -> Gradients:
    axis, start, gradients = operation.params["axis"], 0, []
    for x in operation.inputs:
        stop = start + x.shape[axis]
        gradients.append(g[(slice(None),) * axis + (slice(start, stop),)])
        start = stop
    return gradients


concat = Primitive(
    "concat",
    _concat_infer,
    lambda *inputs, axis: np.concatenate(inputs, axis),
    _concat_gradient,
    flops=_free,
)

# A box whose place is itself a tensor


def _require_starts(shape: Shape, sizes: Shape, starts: Tensor) -> None:
    if starts.shape != (len(shape),) or starts.dtype not in dtypes.INTEGER:
        raise ValueError(
            f"starts wants one integer per axis, shape ({len(shape)},), "
            f"got {starts.dtype.name}{starts.shape}"
        )
    if len(sizes) != len(shape) or any(n > m for n, m in zip(sizes, shape, strict=True)):
        raise ValueError(f"a box of {sizes} does not fit into {shape}")


def _box(shape: Shape, starts: Array, sizes: Shape) -> tuple[slice, ...]:
    for axis, (n, start, size) in enumerate(zip(shape, starts.tolist(), sizes, strict=True)):
        if not 0 <= start <= n - size:
            raise IndexError(
                f"start {start} is out of range on axis {axis}: a box of {size} in {n} "
                f"may start at 0 to {n - size}"
            )
    return tuple(
        slice(start, start + size) for start, size in zip(starts.tolist(), sizes, strict=True)
    )


def _dynamic_slice_infer(x: Tensor, starts: Tensor, *, sizes: Shape) -> Spec:
    _require_starts(x.shape, sizes, starts)
    return Spec(sizes, x.dtype)


def _dynamic_slice_gradient(operation: Operation, g: Tensor) -> Gradients:
    x, starts = operation.inputs
    return [F.dynamic_update_slice(F.zeros(x.shape, dtype=g.dtype), g, starts), None]


dynamic_slice = Primitive(
    "dynamic_slice",
    _dynamic_slice_infer,
    lambda x, starts, *, sizes: np.asarray(x[_box(x.shape, starts, sizes)]),
    _dynamic_slice_gradient,
    flops=_free,
)


def _dynamic_update_infer(x: Tensor, update: Tensor, starts: Tensor) -> Spec:
    _require_starts(x.shape, update.shape, starts)
    if x.dtype != update.dtype:
        raise TypeError(f"cannot write {update.dtype.name} into {x.dtype.name}; cast it first")
    return Spec(x.shape, x.dtype)


def _dynamic_update_numpy(x: Array, update: Array, starts: Array) -> Array:
    result = np.array(x)
    result[_box(x.shape, starts, update.shape)] = update
    return result


def _dynamic_update_gradient(operation: Operation, g: Tensor) -> Gradients:
    _, update, starts = operation.inputs
    hole = F.zeros(update.shape, dtype=g.dtype)
    return [
        F.dynamic_update_slice(g, hole, starts),
        F.dynamic_slice(g, starts, update.shape),
        None,
    ]


dynamic_update_slice = Primitive(
    "dynamic_update_slice",
    _dynamic_update_infer,
    _dynamic_update_numpy,
    _dynamic_update_gradient,
    flops=_free,
)

# iota


def _iota_numpy(*, shape: Shape, axis: int, dtype: dtypes.DType) -> Array:
    along = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(along.astype(dtype), shape)


#: 0, 1, 2 ... along one axis; so that no program carries a table of numbers it can count.
iota = Primitive(
    "iota",
    lambda *, shape, axis, dtype: Spec(shape, dtype),
    _iota_numpy,
    None,
    flops=_free,
)
