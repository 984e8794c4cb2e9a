"""Short-time Fourier transforms beside PyTorch's."""

import numpy as np
import pytest

import palto
from palto import signal

rng = np.random.default_rng(0)


def x(*shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 7, 8])
@pytest.mark.parametrize("periodic", [True, False])
def test_hann_window(torch, n, periodic):
    wanted = torch.hann_window(n, periodic=periodic)
    np.testing.assert_allclose(signal.hann_window(n, periodic=periodic), wanted, atol=1e-6)


SHAPES = [
    ((100,), 16, 4, True),
    ((2, 3, 50), 16, 4, True),
    ((2, 61), 16, 4, False),
    ((2, 61), 15, 4, True),  # frames are no whole number of hops
    ((2, 61), 16, 16, False),
    ((40,), 8, 11, False),  # and leave something out
    ((9,), 16, 4, True),
]


@pytest.mark.parametrize(("shape", "n", "hop", "center"), SHAPES)
def test_stft_is_pytorchs(torch, check_as_torch, shape, n, hop, center):
    flat = (-1, shape[-1])  # PyTorch takes one axis before time
    window = np.abs(x(n)) + 0.5

    def theirs(a, w):
        y = torch.stft(a.reshape(flat), n, hop, window=w, center=center, return_complex=True)
        return y.reshape((*shape[:-1], *y.shape[1:]))

    check_as_torch(
        lambda a, w: signal.stft(a, n, hop, w, center), theirs, x(*shape), window,
        order=2, rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "n", "hop", "center"), [s for s in SHAPES if s[2] < s[1]])
@pytest.mark.parametrize("length", [None, -5])
def test_istft_is_pytorchs(torch, check_as_torch, shape, n, hop, center, length):
    spectra = signal.stft(x(*shape), n, hop, center=center).numpy()
    frames = spectra.shape[-1]
    most = (frames - 1) * hop + n - (n // 2 * 2 if center else 0)
    length = None if length is None else most + length
    window = np.abs(x(n)) + 0.5

    def theirs(re, im, w):
        a = torch.complex(re, im).reshape(-1, *spectra.shape[-2:])
        y = torch.istft(a, n, hop, window=w, center=center, length=length)
        return y.reshape((*shape[:-1], y.shape[-1]))

    def ours(re, im, w):
        return signal.istft(palto.complex(re, im), n, hop, w, center, length)

    noise = spectra + x(*spectra.shape) + 1j * x(*spectra.shape)
    check_as_torch(
        ours, theirs, noise.real.copy(), noise.imag.copy(), window, order=1, rtol=1e-3, atol=1e-4
    )


def test_a_longer_signal_ends_in_zeros():
    a = x(64)
    spectra = signal.stft(a, 16, 4, center=False)
    back = signal.istft(spectra, 16, 4, center=False, length=70)
    np.testing.assert_allclose(back, np.pad(a, (0, 6)), atol=1e-5)


def test_there_and_back_eager_and_compiled():
    a, window = x(2, 3000), signal.hann_window(256)

    def around(a):
        return signal.istft(signal.stft(a, 256, 64, window), 256, 64, window, length=3000)

    np.testing.assert_allclose(around(a), a, atol=1e-5)
    np.testing.assert_allclose(palto.compile(around)(a), a, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: signal.stft(x(8), 16), ValueError, r"too short, shape \(8,\)"),
        (lambda: signal.stft(x(15), 16, center=False), ValueError, "too short"),
        (lambda: signal.stft(np.ones(20), 16), TypeError, "float32"),
        (lambda: signal.stft(x(20), 16, 0), ValueError, "got 16 and 0"),
        (lambda: signal.stft(x(20), 16, window=x(8)), ValueError, r"\(16,\), got \(8,\)"),
        (lambda: signal.istft(x(8, 4), 16), ValueError, r"\(\.\.\., 9, frames of 16\)"),
        (
            lambda: signal.istft(
                signal.stft(x(64), 16, 16, center=False), 16, 16, signal.hann_window(16), False
            ),
            FloatingPointError,
            "leave out a sample",
        ),
        (lambda: signal.hann_window(0), ValueError, "got 0"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
