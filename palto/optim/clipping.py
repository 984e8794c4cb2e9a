"""Gradients held in bounds between backward() and step()."""

from __future__ import annotations

from typing import Any

from palto.optim.optimizer import named_parameters
from palto.tensor import Cell, Tensor
from palto.tensor import functions as F
from palto.tensor.graph import check, current_trace, no_grad


def clip_grad_norm_(
    parameters: Any, max_norm: Any, norm_type: float = 2.0, *, error_if_nonfinite: bool = True
) -> Tensor:
    """Scale the gradients down so that their norm, all taken together, is at most `max_norm`.

        g <- g min(1, max_norm / (norm + 1e-6))

    Call it between ``backward()`` and ``step()``.

    Args:
        parameters: a module, an optimiser, parameters, or one parameter; those whose gradient does
            not wait for a step are left out.
        max_norm: a number, or a tensor of one.
        norm_type: the norm's order; inf for the largest size of an element.
        error_if_nonfinite: fail when the norm is infinite or NaN, before a cell is written.

    Returns:
        The norm before, a tensor of one element.

    Raises:
        FloatingPointError: the norm is infinite or NaN; in a compiled step, when the program runs.
        RuntimeError: no gradient waits.
        ValueError: a negative `max_norm`.

    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks", 2013.
    """
    _not_negative("clip_grad_norm_", "max_norm", max_norm)
    waiting = _waiting("clip_grad_norm_", parameters)
    with no_grad():
        norms = [F.vector_norm(g, ord=norm_type) for _, _, g in waiting]
        total = F.vector_norm(F.stack(F.promote(*norms)), ord=norm_type)
        if error_if_nonfinite:
            _demand(F.isfinite(total), "the norm of the gradients", waiting)
        scale = F.minimum(max_norm / (total + 1e-6), 1.0)
        for _, cell, g in waiting:
            cell.set_grad(g * F.astype(scale, g.dtype), pending=True)
    return total


def clip_grad_value_(parameters: Any, clip_value: Any) -> None:
    """Hold each element of the gradients between -clip_value and clip_value.

    Args:
        parameters: a module, an optimiser, parameters, or one parameter.
        clip_value: a number, or a tensor of one.

    Raises:
        RuntimeError: no gradient waits for a step.
        ValueError: a negative `clip_value`.
    """
    _not_negative("clip_grad_value_", "clip_value", clip_value)
    with no_grad():
        for _, cell, g in _waiting("clip_grad_value_", parameters):
            cell.set_grad(F.clip(g, -clip_value, clip_value), pending=True)


def check_gradients(parameters: Any) -> None:
    """Demand that every gradient that waits for a step is finite, before a cell is written.

    Args:
        parameters: a module, an optimiser, parameters, or one parameter.

    Raises:
        FloatingPointError: one is not, with its parameter's name; in a compiled step, when the
            program runs.
        RuntimeError: no gradient waits.
    """
    waiting = _waiting("check_gradients", parameters)
    with no_grad():
        for entry in waiting:
            _demand(_finite(entry[2]), f"the gradient of {entry[0]}", waiting)


Waiting = tuple[str, Cell, Tensor]


def _waiting(caller: str, parameters: Any) -> list[Waiting]:
    """(name, parameter, gradient) of each gradient that waits for a step."""
    waiting = []
    for name, cell in named_parameters(parameters):
        gradient = cell.grad
        if gradient is not None and cell.has_pending_grad():
            waiting.append((cell.name or f"parameter {name}", cell, gradient))
    if not waiting:
        raise RuntimeError(
            f"{caller}: no gradient waits for a step; call it after loss.backward() and before "
            "optimizer.step()"
        )
    return waiting


def _finite(gradient: Tensor) -> Tensor:
    return F.all(F.isfinite(gradient))


def _demand(condition: Tensor, what: str, waiting: list[Waiting]) -> None:
    """Check that something is finite; outside a trace, say which gradients are not."""
    if current_trace() is None:
        if bool(condition):
            return
        bad = [name for name, _, g in waiting if not bool(_finite(g))]
        if bad:
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            what = f"the gradient of {', '.join(bad[:3])}{more}"
    check(
        condition,
        f"{what} is not finite; lower the learning rate, or look for a division by zero or a "
        "logarithm of zero",
    )


def _not_negative(caller: str, name: str, value: Any) -> None:
    if isinstance(value, int | float) and not value >= 0:
        raise ValueError(f"{caller}: {name} is a number from 0 up, got {value}")
