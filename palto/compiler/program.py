"""Program: a recording made ready to run, as native code that works on the cells in place."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from sys import getrefcount
from types import MappingProxyType
from typing import Any

import numpy as np

from palto.compiler import team
from palto.compiler.executor import Runnable
from palto.compiler.explain import NativeExplanation, explain
from palto.compiler.native import Native
from palto.compiler.trace import Recording
from palto.tensor import graph
from palto.tensor.graph import Array, Spec
from palto.tensor.tensor import Cell, Tensor

#: Programs share cells, so one runs at a time in a process.
running = threading.RLock()
#: References to an array, or a leaf, that nobody but its cell holds: the cell's and our own.
ALONE = 3
#: How often a program is run to be profiled.
_LEAST_RUNS, _MOST_RUNS = 5, 200
#: In how many of these, the first, what is kept is computed; the state of the copies of cells
#: that it runs on, which is no cells' state.
_KEEPING_RUNS = 3
_PROFILED = -1


class Program(Runnable):
    """Runs a recording: reads its cells, computes, checks, writes its cells.

    Args:
        recording: what a function does.
        greatest: the greatest of each run-time size.
        keep_grad: whether gradients are wanted, too.
    """

    def __init__(
        self, recording: Recording, greatest: Mapping[str, int], *, keep_grad: bool
    ) -> None:
        self._recording = recording.without_graph()
        traced = recording.wanted(gradients=keep_grad)
        returned, written = len(recording.severed), len(recording.writes)
        arguments = len(traced.inputs) - len(recording.reads)
        places = {cell: arguments + i for i, cell in enumerate(recording.reads)}
        self._reads = recording.reads
        writes = {returned + i: places.get(cell) for i, cell in enumerate(recording.writes)}
        conditions = {returned + written + i: message for i, message in enumerate(recording.checks)}
        self._returned = returned
        self.argument_specs = [Spec(x.shape, x.dtype) for x in traced.inputs[:arguments]]
        self.greatest = greatest
        self.native = Native(
            traced, writes, conditions, [*greatest], recording.reads, recording.writes
        )
        for cell in self.native.watched:
            cell.is_watched = True
        if self.native.watched:
            graph.note_keeping()
        #: Whether it writes a cell of which some program keeps what it has computed, and when this
        #: was looked up.
        self._changes_watched, self._looked = False, -1

    def run(
        self, arguments: Sequence[Array], sizes: Mapping[str, int] = MappingProxyType({})
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `Runnable`; arguments are dense."""
        recording = self._recording
        with running:
            if self._looked != graph.keeping_count:
                self._look()
            if self._changes_watched:
                graph.note_change()
            state = graph.change_count
            outputs = self.native.call(arguments, sizes, state)
            if outputs is None:
                for cell in recording.writes:
                    _own(cell)
                inputs = [*arguments, *[cell._leaf.array() for cell in self._reads]]
                targets = [cell._leaf.array() for cell in recording.writes]
                outputs = self.native.run(inputs, targets, sizes, state)
        tensors = [Tensor(value.shape, value.dtype, value) for value in outputs]
        if len(tensors) == self._returned:
            return tensors, []
        return tensors[: self._returned], tensors[self._returned + len(recording.checks) :]

    def explain(
        self, arguments: Sequence[Array], name: str, sizes: Mapping[str, int]
    ) -> NativeExplanation:
        """See `Runnable`."""
        return explain(self, arguments, name, sizes)

    def forget_plan(self) -> None:
        """See `Runnable`."""
        self.native.forget_plan()

    def _look(self) -> None:
        """See whether it changes cells of which programs keep what they have computed."""
        self._looked = graph.keeping_count
        self._changes_watched = any(cell.is_watched for cell in self._recording.writes)

    def profile(
        self,
        arguments: Sequence[Array],
        seconds: float,
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> list[float]:
        """Run on copies of the cells, which stay as they are, at least `_LEAST_RUNS` times.

        Args:
            arguments: as in `run`.
            seconds: for about how long.
            sizes: the run-time sizes.

        Returns:
            The least seconds that each step took, and as the last of the numbers a whole run. What
            is kept is computed in the first runs, and not in those that a whole run is told of.
        """
        recording = self._recording
        with running:
            before = {c: c._leaf.array() for c in (*self._reads, *recording.writes)}
            copies = {cell: array.copy() for cell, array in before.items()}
            inputs = [np.array(x, order="C") for x in arguments]
            inputs += [copies[cell] for cell in self._reads]
            targets = [copies[cell] for cell in recording.writes]
            found: list[list[float]] = []
            end = time.perf_counter() + seconds
            first = _KEEPING_RUNS if self.native.kept else 0
            while len(found) < first + _LEAST_RUNS or (
                time.perf_counter() < end and len(found) < _MOST_RUNS
            ):
                for cell in recording.writes:  # every run begins like the first
                    np.copyto(copies[cell], before[cell])
                state = None if len(found) < first else _PROFILED
                begun = time.perf_counter()
                notes = self.native.profile(inputs, targets, sizes, state)
                whole = time.perf_counter() - begun
                found.append([*np.diff(notes) / team.cycles_per_second(), whole])
        kept, rest = (
            [float(min(times)) for times in zip(*runs, strict=True)]
            for runs in (found[: first + 1], found[first:])
        )
        return [*kept[: self.native.kept], *rest[self.native.kept :]]


def _own(cell: Cell) -> None:
    """Give a cell a copy of its value, if somebody else holds the value."""
    leaf = cell._leaf
    array: Any = leaf._value
    if (
        getrefcount(leaf) > ALONE
        or getrefcount(array) > ALONE
        or array.base is not None
        or not array.flags.writeable
    ):
        cell.store(array.copy())
