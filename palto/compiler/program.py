"""Program: a recording made ready to run. This one runs the graph with NumPy."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from palto.compiler.simplify import simplify
from palto.compiler.trace import Recording
from palto.tensor.graph import Array

#: Programs share cells, so one runs at a time in a process.
_running = threading.RLock()


class Program:
    """Runs a recording: reads its cells, computes, checks, writes its cells.

    Args:
        recording: what a function does.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._graph = simplify(recording.graph, inline=True)

    def run(self, arguments: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Run once.

        Args:
            arguments: the argument tensors' values. They are not written to or kept.

        Returns:
            The values of the tensors returned, and the gradients of `Recording.grads`.

        Raises:
            IndexError, FloatingPointError: an index or a check failed; every cell is as before.
        """
        recording = self._recording
        with _running:
            inputs = [*arguments, *(cell.read().array() for cell in recording.reads)]
            values = list(self._graph.evaluate(*inputs))
            for place, value in enumerate(values):
                # The caller may write into its arrays; what is kept or returned must not change.
                if any(np.may_share_memory(value, argument) for argument in arguments):
                    values[place] = value.copy()
            count = len(recording.severed)
            returned, rest = values[:count], values[count:]
            writes, rest = rest[: len(recording.writes)], rest[len(recording.writes) :]
            checks, grads = rest[: len(recording.checks)], rest[len(recording.checks) :]
            for condition, message in zip(checks, recording.checks, strict=True):
                if not condition:
                    raise FloatingPointError(message)
            for cell, value in zip(recording.writes, writes, strict=True):
                cell.store(value)
        return returned, grads
