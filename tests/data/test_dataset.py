"""Datasets: what they hold, what comes out, and what they refuse."""

import numpy as np
import pytest

import palto
from palto import data


class Squares(data.Dataset):
    """One example at a time, as a user's dataset is written first."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return np.full((2,), index * index, np.float32), index


def test_examples_are_stacked():
    squares, numbers = Squares().__getitems__([3, 1, 2])
    np.testing.assert_array_equal(squares, [[9, 9], [1, 1], [4, 4]])
    np.testing.assert_array_equal(numbers, [3, 1, 2])


def test_an_example_without_tuple_is_one_part():
    class Plain(Squares):
        def __getitem__(self, index):
            return np.float32(index)

    (values,) = Plain().__getitems__([1, 2])
    np.testing.assert_array_equal(values, [1, 2])


def test_examples_of_different_shapes():
    class Ragged(Squares):
        def __getitem__(self, index):
            return np.zeros(index), index

    with pytest.raises(ValueError, match=r"part 0 has shape \(1,\) at index 1 and \(2,\) at ind"):
        Ragged().__getitems__([1, 2])


def test_examples_of_different_lengths():
    class Uneven(Squares):
        def __getitem__(self, index):
            return (index,) * index

    with pytest.raises(ValueError, match="at index 1 has 1 parts, the one at 2 has 2"):
        Uneven().__getitems__([1, 2])


def test_an_example_that_raises_names_its_index():
    class Broken(Squares):
        def __getitem__(self, index):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone") as info:
        Broken().__getitems__([4])
    assert "at index 4 of Broken" in info.value.__notes__


def test_tensor_dataset():
    x, y = np.arange(6.0).reshape(3, 2), palto.asarray([5, 6, 7])
    dataset = data.TensorDataset(x, y)
    assert len(dataset) == 3
    np.testing.assert_array_equal(dataset[1][0], [2, 3])
    rows, labels = dataset.__getitems__([2, 2, 0])
    np.testing.assert_array_equal(rows, x[[2, 2, 0]])
    np.testing.assert_array_equal(labels, [7, 7, 5])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [((), "at least one axis"), ((np.zeros(()),), "axis"), ((np.zeros(3), np.zeros(2)), "3, 2")],
)
def test_tensor_dataset_refuses(arrays, message):
    with pytest.raises(ValueError, match=message):
        data.TensorDataset(*arrays)


def test_image_dataset_keeps_bytes_and_gives_floats():
    images = np.array([0, 51, 255, 102], np.uint8).reshape(2, 2, 1, 1)
    dataset = data.ImageDataset(images, np.array([0, 1], np.uint8), classes=("a", "b"))
    assert dataset.images.dtype == np.uint8
    out, labels = dataset.__getitems__([1, 0])
    assert (out.dtype, labels.dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(out.ravel(), [1, 0.4, 0, 0.2], rtol=1e-6)
    image, label = dataset[1]
    assert image.shape == (2, 1, 1) and label == 1
    assert out.max() == 1.0


def test_image_dataset_refuses():
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match=r"\(N, H, W, C\), got \(2, 4, 4\)"):
        data.ImageDataset(images[..., 0], labels)
    with pytest.raises(TypeError, match="int32"):
        data.ImageDataset(images.astype(np.int32), labels)
    with pytest.raises(TypeError, match="whole numbers"):
        data.ImageDataset(images, labels.astype(np.float32))
    with pytest.raises(ValueError, match="from 0 to 3, but 2 classes"):
        data.ImageDataset(images, np.array([0, 3]), classes=("a", "b"))


def test_subset_and_concat():
    squares = Squares()
    part = data.Subset(squares, [7, 3])
    assert len(part) == 2 and part[1][1] == 3
    np.testing.assert_array_equal(part.__getitems__([1, 0])[1], [3, 7])
    with pytest.raises(IndexError, match="index 10 is out of range for a dataset of 10"):
        data.Subset(squares, [0, 10])
    both = data.ConcatDataset([part, squares])
    assert len(both) == 12
    assert [both[i][1] for i in (0, 1, 2, 11, -1)] == [7, 3, 0, 9, 9]
    with pytest.raises(IndexError, match="12"):
        both[12]


def test_random_split():
    parts = data.random_split(Squares(), [7, 3], seed=1)
    assert [len(part) for part in parts] == [7, 3]
    together = np.concatenate([part.indices for part in parts])
    np.testing.assert_array_equal(np.sort(together), np.arange(10))
    again = data.random_split(Squares(), [0.7, 0.3], seed=1)
    for one, other in zip(parts, again, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
    with pytest.raises(ValueError, match="do not add up to a dataset of 10"):
        data.random_split(Squares(), [7, 4])
    with pytest.raises(ValueError, match="do not add up to 1"):
        data.random_split(Squares(), [0.5, 0.4])
