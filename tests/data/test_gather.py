"""Rows of arrays gathered by machine code: it answers what NumPy answers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palto.data import gather
from palto.data.gather import Gathering, Part

DTYPES = ["bool", "uint8", "int16", "int32", "int64", "float32", "float64", "complex128"]


@pytest.fixture(autouse=True, scope="module")
def code_from_the_start():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "BEFORE_CODE", 0)
        yield


def numbers(shape, dtype="uint8"):
    rng = np.random.default_rng(0)
    return rng.integers(0, 2 if dtype == "bool" else 256, shape).astype(dtype)


def by_numpy(part, places):
    rows = part.array[places]
    if part.is_scaled:
        return rows.astype(np.float32) * np.float32(1 / 255)
    return rows.astype(part.dtype)


def check(parts, places, threads=1):
    found = Gathering(parts, threads)(np.asarray(places, np.int64))
    for part, rows in zip(parts, found, strict=True):
        expected = by_numpy(part, places)
        assert (rows.shape, rows.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(rows, expected)
        assert not np.shares_memory(rows, part.array)


@given(
    length=st.integers(1, 12),
    rows=st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), max_size=3).map(tuple),
            st.sampled_from(DTYPES),
            st.booleans(),
        ),
        min_size=1, max_size=4,
    ),
    data=st.data(),
)  # fmt: skip
def test_the_same_to_the_bit(length, rows, data):
    parts = []
    for shape, dtype, is_scaled in rows:
        is_scaled = is_scaled and dtype == "uint8"
        array = numbers((length, *shape), dtype)
        parts.append(Part(array, np.dtype(np.float32) if is_scaled else array.dtype, is_scaled))
    places = data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=30))
    check(parts, places, data.draw(st.integers(1, 3)))


@pytest.mark.parametrize("length", [1, 8, 63, 64, 65, 784, 3000])
@pytest.mark.parametrize("is_scaled", [False, True])
def test_every_byte_and_nothing_else_is_written(length, is_scaled):
    array = np.resize(np.arange(256, dtype=np.uint8), (40, length))
    part = Part(array, np.dtype(np.float32 if is_scaled else np.uint8), is_scaled)
    (rows,) = Gathering([part])(np.arange(39, -1, -1))
    np.testing.assert_array_equal(rows, by_numpy(part, np.arange(39, -1, -1)))
    assert rows.ctypes.data % 64 == 0 and rows.base.nbytes == rows.nbytes + 64


def test_arrays_that_lie_in_another_way_or_come_out_in_another_dtype():
    whole = numbers((9, 140))
    for array in (whole[:, ::2], whole[::2], whole[::-1], np.asfortranarray(whole), whole[:, :0]):
        for is_scaled in (False, True):
            dtype = np.dtype(np.float32 if is_scaled else np.uint8)
            check(
                [Part(whole[: len(array)], whole.dtype), Part(array, dtype, is_scaled)], [1, 0, 4]
            )
    check([Part(whole.astype(">f4"), np.dtype(np.float32)), Part(whole, whole.dtype)], [8, 2])


def test_threads_share_the_rows():
    part = Part(numbers((500, 100)), np.dtype(np.float32), True)
    for threads in (2, 3):
        for count in (1, 2, 499, 500):
            check([part, Part(numbers((500, 8)), np.dtype(np.uint8))], range(count), threads)


def test_threads_that_gather_at_once():
    part = Part(numbers((500, 100)), np.dtype(np.float32), True)
    orders = [np.random.default_rng(seed).permutation(500) for seed in range(8)]
    gathering = Gathering([part])
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(gathering, orders))
    for order, (floats,) in zip(orders, found, strict=True):
        np.testing.assert_array_equal(floats, by_numpy(part, order))


def test_little_is_gathered_without_code(monkeypatch):
    """And what follows it with code, with the same numbers."""
    monkeypatch.setattr(gather, "BEFORE_CODE", 4000)
    monkeypatch.setattr(gather, "_gathered", 0)
    asked, code = [], gather._code
    monkeypatch.setattr(gather, "_code", lambda: asked.append(1) or code())
    gathering = Gathering([Part(numbers((9, 100)), np.dtype(np.float32), True)])
    found = [gathering(np.array([2, 7, 1, 4]))[0] for _ in range(4)]
    assert len(asked) == 1  # 1,600 bytes each: the fourth comes after 4,800
    for floats in found:
        np.testing.assert_array_equal(floats, found[0])
