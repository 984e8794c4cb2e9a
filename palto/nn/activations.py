"""Activations: the functions between layers, each also as a module.

None of them overflows, and every gradient is finite, for any finite input. At kinks the gradient
is the one that PyTorch takes.
"""

from __future__ import annotations

import math

from palto.nn.module import Module, Parameter
from palto.tensor import Tensor
from palto.tensor import functions as F
from palto.tensor.functions import composite, tanh


def _minus_size(x: Tensor) -> Tensor:
    """-|x|, with the slope -1 at zero, where the functions below look at x >= 0."""
    return F.where(x >= 0, -x, x)


@composite
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), the logistic function: any number to one between 0 and 1."""
    x = F.asarray(x)
    e = F.exp(_minus_size(x))  # never overflows
    return F.where(x >= 0, 1.0, e) / (1 + e)


def relu(x: Tensor) -> Tensor:
    """max(x, 0). NaN stays NaN."""
    x = F.asarray(x)
    return F.where(x <= 0, 0, x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """X above zero, `negative_slope` times x below (Maas, Hannun and Ng, 2013)."""
    x = F.asarray(x)
    return F.where(x > 0, x, x * negative_slope)


@composite
def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """X above zero, alpha * (exp(x) - 1) below (Clevert, Unterthiner and Hochreiter, 2015)."""
    x = F.asarray(x)
    return F.where(x > 0, x, alpha * F.expm1(F.where(x > 0, 0.0, x)))


@composite(recompute=True)
def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """X times the probability that a standard normal number is below x.

    Args:
        x: any shape.
        approximate: "none" for x / 2 * (1 + erf(x / sqrt(2))), or "tanh" for
            x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).

    Raises:
        ValueError: another name.

    Source: Hendrycks and Gimpel: Gaussian error linear units (2016).
    """
    x = F.asarray(x)
    if approximate == "none":
        return 0.5 * x * (1 + F.erf(x * math.sqrt(0.5)))
    if approximate != "tanh":
        raise ValueError(f"gelu: approximate is 'none' or 'tanh', got {approximate!r}")
    near = F.clip(x, -10, 10)  # beyond, tanh is 1 to the last bit and the cube might overflow
    inner = math.sqrt(2 / math.pi) * (near + 0.044715 * near**3)
    return 0.5 * x * (1 + tanh(inner))


@composite(recompute=True)
def silu(x: Tensor) -> Tensor:
    """X * sigmoid(x), also called swish (Elfwing, Uchibe and Doya, 2017)."""
    x = F.asarray(x)
    return x * sigmoid(x)


@composite
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), a smooth relu."""
    x = F.asarray(x)
    return F.where(x >= 0, x, 0.0) + F.log1p(F.exp(_minus_size(x)))


def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """`x` held between `min_val` and `max_val`."""
    x = F.asarray(x)
    return F.where(x <= min_val, min_val, F.where(x >= max_val, max_val, x))


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """X above zero, weight * x below.

    Args:
        x: shape (..., C).
        weight: the slopes, shape (1,) or (C,).

    Source: He, Zhang, Ren, Sun: Delving deep into rectifiers (2015).
    """
    x = F.asarray(x)
    return F.where(x > 0, x, x * weight)


def maxout(x: Tensor, pieces: int = 2) -> Tensor:
    """The largest of every `pieces` neighbouring channels.

    After a linear layer: h_i(x) = max over j of (w_ij^T x + b_ij), a convex function made of
    `pieces` linear ones.

    Args:
        x: shape (..., pieces * features).
        pieces: how many numbers compete.

    Returns:
        Shape (..., features).

    Raises:
        ValueError: the last axis is no multiple of `pieces`.

    Source: Goodfellow, Warde-Farley, Mirza, Courville, Bengio: Maxout networks (2013).
    """
    x = F.asarray(x)
    if pieces < 1 or x.ndim == 0 or x.shape[-1] % pieces:
        raise ValueError(
            f"maxout of {pieces} pieces wants a last axis that is a multiple of {pieces}, got "
            f"shape {x.shape}"
        )
    return F.max(F.reshape(x, (*x.shape[:-1], x.shape[-1] // pieces, pieces)), axis=-1)


def softmax_gradient(result: Tensor, grad: Tensor, x: Tensor, axis: int = -1) -> Tensor:
    """The gradient of :func:`softmax` from its result; `x` need not be kept."""
    return result * (grad - F.sum(grad * result, axis, keepdims=True))


@composite(gradient=softmax_gradient)
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x_i) / sum of exp(x_j) along `axis`: any numbers to probabilities."""
    x = F.asarray(x)
    e = F.exp(x - F.detach(F.max(x, axis, keepdims=True)))
    return e / F.sum(e, axis, keepdims=True)


@composite
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """The logarithm of :func:`softmax`, exact where that is almost 0."""
    x = F.asarray(x)
    z = x - F.detach(F.max(x, axis, keepdims=True))
    return z - F.log(F.sum(F.exp(z), axis, keepdims=True))


class Identity(Module):
    """`x` itself: a place that another module may take."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return x


class Sigmoid(Module):
    """1 / (1 + exp(-x)); see :func:`sigmoid`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return tanh(x)


class ReLU(Module):
    """max(x, 0); see :func:`relu`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return relu(x)


class LeakyReLU(Module):
    """X above zero, `negative_slope` times x below; see :func:`leaky_relu`."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        """The slope."""
        return str(self.negative_slope)


class ELU(Module):
    """X above zero, alpha * (exp(x) - 1) below; see :func:`elu`."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return elu(x, self.alpha)

    def extra_repr(self) -> str:
        """Alpha."""
        return str(self.alpha)


class GELU(Module):
    """X times the normal distribution's probability of being below x; see :func:`gelu`."""

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELU: approximate is 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return gelu(x, self.approximate)

    def extra_repr(self) -> str:
        """The formula, unless it is the exact one."""
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


class SiLU(Module):
    """X * sigmoid(x); see :func:`silu`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return silu(x)


class Softplus(Module):
    """log(1 + exp(x)); see :func:`softplus`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return softplus(x)


class Hardtanh(Module):
    """`x` held between two numbers; see :func:`hardtanh`."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        self.min_val = min_val
        self.max_val = max_val

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return hardtanh(x, self.min_val, self.max_val)

    def extra_repr(self) -> str:
        """The bounds."""
        return f"{self.min_val}, {self.max_val}"


class PReLU(Module):
    """X above zero, a learnt slope times x below; see :func:`prelu`.

    Args:
        num_parameters: 1 slope for all, or one for each channel of (..., C).
        init: where the slopes start.

    Attributes:
        weight: shape (num_parameters,).
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        self.weight = Parameter(F.full(num_parameters, init))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return prelu(x, self.weight)

    def extra_repr(self) -> str:
        """How many slopes."""
        return str(self.weight.size)


class Maxout(Module):
    """The largest of every `pieces` neighbouring channels; see :func:`maxout`.

    ``nn.Sequential(nn.Linear(784, 2 * 100), nn.Maxout(2))`` has 100 outputs.
    """

    def __init__(self, pieces: int = 2) -> None:
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """(..., pieces * features) -> (..., features)."""
        return maxout(x, self.pieces)

    def extra_repr(self) -> str:
        """How many pieces."""
        return str(self.pieces)


class Softmax(Module):
    """Any numbers to probabilities along `axis`; see :func:`softmax`."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return softmax(x, self.axis)

    def extra_repr(self) -> str:
        """The axis, unless it is the last."""
        return "" if self.axis == -1 else f"axis={self.axis}"


class LogSoftmax(Softmax):
    """The logarithm of probabilities along `axis`; see :func:`log_softmax`."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, kept."""
        return log_softmax(x, self.axis)
