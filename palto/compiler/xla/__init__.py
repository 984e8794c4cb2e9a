"""The XLA executor: the same graphs, run by JAX's compiler on the CPU, a GPU or a TPU.

Primitives are lowered one by one by a table (`rows.py`) whose keys are those of Palto's table; JAX
is imported when the first program is made.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from palto.compiler.executor import Executor, Runnable
from palto.compiler.trace import Recording
from palto.extras import require
from palto.tensor.graph import Array
from palto.tensor.tensor import Tensor


class XLA(Executor):
    """Programs by XLA.

    Args:
        devices: on how many devices a program runs. The first axis of each argument is shared among
            them where its length is a multiple of their number; cells are on every one. Results are
            those of one device, up to rounding.
        every_process: whether the devices are so many of each process that `join` has brought
            together. Every process then calls every program.

    Raises:
        ValueError: fewer than one device; when the first program is made, there are not as many.
        MissingExtraError: when the first program is made, JAX is not installed.
    """

    def __init__(self, devices: int = 1, *, every_process: bool = False) -> None:
        if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
            raise ValueError(f"devices is a whole number from 1 up, got {devices!r}")
        self.devices = devices
        self.every_process = every_process
        if every_process:
            from palto.compiler.xla import processes

            self.rank, self.processes = processes.rank(), processes.count()
        self.parts = devices * self.processes

    @property
    def _place(self) -> Any:
        return _programs().place(self.devices, self.every_process)

    def program(
        self, recording: Recording, greatest: Mapping[str, int], *, keep_grad: bool
    ) -> Runnable:
        """See `Executor`."""
        made: Runnable = _programs().Program(recording, greatest, self._place, keep_grad=keep_grad)
        return made

    def argument(self, tensor: Tensor) -> Array:
        """See `Executor`; what is on these devices stays there."""
        value: Array = _programs().value_at(tensor, self._place)
        return value

    @property
    def alone(self) -> XLA:
        """See `Executor`."""
        return XLA(self.devices)

    def whole(self, part: Tensor) -> Tensor:
        """See `Executor`."""
        if self.processes == 1:
            return part
        batch: Tensor = _programs().whole(part, self._place, self.processes)
        return batch

    def gathered(self, value: int) -> list[int]:
        """See `Executor`."""
        if self.processes == 1:
            return [value]
        values: list[int] = _programs().gathered(value)
        return values


@functools.cache
def _programs() -> ModuleType:
    require("jax", "xla", "the XLA executor")
    from palto.compiler.xla import program

    return program
