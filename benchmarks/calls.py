"""What a call of a compiled function takes beyond its program.

    python benchmarks/calls.py

Each call is timed as it is, then with a program in its place that returns at once. The shortest of
many rounds counts, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import numpy as np

import palto
from palto import nn, optim
from palto.compiler import team

ROUNDS, CALLS = 300, 50


def training_step() -> Callable[[], object]:
    """The step of a fully connected network, 27 cells."""
    model = nn.models.fully_connected(784)
    optimizer = optim.Adam(model)

    @palto.compile
    def step(images: palto.Tensor, labels: palto.Tensor) -> palto.Tensor:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    batch = np.zeros((64, 784), np.float32), np.zeros(64, np.int64)
    return lambda: step(*batch)


def inference() -> Callable[[], object]:
    """A small policy of one observation."""
    compiled = palto.compile(nn.models.fully_connected(4, (64,), 2).eval())
    observation = np.zeros((1, 4), np.float32)
    return lambda: compiled(observation)


def microseconds(call: Callable[[], object]) -> float:
    """Of one call."""
    found = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append(time.perf_counter() - begun)
    return min(found) / CALLS * 1e6


def main() -> None:
    """Measure and print."""
    palto.set_num_threads(1)
    for name, make in (("training step", training_step), ("inference", inference)):
        call = make()
        call()
        whole = microseconds(call)
        with mock.patch.object(team, "run", lambda *_: None):
            beyond = microseconds(call)
        print(f"{name}: {whole:.1f} us a call, {beyond:.1f} us of it beyond the program")


if __name__ == "__main__":
    main()
