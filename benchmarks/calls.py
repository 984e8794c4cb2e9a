"""What a call of a compiled function takes beyond its program.

    python benchmarks/calls.py

Each call is timed as it is, then with a program in its place that returns at once, which all of its
threads run. The shortest hundredth of many calls is left out, and the shortest other one counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

import palto
from palto import nn, optim
from palto.compiler.llvm import machine

NOTHING = "define void @nothing(ptr %table, ptr %sync, i64 %thread, i64 %threads) { ret void }"


def training_step() -> tuple[Any, tuple[Any, ...]]:
    """The step of a fully connected network, 27 cells."""
    model = nn.models.fully_connected(784)
    optimizer = optim.Adam(model)

    @palto.compile
    def step(images: palto.Tensor, labels: palto.Tensor) -> palto.Tensor:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step, (np.zeros((64, 784), np.float32), np.zeros(64, np.int64))


def inference() -> tuple[Any, tuple[Any, ...]]:
    """A small policy of one observation."""
    compiled = palto.compile(nn.models.fully_connected(4, (64,), 2).eval())
    return compiled, (np.zeros((1, 4), np.float32),)


def microseconds(call: Callable[[], object], seconds: float) -> float:
    """Of one call, made for some seconds: what one in a hundred is shorter than."""
    found = []
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        call()
        found.append(time.perf_counter() - begun)
    return sorted(found)[len(found) // 100] * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers (1 2)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of calls, each (%(default)s)")
    options = parser.parse_args()
    code = machine.load(NOTHING)
    for name, make in (("training step", training_step), ("inference", inference)):
        function, arguments = make()
        call = partial(function, *arguments)
        call()
        native = function._latest.program.native
        for threads in options.threads:
            palto.set_num_threads(threads)
            whole = microseconds(call, options.seconds)
            with mock.patch.object(native, "_functions", [code.address("nothing")]):
                beyond = microseconds(call, options.seconds)
            is_serial = native._is_serial[0]
            print(
                f"{name}, {threads} threads: {whole:.1f} us a call, {beyond:.1f} us of it beyond "
                f"the program{', which runs on one' if is_serial else ''}"
            )


if __name__ == "__main__":
    main()
