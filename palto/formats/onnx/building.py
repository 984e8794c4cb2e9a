"""An ONNX graph while it is being written.

A tensor of Palto's is *held* by a value of the graph in whatever order of axes is at hand, and
without axes along which it only repeats: a permutation or a repetition writes no node, and a
convolution's channels-first result stays so through everything that goes element by element.
Whoever needs the plain order asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palto.compiler.sizes import Atom, Size
from palto.extras import require
from palto.formats.onnx.errors import UnsupportedError
from palto.tensor.dtypes import Array, DType
from palto.tensor.tensor import Shape, Tensor

#: The version of ONNX's operators that is written.
OPSET = 20
#: The version of the file format, which those who read these operators know.
FORMAT = 9


@dataclass(frozen=True, slots=True)
class Held:
    """A value that holds a tensor.

    Attributes:
        name: the value's name.
        axes: for each of its axes, which of the tensor's it is; along others, the tensor repeats.
        shape: the lengths of its axes, each that of the tensor or 1.
    """

    name: str
    axes: tuple[int, ...]
    shape: Shape


class Builder:
    """Nodes and initializers, one after the other.

    Args:
        taken: names that only their owners may use.
    """

    def __init__(self, taken: Sequence[str]) -> None:
        self.helper = require("onnx.helper", "onnx", "writing ONNX")
        self.numpy_helper = require("onnx.numpy_helper", "onnx", "writing ONNX")
        self.nodes: list[Any] = []
        self.initializers: dict[str, Array] = {}
        #: How each tensor is held, by identity.
        self.held_by: dict[int, Held] = {}
        #: The real and the imaginary part of each complex tensor, by its identity.
        self.parts: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept: list[Tensor] = []
        #: For each run-time size, the input and its axis that have this length.
        self.sizes: dict[str, tuple[str, int]] = {}
        #: The layers that nodes are named by.
        self.scope: tuple[str, ...] = ()
        self._taken = set(taken)
        self._known: dict[Any, str] = {}
        self._count = 0

    # Nodes

    def fresh(self, stem: str) -> str:
        """A name that nobody has yet."""
        while True:
            self._count += 1
            name = f"{stem}_{self._count}"
            if name not in self._taken:
                return name

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Write a node; its output's name, or a list of several."""
        names = [self.fresh(operator.lower()) for _ in range(outputs)]
        path = "/".join((*self.scope, names[0]))
        self.nodes.append(
            self.helper.make_node(operator, list(inputs), names, name=path, **attributes)
        )
        return names[0] if outputs == 1 else names

    def once(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The same for a node of one output; equal ones are written once."""
        key = (operator, inputs, str(sorted(attributes.items())))
        if key not in self._known:
            self._known[key] = self.node(operator, *inputs, **attributes)
        return self._known[key]

    def constant(self, value: Any, dtype: DType | type = np.int64) -> str:
        """These numbers; equal ones are written once. They are a node, and no parameter."""
        array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        key = ("constant", array.dtype.name, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.node("Constant", value=self.numpy_helper.from_array(array))
        return self._known[key]

    def number_of(self, dtype: DType) -> int:
        """ONNX's number for a dtype."""
        return int(self.helper.np_dtype_to_tensor_dtype(dtype))

    # Run-time sizes

    def lengths(self, numbers: Sequence[int]) -> str:
        """A vector of whole numbers, computed where they depend on run-time sizes."""
        if not any(isinstance(n, Size) for n in numbers):
            return self.constant(list(map(int, numbers)))
        return self.once("Concat", *(self._length(n) for n in numbers), axis=0)

    def _length(self, n: int) -> str:
        if not isinstance(n, Size):
            return self.constant([int(n)])
        total: str | None = None
        for atoms, factor in n.terms.items():
            term = None if atoms and factor == 1 else self.constant([factor])
            for atom in atoms:
                length = self._atom(atom)
                term = length if term is None else self.once("Mul", term, length)
            assert term is not None
            total = term if total is None else self.once("Add", total, term)
        assert total is not None
        return total

    def _atom(self, atom: Atom) -> str:
        if atom.kind:
            operator = "Div" if atom.kind == "/" else "Mod"
            return self.once(operator, self._length(atom.dividend), self._length(atom.divisor))
        name, axis = self.sizes[atom.name]
        return self.once("Shape", name, start=axis, end=axis + 1)

    # How tensors are held

    def hold(self, tensor: Tensor, name: str, axes: Sequence[int] | None = None) -> None:
        """Say that a value holds a tensor, whole, with its axes in this order."""
        order = tuple(range(tensor.ndim)) if axes is None else tuple(axes)
        self.hold_as(tensor, Held(name, order, tuple(tensor.shape[axis] for axis in order)))

    def hold_as(self, tensor: Tensor, held: Held) -> None:
        """Say how a tensor is held. It lives as long as its identity says something here."""
        self.held_by[id(self.keep(tensor))] = held

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor that is in no graph, and lives as long as its identity says something here."""
        self._kept.append(tensor)
        return tensor

    def held(self, tensor: Tensor) -> Held:
        """What holds a tensor; a constant becomes an initializer."""
        if id(tensor) not in self.held_by:
            if tensor._value is None:
                raise RuntimeError("defect in Palto's ONNX export: a tensor that nothing computes")
            self.hold(tensor, self.constant(tensor.array(), tensor.dtype))
        return self.held_by[id(tensor)]

    def arranged(self, held: Held, axes: Sequence[int], *, is_full: bool = False) -> str:
        """A value with its axes in this order.

        Args:
            held: what to arrange; its axes are among `axes`.
            axes: the order.
            is_full: whether all axes must be there; otherwise leading ones may be absent, as
                broadcasting adds them.
        """
        order = [axis for axis in axes if axis in held.axes]
        name = held.name
        if list(held.axes) != order:
            name = self.once("Transpose", name, perm=[held.axes.index(axis) for axis in order])
        wanted = list(axes)
        while not is_full and wanted and wanted[0] not in held.axes:
            wanted.pop(0)
        missing = [place for place, axis in enumerate(wanted) if axis not in held.axes]
        return self.once("Unsqueeze", name, self.constant(missing)) if missing else name

    def whole(self, tensor: Tensor, axes: Sequence[int] | None = None) -> str:
        """A value with all of a tensor's elements, its axes in this order; by default the plain."""
        order = tuple(range(tensor.ndim)) if axes is None else tuple(axes)
        held = self.held(tensor)
        shape = tuple(tensor.shape[axis] for axis in order)
        stored = dict(zip(held.axes, held.shape, strict=True))
        if all(stored.get(axis, 1) == n for axis, n in zip(order, shape, strict=True)):
            return self.arranged(held, order, is_full=True)
        return self.once("Expand", self.arranged(held, order), self.lengths(shape))

    def elementwise(
        self, operator: str, result: Tensor, *inputs: Tensor, **attributes: Any
    ) -> None:
        """Write a node that goes element by element, in the order of axes that is at hand."""
        names, form = self.together(inputs)
        self.hold_as(result, replace(form, name=self.node(operator, *names, **attributes)))

    def together(self, inputs: Sequence[Tensor]) -> tuple[list[str], Held]:
        """Tensors in one order of axes, and how what is computed from them is held."""
        held = [self.held(x) for x in inputs]
        union = {axis for x in held for axis in x.axes}
        most = max(held, key=lambda x: len(x.axes))
        order = most.axes if set(most.axes) == union else tuple(sorted(union))
        lengths: dict[int, int] = {}
        for x in held:
            for axis, n in zip(x.axes, x.shape, strict=True):
                if lengths.get(axis, 1) == 1:
                    lengths[axis] = n
        form = Held("", order, tuple(lengths[axis] for axis in order))
        return [self.arranged(x, order) for x in held], form

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is written in this block is a graph inside: no node outside may use it."""
        known, held = dict(self._known), dict(self.held_by)
        try:
            yield
        finally:
            self._known, self.held_by = known, held

    def value_info(self, name: str, tensor: Tensor) -> Any:
        """The description of an input or output."""
        shape = [str(n) if isinstance(n, Size) else int(n) for n in tensor.shape]
        return self.helper.make_tensor_value_info(name, self.number_of(tensor.dtype), shape)

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any], notes: Mapping[str, str]) -> Any:
        """The onnx.ModelProto.

        Raises:
            UnsupportedError: it is too large for one file.
        """
        size = sum(array.nbytes for array in self.initializers.values())
        if size > 2**31 - 2**24:
            raise UnsupportedError(
                "ModelProto", f"the weights take {size / 2**30:.1f} GiB; an ONNX file holds 2"
            )
        names = [value.name for value in outputs]
        nodes = _needed(self.nodes, names)
        tensors = [self.numpy_helper.from_array(a, name) for name, a in self.initializers.items()]
        graph = self.helper.make_graph(nodes, "palto", inputs, outputs, tensors)
        model = self.helper.make_model(
            graph,
            opset_imports=[self.helper.make_opsetid("", OPSET)],
            ir_version=FORMAT,
            producer_name="palto",
        )
        self.helper.set_model_props(model, dict(notes))
        return model


def _needed(nodes: Sequence[Any], outputs: Sequence[str]) -> list[Any]:
    """The nodes on which the outputs depend."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
            for attribute in node.attribute:
                wanted.update(name for inner in attribute.g.node for name in inner.input)
    return kept[::-1]


def matched(old: Shape, new: Shape) -> dict[int, int] | None:
    """From axes of one shape to those of another that differs by axes of length 1 alone."""
    pairs: dict[int, int] = {}
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and old[i] == new[j]:
            pairs[i] = j
            i, j = i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            i += 1
        elif j < len(new) and new[j] == 1:
            j += 1
        else:
            return None
    return pairs
