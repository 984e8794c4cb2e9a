"""Whole networks, one to a file."""

from palto.nn.models.alexnet import AlexNet, alexnet
from palto.nn.models.fast_resnet import FastResNet, fast_resnet
from palto.nn.models.gpt import GPT, gpt
from palto.nn.models.lenet import LeNet, lenet
from palto.nn.models.llama import Cache, Llama, llama
from palto.nn.models.perceptron import fully_connected, logistic_regression
from palto.nn.models.resnet import ResNet, resnet

__all__ = [
    "AlexNet",
    "Cache",
    "FastResNet",
    "GPT",
    "LeNet",
    "Llama",
    "ResNet",
    "alexnet",
    "fast_resnet",
    "fully_connected",
    "gpt",
    "lenet",
    "llama",
    "logistic_regression",
    "resnet",
]
