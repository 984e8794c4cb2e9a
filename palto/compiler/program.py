"""Program: a recording made ready to run, as native code that works on the cells in place."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import numpy as np

from palto.compiler.native import Native
from palto.compiler.trace import Recording
from palto.tensor.graph import Array, Graph
from palto.tensor.tensor import Cell

#: Programs share cells, so one runs at a time in a process.
_running = threading.RLock()
#: References to an array, or a leaf, that nobody but its cell holds: the cell's and our own.
_ALONE = 3


class Program:
    """Runs a recording: reads its cells, computes, checks, writes its cells.

    Args:
        recording: what a function does.
        keep_grad: whether gradients are wanted, too.
    """

    def __init__(self, recording: Recording, *, keep_grad: bool) -> None:
        self._recording = recording
        graph = recording.graph
        returned, written = len(recording.severed), len(recording.writes)
        checked = len(recording.checks)
        kept = len(graph.outputs) if keep_grad else returned + written + checked
        graph = Graph(graph.inputs, graph.operations, graph.outputs[:kept], graph.tensors)
        arguments = len(graph.inputs) - len(recording.reads)
        places = {cell: arguments + i for i, cell in enumerate(recording.reads)}
        self._reads = recording.reads
        self._only_written = [cell for cell in recording.writes if cell not in places]
        writes = {returned + i: places.get(cell) for i, cell in enumerate(recording.writes)}
        conditions = {
            returned + written + i: message for i, message in enumerate(recording.checks)
        }
        self._returned = returned
        self.native = Native(graph, writes, conditions)

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
            for cell in recording.writes:
                _own(cell)
            inputs = [np.ascontiguousarray(x).reshape(x.shape) for x in arguments]
            inputs += [cell._leaf.array() for cell in self._reads]
            targets = [cell._leaf.array() for cell in recording.writes]
            outputs = self.native.run(inputs, targets)
            for cell in recording.writes:
                cell.version += 1
        checks = len(recording.checks)
        return outputs[: self._returned], outputs[self._returned + checks :]


def _own(cell: Cell) -> None:
    """Give a cell an array of its own where somebody else holds its value."""
    leaf = cell._leaf
    array = leaf._value
    assert array is not None
    if (
        sys.getrefcount(leaf) > _ALONE
        or sys.getrefcount(array) > _ALONE
        or array.base is not None
        or not array.flags.writeable
    ):
        del leaf
        version = cell.version
        cell.store(array.copy())
        cell.version = version
