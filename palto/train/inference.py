"""Prediction with a trained model: one compiled function, for one input or for many at once."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from palto.compiler import compile
from palto.data.sources.named import TABLES
from palto.data.sources.pictures import SUFFIXES, decode, read_image
from palto.data.sources.tables import TableEncoder, csv_table
from palto.nn import functional
from palto.nn.module import Module
from palto.tensor import Tensor
from palto.tensor.dtypes import Array
from palto.tensor.graph import no_grad

AT_ONCE = 500  # inputs of a file that are computed together


class Prediction(NamedTuple):
    """What a model says about one input.

    Attributes:
        file: the file that holds it.
        line: where it begins in a table's file.
        answer: the probability of each class (K,), or a number (1,); None if it cannot be read.
    """

    file: Path
    line: int | None
    answer: Array | None


class Predictor(ABC):
    """A model in inference mode: from inputs to the probabilities of classes, or to numbers.

    Args:
        model: from float32 (N, ...) to scores (N, K), or to numbers (N, 1).
        shape: the shape of one input.
        classes: the names of the classes; none where the answers are numbers.

    Attributes:
        blank: an input that says nothing, to try it with.
        kind: what its files hold, in the plural.
        suffixes: how the names of such files end.
    """

    kind: str
    suffixes: Collection[str]
    blank: Array

    def __init__(self, model: Module, shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
        model.eval()
        self.shape, self.classes = shape, classes

        @compile
        def outputs(inputs: Tensor) -> Tensor:
            found = model(inputs)
            return functional.softmax(found, axis=-1) if classes else found

        self._outputs = outputs

    @abstractmethod
    def open(self, file: str | os.PathLike[str]) -> tuple[Array, Sequence[int | None]]:
        """A file's inputs (N, ...), and the line of each, None where it has no lines.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is of another kind, or damaged; the message says where.
        """

    def predict(
        self, files: Iterable[str | os.PathLike[str]], *, complain: Callable[[str], None]
    ) -> Iterator[Prediction]:
        """The answers for files, or folders of them.

        Args:
            files: what `open` reads, or folders of it.
            complain: called with a sentence for each file that cannot be read.

        Yields:
            Each input's prediction, in the order of the files and of their lines.

        Raises:
            FileNotFoundError: a file is not there, or a folder holds none.
        """
        for path in list(self._inside(files)):
            try:
                inputs, lines = self.open(path)
            except (OSError, ValueError) as error:
                complain(str(error))
                yield Prediction(path, None, None)
                continue
            for k in range(0, len(inputs), AT_ONCE):
                answers = self(inputs[k : k + AT_ONCE])
                for line, answer in zip(lines[k : k + AT_ONCE], answers, strict=True):
                    yield Prediction(path, line, answer)

    def _inside(self, files: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
        for name in files:
            path = Path(name)
            inside = sorted(x for x in path.rglob("*") if x.suffix.lower() in self.suffixes)
            if not path.exists():
                raise FileNotFoundError(f"there is no file {path}")
            if path.is_dir() and not inside:
                raise FileNotFoundError(f"the folder {path} holds no {self.kind}")
            yield from inside if path.is_dir() else [path]

    def __call__(self, inputs: Array) -> Array:
        """The probability of each class (N, K), or a number for each input (N, 1)."""
        with no_grad():
            return np.asarray(self._outputs(inputs).numpy())

    def describe(self, answer: Array) -> dict[str, Any]:
        """An answer for other programs: `class` and `probabilities`, or `value`."""
        if not self.classes:
            return {"value": float(answer[0])}
        pairs = zip(self.classes, answer.tolist(), strict=True)
        named = sorted(pairs, key=lambda pair: -pair[1])
        return {"class": named[0][0], "probabilities": dict(named)}


class PictureClassifier(Predictor):
    """Pictures, bytes (H, W, C), to the probabilities of their classes.

    Args:
        model: from float32 (N, H, W, C) in [0, 1] to scores (N, K).
        shape: (H, W, C) of one picture.
        classes: the names of the classes.
    """

    kind, suffixes = "pictures", SUFFIXES

    def __init__(self, model: Module, shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
        super().__init__(model, shape, classes)
        height, width, depth = shape
        self._size = (height, width)
        self._channels: Literal[1, 3] = 1 if depth == 1 else 3
        self.blank = np.zeros(shape, np.uint8)

    def read(self, file: str | os.PathLike[str] | BinaryIO) -> Array:
        """A picture as the model sees it, uint8 (H, W, C).

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is no picture, a damaged one, or one too large to decode.
        """
        if isinstance(file, str | os.PathLike):
            return read_image(file, size=self._size, channels=self._channels)
        return decode(file, self._size, self._channels, "crop")

    def open(self, file: str | os.PathLike[str]) -> tuple[Array, Sequence[int | None]]:
        """The file's picture (1, H, W, C); see `read`."""
        return self.read(file)[None], [None]

    def __call__(self, inputs: Array) -> Array:
        """The probability of each class, float32 (N, K), of pictures uint8 (N, H, W, C)."""
        return super().__call__(np.multiply(inputs, np.float32(1 / 255), dtype=np.float32))


class TablePredictor(Predictor):
    """Rows of a table to the probabilities of their classes, or to numbers in the target's unit.

    Args:
        model: from float32 (N, F) to scores (N, K), or to standardised numbers (N, 1).
        encoder: how the table became numbers that the model was trained on.
    """

    kind, suffixes = "tables", TABLES

    def __init__(self, model: Module, encoder: TableEncoder) -> None:
        super().__init__(model, (len(encoder.features),), encoder.classes or ())
        self.encoder = encoder
        self.blank = np.zeros(self.shape, np.float32)

    def read(self, row: Mapping[str, Any], number: int = 1) -> tuple[Array, list[str]]:
        """A row as the model sees it, float32 (F,), and notes: see `TableEncoder.encode`."""
        return self.encoder.encode(row, number)

    def open(self, file: str | os.PathLike[str]) -> tuple[Array, Sequence[int | None]]:
        """The rows of a table in a file, (N, F), and their lines; the target may be absent."""
        table, _ = csv_table(file, encoder=self.encoder, with_target=False)
        return table.arrays[0], table.lines.tolist()

    def __call__(self, inputs: Array) -> Array:
        """The probability of each class, float32 (N, K), or numbers, float64 (N, 1)."""
        found = super().__call__(inputs)
        return found if self.classes else self.encoder.restore(found.astype(np.float64))
