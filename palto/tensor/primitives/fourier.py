"""The discrete Fourier transform of one axis, unnormalised in both directions."""

from __future__ import annotations

import math

import numpy as np

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Array, Gradients, Operation, Primitive, Spec
from palto.tensor.tensor import Tensor


def _infer(x: Tensor, *, axis: int, inverse: bool) -> Spec:
    if x.dtype not in dtypes.COMPLEX:
        raise TypeError(f"the Fourier transform wants complex64, got {x.dtype.name}")
    if x.shape[axis] == 0:
        raise ValueError(f"the Fourier transform of no elements: shape {x.shape}, axis {axis}")
    return Spec(x.shape, x.dtype)


def _numpy(x: Array, *, axis: int, inverse: bool) -> Array:
    if inverse:
        return np.fft.ifft(x, axis=axis, norm="forward")
    return np.fft.fft(x, axis=axis)


def _gradient(operation: Operation, g: Tensor) -> Gradients:
    # The matrix is symmetric, so its conjugate transpose is the transform the other way.
    params = operation.params
    return [F.fourier_transform(g, axis=params["axis"], inverse=not params["inverse"])]


def _flops(operation: Operation) -> int:
    x = operation.inputs[0]
    return round(5 * x.size * math.log2(max(x.shape[operation.params["axis"]], 2)))


#: y_k = sum over n of x_n exp(-2 pi i k n / N), or with +2 pi i for the inverse.
fft = Primitive("fft", _infer, _numpy, _gradient, flops=_flops)
