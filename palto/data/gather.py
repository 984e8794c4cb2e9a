"""Examples at many places of arrays in memory, all their parts in one call of machine code.

Rows at random places of a large array are not in the cache, so the code asks for a row while it
copies an earlier one; images of bytes become float32 from 0 to 1 on the way. What it writes begins
where a line of the cache does, which writes float32 in half the time.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from palto.compiler import team
from palto.compiler.addresses import address_of
from palto.compiler.llvm import machine
from palto.tensor.dtypes import Array, DType

#: So many bytes are gathered by NumPy before the machine code is loaded, which takes a twentieth
#: of a second: a first batch is there at once, and whoever loads little never waits.
BEFORE_CODE = 32 << 20
#: A row is asked for so many bytes before it is copied, and at least so many rows.
_AHEAD_BYTES, _AHEAD = 8192, 4
_LINE = 64
_SCALE = np.float32(1 / 255)

#: ``void name(rows, length of one, places, first, end, ahead, out)``: the rows at the places from
#: the first to the end. A row is done in steps of one width; the last one overlaps that before it.
_ROWS = """
define internal void @{name}(ptr %rows, i64 %length, ptr %places, i64 %first, i64 %end, i64 %ahead,
                             ptr %out) {{
entry:
  %last = sub i64 %length, {width}
  %last_place = sub i64 %end, 1
  br label %row_head
row_head:
  %i = phi i64 [ %first, %entry ], [ %i_next, %row_end ]
  %is_row = icmp slt i64 %i, %end
  br i1 %is_row, label %row, label %done
row:
  %at = getelementptr i64, ptr %places, i64 %i
  %place = load i64, ptr %at, align 8
  %offset = mul i64 %place, %length
  %in = getelementptr i8, ptr %rows, i64 %offset
  %out_offset = mul i64 %i, %length
  %out_row = getelementptr {out}, ptr %out, i64 %out_offset
  %later = add i64 %i, %ahead
  %soon = call i64 @llvm.smin.i64(i64 %later, i64 %last_place)
  %soon_at = getelementptr i64, ptr %places, i64 %soon
  %soon_place = load i64, ptr %soon_at, align 8
  %soon_offset = mul i64 %soon_place, %length
  %soon_row = getelementptr i8, ptr %rows, i64 %soon_offset
  br label %step
step:
  %j = phi i64 [ 0, %row ], [ %j_next, %step ]
  %k = call i64 @llvm.smin.i64(i64 %j, i64 %last)
  %soon_line = getelementptr i8, ptr %soon_row, i64 %k
  call void @llvm.prefetch.p0(ptr %soon_line, i32 0, i32 3, i32 1)
  %in_k = getelementptr i8, ptr %in, i64 %k
  %out_k = getelementptr {out}, ptr %out_row, i64 %k
  %x = load {loaded}, ptr %in_k, align 1
{store}
  %j_next = add i64 %j, {width}
  %is_more = icmp slt i64 %j_next, %length
  br i1 %is_more, label %step, label %row_end
row_end:
  %i_next = add i64 %i, 1
  br label %row_head
done:
  ret void
}}
"""
_COPY = "  store {loaded} %x, ptr %out_k, align 1"
_CONVERT = """\
  %whole = zext <{width} x i8> %x to <{width} x i32>
  %float = sitofp <{width} x i32> %whole to <{width} x float>
  %scaled = fmul <{width} x float> %float, splat (float {scale})
  store <{width} x float> %scaled, ptr %out_k, align 4"""

#: ``void gather(table, sync, thread, threads)``, a program of a team. The table: the places, how
#: many; of each part the number of what copies its rows, the rows, the length of one in bytes, how
#: far ahead, what is written; at the end 0.
_GATHER = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare i64 @llvm.smin.i64(i64, i64)
@kinds = internal constant [{count} x ptr] [{kinds}]
define void @gather(ptr %table, ptr %sync, i64 %thread, i64 %threads) {{
entry:
  %places = load ptr, ptr %table, align 8
  %count_at = getelementptr i64, ptr %table, i64 1
  %count = load i64, ptr %count_at, align 8
  %following = add i64 %thread, 1
  %shares = mul i64 %count, %thread
  %first = sdiv i64 %shares, %threads
  %shares_after = mul i64 %count, %following
  %last = sdiv i64 %shares_after, %threads
  %first_part = getelementptr i64, ptr %table, i64 2
  br label %head
head:
  %part_at = phi ptr [ %first_part, %entry ], [ %part_next, %part ]
  %kind = load i64, ptr %part_at, align 8
  %is_end = icmp eq i64 %kind, 0
  br i1 %is_end, label %end, label %part
part:
  %rows_at = getelementptr i64, ptr %part_at, i64 1
  %rows = load ptr, ptr %rows_at, align 8
  %length_at = getelementptr i64, ptr %part_at, i64 2
  %length = load i64, ptr %length_at, align 8
  %ahead_at = getelementptr i64, ptr %part_at, i64 3
  %ahead = load i64, ptr %ahead_at, align 8
  %out_at = getelementptr i64, ptr %part_at, i64 4
  %out = load ptr, ptr %out_at, align 8
  %code_at = getelementptr ptr, ptr @kinds, i64 %kind
  %code = load ptr, ptr %code_at, align 8
  call void %code(ptr %rows, i64 %length, ptr %places, i64 %first, i64 %last, i64 %ahead, ptr %out)
  %part_next = getelementptr i64, ptr %part_at, i64 5
  br label %head
end:
  ret void
}}
"""
#: What copies rows, by number from 1 up: whether it converts them, in steps of how many bytes.
_KINDS = [(False, 64), (False, 8), (False, 1), (True, 64), (True, 1)]


def fractions(array: Array) -> Array:
    """A new array: float32 from 0 to 1 for bytes from 0 to 255."""
    floats = array.astype(np.float32)
    floats *= _SCALE
    return floats


class Part(NamedTuple):
    """One of the arrays whose rows are the examples.

    Attributes:
        array: the rows, shape (N, ...).
        dtype: in which they come out.
        is_scaled: whether they are bytes that come out as `fractions`.
    """

    array: Array
    dtype: DType
    is_scaled: bool = False

    @property
    def row_bytes(self) -> int:
        """Of a row that comes out."""
        return int(math.prod(self.array.shape[1:]) * self.dtype.itemsize)

    def take(self, places: Array) -> Array:
        """The rows at some places, a new array, by NumPy."""
        rows = self.array.take(places, axis=0)
        return fractions(rows) if self.is_scaled else rows.astype(self.dtype, copy=False)


class Gathering:
    """Gathers rows of arrays; threads may call it side by side.

    Args:
        parts: the arrays, of equal length.
        threads: of compiled programs, how many share the work while no program runs.
    """

    def __init__(self, parts: Sequence[Part], threads: int = 1) -> None:
        #: Of each: itself, the shape and the bytes of a row that comes out, what the code is told.
        self._parts = [(x, x.array.shape[1:], x.row_bytes, _told(x)) for x in parts]
        self._threads = threads
        self.row_bytes = sum(x.row_bytes for x in parts)

    def __call__(self, places: Array) -> list[Array]:
        """New arrays of the rows (n, ...) of each part.

        Args:
            places: int64 (n,), side by side, each from 0 to N - 1, which nobody looks at again.
        """
        global _gathered
        count = len(places)
        if _gathered < BEFORE_CODE:
            _gathered += count * self.row_bytes  # lost counts of other threads do no harm
            return [part.take(places) for part, *_ in self._parts]
        found, words = [], [address_of(places), count]
        for part, shape, row_bytes, told in self._parts:
            if told is None:
                found.append(part.take(places))
                continue
            memory = np.empty(count * row_bytes + _LINE, np.uint8)
            start = address_of(memory)
            shift = -start % _LINE
            found.append(np.ndarray((count, *shape), part.dtype, memory, shift))
            words += *told, start + shift
        code, address = _code()
        table = np.array([*words, 0], np.int64)
        start = address_of(table)
        if self._threads < 2 or not team.run_if_free(address, start, self._threads):
            code(start, None, 0, 1)
        return found


_gathered = 0


def _told(part: Part) -> list[int] | None:
    """What the code is told of a part; None if that is not for it."""
    array, dtype, is_scaled = part
    length = array[:1].nbytes
    is_plain = is_scaled or array.dtype == dtype
    if not (is_plain and length and array.flags.c_contiguous):
        return None
    widths = [width for converts, width in _KINDS if converts == is_scaled]
    width = next(w for w in widths if w <= length and (w == widths[0] or not length % w))
    ahead = max(_AHEAD, min(_AHEAD_BYTES // length, 64))
    return [_KINDS.index((is_scaled, width)) + 1, address_of(array), length, ahead]


@cache
def _code() -> tuple[Any, int]:
    """What gathers, to be called, and its address."""
    # LLVM's text gives a float32 as the bits of the float64 of the same value.
    scale = f"0x{int(np.float64(_SCALE).view(np.uint64)):016X}"
    text = _GATHER.format(
        count=len(_KINDS) + 1,
        kinds=", ".join(["ptr null", *(f"ptr @rows{k + 1}" for k in range(len(_KINDS)))]),
    )
    for number, (converts, width) in enumerate(_KINDS, 1):
        loaded = f"<{width} x i8>"
        store = (_CONVERT if converts else _COPY).format(width=width, loaded=loaded, scale=scale)
        text += _ROWS.format(
            name=f"rows{number}", width=width, loaded=loaded, store=store,
            out="float" if converts else "i8",
        )  # fmt: skip
    code = machine.load(text)
    address = code.address("gather")
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(address)
    function.code = code  # type: ignore[attr-defined]  # the code lives as long as it can be called
    return function, address
