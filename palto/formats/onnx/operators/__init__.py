"""What ONNX's operators mean, by kind; each file adds its rows to the table."""

from palto.formats.onnx.operators import (
    control,
    detection,
    elementwise,
    images,
    indexing,
    movement,
    networks,
    recurrent,
    reductions,
)

__all__ = [
    "control", "detection", "elementwise", "images", "indexing", "movement", "networks",
    "recurrent", "reductions",
]  # fmt: skip
