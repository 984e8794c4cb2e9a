"""From a function or module to an ONNX file."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from palto.compiler.dynamic import DynamicShapes, General, points, sampled, told, with_sizes
from palto.compiler.simplify import simplify
from palto.compiler.sizes import LEAST, Comparisons
from palto.compiler.trace import VALUE, Recording, record
from palto.extras import require
from palto.formats.onnx.building import Builder
from palto.formats.onnx.complex_numbers import is_complex
from palto.formats.onnx.errors import UnsupportedError
from palto.formats.onnx.lowering import lower
from palto.formats.whole import write_whole
from palto.nn.module import Module
from palto.tensor import Cell, Tensor
from palto.tensor import functions as F
from palto.tensor.graph import Graph, Spec, set_grad_enabled
from palto.tensor.tree import LEAF, Tree, flatten, rebuild


def export(
    function: Callable[..., Any],
    path: str | os.PathLike[str],
    *examples: Any,
    dynamic_shapes: Mapping[str, Any] = MappingProxyType({}),
    state: Module | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write what a function computes as an ONNX file, whole or not at all.

    Inputs and outputs are laid out as in Palto, so images are (N, H, W, C). Parameters keep the
    names of the module's state dict; the kernels of convolutions are (O, C, ...kernel) in the file.

    Args:
        function: a function or module of tensors. A module is written as it is at the moment:
            call ``model.eval()`` first.
        path: the file.
        examples: the function's arguments, by which it is traced.
        dynamic_shapes: by argument, the axes of any length, as for :func:`palto.compile`:
            ``{"images": {0: palto.Dim("batch", max=64)}}``. The maximum does not limit the file.
        state: a module whose cells change from call to call, such as the cache of
            :class:`palto.nn.models.Llama`. In the file they are further inputs, under their names
            in it, and their new values further outputs, named "next_" and the same.
        input_names: names for the inputs; by default those of the function's arguments.
        output_names: names for the outputs; by default "output", or a dict's keys.
        notes: texts that go with the model.

    Raises:
        UnsupportedError: the function does what ONNX has no way to say, such as drawing random
            numbers or changing its state.
        TraceError: it does what a program cannot repeat.
        ValueError: two names are equal, or there is another count of them.
        MissingExtraError: the package onnx is not installed.
    """
    contents = model_of(
        function, *examples, dynamic_shapes=dynamic_shapes, state=state, input_names=input_names,
        output_names=output_names, notes=notes,
    ).SerializeToString()  # fmt: skip
    write_whole(path, contents)


def model_of(
    function: Callable[..., Any],
    *examples: Any,
    dynamic_shapes: Mapping[str, Any] = MappingProxyType({}),
    state: Module | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """The same as an onnx.ModelProto; see :func:`export`."""
    leaves, tree = flatten((examples, {}))
    recording, axes = _traced(function, leaves, tree, dynamic_shapes)
    states = {} if state is None else {cell: name for name, cell in state.named_cells()}
    changed = [cell for cell in recording.writes if cell not in states]
    if changed:
        names = ", ".join(repr(cell.name or "a cell") for cell in changed)
        raise UnsupportedError(
            "assign",
            f"the function changes {names}, and a file has no state; call model.eval(), return "
            "the new value, or name the module that holds it as `state`",
        )
    inputs = _names(function, tree, leaves) if input_names is None else list(input_names)
    outputs = _output_names(recording) if output_names is None else list(output_names)
    graph = simplify(recording.graph, inline=False)
    if any(map(is_complex, (*graph.inputs, *graph.outputs))):
        raise UnsupportedError(
            "complex",
            "inputs, outputs and parameters of an ONNX file are real; take and return real and "
            "imaginary parts, by palto.complex, palto.real and palto.imag",
        )
    count = len(graph.inputs) - len(recording.reads)
    given, read = [*graph.inputs[:count]], [*graph.inputs[count:]]
    _require_count("input", inputs, len(given))
    _require_count("output", outputs, len(recording.returned))
    kept = [(cell, x) for cell, x in zip(recording.reads, read, strict=True) if cell in states]
    held = [(cell, x) for cell, x in zip(recording.reads, read, strict=True) if cell not in states]
    inputs += [states[cell] for cell, _ in kept]
    given += [x for _, x in kept]
    outputs += [f"next_{states[cell]}" for cell in recording.writes]
    results = graph.outputs[: len(recording.returned) + len(recording.writes)]
    cells = _cell_names(function, [cell for cell, _ in held])
    _require_names(inputs, outputs, cells)
    build = Builder([*inputs, *outputs, *cells])
    for name, tensor in zip(inputs, given, strict=True):
        build.hold(tensor, name)
    build.sizes = {size: (inputs[place], axis) for size, (place, axis) in axes.items()}
    kernels = _kernels(graph)
    for name, (cell, tensor) in zip(cells, held, strict=True):
        order = kernels.get(id(tensor), tuple(range(tensor.ndim)))
        build.initializers[name] = cell.array().transpose(order)
        build.hold(tensor, name, order)
    lower(build, graph)
    build.scope = ()
    for name, tensor in zip(outputs, results, strict=True):
        build.nodes.append(build.helper.make_node("Identity", [build.whole(tensor)], [name],
                                                  name=f"output {name}"))  # fmt: skip
    model = build.model(
        [build.value_info(name, x) for name, x in zip(inputs, given, strict=True)],
        [build.value_info(name, x) for name, x in zip(outputs, results, strict=True)],
        notes,
    )
    require("onnx.checker", "onnx", "writing ONNX").check_model(model, full_check=True)
    return model


def _traced(
    function: Callable[..., Any], leaves: list[Any], tree: Tree, dynamic_shapes: Mapping[str, Any]
) -> tuple[Recording, dict[str, tuple[int, int]]]:
    """What a call does, for all sizes; and of each size the input and the axis that have it."""
    arrays = [F.asarray(leaf).array() if _is_tensor(leaf) else None for leaf in leaves]
    if any(array is None for array in arrays):
        odd = next(leaf for leaf, array in zip(leaves, arrays, strict=True) if array is None)
        raise TypeError(
            f"the arguments of what is exported are tensors or arrays, got {odd!r}; fix other "
            "values by a function around it"
        )
    shapes = [array.shape for array in arrays if array is not None]
    dynamic = DynamicShapes(function, dynamic_shapes)
    declared = dynamic.of(tree, len(leaves))
    dims = list(dynamic.dims.values())

    def tracer(comparisons: Comparisons) -> Callable[[Mapping[str, int]], Recording]:
        def traced(sizes: Mapping[str, int]) -> Recording:
            with set_grad_enabled(False), comparisons.noting(sizes) as seen:
                given, lengths = with_sizes(declared, leaves, shapes, seen)
                specs: list[Spec | None] = [
                    Spec(shape, array.dtype)
                    for shape, array in zip(lengths, arrays, strict=True)
                    if array is not None
                ]
                return record(function, given, tree, specs)

        return traced

    comparisons = Comparisons(dims)
    traced = tracer(comparisons)
    if not dims:
        return traced({}), {}
    general = General(dims, comparisons, sampled(points(dims), traced))
    recording = general.take()
    for name, n in general.least.items():
        if n > LEAST:
            raise UnsupportedError("Dim", f"the function wants {name!r} to be at least {n}")
    exception = general.exception(tracer)
    if exception is not None:
        raise UnsupportedError(
            "Dim",
            f"the function does something else where {told(exception)}, as when one size cuts off "
            "a slice of another; export it with a smaller range, or without that size",
        )
    axes: dict[str, tuple[int, int]] = {}
    for place, spec in declared.items():
        assert isinstance(spec, dict)
        for axis, dim in spec.items():
            axes.setdefault(dim.name, (place, axis % len(shapes[place])))
    return recording, axes


def _is_tensor(leaf: Any) -> bool:
    return hasattr(leaf, "__array__") or isinstance(leaf, Tensor)


def _paths(value: Any, path: str) -> list[str]:
    """The names of the leaves of a nested value, by keys and places."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        keys = getattr(value, "_fields", range(len(value)))
        parts = [(str(key), part) for key, part in zip(keys, value, strict=True)]
    elif hasattr(value, "__dataclass_fields__"):
        parts = list(vars(value).items())
    else:
        return [path]
    inside = [_paths(part, f"{path}.{key}" if path else key) for key, part in parts]
    return [name for names in inside for name in names]


def _names(function: Callable[..., Any], tree: Tree, leaves: list[Any]) -> list[str]:
    args, kwargs = rebuild(tree, list(range(len(leaves))))
    called = getattr(function, "forward", function)
    bound = inspect.signature(called).bind(*args, **kwargs).arguments
    return [name for key, value in bound.items() for name in _paths(value, key)]


def _output_names(recording: Recording) -> list[str]:
    if any(leaf is not VALUE for leaf in recording.returned):
        raise UnsupportedError("output", "the function returns what is no tensor")
    if recording.tree == LEAF:
        return ["output"]
    structure = rebuild(recording.tree, list(range(len(recording.returned))))
    is_dict = isinstance(structure, Mapping)
    return _paths(structure, "" if is_dict else "output")


def _cell_names(function: Callable[..., Any], cells: Sequence[Cell]) -> list[str]:
    """The names in the function's state dict, or in that of modules that it refers to."""
    around = [x.cell_contents for x in getattr(function, "__closure__", None) or ()]
    known: dict[int, str] = {}
    for owner in (function, getattr(function, "__self__", None), *around):
        for name, cell in owner.named_cells() if isinstance(owner, Module) else ():
            known.setdefault(id(cell), name)
    names: list[str] = []
    for place, cell in enumerate(cells):
        name = known.get(id(cell)) or cell.name or "cell"
        names.append(name if name not in names else f"{name}.{place}")
    return names


def _require_count(kind: str, names: Sequence[str], count: int) -> None:
    if len(names) != count:
        raise ValueError(f"the function has {count} {kind}s, got {len(names)} {kind}_names")


def _require_names(inputs: Sequence[str], outputs: Sequence[str], cells: Sequence[str]) -> None:
    names = [*inputs, *outputs, *cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        raise ValueError(
            f"in an ONNX file inputs, outputs and parameters have different names; {twice} stand "
            "for several: give other input_names or output_names"
        )


def _kernels(graph: Graph) -> dict[int, tuple[int, ...]]:
    """The order of axes for parameters that are kernels of convolutions, and nothing else."""
    found: dict[int, tuple[int, ...]] = {}

    def visit(graph: Graph, outer: Mapping[int, int]) -> None:
        for operation in graph.operations:
            places = [outer.get(id(x), id(x)) for x in operation.inputs]
            body = operation.params.get("body")
            if operation.primitive.name == "conv":
                rank = operation.inputs[1].ndim
                found[places[1]] = (rank - 1, rank - 2, *range(rank - 2))
            if isinstance(body, Graph) and operation.primitive.name == "composite":
                names = zip(body.inputs, places, strict=True)
                visit(body, {id(inner): place for inner, place in names})

    visit(graph, {})
    return found
