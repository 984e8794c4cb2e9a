"""Several processes as one run, on one machine or many: JAX's own runtime brings them together.

Process 0 listens at the coordinator's address. When a process is lost, the others cannot go on:
they say so and end, and the run goes on from its last checkpoint once all are started again.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from palto.compiler.executor import LostProcessError
from palto.extras import require

#: For how many seconds a process waits for the others at the beginning, and at the end, when one of
#: them may still be writing a report.
_PATIENCE, _PATIENCE_AT_THE_END = 300, 3600
#: What the libraries below say when another process does not answer.
_SIGNS = ("gloo", "nccl", "connection", "unavailable", "deadline", "socket", "coordination")
_REMEDY = (
    "Start all processes again: `palto resume RUN` with the same options goes on from the last "
    "checkpoint"
)
#: Ends with this process, and speaks if that was not meant: JAX kills a process whose coordinator
#: is gone, and nothing in it can speak then.
_LAST_WORDS = """
import signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
if sys.stdin.read() != "fine":
    print(sys.argv[1], file=sys.stderr, flush=True)
"""


@dataclass
class _Joined:
    """What this process is among the others."""

    rank: int = 0
    count: int = 1
    is_lost: bool = False


_joined = _Joined()


def rank() -> int:
    """The number of this process."""
    return _joined.rank


def count() -> int:
    """How many processes there are."""
    return _joined.count


def join(coordinator: str, processes: int, rank: int) -> None:
    """Meet the other processes of a run. To be called once, before anything is computed by JAX.

    Args:
        coordinator: HOST:PORT where process 0 listens: an address of its own that all can reach.
        processes: how many processes there are.
        rank: which of them this is, from 0 up.

    Raises:
        ValueError: these do not fit together.
        ConnectionError: the others did not come.
        MissingExtraError: JAX is not installed.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator is HOST:PORT of process 0, got {coordinator!r}")
    if processes < 1 or not 0 <= rank < processes:
        raise ValueError(
            f"rank counts the processes from 0: with processes={processes} it is from 0 to "
            f"{processes - 1}, got {rank}"
        )
    jax = require("jax", "xla", "a run of several processes")
    witness = subprocess.Popen(
        [sys.executable, "-c", _LAST_WORDS,
         f"palto: process {rank} of {processes} ended before its work was done: unless it was "
         "killed itself, another one is lost, out of reach, or was not started in "
         f"{_PATIENCE} seconds. {_REMEDY}"],
        stdin=subprocess.PIPE, text=True,
    )  # fmt: skip

    @atexit.register
    def leave() -> None:
        witness.communicate("fine")
        if _joined.is_lost:  # JAX would wait for the lost one, and then abort
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)

    # It would take the signal by which a run is asked to stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator, processes, rank, coordinator_bind_address=coordinator,
            cluster_detection_method="deactivate", initialization_timeout=_PATIENCE,
            shutdown_timeout_seconds=_PATIENCE_AT_THE_END,
        )  # fmt: skip
    except RuntimeError as error:
        raise ConnectionError(
            f"process {rank} of {processes} cannot meet the others at {coordinator}: {error}"
        ) from error
    _joined.rank, _joined.count = rank, processes
    atexit.unregister(leave)
    atexit.register(leave)  # again, so that it comes before JAX's own


@contextmanager
def noticing_losses() -> Iterator[None]:
    """Raise `LostProcessError` where an error means that another process does not answer."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = str(error).lower()
        if _joined.count == 1 or not any(sign in text for sign in _SIGNS):
            raise
        _joined.is_lost = True
        raise LostProcessError(
            f"process {_joined.rank} of {_joined.count} has lost another one of its run "
            f"({str(error).splitlines()[0][:200]}). {_REMEDY}"
        ) from error
