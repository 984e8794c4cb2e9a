"""Datasets: collections of examples that answer a whole list of indices at once."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from palto.data.gather import Part, fractions
from palto.tensor import Tensor
from palto.tensor.dtypes import SUPPORTED, Array

Example = tuple[Any, ...]
Indices = Sequence[int] | Array
AnyDataset = TypeVar("AnyDataset", bound="Dataset")
AnyImages = TypeVar("AnyImages", bound="BytesOrFloats")


class Dataset(ABC):
    """The base of all datasets: a number of examples, each a tuple such as (image, label).

    Define ``__len__`` and ``__getitem__``. A dataset that can gather many examples faster than one
    by one defines ``__getitems__`` too. Loaders may call it from several threads at once.

    A dataset whose examples are made with random numbers defines ``set_epoch(epoch)``, which keeps
    the number, and draws from ``np.random.default_rng((seed, self.epoch, index))``. Loaders call it
    on a shallow copy of the dataset, one for each epoch. So no number repeats, the examples do not
    depend on the number of threads, and two loaders over one dataset do not disturb each other.
    (One generator kept in the dataset would do none of this: threads would take turns at random.)

    Attributes:
        classes: the names of the labels, where there are labels.
        licence: under which terms the data may be used, where known.
        name: what the dataset is called, where it has a name.
    """

    classes: tuple[str, ...] = ()
    licence: str | None = None
    name: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many examples there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """One example."""

    def __iter__(self) -> Iterator[Example]:
        """All examples, one after the other."""
        for index in range(len(self)):
            yield self[index]

    def __getitems__(self, indices: Indices) -> tuple[Array, ...]:
        """Several examples, each part stacked into one array along a new first axis.

        Python floats become float32, as everywhere in Palto; arrays keep their dtype. A subclass
        that defines this method answers with new arrays, not with memory that it writes to again.

        Raises:
            ValueError: examples whose parts differ in shape or number.
            Exception: whatever ``__getitem__`` raises, with a note that names the index.
        """
        examples = []
        for index in indices:
            try:
                examples.append(_parts(self[int(index)]))
            except Exception as error:
                error.add_note(f"at index {index} of {type(self).__name__}")
                raise
        for index, example in zip(indices, examples, strict=True):
            if len(example) != len(examples[0]):
                raise ValueError(
                    f"{type(self).__name__}: the example at index {indices[0]} has "
                    f"{len(examples[0])} parts, the one at {index} has {len(example)}; give every "
                    "example the same parts"
                )
        return tuple(
            self._stack(place, parts, indices)
            for place, parts in enumerate(zip(*examples, strict=True))
        )

    def _stack(self, place: int, parts: Sequence[Any], indices: Indices) -> Array:
        arrays = [_array(part) for part in parts]
        for index, array in zip(indices, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise ValueError(
                    f"{type(self).__name__}: part {place} has shape {arrays[0].shape} at index "
                    f"{indices[0]} and {array.shape} at index {index}; examples of one batch have "
                    "one shape: resize or pad them in the dataset"
                )
        return np.stack(arrays)


def _parts(example: Any) -> Example:
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def _array(part: Any) -> Array:
    return np.asarray(part, dtype=np.float32 if type(part) is float else None)


def _whole_numbers(indices: Indices) -> Array:
    """The indices as an array; a mask or fractions, which NumPy would quietly convert, are refused.

    Raises:
        TypeError: they are not whole numbers along one axis.
    """
    array = np.asarray(indices)
    if array.ndim == 1 and array.dtype.kind in "iu":
        return array
    if array.ndim == 1 and array.size == 0:
        return array.astype(np.int64)
    if array.dtype == np.bool_:
        raise TypeError("indices are whole numbers, got a mask: use np.flatnonzero(mask)")
    raise TypeError(
        f"indices are whole numbers along one axis, got {array.dtype} of shape {array.shape}"
    )


class TensorDataset(Dataset):
    """Arrays of equal length; example i is the i-th slice of each.

    Args:
        arrays: NumPy arrays or tensors. They are not copied, and come out with their own dtypes.

    Raises:
        ValueError: no arrays, or arrays of different lengths.
    """

    def __init__(self, *arrays: Array | Tensor) -> None:
        self.arrays = tuple(x.array() if isinstance(x, Tensor) else np.asarray(x) for x in arrays)
        if not self.arrays or any(x.ndim == 0 for x in self.arrays):
            raise ValueError("TensorDataset wants arrays with at least one axis each")
        lengths = [len(x) for x in self.arrays]
        if len(set(lengths)) > 1:
            raise ValueError(f"TensorDataset wants arrays of one length, got {lengths}")

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> Example:
        return tuple(x[index] for x in self.arrays)

    def __getitems__(self, indices: Indices) -> tuple[Array, ...]:
        """The slices at `indices`, gathered in one pass."""
        places = _whole_numbers(indices)
        return tuple(part.take(places) for part in self.parts())

    def parts(self) -> list[Part]:
        """What the slices are taken of, and how they come out."""
        return [Part(x, x.dtype) for x in self.arrays]


class BytesOrFloats(Dataset):
    """A dataset of images that are stored as bytes."""

    _scales = True

    def as_bytes(self: AnyImages) -> AnyImages:
        """The same examples, with images as bytes from 0 to 255: a quarter of the memory to move.

        The training step begins with ``augment.convert_image_dtype(images)`` then, which makes the
        same float32 numbers from 0 to 1 of them; so does what tests.
        """
        other = copy.copy(self)
        other._scales = False
        return other

    def _given(self, images: Array) -> Array:
        """A new array of bytes in the form in which it comes out."""
        return fractions(images) if self._scales else images


class ImageDataset(TensorDataset, BytesOrFloats):
    """Images with labels, in memory.

    Images of bytes stay bytes in memory, a quarter of the size, and come out as float32 from 0 to
    1 (`as_bytes` gives them as they are); labels come out as int64.

    Args:
        images: shape (N, H, W, C), uint8 or floating point.
        labels: whole numbers, shape (N,).
        classes: the names of the labels, from 0 up.
        licence: under which terms the images may be used.
        name: what the dataset is called.

    Raises:
        ValueError: other shapes, or labels without a name.
        TypeError: images of another dtype, or labels that are not whole numbers.
    """

    def __init__(
        self,
        images: Array,
        labels: Array,
        *,
        classes: Sequence[str] = (),
        licence: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(images, labels)
        if self.images.ndim != 4:
            raise ValueError(
                f"images have shape (N, H, W, C), got {self.images.shape}; add a missing axis of "
                "channels with images[..., None]"
            )
        if self.images.dtype != np.uint8 and self.images.dtype.kind != "f":
            raise TypeError(f"images are uint8 or floating point, got {self.images.dtype}")
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iu":
            raise TypeError(
                f"labels are whole numbers of shape (N,), got {self.labels.dtype}"
                f"{self.labels.shape}"
            )
        self.classes, self.licence, self.name = tuple(classes), licence, name
        if self.classes and len(self.labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"labels go from {low} to {high}, but {len(self.classes)} classes have names"
                )
        self.arrays = self.images, self.labels.astype(np.int64, copy=False)

    @property
    def images(self) -> Array:
        """All images as they are stored."""
        return self.arrays[0]

    @property
    def labels(self) -> Array:
        """All labels, int64."""
        return self.arrays[1]

    def __getitem__(self, index: int) -> Example:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def parts(self) -> list[Part]:
        """Images (N, H, W, C) as float32 from 0 to 1, or as bytes, and labels (N,) as int64."""
        are_bytes = self.images.dtype == np.uint8
        is_scaled = are_bytes and self._scales
        dtype = np.uint8 if are_bytes and not is_scaled else np.float32
        return [Part(self.images, np.dtype(dtype), is_scaled), Part(self.labels, self.labels.dtype)]

    def as_bytes(self) -> ImageDataset:
        """The same with images as bytes: see `BytesOrFloats.as_bytes`.

        Raises:
            TypeError: the images are no bytes.
        """
        if self.images.dtype != np.uint8:
            raise TypeError(f"these images are stored as {self.images.dtype}, not as bytes")
        return super().as_bytes()


class Subset(Dataset):
    """Some examples of a dataset, in a given order.

    Args:
        dataset: the whole.
        indices: which examples.

    Raises:
        IndexError: an index that the dataset does not have.
        TypeError: the indices are not whole numbers, but a mask for instance.
    """

    def __init__(self, dataset: Dataset, indices: Indices) -> None:
        self.dataset = dataset
        self.indices = _whole_numbers(indices).astype(np.int64)
        outside = (self.indices < 0) | (self.indices >= len(dataset))
        if outside.any():
            raise IndexError(
                f"index {self.indices[outside][0]} is out of range for a dataset of {len(dataset)}"
            )
        self.classes, self.licence, self.name = dataset.classes, dataset.licence, dataset.name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.dataset[int(self.indices[index])]

    def __getitems__(self, indices: Indices) -> tuple[Array, ...]:
        """The examples at `indices` of this subset."""
        return self.dataset.__getitems__(self.indices[_whole_numbers(indices)])

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset which epoch begins."""
        self.dataset = in_epoch(self.dataset, epoch)


class ConcatDataset(Dataset):
    """Several datasets one after the other.

    Args:
        datasets: at least one; their examples have the same parts.

    Raises:
        ValueError: no datasets.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        if not datasets:
            raise ValueError("ConcatDataset wants at least one dataset")
        self.datasets = tuple(datasets)
        self._starts = np.cumsum([0, *(len(dataset) for dataset in self.datasets)])
        first = self.datasets[0]
        self.classes, self.licence, self.name = first.classes, first.licence, first.name

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        places, inside = self._locate(np.asarray([index]))
        example: Example = self.datasets[int(places[0])][int(inside[0])]
        return example

    def __getitems__(self, indices: Indices) -> tuple[Array, ...]:
        """The examples at `indices`; each dataset is asked once, for all that it has of them.

        Raises:
            IndexError: an index that is out of range.
            ValueError: the datasets' examples differ in shape or in the number of their parts.
        """
        places, inside = self._locate(_whole_numbers(indices))
        used = np.unique(places)
        if len(used) == 0:
            return self.datasets[0].__getitems__(inside)
        gathered = [self.datasets[k].__getitems__(inside[places == k]) for k in used]
        shapes = [tuple(part.shape[1:] for part in parts) for parts in gathered]
        for k, shape in zip(used, shapes, strict=True):
            if shape != shapes[0]:
                raise ValueError(
                    f"examples of dataset {used[0]} have parts of shapes {shapes[0]}, those of "
                    f"dataset {k} {shape}; examples of one batch have one shape"
                )
        # Gathered in the order of the datasets: put back into the order that was asked for.
        back = np.argsort(np.argsort(places, kind="stable"), kind="stable")
        return tuple(np.concatenate(parts)[back] for parts in zip(*gathered, strict=True))

    def _locate(self, indices: Array) -> tuple[Array, Array]:
        """In which dataset each index lies, and where in it."""
        total = len(self)
        outside = (indices < -total) | (indices >= total)
        if outside.any():
            raise IndexError(
                f"index {indices[outside][0]} is out of range for a dataset of {total}"
            )
        indices = np.where(indices < 0, indices + total, indices)
        places = np.searchsorted(self._starts, indices, side="right") - 1
        return places, indices - self._starts[places]

    def set_epoch(self, epoch: int) -> None:
        """Tell the datasets which epoch begins."""
        self.datasets = tuple(in_epoch(dataset, epoch) for dataset in self.datasets)


def in_epoch(dataset: AnyDataset, epoch: int) -> AnyDataset:
    """The dataset as it is in an epoch: a shallow copy that has been told its number.

    A dataset without ``set_epoch`` is the same in every epoch, and is not copied.
    """
    if not hasattr(dataset, "set_epoch"):
        return dataset
    dataset = copy.copy(dataset)
    dataset.set_epoch(epoch)
    return dataset


def in_memory(dataset: Dataset, order: Array) -> tuple[list[Part], Array] | None:
    """The arrays that some examples come from, and where in these they are.

    None if they do not come from arrays alone: what somebody else has written is asked itself.

    Args:
        dataset: the dataset.
        order: numbers of examples, int64 (n,), each from 0 to its length - 1.
    """
    while isinstance(dataset, Subset) and type(dataset).__getitems__ is Subset.__getitems__:
        order, dataset = dataset.indices[order], dataset.dataset
    if not isinstance(dataset, TensorDataset):
        return None
    if type(dataset).__getitems__ is not TensorDataset.__getitems__:
        return None
    parts, length = dataset.parts(), len(dataset)
    is_whole = order.size == 0 or (order.min() >= 0 and order.max() < length)
    is_whole = is_whole and all(len(part.array) == length for part in parts)
    if not is_whole or any(part.dtype not in SUPPORTED for part in parts):
        return None
    return parts, np.ascontiguousarray(order, np.int64)


def random_split(
    dataset: Dataset,
    lengths: Sequence[int] | Sequence[float],
    seed: int = 0,
    *,
    stratify: Sequence[int] | Array | None = None,
) -> list[Subset]:
    """The dataset divided at random into parts that do not overlap.

    Args:
        dataset: the whole.
        lengths: how many examples each part gets, or the fractions, which add up to 1.
        seed: equal seeds give equal parts.
        stratify: the class of every example, shape (N,): each part then gets about the same share
            of every class.

    Raises:
        ValueError: the lengths do not add up to the dataset's, or the fractions to 1; there are
            more or fewer classes given than examples.
    """
    total = len(dataset)
    counts = _counts(lengths, total)
    rng = np.random.default_rng(seed)
    order = rng.permutation(total)
    if stratify is not None:
        labels = np.asarray(stratify)
        if labels.shape != (total,):
            raise ValueError(
                f"stratify is the class of each of the {total} examples, got shape {labels.shape}"
            )
        order = _interleaved(order, labels)
    parts = np.split(order, np.cumsum(counts)[:-1])
    return [
        Subset(dataset, rng.permutation(part) if stratify is not None else part) for part in parts
    ]


def _counts(lengths: Sequence[int] | Sequence[float], total: int) -> list[int]:
    given = np.asarray(lengths)
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iuf" or given.min() < 0:
        raise ValueError(
            f"lengths are the numbers of examples or the fractions of the parts, got {lengths!r}"
        )
    if given.dtype.kind in "iu":
        if given.sum() != total:
            raise ValueError(f"parts of {given.tolist()} do not add up to a dataset of {total}")
        return [int(n) for n in given]
    if not abs(given.sum() - 1) <= 1e-6:  # so written, it refuses NaN too
        raise ValueError(f"fractions of {given.tolist()} do not add up to 1")
    bounds = np.round(np.cumsum([0.0, *given]) * total).astype(int)
    return [int(n) for n in np.diff(bounds)]


def _interleaved(order: Array, labels: Array) -> Array:
    """The same examples so that every stretch has about the same share of each class.

    The k-th of a class's n examples is put (k + 1/2) / n of the way along.
    """
    by_class = np.argsort(labels[order], kind="stable")
    _, sizes = np.unique(labels, return_counts=True)
    way = np.empty(len(order))
    way[by_class] = np.concatenate([np.zeros(0), *((np.arange(n) + 0.5) / n for n in sizes)])
    return order[np.argsort(way, kind="stable")]
