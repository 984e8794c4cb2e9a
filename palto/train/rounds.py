"""A training in rounds, kept in a folder: it goes on after the last whole round."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from palto.nn.module import Module
from palto.optim import Optimizer
from palto.tensor import random
from palto.train.checkpoint import Checkpoints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    AnyPlan = TypeVar("AnyPlan", bound=DataclassInstance)
    AnyRound = TypeVar("AnyRound", bound=DataclassInstance)
else:
    AnyPlan, AnyRound = TypeVar("AnyPlan"), TypeVar("AnyRound")


#: Told what is being done, how much of it is done, and a remark; at 1 it is over, and the remark is
#: what came of it.
Watch = Callable[[str, float, str], None]


class RoundTraining(ABC, Generic[AnyPlan, AnyRound]):
    """The base of trainings that `Trainer` does not fit: whose examples come of their own doing.

    Args:
        folder: where checkpoints lie, or will lie.
        plan: how to train.
        model: what is trained.
        optimizer: by what.
        round_type: the dataclass of what comes of a round.

    Attributes:
        rounds: what came of those that were kept.

    Raises:
        ValueError: the folder holds a run of another plan.
        OSError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        plan: AnyPlan,
        model: Module,
        optimizer: Optimizer,
        round_type: type[AnyRound],
    ) -> None:
        self.folder, self.plan = Path(folder), plan
        self._model, self._optimizer = model, optimizer
        self.rounds: list[AnyRound] = []
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        found = self.checkpoints.newest()
        if found is None:
            return
        before = found.state["plan"]
        if before != asdict(plan):
            raise ValueError(
                f"{folder} holds a run with {before}; give the same options to go on, or "
                "another folder with --out"
            )
        model.load_state_dict(found.tensors["model"])
        optimizer.load_state_dict(found.tensors["optimizer"])
        random.default_generator.state.assign(found.tensors["random"]["state"])
        self.rounds = [round_type(**x) for x in found.state["rounds"]]

    @abstractmethod
    def run(self, watch: Watch) -> None:
        """Do rounds until there are enough, and call `keep` at the end of each."""

    def keep(self, one: AnyRound, *, is_best: bool) -> None:
        """Add a round, and write a checkpoint.

        Raises:
            OSError: it cannot be written.
        """
        self.rounds.append(one)
        tensors: dict[str, Any] = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "random": {"state": random.default_generator.state.read()},
        }
        state = {"plan": asdict(self.plan), "rounds": [asdict(x) for x in self.rounds]}
        self.checkpoints.save(tensors, state, is_best=is_best)

    def take_best(self) -> None:
        """Put the weights of the best round into the model.

        Raises:
            FileNotFoundError: there is no whole round yet.
        """
        best = self.checkpoints.best()
        if best is None:
            raise FileNotFoundError(f"{self.folder} holds no whole round yet")
        self._model.load_state_dict(best.tensors["model"])
