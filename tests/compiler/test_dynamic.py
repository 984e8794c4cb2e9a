"""Dynamic shapes: one program for every size of an axis, equal to running at once."""

from __future__ import annotations

import copy
import pickle
import re
import time
import warnings
import weakref

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import palto
from palto import nn, optim
from palto.compiler.dynamic import Samples, Size
from palto.compiler.sizes import Comparisons, at, bounds
from palto.compiler.trace import record
from palto.tensor.graph import Spec
from palto.tensor.tensor import TraceError
from palto.tensor.tree import flatten

F = nn.functional
MOST = 37
SIZES = (MOST, 2, 3, 7, 8, 9, 16, 31, 36)
_random = np.random.default_rng(0)
_weight = palto.asarray(_random.normal(size=(13, 24)).astype("f"))
_kernel = palto.asarray(_random.normal(size=(3, 3, 4, 6)).astype("f"))
_linear = nn.Linear(13, 7)
_norm = nn.BatchNorm2d(4)


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.delenv("PALTO_THREADS", raising=False)
    before = palto.get_num_threads()
    yield
    palto.set_num_threads(before)


def turned(x):
    return palto.matrix_transpose(x)


def attention(x):
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


def squares(function):
    """The gradient of the sum of a function's squares."""
    return lambda x: palto.grad(lambda y: palto.mean(palto.square(function(y))))(x)


def towards(value, function):
    """The gradient towards a fixed tensor."""
    return lambda x: palto.grad(lambda w: palto.mean(palto.square(function(x, w))))(value)


def carried(x):
    start = palto.zeros((x.shape[1], 5))
    return palto.scan(lambda c, y: (c * 0.5 + y, c), start, x)[1]


def normalised(x):
    centred = x - palto.mean(x, axis=0)
    return centred / palto.sqrt(palto.var(x, axis=0) + 1e-3)


def labelled(x):
    labels = palto.astype(palto.arange(x.shape[0]) % 7, palto.int64)
    return F.cross_entropy(x, labels)


#: A function, and the shape of its argument, "n" in the place of the run-time size.
CASES = {
    "map": (lambda x: palto.exp(x) * 2 + 1, ("n", 5)),
    "map along the last axis": (lambda x: palto.exp(x) * 2 + 1, (5, "n")),
    "map along a middle axis": (lambda x: palto.tanh(x) + x, (3, "n", 4)),
    "permute": (lambda x: palto.permute_dims(x, (2, 0, 1)) * 1.5, (3, "n", 4)),
    "flip": (lambda x: palto.flip(x, axis=1), (3, "n", 4)),
    "flatten": (lambda x: palto.reshape(x * 2, (-1,)), (3, "n", 4)),
    "merge": (
        lambda x: palto.reshape(palto.permute_dims(x, (1, 0, 2)), (x.shape[0] * x.shape[1], 4)),
        (3, "n", 4),
    ),
    "sum of columns": (lambda x: palto.sum(x, axis=0), ("n", 50)),
    "sum of rows": (lambda x: palto.sum(x, axis=1), (50, "n")),
    "sum of all": (lambda x: palto.sum(x), (50, "n", 9)),
    "mean": (lambda x: palto.mean(x), ("n", 9)),
    "mean of an axis": (lambda x: palto.mean(x * x, axis=1), (4, "n", 9)),
    "max of rows": (lambda x: palto.max(x, axis=1), (4, "n")),
    "max of columns": (lambda x: palto.max(x, axis=0), ("n", 40)),
    "argmax of rows": (lambda x: palto.argmax(x, axis=1), (4, "n")),
    "argmax of columns": (lambda x: palto.argmax(x, axis=0), ("n", 20)),
    "variance": (lambda x: palto.var(x, axis=0, correction=1), ("n", 20)),
    "normalised": (normalised, ("n", 13)),
    "softmax along": (lambda x: F.softmax(x, axis=-1), (4, "n")),
    "softmax of rows": (lambda x: F.softmax(x, axis=-1), ("n", 10)),
    "softmax of columns": (lambda x: F.softmax(x, axis=0), ("n", 10)),
    "layer norm": (lambda x: F.layer_norm(x, (16,)), (2, "n", 16)),
    "batch norm": (lambda x: _norm(x), ("n", 5, 6, 4)),
    "product's rows": (lambda x: x @ _weight, ("n", 13)),
    "product's columns": (lambda x: turned(_weight) @ x, (13, "n")),
    "product's sums": (lambda x: turned(x) @ x, ("n", 13)),
    "product's rows and columns": (lambda x: x @ turned(x), ("n", 13)),
    "product's batch": (lambda x: x @ turned(x), ("n", 5, 13)),
    "batched rows and columns": (lambda x: x @ turned(x), (2, "n", 13)),
    "batched sums": (lambda x: turned(x) @ x, (2, "n", 13)),
    "many sums": (lambda x: turned(x) @ x, ("n", 40, 31)),
    "layer": (lambda x: F.relu(_linear(x)), ("n", 13)),
    "layer over a sequence": (lambda x: F.gelu(_linear(x)), (2, "n", 13)),
    "attention": (attention, (2, 3, "n", 8)),
    "attention of the last": (
        lambda x: F.scaled_dot_product_attention(x[:, :, -1:], x, x), (2, 3, "n", 8),
    ),
    "convolution": (lambda x: F.conv2d(x, _kernel, padding=1), ("n", 9, 8, 4)),
    "convolution of any height": (lambda x: F.conv2d(x, _kernel, padding=1), (2, "n", 8, 4)),
    "strided convolution": (lambda x: F.conv2d(x, _kernel, stride=2), ("n", 9, 8, 4)),
    "max pooling": (lambda x: F.max_pool2d(x, 2), ("n", 8, 8, 3)),
    "average pooling": (lambda x: F.avg_pool2d(x, 2), ("n", 8, 8, 3)),
    "concat": (lambda x: palto.concat([x, x * 2], axis=0), ("n", 5)),
    "concat of another": (lambda x: palto.concat([x, palto.ones((3, 2))], axis=1), (3, "n")),
    "slices": (lambda x: x[:-1] - x[1:], ("n", 5)),
    "last": (lambda x: x[-1], ("n", 5)),
    "running sum": (lambda x: palto.cumulative_sum(x, axis=0), ("n", 5)),
    "running sum along": (lambda x: palto.cumulative_sum(x, axis=1), (3, "n")),
    "sort": (lambda x: palto.sort(x, axis=0), ("n", 5)),
    "range": (lambda x: x * palto.arange(x.shape[0], dtype=palto.float32)[:, None], ("n", 5)),
    "triangle": (lambda x: palto.tril(x @ turned(x)), ("n", 5)),
    "take": (lambda x: palto.take(_weight, palto.astype(x * x, palto.int64), axis=0), ("n",)),
    "cross entropy": (labelled, ("n", 7)),
    "broadcast": (
        lambda x: palto.broadcast_to(x[:, None, :], (x.shape[0], 3, 5)) * 1.0, ("n", 5),
    ),
    "one over the size": (lambda x: palto.sum(x) * (1.0 / x.shape[0]), ("n", 5)),
    "the size": (lambda x: palto.asarray(x.shape[0] * 3), ("n", 5)),
    "FFT": (lambda x: palto.real(palto.fft.rfft(x)), ("n", 16)),
    "random numbers": (lambda x: x + palto.random.normal(x.shape), (3, "n", 5)),
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), ("n", 15)),
    "scan along": (
        lambda x: palto.scan(lambda c, y: (c * 0.5 + y, c), palto.zeros((5,)), x)[1], ("n", 5),
    ),
    "scan across": (carried, (4, "n", 5)),
    "scatter": (
        lambda x: palto.zeros((13, 5)).at[palto.arange(x.shape[0]) % 13].add(x), ("n", 5),
    ),
    "gradient of a product": (squares(lambda y: F.softmax(y @ _weight, axis=-1)), ("n", 13)),
    "gradient towards weights": (towards(_weight, lambda x, w: F.gelu(x @ w)), ("n", 13)),
    "gradient towards a kernel": (
        towards(_kernel, lambda x, w: F.conv2d(x, w, padding=1)), ("n", 9, 8, 4),
    ),
    "gradient of a convolution": (
        squares(lambda y: F.conv2d(y, _kernel, stride=2, padding=1)), ("n", 9, 8, 4),
    ),
    "gradient of pooling": (
        squares(lambda y: F.max_pool2d(y, 3, stride=2, padding=1)), ("n", 9, 8, 4),
    ),
    "gradient of attention": (squares(attention), (2, 3, "n", 8)),
}  # fmt: skip


def close(got, wanted, message):
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype), message
    largest = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(got, wanted, rtol=3e-4, atol=3e-5 * largest, err_msg=message)


@pytest.mark.parametrize("name", CASES)
def test_one_program_for_all_sizes(name):
    function, shape = CASES[name]
    batch = palto.Dim("batch", max=MOST)
    compiled = palto.compile(function, dynamic_shapes={"x": {shape.index("n"): batch}})
    for size in SIZES:
        length = tuple(size if n == "n" else n for n in shape)
        x = np.random.default_rng(size).normal(size=length).astype("f")
        palto.manual_seed(7)
        wanted = function(palto.asarray(x)).array()
        results = []
        for count in (1, 2, 3):
            palto.set_num_threads(count)
            palto.manual_seed(7)
            results.append(compiled(x).array())
        close(results[0], wanted, f"{name}, size {size}")
        assert all(result.tobytes() == results[0].tobytes() for result in results)
    assert compiled.program_count == 1


def model():
    palto.manual_seed(0)
    return nn.Sequential(
        # A bias before batch norm has a gradient of rounding errors, which Adam makes steps of.
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(8 * 4 * 4, 10),
    )  # fmt: skip


def training(network, optimizer):
    def step(images, labels):
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def test_training_with_batches_of_any_size():
    plain, other = model(), model()
    at_once = training(plain, optim.Adam(plain, lr=1e-2))
    batch = palto.Dim("batch", max=20)
    compiled = palto.compile(
        training(other, optim.Adam(other, lr=1e-2)),
        dynamic_shapes={"images": {0: batch}, "labels": {0: batch}},
    )
    rng = np.random.default_rng(0)
    for size in (20, 7, 13, 2, 19):
        images = rng.normal(size=(size, 8, 8, 1)).astype("f")
        labels = rng.integers(0, 10, size)
        palto.manual_seed(size)
        wanted = at_once(palto.asarray(images), palto.asarray(labels)).array()
        palto.manual_seed(size)
        close(compiled(images, labels).array(), wanted, f"loss of a batch of {size}")
    for (name, x), (_, y) in zip(
        plain.state_dict().items(), other.state_dict().items(), strict=True
    ):
        close(np.asarray(y), np.asarray(x), name)
    assert compiled.program_count == 1


def test_a_cache_that_grows():
    """Decoding: attention over as much of a cache as is filled."""
    keys = palto.Cell(np.zeros((2, 24, 8), "f"), name="keys")
    length = palto.Dim("length", max=24)

    def decode(key, length):
        place = palto.asarray([0, length - 1, 0])
        keys.assign(palto.dynamic_update_slice(keys.read(), key[:, None], place))
        filled = keys.read()[:, :length]
        return F.scaled_dot_product_attention(key[:, None], filled, filled)

    compiled = palto.compile(decode, dynamic_shapes={"length": length})
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=(2, 8)).astype("f") for _ in range(24)]
    wanted = [decode(palto.asarray(key), i + 1).array() for i, key in enumerate(steps)]
    filled = keys.read().array().copy()
    keys.assign(np.zeros((2, 24, 8), "f"))
    for i, key in enumerate(steps):
        close(compiled(key, i + 1).array(), wanted[i], f"length {i + 1}")
    np.testing.assert_array_equal(keys.read().array(), filled)
    assert compiled.program_count == 2  # a length of 1 has its own


def test_two_sizes_of_one_call(executor):
    rows, columns = palto.Dim("rows", max=19), palto.Dim("columns", max=23)

    def function(x, pair):
        y, z = pair
        return F.softmax(x @ y, axis=-1) * z, palto.mean(x @ y), palto.reshape(x @ y, (-1,))

    compiled = palto.compile(
        function,
        dynamic_shapes={"x": {0: rows}, "pair": ({1: columns}, {0: rows, 1: columns})},
    )
    rng = np.random.default_rng(0)
    for m, n in ((19, 23), (2, 3), (8, 2), (5, 17), (19, 2)):
        x, y, z = (rng.normal(size=s).astype("f") for s in ((m, 6), (6, n), (m, n)))
        wanted = function(*map(palto.asarray, (x,)), (palto.asarray(y), palto.asarray(z)))
        for ours, theirs in zip(compiled(x, (y, z)), wanted, strict=True):
            close(ours.array(), theirs.array(), f"{m} rows, {n} columns")
    assert compiled.program_count == 1


def test_sizes_of_0_and_1_have_programs_of_their_own(executor):
    batch = palto.Dim("batch", max=9)
    compiled = palto.compile(lambda x: palto.squeeze(x, 0) if x.shape[0] == 1 else x * 2,
                             dynamic_shapes={"x": {0: batch}})  # fmt: skip
    for size in (5, 1, 0, 9):
        got = compiled(np.ones((size, 3), "f"))
        assert got.shape == ((3,) if size == 1 else (size, 3))
    assert compiled.program_count == 3


def test_a_small_size_takes_less_time():
    palto.set_num_threads(1)
    batch = palto.Dim("batch", max=512)
    weight = palto.asarray(np.ones((512, 512), "f"))
    compiled = palto.compile(lambda x: x @ weight, dynamic_shapes={"x": {0: batch}})

    def seconds(size):
        x = np.ones((size, 512), "f")
        compiled(x)
        times = []
        for _ in range(20):
            begun = time.perf_counter()
            compiled(x)
            times.append(time.perf_counter() - begun)
        return min(times)

    assert seconds(4) < seconds(512) / 2
    assert compiled.program_count == 1


def test_guards_of_memory(monkeypatch):
    monkeypatch.setenv("PALTO_DEBUG", "1")
    batch = palto.Dim("batch", max=21)
    compiled = palto.compile(
        lambda x: F.softmax(x @ turned(x), axis=-1) @ x, dynamic_shapes={"x": {0: batch}}
    )
    for size in (21, 2, 13):
        x = np.random.default_rng(0).normal(size=(size, 8)).astype("f")
        wanted = F.softmax(palto.asarray(x) @ palto.asarray(x.T), axis=-1) @ palto.asarray(x)
        close(compiled(x).array(), wanted.array(), f"size {size}")


def test_explain_says_the_lengths_of_the_call():
    batch = palto.Dim("batch", max=40)
    compiled = palto.compile(lambda x: x @ _weight, dynamic_shapes={"x": {0: batch}})
    assert "17x24 of 13" in str(compiled.explain(np.ones((17, 13), "f")))
    assert "40x24 of 13" in str(compiled.explain())


# --- Mistakes ------------------------------------------------------------------------------------


def sized(function, **more):
    return palto.compile(function, dynamic_shapes={"x": {0: palto.Dim("n", max=16)}, **more})


def test_a_size_over_its_maximum():
    with pytest.raises(ValueError, match=r"'n' is 17, and was declared with max=16"):
        sized(lambda x: x * 2)(np.ones((17, 2), "f"))


def test_sizes_that_disagree():
    n = palto.Dim("n", max=16)
    add = palto.compile(lambda x, y: (x, y), dynamic_shapes={"x": {0: n}, "y": {1: n}})
    with pytest.raises(ValueError, match="different sizes 3 and 4"):
        add(np.ones((3, 2), "f"), np.ones((2, 4), "f"))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x * 2 if x.shape[0] > 10 else x + 2, "does not do the same for n = 15 and"),
        (
            lambda x: x * 2 if x.shape[0] > 14 else x + 2,
            "it applied (multiply|add) once and (add|multiply) again",
        ),
        (lambda x: x * float(x.shape[0]) ** 0.5, "uses the number"),
        (lambda x: palto.sum(x) * x.shape[0] ** 2, "does not follow the size in a straight line"),
        (lambda x: x + palto.asarray(np.ones((x.shape[0], 2), "f")), "uses a constant of shape"),
        (lambda x: palto.zeros((20 - x.shape[0],)), "shrinks as the size grows"),
    ],
)
def test_what_one_program_cannot_do(function, message):
    with pytest.raises(palto.TraceError, match=message):
        sized(function)(np.ones((16, 2), "f"))


def test_declarations_that_are_wrong():
    with pytest.raises(TypeError, match=r"wants \{axis: palto.Dim\}"):
        palto.compile(lambda x: x, dynamic_shapes={"x": {0: 16}})
    with pytest.raises(TypeError, match="a dict from the names of parameters"):
        palto.compile(lambda x: x, dynamic_shapes=({0: palto.Dim("n", max=9)},))
    with pytest.raises(TypeError, match="names the argument 'y'; this call has x"):
        palto.compile(lambda x: x, dynamic_shapes={"y": {0: palto.Dim("n", max=9)}})(np.ones(3))
    with pytest.raises(ValueError, match="two different Dims named 'n'"):
        sized(lambda x, y: x, y={0: palto.Dim("n", max=9)})
    with pytest.raises(ValueError, match="axis 2 of an argument of shape"):
        palto.compile(lambda x: x, dynamic_shapes={"x": {2: palto.Dim("n", max=9)}})(
            np.ones((3, 3))
        )
    with pytest.raises(ValueError, match="a Dim's name is a word"):
        palto.Dim("the batch", max=9)
    with pytest.raises(ValueError, match="no different sizes"):
        palto.Dim("n", max=5)
    with pytest.raises(TypeError, match="stands for a Python int"):
        palto.compile(lambda x: x, dynamic_shapes={"x": palto.Dim("n", max=9)})(np.ones(3))


def test_an_index_out_of_range_names_the_actual_size(executor):
    compiled = sized(lambda x, i: palto.take(x, i, axis=0))
    with pytest.raises(IndexError, match="index 5 is out of range: it must be from 0 to 4"):
        compiled(np.ones((5, 2), "f"), np.asarray([0, 5]))


# --- Arithmetic ----------------------------------------------------------------------------------


def test_arithmetic_agrees_with_that_of_numbers():
    rng = np.random.default_rng(0)
    n, m = (Size.of(palto.Dim(name, max=most)) for name, most in (("n", 100), ("m", 9)))
    values = [{"n": a, "m": b} for a, b in ((2, 2), (100, 9), (37, 5), (8, 3))]

    def grown(depth):
        """A random size, and what it is for each of the values."""
        if depth == 0:
            found = [n, m, int(rng.integers(1, 9))][rng.integers(3)]
            return found, [at(found, value) for value in values]
        (a, xs), (b, ys) = grown(depth - 1), grown(depth - 1)
        kind = rng.integers(5)
        if kind == 0:
            return a + b, [x + y for x, y in zip(xs, ys, strict=True)]
        if kind == 1:
            return a * b, [x * y for x, y in zip(xs, ys, strict=True)]
        if kind == 2 and bounds(a - b)[0] >= 0:
            return a - b, [x - y for x, y in zip(xs, ys, strict=True)]
        if kind >= 3 and bounds(a)[0] >= 0 and bounds(b)[0] >= 1:
            if kind == 3:
                return a // b, [x // y for x, y in zip(xs, ys, strict=True)]
            return a % b, [x % y for x, y in zip(xs, ys, strict=True)]
        return a, xs

    sizes = 0
    for _ in range(2000):
        size, wanted = grown(4)
        sizes += isinstance(size, Size)
        low, high = bounds(size)
        for value, number in zip(values, wanted, strict=True):
            assert at(size, value) == number
            assert low <= number <= high
    assert sizes > 1000


def test_equal_for_all_sizes():
    n = Size.of(palto.Dim("n", max=10))
    assert n * 28 - (n - 1) * 28 == 28
    assert (3 * n + 6) // (n + 2) == 3
    assert (n * 28 + 5) % 28 == 5
    assert n != 10
    assert n * 2 == n + n
    assert 5 < n + 4
    with pytest.raises(palto.TraceError, match="depends on the run-time size"):
        _ = n < 5


# --- How sizes stand to each other ---------------------------------------------------------------


def test_a_slice_that_another_size_cuts_off():
    """Traced where m is greater than n, the slice is all of x; where it is less, it is not."""

    @palto.compile(
        dynamic_shapes={"x": {0: palto.Dim("n", max=16)}, "y": {0: palto.Dim("m", max=32)}}
    )
    def cut(x, y):
        return x[: y.shape[0]] * 2 + palto.sum(y)

    for n, m in ((8, 20), (8, 3), (9, 4), (5, 5), (15, 14), (7, 30), (12, 3)):
        x, y = np.arange(n, dtype=np.float32), np.ones(m, np.float32)
        np.testing.assert_array_equal(cut(x, y).numpy(), x[:m] * 2 + m, err_msg=f"{n}, {m}")


def test_sizes_in_another_order_share_the_program():
    @palto.compile(
        dynamic_shapes={"x": {0: palto.Dim("n", max=16)}, "y": {0: palto.Dim("m", max=32)}}
    )
    def outer(x, y):
        return x[:, None] * y[None, :]

    for n, m in ((8, 20), (8, 3), (5, 5), (15, 14)):
        x, y = np.arange(n, dtype=np.float32), np.arange(m, dtype=np.float32)
        np.testing.assert_array_equal(outer(x, y).numpy(), np.outer(x, y))
    assert outer.program_count == 1


N, M = palto.Dim("n", max=16), palto.Dim("m", max=24)
BOUNDS = (
    "None", "n", "m", "m - 3", "n - m", "m - n", "n // 2", "m % 5", "2 * n - m", "-n", "-3",
    "3 - m", "7", "min(n, m)", "max(n - 4, m // 3)", "abs(n - m)", "n if m > 9 else m",
    "n ** 2 - 60", "divmod(m, 4)[0]", "5 if n in (4, 8) else n", "4 if n == m - 2 else 6",
    "3 if n - m else 2",
)  # fmt: skip
_bound = st.sampled_from(BOUNDS)


@given(
    start=_bound, stop=_bound, step=st.sampled_from((1, 1, 1, 2, -1, -3)),
    axis=st.sampled_from(("n", "m")),
    sizes=st.lists(st.tuples(st.integers(2, 16), st.integers(2, 24)), min_size=4, max_size=10),
)  # fmt: skip
@example("None", "m - 3", 1, "n", [(8, 12), (8, 9), (3, 5), (16, 24)])
@settings(max_examples=40)
def test_slices_at_any_sizes_are_those_of_numpy(start, stop, step, axis, sizes):
    """Or the function is refused, and says so."""

    def cut(x, y):
        n, m = x.shape[0], y.shape[0]
        bounds = [eval(bound, {"n": n, "m": m}) for bound in (start, stop)]
        return (x if axis == "n" else y)[slice(*bounds, step)] * 2

    compiled = palto.compile(dynamic_shapes={"x": {0: N}, "y": {0: M}})(cut)
    for n, m in sizes:
        x, y = np.arange(n, dtype=np.float32), np.arange(m, dtype=np.float32) + 100
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it has been compiled many times
            try:
                found = compiled(x, y)
            except palto.TraceError as error:
                assert re.search("size|straight line|axes that grow", str(error))
                return
        np.testing.assert_array_equal(found.numpy(), cut(x, y), err_msg=f"{n}, {m}")


@pytest.mark.parametrize(
    ("function", "programs"),
    [
        (lambda x: x * 2 if x.shape[0] > 4 else x * 3, 1 + 3),
        (lambda x: palto.sum(x) / max(x.shape[0], 12), 1 + 7),
        (lambda x: x[: min(x.shape[0], 9)] + 1, 1 + 6),
        (lambda x: x * (2 if x.shape[0] == 6 else 3), 1 + 1),
        (lambda x: x[:6] * 2, 1 + 4),
        (lambda x: x[:-1] * x[1:], 1),
    ],
    ids=["branch", "max", "min", "equal", "slice", "none"],
)
def test_a_branch_that_no_trace_has_taken(function, programs):
    """Where the function does something else, sizes have programs of their own."""
    compiled = palto.compile(dynamic_shapes={"x": {0: palto.Dim("n", max=64)}})(function)
    for n in (60, 2, 3, 4, 5, 6, 9, 11, 13, 31, 64):
        x = np.arange(n, dtype=np.float32)
        wanted = function(palto.asarray(x)).numpy()
        np.testing.assert_allclose(compiled(x).numpy(), wanted, rtol=1e-6, err_msg=str(n))
    assert compiled.program_count == programs


def test_where_two_lengths_meet_both_ways_agree_and_only_there():
    @palto.compile(dynamic_shapes={"x": {0: N}, "y": {0: M}})
    def shares(x, y):
        return palto.sum(x) / max(x.shape[0], y.shape[0] - 1) + palto.mean(y)

    for n, m in ((8, 9), (8, 4), (12, 3), (8, 20), (4, 5)):
        x, y = np.arange(n, dtype=np.float32), np.ones(m, np.float32)
        wanted = x.sum() / max(n, m - 1) + 1
        np.testing.assert_allclose(shares(x, y).numpy(), wanted, rtol=1e-6, err_msg=f"{n}, {m}")


def test_of_later_traces_only_numbers_are_kept():
    def traced(n):
        function = lambda x: palto.where(x > n, x * (n - 1), palto.asarray(0.5)).sum()  # noqa: E731
        leaves, tree = flatten(((np.zeros(0),), {}))
        return record(function, leaves, tree, [Spec((n, 4), palto.float32)])

    samples = Samples({"n": 9}, traced(9))
    second = traced(8)
    whole = [weakref.ref(x) for x in second.graph.tensors]
    both = samples.and_at({"n": 8}, second)
    del second
    assert not any(x() for x in whole)
    assert both.first is samples.first and both.sizes == ({"n": 9}, {"n": 8})
    assert len(both.places) == len(samples.places)
    # Each number once for each way in which it goes on, however often it stands in the trace.
    assert {h for h in both.histories if isinstance(h[0], int)} == {(9, 8), (4, 4), (0, 0), (1, 1)}
    assert len(samples.histories[0]) == 1, "the first ones have not changed"
    with pytest.raises(TraceError, match="for n = 9 and for n = 7: it applied"):
        both.and_at({"n": 7}, record(lambda x: x, *flatten(((np.zeros(0),), {})),
                                     [Spec((7, 4), palto.float32)]))  # fmt: skip


def test_comparisons_are_noted_by_what_they_depend_on():
    comparisons = Comparisons([palto.Dim("n", max=100)])
    with comparisons.noting({"n": 50}) as sizes:
        (size,) = sizes.values()
        assert size > 1 and 200 > size and size != 101 and size + 1 > size  # always so
        assert comparisons.answers({"n": 50}) == ()
        assert 2 * size - 3 > 60 and size != 7 and size % 7 in (1, 2) and abs(size - 60) == 10
    asked = [comparisons.answers({"n": k}) for k in (50, 51, 31, 7)]
    assert asked[0] not in asked[1:]
    assert size < 99 and comparisons.answers({"n": 50}) == asked[0]  # noted in the block alone


def test_a_number_that_notes_calculates_as_others():
    with Comparisons([palto.Dim("n", max=100)]).noting({"n": 50}) as sizes:
        (size,) = sizes.values()
    assert type(pickle.loads(pickle.dumps(size))) is int and copy.copy(size) == 50
    assert {size: 1}[50] == 1 and size != "n" and size < 50.5 and -size < -49 < +size
    assert (size**2, size**-1, size / 4, 2**size) == (2500, 0.02, 12.5, 2**50)
    assert (divmod(size, 7), divmod(107, size), 99 - size, 99 % size) == ((7, 1), (2, 7), 49, 49)
    assert bool(size) and not size - 50 and list(range(size))[-1] == 49
