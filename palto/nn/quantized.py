"""Layers whose weights stay quantised: unpacked where they are multiplied, never kept unpacked.

The kinds are those of GGUF files. All of them cut a row of a weight into blocks of neighbours, and
a weight is ``scale * code + minimum``, a whole number and two numbers of its block; what the kinds
differ in is the bits of a code and how scales and minima are themselves stored.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from palto.nn.module import Buffer, Module
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.dtypes import Array

#: So many rows of a weight lie side by side, so that the sums of neighbouring rows fill vectors.
ROWS = 32
#: So many groups of rows are taken apart together.
_TOGETHER = 64
#: Bytes of a line of a cache, and of memory that weights share.
_LINE, _POOLED = 64, 2**25


@dataclass(frozen=True, slots=True)
class Kind:
    """How a weight is quantised.

    Attributes:
        bytes: of a block in a file.
        weights: in a block of a file.
        bits: of a code.
        block: neighbours that share a scale: one, or a part, of a file's blocks.
        zero: the code of 0, where there are no minima.
        read: from blocks of bytes (n, bytes) to their codes (n, weights), and the parts that scales
            and minima are made of, by name, each (n, count).
    """

    bytes: int
    weights: int
    bits: int
    block: int
    zero: int
    read: Callable[[Array], dict[str, Array]]


def _halves(raw: Array) -> Array:
    """The codes of 4 bits in bytes (n, 16): the lower halves, then the upper."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _float16(raw: Array) -> Array:
    return np.ascontiguousarray(raw).view(np.float16)


def _simple(bits: int, *, minima: bool) -> Callable[[Array], dict[str, Array]]:
    """Q4_0, Q4_1, Q5_0, Q5_1: scale, perhaps minimum, perhaps a fifth bit each, four bits each."""

    def read(raw: Array) -> dict[str, Array]:
        found = {"scales": _float16(raw[:, :2])}
        place = 2
        if minima:
            found["minima"], place = _float16(raw[:, 2:4]), 4
        codes = _halves(raw[:, -16:])
        if bits == 5:
            fifth = np.unpackbits(raw[:, place : place + 4], axis=-1, bitorder="little")
            codes |= fifth << 4
        return {**found, "codes": codes}

    return read


def _read_q8_0(raw: Array) -> dict[str, Array]:
    return {"scales": _float16(raw[:, :2]), "codes": raw[:, 2:].view(np.int8)}


def _read_k(bits: int) -> Callable[[Array], dict[str, Array]]:
    """Q4_K and Q5_K: eight blocks, whose scales and minima are 6 bits times a float16."""

    def read(raw: Array) -> dict[str, Array]:
        low, middle, high = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
        factors = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], axis=-1)
        minimum_factors = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], axis=-1)
        packed = raw[:, -128:].reshape(-1, 4, 32)
        codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 256)
        if bits == 5:
            shifts = np.arange(8, dtype=np.uint8)[:, None]
            fifth = raw[:, 16:48].reshape(-1, 1, 32) >> shifts & 1
            codes |= (fifth << 4).reshape(-1, 256)
        return {
            "scales": _float16(raw[:, :2]), "factors": factors,
            "minima": _float16(raw[:, 2:4]), "minimum_factors": minimum_factors, "codes": codes,
        }  # fmt: skip

    return read


def _read_q6_k(raw: Array) -> dict[str, Array]:
    """Sixteen blocks, whose scales are 8 bits times a float16."""
    low = raw[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = raw[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    codes = low.reshape(-1, 256) | (high << 4).reshape(-1, 256)
    factors = np.ascontiguousarray(raw[:, 192:208]).view(np.int8)
    return {"scales": _float16(raw[:, 208:]), "factors": factors, "codes": codes}


#: By GGUF's names.
KINDS = {
    "Q4_0": Kind(18, 32, 4, 32, 8, _simple(4, minima=False)),
    "Q4_1": Kind(20, 32, 4, 32, 0, _simple(4, minima=True)),
    "Q5_0": Kind(22, 32, 5, 32, 16, _simple(5, minima=False)),
    "Q5_1": Kind(24, 32, 5, 32, 0, _simple(5, minima=True)),
    "Q8_0": Kind(34, 32, 8, 32, 0, _read_q8_0),
    "Q4_K": Kind(144, 256, 4, 32, 0, _read_k(4)),
    "Q5_K": Kind(176, 256, 5, 32, 0, _read_k(5)),
    "Q6_K": Kind(210, 256, 6, 16, 32, _read_q6_k),
}


class QuantizedWeight(Module):
    """A matrix (out_features, in_features) in blocks, 32 rows side by side.

    Codes of 4 bits are two a byte, the first half of a block below the second; the bits above them,
    if there are any, lie in bytes of their own; codes of 8 bits are signed.

    Args:
        kind: the name of a kind of GGUF's.
        blocks: the bytes of the rows as in a file, uint8 of shape (out_features, bytes of a row).
        in_features: how many weights a row has.

    Attributes:
        kind: the name.
        in_features, out_features: the matrix's shape.
        codes: shape (groups of 32 rows, blocks in a row, half a block, 32); for 8 bits a block.
        high: the upper bits of 5 and 6, shape (groups, blocks, bytes, 32), or None.
        scales: float16, shape (groups, blocks in a row of the file, 32).
        factors: what a block's scale is multiplied by, shape (groups, the file's blocks, blocks in
            each, 32), or None.
        minima, minimum_factors: likewise, or None. Minima with factors are subtracted.

    Raises:
        ValueError: the kind is none of these, or the bytes do not make up such rows.
    """

    def __init__(self, kind: str, blocks: Any, in_features: int) -> None:
        if kind not in KINDS:
            raise ValueError(
                f"weights of kind {kind!r} are not read; those of kind {', '.join(KINDS)} are: "
                "convert the file to one of them"
            )
        found = KINDS[kind]
        raw = np.asarray(blocks)
        if in_features < 1 or in_features % found.weights:
            raise ValueError(
                f"rows of {kind} have whole blocks of {found.weights} weights; "
                f"in_features={in_features} is no multiple of that"
            )
        wanted = in_features // found.weights * found.bytes
        if raw.dtype != np.uint8 or raw.ndim != 2 or raw.shape[1] != wanted or not len(raw):
            raise ValueError(
                f"{in_features} weights of {kind} are {wanted} bytes: blocks of shape "
                f"(out_features, {wanted}) and dtype uint8 are wanted, got "
                f"{raw.dtype.name}{raw.shape}"
            )
        self.kind = kind
        self.in_features = in_features
        self.out_features = len(raw)
        arrays: dict[str, Array] = {}
        groups = -(-len(raw) // ROWS)
        for start in range(0, groups, _TOGETHER):
            rows = raw[start * ROWS : (start + _TOGETHER) * ROWS]
            for name, part in _parts(found, rows).items():
                if name not in arrays:
                    arrays[name] = _pool.empty((groups, *part.shape[1:]), part.dtype)
                arrays[name][start : start + len(part)] = part
        self.codes, self.scales = _buffer(arrays["codes"]), _buffer(arrays["scales"])
        self.high, self.factors, self.minima, self.minimum_factors = (
            _buffer(arrays[name]) if name in arrays else None
            for name in ("high", "factors", "minima", "minimum_factors")
        )

    def dequantize(self) -> Array:
        """The matrix in float32, (out_features, in_features)."""
        panels = self._panels().array().swapaxes(1, 2)
        return np.ascontiguousarray(panels.reshape(-1, self.in_features)[: self.out_features])

    def product(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), by the transposed matrix."""
        x = F.asarray(x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"a linear layer from {self.in_features} to {self.out_features} wants an input of "
                f"shape (..., {self.in_features}), got {x.shape}"
            )
        rows = math.prod(x.shape[:-1])
        if rows == 1:
            result = self._of_one_row(x)
        else:
            panels = self._panels()
            result = F.matmul(F.reshape(x, (1, rows, self.in_features)), panels)
            result = F.permute_dims(result, (1, 0, 2))
        result = F.reshape(result, (rows, len(self.codes) * ROWS))[:, : self.out_features]
        return F.reshape(result, (*x.shape[:-1], self.out_features))

    def rows(self, indices: Tensor) -> Tensor:
        """The rows at indices of any shape: (...) -> (..., in_features)."""
        indices = F.asarray(indices)
        flat = F.reshape(indices, (math.prod(indices.shape),))
        # Looked up among the row's numbers, so that a wrong one is an error with its name.
        flat = F.take(F.arange(self.out_features), flat, role="embedding index")
        group, row = flat // ROWS, flat % ROWS

        def chosen(cell: Buffer | None) -> Tensor | None:
            if cell is None:
                return None
            x = cell.read()
            x = F.permute_dims(x, (0, x.ndim - 1, *range(1, x.ndim - 1)))
            return F.expand_dims(F.take_at(x, [group, row]), -1)

        weights = self._weights(chosen)
        return F.reshape(weights, (*indices.shape, self.in_features))

    # Parts. The last axis is one of rows, all 32 of a group or a chosen one.

    def _panels(self) -> Tensor:
        """All weights, (groups, in_features, 32)."""
        weights = self._weights(lambda cell: None if cell is None else cell.read())
        return F.reshape(weights, (len(self.codes), self.in_features, ROWS))

    def _weights(self, part: Callable[[Buffer | None], Tensor | None]) -> Tensor:
        """The weights (groups, blocks in a row, block, rows) whose parts `part` gives."""
        scales, minima = self._scales(part)
        groups, blocks, rows = scales.shape
        of_blocks = groups, blocks, 1, 1, rows
        scales = F.reshape(scales, of_blocks)
        minima = None if minima is None else F.reshape(minima, of_blocks)
        zero, pieces = KINDS[self.kind].zero, []
        for codes in self._codes(part):
            # As the file's format defines it, so that rounding is the same.
            weights = scales * F.astype(codes - zero if zero else codes, dtypes.float32)
            if minima is not None:
                weights = weights + minima
            pieces.append(F.reshape(weights, (groups, blocks, -1, rows)))
        return pieces[0] if len(pieces) == 1 else F.concat(pieces, axis=2)

    def _codes(self, part: Callable[[Buffer | None], Tensor | None]) -> list[Tensor]:
        """Codes as int32, of both halves of each block, or of whole blocks.

        Each is (groups, blocks in a row, n, m, rows): m neighbours share a byte of upper bits.
        """
        codes = part(self.codes)
        assert codes is not None
        groups, blocks, length, rows = codes.shape
        bits = KINDS[self.kind].bits
        high, extra = part(self.high), bits - 4
        sharing = 1 if high is None else 4 // extra
        shape = groups, blocks, length // sharing, sharing, rows
        whole = F.astype(F.reshape(codes, shape), dtypes.int32)
        if bits == 8:
            return [whole]
        halves = whole & 15, whole >> 4
        if high is None:
            return [*halves]
        upper = F.astype(F.broadcast_to(F.expand_dims(high, 3), shape), dtypes.int32)
        steps = F.iota((sharing, 1), 0, dtype=dtypes.int32) * extra
        mask = (1 << bits) - 16
        return [halves[0] | (upper << (4 - steps)) & mask, halves[1] | (upper >> steps) & mask]

    def _scales(
        self, part: Callable[[Buffer | None], Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Scales and minima of blocks, float32 of shape (groups, blocks in a row, rows)."""

        def product(scales: Tensor | None, factors: Tensor | None) -> Tensor | None:
            if scales is None:
                return None
            whole = F.astype(scales, dtypes.float32)
            if factors is None:
                return whole
            blocks = F.expand_dims(whole, 2) * F.astype(factors, dtypes.float32)
            groups, count, each, rows = blocks.shape
            return F.reshape(blocks, (groups, count * each, rows))

        scales = product(part(self.scales), part(self.factors))
        minima = product(part(self.minima), part(self.minimum_factors))
        assert scales is not None
        # Minima with factors are subtracted.
        return (
            scales,
            -minima if minima is not None and self.minimum_factors is not None else minima,
        )

    def _of_one_row(self, x: Tensor) -> Tensor:
        """The product with a single row, unpacked on the way: (groups, 32)."""

        def part(cell: Buffer | None) -> Tensor | None:
            return None if cell is None else cell.read()

        codes, (scales, minima) = self._codes(part), self._scales(part)
        _, blocks, *lengths, _ = codes[0].shape
        pieces = F.reshape(x, (blocks, len(codes), *lengths, 1))
        terms = [
            pieces[:, number] * F.astype(half, dtypes.float32) for number, half in enumerate(codes)
        ]
        total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        # Of a block, what all its weights share is multiplied once.
        result = F.sum(total, axis=(2, 3)) * scales
        zero = KINDS[self.kind].zero
        if zero or minima is not None:
            sums = F.sum(pieces, axis=(1, 2, 3))
            result = result + sums * (scales * -float(zero) if minima is None else minima)
        return F.sum(result, axis=1)

    def extra_repr(self) -> str:
        """Kind and sizes."""
        return f"{self.kind}, {self.in_features}, {self.out_features}"


def _parts(kind: Kind, raw: Array) -> dict[str, Array]:
    """What some rows of a file are made of, by the names that `QuantizedWeight` has for it."""
    per_block = kind.weights // kind.block
    parts = kind.read(np.ascontiguousarray(raw).reshape(-1, kind.bytes))
    count = raw.shape[1] // kind.bytes
    found = {}
    for name, values in parts.items():
        lengths = {
            "codes": (count * per_block, kind.block), "scales": (count,), "minima": (count,),
        }.get(name, (count, per_block))  # fmt: skip
        rows = values.reshape(len(raw), -1)
        missing = np.zeros((-len(raw) % ROWS, rows.shape[1]), rows.dtype)
        grouped = np.concatenate([rows, missing]).reshape(-1, ROWS, *lengths)
        found[name] = np.moveaxis(grouped, 1, -1)
    if kind.bits < 8:
        found.update(_packed(found["codes"], kind.bits))
    return found


def _packed(codes: Array, bits: int) -> dict[str, Array]:
    """Codes (groups, blocks, block, rows) as bytes of two, and bytes of the bits above four."""
    groups, blocks, block, rows = codes.shape
    first, second = codes[:, :, : block // 2], codes[:, :, block // 2 :]
    low = first & 15 | second << 4
    if bits == 4:
        return {"codes": low}
    # A byte has the bits of neighbours of the first half, and above them those of the second.
    extra = bits - 4
    high = (first >> 4 | second >> 4 << 4).reshape(groups, blocks, -1, 4 // extra, rows)
    steps = (np.arange(4 // extra, dtype=np.uint8) * extra)[:, None]
    return {"codes": low, "high": np.bitwise_or.reduce(high << steps, axis=3)}


class _Pool:
    """Memory for weights one after the other: for large arrays NumPy asks for large pages.

    With small pages, reading all weights once takes half as long again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: dtypes.DType) -> Array:
        """An array, whose memory is freed with the last of its neighbours."""
        length = math.prod(shape) * dtype.itemsize
        size = -(-length // _LINE) * _LINE
        with self._lock:
            if size > len(self._rest):
                block = np.empty(max(size, _POOLED) + _LINE, np.uint8)
                self._rest = block[-block.ctypes.data % _LINE :]
            place, self._rest = self._rest[:length], self._rest[size:]
        return place.view(dtype).reshape(shape)


_pool = _Pool()


def _buffer(values: Array) -> Buffer:
    return Buffer(F.asarray(values, copy=False))


class QuantizedLinear(Module):
    """W x along the last axis, of a W that stays quantised; nothing is trained.

    Args:
        weight: the matrix; that of a :class:`QuantizedEmbedding` makes its tied head.

    Attributes:
        weight: the matrix.
    """

    def __init__(self, weight: QuantizedWeight) -> None:
        self.weight = weight

    @classmethod
    def from_blocks(cls, kind: str, blocks: Any, in_features: int) -> Self:
        """Of the bytes in a GGUF file; for arguments and errors see :class:`QuantizedWeight`."""
        return cls(QuantizedWeight(kind, blocks, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.weight.product(x)

    def dequantize(self) -> Array:
        """W in float32, shape (out_features, in_features)."""
        return self.weight.dequantize()


class QuantizedEmbedding(Module):
    """A table of quantised vectors, looked up by number.

    Args:
        weight: the table, a vector each row.

    Attributes:
        weight: the table. ``QuantizedLinear(embedding.weight)`` is the head that is tied to it.
    """

    def __init__(self, weight: QuantizedWeight) -> None:
        self.weight = weight

    @classmethod
    def from_blocks(cls, kind: str, blocks: Any, in_features: int) -> Self:
        """Of the bytes in a GGUF file; for arguments and errors see :class:`QuantizedWeight`."""
        return cls(QuantizedWeight(kind, blocks, in_features))

    def forward(self, indices: Tensor) -> Tensor:
        """(...) -> (..., in_features); an index that is no row raises IndexError."""
        return self.weight.rows(indices)

    def dequantize(self) -> Array:
        """The table in float32, shape (rows, in_features)."""
        return self.weight.dequantize()
