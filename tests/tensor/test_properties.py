"""Functions against NumPy over random shapes, dtypes and values.

A failure prints the function, its inputs, what came out and what was wanted.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import palto
from palto.backprop import gradients

FLOATS = [np.dtype("float32"), np.dtype("float64")]
INTEGERS = [np.dtype(d) for d in ("int8", "int32", "int64", "uint8", "uint32")]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def elements(dtype):
    """Numbers without a rounding or overflow that would depend on the order of operations."""
    if dtype.kind == "f":
        return st.integers(-64, 64).map(lambda n: n / 8)
    if dtype.kind == "b":
        return st.booleans()
    info = np.iinfo(dtype)
    return st.integers(max(int(info.min), -(2**31)), min(int(info.max), 2**31 - 1))


def arrays(dtypes, shape=SHAPES):
    return st.sampled_from(dtypes).flatmap(
        lambda d: hnp.arrays(d, shape, elements=elements(d), fill=st.nothing())
    )


@st.composite
def pairs(draw, dtypes):
    """Two arrays of one dtype whose shapes broadcast."""
    shapes = draw(
        hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=4)
    )
    dtype = draw(st.sampled_from(dtypes))
    return tuple(
        draw(hnp.arrays(dtype, shape, elements=elements(dtype), fill=st.nothing()))
        for shape in shapes.input_shapes
    )


def same(name, inputs, got, wanted, rtol=1e-5):
    wanted = np.asarray(wanted)
    message = f"palto.{name} of\n{inputs}\ngot    {got}\nwanted {wanted!r}"
    assert got.shape == wanted.shape, message
    assert got.dtype == wanted.dtype, message
    np.testing.assert_allclose(got, wanted, rtol=rtol, atol=1e-6, err_msg=message)


ANY = [np.dtype(bool), *INTEGERS, *FLOATS]
BINARY = {
    "add": INTEGERS + FLOATS,
    "subtract": INTEGERS + FLOATS,
    "multiply": INTEGERS + FLOATS,
    "divide": FLOATS,
    "maximum": INTEGERS + FLOATS,
    "minimum": INTEGERS + FLOATS,
    "equal": ANY,
    "not_equal": ANY,
    "less": ANY,
    "less_equal": ANY,
    "greater": ANY,
    "greater_equal": ANY,
    "bitwise_and": [*INTEGERS, np.dtype(bool)],
    "bitwise_or": [*INTEGERS, np.dtype(bool)],
    "bitwise_xor": [*INTEGERS, np.dtype(bool)],
    "floor_divide": INTEGERS + FLOATS,
    "remainder": INTEGERS + FLOATS,
}


@pytest.mark.parametrize("name", BINARY)
@given(data=st.data())
def test_binary(name, data):
    x, y = data.draw(pairs(BINARY[name]))
    if name in ("floor_divide", "remainder"):
        y = np.where(y == 0, y.dtype.type(1), y)
    with np.errstate(all="ignore"):
        wanted = getattr(np, name)(x, y)
    same(name, (x, y), getattr(palto, name)(palto.asarray(x), palto.asarray(y)), wanted)


OPERATORS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "//": lambda x, y: x // y,
    "%": lambda x, y: x % y,
    "<": lambda x, y: x < y,
    "==": lambda x, y: x == y,
}


@pytest.mark.parametrize("name", OPERATORS)
@given(data=st.data())
def test_operators_with_python_numbers_on_either_side(name, data):
    x = data.draw(arrays(FLOATS))
    number = data.draw(st.one_of(st.integers(1, 9), st.integers(1, 99).map(lambda n: n / 8)))
    apply = OPERATORS[name]
    with np.errstate(all="ignore"):
        same(name, (x, number), apply(palto.asarray(x), number), apply(x, number))
        same(name, (number, x), apply(number, palto.asarray(x)), apply(number, x))


UNARY = {
    "abs": INTEGERS[:3] + FLOATS,
    "negative": INTEGERS + FLOATS,
    "sign": INTEGERS + FLOATS,
    "square": FLOATS,
    "exp": FLOATS,
    "expm1": FLOATS,
    "sin": FLOATS,
    "tanh": FLOATS,
    "sinh": FLOATS,
    "cosh": FLOATS,
    "arctan": FLOATS,
    "arcsinh": FLOATS,
    "floor": FLOATS + INTEGERS,
    "ceil": FLOATS + INTEGERS,
    "trunc": FLOATS,
    "round": FLOATS,
    "isfinite": ANY,
    "isnan": ANY,
    "bitwise_invert": [*INTEGERS, np.dtype(bool)],
}
#: Palto's names where NumPy's differ.
NAMES = {"arctan": "atan", "arcsinh": "asinh"}


@pytest.mark.parametrize("name", UNARY)
@given(data=st.data())
def test_unary(name, data):
    x = data.draw(arrays(UNARY[name]))
    name, wanted = NAMES.get(name, name), getattr(np, name)(x)
    same(name, x, getattr(palto, name)(palto.asarray(x)), wanted)


@st.composite
def reductions(draw, dtypes, *, single=False, empty=True):
    """An array, an axis (or several, or None) and keepdims."""
    x = draw(arrays(dtypes, hnp.array_shapes(max_dims=3, min_side=0 if empty else 1, max_side=4)))
    axes = st.integers(-x.ndim, x.ndim - 1)
    if not single:
        several = hnp.valid_tuple_axes(x.ndim, min_size=0)
        axes = st.one_of(axes, several)
    return x, draw(st.one_of(st.none(), axes)), draw(st.booleans())


REDUCTIONS = {
    "sum": (INTEGERS + FLOATS, {}),
    "prod": ([np.dtype("int64"), *FLOATS], {}),
    "mean": (FLOATS, {"empty": False}),
    "var": (FLOATS, {"empty": False}),
    "std": (FLOATS, {"empty": False}),
    "max": (ANY, {"empty": False}),
    "min": (ANY, {"empty": False}),
    "any": (ANY, {}),
    "all": (ANY, {}),
    "argmax": (ANY, {"single": True, "empty": False}),
    "argmin": (ANY, {"single": True, "empty": False}),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@given(data=st.data())
def test_reductions(name, data):
    dtypes, options = REDUCTIONS[name]
    x, axis, keepdims = data.draw(reductions(dtypes, **options))
    wide = x.astype(np.int64) if name in ("sum", "prod") and x.dtype.kind in "iu" else x
    if name == "std":  # rounding makes a variance of almost zero, which the root enlarges
        wide = wide.astype(np.float64)
    wanted = getattr(np, name)(wide, axis=axis, keepdims=keepdims)
    wanted = np.asarray(wanted).astype(x.dtype) if name == "std" else wanted
    got = getattr(palto, name)(palto.asarray(x), axis, keepdims=keepdims)
    same(name, (x, axis, keepdims), got, wanted, rtol=1e-4)


@given(reductions(FLOATS))
def test_the_gradient_of_a_sum_of_squares(case):
    x, axis, keepdims = case
    tensor = palto.asarray(x, requires_grad=True)
    (palto.sum(tensor * tensor, axis, keepdims=keepdims) * 0.5).sum().backward()
    same("sum", case, tensor.grad, x)


@given(pairs(FLOATS[1:]))
def test_gradients_of_broadcasting(case):
    """The gradient is summed over what was repeated: <g, J v> = <J^T g, v>."""
    x, y = case
    a, b = palto.asarray(x, requires_grad=True), palto.asarray(y, requires_grad=True)
    product = a * b
    g = np.arange(product.size, dtype=float).reshape(product.shape)
    ga, gb = gradients([product], [palto.asarray(g)], [a, b])
    assert ga.shape == x.shape
    assert gb.shape == y.shape
    assert math.isclose((ga.numpy() * x).sum(), (g * x * y).sum(), abs_tol=1e-9)
    assert math.isclose((gb.numpy() * y).sum(), (g * x * y).sum(), abs_tol=1e-9)


@given(arrays(ANY), st.data())
def test_sorting(x, data):
    if x.ndim == 0:
        return
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    same("sort", (x, axis), palto.sort(palto.asarray(x), axis=axis), np.sort(x, axis))
    order = palto.argsort(palto.asarray(x), axis=axis)
    same("argsort", (x, axis), order, np.argsort(x, axis, kind="stable"))
    down = palto.argsort(palto.asarray(x), axis=axis, descending=True).numpy()
    values = np.take_along_axis(x, down, axis)
    np.testing.assert_array_equal(values, np.flip(np.sort(x, axis), axis))
    n = x.shape[axis]
    values, down = np.moveaxis(values, axis, -1), np.moveaxis(down, axis, -1)
    if n > 1:  # equal elements keep their order
        tied = values[..., 1:] == values[..., :-1]
        assert (down[..., 1:] > down[..., :-1])[tied].all()


@given(arrays(FLOATS), st.data())
def test_movement(x, data):
    tensor = palto.asarray(x)
    order = data.draw(st.permutations(range(x.ndim)))
    same("permute_dims", (x, order), palto.permute_dims(tensor, order), x.transpose(order))
    axes = data.draw(hnp.valid_tuple_axes(x.ndim))
    same("flip", (x, axes), palto.flip(tensor, axis=axes), np.flip(x, axes))
    widths = data.draw(
        st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=x.ndim, max_size=x.ndim)
    )
    wanted = np.pad(x, widths, constant_values=3) if x.ndim else x
    same("pad", (x, widths), palto.pad(tensor, widths, value=3), wanted)
    counts = data.draw(st.lists(st.integers(0, 3), max_size=4))
    same("tile", (x, counts), palto.tile(tensor, counts), np.tile(x, counts))
    for axis in range(-x.ndim, x.ndim):
        shift = data.draw(st.integers(-5, 5))
        same(
            "roll", (x, shift, axis), palto.roll(tensor, shift, axis=axis), np.roll(x, shift, axis)
        )
        same("repeat", (x, axis), palto.repeat(tensor, 2, axis=axis), np.repeat(x, 2, axis))
    same("flatten", x, palto.flatten(tensor), x.reshape(-1))


@given(arrays([np.dtype(bool), *FLOATS]), arrays(FLOATS, st.just((3,))))
def test_immutability(x, y):
    """A tensor keeps its value when the array that it was made of changes."""
    tensor, before = palto.asarray(x), x.copy()
    x[...] = 1
    np.testing.assert_array_equal(tensor, before)
    out = tensor.numpy()
    out[...] = 0
    np.testing.assert_array_equal(tensor, before)


@given(
    hnp.mutually_broadcastable_shapes(signature="(m,k),(k,n)->(m,n)", max_dims=2, max_side=3),
    st.data(),
)
def test_matmul(shapes, data):
    a, b = (
        data.draw(hnp.arrays(np.float64, shape, elements=elements(FLOATS[1])))
        for shape in shapes.input_shapes
    )
    got = palto.matmul(palto.asarray(a), palto.asarray(b))
    same("matmul", (a, b), got, np.matmul(a, b))
    x, y = palto.asarray(a, requires_grad=True), palto.asarray(b, requires_grad=True)
    product = x @ y
    g = np.ones(product.shape)
    gx, gy = gradients([product], [palto.asarray(g)], [x, y])
    assert (gx.shape, gy.shape) == (a.shape, b.shape)
    assert math.isclose((gx.numpy() * a).sum(), product.numpy().sum(), abs_tol=1e-9)
    assert math.isclose((gy.numpy() * b).sum(), product.numpy().sum(), abs_tol=1e-9)
