"""What is measured: models, their batches, and how much there is to compute.

A step is forward, backward and Adam (or, where a workload says so, a forward pass alone), in
float32, on one batch that stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import models
import numpy as np

from palto import nn

#: The frameworks that Palto stands beside where it trains, and where it does not.
PEERS = ("PyTorch", "JAX", "TensorFlow", "MLX")
INFERENCE_PEERS = ("PyTorch", "ONNX Runtime")


@dataclass(frozen=True)
class Workload:
    """A model, its batch, and who can compute it.

    Attributes:
        name: how the command line calls it.
        title: one line for the table.
        batch: makes the inputs (channels-last) and the labels.
        model: makes the model, given the module of layers: `palto.nn` or `torch.nn`.
        torch_model: makes PyTorch's, where `model` makes Palto's alone.
        multiply_adds: of the matrix products of one forward pass, the first first; None: those of
            the model's layers.
        first_has_gradient: whether backprop goes through the first of them to its input.
        flattened: (height, width, channels) of the image that the first linear layer flattens.
        images: whether the inputs are images.
        trains: whether a step trains, or is a forward pass alone.
        peers: the frameworks that have it.
    """

    name: str
    title: str
    batch: Callable[[], tuple[np.ndarray, np.ndarray]]
    model: Callable[[Any], Any]
    torch_model: Callable[[], Any] | None = None
    multiply_adds: tuple[int, ...] | None = None
    first_has_gradient: bool = False
    flattened: tuple[int, int, int] | None = None
    images: bool = False
    trains: bool = True
    peers: tuple[str, ...] = PEERS

    @property
    def examples(self) -> int:
        """How many a batch has."""
        return len(self.batch()[0])

    @property
    def flops(self) -> int:
        """Of one step: each product forward, and again for each of its two gradients."""
        products = self.multiply_adds or _products(self.model(nn), self.batch()[0].shape)
        if not self.trains:
            return 2 * sum(products)
        return 2 * (3 * sum(products) - (0 if self.first_has_gradient else products[0]))


def _products(model: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Multiply-adds of each layer that has some, for inputs of such a shape."""
    layers, found = dict(model.named_modules()), []
    for row in model.summary(shape).rows:
        layer = layers[row.path]
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            places = math.prod(row.outputs[0][:-1])
            if isinstance(layer, nn.ConvTranspose2d):
                places //= math.prod(layer.stride)  # an input meets all weights, no output does
            found.append(places * layer.weight.size)
    return found


def _examples(
    shape: tuple[int, ...], classes: int, labels: tuple[int, ...] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.random(shape, np.float32)
    return inputs, rng.integers(classes, size=shape[:1] if labels is None else labels)


def _texts(count: int, time: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    text = np.random.default_rng(0).integers(tokens, size=(count, time + 1))
    return np.ascontiguousarray(text[:, :-1]), np.ascontiguousarray(text[:, 1:])


# --- The four that every framework is measured with ----------------------------------------------


def _gpt() -> Workload:
    tokens, time, width, heads, layers, texts = 256, 128, 192, HEADS, 4, 16
    rows = texts * time
    layer = (rows * 12 * width * width, 2 * texts * time * time * width)
    return Workload(
        "gpt",
        f"GPT: {layers} layers, width {width}, {time} tokens, batch {texts}",
        partial(_texts, texts, time, tokens),
        lambda layers_of: layers_of.models.gpt(tokens, time, width, heads, layers),
        torch_model=partial(models.torch_gpt, tokens, time, width, heads, layers),
        multiply_adds=(*(layer * layers), rows * width * tokens),
        first_has_gradient=True,
    )


#: Of the GPT's attention.
HEADS = 6

MAIN = (
    Workload(
        "fully_connected",
        "fully connected 784-128-10, batch 64",
        partial(_examples, (64, 784), 10),
        models.fully_connected,
    ),
    Workload(
        "convolutional",
        "CNN 28x28: 32, 64, pool, 128, pool, 128, 10; batch 128",
        partial(_examples, (128, 28, 28, 1), 10),
        models.convolutional,
        flattened=(7, 7, 128),
        images=True,
    ),
    Workload(
        "alexnet",
        "AlexNet 224, 1000 classes, batch 32",
        partial(_examples, (32, 224, 224, 3), 1000),
        models.alexnet,
        flattened=(6, 6, 256),
        images=True,
    ),
    _gpt(),
)

# --- What else people train ----------------------------------------------------------------------


def _gru() -> Workload:
    time, count, features, hidden, classes = 64, 32, 64, 128, 10
    return Workload(
        "gru",
        f"GRU: sequence {time}, {features} features, hidden {hidden}, batch {count}",
        partial(_examples, (time, count, features), classes, (count,)),
        partial(models.gru, features=features, hidden=hidden, classes=classes),
        multiply_adds=(
            time * count * features * 3 * hidden,
            time * count * hidden * 3 * hidden,
            count * hidden * classes,
        ),
        peers=("PyTorch",),
    )


MORE = (
    Workload(
        "unet",
        "U-Net 64x64: channels 16-32-64, batch norm, batch 8",
        partial(_examples, (8, 64, 64, 3), 2, (8, 64, 64)),
        models.unet,
        images=True,
        peers=("PyTorch",),
    ),
    _gru(),
    Workload(
        "tabular",
        "tabular: 32 features, 256-256-256 with batch norm, batch 256",
        partial(_examples, (256, 32), 8),
        models.tabular,
        peers=("PyTorch",),
    ),
    Workload(
        "policy",
        "policy 4-64-64-2, batch 8",
        partial(_examples, (8, 4), 2),
        models.policy,
        peers=("PyTorch",),
    ),
    Workload(
        "policy_inference",
        "policy 4-64-64-2, batch 1, inference",
        partial(_examples, (1, 4), 2),
        models.policy,
        trains=False,
        peers=("PyTorch",),
    ),
    Workload(
        "separable",
        "depthwise-separable CNN 32x32: 32-64-128-128-256-256, batch 32",
        partial(_examples, (32, 32, 32, 3), 10),
        models.separable,
        images=True,
        peers=("PyTorch",),
    ),
)

# --- Inference: one image, for its latency, and 64 -----------------------------------------------


def _inference(count: int) -> tuple[Workload, ...]:
    shared: dict[str, Any] = {"images": True, "trains": False, "peers": INFERENCE_PEERS}
    batch = f"batch {count}"
    return (
        Workload(
            f"lenet_{count}", f"LeNet 28x28, {batch}",
            partial(_examples, (count, 28, 28, 1), 10), models.lenet,
            flattened=(5, 5, 16), **shared,
        ),
        Workload(
            f"pilot_{count}", f"self-driving car 42x48, {batch}",
            partial(_examples, (count, 42, 48, 2), 2), models.pilot,
            flattened=(4, 5, 64), **shared,
        ),
        Workload(
            f"resnet20_{count}", f"ResNet-20 32x32, {batch}",
            partial(_examples, (count, 32, 32, 3), 10), lambda layers: layers.models.resnet(20),
            torch_model=partial(models.torch_resnet, 3, (16, 32, 64), (3, 3, 3), 10), **shared,
        ),
        Workload(
            f"alexnet_{count}", f"AlexNet 224, 1000 classes, {batch}",
            partial(_examples, (count, 224, 224, 3), 1000), models.alexnet,
            flattened=(6, 6, 256), **shared,
        ),
        Workload(
            f"resnet18_{count}", f"ResNet-18 224, 1000 classes, {batch}",
            partial(_examples, (count, 224, 224, 3), 1000),
            lambda layers: layers.models.resnet(18, 1000, (224, 224, 3)),
            torch_model=partial(models.torch_resnet, 3, (64, 128, 256, 512), (2,) * 4, 1000),
            **shared,
        ),
    )  # fmt: skip


INFERENCE = (*_inference(1), *_inference(64))

WORKLOADS = {workload.name: workload for workload in (*MAIN, *MORE, *INFERENCE)}
