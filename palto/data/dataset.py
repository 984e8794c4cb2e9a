"""Datasets: collections of examples that answer a whole list of indices at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from palto.tensor import Tensor
from palto.tensor.dtypes import Array

Example = tuple[Any, ...]


class Dataset(ABC):
    """The base of all datasets: a number of examples, each a tuple such as (image, label).

    Define ``__len__`` and ``__getitem__``. A dataset that can gather many examples faster than one
    by one defines ``__getitems__`` too. Loaders may call it from several threads at once.

    A dataset whose examples are made with random numbers defines ``set_epoch(epoch)``, which
    loaders call before each epoch, and seeds a generator with the epoch and the index, for example
    ``np.random.default_rng((seed, self.epoch, index))``: then no number repeats, and the examples
    do not depend on the number of threads.

    Attributes:
        classes: the names of the labels, where there are labels.
        licence: under which terms the data may be used, where known.
    """

    classes: tuple[str, ...] = ()
    licence: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """How many examples there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example:
        """One example."""

    def __getitems__(self, indices: Sequence[int] | Array) -> tuple[Array, ...]:
        """Several examples, each part stacked into one array along a new first axis.

        Raises:
            ValueError: examples whose parts differ in shape or number.
        """
        examples = []
        for index in indices:
            try:
                examples.append(_parts(self[int(index)]))
            except Exception as error:
                error.add_note(f"at index {index} of {type(self).__name__}")
                raise
        return tuple(
            self._stack(place, part, indices)
            for place, part in enumerate(self._columns(examples, indices))
        )

    def _columns(self, examples: list[Example], indices: Sequence[int] | Array) -> list[Any]:
        for index, example in zip(indices, examples, strict=True):
            if len(example) != len(examples[0]):
                raise ValueError(
                    f"{type(self).__name__}: the example at index {indices[0]} has "
                    f"{len(examples[0])} parts, the one at {index} has {len(example)}"
                )
        return list(zip(*examples, strict=True))

    def _stack(self, place: int, parts: Sequence[Any], indices: Sequence[int] | Array) -> Array:
        arrays = [np.asarray(part) for part in parts]
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


class TensorDataset(Dataset):
    """Arrays of equal length; example i is the i-th slice of each.

    Args:
        arrays: NumPy arrays or tensors. They are not copied.

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

    def __getitems__(self, indices: Sequence[int] | Array) -> tuple[Array, ...]:
        """The slices at `indices`, gathered in one pass."""
        return tuple(np.take(x, indices, axis=0) for x in self.arrays)


class ImageDataset(TensorDataset):
    """Images with labels, in memory.

    Images of bytes stay bytes in memory, a quarter of the size, and come out as float32 from 0 to
    1; labels come out as int64.

    Args:
        images: shape (N, H, W, C), uint8 or floating point.
        labels: whole numbers, shape (N,).
        classes: the names of the labels, from 0 up.
        licence: under which terms the images may be used.

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
    ) -> None:
        super().__init__(images, labels)
        if self.images.ndim != 4:
            raise ValueError(f"images have shape (N, H, W, C), got {self.images.shape}")
        if self.images.dtype != np.uint8 and self.images.dtype.kind != "f":
            raise TypeError(f"images are uint8 or floating point, got {self.images.dtype}")
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iu":
            raise TypeError(
                f"labels are whole numbers of shape (N,), got {self.labels.dtype}"
                f"{self.labels.shape}"
            )
        self.classes = tuple(classes)
        self.licence = licence
        if classes and len(labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"labels go from {low} to {high}, but {len(self.classes)} classes have names"
                )

    @property
    def images(self) -> Array:
        """All images as they are stored."""
        return self.arrays[0]

    @property
    def labels(self) -> Array:
        """All labels as they are stored."""
        return self.arrays[1]

    def __getitem__(self, index: int) -> Example:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int] | Array) -> tuple[Array, ...]:
        """Images (n, H, W, C) as float32 from 0 to 1, and labels (n,) as int64."""
        images, labels = super().__getitems__(indices)
        if images.dtype == np.uint8:
            images = np.multiply(images, np.float32(1 / 255), dtype=np.float32)
        return images.astype(np.float32, copy=False), labels.astype(np.int64, copy=False)


class Subset(Dataset):
    """Some examples of a dataset, in a given order.

    Args:
        dataset: the whole.
        indices: which examples.

    Raises:
        IndexError: an index that the dataset does not have.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int] | Array) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64)
        outside = (self.indices < 0) | (self.indices >= len(dataset))
        if outside.any():
            raise IndexError(
                f"index {self.indices[outside][0]} is out of range for a dataset of {len(dataset)}"
            )
        self.classes, self.licence = dataset.classes, dataset.licence

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.dataset[int(self.indices[index])]

    def __getitems__(self, indices: Sequence[int] | Array) -> tuple[Array, ...]:
        """The examples at `indices` of this subset."""
        return self.dataset.__getitems__(self.indices[np.asarray(indices, dtype=np.int64)])

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset which epoch begins."""
        tell_epoch(self.dataset, epoch)


class ConcatDataset(Dataset):
    """Several datasets one after the other.

    Args:
        datasets: at least one.
    """

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        if not datasets:
            raise ValueError("ConcatDataset wants at least one dataset")
        self.datasets = tuple(datasets)
        self._starts = np.cumsum([0, *(len(dataset) for dataset in self.datasets)])
        self.classes, self.licence = self.datasets[0].classes, self.datasets[0].licence

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)}")
        index %= len(self)
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.datasets[place][index - int(self._starts[place])]

    def set_epoch(self, epoch: int) -> None:
        """Tell the datasets which epoch begins."""
        for dataset in self.datasets:
            tell_epoch(dataset, epoch)


def tell_epoch(dataset: Dataset, epoch: int) -> None:
    """Call the dataset's ``set_epoch``, if it has one."""
    set_epoch = getattr(dataset, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)


def random_split(
    dataset: Dataset, lengths: Sequence[int] | Sequence[float], *, seed: int = 0
) -> list[Subset]:
    """The dataset divided at random into parts that do not overlap.

    Args:
        dataset: the whole.
        lengths: how many examples each part gets, or the fractions, which add up to 1.
        seed: equal seeds give equal parts.

    Raises:
        ValueError: the lengths do not add up to the dataset's, or the fractions to 1.
    """
    total = len(dataset)
    if all(isinstance(n, int) for n in lengths):
        counts = [int(n) for n in lengths]
        if sum(counts) != total or min(counts, default=0) < 0:
            raise ValueError(f"parts of {counts} do not add up to a dataset of {total}")
    else:
        if abs(sum(lengths) - 1) > 1e-6 or min(lengths) < 0:
            raise ValueError(f"fractions of {list(lengths)} do not add up to 1")
        bounds = np.round(np.cumsum([0.0, *lengths]) * total).astype(int)
        counts = np.diff(bounds).tolist()
    order = np.random.default_rng(seed).permutation(total)
    return [Subset(dataset, part) for part in np.split(order, np.cumsum(counts)[:-1])]
