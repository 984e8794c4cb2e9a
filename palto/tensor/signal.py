"""Short-time Fourier transforms, under PyTorch's names and conventions (``palto.signal``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from palto.tensor import dtypes
from palto.tensor.functions.creation import asarray
from palto.tensor.functions.fourier import irfft, rfft
from palto.tensor.functions.manipulation import broadcast_to, concat, flip, pad, reshape
from palto.tensor.functions.reductions import all
from palto.tensor.graph import check
from palto.tensor.tensor import Tensor

__all__ = ["hann_window", "istft", "stft"]


def hann_window(n: int, *, periodic: bool = True) -> Tensor:
    """0.5 - 0.5 cos(2 pi k / n) for k from 0, or with n - 1 under the line if not periodic."""
    if n < 1:
        raise ValueError(f"a window has at least 1 element, got {n}")
    steps = n if periodic else max(n - 1, 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / steps)
    return asarray(window if n > 1 else np.ones(1), dtype=dtypes.float32)


def stft(
    x: Any, n_fft: int, hop_length: int | None = None, window: Any = None, center: bool = True
) -> Tensor:
    """The spectra of frames of `n_fft` samples, `hop_length` apart.

    Args:
        x: float32 (..., time).
        n_fft: samples in a frame.
        hop_length: by default a quarter of that.
        window: what each frame is multiplied by, (n_fft,); by default ones.
        center: frame t has sample t * hop_length in its middle; x is mirrored at both ends for it.
            Otherwise that is its first sample.

    Returns:
        complex64 (..., n_fft // 2 + 1, frames), as in torch.stft.

    Raises:
        ValueError: x is too short, or the window has another length.
        TypeError: x is not float32.
    """
    x = asarray(x)
    hop, window = _checked("stft", n_fft, hop_length, window)
    half = n_fft // 2
    if x.ndim == 0 or x.shape[-1] < (half + 1 if center else n_fft):
        raise ValueError(f"stft of frames of {n_fft} samples: x is too short, shape {x.shape}")
    if center:
        x = concat(
            [flip(x[..., 1 : half + 1], axis=-1), x, flip(x[..., -half - 1 : -1], axis=-1)], axis=-1
        )
    count = (x.shape[-1] - n_fft) // hop + 1
    # A frame is some blocks of a hop each, so that frames are views put side by side.
    blocks = -(-n_fft // hop)
    missing = (count + blocks - 1) * hop - x.shape[-1]
    x = (
        pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
        if missing > 0
        else x[..., : x.shape[-1] + missing]
    )
    parts = reshape(x, (*x.shape[:-1], count + blocks - 1, hop))
    frames = concat([parts[..., k : k + count, :] for k in range(blocks)], axis=-1)
    return rfft(frames[..., :n_fft] * window).mT


def istft(
    x: Any,
    n_fft: int,
    hop_length: int | None = None,
    window: Any = None,
    center: bool = True,
    length: int | None = None,
) -> Tensor:
    """The signal whose frames are nearest to the spectra in `x`: the inverse of `stft`.

    Args:
        x: complex64 (..., n_fft // 2 + 1, frames).
        n_fft: samples in a frame.
        hop_length: by default a quarter of that.
        window: the one that `stft` was given, by default ones.
        center: as for `stft`.
        length: of the signal; zeros follow where no frame reaches. By default as much as there is.

    Returns:
        float32 (..., time).

    Raises:
        ValueError: another shape.
        FloatingPointError: a sample that no window reaches; in a compiled step, when it runs.
    """
    x = asarray(x)
    hop, window = _checked("istft", n_fft, hop_length, window)
    if x.ndim < 2 or x.shape[-2] != n_fft // 2 + 1 or x.shape[-1] == 0:
        raise ValueError(
            f"istft wants spectra (..., {n_fft // 2 + 1}, frames of {n_fft}), got {x.shape}"
        )
    frames = irfft(x.mT, n=n_fft) * window
    total = _overlapped(frames, hop)
    weight = _overlapped(broadcast_to(window * window, frames.shape[-2:]), hop)
    start, most = (n_fft // 2, total.shape[-1] - n_fft // 2) if center else (0, total.shape[-1])
    end = most if length is None else min(start + length, total.shape[-1])
    total, weight = total[..., start:end], weight[start:end]
    check(all(weight > 1e-11), "istft: the windows, put side by side, leave out a sample")
    total = total / weight
    missing = 0 if length is None else length - total.shape[-1]
    return pad(total, [(0, 0)] * (total.ndim - 1) + [(0, missing)]) if missing else total


def _checked(name: str, n_fft: int, hop: int | None, window: Any) -> tuple[int, Tensor]:
    hop = n_fft // 4 if hop is None else hop
    if n_fft < 1 or hop < 1:
        raise ValueError(f"{name} wants n_fft and hop_length of at least 1, got {n_fft} and {hop}")
    window = asarray(np.ones(n_fft, np.float32) if window is None else window)
    if window.shape != (n_fft,):
        raise ValueError(f"{name} wants a window of shape ({n_fft},), got {window.shape}")
    return hop, window


def _overlapped(frames: Tensor, hop: int) -> Tensor:
    """The sum of frames (..., count, n) put `hop` apart, (..., time)."""
    count, n = frames.shape[-2:]
    blocks = -(-n // hop)
    front = [(0, 0)] * (frames.ndim - 2)
    frames = pad(frames, [*front, (0, 0), (0, blocks * hop - n)])
    parts = [
        pad(frames[..., k * hop : (k + 1) * hop], [*front, (k, blocks - 1 - k), (0, 0)])
        for k in range(blocks)
    ]
    total = sum(parts[1:], start=parts[0])
    return reshape(total, (*total.shape[:-2], -1))[..., : (count - 1) * hop + n]
