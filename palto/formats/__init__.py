"""File formats."""

from palto.formats import onnx, safetensors

__all__ = ["onnx", "safetensors"]
