"""Lowering: a graph's operations applied to JAX's arrays, and what must hold of their values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from palto.compiler.checks import Error, checks_of
from palto.compiler.nests import Check
from palto.compiler.sizes import Size, at, shape_at
from palto.compiler.xla.rows import TABLE
from palto.tensor.graph import Graph, Operation

Array = Any
#: Whether a check has failed, and the first value that it refuses.
Failure = tuple[Array, Array]


class Lowering:
    """One walk through a graph.

    Args:
        sizes: the run-time sizes, which are lengths like others here.
        parts: how the first axis is shared among devices.
        batches: the lengths of axes that are shared.

    Attributes:
        failures: of each check so far, in the order in which NumPy would notice.
        errors: for each of them what makes the error of a value.
    """

    def __init__(
        self, sizes: Mapping[str, int], parts: NamedSharding, batches: Collection[int]
    ) -> None:
        self._sizes = sizes
        self._parts = parts
        self._batches = batches
        self.failures: list[Failure] = []
        self.errors: list[Error] = []
        self._errors_inside: list[Error] = []

    def evaluate(self, graph: Graph, inputs: Sequence[Array]) -> list[Array]:
        """The values of the graph's outputs."""
        values = {id(x): value for x, value in zip(graph.inputs, inputs, strict=True)}

        def find(x: Any) -> Array:
            if id(x) not in values:
                values[id(x)] = jnp.array(x.array())
            return values[id(x)]

        for operation in graph.operations:
            arrays = [find(x) for x in operation.inputs]
            params = {name: self._fixed(value) for name, value in operation.params.items()}
            scope = [".".join(operation.scope)] if operation.scope else []
            with jax.named_scope("/".join((*scope, operation.primitive.name))):
                results = TABLE[operation.primitive.name](self, *arrays, **params)
            results = results if isinstance(results, tuple | list) else (results,)
            for x, result in zip(operation.outputs, results, strict=True):
                self._hold_to(operation, x, result)
                values[id(x)] = result
        for check in checks_of(graph):
            self.check(find(check.tensor), check)
        return [find(x) for x in graph.outputs]

    def shared(self, x: Array) -> Array:
        """Share a batch among the devices again, where XLA would let each compute all of it."""
        if x.ndim and x.shape[0] in self._batches:
            x = lax.with_sharding_constraint(x, self._parts)
        return x

    def _fixed(self, value: Any) -> Any:
        """A parameter at these sizes."""
        if isinstance(value, tuple):
            return tuple(self._fixed(part) for part in value)
        return at(value, self._sizes) if isinstance(value, Size) else value

    def _hold_to(self, operation: Operation, x: Any, result: Array) -> None:
        shape = shape_at(x.shape, self._sizes)
        if result.shape != shape or result.dtype != x.dtype:
            raise RuntimeError(
                f"defect in the XLA row of {operation.primitive.name!r}: the shape rule says "
                f"{x.dtype.name}{shape}, the row gave {result.dtype.name}{result.shape}"
            )

    # Checks

    def check(self, x: Array, check: Check) -> None:
        """Look at what a check demands of a value."""
        x = x.reshape(-1) if check.place is None else x.reshape(-1)[check.place : check.place + 1]
        if not x.size:
            return
        bad = jnp.zeros(x.shape, jnp.bool_)
        if check.low is not None:
            bad |= x < np.asarray(at(check.low, self._sizes)).astype(x.dtype)
        if check.high is not None:
            bad |= x.astype(jnp.int64) >= at(check.high, self._sizes)
        if not check.allows_zero:
            bad |= x == jnp.zeros((), x.dtype)
        self._note(bad, x.astype(jnp.int64), check.error)

    def demand(self, condition: Array, error: Error) -> None:
        """Let a condition of the user's hold."""
        self._note(~condition.reshape(1), jnp.zeros(1, jnp.int64), error)

    def _note(self, bad: Array, values: Array, error: Error) -> None:
        self.failures.append((bad.any(), values[jnp.argmax(bad)]))
        self.errors.append(error)

    def inside(self, graph: Graph, inputs: Sequence[Array]) -> tuple[list[Array], list[Failure]]:
        """Of a loop's body: the values of the outputs, and the failures of one step."""
        outside = self.failures, self.errors
        self.failures, self.errors = [], []
        results = self.evaluate(graph, inputs)
        failures, self._errors_inside = self.failures, self.errors
        self.failures, self.errors = outside
        return results, failures

    def add_of_steps(self, failures: Sequence[Failure]) -> None:
        """The failures of all steps of the loop that `inside` was of last, stacked."""
        for (bad, value), error in zip(failures, self._errors_inside, strict=True):
            if bad.size:
                self._note(bad, value, error)

    def first_failure(self) -> Array | None:
        """The number of the first check that has failed, or -1, and its value; None without any."""
        if not self.failures:
            return None
        bad = jnp.stack([failed for failed, _ in self.failures])
        values = jnp.stack([value for _, value in self.failures])
        first = jnp.argmax(bad)
        return jnp.stack([jnp.where(bad.any(), first, -1), values[first]])
