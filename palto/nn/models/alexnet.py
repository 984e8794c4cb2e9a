"""AlexNet, for its own large images and for small ones."""

from __future__ import annotations

from typing import Any

from palto import nn
from palto.tensor import Tensor


class AlexNet(nn.Module):
    """Five convolutions and three linear layers; see `alexnet`."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        self.features = features
        self.classifier = classifier
        for layer in (*features, *classifier):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, height, width, channels) to logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


def alexnet(classes: int = 1000, image: tuple[int, int, int] = (224, 224, 3)) -> AlexNet:
    """AlexNet, in the size that fits the images.

    Images (N, height, width, channels), output (N, classes). Five convolutions, the second, fourth
    and fifth in two groups; ReLU; local response normalisation after the first two; overlapping
    pooling (3 x 3, stride 2) after the first, second and fifth; three linear layers, with dropout
    0.5 before the first two.

    - 224 x 224: the original; 60,965,224 parameters for 1000 classes of three channels. As is
      usual, the first convolution pads by two pixels, so that it gives the paper's 55 x 55.
    - 28 to 64 pixels: half as many channels, an eighth of the hidden neurons, and 5 x 5 kernels
      with stride 1 in place of 11 x 11 with stride 4, since a small image has no pixels to skip.
      1,106,794 parameters for ten classes of 28 x 28 x 1.

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
        first = nn.Conv2d(channels, 96, 11, stride=4, padding=2)
        return _alexnet(first, (96, 256, 384, 384, 256), (6, 6), 4096, classes)
    if not (28 <= height <= 64 and 28 <= width <= 64):
        raise ValueError(
            f"alexnet takes images of 224 x 224, or of 28 to 64 pixels a side, got {height} x "
            f"{width}; resize them to one of these"
        )
    first = nn.Conv2d(channels, 48, 5, padding=2)
    last = (_pooled(height), _pooled(width))
    return _alexnet(first, (48, 128, 192, 192, 128), last, 512, classes)


def _pooled(length: int) -> int:
    """What three times pooling leave of a side."""
    for _ in range(3):
        length = (length - 3) // 2 + 1
    return length


def _alexnet(
    first: nn.Conv2d, channels: tuple[int, ...], last: tuple[int, int], hidden: int, classes: int
) -> AlexNet:
    c1, c2, c3, c4, c5 = channels

    def normalised() -> list[Any]:
        # The paper's alpha is 1e-4 for each of the five neighbours; here it is for their mean.
        return [nn.ReLU(), nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0), pool()]

    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, stride=2)

    features = nn.Sequential(
        *(first, *normalised()),
        *(nn.Conv2d(c1, c2, 5, padding=2, groups=2), *normalised()),
        *(nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c3, c4, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(c4, c5, 3, padding=1, groups=2), nn.ReLU(), pool()),
    )
    classifier = nn.Sequential(
        nn.Flatten(),
        *(nn.Dropout(0.5), nn.Linear(last[0] * last[1] * c5, hidden), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, classes),
    )
    return AlexNet(features, classifier)
