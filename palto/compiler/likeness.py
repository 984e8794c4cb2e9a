"""Likeness: nests that differ in their buffers alone share one kernel.

Layers of one size make nests of one form. The description of a nest says all that its code depends
on, with tensors and buffers numbered in the order in which they are met. So kernels can also be
kept on disk, for a program with the same descriptions: it then has nothing to write.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from palto.compiler.llvm import cache
from palto.compiler.llvm.loops import Kernel
from palto.compiler.llvm.tiling import Machine
from palto.compiler.memory import Buffer
from palto.compiler.nests import Check, Group, Member, Nest, Product, Single
from palto.compiler.simplify import frozen
from palto.compiler.views import Read
from palto.tensor.dtypes import as_dtype
from palto.tensor.graph import Operation
from palto.tensor.tensor import Tensor

#: Kernels that are written in fewer seconds are not kept.
WORTH_KEEPING = 0.02

#: In an index, an element of a tensor, which is known by its address.
_ADDRESS = re.compile(r"\bt\d+\[")


class Wanted(NamedTuple):
    """A nest, and the buffers that it writes."""

    nest: Nest
    written: Sequence[Buffer]


class _Known(NamedTuple):
    kernel: Kernel
    buffers: list[Buffer]


def kernels(
    wanted: Sequence[Wanted],
    stored: Callable[[Tensor], Buffer | None],
    is_stored: Callable[[Tensor], bool],
    write: Callable[[Wanted], Kernel],
) -> list[Kernel]:
    """The kernels of a program's nests, each written once, or found on disk.

    Args:
        wanted: the nests.
        stored: the buffer of a tensor, if it has one.
        is_stored: whether a tensor is read, from a buffer or a register, and not computed again.
        write: makes a nest's kernel.
    """
    descriptions = [_Description(stored, is_stored) for _ in wanted]
    keys = [d.all_of(*each) for d, each in zip(descriptions, wanted, strict=True)]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    numbers = sorted(first.values())
    path = _place([keys[number] for number in numbers])
    known = None if path is None else _recalled(path, [descriptions[n].buffers for n in numbers])
    if known is None:
        started = time.perf_counter()
        known = [_Known(write(wanted[n]), descriptions[n].buffers) for n in numbers]
        if path is not None and time.perf_counter() - started > WORTH_KEEPING:
            _keep(path, known)
    by_key = dict(zip((keys[n] for n in numbers), known, strict=True))
    return [
        _moved(by_key[key], description.buffers)
        for key, description in zip(keys, descriptions, strict=True)
    ]


def _moved(known: _Known, buffers: list[Buffer]) -> Kernel:
    """A kernel with a like nest's buffers as arguments."""
    if buffers is known.buffers:
        return known.kernel
    places = {id(old): new for old, new in zip(known.buffers, buffers, strict=True)}
    arguments = []
    for kind, name, old in known.kernel.arguments:
        new = None if old is None else places.get(id(old))
        if old is not None and new is None:
            assert old.role == "arena", "only scratch memory of the nest's own is not described"
            new = Buffer(old.shape, old.dtype, old.role)
        arguments.append((kind, name, new))
    return replace(known.kernel, arguments=arguments)


# On disk


class _NotLasting(Exception):
    """A description that another process cannot have."""


def _place(keys: Sequence[Any]) -> Path | None:
    """The file of the kernels of nests that are so described, if they can be kept."""
    try:
        text = _lasting(tuple(keys))
    except _NotLasting:
        return None
    return cache.place(f"{_source()} {Machine.host()} {text}".encode(), cache.TEXT)


def _lasting(value: Any) -> str:
    """A description as text that says in every process the same."""
    kind = type(value)  # a run-time size is an int, too, but does not say all about itself
    if kind is tuple:
        return f"({','.join([_lasting(item) for item in value])})"
    if isinstance(value, type):
        return f"<{value.__module__}.{value.__qualname__}>"
    if isinstance(value, np.dtype):
        return value.name
    if kind is str and _ADDRESS.search(value):
        raise _NotLasting
    if value is None or kind in (int, bool, float, str, bytes):
        return repr(value)
    raise _NotLasting


@functools.cache
def _source() -> str:
    """What kernels depend on besides nests and machine: the code that writes them."""
    digest = hashlib.sha256()
    room = Path(__file__).parent
    for path in sorted([*room.rglob("*.py"), *(room.parent / "tensor").rglob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _keep(path: Path, known: Sequence[_Known]) -> None:
    body = json.dumps([_as_json(each) for each in known]).encode()
    cache.store(path, zlib.compress(body, 1))


def _recalled(path: Path, buffers: Sequence[list[Buffer]]) -> list[_Known] | None:
    body = cache.read(path)
    if body is None:
        return None
    found = json.loads(zlib.decompress(body))
    return [_from_json(*each) for each in zip(found, buffers, strict=True)]


def _as_json(known: _Known) -> dict[str, Any]:
    kernel, numbers = known.kernel, {id(b): number for number, b in enumerate(known.buffers)}
    arguments: list[tuple[str, str, Any]] = []
    for kind, name, buffer in kernel.arguments:
        about: Any = None if buffer is None else numbers.get(id(buffer))
        if buffer is not None and about is None:
            assert buffer.role == "arena", "only scratch memory of the nest's own is not described"
            about = [list(buffer.shape), buffer.dtype.name]
        arguments.append((kind, name, about))
    return {
        "text": kernel.text,
        "declarations": sorted(kernel.declarations),
        "arguments": arguments,
        "units": kernel.units,
        "tile": kernel.tile,
    }


def _from_json(found: dict[str, Any], buffers: list[Buffer]) -> _Known:
    arguments: list[tuple[str, str, Buffer | None]] = []
    for kind, name, about in found["arguments"]:
        buffer = None
        if isinstance(about, int):
            buffer = buffers[about]
        elif about is not None:
            shape, dtype = about
            buffer = Buffer(tuple(shape), as_dtype(dtype), "arena")
        arguments.append((kind, name, buffer))
    kernel = Kernel(
        found["text"], set(found["declarations"]), arguments, found["units"], found["tile"]
    )
    return _Known(kernel, buffers)


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

    def all_of(self, nest: Nest, written: Sequence[Buffer]) -> Any:
        """All that the code of a nest which writes some buffers depends on."""
        return self._nest(nest), tuple([self.buffer(b) for b in written])

    def _nest(self, nest: Nest) -> Any:
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
        indices = tuple(i.key for i in (*product.indices, *product.needless))
        operands = self._read(product.a), self._read(product.b)
        operation = product.operation
        how = operation.primitive.name, frozen(operation.params)
        result = self._tensor(product.result, is_result=True)
        return how, counts, variables, indices, operands, result

    def _read(self, read: Read) -> Any:
        # A number, too, is read from memory here.
        buffer = self._stored(read.tensor)
        place = None if buffer is None else self.buffer(buffer)
        return self._tensor(read.tensor), place, tuple(i.key for i in read.indices)

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
        # The arena's buffers have room behind them, which a load may reach into.
        place = None if buffer is None else (self.buffer(buffer), buffer.role == "arena")
        if is_result or buffer is not None or self._is_stored(x):
            return x.dtype, x.shape, place, self._is_stored(x)
        assert x.operation is not None
        return x.dtype, x.shape, x.index, self._operation(x.operation)
