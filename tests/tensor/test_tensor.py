"""Tensor and Cell as objects: conversions, operators, NumPy, copies, errors."""

import copy
import pickle
import weakref

import numpy as np
import pytest

import palto
from palto import nn
from palto.tensor.tree import flatten, rebuild

# --- Making tensors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "dtype", "wanted"),
    [
        (3, "int64", 3),
        (2.5, "float32", 2.5),
        (True, "bool", True),
        (1 + 2j, "complex64", 1 + 2j),
        ([1, 2], "int64", [1, 2]),
        ([1, 2.5], "float32", [1, 2.5]),
        ([[True], [False]], "bool", [[True], [False]]),
        ([1.5, 2j], "complex64", [1.5, 2j]),
        ([], "float32", []),
        ([[], []], "float32", [[], []]),
        ((1, 2), "int64", [1, 2]),
        (range(3), "int64", [0, 1, 2]),
        (np.float64([1.5]), "float64", [1.5]),
        (np.float64(1.5), "float64", 1.5),
        (np.uint8([[7]]), "uint8", [[7]]),
        ([np.float64(1.5), 2.0], "float64", [1.5, 2]),
        ([2.0, np.float64(1.5)], "float64", [2, 1.5]),
        ([np.zeros(2, np.float32)], "float32", [[0, 0]]),
        (memoryview(b"ab"), "uint8", [97, 98]),
    ],
)
def test_asarray(given, dtype, wanted):
    x = palto.asarray(given)
    assert x.dtype.name == dtype
    assert x.tolist() == wanted


def test_asarray_with_a_dtype():
    assert palto.asarray([1.7, -1.7], dtype=int).tolist() == [1, -1]
    assert palto.asarray([1, 2], dtype=float).dtype == palto.float32
    assert palto.asarray(np.arange(3), dtype="float64").dtype == palto.float64
    assert palto.asarray(palto.ones(2), dtype=bool).tolist() == [True, True]
    assert palto.asarray([1e300]).tolist() == [np.inf]
    assert palto.asarray(1e300, dtype="float32").item() == np.inf


def test_lists_of_tensors_are_stacked():
    x = palto.asarray(2.0, requires_grad=True)
    y = palto.asarray([[x, x * x], [1.0, 2]])
    assert y.tolist() == [[2, 4], [1, 2]]
    y.sum().backward()
    assert x.grad.item() == 5


def test_asarray_of_what_others_hold(torch):
    x = palto.asarray(torch.ones(2, dtype=torch.float64))
    assert x.dtype == palto.float64
    np.testing.assert_array_equal(
        palto.asarray(np.arange(6).reshape(2, 3).T), [[0, 3], [1, 4], [2, 5]]
    )


def test_asarray_copies():
    array = np.zeros(2)
    shared = palto.asarray(array, copy=False)
    copied = palto.asarray(array)
    array[0] = 5
    assert shared.tolist() == [5, 0]
    assert copied.tolist() == [0, 0]
    x = palto.asarray(np.zeros((3, 4)).T)
    assert x.array().flags.c_contiguous


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([[1, 2], [3]], ValueError, "lists of equal lengths.*inhomogeneous"),
        ([palto.ones(2), palto.ones(3)], ValueError, r"\(2,\) and \(3,\) differ"),
        ("text", TypeError, "asarray wants numbers; str 'text'"),
        (None, TypeError, "asarray wants numbers; NoneType"),
        ([1, None], TypeError, "asarray wants numbers; list"),
        ({"a": 1}, TypeError, "asarray wants numbers; dict"),
        (np.zeros(2, np.uint16), TypeError, "no dtype dtype.'uint16'.*it holds.*Convert the data"),
        (np.zeros(2, np.complex128), TypeError, "no dtype dtype.'complex128'"),
        (np.array(["a"]), TypeError, "asarray wants numbers; ndarray"),
        (np.array([1, "a"], object), TypeError, "asarray wants numbers"),
        (2**63, ValueError, "the number 9223372036854775808 is out of range for int64"),
    ],
)
def test_asarray_errors(given, error, message):
    with pytest.raises(error, match=message):
        palto.asarray(given)


def test_making_errors():
    with pytest.raises(ValueError, match="step other than 0"):
        palto.arange(1, 5, 0)
    with pytest.raises(TypeError, match="arange wants Python numbers"):
        palto.arange(palto.asarray(3))
    with pytest.raises(ValueError, match=r"no negative lengths, got \(2, -1\)"):
        palto.zeros((2, -1))
    with pytest.raises(TypeError, match=r"whole numbers, got 2.5 in \(2.5,\)"):
        palto.zeros((2.5,))
    with pytest.raises(ValueError, match="300 is out of range for uint8"):
        palto.full((2,), 300, dtype="uint8")
    with pytest.raises(ValueError, match=r"want at least two axes, got shape \(2,\)"):
        palto.tril(palto.ones(2))


def test_arange_of_all_kinds():
    for args in [(5,), (2, 7, 2), (7, 2, -2), (0.5, 3.0, 0.25), (1.0,), (3, 0, -0.5), (5, 2)]:
        got = palto.arange(*args)
        wanted = np.arange(*args)
        assert got.dtype == (palto.int64 if wanted.dtype == np.int64 else palto.float32)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert palto.arange(3, 0, -1, dtype="uint8").tolist() == [3, 2, 1]
    assert palto.arange(np.int64(3)).dtype == palto.int64
    assert palto.arange(0, 3, 0.5, dtype=int).tolist() == [0, 0, 1, 1, 2, 2]
    assert palto.arange(3, dtype="float64").dtype == palto.float64


# --- Conversions ---------------------------------------------------------------------------------


def test_to_python():
    x = palto.asarray([[2.5]])
    assert (x.item(), float(x), int(x), complex(x), bool(x)) == (2.5, 2.5, 2, 2.5, True)
    assert f"{x:.2f}" == "2.50"
    assert f"{palto.asarray(3):04d}" == "0003"
    assert f"{palto.asarray([1, 2])}" == repr(palto.asarray([1, 2]))
    assert range(palto.asarray(3)) == range(3)
    assert [5, 6][palto.asarray(1)] == 6
    assert palto.asarray([1, 2]).tolist() == [1, 2]
    assert not palto.asarray(False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x.item(), ValueError, r"one element, this one has \(2,\)"),
        (float, ValueError, r"one element, this one has \(2,\)"),
        (bool, ValueError, r"shape \(2,\) is ambiguous; use .any\(\) or .all\(\)"),
        (lambda x: bool(x[:0]), ValueError, r"shape \(0,\) is ambiguous"),
        (lambda x: range(x[0]), TypeError,
         "only an integer tensor serves as an index, not float32"),
        (lambda x: len(x[0]), TypeError, "without axes has no len"),
        (lambda x: list(x[0]), TypeError, "without axes cannot be iterated"),
        (lambda x: x.T, ValueError, r"this tensor has shape \(2,\). Use .mT"),
        (lambda x: x.mT, ValueError, "at least two axes"),
        (lambda x: x.reshape(3), ValueError, r"cannot reshape \(2,\) \(2 elements\) to \(3,\)"),
        (lambda x: x.reshape(-1, 3), ValueError,
         r"cannot reshape \(2,\) \(2 elements\) to \(-1, 3\)"),
        (lambda x: x.reshape(-1, -1), ValueError, "only one length may be -1"),
        (lambda x: x.reshape(-2, 1), ValueError, "no negative lengths"),
        (lambda x: x.sum(1), ValueError, "axis 1 is out of range for a tensor of 1 axes"),
        (lambda x: x.sum((0, -1)), ValueError, "name an axis twice"),
        (lambda x: x.sum(0.5), TypeError, "whole number|not iterable"),
        (lambda x: x.permute(0, 1), ValueError, "out of range"),
        (lambda x: x.reshape(2, 1).permute(0, 0), ValueError, "is not an order of the 2 axes"),
        (lambda x: x.squeeze(0), ValueError,
         r"axes \(0,\) of shape \(2,\) are not all of length 1"),
        (lambda x: x + palto.ones(3), ValueError,
         r"add: shapes \(2,\) and \(3,\) do not broadcast"),
        (lambda x: x @ palto.ones((3, 4)), ValueError,
         r"\(2,\) and \(3, 4\) do not fit.*has 2.*axis"),
        (lambda x: x @ 2.0, ValueError, r"matmul wants axes, got shapes \(2,\) and \(\)"),
        (lambda x: x & 1, TypeError, "does not fit|does not take float32"),
        (lambda x: ~x, TypeError, "bitwise_invert does not take float32; it takes bool, int8"),
        (lambda x: x // palto.asarray(1), TypeError, "int64 do not mix"),
        (lambda x: palto.asarray([1]) / 2, TypeError,
         "divide does not take int64.*cast it to float"),
        (lambda x: palto.asarray([1]) // 0, ZeroDivisionError, "integer division by zero"),
        (lambda x: palto.asarray([1]) % 0, ZeroDivisionError, "integer remainder by zero"),
        (lambda x: palto.asarray([2]) ** -2, ValueError, "negative power; cast it to float32"),
        (lambda x: palto.asarray([2]) ** 2.0, TypeError,
         "2.0 does not fit a tensor of int64; cast"),
        (lambda x: palto.asarray([2]) ** 0.5, TypeError, "0.5 does not fit a tensor of int64"),
        (lambda x: -palto.asarray([True]), TypeError, "negative does not take bool"),
        (lambda x: palto.sqrt(palto.asarray([4])), TypeError,
         "sqrt does not take int64.*float32 first"),
        (lambda x: palto.mean(palto.asarray([4])), TypeError,
         "mean wants floating point, got int64"),
        (lambda x: palto.logical_and(x, x), TypeError, "wants bool, got float32; compare it first"),
        (lambda x: palto.where(x, x, x), TypeError, "where wants a bool condition, not float32"),
        (lambda x: palto.max(x[:0]), ValueError,
         r"max of no elements: shape \(0,\) over axes \(0,\)"),
        (lambda x: palto.argmax(x[:0]), ValueError, r"argmax of no elements: shape \(0,\)"),
        (lambda x: palto.top_k(x, 3), ValueError, r"k = 3, but axis 0 of shape \(2,\) has 2"),
        (lambda x: palto.concat([]), ValueError, "at least one tensor"),
        (lambda x: palto.concat([x, palto.ones((2, 2))]), ValueError,
         r"shapes \(2,\) and \(2, 2\)"),
        (lambda x: palto.concat([x[0], x[1]]), ValueError, "stack joins tensors without"),
        (lambda x: palto.stack([x, x[:1]]), ValueError, r"shapes \(2,\) and \(1,\) differ"),
        (lambda x: palto.split(x, 3), ValueError, "an axis of 2 does not split into 3 equal parts"),
        (lambda x: palto.split(x, [1, 2]), ValueError, r"\[1, 2\] do not add up to an axis of 2"),
        (lambda x: palto.pad(x, [(1, 1), (0, 0)]), ValueError,
         r"one \(before, after\) per axis of"),
        (lambda x: palto.pad(x, [(-1, 0)]), ValueError, "widths of at least 0"),
        (lambda x: palto.pad(palto.asarray([1]), [(1, 0)], value=0.5), TypeError, "does not fit"),
        (lambda x: palto.broadcast_to(x, (3,)), ValueError, r"\(2,\) does not broadcast to \(3,\)"),
        (lambda x: palto.flatten(x.reshape(1, 2), 1, 0), ValueError,
         "the first comes after the last"),
        (lambda x: palto.outer(x, x.reshape(1, 2)), ValueError,
         r"two vectors, got shapes \(2,\) and"),
        (lambda x: palto.tensordot(x, x), ValueError, r"2 axes of \(2,\) and \(2,\)"),
        (lambda x: palto.tensordot(x, palto.ones(3), axes=1), ValueError, "differ in length"),
        (lambda x: palto.einsum("ij->i", x), ValueError, "'ij' does not name the 1 axes of shape"),
        (lambda x: palto.einsum("i,j", x), ValueError, "2 terms for 1 tensors"),
        (lambda x: palto.einsum("i,i", x, palto.ones(3)), ValueError, "'i' has both 2 and 3"),
        (lambda x: palto.einsum("i->k", x), ValueError, "the output 'k' does not fit"),
        (lambda x: palto.einsum("ii", x.reshape(2, 1)), ValueError, "one letter each"),
        (lambda x: palto.vector_norm(palto.asarray([3, 4])), TypeError,
         "floating point, got int64"),
        (lambda x: palto.one_hot(x, 3), TypeError, "integer indices, got float32"),
        (lambda x: palto.sort(x[0]), ValueError, "at least one axis"),
        (lambda x: np.sin(x), TypeError, "ufunc"),
        (lambda x: x.requires_grad_().sum().requires_grad_(), ValueError, "computed from others"),
        (lambda x: pickle.dumps(x), TypeError, "not pickled; save them with palto.formats"),
        (lambda x: np.array(x, copy=False), ValueError, "hands NumPy a copy"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(palto.asarray([1.0, 2.0]))


def test_looks():
    assert repr(palto.asarray([1.5, 2])) == "Tensor([1.5, 2. ], dtype=float32)"
    x = palto.asarray(3.0, requires_grad=True)
    assert repr(x) == "Tensor(3., dtype=float32, requires_grad=True)"
    assert repr(palto.zeros((2, 0))) == "Tensor([], dtype=float32)"
    assert repr(palto.Cell([1], name="steps")) == "Cell('steps', Tensor([1], dtype=int64))"
    assert len(repr(palto.zeros((1000, 1000)))) < 1000
    assert repr((x * 2).operation) == "multiply(float32[], float32[])"


def test_operators():
    x, y = palto.asarray([7, -7]), palto.asarray([2, 2])
    a, b = x.numpy(), y.numpy()
    for got, wanted in [
        (x + y, a + b), (x - y, a - b), (x * y, a * b), (x // y, a // b), (x % y, a % b),
        (x & y, a & b), (x | y, a | b), (x ^ y, a ^ b), (x << y, a << b), (x >> y, a >> b),
        (~x, ~a), (-x, -a), (+x, a), (abs(x), abs(a)), (x == y, a == b), (x != y, a != b),
        (x < y, a < b), (x <= y, a <= b), (x > y, a > b), (x >= y, a >= b), (x @ y, a @ b),
        (1 + x, 1 + a), (1 - x, 1 - a), (2 * x, 2 * a), (9 // y, 9 // b), (9 % y, 9 % b),
        (3 & x, 3 & a), (3 | x, 3 | a), (3 ^ x, 3 ^ a), (3 << y, 3 << b), (99 >> y, 99 >> b),
        (a + y, a + b), (a @ y, a @ b), (x**3, a**3), (2**y, 2**b), (x**y, a**b),
        (x.astype(float) / 2, a / 2), (1 / y.astype(float), 1 / b),
    ]:  # fmt: skip
        assert isinstance(got, palto.Tensor)
        np.testing.assert_array_equal(got, wanted)
    x += 1
    assert x.tolist() == [8, -6]


def test_methods_are_the_functions():
    x = palto.asarray(np.random.default_rng(0).normal(size=(2, 3)))
    for name in ("sum", "mean", "var", "std", "max", "min", "argmax", "argmin"):
        for options in ({}, {"axis": 1}, {"axis": 0, "keepdims": True}):
            np.testing.assert_array_equal(
                getattr(x, name)(**options), getattr(palto, name)(x, **options)
            )
    assert (x > 0).any().item() is (x > 0).numpy().any().item()
    assert (x > 0).all(0).tolist() == (x > 0).numpy().all(0).tolist()
    assert x.flatten().shape == x.reshape(6).shape == x.reshape((6,)).shape == (6,)
    assert x.permute(1, 0).shape == x.permute((1, 0)).shape == x.T.shape == x.mT.shape == (3, 2)
    assert x.unsqueeze(-1).shape == (2, 3, 1)
    assert x.unsqueeze(0).squeeze(0).shape == (2, 3)
    assert (x.ndim, x.size) == (2, 6)


def test_numpy_integers_as_axes_and_lengths():
    x, one = palto.asarray([[1.0, 2.0, 4.0], [3.0, 4.0, 5.0]]), np.int64(1)
    assert x.sum(one).tolist() == [7, 12]
    assert palto.flip(x, axis=one).tolist() == [[4, 2, 1], [5, 4, 3]]
    assert x.reshape(np.int64(6)).shape == x.reshape(np.int64(-1)).shape == (6,)
    assert x.reshape(np.int64(3), 2).shape == (3, 2)
    assert palto.concat([x, x], axis=one).shape == (2, 6)
    assert len(palto.split(x, np.int64(3), axis=one)) == 3
    assert palto.zeros(np.int64(3)).shape == palto.arange(np.int64(3)).shape == (3,)
    assert palto.zeros((np.int64(3),)).shape == (3,)


def test_numpy_functions_see_the_value():
    x = palto.asarray([[1.0, 2.0], [3.0, 4.0]])
    assert np.mean(x) == 2.5
    assert np.concatenate([x, x.numpy()]).shape == (4, 2)
    assert np.asarray(x).dtype == np.float32
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    np.asarray(x)[0, 0] = 9
    assert x[0, 0].item() == 1
    assert np.linalg.norm(x) == np.linalg.norm(x.numpy())


def test_equality_and_hash():
    x, y = palto.asarray([1, 2]), palto.asarray([1, 2])
    assert (x == y).tolist() == [True, True]
    assert len({x, y, x}) == 2
    assert {x: 1}[x] == 1


def test_copies():
    x = palto.asarray([1.0])
    assert copy.copy(x) is x
    assert copy.deepcopy(x) is x


# --- Cells ---------------------------------------------------------------------------------------


def test_a_cell_stands_for_its_value():
    cell = palto.Cell([1.0, 2.0], name="mean")
    before = cell + 1
    held = cell.read()
    cell.assign(cell * 10)
    assert cell.tolist() == [10, 20]
    assert before.tolist() == [2, 3]
    assert held.tolist() == [1, 2]
    assert cell[1].item() == 20
    assert palto.concat([cell, cell]).shape == (4,)
    cell.assign(0)
    assert cell.tolist() == [0, 0]
    cell.assign(np.float32([5, 6]))
    assert cell.tolist() == [5, 6]


def test_cells_hold_their_own_contiguous_memory():
    assert palto.Cell(palto.zeros((3, 4))).array().strides == (16, 4)
    cell = palto.Cell(np.zeros((3, 4)).T)
    assert cell.array().flags.c_contiguous
    cell.assign(palto.ones((3, 4), dtype="float64").T)
    assert cell.array().flags.c_contiguous
    assert palto.Cell(3.0).shape == ()
    array = np.zeros(2)
    cell = palto.Cell(array)
    array[0] = 1
    assert cell.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (palto.ones(3), ValueError, r"mean has shape \(2,\) and cannot take a value of \(3,\)"),
        (palto.ones((1, 2)), ValueError, r"cannot take a value of \(1, 2\)"),
        (np.ones(2), TypeError, r"mean holds float32 and cannot take float64; cast.*palto.float32"),
        (palto.asarray([1, 2]), TypeError, "holds float32 and cannot take int64"),
        (True, TypeError, "True does not fit a tensor of float32"),
        (1j, TypeError, "cannot take complex64"),
    ],
)
def test_assignment_errors(value, error, message):
    cell = palto.Cell([1.0, 2.0], name="mean")
    with pytest.raises(error, match=message):
        cell.assign(value)
    assert cell.tolist() == [1, 2]


def test_a_fraction_is_no_count():
    with pytest.raises(TypeError, match=r"0.5 does not fit a tensor of int64"):
        palto.Cell(0).assign(0.5)


def test_copies_of_cells():
    layer = nn.Linear(2, 3)
    layer(palto.ones((1, 2))).sum().backward()
    other = copy.deepcopy(layer)
    np.testing.assert_array_equal(other.weight, layer.weight)
    assert other.weight.grad is None
    assert not other.weight.has_pending_grad()
    assert other.weight.requires_grad
    assert other.weight.name == layer.weight.name
    other.weight.assign(0.0)
    assert layer.weight.numpy().any()
    other(palto.ones((1, 2))).sum().backward()
    assert other.weight.grad is not None
    tied = [layer.weight, layer.weight]
    a, b = copy.deepcopy(tied)
    assert a is b
    buffer = copy.deepcopy(nn.Buffer(palto.ones(2), persistent=False))
    assert buffer.persistent is False
    layer.weight.requires_grad_(False)
    assert not copy.deepcopy(layer).weight.requires_grad


def test_a_cell_knows_its_reads():
    cell = palto.Cell([1.0], requires_grad=True)
    leaf = cell.read()
    assert leaf.cell is cell
    assert cell.cell is cell
    reference = weakref.ref(cell)
    y = leaf * 2
    del cell
    assert reference() is None
    y.sum().backward()  # nobody wants the gradient, and nothing breaks
    assert leaf.cell is None


def test_recast():
    cell = palto.Cell([1.0, 2.0], requires_grad=True)
    cell.recast(palto.float64)
    assert cell.dtype == cell.read().dtype == palto.float64
    assert cell.requires_grad
    (cell * 2).sum().backward()
    assert cell.grad.dtype == palto.float64


# --- Trees ---------------------------------------------------------------------------------------


def test_trees():
    from collections import namedtuple
    from dataclasses import dataclass

    pair = namedtuple("pair", "a b")

    @dataclass
    class Batch:
        x: object
        y: object

    value = {"k": [1, (2, None)], "p": pair(3, {"z": 4}), "d": Batch(5, (6,)), "e": []}
    leaves, tree = flatten(value)
    assert leaves == [1, 2, 3, 4, 5, 6]
    assert rebuild(tree, leaves) == value
    doubled = rebuild(tree, [2 * n for n in leaves])
    assert doubled["p"] == pair(6, {"z": 8})
    assert doubled["d"] == Batch(10, (12,))
    assert doubled["k"][1][1] is None
    assert hash(tree) == hash(flatten(value)[1])
    assert tree == flatten(value)[1]
    assert tree != flatten({"k": [1, [2, None]]})[1]
    assert flatten("*") == (["*"], flatten(3)[1])
    assert rebuild(flatten(None)[1], []) is None
