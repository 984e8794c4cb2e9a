"""Residual networks, for small images and for large ones."""

from __future__ import annotations

from palto import nn
from palto.tensor import Tensor
from palto.tensor import functions as F


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input goes straight on: relu(f(x) + x).

    Where the shape changes, the straight way takes every second pixel and fills new channels with
    zeros (the paper's option A), or is a 1 x 1 convolution (option B).

    Args:
        channels: how many come in.
        width: how many go out.
        stride: 2 halves the image.
        projection: whether the straight way is a convolution where the shape changes.
    """

    def __init__(self, channels: int, width: int, stride: int, *, projection: bool) -> None:
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - channels
        self.shortcut = None
        if projection and (stride != 1 or channels != width):
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, channels) to (N, H / stride, W / stride, width)."""
        residual = nn.functional.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return nn.functional.relu(residual + self._straight(x))

    def _straight(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            x = self.shortcut(x)
            return x
        if self.stride != 1:
            x = x[:, :: self.stride, :: self.stride, :]
        if self.new_channels:
            x = F.pad(x, [(0, 0), (0, 0), (0, 0), (0, self.new_channels)])
        return x


class ResNet(nn.Module):
    """A convolution, stages of blocks, the mean over all pixels, a linear layer; see `resnet`.

    Args:
        conv: the first convolution.
        pool: what follows it; None for nothing.
        widths: the channels of each stage.
        counts: the blocks of each stage; the first of all but the first stage halves the image.
        classes: how many classes to tell apart.
        projection: as in `BasicBlock`.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        pool: nn.MaxPool2d | None,
        widths: list[int],
        counts: list[int],
        classes: int,
        *,
        projection: bool,
    ) -> None:
        channels = widths[0]
        self.conv = conv
        self.norm = nn.BatchNorm2d(channels)
        self.pool = pool
        blocks = []
        for stage, (width, count) in enumerate(zip(widths, counts, strict=True)):
            for place in range(count):
                stride = 2 if stage and place == 0 else 1
                blocks.append(BasicBlock(channels, width, stride, projection=projection))
                channels = width
        self.blocks = tuple(blocks)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, height, width, channels) to logits (N, classes)."""
        x = nn.functional.relu(self.norm(self.conv(x)))
        if self.pool is not None:
            x = self.pool(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.fc(x.mean((1, 2)))
        return logits


def resnet(depth: int = 20, classes: int = 10, image: tuple[int, int, int] = (32, 32, 3)) -> ResNet:
    """A residual network of `depth` layers, in the form that fits the images.

    Images (N, height, width, channels), output (N, classes).

    - Up to 64 pixels: the paper's network for CIFAR-10. A 3 x 3 convolution, three stages of
      16, 32 and 64 channels with n blocks each, depth 6n + 2; the straight ways have no parameters.
      Depth 20 has 269,722 parameters, 32 has 464,154, for ten classes of three channels.
    - Larger: the paper's network for ImageNet. A 7 x 7 convolution and max-pooling, four stages of
      64, 128, 256 and 512 channels; the straight ways are convolutions where the shape changes.
      Depth 18 has 11,689,512 parameters, 34 has 21,797,672, for 1000 classes of three channels.

    Convolutions start from He's normal distribution (fan out), as in the paper.

    Args:
        depth: 6n + 2 (8, 14, 20, 26, 32 ...) up to 64 pixels, 18 or 34 above.
        classes: how many classes to tell apart.
        image: height, width and channels.

    Raises:
        ValueError: a depth that does not exist for these images, or images below 8 pixels.

    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016.
    """
    height, width, channels = image
    small = max(height, width) <= 64
    if min(height, width) < 8:
        raise ValueError(f"resnet takes images from 8 x 8 pixels up, got {height} x {width}")
    if small and (depth < 8 or depth % 6 != 2):
        raise ValueError(
            f"resnet for images up to 64 pixels has depth 8, 14, 20, 26, 32 or another 6n + 2, got "
            f"{depth}; 18 and 34 are for larger ones than {height} x {width}"
        )
    if not small and depth not in (18, 34):
        raise ValueError(
            f"resnet for images above 64 pixels has depth 18 or 34, got {depth}; other depths are "
            f"for smaller images than {height} x {width}"
        )
    if small:
        conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        counts = [(depth - 2) // 6] * 3
        return ResNet(conv, None, [16, 32, 64], counts, classes, projection=False)
    conv = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    counts = [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]
    return ResNet(conv, pool, [64, 128, 256, 512], counts, classes, projection=True)
