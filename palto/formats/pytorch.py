"""Weights between Palto and PyTorch: safetensors files with PyTorch's names and layouts.

PyTorch is channels-first: a convolution's kernel is (O, C / groups, ...kernel) there and
(...kernel, C / groups, O) here, and the rows that Flatten gives run over channels first there and
over pixels first here, which reorders the columns of the Linear that reads them. All other weights
are the same. Both ways are permutations, so a round trip gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from palto.compiler.simplify import simplify
from palto.compiler.trace import record
from palto.formats import safetensors
from palto.nn import models
from palto.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from palto.nn.module import Module, Sequential
from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.dtypes import Array
from palto.tensor.graph import Operation, Spec, set_grad_enabled
from palto.tensor.tensor import Shape, Tensor
from palto.tensor.tree import flatten

#: From a name in Palto's state dict to the one in PyTorch's.
Names = Callable[[str], str] | Mapping[str, str]
#: Counts steps since training began; files of old versions have none, and inference needs none.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in a file, by PyTorch's names.

    Attributes:
        loaded: what the model has taken.
        missing: what the model has and the file has not.
        unexpected: what the file has and the model has not.
        mismatched: of what has another shape, the name, the shape wanted and the one found.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]

    @property
    def is_complete(self) -> bool:
        """Whether everything has found its place."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        for what, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            if names:
                lines.append(f"{what}: {', '.join(names)}")
        lines += [f"{n}: the model wants {a}, the file has {b}" for n, a, b in self.mismatched]
        return "; ".join(lines)


def load(
    model: Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    image: Shape | None = None,
    names: Names | None = None,
    strict: bool = True,
) -> Report:
    """Give a model the weights of its twin in PyTorch.

    The names are those of a model that is built of the same parts: ``Sequential`` numbers its
    modules, and ``nn.models.resnet(18)`` and ``(34)`` are torchvision's resnet18 and resnet34.

    Args:
        model: what takes the weights.
        source: a safetensors file, or a state dict of arrays.
        image: (H, W, C) of the images, for models in which a Linear follows a Flatten of them.
        names: other names, from Palto's to PyTorch's.
        strict: whether anything that does not match raises; otherwise the rest is loaded.

    Returns:
        What did and what did not match.

    Raises:
        ValueError: with the report, if `strict`; then the model stays as it is. Or the file is no
            whole safetensors file.
        FileNotFoundError: there is no such file.
    """
    found = source if isinstance(source, Mapping) else safetensors.load(source, widen=True)
    plan = _plan(model, image, names)
    taken: dict[str, Array] = {}
    loaded, missing, mismatched = [], [], []
    for name, (theirs, layout) in plan.items():
        if theirs not in found:
            if not name.endswith(_COUNTER):
                missing.append(theirs)
            continue
        array = F.asarray(found[theirs]).array()
        wanted = layout.outside
        if array.shape != wanted:
            mismatched.append((theirs, wanted, array.shape))
            continue
        taken[name] = layout.inwards(array)
        loaded.append(theirs)
    unexpected = [name for name in found if name not in {theirs for theirs, _ in plan.values()}]
    report = Report(tuple(loaded), tuple(missing), tuple(unexpected), tuple(mismatched))
    if strict and not report.is_complete:
        raise ValueError(f"these weights do not fit {type(model).__name__}: {report}")
    model.load_state_dict(taken, strict=False)
    return report


def state_dict(
    model: Module, *, image: Shape | None = None, names: Names | None = None
) -> dict[str, Array]:
    """A model's weights with PyTorch's names and layouts; the arguments are those of `load`."""
    plan, state = _plan(model, image, names), model.state_dict()
    return {theirs: layout.outwards(state[name].array()) for name, (theirs, layout) in plan.items()}


def save(
    path: str | os.PathLike[str],
    model: Module,
    *,
    image: Shape | None = None,
    names: Names | None = None,
) -> None:
    """Write a model's weights for PyTorch: a safetensors file that its twin there loads.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    safetensors.save(path, state_dict(model, image=image, names=names), metadata={"format": "pt"})


# Layouts


@dataclass(frozen=True, slots=True)
class _Layout:
    """An array there and here: reshaped to `parts`, its axes in another `order`, reshaped again.

    Attributes:
        outside: the shape in PyTorch.
        parts: the same elements, cut into axes.
        order: where Palto's axes are among those.
        inside: the shape in Palto.
    """

    outside: Shape
    parts: Shape
    order: tuple[int, ...]
    inside: Shape

    def inwards(self, array: Array) -> Array:
        """From PyTorch's to Palto's."""
        return array.reshape(self.parts).transpose(self.order).reshape(self.inside)

    def outwards(self, array: Array) -> Array:
        """From Palto's to PyTorch's."""
        cut = array.reshape([self.parts[axis] for axis in self.order])
        return np.array(cut.transpose(np.argsort(self.order)).reshape(self.outside), order="C")


def _same(shape: Shape) -> _Layout:
    return _Layout(shape, shape, tuple(range(len(shape))), shape)


def _kernel(shape: Shape) -> _Layout:
    """(O, C / groups, ...kernel) to (...kernel, C / groups, O)."""
    outside = (shape[-1], shape[-2], *shape[:-2])
    return _Layout(outside, outside, (*range(2, len(shape)), 1, 0), shape)


def _transposed_kernel(shape: Shape, groups: int) -> _Layout:
    """(C, O / groups, ...kernel) to (...kernel, C / groups, O)."""
    *kernel, each, out = shape
    parts = (groups, each, out // groups, *kernel)
    outside = (groups * each, out // groups, *kernel)
    return _Layout(outside, parts, (*range(3, len(parts)), 1, 0, 2), shape)


def _columns(shape: Shape, image: Shape) -> _Layout:
    """(out, channels x pixels) to (out, pixels x channels)."""
    *space, channels = image
    parts = (shape[0], channels, *space)
    return _Layout(shape, parts, (0, *range(2, len(parts)), 1), shape)


def _plan(
    model: Module, image: Shape | None, names: Names | None
) -> dict[str, tuple[str, _Layout]]:
    """For each name in Palto's state dict PyTorch's, and the layouts."""
    rename = _usual_names(model) if names is None else names
    flattened = {} if image is None else _flattened(model, image)
    layouts: dict[str, _Layout] = {}
    for prefix, module in model.named_modules():
        where = f"{prefix}.weight" if prefix else "weight"
        if isinstance(module, ConvTranspose1d | ConvTranspose2d | ConvTranspose3d):
            layouts[where] = _transposed_kernel(module.weight.shape, module.groups)
        elif isinstance(module, Conv1d | Conv2d | Conv3d):
            layouts[where] = _kernel(module.weight.shape)
    plan = {}
    for name, tensor in model.state_dict().items():
        if name in flattened:
            layouts[name] = _columns(tensor.shape, flattened[name])
        theirs = rename(name) if callable(rename) else rename.get(name, name)
        plan[name] = (theirs, layouts.get(name, _same(tensor.shape)))
    return plan


#: What leaves the order of a row's elements as it is.
_KEEPS_ORDER = {
    "where", "maximum", "minimum", "add", "subtract", "multiply", "divide", "tanh", "exp", "erf",
    "negative", "cast", "expm1", "log1p", "abs", "pow", "sqrt",
}  # fmt: skip


def _flattened(model: Module, image: Shape) -> dict[str, Shape]:
    """The weights of linear layers that read flattened images, with the images' shape."""
    modes = [(module, module.training) for module in model.modules()]
    names = {id(cell): name for name, cell in model.named_cells()}
    example = Spec((2, *image), dtypes.float32)
    model.eval()
    try:
        with set_grad_enabled(False):
            leaves, tree = flatten(((np.zeros(0),), {}))
            recording = record(model, leaves, tree, [example])
    finally:
        for module, training in modes:
            module.training = training
    graph = simplify(recording.graph, inline=True)
    weights = {
        id(tensor): names.get(id(cell), "")
        for tensor, cell in zip(graph.inputs[1:], recording.reads, strict=True)
    }
    found: dict[str, Shape] = {}
    for operation in graph.operations:
        if operation.primitive.name == "matmul":
            rows, weight = operation.inputs
            shape = _image_of(rows)
            while weight.operation is not None and weight.operation.primitive.name == "permute":
                weight = weight.operation.inputs[0]
            if shape is not None and id(weight) in weights:
                found[weights[id(weight)]] = shape
    return found


def _image_of(rows: Tensor) -> Shape | None:
    """The shape of the images that rows were flattened from."""
    shape, todo = rows.shape, [rows]
    while todo:
        operation: Operation | None = todo.pop().operation
        if operation is None:
            continue
        name, inputs = operation.primitive.name, operation.inputs
        if name == "reshape" and inputs[0].ndim > len(shape) == 2:
            return inputs[0].shape[1:]
        if name in _KEEPS_ORDER:
            todo += [x for x in inputs if x.shape == shape]
    return None


# Names


def _usual_names(model: Module) -> Callable[[str], str]:
    """PyTorch's names: a Sequential's parts are its own there, and torchvision names a ResNet."""
    stages: dict[str, str] = {}
    if isinstance(model, models.ResNet) and model.pool is not None:
        stage, place = 1, -1
        for number, block in enumerate(model.blocks):
            is_next = bool(block.new_channels)
            stage, place = (stage + 1, 0) if is_next else (stage, place + 1)
            stages[f"blocks.{number}."] = f"layer{stage}.{place}."
    inner = [
        f"{prefix}.layers." if prefix else "layers."
        for prefix, module in model.named_modules()
        if isinstance(module, Sequential)
    ]

    def rename(name: str) -> str:
        for start in sorted(inner, key=len, reverse=True):
            if name.startswith(start):
                name = start.removesuffix("layers.") + name.removeprefix(start)
        for ours, theirs in stages.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                name = name.replace(".norm", ".bn").replace(".shortcut.", ".downsample.")
        if stages and name.startswith(("conv.", "norm.")):
            name = name.replace("conv.", "conv1.").replace("norm.", "bn1.")
        return name

    return rename
