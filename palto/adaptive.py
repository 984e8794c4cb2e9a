"""Adaptive filters: what a network that takes echoes out of calls is compared with.

Two are written out here, one is the library SpeexDSP's, if the system has it. All estimate the
room's response from what the loudspeaker is given and what the microphone hears.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


def pnlms(
    far: np.ndarray,
    mic: np.ndarray,
    *,
    taps: int = 1024,
    step: float = 0.3,
    least: float = 0.01,
    regularisation: float = 1e-2,
) -> np.ndarray:
    """The microphone less the echo that a proportionate NLMS filter expects.

    At each sample the filter moves against the error, each tap in proportion to its size, for most
    of a room's response is small.

    Args:
        far: what the loudspeaker is given, (time,).
        mic: what the microphone hears, (time,).
        taps: the filter's length in samples.
        step: how far it moves, from 0 to 2.
        least: the share of the largest tap that the smallest ones move like.
        regularisation: added to the far end's energy over the filter.

    Returns:
        float32 (time,).

    Duttweiler, "Proportionate normalized least-mean-squares adaptation in echo cancelers", 2000.
    """
    clean = np.array(mic, np.float32)
    x = np.zeros(taps - 1 + len(clean), np.float32)
    x[taps - 1 :][: len(far)] = far[: len(clean)]
    x = x[::-1].copy()
    h = np.zeros(taps, np.float32)
    for time in range(len(clean)):
        start = len(x) - taps - time
        seen = x[start : start + taps]  # the newest sample first
        error = clean[time] - h @ seen
        size = np.abs(h)
        share = np.maximum(size, least * max(0.01, float(size.max())))
        moved = share / share.mean() * seen
        h += step * error / (moved @ seen + regularisation) * moved
        clean[time] = error
    return clean


def frequency_domain_kalman(
    far: np.ndarray,
    mic: np.ndarray,
    *,
    block: int = 256,
    partitions: int = 8,
    transition: float = 0.998,
    smoothing: float = 0.97,
    start: float = 0.015,
) -> np.ndarray:
    """The microphone less the echo that a partitioned-block frequency-domain Kalman filter expects.

    The response is cut into pieces of a block each. For each piece and frequency the filter knows
    how uncertain it is, and moves by the more, the greater that is beside the noise.

    Args:
        far: what the loudspeaker is given, (time,).
        mic: what the microphone hears, (time,).
        block: samples in a piece.
        partitions: how many pieces the response has.
        transition: how much of the response is the same a block later.
        smoothing: of the error's power, which stands for the noise.
        start: how uncertain the filter is at first.

    Returns:
        float32 (time,).

    Kuech, Mabande and Enzner, "State-space architecture of the partitioned-block-based acoustic
    echo controller", 2014.
    """
    count = -(-len(mic) // block)
    x, y = np.zeros((count + 1) * block), np.zeros(count * block)
    x[block : block + min(len(far), len(y))] = far[: len(y)]
    y[: len(mic)] = mic
    bins = block + 1
    spectra = np.zeros((partitions, bins), complex)  # of the far end, the newest first
    h = np.zeros((partitions, bins), complex)
    uncertainty = np.full((partitions, bins), start)
    noise = np.full(bins, 1e-3)
    clean = np.empty(len(y))
    for k in range(count):
        spectra = np.roll(spectra, 1, axis=0)
        spectra[0] = np.fft.rfft(x[k * block : (k + 2) * block])
        h *= transition
        uncertainty = transition**2 * uncertainty + (1 - transition**2) * np.abs(h) ** 2
        now = slice(k * block, (k + 1) * block)
        clean[now] = y[now] - np.fft.irfft((spectra * h).sum(0))[block:]
        error = np.fft.rfft(np.concatenate([np.zeros(block), clean[now]]))
        noise = smoothing * noise + (1 - smoothing) * np.abs(error) ** 2
        power = np.abs(spectra) ** 2
        # Of the 2 block samples that a product of spectra gives, the second half is the echo.
        gain = uncertainty * spectra.conj() / (0.5 * (power * uncertainty).sum(0) + noise + 1e-10)
        uncertainty *= 1 - 0.5 * (gain * spectra).real
        moved = np.fft.irfft(gain * error)
        moved[:, block:] = 0
        h += np.fft.rfft(moved)
    return clean[: len(mic)].astype(np.float32)


def speexdsp_library() -> Any:
    """The library SpeexDSP, or None if the system has none."""
    for name in ("libspeexdsp.so.1", "libspeexdsp.1.dylib", "libspeexdsp.dll"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.speex_echo_state_init.restype = ctypes.c_void_p
        return library
    return None


def speexdsp(
    far: np.ndarray, mic: np.ndarray, *, rate: int = 16_000, frame: int = 256, taps: int = 2048
) -> np.ndarray:
    """The microphone less the echo that SpeexDSP's canceller expects, and less its lowest sounds.

    Args:
        far: what the loudspeaker is given, (time,), in +-1.
        mic: what the microphone hears, (time,), in +-1.
        rate: samples a second.
        frame: samples that it takes at a time.
        taps: the filter's length in samples.

    Returns:
        float32 (time,).

    Raises:
        RuntimeError: the system has no SpeexDSP.

    Valin, "On adjusting the learning rate in frequency domain echo cancellation with double-talk",
    2007.
    """
    library = speexdsp_library()
    if library is None:
        raise RuntimeError("this system has no SpeexDSP; Debian's package is libspeexdsp1")
    count = -(-len(mic) // frame)
    signals = np.zeros((2, count * frame), np.int16)
    for row, x in zip(signals, (mic, far[: len(mic)]), strict=True):
        row[: len(x)] = np.round(np.clip(x, -1, 1) * 32767)
    clean = np.zeros(count * frame, np.int16)
    state = ctypes.c_void_p(library.speex_echo_state_init(frame, taps))
    try:
        library.speex_echo_ctl(state, 24, ctypes.byref(ctypes.c_int(rate)))  # set the rate
        for start in range(0, count * frame, frame):
            now = slice(start, start + frame)
            pointers = (x[now].ctypes.data for x in (*signals, clean))
            library.speex_echo_cancellation(state, *(ctypes.c_void_p(x) for x in pointers))
    finally:
        library.speex_echo_state_destroy(state)
    return clean[: len(mic)].astype(np.float32) / 32767
