"""Palto as a backend of ONNX's own test suite, and of whatever else speaks its interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend as OnnxBackend
from onnx.backend.base import BackendRep

from palto.compiler import compile
from palto.formats.onnx.errors import OnnxError, UnsupportedError
from palto.formats.onnx.module import OnnxModule, load

__all__ = ["Backend", "Prepared"]


class Prepared(BackendRep):  # type: ignore[misc]
    """A model that is ready to run.

    Args:
        module: the model.
        is_compiled: whether it runs as a program.
    """

    def __init__(self, module: OnnxModule, *, is_compiled: bool) -> None:
        self.module = module
        self._function = compile(module) if is_compiled else module

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model on NumPy arrays, in order or by name.

        Raises:
            OnnxError, ValueError, TypeError: as OnnxModule.forward.
        """
        given = inputs if isinstance(inputs, Sequence) else [inputs]
        results = self._function(*[np.asarray(x) for x in given])
        return tuple(x.numpy() for x in (results if isinstance(results, tuple) else (results,)))


class Backend(OnnxBackend):  # type: ignore[misc]
    """What runs ONNX models, in the interface of onnx.backend.base."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether Palto has all operators of a model."""
        try:
            load(model)
        except UnsupportedError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(
        cls, model: onnx.ModelProto, device: str = "CPU", *, compile: bool = False, **kwargs: Any
    ) -> Prepared:
        """Make a model ready to run.

        Raises:
            UnsupportedError: it has an operator that Palto has not.
            OnnxError: it contradicts itself.
        """
        if not cls.supports_device(device):
            raise OnnxError(f"Palto runs on the CPU, not on {device}")
        return Prepared(load(model), is_compiled=compile)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether it is the CPU."""
        return device == "CPU"
