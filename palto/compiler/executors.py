"""The executors by name; which one runs a function is decided here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

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


EXECUTORS: dict[str, Callable[[], Executor]] = {"native": Native, "xla": XLA}


def chosen(executor: str | Executor | None) -> Executor:
    """The executor of this name; None is the one that `PALTO_EXECUTOR` names, or ``native``.

    Raises:
        ValueError: there is none of this name.
    """
    if isinstance(executor, Executor):
        return executor
    name, where = executor, "executor"
    if name is None:
        name, where = os.environ.get("PALTO_EXECUTOR") or "native", "PALTO_EXECUTOR"
    if name not in EXECUTORS:
        known = " or ".join(map(repr, EXECUTORS))
        raise ValueError(f"{where} is {known}, got {name!r}")
    return EXECUTORS[name]()
