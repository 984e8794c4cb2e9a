"""A small network as a graph: values on the way forward, gradients on the way back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palto.backprop import gradients
from palto.draw.figure import new_figure, save
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.dtypes import Array
from palto.tensor.graph import Graph, Operation, Trace, set_grad_enabled

#: More operations make no picture that anybody can read.
MOST_OPERATIONS = 60
#: Of a value with so many numbers at most, the numbers are shown; of others, the shape.
MOST_NUMBERS = 3

_SIGNS = {"add": "+", "subtract": "−", "multiply": "×", "divide": "÷", "negative": "−x"}
#: What only brings numbers into another shape or dtype is not drawn: its input stands for it.
_TRANSPARENT = {"expand", "reshape", "permute", "cast"}
_FORWARD, _BACK, _LEAF, _INNER = "#1f5fa8", "#c2410c", "#eef2f7", "#ffffff"
_EDGE, _STEP = "#8a8f98", "#fdeee0"
#: Inches of a box, and between two.
_WIDTH, _HEIGHT, _ACROSS, _DOWN = 1.5, 0.78, 0.6, 0.36
_MARGIN = 0.25


@dataclass(frozen=True, eq=False)
class Node:
    """An input, a parameter or an operation of a graph.

    Attributes:
        name: what it is called: ``w``, ``layers.0.weight``, ``sigmoid``, ``×``.
        inputs: for an operation, the places in the graph of what it reads; empty for others.
        value: what it is, in the forward pass.
        gradient: the loss's derivative with respect to `value`, of the same shape; None where
            the loss does not depend on it or has no derivative.
        derivatives: for each of `inputs` the derivative of this node with respect to that one
            alone, if both are single numbers; else None.
    """

    name: str
    inputs: tuple[int, ...]
    value: Array
    gradient: Array | None
    derivatives: tuple[float | None, ...] = ()


def backprop_graph(function: Callable[..., Tensor], inputs: Mapping[str, Any]) -> tuple[Node, ...]:
    """The graph of a function that computes a loss, with all values and gradients.

    Composites stay whole: a sigmoid is one node. Parameters that the function reads are named as in
    their module. What only changes a shape is left out, and so are constants.

    Args:
        function: called with `inputs` by name; answers with one number, the loss.
        inputs: numbers, arrays or tensors. Numbers become float32.

    Returns:
        The nodes, each behind all that it reads; the loss is the last one.

    Raises:
        ValueError: the function does not answer with one number that depends on an input or a
            parameter, or has too many operations to be drawn.
    """
    arrays = {name: _as_array(value) for name, value in inputs.items()}
    trace = Trace()
    with trace.active():
        given = {
            name: trace.placeholder(x.shape, x.dtype, requires_grad=x.dtype in dtypes.FLOATING)
            for name, x in arrays.items()
        }
        loss = function(**given)
        if not isinstance(loss, Tensor) or loss.size != 1 or not loss.requires_grad:
            what = f"a tensor of shape {loss.shape}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(
                "a graph is drawn of a function whose answer is one number that depends on its "
                f"inputs or on parameters, this one answers with {what}; take its mean() or sum()"
            )
        known = [*given.values(), *trace.reads.values()]
        names = [*given, *(cell.name or "parameter" for cell in trace.reads)]
        operations = Graph.reaching(known, [loss], trace.tensors).operations
        drawn = _Drawn(dict(zip(map(id, known), names, strict=True)), operations)
        count = sum(tensor.operation is not None for tensor in drawn.tensors)
        if count > MOST_OPERATIONS:
            raise ValueError(
                f"this function has {count} operations, more than the {MOST_OPERATIONS} that a "
                "picture can show; draw a smaller network"
            )
        wanted = [*drawn.tensors, *_gradients(loss, drawn)]
        graph = Graph.reaching(known, [x for x in wanted if x is not None], trace.tensors)
    values = [*arrays.values(), *(cell.array() for cell in trace.reads)]
    found = iter(graph.evaluate(*values))
    results = [None if x is None else next(found) for x in wanted]
    nodes, count = [], len(drawn.tensors)
    local = iter(results[2 * count :])
    for place, tensor in enumerate(drawn.tensors):
        value = results[place]
        assert value is not None
        derivatives = [next(local) for _ in drawn.inputs[place]]
        nodes.append(
            Node(
                drawn.names[place], drawn.inputs[place], value, results[count + place],
                tuple(None if d is None or d.size != 1 or tensor.size != 1 else float(d.item())
                      for d in derivatives),
            )
        )  # fmt: skip
    trace.forget()
    return tuple(nodes)


def backprop(
    function: Callable[..., Tensor],
    inputs: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    step: str | int | None = None,
) -> tuple[Node, ...]:
    """Draw the graph of a function that computes a loss: values forward, gradients back.

    Each node shows its value in blue and the loss's derivative with respect to it in orange:
    numbers of scalars and short vectors, shapes of others.

    Args:
        function: called with `inputs` by name; answers with one number, the loss.
        inputs: numbers, arrays or tensors.
        path: the picture, ``.svg`` or ``.png``.
        step: the name or place of an operation: beside its arrows, one step of the chain rule.

    Returns:
        The nodes that were drawn: see `backprop_graph`.

    Raises:
        ValueError: the function is none that can be drawn, or has no such step.
        MissingExtraError: Matplotlib is not installed.
    """
    nodes = backprop_graph(function, inputs)
    chosen = _place_of(nodes, step)
    spots, ways = _layout(nodes)
    rows = [row for _, row in (*spots, *(spot for way in ways.values() for spot in way))]
    width = (1 + max(column for column, _ in spots)) * (_WIDTH + _ACROSS) - _ACROSS + 2 * _MARGIN
    height = (max(rows) - min(rows) + 1) * (_HEIGHT + _DOWN) - _DOWN + 0.85
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")

    def corner(spot: tuple[int, float]) -> tuple[float, float]:
        column, row = spot
        return (
            _MARGIN + column * (_WIDTH + _ACROSS),
            _MARGIN + (row - min(rows)) * (_HEIGHT + _DOWN),
        )

    corners = [corner(spot) for spot in spots]
    for (source, place), way in ways.items():
        passed = [corner(spot) for spot in way]
        _draw_arrow(axes, nodes, corners, (source, place), passed, place == chosen)
    for place, node in enumerate(nodes):
        _draw_box(axes, node, corners[place], place == len(nodes) - 1, place == chosen)
    for x, color, text in (
        (_MARGIN, _FORWARD, "→ value, going forward"),
        (_MARGIN + 2.2, _BACK, "← dL/d(node), coming back"),
    ):
        axes.text(x, height - 0.22, text, color=color, fontsize=9, va="center")
    save(figure, path)
    return nodes


# The graph


class _Drawn:
    """Which tensors are drawn, each with a name and the places of what it reads."""

    def __init__(
        self,
        leaves: Mapping[int, str],
        operations: Sequence[Operation],
    ) -> None:
        self.tensors: list[Tensor] = []
        self.names: list[str] = []
        self.inputs: list[tuple[int, ...]] = []
        self._places: dict[int, int] = {}
        self._stands_for: dict[int, Tensor] = {}
        self._leaves = leaves
        for operation in operations:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        sources = [self._stands_for.get(id(x), x) for x in operation.inputs]
        sources = [x for x in sources if id(x) in self._leaves or id(x) in self._places]
        for output in operation.outputs:
            if not output.requires_grad and output.dtype not in dtypes.FLOATING:
                continue  # a condition: it says which way, and no gradient comes back
            if operation.primitive.name in _TRANSPARENT:
                self._stands_for[id(output)] = sources[0] if sources else output
            elif sources:
                used = dict.fromkeys(self._place(x) for x in sources)
                self._append(output, _name(operation), tuple(used))

    def _place(self, tensor: Tensor) -> int:
        if id(tensor) not in self._places:
            self._append(tensor, self._leaves[id(tensor)], ())
        return self._places[id(tensor)]

    def _append(self, tensor: Tensor, name: str, inputs: tuple[int, ...]) -> None:
        self._places[id(tensor)] = len(self.tensors)
        self.tensors.append(tensor)
        self.names.append(name)
        self.inputs.append(inputs)


def _name(operation: Operation) -> str:
    name = operation.primitive.name
    if name in ("composite", "checkpoint"):
        name = str(operation.params.get("name", name))
    if name == "multiply" and operation.inputs[0] is operation.inputs[1]:
        return "square"
    if _is_relu(operation):
        return "relu"
    if name not in _SIGNS or len(operation.inputs) == 1:
        return _SIGNS.get(name, name)
    before, after = (_constant(x) for x in operation.inputs)
    words = [None if x is None else shown(x) for x in (before, after)]
    return " ".join(filter(None, (words[0], _SIGNS[name], words[1])))


def _is_relu(operation: Operation) -> bool:
    """Whether it is ``where(x <= 0, 0, x)``, which is what a ReLU is made of."""
    if operation.primitive.name != "where":
        return False
    condition, zero, x = operation.inputs
    asked = condition.operation
    if asked is None or asked.primitive.name != "less_equal" or asked.inputs[0] is not x:
        return False
    constants = [_constant(y) for y in (asked.inputs[1], zero)]
    return all(y is not None and not y.any() for y in constants)


def _constant(tensor: Tensor) -> Array | None:
    """The value of a tensor that is neither computed nor given."""
    while tensor.operation is not None and tensor.operation.primitive.name in _TRANSPARENT:
        tensor = tensor.operation.inputs[0]
    return tensor.array() if tensor.operation is None and tensor.trace is None else None


def _gradients(loss: Tensor, drawn: _Drawn) -> list[Tensor | None]:
    """The loss's gradient towards each tensor, then each operation's towards what it reads.

    The loss's one by one, for `gradients` takes those of one call as independent of one another;
    an operation's all at once, for the same reason.
    """

    def of(output: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        if output.size != 1 or not output.requires_grad:
            return [None] * len(inputs)
        found = gradients([output], [F.ones_like(output)], inputs)
        return [g if x.requires_grad else None for x, g in zip(inputs, found, strict=True)]

    with set_grad_enabled(False):
        found = [x for tensor in drawn.tensors for x in of(loss, [tensor])]
        for tensor, places in zip(drawn.tensors, drawn.inputs, strict=True):
            found += of(tensor, [drawn.tensors[place] for place in places])
    return found


def _as_array(value: Any) -> Array:
    if isinstance(value, Tensor):
        return value.array()
    array = np.asarray(value)
    return array.astype(np.float32) if not hasattr(value, "dtype") else array


# The picture


def _place_of(nodes: Sequence[Node], step: str | int | None) -> int | None:
    if step is None:
        return None
    names = [node.name for node in nodes]
    place = names.index(step) if step in names else step
    if not isinstance(place, int) or not 0 <= place < len(nodes) or not nodes[place].inputs:
        known = ", ".join(dict.fromkeys(node.name for node in nodes if node.inputs))
        raise ValueError(f"step names an operation of the graph ({known}), got {step!r}")
    return place


def _layout(
    nodes: Sequence[Node],
) -> tuple[list[tuple[int, float]], dict[tuple[int, int], list[tuple[int, float]]]]:
    """A column and a row for each node, and those by which an arrow goes past other nodes.

    Columns go by the longest way from a leaf; a leaf stands right before its first reader. An arrow
    over several columns has a place of its own in each of them. Within a column, places are sorted,
    some times over, by the middle of their neighbours' rows.
    """
    readers: list[list[int]] = [[] for _ in nodes]
    columns = [0] * len(nodes)
    for place, node in enumerate(nodes):
        columns[place] = max((columns[i] + 1 for i in node.inputs), default=0)
        for i in node.inputs:
            readers[i].append(place)
    for place, node in enumerate(nodes):
        if not node.inputs and readers[place]:
            columns[place] = min(columns[reader] for reader in readers[place]) - 1
    near: list[list[int]] = [[] for _ in nodes]
    ways: dict[tuple[int, int], list[int]] = {}
    for place, node in enumerate(nodes):
        for source in node.inputs:
            between = range(columns[source] + 1, columns[place])
            way = [len(columns) + k for k in range(len(between))]
            columns += between
            near += [[] for _ in way]
            ways[source, place] = way
            chain = [source, *way, place]
            for one, other in itertools.pairwise(chain):
                near[one].append(other)
                near[other].append(one)
    members: list[list[int]] = [[] for _ in range(max(columns) + 1)]
    for place, column in enumerate(columns):
        members[column].append(place)
    rows = [0.0] * len(columns)
    for member in members:
        _spread(member, rows)
    for sweep in range(8):
        for member in members if sweep % 2 == 0 else members[::-1]:
            wanted = {i: sum(rows[k] for k in near[i]) / max(len(near[i]), 1) for i in member}
            member.sort(key=wanted.__getitem__)
            _spread(member, rows)
    spots = list(zip(columns, rows, strict=True))
    return spots[: len(nodes)], {edge: [spots[i] for i in way] for edge, way in ways.items()}


def _spread(column: Sequence[int], rows: list[float]) -> None:
    """One row for each, around the middle of the picture."""
    for number, place in enumerate(column):
        rows[place] = number - (len(column) - 1) / 2


def _draw_box(
    axes: Any, node: Node, corner: tuple[float, float], is_loss: bool, is_step: bool
) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = corner
    color = _STEP if is_step else _INNER if node.inputs else _LEAF
    axes.add_patch(
        FancyBboxPatch(
            (x, y), _WIDTH, _HEIGHT, boxstyle="round,pad=0,rounding_size=0.1", facecolor=color,
            edgecolor=_BACK if is_step else _EDGE, linewidth=1.6 if is_step or is_loss else 0.9,
        )
    )  # fmt: skip
    name = f"L = {node.name}" if is_loss else node.name
    lines = [
        (0.2, name, "#111111", 10.5),
        (0.53, shown(node.value), _FORWARD, 9),
        (0.82, "-" if node.gradient is None else shown(node.gradient), _BACK, 9),
    ]
    for down, text, ink, size in lines:
        size = min(size, 115 * _WIDTH / len(text))  # so it stays inside
        weight = "bold" if ink == "#111111" and node.inputs else "normal"
        axes.text(
            x + _WIDTH / 2, y + down * _HEIGHT, text, ha="center", va="center", color=ink,
            fontsize=size, fontweight=weight,
        )  # fmt: skip


def _draw_arrow(
    axes: Any,
    nodes: Sequence[Node],
    corners: Sequence[tuple[float, float]],
    edge: tuple[int, int],
    passed: Sequence[tuple[float, float]],
    is_step: bool,
) -> None:
    """From what a node reads to the node; in a step of the chain rule back, with what goes back."""
    source, place = edge
    node, (x, y), (left, top) = nodes[place], corners[place], corners[source]
    order = sorted(node.inputs, key=lambda i: corners[i][1])
    points = [(left + _WIDTH, top + _HEIGHT / 2)]
    for at, down in passed:
        points += [(at, down + _HEIGHT / 2), (at + _WIDTH, down + _HEIGHT / 2)]
    points.append((x, y + _HEIGHT * (order.index(source) + 1) / (len(order) + 1)))
    color, width = (_BACK, 1.4) if is_step else (_EDGE, 1.0)
    if is_step:
        points.reverse()
    axes.plot(*zip(*points[:-1], strict=True), color=color, linewidth=width, zorder=0)
    arrow = {"arrowstyle": "-|>", "color": color, "linewidth": width, "shrinkA": 0, "shrinkB": 1}
    axes.annotate("", points[-1], points[-2], arrowprops=arrow)
    derivative = node.derivatives[node.inputs.index(source)]
    if is_step and derivative is not None and node.gradient is not None:
        back = float(node.gradient.item())
        axes.text(
            left + _WIDTH / 2, top - 0.09,
            f"{_number(back)} · {_number(derivative)} = {_number(back * derivative)}",
            ha="center", va="center", fontsize=8.5, color=_BACK,
        )  # fmt: skip


def shown(array: Array) -> str:
    """Some numbers as text, or the shape of many."""
    if array.size == 1:
        return _number(array.item())
    if array.ndim == 1 and array.size <= MOST_NUMBERS:
        return "[" + ", ".join(map(_number, array.tolist())) + "]"
    return " × ".join(map(str, array.shape))


def _number(value: float) -> str:
    text = f"{value:.3g}"
    return text.replace("-", "−")
