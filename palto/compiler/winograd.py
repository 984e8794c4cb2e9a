"""Winograd: 3 x 3 convolutions with a quarter of the multiplications.

A tile of 6 x 6 pixels and the kernel are each transformed into 36 numbers; their products, summed
over the channels by 36 matrix products, are transformed back into 4 x 4 results. Direct convolution
multiplies 144 times for these. (Lavin and Gray, "Fast algorithms for convolutional neural
networks", 2016: F(4 x 4, 3 x 3).)

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
from palto.tensor.graph import Array, Operation, Primitive, Spec
from palto.tensor.primitives import contract, movement
from palto.tensor.tensor import Tensor

#: Results along a side of a tile, and the pixels under it.
RESULTS, PIXELS = 4, 6

#: From the three numbers along a kernel's side to six.
_OF_KERNEL = np.array(
    [
        [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
    ]
)  # fmt: skip
#: From six pixels to six numbers, and from six sums of products to four results.
_OF_PIXELS = np.array(
    [
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ]
)  # fmt: skip
_OF_SUMS = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)

#: The fewest channels, in and out, that pay for the transformations.
_LEAST_CHANNELS = 32
#: The most channels in: what a tile takes of the second cache.
_MOST_CHANNELS = 512
#: How many results a tile may compute, of which only one is wanted.
_MOST_WASTE = 1.8


def rewritten(x: Tensor, w: Tensor, params: dict[str, Any], apply: Apply) -> Tensor | None:
    """A convolution of an image padded already, this way; None where the direct way is better.

    The environment variable ``PALTO_WINOGRAD=0`` makes every convolution direct.
    """
    groups, panel = params["groups"], panel_width()
    channels, outputs = w.shape[-2:]
    size = x.shape[1] - 2, x.shape[2] - 2
    if w.shape[:-2] != (3, 3) or not _pays(x, w, params, size, channels, outputs):
        return None
    # The kernel of each panel of outputs lies together, in the order in which it is read.
    panels = outputs // panel
    w = apply(movement.reshape, w, shape=(9, channels, panels, panel))
    w = apply(movement.permute, w, axes=(0, 2, 1, 3))
    w = apply(movement.reshape, w, shape=(9, panels * channels * panel))
    u = apply(contract.matmul, _kernel_matrix(), w)
    u = apply(movement.reshape, u, shape=(PIXELS**2, panels, channels, panel))
    result: Tensor = apply(winograd, x, u, groups=groups)
    return result


def gradient_rewritten(x: Tensor, w: Tensor, params: dict[str, Any], apply: Apply) -> Tensor | None:
    """Likewise the gradient of a kernel: a convolution whose kernel is the results' gradient.

    Backprop turns it around: the transformed tiles and the transformed gradient are multiplied,
    36 matrix products summed over all tiles, and the kernel's transformation is applied backwards.
    """
    if x.ndim != 4:
        return None
    groups, size = params["groups"], (w.shape[0], w.shape[1])
    images, outputs = w.shape[-2:]
    channels = x.shape[0]
    if x.shape[1:3] != (size[0] + 2, size[1] + 2) or not _pays(
        x, w, params, size, channels, outputs
    ):
        return None
    # Both as the layer had them: (images, height, width, channels).
    x = apply(movement.reshape, x, shape=(*x.shape[:3], groups, images))
    x = apply(movement.permute, x, axes=(4, 1, 2, 3, 0))
    x = apply(movement.reshape, x, shape=(*x.shape[:3], groups * channels))
    w = apply(movement.permute, w, axes=(2, 0, 1, 3))
    sums = apply(winograd_gradient, x, w, groups=groups)
    sums = apply(movement.reshape, sums, shape=(PIXELS**2, channels * outputs))
    result = apply(contract.matmul, _kernel_matrix(backwards=True), sums)
    result = apply(movement.reshape, result, shape=(3, 3, channels, outputs))
    turned: Tensor = apply(movement.permute, result, axes=(2, 0, 1, 3))
    return turned


def _pays(
    x: Tensor,
    w: Tensor,
    params: dict[str, Any],
    size: tuple[int, int],
    channels: int,
    outputs: int,
) -> bool:
    """Whether it is a convolution of results of some size for which this way is faster."""
    if (
        os.environ.get("PALTO_WINOGRAD") == "0"
        or any(isinstance(n, Size) or not n for n in (*x.shape, *w.shape))
        or x.dtype != dtypes.float32
        or params["stride"] != (1, 1)
        or params["kernel_dilation"] != (1, 1)
    ):
        return False
    panel, share = panel_width(), outputs // params["groups"]
    tiles = math.ceil(size[0] / RESULTS) * math.ceil(size[1] / RESULTS)
    return (
        _LEAST_CHANNELS <= channels <= _MOST_CHANNELS
        and share >= _LEAST_CHANNELS
        and channels % panel == share % panel == 0
        and tiles * RESULTS**2 <= _MOST_WASTE * size[0] * size[1]
    )


def panel_width() -> int:
    """How many outputs are computed side by side: two vectors."""
    return 2 * Machine.host().vector_bytes // dtypes.float32.itemsize


@cache
def _kernel_matrix(*, backwards: bool = False) -> Tensor:
    """From the nine numbers of a kernel to 36; one tensor, so that equal kernels are one."""
    matrix = np.kron(_OF_KERNEL, _OF_KERNEL).astype(np.float32)
    return F.asarray(np.ascontiguousarray(matrix.T) if backwards else matrix)


def _infer(x: Tensor, u: Tensor, *, groups: int) -> Spec:
    n, height, width, _ = x.shape
    return Spec((n, height - 2, width - 2, u.shape[1] * u.shape[3]), x.dtype)


def _numpy(x: Array, u: Array, *, groups: int) -> Array:
    n, height, width = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
    v = _transformed(x, groups)
    down, across = v.shape[3:5]
    kernels = u.reshape(PIXELS, PIXELS, groups, -1, *u.shape[2:])
    m = np.einsum("ijntwgc,ijgqcp->ijntwgqp", v, kernels)
    y = np.einsum("ai,bj,ijntwgqp->ntawbgqp", _OF_SUMS, _OF_SUMS, m)
    y = y.reshape(n, down * RESULTS, across * RESULTS, -1)
    return np.asarray(y[:, :height, :width], x.dtype)


def _transformed(x: Array, groups: int) -> Array:
    """The tiles of images: (6, 6, images, down, across, groups, channels)."""
    missing = [(2 - n) % RESULTS for n in x.shape[1:3]]
    x = np.pad(x, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (PIXELS, PIXELS), (1, 2))
    tiles = windows[:, ::RESULTS, ::RESULTS]
    tiles = tiles.reshape(*tiles.shape[:3], groups, -1, PIXELS, PIXELS)
    return np.asarray(np.einsum("ik,jl,ntwgckl->ijntwgc", _OF_PIXELS, _OF_PIXELS, tiles))


def _flops(operation: Operation) -> int:
    """Those of the matrix products."""
    x, u = operation.inputs
    return 2 * _tiles(x) * u.size


def _tiles(x: Tensor) -> int:
    return x.shape[0] * -(-(x.shape[1] - 2) // RESULTS) * -(-(x.shape[2] - 2) // RESULTS)


def _gradient_infer(x: Tensor, g: Tensor, *, groups: int) -> Spec:
    return Spec((PIXELS**2, x.shape[3] // groups, g.shape[3]), x.dtype)


def _gradient_numpy(x: Array, g: Array, *, groups: int) -> Array:
    v = _transformed(x, groups)
    n, height, width, outputs = g.shape
    down, across = v.shape[3:5]
    g = np.pad(g, [(0, 0), (0, down * RESULTS - height), (0, across * RESULTS - width), (0, 0)])
    g = g.reshape(n, down, RESULTS, across, RESULTS, groups, outputs // groups)
    d = np.einsum("ai,bj,ntawbgo->ijntwgo", _OF_SUMS, _OF_SUMS, g)
    sums = np.einsum("ijntwgc,ijntwgo->ijcgo", v, d)
    return np.asarray(sums.reshape(PIXELS**2, -1, outputs), x.dtype)


#: (N, H + 2, W + 2, C) with transformed kernels (36, panels, C / groups, panel) -> (N, H, W, O).
winograd = Primitive("winograd", _infer, _numpy, flops=_flops)

#: (N, H + 2, W + 2, C) with the gradient (N, H, W, O) of results -> (36, C / groups, O).
winograd_gradient = Primitive(
    "winograd_gradient",
    _gradient_infer,
    _gradient_numpy,
    flops=lambda operation: 2 * _tiles(operation.inputs[0]) * operation.output().size,
)
