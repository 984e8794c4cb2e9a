"""File formats."""

from palto.formats import onnx, pytorch, safetensors

__all__ = ["onnx", "pytorch", "safetensors"]
