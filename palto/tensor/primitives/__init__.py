"""The table of primitives: every row stands once, in the file of its family."""

from palto.tensor.graph import Primitive
from palto.tensor.primitives import (
    contract,
    control,
    elementwise,
    fourier,
    indexing,
    movement,
    random,
    reduce,
    sorting,
    window,
)

_FAMILIES = (
    elementwise, reduce, movement, contract, window, indexing, sorting, fourier, random, control,
)  # fmt: skip

#: Every primitive by name. An executor's table has exactly these keys.
TABLE: dict[str, Primitive] = {
    row.name: row
    for family in _FAMILIES
    for row in vars(family).values()
    if isinstance(row, Primitive)
}
