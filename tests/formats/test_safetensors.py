"""Safetensors files: round trips, the other library's files, hostile files, writes that fail."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import palto
from palto import nn
from palto.formats import safetensors
from palto.tensor import dtypes

library = pytest.importorskip("safetensors.numpy")


@pytest.mark.parametrize("dtype", dtypes.SUPPORTED, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_round_trip(tmp_path, dtype, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    safetensors.save(tmp_path / "x", {"x": palto.asarray(values)})
    loaded = safetensors.load(tmp_path / "x")["x"]
    assert loaded.dtype == dtype and loaded.shape == shape
    np.testing.assert_array_equal(loaded.numpy(), values)


def test_a_model(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    path = tmp_path / "model.safetensors"
    safetensors.save(path, model.state_dict(), metadata={"epoch": "3"})
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    other.load_state_dict(safetensors.load(path))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], value)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_the_library_reads_ours_and_we_read_its(tmp_path):
    arrays = {"a": np.eye(3, dtype=np.float32), "b.c": np.arange(4)}
    safetensors.save(tmp_path / "ours", {k: palto.asarray(v).mT.mT if v.ndim > 1 else v
                                         for k, v in arrays.items()})  # fmt: skip
    library.save_file(arrays, tmp_path / "its")
    for loaded in (library.load_file(tmp_path / "ours"), safetensors.load(tmp_path / "its")):
        assert sorted(loaded) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array)


def test_a_transposed_tensor(tmp_path):
    x = palto.asarray(np.arange(6).reshape(2, 3)).T
    safetensors.save(tmp_path / "x", {"x": x})
    np.testing.assert_array_equal(safetensors.load(tmp_path / "x")["x"], x)


@pytest.mark.parametrize(
    "harm",
    [
        lambda b: b[:-1],
        lambda b: b + b"\0",
        lambda b: b"",
        lambda b: b[:5],
        lambda b: (2**40).to_bytes(8, "little") + b[8:],
        lambda b: b.replace(b"[0,8]", b"[0,9]"),
        lambda b: b"\x80\x04pickle" + b,
    ],
    ids=["cut", "trailing byte", "empty", "no header", "2^40 header", "offsets", "pickle"],
)
def test_hostile_files(tmp_path, harm):
    path = tmp_path / "x.safetensors"
    safetensors.save(path, {"x": np.zeros(2, np.float32)})
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ValueError, match=r"x\.safetensors is no whole safetensors file"):
        safetensors.load(path)


def test_a_dtype_that_palto_has_not(tmp_path):
    library.save_file({"short": np.zeros(2, np.int16)}, tmp_path / "x")
    with pytest.raises(ValueError, match="short has the dtype I16"):
        safetensors.load(tmp_path / "x")


def test_float16_made_wider(tmp_path):
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    library.save_file({"half": every, "whole": np.arange(3)}, tmp_path / "x")
    loaded = safetensors.load(tmp_path / "x", widen=True)
    assert loaded["half"].dtype == np.float32 and loaded["whole"].dtype == np.int64
    np.testing.assert_array_equal(loaded["half"], every.astype(np.float32))


@settings(max_examples=200)
@given(st.data())
def test_damaged_files_give_an_error_that_says_so(data):
    contents = bytearray(library.save({"x": np.zeros((2, 3), np.float32), "y": np.arange(4)}))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(contents) - 1))
        if data.draw(st.booleans()):
            contents[place] = data.draw(st.integers(0, 255))
        else:
            end = place + data.draw(st.integers(0, 9))
            contents[place:end] = data.draw(st.binary(max_size=9))
        if not contents:
            break
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(contents)
        try:
            tensors = safetensors.load(path)
        except ValueError as error:
            assert "x.safetensors" in str(error)
        else:
            assert sum(x.size * x.dtype.itemsize for x in tensors.values()) <= len(contents)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    safetensors.save(path, {"x": np.ones(2, np.float32)})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        safetensors.save(path, {"x": np.zeros(2, np.float32)})
    np.testing.assert_array_equal(safetensors.load(path)["x"], [1, 1])
    assert os.listdir(tmp_path) == ["x"]


def test_pickling_is_refused():
    import pickle

    with pytest.raises(TypeError, match=r"palto\.formats\.safetensors"):
        pickle.dumps(palto.asarray([1.0]))


def test_a_model_instead_of_its_state(tmp_path):
    with pytest.raises(TypeError, match=r"state_dict\(\)"):
        safetensors.save(tmp_path / "x", nn.Linear(2, 3))
    assert not os.listdir(tmp_path)
