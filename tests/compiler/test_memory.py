"""Where elements lie: index arithmetic, the arena, cells that are changed in place, guards."""

import itertools
import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import palto
from palto import nn
from palto.compiler import addresses, memory, nests
from palto.compiler import index as ix
from palto.compiler.memory import Buffer
from palto.tensor import dtypes

SHAPES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4).map(tuple)


def value(index, counters):
    """What an index is for some counters."""
    result = index.constant
    for variable, c in index.terms.values():
        if variable.kind == "loop":
            number = counters[variable.key]
        else:
            inside = value(variable.index, counters)
            quotient, remainder = divmod(inside, variable.divisor)
            number = quotient if variable.kind == "quotient" else remainder
        result += c * number
    return result


@given(SHAPES, st.data())
def test_a_reshaped_index_is_numpys(shape, data):
    """Through several shapes of the same size."""
    variables = nests.variables("i", shape)
    indices, at = [ix.of(v) for v in variables], shape
    for _ in range(data.draw(st.integers(1, 3))):
        order = data.draw(st.permutations(at))
        parts = data.draw(st.integers(0, len(order)))
        size = int(np.prod(order[parts:], dtype=int))
        indices = ix.along(ix.linear(indices, at), (*order[:parts], size))
        at = (*order[:parts], size)
    for counters in itertools.product(*map(range, shape)):
        named = {v.key: n for v, n in zip(variables, counters, strict=True)}
        found = [value(i, named) for i in indices]
        place = np.ravel_multi_index(counters, shape)
        assert tuple(found) == np.unravel_index(place, at)


@given(SHAPES, SHAPES)
def test_a_reshape_there_and_back_needs_no_division(first, second):
    shape = (*first, *second)
    indices = [ix.of(v) for v in nests.variables("i", shape)]
    flat = (int(np.prod(first)), int(np.prod(second)))
    there = ix.along(ix.linear(indices, shape), flat)
    assert ix.along(ix.linear(there, flat), shape) == indices


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_buffers_that_are_alive_together_do_not_overlap(requests):
    buffers = []
    for length, first, last in requests:
        buffer = Buffer((length,), dtypes.float32, "arena")
        buffer.used(first)
        buffer.used(last)
        buffers.append(buffer)
    size = memory.plan(buffers)
    for a, b in itertools.combinations(buffers, 2):
        if a.first <= b.last and b.first <= a.last:
            assert a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset
    for buffer in buffers:
        assert buffer.offset % memory.ALIGNMENT == 0
        assert buffer.offset + buffer.bytes <= size


def native_of(compiled):
    """The one program of a compiled function."""
    ((entry,),) = compiled._entries.values()
    return entry.program.native


def test_a_cache_is_written_where_it_lies():
    cache = palto.Cell(np.zeros((8, 1000, 4), np.float32))

    @palto.compile
    def write(x, place):
        zero = palto.zeros((1,), dtype=palto.int64)
        starts = palto.concat([zero, place.reshape(1), zero])
        cache.assign(palto.dynamic_update_slice(cache.read(), x, starts))
        return cache.read()[:, :4].sum()

    x = np.ones((8, 1, 4), np.float32)
    before = cache.array().__array_interface__["data"]
    sums = [write(x, np.array(i)).item() for i in range(6)]
    assert sums == [32, 64, 96, 128, 128, 128]
    assert cache.array().__array_interface__["data"] == before
    assert native_of(write).arena_bytes < 1000  # no second cache

    kept = cache.read()
    write(2 * x, np.array(0))
    assert kept.numpy().sum() == 6 * 32 and cache.numpy().sum() == 7 * 32
    with pytest.raises(IndexError, match="start 1000 is out of range on axis 1"):
        write(x, np.array(1000))
    assert cache.numpy().sum() == 7 * 32


def test_an_old_value_that_is_still_needed_is_not_overwritten():
    cache = palto.Cell(np.arange(6, dtype=np.float32))

    @palto.compile
    def write(x):
        old = cache.read()
        cache.assign(palto.dynamic_update_slice(old, x, palto.asarray(np.array([2]))))
        return palto.flip(old) + cache.read()

    result = write(np.array([10.0, 20.0], np.float32))
    new = [0, 1, 10, 20, 4, 5]
    np.testing.assert_array_equal(cache.numpy(), new)
    np.testing.assert_array_equal(result.numpy(), np.arange(6)[::-1] + np.array(new))


def test_memory_is_used_again():
    """A chain of row sums needs two buffers at a time, however long it is."""

    def chain(count):
        @palto.compile
        def function(x):
            for _ in range(count):
                x = palto.cumulative_sum(x, axis=0) * 0.5
            return x

        function(np.ones((64, 64), np.float32))
        return native_of(function).arena_bytes

    assert chain(12) <= chain(4)


SCORES = (6, 40, 50)
_random = np.random.default_rng(0)
QUERIES = _random.normal(size=(6, 40, 4)).astype(np.float32)
KEYS = _random.normal(size=(6, 4, 50)).astype(np.float32)


@pytest.mark.parametrize(
    ("more", "tensors"),
    [
        (lambda scores: palto.asarray(0.0), 1),  # all is in one place, one thing after the other
        (lambda scores: palto.cumulative_sum(scores, axis=1).sum(), 2),  # they are wanted later
    ],
)
def test_a_pass_over_rows_writes_where_it_reads_last(more, tensors):
    def attention(q, k):
        scores = q @ k
        return nn.functional.softmax(scores, axis=-1) @ palto.matrix_transpose(k), more(scores)

    compiled = palto.compile(attention)
    wanted = attention(palto.asarray(QUERIES), palto.asarray(KEYS))
    for found, known in zip(compiled(QUERIES, KEYS), wanted, strict=True):
        np.testing.assert_allclose(found.numpy(), known.numpy(), rtol=1e-4, atol=1e-5)
    size = 4 * math.prod(SCORES)
    assert tensors * size <= native_of(compiled).arena_bytes < (tensors + 0.5) * size


def test_a_pass_that_reads_elsewhere_in_the_row_does_not_write_there():
    def function(q, k):
        scores = q @ k
        rest = palto.exp(scores - palto.max(scores, axis=-1, keepdims=True))
        return (rest * palto.flip(scores, axis=-1)) @ palto.matrix_transpose(k)

    wanted = function(palto.asarray(QUERIES), palto.asarray(KEYS)).numpy()
    found = palto.compile(function)(QUERIES, KEYS).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_pass_over_rows_does_not_write_into_what_calls_keep():
    """The scores are made of cells alone, once; what is made of them, at every call."""
    cells = palto.Cell(QUERIES), palto.Cell(KEYS)

    def function(x):
        q, k = (cell.read() for cell in cells)
        return nn.functional.softmax((q @ k) * x, axis=-1) @ palto.matrix_transpose(k)

    compiled = palto.compile(function)
    for factor in (1, 2, 3):
        x = np.full(SCORES, factor, np.float32)
        wanted = function(palto.asarray(x)).numpy()
        np.testing.assert_allclose(compiled(x).numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert native_of(compiled).kept


def test_writing_out_of_bounds_is_seen(monkeypatch):
    monkeypatch.setenv("PALTO_DEBUG", "1")
    palto.compile(lambda x: x + 1)(np.ones(3, np.float32))  # all is well

    place_of = Buffer.place_of

    def shifted(buffer, indices):
        return place_of(buffer, indices) + (1 if buffer.role == "output" else 0)

    monkeypatch.setattr(Buffer, "place_of", shifted)
    with pytest.raises(RuntimeError, match="wrote out of bounds of output 0"):
        palto.compile(lambda x: x + 2)(np.ones(3, np.float32))


def test_a_debugged_training_step_is_the_plain_one():
    script = """
        import numpy as np, palto
        from palto import nn, optim
        model = nn.models.lenet(10, image=(28, 28, 1))
        optimizer = optim.Adam(model)

        @palto.compile
        def step(x, y):
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        rng = np.random.default_rng(0)
        for _ in range(3):
            loss = step(rng.random((8, 28, 28, 1), np.float32), rng.integers(0, 10, 8))
        print(loss.item())
    """
    losses = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PALTO_DEBUG": debug}, capture_output=True, text=True, check=True,
        ).stdout
        for debug in ("0", "1")
    ]  # fmt: skip
    assert losses[0] == losses[1] != ""


@pytest.mark.parametrize("known", [True, False])
def test_cells_are_found_in_native_code_or_asked_for(known, monkeypatch):
    """The same results, and nobody's array changes, whether objects look as expected or not."""
    assert addresses._native() is not None
    if not known:
        monkeypatch.setattr(addresses, "_native", lambda: None)
    cell = palto.Cell(np.arange(4, dtype=np.float32))

    @palto.compile
    def step(x):
        cell.assign(cell + x)
        return cell * 2

    one = np.ones(4, np.float32)
    for number in range(1, 4):
        assert step(one).numpy().tolist() == [2 * (k + number) for k in range(4)]
    held, leaf = cell.numpy(), cell.read()
    step(one)
    assert held.tolist() == leaf.tolist() == [3, 4, 5, 6]
    assert cell.tolist() == [4, 5, 6, 7]
    mine = np.zeros(4, np.float32)
    mine.flags.writeable = False
    cell.store(mine)
    step(one)
    assert not mine.any() and cell.tolist() == [1, 1, 1, 1]


def test_a_check_is_made_once_for_forward_and_backward():
    def gradient(x, labels):
        return palto.grad(lambda x: palto.nn.functional.cross_entropy(x, labels))(x)

    compiled = palto.compile(gradient)
    rows = compiled.explain(np.ones((6, 5), np.float32), np.arange(6) % 5).rows
    assert sum(row.kind == "check" for row in rows) == 1
