"""Indexing as in NumPy: random indices of every kind, their gradients, changed copies, errors."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import palto
from palto.tensor.graph import Trace


def integers_along(n):
    return st.integers(-n, n - 1)


@st.composite
def index_parts(draw, shape):
    """An index into `shape`: slices, whole numbers, None, '...', arrays, lists and masks."""
    parts = []
    fancy = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3))
    axis = 0
    kinds = ["slice", "slice", "int", "none", "array", "list", "mask", "stop"]
    dots = draw(st.integers(0, len(shape) + 1))
    while axis < len(shape):
        if len(parts) == dots:
            parts.append(Ellipsis)
            axis += draw(st.integers(0, len(shape) - axis))
            continue
        kind, n = draw(st.sampled_from(kinds)), shape[axis]
        if kind == "stop":
            break
        if kind == "none":
            parts.append(None)
            continue
        if kind == "slice" or n == 0:
            parts.append(draw(st.slices(n)))
        elif kind == "int":
            parts.append(draw(integers_along(n)))
        elif kind == "array":
            shrunk = draw(st.sampled_from([fancy, fancy[1:], (1,) * len(fancy), ()]))
            parts.append(draw(hnp.arrays(np.int64, shrunk, elements=integers_along(n))))
        elif kind == "list":
            length = fancy[-1] if fancy else 1
            parts.append(draw(st.lists(integers_along(n), min_size=length, max_size=length)))
        else:
            width = draw(st.integers(1, len(shape) - axis))
            mask = draw(hnp.arrays(bool, shape[axis : axis + width]))
            parts.append(mask)
            axis += width - 1
        axis += 1
    # Where an '...' has swallowed axes that later parts were drawn for, the lengths do not fit.
    return parts[0] if len(parts) == 1 and draw(st.booleans()) else tuple(parts)


@st.composite
def indexed(draw):
    """An array, an index that NumPy takes, and what NumPy gives."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    x = np.arange(float(np.prod(shape))).reshape(shape)
    index = draw(index_parts(shape))
    parts = index if isinstance(index, tuple) else (index,)
    masked = any(isinstance(part, np.ndarray) and part.dtype.kind == "b" for part in parts)
    assume(x.size or not masked)  # NumPy lets masks of other shapes pass where there is nothing
    try:
        return x, index, x[index]
    except IndexError:
        return x, index, None


def as_tensors(index):
    """The index with tensors for arrays."""
    if isinstance(index, tuple):
        return tuple(as_tensors(part) for part in index)
    return palto.asarray(index) if isinstance(index, np.ndarray) else index


@settings(max_examples=150)
@given(indexed(), st.booleans())
def test_as_numpy(case, with_tensors):
    x, index, wanted = case
    tensor = palto.asarray(x, requires_grad=True)
    used = as_tensors(index) if with_tensors else index
    if wanted is None:
        with pytest.raises(IndexError):
            tensor[used]
        return
    got = tensor[used]
    message = f"shape {x.shape}, index {index!r}"
    assert got.shape == wanted.shape, message
    np.testing.assert_array_equal(got, wanted, err_msg=message)

    # The gradient of sum(x[index] * w), whose elements may be named several times.
    weight = np.arange(1.0, wanted.size + 1).reshape(wanted.shape)
    (got * palto.asarray(weight)).sum().backward()
    places = np.arange(x.size).reshape(x.shape)[index]
    gradient = np.bincount(places.ravel(), weight.ravel(), minlength=x.size).reshape(x.shape)
    np.testing.assert_array_equal(tensor.grad, gradient, err_msg=message)


@settings(max_examples=60)
@given(indexed())
def test_changed_copies_as_numpy(case):
    x, index, part = case
    if part is None:
        return
    tensor = palto.asarray(x, requires_grad=True)
    value = np.arange(1.0, part.size + 1).reshape(part.shape) * 10
    added = x.copy()
    np.add.at(added, index, value)
    v = palto.asarray(value, requires_grad=True)
    got = tensor.at[index].add(v)
    np.testing.assert_array_equal(got, added, err_msg=f"{index!r}")
    got.sum().backward()
    np.testing.assert_array_equal(tensor.grad, np.ones(x.shape))
    np.testing.assert_array_equal(v.grad, np.ones(part.shape))

    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, np.ndarray | list) for p in parts):
        with pytest.raises(TypeError, match="may name an element twice"):
            tensor.at[index].set(value)
        return
    written = x.copy()
    written[index] = value
    got = tensor.at[index].set(v)
    np.testing.assert_array_equal(got, written, err_msg=f"{index!r}")
    got.sum().backward()
    kept = np.ones(x.shape)
    kept[index] = 0
    np.testing.assert_array_equal(tensor.grad, kept)
    np.testing.assert_array_equal(v.grad, np.ones(part.shape))
    np.testing.assert_array_equal(tensor, x)


@settings(max_examples=60)
@given(indexed())
def test_second_derivatives(case):
    x, index, part = case
    if part is None:
        return
    tensor = palto.asarray(x, requires_grad=True)
    y = tensor[index]
    (y * y * y).sum().backward(create_graph=True)
    first = tensor.grad
    (first * first).sum().backward()
    times = np.bincount(np.arange(x.size).reshape(x.shape)[index].ravel(), minlength=x.size)
    counts = times.reshape(x.shape)
    np.testing.assert_allclose(tensor.grad, 36 * counts**2 * x**3)


@pytest.mark.parametrize(
    "index",
    [
        (0, slice(None), [1, 2]),
        (slice(None), 0, [1, 2]),
        ([1, 2], slice(None), 0),
        (slice(None), [0], Ellipsis, [1]),
        (slice(None), None, [0, 1]),
        ([0, 1], None, [1, 0]),
        (0, [1, 2]),
        (np.array(1), slice(None), np.array([0, 3])),
        np.array(1),
        (np.array(1), np.array(2)),
        (None, 1, ..., None),
        np.uint8([1, 0]),
        range(2),
        ([], []),
        ((0, 1), 2),
        np.int32(1),
        [[True, False, False, True], [False] * 4, [True] * 4],
    ],
)
def test_where_the_axes_go(index):
    x = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    got, wanted = palto.asarray(x)[index], x[index]
    assert got.shape == wanted.shape
    np.testing.assert_array_equal(got, wanted)


def test_more_that_python_does_with_sequences():
    x = palto.asarray([[1, 2], [3, 4], [5, 6]])
    assert len(x) == 3
    assert [row.tolist() for row in x] == [[1, 2], [3, 4], [5, 6]]
    first, *rest = x
    assert first.tolist() == [1, 2]
    assert len(rest) == 2
    assert x[palto.asarray(1)].tolist() == [3, 4]
    assert [10, 20, 30][x[0, 1]] == 30
    assert 4 in x
    assert 9 not in x
    assert x[x > 2].tolist() == [3, 4, 5, 6]
    assert x[x[:, 0] > 2].tolist() == [[3, 4], [5, 6]]
    assert x[::-1, ::2].tolist() == [[5], [3], [1]]


ERRORS = [
    (5, IndexError, r"index 5 is out of range for axis 0 of shape \(3, 4\)"),
    (-4, IndexError, "index -4 is out of range for axis 0"),
    ((0, 4), IndexError, "index 4 is out of range for axis 1"),
    ([0, 7], IndexError, "index 7 is out of range: it must be from 0 to 2"),
    ((0, [0, -5]), IndexError, "index -5 is out of range: it must be from 0 to 3"),
    ((0, 0, 0), IndexError, r"3 indices for a tensor of 2 axes, shape \(3, 4\)"),
    ((..., 0, ...), IndexError, "only one '...'"),
    (np.ones(4, bool), IndexError, r"a mask of shape \(4,\) does not fit axes of shape \(3,\)"),
    (np.ones((3, 4, 1), bool), IndexError, "3 indices for a tensor of 2 axes"),
    (1.5, TypeError, "1.5 is no index"),
    ("a", TypeError, "'a' is no index"),
    (np.array([0.0, 1.0]), TypeError, "holds integers, or bool for a mask, not float64"),
    (True, TypeError, "a Python bool is no index; use a bool tensor"),
    (np.array(True), TypeError, "not bool"),
    (slice(0.5, None), TypeError, "slice bounds are whole numbers, got 0.5"),
    (slice(None, None, 0), ValueError, "zero"),
]


@pytest.mark.parametrize(("index", "error", "message"), ERRORS, ids=lambda x: str(x)[:20])
def test_errors(index, error, message):
    with pytest.raises(error, match=message):
        palto.zeros((3, 4))[index]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: palto.take(x, [0, 3]), IndexError, "index 3 is out of range.*from 0 to 2"),
        (lambda x: palto.take(x, [-1]), IndexError, "index -1 is out of range"),
        (lambda x: palto.take(x, [9], role="token"), IndexError, "token 9 is out of range"),
        (lambda x: palto.take(x, [0.5]), TypeError, "indices are integers, got float32; cast"),
        (lambda x: palto.take(x[:0], [0]), IndexError, "there is nothing to index"),
        (
            lambda x: palto.take_along_axis(x, palto.asarray([[4]] * 3), role="label"),
            IndexError,
            "label 4 is out of range: it must be from 0 to 3",
        ),
        (
            lambda x: palto.take_along_axis(x, palto.asarray([0, 0])),
            ValueError,
            r"indices of shape \(2,\) do not match \(3, 4\)",
        ),
        (lambda x: palto.scatter_add([0, 8, 1], x, size=5), IndexError, "index 8 is out of range"),
        (
            lambda x: palto.scatter_add([0, 1], x, size=5),
            ValueError,
            r"updates of shape \(3, 4\) do not match indices of shape \(2,\)",
        ),
        (
            lambda x: palto.dynamic_slice(x, [2, 0], (2, 2)),
            IndexError,
            "start 2 is out of range on axis 0: a box of 2 in 3 may start at 0 to 1",
        ),
        (lambda x: palto.dynamic_slice(x, [0], (2, 2)), ValueError, "one integer per axis"),
        (lambda x: palto.dynamic_slice(x, [0, 0], (5, 2)), ValueError, "does not fit into"),
        (
            lambda x: palto.dynamic_update_slice(x, palto.zeros((1, 1)), [0, 4]),
            IndexError,
            "start 4 is out of range on axis 1",
        ),
        (
            lambda x: palto.dynamic_update_slice(x, palto.zeros((1, 1), dtype="float64"), [0, 0]),
            TypeError,
            "cannot write float64 into float32; cast it first",
        ),
        (lambda x: x.at[0].set(palto.zeros((3,))), ValueError, r"\(3,\)"),
        (lambda x: x.at[0].set(1j), TypeError, "does not fit|complex"),
        (
            lambda x: x.at[0].add(palto.asarray(1)),
            TypeError,
            "cannot write int64 into a tensor of float32",
        ),
        (lambda x: x.at[3].set(1.0), IndexError, "index 3 is out of range"),
        (lambda x: x.at[[0, 3]].add(1.0), IndexError, "index 3 is out of range"),
    ],
)
def test_more_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(palto.zeros((3, 4)))


def test_items_cannot_be_set():
    x = palto.zeros(3)
    with pytest.raises(TypeError, match=r"never changes; write x = x\.at\[index\]\.set\(value\)"):
        x[0] = 1.0
    with pytest.raises(TypeError, match="never changes"):
        x[0] += 1.0


def test_masks_in_a_trace_say_what_to_do():
    trace = Trace()
    with trace.active():
        x = trace.placeholder((3,), palto.float32)
        with pytest.raises(palto.TraceError, match=r"known only when.*use palto\.where"):
            x[x > 0]
        with pytest.raises(palto.TraceError, match=r"palto\.dynamic_slice"):
            x[: palto.argmax(x)]
        assert x[palto.asarray([True, False, True])].shape == (2,)  # a mask that is known


def test_a_traced_index_out_of_range_is_named_when_it_runs():
    trace = Trace()
    with trace.active():
        x = trace.placeholder((3,), palto.float32)
        index = trace.placeholder((2,), palto.int64)
        y = x[index]
    from palto.tensor.graph import Graph

    graph = Graph.reaching([x, index], [y], trace.tensors)
    values = np.float32([5, 6, 7])
    assert graph.evaluate(values, np.array([-1, 0]))[0].tolist() == [7, 5]
    for bad in (-4, 3):
        with pytest.raises(IndexError, match=f"index {bad} is out of range"):
            graph.evaluate(values, np.array([0, bad]))


@pytest.mark.parametrize(
    "index",
    [
        slice(4, 1, -1),
        slice(None, 2, -1),
        slice(5, None, -2),
        slice(1, 6, 3),
        slice(3, 3),
        -1,
        (slice(None), slice(2, 0, -1)),
        (slice(4, 0, -2), 1),
        (2, slice(None, None, -2)),
        (Ellipsis, 0),
        (None, slice(1, 3)),
        Ellipsis,
        (),
    ],
)
def test_set_and_add_at_slices(index):
    x = np.arange(18.0).reshape(6, 3)
    value = np.arange(1.0, x[index].size + 1).reshape(x[index].shape) * 100
    written, added = x.copy(), x.copy()
    written[index] = value
    added[index] += value
    tensor = palto.asarray(x)
    np.testing.assert_array_equal(tensor.at[index].set(value), written)
    np.testing.assert_array_equal(tensor.at[index].add(value), added)
    written[index] = 7
    np.testing.assert_array_equal(tensor.at[index].set(7), written)
    np.testing.assert_array_equal(tensor.at[index].set(7.0), written)


def test_set_in_other_dtypes():
    assert palto.asarray([True, True]).at[0].set(False).tolist() == [False, True]
    assert palto.asarray([1, 2, 3]).at[::2].set(9).tolist() == [9, 2, 9]
    with pytest.raises(ValueError, match="300 is out of range for uint8"):
        palto.zeros(2, dtype="uint8").at[0].set(300)
