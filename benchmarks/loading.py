"""Batches from Palto's DataLoader and from PyTorch's, in the same run.

    python benchmarks/loading.py --turns 5

Both load the same examples in shuffled batches of 64.

- Epochs: in turns in one process, each side with 0, 1 and 2 workers; of the turns the best counts,
  and of the numbers of workers the fastest. Arrays in memory and the rows of a table are given to
  PyTorch as a TensorDataset of the same arrays, and its workers last from epoch to epoch. A folder
  of JPEG files is read with Pillow on both sides, and nothing of it is kept.
- Lives: a process for each side and number of workers, PyTorch's forked and spawned. How long the
  first batch takes from when the loader is made; the most memory, workers included, beyond what
  the process had before; how long workers live on after the loop is left, and after Ctrl-C; and how
  many lines a program that catches that leaves on the terminal.
- What loading adds to a training step, and for how much of it the step waits for the loader.

The results are written to docs/benchmark.json and into docs/performance.md (`results.py`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import loading_side
import results
from training import machine, say

#: Seconds that a side's turn lasts, and at least one epoch.
TURN = 0.3

#: Lives that are measured: sides, and the numbers of workers of each.
LIVES = {"Palto": (0, 2, 4, 8), "PyTorch": (0, 2, 4, 8), "PyTorch, spawn": (2,)}
LIVING = ("floats", "photos")
#: Seconds between two looks at a life's memory.
LOOK = 0.02

# --- Epochs --------------------------------------------------------------------------------------


def turn(loader: Iterable[Any]) -> float:
    """Seconds for each batch, the median of the epochs that begin within a turn."""
    times, end = [], time.perf_counter() + TURN
    while not times or time.perf_counter() < end:
        begun, count = time.perf_counter(), 0
        for _ in loader:
            count += 1
        times.append((time.perf_counter() - begun) / count)
    return statistics.median(times)


def epochs(kind: str, folder: Path, workers: list[int], turns: int) -> dict[str, Any]:
    """The fastest number of workers of both sides, taking turns."""
    sides = ("Palto", "PyTorch")
    makers = {side: loading_side.maker(side, kind, folder, lasts=True) for side in sides}
    loaders = {(side, w): make(w) for side, make in makers.items() for w in workers}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    for _ in range(turns):
        for key, loader in loaders.items():
            times[key].append(turn(loader))
    found = {}
    for side in sides:
        seconds, fastest = min((min(times[side, w]), w) for w in workers)
        found[side] = {
            "seconds": seconds, "workers": fastest,
            "turns": {str(w): [float(f"{x:.4g}") for x in times[side, w]] for w in workers},
        }  # fmt: skip
        say(f"  {side}: {results.short(seconds)}, {fastest} workers")
    return {"title": loading_side.TITLES[kind], "sides": found}


# --- Lives ---------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and those that it has started, and they again."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for task in Path(f"/proc/{found[-1]}").glob("task/*/children"):
            with suppress(OSError):
                waiting += map(int, task.read_text().split())
    return found


def memory(pids: Iterable[int]) -> float:
    """MB of processes, what they share counted once."""
    total = 0
    for pid in pids:
        with suppress(OSError):  # it has just ended
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def lives(pid: int) -> bool:
    """Whether a process has not ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class _Watch:
    """The most memory that a process and its workers have taken, seen from outside."""

    def __init__(self, pid: int) -> None:
        self.most = 0.0
        self._pid, self._ended = pid, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(LOOK):
            self.most = max(self.most, memory(family(self._pid)))

    def stop(self) -> None:
        """Look no longer."""
        self._ended.set()
        self._thread.join()


def life(side: str, kind: str, workers: int, folder: Path) -> dict[str, float]:
    """One process that loads, leaves a loop, and is interrupted."""
    command = [sys.executable, loading_side.__file__, side, kind, str(workers), str(folder)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            answer = _live(process)
        except (OSError, ValueError) as error:
            errors.seek(0)
            said = errors.read()[-2000:]
            raise RuntimeError(f"{side}, {workers} workers, ended too soon: {said}") from error
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        errors.seek(0)
        return {**answer, "noise": len(errors.read().splitlines())}


def _live(process: subprocess.Popen[str]) -> dict[str, float]:
    """Tell a process when to go on, and listen to it."""
    assert process.stdin is not None and process.stdout is not None
    told, said = process.stdin, process.stdout

    def hear() -> dict[str, float]:
        return dict(json.loads(said.readline()))

    hear()
    before = memory([process.pid])
    watch = _Watch(process.pid)
    try:
        print(file=told, flush=True)
        answer = {**hear(), **hear()}
    finally:
        watch.stop()
    answer["memory"] = max(watch.most - before, 0.0)
    print(file=told, flush=True)
    hear()
    everybody = family(process.pid)
    begun = time.perf_counter()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    hear()
    while process.poll() is None or any(map(lives, everybody)):
        if time.perf_counter() - begun > loading_side.PATIENCE:
            break
        time.sleep(0.001)
    answer["interrupted"] = time.perf_counter() - begun
    answer["stayed"] = sum(map(lives, everybody))
    return answer


def lifetimes(kind: str, folder: Path, turns: int) -> list[dict[str, Any]]:
    """A row for each side and number of workers: the best times, and the worst of what is left."""
    rows = []
    for side, counts in LIVES.items():
        for workers in counts:
            found = [life(side, kind, workers, folder) for _ in range(turns)]
            row: dict[str, Any] = {"title": loading_side.TITLES[kind], "side": side}
            row["workers"] = workers
            for name in ("first", "gone", "interrupted"):
                row[name] = min(answer[name] for answer in found)
            for name in ("memory", "left", "stayed", "noise"):
                row[name] = max(answer[name] for answer in found)
            say(f"  {side}, {workers} workers: first batch after {results.short(row['first'])}, "
                f"{row['memory']:.0f} MB")  # fmt: skip
            rows.append(row)
    return rows


# --- What loading adds ---------------------------------------------------------------------------


def training_steps(turns: int) -> dict[str, dict[str, float]]:
    """Seconds of a fully connected step on one thread, on one batch and on loaded ones.

    And for how many of these it waits for the loader.
    """
    import palto
    from palto import data, nn, optim
    from palto.data import augment

    palto.set_num_threads(1)
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
        return data.DataLoader(dataset, loading_side.BATCH, shuffle=True, drop_last=True)

    sides = {
        "float32": (step_of(False), batches_of(clothes)),
        "bytes": (step_of(True), batches_of(clothes.as_bytes())),
    }
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for _ in range(turns + 1):  # the first one compiles
        for name, (step, loader) in sides.items():
            for loads in (False, True):
                fixed = next(iter(loader))
                begun, waited = time.perf_counter(), 0.0
                batches = iter(loader if loads else [fixed] * len(loader))
                while True:
                    asked = time.perf_counter()
                    batch = next(batches, None)
                    waited += time.perf_counter() - asked
                    if batch is None:
                        break
                    step(*batch)
                whole = time.perf_counter() - begun
                seconds = whole / len(loader), waited / len(loader)
                found.setdefault((name, loads), []).append(seconds)
    shortest = {key: min(times[1:]) for key, times in found.items()}
    return {
        name: {
            "on one batch": shortest[name, False][0],
            "loaded": shortest[name, True][0],
            "waiting": shortest[name, True][1],
        }
        for name in sides
    }


def main() -> None:
    """Measure, record and print."""
    parser = argparse.ArgumentParser(description="Loading beside PyTorch's DataLoader.")
    parser.add_argument("--turns", type=int, default=5, help="turns of each side (%(default)s)")
    parser.add_argument("--lives", type=int, default=3,
                        help="processes for each number of workers (%(default)s)")  # fmt: skip
    parser.add_argument("--kinds", nargs="+", default=list(loading_side.TITLES), metavar="KIND",
                        choices=list(loading_side.TITLES),
                        help="kinds of data, of " + ", ".join(loading_side.TITLES))  # fmt: skip
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], metavar="N",
                        help="numbers of workers in epochs (0 1 2)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print, and write nothing")
    parser.add_argument("--docs", type=Path, help="where results are written (%(default)s)",
                        default=Path(__file__).resolve().parent.parent / "docs")  # fmt: skip
    options = parser.parse_args()
    import torch

    import palto

    run: results.Run = {
        "date": datetime.date.today().isoformat(), "machine": machine(),
        "versions": {"Palto": palto.__version__, "PyTorch": torch.__version__},
        "epochs": [], "lives": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loading_side.write_files(folder, options.kinds)
        for kind in options.kinds:
            say(loading_side.TITLES[kind])
            run["epochs"].append(epochs(kind, folder, options.workers, options.turns))
        if os.path.exists("/proc/self/smaps_rollup"):
            for kind in LIVING:
                if kind in options.kinds and options.lives:
                    say(f"{loading_side.TITLES[kind]}: from the first batch to the end")
                    run["lives"] += lifetimes(kind, folder, options.lives)
    run["steps"] = training_steps(options.turns)
    if not options.dry_run:
        results.record_loading(options.docs, run)
    print("\n" + "\n\n".join(results.loading_tables(run)))


if __name__ == "__main__":
    main()
