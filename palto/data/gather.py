"""Rows of bytes at many places, as float32 from 0 to 1, in one pass.

NumPy takes three: it copies the rows, converts them and scales them. Rows at random places of a
large array are not in the cache, so this one also asks for a row while it converts an earlier one,
which halves the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np

from palto.compiler.addresses import address_of
from palto.compiler.llvm import machine
from palto.tensor.dtypes import Array

#: So many elements are gathered by NumPy before the machine code is loaded, which takes a tenth of
#: a second: a first batch is there at once, and whoever loads little never waits.
BEFORE_CODE = 16 << 20
#: Rows that are asked for so long before they are converted.
_AHEAD = 2
_SCALE = np.float32(1 / 255)

#: ``i64 gather(bytes, rows in them, length of a row, places, how many, floats)``. It answers 1, and
#: has done nothing, if there is no such place. Rows of 64 elements and more are done in vectors;
#: the last one overlaps that before it.
_GATHER = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define i64 @gather(ptr %bytes, i64 %rows, i64 %length, ptr %places, i64 %count, ptr %floats) {{
entry:
  %last = sub i64 %length, 64
  %is_long = icmp uge i64 %length, 64
  br label %check
check:
  %c = phi i64 [ 0, %entry ], [ %c_next, %inside ]
  %checked = icmp eq i64 %c, %count
  br i1 %checked, label %row_head, label %check_one
check_one:
  %c_at = getelementptr i64, ptr %places, i64 %c
  %c_place = load i64, ptr %c_at, align 8
  %is_inside = icmp ult i64 %c_place, %rows
  br i1 %is_inside, label %inside, label %outside
inside:
  %c_next = add i64 %c, 1
  br label %check
outside:
  ret i64 1
row_head:
  %i = phi i64 [ 0, %check ], [ %i_next, %row_end ]
  %out = phi ptr [ %floats, %check ], [ %out_next, %row_end ]
  %is_row = icmp ult i64 %i, %count
  br i1 %is_row, label %row, label %end
row:
  %at = getelementptr i64, ptr %places, i64 %i
  %place = load i64, ptr %at, align 8
  %offset = mul i64 %place, %length
  %in = getelementptr i8, ptr %bytes, i64 %offset
  %i_later = add i64 %i, {ahead}
  %is_later = icmp ult i64 %i_later, %count
  %i_soon = select i1 %is_later, i64 %i_later, i64 %i
  %soon_at = getelementptr i64, ptr %places, i64 %i_soon
  %soon_place = load i64, ptr %soon_at, align 8
  %soon_offset = mul i64 %soon_place, %length
  %soon = getelementptr i8, ptr %bytes, i64 %soon_offset
  br i1 %is_long, label %vector, label %single
vector:
  %j = phi i64 [ 0, %row ], [ %j_next, %vector ]
  %is_whole = icmp ule i64 %j, %last
  %k = select i1 %is_whole, i64 %j, i64 %last
  %soon_line = getelementptr i8, ptr %soon, i64 %k
  call void @llvm.prefetch.p0(ptr %soon_line, i32 0, i32 3, i32 1)
  %in_k = getelementptr i8, ptr %in, i64 %k
  %x = load <64 x i8>, ptr %in_k, align 1
  %whole = zext <64 x i8> %x to <64 x i32>
  %float = sitofp <64 x i32> %whole to <64 x float>
  %scaled = fmul <64 x float> %float, splat (float {scale})
  %out_k = getelementptr float, ptr %out, i64 %k
  store <64 x float> %scaled, ptr %out_k, align 4
  %j_next = add i64 %j, 64
  %is_more = icmp ult i64 %j_next, %length
  br i1 %is_more, label %vector, label %row_end
single:
  %s = phi i64 [ 0, %row ], [ %s_next, %one ]
  %is_one = icmp ult i64 %s, %length
  br i1 %is_one, label %one, label %row_end
one:
  %in_s = getelementptr i8, ptr %in, i64 %s
  %x_s = load i8, ptr %in_s, align 1
  %float_s = uitofp i8 %x_s to float
  %scaled_s = fmul float %float_s, {scale}
  %out_s = getelementptr float, ptr %out, i64 %s
  store float %scaled_s, ptr %out_s, align 4
  %s_next = add i64 %s, 1
  br label %single
row_end:
  %i_next = add i64 %i, 1
  %out_next = getelementptr float, ptr %out, i64 %length
  br label %row_head
end:
  ret i64 0
}}
"""

_converted = 0


def fractions(array: Array) -> Array:
    """A new array: float32 from 0 to 1 for bytes from 0 to 255."""
    floats = array.astype(np.float32)
    floats *= _SCALE
    return floats


def gather_fractions(array: Array, places: Array) -> Array:
    """What ``fractions(array.take(places, axis=0))`` answers, to the bit.

    Args:
        array: uint8 (N, ...).
        places: whole numbers along one axis.

    Raises:
        IndexError: a place that the array does not have.
    """
    global _converted
    size = array[:1].size
    if _converted < BEFORE_CODE or not array.flags.c_contiguous or not size:
        _converted += size * len(places)  # lost counts of other threads do no harm
        return fractions(array.take(places, axis=0))
    wanted = np.ascontiguousarray(places, np.int64)
    floats = np.empty((len(wanted), *array.shape[1:]), np.float32)
    is_elsewhere = _code()(
        address_of(array), len(array), size, address_of(wanted), len(wanted), address_of(floats)
    )
    if is_elsewhere:
        return fractions(array.take(places, axis=0))  # counted from the end, or refused
    return floats


@cache
def _code() -> Callable[..., int]:
    # LLVM's text gives a float32 as the bits of the float64 of the same value.
    scale = f"0x{int(np.float64(_SCALE).view(np.uint64)):016X}"
    code = machine.load(_GATHER.format(ahead=_AHEAD, scale=scale))
    kinds = ctypes.c_void_p, ctypes.c_int64
    function = ctypes.CFUNCTYPE(ctypes.c_int64, *kinds, kinds[1], *kinds, kinds[0])(
        code.address("gather")
    )
    function.code = code  # type: ignore[attr-defined]  # the code lives as long as it can be called
    return function
