"""Datasets: what they hold, what comes out, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import palto
from palto import data
from palto.data import augment


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


def test_iterating_a_dataset_ends():
    assert [number for _, number in Squares()] == list(range(10))


def test_python_floats_become_float32():
    class Mixed(Squares):
        def __getitem__(self, index):
            return 0.5, np.float64(0.5), index

    dtypes = [part.dtype.name for part in Mixed().__getitems__([0, 1])]
    assert dtypes == ["float32", "float64", "int64"]


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


@pytest.mark.parametrize("indices", [[True, False, True], [0.0, 1.0], [[0, 1]], 1])
def test_only_whole_numbers_are_indices(indices):
    dataset = data.TensorDataset(np.arange(3))
    for ask in (dataset.__getitems__, lambda i: data.Subset(dataset, i)):
        with pytest.raises(TypeError, match="indices are whole numbers"):
            ask(indices)


def test_no_indices():
    dataset = data.TensorDataset(np.zeros((3, 2), np.float32))
    for each in (dataset, data.Subset(dataset, [1]), data.ConcatDataset([dataset])):
        (rows,) = each.__getitems__([])
        assert rows.shape == (0, 2)


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


def test_images_as_bytes():
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
    floats = data.ImageDataset(images, np.array([0, 1]), classes=("a", "b"), name="all bytes")
    dataset = floats.as_bytes()
    assert (dataset.classes, dataset.name) == (("a", "b"), "all bytes")
    out, labels = dataset.__getitems__([1, 0])
    assert (out.dtype, labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(out, images[::-1])
    expected, _ = floats.__getitems__([1, 0])
    assert expected.dtype == np.float32  # it is another dataset
    for convert in (augment.convert_image_dtype, palto.compile(augment.convert_image_dtype)):
        np.testing.assert_array_equal(convert(palto.asarray(out)), expected)
    with pytest.raises(TypeError, match="stored as float64, not as bytes"):
        data.ImageDataset(images / 255, np.array([0, 1])).as_bytes()


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
    np.testing.assert_array_equal(both.__getitems__([11, 0, -1, 2, 1])[1], [9, 7, 9, 0, 3])
    for ask in (lambda: both[12], lambda: both.__getitems__([0, 12])):
        with pytest.raises(IndexError, match="index 12 is out of range for a dataset of 12"):
            ask()


def test_datasets_with_other_shapes_are_not_concatenated():
    both = data.ConcatDataset([data.TensorDataset(np.zeros((2, k))) for k in (3, 4)])
    assert both[3][0].shape == (4,)
    with pytest.raises(ValueError, match=r"dataset 0 .*\(3,\).* dataset 1 .*\(4,\)"):
        both.__getitems__([0, 3])
    with pytest.raises(ValueError, match="at least one dataset"):
        data.ConcatDataset([])


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    places=st.lists(st.integers(-30, 30), max_size=12),
)
def test_a_concatenation_is_the_whole(sizes, places):
    whole = np.arange(sum(sizes) * 2).reshape(-1, 2)
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    both = data.ConcatDataset([data.TensorDataset(part, part[:, 0]) for part in parts])
    assert len(both) == len(whole)
    indices = [place % (2 * len(whole)) - len(whole) for place in places] if len(whole) else []
    rows, firsts = both.__getitems__(indices)
    np.testing.assert_array_equal(rows, whole[np.array(indices, int)])
    np.testing.assert_array_equal(firsts, whole[np.array(indices, int), 0])


def test_names_are_passed_on():
    images = np.zeros((2, 1, 1, 1), np.uint8)
    dataset = data.ImageDataset(images, [0, 1], classes=["a", "b"], licence="MIT", name="two")
    for part in (data.Subset(dataset, [1]), data.ConcatDataset([dataset])):
        assert (part.classes, part.licence, part.name) == (("a", "b"), "MIT", "two")


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
    halves = data.random_split(Squares(), np.array([5, 5]), 2)
    assert [len(half) for half in halves] == [5, 5]


@pytest.mark.parametrize(
    "lengths", [[], [-1, 11], [1.5, -0.5], [float("nan"), 1.0], ["7", "3"], 10]
)
def test_random_split_refuses(lengths):
    with pytest.raises(ValueError, match=r"lengths are the numbers|do not add up"):
        data.random_split(Squares(), lengths)


def test_a_split_by_classes():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    parts = data.random_split(data.TensorDataset(labels), [0.8, 0.1, 0.1], stratify=labels)
    together = np.concatenate([part.indices for part in parts])
    np.testing.assert_array_equal(np.sort(together), np.arange(1000))
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
        counts = np.bincount(labels[part.indices], minlength=3)
        assert np.abs(counts - share * np.array([600, 300, 100])).max() <= 1
    again = data.random_split(data.TensorDataset(labels), [0.8, 0.1, 0.1], stratify=labels)
    np.testing.assert_array_equal(again[0].indices, parts[0].indices)
    other = data.random_split(data.TensorDataset(labels), [0.8, 0.1, 0.1], 1, stratify=labels)
    assert set(other[1].indices) != set(parts[1].indices)
    with pytest.raises(ValueError, match="each of the 1000 examples, got shape"):
        data.random_split(data.TensorDataset(labels), [0.5, 0.5], stratify=labels[:-1])
