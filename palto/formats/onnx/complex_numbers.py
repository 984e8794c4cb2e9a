"""Complex numbers, for which ONNX has no operators: each tensor as a real and an imaginary part.

The parts are tensors of their own. What moves elements, or is linear, is done to both of them; the
rest is written by operations on real numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palto.formats.onnx.building import Builder
from palto.tensor import dtypes
from palto.tensor.graph import Operation, Spec
from palto.tensor.primitives import TABLE
from palto.tensor.tensor import Tensor

#: A real and an imaginary part.
Parts = tuple[Tensor, Tensor]
Row = Callable[..., Parts | Tensor]
#: Writes an operation on real tensors.
Write = Callable[[Builder, Operation], None]

#: By primitive; all others are done to each part.
ROWS: dict[str, Row] = {}


def is_complex(x: Tensor) -> bool:
    """Whether a tensor has two parts."""
    return x.dtype in dtypes.COMPLEX


def parts(build: Builder, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The real tensors that stand for some tensors: of a complex one both parts, side by side."""
    found: list[Tensor] = []
    for x in tensors:
        if not is_complex(x):
            found.append(x)
            continue
        if id(x) not in build.parts:
            values = (None, None) if x._value is None else (x.array().real, x.array().imag)
            real, imag = (build.keep(Tensor(x.shape, dtypes.float32, value)) for value in values)
            build.parts[id(build.keep(x))] = real, imag
        found += build.parts[id(x)]
    return found


@dataclass(frozen=True)
class Do:
    """Applies primitives to real tensors: ``do("add", x, y)``.

    Attributes:
        build: what they are written into.
        write: writes an operation.
    """

    build: Builder
    write: Write

    def __call__(self, name: str, *inputs: Tensor, **params: Any) -> Tensor:
        """The one result; parameters come by name."""
        spec = TABLE[name].infer(*inputs, **params)
        assert isinstance(spec, Spec)
        result = self.build.keep(Tensor(spec.shape, spec.dtype))
        operation = Operation(TABLE[name], inputs, params)
        operation.set_outputs((result,))
        self.write(self.build, operation)
        return result


def write_parts(build: Builder, operation: Operation, write: Write) -> None:
    """Write an operation on complex numbers, or one that gives them.

    Args:
        build: what it is written into.
        operation: one without a body.
        write: writes an operation on real numbers.
    """
    do = Do(build, write)
    name, result = operation.primitive.name, operation.output()
    given = [parts(build, [x]) for x in operation.inputs]
    if name in ROWS:
        found = ROWS[name](do, *given, **operation.params)
    else:
        real, imag = (
            do(name, *(x[place] if len(x) == 2 else x[0] for x in given), **operation.params)
            for place in (0, 1)
        )
        found = real, imag
    if isinstance(found, Tensor):
        build.hold_as(result, build.held(found))
    else:
        build.parts[id(result)] = found


def _row(name: str) -> Callable[[Row], Row]:
    def add(function: Row) -> Row:
        ROWS[name] = function
        return function

    return add


def _zeros_like(do: Do, x: Tensor) -> Tensor:
    return do("expand", Tensor((1,) * x.ndim, x.dtype, np.zeros((1,) * x.ndim, x.dtype)),
              shape=x.shape)  # fmt: skip


@_row("complex")
def _complex(do: Do, real: list[Tensor], imag: list[Tensor]) -> Parts:
    return real[0], imag[0]


@_row("real")
def _real(do: Do, z: list[Tensor]) -> Tensor:
    return z[0]


@_row("imag")
def _imag(do: Do, z: list[Tensor]) -> Tensor:
    return z[1]


@_row("cast")
def _cast(do: Do, z: list[Tensor], *, dtype: dtypes.DType) -> Parts | Tensor:
    if dtype not in dtypes.COMPLEX:
        return do("cast", z[0], dtype=dtype)
    if len(z) == 2:
        return z[0], z[1]
    real = do("cast", z[0], dtype=dtypes.float32)
    return real, _zeros_like(do, real)


@_row("iota")
def _iota(do: Do, *, dtype: dtypes.DType, **params: Any) -> Parts:
    real = do("iota", dtype=dtypes.float32, **params)
    return real, _zeros_like(do, real)


@_row("pad")
def _pad(do: Do, z: list[Tensor], *, value: Any, **params: Any) -> Parts:
    return do("pad", z[0], value=value, **params), do("pad", z[1], value=0, **params)


def _times(do: Do, name: str, x: list[Tensor], y: list[Tensor]) -> Parts:
    (a, b), (c, d) = x, y
    real = do("subtract", do(name, a, c), do(name, b, d))
    return real, do("add", do(name, a, d), do(name, b, c))


@_row("multiply")
def _multiply(do: Do, x: list[Tensor], y: list[Tensor]) -> Parts:
    return _times(do, "multiply", x, y)


@_row("matmul")
def _matmul(do: Do, x: list[Tensor], y: list[Tensor]) -> Parts:
    return _times(do, "matmul", x, y)


@_row("divide")
def _divide(do: Do, x: list[Tensor], y: list[Tensor]) -> Parts:
    """X times the conjugate of y, over the square of y's size."""
    c, d = y
    size = do("add", do("multiply", c, c), do("multiply", d, d))
    real, imag = _times(do, "multiply", x, [c, do("negative", d)])
    return do("divide", real, size), do("divide", imag, size)


@_row("abs")
def _abs(do: Do, z: list[Tensor]) -> Tensor:
    a, b = z
    return do("sqrt", do("add", do("multiply", a, a), do("multiply", b, b)))


@_row("exp")
def _exp(do: Do, z: list[Tensor]) -> Parts:
    size = do("exp", z[0])
    return do("multiply", size, do("cos", z[1])), do("multiply", size, do("sin", z[1]))


@_row("equal")
def _equal(do: Do, x: list[Tensor], y: list[Tensor]) -> Tensor:
    return do("bitwise_and", do("equal", x[0], y[0]), do("equal", x[1], y[1]))


@_row("fft")
def _fft(do: Do, z: list[Tensor], *, axis: int, inverse: bool) -> Parts:
    """By ONNX's operator, whose numbers are pairs along a last axis; its inverse divides by n."""
    build, x = do.build, z[0]
    last = build.constant([-1])
    pairs = build.node(
        "Concat", *(build.node("Unsqueeze", build.whole(part), last) for part in z), axis=-1
    )
    found = build.node("DFT", pairs, "", build.constant(axis), inverse=int(inverse))
    if inverse:
        n = build.node("Cast", build.lengths([x.shape[axis]]), to=build.number_of(x.dtype))
        found = build.node("Mul", found, n)
    real, imag = (build.keep(Tensor(x.shape, x.dtype)) for _ in range(2))
    for place, part in enumerate((real, imag)):
        build.hold(part, build.node("Gather", found, build.constant(place), axis=-1))
    return real, imag
