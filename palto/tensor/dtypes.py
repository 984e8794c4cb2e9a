"""The number formats that a Tensor can hold, and how they mix.

A dtype is NumPy's own dtype object, so ``x.dtype == np.float32`` just works.
Promotion follows the Python array API: formats of one kind mix (``int32 + int64``), kinds do not
(``int64 + float32`` raises), and a Python number takes the format of the tensor beside it.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

DType = np.dtype[Any]
Array = np.ndarray[Any, np.dtype[Any]]

_PythonBool = bool  # the name below is the array API's
bool = np.dtype("bool")
int8 = np.dtype("int8")
int32 = np.dtype("int32")
int64 = np.dtype("int64")
uint8 = np.dtype("uint8")
uint32 = np.dtype("uint32")
float32 = np.dtype("float32")
float64 = np.dtype("float64")
complex64 = np.dtype("complex64")
float16 = np.dtype("float16")
bfloat16 = np.dtype(ml_dtypes.bfloat16)

SUPPORTED = (
    bool, int8, int32, int64, uint8, uint32, float32, float64, complex64, float16, bfloat16,
)  # fmt: skip
SIGNED = (int8, int32, int64)
UNSIGNED = (uint8, uint32)
INTEGER = SIGNED + UNSIGNED
FLOATING = (float32, float64)
COMPLEX = (complex64,)
NUMERIC = INTEGER + FLOATING + COMPLEX
REAL = INTEGER + FLOATING
INEXACT = FLOATING + COMPLEX
#: Storage only: load, move, save and cast; arithmetic wants float32.
STORAGE = (float16, bfloat16)
DIFFERENTIABLE = (*INEXACT, *STORAGE)
ORDERED = (bool, *REAL)

_SIGNED_OF_WIDTH: dict[int, DType] = {8: int8, 32: int32, 64: int64}


def as_dtype(dtype: Any) -> DType:
    """A supported dtype from ``palto.float32``, ``"float32"``, ``np.float32``, ``float`` ...

    Raises:
        TypeError: the format is not one that Palto holds.
    """
    if isinstance(dtype, type) and not issubclass(dtype, np.generic):
        python = ((_PythonBool, bool), (int, int64), (float, float32), (complex, complex64))
        for kind, found_for in python:
            if issubclass(dtype, kind):
                return found_for
    found: DType | None
    try:
        found = np.dtype(bfloat16 if dtype == "bfloat16" else dtype)
    except TypeError:
        found = None
    if found is None or found not in SUPPORTED:
        names = ", ".join(d.name for d in SUPPORTED)
        raise TypeError(f"Palto has no dtype {dtype!r}; it holds {names}. Convert the data first.")
    return found


def result_dtype(first: DType, second: DType) -> DType:
    """The dtype in which two tensors meet.

    Raises:
        TypeError: the two do not mix without an explicit cast.
    """
    if first == second:
        return first
    if {first, second} == {*STORAGE}:
        return float32  # neither holds the other
    floats = (*STORAGE, *FLOATING)
    if first in floats and second in floats:
        return max(first, second, key=floats.index)
    if {first, second} == {float32, complex64}:
        return complex64
    if first in INTEGER and second in INTEGER:
        if (first in SIGNED) == (second in SIGNED):
            return max(first, second, key=lambda d: d.itemsize)
        signed, unsigned = (first, second) if first in SIGNED else (second, first)
        width = max(signed.itemsize * 8, unsigned.itemsize * 16)
        if width in _SIGNED_OF_WIDTH:
            return _SIGNED_OF_WIDTH[width]
        if width == 16:  # int8 with uint8: the array API's int16 is not held
            return int32
    raise TypeError(
        f"{first.name} and {second.name} do not mix by themselves; "
        f"cast one of them first, for example x.astype(palto.{_suggestion(first, second).name})"
    )


def _suggestion(first: DType, second: DType) -> DType:
    for dtype in (first, second):
        if dtype in COMPLEX:
            return dtype
    for dtype in (first, second):
        if dtype in FLOATING:
            return dtype
    return second if first == bool else first


def scalar_dtype(value: Any, beside: DType | None) -> DType:
    """The dtype of a Python number, alone or beside a tensor of dtype `beside`.

    Raises:
        TypeError: the number's kind does not fit into the tensor's.
    """
    if beside is None:
        return as_dtype(type(value))
    if isinstance(value, _PythonBool):
        fits = beside == bool
    elif isinstance(value, int):
        fits = beside != bool
    elif isinstance(value, float):
        fits = beside in DIFFERENTIABLE
    else:
        if beside == float32:
            return complex64
        fits = beside in COMPLEX
    if not fits:
        raise TypeError(
            f"the Python number {value!r} does not fit a tensor of {beside.name}; "
            f"cast the tensor first, for example x.astype(palto.{as_dtype(type(value)).name})"
        )
    return beside
