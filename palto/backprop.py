"""Backprop: from a graph and its outputs' gradients to the graph of its inputs' gradients.

Each operation, last first, hands the gradients of its outputs to its primitive's gradient rule and
adds what comes back to the gradients of its inputs. The rules are made of tensor functions, so the
result is a graph like any other: compiled with the rest of a step, or differentiated again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from palto.tensor import dtypes
from palto.tensor import functions as F
from palto.tensor.graph import (
    Operation,
    current_trace,
    is_grad_enabled,
    resolve,
    scope,
    set_grad_enabled,
)
from palto.tensor.tensor import Cell, Tensor
from palto.tensor.tree import flatten, rebuild

_FREED = (
    "backward() has already passed here and freed the graph; add the losses and call backward() "
    "once, or call backward(retain_graph=True) the first time"
)


class BackwardError(RuntimeError):
    """A gradient was asked for that cannot be computed."""


def backward(
    loss: Tensor,
    gradient: Tensor | None = None,
    *,
    inputs: Iterable[Tensor] | None = None,
    accumulate: bool = False,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> None:
    """Leave in ``.grad`` of every tensor that requires a gradient the gradient of `loss`.

    Gradients are fresh: nothing needs to be set to zero before. A second ``backward()`` that
    reaches the same parameters before an optimiser's ``step()`` raises.

    Args:
        loss: one number, or any tensor if `gradient` is given.
        gradient: the gradient with respect to `loss` itself; 1 by default.
        inputs: leave gradients only here, for instance in one of two networks' parameters.
        accumulate: add to gradients that wait for a step instead of raising.
        retain_graph: keep the graph for another ``backward()``.
        create_graph: make the gradients differentiable themselves.

    Raises:
        BackwardError: nothing requires a gradient, the graph was freed, or gradients are waiting.
        ValueError: `loss` has several elements, or is complex, and no `gradient` is given; or
            `inputs` names a tensor that was computed from others.
    """
    loss = resolve(loss)
    _require_differentiable(loss)
    if gradient is None:
        if loss.size != 1:
            raise ValueError(
                f"backward() starts from one number, this tensor has shape {loss.shape}; take its "
                "mean() or sum(), or give backward(gradient)"
            )
        if loss.dtype in dtypes.COMPLEX:
            raise ValueError(
                "backward() starts from a real number, this one is complex; take its real part or "
                "abs(), or give backward(gradient)"
            )
        gradient = F.ones_like(loss)
    gradient = F.asarray(gradient)
    if (gradient.shape, gradient.dtype) != (loss.shape, loss.dtype):
        raise ValueError(
            f"the gradient is {gradient.dtype.name}{gradient.shape}, the tensor "
            f"{loss.dtype.name}{loss.shape}; they must be alike"
        )

    wanted = None if inputs is None else _owners(inputs)
    with set_grad_enabled(create_graph):
        found, visited = _walk(
            [loss],
            [gradient],
            lambda x: _is_leaf(x) and (wanted is None or id(_leaf_owner(x)) in wanted),
        )
        reached: dict[int, tuple[Tensor, Tensor]] = {}
        for leaf, grad in found.values():
            owner = _leaf_owner(leaf)
            before = reached.get(id(owner))
            reached[id(owner)] = (owner, grad if before is None else before[1] + grad)
        _leave(list(reached.values()), accumulate)
    if not (retain_graph or create_graph):
        _free(visited)


def _leaf_owner(tensor: Tensor) -> Tensor:
    return tensor if tensor.cell is None else tensor.cell


def _owners(inputs: Iterable[Tensor]) -> set[int]:
    owners = {id(_leaf_owner(x)): _leaf_owner(x) for x in inputs}
    for owner in owners.values():
        if not _is_leaf(owner):
            computed = owner.operation is not None
            raise ValueError(
                f"backward(inputs=...) names a tensor of shape {owner.shape} that "
                + ("was computed from others" if computed else "does not require a gradient")
                + "; name parameters, or tensors made with requires_grad=True"
            )
    return set(owners)


def _leave(reached: list[tuple[Tensor, Tensor]], accumulate: bool) -> None:
    for owner, _ in reached:
        if isinstance(owner, Cell) and owner.has_pending_grad() and not accumulate:
            raise BackwardError(
                f"backward() reached {owner.name or 'a parameter'}, whose gradient from an "
                "earlier backward() no optimiser has used yet. Call optimizer.step() between, add "
                "the losses, ask for backward(accumulate=True), or limit one of them with "
                "backward(inputs=model.parameters())"
            )
        if isinstance(owner, Cell) and accumulate and owner.grad is None and owner.grad_is_pending:
            raise BackwardError(
                f"{owner.name or 'a parameter'} has a gradient from outside the compiled "
                "function, which accumulate=True inside cannot see; do both in one place"
            )
    for owner, grad in reached:
        used = isinstance(owner, Cell) and not owner.has_pending_grad()
        if accumulate and owner.grad is not None and not used:
            grad = owner.grad + grad
        if isinstance(owner, Cell):
            owner.set_grad(grad, pending=True)
        else:
            owner._grad = grad


def gradients(
    outputs: Sequence[Tensor],
    output_gradients: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """The gradients towards `inputs`, which may lie anywhere in the graph.

    Args:
        outputs: where to start.
        output_gradients: the gradient with respect to each of them.
        inputs: tensors that the outputs depend on, taken as independent of one another.
        create_graph: make the gradients differentiable themselves.

    Returns:
        One gradient for each input; None where no output depends on it.
    """
    targets = [resolve(x) for x in inputs]
    starts = [(resolve(y), g) for y, g in zip(outputs, output_gradients, strict=True)]
    starts = [(y, g) for y, g in starts if y.requires_grad]
    ends = {id(x) for x in targets}
    with set_grad_enabled(create_graph):
        found, _ = _walk([y for y, _ in starts], [g for _, g in starts], lambda x: id(x) in ends)
    return [found[id(x)][1] if id(x) in found else None for x in targets]


def _is_leaf(tensor: Tensor) -> bool:
    if not tensor.requires_grad or tensor.severed is not None:
        return False
    operation = tensor.operation
    # In a trace even a detached tensor, made to require a gradient, comes from an operation.
    return tensor.cell is not None or operation is None or operation.primitive.gradient is None


def _walk(
    outputs: Sequence[Tensor], starts: Sequence[Tensor], is_end: Callable[[Tensor], bool]
) -> tuple[dict[int, tuple[Tensor, Tensor]], list[Operation]]:
    """The tensors where the way ends with their gradients, by identity, and the operations passed.

    The operations come last first; those that lead to no end are left out.
    """
    operations: dict[int, Operation] = {}
    stack = list(outputs)
    while stack:
        tensor = stack.pop()
        if not tensor.requires_grad or is_end(tensor):
            continue
        if tensor.severed is not None:
            raise BackwardError(tensor.severed)
        operation = tensor.operation
        if _is_leaf(tensor) or operation is None or operation.sequence in operations:
            continue
        operations[operation.sequence] = operation
        stack.extend(operation.inputs)

    useful: dict[int, Operation] = {}

    def leads_on(tensor: Tensor) -> bool:
        operation = tensor.operation
        return tensor.requires_grad and (
            is_end(tensor) or (operation is not None and operation.sequence in useful)
        )

    for sequence in sorted(operations):
        if any(leads_on(x) for x in operations[sequence].inputs):
            useful[sequence] = operations[sequence]

    found: dict[int, tuple[Tensor, Tensor]] = {}

    def add(tensor: Tensor, gradient: Tensor) -> None:
        if leads_on(tensor):
            before = found.get(id(tensor))
            found[id(tensor)] = (tensor, gradient if before is None else before[1] + gradient)

    for tensor, gradient in zip(outputs, starts, strict=True):
        add(tensor, gradient)
    order = list(reversed(useful.values()))
    for operation in order:
        # Taken out, so that a gradient is freed as soon as it has been handed on.
        incoming = [None if is_end(y) else found.pop(id(y), None) for y in operation.outputs]
        if all(part is None for part in incoming):
            continue
        rule = operation.primitive.gradient
        assert rule is not None
        grads = [None if part is None else part[1] for part in incoming]
        with scope(operation.scope):
            passed = rule(operation, *grads)
        for tensor, part in zip(operation.inputs, passed, strict=True):
            if part is not None:
                add(tensor, part)
    return found, order


def _free(operations: Iterable[Operation]) -> None:
    traced = current_trace() is not None
    for operation in operations:
        for output in operation.outputs:
            if output.requires_grad:
                output.severed = _FREED
            if not traced:
                output.operation = None


def _require_differentiable(loss: Tensor) -> None:
    if not loss.requires_grad:
        if loss.dtype not in dtypes.DIFFERENTIABLE:
            reason = f"it is {loss.dtype.name}, which has no derivative"
        elif not is_grad_enabled():
            reason = "it was computed under no_grad()"
        else:
            reason = "it does not depend on any tensor that requires a gradient"
        raise BackwardError(
            f"this tensor has no gradient: {reason}. Losses depend on parameters; "
            "detach(), no_grad(), argmax and comparisons cut the way to them"
        )


def grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that computes the gradient of `function`.

    Args:
        function: returns one number (a tensor of one element).
        argnums: which positional arguments to differentiate with respect to; each a tensor or a
            nested tuple, list or dict of tensors.
        has_aux: the function returns (number, anything else).

    Returns:
        A function of the same arguments that returns the gradient, in the structure of the
        argument (a tuple of them for several `argnums`); with `has_aux` (gradient, anything else).
        It can be differentiated again.
    """
    with_value = value_and_grad(function, argnums, has_aux=has_aux)

    @functools.wraps(function)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, result = with_value(*args, **kwargs)
        return (result, value[1]) if has_aux else result

    return gradient


def value_and_grad(
    function: Callable[..., Any], argnums: int | Sequence[int] = 0, *, has_aux: bool = False
) -> Callable[..., Any]:
    """Like :func:`grad`, but the function returns (what `function` returns, gradient)."""
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(function)
    def both(*args: Any, **kwargs: Any) -> Any:
        given, tree = flatten([args[i] for i in positions])
        originals = [F.asarray(x) for x in given]
        for x in originals:
            if x.dtype not in dtypes.DIFFERENTIABLE:
                raise TypeError(
                    f"there is no gradient with respect to an argument of {x.dtype.name}"
                )
        outer = is_grad_enabled()
        with set_grad_enabled(True):
            inner = [_fresh(x) for x in originals]
            replaced = list(args)
            for i, value in zip(positions, rebuild(tree, inner), strict=True):
                replaced[i] = value
            result = function(*replaced, **kwargs)
            loss = _checked_loss(result, has_aux)
            own = {
                id(x)
                for x, original in zip(inner, originals, strict=True)
                if not original.requires_grad
            }
            connected = outer and _leads_elsewhere(loss, own)
            found: Sequence[Tensor | None] = [None] * len(inner)
            if loss.requires_grad:
                found = gradients([loss], [F.ones_like(loss)], inner, create_graph=connected)
        filled = [
            F.zeros_like(x) if g is None else g for x, g in zip(originals, found, strict=True)
        ]
        leaves, shape = flatten(result)
        filled = [_released(g, own, outer) for g in filled]
        leaves = [_released(x, own, outer) if isinstance(x, Tensor) else x for x in leaves]
        grads = rebuild(tree, filled)
        return rebuild(shape, leaves), grads[0] if isinstance(argnums, int) else tuple(grads)

    return both


def _fresh(x: Tensor) -> Tensor:
    """A tensor of the same value that is this call's own, connected to the outer one."""
    if x.requires_grad:
        return F.reshape(F.reshape(x, (1, *x.shape)), x.shape)
    inner = F.detach(x)
    inner.requires_grad = True
    return inner


def _checked_loss(result: Any, has_aux: bool) -> Tensor:
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(
            f"grad with has_aux wants a function that returns (number, anything), it gave {result}"
        )
    loss = F.asarray(result[0] if has_aux else result)
    if loss.size != 1 or loss.dtype not in dtypes.FLOATING:
        raise ValueError(
            "grad wants a function that returns one floating-point number, it gave "
            f"{loss.dtype.name}{loss.shape}; take the mean() or sum()"
        )
    return loss


def _released(tensor: Tensor, own: set[int], outer: bool) -> Tensor:
    """Without its graph, unless that leads to anything but this call's own arguments."""
    if not tensor.requires_grad or (outer and _leads_elsewhere(tensor, own)):
        return tensor
    return tensor.detach()


def _leads_elsewhere(tensor: Tensor, own: set[int]) -> bool:
    """Whether backprop from `tensor` reaches anything but the tensors in `own`."""
    seen: set[int] = set()
    stack = [tensor]
    while stack:
        x = stack.pop()
        if id(x) in own or not x.requires_grad:
            continue
        if x.severed is not None or x.operation is None or _is_leaf(x):
            return True
        if x.operation.sequence not in seen:
            seen.add(x.operation.sequence)
            stack.extend(x.operation.inputs)
    return False
