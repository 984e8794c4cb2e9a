"""Where arrays lie: read from Python's objects themselves, those of cells in native code.

A program is called more often than anything else, and asking NumPy for one address takes longer
than all that a call has to do besides. So a small function follows the pointers from a cell to its
value to its array to the elements, and notes on the way whether somebody else holds the value.
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from palto.compiler.llvm import machine
from palto.tensor.dtypes import Array
from palto.tensor.tensor import Cell, Tensor

_WORD = 8
#: Where a tuple's items begin.
_ITEMS = tuple.__basicsize__
#: After an array's address: its owner, and the flag that says that it may be written to.
_BASE, _FLAGS, _WRITEABLE = 32, 48, 0x400

#: ``i64 point(tuple, plan)``; it holds Python's lock. The plan: how many items of the tuple, how
#: many cells, the table, None; the slot and offset of each item; address, slot and whether it is
#: written of each cell. It answers how many cells' values cannot be used where they are: somebody
#: else holds one that is to be written, or another executor keeps it and NumPy's side is None.
_POINT = """
define i64 @point(ptr %tuple, ptr %plan) {{
entry:
  %items = load i64, ptr %plan, align 8
  %cells_at = getelementptr i64, ptr %plan, i64 1
  %cells = load i64, ptr %cells_at, align 8
  %table_at = getelementptr i64, ptr %plan, i64 2
  %table = load ptr, ptr %table_at, align 8
  %none_at = getelementptr i64, ptr %plan, i64 3
  %none = load ptr, ptr %none_at, align 8
  %first = getelementptr i64, ptr %plan, i64 4
  br label %items_head
items_head:
  %i = phi i64 [ 0, %entry ], [ %i_next, %item ]
  %at = phi ptr [ %first, %entry ], [ %at_next, %item ]
  %items_left = icmp slt i64 %i, %items
  br i1 %items_left, label %item, label %cells_head
item:
  %slot = load i64, ptr %at, align 8
  %offset_at = getelementptr i64, ptr %at, i64 1
  %offset = load i64, ptr %offset_at, align 8
  %item_at = getelementptr i8, ptr %tuple, i64 %offset
  %item_array = load ptr, ptr %item_at, align 8
  %item_data_at = getelementptr i8, ptr %item_array, i64 {data}
  %item_data = load i64, ptr %item_data_at, align 8
  %item_place = getelementptr i64, ptr %table, i64 %slot
  store i64 %item_data, ptr %item_place, align 8
  %i_next = add i64 %i, 1
  %at_next = getelementptr i64, ptr %at, i64 2
  br label %items_head
cells_head:
  %j = phi i64 [ 0, %items_head ], [ %j_next, %cell ]
  %cell_at = phi ptr [ %at, %items_head ], [ %cell_at_next, %cell ]
  %held = phi i64 [ 0, %items_head ], [ %held_next, %cell ]
  %cells_left = icmp slt i64 %j, %cells
  br i1 %cells_left, label %cell, label %end
cell:
  %object = load ptr, ptr %cell_at, align 8
  %cell_slot_at = getelementptr i64, ptr %cell_at, i64 1
  %cell_slot = load i64, ptr %cell_slot_at, align 8
  %written_at = getelementptr i64, ptr %cell_at, i64 2
  %written = load i64, ptr %written_at, align 8
  %leaf_at = getelementptr i8, ptr %object, i64 {leaf}
  %leaf = load ptr, ptr %leaf_at, align 8
  %array_at = getelementptr i8, ptr %leaf, i64 {value}
  %array = load ptr, ptr %array_at, align 8
  %data_at = getelementptr i8, ptr %array, i64 {data}
  %data = load i64, ptr %data_at, align 8
  %place = getelementptr i64, ptr %table, i64 %cell_slot
  store i64 %data, ptr %place, align 8
  %leaf_count = load i32, ptr %leaf, align 4
  %leaf_shared = icmp ne i32 %leaf_count, 1
  %array_count = load i32, ptr %array, align 4
  %array_shared = icmp ne i32 %array_count, 1
  %base_at = getelementptr i8, ptr %array, i64 {base}
  %base = load i64, ptr %base_at, align 8
  %based = icmp ne i64 %base, 0
  %flags_at = getelementptr i8, ptr %array, i64 {flags}
  %flags = load i32, ptr %flags_at, align 4
  %writeable = and i32 %flags, {writeable}
  %fixed = icmp eq i32 %writeable, 0
  %shared = or i1 %leaf_shared, %array_shared
  %foreign = or i1 %based, %fixed
  %bad = or i1 %shared, %foreign
  %bad_number = zext i1 %bad to i64
  %bad_written = mul i64 %bad_number, %written
  %elsewhere = icmp eq ptr %array, %none
  %counts = select i1 %elsewhere, i64 1, i64 %bad_written
  %held_next = add i64 %held, %counts
  %j_next = add i64 %j, 1
  %cell_at_next = getelementptr i64, ptr %cell_at, i64 3
  br label %cells_head
end:
  ret i64 %held
}}
"""


def address_of(array: Array) -> int:
    """Where an array's elements begin; five times faster than asking NumPy."""
    if _DATA is None:
        return int(array.__array_interface__["data"][0])
    return ctypes.c_void_p.from_address(id(array) + _DATA).value or 0


class Pointing:
    """Fills a program's table with where its arrays and the values of its cells lie.

    Args:
        table: the table, 64-bit words.
        items: a slot of the table and the number of an array, for each array.
        cells: a cell, its slot, and whether the program writes into its value.
    """

    def __init__(
        self,
        table: Array,
        items: Sequence[tuple[int, int]],
        cells: Sequence[tuple[Cell, int, bool]],
    ) -> None:
        words = [len(items), len(cells), address_of(table), id(None)]
        for slot, number in items:
            words += [slot, _ITEMS + number * _WORD]
        for cell, slot, is_written in cells:
            words += [id(cell), slot, is_written]
        self._plan = np.array(words, np.int64)
        self._kept = table, [cell for cell, *_ in cells]
        self._address = address_of(self._plan)
        self._point = _native()

    def __call__(self, arrays: tuple[Array, ...]) -> bool:
        """Fill the table; whether nobody else holds a value that is to be written."""
        return self._point is not None and self._point(arrays, self._address) == 0


def _offset_of(holder: Any, held: Any) -> int | None:
    """Where in an object the pointer to another stands."""
    for place in range(object.__basicsize__, type(holder).__basicsize__, _WORD):
        if ctypes.c_void_p.from_address(id(holder) + place).value == id(held):
            return place
    return None


def _data_field() -> int | None:
    """Where in an array object its address stands: the first field, if it is as it always was."""
    place = object.__basicsize__
    for array in (np.ones(3), np.ones((2, 2))[1:], np.ones((), np.int8)):
        found = ctypes.c_void_p.from_address(id(array) + place).value
        if sys.implementation.name != "cpython" or found != array.__array_interface__["data"][0]:
            return None
    return place


_DATA = _data_field()


@cache
def _native() -> Any:
    """The function `_POINT`; None where objects do not look as it takes for granted."""
    if _DATA is None or sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    cell = Cell(np.ones(3, np.float32))
    leaf = _offset_of(cell, cell._leaf)
    value = _offset_of(cell._leaf, cell._leaf._value)
    if leaf is None or value is None:
        return None
    text = _POINT.format(
        leaf=leaf, value=value, data=_DATA, base=_DATA + _BASE, flags=_DATA + _FLAGS,
        writeable=_WRITEABLE,
    )  # fmt: skip
    code = machine.load(text)
    point = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.py_object, ctypes.c_void_p)(
        code.address("point")
    )
    point.code = code  # type: ignore[attr-defined]
    return point if _is_right(point, cell) else None


def _is_right(point: Any, cell: Cell) -> bool:
    """Whether it sees every reason for which a cell's value may not be written to."""
    table, array = np.zeros(2, np.uint64), np.ones(2)
    words = [1, 1, address_of(table), id(None), 0, _ITEMS, id(cell), 1]
    plan, reading = (np.array([*words, is_written], np.int64) for is_written in (1, 0))

    def answer(plan: Array = plan) -> int:
        return int(point((array,), address_of(plan)))

    def value() -> Any:
        return cell._leaf._value

    found = [answer()]
    right = [address_of(array), address_of(value())] == table.tolist()
    leaf = cell._leaf
    found.append(answer())
    del leaf
    held = value()
    found.append(answer())
    held.flags.writeable = False
    del held
    found.append(answer())
    cell.store(np.ones(6, np.float32)[:3])
    found.append(answer())
    cell.store(np.ones(3, np.float32))
    found += [answer(), answer(reading)]
    cell.hold(Tensor(cell.shape, cell.dtype))
    found += [answer(), answer(reading)]
    return right and found == [0, 1, 1, 1, 1, 0, 0, 1, 1]
