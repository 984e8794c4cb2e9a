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
    Dialogues,
    ImageFiles,
    Source,
    TableDataset,
    TableEncoder,
    Turn,
    available,
    chitchat,
    csv_table,
    dialogue_file,
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
    "ConcatDataset", "DataLoader", "DataUnavailableError", "Dataset", "Dialogues", "ImageDataset",
    "ImageFiles", "Source", "Subset", "TableDataset", "TableEncoder", "TensorDataset", "Turn",
    "augment", "available", "chitchat", "csv_table", "dialogue_file", "elpv", "fashion_mnist",
    "fetch_source", "image_archive", "image_folder", "numpy_archive", "open_source", "penguins",
    "random_split", "read_image", "speech",
]  # fmt: skip
