"""Adam, in the lecture's form and in PyTorch's, and AdamW."""

from __future__ import annotations

from typing import Any

from palto.optim.optimizer import Group, Optimizer, Update
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F

#: (b1, b2) where none are given.
_BETAS = {"lecture": (0.9, 0.99), "pytorch": (0.9, 0.999)}


class Adam(Optimizer):
    """Adam: each coordinate moves by its mean gradient over its mean size.

    In step k = 0, 1, ... with the gradient g at x^k, as the lecture gives it:

        v = b1 v + (1 - b1) g           v^ = v / (1 - b1^(k+1))
        G = b2 G + (1 - b2) g^2         G^ = G / (1 - b2^(k+1))
        x^(k+1) = x^k - D v^ / sqrt(G^ + eps)

    ``variant="pytorch"`` has the root without eps, x^(k+1) = x^k - D v^ / (sqrt(G^) + eps), and
    b2 = 0.999 where none is given. The lecture's output is the mean of x^1 ... x^K:
    ``average="uniform"``. (A mean over a short run is much worse than the last iterate, so it is
    asked for, never implied; ``average="tail"`` averages the last part.)

    Args:
        params: a module, parameters, or groups; see `Optimizer`.
        lr: D: a number, one for each group, a tensor (a rate for each coordinate) or a schedule;
            see `Group.lr`.
        betas: (b1, b2), how much of the old means is kept; by default (0.9, 0.99).
        eps: keeps the division finite.
        weight_decay: pulls parameters to zero, by an L2 penalty's gradient.
        variant: "lecture" or "pytorch".
        average: None, "uniform" or "tail"; see `Optimizer`.
        tail: the part of the run that "tail" averages; see `Optimizer`.

    Raises:
        ValueError: options out of range.
        TypeError: complex parameters.

    Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        variant: str = "lecture",
        average: str | None = None,
        tail: float = 0.2,
    ) -> None:
        if variant not in _BETAS:
            raise ValueError(f"variant is 'lecture' or 'pytorch', got {variant!r}")
        self.variant = variant
        options = {
            "lr": lr,
            "betas": _BETAS[variant] if betas is None else betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, options, average=average, tail=tail)

    def validate(self, group: Group) -> None:
        """Raise ValueError for options that make no sense."""
        name = type(self).__name__
        if len(group.betas) != 2 or not all(0 <= beta < 1 for beta in group.betas):
            raise ValueError(f"{name}: betas are two numbers in [0, 1), got {group.betas}")
        if group.eps < 0 or group.weight_decay < 0:
            raise ValueError(
                f"{name}: eps and weight_decay are numbers from 0 up, got {group.eps} and "
                f"{group.weight_decay}"
            )
        for slot in group.slots:
            if slot.parameter.dtype in dtypes.COMPLEX:
                raise TypeError(
                    f"{name}: {slot.label} is complex; keep its real and imaginary part as two "
                    "parameters, or use SGD"
                )

    def moments(self, group: Group) -> tuple[str, ...]:
        """The mean gradient v and the mean squared gradient G."""
        return ("v", "G")

    def rule(self, group: Group, k: Tensor, lr: Tensor) -> Update:
        """See the class; here `k` counts from 1, and the corrections are in the two scalars."""
        b1, b2 = group.betas
        rate = lr / (1 - b1**k)
        size = 1 / (1 - b2**k)

        def update(x: Tensor, g: Tensor, v: Tensor, G: Tensor) -> tuple[Tensor, ...]:
            x, g = self.decay(group, lr, x, g)
            v = b1 * v + (1 - b1) * g
            G = b2 * G + (1 - b2) * (g * g)
            corrected = G * F.astype(size, x.dtype)
            if self.variant == "lecture":
                root = F.sqrt(corrected + group.eps)
            else:
                root = F.sqrt(corrected) + group.eps
            return x - F.astype(rate, x.dtype) * v / root, v, G

        return update

    def decay(self, group: Group, lr: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The parameter and the gradient after weight decay."""
        return (x, g + group.weight_decay * x) if group.weight_decay else (x, g)


class AdamW(Adam):
    """Adam whose weight decay is apart from the gradient: x <- x - lr weight_decay x, then Adam.

    By default in the form of its paper and of PyTorch: ``variant="pytorch"``.

    Args:
        params: a module, parameters, or groups; see `Optimizer`.
        lr: as in `Adam`.
        betas: as in `Adam`; by default (0.9, 0.999).
        eps: as in `Adam`.
        weight_decay: how much of a parameter, times lr, goes in each step.
        variant: "pytorch" or "lecture", as in `Adam`.
        average: None, "uniform" or "tail"; see `Optimizer`.
        tail: the part of the run that "tail" averages; see `Optimizer`.

    Raises:
        ValueError: options out of range.
        TypeError: complex parameters.

    Loshchilov and Hutter, "Decoupled weight decay regularization", 2019.
    """

    def __init__(
        self,
        params: Any,
        lr: Any = 1e-3,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        variant: str = "pytorch",
        average: str | None = None,
        tail: float = 0.2,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, variant=variant, average=average, tail=tail
        )

    def decay(self, group: Group, lr: Tensor, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """The parameter and the gradient after weight decay."""
        if not group.weight_decay:
            return x, g
        return x * F.astype(1 - lr * group.weight_decay, x.dtype), g
