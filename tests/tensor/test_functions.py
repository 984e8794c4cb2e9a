"""Every public function: values, gradients and gradients of gradients against PyTorch.

`CASES` names all functions of ``palto``; a test says so. What PyTorch lacks is compared with NumPy.
"""

import inspect
import math

import numpy as np
import pytest

import palto
from palto.backprop import gradients
from palto.tensor import dtypes
from palto.tensor.graph import Graph, Trace, resolve

_rng = np.random.default_rng(1)


def real(*shape):
    return _rng.normal(size=shape)


def unit(*shape):
    """Between -0.9 and 0.9."""
    return _rng.uniform(-0.9, 0.9, shape)


def positive(*shape):
    return np.abs(real(*shape)) + 0.3


def away(*shape):
    """At least 0.3 from zero, of both signs."""
    x = real(*shape)
    return x + np.copysign(0.3, x)


def apart(*shape):
    """No two elements closer than 0.1, in a random order."""
    n = math.prod(shape)
    return (_rng.permutation(n).reshape(shape) - n / 2) * 0.1 + 0.03


def whole(*shape, low=-9, high=9, dtype=np.int64):
    return _rng.integers(low, high, shape).astype(dtype)


def truth(*shape):
    return _rng.random(shape) < 0.5


def complexes(*shape):
    return (real(*shape) + 1j * real(*shape)).astype(np.complex64)


class Case:
    """One call.

    Args:
        theirs: the same from PyTorch's tensors, or from arrays if `order` is None.
        arrays: the inputs.
        order: how often to differentiate; None compares with NumPy.
        ours: what to call instead of the function itself.
        options: keyword arguments of the function.
    """

    def __init__(self, theirs, *arrays, order=2, ours=None, rtol=1e-9, **options):
        self.theirs, self.arrays, self.order = theirs, arrays, order
        self.ours, self.rtol, self.options = ours, rtol, options


def cases(theirs, *inputs, **options):
    """One case for each tuple of inputs."""
    return [Case(theirs, *(x if isinstance(x, tuple) else (x,)), **options) for x in inputs]


def unary(name, make, *extra):
    """A function of one tensor that PyTorch calls `name`."""
    shapes = [(3, 4), (), (1, 0, 2)]
    return cases(lambda x, *, torch: getattr(torch, name)(x), *(make(*s) for s in shapes), *extra)


def binary(name, left, right, *extra, **options):
    """A function of two tensors that PyTorch calls `name`, with broadcasting."""
    shapes = [((3, 4), (3, 4)), ((2, 1, 4), (3, 1)), ((), (2,)), ((0, 1), (1, 3)), ((), ())]
    return cases(
        lambda x, y, *, torch: getattr(torch, name)(x, y),
        *((left(*a), right(*b)) for a, b in shapes),
        *extra,
        **options,
    )


def spaced(*shape):
    """Numbers whose distances from whole ones are at least 0.1."""
    return np.round(real(*shape) * 3) + _rng.uniform(0.1, 0.4, shape)


def reduction(function, make, *, only_one=False, **options):
    """A reduction over one, several and all axes, with and without keepdims."""
    result = []
    for axis in [None, 0, -1, (0, 2), (-1, 0, 1)]:
        if only_one and isinstance(axis, tuple):
            continue
        for keepdims in (False, True):
            dim = axis if axis is not None else tuple(range(3))

            def theirs(x, *, torch, dim=dim, keepdims=keepdims):
                return function(torch, x, dim, keepdims)

            result.append(Case(theirs, make(2, 3, 4), axis=axis, keepdims=keepdims, **options))
    return result


def each_axis(function, make, **options):
    return [
        Case(lambda x, *, torch, a=axis: function(torch, x, a), make(2, 3, 4), axis=axis, **options)
        for axis in (0, 1, -1)
    ]


FLOATS = (np.float64([1.5, -0.0, np.inf, -np.inf, np.nan]),)
NUMBERS = [
    (whole(5), whole(5)),
    (np.uint8([250, 3]), np.uint8([9, 5])),
    (np.int8([120, 3]), np.int8([9, -5])),
]
EQUAL = [(whole(9, high=-6), whole(9, high=-6)), (np.float32([np.nan, 1]), np.float32([np.nan, 1]))]

CASES = {
    # elementwise
    "abs": unary("abs", away, whole(5), complexes(4)),
    "acos": unary("acos", unit),
    "acosh": unary("acosh", lambda *s: positive(*s) + 1),
    "add": binary("add", real, real, *NUMBERS, (complexes(2), complexes(3, 1))),
    "asin": unary("asin", unit),
    "asinh": unary("asinh", real, real(5) * 100, np.array([0.0])),
    "astype": cases(lambda x, *, torch: x.to(torch.float32), real(3), rtol=1e-6, dtype="float32")
    + cases(lambda x, *, torch: x.to(torch.int64), real(9) * 9, dtype=int)
    + cases(lambda x, *, torch: x.to(torch.complex64), np.float32([1, 2]), dtype=complex),
    "atan": unary("atan", real),
    "atan2": binary("atan2", real, away),
    "atanh": unary("atanh", unit),
    "bitwise_and": binary("bitwise_and", whole, whole, (truth(9), truth(9))),
    "bitwise_invert": unary("bitwise_not", whole, truth(5), np.uint8([0, 7])),
    "bitwise_left_shift": binary("bitwise_left_shift", whole, lambda *s: whole(*s, low=0)),
    "bitwise_or": binary("bitwise_or", whole, whole, (truth(9), truth(9))),
    "bitwise_right_shift": binary("bitwise_right_shift", whole, lambda *s: whole(*s, low=0)),
    "bitwise_xor": binary("bitwise_xor", whole, whole, (truth(9), truth(9))),
    "ceil": unary("ceil", spaced, FLOATS, whole(3)),
    "clip": cases(lambda x, *, torch: torch.clamp(x, -0.5, 0.7), real(3, 4), min=-0.5, max=0.7)
    + cases(lambda x, *, torch: torch.clamp(x, max=2), whole(9), real(3), max=2)
    + cases(lambda x, *, torch: torch.clamp(x, min=0.0), FLOATS[0][:4], min=0.0)
    + cases(
        lambda x, a, b, *, torch: torch.clamp(x, a, b), (real(2, 3), -positive(3), positive(1))
    ),
    "complex": cases(
        lambda x, y, *, torch: torch.complex(x, y), (np.float32([1, 2]), np.float32([3, 4]))
    ),
    "conj": cases(
        lambda x, *, torch: torch.conj(x), complexes(3), np.float64([1, 2]), rtol=1e-6
    ),
    "cos": unary("cos", real),
    "cosh": unary("cosh", real, np.array([0.0])),
    "detach": cases(lambda x, *, torch: x.detach(), real(3)),
    "divide": binary("divide", real, away, (complexes(3), complexes(3))),
    "equal": binary("eq", real, real, *EQUAL, (truth(9), truth(9))),
    "erf": unary("erf", real),
    "exp": unary("exp", real, complexes(3)),
    "expm1": unary("expm1", real),
    "floor": unary("floor", spaced, FLOATS, whole(3)),
    "floor_divide": binary(
        "floor_divide", spaced, lambda *s: away(*s) * 2, (whole(9), whole(9, low=1)), order=0
    ),
    "greater": binary("gt", real, real, *EQUAL),
    "greater_equal": binary("ge", real, real, *EQUAL),
    "imag": cases(lambda x, *, torch: torch.imag(x), complexes(2, 3), complexes(), rtol=1e-6),
    "isfinite": unary("isfinite", real, FLOATS, whole(3), truth(3), np.complex64([np.inf, 1j])),
    "isinf": unary("isinf", real, FLOATS, whole(3), truth(3), np.complex64([np.inf * 1j, 1j])),
    "isnan": unary("isnan", real, FLOATS, whole(3), truth(3), np.complex64([np.nan, 1j])),
    "less": binary("lt", real, real, *EQUAL, (truth(9), truth(9))),
    "less_equal": binary("le", real, real, *EQUAL, (truth(9), truth(9))),
    "log": unary("log", positive),
    "log10": unary("log10", positive),
    "log1p": unary("log1p", unit),
    "log2": unary("log2", positive),
    "logical_and": binary("logical_and", truth, truth),
    "logical_not": unary("logical_not", truth),
    "logical_or": binary("logical_or", truth, truth),
    "logical_xor": binary("logical_xor", truth, truth),
    "maximum": binary("maximum", real, real, *NUMBERS),
    "minimum": binary("minimum", real, real, *NUMBERS),
    "multiply": binary("multiply", real, real, *NUMBERS, (complexes(2), complexes(3, 1))),
    "negative": unary("negative", real, whole(3), complexes(2)),
    "not_equal": binary("ne", real, real, *EQUAL),
    "positive": unary("positive", real, whole(3)),
    "pow": binary("pow", positive, real, (whole(4), whole(4, low=0, high=5)))
    + [
        Case(lambda x, *, torch, p=p: x**p, real(5), ours=lambda x, p=p: palto.pow(x, p))
        for p in (0, 1, 2, 3, 4, -1, -2, 2.0)
    ]
    + [
        Case(lambda x, *, torch, p=p: x**p, positive(5), ours=lambda x, p=p: palto.pow(x, p))
        for p in (0.5, -0.5, 1.7)
    ]
    + [Case(lambda x, *, torch: 2**x, real(4), ours=lambda x: palto.pow(2, x))],
    "real": cases(lambda x, *, torch: torch.real(x), complexes(2, 3), real(3), rtol=1e-6),
    "reciprocal": unary("reciprocal", away),
    "remainder": binary("remainder", spaced, lambda *s: away(*s) * 2, (whole(9), whole(9, low=1))),
    "round": unary("round", spaced, FLOATS, np.array([0.5, 1.5, -2.5]), whole(3)),
    "rsqrt": unary("rsqrt", positive),
    "sign": unary("sign", away, np.array([0.0]), whole(5), np.uint8([0, 9])),
    "sin": unary("sin", real),
    "sinh": unary("sinh", real),
    "sqrt": unary("sqrt", positive),
    "square": unary("square", real, whole(3)),
    "subtract": binary("subtract", real, real, *NUMBERS[:1], (complexes(2), complexes(3, 1))),
    "tan": unary("tan", unit),
    "tanh": unary("tanh", real),
    "trunc": unary("trunc", spaced, FLOATS),
    "where": cases(
        lambda c, x, y, *, torch: torch.where(c, x, y),
        (truth(3, 4), real(3, 4), real(3, 4)),
        (truth(2, 1, 1), real(3, 1), real(4)),
        (truth(), real(2), real()),
        (truth(4), whole(4), whole(4)),
    ),
    # reductions
    "sum": reduction(lambda torch, x, d, k: torch.sum(x, d, keepdim=k), real)
    + cases(
        lambda x, *, torch: x.sum(), truth(9), np.int8([100, 100]), real(), real(0), complexes(3)
    ),
    "mean": reduction(lambda torch, x, d, k: torch.mean(x, d, keepdim=k), real)
    + cases(lambda x, *, torch: x.mean(), real(), real(0), complexes(3), rtol=1e-6),
    "var": [
        *reduction(lambda torch, x, d, k: torch.var(x, d, correction=0, keepdim=k), real),
        Case(lambda x, *, torch: x.var(1, correction=1), real(2, 3), axis=1, correction=1),
        Case(lambda x, *, torch: x.var(correction=0), complexes(5), rtol=1e-5),
    ],
    "std": [
        *reduction(lambda torch, x, d, k: torch.std(x, d, correction=0, keepdim=k), real),
        Case(lambda x, *, torch: x.std(1, correction=1), real(2, 3), axis=1, correction=1),
    ],
    "max": reduction(lambda torch, x, d, k: torch.amax(x, d, keepdim=k), apart)
    + cases(lambda x, *, torch: torch.amax(x), whole(5, dtype=np.uint8), real(), truth(4)),
    "min": reduction(lambda torch, x, d, k: torch.amin(x, d, keepdim=k), apart)
    + cases(lambda x, *, torch: torch.amin(x), whole(5, dtype=np.int8), real()),
    "any": reduction(lambda torch, x, d, k: torch.any(x, d, keepdim=k), truth)
    + cases(lambda x, *, torch: torch.any(x), whole(5), np.zeros(3), truth(0)),
    "all": reduction(lambda torch, x, d, k: torch.all(x, d, keepdim=k), truth)
    + cases(lambda x, *, torch: torch.all(x), whole(5), np.ones(3), truth(0)),
    "prod": reduction(lambda torch, x, d, k: torch.prod(x, d, keepdim=k), real, only_one=True)[2:]
    + cases(lambda x, *, torch: torch.prod(x), real(7), real(2, 3), real(), whole(5), truth(3)),
    "logsumexp": reduction(lambda torch, x, d, k: torch.logsumexp(x, d, keepdim=k), real)
    + cases(
        lambda x, *, torch: torch.logsumexp(x, 0),
        np.array([1000.0, 999.0]),
        np.array([-1000.0, -np.inf]),
    ),
    "argmax": each_axis(lambda torch, x, a: torch.argmax(x, a), real)
    + cases(lambda x, *, torch: torch.argmax(x), real(3, 4), real(), whole(4)),
    "argmin": each_axis(lambda torch, x, a: torch.argmin(x, a), real)
    + cases(
        lambda x, *, torch: torch.argmin(x), real(3, 4), real(), whole(4), np.uint8([3, 0, 9])
    ),
    "cumulative_sum": each_axis(lambda torch, x, a: torch.cumsum(x, a), real)
    + cases(lambda x, *, torch: torch.cumsum(x, 0), truth(5), np.int8([100, 100]), real(0)),
    "sort": each_axis(lambda torch, x, a: torch.sort(x, a).values, apart)
    + cases(
        lambda x, *, torch: torch.sort(x, descending=True).values, real(5), FLOATS, descending=True
    ),
    "argsort": each_axis(lambda torch, x, a: torch.argsort(x, dim=a, stable=True), real)
    + cases(
        lambda x, *, torch: torch.argsort(x, descending=True, stable=True),
        whole(30, high=-6),
        FLOATS,
        descending=True,
    ),
    "top_k": each_axis(lambda torch, x, a: tuple(torch.topk(x, 2, a)), real, k=2),
    "median": cases(lambda x, *, torch: torch.quantile(x, 0.5, 1), real(2, 5), real(2, 4), axis=1),
    # linear algebra
    "matmul": cases(
        lambda a, b, *, torch: torch.matmul(a, b),
        (real(3, 4), real(4, 2)),
        (real(4), real(4)),
        (real(4), real(4, 2)),
        (real(3, 4), real(4)),
        (real(2, 3, 4), real(4, 5)),
        (real(2, 3, 4), real(4)),
        (real(4), real(2, 4, 3)),
        (real(2, 1, 3, 4), real(5, 4, 2)),
        (real(3, 4), real(2, 4, 2)),
        (real(0, 3, 4), real(4, 2)),
        (real(2, 3, 0), real(0, 2)),
        (whole(2, 3), whole(3, 2)),
        (complexes(2, 3), complexes(3, 2)),
    ),
    "outer": cases(
        lambda x, y, *, torch: torch.outer(x, y), (real(3), real(4)), (real(0), real(2))
    ),
    "vecdot": cases(
        lambda x, y, *, torch: torch.linalg.vecdot(x, y),
        (real(2, 3), real(3)),
        (complexes(3), complexes(3)),
        rtol=1e-6,
    )
    + cases(
        lambda x, y, *, torch: torch.linalg.vecdot(x, y, dim=0), (real(3, 2), real(3, 1)), axis=0
    ),
    "tensordot": cases(
        lambda x, y, *, torch: torch.tensordot(x, y, 2), (real(2, 3, 4), real(3, 4, 5))
    )
    + cases(lambda x, y, *, torch: torch.tensordot(x, y, 0), (real(2), real(3)), axes=0)
    + cases(
        lambda x, y, *, torch: torch.tensordot(x, y, ([0, 2], [1, 0])),
        (real(2, 3, 4), real(4, 2)),
        axes=([0, -1], [1, 0]),
    ),
    "einsum": [
        Case(
            lambda *xs, torch, e=equation: torch.einsum(e, *xs),
            *(
                real(*("bijkl".index(c) + 2 for c in term))
                for term in equation.split("->")[0].split(",")
            ),
            ours=lambda *xs, e=equation: palto.einsum(e, *xs),
        )
        for equation in [
            "ij,jk->ik", "bij,bjk->bik", "ij,ij->", "i,j->ij", "ij->ji", "ij->", "ij->i", "b,b->b",
            "ij,jk", "bij,kj,b->ki", "ijk,il,jb->kbl", "ij,j->i", "i,i", "bi,bj,bk->bijk",
            "ij,k->i",
        ]
    ],
    "vector_norm": reduction(
        lambda torch, x, d, k: torch.linalg.vector_norm(x, 2, d, keepdim=k), real
    )
    + [
        Case(
            lambda x, *, torch, p=p: torch.linalg.vector_norm(x, p, -1), apart(3, 4), axis=-1, ord=p
        )
        for p in (1, 3, 0.5, -1, 2.5, math.inf, -math.inf)
    ]
    + [
        Case(lambda x, *, torch: torch.linalg.vector_norm(x), complexes(3), rtol=1e-5),
        Case(
            lambda x, *, torch: torch.linalg.vector_norm(x, 0),
            np.array([0.0, 3.0, np.inf]),
            ord=0,
            order=0,
        ),
    ],
    "matrix_transpose": cases(lambda x, *, torch: x.mT, real(2, 3), real(2, 3, 4)),
    # shape
    "broadcast_to": cases(
        lambda x, *, torch: x.expand(2, 3, 4), real(4), real(3, 1), real(), shape=(2, 3, 4)
    )
    + cases(lambda x, *, torch: x.expand(0, 3), real(1, 3), shape=(0, 3)),
    "broadcast_arrays": cases(
        lambda *xs, torch: torch.broadcast_tensors(*xs), (real(3, 1), real(4), real(2, 1, 1))
    ),
    "reshape": cases(lambda x, *, torch: x.reshape(3, -1), real(2, 6), shape=(3, -1))
    + cases(lambda x, *, torch: x.reshape(-1), real(2, 6), real(), real(0, 3), shape=-1),
    "flatten": cases(lambda x, *, torch: x.flatten(1, -1), real(2, 3, 4), start_axis=1)
    + cases(lambda x, *, torch: x.flatten(), real(2, 3), real(), real(0)),
    "permute_dims": cases(lambda x, *, torch: x.permute(2, 0, 1), real(2, 3, 4), axes=(-1, 0, 1)),
    "moveaxis": cases(
        lambda x, *, torch: x.moveaxis(0, -1), real(2, 3, 4), source=0, destination=-1
    ),
    "expand_dims": each_axis(lambda torch, x, a: x.unsqueeze(a), real),
    "squeeze": cases(lambda x, *, torch: x.squeeze(1), real(2, 1, 3, 1), axis=1)
    + cases(lambda x, *, torch: x.squeeze((1, 3)), real(2, 1, 3, 1), axis=(1, -1)),
    "flip": each_axis(lambda torch, x, a: x.flip(a), real)
    + cases(lambda x, *, torch: x.flip((0, 1)), real(2, 3)),
    "roll": [
        Case(lambda x, *, torch, n=n: x.roll(n, 1), real(2, 5), shift=n, axis=1)
        for n in (0, 2, -1, 7, -12)
    ]
    + cases(lambda x, *, torch: x.roll(2, 0), real(0, 2), shift=2, axis=0),
    "concat": [
        Case(
            lambda *xs, torch: torch.cat(xs, 1),
            real(2, 3),
            real(2, 0),
            real(2, 1),
            ours=lambda *xs: palto.concat(xs, axis=-1),
        ),
        Case(
            lambda *xs, torch: torch.cat(xs),
            whole(3, dtype=np.int8),
            whole(2, dtype=np.int32),
            ours=lambda *xs: palto.concat(xs),
        ),
    ],
    "stack": [
        Case(
            lambda *xs, torch, a=axis: torch.stack(xs, a),
            real(2, 3),
            real(2, 3),
            ours=lambda *xs, a=axis: palto.stack(xs, axis=a),
        )
        for axis in (0, 1, -1)
    ],
    "split": cases(lambda x, *, torch: x.split(2, 1), real(3, 4), sections=2, axis=1)
    + cases(lambda x, *, torch: x.split([1, 0, 3]), real(4, 2), sections=[1, 0, 3]),
    "unstack": each_axis(lambda torch, x, a: x.unbind(a), real),
    "repeat": each_axis(lambda torch, x, a: x.repeat_interleave(2, a), real, repeats=2),
    "tile": [
        Case(lambda x, *, torch, n=n: x.tile(n), real(2, 3), repetitions=n)
        for n in [(2,), (2, 1), (3, 1, 2), (0, 2)]
    ],
    "pad": [
        Case(
            lambda x, *, torch: torch.nn.functional.pad(x, (2, 1, 0, 3), value=0.5),
            real(2, 3),
            widths=[(0, 3), (2, 1)],
            value=0.5,
        )
    ],
    "tril": [
        Case(lambda x, *, torch, k=k: x.tril(k), real(2, 3, 4), k=k) for k in (0, 1, -2)
    ],
    "triu": [Case(lambda x, *, torch, k=k: x.triu(k), real(2, 3, 4), k=k) for k in (0, 1, -2)],
    # indexing
    "take": [
        Case(
            lambda x, *, torch, i=i, a=axis: torch.stack(
                [x.select(a, int(n)) for n in i.reshape(-1)], a
            ),
            real(3, 4),
            indices=i,
            axis=axis,
        )
        for i, axis in [(np.array([2, 0, 0]), 0), (np.uint8([3, 3]), -1)]
    ],
    "take_along_axis": [
        Case(
            lambda x, *, torch, i=i, a=axis: torch.take_along_dim(x, torch.tensor(i), a),
            real(3, 4),
            indices=i,
            axis=axis,
        )
        for i, axis in [(whole(2, 4, low=0, high=3), 0), (whole(3, 6, low=0, high=4), -1)]
    ],
    "scatter_add": [
        Case(
            lambda u, *, torch: torch.zeros(4, 2, dtype=u.dtype).index_add(
                0, torch.tensor([3, 0, 3]), u
            ),
            real(3, 2),
            ours=lambda u: palto.scatter_add(np.array([3, 0, 3]), u, size=4),
        ),
        Case(
            lambda u, *, torch: torch.zeros(2, 4, dtype=u.dtype).index_add(
                1, torch.tensor([3, 0, 3]), u
            ),
            real(2, 3),
            ours=lambda u: palto.scatter_add([3, 0, 3], u, size=4, axis=-1),
        ),
    ],
    "nonzero": cases(lambda x, *, torch: torch.nonzero(x, as_tuple=True), truth(3, 4), whole(9)),
    "one_hot": cases(
        lambda x, *, torch: torch.nn.functional.one_hot(x, 5),
        whole(3, 2, low=0, high=5),
        classes=5,
        dtype="int64",
    ),
    "dynamic_slice": [
        Case(
            lambda x, *, torch: x[1:3, 2:3],
            real(4, 5),
            ours=lambda x: palto.dynamic_slice(x, [1, 2], (2, 1)),
        )
    ],
    "dynamic_update_slice": [
        Case(
            lambda x, u, *, torch: torch.slice_scatter(x, u, 0, 1, 3),
            real(4, 5),
            real(2, 5),
            ours=lambda x, u: palto.dynamic_update_slice(x, u, (1, 0)),
        )
    ],
    # control
    "checkpoint": [
        Case(
            lambda x, *, torch: torch.sin(x) * x,
            real(3),
            ours=lambda x: palto.checkpoint(lambda y: palto.sin(y) * y, x),
        )
    ],
    "composite": [
        Case(
            lambda x, *, torch: torch.sin(x) * x,
            real(3),
            ours=lambda x: palto.composite(lambda y: palto.sin(y) * y)(x),
        )
    ],
    "scan": [
        Case(
            lambda x, *, torch: torch.cumprod(x, 0),
            real(4),
            ours=lambda x: palto.scan(
                lambda c, e: (c * e, c * e), np.array(1.0), x
            )[1],
        )
    ],
    # making
    "arange": [
        Case(lambda a=a: np.arange(*a), order=None,
             ours=lambda a=a: palto.arange(*a))
        for a in [(5,), (2, 9, 3), (9, 2, -3), (3, 3), (5, 2)]
    ],
    "asarray": [Case(lambda x: x, x, order=None) for x in (real(2, 3), truth(3), real())],
    "eye": [
        Case(lambda n=n, m=m, k=k: np.eye(n, m, k, np.float32), order=None,
             ours=lambda n=n, m=m, k=k: palto.eye(n, m, k=k))
        for n, m, k in [(3, None, 0), (2, 4, 1), (4, 2, -1), (0, 3, 0)]
    ],
    "full": [
        Case(lambda: np.float32([[7.5] * 3] * 2), order=None, ours=lambda: palto.full((2, 3), 7.5)),
        Case(lambda: np.full(4, 7), order=None, ours=lambda: palto.full(4, 7)),
        Case(lambda: np.full((), True), order=None, ours=lambda: palto.full((), True)),
        Case(lambda: np.complex64([1j]), order=None, ours=lambda: palto.full((1,), 1j)),
        Case(lambda x, *, torch: x.expand(2, 3), real(), ours=lambda x: palto.full((2, 3), x)),
    ],
    "full_like": [Case(lambda x: np.full_like(x, 3), x, order=None, fill_value=3)
                  for x in (real(2, 3), whole(3))],
    "linspace": [
        Case(lambda a=a: np.linspace(*a, dtype=np.float32), order=None,
             ours=lambda a=a: palto.linspace(*a), rtol=1e-6)
        for a in [(0, 1, 5), (3, -2, 7), (2, 5, 1), (2, 5, 0), (2.5, 2.5, 3)]
    ],
    "ones": [Case(lambda: np.ones((2, 0), "f"), order=None, ours=lambda: palto.ones((2, 0)))],
    "ones_like": [Case(np.ones_like, whole(3), order=None)],
    "zeros": [Case(lambda: np.zeros(3, bool), order=None, ours=lambda: palto.zeros(3, dtype=bool))],
    "zeros_like": [Case(np.zeros_like, real(2, 1), order=None)],
    # fft is in test_fourier.py, conv in test_convolution.py, the rest in files of their own
    "broadcast_shapes": [], "conv": [], "is_grad_enabled": [], "no_grad": [],
    "set_grad_enabled": [], "manual_seed": [], "result_dtype": [], "grad": [], "value_and_grad": [],
}  # fmt: skip


def test_every_public_function_has_a_case():
    public = {
        name
        for name, value in vars(palto).items()
        if not name.startswith("_") and inspect.isfunction(value)
    }
    compiler = {"compile", "get_num_threads", "set_num_threads"}  # in tests/compiler
    assert set(CASES) == public - compiler


NUMBERED = [
    pytest.param(name, case, id=f"{name}-{number}")
    for name, listed in CASES.items()
    for number, case in enumerate(listed)
]


@pytest.mark.parametrize(("name", "case"), NUMBERED)
def test_function(torch, check_as_torch, name, case):
    function = case.ours or getattr(palto, name)

    def ours(*tensors):
        return function(*tensors, **case.options)

    if case.order is None:
        got, wanted = ours(*case.arrays), np.asarray(case.theirs(*case.arrays))
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(got, wanted, rtol=case.rtol)
        return
    single = any(x.dtype in (np.float32, np.complex64) for x in case.arrays)
    tolerance = max(case.rtol, 1e-5) if single else case.rtol
    check_as_torch(
        ours,
        lambda *xs: case.theirs(*xs, torch=torch),
        *case.arrays,
        order=case.order,
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("name", [n for n, listed in CASES.items() if listed])
def test_arrays_are_taken_too(name):
    """What takes a tensor takes a NumPy array."""
    for case in CASES[name]:
        function = case.ours or getattr(palto, name)
        got = function(*case.arrays, **case.options)
        wanted = function(*map(palto.asarray, case.arrays), **case.options)
        for a, b in zip(
            *([x] if isinstance(x, palto.Tensor) else x for x in (got, wanted)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


#: What looks at values, or takes arrays only.
UNTRACED = {"nonzero", "asarray"}


@pytest.mark.parametrize(("name", "case"), [p for p in NUMBERED if p.values[0] not in UNTRACED])
def test_a_trace_means_the_same(name, case):
    """Values, gradients and their gradients, recorded as a graph and run."""
    function = case.ours or getattr(palto, name)
    moving = [x.dtype in dtypes.DIFFERENTIABLE for x in case.arrays]

    def derivatives(tensors):
        result = function(*tensors, **case.options)
        ys = list(result) if isinstance(result, tuple | list) else [result]
        inputs = [x for x, moves in zip(tensors, moving, strict=True) if moves]
        everything = list(ys)
        for time in range(2):
            ys = [y for y in ys if y.requires_grad]
            starts = [palto.sin(palto.arange(float(y.size))).reshape(y.shape) for y in ys]
            starts = [s.astype(y.dtype) for s, y in zip(starts, ys, strict=True)]
            found = gradients(ys, starts, inputs, create_graph=time == 0)
            ys = [
                palto.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)
            ]
            everything += ys
        return everything

    eager = derivatives(
        [palto.asarray(x, requires_grad=m) for x, m in zip(case.arrays, moving, strict=True)]
    )
    trace = Trace()
    with trace.active():
        inputs = [
            trace.placeholder(x.shape, x.dtype, requires_grad=m)
            for x, m in zip(case.arrays, moving, strict=True)
        ]
        outputs = [resolve(y) for y in derivatives(inputs)]
    graph = Graph.reaching(inputs, outputs, trace.tensors)
    got = graph.evaluate(*(np.asarray(x) for x in case.arrays))
    assert len(got) == len(eager)
    for a, b in zip(got, eager, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        tolerance = 1e-5 if a.dtype in (np.float32, np.complex64) else 1e-9
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
