"""What can be wrong with an ONNX model."""

from __future__ import annotations


class OnnxError(ValueError):
    """A file that is no whole ONNX model, or a model that contradicts itself."""


class UnsupportedError(OnnxError):
    """A model that Palto does not run, or a function that ONNX does not express.

    Attributes:
        operator: the operator, or the primitive, for which there is no way.
    """

    def __init__(self, operator: str, message: str) -> None:
        super().__init__(message)
        self.operator = operator
