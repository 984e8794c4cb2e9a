"""Contractions: batched matrix multiplication and convolution, the rows where the time goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.primitives.window import dilate, require_geometry, windows
from palto.tensor.tensor import Tensor

Ints = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]

# matmul


def _matmul_infer(a: Tensor, b: Tensor) -> Spec:
    if a.ndim < 2 or a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"matmul: {a.shape} @ {b.shape}: the last axis of the first ({a.shape[-1:]}) must "
            f"equal the second to last of the second ({b.shape[-2:-1]})"
        )
    if a.dtype != b.dtype or a.dtype not in dtypes.NUMERIC:
        raise TypeError(f"matmul does not take {a.dtype.name} with {b.dtype.name}")
    return Spec((*a.shape[:-1], b.shape[-1]), a.dtype)


def _matmul_gradient(operation: Operation, g: Tensor) -> Gradients:
    a, b = operation.inputs
    return [
        F.matmul(g, F.matrix_transpose(F.conj(b))) if a.requires_grad else None,
        F.matmul(F.matrix_transpose(F.conj(a)), g) if b.requires_grad else None,
    ]


def _matmul_flops(operation: Operation) -> int:
    return 2 * operation.output().size * operation.inputs[0].shape[-1]


#: (..., m, k) @ (..., k, n) -> (..., m, n), the leading axes equal.
matmul = Primitive("matmul", _matmul_infer, np.matmul, _matmul_gradient, flops=_matmul_flops)

# conv


def _conv_infer(
    x: Tensor,
    w: Tensor,
    *,
    stride: Ints,
    padding: Pairs,
    input_dilation: Ints,
    kernel_dilation: Ints,
    groups: int,
) -> Spec:
    dims = x.ndim - 2
    if x.dtype != w.dtype or x.dtype not in dtypes.FLOATING:
        raise TypeError(f"convolution wants one float dtype, got {x.dtype.name} and {w.dtype.name}")
    if dims < 1 or w.ndim != x.ndim:
        raise ValueError(
            f"convolution wants an input (N, ...space, C) and a kernel (...space, C / groups, O), "
            f"got {x.shape} and {w.shape}"
        )
    steps = {"input_dilation": input_dilation, "kernel_dilation": kernel_dilation}
    require_geometry("convolution", dims, padding, stride=stride, **steps)
    channels, outputs = w.shape[-2:]
    if groups < 1 or x.shape[-1] != channels * groups or outputs % groups:
        raise ValueError(
            f"convolution with groups={groups}: the input has {x.shape[-1]} channels, the kernel "
            f"{w.shape} takes {channels} x {groups} and gives {outputs}"
        )
    space = []
    for axis in range(dims):
        n, k = x.shape[axis + 1], w.shape[axis]
        low, high = padding[axis]
        length = (n - 1) * input_dilation[axis] + 1 + low + high if n else low + high
        reach = (k - 1) * kernel_dilation[axis] + 1
        if n < 1 or k < 1 or length < reach:
            raise ValueError(
                f"convolution: a kernel of {w.shape[:-2]} reaching over {reach} does not fit into "
                f"an input of {x.shape[1:-1]} padded to {length} along axis {axis + 1}"
            )
        space.append((length - reach) // stride[axis] + 1)
    return Spec((x.shape[0], *space, outputs), x.dtype)


def _conv_numpy(
    x: Array,
    w: Array,
    *,
    stride: Ints,
    padding: Pairs,
    input_dilation: Ints,
    kernel_dilation: Ints,
    groups: int,
) -> Array:
    dims = x.ndim - 2
    kernel, (channels, outputs) = w.shape[:dims], w.shape[dims:]
    padded = dilate(x, padding, input_dilation, 0)
    # (N, ...space, ...kernel, C)
    view = windows(padded, kernel, stride, kernel_dilation)
    if groups == 1:
        return _contract(view, w, dims)
    if channels == 1:
        return _depthwise(view, w, dims)
    results = []
    for group in range(groups):
        part = view[..., group * channels : (group + 1) * channels]
        share = outputs // groups
        results.append(_contract(part, w[..., group * share : (group + 1) * share], dims))
    return np.concatenate(results, axis=-1)


def _depthwise(view: Array, w: Array, dims: int) -> Array:
    """Each channel by itself: a product and a sum for each position of the kernel."""
    kernel, groups = w.shape[:dims], view.shape[-1]
    front = view.shape[: dims + 1]
    share = w.shape[-1] // groups
    weights = w.reshape(*kernel, groups, share)
    result = np.zeros((*front, groups, share), view.dtype)
    for place in np.ndindex(kernel):
        result += view[(..., *place, slice(None), None)] * weights[place]
    return result.reshape(*front, groups * share)


def _contract(view: Array, w: Array, dims: int) -> Array:
    """Sum over kernel and channels by one matrix multiplication.

    The windows are copied out in the order in which memory holds them, whichever of the result's
    and the kernel's axes that puts first: the multiplication takes either side transposed, and
    the gradient of a kernel then costs what the forward convolution does.
    """
    rows, columns = range(dims + 1), range(dims + 1, view.ndim)

    def outermost_first(axes: Sequence[int]) -> list[int]:
        return sorted(axes, key=lambda axis: -abs(view.strides[axis]))

    row_order, column_order = outermost_first(rows), outermost_first(columns)
    row_lengths = [view.shape[axis] for axis in row_order]
    kernel_order = [axis - dims - 1 for axis in column_order]
    matrix_w = w.transpose([*kernel_order, dims + 1]).reshape(math.prod(w.shape[:-1]), w.shape[-1])
    row_stride = max(abs(view.strides[axis]) for axis in rows)
    column_stride = max(abs(view.strides[axis]) for axis in columns)
    size = math.prod(row_lengths), matrix_w.shape[0]
    if row_stride >= column_stride:
        matrix = view.transpose(row_order + column_order).reshape(size)
    else:
        matrix = view.transpose(column_order + row_order).reshape(size[::-1]).T
    result = (matrix @ matrix_w).reshape(*row_lengths, w.shape[-1])
    return np.asarray(result.transpose([*np.argsort(row_order).tolist(), dims + 1]))


def _conv_gradient(operation: Operation, g: Tensor) -> Gradients:
    x, w = operation.inputs
    return [
        _conv_input_gradient(operation, g) if x.requires_grad else None,
        _conv_kernel_gradient(operation, g) if w.requires_grad else None,
    ]


def _conv_input_gradient(operation: Operation, g: Tensor) -> Tensor:
    """A convolution of the gradient, spread by the stride, with the kernel turned around."""
    x, w = operation.inputs
    params = operation.params
    dims, groups = x.ndim - 2, params["groups"]
    kernel, (channels, outputs) = w.shape[:dims], w.shape[dims:]
    turned = F.flip(w, axis=tuple(range(dims)))
    turned = F.reshape(turned, (*kernel, channels, groups, outputs // groups))
    turned = F.permute_dims(turned, (*range(dims), dims + 2, dims + 1, dims))
    turned = F.reshape(turned, (*kernel, outputs // groups, groups * channels))
    padding = []
    for axis in range(dims):
        spread = (x.shape[axis + 1] - 1) * params["input_dilation"][axis] + 1
        reach = (kernel[axis] - 1) * params["kernel_dilation"][axis] + 1
        low = reach - 1 - params["padding"][axis][0]
        covered = (g.shape[axis + 1] - 1) * params["stride"][axis] + 1
        padding.append((low, spread + reach - 1 - covered - low))
    return F.conv(
        g,
        turned,
        stride=params["input_dilation"],
        padding=tuple(padding),
        input_dilation=params["stride"],
        kernel_dilation=params["kernel_dilation"],
        groups=groups,
    )


def _conv_kernel_gradient(operation: Operation, g: Tensor) -> Tensor:
    """A convolution over the batch: images become channels, the gradient becomes the kernel."""
    x, w = operation.inputs
    params = operation.params
    dims, groups = x.ndim - 2, params["groups"]
    channels = w.shape[dims]
    space = tuple(range(1, dims + 1))
    images = F.reshape(x, (*x.shape[:-1], groups, channels))
    images = F.permute_dims(images, (dims + 2, *space, dims + 1, 0))
    images = F.reshape(images, (channels, *x.shape[1:-1], groups * x.shape[0]))
    kernel = F.permute_dims(g, (*space, 0, dims + 1))
    padding = []
    for axis in range(dims):
        spread = (x.shape[axis + 1] - 1) * params["input_dilation"][axis] + 1
        covered = (g.shape[axis + 1] - 1) * params["stride"][axis] + 1
        reach = (w.shape[axis] - 1) * params["kernel_dilation"][axis] + 1
        low = params["padding"][axis][0]
        padding.append((low, covered + reach - 1 - spread - low))
    result = F.conv(
        images,
        kernel,
        stride=params["kernel_dilation"],
        padding=tuple(padding),
        input_dilation=params["input_dilation"],
        kernel_dilation=params["stride"],
        groups=groups,
    )
    return F.permute_dims(result, (*space, 0, dims + 1))


def _conv_flops(operation: Operation) -> int:
    kernel = operation.inputs[1].shape
    return 2 * operation.output().size * math.prod(kernel[:-1])


#: (N, ...space, C) with a kernel (...space, C / groups, O) -> (N, ...space, O), 1-D to 3-D.
#: It correlates, as deep learning's convolution does; negative padding crops.
conv = Primitive("conv", _conv_infer, _conv_numpy, _conv_gradient, flops=_conv_flops)
