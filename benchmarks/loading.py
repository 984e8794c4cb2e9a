"""Batches from Palto's DataLoader and from PyTorch's, in the same run.

    python benchmarks/loading.py --turns 5

Both load the same examples in shuffled batches of 64, whole epochs in turns, each with 0, 1 and 2
workers; of the turns the best counts, and of the numbers of workers the fastest. Arrays in memory
and the rows of a table are given to PyTorch as a TensorDataset of the same arrays. A folder of JPEG
files is read with Pillow on both sides, and nothing of it is kept. Then: how long a loader takes
from when it is made to its first batch, what memory that takes, its workers' processes included,
and what loading adds to a training step.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import palto
from palto import data, nn, optim
from palto.data import augment

BATCH = 64
WORKERS = (0, 1, 2)
PHOTOS, HEIGHT, WIDTH = 256, 375, 500
ROWS = 50_000
#: Seconds that a side's turn lasts, and at least one epoch.
TURN = 0.3

#: Makes a loader with so many workers.
Make = Callable[[int], Iterable[Any]]


# --- What is loaded ------------------------------------------------------------------------------


def palto_side(dataset: data.Dataset) -> Make:
    """Palto's loader."""
    return lambda workers: data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)


def torch_side(dataset: Dataset[Any]) -> Make:
    """PyTorch's loader, whose workers last from epoch to epoch."""
    return lambda workers: DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )


def arrays(*parts: np.ndarray) -> Make:
    """PyTorch's loader of arrays in memory."""
    return torch_side(TensorDataset(*(torch.from_numpy(np.array(part)) for part in parts)))


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
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        image = np.full((HEIGHT, WIDTH, 3), 128.0, np.float32)
        for columns, contrast in ((8, 60), (32, 25), (128, 12), (WIDTH, 6)):
            noise = rng.normal(0, contrast, (columns * HEIGHT // WIDTH, columns, 3))
            for channel in range(3):
                layer = Image.fromarray(noise[..., channel].astype(np.float32))
                image[..., channel] += np.asarray(layer.resize((WIDTH, HEIGHT)))
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=90)


class Folder(Dataset[Any]):
    """Images by class, as torchvision's ImageFolder gives them: Resize, CenterCrop, ToTensor."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = sorted(folder.glob("*/*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with open(self.paths[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        scale = self.size / min(image.size)
        sides = round(image.width * scale), round(image.height * scale)
        image = image.resize(sides, Image.Resampling.BILINEAR)
        left, top = (sides[0] - self.size) // 2, (sides[1] - self.size) // 2
        image = image.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.float().div(255), int(self.paths[index].parent.name == "b")


def kinds(folder: Path) -> dict[str, tuple[Make, Make]]:
    """Palto's and PyTorch's loader for each kind of data."""
    clothes, _ = data.fashion_mnist()
    labels = clothes.labels.astype(np.int64)
    (folder / "photos").mkdir()
    write_table(folder / "table.csv")
    write_photos(folder / "photos")
    table, _ = data.csv_table(folder / "table.csv", target="class")
    found = {
        "Fashion-MNIST, bytes": (
            palto_side(clothes.as_bytes()),
            arrays(clothes.images, labels),
        ),
        "Fashion-MNIST, float32": (
            palto_side(clothes),
            arrays(clothes.images / np.float32(255), labels),
        ),
        f"table, {ROWS:,} x {len(table.columns)} features": (
            palto_side(table),
            arrays(*table.arrays),
        ),
    }
    for size in (64, 224):
        photos, _ = data.image_folder(folder / "photos", size=size, cache_bytes=0)
        found[f"JPEG files {WIDTH} x {HEIGHT} to {size} x {size}"] = (
            palto_side(photos),
            torch_side(Folder(folder / "photos", size)),
        )
    return found


# --- Measuring -----------------------------------------------------------------------------------


def turn(loader: Iterable[Any]) -> float:
    """Seconds for each batch, the median of the epochs that begin within a turn."""
    times, end = [], time.perf_counter() + TURN
    while not times or time.perf_counter() < end:
        begun, count = time.perf_counter(), 0
        for _ in loader:
            count += 1
        times.append((time.perf_counter() - begun) / count)
    return statistics.median(times)


def memory() -> float:
    """MB of this process and of those that it has started, what they share counted once."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        process = Path(f"/proc/{waiting.pop()}")
        with suppress(OSError):  # it has just ended
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        for task in process.glob("task/*/children"):
            with suppress(OSError):
                waiting += map(int, task.read_text().split())
    return total / 1024


def start(make: Make, workers: int) -> tuple[float, float]:
    """Seconds to the first batch, and MB that the loader takes then."""
    gc.collect()
    before, begun = memory(), time.perf_counter()
    batches = iter(make(workers))
    next(batches)
    seconds = time.perf_counter() - begun
    return seconds, memory() - before


def shown(seconds: float) -> str:
    """A time in the unit that suits it."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def table_row(*cells: object) -> None:
    """One line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def heading(*cells: str) -> None:
    """The head of a table."""
    print()
    table_row(*cells)
    table_row(*("---" for _ in cells))


def compare_epochs(kind: str, sides: tuple[Make, Make], turns: int) -> None:
    """One line: the fastest number of workers of both sides, taking turns."""
    loaders = {(side, w): make(w) for side, make in enumerate(sides) for w in WORKERS}
    times: dict[tuple[int, int], list[float]] = {key: [] for key in loaders}
    for _ in range(turns):
        for key, loader in loaders.items():
            times[key].append(turn(loader))
    best = [min((min(times[side, w]), w) for w in WORKERS) for side in (0, 1)]
    cells = [f"{shown(seconds)}, {w} workers" for seconds, w in best]
    table_row(kind, *cells, f"{best[1][0] / best[0][0]:.1f}")


def compare_starts(kind: str, sides: tuple[Make, Make], turns: int) -> None:
    """A line for each number of workers."""
    for workers in WORKERS:
        found = [[start(make, workers) for make in sides] for _ in range(turns)]
        seconds = [min(pair[side][0] for pair in found) for side in (0, 1)]
        taken = [min(pair[side][1] for pair in found) for side in (0, 1)]
        table_row(
            kind, workers, *map(shown, seconds),
            f"{seconds[1] / seconds[0]:.1f}", *(f"{max(x, 0):.0f} MB" for x in taken),
        )  # fmt: skip


def training_steps(turns: int) -> None:
    """What loading adds to a fully connected step on one thread."""
    clothes, _ = data.fashion_mnist()

    def step_of(convert: bool) -> Callable[..., palto.Tensor]:
        model = nn.models.fully_connected(784, (128,), 10)
        optimizer = optim.Adam(model, lr=1e-3)

        @palto.compile
        def step(images: palto.Tensor, labels: palto.Tensor) -> palto.Tensor:
            if convert:
                images = augment.convert_image_dtype(images)
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss

        return step

    def batches_of(dataset: data.Dataset) -> data.DataLoader:
        return data.DataLoader(dataset, BATCH, shuffle=True, drop_last=True)

    sides = {
        "float32": (step_of(False), batches_of(clothes)),
        "bytes": (step_of(True), batches_of(clothes.as_bytes())),
    }
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(turns + 1):  # the first one compiles
        for name, (step, loader) in sides.items():
            for loads in (False, True):
                fixed = next(iter(loader))
                begun = time.perf_counter()
                for batch in loader if loads else [fixed] * len(loader):
                    step(*batch)
                seconds = (time.perf_counter() - begun) / len(loader)
                found.setdefault((name, loads), []).append(seconds)
    for name in sides:
        fixed, loaded = (min(found[name, loads][1:]) * 1e6 for loads in (False, True))
        table_row(name, f"{fixed:.0f} us", f"{loaded:.0f} us")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Loading beside PyTorch's DataLoader.")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side (%(default)s)")
    turns = parser.parse_args().turns
    torch.set_num_threads(1)  # more threads gain nothing on one batch, and spin
    with tempfile.TemporaryDirectory() as folder:
        found = kinds(Path(folder))
        heading("batches of 64", "Palto", "PyTorch", "PyTorch / Palto")
        for kind, sides in found.items():
            compare_epochs(kind, sides, turns)
        if os.path.exists("/proc/self/smaps_rollup"):
            heading("first batch of", "workers", "Palto", "PyTorch", "PyTorch / Palto",
                    "memory: Palto", "PyTorch")  # fmt: skip
            for kind in list(found)[::2]:
                compare_starts(kind, found[kind], turns)
    palto.set_num_threads(1)
    heading("fully connected step, 1 thread", "on one batch", "on loaded batches")
    training_steps(turns)


if __name__ == "__main__":
    main()
