"""The models that are trained, of Palto's layers and of PyTorch's.

Palto's layers have PyTorch's names, so that a function of the module of layers (`palto.nn` or
`torch.nn`) makes both models. Where the two libraries differ there are two classes, whose
parameters come in the same order.
"""

from __future__ import annotations

from typing import Any

import palto
from palto import nn

# --- One after the other -------------------------------------------------------------------------


def fully_connected(layers: Any) -> Any:
    """One hidden layer."""
    return layers.Sequential(layers.Linear(784, 128), layers.ReLU(), layers.Linear(128, 10))


def convolutional(layers: Any) -> Any:
    """Three convolutions of 28 x 28 images."""
    return layers.Sequential(
        layers.Conv2d(1, 32, 3, padding=1), layers.ReLU(),
        layers.Conv2d(32, 64, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
        layers.Conv2d(64, 128, 3, padding=1), layers.ReLU(), layers.MaxPool2d(2),
        layers.Flatten(), layers.Linear(7 * 7 * 128, 128), layers.ReLU(), layers.Linear(128, 10),
    )  # fmt: skip


def alexnet(layers: Any) -> Any:
    """AlexNet in one tower."""
    return layers.Sequential(
        layers.Conv2d(3, 64, 11, stride=4, padding=2), layers.ReLU(),
        layers.MaxPool2d(3, stride=2),
        layers.Conv2d(64, 192, 5, padding=2), layers.ReLU(), layers.MaxPool2d(3, stride=2),
        layers.Conv2d(192, 384, 3, padding=1), layers.ReLU(),
        layers.Conv2d(384, 256, 3, padding=1), layers.ReLU(),
        layers.Conv2d(256, 256, 3, padding=1), layers.ReLU(), layers.MaxPool2d(3, stride=2),
        layers.Flatten(), layers.Linear(6 * 6 * 256, 4096), layers.ReLU(),
        layers.Linear(4096, 4096), layers.ReLU(), layers.Linear(4096, 1000),
    )  # fmt: skip


def lenet(layers: Any) -> Any:
    """LeNet-5, as `nn.models.lenet` is."""
    return layers.Sequential(
        layers.Conv2d(1, 6, 5, padding=2), layers.Tanh(), layers.AvgPool2d(2),
        layers.Conv2d(6, 16, 5), layers.Tanh(), layers.AvgPool2d(2), layers.Flatten(),
        layers.Linear(16 * 5 * 5, 120), layers.Tanh(), layers.Linear(120, 84), layers.Tanh(),
        layers.Linear(84, 10),
    )  # fmt: skip


def pilot(layers: Any) -> Any:
    """The self-driving car's network, as `palto.recipes.drive` has it."""
    return layers.Sequential(
        layers.Conv2d(2, 24, 5, stride=2), layers.ReLU(),
        layers.Conv2d(24, 36, 5, stride=2), layers.ReLU(),
        layers.Conv2d(36, 48, 3), layers.ReLU(), layers.Conv2d(48, 64, 3), layers.ReLU(),
        layers.Flatten(), layers.Linear(4 * 5 * 64, 160), layers.ReLU(),
        layers.Linear(160, 50), layers.ReLU(), layers.Linear(50, 2),
    )  # fmt: skip


def tabular(layers: Any) -> Any:
    """32 features, three hidden layers of 256 with batch norm, 8 classes."""
    found, width = [], 32
    for _ in range(3):
        found += [layers.Linear(width, 256), layers.BatchNorm1d(256), layers.ReLU()]
        width = 256
    return layers.Sequential(*found, layers.Linear(width, 8))


def policy(layers: Any) -> Any:
    """From 4 numbers, such as a pole's on a cart, to 2 actions."""
    return layers.Sequential(
        layers.Linear(4, 64), layers.Tanh(), layers.Linear(64, 64), layers.Tanh(),
        layers.Linear(64, 2),
    )  # fmt: skip


def separable(layers: Any) -> Any:
    """Depthwise convolutions followed by pointwise ones, as in MobileNet, for 32 x 32 images."""
    found = [layers.Conv2d(3, 32, 3, padding=1, bias=False), layers.BatchNorm2d(32), layers.ReLU()]
    channels = 32
    for filters, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        found += [
            layers.Conv2d(
                channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False
            ),
            layers.BatchNorm2d(channels), layers.ReLU(),
            layers.Conv2d(channels, filters, 1, bias=False),
            layers.BatchNorm2d(filters), layers.ReLU(),
        ]  # fmt: skip
        channels = filters
    found += [layers.AdaptiveAvgPool2d(1), layers.Flatten(), layers.Linear(channels, 10)]
    return layers.Sequential(*found)


# --- U-Net ---------------------------------------------------------------------------------------


def unet(layers: Any, channels: int = 16, classes: int = 2) -> Any:
    """Down twice and up again; a class for each pixel."""

    def block(before: int, after: int) -> Any:
        return layers.Sequential(
            layers.Conv2d(before, after, 3, padding=1, bias=False),
            layers.BatchNorm2d(after), layers.ReLU(),
            layers.Conv2d(after, after, 3, padding=1, bias=False),
            layers.BatchNorm2d(after), layers.ReLU(),
        )  # fmt: skip

    def joined(*images: Any) -> Any:
        if layers is nn:
            return palto.concat(images, axis=-1)
        import torch

        return torch.cat(images, dim=1)

    class UNet(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down1 = block(3, channels)
            self.down2 = block(channels, 2 * channels)
            self.bottom = block(2 * channels, 4 * channels)
            self.up2 = layers.ConvTranspose2d(4 * channels, 2 * channels, 2, stride=2)
            self.join2 = block(4 * channels, 2 * channels)
            self.up1 = layers.ConvTranspose2d(2 * channels, channels, 2, stride=2)
            self.join1 = block(2 * channels, channels)
            self.classes = layers.Conv2d(channels, classes, 1)
            self.pool = layers.MaxPool2d(2)

        def forward(self, x: Any) -> Any:
            fine = self.down1(x)
            coarse = self.down2(self.pool(fine))
            x = self.bottom(self.pool(coarse))
            x = self.join2(joined(self.up2(x), coarse))
            x = self.join1(joined(self.up1(x), fine))
            return self.classes(x)

    return UNet()


# --- GRU -----------------------------------------------------------------------------------------


def gru(layers: Any, features: int, hidden: int, classes: int) -> Any:
    """The classes of sequences (time, batch, features), from the last state of a GRU."""

    class Classifier(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = layers.GRU(features, hidden)
            self.classes = layers.Linear(hidden, classes)

        def forward(self, x: Any) -> Any:
            _, state = self.gru(x)
            return self.classes(state[0])

    return Classifier()


# --- ResNet --------------------------------------------------------------------------------------


def torch_resnet(
    channels: int, widths: tuple[int, ...], counts: tuple[int, ...], classes: int
) -> Any:
    """What `nn.models.resnet` is, in PyTorch: four stages are the network for large images."""
    import torch

    functional, layers, is_large = torch.nn.functional, torch.nn, len(widths) == 4

    class Block(layers.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = layers.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
            self.norm1 = layers.BatchNorm2d(width)
            self.conv2 = layers.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm2 = layers.BatchNorm2d(width)
            self.stride, self.new_channels = stride, width - before
            self.shortcut = None
            if is_large and (stride != 1 or before != width):
                self.shortcut = layers.Sequential(
                    layers.Conv2d(before, width, 1, stride=stride, bias=False),
                    layers.BatchNorm2d(width),
                )

        def forward(self, x: Any) -> Any:
            residual = functional.relu(self.norm1(self.conv1(x)))
            residual = self.norm2(self.conv2(residual))
            if self.shortcut is not None:
                x = self.shortcut(x)
            elif self.stride != 1 or self.new_channels:
                x = x[:, :, :: self.stride, :: self.stride]
                x = functional.pad(x, (0, 0, 0, 0, 0, self.new_channels))
            return functional.relu(residual + x)

    class ResNet(layers.Module):
        def __init__(self) -> None:
            super().__init__()
            width = widths[0]
            kernel = {"kernel_size": 7, "stride": 2, "padding": 3} if is_large else {
                "kernel_size": 3, "padding": 1}  # fmt: skip
            self.conv = layers.Conv2d(channels, width, **kernel, bias=False)
            self.norm = layers.BatchNorm2d(width)
            self.pool = layers.MaxPool2d(3, stride=2, padding=1) if is_large else None
            blocks, before = [], width
            for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
                for place in range(count):
                    blocks.append(Block(before, width, 2 if stage and place == 0 else 1))
                    before = width
            self.blocks = layers.Sequential(*blocks)
            self.fc = layers.Linear(before, classes)

        def forward(self, x: Any) -> Any:
            x = functional.relu(self.norm(self.conv(x)))
            x = x if self.pool is None else self.pool(x)
            return self.fc(self.blocks(x).mean((2, 3)))

    return ResNet()


# --- GPT -----------------------------------------------------------------------------------------


def torch_gpt(tokens: int, time: int, width: int, heads: int, layers: int) -> Any:
    """What `nn.models.gpt` is, in PyTorch."""
    import torch

    functional = torch.nn.functional

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_proj_weight = torch.nn.Parameter(torch.empty(3 * width, width))
            self.in_proj_bias = torch.nn.Parameter(torch.empty(3 * width))
            self.out_proj = torch.nn.Linear(width, width)

        def forward(self, x: Any) -> Any:
            count, time, _ = x.shape
            joined = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
            query, key, value = (
                part.view(count, time, heads, width // heads).transpose(1, 2)
                for part in joined.split(width, dim=2)
            )
            y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            return self.out_proj(y.transpose(1, 2).reshape(count, time, width))

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1 = torch.nn.LayerNorm(width)
            self.attention = Attention()
            self.norm2 = torch.nn.LayerNorm(width)
            self.expand = torch.nn.Linear(width, 4 * width)
            self.contract = torch.nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            hidden = functional.gelu(self.expand(self.norm2(x)), approximate="tanh")
            return x + self.contract(hidden)

    class GPT(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = torch.nn.Embedding(tokens, width)
            self.positions = torch.nn.Embedding(time, width)
            self.blocks = torch.nn.ModuleList([Block() for _ in range(layers)])
            self.norm = torch.nn.LayerNorm(width)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
            for block in self.blocks:
                x = block(x)
            return (self.norm(x) @ self.tokens.weight.T).flatten(0, 1)

    return GPT()
