"""Fashion-MNIST: 70,000 small grey pictures of clothes in ten classes.

Xiao, Rasul, Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking machine learning
algorithms (2017). Copyright Zalando SE, MIT licence.
"""

from __future__ import annotations

import math
import os

import numpy as np

from palto.data.dataset import ImageDataset
from palto.data.fetch import Contents, Files
from palto.tensor.dtypes import Array

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Of the unpacked contents: Debian has packed the same ones again, with other headers.
FILES = Files(
    name="fashion-mnist",
    contents={
        "train-images-idx3-ubyte.gz": Contents(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", 47040016
        ),
        "train-labels-idx1-ubyte.gz": Contents(
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", 60008
        ),
        "t10k-images-idx3-ubyte.gz": Contents(
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", 7840016
        ),
        "t10k-labels-idx1-ubyte.gz": Contents(
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", 10008
        ),
    },
    folders=("/usr/share/datasets/fashion-mnist",),
    debian="dataset-fashion-mnist",
    addresses=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
)


def fashion_mnist(
    folder: str | os.PathLike[str] | None = None,
) -> tuple[ImageDataset, ImageDataset]:
    """The 60,000 training and 10,000 test pictures.

    Args:
        folder: where the four idx.gz files are. By default the folder in the environment variable
            PALTO_DATA, else the cache, an installed or freshly fetched Debian package
            `dataset-fashion-mnist`, or the data set's own address; 31 MB, kept in the cache.

    Returns:
        Datasets of images, float32 (28, 28, 1) from 0 to 1, and labels, int64 from 0 to 9.

    Raises:
        FileNotFoundError: the folder named lacks a file.
        ValueError: a file in the folder named is damaged.
        DataUnavailableError: the files can be found nowhere.
    """
    contents = FILES.read(folder)

    def dataset(part: str) -> ImageDataset:
        images = read_idx(contents[f"{part}-images-idx3-ubyte.gz"])
        labels = read_idx(contents[f"{part}-labels-idx1-ubyte.gz"])
        return ImageDataset(
            images[..., None], labels, classes=CLASSES, licence="MIT", name="Fashion-MNIST"
        )

    return dataset("train"), dataset("t10k")


def read_idx(contents: bytes) -> Array:
    """The array of bytes in a file of the MNIST family: a magic number, the lengths, the data.

    Raises:
        ValueError: it is no such file, or is cut off.
    """
    if len(contents) < 4 or contents[:3] != b"\x00\x00\x08":
        raise ValueError(f"this is no idx file of bytes: it begins with {contents[:4].hex()}")
    start = 4 + 4 * contents[3]
    if len(contents) < start:
        raise ValueError(f"this idx file ends within its lengths, after {len(contents)} bytes")
    shape = tuple(int(n) for n in np.frombuffer(contents[4:start], ">u4"))
    expected = start + math.prod(shape)
    if len(contents) != expected:
        raise ValueError(
            f"this idx file of shape {shape} should have {expected} bytes and has {len(contents)}"
        )
    try:
        array = np.frombuffer(contents, np.uint8, offset=start).reshape(shape)
    except ValueError as error:  # more axes, or longer ones, than NumPy can hold
        raise ValueError(f"this idx file has the impossible shape {shape}: {error}") from None
    return array.copy()  # NumPy asks for large pages, where random rows are a quarter faster read
