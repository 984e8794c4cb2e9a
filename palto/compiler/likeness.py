"""Likeness: nests that differ in their buffers alone share one kernel.

Layers of one size make nests of one form. The description of a nest says all that its code depends
on, with tensors and buffers numbered in the order in which they are met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from palto.compiler.llvm.loops import Kernel
from palto.compiler.memory import Buffer
from palto.compiler.nests import Check, Group, Member, Nest, Product, Single
from palto.compiler.simplify import frozen
from palto.compiler.views import Read
from palto.tensor.graph import Operation
from palto.tensor.tensor import Tensor


class Kernels:
    """The kernels of one program, each written once.

    Args:
        stored: the buffer of a tensor, if it has one.
        is_stored: whether a tensor is read, from a buffer or a register, and not computed again.
    """

    def __init__(
        self, stored: Callable[[Tensor], Buffer | None], is_stored: Callable[[Tensor], bool]
    ) -> None:
        self._stored, self._is_stored = stored, is_stored
        self._known: dict[Any, tuple[Kernel, list[Buffer]]] = {}

    def of(self, nest: Nest, written: Sequence[Buffer], write: Callable[[], Kernel]) -> Kernel:
        """The kernel of a nest that writes some buffers; `write` makes it where there is none."""
        description = _Description(self._stored, self._is_stored)
        key = (description.nest(nest), tuple(description.buffer(b) for b in written))
        if key not in self._known:
            kernel = write()
            self._known[key] = kernel, description.buffers
            return kernel
        kernel, buffers = self._known[key]
        places = {id(old): new for old, new in zip(buffers, description.buffers, strict=True)}
        arguments = []
        for kind, name, old in kernel.arguments:
            new = None if old is None else places.get(id(old))
            if old is not None and new is None:  # scratch memory of the nest itself
                new = Buffer(old.shape, old.dtype, old.role)
            arguments.append((kind, name, new))
        return replace(kernel, arguments=arguments)


class _Description:
    def __init__(
        self, stored: Callable[[Tensor], Buffer | None], is_stored: Callable[[Tensor], bool]
    ) -> None:
        self._stored, self._is_stored = stored, is_stored
        self._tensors: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self.buffers: list[Buffer] = []

    def buffer(self, buffer: Buffer) -> int:
        """A buffer's number."""
        if id(buffer) not in self._numbers:
            self._numbers[id(buffer)] = len(self.buffers)
            self.buffers.append(buffer)
        return self._numbers[id(buffer)]

    def nest(self, nest: Nest) -> Any:
        """All that a nest's code depends on."""
        if isinstance(nest, Group):
            product = None if nest.product is None else self._product(nest.product)
            members = tuple([self._member(m) for m in nest.members])
            return "group", nest.shape, nest.rows, product, members
        if isinstance(nest, Check):
            return (
                "check", nest.low, nest.high, nest.allows_zero, nest.place,
                self._tensor(nest.tensor),
            )  # fmt: skip
        assert isinstance(nest, Single)
        outputs = tuple([self._tensor(x, is_result=True) for x in nest.operation.outputs])
        return nest.kind, self._operation(nest.operation), outputs

    def _member(self, member: Member) -> Any:
        operation = member.tensor.operation
        assert operation is not None
        own = member.source is member.tensor
        reduction = (operation.primitive.name, frozen(operation.params))
        source = self._operation(operation) if own else self._tensor(member.source)
        result = self._tensor(member.tensor, is_result=True)
        return member.kind, member.phase, member.offset, reduction, source, result

    def _product(self, product: Product) -> Any:
        variables = tuple(
            (v.key, v.length)
            for v in (*product.batch, None, *product.rows, None, *product.summed, product.column)
            if v is not None
        )
        counts = len(product.batch), len(product.rows)
        indices = tuple(i.key for i in product.indices)
        operands = self._read(product.a), self._read(product.b)
        name = product.operation.primitive.name
        return (
            name,
            counts,
            variables,
            indices,
            operands,
            self._tensor(product.result, is_result=True),
        )

    def _read(self, read: Read) -> Any:
        return self._tensor(read.tensor), tuple(i.key for i in read.indices)

    def _operation(self, operation: Operation) -> Any:
        inputs = tuple([self._tensor(x) for x in operation.inputs])
        return operation.primitive.name, frozen(operation.params), inputs

    def _tensor(self, x: Tensor, *, is_result: bool = False) -> Any:
        """A tensor by its number, and the first time by what is known of it."""
        number = self._tensors.get(id(x))
        if number is not None:
            return number
        self._tensors[id(x)] = len(self._tensors)
        if x._value is not None and x.size == 1:
            return "number", x.dtype, x.shape, x.array().tobytes()
        buffer = self._stored(x)
        place = None if buffer is None else self.buffer(buffer)
        if is_result or buffer is not None or self._is_stored(x):
            return x.dtype, x.shape, place, self._is_stored(x)
        assert x.operation is not None
        return x.dtype, x.shape, x.index, self._operation(x.operation)
