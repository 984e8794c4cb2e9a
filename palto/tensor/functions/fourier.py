"""Fourier transforms, under the Python array API's names (``palto.fft``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor.functions.control import composite
from palto.tensor.functions.creation import asarray, zeros_like
from palto.tensor.functions.elementwise import astype, complex, conj, real
from palto.tensor.functions.manipulation import as_axis, concat, flip, pad
from palto.tensor.graph import apply
from palto.tensor.primitives import fourier as rows
from palto.tensor.tensor import Tensor


def fourier_transform(x: Tensor, *, axis: int, inverse: bool) -> Tensor:
    """The transform of a complex tensor along one axis, normalised in neither direction."""
    result: Tensor = apply(rows.fft, x, axis=axis, inverse=inverse)
    return result


def _of_length(x: Tensor, n: int | None, axis: int) -> Tensor:
    """Cut, or filled up with zeros at the end, to `n` elements along `axis`."""
    length = x.shape[axis]
    if n is None or n == length:
        return x
    if n < length:
        return x[(slice(None),) * axis + (slice(0, n),)]
    return pad(x, [(0, n - length if i == axis else 0) for i in range(x.ndim)])


def fft(x: Any, *, n: int | None = None, axis: int = -1) -> Tensor:
    """The discrete Fourier transform of `n` elements (all by default) along `axis`. complex64."""
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    x = _of_length(astype(x, dtypes.complex64), n, axis)
    return fourier_transform(x, axis=axis, inverse=False)


def ifft(x: Any, *, n: int | None = None, axis: int = -1) -> Tensor:
    """The inverse of `fft`. complex64."""
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    x = _of_length(astype(x, dtypes.complex64), n, axis)
    total = fourier_transform(x, axis=axis, inverse=True)
    return total * (1 / total.shape[axis])


@composite
def rfft(x: Any, *, n: int | None = None, axis: int = -1) -> Tensor:
    """The transform of real numbers: the n // 2 + 1 frequencies from zero up. complex64."""
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    if x.dtype != dtypes.float32:
        raise TypeError(f"rfft wants float32, got {x.dtype.name}; cast it first")
    x = _of_length(x, n, axis)
    whole = fourier_transform(complex(x, zeros_like(x)), axis=axis, inverse=False)
    return whole[(slice(None),) * axis + (slice(0, x.shape[axis] // 2 + 1),)]


@composite
def irfft(x: Any, *, n: int | None = None, axis: int = -1) -> Tensor:
    """The inverse of `rfft`: `n` real numbers, by default 2 (m - 1) from m frequencies. float32."""
    x = asarray(x)
    axis = as_axis(axis, x.ndim)
    n = 2 * (x.shape[axis] - 1) if n is None else n
    if n < 1:
        raise ValueError(f"irfft to {n} elements; give n of at least 1")
    x = _of_length(x, n // 2 + 1, axis)
    front = (slice(None),) * axis
    # The negative frequencies are the conjugates of the positive ones; the imaginary part of the
    # frequencies 0 and n / 2 does not reach a real signal.
    inner = x[(*front, slice(1, (n + 1) // 2))]
    whole = concat([x, conj(flip(inner, axis=axis))], axis=axis)
    return real(fourier_transform(whole, axis=axis, inverse=True)) * (1 / n)


def fftfreq(n: int, *, d: float = 1.0) -> Tensor:
    """The frequencies of `fft`'s output for samples `d` apart."""
    return asarray(np.fft.fftfreq(n, d), dtype=dtypes.float32)


def rfftfreq(n: int, *, d: float = 1.0) -> Tensor:
    """The frequencies of `rfft`'s output for samples `d` apart."""
    return asarray(np.fft.rfftfreq(n, d), dtype=dtypes.float32)
