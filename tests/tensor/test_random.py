"""Random numbers: the generator's known answers, distributions, reproducibility."""

import math

import numpy as np
import pytest

import palto
from palto.tensor.primitives.random import philox

ONES = 0xFFFFFFFF
#: Random123's kat_vectors for philox4x32-10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "wanted"), KNOWN)
def test_philox_known_answers(counter, key, wanted):
    words = philox(tuple(np.array([c], np.uint64) for c in counter), key)
    assert tuple(int(word[0]) for word in words) == wanted


def test_bits_are_philox_of_seed_and_draw():
    """The key is the seed; the counter is (block, draw)."""
    generator = palto.random.Generator(0)
    first = generator.bits((4,))
    assert tuple(first.tolist()) == KNOWN[0][2]
    seed = 0x0123456789ABCDEF
    generator = palto.random.Generator(seed)
    generator.bits(1)
    second = generator.bits((9,))
    key = (seed & ONES, seed >> 32)
    blocks = np.arange(3, dtype=np.uint64)
    zero = blocks * np.uint64(0)
    words = np.stack(philox((blocks, zero, zero + np.uint64(1), zero), key), axis=1)
    assert second.dtype == palto.uint32
    np.testing.assert_array_equal(second, words.reshape(-1)[:9])


def test_a_tensor_does_not_depend_on_its_shape():
    flat, square = (palto.random.Generator(5).bits(s) for s in ((12,), (3, 4)))
    np.testing.assert_array_equal(flat, square.reshape(-1))
    longer = palto.random.Generator(5).bits(100)
    np.testing.assert_array_equal(flat, longer[:12])


def test_the_same_seed_gives_the_same_numbers():
    def draws():
        yield palto.random.uniform((2, 3))
        yield palto.random.normal((5,))
        yield palto.random.integers((4,), 0, 100)
        yield palto.random.permutation(7)
        yield palto.random.bernoulli((6,), 0.5)

    palto.manual_seed(42)
    first = list(draws())
    palto.manual_seed(42)
    for a, b in zip(first, draws(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(first, draws(), strict=True):
        assert not np.array_equal(a, b)  # the sequence goes on
    palto.manual_seed(43)
    assert palto.random.uniform((2, 3)).tolist() != first[0].tolist()


def test_generators_are_independent():
    a, b = palto.random.Generator(1), palto.random.Generator(1)
    palto.random.uniform((3,))  # the default one
    x = palto.random.uniform((3,), generator=a)
    palto.random.uniform((3,), generator=a)
    np.testing.assert_array_equal(x, palto.random.uniform((3,), generator=b))
    assert a.state.tolist() == [1, 2]
    a.manual_seed(1)
    np.testing.assert_array_equal(x, palto.random.uniform((3,), generator=a))


def test_seeds():
    for seed in (-1, 2**64 - 1, 2**63, np.int64(5), True):
        palto.manual_seed(seed)
        assert palto.random.uniform((2,)).shape == (2,)
    for seed in (1.5, "1", None):
        with pytest.raises(TypeError, match="a seed is a whole number, got"):
            palto.manual_seed(seed)


N = 200_000
#: Six standard errors: a failure by chance once in 10^8.
SIX = 6 / math.sqrt(N)


def test_uniform():
    x = palto.random.uniform((N,)).numpy()
    assert x.dtype == np.float32
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean() - 0.5) < SIX * math.sqrt(1 / 12)
    assert abs(x.var() - 1 / 12) < SIX * math.sqrt(1 / 180)
    counts = np.bincount((x * 100).astype(int), minlength=100)
    assert ((counts - N / 100) ** 2 / (N / 100)).sum() < 200  # chi squared of 99 degrees
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < SIX
    y = palto.random.uniform((N,), -3, 5).numpy()
    assert -3 <= y.min() < -2.999
    assert 4.999 < y.max() < 5
    assert abs(y.mean() - 1) < SIX * 8 * math.sqrt(1 / 12)


@pytest.mark.parametrize(("low", "high"), [(1, 2), (-1, 1), (5, 5 + 2**-20), (0, 3), (-0.1, 0.7)])
def test_uniform_never_reaches_high(low, high, monkeypatch):
    """Not even from the largest word, where low + (1 - 2^-24) (high - low) rounds up."""
    largest = palto.full((3,), 2**32 - 1, dtype="uint32")
    monkeypatch.setattr(palto.random.Generator, "bits", lambda self, shape: largest)
    x = palto.random.uniform((3,), low, high).numpy()
    assert (x < np.float32(high)).all()
    assert (x >= np.float32(low)).all()
    monkeypatch.setattr(palto.random.Generator, "bits", lambda self, shape: largest * 0)
    assert (palto.random.uniform((3,), low, high).numpy() == np.float32(low)).all()


def test_normal():
    x = palto.random.normal((N,)).numpy().astype(np.float64)
    assert np.isfinite(x).all()
    assert abs(x.mean()) < SIX
    assert abs(x.var() - 1) < SIX * math.sqrt(2)
    assert abs((x**3).mean()) < SIX * math.sqrt(15)
    assert abs((x**4).mean() - 3) < SIX * math.sqrt(96)
    ordered = np.sort(x)
    exact = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in ordered[::100]])
    assert np.abs(exact - (np.arange(0, N, 100) + 0.5) / N).max() < 3 / math.sqrt(N)  # Kolmogorov
    y = palto.random.normal((N,), mean=2, std=0.5).numpy()
    assert abs(y.mean() - 2) < SIX * 0.5
    assert abs(y.std() - 0.5) < SIX


def test_normal_at_the_ends_of_the_words(monkeypatch):
    for word in (0, 2**32 - 1):
        words = palto.full((2, 3), word, dtype="uint32")
        monkeypatch.setattr(palto.random.Generator, "bits", lambda self, shape, w=words: w)
        assert np.isfinite(palto.random.normal((3,)).numpy()).all()


def test_integers():
    x = palto.random.integers((N,), -3, 7).numpy()
    assert x.dtype == np.int64
    counts = np.bincount(x + 3, minlength=10)
    assert len(counts) == 10
    assert ((counts - N / 10) ** 2 / (N / 10)).sum() < 50
    wide = palto.random.integers((1000,), -(2**30), 2**30).numpy()
    assert wide.min() < -(2**29)
    assert wide.max() > 2**29
    assert set(palto.random.integers((100,), 5, 6).tolist()) == {5}
    assert palto.random.integers((3,), 0, 256, dtype="uint8").dtype == palto.uint8
    for low, high in ((3, 3), (4, 3), (0, 2**31 + 1)):
        with pytest.raises(ValueError, match=f"low < high.*got {low} and {high}"):
            palto.random.integers((3,), low, high)


def test_bernoulli():
    x = palto.random.bernoulli((N,), 0.3)
    assert x.dtype == palto.bool
    assert abs(x.numpy().mean() - 0.3) < SIX * 0.5
    assert not palto.random.bernoulli((1000,), 0.0).any()
    assert palto.random.bernoulli((1000,), 1.0).all()


def test_permutation():
    x = palto.random.permutation(1000)
    assert x.dtype == palto.int64
    assert sorted(x.tolist()) == list(range(1000))
    assert palto.random.permutation(0).shape == (0,)
    firsts = [palto.random.permutation(4)[0].item() for _ in range(2000)]
    counts = np.bincount(firsts, minlength=4)
    assert ((counts - 500) ** 2 / 500).sum() < 40


@pytest.mark.parametrize("name", ["uniform", "normal"])
def test_dtypes_and_shapes(name):
    draw = getattr(palto.random, name)
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        assert draw((2, 0, 3), dtype=dtype).dtype.name == dtype
    assert draw((), dtype="float64").shape == ()
    assert draw(3).shape == (3,)
    with pytest.raises(ValueError, match="no negative lengths"):
        draw((2, -1))
    with pytest.raises(TypeError, match="whole numbers"):
        draw((2.5,))
    with pytest.raises(TypeError, match="float"):
        draw((2,), dtype="int64")


def test_drawing_needs_no_gradient():
    assert not palto.random.normal((3,)).requires_grad
