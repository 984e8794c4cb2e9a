"""Whole training steps in Palto and in the other frameworks, in the same run.

    python benchmarks/training.py --workload fully_connected gpt --threads 1 2 --seconds 20

Every step is forward, backward and Adam in float32 on one batch. Each side is a process of its own
(`side.py`), on as many CPUs as it has threads; the sides take turns, with a pause before each, so
that the waiting threads of one do not tax the other. Of a framework's ways (PyTorch eager or
compiled, channels last, fused Adam; JAX step by step or in a scan; TensorFlow with XLA or without;
MLX compiled or not) the fastest goes into the table. Before anything is timed, all sides must
compute the same losses from the same weights.

After each workload and number of threads the results are written (`results.py`): the raw numbers to
docs/benchmark.json, and the tables and the picture of docs/performance.md, which are redrawn.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import results
from side import MODULES, SIDES
from workloads import MAIN, MORE, PEERS, WORKLOADS, Workload

#: Before each turn, for threads that still spin to fall asleep.
PAUSE = 0.2
#: A turn lasts about so long, and at least one step.
TURN = 0.5
#: A side whose step takes more than a second, and so many times longer than Palto's, has one turn,
#: and other ways of its framework are not tried.
SLOW = 20


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
        framework: one of `SIDES`.
        way: one of its ways.
        process: that steps.
        version: of the framework.
        losses: of the first calls; of a forward pass what it gives.
        repeats: steps in a call.
        compile: seconds that the first call took longer than later ones.
        memory: MB at the peak, above what the process held before it made the model.
        turns: seconds of the steps in each turn.
    """

    framework: str
    way: str
    process: subprocess.Popen[str]
    version: str
    losses: list[float]
    repeats: int
    compile: float
    memory: float
    turns: list[list[float]] = field(default_factory=list)

    @staticmethod
    def start(
        framework: str, way: str, workload: Workload, threads: int, folder: Path, patience: float
    ) -> Side:
        """Start a side, and wait until it has compiled what it compiles, in `folder`.

        Raises:
            LeftOutError: it failed, or took longer than `patience`.
        """
        command = [sys.executable, str(Path(__file__).with_name("side.py")), framework, way,
                   workload.name, str(threads)]  # fmt: skip
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, "PALTO_CACHE": str(folder / "palto"), "TMPDIR": str(folder)},
            )  # fmt: skip
            assert process.stdout is not None
            alarm = threading.Timer(patience, process.kill)
            alarm.start()
            try:
                line = process.stdout.readline()
            except BaseException:
                process.kill()
                raise
            late = not alarm.is_alive()
            alarm.cancel()
            if not line:
                process.wait()
                errors.seek(0)
                said = errors.read().strip().splitlines() or ["it said nothing"]
                named = [line for line in said if re.match(r"[\w.]+(Error|Exception)\b", line)]
                last = (named or said)[-1][:200]
                raise LeftOutError(f"not ready in {patience:.0f} s" if late else last)
        return Side(framework, way, process, **json.loads(line))

    def __str__(self) -> str:
        return f"{self.framework} ({self.way})"

    def turn(self, seconds: float) -> None:
        """Let it step for about so long, at least once."""
        assert self.process.stdin is not None and self.process.stdout is not None
        time.sleep(PAUSE)
        print(seconds, file=self.process.stdin, flush=True)
        self.turns.append(json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    @property
    def median(self) -> float:
        """Seconds of the middle step."""
        return statistics.median(seconds for turn in self.turns for seconds in turn)

    def summary(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "way": self.way, "median": self.median, "best": min(map(min, self.turns)),
            "medians of turns": [float(f"{statistics.median(turn):.4g}") for turn in self.turns],
            "steps": sum(map(len, self.turns)), "compile": self.compile, "memory": self.memory,
        }  # fmt: skip


def compare(workload: Workload, ours: Side, other: Side) -> None:
    """Demand the same loss from the same weights, and nearly the same after one step.

    Of a forward pass, the same outputs.
    """
    if other.repeats > 1:
        return  # it tells the last of many losses; step by step it is the same function
    if not workload.trains:
        largest = max(map(abs, ours.losses))
        error = max(abs(x - y) for x, y in zip(ours.losses, other.losses, strict=True))
        if not error <= 1e-3 * largest:
            raise RuntimeError(
                f"{workload.name}: an output differs by {error} from {other}'s, where the largest "
                f"is {largest}: they do not do the same work"
            )
        return
    for place, tolerance in ((0, 1e-4), (1, 2e-2)):
        wanted, got = ours.losses[place], other.losses[place]
        if abs(got - wanted) > tolerance * max(abs(wanted), 0.1):
            raise RuntimeError(
                f"{workload.name}: the loss of step {place + 1} is {wanted} with Palto and {got} "
                f"with {other}: they do not do the same work"
            )


def ways_of(framework: str, workload: Workload) -> list[str]:
    """The ways of a framework that a workload can have."""
    ways = list(SIDES[framework])
    if not workload.images:
        ways = [way for way in ways if "channels_last" not in way]
    if framework == "PyTorch":
        compilers = [os.environ.get("CXX"), "g++", "clang++", "c++"]
        if not any(shutil.which(name) for name in compilers if name):
            ways = [way for way in ways if "compile" not in way]
        if workload.trains:
            ways = [way for way in ways if way == "eager" or "Adam" in way]
        else:
            ways = [way for way in ways if "Adam" not in way]
    return ways


class Measurement:
    """A workload on a number of threads, each side in a folder of its own.

    Args:
        workload: what is measured.
        threads: how many.
        folder: for caches.
        patience: seconds for a side to start.
    """

    def __init__(self, workload: Workload, threads: int, folder: Path, patience: float) -> None:
        self.workload, self.threads, self.patience = workload, threads, patience
        self._folder = folder
        self.sides: list[Side] = []
        #: Of all ways that were tried: the best time of a short turn, or why there is none.
        self.tried: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        self.ours = self._palto()

    def _start(self, framework: str, way: str) -> Side:
        folder = self._folder / re.sub(r"\W+", "_", f"{framework} {way}")  # compilers go there
        folder.mkdir(exist_ok=True)
        return Side.start(framework, way, self.workload, self.threads, folder, self.patience)

    def _palto(self) -> Side:
        """Palto, started twice: with an empty cache, and with what it then holds."""
        cold = self._start("Palto", "compile")
        cold.stop()
        ours = self._start("Palto", "compile")
        self.sides.append(ours)
        self.warm = ours.compile
        ours.compile, ours.memory = cold.compile, max(cold.memory, ours.memory)
        ours.turn(TURN)
        say(f"  {ours}: {results.duration(ours.median)}")
        return ours

    def _is_slow(self, side: Side) -> bool:
        return side.median > max(SLOW * self.ours.median, 1.0)

    def add(self, framework: str) -> None:
        """The fastest way of a framework joins."""
        best: Side | None = None
        for way in ways_of(framework, self.workload):
            try:
                side = self._start(framework, way)
            except LeftOutError as error:
                say(f"  {framework} ({way}) is left out: {error}")
                self.left_out[f"{framework} ({way})"] = str(error)
                continue
            self.sides.append(side)
            compare(self.workload, self.ours, side)
            side.turn(TURN)
            self.tried[str(side)] = quick = min(side.turns[0])
            say(f"  {side}: {results.duration(quick)}, and {side.compile:.1f} s to compile")
            loser = best if best is None or quick < min(best.turns[0]) else side
            best = side if loser is best else best
            if loser is not None:
                loser.stop()
                self.sides.remove(loser)
            if self._is_slow(side):
                break

    def interleave(self, seconds: float, least: int = 3) -> None:
        """Rounds in which each side has a turn; every other round in the other order."""
        sides = [side for side in self.sides if not self._is_slow(side)]
        for side in sides:
            side.turns.clear()
        begun, rounds = time.perf_counter(), 0
        while rounds < least or time.perf_counter() - begun < seconds:
            for side in sides if rounds % 2 == 0 else sides[::-1]:
                side.turn(TURN)
            rounds += 1

    def stop(self) -> None:
        """End all processes."""
        for side in self.sides:
            side.stop()


# --- One row -------------------------------------------------------------------------------------


def fma_peak(threads: int) -> float:
    """GFLOP/s of multiply-adds in registers, as `explain()` measures them."""
    import palto
    from palto.compiler.explain import flops_peak

    palto.set_num_threads(threads)
    flops_peak.cache_clear()
    return flops_peak("float", threads)


def machine() -> str:
    """The processor, how many of its cores there are, and the system."""
    import llvmlite.binding as llvm

    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = names[0] if names else name
    count = cores()
    return f"{name} ({llvm.get_host_cpu_name()}), {count} core{'s' * (count != 1)}, " + (
        platform.system()
    )


def cores() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measure(workload: Workload, threads: int, options: argparse.Namespace) -> results.Run:
    """One row of the table: all sides of a workload on so many threads."""
    say(f"{workload.title}; {threads} thread{'s' * (threads != 1)}")
    peak = fma_peak(threads)
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(workload, threads, Path(folder), options.patience)
        try:
            for framework in options.peers:
                if framework in workload.peers:
                    measurement.add(framework)
            measurement.interleave(options.seconds)
        finally:
            measurement.stop()
    sides = {side.framework: side.summary() for side in measurement.sides}
    sides["Palto"]["warm"] = measurement.warm
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "versions": {side.framework: side.version for side in measurement.sides},
        "seconds": options.seconds,
        "flops": workload.flops,
        "peak": max(peak, fma_peak(threads)),  # whatever else the machine did at one of the times
        "sides": sides,
        "tried": measurement.tried,
        "left_out": measurement.left_out,
    }


def explain(workload: Workload, threads: int) -> None:
    """Print Palto's step of a workload."""
    from steps import PaltoStep

    import palto

    palto.set_num_threads(threads)
    print(f"\n{workload.title}; {threads} threads\n\n{PaltoStep(workload).explain()}")


def main(
    description: str = "Training steps in Palto and in its peers.",
    first: Sequence[Workload] = MAIN,
    second: Sequence[Workload] = MORE,
    peers: Sequence[str] = PEERS,
) -> None:
    """Read the options and measure.

    Args:
        description: for `--help`.
        first: the workloads of the first table.
        second: those of a second one, if there is one.
        peers: the frameworks beside Palto.
    """
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    known = [workload.name for workload in (*first, *second)]
    add("--workload", nargs="+", choices=known, help="instead of those of the first table")
    parser.set_defaults(more=False)
    if second:
        add("--more", action="store_true", help="those of the second table, too")
    add("--threads", nargs="+", type=int, default=sorted({1, cores()}))
    add("--seconds", type=float, default=20.0, help="for each row's rounds")
    add("--peers", nargs="*", choices=peers, default=list(peers))
    add("--patience", type=float, default=120.0, help="seconds for a side to start")
    add("--docs", type=Path, default=Path(__file__).parent.parent / "docs",
        help="the folder of performance.md, where results go")  # fmt: skip
    add("--dry-run", action="store_true", help="print the results, and write nothing")
    add("--redraw", action="store_true", help="tables and picture of the last results, instead")
    add("--explain", action="store_true", help="say what Palto's steps do, instead")
    options = parser.parse_args()
    if options.redraw:
        results.redraw(options.docs)
        return
    names = options.workload or [workload.name for workload in first]
    if options.more:
        names = known
    chosen = [workload for name, workload in WORKLOADS.items() if name in names]
    if options.explain:
        for workload in chosen:
            for threads in options.threads:
                explain(workload, threads)
        return
    missing = [x for x in options.peers if find_spec(MODULES[x].partition(".")[0]) is None]
    if missing:
        say(f"{' and '.join(missing)} not installed, so left out (make bench installs the peers)")
    options.peers = [name for name in options.peers if name not in missing]
    for workload in chosen:
        runs = {}
        for threads in options.threads:
            runs[str(threads)] = run = measure(workload, threads, options)
            if not options.dry_run:
                results.record(options.docs, workload.name, threads, run)
        print("\n" + "\n\n".join(results.tables({workload.name: runs}, [workload])), flush=True)


if __name__ == "__main__":
    main()
