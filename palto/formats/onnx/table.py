"""The table of ONNX's operators, and what a row is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palto.formats.onnx.errors import OnnxError, UnsupportedError
from palto.formats.onnx.graph import Graph, Node
from palto.tensor.dtypes import Array
from palto.tensor.tensor import Shape, Tensor

#: From a call and its inputs (None where one is left out) to the output, or several.
Function = Callable[..., Any]
#: A result of more elements is refused: a small file may ask for any number.
MOST_ELEMENTS = 2**28


@dataclass(frozen=True, slots=True)
class Operator:
    """One row: what an operator does, and what it wants to know of its inputs.

    Attributes:
        function: its meaning.
        static: the places of inputs whose values shape the result, so that a program must know
            them when it is made.
        statistics: the places of inputs that training does not change by gradients.
        shape_only: whether only the shapes of its inputs matter.
        draws: whether it draws random numbers.
    """

    function: Function
    static: tuple[int, ...] = ()
    statistics: tuple[int, ...] = ()
    shape_only: bool = False
    draws: bool = False


#: Every operator by name, which begins with its domain unless that is ONNX's own.
TABLE: dict[str, Operator] = {}


def operator(
    *names: str,
    static: tuple[int, ...] = (),
    statistics: tuple[int, ...] = (),
    shape_only: bool = False,
    draws: bool = False,
) -> Callable[[Function], Function]:
    """Make a function a row of the table, under one or several names."""

    def add(function: Function) -> Function:
        for name in names:
            TABLE[name] = Operator(function, static, statistics, shape_only, draws)
        return function

    return add


@dataclass(frozen=True, slots=True)
class Call:
    """What a row is given besides its inputs.

    Attributes:
        node: the node.
        run: runs a graph inside the node with inputs, and gives its outputs.
    """

    node: Node
    run: Callable[[Graph, Sequence[Tensor]], list[Tensor]]

    @property
    def version(self) -> int:
        """The version of the operators that the model is written for."""
        return self.node.version

    def attribute(self, name: str, default: Any = None) -> Any:
        """A number, a text, a tuple of them, a tensor or a graph."""
        value = self.node.attributes.get(name)
        return default if value is None else value

    def wants(self, place: int) -> bool:
        """Whether somebody may read this output."""
        return place < len(self.node.outputs) and bool(self.node.outputs[place])

    def error(self, reason: str) -> OnnxError:
        """What to raise where the model contradicts itself."""
        return OnnxError(f"{self.node}: {reason}")

    def refusal(self, reason: str) -> UnsupportedError:
        """What to raise where Palto has no way."""
        return UnsupportedError(self.node.operator, f"{self.node}: {reason}")

    def known(self, x: Tensor, what: str) -> Array:
        """The value of an input that shapes the result."""
        if x.trace is not None:
            raise self.refusal(
                f"{what} is computed from numbers that are known only when the program runs, and a "
                "compiled program has fixed shapes; run the model without palto.compile, or export "
                "it with this fixed"
            )
        return x.array()

    def ints(self, x: Tensor, what: str) -> list[int]:
        """Whole numbers that shape the result, as a list."""
        return [int(n) for n in np.atleast_1d(self.known(x, what)).reshape(-1)]

    def axes(self, x: Tensor, axes: Sequence[int] | None) -> tuple[int, ...]:
        """Axes of a tensor counted from the front; all for None."""
        if axes is None:
            return tuple(range(x.ndim))
        found = tuple(axis + x.ndim if axis < 0 else axis for axis in axes)
        if any(not 0 <= axis < x.ndim for axis in found):
            raise self.error(f"axes {tuple(axes)} of a tensor of shape {x.shape}")
        return found

    def axis(self, x: Tensor, default: int) -> int:
        """The attribute `axis`, counted from the front."""
        return self.axes(x, [self.attribute("axis", default)])[0]

    def bounded(self, shape: Sequence[int]) -> Shape:
        """The shape itself, unless no machine should be asked for it."""
        if any(n < 0 for n in shape):
            raise self.error(f"the shape {tuple(shape)} has a negative length")
        if math.prod(shape) > MOST_ELEMENTS:
            raise self.error(
                f"a result of shape {tuple(shape)} has more than the {MOST_ELEMENTS:,} elements "
                "that Palto makes for an ONNX model"
            )
        return tuple(shape)
