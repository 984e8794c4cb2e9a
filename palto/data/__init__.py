"""Data sets, and the loader that makes batches of them."""

from palto.data import augment
from palto.data.dataset import (
    ConcatDataset,
    Dataset,
    ImageDataset,
    Subset,
    TensorDataset,
    random_split,
)
from palto.data.fashion_mnist import fashion_mnist
from palto.data.fetch import DataUnavailableError
from palto.data.loader import DataLoader

__all__ = [
    "ConcatDataset", "DataLoader", "DataUnavailableError", "Dataset", "ImageDataset", "Subset",
    "TensorDataset", "augment", "fashion_mnist", "random_split",
]  # fmt: skip
