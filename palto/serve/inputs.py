"""What comes over HTTP for a model, and the page to try it: pictures, or rows of a table."""

from __future__ import annotations

import io
import json
from typing import Any, NamedTuple, Protocol

import numpy as np

from palto.serve.texts import PICTURE, ROW, Texts
from palto.train.inference import PictureClassifier, Predictor, TablePredictor

#: Types that say nothing (the last is what curl says); the contents show what it is.
ANY_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")


class Question(NamedTuple):
    """What a request asks.

    Attributes:
        inputs: for the model.
        notes: to each of them, what was made no use of, in sentences.
        is_list: whether a list of answers is wanted, rather than one.
    """

    inputs: list[np.ndarray]
    notes: list[list[str]]
    is_list: bool


class Inputs(Protocol):
    """A way in which a model's inputs come.

    Attributes:
        wanted: what a body should be.
        body_bytes: the largest body.
        page: the name of the page's files.
        texts: what the page says, by language.
        about: what `/model` says of the inputs.
    """

    wanted: str
    body_bytes: int
    page: str
    texts: Texts
    about: dict[str, Any]

    def takes(self, kind: str) -> bool:
        """Whether bodies may be of this media type."""

    def read(self, body: bytes) -> Question:
        """What a body asks.

        Raises:
            ValueError: something is wrong in it; the message is for whoever has sent it.
        """


class Pictures:
    """A picture a request, as it is in a file."""

    wanted = "a picture (PNG, JPEG, WebP, ...)"
    body_bytes = 32 << 20  # a photograph is smaller
    page = "picture"
    texts = PICTURE

    def __init__(self, predictor: PictureClassifier) -> None:
        self._read = predictor.read
        self.about: dict[str, Any] = {}

    def takes(self, kind: str) -> bool:
        """Any picture but a drawing made of instructions."""
        return kind in ANY_TYPES or (kind.startswith("image/") and kind != "image/svg+xml")

    def read(self, body: bytes) -> Question:
        """The body's picture."""
        try:
            return Question([self._read(io.BytesIO(body))], [[]], is_list=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"this picture cannot be read: {error}") from None


class Rows:
    """Rows of a table as JSON: an object with the columns as names, or a list of such objects.

    Args:
        predictor: knows the columns.
        most: how many rows a request may have.
    """

    wanted = "JSON: a row, as an object with the columns as names, or a list of rows"
    body_bytes = 1 << 20
    page = "row"

    def __init__(self, predictor: TablePredictor, most: int) -> None:
        encoder = predictor.encoder
        self._read, self._most = predictor.read, most
        self.texts = {
            language: texts | {"title": texts["title"].format(target=encoder.target)}
            for language, texts in ROW.items()
        }
        self.about: dict[str, Any] = {
            "target": encoder.target,
            "columns": [
                {"name": column.name}
                | ({"mean": column.mean} if column.categories is None else
                   {"categories": column.categories})
                for column in encoder.columns
            ],
        }  # fmt: skip

    def takes(self, kind: str) -> bool:
        """JSON."""
        return kind in ANY_TYPES or kind == "application/json"

    def read(self, body: bytes) -> Question:
        """The body's rows."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"this is no JSON: {error}") from None
        rows = content if isinstance(content, list) else [content]
        if not rows:
            raise ValueError("the list is empty; it should hold rows")
        if len(rows) > self._most:
            raise ValueError(f"{len(rows):,} rows are too many: ask at most {self._most:,} at once")
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is no object with the columns as names")
        read = [self._read(row, number) for number, row in enumerate(rows, 1)]
        inputs, notes = map(list, zip(*read, strict=True))
        return Question(inputs, notes, isinstance(content, list))


def inputs_of(predictor: Predictor, most: int) -> Inputs:
    """The way in which this model's inputs come, so many in a request at most."""
    if isinstance(predictor, TablePredictor):
        return Rows(predictor, most)
    assert isinstance(predictor, PictureClassifier)
    return Pictures(predictor)
