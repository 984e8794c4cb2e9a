"""One side of the comparison in a process of its own, that steps when it is told to.

    python benchmarks/side.py JAX jit fully_connected 2

It says in JSON what it costs to start and which losses it finds, and then, for each line with a
number of seconds on its input, how long steps took in a turn of about that length.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

#: Steps in one call where a side can have many (JAX's scan).
SCANNED = {"fully_connected": 50}
#: Steps in one call of the larger workloads.
FEW = 3

#: Seconds of a call that need not be made once more before it is timed.
LONG = 1.0

#: Of a forward pass, so many of the first results are compared.
MOST_OUTPUTS = 2000

#: A call of some steps, and how many they are.
Made = tuple[Any, int]
#: Makes that, of a workload and a number of threads.
Maker = Callable[[Any, int], Made]


def _palto(workload: Any, threads: int) -> Made:
    from steps import PaltoStep

    import palto

    palto.set_num_threads(threads)
    return PaltoStep(workload), 1


def _torch(**way: bool) -> Maker:
    def make(workload: Any, threads: int) -> Made:
        import torch
        from steps import TorchStep

        torch.set_num_threads(threads)
        return TorchStep(workload, **way), 1

    return make


def _onnx(workload: Any, threads: int) -> Made:
    from steps import OnnxStep

    return OnnxStep(workload, threads), 1


def _jax(*, scans: bool) -> Maker:
    def make(workload: Any, threads: int) -> Made:
        from functional import jax_step

        repeats = SCANNED.get(workload.name, FEW) if scans else 1
        return jax_step(workload, repeats=repeats), repeats

    return make


def _tensorflow(*, compiled: bool) -> Maker:
    def make(workload: Any, threads: int) -> Made:
        from functional import tensorflow_step

        return tensorflow_step(workload, threads, compiled=compiled), 1

    return make


def _mlx(*, compiled: bool) -> Maker:
    def make(workload: Any, threads: int) -> Made:
        import mlx.core as mx
        from functional import mlx_step

        mx.set_default_device(mx.cpu)
        return mlx_step(workload, compiled=compiled), 1

    return make


#: The module that each framework is.
MODULES = {
    "Palto": "palto", "PyTorch": "torch", "JAX": "jax", "TensorFlow": "tensorflow",
    "MLX": "mlx.core", "ONNX Runtime": "onnxruntime",
}  # fmt: skip
#: The ways of each framework.
SIDES: dict[str, dict[str, Maker]] = {
    "Palto": {"compile": _palto},
    "PyTorch": {
        "eager": _torch(),
        "fused Adam": _torch(fused=True),
        "channels_last, fused Adam": _torch(channels_last=True, fused=True),
        "compile, fused Adam": _torch(compiled=True, fused=True),
        "compile, channels_last, fused Adam": _torch(compiled=True, channels_last=True, fused=True),
        "channels_last": _torch(channels_last=True),
        "compile": _torch(compiled=True),
        "compile, channels_last": _torch(compiled=True, channels_last=True),
        "frozen TorchScript": _torch(frozen=True),
        "frozen TorchScript, channels_last": _torch(frozen=True, channels_last=True),
    },
    "ONNX Runtime": {"all optimisations": _onnx},
    "JAX": {"jit": _jax(scans=False), "scan": _jax(scans=True)},
    "TensorFlow": {
        "tf.function": _tensorflow(compiled=False),
        "tf.function, XLA": _tensorflow(compiled=True),
    },
    "MLX": {"eager": _mlx(compiled=False), "compile": _mlx(compiled=True)},
}


def peak_memory() -> float:
    """The most memory that this process ever held, in MB."""
    try:
        with open("/proc/self/status") as file:  # what getrusage says began before this program
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError):
        unit = 2**20 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Make the step, say what it costs, then take turns."""
    framework, way, name, threads = *sys.argv[1:4], int(sys.argv[4])
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print is no answer
    if hasattr(os, "sched_setaffinity"):  # the libraries make as many threads as there are CPUs
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    from workloads import WORKLOADS

    module = import_module(MODULES[framework])
    before = peak_memory()
    step, repeats = SIDES[framework][way](WORKLOADS[name], threads)
    times: list[float] = []
    losses: list[float] = []
    while len(times) < 2 or (len(times) < 3 and times[-1] < LONG):
        begun = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - begun)
    workload = WORKLOADS[name]
    if not workload.trains:
        losses = [float(x) for x in step.outputs().ravel()[:MOST_OUTPUTS]]
    answer = {
        "version": module.__version__, "losses": losses, "repeats": repeats,
        "compile": max(times[0] - min(times[1:]), 0.0), "memory": peak_memory() - before,
    }  # fmt: skip
    print(json.dumps(answer), file=say)
    for line in sys.stdin:
        gc.collect()
        if times[-1] < LONG:
            step()  # wakes the threads and fills the caches
        found: list[float] = []
        end = time.perf_counter() + float(line)
        while not found or time.perf_counter() + found[-1] * repeats < end:
            begun = time.perf_counter()
            step()
            found.append((time.perf_counter() - begun) / repeats)
        print(json.dumps(found), file=say)


if __name__ == "__main__":
    for variable in ("OPENBLAS_CORETYPE", "PALTO_THREADS"):  # slow NumPy; go before what is asked
        os.environ.pop(variable, None)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = sys.argv[4]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
