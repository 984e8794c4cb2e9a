"""Whole training steps in Palto and in PyTorch, in the same run.

    python benchmarks/training.py --workload fully_connected gpt --threads 1 2 --seconds 20

Every step is forward, backward and Adam in float32 on one batch. PyTorch runs in the fastest of
its ways: eager or torch.compile, channels_last, fused Adam. The sides take turns, with a pause
before each, so that the waiting threads of one do not tax the other. Before anything is timed,
both sides must compute the same losses from the same weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

os.environ.pop("OPENBLAS_CORETYPE", None)  # before NumPy is imported
os.environ.pop("PALTO_THREADS", None)  # goes before palto.set_num_threads

import numpy as np
from workloads import WORKLOADS, PaltoStep, TorchStep, Workload, weights_of

import palto

#: Before each turn, for threads that still spin to fall asleep.
PAUSE = 0.2
#: A turn lasts about so long, and at least one step.
TURN = 0.5


def set_threads(count: int, torch: Any = None) -> None:
    """Both sides' threads from now on."""
    palto.set_num_threads(count)
    if torch is not None:
        torch.set_num_threads(count)


def fma_peak(threads: int) -> float:
    """GFLOP/s that this machine reaches: the best of some large multiplications of matrices."""
    try:
        import torch
    except ImportError:
        a = np.ones((1024, 1024), np.float32)
        multiply: Callable[[], Any] = lambda: a @ a  # noqa: E731
    else:
        torch.set_num_threads(threads)
        b = torch.ones(1024, 1024)
        multiply = lambda: b @ b  # noqa: E731
    best = float("inf")
    end = time.perf_counter() + 0.7
    while time.perf_counter() < end:
        begun = time.perf_counter()
        multiply()
        best = min(best, time.perf_counter() - begun)
    return 2 * 1024**3 / best / 1e9


# --- Timing --------------------------------------------------------------------------------------


@dataclass
class Side:
    """A step and the seconds that each run of it took."""

    step: Callable[[], float]
    name: str
    times: list[float] = field(default_factory=list)

    def turn(self, seconds: float) -> None:
        """Run it for about so long, at least once."""
        gc.collect()
        time.sleep(PAUSE)
        self.step()  # wakes the threads and fills the caches
        end = time.perf_counter() + seconds
        while True:
            begun = time.perf_counter()
            self.step()
            done = time.perf_counter()
            self.times.append(done - begun)
            if done + self.times[-1] > end:
                return

    @property
    def median(self) -> float:
        """Seconds of the middle step."""
        return statistics.median(self.times)


def interleave(sides: list[Side], seconds: float, least: int = 3) -> None:
    """Rounds in which each side has a turn; every other round in the other order."""
    begun, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - begun < seconds:
        for side in sides if rounds % 2 == 0 else sides[::-1]:
            side.turn(TURN)
        rounds += 1
        slowest = max(side.times[-1] for side in sides)
        if slowest > 5 and time.perf_counter() - begun > seconds:
            return  # slow steps: as many rounds as fit


# --- PyTorch's ways ------------------------------------------------------------------------------


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """TimeoutError after so many seconds."""

    def ring(signal_number: int, frame: Any) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compiler_is_missing() -> str | None:
    """Why torch.compile cannot be used; None if it can."""
    named = os.environ.get("CXX")
    if any(shutil.which(name) for name in filter(None, (named, "g++", "clang++", "c++"))):
        return None
    return "no C++ compiler was found (g++, clang++ or CXX)"


def fastest_torch(
    torch: Any, workload: Workload, weights: dict[str, np.ndarray], wanted: list[float], box: float
) -> tuple[Side, float | None]:
    """PyTorch's fastest way, and how long torch.compile took."""
    ways = [{"channels_last": last} for last in ([False, True] if workload.images else [False])]
    ways = [{**way, "fused": fused} for way in ways for fused in (False, True)]
    reason = compiler_is_missing()
    if reason is None:
        ways += [{**way, "compiled": True} for way in ways if way["fused"]]
    else:
        say(f"  torch.compile is left out: {reason}")
    found: list[Side] = []
    compile_seconds = None
    for way in ways:
        is_compiled = way.get("compiled", False)
        try:
            with time_box(box if is_compiled else 600):
                step = TorchStep(torch, workload, weights, **way)
                begun = time.perf_counter()
                first = step()
                if is_compiled:
                    compile_seconds = time.perf_counter() - begun
                compare(workload, wanted, [first, step()], step.name)
        except AssertionError:
            raise
        except Exception as error:  # whatever torch.compile stumbles over
            if not is_compiled:
                raise
            say(f"  {step.name} is left out: {type(error).__name__}: {str(error)[:200]}")
            torch.compiler.reset()
            continue
        side = Side(step, step.name)
        for _ in range(2):
            side.turn(TURN / 2)
        say(f"  {side.name}: {1000 * min(side.times):.2f} ms")
        found.append(side)
    best = min(found, key=lambda side: min(side.times))
    best.times.clear()
    return best, compile_seconds


def compare(workload: Workload, wanted: list[float], got: list[float], name: str) -> None:
    """Demand the same loss from the same weights, and nearly the same after one step."""
    for place, tolerance in ((0, 1e-4), (1, 2e-2)):
        difference = abs(got[place] - wanted[place])
        assert difference <= tolerance * max(abs(wanted[place]), 0.1), (
            f"{workload.name}: the loss of step {place + 1} is {wanted[place]} with Palto and "
            f"{got[place]} with {name}: they do not do the same work"
        )


# --- Compile time and memory, in processes of their own ------------------------------------------


@dataclass
class Costs:
    """What a side costs besides time for steps.

    Attributes:
        cold: seconds of the first step in a new process, less those of a later step.
        warm: of the first step of another program like it.
        memory: MB at the peak, above what the process held before the model.
    """

    cold: float
    warm: float
    memory: float


def costs(workload: Workload, side: str, threads: int) -> Costs:
    """Measure a side alone, in a new process."""
    command = [sys.executable, __file__, "--alone", side, "--workload", workload.name,
               "--threads", str(threads)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return Costs(**json.loads(result.stdout.splitlines()[-1]))


def peak_memory() -> float:
    """The most memory that this process ever held, in MB."""
    try:
        with open("/proc/self/status") as file:  # what getrusage says began before this program
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError):
        unit = 2**20 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def alone(workload: Workload, side: str, threads: int) -> None:
    """In the new process: print the costs."""
    torch: Any = None
    if side != "palto":
        import torch
    set_threads(threads, torch)
    weights = weights_of(workload) if torch is not None else {}

    def make() -> Callable[[], float]:
        if torch is None:
            return PaltoStep(workload)
        return TorchStep(torch, workload, weights, fused=True)

    before = peak_memory()
    seconds = []
    memory = 0.0
    for number in range(2):
        step = make()
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            step()
            times.append(time.perf_counter() - begun)
        seconds.append(max(times[0] - min(times[1:]), 0.0))
        if number == 0:
            memory = peak_memory() - before
        del step
        gc.collect()
    print(json.dumps({"cold": seconds[0], "warm": seconds[1], "memory": memory}))


# --- The table -----------------------------------------------------------------------------------


def say(message: str) -> None:
    """To the person who waits, not into the table."""
    print(message, file=sys.stderr, flush=True)


HEADINGS = (
    "threads", "side", "ms median", "ms best", "ratio", "GFLOP/s", "of peak",
    "compile cold/warm", "peak memory",
)  # fmt: skip


def row(
    side: Side, threads: int, fastest: float, workload: Workload, peak: float, costs: Costs | None
) -> list[str]:
    """One line of the table; the ratio is to the fastest peer's median."""
    rate = workload.flops / side.median / 1e9
    return [
        str(threads), side.name, f"{1000 * side.median:.2f}", f"{1000 * min(side.times):.2f}",
        f"{side.median / fastest:.2f}", f"{rate:.1f}", f"{100 * rate / peak:.0f} %",
        f"{costs.cold:.2f} / {costs.warm:.2f} s".replace("nan", "-") if costs else "",
        f"{costs.memory:.0f} MB" if costs else "",
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


def measure(workload: Workload, options: argparse.Namespace, torch: Any) -> None:
    """All thread counts of one workload, and its table."""
    rows = []
    for threads in options.threads:
        say(f"{workload.title}; {threads} threads")
        set_threads(threads, torch)
        peak = fma_peak(threads)
        ours = PaltoStep(workload)
        wanted = [ours(), ours()]
        sides = [Side(ours, ours.name)]
        if torch is not None:
            weights = weights_of(workload)
            best, seconds = fastest_torch(torch, workload, weights, wanted, options.compile_seconds)
            sides.append(best)
            if seconds is not None:
                say(f"  torch.compile took {seconds:.1f} s")
        interleave(sides, options.seconds)
        peak = max(peak, fma_peak(threads))  # whatever else the machine did at one of the times
        fastest = min(side.median for side in sides[1:] or sides)
        measured = {}
        if not options.no_costs:
            measured[ours.name] = costs(workload, "palto", threads)
            if torch is not None:
                theirs = measured[sides[-1].name] = costs(workload, "torch", threads)
                if "compile" in sides[-1].name and seconds is not None:
                    theirs.cold, theirs.warm = seconds, float("nan")  # its memory is eager mode's
        rows += [
            row(side, threads, fastest, workload, peak, measured.get(side.name)) for side in sides
        ]
        del ours, sides
        if torch is not None:
            torch.compiler.reset()
        gc.collect()
    print_table(f"{workload.title} ({workload.flops / 1e9:.2f} GFLOP a step)", rows)


def main() -> None:
    """Read the options and measure."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description="Training steps in Palto and in PyTorch.")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, cores}))
    parser.add_argument("--seconds", type=float, default=15.0, help="for each table line's rounds")
    parser.add_argument("--peers", nargs="*", choices=["torch"], default=["torch"])
    parser.add_argument("--compile-seconds", type=float, default=180.0, help="for torch.compile")
    parser.add_argument("--no-costs", action="store_true", help="no compile time, no memory")
    parser.add_argument("--alone", choices=["palto", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(WORKLOADS[options.workload[0]], options.alone, options.threads[0])
        return
    torch: Any = None
    if options.peers:
        try:
            import torch
        except ImportError:
            say("PyTorch is not installed: Palto alone (make bench installs it)")
    for name in options.workload:
        measure(WORKLOADS[name], options, torch)


if __name__ == "__main__":
    main()
