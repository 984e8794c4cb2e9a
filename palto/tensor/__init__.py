"""Tensors: the graph, its primitives, and the functions composed from them."""

from palto.tensor.tensor import Cell, Tensor, TraceError

__all__ = ["Cell", "Tensor", "TraceError"]
