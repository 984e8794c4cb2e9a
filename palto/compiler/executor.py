"""What an executor is: it makes a program of a recording, and the program runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from palto.compiler.sizes import shape_at
from palto.compiler.trace import Recording
from palto.tensor import dtypes
from palto.tensor.graph import Array, Spec
from palto.tensor.tensor import Tensor


class LostProcessError(RuntimeError):
    """A process that computes with this one has ended or cannot be reached."""


class Explanation(ABC):
    """What a program does. Print it."""

    @abstractmethod
    def summary(self) -> str:
        """The totals."""

    @abstractmethod
    def profile(self, width: int | None = None) -> str:
        """What takes most first, in lines of so many characters, and the totals."""


class Runnable(ABC):
    """A recording made ready to run: it reads its cells, computes, checks, writes its cells.

    Attributes:
        argument_specs: what it takes.
        greatest: the greatest of each run-time size.
    """

    argument_specs: Sequence[Spec]
    greatest: Mapping[str, int]

    @abstractmethod
    def run(
        self, arguments: Sequence[Array], sizes: Mapping[str, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run once.

        Args:
            arguments: the argument tensors' values, as `Executor.argument` gives them. They are not
                written to or kept.
            sizes: the run-time sizes.

        Returns:
            The tensors returned, and the gradients of `Recording.grads`.

        Raises:
            IndexError, FloatingPointError: an index or a check failed; every cell is as before.
        """

    @abstractmethod
    def explain(
        self, arguments: Sequence[Array], name: str, sizes: Mapping[str, int]
    ) -> Explanation:
        """Say what it does, and how fast, on copies of its cells. Its name is the function's."""

    @abstractmethod
    def forget_plan(self) -> None:
        """Let go of what no run wants; `explain` may not follow."""

    def made_up(self) -> list[Array]:
        """Arguments: numbers from 0 to 1, and zeros, which are in range as indices."""
        rng = np.random.default_rng(0)
        found = []
        for x in self.argument_specs:
            shape = shape_at(x.shape, self.greatest)
            values = rng.random(shape) if x.dtype in dtypes.FLOATING else np.zeros(shape)
            found.append(np.asarray(values).astype(x.dtype))
        return found


class Executor(ABC):
    """Makes programs.

    Attributes:
        rank: the number of this process among those that run the same programs together.
        processes: how many these are.
        parts: among how many devices of all of them a batch is shared.
    """

    rank: int = 0
    processes: int = 1
    parts: int = 1

    @abstractmethod
    def program(
        self, recording: Recording, greatest: Mapping[str, int], *, keep_grad: bool
    ) -> Runnable:
        """A program that does what a function did when it was recorded.

        Args:
            recording: what the function does.
            greatest: the greatest of each run-time size.
            keep_grad: whether gradients are wanted, too.
        """

    def argument(self, tensor: Tensor) -> Array:
        """The value of an argument, as programs take it."""
        return dense(tensor.array())

    # Several processes

    @property
    def alone(self) -> Executor:
        """The same without the other processes."""
        return self

    def whole(self, part: Tensor) -> Tensor:
        """The batch of which every process has a part (N / processes, ...), in order of rank."""
        return part

    def gathered(self, value: int) -> list[int]:
        """A number of each process; all of them call this."""
        return [value]


def dense(array: Array) -> Array:
    """The array, its elements side by side."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
