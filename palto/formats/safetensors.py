"""Safetensors: named tensors in a file that holds data and nothing that runs.

safetensors.save("model.safetensors", model.state_dict())
model.load_state_dict(safetensors.load("model.safetensors"))
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors as library
from safetensors import numpy as numpy_form

from palto.formats.whole import write_whole
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.dtypes import Array

_DTYPES = {
    "BOOL": dtypes.bool,
    "I8": dtypes.int8,
    "I32": dtypes.int32,
    "I64": dtypes.int64,
    "U8": dtypes.uint8,
    "U32": dtypes.uint32,
    "F32": dtypes.float32,
    "F64": dtypes.float64,
    "C64": dtypes.complex64,
    "F16": dtypes.float16,
    "BF16": dtypes.bfloat16,
}


class Reader(Mapping[str, Array]):
    """The tensors of a file, each read when it is asked for, as a NumPy array.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or is cut off.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        self._path = path
        self._file: Any
        try:
            self._file = library.safe_open(os.fspath(path), "np")
        except library.SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from None
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        kind = self._file.get_slice(name).get_dtype()
        if kind not in _DTYPES:
            raise ValueError(f"{self._path}: {name} has the dtype {kind}, which Palto has not")
        array: Array = self._file.get_tensor(name)
        return array

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return tuple(self._file.get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to a file: whole or not at all, over whatever was there.

    Args:
        path: the file.
        tensors: tensors or NumPy arrays by name.
        metadata: texts that go with them.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"tensors by name are wanted, got a {type(tensors).__name__}; of a model or an "
            "optimiser, save its state_dict()"
        )
    arrays = {
        name: np.ascontiguousarray(value).reshape(value.shape)
        for name, value in ((name, F.asarray(x).array()) for name, x in tensors.items())
    }
    contents = numpy_form.save(arrays, None if metadata is None else dict(metadata))
    write_whole(path, contents)


def load(path: str | os.PathLike[str], *, widen: bool = False) -> dict[str, Tensor]:
    """The tensors in a file, by name.

    Args:
        path: the file.
        widen: whether float16 becomes float32, which holds the same numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, is cut off, or holds a dtype that Palto has not.
    """
    contents = Path(path).read_bytes()
    try:
        entries = library.deserialize(contents)  # type: ignore[no-untyped-call]
    except library.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None
    tensors = {}
    for name, entry in entries:
        if widen and entry["dtype"] == "F16":
            half = np.frombuffer(entry["data"], np.float16).reshape(entry["shape"])
            tensors[name] = F.asarray(half.astype(np.float32))
            continue
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} has the dtype {entry['dtype']}, which Palto has not")
        array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = F.asarray(array)
    return tensors
