"""Checkpoints: everything a run needs to go on as if it had never stopped.

A checkpoint is a folder of safetensors files and one JSON file. It is written under another name,
brought to the disk, and renamed: a folder with the right name is whole. The newest and the best
are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palto.formats import safetensors
from palto.tensor import Tensor

_PREFIX = "checkpoint-"
_UNFINISHED = ".part"


@dataclass(frozen=True)
class Checkpoint:
    """One saved state.

    Attributes:
        folder: where it lies.
        tensors: the tensors of each part (model, optimizer ...), by name.
        state: plain values.
    """

    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie; made if it is not there.
        writes: whether this process writes them; otherwise it only looks.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, folder: str | os.PathLike[str], *, writes: bool = True) -> None:
        self.folder = Path(folder)
        if not writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(leftover, ignore_errors=True)  # a save that was cut off
        probe = self.folder / f"probe{_UNFINISHED}"
        probe.mkdir()
        probe.rmdir()

    def save(
        self,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        *,
        is_best: bool = False,
    ) -> Path:
        """Write a checkpoint, then remove those that are neither newest nor best.

        Args:
            tensors: the tensors of each part, by name.
            state: plain values, as JSON takes them.
            is_best: whether this is the best so far.

        Raises:
            OSError: it cannot be written; what was there stays.
        """
        earlier = self._numbers()
        number = max(earlier, default=0) + 1
        best = number if is_best else self._best(earlier)
        final = self.folder / f"{_PREFIX}{number:06d}"
        unfinished = final.with_name(final.name + _UNFINISHED)
        try:
            unfinished.mkdir()
            for part, named in tensors.items():
                safetensors.save(unfinished / f"{part}.safetensors", named)
            with open(unfinished / "state.json", "w", encoding="utf-8") as file:
                json.dump({"best": best, "parts": list(tensors), **state}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            _sync(unfinished)
            os.rename(unfinished, final)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        _sync(self.folder)
        for old in earlier:
            if old != best:
                shutil.rmtree(self.folder / f"{_PREFIX}{old:06d}", ignore_errors=True)
        return final

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None if there is none.

        Raises:
            ValueError: there are checkpoints, but all are damaged.
        """
        problems = []
        for number in sorted(self._numbers(), reverse=True):
            try:
                return self._load(number)
            except (OSError, ValueError) as error:
                problems.append(str(error))
        if problems:
            raise ValueError("no checkpoint can be read: " + "; ".join(problems))
        return None

    def best(self) -> Checkpoint | None:
        """The best checkpoint; the newest if none has been called best."""
        best = self._best(self._numbers())
        if best is not None:
            try:
                return self._load(best)
            except (OSError, ValueError):
                pass
        return self.newest()

    def _numbers(self) -> list[int]:
        return sorted(
            int(path.name.removeprefix(_PREFIX))
            for path in self.folder.glob(f"{_PREFIX}*")
            if path.name.removeprefix(_PREFIX).isdigit()
        )

    def _best(self, numbers: list[int]) -> int | None:
        for number in reversed(numbers):
            try:
                best = self._state(number)["best"]
            except (OSError, ValueError, KeyError):
                continue
            return best if best in numbers else None
        return None

    def _state(self, number: int) -> dict[str, Any]:
        path = self.folder / f"{_PREFIX}{number:06d}" / "state.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if not isinstance(state, dict) or "parts" not in state:
            raise ValueError(f"{path} is not the state of a checkpoint")
        return state

    def _load(self, number: int) -> Checkpoint:
        folder = self.folder / f"{_PREFIX}{number:06d}"
        state = self._state(number)
        tensors = {
            part: safetensors.load(folder / f"{part}.safetensors") for part in state["parts"]
        }
        return Checkpoint(folder, tensors, state)


def _sync(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
