"""Functions of functions: named composites, checkpoint, scan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast, overload

from palto.tensor.functions.elementwise import astype
from palto.tensor.graph import Gradients, Operation, current_trace
from palto.tensor.primitives import control as rows
from palto.tensor.tensor import Tensor
from palto.tensor.tree import flatten, rebuild

Function = TypeVar("Function", bound=Callable[..., Any])


@overload
def composite(function: Function, /) -> Function: ...
@overload
def composite(
    *, recompute: bool = False, gradient: Callable[..., Any] | None = None
) -> Callable[[Function], Function]: ...
def composite(
    function: Function | None = None,
    /,
    *,
    recompute: bool = False,
    gradient: Callable[..., Any] | None = None,
) -> Any:
    """Keep a function of tensors together in traces, under its own name.

    Run at once, the function just runs. In a trace it becomes one operation with the function's
    graph as its body, so that a compiler can schedule a softmax as a softmax.

    Args:
        function: the function.
        recompute: backprop computes its inside again instead of keeping it: for what is elementwise
            and has more intermediate results than inputs.
        gradient: a better one in traces than that of the body: from what the function returned, the
            gradients of that (None where nothing depends on it), and the arguments, to the gradient
            of the first argument, or to one for each of the first few (None: that is no tensor).
            Where a tensor is given by name or in another argument, the body's own is taken.
    """
    if function is None:
        return functools.partial(_composite, recompute=recompute, gradient=gradient)
    return _composite(function, recompute=recompute, gradient=gradient)


def _composite(
    function: Function, *, recompute: bool, gradient: Callable[..., Any] | None
) -> Function:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if current_trace() is None:
            return function(*args, **kwargs)
        return _as_operation(
            function.__name__, function, args, kwargs, recompute=recompute, gradient=gradient
        )

    return cast(Function, call)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, whose inside backprop computes again instead of keeping.

    Parameters that the function uses get their gradients; random numbers are the same when it is
    computed again; running statistics are updated once.

    Args:
        function: a function of tensors. It is traced, so it may not look at values.
        args: its arguments: tensors, or nested tuples, lists and dicts of them, and other values.
        kwargs: the same, by name.

    Returns:
        What the function returns.
    """
    return _as_operation("checkpoint", function, args, kwargs, recompute=True)


def _as_operation(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    recompute: bool,
    gradient: Callable[..., Any] | None = None,
) -> Any:
    leaves, tree = flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    statics = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    found: list[Any] = []

    def arguments(inner: Iterable[Tensor]) -> Any:
        given = iter(inner)
        filled = [
            next(given) if isinstance(old, Tensor) else static
            for old, static in zip(leaves, statics, strict=True)
        ]
        return rebuild(tree, filled)

    def formula(operation: Operation, *grads: Tensor | None) -> Gradients:
        def backward(*inner: Tensor) -> list[Tensor]:
            assert gradient is not None
            given = iter(inner)
            incoming = [None if g is None else next(given) for g in grads]
            # What it uses of these is captured.
            inner_args, inner_kwargs = arguments(operation.inputs[: len(tensors)])
            results, incoming = (rebuild(found[0], x) for x in (operation.outputs, incoming))
            wanted = gradient(results, incoming, *inner_args, **inner_kwargs)
            wanted = (wanted,) if isinstance(wanted, Tensor) else wanted
            return [
                astype(g, x.dtype)
                for x, g in zip(inner_args, wanted, strict=False)
                if isinstance(x, Tensor)
            ]

        known = [g for g in grads if g is not None]
        wanted = rows.call(f"{name}.gradient", backward, known, operation.params["statics"])
        return [*wanted, *(None for _ in operation.inputs[len(wanted) :])]

    def body(*inner: Tensor) -> list[Tensor]:
        inner_args, inner_kwargs = arguments(inner)
        outputs, shape = flatten(function(*inner_args, **inner_kwargs))
        for output in outputs:
            if not isinstance(output, Tensor):
                raise TypeError(f"{name} wants a function that returns tensors, got {output!r}")
        found[:] = [shape]
        return outputs

    is_plain = len(tensors) == sum(isinstance(x, Tensor) for x in args)  # none named, none nested
    results = rows.call(
        name, body, tensors, {"leaves": tuple(statics)}, recompute=recompute,
        gradient=formula if gradient is not None and is_plain else None,
    )  # fmt: skip
    return rebuild(found[0], results)


def scan(
    step: Callable[..., tuple[Any, Any]],
    initial: Any,
    sequences: Any = None,
    *,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """A loop with carried state, differentiable, as one operation.

    Its gradient computes each step again from the state before it, but keeps the results of scans
    that stand in the step itself; put such a scan into `checkpoint` to have it computed again, too.

    Args:
        step: from (state, elements at this step) to (new state, outputs of this step). Both state
            and outputs may be a tensor or a nested tuple, list or dict of tensors; the state keeps
            its shapes and dtypes. It is traced once, and may not look at values.
        initial: the state before the first step.
        sequences: what is cut into steps along its first axis, or None.
        length: the number of steps; needed only without sequences.
        reverse: go from the last step to the first; outputs stay at their step's place.

    Returns:
        The last state, and the outputs stacked along a new first axis.

    Raises:
        ValueError: sequences of different lengths, or a state that changes its shape.
    """
    from palto.tensor.functions.creation import asarray

    carry, carry_tree = flatten(initial)
    xs, xs_tree = flatten(sequences)
    carry = [asarray(x) for x in carry]
    xs = [asarray(x) for x in xs]
    for x in xs:
        if x.ndim == 0:
            raise ValueError("scan: a sequence has no axis to go along")
        length = x.shape[0] if length is None else length
        if x.shape[0] != length:
            raise ValueError(f"scan over {length} steps got a sequence of {x.shape[0]}")
    if length is None:
        raise ValueError("scan without sequences wants length=")
    found: list[Any] = []

    def body(*tensors: Tensor) -> Sequence[Tensor]:
        state = rebuild(carry_tree, tensors[: len(carry)])
        result = step(state, rebuild(xs_tree, tensors[len(carry) :]))
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(
                f"scan: a step returns (new state, outputs), got {type(result).__name__}"
            )
        state_leaves, state_tree = flatten(result[0])
        if state_tree != carry_tree:
            raise ValueError(
                "scan: a step returns a state of another structure than it was given (a dict's "
                "keys keep their order, too)"
            )
        outputs, outputs_tree = flatten(result[1])
        found[:] = [outputs_tree]
        return [*state_leaves, *outputs]

    results = rows.apply_scan(body, carry, xs, [], length=length, reverse=reverse)
    state, ys = results[: len(carry)], results[len(carry) :]
    return rebuild(carry_tree, state), rebuild(found[0], ys)
