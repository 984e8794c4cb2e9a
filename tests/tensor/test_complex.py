"""Complex numbers and Fourier transforms, with PyTorch's convention for gradients."""

import numpy as np
import pytest

import palto

_rng = np.random.default_rng(0)


def z(*shape):
    return (_rng.normal(size=shape) + 1j * _rng.normal(size=shape)).astype(np.complex64)


def x(*shape):
    return _rng.normal(size=shape).astype(np.float32)


MASK = np.array([True, False, True])
FUNCTIONS = {
    "add a real": (lambda a, b: a + b, lambda t, a, b: a + b, [z(3), x(2, 3)]),
    "subtract from a number": (lambda a: 2 - a, lambda t, a: 2 - a, [z(3)]),
    "real times i": (lambda a: a * 1j, lambda t, a: a * 1j, [x(3)]),
    "multiply": (lambda a, b: a * b, lambda t, a, b: a * b, [z(3), z(2, 1)]),
    "divide": (lambda a, b: a / b, lambda t, a, b: a / b, [z(3), z(3) + 2]),
    "divide a real": (lambda a, b: a / b, lambda t, a, b: a / b, [x(3), z(3) + 2]),
    "reciprocal": (palto.reciprocal, lambda t, a: t.reciprocal(a), [z(3)]),
    "negative": (palto.negative, lambda t, a: -a, [z(3)]),
    "square": (palto.square, lambda t, a: a * a, [z(3)]),
    "cube": (lambda a: a**3, lambda t, a: a * a * a, [z(3)]),
    "exp": (palto.exp, lambda t, a: t.exp(a), [z(3)]),
    "abs": (palto.abs, lambda t, a: t.abs(a), [z(3)]),
    "squared size": (
        lambda a: palto.real(a * palto.conj(a)),
        lambda t, a: t.real(a * t.conj(a)),
        [z(3)],
    ),
    "real": (palto.real, lambda t, a: t.real(a), [z(3)]),
    "imag": (palto.imag, lambda t, a: t.imag(a), [z(3)]),
    "attributes": (lambda a: a.real * a.imag, lambda t, a: a.real * a.imag, [z(3)]),
    "conj": (palto.conj, lambda t, a: t.conj(a), [z(3)]),
    "complex": (palto.complex, lambda t, a, b: t.complex(a, b), [x(3), x(3)]),
    "to complex": (lambda a: a.astype("complex64"), lambda t, a: a.to(t.complex64), [x(3)]),
    "to double": (
        lambda a: palto.real(a.astype("complex64") * a),
        lambda t, a: t.real(a.to(t.complex64) * a),
        [x(3)],
    ),
    "where": (
        lambda a, b: palto.where(MASK, a, b),
        lambda t, a, b: t.where(t.tensor(MASK), a, b),
        [z(3), z(3)],
    ),
    "sum": (lambda a: a.sum(0), lambda t, a: a.sum(0), [z(3, 2)]),
    "mean": (palto.mean, lambda t, a: a.mean(), [z(3, 2)]),
    "cumulative_sum": (palto.cumulative_sum, lambda t, a: t.cumsum(a, 0), [z(3)]),
    "prod": (palto.prod, lambda t, a: t.prod(a), [z(3)]),
    "matmul": (palto.matmul, lambda t, a, b: a @ b, [z(2, 3), z(3, 2)]),
    "einsum": (
        lambda a, b: palto.einsum("ij,kj->ik", a, palto.conj(b)),
        lambda t, a, b: t.einsum("ij,kj->ik", a, t.conj(b)),
        [z(2, 3), z(4, 3)],
    ),
    "vecdot": (palto.vecdot, lambda t, a, b: t.linalg.vecdot(a, b), [z(3), z(3)]),
    "vector_norm": (palto.vector_norm, lambda t, a: t.linalg.vector_norm(a), [z(3)]),
    "indexing": (lambda a: a[[2, 0, 0]], lambda t, a: a[[2, 0, 0]], [z(3)]),
    "shapes": (
        lambda a: palto.pad(palto.concat([a.T, a.T[:1]])[::-1], [(1, 0), (0, 1)]),
        lambda t, a: t.nn.functional.pad(t.cat([a.T, a.T[:1]]).flip(0), (0, 1, 1, 0)),
        [z(2, 3)],
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_as_pytorch(torch, check_as_torch, name):
    ours, theirs, arrays = FUNCTIONS[name]
    check_as_torch(
        ours, lambda *xs: theirs(torch, *xs), *arrays, order=2, rtol=2e-5, atol=2e-5, dtype=False
    )


TRANSFORMS = [
    (name, shape, n, axis)
    for name, complex_input in [("fft", True), ("ifft", True), ("rfft", False), ("irfft", True)]
    for shape, n, axis in [
        ((8,), None, -1),
        ((7,), None, 0),
        ((3, 5), None, 0),
        ((2, 6, 3), None, 1),
        ((6,), 4, -1),
        ((3, 5), 9, 1),
        ((2, 5), 8, -1),
        ((4,), 5, 0),
        ((2,), 1, 0),
    ]
]


@pytest.mark.parametrize(("name", "shape", "n", "axis"), TRANSFORMS)
def test_transforms(torch, check_as_torch, name, shape, n, axis):
    array = x(*shape) if name == "rfft" else z(*shape)
    check_as_torch(
        lambda a: getattr(palto.fft, name)(a, n=n, axis=axis),
        lambda a: getattr(torch.fft, name)(a, n=n, dim=axis),
        array,
        order=2,
        rtol=1e-4,
        atol=1e-5,
    )
    wanted = getattr(np.fft, name)(array, n=n, axis=axis)
    np.testing.assert_allclose(getattr(palto.fft, name)(array, n=n, axis=axis), wanted, atol=1e-5)


def test_transforms_of_real_numbers():
    a = x(5)
    np.testing.assert_allclose(palto.fft.fft(a), np.fft.fft(a), atol=1e-5)
    b = palto.asarray(a, requires_grad=True)
    palto.abs(palto.fft.fft(b)).sum().backward()
    assert b.grad.dtype == palto.float32


def test_there_and_back():
    a = x(3, 7)
    np.testing.assert_allclose(palto.fft.ifft(palto.fft.fft(a)).real, a, atol=1e-6)
    for n in (7, 6):
        part = a[:, :n]
        back = palto.fft.irfft(palto.fft.rfft(part), n=n)
        np.testing.assert_allclose(back, part, atol=1e-6)


def test_frequencies():
    for n in (1, 4, 7):
        for name in ("fftfreq", "rfftfreq"):
            got = getattr(palto.fft, name)(n, d=0.5)
            assert got.dtype == palto.float32
            np.testing.assert_allclose(got, getattr(np.fft, name)(n, 0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: palto.fft.rfft(np.ones(4)), TypeError, "rfft wants float32, got float64"),
        (lambda: palto.fft.rfft(z(4)), TypeError, "rfft wants float32, got complex64"),
        (lambda: palto.fft.irfft(np.ones(3, np.float32)), TypeError, "wants complex64"),
        (lambda: palto.fft.irfft(z(1)), ValueError, "irfft to 0 elements"),
        (lambda: palto.fft.fft(z(2, 0)), ValueError, "no elements"),
        (lambda: palto.fft.fft(z(2), axis=1), ValueError, "axis 1 is out of range"),
        (lambda: palto.imag(x(2)), TypeError, "imag does not take float32"),
        (lambda: palto.max(z(2)), TypeError, "max does not take complex64"),
        (lambda: palto.asarray(z(2)) < 1, TypeError, "less does not take complex64|does not"),
        (lambda: palto.complex(np.ones(2), np.ones(2)), TypeError, "does not take float64"),
        (lambda: palto.sqrt(z(2)), TypeError, "sqrt does not take complex64"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
