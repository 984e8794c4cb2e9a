"""ELPV: 2,624 grey photographs of solar cells under current, in four grades of defects.

Buerhop-Lutz, Deitsch and others: A benchmark for visual identification of defective solar cells in
electroluminescence imagery (2018). CC-BY-NC-SA-4.0: not for commercial use.
"""

from __future__ import annotations

import io
import os

from palto.data.fetch import Contents, Files
from palto.data.sources.images import ImageFiles, Labelled, Options, build
from palto.data.sources.pictures import Channels, Size
from palto.data.sources.stores import Zip

#: The authors' grades: the probability of a defect is 0, 1/3, 2/3, 1.
CLASSES = ("functional", "probably functional", "probably defective", "defective")
WHEEL = "elpv_dataset-1.0.0.post1-py3-none-any.whl"
FILES = Files(
    name="elpv",
    contents={
        WHEEL: Contents(
            "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c", 90801454
        )
    },
    pip="elpv-dataset==1.0.0.post1",
)
INSIDE = ("elpv_dataset", "data")


def elpv(
    folder: str | os.PathLike[str] | None = None,
    *,
    size: int | Size | None = None,
    channels: Channels | None = None,
) -> tuple[ImageFiles, ImageFiles]:
    """1,968 photographs to learn from and 656 held out, a quarter of each grade, always the same.

    (The data has no division of its own; its authors have held out a quarter, too.)

    Args:
        folder: where the .whl file of the Python package `elpv-dataset` is. By default it is looked
            for as `fashion_mnist` says, or fetched with pip; 91 MB, kept in the cache.
        size: (height, width), or one number for both; by default 64 x 64. They are 300 x 300.
        channels: 1 for grey, as they are, or 3.

    Returns:
        Datasets of images, float32 (H, W, C) from 0 to 1, and labels, int64 from 0 to 3.

    Raises:
        FileNotFoundError: the folder named lacks the file.
        ValueError: the file in the folder named is damaged; no such size or number of channels.
        DataUnavailableError: the package can be found nowhere.
    """
    options = Options(size, channels, validation=0.25, classes=CLASSES)
    options.check()
    store = Zip(io.BytesIO(FILES.read(folder)[WHEEL]), "elpv")
    with store.open((*INSIDE, "labels.csv")) as file:
        rows = [line.split() for line in file.read().decode("ascii").splitlines() if line]
    part = Labelled(
        [(*INSIDE, *row[0].split("/")) for row in rows],
        [CLASSES[round(3 * float(row[1]))] for row in rows],
    )
    train, test = build(store, [part], options, name="ELPV", licence="CC-BY-NC-SA-4.0")
    return train, test
