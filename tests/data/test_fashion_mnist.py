"""Fashion-MNIST: hostile idx files, and the real data set."""

import numpy as np
import pytest

from palto import data
from palto.data.sources.fashion_mnist import read_idx


def idx(shape, data=b"", kind=8):
    lengths = b"".join(n.to_bytes(4, "big") for n in shape)
    return bytes([0, 0, kind, len(shape)]) + lengths + data


def test_idx_files():
    np.testing.assert_array_equal(read_idx(idx((2, 3), bytes(range(6)))), [[0, 1, 2], [3, 4, 5]])
    assert read_idx(idx((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x1f\x8b",
        b"PK\x03\x04whatever",
        idx((2, 3), bytes(5)),
        idx((2, 3), bytes(7)),
        idx((2, 3), bytes(6), kind=13),
        idx((2**31, 2**31)),
        idx((1,))[:6],
        bytes([0, 0, 8, 255]),
        idx((1,) * 65, b"x"),
        idx((0, 2**32 - 1, 2**32 - 1, 2**32 - 1)),
    ],
)
def test_hostile_idx_files(contents):
    with pytest.raises(ValueError, match="idx file"):
        read_idx(contents)


def test_the_real_data():
    try:
        train, test = data.fashion_mnist()
    except data.DataUnavailableError as error:
        pytest.skip(str(error))
    assert (len(train), len(test)) == (60000, 10000)
    assert (train.licence, train.name, test.name) == ("MIT", "Fashion-MNIST", "Fashion-MNIST")
    assert train.classes[9] == "Ankle boot"
    for part, count in ((train, 6000), (test, 1000)):
        np.testing.assert_array_equal(np.bincount(part.labels), [count] * 10)
    assert train.images.dtype == np.uint8  # a quarter of the memory
    images, labels = next(iter(data.DataLoader(test, 2)))
    assert (images.shape, images.dtype.name, labels.tolist()) == ((2, 28, 28, 1), "float32", [9, 2])
    assert 0 <= float(images.min()) and float(images.max()) == 1.0
    assert labels.dtype.name == "int64"
