"""Programs by XLA: a recording as one function that JAX compiles, and the cells that it works on.

A cell that such a program has read or written holds a `DeviceTensor`: its value stays on the
devices between calls, and NumPy's side of it is fetched when somebody asks. What a program writes
is written over the old value (JAX's donation), unless somebody else holds that. Since the old value
is gone then, a program whose checks fail gives it back as the new one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from sys import getrefcount
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from palto.compiler.checks import Error, condition_error
from palto.compiler.executor import Runnable, dense
from palto.compiler.program import ALONE, running
from palto.compiler.trace import Recording
from palto.compiler.xla.explain import XLAExplanation, explain
from palto.compiler.xla.lowering import Lowering
from palto.compiler.xla.processes import noticing_losses
from palto.tensor.graph import Array, Spec
from palto.tensor.tensor import Cell, Tensor

#: So many functions of one program are kept, each for other run-time sizes.
MOST_SIZES = 64
#: So often a program runs to be explained; the least time counts.
_RUNS = 5


@dataclass(frozen=True, eq=False)
class Place:
    """The devices that programs run on.

    Attributes:
        copies: a copy on every device.
        parts: the first axis shared among the devices.
        count: how many devices there are.
    """

    copies: NamedSharding
    parts: NamedSharding
    count: int

    def shares(self, shape: tuple[int, ...]) -> bool:
        """Whether the devices can share the first axis."""
        return self.count > 1 and len(shape) > 0 and shape[0] % self.count == 0

    def put(self, array: Array, *, shared: bool = False) -> Any:
        """An array of this process on the devices; where it is `shared`, and can be, in parts."""
        sharding = self.parts if shared and self.shares(array.shape) else self.copies
        # A copy, since JAX may go on reading the array, or keep it as the value, after this.
        if sharding.is_fully_addressable:
            return jax.device_put(np.array(array), sharding)
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: np.array(array[index])
        )


@functools.cache
def place(devices: int, every_process: bool) -> Place:
    """So many devices of this process, or of every one.

    Raises:
        ValueError: there are not as many.
    """
    numbers = range(jax.process_count()) if every_process else [jax.process_index()]
    found = []
    for number in numbers:
        own = [device for device in jax.devices() if device.process_index == number]
        if len(own) < devices:
            raise ValueError(
                f"devices={devices}, but JAX sees {len(own)} here ({own[0].platform}). To try it "
                f"without more hardware: XLA_FLAGS=--xla_force_host_platform_device_count={devices}"
            )
        found += own[:devices]
    mesh = Mesh(np.array(found), ("batch",))
    return Place(
        NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch")),
        len(found),
    )  # fmt: skip


class DeviceTensor(Tensor):
    """A tensor whose value is on devices; NumPy's side of it is fetched when it is asked for.

    Args:
        device: the value, a JAX array.
        where: on which devices it is.
        host: the value as NumPy sees it, if it is known, not to be written to.
        requires_grad: as of any tensor.
    """

    __slots__ = ("device", "where")

    def __init__(
        self, device: Any, where: Place, host: Array | None = None, *, requires_grad: bool = False
    ) -> None:
        super().__init__(device.shape, np.dtype(device.dtype), host, requires_grad=requires_grad)
        self.device = device
        self.where = where

    @property
    def _value(self) -> Array:
        host: Array | None = _HOST.__get__(self)
        if host is None:
            with noticing_losses():
                host = np.asarray(self.device, order="C")
            _HOST.__set__(self, host)
        return host

    @_value.setter
    def _value(self, host: Array | None) -> None:
        _HOST.__set__(self, host)

    @property
    def is_fetched(self) -> bool:
        """Whether NumPy's side is here."""
        return _HOST.__get__(self) is not None


#: Where a tensor keeps its NumPy array.
_HOST: Any = vars(Tensor)["_value"]


def value_at(tensor: Tensor, where: Place) -> Any:
    """A tensor's value, on the devices if it is there already."""
    if isinstance(tensor, DeviceTensor) and tensor.where is where:
        return tensor.device
    return dense(tensor.array())


def whole(part: Tensor, where: Place, processes: int) -> DeviceTensor:
    """A batch on all devices, of which this process has a part.

    Raises:
        ValueError: the devices of this process cannot share its part.
    """
    shape = (part.shape[0] * processes, *part.shape[1:])
    if shape[0] % where.count:
        raise ValueError(
            f"{where.count} devices cannot share a batch of {shape[0]} examples; let batch_size be "
            "a multiple of the number of devices, and the loader drop_last"
        )
    with jax.enable_x64(True):
        array = jax.make_array_from_process_local_data(where.parts, np.array(part.array()), shape)
    return DeviceTensor(array, where)


def gathered(value: int) -> list[int]:
    """A number of each process."""
    with jax.enable_x64(True), noticing_losses():
        found: list[int] = process_allgather(np.int64(value)).tolist()
    return found


class Program(Runnable):
    """Runs a recording.

    Args:
        recording: what a function does.
        greatest: the greatest of each run-time size.
        where: the devices.
        keep_grad: whether gradients are wanted, too.
    """

    def __init__(
        self, recording: Recording, greatest: Mapping[str, int], where: Place, *, keep_grad: bool
    ) -> None:
        self._recording = recording
        self._where = where
        self._graph = graph = recording.wanted(gradients=keep_grad)
        arguments = len(graph.inputs) - len(recording.reads)
        self.argument_specs = [Spec(x.shape, x.dtype) for x in graph.inputs[:arguments]]
        self.greatest = greatest
        used = {id(x) for operation in graph.operations for x in operation.inputs}
        used |= {id(x) for x in graph.outputs}
        cells = zip(recording.reads, graph.inputs[arguments:], strict=True)
        written = set(map(id, recording.writes))
        #: The places among the cells read of those that the program writes, and of the others.
        needed = [(n, id(cell) in written) for n, (cell, x) in enumerate(cells) if id(x) in used]
        self._over = [n for n, is_written in needed if is_written]
        self._beside = [n for n, is_written in needed if not is_written]
        #: By the run-time sizes: JAX's compiled function, and the errors of its checks.
        self._functions: dict[Any, tuple[Any, list[Error]]] = {}

    def run(
        self, arguments: Sequence[Array], sizes: Mapping[str, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `Runnable`."""
        recording, where = self._recording, self._where
        with running, jax.enable_x64(True):
            function, errors = self._function(sizes)
            given = self._given(arguments)
            over = [self._take(recording.reads[n]) for n in self._over]
            beside = [self._look(recording.reads[n]) for n in self._beside]
            done: list[Any] = []
            try:
                with noticing_losses():  # a call that Ctrl-C cannot part from what it gave
                    done.extend(map(function, [given], [over], [beside]))
            finally:
                for results in done:
                    self._hold(results[1])
            returned, _, aside, grads, failure = done[0]
            with noticing_losses():
                failure = None if failure is None else np.asarray(failure)
            _refuse(failure, errors, sizes)
            self._hold(aside)
        return (
            [DeviceTensor(x, where) for x in returned],
            [DeviceTensor(x, where) for x in grads],
        )

    def forget_plan(self) -> None:
        """See `Runnable`. The graph stays: functions for other sizes are made of it."""

    def explain(
        self, arguments: Sequence[Array], name: str, sizes: Mapping[str, int]
    ) -> XLAExplanation:
        """See `Runnable`. All processes that share the devices call this."""
        with running, jax.enable_x64(True):
            function, errors = self._function(sizes)
            given = self._given(arguments)
            over = [self._look(self._recording.reads[n]) for n in self._over]
            beside = [self._look(self._recording.reads[n]) for n in self._beside]
            compiled = function.lower(given, over, beside).compile()

            def run_once() -> float:
                copies = jax.block_until_ready([jnp.copy(x) for x in over])
                begun = time.perf_counter()
                *_, failure = jax.block_until_ready(compiled(given, copies, beside))
                taken = time.perf_counter() - begun
                _refuse(failure, errors, sizes)
                return taken

            seconds = min(run_once() for _ in range(_RUNS))
        return explain(compiled, name, seconds, self._where.count)

    def _given(self, arguments: Sequence[Array]) -> list[Any]:
        """Arguments on the devices."""
        return [
            x if isinstance(x, jax.Array) else self._where.put(x, shared=True) for x in arguments
        ]

    def _hold(self, written: Mapping[int, Any]) -> None:
        """Let cells hold new values, each under its place among those that the program writes."""
        for place, array in written.items():
            cell = self._recording.writes[place]
            cell.hold(DeviceTensor(array, self._where, requires_grad=cell.requires_grad))

    def _take(self, cell: Cell) -> Any:
        """The value of a cell, to be written over."""
        leaf = cell._leaf
        if not isinstance(leaf, DeviceTensor) or leaf.where is not self._where:
            return self._where.put(leaf.array())
        if leaf.is_fetched or getrefcount(leaf) > ALONE:
            return jnp.copy(leaf.device)  # what somebody holds stays
        return leaf.device

    def _look(self, cell: Cell) -> Any:
        """The value of a cell that stays as it is."""
        leaf = cell._leaf
        if not isinstance(leaf, DeviceTensor) or leaf.where is not self._where:
            array = leaf.array()
            # A view: whoever would write over a cell's array sees that it is not the cell's own.
            leaf = DeviceTensor(
                self._where.put(array), self._where, array.view(), requires_grad=cell.requires_grad
            )
            cell.hold(leaf)
        return leaf.device

    def _function(self, sizes: Mapping[str, int]) -> tuple[Any, list[Error]]:
        key = tuple(sizes.items())
        found = self._functions.pop(key, None)
        if found is None:
            while len(self._functions) >= MOST_SIZES:
                del self._functions[next(iter(self._functions))]
            errors: list[Error] = []
            compute = functools.partial(self._compute, dict(sizes), errors)
            found = (
                jax.jit(compute, donate_argnums=1, out_shardings=self._where.copies), errors
            )  # fmt: skip
        self._functions[key] = found  # the latest is the last
        return found

    def _compute(
        self, sizes: dict[str, int], errors: list[Error], given: Any, over: Any, beside: Any
    ) -> Any:
        """What JAX traces.

        Returns:
            The tensors returned; of the cells written the new values, apart those whose old ones
            were given away, which are the old ones where a check has failed; the gradients; the
            first failure.
        """
        recording = self._recording
        cells: list[Any] = [None] * len(recording.reads)
        for places, values in ((self._over, over), (self._beside, beside)):
            for n, value in zip(places, values, strict=True):
                cells[n] = value
        batches = {x.shape[0] for x in given if self._where.shares(x.shape)}
        lowering = Lowering(sizes, self._where.parts, batches)
        outputs = lowering.evaluate(self._graph, [*given, *cells])
        ends = np.cumsum([len(recording.severed), len(recording.writes), len(recording.checks)])
        returned, written, conditions, grads = (
            outputs[start:end] for start, end in zip([0, *ends], [*ends, len(outputs)], strict=True)
        )
        for condition, message in zip(conditions, recording.checks, strict=True):
            lowering.demand(condition, functools.partial(condition_error, message))
        errors[:] = lowering.errors
        failure = lowering.first_failure()
        # What goes in and out as it is would be one array in two places, of which one is donated.
        inputs = {id(x) for x in (*given, *over, *beside)}
        returned, written, grads = (
            [jnp.copy(x) if id(x) in inputs else x for x in part]
            for part in (returned, written, grads)
        )
        old = {id(recording.reads[n]): value for n, value in zip(self._over, over, strict=True)}
        taken, aside = {}, {}
        for place, (cell, new) in enumerate(zip(recording.writes, written, strict=True)):
            if id(cell) not in old:
                aside[place] = new
            elif failure is None:
                taken[place] = new
            else:
                taken[place] = jnp.where(failure[0] < 0, new, old[id(cell)])
        return returned, taken, aside, grads, failure


def _refuse(failure: Any, errors: Sequence[Error], sizes: Mapping[str, int]) -> None:
    """Raise the error of the first check that has failed, if one has."""
    number, value = (-1, 0) if failure is None else np.asarray(failure).tolist()
    if number >= 0:
        raise errors[number](value, sizes)
