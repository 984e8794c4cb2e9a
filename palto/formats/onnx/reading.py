"""From an ONNX file to a graph. A file is somebody else's: nothing in it is taken on trust.

Refused are files that are cut off, tensors whose shape and data disagree, data outside of the
model's folder, and graphs nested too deep; no memory is taken for what a file only claims to hold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palto.extras import require
from palto.formats.onnx.errors import OnnxError, UnsupportedError
from palto.formats.onnx.graph import Graph, Node, Value
from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.tensor import Tensor

#: Graphs inside graphs (branches, bodies of loops) may be nested so deep.
DEEPEST = 16
#: So many nodes may a model have, once its functions are laid open.
MOST_NODES = 1_000_000
#: A model itself, without its external data; protobuf knows no larger ones.
LARGEST_FILE = 2**31


def library(user: str = "reading and writing ONNX") -> Any:
    """The package onnx, which knows the file format."""
    return require("onnx", "onnx", user)


def read(source: Any) -> Any:
    """The model in a file, in bytes, or as onnx itself holds it, checked; and its tensors' folder.

    Returns:
        The onnx.ModelProto, and the folder for external data or None.

    Raises:
        FileNotFoundError: there is no such file.
        OnnxError: it is no whole model.
    """
    onnx = library()
    if isinstance(source, onnx.ModelProto):
        _require_texts(source)
        return source, None
    folder = None
    if isinstance(source, bytes):
        contents, where = source, "these bytes"
    else:
        path = Path(source)
        if path.stat().st_size > LARGEST_FILE:
            raise OnnxError(f"{path} is larger than the 2 GiB that an ONNX model can have")
        contents, where, folder = path.read_bytes(), str(path), path.parent
    protobuf = require("google.protobuf.message", "onnx", "reading ONNX")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(contents)
    except protobuf.DecodeError as error:
        raise OnnxError(
            f"{where}: no whole ONNX model; it is cut off, or another format: {error}"
        ) from None
    if not model.HasField("graph") or not model.ir_version:
        raise OnnxError(f"{where}: an ONNX model has a version and a graph; this one has not")
    _require_texts(model)
    return model, folder


def _require_texts(message: Any) -> None:
    """Refuse names that are no text, which protobuf hands on as they are."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
            continue
        is_one = isinstance(value, str | bytes) or hasattr(value, "ListFields")
        for part in [value] if is_one else value:
            if field.type == field.TYPE_MESSAGE:
                _require_texts(part)
            elif not isinstance(part, str):
                raise OnnxError(f"the model's {field.name} {part!r} is no text")


def graph_of(model: Any, folder: Path | None) -> Graph:
    """The graph of a model.

    Raises:
        OnnxError: the model contradicts itself.
        UnsupportedError: it holds what Palto has not: texts, sequences, sparse tensors.
    """
    if model.functions:
        model = _laid_open(model)
    versions = {_domain(entry.domain): int(entry.version) for entry in model.opset_import}
    return Reader(versions, folder).graph(model.graph)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _laid_open(model: Any) -> Any:
    """The model without functions of its own. Refused: those that call themselves or explode."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[Any, int] = {}

    def size(nodes: Iterable[Any], path: tuple[Any, ...]) -> int:
        total = 0
        for node in nodes:
            total += 1
            key = (node.domain, node.op_type, node.overload)
            if key in functions:
                if key in path or len(path) > DEEPEST:
                    raise OnnxError(
                        f"the model's function {node.op_type} calls itself, or is nested more "
                        f"than {DEEPEST} deep"
                    )
                if key not in sizes:
                    sizes[key] = size(functions[key].node, (*path, key))
                total += sizes[key]
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    if len(path) > DEEPEST:
                        raise OnnxError(f"graphs are nested more than {DEEPEST} deep")
                    total += size(graph.node, (*path, None)) if graph.node else 0
        if total > MOST_NODES:
            raise OnnxError(f"with its functions the model has more than {MOST_NODES:,} nodes")
        return total

    size(model.graph.node, ())
    inliner = require("onnx.inliner", "onnx", "reading ONNX")
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # onnx's own, of several kinds
        raise OnnxError(f"the model's functions cannot be laid open: {error}") from None


class Reader:
    """Reads graphs.

    Args:
        versions: the version of each domain's operators.
        folder: where external data may lie; None if nowhere.
        given: the attributes of the function whose body is read.
    """

    def __init__(
        self,
        versions: Mapping[str, int],
        folder: Path | None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self._versions = versions
        self._folder = folder
        self._given = given or {}
        self._helper = require("onnx.helper", "onnx", "reading ONNX")
        self._onnx = library()

    def graph(self, graph: Any, depth: int = 0) -> Graph:
        """A graph and what is inside."""
        if depth > DEEPEST:
            raise OnnxError(f"graphs are nested more than {DEEPEST} deep")
        if graph.sparse_initializer:
            raise UnsupportedError("sparse_initializer", "the model holds sparse tensors")
        constants = {t.name: self.tensor(t) for t in graph.initializer}
        weights = frozenset(constants)
        nodes = self.nodes(graph.node, depth, constants)
        inputs = [self._value(v) for v in graph.input if v.name not in weights]
        outputs = [self._value(v) for v in graph.output]
        return self.checked(inputs, outputs, constants, nodes, weights, is_inside=depth > 0)

    def checked(
        self,
        inputs: Sequence[Value],
        outputs: Sequence[Value],
        constants: Mapping[str, Tensor],
        nodes: Sequence[Node],
        initializers: frozenset[str] = frozenset(),
        *,
        is_inside: bool = False,
    ) -> Graph:
        """A graph of these parts, each value of which is there before it is used."""
        known = {value.name for value in inputs} | set(constants)
        last: dict[str, int] = {}
        for place, node in enumerate(nodes):
            for name in _reads(node):
                if name not in known and not is_inside:
                    raise OnnxError(
                        f"{node} reads {name!r}, which nothing before it makes: the graph has a "
                        "cycle, or is cut off"
                    )
                last[name] = place
            known.update(name for name in node.outputs if name)
        for value in outputs:
            if value.name not in known and not is_inside:
                raise OnnxError(f"the model returns {value.name!r}, which no node makes")
        kept = {value.name for value in outputs}
        made = {name for node in nodes for name in node.outputs}
        dead: list[list[str]] = [[] for _ in nodes]
        for name, place in last.items():
            if name in made and name not in kept:
                dead[place].append(name)
        return Graph(
            tuple(inputs),
            tuple(outputs),
            dict(constants),
            initializers,
            tuple(nodes),
            tuple(map(tuple, dead)),
        )

    def nodes(self, nodes: Iterable[Any], depth: int, constants: dict[str, Tensor]) -> list[Node]:
        """The nodes; a constant becomes one of `constants` instead."""
        result: list[Node] = []
        for node in nodes:
            found = self._node(node, depth)
            if found.operator == "Constant" and len(found.outputs) == 1:
                constants[found.outputs[0]] = self._constant(found)
            else:
                result.append(found)
            if len(result) > MOST_NODES:
                raise OnnxError(f"the model has more than {MOST_NODES:,} nodes")
        return result

    def _node(self, node: Any, depth: int) -> Node:
        attributes = {}
        for attribute in node.attribute:
            if attribute.ref_attr_name:
                if attribute.ref_attr_name in self._given:
                    attributes[attribute.name] = self._given[attribute.ref_attr_name]
            else:
                attributes[attribute.name] = self.attribute(attribute, depth)
        domain = _domain(node.domain)
        return Node(
            f"{domain}.{node.op_type}" if domain else node.op_type,
            node.name,
            tuple(node.input),
            tuple(node.output),
            attributes,
            self._versions,
        )

    def _constant(self, node: Node) -> Tensor:
        for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
            for key in (name, f"{name}s"):
                if key in node.attributes:
                    try:
                        return F.asarray(np.array(node.attributes[key], dtype))
                    except (TypeError, ValueError, OverflowError) as error:
                        raise OnnxError(f"{node}: {key} is no number: {error}") from None
        value = node.attributes.get("value")
        if not isinstance(value, Tensor):
            raise UnsupportedError("Constant", f"{node} holds texts or a sparse tensor")
        return value

    def attribute(self, attribute: Any, depth: int = 0) -> Any:
        """The value of an attribute."""
        kinds = self._onnx.AttributeProto
        if attribute.type == kinds.GRAPH:
            return self.graph(attribute.g, depth + 1)
        if attribute.type == kinds.TENSOR:
            return self.tensor(attribute.t)
        if attribute.type == kinds.STRING:
            return attribute.s.decode("utf-8", "replace")
        if attribute.type in (kinds.INT, kinds.FLOAT):
            return attribute.i if attribute.type == kinds.INT else attribute.f
        if attribute.type in (kinds.INTS, kinds.FLOATS):
            return tuple(attribute.ints if attribute.type == kinds.INTS else attribute.floats)
        if attribute.type == kinds.STRINGS:
            return tuple(text.decode("utf-8", "replace") for text in attribute.strings)
        if attribute.type == kinds.TENSORS:
            return tuple(self.tensor(tensor) for tensor in attribute.tensors)
        return None  # sparse tensors, types: an operator that needs them refuses

    def _value(self, value: Any) -> Value:
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            raise UnsupportedError(kind, f"{value.name!r} is of {kind}; Palto runs on tensors")
        tensor = value.type.tensor_type
        dtype = self.dtype(tensor.elem_type, value.name) if tensor.elem_type else None
        shape: tuple[int | str | None, ...] | None = None
        if tensor.HasField("shape"):
            shape = tuple(
                axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None
                for axis in tensor.shape.dim
            )
        return Value(value.name, dtype, shape)

    def dtype(self, number: int, where: str) -> dtypes.DType:
        """The dtype that ONNX gives this number."""
        try:
            found = dtypes.as_dtype(self._helper.tensor_dtype_to_np_dtype(number))
        except (KeyError, TypeError):
            names = {n: name for name, n in self._onnx.TensorProto.DataType.items()}
            name = names.get(number, f"number {number}")
            raise UnsupportedError(
                name,
                f"{where} has ONNX's dtype {name}, which Palto has not; convert the model to "
                "float32 first",
            ) from None
        return found

    # Tensors

    def tensor(self, tensor: Any) -> Tensor:
        """A tensor of the file, or of its external data."""
        name = tensor.name or "a tensor"
        dtype = self.dtype(tensor.data_type, name)
        shape = tuple(tensor.dims)
        if any(n < 0 for n in shape):
            raise OnnxError(f"{name} has the shape {shape}")
        size = math.prod(shape)
        if tensor.data_location == self._onnx.TensorProto.EXTERNAL:
            array = self._external(tensor, name, dtype, size)
        elif tensor.HasField("raw_data"):
            if len(tensor.raw_data) != size * dtype.itemsize:
                raise OnnxError(
                    f"{name} of shape {shape} should have {size * dtype.itemsize} bytes of data "
                    f"and has {len(tensor.raw_data)}"
                )
            array = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<"))
        else:
            array = self._typed(tensor, name, dtype, size)
        try:
            return F.asarray(array.astype(dtype).reshape(shape), copy=False)
        except ValueError as error:
            raise OnnxError(f"{name} of shape {shape}: {error}") from None

    def _typed(self, tensor: Any, name: str, dtype: dtypes.DType, size: int) -> np.ndarray:
        fields = {"float32": "float_data", "float64": "double_data", "int64": "int64_data",
                  "uint32": "uint64_data", "complex64": "float_data"}  # fmt: skip
        numbers = getattr(tensor, fields.get(dtype.name, "int32_data"))
        wanted = 2 * size if dtype == dtypes.complex64 else size
        if len(numbers) != wanted:
            raise OnnxError(f"{name} should have {wanted} numbers and has {len(numbers)}")
        if dtype in dtypes.STORAGE:
            return np.array(numbers, np.uint16).view(dtype)
        if dtype == dtypes.complex64:
            return np.array(numbers, np.float32).view(dtype)
        return np.array(numbers).astype(dtype)

    def _external(self, tensor: Any, name: str, dtype: dtypes.DType, size: int) -> np.ndarray:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if self._folder is None:
            raise OnnxError(f"the data of {name} lies in the file {location!r}; load by the path")
        folder = self._folder.resolve()
        try:
            path = (folder / location).resolve()
            offset, length = int(entries.get("offset", 0)), size * dtype.itemsize
            stated = int(entries.get("length", length))
            is_there = path.is_file()
        except (ValueError, OSError, RuntimeError) as error:
            raise OnnxError(f"{name} has external data that cannot be: {error}") from None
        if not location or not path.is_relative_to(folder) or path == folder:
            raise OnnxError(
                f"the data of {name} is said to lie at {location!r}, which is not inside of the "
                f"model's folder; nothing outside of it is read"
            )
        if not is_there:
            raise OnnxError(f"the data of {name} should lie in {path}, which is no file here")
        if offset < 0 or stated != length or offset + length > os.path.getsize(path):
            raise OnnxError(
                f"{name} wants {length} bytes at {offset} of {path.name}, which has "
                f"{os.path.getsize(path)} (and {stated} are stated)"
            )
        return np.fromfile(path, dtype.newbyteorder("<"), size, offset=offset)


def _reads(node: Node) -> set[str]:
    """The names that a node reads, those of the graphs inside it included."""
    names = {name for name in node.inputs if name}
    for value in node.attributes.values():
        if isinstance(value, Graph):
            names |= free_names(value)
    return names


def free_names(graph: Graph) -> set[str]:
    """What a graph inside another takes from it by name."""
    names = {name for node in graph.nodes for name in _reads(node)}
    names |= {value.name for value in graph.outputs}
    own = {name for node in graph.nodes for name in node.outputs} | set(graph.constants)
    return names - own - {value.name for value in graph.inputs}
