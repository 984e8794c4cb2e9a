"""Whole networks, one to a file."""

from palto.nn.models.alexnet import AlexNet, alexnet
from palto.nn.models.fast_resnet import FastResNet, fast_resnet
from palto.nn.models.gpt import GPT, gpt
from palto.nn.models.lenet import LeNet, lenet
from palto.nn.models.perceptron import fully_connected, logistic_regression
from palto.nn.models.resnet import ResNet, resnet

__all__ = [
    "AlexNet",
    "FastResNet",
    "GPT",
    "LeNet",
    "ResNet",
    "alexnet",
    "fast_resnet",
    "fully_connected",
    "gpt",
    "lenet",
    "logistic_regression",
    "resnet",
]
