"""LeNet-5, the convolutional network that read cheques."""

from __future__ import annotations

from palto import nn
from palto.tensor import Tensor


class LeNet(nn.Module):
    """See `lenet`."""

    def __init__(self, classes: int, channels: int, padding: int) -> None:
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.AvgPool2d(2)
        self.activation = nn.Tanh()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 28 or 32, the same, channels) to logits (N, classes)."""
        x = self.pool(self.activation(self.conv1(x)))  # N x 14 x 14 x 6
        x = self.pool(self.activation(self.conv2(x)))  # N x 5 x 5 x 16
        x = self.activation(self.fc1(self.flatten(x)))
        x = self.activation(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


def lenet(classes: int = 10, image: tuple[int, int, int] = (28, 28, 1)) -> LeNet:
    """LeNet-5: two convolutions, each with pooling, and three linear layers.

    Images (N, height, width, channels), output (N, classes); 61,706 parameters for ten classes of
    one channel. Unlike the original, the second convolution sees all six maps, pooling has no
    weights, the activation is the plain tanh, and the output is linear instead of radial.

    Args:
        classes: how many classes to tell apart.
        image: height, width and channels: 32 x 32 pixels, or 28 x 28 with two added on each side.

    Raises:
        ValueError: another image size.

    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
    1998.
    """
    height, width, channels = image
    if (height, width) not in ((28, 28), (32, 32)):
        raise ValueError(
            f"lenet takes images of 28 x 28 or 32 x 32 pixels, got {height} x {width}; resize or "
            "pad them, or use resnet, which takes any size"
        )
    return LeNet(classes, channels, padding=2 if height == 28 else 0)
