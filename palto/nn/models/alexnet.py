"""AlexNet, for its own large images and for small ones."""

from __future__ import annotations

from palto import nn
from palto.tensor import Tensor


class AlexNet(nn.Module):
    """Five convolutions and three linear layers; see `alexnet`.

    Args:
        conv1: the first convolution.
        widths: the channels of the other four.
        pixels: how many pixels pooling leaves at the end.
        hidden: the width of the two hidden linear layers.
        classes: how many classes to tell apart.
        dropout: the share of numbers that dropout leaves out before the first two linear layers.
    """

    def __init__(
        self,
        conv1: nn.Conv2d,
        widths: tuple[int, ...],
        pixels: int,
        hidden: int,
        classes: int,
        dropout: float = 0.5,
    ) -> None:
        c1, (c2, c3, c4, c5) = conv1.weight.shape[-1], widths
        self.conv1 = conv1
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, groups=2)
        self.relu = nn.ReLU()
        # The paper's alpha is 1e-4 for each of the five neighbours; here it is for their mean.
        self.norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        self.pool = nn.MaxPool2d(3, stride=2)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(pixels * c5, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, classes)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, height, width, channels) to logits (N, classes)."""
        x = self.pool(self.norm(self.relu(self.conv1(x))))
        x = self.pool(self.norm(self.relu(self.conv2(x))))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        x = self.pool(self.relu(self.conv5(x)))
        x = self.relu(self.fc1(self.dropout(self.flatten(x))))
        x = self.relu(self.fc2(self.dropout(x)))
        logits: Tensor = self.fc3(x)
        return logits


def alexnet(classes: int = 1000, image: tuple[int, int, int] = (224, 224, 3)) -> AlexNet:
    """AlexNet, in the size that fits the images.

    Images (N, height, width, channels), output (N, classes). Five convolutions, the second, fourth
    and fifth in two groups; ReLU; local response normalisation after the first two; overlapping
    pooling (3 x 3, stride 2) after the first, second and fifth; three linear layers, with dropout
    before the first two.

    - 224 x 224: the original; 60,965,224 parameters for 1000 classes of three channels, dropout
      0.5. As is usual, the first convolution pads by two pixels, so that it gives the paper's
      55 x 55.
    - 28 to 64 pixels: about a third of the channels, a sixteenth of the hidden neurons, dropout
      0.25, and 5 x 5 kernels with stride 1 in place of 11 x 11 with stride 4, since a small image
      has no pixels to skip. 285,322 parameters for ten classes of 28 x 28 x 1.

    Unlike in the paper (N(0, 0.01^2), some biases 1), weights start from He's normal distribution
    and biases from 0, which keeps signals at their size through eight layers.

    Args:
        classes: how many classes to tell apart.
        image: height, width and channels.

    Raises:
        ValueError: another image size.

    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural
    networks", 2012.
    """
    height, width, channels = image
    if (height, width) == (224, 224):
        conv1 = nn.Conv2d(channels, 96, 11, stride=4, padding=2)
        return AlexNet(conv1, (256, 384, 384, 256), 6 * 6, 4096, classes)
    if not (28 <= height <= 64 and 28 <= width <= 64):
        raise ValueError(
            f"alexnet takes images of 224 x 224, or of 28 to 64 pixels a side, got {height} x "
            f"{width}; resize them to one of these"
        )
    conv1 = nn.Conv2d(channels, 32, 5, padding=2)
    pixels = _pooled(height) * _pooled(width)
    return AlexNet(conv1, (64, 96, 96, 64), pixels, 256, classes, dropout=0.25)


def _pooled(length: int) -> int:
    """What three times pooling leave of a side."""
    for _ in range(3):
        length = (length - 3) // 2 + 1
    return length
