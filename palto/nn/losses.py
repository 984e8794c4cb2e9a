"""Losses, each also as a module."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from palto.nn.activations import log_softmax
from palto.nn.module import Buffer, Module
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.functions import composite

_REDUCTIONS = ("mean", "sum", "none")


def _require_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is one of {', '.join(_REDUCTIONS)}, got {reduction!r}")


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return F.sum(losses) if reduction == "sum" else F.mean(losses)


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """The product, where 0 times infinity is 0."""
    return weight * F.where((weight == 0) & F.isinf(x), 0.0, x)


def _require_same(what: str, prediction: Tensor, target: Tensor) -> None:
    if prediction.dtype not in dtypes.FLOATING or target.dtype not in dtypes.FLOATING:
        raise TypeError(
            f"{what} wants floating-point predictions and targets, got {prediction.dtype.name} and "
            f"{target.dtype.name}; cast with .astype(palto.float32)"
        )
    if prediction.shape != target.shape:
        raise ValueError(
            f"{what} wants predictions and targets of one shape, got {prediction.shape} and "
            f"{target.shape}"
        )


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy -sum over k of c_k log a_k, where a = softmax(logits).

    c is 1 at the label and 0 elsewhere, or a distribution over the classes.

    Args:
        logits: any real numbers, one for each class, shape (..., classes).
        target: labels, whole numbers of shape (...), or probabilities, shape (..., classes).
        weight: how much each class counts, shape (classes,).
        ignore_index: a label that does not count.
        label_smoothing: from 0 to 1: this share of every c is spread evenly over all classes.
        reduction: "mean" over all that counts (by its weight), "sum", or "none" for shape (...).

    Raises:
        IndexError: a label out of range.
        TypeError, ValueError: dtypes or shapes that do not fit; both are named.
    """
    logits, target = F.asarray(logits), F.asarray(target)
    _require_reduction(reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is from 0 to 1, got {label_smoothing}")
    if logits.dtype not in dtypes.FLOATING:
        raise TypeError(
            f"cross-entropy wants logits of a floating-point dtype, got {logits.dtype.name}; the "
            "logits come first, then the labels"
        )
    soft = target.dtype in dtypes.FLOATING
    if not soft and target.dtype not in dtypes.INTEGER:
        raise TypeError(
            f"cross-entropy wants integer labels or floating-point probabilities, got "
            f"{target.dtype.name}"
        )
    expected = logits.shape if soft else logits.shape[:-1]
    if logits.ndim == 0 or target.shape != expected:
        kind = "probabilities" if soft else "labels"
        hint = ""
        if soft and target.shape == logits.shape[:-1]:
            hint = "; if they are labels, cast them with .astype(palto.int64)"
        raise ValueError(
            f"cross-entropy of logits {logits.shape} wants {kind} of shape {expected}, got "
            f"{target.shape}{hint}"
        )
    if weight is not None and weight.shape != logits.shape[-1:]:
        raise ValueError(
            f"cross-entropy of logits {logits.shape} wants a weight of shape {logits.shape[-1:]}, "
            f"got {weight.shape}"
        )
    if soft:
        if ignore_index is not None:
            raise ValueError("cross-entropy: ignore_index is for labels, not for probabilities")
        return cross_entropy_of_probabilities(logits, target, weight, label_smoothing, reduction)
    return cross_entropy_of_labels(logits, target, weight, ignore_index, label_smoothing, reduction)


@composite
def cross_entropy_of_probabilities(
    logits: Tensor, target: Tensor, weight: Tensor | None, smoothing: float, reduction: str
) -> Tensor:
    """The arithmetic of :func:`cross_entropy` for probabilities."""
    if smoothing:
        target = target * (1 - smoothing) + smoothing / logits.shape[-1]
    parts = _times(target, log_softmax(logits))
    losses = -F.sum(parts if weight is None else parts * weight, -1)
    return _reduced(losses, reduction)


@composite
def cross_entropy_of_labels(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int | None,
    smoothing: float,
    reduction: str,
) -> Tensor:
    """The arithmetic of :func:`cross_entropy` for labels."""
    counts = None
    if ignore_index is not None:
        target = F.astype(target, dtypes.int64)
        counts = target != ignore_index
        target = F.where(counts, target, 0)
    log_a = log_softmax(logits)
    chosen = F.take_along_axis(log_a, F.expand_dims(target, -1), role="label")
    losses = -F.reshape(chosen, target.shape)
    shares = None if weight is None else F.take(weight, target, role="label")
    if shares is not None:
        losses = losses * shares
    if smoothing:
        spread = log_a if weight is None else log_a * weight
        losses = (1 - smoothing) * losses - smoothing / logits.shape[-1] * F.sum(spread, -1)
    if counts is not None:
        losses = F.where(counts, losses, 0.0)
        shares = F.astype(counts, logits.dtype) if shares is None else F.where(counts, shares, 0.0)
    if reduction == "mean" and shares is not None:
        return F.sum(losses) / F.sum(shares)
    return _reduced(losses, reduction)


@composite
def mse_loss(prediction: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The mean squared error, the mean of (prediction - target)^2.

    Args:
        prediction: any shape.
        target: the same shape.
        reduction: "mean", "sum", or "none" for all squares.

    Raises:
        ValueError: two shapes; both are named.
    """
    return _pointwise("mse_loss", prediction, target, reduction, lambda e: e * e)


@composite
def l1_loss(prediction: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The mean absolute error, the mean of abs(prediction - target).

    Args:
        prediction: any shape.
        target: the same shape.
        reduction: "mean", "sum", or "none" for all distances.

    Raises:
        ValueError: two shapes; both are named.
    """
    return _pointwise("l1_loss", prediction, target, reduction, F.abs)


@composite
def huber_loss(
    prediction: Tensor, target: Tensor, *, delta: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Half the squared error up to `delta`, linear beyond: outliers do not dominate.

    With e = prediction - target: e^2 / 2 if abs(e) <= delta, else delta (abs(e) - delta / 2).

    Args:
        prediction: any shape.
        target: the same shape.
        delta: where the square ends.
        reduction: "mean", "sum", or "none".

    Raises:
        ValueError: two shapes, both named; or a delta that is not above 0.

    Source: Huber: Robust estimation of a location parameter (1964).
    """
    if delta <= 0:
        raise ValueError(f"huber_loss wants a delta above 0, got {delta}")

    def huber(e: Tensor) -> Tensor:
        size = F.abs(e)
        return F.where(size <= delta, 0.5 * e * e, delta * (size - 0.5 * delta))

    return _pointwise("huber_loss", prediction, target, reduction, huber)


def _pointwise(
    what: str,
    prediction: Tensor,
    target: Tensor,
    reduction: str,
    function: Callable[[Tensor], Tensor],
) -> Tensor:
    prediction, target = F.asarray(prediction), F.asarray(target)
    _require_reduction(reduction)
    _require_same(what, prediction, target)
    return _reduced(function(prediction - target), reduction)


@composite
def binary_cross_entropy_with_logits(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of yes-or-no questions, -(t log a + (1 - t) log(1 - a)), a = sigmoid(logits).

    Args:
        logits: any shape.
        target: the probability of yes, t; the same shape, floating point.
        weight: how much each question counts; broadcasts to the shape of `logits`.
        pos_weight: how much more a yes counts than a no; broadcasts likewise.
        reduction: "mean", "sum", or "none".

    Raises:
        ValueError: two shapes; both are named.
    """
    logits, target = F.asarray(logits), F.asarray(target)
    _require_reduction(reduction)
    _require_same("binary cross-entropy", logits, target)
    small = F.log1p(F.exp(-F.abs(logits)))
    yes = small + F.maximum(-logits, 0.0)  # -log a
    no = small + F.maximum(logits, 0.0)  # -log(1 - a)
    yes = yes if pos_weight is None else yes * pos_weight
    losses = _times(target, yes) + _times(1 - target, no)
    return _reduced(losses if weight is None else losses * weight, reduction)


@composite
def binary_cross_entropy(
    probability: Tensor, target: Tensor, *, weight: Tensor | None = None, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of yes-or-no questions, -(t log a + (1 - t) log(1 - a)), from a itself.

    A logarithm is at least -100. Where there are logits, `binary_cross_entropy_with_logits` is
    more precise and its gradient never vanishes.

    Args:
        probability: a, from 0 to 1, any shape.
        target: the probability of yes, t; the same shape, floating point.
        weight: how much each question counts; broadcasts to the shape of `probability`.
        reduction: "mean", "sum", or "none".

    Raises:
        ValueError: two shapes; both are named.
    """
    probability, target = F.asarray(probability), F.asarray(target)
    _require_reduction(reduction)
    _require_same("binary cross-entropy", probability, target)
    yes, no = _limited_log(probability), _limited_log(1 - probability)
    losses = -(target * yes + (1 - target) * no)
    return _reduced(losses if weight is None else losses * weight, reduction)


def _limited_log(x: Tensor) -> Tensor:
    least = math.exp(-100)
    return F.where(x <= least, -100.0, F.log(F.where(x <= least, 1.0, x)))


class _Loss(Module):
    def __init__(self, *, reduction: str = "mean") -> None:
        _require_reduction(reduction)
        self.reduction = reduction

    def extra_repr(self) -> str:
        """The reduction, unless it is the mean."""
        return "" if self.reduction == "mean" else f"reduction={self.reduction!r}"


class CrossEntropyLoss(_Loss):
    """Cross-entropy -sum over k of c_k log a_k, a = softmax(logits); see :func:`cross_entropy`."""

    def __init__(
        self,
        *,
        weight: Any = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.weight = None if weight is None else Buffer(weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(..., classes) and labels (...) or probabilities (..., classes) -> one number."""
        return cross_entropy(
            logits,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


class MSELoss(_Loss):
    """The mean of (prediction - target)^2; see :func:`mse_loss`."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two of one shape -> one number."""
        return mse_loss(prediction, target, reduction=self.reduction)


class L1Loss(_Loss):
    """The mean of abs(prediction - target); see :func:`l1_loss`."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two of one shape -> one number."""
        return l1_loss(prediction, target, reduction=self.reduction)


class HuberLoss(_Loss):
    """Half the squared error up to `delta`, linear beyond; see :func:`huber_loss`."""

    def __init__(self, *, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.delta = delta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two of one shape -> one number."""
        return huber_loss(prediction, target, delta=self.delta, reduction=self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Cross-entropy of yes-or-no questions; see :func:`binary_cross_entropy_with_logits`."""

    def __init__(
        self, *, weight: Any = None, pos_weight: Any = None, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        self.weight = None if weight is None else Buffer(weight)
        self.pos_weight = None if pos_weight is None else Buffer(pos_weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Two of one shape -> one number."""
        return binary_cross_entropy_with_logits(
            logits,
            target,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
        )


class BCELoss(_Loss):
    """Cross-entropy of yes-or-no questions, from probabilities; see `binary_cross_entropy`."""

    def __init__(self, *, weight: Any = None, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.weight = None if weight is None else Buffer(weight)

    def forward(self, probability: Tensor, target: Tensor) -> Tensor:
        """Two of one shape -> one number."""
        return binary_cross_entropy(
            probability, target, weight=self.weight, reduction=self.reduction
        )
