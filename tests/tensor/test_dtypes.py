"""Dtypes: which mix, into what, and what a Python number becomes beside a tensor."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import palto
from palto.tensor import dtypes
from palto.tensor.dtypes import as_dtype, result_dtype

NAMES = [d.name for d in dtypes.SUPPORTED]

#: The array API's table without the formats that Palto does not hold; int8 with uint8, whose
#: int16 is missing, goes to int32. Pairs that are not here, either way round, do not mix.
MIXED = {
    ("int8", "int32"): "int32",
    ("int8", "int64"): "int64",
    ("int32", "int64"): "int64",
    ("uint8", "uint32"): "uint32",
    ("int8", "uint8"): "int32",
    ("int8", "uint32"): "int64",
    ("int32", "uint8"): "int32",
    ("int32", "uint32"): "int64",
    ("int64", "uint8"): "int64",
    ("int64", "uint32"): "int64",
    ("float32", "float64"): "float64",
    ("float32", "complex64"): "complex64",
    ("bfloat16", "float32"): "float32",
    ("bfloat16", "float64"): "float64",
    ("float16", "float32"): "float32",
    ("float16", "float64"): "float64",
    ("float16", "bfloat16"): "float32",
}
NUMERIC = [name for name in NAMES if name not in ("bool", "float16", "bfloat16")]


def ones(name):
    return palto.ones((2,), dtype=name)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(NAMES, NAMES)))
def test_promotion(first, second):
    wanted = first if first == second else None
    wanted = wanted or MIXED.get((first, second)) or MIXED.get((second, first))
    if wanted is None:
        with pytest.raises(TypeError, match=f"{first} and {second} do not mix"):
            result_dtype(as_dtype(first), as_dtype(second))
        for function in (palto.add, palto.equal, palto.maximum, lambda *xs: palto.concat(xs)):
            with pytest.raises(TypeError, match="cast one of them"):
                function(ones(first), ones(second))
        return
    assert result_dtype(as_dtype(first), as_dtype(second)).name == wanted
    if wanted in NUMERIC:
        result = ones(first) + ones(second)
        assert result.dtype.name == wanted
        np.testing.assert_array_equal(result, 2)
    else:  # bool and the floats of 16 bits have no arithmetic
        with pytest.raises(TypeError, match=f"add does not take {wanted}"):
            ones(first) + ones(second)
        assert palto.concat([ones(first), ones(second)]).dtype.name == wanted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [True, 3, 2.5, 1.5j])
def test_python_numbers(name, number):
    """A Python number takes the dtype beside it if its kind fits."""
    x = ones(name)
    kinds = {bool: "b", int: "iufcV", float: "fcV", complex: "c"}[type(number)]
    if x.dtype.kind in kinds:
        wanted = name
    elif isinstance(number, complex) and name == "float32":
        wanted = "complex64"
    else:
        for compute in (lambda: palto.maximum(x, number), lambda: palto.where(x == x, number, x)):
            with pytest.raises(TypeError, match=r"the Python number .* does not fit|complex"):
                compute()
        return
    for result in (palto.where(x == x, number, x), palto.where(x == x, x, number)):
        assert result.dtype.name == wanted
    assert palto.where(x == x, number, x).tolist() == [number, number]


@pytest.mark.parametrize("name", [n for n in NAMES if n[0] in "iu"])
def test_python_integers_out_of_range(name):
    info = np.iinfo(name)
    for number in (int(info.min) - 1, int(info.max) + 1):
        with pytest.raises(ValueError, match=f"{number} is out of range for {name}"):
            ones(name) + number
        with pytest.raises(ValueError, match="out of range"):
            palto.asarray([number], dtype=name)
        with pytest.raises(ValueError, match="out of range"):
            palto.full((2,), number, dtype=name)
    assert palto.asarray([info.min, info.max], dtype=name).tolist() == [info.min, info.max]


def test_python_numbers_alone():
    condition = palto.asarray([True, False])
    assert palto.where(condition, 0, 1.5).dtype == palto.float32
    assert palto.where(condition, 2, 3).dtype == palto.int64
    assert palto.where(condition, True, False).dtype == palto.bool
    assert palto.where(condition, 1.0, 2j).dtype == palto.complex64
    assert palto.add(1, 2.5).item() == 3.5


def test_numpy_numbers():
    """NumPy's scalars have a dtype; float64, which is a Python float too, mixes as one."""
    x = palto.asarray([1.0, 2.0])
    assert (x * np.float32(2)).dtype == palto.float32
    assert (x * np.float64(2)).dtype == palto.float32
    assert (np.float64(2) * x).dtype == palto.float32
    assert (np.ones(2, np.float32) + x).dtype == palto.float32
    assert isinstance(np.ones(2, np.float32) * x, palto.Tensor)
    with pytest.raises(TypeError, match="do not mix"):
        x * np.int64(2)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (float, "float32"),
        (int, "int64"),
        (bool, "bool"),
        (complex, "complex64"),
        ("float64", "float64"),
        (np.uint8, "uint8"),
        (np.dtype("int32"), "int32"),
        ("bfloat16", "bfloat16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (palto.float32, "float32"),
    ],
)
def test_as_dtype(given, wanted):
    assert as_dtype(given).name == wanted
    assert palto.zeros((1,), dtype=given).dtype.name == wanted


@pytest.mark.parametrize("given", ["complex128", np.int16, "int16", "uint64", object, "nonsense"])
def test_other_dtypes(given):
    with pytest.raises(TypeError, match=r"Palto has no dtype.*it holds bool, int8.*Convert"):
        as_dtype(given)


def test_no_dtype_drifts():
    """float32 stays float32 through every function of one or more floats, and its gradient."""
    x = palto.asarray([[0.3, 0.6], [0.2, 0.9]], requires_grad=True)
    functions = [
        palto.sinh, palto.asinh, palto.acos, palto.atan, palto.log2, palto.log10, palto.rsqrt,
        palto.mean, palto.std, palto.prod, palto.logsumexp, palto.vector_norm, palto.erf,
        lambda x: palto.median(x, 0), lambda x: x**2.5, lambda x: 2**x, lambda x: 1 / x,
        lambda x: palto.clip(x, 0.25, 0.5), lambda x: x.sum() / 3, lambda x: x.at[0, 0].set(1),
        lambda x: palto.pad(x, [(1, 1), (0, 0)], value=1), lambda x: palto.take(x, [0, 0]),
        lambda x: palto.cumulative_sum(x), lambda x: palto.sort(x), lambda x: x @ x,
        lambda x: palto.var(x, correction=1), lambda x: palto.where(x > 0.5, x, 0),
    ]  # fmt: skip
    for function in functions:
        y = function(x)
        assert y.dtype == palto.float32
        y.sum().backward()
        assert x.grad.dtype == palto.float32


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_floats_of_16_bits_are_stored_moved_and_cast(name):
    values = np.array([[1.0, -2.5], [3.140625, 6e4]], np.float32)
    x = palto.asarray(values).astype(name)
    dtype = getattr(palto, name)
    assert x.dtype == dtype
    wanted = values.astype(dtype)
    for got, array in [
        (x.T, wanted.T),
        (x[1:, 0], wanted[1:, 0]),
        (x[[1, 0]], wanted[[1, 0]]),
        (x.reshape(4), wanted.reshape(4)),
        (palto.concat([x, x]), np.concatenate([wanted, wanted])),
        (palto.flip(x), np.flip(wanted)),
        (palto.pad(x, [(1, 0), (0, 0)]), np.pad(wanted, [(1, 0), (0, 0)])),
        (x.at[0].set(0.5), np.stack([np.full(2, 0.5, wanted.dtype), wanted[1]])),
        (x.astype("float32"), wanted.astype(np.float32)),
        (x == x, np.ones((2, 2), bool)),
    ]:
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    special = palto.asarray([np.nan, np.inf, 1.0], dtype=name)
    assert palto.isnan(special).tolist() == [True, False, False]
    assert palto.isinf(special).tolist() == [False, True, False]
    assert palto.isfinite(special).tolist() == [False, False, True]
    for arithmetic in (lambda: x + x, lambda: x @ x, lambda: x.sum(), lambda: palto.exp(x)):
        with pytest.raises(TypeError, match=name):
            arithmetic()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_gradients_pass_through_floats_of_16_bits(name):
    x = palto.asarray([1.0, 2.0], requires_grad=True)
    (x.astype(name).astype("float32") * palto.asarray([3.0, 5.0])).sum().backward()
    assert x.grad.dtype == palto.float32
    assert x.grad.tolist() == [3, 5]


def test_integer_sums_do_not_wrap():
    for name in ("bool", "int8", "int32", "uint8", "uint32"):
        x = palto.ones((300,), dtype=name)
        assert palto.sum(x).dtype == palto.int64
        assert palto.sum(x).item() == 300
        assert palto.cumulative_sum(x)[-1].item() == 300
        assert palto.prod(x).dtype == palto.int64
    assert palto.sum(palto.full((3,), 2**31 - 1, dtype="int32")).item() == 3 * (2**31 - 1)


def test_narrow_indices_count_far_enough():
    """Indices of uint8 into more than 256 places."""
    labels = palto.asarray([5, 250], dtype="uint8")
    wanted = np.zeros((2, 1000))
    wanted[[0, 1], [5, 250]] = 1
    np.testing.assert_array_equal(palto.one_hot(labels, 1000), wanted)
    x = np.random.default_rng(0).normal(size=(600, 4))
    index = np.random.default_rng(1).integers(0, 4, (600, 1)).astype(np.uint8)
    got = palto.take_along_axis(palto.asarray(x), palto.asarray(index), axis=1)
    np.testing.assert_array_equal(got, np.take_along_axis(x, index.astype(int), 1))
