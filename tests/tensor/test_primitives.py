"""Every primitive: its NumPy meaning against an independent one, its gradients by differences.

`CASES` has at least one case for every row of the table, with all of the row's parameters varied.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import palto
from palto.tensor import dtypes
from palto.tensor.graph import apply
from palto.tensor.primitives import TABLE

_rng = np.random.default_rng(0)


def real(*shape):
    """Normally distributed, float64."""
    return _rng.normal(size=shape)


def away(*shape):
    """At least 0.3 from zero, of both signs."""
    x = real(*shape)
    return x + np.copysign(0.3, x)


def positive(*shape):
    return np.abs(real(*shape)) + 0.3


def apart(*shape):
    """No two elements closer than 0.1, in a random order."""
    n = math.prod(shape)
    return (_rng.permutation(n).reshape(shape) - n / 2) * 0.1 + 0.03


def whole(*shape, low=-9, high=9, dtype=np.int64):
    return _rng.integers(low, high, shape).astype(dtype)


def truth(*shape):
    return _rng.random(shape) < 0.5


def unit_complex(*shape):
    return (real(*shape) + 1j * real(*shape)).astype(np.complex64)


@dataclass
class Case:
    """Inputs and parameters of a row, and what comes out.

    Attributes:
        inputs: arrays; gradients are taken towards those of float64.
        wanted: the value from the inputs and parameters.
        params: the row's parameters.
        function: what to call instead of the row, for rows that take a body.
        order: how many derivatives to check; 0 at a kink.
        step: of the differences; large where the function is linear and rounds to float32.
        rtol: of the value and the derivatives.
    """

    inputs: tuple[Any, ...]
    wanted: Callable[..., Any]
    params: dict[str, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None
    order: int = 2
    step: float = 1e-5
    rtol: float = 1e-6


def bare(function, *inputs, **options):
    """Cases of a row without parameters, one for each tuple of inputs."""
    return [Case(x if isinstance(x, tuple) else (x,), function, **options) for x in inputs]


CASES: dict[str, list[Case]] = {
    # elementwise
    "negative": bare(np.negative, real(3, 4), whole(5), np.int8([-128, 3]), unit_complex(3)),
    "sign": bare(np.sign, away(3, 4), whole(5), np.uint8([0, 7]), real(0, 3))
    + bare(np.sign, np.array([0.0, -0.0, np.nan]), order=0),
    "floor": bare(np.floor, np.array([-1.6, -0.4, 0.3, 2.7]), np.float32([-1.5, 2])),
    "round": bare(np.rint, np.array([-1.6, -0.4, 0.3, 2.7]), np.float32([-1.5, 0.5, 2.5])),
    "exp": bare(np.exp, real(3, 4), real(), real(2, 0), np.float32([-200, 200]), unit_complex(3)),
    "expm1": bare(np.expm1, real(3, 4), np.array([1e-12, -1e-12, 30.0, -40.0]), rtol=1e-5),
    "log": bare(np.log, positive(3, 4), positive()),
    "log1p": bare(np.log1p, positive(3, 4) - 0.9, np.array([1e-12, -1e-12])),
    "sqrt": bare(np.sqrt, positive(3, 4), positive()),
    "sin": bare(np.sin, real(3, 4) * 3),
    "cos": bare(np.cos, real(3, 4) * 3),
    "tanh": bare(np.tanh, real(3, 4), np.array([20.0, -20.0])),
    "erf": bare(np.vectorize(math.erf), real(3, 4), np.array([0.0, 1e-9, 1.1, -2.0, 3.5, -7.0])),
    "bitwise_invert": bare(np.invert, whole(4), np.uint8([0, 200]), truth(5)),
    "abs": bare(np.abs, away(3, 4), whole(4), np.uint8([3]), unit_complex(3)),
    "real": bare(np.real, unit_complex(3)),
    "imag": bare(np.imag, unit_complex(3)),
    "cast": [
        Case((x,), lambda x, dtype: x.astype(dtype), {"dtype": to}, step=1.0, rtol=1e-5)
        for x, to in [
            (real(3, 4), dtypes.float32),
            (real(3), dtypes.float64),
            (real(3) * 5, dtypes.int32),
            (whole(4), dtypes.float32),
            (whole(4), dtypes.uint8),
            (whole(4), dtypes.bool),
            (truth(4), dtypes.float64),
            (real(3), dtypes.bfloat16),
            (real(3).astype(dtypes.bfloat16), dtypes.float32),
            (real(3), dtypes.float16),
            (real(3).astype(dtypes.float16), dtypes.float32),
            (real(3), dtypes.complex64),
        ]
    ]
    + [Case((unit_complex(3),), lambda x, dtype: x.real.astype(dtype), {"dtype": dtypes.float32})],
    "detach": bare(lambda x: x, real(3), whole(3)),
    "add": bare(np.add, (real(3, 4), real(3, 4)), (whole(3), whole(3)), (real(), real())),
    "subtract": bare(np.subtract, (real(3, 4), real(3, 4)), (unit_complex(2), unit_complex(2))),
    "multiply": bare(
        np.multiply, (real(3, 4), real(3, 4)), (np.int8([100]), np.int8([3])), (real(0), real(0))
    ),
    "divide": bare(
        np.divide,
        (real(3, 4), away(3, 4)),
        (np.float32([1, -1, 0]), np.float32([0, 0, 0])),
        (unit_complex(3), unit_complex(3)),
    ),
    "floor_divide": bare(
        np.floor_divide,
        (np.array([7.3, -7.3, 7.3]), np.array([2.0, 2.0, -2.0])),
        (np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])),
        (np.float32([1]), np.float32([0])),
    ),
    "remainder": bare(
        np.remainder,
        (np.array([7.3, -7.3, 7.3]), np.array([2.0, 2.0, -2.0])),
        (np.array([7, -7, 7, -7]), np.array([2, 2, -2, -2])),
    ),
    "pow": bare(
        np.power,
        (positive(3, 4), real(3, 4)),
        (np.array([2, -2, 3]), np.array([3, 2, 0])),
    )
    + bare(np.power, (np.array([0.0, 2.0, -8.0]), np.array([2.5, 0.0, 3.0])), order=0),
    "atan2": bare(np.arctan2, (away(3, 4), away(3, 4)))
    + bare(np.arctan2, (np.float64([0, -0.0, 0, 1]), np.float64([1, -1, 0, 0])), order=0),
    "maximum": bare(
        np.maximum, (apart(3, 4), apart(3, 4) + 0.05), (whole(5), whole(5)), (real(), real())
    ),
    "minimum": bare(np.minimum, (apart(3, 4), apart(3, 4) + 0.05), (whole(5), whole(5))),
    "equal": bare(
        np.equal,
        (whole(9, high=-7), whole(9, high=-7)),
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0])),
        (truth(5), truth(5)),
        (np.complex64([1j]), np.complex64([1j])),
    ),
    "less": bare(
        np.less, (np.array([np.nan, 1, 2.0]), np.array([0, 1, 3.0])), (truth(9), truth(9))
    ),
    "less_equal": bare(
        np.less_equal, (np.array([np.nan, 1, 2.0]), np.array([0, 1, 3.0])), (truth(9), truth(9))
    ),
    "bitwise_and": bare(np.bitwise_and, (whole(5), whole(5)), (truth(9), truth(9))),
    "bitwise_or": bare(np.bitwise_or, (whole(5), whole(5)), (truth(9), truth(9))),
    "bitwise_xor": bare(np.bitwise_xor, (whole(5), whole(5)), (truth(9), truth(9))),
    "bitwise_left_shift": bare(np.left_shift, (np.uint32([1, 3]), np.uint32([31, 4]))),
    "bitwise_right_shift": bare(
        np.right_shift, (np.array([-9, 9]), np.array([1, 2])), (np.uint32([2**31]), np.uint32([31]))
    ),
    "complex": bare(lambda x, y: x + 1j * y, (np.float32([1, 2]), np.float32([3, -4]))),
    "where": bare(
        np.where,
        (truth(3, 4), real(3, 4), real(3, 4)),
        (truth(4), whole(4), whole(4)),
    )
    + bare(
        np.where, (np.array([True, False]), np.array([1, np.nan]), np.array([np.nan, 2])), order=0
    ),
}


# reduce


def reductions(name, inputs):
    function = getattr(np, name)

    def wanted(x, axes):
        return function(x, axis=axes).astype(x.dtype)

    return [
        Case((x,), wanted, {"axes": axes})
        for x in inputs
        for axes in [(0,), (1,), (0, 2), (0, 1, 2), ()]
    ]


CASES |= {
    "sum": [
        *reductions("sum", [real(2, 3, 4), whole(2, 3, 4, dtype=np.int8), unit_complex(2, 1, 3)]),
        Case((real(0, 3),), lambda x, axes: np.zeros(3), {"axes": (0,)}),
    ],
    "max": reductions("max", [apart(2, 3, 4), truth(2, 1, 3)]),
    "min": reductions("min", [apart(2, 3, 4), whole(2, 1, 3, dtype=np.uint8)]),
}


# movement


def boxes(x, starts, stops, steps):
    return x[tuple(slice(*part) for part in zip(starts, stops, steps, strict=True))]


def padded(x, low, high, interior, value):
    for axis, gap in enumerate(interior):
        for place in range(x.shape[axis] - 1, 0, -1):
            for _ in range(gap):
                x = np.insert(x, place, value, axis)
    widths = list(zip(low, high, strict=True))
    return np.pad(x, widths, constant_values=value) if widths else x


def sliced(x, starts, sizes):
    return x[tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))]


def updated(x, update, starts):
    x = x.copy()
    sliced(x, starts, update.shape)[...] = update
    return x


def counted(shape, axis, dtype):
    return np.indices(shape)[axis].astype(dtype)


CASES |= {
    "reshape": [
        Case((x,), lambda x, shape: x.reshape(shape), {"shape": shape})
        for x, shape in [
            (real(2, 6), (3, 4)),
            (real(), (1, 1)),
            (real(1), ()),
            (real(0, 3), (5, 0)),
        ]
    ],
    "permute": [
        Case((real(2, 3, 4),), lambda x, axes: x.transpose(axes), {"axes": axes})
        for axes in itertools.permutations(range(3))
    ],
    "expand": [
        Case((x,), lambda x, shape: np.broadcast_to(x, shape), {"shape": shape})
        for x, shape in [
            (real(), (2, 3)),
            (real(3, 1), (3, 4)),
            (real(1, 3), (2, 5, 3)),
            (real(1, 1), (1, 1)),
            (real(1, 3), (0, 3)),
            (real(3), (3,)),
        ]
    ],
    "pad": [
        Case((x,), padded, {"low": low, "high": high, "interior": interior, "value": value})
        for x, low, high, interior, value in [
            (real(2, 3), (1, 0), (0, 2), (0, 0), 0),
            (real(2, 3), (0, 0), (0, 0), (1, 2), 7.5),
            (real(3), (2,), (1,), (3,), -1),
            (real(0, 2), (1, 0), (2, 0), (1, 0), 3),
            (whole(3), (1,), (1,), (0,), 5),
            (truth(3), (1,), (1,), (1,), True),
            (real(), (), (), (), 0),
        ]
    ],
    "slice": [
        Case((x,), boxes, {"starts": starts, "stops": stops, "steps": steps})
        for x, starts, stops, steps in [
            (real(5, 6), (1, 0), (4, 6), (1, 2)),
            (real(5, 6), (0, 2), (5, 6), (3, 3)),
            (real(5), (2,), (2,), (1,)),
            (whole(7), (1,), (7,), (4,)),
            (real(), (), (), ()),
        ]
    ],
    "flip": [
        Case((real(2, 3, 4),), lambda x, axes: np.flip(x, axes), {"axes": axes})
        for axes in [(0,), (1, 2), (0, 1, 2)]
    ],
    "concat": [
        Case(xs, lambda *xs, axis: np.concatenate(xs, axis), {"axis": axis})
        for xs, axis in [
            ((real(2, 3), real(1, 3), real(4, 3)), 0),
            ((real(2, 3), real(2, 0), real(2, 1)), 1),
            ((whole(2), whole(3)), 0),
            ((real(2),), 0),
        ]
    ],
    "dynamic_slice": [
        Case((x, np.array(starts, dtype)), sliced, {"sizes": sizes})
        for x, starts, sizes, dtype in [
            (real(4, 5), (1, 0), (2, 5), np.int64),
            (real(4, 5), (4, 2), (0, 3), np.int32),
            (whole(6), (5,), (1,), np.uint8),
            (real(), (), (), np.int64),
        ]
    ],
    "dynamic_update_slice": [
        Case((x, update, np.array(starts)), updated)
        for x, update, starts in [
            (real(4, 5), real(2, 5), (1, 0)),
            (real(4, 5), real(4, 5), (0, 0)),
            (real(4, 5), real(1, 0), (3, 2)),
            (truth(6), truth(2), (4,)),
        ]
    ],
    "iota": [
        Case((), counted, {"shape": shape, "axis": axis, "dtype": dtype})
        for shape, axis, dtype in [
            ((4,), 0, dtypes.int64),
            ((2, 3), 0, dtypes.float32),
            ((2, 3), 1, dtypes.uint8),
            ((2, 0), 1, dtypes.int32),
        ]
    ],
}


# contract


def spread_out(x, padding, dilation):
    """`x` with zeros between and around its pixels, by hand."""
    for axis, (gap, (low, high)) in enumerate(zip(dilation, padding, strict=True), 1):
        n = x.shape[axis]
        wide = np.zeros((*x.shape[:axis], max((n - 1) * gap + 1, 0), *x.shape[axis + 1 :]), x.dtype)
        wide[(slice(None),) * axis + (slice(None, None, gap),)] = x
        around = [(0, 0)] * x.ndim
        around[axis] = (max(low, 0), max(high, 0))
        wide = np.pad(wide, around)
        cut = slice(max(-low, 0), wide.shape[axis] - max(-high, 0))
        x = wide[(slice(None),) * axis + (cut,)]
    return x


def convolved(x, w, stride, padding, input_dilation, kernel_dilation, groups):
    """Convolution as a sum over the kernel's positions."""
    dims = x.ndim - 2
    x = spread_out(x, padding, input_dilation)
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape, kernel_dilation, strict=False)]
    out = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:-1], reach, stride, strict=True)]
    result = np.zeros((x.shape[0], *out, w.shape[-1]), x.dtype)
    per_group, share = w.shape[-2], w.shape[-1] // groups
    for place in itertools.product(*map(range, w.shape[:dims])):
        seen = x[
            (
                slice(None),
                *(
                    slice(p * d, p * d + (n - 1) * s + 1, s)
                    for p, d, n, s in zip(place, kernel_dilation, out, stride, strict=True)
                ),
            )
        ]
        for group in range(groups):
            channels = slice(group * per_group, (group + 1) * per_group)
            outputs = slice(group * share, (group + 1) * share)
            result[..., outputs] += seen[..., channels] @ w[place][:, outputs]
    return result


def convolution(
    x, w, stride=None, padding=None, input_dilation=None, kernel_dilation=None, groups=1
):
    dims = len(x) - 2
    return Case(
        (real(*x), real(*w)),
        convolved,
        {
            "stride": stride or (1,) * dims,
            "padding": padding or ((0, 0),) * dims,
            "input_dilation": input_dilation or (1,) * dims,
            "kernel_dilation": kernel_dilation or (1,) * dims,
            "groups": groups,
        },
    )


CASES |= {
    "matmul": bare(
        np.matmul,
        (real(3, 4), real(4, 2)),
        (real(2, 3, 4), real(2, 4, 1)),
        (real(2, 1, 3, 4), real(2, 1, 4, 5)),
        (real(3, 0), real(0, 2)),
        (whole(2, 3), whole(3, 2)),
        (unit_complex(2, 3), unit_complex(3, 2)),
    ),
    "conv": [
        convolution((2, 5, 3), (3, 3, 4)),
        convolution((2, 6, 3), (2, 3, 4), stride=(2,), padding=((1, 0),)),
        convolution((1, 7, 2), (3, 2, 2), stride=(3,)),  # windows leave a remainder
        convolution((1, 3, 2), (5, 2, 2), padding=((4, 3),)),  # a kernel wider than the input
        convolution((1, 4, 2), (1, 2, 3), padding=((2, 1),)),  # padding wider than the kernel
        convolution((1, 8, 2), (2, 2, 2), padding=((-2, -1),)),
        convolution((1, 8, 2), (2, 2, 2), padding=((-3, 4),), stride=(2,)),
        convolution((1, 4, 2), (3, 2, 2), input_dilation=(2,), padding=((2, 1),)),
        convolution((1, 4, 2), (2, 2, 2), input_dilation=(3,), padding=((-2, 1),), stride=(2,)),
        convolution((1, 9, 2), (3, 2, 2), kernel_dilation=(3,), padding=((0, 2),)),
        convolution(
            (1, 6, 2), (3, 2, 2), (2,), ((1, 3),), input_dilation=(3,), kernel_dilation=(2,)
        ),
        convolution((2, 5, 4), (3, 2, 6), groups=2, padding=((1, 1),)),
        convolution((2, 5, 3), (3, 1, 3), groups=3),  # depthwise
        convolution((2, 5, 3), (3, 1, 6), groups=3, stride=(2,)),  # depthwise, two of each
        convolution((2, 4, 5, 3), (2, 3, 3, 2), stride=(1, 2), padding=((0, 1), (2, 0))),
        convolution((1, 5, 4, 4), (3, 2, 2, 4), (2, 1), groups=2, kernel_dilation=(1, 2)),
        convolution((2, 4, 4, 3), (1, 1, 3, 2)),
        convolution((1, 3, 4, 2, 2), (2, 2, 1, 2, 3), (1, 2, 1), ((1, 0), (0, 1), (0, 0))),
        convolution((1, 2, 3, 3, 2), (2, 1, 2, 1, 2), groups=2, input_dilation=(1, 2, 1)),
        convolution((0, 4, 2), (2, 2, 3)),
        convolution((2, 4, 0), (2, 0, 3)),
        convolution((2, 4, 3), (2, 3, 0)),
    ],
}


# windows


def around(x, padding, value):
    return np.pad(x, [(0, 0), *padding, (0, 0)], constant_values=value)


def each_window(space, window, stride, padding):
    """Positions of outputs, and the slices of their windows in the padded image."""
    total = [n + low + high for n, (low, high) in zip(space, padding, strict=True)]
    out = [(n - k) // s + 1 for n, k, s in zip(total, window, stride, strict=True)]
    for place in itertools.product(*map(range, out)):
        yield (
            place,
            tuple(slice(i * s, i * s + k) for i, s, k in zip(place, stride, window, strict=True)),
        )


def pooled(reduce):
    def wanted(x, window, stride, padding, value=-np.inf):
        image = around(x, padding, value)
        found = {
            place: reduce(image[(slice(None), *where)].reshape(len(x), -1, x.shape[-1]))
            for place, where in each_window(x.shape[1:-1], window, stride, padding)
        }
        out = [n + 1 for n in max(found)]
        values = np.stack([found[p] for p in itertools.product(*map(range, out))], axis=1)
        return values.reshape(len(x), *out, x.shape[-1])

    return wanted


def window_max(x, window, stride, padding):
    return (
        pooled(lambda part: part.max(1))(x, window, stride, padding),
        pooled(lambda part: part.argmax(1))(x, window, stride, padding).astype(np.int32),
    )


def window_sum(x, window, stride, padding, input_dilation):
    image = spread_out(x, padding, input_dilation)
    none = ((0, 0),) * len(window)
    return pooled(lambda part: part.sum(1))(image, window, stride, none)


def window_put(g, indices, space, window, stride, padding):
    result = around(np.zeros((len(g), *space, g.shape[-1])), padding, 0)
    for place, where in each_window(space, window, stride, padding):
        for n, c in itertools.product(range(len(g)), range(g.shape[-1])):
            view = result[(n, *where, c)]
            view[np.unravel_index(indices[(n, *place, c)], window)] += g[(n, *place, c)]
    inner = [slice(low, low + n) for (low, _), n in zip(padding, space, strict=True)]
    return result[(slice(None), *inner)]


def window_take(x, indices, window, stride, padding):
    image = around(x, padding, 0)
    result = np.zeros(indices.shape)
    for place, where in each_window(x.shape[1:-1], window, stride, padding):
        for n, c in itertools.product(range(len(x)), range(x.shape[-1])):
            view = image[(n, *where, c)]
            result[(n, *place, c)] = view[np.unravel_index(indices[(n, *place, c)], window)]
    return result


POOLS = [
    ((2, 6, 3), (2,), (2,), ((0, 0),)),
    ((2, 7, 2), (3,), (2,), ((1, 1),)),
    ((1, 8, 2), (3,), (3,), ((1, 0),)),  # a remainder
    ((2, 5, 4, 2), (2, 3), (1, 2), ((1, 0), (0, 1))),
    ((1, 4, 4, 1), (2, 2), (3, 3), ((0, 0), (0, 0))),  # gaps between the windows
    ((1, 3, 4, 3, 2), (2, 2, 3), (1, 2, 1), ((0, 0), (1, 0), (1, 1))),
]


def pools():
    for shape, window, stride, padding in POOLS:
        x = apart(*shape)
        yield x, {"window": window, "stride": stride, "padding": padding}


CASES |= {
    "window_max": [Case((x,), window_max, params) for x, params in pools()],
    "window_take": [
        Case((x, window_max(x, **params)[1]), window_take, params) for x, params in pools()
    ],
    "window_put": [
        Case(
            (real(*window_max(x, **params)[1].shape), window_max(x, **params)[1]),
            window_put,
            {"space": x.shape[1:-1], **params},
        )
        for x, params in pools()
    ],
    "window_sum": [
        Case((x,), window_sum, {**params, "input_dilation": (1,) * (x.ndim - 2)})
        for x, params in pools()
    ]
    + [
        Case(
            (real(*shape),),
            window_sum,
            {"window": window, "stride": stride, "padding": padding, "input_dilation": dilation},
        )
        for shape, window, stride, padding, dilation in [
            ((2, 4, 2), (3,), (1,), ((1, 2),), (2,)),
            ((2, 4, 2), (2,), (2,), ((-1, 3),), (3,)),
            ((1, 4, 3, 2), (2, 2), (2, 1), ((4, 0), (0, -1)), (1, 3)),
        ]
    ],
}


# indexing


def gathered(x, *indices, axis, role):
    return x[(slice(None),) * axis + indices]


def scattered(updates, *indices, sizes, axis, role):
    before, rest = updates.shape[:axis], updates.shape[axis + indices[0].ndim :]
    result = np.zeros((*before, *sizes, *rest), updates.dtype)
    for place in np.ndindex(indices[0].shape):
        target = tuple(int(index[place]) for index in indices)
        front = (slice(None),) * axis
        result[(*front, *target)] += updates[(*front, *place)]
    return result


def index(*shape, high, dtype=np.int64):
    return whole(*shape, low=0, high=high, dtype=dtype)


CASES |= {
    "gather": [
        Case((x, *indices), gathered, {"axis": axis, "role": "index"})
        for x, indices, axis in [
            (real(4, 3), (np.array([0, 3, 3, 0, 1]),), 0),
            (real(2, 4, 3), (index(2, 2, high=4),), 1),
            (real(2, 4), (index(5, high=4, dtype=np.uint8),), 1),
            (real(2, 3, 4), (index(6, high=2), index(6, high=3)), 0),
            (real(2, 3, 4), (index(2, 5, high=3), index(2, 5, high=4)), 1),
            (real(4, 3), (np.array(2),), 0),
            (real(4, 3), (np.zeros((0, 2), np.int64),), 0),
            (real(0, 3), (np.zeros(0, np.int64),), 0),
            (truth(4), (index(6, high=4, dtype=np.int32),), 0),
        ]
    ],
    "scatter_add": [
        Case((updates, *indices), scattered, {"sizes": sizes, "axis": axis, "role": "index"})
        for updates, indices, sizes, axis in [
            (real(5, 3), (np.array([0, 3, 3, 0, 1]),), (4,), 0),
            (real(2, 3, 2, 5), (index(3, 2, high=4),), (4,), 1),
            (real(6, 4), (index(6, high=2), index(6, high=3)), (2, 3), 0),
            (real(2, 2, 5), (index(2, 5, high=3), index(2, 5, high=4)), (3, 4), 1),
            (real(3), (np.array(2),), (4,), 0),
            (real(), (np.array(2),), (4,), 0),
            (real(0, 3), (np.zeros(0, np.int64),), (4,), 0),
            (real(0, 3), (np.zeros(0, np.int64),), (0,), 0),
            (real(5, 0), (index(5, high=4),), (4,), 0),
            (whole(500, dtype=np.int32), (index(500, high=7),), (7,), 0),
            (unit_complex(9, 2), (index(9, high=3),), (3,), 0),
        ]
    ],
}


# order


def in_order(x, axis):
    where = np.argsort(x, axis, kind="stable")
    return np.take_along_axis(x, where, axis), where


CASES |= {
    "sort": [
        Case((x,), in_order, {"axis": axis})
        for x, axis in [
            (apart(5), 0),
            (apart(3, 4), 0),
            (apart(2, 3, 4), 1),
            (whole(20, high=-5), 0),
            (truth(9), 0),
            (real(0), 0),
        ]
    ]
    + [
        Case((x,), in_order, {"axis": 0}, order=0)
        for x in [
            np.array([2.0, np.nan, -np.inf, 2.0, np.nan, np.inf]),
            np.array([0.0, -0.0, 0.0, 1.0, -0.0]),
            np.zeros((3, 2)),
        ]
    ],
    "argmax": [
        Case((x,), lambda x, axis: np.argmax(x, axis), {"axis": axis})
        for x, axis in [
            (real(3, 4), 0),
            (real(3, 4), 1),
            (whole(3, 9, high=-6), 1),
            (np.array([1.0, np.nan, 5.0, np.nan]), 0),
            (truth(2, 5), 1),
        ]
    ],
    "cumulative_sum": [
        Case((x,), lambda x, axis: np.cumsum(x, axis, x.dtype), {"axis": axis})
        for x, axis in [
            (real(5), 0),
            (real(3, 4), 0),
            (real(2, 3, 4), 1),
            (whole(9, dtype=np.int8), 0),
            (real(0, 2), 0),
            (unit_complex(4), 0),
        ]
    ],
    "fft": [
        Case(
            (x,),
            lambda x, axis, inverse: (
                np.fft.ifft(x, axis=axis) * x.shape[axis] if inverse else np.fft.fft(x, axis=axis)
            ).astype(np.complex64),
            {"axis": axis, "inverse": inverse},
            rtol=1e-5,
        )
        for x, axis in [(unit_complex(8), 0), (unit_complex(3, 5), 0), (unit_complex(3, 1, 2), 1)]
        for inverse in (False, True)
    ],
}


def words(state, shape):
    """Philox4x32-10 in Python's integers, word by word."""
    seed, draw = (int(part) % 2**64 for part in state)
    result = []
    for block in range(-(-math.prod(shape) // 4)):
        counter = [block % 2**32, block >> 32, draw % 2**32, draw >> 32]
        key = [seed % 2**32, seed >> 32]
        for _ in range(10):
            high0, low0 = divmod(0xD2511F53 * counter[0], 2**32)
            high1, low1 = divmod(0xCD9E8D57 * counter[2], 2**32)
            counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
            key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
        result += counter
    return np.array(result[: math.prod(shape)], np.uint32).reshape(shape)


CASES["random_bits"] = [
    Case((np.array(state),), words, {"shape": shape})
    for state in [(0, 0), (7, 3), (-1, -1), (2**40 + 5, 2**35 + 1)]
    for shape in [(6,), (), (2, 3), (0, 4)]
]


# rows with a body


def as_composite(function):
    from palto.tensor.primitives import control

    def call(*tensors):
        results = control.call("body", lambda *xs: function(palto, *xs), tensors, {})
        return results if len(results) > 1 else results[0]

    return call


def composite(function, *inputs, **options):
    def wanted(*arrays):
        results = function(np, *arrays)
        return results if len(results) > 1 else results[0]

    return Case(inputs, wanted, function=as_composite(function), **options)


def running(lib, carry, xs):
    """A recurrence: the state decays and takes in each element's sine."""
    ys = []
    for i in range(xs.shape[0]):
        carry = carry * 0.9 + lib.sin(xs[i]) * carry
        ys.append(carry * xs[i])
    return carry, lib.stack(ys)


def scanned(carry, xs):
    def step(state, x):
        state = state * 0.9 + palto.sin(x) * state
        return state, state * x

    return palto.scan(step, carry, xs)


CASES["composite"] = [
    composite(lambda lib, x: [lib.exp(x) / lib.sum(lib.exp(x))], real(4)),
    composite(lambda lib, x, y: [lib.sin(x) * y, lib.sum(x, axis=0)], real(3, 2), real(3, 2)),
    composite(lambda lib, x, n: [x[n]], real(5), np.array([4, 0, 0])),
    composite(lambda lib, x: [x], real(2)),
]
# More of scan is in test_control.py.
CASES["scan"] = [
    Case((real(3), real(4, 3)), lambda c, xs: running(np, c, xs), function=scanned),
]


def again(lib, carry, weight, *own):
    """A carried value, and what each time makes of a value of its own."""
    news = []
    for x in own:
        carry, new = lib.sin(carry) * weight + x, x * carry
        news.append(new)
    return carry, *news


def repeated(*tensors):
    from palto.tensor.primitives import control

    body = control.trace_body(lambda *xs: again(palto, *xs), tensors[:3]).graph
    length = len(tensors) - 2
    return apply(
        control.repeat, *tensors, body=body, carries=1, shared=1, length=length, updates=(0,)
    )


# More of repeat is in tests/nn/test_repeat.py.
CASES["repeat"] = [
    Case((real(3), real(3), *(real(3) for _ in range(times))),
         lambda *arrays: again(np, *arrays), function=repeated)
    for times in (1, 3)
]  # fmt: skip


def test_every_primitive_has_a_case():
    assert set(CASES) == set(TABLE)


def tagged():
    for name, cases in CASES.items():
        for number, case in enumerate(cases):
            yield pytest.param(name, case, id=f"{name}-{number}")


@pytest.mark.parametrize(("name", "case"), list(tagged()))
def test_primitive(check_gradients, name, case):
    row = TABLE[name]

    def function(*tensors):
        if case.function is not None:
            return case.function(*tensors)
        return apply(row, *tensors, **case.params)

    results = function(*(palto.asarray(x) for x in case.inputs))
    with np.errstate(all="ignore"):
        wanted = case.wanted(*case.inputs, **case.params)
    if not isinstance(results, tuple | list):
        results, wanted = [results], [wanted]
    assert len(results) == len(wanted)
    for got, value in zip(results, wanted, strict=True):
        value = np.asarray(value)
        assert got.shape == value.shape
        assert got.dtype == value.dtype
        tolerance = case.rtol if got.dtype in dtypes.DIFFERENTIABLE else 0
        np.testing.assert_allclose(got, value, rtol=tolerance, atol=tolerance * 1e-3)

    floats = [x for x in case.inputs if x.dtype == np.float64]
    if row.gradient is None:
        tensors = [
            palto.asarray(x, requires_grad=x.dtype in dtypes.DIFFERENTIABLE) for x in case.inputs
        ]
        outputs = function(*tensors)
        assert not any(
            y.requires_grad for y in (outputs if isinstance(outputs, tuple) else [outputs])
        )
    elif floats and case.order:
        check_gradients(function, *case.inputs, order=case.order, step=case.step, rtol=case.rtol)
