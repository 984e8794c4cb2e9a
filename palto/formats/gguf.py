"""GGUF: language models as llama.cpp keeps them, their weights quantised in blocks.

file = gguf.read("model.gguf")
file.metadata["general.architecture"]
file.tensors["token_embd.weight"].array()

The package `gguf` knows the kinds of blocks and takes them apart. The file's head is walked here:
the package's own reader makes several objects of every item of every list, which takes seconds, and
believes the counts that it finds.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palto.extras import require
from palto.tensor import dtypes
from palto.tensor.dtypes import Array

#: The kinds of tensors that are read: plain numbers, and the quantisations in common use.
_PLAIN_DTYPES = {"F32": dtypes.float32, "F16": dtypes.float16, "BF16": dtypes.bfloat16}
PLAIN = tuple(_PLAIN_DTYPES)
KINDS = (*PLAIN, "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")

_MOST_ITEMS = 1 << 22  # names, numbers of tensors, texts in lists: what becomes a Python object
_MOST_AXES = 4
_ALIGNMENT = 32  # of tensors, if the file does not say otherwise
_STRING, _LIST = 8, 9
#: How numbers are stored, by the file's number for their type.
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """A tensor as it lies in the file.

    Attributes:
        name: its name.
        kind: one of `KINDS`.
        shape: its shape as NumPy has it: of a linear map (out, in).
        bytes: the file's own memory, not to be written to, uint8 (..., bytes of a row).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: Array

    def plain(self) -> Array:
        """The file's own numbers, of a kind in `PLAIN`."""
        return self.bytes.view(_PLAIN_DTYPES[self.kind])

    def array(self) -> Array:
        """Its numbers, float32 in its shape."""
        if self.kind in PLAIN:
            return self.plain().astype(np.float32)
        constants = require("gguf.constants", "chat", "a GGUF file")
        quants = require("gguf.quants", "chat", "a GGUF file")
        kind = constants.GGMLQuantizationType[self.kind]
        numbers: Array = quants.dequantize(self.bytes, kind)
        return numbers.reshape(self.shape).astype(np.float32, copy=False)


@dataclass(frozen=True)
class File:
    """What a GGUF file holds.

    Attributes:
        metadata: numbers, texts, and lists of texts; lists of numbers are NumPy arrays.
        tensors: by name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Blocks]


def read(path: str | os.PathLike[str]) -> File:
    """Open a GGUF file, of version 2 or 3. Its tensors are read from the disk when they are used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no GGUF file, is cut off or damaged, or has tensors of another kind.
        MissingExtraError: the package `gguf` is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if not os.path.getsize(path):
        raise ValueError(f"{path} is empty")
    contents = np.memmap(path, np.uint8, "r")
    try:
        return _Reader(contents).file()
    except _DamagedError as error:
        raise ValueError(f"{path} is no sound GGUF file: {error}") from None


class _DamagedError(Exception):
    """What is wrong with the file."""


class _Reader:
    """Walks through a file's head; nothing in it is believed before it fits the file's size."""

    def __init__(self, contents: Array) -> None:
        self._contents = contents
        self._view = memoryview(contents.data)
        self._place = 0
        self._items = 0

    def file(self) -> File:
        if bytes(self._bytes(4)) != b"GGUF":
            raise _DamagedError("it does not begin with the letters GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise _DamagedError(f"its version is {version}, which is neither 2 nor 3")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        metadata: dict[str, Any] = {}
        self._count(pairs, 13, "entries")
        for _ in range(pairs):
            key = self._string("the name of an entry")
            if key in metadata:
                raise _DamagedError(f"two entries are named {key!r}")
            metadata[key] = self._value(self._number("<I"), key)
        self._count(tensors, 32, "tensors")
        heads = [self._head() for _ in range(tensors)]
        step = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(step, int) or step < 1 or step & (step - 1):
            raise _DamagedError(f"tensors should be aligned to {step!r} bytes, no power of two")
        start = -(-self._place // step) * step
        found: dict[str, Blocks] = {}
        for name, shape, kind, offset in heads:
            if name in found:
                raise _DamagedError(f"two tensors are named {name!r}")
            found[name] = self._tensor(name, shape, kind, offset, start, step)
        return File(metadata, found)

    # Parts of the head

    def _bytes(self, count: int) -> memoryview:
        end = self._place + count
        if end > len(self._view):
            raise _DamagedError(
                f"it ends after {len(self._view):,} bytes, where byte {end:,} is still wanted"
            )
        part = self._view[self._place : end]
        self._place = end
        return part

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _count(self, count: int, least: int, what: str) -> None:
        """Check a count of things of which each takes so many bytes at least."""
        self._items += count
        if count * least > len(self._view) - self._place:
            raise _DamagedError(f"it should have {count:,} {what}, and is too short for them")
        if self._items > _MOST_ITEMS:
            raise _DamagedError(f"it should have {count:,} {what}, which nobody needs")

    def _string(self, what: str) -> str:
        try:
            return str(self._bytes(self._number("<Q")), "utf-8")
        except UnicodeDecodeError:
            raise _DamagedError(f"{what} is no UTF-8 text") from None

    def _value(self, kind: int, key: str) -> Any:
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind == _STRING:
            return self._string(f"the entry {key!r}")
        if kind != _LIST:
            raise _DamagedError(f"the entry {key!r} is of the unknown type {kind}")
        kind, count = self._number("<I"), self._number("<Q")
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind])
            return np.frombuffer(bytes(self._bytes(count * dtype.itemsize)), dtype)
        if kind != _STRING:
            raise _DamagedError(f"the entry {key!r} is a list of the type {kind}, none of numbers")
        self._count(count, 8, f"texts in {key!r}")
        return [self._string(f"a text in {key!r}") for _ in range(count)]

    def _head(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("the name of a tensor")
        axes = self._number("<I")
        if not 1 <= axes <= _MOST_AXES:
            raise _DamagedError(f"the tensor {name!r} should have {axes:,} axes")
        lengths = struct.unpack(f"<{axes}Q", self._bytes(8 * axes))
        return name, lengths[::-1], self._number("<I"), self._number("<Q")

    def _tensor(
        self, name: str, shape: tuple[int, ...], number: int, offset: int, start: int, step: int
    ) -> Blocks:
        constants = require("gguf.constants", "chat", "a GGUF file")
        try:
            known = constants.GGMLQuantizationType(number)
        except ValueError:
            raise _DamagedError(f"the tensor {name!r} is of the unknown kind {number}") from None
        if known.name not in KINDS:
            raise _DamagedError(
                f"the tensor {name!r} is of the kind {known.name}; those that are read are "
                f"{', '.join(KINDS)}"
            )
        in_block, block_bytes = constants.GGML_QUANT_SIZES[known]
        if not all(shape) or shape[-1] % in_block:
            raise _DamagedError(
                f"the tensor {name!r} has the shape {shape}; rows of {known.name} are whole blocks "
                f"of {in_block}"
            )
        rows, row_bytes = 1, shape[-1] // in_block * block_bytes
        for length in shape[:-1]:
            rows *= length
        begin, end = start + offset, start + offset + rows * row_bytes
        if offset % step:
            raise _DamagedError(f"the tensor {name!r} does not begin at a multiple of {step} bytes")
        if end > len(self._view):
            raise _DamagedError(
                f"the tensor {name!r} of shape {shape} should end at byte {end:,}, the file ends "
                f"at {len(self._view):,}; it may not have been fetched to its end"
            )
        part = self._contents[begin:end].reshape(*shape[:-1], row_bytes)
        return Blocks(name, known.name, shape, part)
