"""Whole training steps in Palto and in the other frameworks, in the same run.

    python benchmarks/training.py --workload fully_connected gpt --threads 1 2 --seconds 20

Every step is forward, backward and Adam in float32 on one batch. Each side is a process of its own
(`side.py`), on as many CPUs as it has threads; the sides take turns, with a pause before each, so
that the waiting threads of one do not tax the other. Of a framework's ways (PyTorch eager or
compiled, channels last, fused Adam; JAX step by step or in a scan; TensorFlow with XLA or without)
the fastest goes into the table. Before anything is timed, all sides must compute the same losses
from the same weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from side import MODULES, SIDES
from workloads import WORKLOADS, Workload

#: Before each turn, for threads that still spin to fall asleep.
PAUSE = 0.2
#: A turn lasts about so long, and at least one step.
TURN = 0.5
PEERS = ("PyTorch", "JAX", "TensorFlow")


def say(message: str) -> None:
    """To the person who waits, not into the table."""
    print(message, file=sys.stderr, flush=True)


# --- Sides ---------------------------------------------------------------------------------------


class LeftOutError(RuntimeError):
    """A side cannot take part here."""


@dataclass
class Side:
    """A side's process and what it has said.

    Attributes:
        name: one of `SIDES`.
        losses: of the first calls.
        repeats: steps in a call.
        seconds: of a step, the first time.
        compile: seconds that the first call took longer.
        memory: MB at the peak, above what the process held before it made the model.
        times: seconds of the steps in its turns.
        warm: `compile` in a second process.
    """

    name: str
    process: subprocess.Popen[str]
    losses: list[float]
    repeats: int
    seconds: float
    compile: float
    memory: float
    times: list[float] = field(default_factory=list)
    warm: float | None = None

    @staticmethod
    def start(name: str, workload: Workload, threads: int, cache: Path, patience: float) -> Side:
        """Start a side, and wait until it has compiled what it compiles.

        Raises:
            LeftOutError: it failed, or took longer than `patience`.
        """
        command = [sys.executable, str(Path(__file__).with_name("side.py")), name,
                   workload.name, str(threads)]  # fmt: skip
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, "PALTO_CACHE": str(cache)},
            )  # fmt: skip
            assert process.stdout is not None
            alarm = threading.Timer(patience, process.kill)
            alarm.start()
            line = process.stdout.readline()
            alarm.cancel()
            if not line:
                process.wait()
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
                raise LeftOutError(last[:200])
        return Side(name, process, **json.loads(line))

    def turn(self, seconds: float) -> None:
        """Let it step for about so long, at least once."""
        assert self.process.stdin is not None and self.process.stdout is not None
        time.sleep(PAUSE)
        print(seconds, file=self.process.stdin, flush=True)
        self.times += json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    @property
    def median(self) -> float:
        """Seconds of the middle step."""
        return statistics.median(self.times)


def compare(workload: Workload, ours: Side, other: Side) -> None:
    """Demand the same loss from the same weights, and nearly the same after one step."""
    if other.repeats > 1:
        return  # it tells the last of many losses; step by step it is the same function
    for place, tolerance in ((0, 1e-4), (1, 2e-2)):
        wanted, got = ours.losses[place], other.losses[place]
        if abs(got - wanted) > tolerance * max(abs(wanted), 0.1):
            raise RuntimeError(
                f"{workload.name}: the loss of step {place + 1} is {wanted} with Palto and {got} "
                f"with {other.name}: they do not do the same work"
            )


def ways_of(framework: str, workload: Workload) -> list[str]:
    """The sides of a framework that a workload can have."""
    names = [name for name in SIDES if name.startswith(framework)]
    if not workload.images:
        names = [name for name in names if "channels_last" not in name]
    compilers = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in compilers if name):
        names = [name for name in names if "compile" not in name]
    return names


def fastest(
    framework: str, workload: Workload, ours: Side, threads: int, cache: Path, patience: float
) -> Side | None:
    """The fastest way of a framework, running."""
    best: Side | None = None
    for name in ways_of(framework, workload):
        try:
            side = Side.start(name, workload, threads, cache, patience)
        except LeftOutError as error:
            say(f"  {name} is left out: {error}")
            continue
        compare(workload, ours, side)
        side.turn(TURN)
        quick = min(side.times)
        side.times.clear()
        say(f"  {name}: {1000 * quick:.2f} ms, and {side.compile:.1f} s to compile")
        side.seconds = quick
        if best is not None and best.seconds <= quick:
            side.stop()
            continue
        if best is not None:
            best.stop()
        best = side
    return best


def interleave(sides: list[Side], seconds: float, least: int = 3) -> None:
    """Rounds in which each side has a turn; every other round in the other order."""
    begun, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - begun < seconds:
        for side in sides if rounds % 2 == 0 else sides[::-1]:
            side.turn(TURN)
        rounds += 1


# --- The table -----------------------------------------------------------------------------------

HEADINGS = (
    "threads", "side", "ms median", "ms best", "times Palto", "GFLOP/s", "of peak",
    "compile cold/warm", "peak memory",
)  # fmt: skip


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def row(side: Side, threads: int, ours: Side, workload: Workload, peak: float) -> list[str]:
    """One line of the table."""
    rate = workload.flops / side.median / 1e9
    warm = "" if side.warm is None else f" / {side.warm:.2f}"
    return [
        str(threads), side.name, _milliseconds(side.median), _milliseconds(min(side.times)),
        f"{side.median / ours.median:.2f}", f"{rate:.1f}", f"{100 * rate / peak:.0f} %",
        f"{side.compile:.2f}{warm} s", f"{side.memory:.0f} MB",
    ]  # fmt: skip


def print_table(title: str, rows: list[list[str]]) -> None:
    """In Markdown."""
    widths = [max(len(line[i]) for line in [list(HEADINGS), *rows]) for i in range(len(HEADINGS))]
    print(f"\n{title}\n")
    for number, line in enumerate([list(HEADINGS), *rows]):
        cells = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        print(f"| {' | '.join(cells)} |")
        if number == 0:
            print(f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    sys.stdout.flush()


def fma_peak(threads: int) -> float:
    """GFLOP/s of multiply-adds in registers, as `explain()` measures them."""
    import palto
    from palto.compiler.explain import flops_peak

    palto.set_num_threads(threads)
    flops_peak.cache_clear()
    return flops_peak("float", threads)


def measure(workload: Workload, options: argparse.Namespace) -> None:
    """All thread counts of one workload, and its table."""
    rows = []
    for threads in options.threads:
        say(f"{workload.title}; {threads} threads")
        peak = fma_peak(threads)
        sides: list[Side] = []
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            try:
                cold = Side.start("Palto", workload, threads, cache, options.patience)
                cold.stop()
                ours = Side.start("Palto", workload, threads, cache, options.patience)
                ours.warm, ours.compile = ours.compile, cold.compile
                sides.append(ours)
                for framework in options.peers:
                    found = fastest(framework, workload, ours, threads, cache, options.patience)
                    sides += [] if found is None else [found]
                interleave(sides, options.seconds)
            finally:
                for side in sides:
                    side.stop()
        peak = max(peak, fma_peak(threads))  # whatever else the machine did at one of the times
        rows += [row(side, threads, ours, workload, peak) for side in sides]
    print_table(f"{workload.title} ({workload.flops / 1e9:.2f} GFLOP a step)", rows)


def explain(workload: Workload, thread_counts: list[int]) -> None:
    """Print Palto's steps of a workload."""
    from workloads import PaltoStep

    import palto

    for threads in thread_counts:
        palto.set_num_threads(threads)
        print(f"\n{workload.title}; {threads} threads\n\n{PaltoStep(workload).explain()}")


def main() -> None:
    """Read the options and measure."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description="Training steps in Palto and in its peers.")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores or 1}))
    parser.add_argument("--seconds", type=float, default=20.0, help="for each table's rounds")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--explain", action="store_true", help="say what Palto's steps do, instead")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for a side to start")
    options = parser.parse_args()
    if options.explain:
        for name in options.workload:
            explain(WORKLOADS[name], options.threads)
        return
    missing = [name for name in options.peers if find_spec(MODULES[name]) is None]
    if missing:
        say(f"{' and '.join(missing)} not installed, so left out (make bench installs the peers)")
    options.peers = [name for name in options.peers if name not in missing]
    for name in options.workload:
        measure(WORKLOADS[name], options)


if __name__ == "__main__":
    main()
