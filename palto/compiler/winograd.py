"""Winograd: convolutions with 25 to 36 % of the multiplications.

A tile of 6 x 6 pixels and a kernel of 3 x 3 are each transformed into 36 numbers; their products,
summed over the channels by 36 matrix products, are transformed back into 4 x 4 results. Direct
convolution multiplies 144 times for these. A kernel of 5 x 5 gives 2 x 2 results, for which direct
convolution multiplies 100 times. (Lavin and Gray, "Fast algorithms for convolutional neural
networks", 2016: F(4 x 4, 3 x 3), F(2 x 2, 5 x 5).)

Results are as right as float32 allows, but rounded elsewhere: they differ from those of the direct
way by about 1e-5 of the largest.
"""

from __future__ import annotations

import math
import os
from functools import cache
from typing import Any

import numpy as np

from palto.compiler.llvm.tiling import Machine
from palto.compiler.simplify import Apply
from palto.compiler.sizes import Size
from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Operation, Primitive, Shape, Spec
from palto.tensor.primitives import contract, movement
from palto.tensor.tensor import Tensor

#: Zeros before and after the rows of an image, and its columns.
Padding = tuple[tuple[int, int], tuple[int, int]]

#: Pixels along a side of a tile.
PIXELS = 6
#: Sides of the kernels that are computed this way.
_KERNELS = (3, 4, 5)

#: Where the polynomials that are multiplied are evaluated; the sixth point is infinity.
_POINTS = (0, 1, -1, 2, -2)
#: What the kernel's values there are divided by.
_DIVISORS = (4, -6, -6, 24, 24, 1)
#: From six pixels to six numbers.
_OF_PIXELS = np.array(
    [
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ]
)  # fmt: skip

#: The fewest channels, in and out, that pay for the transformations.
_LEAST_CHANNELS = 16
#: The fewest tiles that pay for reading transformed kernels, up to four times as large as kernels.
_LEAST_TILES = 4
#: The most channels in: what a tile takes of the second cache.
_MOST_CHANNELS = 512
#: How many results a tile may compute, of which only one is wanted.
_MOST_WASTE = 1.8


def results_of(kernel: int) -> int:
    """Results along a side of a tile, for a kernel of so many pixels; and the other way round."""
    return PIXELS + 1 - kernel


def rewritten(x: Tensor, w: Tensor, params: dict[str, Any], apply: Apply) -> Tensor | None:
    """A convolution, this way; None where the direct way is better, or another padding.

    The environment variable ``PALTO_WINOGRAD=0`` makes every convolution direct.
    """
    if x.ndim != 4:
        return None
    result = _rewritten(x, w, params, apply)
    return _gradient_rewritten(x, w, params, apply) if result is None else result


def _rewritten(x: Tensor, w: Tensor, params: dict[str, Any], apply: Apply) -> Tensor | None:
    """A convolution of images with a kernel."""
    groups, kernel = params["groups"], w.shape[0]
    channels, outputs = w.shape[-2:]
    if w.shape[:-2] != (kernel, kernel) or not _pays(
        x, w, params, kernel, x.shape[0], channels, outputs
    ):
        return None
    # The kernel of each panel of outputs lies together, in the order in which it is read.
    panel = _panel_width(outputs // groups)
    panels = outputs // panel
    w = apply(movement.reshape, w, shape=(kernel**2, channels, panels, panel))
    w = apply(movement.permute, w, axes=(0, 2, 1, 3))
    w = apply(movement.reshape, w, shape=(kernel**2, panels * channels * panel))
    u = apply(contract.matmul, _kernel_matrix(kernel), w)
    u = apply(movement.reshape, u, shape=(PIXELS**2, panels, channels, panel))
    result: Tensor = apply(winograd, x, u, groups=groups, kernel=kernel, padding=params["padding"])
    return result


def _gradient_rewritten(
    x: Tensor, w: Tensor, params: dict[str, Any], apply: Apply
) -> Tensor | None:
    """The gradient of a kernel: a convolution whose kernel is the results' gradient.

    Backprop turns it around: the transformed tiles and the transformed gradient are multiplied,
    36 matrix products summed over all tiles, and the kernel's transformation is applied backwards.
    """
    groups, padding = params["groups"], params["padding"]
    kernel, width = (
        n + sum(widths) - size + 1
        for n, widths, size in zip(x.shape[1:3], padding, w.shape[:2], strict=True)
    )
    images, outputs = w.shape[-2:]
    channels = x.shape[0]
    if width != kernel or not _pays(x, w, params, kernel, images, channels, outputs):
        return None
    # Both as the layer had them: (images, height, width, channels).
    x = apply(movement.reshape, x, shape=(*x.shape[:3], groups, images))
    x = apply(movement.permute, x, axes=(4, 1, 2, 3, 0))
    x = apply(movement.reshape, x, shape=(*x.shape[:3], groups * channels))
    w = apply(movement.permute, w, axes=(2, 0, 1, 3))
    sums = apply(winograd_gradient, x, w, groups=groups, kernel=kernel, padding=padding)
    sums = apply(movement.reshape, sums, shape=(PIXELS**2, channels * outputs))
    result = apply(contract.matmul, _kernel_matrix(kernel, backwards=True), sums)
    result = apply(movement.reshape, result, shape=(kernel, kernel, channels, outputs))
    turned: Tensor = apply(movement.permute, result, axes=(2, 0, 1, 3))
    return turned


def _pays(
    x: Tensor, w: Tensor, params: dict[str, Any], kernel: int, images: int, channels: int,
    outputs: int,
) -> bool:  # fmt: skip
    """Whether it is a convolution with a kernel of some side for which this way is faster."""
    if (
        os.environ.get("PALTO_WINOGRAD") == "0"
        or any(isinstance(n, Size) or not n for n in (*x.shape, *w.shape))
        or kernel not in _KERNELS
        or x.dtype != dtypes.float32
        or params["stride"] != (1, 1)
        or params["kernel_dilation"] != (1, 1)
        or any(min(widths) < 0 or sum(widths) >= kernel for widths in params["padding"])
    ):
        return False
    share, side, lanes = outputs // params["groups"], results_of(kernel), _lanes()
    height, width = _size(x.shape, kernel, params["padding"])
    tiles = math.ceil(height / side) * math.ceil(width / side)
    return (
        _LEAST_CHANNELS <= channels <= _MOST_CHANNELS
        and share >= _LEAST_CHANNELS
        and channels % lanes == share % lanes == 0
        and images * tiles >= _LEAST_TILES
        and tiles * side**2 <= _MOST_WASTE * height * width
    )


def _size(images: Shape, kernel: int, padding: Padding) -> tuple[int, int]:
    """Height and width of the results."""
    height, width = (
        n + sum(widths) - kernel + 1 for n, widths in zip(images[1:3], padding, strict=True)
    )
    return height, width


def _lanes() -> int:
    """Elements of a vector."""
    return Machine.host().vector_bytes // dtypes.float32.itemsize


def _panel_width(share: int) -> int:
    """How many outputs are computed side by side: two vectors, if a group's outputs allow it."""
    return 2 * _lanes() if share % (2 * _lanes()) == 0 else _lanes()


def _powers(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each point, so many, from 0 on; at infinity the last alone counts: (6, count)."""
    last = np.arange(count) == count - 1
    return np.array([*(np.power(float(x), np.arange(count)) for x in _POINTS), last])


@cache
def _kernel_matrix(kernel: int, *, backwards: bool = False) -> Tensor:
    """From the numbers of a kernel to 36; one tensor, so that equal kernels are one."""
    side = _powers(kernel) / np.array(_DIVISORS)[:, np.newaxis]
    matrix = np.kron(side, side).astype(np.float32)
    return F.asarray(np.ascontiguousarray(matrix.T) if backwards else matrix)


def _infer(x: Tensor, u: Tensor, *, groups: int, kernel: int, padding: Padding) -> Spec:
    size = _size(x.shape, kernel, padding)
    return Spec((x.shape[0], *size, u.shape[1] * u.shape[3]), x.dtype)


def _numpy(x: Array, u: Array, *, groups: int, kernel: int, padding: Padding) -> Array:
    n, (height, width) = x.shape[0], _size(x.shape, kernel, padding)
    side = results_of(kernel)
    v = _transformed(x, groups, kernel, padding)
    down, across = v.shape[3:5]
    kernels = u.reshape(PIXELS, PIXELS, groups, -1, *u.shape[2:])
    m = np.einsum("ijntwgc,ijgqcp->ijntwgqp", v, kernels)
    y = np.einsum("ia,jb,ijntwgqp->ntawbgqp", _powers(side), _powers(side), m)
    y = y.reshape(n, down * side, across * side, -1)
    return np.asarray(y[:, :height, :width], x.dtype)


def _transformed(x: Array, groups: int, kernel: int, padding: Padding) -> Array:
    """The tiles of images: (6, 6, images, down, across, groups, channels)."""
    side = results_of(kernel)
    missing = [-n % side for n in _size(x.shape, kernel, padding)]
    around = [(low, high + more) for (low, high), more in zip(padding, missing, strict=True)]
    x = np.pad(x, [(0, 0), *around, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (PIXELS, PIXELS), (1, 2))
    tiles = windows[:, ::side, ::side]
    tiles = tiles.reshape(*tiles.shape[:3], groups, -1, PIXELS, PIXELS)
    return np.asarray(np.einsum("ik,jl,ntwgckl->ijntwgc", _OF_PIXELS, _OF_PIXELS, tiles))


def _flops(operation: Operation) -> int:
    """Those of the matrix products."""
    return 2 * _tiles(operation, operation.output()) * operation.inputs[1].size


def _tiles(operation: Operation, results: Tensor) -> int:
    side = results_of(operation.params["kernel"])
    return results.shape[0] * -(-results.shape[1] // side) * -(-results.shape[2] // side)


def _gradient_infer(x: Tensor, g: Tensor, *, groups: int, kernel: int, padding: Padding) -> Spec:
    return Spec((PIXELS**2, x.shape[3] // groups, g.shape[3]), x.dtype)


def _gradient_numpy(x: Array, g: Array, *, groups: int, kernel: int, padding: Padding) -> Array:
    n, height, width, outputs = g.shape
    side = results_of(kernel)
    v = _transformed(x, groups, kernel, padding)
    down, across = v.shape[3:5]
    g = np.pad(g, [(0, 0), (0, down * side - height), (0, across * side - width), (0, 0)])
    g = g.reshape(n, down, side, across, side, groups, outputs // groups)
    d = np.einsum("ia,jb,ntawbgo->ijntwgo", _powers(side), _powers(side), g)
    sums = np.einsum("ijntwgc,ijntwgo->ijcgo", v, d)
    return np.asarray(sums.reshape(PIXELS**2, -1, outputs), x.dtype)


def _gradient_flops(operation: Operation) -> int:
    return 2 * _tiles(operation, operation.inputs[1]) * operation.output().size


#: Images (N, H, W, C) with transformed kernels (36, panels, C / groups, panel), the side of the
#: kernels and the zeros around images -> (N, H', W', O).
winograd = Primitive("winograd", _infer, _numpy, flops=_flops)

#: Images (N, H, W, C) with the gradient (N, H', W', O) of results -> (36, C / groups, O).
winograd_gradient = Primitive(
    "winograd_gradient", _gradient_infer, _gradient_numpy, flops=_gradient_flops
)
