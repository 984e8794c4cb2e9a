"""File formats."""

from palto.formats import gguf, onnx, pytorch, safetensors

__all__ = ["gguf", "onnx", "pytorch", "safetensors"]
