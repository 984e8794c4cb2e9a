"""The average of the iterates: Adam's output in the lecture, Polyak's and Ruppert's average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from palto.tensor import Cell, Tensor
from palto.tensor import functions as F
from palto.tensor.graph import no_grad

if TYPE_CHECKING:
    from palto.optim.optimizer import Optimizer


def update(average: Cell, iterate: Tensor, k: Tensor, growth: float) -> None:
    """Take the iterate x^k into the average.

        a^k = a^(k-1) + (x^k - a^(k-1)) (growth + 1) / (k + growth)

    With growth 0 this is the mean of x^1 ... x^k. In general x^i weighs like i^growth (Shamir and
    Zhang, "Stochastic gradient descent for non-smooth optimization", 2013: polynomial-decay
    averaging); the mean distance of the weight from the end is k / (growth + 2) steps.

    Args:
        average: the cell that holds a^(k-1).
        iterate: x^k, of the same shape.
        k: the step's number, from 1, float64.
        growth: how fast the weights grow.
    """
    weight = F.astype((growth + 1) / (k + growth), average.dtype)
    old = average.read()
    average.assign(old + (iterate - old) * weight)


@contextmanager
def averaged(
    optimizer: Optimizer, model: Any, batches: Iterable[Any] | None = None
) -> Iterator[None]:
    """See `Optimizer.averaged`."""
    if optimizer.average_growth is None:
        raise ValueError(
            f"this {type(optimizer).__name__} keeps no average; make it with average='uniform' "
            "or average='tail'"
        )
    layers = [module for module in model.modules() if _has_running_statistics(module)]
    if layers and batches is None:
        raise ValueError(
            f"the model has {len(layers)} batch normalisation layers, whose running statistics "
            "belong to the training values; give averaged(model, batches) some training inputs, "
            "from which they are computed anew"
        )
    swapped = [(s.parameter, s.average) for s in optimizer.slots() if s.average is not None]
    cells = [cell for cell, _ in swapped]
    cells += [cell for layer in layers for cell in layer.buffers()]
    training = [(cell, cell.read()) for cell in cells]
    try:
        for cell, average in swapped:
            cell.assign(average)
        if layers and batches is not None:
            _recompute(model, layers, batches)
        yield
    finally:
        for cell, value in training:
            cell.assign(value)


def _has_running_statistics(module: Any) -> bool:
    names = ("running_mean", "running_var")
    return all(isinstance(getattr(module, name, None), Cell) for name in names)


def _recompute(model: Any, layers: list[Any], batches: Iterable[Any]) -> None:
    """Running statistics that are the mean over all batches, each by its size.

    Only the normalising layers run as in training, so no random number is drawn.
    """
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    seen = 0
    try:
        model.eval()
        for layer in layers:
            layer.training = True
        with no_grad():
            for batch in batches:
                inputs = F.asarray(batch[0] if isinstance(batch, list | tuple) else batch)
                seen += len(inputs)
                for layer in layers:
                    layer.momentum = len(inputs) / seen
                model(inputs)
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum in momenta:
            layer.momentum = momentum
    if not seen:
        raise ValueError("averaged(model, batches): batches is empty; give some training inputs")
