"""ONNX: models that other programs run, and theirs for Palto."""

from palto.formats.onnx.errors import OnnxError, UnsupportedError
from palto.formats.onnx.export import export
from palto.formats.onnx.module import OnnxModule, load

__all__ = ["OnnxError", "OnnxModule", "UnsupportedError", "export", "load"]
