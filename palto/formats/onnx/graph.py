"""An ONNX graph as plain values: what remains of the file once it has been read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from palto.tensor.dtypes import DType
from palto.tensor.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of a model.

    Attributes:
        name: its name.
        dtype: its dtype, None if the file does not say.
        shape: its axes, None if the file does not say; an axis is a length, or a name or None
            where any length is allowed.
    """

    name: str
    dtype: DType | None
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        dtype = self.dtype.name if self.dtype else "any dtype"
        if self.shape is None:
            return f"{self.name}: {dtype} of any shape"
        axes = ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.name}: {dtype} ({axes})"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An operator applied to named values.

    Attributes:
        operator: its name, after its domain and a dot unless that is ONNX's own.
        name: the node's own name, which may be empty.
        inputs: the names of its inputs, empty where an optional one is left out.
        outputs: the names of its outputs, empty where nobody wants one.
        attributes: numbers, texts, tuples of them, tensors and graphs by name.
        versions: the version of each domain's operators that the graph is written for.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    versions: Mapping[str, int]

    @property
    def domain(self) -> str:
        """The operator's domain, "" for ONNX's own."""
        return self.operator.rpartition(".")[0]

    @property
    def version(self) -> int:
        """The version of the operators in its domain."""
        return self.versions.get(self.domain, 1)

    def __str__(self) -> str:
        called = f" {self.name!r}" if self.name else ""
        return f"the node{called} of operator {self.operator} (version {self.version})"


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Nodes in an order in which they can run.

    Attributes:
        inputs: what is given; initializers are not among them.
        outputs: what is returned.
        constants: tensors by name that are part of the graph.
        initializers: the names of those that are a model's weights.
        nodes: the nodes.
        last_uses: for each node, the names that no later node reads.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    constants: Mapping[str, Tensor]
    initializers: frozenset[str]
    nodes: tuple[Node, ...]
    last_uses: tuple[tuple[str, ...], ...]
