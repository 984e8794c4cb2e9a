"""What ONNX's operators mean, by kind; each file adds its rows to the table."""

from palto.formats.onnx.operators import (
    control,
    elementwise,
    images,
    indexing,
    movement,
    networks,
    recurrent,
    reductions,
)

__all__ = [
    "control", "elementwise", "images", "indexing", "movement", "networks", "recurrent",
    "reductions",
]  # fmt: skip
