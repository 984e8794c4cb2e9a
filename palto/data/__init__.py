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
from palto.data.fetch import DataUnavailableError
from palto.data.loader import DataLoader
from palto.data.sources import (
    ImageFiles,
    Source,
    TableDataset,
    TableEncoder,
    available,
    csv_table,
    elpv,
    fashion_mnist,
    fetch_source,
    image_archive,
    image_folder,
    numpy_archive,
    open_source,
    penguins,
    read_image,
    speech,
)

__all__ = [
    "ConcatDataset", "DataLoader", "DataUnavailableError", "Dataset", "ImageDataset", "ImageFiles",
    "Source", "Subset", "TableDataset", "TableEncoder", "TensorDataset", "augment", "available",
    "csv_table", "elpv", "fashion_mnist", "fetch_source", "image_archive", "image_folder",
    "numpy_archive", "open_source", "penguins", "random_split", "read_image", "speech",
]  # fmt: skip
