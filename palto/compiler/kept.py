"""Kept: what a program computes of its cells alone, and computes again only after a change.

Transformed kernels, the scale and shift of batch normalisation in inference, a weight turned
around: steps that no argument has a part in come first in a program, and what they compute stays in
memory of its own. A call skips them while none of the cells that they read has changed. Such a cell
is marked (`Cell.is_watched`), and whoever changes it notes that (`palto.tensor.graph.note_change`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from palto.compiler import views
from palto.compiler.llvm import elementwise
from palto.compiler.sizes import Size
from palto.tensor import dtypes
from palto.tensor.graph import Graph, Operation
from palto.tensor.tensor import Tensor

#: What may be kept. Nothing that is checked, such as an index, and nothing that is run from Python.
_PRIMITIVES = {*elementwise.TABLE, *views.PLAIN, "pad", "concat", "matmul", "sum", "max", "min"}


def lasting_operations(
    graph: Graph, lasting: Sequence[int], elsewhere: Iterable[Tensor]
) -> set[int]:
    """The sequence numbers of operations whose results may be kept.

    Args:
        graph: what is computed.
        lasting: the numbers of inputs that are cells which the program does not write.
        elsewhere: results that have a place of their own at every call.
    """
    known = {id(graph.inputs[number]) for number in lasting}
    excluded = {id(x) for x in elsewhere}
    found: set[int] = set()
    for operation in graph.operations:
        if _may_be_kept(operation) and all(
            x._value is not None or id(x) in known for x in operation.inputs
        ):
            known |= {id(x) for x in operation.outputs}
            if not excluded & {id(x) for x in operation.outputs}:
                found.add(operation.sequence)
    return found


def _may_be_kept(operation: Operation) -> bool:
    if operation.primitive.name not in _PRIMITIVES:
        return False
    if int(operation.output().size) == 1:
        return False  # sooner computed than asked for
    tensors = (*operation.inputs, *operation.outputs)
    return all(
        x.dtype in dtypes.FLOATING and not any(isinstance(n, Size) for n in x.shape)
        for x in tensors
    )
