"""SGD: gradient descent on batches, with momentum."""

from __future__ import annotations

from typing import Any

from palto.optim.optimizer import Group, Optimizer, Update
from palto.tensor import Tensor
from palto.tensor import functions as F


class SGD(Optimizer):
    """Stochastic gradient descent, as in PyTorch.

        g <- g + weight_decay x
        v <- momentum v + (1 - dampening) g      (v = g in the first step)
        x <- x - lr v                            (nesterov: x - lr (g + momentum v))

    Without momentum v is g.

    Args:
        params: a module, parameters, or groups; see `Optimizer`.
        lr: the learning rate: a number, a tensor or a schedule; see `Group.lr`.
        momentum: the part of the last step's direction that is kept.
        dampening: the part of the gradient that momentum leaves out.
        weight_decay: pulls parameters to zero, by an L2 penalty's gradient.
        nesterov: look ahead along the momentum.
        average: None, "uniform" or "tail"; see `Optimizer`.
        tail: the part of the run that "tail" averages; see `Optimizer`.

    Raises:
        ValueError: options out of range, or `nesterov` without momentum or with dampening.

    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Nesterov, "A
    method of solving a convex programming problem with convergence rate O(1/k^2)", 1983, in the
    form of Sutskever et al., "On the importance of initialization and momentum", 2013.
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        average: str | None = None,
        tail: float = 0.2,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, options, average=average, tail=tail)

    def validate(self, group: Group) -> None:
        """Raise ValueError for options that make no sense."""
        if group.momentum < 0 or group.weight_decay < 0:
            raise ValueError(
                "SGD: momentum and weight_decay are numbers from 0 up, got "
                f"{group.momentum} and {group.weight_decay}"
            )
        if group.nesterov and (group.momentum <= 0 or group.dampening):
            raise ValueError(
                "SGD: nesterov=True wants a momentum above 0 and no dampening, got momentum "
                f"{group.momentum} and dampening {group.dampening}"
            )

    def moments(self, group: Group) -> tuple[str, ...]:
        """The velocity v, where there is momentum."""
        return ("v",) if group.momentum else ()

    def rule(self, group: Group, k: Tensor, lr: Tensor) -> Update:
        """See the class."""
        damped = group.dampening * F.astype(k > 1, k.dtype)

        def update(x: Tensor, g: Tensor, v: Tensor | None = None) -> tuple[Tensor, ...]:
            if group.weight_decay:
                g = g + group.weight_decay * x
            rate = F.astype(lr, x.dtype)
            if v is None:
                return (x - rate * g,)
            v = group.momentum * v + (F.astype(1 - damped, x.dtype) * g if group.dampening else g)
            direction = g + group.momentum * v if group.nesterov else v
            return x - rate * direction, v

        return update
