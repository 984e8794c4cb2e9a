"""The training steps that are measured, each in Palto and in PyTorch with the same weights.

A step is forward, backward and Adam, in float32, on one batch that stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import palto
from palto import nn, optim


@dataclass(frozen=True)
class Workload:
    """A model, its batch, and how both sides build it.

    Attributes:
        name: how the command line calls it.
        title: one line for the table.
        batch: makes the inputs (channels-last) and the labels.
        palto_model: makes Palto's model.
        torch_model: makes PyTorch's, given the module torch.
        multiply_adds: of every matrix multiplication and convolution of one forward pass.
        flattened: (height, width, channels) of the image that the first linear layer flattens.
        first_has_gradient: whether backprop goes through the first of them to its input.
    """

    name: str
    title: str
    batch: Callable[[], tuple[np.ndarray, np.ndarray]]
    palto_model: Callable[[], nn.Module]
    torch_model: Callable[[Any], Any]
    multiply_adds: list[int]
    flattened: tuple[int, int, int] | None = None
    first_has_gradient: bool = False
    images: bool = field(default=False)

    @property
    def flops(self) -> int:
        """Of one step: each multiplication forward, and again for each of its two gradients."""
        first = 0 if self.first_has_gradient else self.multiply_adds[0]
        return 2 * (3 * sum(self.multiply_adds) - first)


# --- Fully connected -----------------------------------------------------------------------------


def _fully_connected() -> Workload:
    batch = 64

    def torch_model(torch: Any) -> Any:
        layers = torch.nn
        return layers.Sequential(layers.Linear(784, 128), layers.ReLU(), layers.Linear(128, 10))

    return Workload(
        name="fully_connected",
        title="fully connected 784-128-10, batch 64",
        batch=lambda: _examples((batch, 784), 10),
        palto_model=lambda: nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)),
        torch_model=torch_model,
        multiply_adds=[batch * 784 * 128, batch * 128 * 10],
    )


# --- Convolutional -------------------------------------------------------------------------------


def _convolutional() -> Workload:
    batch = 128

    def palto_model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(7 * 7 * 128, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip

    def torch_model(torch: Any) -> Any:
        layers = torch.nn
        return layers.Sequential(
            layers.Conv2d(1, 32, 3, padding=1), layers.ReLU(),
            layers.Conv2d(32, 64, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
            layers.Conv2d(64, 128, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
            layers.Flatten(), layers.Linear(7 * 7 * 128, 128), layers.ReLU(),
            layers.Linear(128, 10),
        )  # fmt: skip

    pixels = batch * 28 * 28
    return Workload(
        name="convolutional",
        title="CNN 28x28x1, convolutions 32-64-128, batch 128",
        batch=lambda: _examples((batch, 28, 28, 1), 10),
        palto_model=palto_model,
        torch_model=torch_model,
        multiply_adds=[
            pixels * 9 * 1 * 32, pixels * 9 * 32 * 64, pixels // 4 * 9 * 64 * 128,
            batch * 7 * 7 * 128 * 128, batch * 128 * 10,
        ],
        flattened=(7, 7, 128),
        images=True,
    )  # fmt: skip


# --- AlexNet -------------------------------------------------------------------------------------


def _alexnet() -> Workload:
    batch = 32

    def palto_model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2),
            nn.Flatten(), nn.Linear(6 * 6 * 256, 4096), nn.ReLU(),
            nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000),
        )  # fmt: skip

    def torch_model(torch: Any) -> Any:
        layers = torch.nn
        return layers.Sequential(
            layers.Conv2d(3, 64, 11, stride=4, padding=2), layers.ReLU(),
            layers.MaxPool2d(3, stride=2),
            layers.Conv2d(64, 192, 5, padding=2), layers.ReLU(), layers.MaxPool2d(3, stride=2),
            layers.Conv2d(192, 384, 3, padding=1), layers.ReLU(),
            layers.Conv2d(384, 256, 3, padding=1), layers.ReLU(),
            layers.Conv2d(256, 256, 3, padding=1), layers.ReLU(),
            layers.MaxPool2d(3, stride=2),
            layers.Flatten(), layers.Linear(6 * 6 * 256, 4096), layers.ReLU(),
            layers.Linear(4096, 4096), layers.ReLU(), layers.Linear(4096, 1000),
        )  # fmt: skip

    return Workload(
        name="alexnet",
        title="AlexNet 224x224x3, one tower, 1000 classes, batch 32",
        batch=lambda: _examples((batch, 224, 224, 3), 1000),
        palto_model=palto_model,
        torch_model=torch_model,
        multiply_adds=[
            batch * 55 * 55 * 64 * 3 * 121, batch * 27 * 27 * 192 * 64 * 25,
            batch * 13 * 13 * 384 * 192 * 9, batch * 13 * 13 * 256 * 384 * 9,
            batch * 13 * 13 * 256 * 256 * 9,
            batch * 9216 * 4096, batch * 4096 * 4096, batch * 4096 * 1000,
        ],
        flattened=(6, 6, 256),
        images=True,
    )  # fmt: skip


# --- GPT -----------------------------------------------------------------------------------------

_TOKENS, _TIME, _WIDTH, HEADS, _LAYERS, _TEXTS = 256, 128, 192, 6, 4, 16


def _gpt() -> Workload:
    def batch() -> tuple[np.ndarray, np.ndarray]:
        text = np.random.default_rng(0).integers(_TOKENS, size=(_TEXTS, _TIME + 1))
        return np.ascontiguousarray(text[:, :-1]), np.ascontiguousarray(text[:, 1:])

    rows = _TEXTS * _TIME
    attention = 2 * _TEXTS * _TIME * _TIME * _WIDTH
    layer = [rows * 12 * _WIDTH * _WIDTH, attention]
    return Workload(
        name="gpt",
        title=f"GPT, {_LAYERS} layers, width {_WIDTH}, {_TIME} tokens, batch {_TEXTS}",
        batch=batch,
        palto_model=lambda: nn.models.gpt(_TOKENS, _TIME, _WIDTH, HEADS, _LAYERS),
        torch_model=_torch_gpt,
        multiply_adds=[*(layer * _LAYERS), rows * _WIDTH * _TOKENS],
        first_has_gradient=True,
    )


def _torch_gpt(torch: Any) -> Any:
    layers, functional = torch.nn, torch.nn.functional

    class Attention(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_proj_weight = layers.Parameter(torch.empty(3 * _WIDTH, _WIDTH))
            self.in_proj_bias = layers.Parameter(torch.empty(3 * _WIDTH))
            self.out_proj = layers.Linear(_WIDTH, _WIDTH)

        def forward(self, x: Any) -> Any:
            count, time, _ = x.shape
            joined = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
            query, key, value = (
                part.view(count, time, HEADS, _WIDTH // HEADS).transpose(1, 2)
                for part in joined.split(_WIDTH, dim=2)
            )
            y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return self.out_proj(y.transpose(1, 2).reshape(count, time, _WIDTH))

    class Block(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = layers.LayerNorm(_WIDTH)
            self.attention = Attention()
            self.norm2 = layers.LayerNorm(_WIDTH)
            self.expand = layers.Linear(_WIDTH, 4 * _WIDTH)
            self.contract = layers.Linear(4 * _WIDTH, _WIDTH)

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            hidden = functional.gelu(self.expand(self.norm2(x)), approximate="tanh")
            return x + self.contract(hidden)

    class GPT(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = layers.Embedding(_TOKENS, _WIDTH)
            self.positions = layers.Embedding(_TIME, _WIDTH)
            self.blocks = layers.ModuleList([Block() for _ in range(_LAYERS)])
            self.norm = layers.LayerNorm(_WIDTH)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T

    return GPT()


def _examples(shape: tuple[int, ...], classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random(shape, np.float32), rng.integers(classes, size=shape[0])


WORKLOADS = {
    workload.name: workload
    for workload in (_fully_connected(), _convolutional(), _alexnet(), _gpt())
}


# --- Both sides ----------------------------------------------------------------------------------


class PaltoStep:
    """Palto's side: the step compiled, with its model and optimiser."""

    name = "Palto"

    def __init__(self, workload: Workload) -> None:
        palto.manual_seed(0)
        self.model = model = workload.palto_model()
        self.optimizer = optimizer = optim.Adam(model, lr=1e-3, variant="pytorch")
        self._batch = workload.batch()

        @palto.compile
        def step(inputs: Any, labels: Any) -> Any:
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            return loss

        self._step = step

    def __call__(self) -> float:
        """One step; the loss before it."""
        return float(self._step(*self._batch))

    def explain(self) -> Any:
        """What the step does, and how long each part of it takes."""
        return self._step.explain(*self._batch)


class TorchStep:
    """PyTorch's side in one of its ways, with the weights of Palto's model.

    Args:
        torch: the module.
        workload: what to train.
        weights: Palto's, by name.
        channels_last: hold images and kernels with their channels last.
        fused: Adam in one kernel.
        compiled: through torch.compile.
    """

    def __init__(
        self,
        torch: Any,
        workload: Workload,
        weights: dict[str, np.ndarray],
        *,
        channels_last: bool = False,
        fused: bool = False,
        compiled: bool = False,
    ) -> None:
        parts = ["compile" if compiled else "eager"]
        parts += ["channels_last"] * channels_last + ["fused Adam"] * fused
        self.name = f"PyTorch ({', '.join(parts)})"
        model = workload.torch_model(torch)
        copy_weights(torch, workload, weights, model)
        inputs, labels = (torch.from_numpy(part) for part in workload.batch())
        if workload.images:
            inputs = inputs.permute(0, 3, 1, 2).contiguous()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
            inputs = inputs.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
        forward = torch.compile(model) if compiled else model
        cross_entropy = torch.nn.functional.cross_entropy

        def step() -> float:
            optimizer.zero_grad()
            logits = forward(inputs)
            loss = cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))
            loss.backward()
            optimizer.step()
            return loss.item()

        self._step = step

    def __call__(self) -> float:
        """One step; the loss before it."""
        return self._step()


def weights_of(workload: Workload) -> dict[str, np.ndarray]:
    """The weights that every side starts from."""
    palto.manual_seed(0)
    model = workload.palto_model()
    return {name: parameter.numpy() for name, parameter in model.named_parameters()}


def copy_weights(
    torch: Any, workload: Workload, weights: dict[str, np.ndarray], model: Any
) -> None:
    """Palto's weights into PyTorch's model, whose parameters come in the same order."""
    parameters = list(model.parameters())
    is_flattened = workload.flattened is not None
    for parameter, value in zip(parameters, weights.values(), strict=True):
        if value.ndim == 4:  # (height, width, in, out)
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2 and is_flattened:
            assert workload.flattened is not None
            height, width, channels = workload.flattened
            assert value.shape[1] == math.prod(workload.flattened)
            value = value.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
            value = value.reshape(value.shape[0], -1)
            is_flattened = False
        if tuple(parameter.shape) != value.shape:
            raise ValueError(f"{workload.name}: {tuple(parameter.shape)} and {value.shape}")
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(value, order="C")))
