"""An ONNX model as a module: it predicts, learns and compiles like any other."""

from __future__ import annotations

import functools
import itertools
import os
from collections import ChainMap
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from palto.extras import require
from palto.formats.onnx import operators
from palto.formats.onnx.errors import OnnxError, UnsupportedError
from palto.formats.onnx.graph import Graph, Node, Value
from palto.formats.onnx.reading import Reader, graph_of, library, read
from palto.formats.onnx.table import TABLE, Call
from palto.nn.module import Buffer, Module, Parameter
from palto.tensor import Cell, Tensor, TraceError, dtypes
from palto.tensor import functions as F
from palto.tensor.graph import current_trace, within

#: Values by name: None for an optional output that an operator has left out.
Values = MutableMapping[str, Tensor | None]
#: Operators that ONNX defines by others may be laid open so deep.
_DEEPEST_DEFINITION = 8
#: A tensor of so few elements may be somebody's shape.
_SMALL = 16
#: So many nodes, those inside loops each time that they run, may a call run.
MOST_RUN = 1_000_000


def load(source: str | os.PathLike[str] | bytes | Any) -> OnnxModule:
    """A model from an ONNX file.

    Its initializers of floating point become parameters, which can be trained, under their own
    names; whole numbers, lone numbers without axes, and the statistics of batch norm become
    buffers. What shapes the results (such as the target of a Reshape) stays a constant.

    Args:
        source: the file's path, its bytes, or an onnx.ModelProto. Data that lies in other files is
            read only from inside the model's folder.

    Raises:
        FileNotFoundError: there is no such file.
        OnnxError: it is no whole model, or contradicts itself.
        UnsupportedError: it has an operator or a dtype that Palto has not; the message names it.
        MissingExtraError: the package onnx is not installed.
    """
    model, folder = read(source)
    return OnnxModule(graph_of(model, folder))


class OnnxModule(Module):
    """An ONNX graph that is run node by node, by Palto's functions.

    Images have the layout of the file, which as a rule is (N, C, H, W).

    Args:
        graph: what to run.

    Attributes:
        graph: the same.

    Raises:
        UnsupportedError: it has an operator that Palto has not.
    """

    def __init__(self, graph: Graph) -> None:
        _require_operators(graph)
        self.graph = graph
        self._shaping = frozenset(_shaping(graph))
        statistics = _statistics(graph)
        self._cells: dict[str, Cell] = {}
        for name in graph.constants:
            if name in graph.initializers and name not in self._shaping:
                tensor = graph.constants[name]
                # A lone number is a constant of the formula, as exporters write them.
                is_learned = not _is_whole(tensor) and tensor.ndim and name not in statistics
                self._cells[name] = (Parameter if is_learned else Buffer)(tensor, name=name)

    def own_cells(self) -> Iterator[tuple[str, Cell]]:
        """The parameters and buffers under the names that the file gives them."""
        yield from self._cells.items()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Args:
            args: its inputs in their order.
            kwargs: its inputs by name.

        Returns:
            Its output, or a tuple of several.

        Raises:
            TypeError: other inputs than the graph has.
            ValueError: an input of another dtype or shape than the graph says; or what the graph
                does to them cannot be done.
        """
        values: dict[str, Tensor | None] = dict(self.graph.constants)
        values.update((name, cell.read()) for name, cell in self._cells.items())
        values.update(self._given(args, kwargs))
        _evaluate(self.graph, values, _Session(self._shaping))
        results = _results(self.graph, values)
        return results[0] if len(results) == 1 else tuple(results)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        names = [value.name for value in self.graph.inputs]
        given = dict(zip(names, args, strict=False)) | kwargs
        both = len(args) > len(names) or set(kwargs) & set(names[: len(args)])
        if both or set(given) != set(names):
            wanted = ", ".join(str(value) for value in self.graph.inputs)
            raise TypeError(
                f"this model takes {len(names)} inputs ({wanted}), got {len(args)} in order and "
                f"{', '.join(kwargs) or 'none'} by name"
            )
        tensors = {name: F.asarray(x) for name, x in given.items()}
        sizes: dict[str, int] = {}
        for value in self.graph.inputs:
            x = tensors[value.name]
            shape = x.shape if value.shape is None else value.shape
            fits = value.dtype in (None, x.dtype) and len(shape) == x.ndim
            for n, m in zip(shape, x.shape, strict=False):
                wanted_length = sizes.setdefault(n, m) if isinstance(n, str) else n
                fits = fits and wanted_length in (None, m)
            if not fits:
                raise ValueError(
                    f"the model's input is {value}, got {x.dtype.name}{x.shape}"
                    + (f" where {sizes}" if sizes else "")
                )
        return tensors

    def extra_repr(self) -> str:
        """Inputs, outputs, how many nodes."""
        inputs = ", ".join(map(str, self.graph.inputs))
        outputs = ", ".join(value.name for value in self.graph.outputs)
        return f"{inputs} -> {outputs}, {len(self.graph.nodes)} nodes"


class _Session:
    """One call of a graph: what it may still spend, so that no file asks for hours or all memory.

    Args:
        shaping: the names of values on which shapes depend.
    """

    def __init__(self, shaping: frozenset[str]) -> None:
        self.shaping = shaping
        self.nodes = MOST_RUN
        self.bytes = _memory() // 2

    def spend(self, node: Node, results: Sequence[Tensor | None]) -> None:
        """Count a node that has run, and what it made."""
        self.nodes -= 1
        self.bytes -= sum(_size(x) for x in results)
        if self.nodes < 0:
            raise OnnxError(f"{node}: loops that run more than {MOST_RUN:,} nodes in all")
        if self.bytes < 0:
            raise OnnxError(
                f"{node}: the values that the graph holds at once take more than half of this "
                "machine's memory"
            )

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What is held at the end of this block is let go, but for what the caller counts."""
        before = self.bytes
        yield
        self.bytes = before

    def release(self, x: Tensor | None) -> None:
        """Count what is no longer held."""
        self.bytes += _size(x)


def _size(x: Tensor | None) -> int:
    return 0 if x is None or x.trace is not None else x.size * x.dtype.itemsize


@functools.cache
def _memory() -> int:
    """The machine's memory in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**33


def _evaluate(graph: Graph, values: Values, session: _Session, depth: int = 0) -> None:
    """Run a graph's nodes.

    Args:
        graph: the graph.
        values: its inputs and constants; what it computes is added.
        session: the call.
        depth: how many definitions of operators are being laid open around it.
    """
    for node, dead in zip(graph.nodes, graph.last_uses, strict=True):
        results = _run(node, values, session, depth)
        session.spend(node, results)
        for name, result in itertools.zip_longest(node.outputs, results[: len(node.outputs)]):
            if name:
                values[name] = result
        for name in dead:
            session.release(values.pop(name, None))


def _results(graph: Graph, values: Values) -> list[Tensor]:
    return [_read(value.name, values, "the graph's output") for value in graph.outputs]


def _read(name: str, values: Values, reader: Any) -> Tensor:
    value = values.get(name)
    if value is None:
        raise OnnxError(f"{reader} wants {name!r}, which nothing has made")
    return value


def _run(node: Node, values: Values, session: _Session, depth: int) -> Sequence[Tensor | None]:
    inputs = [
        None if not name else values[name] if name in values else _read(name, values, node)
        for name in node.inputs
    ]

    def run(graph: Graph, given: Sequence[Tensor]) -> list[Tensor]:
        inner: Values = ChainMap({}, values)
        inner.update(graph.constants)
        inner.update(zip((value.name for value in graph.inputs), given, strict=True))
        with session.apart():
            _evaluate(graph, inner, session, depth)
        return _results(graph, inner)

    trace = current_trace()
    is_known = bool(inputs) and all(x is None or x.trace is None for x in inputs)
    try:
        if trace is not None and is_known and not _must_run(node):
            # What depends on constants and shapes alone is computed now, so that it may shape what
            # follows; but a program makes large tensors itself, whose size may be a run-time one.
            with within(None):
                result = _applied(node, inputs, run, session, depth)
            is_small = all(x is None or x.size <= _SMALL for x in result)
            if is_small or not session.shaping.isdisjoint(node.outputs):
                return result
        return _applied(node, inputs, run, session, depth)
    except (OnnxError, TraceError) as error:
        if isinstance(error, TraceError):
            error.add_note(f"in {node}")
        raise
    except RecursionError:
        raise OnnxError(f"{node}: graphs are nested too deep") from None
    except MemoryError:
        raise OnnxError(f"{node} wants more memory than there is") from None
    except Exception as error:
        shapes = ", ".join("none" if x is None else f"{x.dtype.name}{x.shape}" for x in inputs)
        raise OnnxError(f"{node} cannot be applied to {shapes}: {error}") from error


def _applied(
    node: Node, inputs: Sequence[Tensor | None], run: Any, session: _Session, depth: int
) -> Sequence[Tensor | None]:
    row = TABLE.get(node.operator)
    if row is None:
        return _by_definition(node, inputs, session, depth)
    result = row.function(Call(node, run), *inputs)
    return result if isinstance(result, tuple | list) else (result,)


def _must_run(node: Node) -> bool:
    """Whether each run of a program must run a node, whatever its inputs."""
    row = TABLE.get(node.operator)
    return _looks_outside(node) or (row is not None and row.draws)


def _looks_outside(node: Node) -> bool:
    return any(isinstance(value, Graph) for value in node.attributes.values())


# Operators that ONNX itself defines by others


def _by_definition(
    node: Node, inputs: Sequence[Tensor | None], session: _Session, depth: int
) -> Sequence[Tensor | None]:
    if depth >= _DEEPEST_DEFINITION:
        raise UnsupportedError(node.operator, f"{node}: its definition does not come to an end")
    types = tuple(None if x is None else (x.dtype, x.shape) for x in inputs)
    graph = _definition(node, types)
    values: Values = dict(graph.constants)
    values.update(zip((value.name for value in graph.inputs), inputs, strict=False))
    for value in graph.inputs[len(inputs) :]:
        values[value.name] = None
    with session.apart():
        _evaluate(graph, values, session, depth + 1)
    return [values.get(value.name) for value in graph.outputs]


@functools.lru_cache(maxsize=4096)
def _definition(node: Node, types: tuple[Any, ...] | None) -> Graph:
    """The graph by which ONNX defines an operator; where it depends on them, for these types."""
    onnx = library()
    helper = require("onnx.helper", "onnx", "reading ONNX")
    name = node.operator.rpartition(".")[2]
    try:
        schema = onnx.defs.get_schema(name, node.version, node.domain)
    except onnx.defs.SchemaError:
        raise UnsupportedError(
            node.operator,
            f"ONNX has no operator {node.operator} in version {node.version}: {node} belongs to "
            "another runtime",
        ) from None
    body = None
    if _looks_outside(node):  # a definition that depends on graphs inside the node
        pass
    elif schema.has_function:
        body = schema.function_body
    elif schema.has_context_dependent_function:
        if types is None:
            return Graph((), (), {}, frozenset(), (), ())
        described = [
            helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), shape)
            if (dtype, shape) != (None, None) else onnx.TypeProto()
            for dtype, shape in ((None, None) if t is None else t for t in types)
        ]  # fmt: skip
        encoded = schema.get_context_dependent_function(
            _proto(node).SerializeToString(), [t.SerializeToString() for t in described]
        )
        body = onnx.FunctionProto.FromString(encoded) if encoded else None
    if body is None:
        raise UnsupportedError(node.operator, f"Palto has no operator {node.operator}: {node}")
    given = {
        key: Reader({}, None).attribute(attribute.default_value)
        for key, attribute in schema.attributes.items()
        if attribute.default_value.name
    }
    versions = {entry.domain: int(entry.version) for entry in body.opset_import}
    reader = Reader(versions, None, given | dict(node.attributes))
    constants: dict[str, Tensor] = {}
    nodes = reader.nodes(body.node, 0, constants)
    inputs = [Value(name, None, None) for name in body.input]
    outputs = [Value(name, None, None) for name in body.output]
    return reader.checked(inputs, outputs, constants, nodes, is_inside=True)


def _proto(node: Node) -> Any:
    """The node as onnx's own library wants it."""
    helper = require("onnx.helper", "onnx", "reading ONNX")
    numpy_helper = require("onnx.numpy_helper", "onnx", "reading ONNX")
    attributes = {
        name: numpy_helper.from_array(value.array()) if isinstance(value, Tensor) else value
        for name, value in node.attributes.items()
        if not isinstance(value, Graph) and value is not None
    }
    return helper.make_node(
        node.operator.rpartition(".")[2], node.inputs, node.outputs, domain=node.domain,
        **attributes,
    )  # fmt: skip


# What a graph's constants are for


def _require_operators(graph: Graph) -> None:
    """Refuse a graph as soon as it is read, with all operators that are missing."""
    missing: dict[str, str] = {}
    for node in _all_nodes(graph):
        if node.operator not in TABLE:
            try:
                _definition(node, None)
            except UnsupportedError as error:
                missing.setdefault(error.operator, str(error))
    if missing:
        names = ", ".join(missing)
        raise UnsupportedError(names, "; ".join(missing.values()))


def _all_nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for value in node.attributes.values():
            if isinstance(value, Graph):
                yield from _all_nodes(value)


def _shaping(graph: Graph) -> set[str]:
    """The names on which the shape of something depends by their values."""
    found: set[str] = set()
    for node in reversed([*_all_nodes(graph)]):
        row = TABLE.get(node.operator)
        if row is None:  # whole numbers may shape what its definition makes
            constants = {name: graph.constants.get(name) for name in node.inputs}
            found.update(name for name, x in constants.items() if x is not None and _is_whole(x))
        elif not found.isdisjoint(node.outputs) and not row.shape_only:
            found.update(node.inputs)
        else:
            found.update(node.inputs[place] for place in row.static if place < len(node.inputs))
    return found


def _is_whole(x: Tensor) -> bool:
    return x.dtype not in dtypes.DIFFERENTIABLE


def _statistics(graph: Graph) -> set[str]:
    return {
        node.inputs[place]
        for node in _all_nodes(graph)
        if node.operator in TABLE
        for place in TABLE[node.operator].statistics
        if place < len(node.inputs)
    }


assert operators  # importing it fills the table
