"""What an executor is: it makes a program of a recording, and the program runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from palto.compiler.trace import Recording
from palto.tensor.graph import Array
from palto.tensor.tensor import Tensor


class LostProcessError(RuntimeError):
    """A process that computes with this one has ended or cannot be reached."""


class Runnable(ABC):
    """A recording made ready to run: it reads its cells, computes, checks, writes its cells."""

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
