"""Images and labels in NumPy's files: how arrays are found, and what is refused."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from palto import data
from palto.data.sources import arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 6, 5), np.uint8)
LABELS = np.arange(10) % 3


@pytest.fixture
def save(tmp_path):
    def save(compressed=False, **contents):
        path = tmp_path / "t.npz"
        (np.savez_compressed if compressed else np.savez)(path, **contents)
        return path

    return save


class Evil:
    def __reduce__(self):
        return print, ("a pickle was run",)


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("data", "target")])
@pytest.mark.parametrize("compressed", [False, True])
def test_one_part(save, names, compressed):
    path = save(compressed, **dict(zip(names, (IMAGES, LABELS), strict=True)), other=np.ones(3))
    train, rest = data.numpy_archive(path)
    assert rest is None and train.classes == ("0", "1", "2") and train.name == "t.npz"
    np.testing.assert_array_equal(train.images, IMAGES[..., None])
    images, labels = next(iter(data.DataLoader(train, 10)))
    np.testing.assert_allclose(images.numpy()[..., 0], IMAGES / np.float32(255), rtol=1e-6)
    assert labels.tolist() == LABELS.tolist()


def test_names_that_are_given(save):
    path = save(a=IMAGES, b=LABELS, x=IMAGES + 1)
    with pytest.raises(
        ValueError, match=r"which are the labels\? It has 'a' \(10, 6, 5\) uint8, 'b"
    ):
        data.numpy_archive(path)
    with pytest.raises(ValueError, match="it has no 'c'"):
        data.numpy_archive(path, images="c", labels="b")
    train, _ = data.numpy_archive(path, images="a", labels="b")
    np.testing.assert_array_equal(train.images[..., 0], IMAGES)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_parts(save, names):
    parts = dict(zip(names, (IMAGES, LABELS, IMAGES[:4], LABELS[:4]), strict=True))
    train, test = data.numpy_archive(save(**parts))
    assert (len(train), len(test), test.classes) == (10, 4, ("0", "1", "2"))
    valid = {f"{name.replace('test', 'val')}": array[:2] for name, array in parts.items()}
    valid = {name: array for name, array in valid.items() if "val" in name}
    path = save(**parts, **valid)
    assert len(data.numpy_archive(path)[1]) == 2
    assert len(data.numpy_archive(path, held_out="test")[1]) == 4
    with pytest.raises(ValueError, match=r"which are the images\?"):
        data.numpy_archive(save(**parts), held_out="valid")
    del parts[names[0]]
    with pytest.raises(ValueError, match=r"which are the images\?"):
        data.numpy_archive(save(**parts))
    with pytest.raises(ValueError, match="held_out is for arrays that are called by parts"):
        data.numpy_archive(save(x=IMAGES, y=LABELS), held_out="test")


def test_parts_that_differ(save):
    with pytest.raises(ValueError, match=r"learn from are \(6, 5, 1\), the others \(5, 6, 1\)"):
        data.numpy_archive(
            save(x_train=IMAGES, y_train=LABELS, x_test=IMAGES.swapaxes(1, 2), y_test=LABELS)
        )
    with pytest.raises(ValueError, match=r"'y_test' has the label '7', .* learned: 0, 1, 2"):
        data.numpy_archive(
            save(x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=np.full(10, 7))
        )


def test_two_files(tmp_path):
    for name in ("train_images", "x"):
        np.save(tmp_path / f"{name}.npy", IMAGES)
    for name in ("train_labels", "y", "other"):
        np.save(tmp_path / f"{name}.npy", LABELS)
    for path, labels in (
        ("train_images.npy", None), ("x.npy", None), ("x.npy", tmp_path / "other.npy"),
    ):  # fmt: skip
        train, _ = data.numpy_archive(tmp_path / path, labels=labels)
        np.testing.assert_array_equal(train.images[..., 0], IMAGES)
        assert type(train.images) is np.ndarray and train.labels.tolist() == LABELS.tolist()
    (tmp_path / "y.npy").unlink()
    with pytest.raises(ValueError, match=r"has the labels of .*x\.npy\? Name it with labels="):
        data.numpy_archive(tmp_path / "x.npy")
    with pytest.raises(FileNotFoundError):
        data.numpy_archive(tmp_path / "x.npy", labels=tmp_path / "y.npy")


def test_an_npy_file_is_read_in_place(tmp_path):
    large = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (2000, 100, 100, 1))
    large.flush()
    del large
    np.save(tmp_path / "y.npy", np.arange(2000) % 2)
    tracemalloc.start()
    train, _ = data.numpy_archive(tmp_path / "x.npy")
    assert train[1999][0].shape == (100, 100, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("shape", "layout", "result"),
    [
        ((10, 6, 5), None, (6, 5, 1)),
        ((10, 6, 5, 3), None, (6, 5, 3)),
        ((10, 6, 5, 1), "NHWC", (6, 5, 1)),
        ((10, 3, 6, 5), "NCHW", (6, 5, 3)),
        ((10, 3, 6, 3), "NHWC", (3, 6, 3)),
        ((10, 6, 5, 4), "NHWC", (6, 5, 4)),
        ((10, 3, 6, 5), None, 'say layout="NCHW"'),
        ((10, 3, 6, 3), None, 'layout="NHWC" or layout="NCHW"'),
        ((10, 6, 5, 4), None, 'layout="NHWC" or layout="NCHW"'),
        ((10, 6), None, "images have"),
        ((10, 6, 5), "NCHW", "images have"),
        ((10, 0, 5), None, "is empty"),
    ],
)
def test_layouts(save, shape, layout, result):
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    path = save(x=images, y=LABELS)
    if isinstance(result, str):
        with pytest.raises(ValueError, match=f"(?i){result}"):
            data.numpy_archive(path, layout=layout)
        return
    train, _ = data.numpy_archive(path, layout=layout)
    assert train.images.shape[1:] == result
    if layout == "NCHW":
        np.testing.assert_array_equal(train.images[3, :, :, 1], images[3, 1])


@pytest.mark.parametrize(
    ("images", "stored"),
    [
        (IMAGES / 255.0, np.float32),
        ((IMAGES / 255).astype(np.float16), np.float32),
        (IMAGES.astype(np.float64), np.uint8),
        (IMAGES.astype(np.int64), np.uint8),
        (IMAGES.astype(">i2"), np.uint8),
        (IMAGES.astype(np.uint16), np.uint8),
    ],
)
def test_ranges(save, images, stored):
    train, _ = data.numpy_archive(save(x=images, y=LABELS))
    assert train.images.dtype == stored
    batch, _ = train.__getitems__(range(10))
    np.testing.assert_allclose(batch[..., 0], IMAGES / 255, atol=4e-4)


def test_masks(save):
    train, _ = data.numpy_archive(save(x=IMAGES > 99, y=LABELS))
    np.testing.assert_array_equal(train[3][0][..., 0], IMAGES[3] > 99)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES / 127.5 - 1, r"goes from -1 to 1.* save \(x \+ 1\) / 2"),
        (IMAGES * 0.9, r"goes from .* save \(x - x\.min"),
        (IMAGES.astype(np.int64) * 9, "goes from 0 to"),
        (IMAGES.astype(np.int64) - 1, "goes from -1 to"),
        (np.where(IMAGES > 9, np.nan, 0.5), "NaN or infinite"),
        (np.where(IMAGES > 9, np.inf, 0.5), "NaN or infinite"),
        (IMAGES.astype(complex), "complex128; images are bytes"),
        (IMAGES.astype(str), "<U3; images are bytes"),
    ],
)
def test_images_of_other_ranges(save, images, message):
    with pytest.raises(ValueError, match=message):
        data.numpy_archive(save(x=images, y=LABELS))


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (LABELS[:, None], None, LABELS),
        (LABELS.astype(np.uint8), ("a", "b", "c"), LABELS),
        (LABELS.astype(float), None, LABELS),
        (LABELS * 10 + 5, None, LABELS),
        (np.array(["z", "y"] * 5), None, [1, 0] * 5),
        (np.array([b"z", b"y"] * 5), None, [1, 0] * 5),
        (np.array(["z", "y"] * 5), ("z", "y"), [0, 1] * 5),
        (np.eye(3)[LABELS], None, LABELS),
        (np.eye(4, dtype=np.uint8)[LABELS], ("a", "b", "c", "d"), LABELS),
        (LABELS > 0, None, LABELS > 0),
        (LABELS, ("a", "b"), "goes from 0 to 2, for 2 classes"),
        (LABELS - 1, ("a", "b", "c"), "goes from -1 to 1"),
        (np.eye(4)[LABELS], ("a", "b"), "goes from 0 to 2, for 2 classes|one-hot"),
        (np.eye(3)[LABELS] / 2, None, "but is not one-hot"),
        (LABELS[:9], None, "10 images, .* 9 labels: there is to be one for each"),
        (LABELS.reshape(5, 2), None, "is not one-hot"),
        (LABELS[:, None, None], None, r"has shape \(10, 1, 1\); labels have"),
        (LABELS + 0.5, None, "float64; labels are whole numbers or texts"),
        (LABELS.astype("M8[s]"), None, "labels are whole numbers or texts"),
        (np.array(["z", "x"] * 5), ("z", "y"), "has the label 'x'"),
    ],
)
def test_labels(save, labels, classes, numbers):
    path = save(x=IMAGES, y=labels)
    if isinstance(numbers, str):
        with pytest.raises(ValueError, match=numbers):
            data.numpy_archive(path, classes=classes)
        return
    train, _ = data.numpy_archive(path, classes=classes)
    assert train.labels.tolist() == list(numbers) and train.labels.dtype == np.int64
    assert classes is None or train.classes == classes


def test_pickles_are_refused(save, tmp_path, capsys):
    evil = np.array([Evil()] * 10, object)
    for contents in ({"x": evil, "y": LABELS}, {"x": IMAGES, "y": evil}):
        with pytest.raises(ValueError, match=r"t\.npz, '.' cannot be read: it holds pickled Pyth"):
            data.numpy_archive(save(**contents))
    np.save(tmp_path / "x.npy", evil)
    np.save(tmp_path / "y.npy", LABELS)
    with pytest.raises(ValueError, match=r"x\.npy cannot be read: it holds pickled"):
        data.numpy_archive(tmp_path / "x.npy")
    assert capsys.readouterr().out == ""


def npy(shape, body=b"", dtype="|u1"):
    file = io.BytesIO()
    head = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue() + body


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (npy((1 << 40, 9, 9), b"abc"), "it should have .* bytes and has"),
        (npy((10, 6, 5)), "it should have .* bytes and has"),
        (npy((1 << 40, 1 << 40, 1 << 40)), "it should have"),
        (b"hello", "magic"),
        (b"", ""),
        (b"\x93NUMPY\x03\x00" + bytes(40), "its version"),
        (npy((2, 2, 2))[:30], ""),
        (npy((2, 2, 2)).replace(b"shape", b"shade"), ""),
    ],
)
def test_hostile_arrays(tmp_path, contents, message):
    path = tmp_path / "t.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", contents)
        archive.writestr("y.npy", npy((10,), bytes(10)))
    with pytest.raises(ValueError, match=rf"(?s)t\.npz, 'x' cannot be read: .*{message}"):
        data.numpy_archive(path)
    (tmp_path / "x.npy").write_bytes(contents)
    (tmp_path / "y.npy").write_bytes(npy((10,), bytes(10)))
    with pytest.raises(ValueError, match=r"x\.npy cannot be read: "):
        data.numpy_archive(tmp_path / "x.npy")


def test_bombs(save, monkeypatch):
    path = save(True, x=np.zeros((10, 300, 300), np.uint8), y=LABELS)
    monkeypatch.setattr(arrays, "ARRAY_LIMIT", 100_000)
    with pytest.raises(ValueError, match=r"it has 900,128 bytes; .* save it as \.npy"):
        data.numpy_archive(path)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.95])
def test_truncated_files(save, tmp_path, keep):
    path = save(x=IMAGES, y=LABELS)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"t\.npz cannot be read as an \.npz file"):
        data.numpy_archive(path)


def test_a_damaged_file(save):
    path = save(x=IMAGES, y=LABELS)
    contents = bytearray(path.read_bytes())
    contents[contents.index(IMAGES.tobytes()[:50])] ^= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        data.numpy_archive(path)


def test_files_that_cannot_be_used(save, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        data.numpy_archive(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="is a folder"):
        data.numpy_archive(tmp_path)
    with pytest.raises(ValueError, match="layout is 'NHW', 'NHWC', 'NCHW' or None"):
        data.numpy_archive(save(x=IMAGES, y=LABELS), layout="HWC")
    with pytest.raises(ValueError, match=r"which are the images\? It has no arrays"):
        data.numpy_archive(save())
