"""Prediction with a trained model: one compiled function, for one picture or for many at once."""

from __future__ import annotations

import os
from typing import BinaryIO, Literal

import numpy as np

from palto.compiler import compile
from palto.data.sources.pictures import decode, read_image
from palto.nn import functional
from palto.nn.module import Module
from palto.tensor import Tensor
from palto.tensor.graph import no_grad


class PictureClassifier:
    """Pictures to the probabilities of their classes, by a model in inference mode.

    Args:
        model: from float32 (N, H, W, C) in [0, 1] to scores (N, K).
        shape: (H, W, C) of one picture.
    """

    def __init__(self, model: Module, shape: tuple[int, ...]) -> None:
        model.eval()
        height, width, depth = shape
        self.shape = (height, width, depth)
        self._size = (height, width)
        self._channels: Literal[1, 3] = 1 if depth == 1 else 3

        @compile
        def probabilities(images: Tensor) -> Tensor:
            return functional.softmax(model(images), axis=-1)

        self._probabilities = probabilities

    def read(self, file: str | os.PathLike[str] | BinaryIO) -> np.ndarray:
        """A picture as the model sees it, uint8 (H, W, C).

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is no picture, a damaged one, or one too large to decode.
        """
        if isinstance(file, str | os.PathLike):
            return read_image(file, size=self._size, channels=self._channels)
        return decode(file, self._size, self._channels, "crop")

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """The probability of each class, float32 (N, K), of pictures uint8 (N, H, W, C)."""
        images = np.multiply(pictures, np.float32(1 / 255), dtype=np.float32)
        with no_grad():
            return np.asarray(self._probabilities(images).numpy())
