"""Machines: what a run runs on, as the command line asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from palto.compiler.executor import Executor
from palto.compiler.executors import chosen
from palto.compiler.xla.processes import join


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a run runs on; it may be another when the run goes on."""

    executor: Literal["native", "xla"] | None = None
    """Who runs the steps: Palto's own compiler, or XLA on a GPU or TPU (`palto[xla]`)."""
    devices: int | None = None
    """With xla, how many devices share every batch (in each process)."""
    coordinator: str | None = None
    """With xla and several processes, HOST:PORT where process 0 listens."""
    processes: int | None = None
    """How many processes there are; each is started by this command with its own rank."""
    rank: int | None = None
    """Which process this is, from 0 up."""

    def meet(self) -> Executor:
        """The executor, once the other processes are there.

        Raises:
            ValueError: the options do not fit together.
            ConnectionError: the others did not come.
        """
        if (self.coordinator, self.processes, self.rank) != (None, None, None):
            if self.coordinator is None or self.processes is None or self.rank is None:
                raise ValueError("--coordinator, --processes and --rank belong together")
            if self.executor != "xla":
                raise ValueError("several processes are of XLA: add --executor xla")
            join(self.coordinator, self.processes, self.rank)
        return chosen(self.executor, devices=self.devices, every_process=True)
