"""The executors by name; which one runs a function is decided here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping

from palto.compiler.executor import Executor, Runnable
from palto.compiler.program import Program
from palto.compiler.trace import Recording
from palto.compiler.xla import XLA


class Native(Executor):
    """Palto's own compiler: machine code for this computer's cores."""

    def program(
        self, recording: Recording, greatest: Mapping[str, int], *, keep_grad: bool
    ) -> Runnable:
        """See `Executor`."""
        return Program(recording, greatest, keep_grad=keep_grad)


def chosen(
    executor: str | Executor | None = None,
    *,
    devices: int | None = None,
    every_process: bool = False,
) -> Executor:
    """The executor of this name; None is the one that `PALTO_EXECUTOR` names, or ``native``.

    Args:
        executor: its name, or itself.
        devices: the number of devices (of each process), for one that can use several.
        every_process: whether it is for programs that all processes of a run call.

    Raises:
        ValueError: there is none of this name, or it has no devices to choose from.
    """
    if isinstance(executor, Executor):
        if devices is not None:
            raise ValueError("an executor knows its devices: give its name, or no devices")
        return executor
    name, where = executor, "executor"
    if name is None:
        name, where = os.environ.get("PALTO_EXECUTOR") or "native", "PALTO_EXECUTOR"
    if name == "xla":
        return XLA(1 if devices is None else devices, every_process=every_process)
    if name != "native":
        raise ValueError(f"{where} is 'native' or 'xla', got {name!r}")
    if devices is not None:
        raise ValueError(
            "the native executor runs on the cores of one machine (PALTO_THREADS says how many); "
            "devices are for executor='xla'"
        )
    return Native()
