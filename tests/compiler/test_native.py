"""Programs against the same functions run at once: every primitive, layer and model.

Whatever runs a program, it must compute what NumPy computes, to rounding; give the same bits with
any number of threads; refuse what NumPy refuses and leave every cell as it was; and never hand out
memory that a later call writes to.

A test that takes `executor` runs by each of them, by XLA on a part of its examples.
"""

import gc
import math
import os
import resource
import sys
import threading

import numpy as np
import pytest

import palto
from palto import nn, optim, signal
from palto.nn import functional as F
from palto.tensor import dtypes
from palto.tensor.graph import apply, check
from palto.tensor.primitives import TABLE, control
from palto.tensor.tree import flatten

THREADS = (1, 2, 3)


@pytest.fixture(autouse=True)
def same_numbers_and_threads(monkeypatch):
    """The same random numbers whatever ran before, and the same threads afterwards."""
    monkeypatch.delenv("PALTO_THREADS", raising=False)  # goes before palto.set_num_threads
    global _random
    _random = np.random.default_rng(5)
    before = palto.get_num_threads()
    yield
    palto.set_num_threads(before)


def values(result):
    """All tensors of a result as arrays."""
    return [np.array(leaf.array()) for leaf in flatten(result)[0] if isinstance(leaf, palto.Tensor)]


def assert_close(got, wanted, name="", rtol=2e-5):
    """Equal whole numbers and bools; floats close for their own size and a bit for the largest's.

    Denormals may be zero.
    """
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype), name
    if wanted.dtype.kind in "biu" or wanted.size == 0:
        np.testing.assert_array_equal(got, wanted, err_msg=name)
        return
    if wanted.dtype in dtypes.STORAGE:
        got, wanted = got.astype(np.float32), wanted.astype(np.float32)
    rtol = rtol if wanted.dtype.itemsize < 8 or wanted.dtype.kind == "c" else rtol * 1e-7
    sizes = np.abs(wanted[np.isfinite(wanted)])
    atol = 0.3 * rtol * float(sizes.max(initial=0)) + 1.2e-38
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol, err_msg=name)


def assert_same_bits(first, second, name=""):
    for one, two in zip(first, second, strict=True):
        assert one.dtype == two.dtype
        assert one.tobytes() == two.tobytes(), f"{name}: other bits with other threads"


def with_each_thread_count(run):
    """What `run` gives with one thread, after it gave the same bits with all other counts.

    XLA has threads of its own: there it runs twice, and what it gave first must stay.
    """
    if is_xla():
        first = run()
        assert_same_bits(first, run())
        return first
    results = []
    for count in THREADS:
        palto.set_num_threads(count)
        results.append(run())
    for other in results[1:]:
        assert_same_bits(results[0], other)
    return results[0]


def is_xla():
    return os.environ.get("PALTO_EXECUTOR") == "xla"


# --- Every primitive -----------------------------------------------------------------------------

#: Lengths around those of vectors, and none.
SHAPES = [(), (1,), (7,), (16, 3), (2, 1, 33), (0, 4), (3, 0), (1, 1, 1, 1), (5, 64), (40, 129)]

FLOATS = ("float32", "float64")
INTEGERS = ("int8", "int32", "int64", "uint8", "uint32")
REAL = (*INTEGERS, *FLOATS)
NUMERIC = (*REAL, "complex64")
ANY = (*NUMERIC, "bool", "float16", "bfloat16")
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, np.inf, -np.inf, np.nan, 1e-30, -1e30, 1e4]

_random = np.random.default_rng(5)  # anew for every test


def numbers(dtype, shape, low=-4.0, high=4.0):
    """Random numbers; whole ones and unsigned ones within their range."""
    kind = dtypes.as_dtype(dtype)
    if dtype == "bool":
        return _random.random(shape) < 0.5
    if dtype in INTEGERS:
        return _random.integers(max(math.ceil(low), 0 if dtype[0] == "u" else -128),
                                math.floor(high) + 1, shape).astype(kind)  # fmt: skip
    values = _random.uniform(low, high, shape)
    if dtype == "complex64":
        values = values + 1j * _random.uniform(low, high, shape)
    return np.asarray(values).astype(kind)


def elementwise(inputs, kinds, low=-4.0, high=4.0, special=True, second=None):
    """Examples of an elementwise row: all shapes and dtypes, and special floats in all pairs.

    Args:
        inputs: how many.
        kinds: their dtypes.
        low: the smallest number.
        high: the largest.
        special: whether infinities and NaN belong to its examples.
        second: (low, high) of the second input, if different.
    """
    for dtype in kinds:
        for shape in SHAPES:
            ranges = [(low, high), *([second or (low, high)] * (inputs - 1))]
            yield [numbers(dtype, shape, *bounds) for bounds in ranges], {}
        if special and dtype in FLOATS:
            grids = np.meshgrid(*[SPECIAL] * inputs)
            yield [grid.astype(dtype) for grid in grids], {}
        if dtype in INTEGERS and high > 3 and second is None:
            info = np.iinfo(dtype)
            ends = [info.min, info.max, info.min + 1, 0, 1]
            yield [grid.astype(dtype) for grid in np.meshgrid(*[ends] * inputs)], {}


def whole_division():
    yield from elementwise(2, FLOATS, special=False)
    for dtype in INTEGERS:
        info = np.iinfo(dtype)
        divisors = [1, 2, 3, 100, *([-1, -3] if info.min else [])]
        left = [info.min, info.max, 7, 0, *([-7] if info.min else [])]
        yield [grid.astype(dtype) for grid in np.meshgrid(left, divisors)], {}


def reductions(kinds, least=0):
    for dtype in kinds:
        for shape in [(7,), (16, 3), (2, 5, 33), (4, 1, 3, 2), (130, 70), (1, 1)]:
            for axes in [(0,), (len(shape) - 1,), tuple(range(len(shape))), ()]:
                yield [numbers(dtype, shape)], {"axes": tuple(sorted(set(axes)))}
        if not least:
            yield [numbers(dtype, (0, 3))], {"axes": (0,)}
        yield [numbers(dtype, (0, 3))], {"axes": (1,)}
        yield [numbers(dtype, (3, 5, 7, 4))], {"axes": (0, 2)}
    if "float32" in kinds:
        yield [np.float32([[1, np.nan, 3], [4, 5, np.inf]])], {"axes": (1,)}
        yield [numbers("float32", (300, 1000))], {"axes": (0,)}
        yield [numbers("float32", (300, 1000))], {"axes": (0, 1)}


def movements(params):
    """For each dtype the examples (shape, parameters)."""
    for dtype in ANY:
        for shape, one in params:
            yield [numbers(dtype, shape)], one


def concatenations():
    for dtype in ANY:
        for shapes, axis in [
            ([(2, 3), (1, 3), (4, 3)], 0),
            ([(2, 3), (2, 0), (2, 17)], 1),
            ([(3, 2, 5), (3, 1, 5)], 1),
            ([(0,), (0,)], 0),
        ]:
            yield [numbers(dtype, shape) for shape in shapes], {"axis": axis}


def matrices():
    for dtype in ("float32", "float64", "int32", "int64", "complex64"):
        for left, right in [
            ((3, 4), (4, 2)), ((1, 1), (1, 1)), ((17, 33), (33, 65)), ((64, 100), (100, 31)),
            ((2, 3, 4), (2, 4, 1)), ((2, 1, 3, 4), (2, 1, 4, 5)), ((3, 0), (0, 2)),
            ((0, 3), (3, 2)), ((1, 129), (129, 1)), ((129, 1), (1, 129)), ((5, 8, 1), (5, 1, 8)),
        ]:  # fmt: skip
            yield [numbers(dtype, left), numbers(dtype, right)], {}


def convolutions():
    def one(
        x, w, stride=None, padding=None, gaps=None, kernel_gaps=None, groups=1, dtype="float32"
    ):
        dims = len(x) - 2
        return [numbers(dtype, x), numbers(dtype, w)], {
            "stride": stride or (1,) * dims, "padding": padding or ((0, 0),) * dims,
            "input_dilation": gaps or (1,) * dims, "kernel_dilation": kernel_gaps or (1,) * dims,
            "groups": groups,
        }  # fmt: skip

    yield one((2, 5, 3), (3, 3, 4))
    yield one((2, 6, 3), (2, 3, 4), (2,), ((1, 0),), dtype="float64")
    yield one((1, 8, 2), (2, 2, 2), (2,), ((-3, 4),))
    yield one((1, 6, 2), (3, 2, 2), (2,), ((1, 3),), (3,), (2,))
    yield one((2, 9, 9, 3), (3, 3, 3, 8), padding=((1, 1), (1, 1)))
    yield one((2, 9, 9, 16), (3, 3, 16, 17), (2, 2), ((1, 1), (1, 1)))
    yield one((1, 23, 23, 3), (11, 11, 3, 16), (4, 4), ((2, 2), (2, 2)))
    yield one((2, 7, 7, 8), (1, 1, 8, 5))
    yield one((2, 5, 5, 4), (3, 3, 2, 6), groups=2, padding=((1, 1), (1, 1)))
    yield one((2, 5, 5, 6), (3, 3, 1, 6), groups=6)
    yield one((2, 5, 5, 3), (3, 3, 1, 6), (2, 1), groups=3, kernel_gaps=(1, 2))
    yield one((1, 4, 5, 3, 2), (2, 2, 1, 2, 3), (1, 2, 1), ((1, 0), (0, 1), (0, 0)))
    yield one((0, 4, 2), (2, 2, 3))
    yield one((2, 4, 0), (2, 0, 3))
    yield one((1, 1, 1), (1, 1, 1))


POOLS = [
    ((2, 6, 3), (2,), (2,), ((0, 0),)),
    ((2, 7, 2), (3,), (2,), ((1, 1),)),
    ((1, 8, 17), (3,), (3,), ((1, 0),)),
    ((2, 5, 4, 2), (2, 3), (1, 2), ((1, 0), (0, 1))),
    ((2, 9, 9, 16), (3, 3), (2, 2), ((0, 0), (0, 0))),
    ((1, 4, 4, 1), (2, 2), (3, 3), ((0, 0), (0, 0))),
    ((1, 3, 4, 3, 2), (2, 2, 3), (1, 2, 1), ((0, 0), (1, 0), (1, 1))),
]


def pools(kind):
    for dtype in FLOATS:
        for shape, window, stride, padding in POOLS:
            x = numbers(dtype, shape)
            params = {"window": window, "stride": stride, "padding": padding}
            if kind == "sum":
                yield [x], {**params, "input_dilation": (1,) * len(window)}
                continue
            found, places = TABLE["window_max"].numpy(x, **params)
            if kind == "max":
                yield [x], params
            elif kind == "take":
                yield [x, places], params
            else:
                yield [numbers(dtype, found.shape), places], {**params, "space": shape[1:-1]}
    if kind == "max":
        yield [np.float32([[[1], [np.nan], [3], [-np.inf], [-np.inf], [-np.inf]]])], {
            "window": (3,), "stride": (3,), "padding": ((0, 0),)
        }  # fmt: skip
    if kind == "sum":
        yield [numbers("float32", (2, 4, 2))], {
            "window": (2,), "stride": (2,), "padding": ((-1, 3),), "input_dilation": (3,)
        }  # fmt: skip


def index(shape, high, dtype="int64"):
    return _random.integers(0, high, shape).astype(dtype)


def gathers():
    for dtype in ANY:
        yield [numbers(dtype, (4, 3)), np.array([0, 3, 3, 0, 1])], {"axis": 0, "role": "index"}
    for shape, indices, axis in [
        ((2, 4, 3), [index((2, 2), 4, "int32")], 1),
        ((2, 4), [index(5, 4, "uint8")], 1),
        ((2, 3, 4), [index(6, 2), index(6, 3)], 0),
        ((2, 3, 4), [index((2, 5), 3), index((2, 5), 4)], 1),
        ((4, 3), [np.array(2)], 0),
        ((4, 3), [np.zeros((0, 2), np.int64)], 0),
        ((0, 3), [np.zeros(0, np.int64)], 0),
        ((100, 65), [index(300, 100)], 0),
    ]:
        yield [numbers("float32", shape), *indices], {"axis": axis, "role": "index"}


def scatters():
    for dtype in NUMERIC:
        yield [numbers(dtype, (5, 3)), np.array([0, 3, 3, 0, 1])], {
            "sizes": (4,), "axis": 0, "role": "index"
        }  # fmt: skip
    for shape, indices, sizes, axis in [
        ((2, 3, 2, 5), [index((3, 2), 4)], (4,), 1),
        ((6, 4), [index(6, 2), index(6, 3)], (2, 3), 0),
        ((), [np.array(2)], (4,), 0),
        ((0, 3), [np.zeros(0, np.int64)], (4,), 0),
        ((5, 0), [index(5, 4)], (4,), 0),
        ((2000, 33), [index(2000, 7)], (7,), 0),
        ((2000,), [index(2000, 500)], (500,), 0),
    ]:
        yield [numbers("float32", shape), *indices], {
            "sizes": sizes, "axis": axis, "role": "index"
        }  # fmt: skip


def orders(kinds, empty=True):
    for dtype in kinds:
        for shape, axis in [((5,), 0), ((3, 4), 0), ((2, 33, 4), 1), ((1,), 0), ((2, 300), 1)]:
            yield [numbers(dtype, shape)], {"axis": axis}
        if empty:
            yield [numbers(dtype, (0, 2))], {"axis": 0}
    if "float32" in kinds and "complex64" not in kinds:
        for dtype in FLOATS:
            x = np.array([2.0, np.nan, -np.inf, 2.0, np.nan, np.inf, -0.0, 0.0], dtype)
            yield [x], {"axis": 0}


def transforms():
    for n in (1, 2, 3, 5, 8, 12, 16, 17, 31, 64, 100, 127, 256):
        for inverse in (False, True):
            yield [numbers("complex64", (3, n))], {"axis": 1, "inverse": inverse}
    yield [numbers("complex64", (8, 3))], {"axis": 0, "inverse": False}
    yield [numbers("complex64", (0, 3))], {"axis": 1, "inverse": True}


def casts():
    for source in ANY:
        for target in ANY:
            for shape in [(), (33,), (0, 2), (3, 17)]:
                high = 1 if target == "bool" else 100
                low = 0 if target[0] == "u" or target == "bool" else -100
                yield [numbers(source, shape, low, high)], {"dtype": dtypes.as_dtype(target)}
    half = np.array([0.5, 1.00390625, 1.01171875, -1.00390625, np.inf, np.nan, 3e38], np.float32)
    yield [half], {"dtype": dtypes.bfloat16}
    ties = [0.5, 1.00048828125, 1.00146484375, -1.00048828125, 6e-8, 65504, 65520, np.inf, np.nan]
    yield [np.array(ties, np.float32)], {"dtype": dtypes.float16}
    yield [np.array([-1.7, 1.7, -0.5, 0.5, 2.5])], {"dtype": dtypes.int32}


def wheres():
    for dtype in ANY:
        for shape in SHAPES:
            yield [numbers("bool", shape), numbers(dtype, shape), numbers(dtype, shape)], {}


def counts():
    for dtype in ANY:
        if dtype != "bool":
            yield [], {"shape": (4, 3), "axis": 0, "dtype": dtypes.as_dtype(dtype)}
            yield [], {"shape": (2, 33), "axis": 1, "dtype": dtypes.as_dtype(dtype)}
    yield [], {"shape": (2, 0), "axis": 1, "dtype": dtypes.int32}


def drawings():
    for state in [(0, 0), (7, 3), (-1, -1), (2**40 + 5, 2**35 + 1)]:
        for shape in [(6,), (), (2, 3), (0, 4), (1000, 33)]:
            yield [np.array(state)], {"shape": shape}


def dynamic_boxes(update):
    for dtype in ANY:
        for shape, starts, sizes, kind in [
            ((4, 5), (1, 0), (2, 5), "int64"),
            ((4, 5), (4, 2), (0, 3), "int32"),
            ((6,), (5,), (1,), "uint8"),
            ((), (), (), "int64"),
            ((3, 33, 2), (0, 16, 1), (3, 17, 1), "int64"),
        ]:
            x, where = numbers(dtype, shape), np.array(starts, kind)
            if update:
                yield [x, numbers(dtype, sizes), where], {}
            else:
                yield [x, where], {"sizes": sizes}


#: By the primitive's name: pairs of input arrays and parameters; None where a test below is of it.
EXAMPLES = {
    "negative": lambda: elementwise(1, NUMERIC),
    "sign": lambda: elementwise(1, REAL),
    "floor": lambda: elementwise(1, FLOATS),
    "round": lambda: elementwise(1, FLOATS),
    "exp": lambda: elementwise(1, (*FLOATS, "complex64")),
    "expm1": lambda: elementwise(1, FLOATS),
    "log": lambda: elementwise(1, FLOATS, 0.01, 90),
    "log1p": lambda: elementwise(1, FLOATS, -0.99, 9),
    "sqrt": lambda: elementwise(1, FLOATS, 0, 90),
    "sin": lambda: elementwise(1, FLOATS, -300, 300, special=False),
    "cos": lambda: elementwise(1, FLOATS, -300, 300, special=False),
    "tanh": lambda: elementwise(1, FLOATS),
    "erf": lambda: elementwise(1, FLOATS),
    "bitwise_invert": lambda: elementwise(1, (*INTEGERS, "bool")),
    "abs": lambda: elementwise(1, NUMERIC),
    "real": lambda: elementwise(1, ("complex64",)),
    "imag": lambda: elementwise(1, ("complex64",)),
    "cast": casts,
    "detach": lambda: elementwise(1, ANY),
    "add": lambda: elementwise(2, NUMERIC),
    "subtract": lambda: elementwise(2, NUMERIC),
    "multiply": lambda: elementwise(2, NUMERIC),
    "divide": lambda: elementwise(2, (*FLOATS, "complex64"), second=(1, 4)),
    "floor_divide": whole_division,
    "remainder": whole_division,
    "pow": lambda: [
        *elementwise(2, FLOATS, 0.1, 9, special=False, second=(-3, 3)),
        *elementwise(2, FLOATS, -3, 3, special=True, second=(2, 2)),
        *elementwise(2, INTEGERS, 0, 5, second=(0, 4)),
    ],
    "atan2": lambda: elementwise(2, FLOATS),
    "maximum": lambda: elementwise(2, REAL),
    "minimum": lambda: elementwise(2, REAL),
    "equal": lambda: elementwise(2, ANY, 0, 2),
    "less": lambda: elementwise(2, (*REAL, "bool")),
    "less_equal": lambda: elementwise(2, (*REAL, "bool")),
    "bitwise_and": lambda: elementwise(2, (*INTEGERS, "bool")),
    "bitwise_or": lambda: elementwise(2, (*INTEGERS, "bool")),
    "bitwise_xor": lambda: elementwise(2, (*INTEGERS, "bool")),
    "bitwise_left_shift": lambda: elementwise(2, INTEGERS, second=(0, 7)),
    "bitwise_right_shift": lambda: elementwise(2, INTEGERS, second=(0, 7)),
    "complex": lambda: elementwise(2, ("float32",)),
    "where": wheres,
    "sum": lambda: reductions(NUMERIC),
    "max": lambda: reductions((*REAL, "bool"), least=1),
    "min": lambda: reductions((*REAL, "bool"), least=1),
    "reshape": lambda: movements(
        [((2, 6), {"shape": (3, 4)}), ((), {"shape": (1, 1)}), ((0, 3), {"shape": (5, 0)})]
    ),
    "permute": lambda: movements(
        [
            ((2, 3, 4), {"axes": axes})
            for axes in [(2, 1, 0), (0, 2, 1), (1, 0, 2), (2, 0, 1), (1, 2, 0)]
        ]
        + [((33, 65), {"axes": (1, 0)}), ((0, 2), {"axes": (1, 0)})]
    ),
    "expand": lambda: movements(
        [
            ((), {"shape": (2, 3)}),
            ((3, 1), {"shape": (3, 17)}),
            ((1, 3), {"shape": (2, 5, 3)}),
            ((1, 3), {"shape": (0, 3)}),
        ]
    ),
    "pad": lambda: movements(
        [
            ((2, 3), {"low": (1, 0), "high": (0, 2), "interior": (0, 0), "value": 0}),
            ((2, 3), {"low": (0, 0), "high": (0, 0), "interior": (1, 2), "value": 1}),
            ((17,), {"low": (2,), "high": (1,), "interior": (3,), "value": 1}),
            ((0, 2), {"low": (1, 0), "high": (2, 0), "interior": (1, 0), "value": 1}),
            ((), {"low": (), "high": (), "interior": (), "value": 0}),
        ]
    ),
    "slice": lambda: movements(
        [
            ((5, 6), {"starts": (1, 0), "stops": (4, 6), "steps": (1, 2)}),
            ((5, 36), {"starts": (0, 2), "stops": (5, 36), "steps": (3, 3)}),
            ((5,), {"starts": (2,), "stops": (2,), "steps": (1,)}),
        ]
    ),
    "flip": lambda: movements([((2, 3, 9), {"axes": axes}) for axes in [(0,), (1, 2), (0, 1, 2)]]),
    "concat": concatenations,
    "dynamic_slice": lambda: dynamic_boxes(update=False),
    "dynamic_update_slice": lambda: dynamic_boxes(update=True),
    "iota": counts,
    "matmul": matrices,
    "conv": convolutions,
    "window_max": lambda: pools("max"),
    "window_take": lambda: pools("take"),
    "window_put": lambda: pools("put"),
    "window_sum": lambda: pools("sum"),
    "gather": gathers,
    "scatter_add": scatters,
    "sort": lambda: orders((*REAL, "bool")),
    "argmax": lambda: orders((*REAL, "bool"), empty=False),
    "cumulative_sum": lambda: orders(NUMERIC),
    "fft": transforms,
    "random_bits": drawings,
    "composite": None,
    "scan": None,
    "repeat": None,
}


def test_every_primitive_has_examples():
    assert set(EXAMPLES) == set(TABLE)


def test_every_primitive_has_a_row_for_xla():
    rows = pytest.importorskip("palto.compiler.xla.rows", reason="JAX is not installed")
    assert set(rows.TABLE) == set(TABLE)


#: So many examples of each primitive are run by XLA, which compiles more slowly.
XLA_EXAMPLES = 10


@pytest.mark.parametrize("name", [name for name, examples in EXAMPLES.items() if examples])
def test_primitive(name, executor):
    row = TABLE[name]
    examples = list(EXAMPLES[name]())
    if is_xla():
        examples = examples[:: -(-len(examples) // XLA_EXAMPLES)]
    for start in range(0, len(examples), 40):  # so many in one program
        part = examples[start : start + 40]
        parameters = [params for _, params in part]

        def function(*groups, parameters=parameters):
            return [
                apply(row, *group, **params)
                for group, params in zip(groups, parameters, strict=True)
            ]

        groups = [list(arrays) for arrays, _ in part]
        compiled = palto.compile(function)
        flat = with_each_thread_count(lambda c=compiled, g=groups: values(c(*g)))
        got = iter(flat)
        for arrays, params in part:
            wanted = apply(row, *(palto.asarray(array) for array in arrays), **params)
            for value in values(wanted):
                told = ", ".join(f"{array.dtype.name}{array.shape}" for array in arrays)
                assert_close(next(got), value, f"{name}({told}) {params}")


def run_both(function, *arrays, rtol=2e-5):
    """Compare the function compiled, with every number of threads, with itself at once."""
    wanted = values(function(*(palto.asarray(array) for array in arrays)))
    compiled = palto.compile(function)
    got = with_each_thread_count(lambda: values(compiled(*arrays)))
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, rtol=rtol)
    return got


def test_composite_and_checkpoint(executor):
    def function(x, y):
        results = control.call("body", lambda a, b: [palto.exp(a) * b, palto.sum(a, 0)], [x, y], {})
        again = palto.checkpoint(lambda a: palto.tanh(a @ a.T), x)
        slope = palto.grad(lambda a: palto.sum(palto.checkpoint(palto.sin, a) * y))(x)
        return *results, again, slope

    run_both(function, numbers("float32", (17, 5)), numbers("float32", (17, 5)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 9])
def test_scan(length, reverse, executor):
    weight = numbers("float32", (5, 5)) * 0.3

    def step(state, x):
        first, second = state
        first = palto.tanh(first @ palto.asarray(weight) + x)
        return (first, second + palto.sum(first)), (second, first * x)

    def function(first, second, xs):
        def loss(first, xs):
            (last, total), (_, outputs) = palto.scan(step, (first, second), xs, reverse=reverse)
            return palto.sum(last * last) + total * 0.1 + palto.sum(outputs)

        slopes = palto.grad(loss, (0, 1))(first, xs)
        return palto.scan(step, (first, second), xs, reverse=reverse), slopes

    run_both(
        function, numbers("float32", (3, 5)), np.float32(0.5), numbers("float32", (length, 3, 5))
    )


def wide_scan(weight, xs):
    return palto.scan(
        lambda state, x: (palto.tanh(state @ weight + x), state * 2), xs[0] * 0.5, xs, reverse=True
    )


def scan_in_scan(xs):
    def row(state, x):
        total, running = palto.scan(lambda a, b: (a * 0.5 + b, a), state, x)
        return total, running

    return palto.scan(row, palto.zeros((), dtype=xs.dtype), xs)


def slope_of_scans(xs):
    """Through scans in scans, as deep as `xs` has axes; the results of inner ones are kept."""

    def run(state, xs):
        if xs.ndim == 1:
            return palto.scan(lambda a, b: (palto.sin(a) * 0.5 + b, a * b), state, xs)
        return palto.scan(run, state, xs)

    def loss(xs):
        last, ys = run(palto.zeros((), dtype=xs.dtype), xs)
        return last + palto.sum(palto.square(ys))

    return palto.value_and_grad(loss)(xs)


def exchanging_scan(xs):
    def step(state, x):
        return (state[1], state[0] * 0.9 + x), x

    return palto.scan(step, (palto.zeros(xs.shape[1:]), palto.ones(xs.shape[1:])), xs)


def test_scans_as_loops_of_the_program(executor):
    xs = numbers("float32", (6, 3, 5))
    weight = numbers("float32", (256, 256)) * 0.05
    run_both(wide_scan, weight, numbers("float32", (5, 64, 256)))  # shared among threads
    run_both(scan_in_scan, numbers("float32", (4, 7)))
    run_both(exchanging_scan, xs)
    run_both(lambda xs: exchanging_scan(xs)[0], xs)  # what is stacked, nobody reads
    for depth in ((4, 7), (3, 4, 5)):
        run_both(slope_of_scans, numbers("float32", depth))
    run_both(lambda xs: palto.scan(lambda c, x: (palto.sort(c + x), c), xs[0], xs), xs)


def test_scans_between_guards(monkeypatch):
    monkeypatch.setenv("PALTO_DEBUG", "1")
    run_both(scan_in_scan, numbers("float32", (4, 7)))
    run_both(exchanging_scan, numbers("float32", (6, 3, 5)))


@pytest.mark.parametrize("threads", THREADS)
def test_an_index_out_of_range_inside_a_scan(threads, executor):
    palto.set_num_threads(threads)
    cell = palto.Cell(np.zeros(3, "f"))

    @palto.compile
    def function(table, places):
        last, _ = palto.scan(
            lambda c, i: (c + palto.take(table, i, axis=0), c), palto.zeros((3,)), places
        )
        cell.assign(last)
        return last

    table = numbers("float32", (4, 3))
    function(table, np.array([0, 3, 1]))
    before = np.array(cell)
    with pytest.raises(IndexError, match="index 7 is out of range: it must be from 0 to 3"):
        function(table, np.array([0, 7, 1]))
    np.testing.assert_array_equal(cell, before)


def test_scan_of_whole_numbers_and_without_sequences(executor):
    def function(start):
        return palto.scan(lambda s, _: (s * 3 + 1, s), start, length=7)

    run_both(function, np.array([1, -2, 2**40]))


# --- What is composed of primitives --------------------------------------------------------------


def draws(x):
    shape = (7, 33)
    return (
        palto.random.normal(shape, 2.0, 0.5), palto.random.uniform(shape, -1.0, 3.0),
        palto.random.integers(shape, -5, 2**30), palto.random.bernoulli(shape, 0.3),
        palto.random.permutation(50), palto.random.normal(x.shape) * x,
    )  # fmt: skip


def transforms_of_sound(x):
    window = signal.hann_window(16)
    spectra = signal.stft(x, 16, 4, window)
    again = signal.istft(spectra, 16, 4, window, length=x.shape[-1])

    def loudness(x):
        return palto.sum(palto.abs(signal.stft(x, 16, 4, window)) ** 2)

    whole = palto.fft.fft(x, n=20)
    half = palto.fft.irfft(palto.fft.rfft(x), n=45)
    return spectra, again, palto.grad(loudness)(x), whole, palto.fft.ifft(whole), half


def losses(x):
    logits, labels = x[:, :5], palto.argmax(x[:, 5:10], axis=1)
    chances, weight = nn.functional.softmax(x[:, 10:15]), palto.abs(x[0, :5]) + 0.1

    def total(logits):
        of_labels = F.cross_entropy(logits, labels, weight=weight, label_smoothing=0.2)
        of_chances = F.cross_entropy(logits, chances, reduction="none")
        two = nn.functional.sigmoid(logits)
        others = [
            F.huber_loss(logits, chances, delta=0.3), F.l1_loss(logits, chances, reduction="sum"),
            F.mse_loss(logits, chances), F.binary_cross_entropy(two, chances),
            F.binary_cross_entropy_with_logits(logits, chances, pos_weight=weight),
        ]  # fmt: skip
        return of_labels + palto.sum(of_chances * of_chances) + sum(others)

    return palto.value_and_grad(total)(logits)


def orders_of_numbers(x):
    values, places = palto.top_k(x, 3)
    return (
        values, places, palto.argsort(x, axis=0), palto.median(x, 0), palto.argmin(x, axis=1),
        palto.cumulative_sum(x, axis=1), palto.logsumexp(x, axis=0), palto.std(x, axis=1),
        palto.prod(x[:3, :4]), palto.take_along_axis(x, palto.argsort(x), axis=-1),
        nn.functional.one_hot(palto.argmax(x, axis=1), 45), palto.roll(x, 3, axis=1),
    )  # fmt: skip


def products(x):
    q = palto.reshape(x[:, :40], (2, 4, 2, 20))[:, :2]
    mask = palto.tril(palto.ones((2, 2))) > 0
    return (
        palto.einsum("ij,kj->ik", x, x), palto.tensordot(x, x, axes=((0,), (0,))),
        palto.vector_norm(x, axis=1), palto.outer(x[0], x[1]), palto.vecdot(x, x),
        F.scaled_dot_product_attention(q, q, q, mask),
        F.scaled_dot_product_attention(q, q[:, :1], q[:, :1], is_causal=True, enable_gqa=True),
    )  # fmt: skip


def curves(x):
    inside = palto.tanh(x) * 0.9
    return (
        palto.asin(inside), palto.acos(inside), palto.atanh(inside), palto.atan(x),
        palto.asinh(x), palto.acosh(1.1 + palto.abs(x)), palto.sinh(x), palto.cosh(x),
        palto.tan(inside), palto.log2(palto.abs(x) + 0.1), palto.log10(palto.abs(x) + 0.1),
        palto.trunc(x), palto.ceil(x), palto.rsqrt(palto.abs(x) + 0.1), palto.clip(x, -1, 2),
    )  # fmt: skip


@pytest.mark.parametrize(
    "function", [draws, transforms_of_sound, losses, orders_of_numbers, products, curves]
)
def test_functions_of_primitives(function, executor):
    """Random numbers among them, which are the same to the bit, and the state after them."""
    x = numbers("float32", (8, 45))
    state = palto.random.default_generator.state

    def run(function, x):
        palto.manual_seed(11)
        return [*values(function(x)), np.array(state.array())]

    wanted = run(function, palto.asarray(x))
    compiled = palto.compile(function)
    got = with_each_thread_count(lambda: run(compiled, x))
    for one, other in zip(got, wanted, strict=True):
        assert_close(one, other, rtol=1e-4)


# --- Every layer ---------------------------------------------------------------------------------


def pair(*shape):
    return [numbers("float32", shape), numbers("float32", shape)]


def chances(*shape):
    return [numbers("float32", shape, 0.05, 0.95), numbers("float32", shape, 0, 1)]


def plain(*shape):
    return [numbers("float32", shape)]


#: By the layer's name: how to make it, and its inputs.
class First(nn.Module):
    """The first of a layer's results."""

    def __init__(self, layer):
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


LAYERS = {
    "RNN": (lambda: First(nn.RNN(3, 5, num_layers=2)), lambda: plain(4, 2, 3)),
    "LSTM": (lambda: First(nn.LSTM(3, 5, bidirectional=True)), lambda: plain(4, 2, 3)),
    "GRU": (lambda: First(nn.GRU(3, 5, batch_first=True)), lambda: plain(2, 4, 3)),
    "RNNCell": (lambda: nn.RNNCell(3, 5), lambda: plain(4, 3)),
    "LSTMCell": (lambda: First(nn.LSTMCell(3, 5)), lambda: plain(4, 3)),
    "GRUCell": (lambda: nn.GRUCell(3, 5), lambda: plain(4, 3)),
    "ELU": (lambda: nn.ELU(0.7), lambda: plain(4, 33)),
    "GELU": (lambda: nn.GELU(), lambda: plain(4, 33)),
    "Hardtanh": (lambda: nn.Hardtanh(), lambda: plain(4, 33)),
    "Identity": (lambda: nn.Identity(), lambda: plain(4, 33)),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.1), lambda: plain(4, 33)),
    "LogSoftmax": (lambda: nn.LogSoftmax(), lambda: plain(4, 33)),
    "Maxout": (lambda: nn.Maxout(3), lambda: plain(4, 33)),
    "PReLU": (lambda: nn.PReLU(33), lambda: plain(4, 33)),
    "ReLU": (lambda: nn.ReLU(), lambda: plain(4, 33)),
    "Sigmoid": (lambda: nn.Sigmoid(), lambda: plain(4, 33)),
    "SiLU": (lambda: nn.SiLU(), lambda: plain(4, 33)),
    "Softmax": (lambda: nn.Softmax(0), lambda: plain(4, 33)),
    "Softplus": (lambda: nn.Softplus(), lambda: plain(4, 33)),
    "Tanh": (lambda: nn.Tanh(), lambda: plain(4, 33)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(12, 3, 0.1), lambda: plain(2, 9, 12)),
    "Conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1), lambda: plain(2, 9, 3)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), lambda: plain(2, 7, 8, 4)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2, dilation=2), lambda: plain(1, 4, 5, 4, 2)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(3, 4, 3, stride=2), lambda: plain(2, 5, 3)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
        lambda: plain(2, 4, 3, 4),
    ),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2), lambda: plain(1, 3, 2, 3, 2)),
    "Dropout": (lambda: nn.Dropout(0.3), lambda: plain(4, 33)),
    "Embedding": (lambda: nn.Embedding(7, 5), lambda: [index((3, 4), 7)]),
    "Flatten": (lambda: nn.Flatten(), lambda: plain(4, 3, 5)),
    "Linear": (lambda: nn.Linear(33, 17), lambda: plain(4, 33)),
    "QuantizedLinear": (
        lambda: nn.QuantizedLinear.from_blocks("Q4_0", np.full((17, 36), 44, np.uint8), 64),
        lambda: plain(4, 64),
    ),
    "QuantizedEmbedding": (
        lambda: nn.QuantizedEmbedding.from_blocks("Q4_0", np.full((7, 18), 44, np.uint8), 32),
        lambda: [index((3, 4), 7)],
    ),
    "BCELoss": (lambda: nn.BCELoss(), lambda: chances(4, 33)),
    "BCEWithLogitsLoss": (
        lambda: nn.BCEWithLogitsLoss(),
        lambda: [numbers("float32", (4, 3)), numbers("float32", (4, 3), 0, 1)],
    ),
    "CrossEntropyLoss": (
        lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda: [numbers("float32", (9, 7)), index(9, 7)],
    ),
    "HuberLoss": (lambda: nn.HuberLoss(), lambda: pair(4, 33)),
    "L1Loss": (lambda: nn.L1Loss(), lambda: pair(4, 33)),
    "MSELoss": (lambda: nn.MSELoss(), lambda: pair(4, 33)),
    "Neuron": (lambda: nn.Neuron(5), lambda: plain(4, 5)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(5), lambda: plain(8, 5)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), lambda: plain(4, 5, 6, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), lambda: plain(3, 4, 5, 6)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(3, affine=True), lambda: plain(2, 4, 5, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(33), lambda: plain(4, 33)),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(5, 0.1), lambda: plain(2, 3, 3, 8)),
    "RMSNorm": (lambda: nn.RMSNorm(33), lambda: plain(4, 33)),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(3), lambda: plain(2, 9, 4)),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((2, 3)), lambda: plain(2, 6, 6, 4)),
    "AvgPool1d": (lambda: nn.AvgPool1d(3, padding=1), lambda: plain(2, 9, 4)),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), lambda: plain(2, 6, 7, 4)),
    "MaxPool1d": (lambda: nn.MaxPool1d(3, stride=2), lambda: plain(2, 9, 4)),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, stride=2, padding=1), lambda: plain(2, 7, 8, 4)),
}  # fmt: skip

#: Every model: how to make it, and its input.
MODELS = {
    "logistic_regression": (lambda: nn.models.logistic_regression(20, 5), lambda: plain(6, 4, 5)),
    "fully_connected": (lambda: nn.models.fully_connected(20, (16, 9), 5), lambda: plain(6, 20)),
    "lenet": (lambda: nn.models.lenet(5), lambda: plain(2, 28, 28, 1)),
    "alexnet": (lambda: nn.models.alexnet(5, (28, 28, 1)), lambda: plain(2, 28, 28, 1)),
    "resnet": (lambda: nn.models.resnet(8, 5, (8, 8, 3)), lambda: plain(4, 8, 8, 3)),
    "fast_resnet": (lambda: nn.models.fast_resnet(5, (8, 8, 3)), lambda: plain(4, 8, 8, 3)),
    "gpt": (
        lambda: nn.models.gpt(11, 8, width=12, heads=2, layers=2, dropout=0.1),
        lambda: [index((3, 8), 11)],
    ),
    "llama": (
        lambda: nn.models.llama(11, 8, width=16, heads=4, key_value_heads=2, layers=2),
        lambda: [index((3, 8), 11)],
    ),
}


def test_every_layer_and_model_is_here():
    not_layers = {"Module", "Sequential", "QuantizedWeight"}
    layers = {
        name
        for name, value in vars(nn).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and name not in not_layers
    }
    assert set(LAYERS) == layers
    assert set(MODELS) == {name for name in nn.models.__all__ if name.islower()}


def learning_step(module, optimizer):
    """A step that returns the output, the loss and every gradient."""

    def step(*inputs):
        found = []

        def loss_of(*floats):
            given = iter(floats)
            y = module(*(next(given) if x.dtype in dtypes.FLOATING else x for x in inputs))
            weights = palto.reshape(palto.sin(palto.arange(y.size, dtype=y.dtype)), y.shape)
            found[:] = [palto.detach(y)]
            return palto.sum(y * weights)

        floats = [x for x in inputs if x.dtype in dtypes.FLOATING]
        state = palto.random.default_generator.state.read()
        slopes = palto.grad(loss_of, tuple(range(len(floats))))(*floats) if floats else ()
        palto.random.default_generator.state.assign(state)  # the same draws again
        loss = loss_of(*floats)
        grads = []
        if optimizer is not None:
            loss.backward()
            grads = [parameter.grad for parameter in module.parameters()]
            optimizer.step()
        return found[0], loss, list(slopes), grads

    return step


def compare_learning(make, inputs, train):
    palto.manual_seed(3)
    module = make()
    module.train(train)
    arrays = inputs()
    optimizer = optim.SGD(module, 0.1, momentum=0.9) if list(module.parameters()) else None
    step = learning_step(module, optimizer)
    cells = [cell for _, cell in module.named_cells()]
    if optimizer is not None:
        cells += [cell for _, cell in optimizer.named_cells()]
    first = [np.array(cell.array()) for cell in cells]

    def run(function, given):
        palto.manual_seed(7)
        for cell, value in zip(cells, first, strict=True):
            cell.assign(value)
        outputs = function(*given)
        state = palto.random.default_generator.state
        return [*values(outputs), *(np.array(cell.array()) for cell in (*cells, state))]

    wanted = run(step, [palto.asarray(array) for array in arrays])
    compiled = palto.compile(step)
    found = with_each_thread_count(lambda: run(compiled, arrays))
    for got, value in zip(found, wanted, strict=True):
        assert_close(got, value, rtol=1e-4)


#: XLA compiles more slowly: it is given the larger half, which has the other in it.
LEARNING = pytest.mark.parametrize(
    ("executor", "train"),
    [("native", True), ("native", False), ("xla", True)],
    indirect=["executor"],
    ids=["native-train", "native-eval", "xla-train"],
)


@LEARNING
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, train, executor):
    compare_learning(*LAYERS[name], train)


@LEARNING
@pytest.mark.parametrize("name", MODELS)
def test_model(name, train, executor):
    compare_learning(*MODELS[name], train)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_ten_steps_of_an_optimiser(name, executor):
    x, y = numbers("float32", (16, 9)), index(16, 5)
    histories = []
    for wrap in (lambda step: step, palto.compile):
        palto.manual_seed(0)
        model = nn.models.fully_connected(9, (17,), 5)
        optimizer = getattr(optim, name)(model, 1e-2)

        def step(x, y, model=model, optimizer=optimizer):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optim.clip_grad_norm_(optimizer, 1.0)
            optimizer.step()
            return loss

        run = wrap(step)
        losses = [float(run(palto.asarray(x), palto.asarray(y))) for _ in range(10)]
        histories.append((losses, [parameter.numpy() for parameter in model.parameters()]))
    np.testing.assert_allclose(histories[1][0], histories[0][0], rtol=1e-4)
    for plain_value, compiled_value in zip(histories[0][1], histories[1][1], strict=True):
        np.testing.assert_allclose(compiled_value, plain_value, rtol=1e-3, atol=1e-4)


# --- Errors leave cells alone --------------------------------------------------------------------


def raising(function, *good_then_bad, error, match):
    """The compiled function with a cell beside it runs, then raises and leaves the cell alone."""
    cell = palto.Cell(np.float32([1, 2, 3]))

    @palto.compile
    def step(*inputs):
        cell.assign(cell * 2)
        result = function(*inputs)
        cell.assign(cell + 1)
        return result

    good, bad = good_then_bad
    step(*good)
    for count in THREADS:
        palto.set_num_threads(count)
        before = cell.numpy().tobytes()
        with pytest.raises(error, match=match):
            step(*bad)
        assert cell.numpy().tobytes() == before
    step(*good)  # and it still runs
    assert cell.numpy().tobytes() != before


X = np.arange(20, dtype=np.float32).reshape(5, 4)


@pytest.mark.parametrize("bad", [7, -3, 5])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_gather_out_of_range(dtype, bad, executor):
    indices = np.array([0, 4, 1], dtype)
    wrong = np.array([0, bad, 1], dtype)
    message = rf"row {bad} is out of range: it must be from 0 to 4"
    raising(
        lambda x, i: palto.take(x, i, role="row"),
        (X, indices),
        (X, wrong),
        error=IndexError,
        match=message,
    )


def test_last_of_many_indices_out_of_range(executor):
    indices = np.zeros((300, 200), np.int64)
    wrong = indices.copy()
    wrong[299, 199] = 12
    raising(
        lambda x, i: palto.sum(x[i]),
        (X, indices),
        (X, wrong),
        error=IndexError,
        match="index 12 is",
    )


@pytest.mark.parametrize("bad", [9, -1])
def test_scatter_out_of_range(bad, executor):
    raising(
        lambda x, i: palto.scatter_add(i, x, size=6),
        (X, np.array([0, 5, 1, 0, 0])),
        (X, np.array([0, 5, bad, 0, 0])),
        error=IndexError,
        match=f"index {bad} is out of range: it must be from 0 to 5",
    )


def test_take_along_axis_out_of_range(executor):
    raising(
        lambda x, i: palto.take_along_axis(x, i, axis=1),
        (X, np.zeros((5, 1), np.int64)),
        (X, np.full((5, 1), 4)),
        error=IndexError,
        match="index 4 is out of range: it must be from 0 to 3",
    )


@pytest.mark.parametrize("bad", [(4, 0), (0, -1), (1, 3)])
def test_dynamic_slice_out_of_range(bad, executor):
    axis = 0 if bad[0] == 4 else 1
    message = f"start {bad[axis]} is out of range on axis {axis}"
    for function in (
        lambda x, starts: palto.dynamic_slice(x, starts, (2, 2)),
        lambda x, starts: palto.dynamic_update_slice(x, palto.zeros((2, 2)), starts),
    ):
        raising(
            function, (X, np.array([3, 2])), (X, np.array(bad)), error=IndexError, match=message
        )


@pytest.mark.parametrize("bad", [4, -2])
def test_label_out_of_range(bad, executor):
    raising(
        nn.functional.cross_entropy,
        (X, np.array([0, 1, 2, 3, 3])),
        (X, np.array([0, 1, 2, bad, 3])),
        error=IndexError,
        match=f"{bad} is out of range",
    )


def test_embedding_out_of_range(executor):
    raising(
        nn.Embedding(7, 3),
        (np.array([[0, 6]]),),
        (np.array([[0, 7]]),),
        error=IndexError,
        match="embedding index 7 is out of range: it must be from 0 to 6",
    )


def test_index_into_nothing(executor):
    lookup = palto.compile(lambda x, i: palto.take(x, i))
    assert lookup(X[:0], np.zeros(0, np.int64)).shape == (0, 4)
    with pytest.raises(IndexError, match="index 0 is out of range: it must be absent"):
        lookup(X[:0], np.zeros(1, np.int64))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("function", [palto.floor_divide, palto.remainder])
def test_division_of_whole_numbers_by_zero(function, dtype, executor):
    x = np.array([5, 7, 9] * 7, dtype)
    zero = x.copy()
    zero[-1] = 0
    raising(function, (x, x), (x, zero), error=ZeroDivisionError, match="by zero")


def test_whole_number_to_a_negative_power(executor):
    x = np.array([5, 7, 9])
    raising(palto.pow, (x, x), (x, -x), error=ValueError, match="negative power")


def test_check_that_fails(executor):
    def function(x):
        check(palto.isfinite(x).all(), "x is not finite")
        return x * 2

    good, bad = np.ones(4, np.float32), np.float32([1, np.inf, np.nan, 1])
    raising(function, (good,), (bad,), error=FloatingPointError, match="x is not finite")


def test_clip_that_meets_no_finite_gradient_leaves_everything(executor):
    model = nn.Linear(4, 2)
    optimizer = optim.Adam(model, 0.1)

    @palto.compile
    def step(x):
        palto.mean(palto.square(model(x))).backward()
        optim.clip_grad_norm_(optimizer, 1.0, error_if_nonfinite=True)
        optimizer.step()

    step(X)
    before = [cell.numpy().tobytes() for cell in (*model.parameters(), *optimizer_cells(optimizer))]
    with pytest.raises(FloatingPointError):
        step(np.full_like(X, np.inf))
    after = [cell.numpy().tobytes() for cell in (*model.parameters(), *optimizer_cells(optimizer))]
    assert before == after


def optimizer_cells(optimizer):
    return [cell for group in optimizer.groups for _, cell in group.cells()]


# --- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 4000, 300_000])
def test_results_are_fresh(size, executor):
    cell = palto.Cell(np.zeros(size, np.float32))

    @palto.compile
    def step(x):
        y = x * 2 + 1
        cell.assign(cell + y)
        return y, palto.sum(y), cell.read(), y[::2], palto.reshape(y, (1, -1)), x

    kept, wanted = [], []
    for number in range(6):
        x = np.full(size, number, np.float32)
        results = step(x)
        kept.append(results)
        wanted.append(values(results))
        x[:] = -1
    for results, before in zip(kept, wanted, strict=True):
        for result, value in zip(values(results), before, strict=True):
            np.testing.assert_array_equal(result, value)


@pytest.mark.parametrize("size", [3, 4000])
def test_reads_kept_across_calls(size, executor):
    x = palto.Cell(np.ones(size, np.float32))
    y = palto.Cell(np.full(size, 2, np.float32))

    @palto.compile
    def step():
        old = x.read()
        x.assign(y * 0.5)
        y.assign(old)
        y.assign(y + palto.roll(x, 1, axis=0))

    reads, wanted = [], []
    first, second = np.ones(size, np.float32), np.full(size, 2, np.float32)
    for _ in range(6):
        reads.append((x.read(), y.read()))
        wanted.append((first, second))
        first, second = second * np.float32(0.5), first + np.roll(second * np.float32(0.5), 1)
        step()
    for pair_read, pair_wanted in zip(reads, wanted, strict=True):
        for read, value in zip(pair_read, pair_wanted, strict=True):
            np.testing.assert_array_equal(read, value)


@pytest.mark.parametrize("size", [3, 4000])
def test_argument_that_shares_memory_with_a_cell(size, executor):
    cell = palto.Cell(np.arange(size, dtype=np.float32))

    @palto.compile
    def step(x):
        cell.assign(cell * 2 + palto.flip(x))
        return x + cell

    before = np.arange(size, dtype=np.float32)
    for argument in (lambda: cell.read(), lambda: cell.read().array(), lambda: cell.numpy()):
        kept = argument()
        copied = np.array(kept)
        result = step(kept)
        after = before * 2 + before[::-1]
        np.testing.assert_array_equal(kept, copied)
        np.testing.assert_array_equal(cell, after)
        np.testing.assert_array_equal(result, before + after)
        before = after


def test_argument_that_is_an_earlier_result(executor):
    step = palto.compile(lambda x, y: (x + y, y, x - y))
    x, y = np.ones(40, np.float32), np.full(40, 3, np.float32)
    first = step(x, y)
    second = step(first[0], first[0])
    np.testing.assert_array_equal(first[0], x + y)
    np.testing.assert_array_equal(second[0], 2 * (x + y))
    np.testing.assert_array_equal(second[2], 0 * x)


def test_results_that_are_one_value_and_constants(executor):
    table = np.arange(6, dtype=np.float32)

    @palto.compile
    def step(x):
        y = x + 1
        return y, y, palto.asarray(table), palto.zeros((3,)), palto.ones((0, 2))

    first, second = step(table), step(table * 0)
    np.testing.assert_array_equal(first[0], table + 1)
    np.testing.assert_array_equal(first[1], table + 1)
    np.testing.assert_array_equal(second[0], np.ones(6))
    np.testing.assert_array_equal(first[2], table)
    np.testing.assert_array_equal(first[3], np.zeros(3))
    assert first[4].shape == (0, 2)


def test_arguments_in_any_memory_order(executor):
    base = np.arange(60, dtype=np.float32).reshape(4, 15)
    step = palto.compile(lambda x: (palto.sum(x, 0), x @ x.T))
    for array in (base.T[::2], base[::-1, ::3], np.asfortranarray(base), base[:, :5]):
        assert_close(values(step(array))[1], array @ array.T)
    unaligned = np.zeros(60 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(4, 15)
    unaligned[...] = base
    assert_close(values(step(unaligned))[1], base @ base.T)


def test_argument_that_cannot_be_written_to(executor):
    x = np.arange(9, dtype=np.float32)
    x.flags.writeable = False
    cell = palto.Cell(x)

    @palto.compile
    def step(x):
        cell.assign(cell + x)
        return x * 2

    for _ in range(3):
        np.testing.assert_array_equal(step(x), x * 2)
    np.testing.assert_array_equal(cell, x * 4)


def test_several_python_threads(executor):
    """Programs of their own, and one program with one cell, at the same time."""
    total = palto.Cell(np.zeros(500, np.float32))

    @palto.compile
    def add(x):
        total.assign(total + x)
        return palto.sum(x)

    add(np.zeros(500, np.float32))
    failures = []

    def work(number):
        try:
            x = numbers("float32", (30, 20 + number))
            own = palto.compile(lambda x: palto.tanh(x @ x.T) + number)
            for _ in range(5):
                assert_close(values(own(x))[0], np.tanh(x @ x.T) + np.float32(number))
                assert float(add(np.ones(500, np.float32))) == 500
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not failures
    assert not any(worker.is_alive() for worker in workers)
    np.testing.assert_array_equal(total, np.full(500, 30))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_programs_do_not_grow_memory():
    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    def compile_one(number):
        step = palto.compile(lambda x: palto.sum(palto.tanh(x * number) @ x.T))
        step(np.ones((8, 8), np.float32))

    for number in range(20):
        compile_one(number)
    before = resident()
    for number in range(20, 120):
        compile_one(number)
    assert resident() - before < 50 * 2**20


def test_large_temporaries_do_not_pile_up():
    @palto.compile
    def step(x):
        for _ in range(6):
            x = palto.cumulative_sum(x, axis=0) * 0.5
        return palto.sum(x)

    x = np.ones((500, 500), np.float32)
    step(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        step(x)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 < 50 * x.nbytes


# --- Empty and single axes -----------------------------------------------------------------------

EDGES = [(0,), (1,), (0, 3), (3, 0), (1, 1), (1, 0, 2), (2, 1, 3), (1, 1, 1, 1), (0, 0)]


def everything(x):
    """Functions of all kinds of a tensor of any shape with axes."""
    last = x.ndim - 1
    flat = palto.reshape(x, (x.size,))
    results = [
        palto.tanh(x) * 2 + x, palto.sum(x), palto.sum(x, last), palto.sum(x, 0, keepdims=True),
        palto.cumulative_sum(x, axis=0), palto.sort(x, axis=last), palto.argsort(x, axis=0),
        palto.permute_dims(x, tuple(range(x.ndim))[::-1]), palto.flip(x), palto.roll(x, 1, axis=0),
        palto.concat([x, x], axis=last), palto.stack([x, x]), palto.where(x > 0, x, 0),
        palto.pad(x, [(1, 2)] * x.ndim), palto.repeat(x, 2, axis=0), x[::-1], x[..., :1],
        palto.broadcast_to(x, (2, *x.shape)), palto.outer(flat, flat), flat @ flat,
        palto.any(x > 0), palto.all(x > 0, 0), palto.astype(x, palto.int32),
        palto.one_hot(palto.astype(x > 0, palto.int64), 3), palto.scatter_add(
            palto.zeros(x.shape[:1], dtype=palto.int64), x, size=2),
        palto.expand_dims(x, -1) @ palto.expand_dims(x, -2), palto.random.uniform(x.shape),
        palto.random.normal(x.shape), palto.exp(x),
        nn.functional.relu(x), nn.functional.gelu(x),
    ]  # fmt: skip
    if x.shape[last]:
        results += [palto.max(x, last), palto.argmax(x, last), palto.mean(x, last),
                    nn.functional.softmax(x), palto.logsumexp(x, last),
                    palto.take(x, np.zeros(2, np.int64), axis=last)]  # fmt: skip
    results.append(palto.grad(lambda y: palto.sum(palto.sin(y) * y))(x))
    return results


@pytest.mark.parametrize("shape", EDGES, ids=str)
def test_empty_and_single_axes(shape, executor):
    x = numbers("float32", shape)
    palto.manual_seed(1)
    wanted = values(everything(palto.asarray(x)))
    compiled = palto.compile(everything)
    for count in THREADS:
        palto.set_num_threads(count)
        palto.manual_seed(1)
        for got, value in zip(values(compiled(x)), wanted, strict=True):
            assert_close(got, value)


def joined(x):
    """A mean beside another number, then a gradient that reads only the first of the two."""

    def loss(x):
        pair = palto.stack([palto.mean(x, 0, keepdims=True), palto.ones((1,))], axis=1)
        return palto.mean(palto.square(pair))

    return palto.grad(loss)(x)


def past_the_image(x):
    """Windows that lie in the padding alone, whose gradients are zero."""
    kernel = palto.ones((1, 1, 1, x.shape[-1]))
    sizes = {"stride": (1, 3), "padding": ((0, 0), (2, 0)), "groups": x.shape[-1]}
    return palto.grad(lambda y: palto.sum(palto.tanh(palto.conv(y, kernel, **sizes))))(x)


@pytest.mark.parametrize("threads", THREADS)
def test_a_check_of_what_is_computed_again_comes_before_the_cells(threads):
    palto.set_num_threads(threads)
    cell = palto.Cell(np.zeros((4, 5), np.float32))

    @palto.compile
    def step(x):
        slope = palto.grad(lambda y: palto.sum(nn.functional.gelu(y)))(x)
        check(palto.all(palto.isfinite(palto.sum(slope, axis=0))), "not finite")
        cell.assign(slope * 2)

    x = np.ones((4, 5), np.float32)
    step(x)
    before = np.array(cell)
    x[2, 2] = np.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        step(x)
    np.testing.assert_array_equal(cell, before)


def before_a_scan(x):
    """A gradient taken at places that a sort finds, beside what must be ready for a scan."""

    def loss(x):
        ordered = palto.sort(x)
        place = palto.astype(palto.abs(x[:1]) >= 0, palto.int64)
        updated = palto.dynamic_update_slice(ordered, palto.ones((1,)), place)
        return palto.sum(updated), ordered - 1

    slope, less = palto.grad(loss, has_aux=True)(x)
    last, _ = palto.scan(lambda s, y: (s * 0.9 + y, {}), palto.zeros(()), less + 1)
    return palto.stack([slope, less, less * 0 + last])


def one_pixel(x):
    border = ((0, 1), (0, 1))
    return palto.conv(palto.expand_dims(x, 0), palto.ones((1, 1, 1, 1)), padding=border)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: palto.concat([x, x], axis=2), (0, 2, 1)),
        (lambda x: palto.prod(palto.tanh(x) + 1.2, 1), (0, 3, 1, 2)),
        (joined, (2,)),
        (past_the_image, (1, 1, 1, 5)),
        (before_a_scan, (5,)),
        (one_pixel, (1, 1, 1)),
    ],
    ids=[
        "concat of nothing",
        "product of nothing",
        "half of a concat",
        "all cropped",
        "taken from an update",
        "a border around one pixel",
    ],
)
def test_what_random_graphs_found(function, shape):
    x = numbers("float32", shape)
    assert_close(palto.compile(function)(x).numpy(), function(palto.asarray(x)).numpy())


def test_functions_of_nothing_and_of_everything_constant(executor):
    assert palto.compile(lambda: palto.ones((2, 2)) + 1)().numpy().tolist() == [[2, 2], [2, 2]]
    assert palto.compile(lambda: 3)() == 3
    assert palto.compile(lambda x: None)(X) is None
    cell = palto.Cell(np.zeros(3, np.float32))
    palto.compile(lambda: cell.assign(palto.ones((3,))))()
    np.testing.assert_array_equal(cell, np.ones(3))
    palto.compile(lambda: cell.assign(cell))()
    np.testing.assert_array_equal(cell, np.ones(3))


# --- Threads -------------------------------------------------------------------------------------


# --- Sums inside sums ----------------------------------------------------------------------------


def scaled_blocks(codes, x, scales):
    """(n, blocks, length, 128) with a scale of each block: the sum over blocks and lengths."""
    return palto.sum(palto.sum(codes * x, axis=2) * scales, axis=1)


def two_products(a, b, x):
    """A sum of two products, and a constant that depends on the place in the inner sum."""
    places = palto.expand_dims(palto.astype(palto.arange(a.shape[2]), a.dtype), -1)
    return palto.sum(-palto.sum(a * x + b * places, axis=2), axis=1)


def in_three_levels(codes, x, scales):
    parts = palto.reshape(codes * x, (*codes.shape[:2], -1, 2, codes.shape[-1]))
    inner = palto.sum(palto.sum(parts, axis=3) * 2, axis=2)
    return palto.sum(inner * scales, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "complex64"])
@pytest.mark.parametrize("shape", [(3, 5, 6, 128), (1, 2, 1, 200), (2, 1, 8, 131), (4, 40, 2, 16)])
def test_a_sum_inside_a_sum(dtype, shape, executor):
    codes, scales = numbers(dtype, shape), numbers(dtype, (*shape[:2], shape[3]))
    x = numbers(dtype, (*shape[:3], 1))
    run_both(scaled_blocks, codes, x, scales, rtol=1e-4)
    run_both(two_products, codes, codes[:, :, ::-1], x, rtol=1e-4)
    if shape[2] % 2 == 0:
        run_both(in_three_levels, codes, x, scales, rtol=1e-4)


def test_a_sum_inside_a_sum_is_no_step():
    codes, x = numbers("float32", (3, 5, 6, 128)), numbers("float32", (3, 5, 6, 1))
    scales = numbers("float32", (3, 5, 128))
    compiled = palto.compile(scaled_blocks)
    compiled(codes, x, scales)
    assert [row.kind for row in compiled.explain().rows] == ["reduce", "map"]


def test_large_tensors_that_share_nothing_are_computed_when_they_are_needed():
    """Each weight is unpacked before its product, so that one place in memory is enough for all."""
    weights = [palto.Cell(numbers("int8", (256, 256))) for _ in range(6)]

    @palto.compile
    def product(x):
        for weight in weights:
            x = x @ weight.astype(palto.float32) / 256
        return x

    product(numbers("float32", (64, 256)))
    rows = product.explain().rows
    assert [row.kind for row in rows] == ["map", "matmul"] * 6
    assert product.explain().arena_bytes < 2 * 256 * 256 * 4 + 3 * 64 * 256 * 4


#: Passes over rows, whose results lie where what they read has lain, as far as they can.
ROW_PASSES = [
    lambda x: nn.functional.softmax(x) + x * 0.1,
    nn.functional.softmax,
    lambda x: nn.functional.log_softmax(x) * 0.1 + x,
    lambda x: nn.functional.rms_norm(x, [x.shape[-1]], eps=0.5),
    lambda x: palto.tanh(x - palto.max(x, -1, keepdims=True)) + x,
    lambda x: x * palto.mean(x, -1, keepdims=True) + 1,
    lambda x: palto.square(x) + 0.1,
]


@pytest.mark.parametrize("seed", range(40))
def test_passes_over_rows_one_after_another(seed):
    chosen = np.random.default_rng(seed).integers(0, len(ROW_PASSES), 3 + seed % 7)
    chosen[-1] *= seed % 2  # also one kind alone
    chosen = [0] * len(chosen) if seed < 8 else chosen

    def function(x):
        found = []
        for number in chosen:
            x = ROW_PASSES[number](x)
            found.append(palto.sum(palto.square(x), 0))
        return (x, *found) if seed % 3 else x

    run_both(function, numbers("float32", (17, 64)), rtol=1e-3)


def test_large_arrays_have_the_same_bits_with_any_threads():
    x, w = numbers("float32", (257, 300)), numbers("float32", (300, 129))
    image, kernel = numbers("float32", (3, 33, 31, 16)), numbers("float32", (3, 3, 16, 32))

    def function(x, w, image, kernel):
        y = nn.functional.softmax(palto.tanh(x @ w))
        z = palto.conv(image, kernel, padding=((1, 1), (1, 1)))
        rows = palto.astype(palto.remainder(palto.arange(257), 13), palto.int64)
        return (
            y, palto.sum(y), palto.sum(x, 0), palto.var(x, 1), z, palto.max(z, (1, 2)),
            palto.scatter_add(rows, x, size=13), palto.cumulative_sum(x, axis=1),
            palto.sort(x, axis=0), palto.permute_dims(z, (3, 0, 2, 1)),
            palto.grad(lambda w: palto.sum(palto.square(x @ w)))(w),
        )  # fmt: skip

    run_both(function, x, w, image, kernel, rtol=1e-4)


def slices_of_a_product(parts, x, w, scales):
    """The gradients of a loss of slices that cover a product, or leave something out."""

    def loss(x, w):
        y, start = x @ w, 0
        total = palto.sum(y) * 0
        for width, scale in zip(parts, scales, strict=False):
            total = total + palto.sum(palto.tanh(y[:, start : start + width]) * scale)
            start += width
        return total

    return palto.grad(loss, argnums=(0, 1))(x, w)


@pytest.mark.parametrize("parts", [(4, 16, 12), (32,), (4, 16), (1, 31), (8,) * 4])
def test_gradients_of_slices(parts, executor):
    x, w, scales = numbers("float32", (9, 5)), numbers("float32", (5, 32)), numbers("float32", (4,))
    run_both(lambda *arrays: slices_of_a_product(parts, *arrays), x, w, scales, rtol=1e-4)


def test_gradients_of_slices_are_written_side_by_side():
    compiled = palto.compile(lambda x, w, s: slices_of_a_product((4, 16, 12), x, w, s))
    compiled(numbers("float32", (9, 5)), numbers("float32", (5, 32)), numbers("float32", (3,)))
    assert "pad" not in {name for row in compiled.explain().rows for name in row.primitives}


def test_number_of_threads():
    palto.set_num_threads(2)
    assert palto.get_num_threads() == 2
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=str(wrong)):
            palto.set_num_threads(wrong)
    assert palto.get_num_threads() == 2


def test_what_sums_inside_a_sum_do_counts_as_work():
    """Few sums of few sums of many products are shared by the threads, too."""
    codes, x = numbers("float32", (4, 6, 64, 128)), numbers("float32", (4, 6, 64, 1))
    scales = numbers("float32", (4, 6, 128))
    palto.set_num_threads(2)
    compiled = palto.compile(scaled_blocks)
    compiled(codes, x, scales)
    assert compiled.explain().rows[0].threads == 2
