"""What a batch's size does: to a step's time, to the gradient's noise, to what is learned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palto.backprop import gradients
from palto.compiler import Dim, compile
from palto.data.dataset import Dataset
from palto.data.loader import DataLoader
from palto.nn.module import Module
from palto.optim import SGD
from palto.optim.optimizer import Optimizer
from palto.tensor import Cell, Tensor, random
from palto.tensor import functions as F
from palto.tensor.dtypes import Array

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BatchRow:
    """What was measured with batches of one size.

    Attributes:
        size: examples in a batch.
        seconds: of a training step with its loading.
        noise: how far a batch's gradient g_B is from the whole data set's g: the root of the mean
            of ||g_B - g||^2, divided by ||g||.
        squared_norm: the mean of ||g_B||^2.
        loss: on the examples trained on, after the same number of examples with every size.
    """

    size: int
    seconds: float
    noise: float
    squared_norm: float
    loss: float

    @property
    def examples_per_second(self) -> float:
        """How many examples a training step gets through in a second."""
        return self.size / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.size:>10,} {1e3 * self.seconds:>10.3f} {self.examples_per_second:>12,.0f} "
            f"{self.noise:>10.3f} {self.loss:>10.4f}"
        )


_HEAD = f"{'batch size':>10} {'ms a step':>10} {'examples/s':>12} {'noise':>10} {'loss':>10}"


@dataclass(frozen=True)
class BatchStudy:
    """A table of what batches of different sizes do; ``str()`` of it is the table as text.

    Attributes:
        rows: one for each size, the smallest first.
        noise_scale: the gradient noise scale in examples, by `gradient_noise_scale`, from the row
            in the middle and the last one.
        examples: how many examples each size was trained on.
        start: the loss before that.
    """

    rows: tuple[BatchRow, ...]
    noise_scale: float
    examples: int
    start: float

    def __str__(self) -> str:
        return "\n".join(
            [
                _HEAD,
                *map(str, self.rows),
                f"Losses are after {self.examples:,} examples, and {self.start:.4f} before them. "
                f"The gradient noise scale is {self.noise_scale:,.0f} examples.",
            ]
        )


def gradient_noise_scale(
    small: int, squared_norm_small: float, big: int, squared_norm_big: float
) -> float:
    """The batch size at which a gradient's noise is as large as the gradient itself.

    B_simple = tr(Sigma) / |G|^2, where G is the gradient over all data and Sigma the covariance of
    the examples' gradients. Since E|g_B|^2 = |G|^2 + tr(Sigma) / B, two sizes tell both:

        |G|^2 = (B_big |g_big|^2 - B_small |g_small|^2) / (B_big - B_small)
        tr(Sigma) = (|g_small|^2 - |g_big|^2) / (1 / B_small - 1 / B_big)

    Neither estimate is biased, if the squared norms are means over many batches.

    Args:
        small: a batch size.
        squared_norm_small: the mean of ||g||^2 over batches of that size.
        big: a greater one.
        squared_norm_big: the same for that one.

    Returns:
        The scale in examples; infinity where the noise hides the gradient.

    Raises:
        ValueError: sizes that are not 0 < small < big.

    McCandlish et al., "An empirical model of large-batch training", 2018, appendix A.1.
    """
    if not 0 < small < big:
        raise ValueError(f"two sizes with 0 < small < big are wanted, got {small} and {big}")
    whole = (big * squared_norm_big - small * squared_norm_small) / (big - small)
    noise = (squared_norm_small - squared_norm_big) / (1 / small - 1 / big)
    return max(noise, 0.0) / whole if whole > 0 else math.inf


def batch_study(
    model: Module,
    loss: Loss,
    dataset: Dataset,
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    *,
    optimizer: Callable[[Module], Optimizer] | None = None,
    draws: int = 64,
    examples: int | None = None,
    seed: int = 0,
    show: bool = True,
) -> BatchStudy:
    """Measure what the batch size does, on a model as it is now, which stays so.

    For each size: the gradients of `draws` batches, whose examples are drawn with replacement,
    beside the gradient of the whole data set; then a training run from the model's weights over
    the same number of examples, which is timed. Steps are compiled before they are timed.

    Args:
        model: what is trained. It is put back afterwards.
        loss: from (outputs, targets) to one number, a mean over the batch.
        dataset: pairs of an input and a target.
        sizes: of batches, in examples: at least two.
        optimizer: makes the optimiser of the training runs, of the model; by default SGD with a
            learning rate of 0.05. It is the same for all sizes.
        draws: how many batches of each size the noise is measured on.
        examples: how many examples each run is trained on, at least a batch of the largest size;
            by default as many as the data set has.
        seed: of the batches.
        show: print each row when it is measured.

    Returns:
        The table.

    Raises:
        ValueError: sizes that are not two or more different whole numbers from 1 up to the length
            of the data set, or fewer than two draws.
    """
    sizes = sorted({int(size) for size in sizes})
    if len(sizes) < 2 or not 1 <= sizes[0] <= sizes[-1] <= len(dataset):
        raise ValueError(
            f"sizes are two or more numbers from 1 to {len(dataset)}, the length of the data set; "
            f"got {sizes}"
        )
    if draws < 2:
        raise ValueError(f"the noise is seen on two draws or more, got {draws}")
    examples = max(len(dataset) if examples is None else examples, sizes[-1])
    cells = [cell for _, cell in model.named_cells()] + [random.default_generator.state]
    before = [cell.array().copy() for cell in cells]

    def put_back() -> None:
        for cell, value in zip(cells, before, strict=True):
            cell.assign(F.asarray(value))

    try:
        gradient = _Gradient(model, loss, dataset, sizes[-1])
        whole, start = gradient.of_all()
        train = _Training(model, loss, dataset, optimizer or (lambda m: SGD(m, lr=0.05)), put_back)
        if show:
            print(_HEAD, flush=True)
        rng, rows = np.random.default_rng(seed), []
        for size in sizes:
            distances, norms = [], []
            for _ in range(draws):
                drawn, _ = gradient.of(rng.integers(0, len(dataset), size))
                distances.append(_squared(drawn - whole))
                norms.append(_squared(drawn))
            noise = math.sqrt(np.mean(distances) / _squared(whole))
            squared_norm = float(np.mean(norms))
            put_back()  # statistics of batch norm moved, and random numbers were drawn
            seconds = train.run(size, examples, seed)
            rows.append(BatchRow(size, seconds, noise, squared_norm, gradient.loss()))
            put_back()
            if show:
                print(rows[-1], flush=True)
    finally:
        put_back()
    middle, last = rows[(len(rows) - 1) // 2], rows[-1]
    scale = gradient_noise_scale(middle.size, middle.squared_norm, last.size, last.squared_norm)
    return BatchStudy(tuple(rows), scale, examples, start)


def _squared(x: Array) -> float:
    return float(np.square(x, dtype=np.float64).sum())


class _Gradient:
    """The loss's gradient over some examples, as one long array, by one program for all sizes."""

    def __init__(self, model: Module, loss: Loss, dataset: Dataset, largest: int) -> None:
        self.dataset, self.largest = dataset, largest
        parameters: list[Cell] = [x for x in model.parameters() if x.requires_grad]
        if not parameters:
            raise ValueError("this model has no parameter that requires a gradient")
        shapes: Any = {0: Dim("batch", max=max(largest, 2))}

        @compile(dynamic_shapes={"inputs": shapes, "targets": shapes})
        def compute(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            value = loss(model(inputs), targets)
            found = gradients([value], [F.ones_like(value)], parameters)
            parts = [
                F.zeros_like(x) if g is None else g for x, g in zip(parameters, found, strict=True)
            ]
            return F.concat([F.reshape(part, (part.size,)) for part in parts]), value

        @compile(dynamic_shapes={"inputs": shapes, "targets": shapes})
        def value_alone(inputs: Tensor, targets: Tensor) -> Tensor:
            return loss(model(inputs), targets)

        self._compute, self._value = compute, value_alone

    def of(self, places: Array) -> tuple[Array, float]:
        """The gradient over the examples at these places, and their loss."""
        gradient, value = self._compute(*self.dataset.__getitems__(places))
        return gradient.array(), float(value)

    def of_all(self) -> tuple[Array, float]:
        """The gradient over the whole data set, and its loss."""
        total: Any = 0.0
        value = 0.0
        for places in self._pieces():
            part, mean = self.of(places)
            total = total + part.astype(np.float64) * len(places)
            value += mean * len(places)
        return total / len(self.dataset), value / len(self.dataset)

    def loss(self) -> float:
        """The loss over the whole data set."""
        values = [
            float(self._value(*self.dataset.__getitems__(places))) * len(places)
            for places in self._pieces()
        ]
        return sum(values) / len(self.dataset)

    def _pieces(self) -> list[Array]:
        places = np.arange(len(self.dataset))
        return [places[k : k + self.largest] for k in range(0, len(places), self.largest)]


class _Training:
    """Training runs from the same start."""

    def __init__(
        self,
        model: Module,
        loss: Loss,
        dataset: Dataset,
        make: Callable[[Module], Optimizer],
        put_back: Callable[[], None],
    ) -> None:
        self.dataset, self.put_back = dataset, put_back
        self.optimizer = optimizer = make(model)
        self.start = optimizer.state_dict()

        @compile
        def step(inputs: Tensor, targets: Tensor) -> Tensor:
            value = loss(model(inputs), targets)
            value.backward()
            optimizer.step()
            return value

        self._step = step

    def run(self, size: int, examples: int, seed: int) -> float:
        """Train on so many examples, or a batch's part fewer; the seconds of a step."""
        loader = DataLoader(self.dataset, size, shuffle=True, drop_last=True, seed=seed)
        self._step(*next(iter(loader)))  # compiled, and forgotten
        self.put_back()
        self.optimizer.load_state_dict(self.start)
        loader.set_epoch(0)
        steps = examples // size
        times = [time.perf_counter()]
        while len(times) <= steps:
            for inputs, targets in loader:
                self._step(inputs, targets)
                times.append(time.perf_counter())
                if len(times) > steps:
                    break
        # In pieces, of which the middle one counts: other programs disturb some.
        pieces = np.array_split(np.diff(times), min(steps, 8))
        return float(np.median([piece.mean() for piece in pieces]))
