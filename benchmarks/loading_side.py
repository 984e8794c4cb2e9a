"""One side of the comparison of loaders: what it loads, and its life in a process of its own.

    python benchmarks/loading_side.py Palto photos 2 FOLDER

It says, a line of JSON each: that its data is ready; then, when a line comes on its input, how long
the first batch takes; then, after an epoch and another one that is left early, how long until no
worker is left. At the next line it goes on loading until it is interrupted.

Frameworks are imported where they are used, as spawned workers import this file anew.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 64
PHOTOS, HEIGHT, WIDTH = 256, 375, 500
ROWS = 50_000
#: Seconds after which what still lives counts as left.
PATIENCE = 10.0

#: What each kind of data is called in the tables.
TITLES = {
    "bytes": "Fashion-MNIST, bytes",
    "floats": "Fashion-MNIST, float32",
    "table": f"table, {ROWS:,} rows",
    "photos": f"JPEG files {WIDTH} x {HEIGHT} to 64 x 64",
    "large photos": f"JPEG files {WIDTH} x {HEIGHT} to 224 x 224",
}
_SIZES = {"photos": 64, "large photos": 224}

#: Makes a loader with so many workers.
Make = Callable[[int], Iterable[Any]]

# --- What is loaded ------------------------------------------------------------------------------


def write_table(path: Path) -> None:
    """Twelve columns of numbers, two of categories, a target of three classes."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(ROWS, 12)).round(3)
    colours = rng.choice(["red", "green", "blue"], ROWS)
    cities = rng.choice([f"city {k}" for k in range(20)], ROWS)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{k}" for k in range(12)), "colour", "city", "class"])
        for row in zip(numbers, colours, cities, rng.choice(["a", "b", "c"], ROWS), strict=True):
            writer.writerow([*row[0], *row[1:]])


def write_photos(folder: Path) -> None:
    """JPEG files of two classes with detail at all scales, as photographs have."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        image = np.full((HEIGHT, WIDTH, 3), 128.0, np.float32)
        for columns, contrast in ((8, 60), (32, 25), (128, 12), (WIDTH, 6)):
            noise = rng.normal(0, contrast, (columns * HEIGHT // WIDTH, columns, 3))
            for channel in range(3):
                layer = Image.fromarray(noise[..., channel].astype(np.float32))
                image[..., channel] += np.asarray(layer.resize((WIDTH, HEIGHT)))
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def write_files(folder: Path, kinds: Collection[str]) -> None:
    """The files that these kinds of data are loaded from."""
    if "table" in kinds:
        write_table(folder / "table.csv")
    if not _SIZES.keys().isdisjoint(kinds):
        write_photos(folder / "photos")


class Folder:
    """A PyTorch dataset of images by class, as torchvision's ImageFolder with the usual transforms.

    Resize, CenterCrop and ToTensor.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = sorted(folder.glob("*/*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch
        from PIL import Image

        with open(self.paths[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        scale = self.size / min(image.size)
        sides = round(image.width * scale), round(image.height * scale)
        image = image.resize(sides, Image.Resampling.BILINEAR)
        left, top = (sides[0] - self.size) // 2, (sides[1] - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255), int(self.paths[index].parent.name == "b")


def _palto(kind: str, folder: Path) -> Make:
    from palto import data

    if kind in _SIZES:
        dataset = data.image_folder(folder / "photos", size=_SIZES[kind], cache_bytes=0)[0]
    elif kind == "table":
        dataset = data.csv_table(folder / "table.csv", target="class")[0]
    else:
        dataset = data.fashion_mnist()[0]
        dataset = dataset.as_bytes() if kind == "bytes" else dataset
    return lambda workers: data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)


def _torch(kind: str, folder: Path, start: str | None = None, lasts: bool = False) -> Make:
    """PyTorch's loader: of a TensorDataset, or of a folder.

    Args:
        kind: of data.
        folder: where the files are.
        start: how its workers are started; the system's way by default.
        lasts: whether they last from epoch to epoch.
    """
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)  # more threads gain nothing on one batch, and spin
    if kind in _SIZES:
        dataset: Any = Folder(folder / "photos", _SIZES[kind])
    else:
        from palto import data

        if kind == "table":
            arrays = data.csv_table(folder / "table.csv", target="class")[0].arrays
        else:
            clothes = data.fashion_mnist()[0]
            images = clothes.images if kind == "bytes" else clothes.images / np.float32(255)
            arrays = (images, clothes.labels.astype(np.int64))
        dataset = TensorDataset(*(torch.from_numpy(np.array(array)) for array in arrays))
    return lambda workers: DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers,
        persistent_workers=lasts and workers > 0,
        multiprocessing_context=start if workers else None,
    )  # fmt: skip


def maker(side: str, kind: str, folder: Path, *, lasts: bool = False) -> Make:
    """What makes a side's loaders of a kind of data."""
    if side == "Palto":
        return _palto(kind, folder)
    return _torch(kind, folder, "spawn" if side == "PyTorch, spawn" else None, lasts)


# --- A loader's life -----------------------------------------------------------------------------


def helpers() -> int:
    """Threads of this process and processes that it has started, besides what was there before."""
    return threading.active_count() - 1 + len(multiprocessing.active_children())


def main() -> None:
    """Live, and say how it went."""
    side, kind, workers, folder = *sys.argv[1:3], int(sys.argv[3]), Path(sys.argv[4])

    def say(**answer: Any) -> None:
        print(json.dumps(answer), flush=True)

    make = maker(side, kind, folder)
    before = helpers()
    say(pid=os.getpid())
    sys.stdin.readline()

    begun = time.perf_counter()
    loader = make(workers)
    batches = iter(loader)
    next(batches)
    say(first=time.perf_counter() - begun)
    for _ in batches:
        pass
    del batches
    for number, _ in enumerate(loader):
        if number == 1:
            begun = time.perf_counter()
            break
    while (left := helpers() - before) > 0 and time.perf_counter() - begun < PATIENCE:
        time.sleep(0.001)
    say(gone=time.perf_counter() - begun, left=left)

    sys.stdin.readline()
    told = False
    try:
        while True:
            for _ in loader:
                if not told:
                    say(loads=True)
                    told = True
    except KeyboardInterrupt:
        say(stopped=True)


if __name__ == "__main__":
    # A shell's background job ignores Ctrl-C, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
