"""Simplify: the same program with less in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from palto.tensor.graph import Graph, Operation, Primitive, Trace, apply, scope, set_grad_enabled
from palto.tensor.primitives import control, elementwise
from palto.tensor.tensor import Tensor

#: Applies a primitive to tensors, with its parameters by name; the same twice is the same tensor.
Apply = Callable[..., Any]
#: From an operation and its new inputs to its new output, instead of the operation itself.
Rule = Callable[[Operation, Sequence[Tensor], Apply], Any]


def simplify(
    graph: Graph,
    *,
    inline: bool,
    rules: Mapping[str, Rule] = MappingProxyType({}),
    copy_outputs: bool = False,
    rolled: Mapping[int, Graph] = MappingProxyType({}),
) -> Graph:
    """Without dead code, detours and repetition.

    What is computed twice from the same tensors is computed once; random draws differ in their
    state, so they are never the same.

    Args:
        graph: the graph.
        inline: whether the bodies of composites and repeats are laid open, so that a gradient
            shares what it would compute again. A checkpoint shares nothing: to compute again is
            its purpose.
        rules: how to rewrite operations, by primitive.
        copy_outputs: whether each output is to be a copy (`detach`) of its own.
        rolled: the repeats that stay even so, by sequence number, with the bodies that they get.
    """
    simplifier = _Simplifier(inline, rules, rolled)
    with simplifier.trace.active(), set_grad_enabled(False):
        inputs = [simplifier.trace.placeholder(x.shape, x.dtype) for x in graph.inputs]
        outputs = simplifier.copy(graph, inputs)
        if copy_outputs:
            outputs = [apply(elementwise.detach, x) for x in outputs]
    return Graph.reaching(inputs, outputs, simplifier.trace.tensors)


class _Simplifier:
    def __init__(
        self, inline: bool, rules: Mapping[str, Rule], rolled: Mapping[int, Graph]
    ) -> None:
        self.trace = Trace()
        self._inline = inline
        self._rules = rules
        self._rolled = rolled
        self._known: dict[Any, Sequence[Tensor]] = {}
        self._is_recomputed = False

    def copy(self, graph: Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Apply the graph's operations to other inputs, each kind of result once."""
        mapped = {id(old): new for old, new in zip(graph.inputs, inputs, strict=True)}

        def find(tensor: Tensor) -> Tensor:
            return mapped[id(tensor)] if id(tensor) in mapped else self._constant(tensor)

        for operation in graph.operations:
            arguments = [find(x) for x in operation.inputs]
            results = self._results(operation, arguments)
            for old, new in zip(operation.outputs, results, strict=True):
                mapped[id(old)] = new
        return [find(x) for x in graph.outputs]

    def _results(self, operation: Operation, arguments: list[Tensor]) -> Sequence[Tensor]:
        primitive, params = operation.primitive, operation.params
        if primitive is elementwise.detach:
            return arguments
        if primitive is control.composite and self._inline:
            outside, was_again = self._known, self._is_recomputed
            if params["recompute"]:
                self._known = {}
                self._is_recomputed |= params["name"].endswith(".gradient")
            results = self.copy(params["body"], arguments)
            self._known, self._is_recomputed = outside, was_again
            return results
        if primitive is control.repeat and self._inline:
            if operation.sequence not in self._rolled:
                body = params["body"]
                return control.unrolled(arguments, lambda *x: self.copy(body, x), **params)
            params = {**params, "body": self._rolled[operation.sequence]}
        rule = self._rules.get(primitive.name)
        with scope(operation.scope):
            if rule is None:
                return self._applied(primitive, arguments, params)
            key = ("rule", *self._key(primitive, arguments, params))
            if key not in self._known:
                self._known[key] = _listed(rule(operation, arguments, self._apply))
            return self._known[key]

    def _apply(self, primitive: Primitive, *arguments: Tensor, **params: Any) -> Any:
        """See `Apply`."""
        results = self._applied(primitive, arguments, params)
        return results[0] if len(results) == 1 else results

    def _applied(
        self, primitive: Primitive, arguments: Sequence[Tensor], params: dict[str, Any]
    ) -> Sequence[Tensor]:
        key = self._key(primitive, arguments, params)
        if key not in self._known:
            results = _listed(apply(primitive, *arguments, **params))
            for x in results if self._is_recomputed else ():
                if x.operation is not None:
                    x.operation.is_recomputed = True
            self._known[key] = results
        return self._known[key]

    @staticmethod
    def _key(
        primitive: Primitive, arguments: Sequence[Tensor], params: dict[str, Any]
    ) -> tuple[Any, ...]:
        return primitive, frozen(params), tuple(id(x) for x in arguments)

    def _constant(self, tensor: Tensor) -> Tensor:
        """One tensor for all equal numbers."""
        if tensor.ndim:
            return tensor
        key = (tensor.dtype, tensor.array().tobytes())
        return self._known.setdefault(key, (tensor,))[0]


def _listed(result: Any) -> Sequence[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def frozen(params: dict[str, Any]) -> Any:
    """Parameters as a key; one that equals no other where they cannot be compared."""
    items = tuple(sorted(params.items(), key=lambda item: item[0]))
    try:
        hash(items)
    except TypeError:
        return object()  # equal to nothing else
    return tuple((name, type(value), repr(value) if isinstance(value, float) else value)
                 for name, value in items)  # fmt: skip
