"""Adaptive filters, by hand: what a network that takes echoes out of calls is compared with.

Both estimate the room's response from what the loudspeaker is given and what the microphone hears.
"""

from __future__ import annotations

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
