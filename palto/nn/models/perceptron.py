"""Logistic regression and the fully connected network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from palto import nn


def logistic_regression(features: int, classes: int) -> nn.Sequential:
    """One linear layer; cross-entropy makes its outputs the logarithms of probabilities.

    Input (N, ...) of `features` numbers each, output (N, classes); features * classes + classes
    parameters, 7,850 for ten classes of 28 x 28 images.

    Args:
        features: numbers in an input, such as the pixels of an image.
        classes: how many classes to tell apart.

    Cox, "The regression analysis of binary sequences", 1958.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))


def fully_connected(
    features: int,
    hidden: Sequence[int] = (128,),
    classes: int = 10,
    *,
    activation: Callable[..., Any] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with an activation between: the multilayer perceptron.

    Input (N, ...) of `features` numbers each, output (N, classes); 784-128-10 has 101,770
    parameters.

    Args:
        features: numbers in an input.
        hidden: the width of each hidden layer; none makes logistic regression.
        classes: how many classes to tell apart, or numbers to put out.
        activation: what makes the activation between two layers, such as ``nn.ReLU``.

    Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986.
    """
    widths = [features, *hidden]
    layers: list[Any] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
