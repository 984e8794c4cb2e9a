"""Rows of bytes as float32: the machine code answers what NumPy answers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from palto.data import gather


@pytest.fixture(autouse=True)
def code_from_the_start(monkeypatch):
    monkeypatch.setattr(gather, "BEFORE_CODE", 0)


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def by_numpy(array, places):
    return array.take(places, axis=0).astype(np.float32) * np.float32(1 / 255)


@pytest.mark.parametrize("shape", [(9, 28, 28, 1), (9, 8, 8, 1), (9, 13, 5, 1), (9, 3, 7, 3), (9,)])
def test_the_same_to_the_bit(shape):
    array, places = images(*shape), np.array([3, 8, 0, 0, 5, 8, 1])
    found = gather.gather_fractions(array, places)
    np.testing.assert_array_equal(found, by_numpy(array, places))
    assert (found.shape, found.dtype) == ((7, *shape[1:]), np.float32)


def test_every_byte():
    array = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    expected = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
    np.testing.assert_array_equal(gather.gather_fractions(array, np.array([1]))[0], expected)
    np.testing.assert_array_equal(gather.gather_fractions(array[:, :63], np.array([1]))[0],
                                  expected[:63])  # fmt: skip


@pytest.mark.parametrize("places", [[], [-1, 2, -9], [8]])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_places_of_all_kinds(places, dtype):
    if dtype == np.uint8 and min(places, default=0) < 0:
        pytest.skip("a uint8 is not negative")
    array, places = images(9, 70), np.array(places, dtype)
    np.testing.assert_array_equal(gather.gather_fractions(array, places), by_numpy(array, places))


@pytest.mark.parametrize("place", [9, -10, 2**62])
def test_a_place_that_is_not_there(place):
    with pytest.raises(IndexError, match="out of bounds"):
        gather.gather_fractions(images(9, 70), np.array([0, place]))


def test_arrays_that_lie_in_another_way():
    whole = images(9, 140)
    for array in (whole[:, ::2], whole[::2], whole[::-1], np.asfortranarray(whole), whole[:, :0]):
        places = np.array([1, 0, 4])
        np.testing.assert_array_equal(
            gather.gather_fractions(array, places), by_numpy(array, places)
        )


def test_threads():
    array = images(500, 100)
    orders = [np.random.default_rng(seed).permutation(500) for seed in range(8)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda order: gather.gather_fractions(array, order), orders))
    for order, floats in zip(orders, found, strict=True):
        np.testing.assert_array_equal(floats, by_numpy(array, order))


def test_little_is_gathered_without_code(monkeypatch):
    """And what follows it with code, with the same numbers."""
    monkeypatch.setattr(gather, "BEFORE_CODE", 1000)
    monkeypatch.setattr(gather, "_converted", 0)
    asked, code = [], gather._code
    monkeypatch.setattr(gather, "_code", lambda: asked.append(1) or code())
    array = images(9, 100)
    found = [gather.gather_fractions(array, np.array([2, 7, 1, 4])) for _ in range(4)]
    assert len(asked) == 1  # 400 elements each: the fourth comes after 1,200
    for floats in found:
        np.testing.assert_array_equal(floats, found[0])
