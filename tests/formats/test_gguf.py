"""GGUF: files are read as the package `gguf` reads them, and broken ones are refused."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palto.formats import gguf

library = pytest.importorskip("gguf", reason="gguf is not installed (pip install 'palto[chat]')")

QUANTISED = [kind for kind in gguf.KINDS if kind not in gguf.PLAIN]


def write(path, tensors=(), metadata=()):
    """A file with tensors (name, array, kind) and entries (the writer's method, arguments)."""
    writer = library.GGUFWriter(str(path), "llama")
    for method, *arguments in metadata:
        getattr(writer, method)(*arguments)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=library.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(kind, rows=3, columns=512, seed=0):
    """Bytes of random blocks, whose scales are sensible numbers."""
    rng = np.random.default_rng(seed)
    in_block, size = library.GGML_QUANT_SIZES[library.GGMLQuantizationType[kind]]
    raw = rng.integers(0, 256, (rows * columns // in_block, size), dtype=np.uint8)
    scale = rng.uniform(0.01, 0.1, len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    raw[:, :2] = scale
    raw[:, -2:] = scale  # where Q6_K has it
    if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K"):
        raw[:, 2:4] = scale
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("kind", gguf.KINDS)
def test_tensors_are_those_of_the_package(tmp_path, kind):
    rng = np.random.default_rng(1)
    if kind in QUANTISED:
        array = blocks(kind)
    else:
        numbers = rng.normal(size=(3, 5)).astype(np.float32)
        array = library.quants.quantize(numbers, library.GGMLQuantizationType[kind])
    other = rng.normal(size=7).astype(np.float32)
    path = write(tmp_path / "x.gguf", [("a.weight", array, kind), ("b", other, "F32")])
    found = gguf.read(path).tensors
    (wanted, _) = library.GGUFReader(path).tensors
    assert found["a.weight"].kind == kind
    assert found["a.weight"].shape == tuple(reversed(wanted.shape.tolist()))
    numbers = library.quants.dequantize(wanted.data, wanted.tensor_type)
    got = found["a.weight"].array()
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, numbers)
    np.testing.assert_array_equal(found["b"].plain(), other)


def test_nothing_of_a_tensor_is_in_memory_before_it_is_used(tmp_path):
    path = write(tmp_path / "x.gguf", [("a", np.zeros((1024, 4096), np.float32), "F32")])
    tracemalloc.start()
    found = gguf.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20
    with pytest.raises(ValueError, match="read-only"):
        found.tensors["a"].bytes[0, 0] = 1


def test_metadata(tmp_path):
    path = write(
        tmp_path / "x.gguf",
        metadata=[
            ("add_uint32", "a", 7), ("add_float32", "b", 0.5), ("add_string", "c", "naïve 🙂"),
            ("add_bool", "d", True), ("add_int64", "e", -5), ("add_float64", "f", 1e300),
            ("add_array", "g", ["x", "", "yz"]), ("add_array", "h", [1, 2, 3]),
            ("add_array", "i", [0.5, 0.25]), ("add_int8", "j", -1),
        ],
    )  # fmt: skip
    found = gguf.read(path).metadata
    assert found["general.architecture"] == "llama"
    assert [found[k] for k in "abcdefgj"] == [
        7, 0.5, "naïve 🙂", True, -5, 1e300, ["x", "", "yz"], -1,
    ]  # fmt: skip
    assert found["h"].tolist() == [1, 2, 3]
    assert found["i"].tolist() == [0.5, 0.25]
    wanted = library.GGUFReader(path).fields
    for key, value in found.items():
        value = value.tolist() if isinstance(value, np.ndarray) else value
        assert wanted[key].contents() == value


# --- Files that are not sound --------------------------------------------------------------------


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def head(tensors=0, pairs=0, version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, pairs)


def tensor(name="a", shape=(32,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 1 << 40
BROKEN = {
    "empty": (b"", "is empty"),
    "another kind": (b"PK\3\4" + bytes(40), "letters GGUF"),
    "version": (head(version=1), "version is 1"),
    "big-endian": (head(version=3 << 24), "version is"),
    "no counts": (b"GGUF\3\0\0\0", "ends after 8 bytes"),
    "2^40 entries": (head(pairs=HUGE), "too short"),
    "2^40 tensors": (head(tensors=HUGE), "too short"),
    "2^64 - 1": (head(2**64 - 1, 2**64 - 1), "too short"),
    "long name": (head(pairs=1) + struct.pack("<Q", HUGE) + b"abcd" * 8, "ends after"),
    "name": (head(pairs=1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(40), "no UTF-8"),
    "type": (head(pairs=1) + text("a") + struct.pack("<IQ", 99, 0), "unknown type 99"),
    "cut off": (head(pairs=1) + text("abcdefgh") + struct.pack("<I", 4), "ends after"),
    "long list": (head(pairs=1) + text("a") + struct.pack("<IIQ", 9, 8, HUGE), "too short"),
    "long numbers": (head(pairs=1) + text("a") + struct.pack("<IIQ", 9, 0, HUGE), "ends after"),
    "list of lists": (head(pairs=1) + text("a") + struct.pack("<IIQ", 9, 9, 1), "type 9"),
    "twice": (head(pairs=2) + (text("a") + struct.pack("<II", 4, 1)) * 2, "two entries"),
    "alignment": (
        head(1, 1) + text("general.alignment") + struct.pack("<II", 4, 3) + tensor() + bytes(200),
        "no power of two",
    ),
    "axes": (head(1) + tensor(shape=(1,) * 5) + bytes(99), "5 axes"),
    "2^32 - 1 axes": (head(1) + text("a") + struct.pack("<I", 2**32 - 1) + bytes(99), "axes"),
    "no axes": (head(1) + tensor(shape=()) + bytes(99), "0 axes"),
    "empty tensor": (head(1) + tensor(shape=(0,)) + bytes(200), "shape"),
    "part of a block": (head(1) + tensor(shape=(33,), kind=2) + bytes(200), "whole blocks"),
    "unknown kind": (head(1) + tensor(kind=999) + bytes(200), "unknown kind 999"),
    "other kind": (head(1) + tensor(shape=(256,), kind=10) + bytes(200), "Q2_K; those that are"),
    "long tensor": (head(1) + tensor(shape=(HUGE, HUGE, HUGE, HUGE)) + bytes(200), "should end"),
    "wrapping": (head(1) + tensor(shape=(1 << 62, 8)) + bytes(200), "should end"),
    "offset": (head(1) + tensor(offset=HUGE) + bytes(200), "should end"),
    "odd offset": (head(1) + tensor(offset=1) + bytes(400), "multiple of 32"),
    "same tensors": (head(2) + tensor() * 2 + bytes(400), "two tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_sound_is_refused_with_a_reason(tmp_path, name):
    contents, message = BROKEN[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(contents)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as error:
        gguf.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(error.value)
    assert peak < 1 << 20


def test_there_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        gguf.read(tmp_path / "x.gguf")
    with pytest.raises(FileNotFoundError, match="no file"):
        gguf.read(tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    write(
        path,
        [("a", blocks("Q4_1"), "Q4_1"), ("b", np.ones(40, np.float32), "F32")],
        [("add_string", "text", "words"), ("add_array", "list", ["x"] * 20), ("add_int32", "n", 3)],
    )
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9, 0.999])
def test_a_file_that_was_not_fetched_to_its_end(tmp_path, sound, share):
    path = tmp_path / "x.gguf"
    path.write_bytes(sound[: int(len(sound) * share)])
    with pytest.raises(ValueError, match=r"ends|too short"):
        gguf.read(path)


@given(data=st.data())
def test_damage_is_noticed_or_harmless(tmp_path_factory, sound, data):
    contents = bytearray(sound)
    head = 400  # where damage matters
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, head))
        value = data.draw(st.one_of(st.integers(0, 255), st.just(255)))
        width = data.draw(st.sampled_from([1, 8]))
        contents[place : place + width] = bytes([value]) * width
    path = tmp_path_factory.mktemp("fuzz") / "x.gguf"
    path.write_bytes(contents[: data.draw(st.integers(head, len(contents)))])
    tracemalloc.start()
    try:
        for tensor in gguf.read(path).tensors.values():
            with np.errstate(all="ignore"):
                assert tensor.array().shape == tensor.shape
    except ValueError as error:
        assert str(path) in str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1 << 21
