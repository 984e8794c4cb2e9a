"""Checks: what operations demand of values, looked at before a program writes its first cell."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from palto.compiler import index as ix
from palto.compiler import nests
from palto.compiler.nests import Check
from palto.compiler.prepare import read_through
from palto.compiler.sizes import at, is_surely_less
from palto.tensor import dtypes
from palto.tensor.graph import Graph, Operation
from palto.tensor.tensor import Tensor

#: From the offending value and the run-time sizes to the error.
Error = Callable[[int, Mapping[str, int]], Exception]


def checks_of(graph: Graph) -> list[Check]:
    """What operations demand of their inputs' values."""
    found: list[Check] = []
    for operation in graph.operations:
        name, inputs, params = operation.primitive.name, operation.inputs, operation.params
        if name in ("gather", "scatter_add"):
            x, *places = inputs
            axis = params["axis"]
            sizes = params.get("sizes") or x.shape[axis : axis + len(places)]
            for place, size in zip(places, sizes, strict=True):
                error = functools.partial(_index_error, params["role"], size)
                found += _check(place, 0, size, _located(operation, error))
        elif name in ("dynamic_slice", "dynamic_update_slice"):
            starts = inputs[-1]
            sizes = params["sizes"] if name == "dynamic_slice" else inputs[1].shape
            for axis, (n, size) in enumerate(zip(inputs[0].shape, sizes, strict=True)):
                error = functools.partial(_start_error, axis, n, size)
                found += _check(starts, 0, n - size + 1, _located(operation, error), axis)
        elif name in ("floor_divide", "remainder") and inputs[1].dtype in dtypes.INTEGER:
            error = functools.partial(_zero_error, name)
            found += _check(inputs[1], None, None, _located(operation, error))
        elif name == "pow" and inputs[1].dtype in dtypes.SIGNED:
            found += _check(inputs[1], 0, None, _located(operation, _power_error))
    # What is asked twice of one tensor, forward and in backprop, is looked at once.
    once = {(id(c.tensor), c.low, c.high, c.allows_zero, c.place): c for c in reversed(found)}
    return [*reversed(once.values())]


def _check(
    x: Tensor,
    low: int | None,
    high: int | None,
    error: Error,
    place: int | None = None,
) -> list[Check]:
    """The check, unless it is sure to succeed."""
    if place is None:
        whole = [ix.of(v) for v in nests.variables("w", x.shape)]
        kept = ("reshape", "permute", "expand")  # views that show every element
        x = read_through(
            x, whole, lambda t: t.operation is None or t.operation.primitive.name not in kept
        ).tensor
    if x._value is not None:
        values = x.array() if place is None else x.array()[place]
        bad = np.zeros(np.shape(values), np.bool_)
        if low is None and high is None:
            bad |= values == 0
        if low is not None:
            bad |= values < low
        if high is not None:
            bad |= values >= high
        if not bad.any():
            return []
    elif x.operation is not None and x.operation.primitive.name == "iota":
        length = x.shape[x.operation.params["axis"]]
        if high is not None and is_surely_less(length, high + 1):
            return []
    allows_zero = low is not None or high is not None
    return [Check(x, low, high, allows_zero, error, place)]


def _located(operation: Operation, error: Error) -> Error:
    """The error with a note of the layer it happened in."""
    scope = operation.scope  # the operation would hold all of the graph

    def make(value: int, sizes: Mapping[str, int]) -> Exception:
        result = error(value, sizes)
        if scope:
            result.add_note(f"in layer {'.'.join(scope)}")
        return result

    return make


def _index_error(role: str, size: int, value: int, sizes: Mapping[str, int]) -> Exception:
    size = at(size, sizes)
    allowed = f"from 0 to {size - 1}" if size else "absent: there is nothing to index"
    return IndexError(f"{role} {value} is out of range: it must be {allowed}")


def _start_error(axis: int, n: int, size: int, value: int, sizes: Mapping[str, int]) -> Exception:
    n, size = at(n, sizes), at(size, sizes)
    return IndexError(
        f"start {value} is out of range on axis {axis}: a box of {size} in {n} "
        f"may start at 0 to {n - size}"
    )


def _zero_error(name: str, value: int, sizes: Mapping[str, int]) -> Exception:
    what = "division" if name == "floor_divide" else "remainder"
    hint = "; use float tensors for infinities" if name == "floor_divide" else ""
    return ZeroDivisionError(f"integer {what} by zero{hint}")


def _power_error(value: int, sizes: Mapping[str, int]) -> Exception:
    return ValueError("an integer tensor to a negative power; cast it to float32 first")


def condition_error(message: str, value: int, sizes: Mapping[str, int]) -> Exception:
    """A condition of the user's did not hold."""
    return FloatingPointError(message)
