"""Measures of a model's answers, added up batch by batch."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from palto.tensor.dtypes import Array


@dataclass(frozen=True)
class Example:
    """An input that a model got wrong.

    Attributes:
        place: its index in the data set.
        truth: its label.
        guess: the model's first choice.
        probability: the probability that the model gives its choice.
        truth_probability: the one that it gives the truth.
    """

    place: int
    truth: int
    guess: int
    probability: float
    truth_probability: float


@dataclass(frozen=True)
class Evaluation:
    """What a model achieves on a data set.

    Attributes:
        measures: the loss, and by the task the accuracy and others, by name.
        confusion: (K, K) counts of examples, the truth along rows, the first choice along columns.
        mistakes: the examples that the model got most wrong, the worst first.
        count: the number of examples.
    """

    measures: dict[str, float]
    count: int
    confusion: Array | None = None
    mistakes: tuple[Example, ...] = field(default=(), repr=False)


class Task(Protocol):
    """A kind of answer, and how it is measured.

    Attributes:
        best: the measure by which models are compared, and whether more of it is better.
    """

    best: tuple[str, bool]

    def start(self) -> Any:
        """A fresh count."""


class Classification:
    """Answers are logits, one for each class; targets are labels.

    Args:
        classes: the number of classes.
        top: also count as right in `top5` (or another number) what is among so many choices.
        mistakes: how many of the worst mistakes to keep.
    """

    best = ("accuracy", True)

    def __init__(self, classes: int, *, top: int = 5, mistakes: int = 24) -> None:
        if classes < 2:
            raise ValueError(f"a classification has at least two classes, got {classes}")
        self.classes = classes
        self.top = top
        self.mistakes = mistakes

    def start(self) -> _Count:
        """A fresh count."""
        return _Count(self)


class _Count:
    def __init__(self, task: Classification) -> None:
        self._task = task
        self._confusion = np.zeros((task.classes, task.classes), np.int64)
        self._loss = 0.0
        self._top = 0
        self._seen = 0
        self._worst: list[tuple[float, int, Example]] = []

    def update(self, outputs: Array, targets: Array, losses: Array) -> None:
        """Count a batch: logits (n, K), labels (n,), the loss of each example (n,)."""
        shifted = outputs - outputs.max(-1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
        guesses = outputs.argmax(-1)
        np.add.at(self._confusion, (targets, guesses), 1)
        rows = np.arange(len(targets))
        better = outputs > outputs[rows, targets][:, None]
        self._top += int((better.sum(-1) < self._task.top).sum())
        self._loss += float(losses.sum(dtype=np.float64))
        for row in np.flatnonzero(guesses != targets):
            truth, guess = int(targets[row]), int(guesses[row])
            example = Example(
                self._seen + int(row),
                truth,
                guess,
                float(probabilities[row, guess]),
                float(probabilities[row, truth]),
            )
            entry = (float(losses[row]), -example.place, example)
            keep = heapq.heappush if len(self._worst) < self._task.mistakes else heapq.heappushpop
            keep(self._worst, entry)
        self._seen += len(targets)

    def result(self) -> Evaluation:
        """What has been counted."""
        count = max(self._seen, 1)
        measures = {
            "loss": self._loss / count,
            "accuracy": float(np.trace(self._confusion)) / count,
        }
        if self._task.classes > 2 * self._task.top - 1:
            measures[f"top{self._task.top}"] = self._top / count
        worst = sorted(self._worst, key=lambda entry: entry[:2], reverse=True)
        return Evaluation(
            measures, self._seen, self._confusion, tuple(example for _, _, example in worst)
        )


class Regression:
    """Answers and targets are numbers, of the same shape.

    Args:
        scale: what they were divided by; errors are told in their own unit.
    """

    best = ("loss", False)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def start(self) -> _Errors:
        """A fresh count."""
        return _Errors(self.scale)


class _Errors:
    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._loss = self._absolute = self._squared = self._sum = self._square_sum = 0.0
        self._seen = self._numbers = 0

    def update(self, outputs: Array, targets: Array, losses: Array) -> None:
        """Count a batch: answers and targets of one shape, the loss of each example (n,)."""
        error = np.asarray(outputs, np.float64) - targets.reshape(outputs.shape)
        self._loss += float(losses.sum(dtype=np.float64))
        self._absolute += float(np.abs(error).sum())
        self._squared += float((error * error).sum())
        self._sum += float(targets.sum(dtype=np.float64))
        self._square_sum += float(np.square(targets, dtype=np.float64).sum())
        self._seen += len(targets)
        self._numbers += targets.size

    def result(self) -> Evaluation:
        """The loss, the mean absolute error, and the share of the variance explained (R^2)."""
        count = max(self._numbers, 1)
        spread = self._square_sum - self._sum**2 / count
        measures = {
            "loss": self._loss / max(self._seen, 1),
            "mean_absolute_error": self._scale * self._absolute / count,
        }
        if spread > 0:
            measures["r2"] = 1 - self._squared / spread
        return Evaluation(measures, self._seen)
