"""Images and labels in NumPy's files, .npz and .npy."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from palto.data.dataset import ImageDataset
from palto.data.sources.checks import a_file, one_of
from palto.tensor.dtypes import Array

Layout = Literal["NHW", "NHWC", "NCHW"]

#: The words of a key, such as x_train, train_images or test_labels.
IMAGE_WORDS = frozenset(["x", "image", "images", "img", "imgs", "data", "inputs"])
LABEL_WORDS = frozenset(["y", "label", "labels", "target", "targets", "classes"])
PART_WORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "valid", "valid": "valid", "validation": "valid",
}  # fmt: skip
ARRAY_LIMIT = 1 << 32  # bytes of one array in an .npz file
COLOURS = (1, 3)


class _Member(NamedTuple):
    """What the head of an array in a file says."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"


def numpy_archive(
    path: str | os.PathLike[str],
    *,
    images: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    layout: Layout | None = None,
    classes: Sequence[str] | None = None,
    held_out: Literal["valid", "test"] | None = None,
) -> tuple[ImageDataset, ImageDataset | None]:
    """Images and labels in an .npz file, or in two .npy files.

    Arrays of an .npz file are known by usual names: x, images or data, and y, labels or targets;
    for several parts with train, valid (or val) and test, as in x_train or test_labels. Images are
    bytes, whole numbers from 0 to 255, or fractions from 0 to 1; bools become black and white.
    Labels are whole numbers or texts, shape (N,) or (N, 1), or one-hot, (N, classes). Pickled
    objects are refused: to read them would run whatever program they contain.

    Args:
        path: the .npz file, or the .npy file of the images, which is read in place as it is needed.
        images: the name of the array of images in the .npz file.
        labels: the name of the array of labels; beside an .npy file, the .npy file of the labels:
            by default the one called alike, with labels for images, or y for x.
        layout: how the axes of the images lie: "NHW", "NHWC" or "NCHW"; needed where the shape does
            not say it.
        classes: the names of the labels from 0 up; by default the labels that occur, sorted.
        held_out: which part is the second one, "valid" or "test"; by default the validation part,
            where there is one.

    Returns:
        The examples to learn from, and those held out: None where there are none.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is damaged, or holds something else; the message says what, and the remedy.
    """
    where = a_file(path)
    one_of("layout", layout, "NHW", "NHWC", "NCHW", None)
    one_of("held_out", held_out, "valid", "test", None)
    if where.suffix.lower() == ".npy":
        beside = Path(labels).expanduser() if labels is not None else _beside(where)
        pairs = [(_File(where, _mapped(where)), _File(beside, _mapped(beside)))]
    else:
        pairs = _pairs(where, images, None if labels is None else os.fspath(labels), held_out)
    datasets: list[ImageDataset] = []
    names = None if classes is None else tuple(classes)
    for x, y in pairs:
        pictures = _pictures(x, layout)
        numbers, names = _labels(y, names, given=classes is not None)
        if len(numbers) != len(pictures):
            raise ValueError(
                f"{x.name} has {len(pictures)} images, {y.name} {len(numbers)} labels: there is to "
                "be one for each"
            )
        datasets.append(ImageDataset(pictures, numbers, classes=names, name=where.name))
    shapes = [dataset.images.shape[1:] for dataset in datasets]
    if len(set(shapes)) > 1:
        raise ValueError(f"{where}: images to learn from are {shapes[0]}, the others {shapes[1]}")
    return datasets[0], datasets[1] if len(datasets) > 1 else None


class _File(NamedTuple):
    """An array, and how it is called towards the user."""

    name: object
    array: Array


# Files


def _head(file: Any, length: int) -> _Member:
    """Shape and dtype of an array in .npy format, of so many bytes.

    Raises:
        ValueError: it is in none, or holds Python objects, or is cut off.
    """
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"its version {version} is not that of plain numbers")
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(
            "it holds pickled Python objects, which are not read, as that would run whatever "
            "program they contain; save plain arrays of numbers instead"
        )
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if length != expected:
        raise ValueError(f"it should have {expected:,} bytes and has {length:,}")
    return _Member(shape, dtype)


def _mapped(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            _head(file, path.stat().st_size)
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _beside(path: Path) -> Path:
    for one, other in (("images", "labels"), ("image", "label"), ("x", "y"), ("X", "y")):
        beside = path.with_name(path.name.replace(one, other, 1))
        if beside != path and beside.is_file():
            return beside
    raise ValueError(f"which .npy file has the labels of {path}? Name it with labels=")


def _pairs(
    path: Path, images: str | None, labels: str | None, held_out: str | None
) -> list[tuple[_File, _File]]:
    """The arrays of images and labels of the parts that are wanted."""
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except Exception as error:  # what zipfile makes of damaged files is not documented
            raise ValueError(f"{path} cannot be read as an .npz file: {error}") from error
        infos = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }

        def read(key: str) -> _File:
            name = f"{path}, {key!r}"
            try:
                return _File(name, _array(archive, infos[key]))
            except Exception as error:
                raise ValueError(f"{name} cannot be read: {error}") from error

        wanted = _wanted(path, archive, infos, images, labels, held_out)
        return [(read(x), read(y)) for x, y in wanted]


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as file:
        _head(file, info.file_size)
    if info.file_size > ARRAY_LIMIT:
        raise ValueError(
            f"it has {info.file_size:,} bytes; of an .npz file at most {ARRAY_LIMIT:,} are read at "
            "once: save it as .npy, which is read in place"
        )
    with archive.open(info) as file:
        found: Array = np.lib.format.read_array(file, allow_pickle=False)
        return found


def _wanted(
    path: Path,
    archive: zipfile.ZipFile,
    infos: Mapping[str, zipfile.ZipInfo],
    images: str | None,
    labels: str | None,
    held_out: str | None,
) -> list[tuple[str, str]]:
    """The keys of images and labels, part by part."""
    found: dict[tuple[str | None, str], list[str]] = {}
    for key in infos:
        words = [word for word in re.split(r"[_\W]+", key.lower()) if word]
        parts = [PART_WORDS[word] for word in words if word in PART_WORDS]
        rest = [word for word in words if word not in PART_WORDS]
        for role, usual in (("images", IMAGE_WORDS), ("labels", LABEL_WORDS)):
            if len(rest) == 1 and rest[0] in usual and len(parts) <= 1:
                found.setdefault((parts[0] if parts else None, role), []).append(key)

    def one(part: str | None, role: str, named: str | None) -> str:
        keys = found.get((part, role), []) if named is None else [named]
        if len(keys) == 1 and keys[0] in infos:
            return keys[0]
        problem = f"it has no {named!r}" if named is not None else f"which are the {role}?"
        raise ValueError(
            f"{path}: {problem} It has {_described(archive, infos)}. Name arrays with images= and "
            "labels="
        )

    if images is not None or labels is not None or (None, "images") in found:
        if held_out is not None:
            raise ValueError(f"{path}: held_out is for arrays that are called by parts")
        return [(one(None, "images", images), one(None, "labels", labels))]
    names = {part for part, _ in found}
    second = held_out or ("valid" if "valid" in names else "test")
    if "train" not in names or (held_out is not None and held_out not in names):
        one("train" if held_out is None else held_out, "images", None)
    parts = ["train"] + [second] * (second in names)
    return [(one(part, "images", None), one(part, "labels", None)) for part in parts]


def _described(archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo]) -> str:
    shown = []
    for key, info in list(infos.items())[:12]:
        try:
            with archive.open(info) as file:
                shown.append(f"{key!r} {_head(file, info.file_size)}")
        except Exception:
            shown.append(f"{key!r} (unreadable)")
    return ", ".join(shown) or "no arrays"


# Arrays


def _pictures(x: _File, layout: Layout | None) -> Array:
    """Images (N, H, W, C) of bytes, or of float32 from 0 to 1."""
    name, images = x
    axes = {3: ("NHW",), 4: ("NHWC", "NCHW")}.get(images.ndim, ())
    if layout is None and len(axes) == 2:
        fits = [axis in COLOURS for axis in (images.shape[3], images.shape[1])]
        layout = "NHWC" if fits == [True, False] else None
        if layout is None:
            raise ValueError(
                f"{name} has shape {images.shape}: which axes are these? Say "
                + ('layout="NCHW"' if fits == [False, True] else 'layout="NHWC" or layout="NCHW"')
            )
    layout = layout or (axes[0] if axes else None)  # type: ignore[assignment]
    if layout not in axes:
        raise ValueError(
            f"{name} has shape {images.shape}, images have (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if 0 in images.shape:
        raise ValueError(f"{name} is empty: its shape is {images.shape}")
    images = _ranged(name, images)
    if layout == "NHW":
        return images[..., None]
    return np.moveaxis(images, 1, -1) if layout == "NCHW" else images


def _ranged(name: object, images: Array) -> Array:
    kind = images.dtype.kind
    if images.dtype == np.uint8:
        return images
    if kind == "b":
        return images.view(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise ValueError(f"{name} is {images.dtype}; images are bytes, or fractions from 0 to 1")
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} has values that are NaN or infinite")
    if kind == "f" and 0 <= low and high <= 1:
        return images.astype(np.float32, copy=False)
    if 0 <= low and high <= 255 and (kind in "iu" or bool((images == np.floor(images)).all())):
        return images.astype(np.uint8)
    remedy = "(x + 1) / 2" if low >= -1 and high <= 1 else "(x - x.min()) / (x.max() - x.min())"
    raise ValueError(
        f"{name} goes from {low:g} to {high:g}; images go from 0 to 255 in whole numbers, or from "
        f"0 to 1 in fractions: save {remedy} as float32"
    )


def _labels(
    y: _File, classes: tuple[str, ...] | None, given: bool
) -> tuple[Array, tuple[str, ...]]:
    """Labels, int64 (N,), and their names.

    Args:
        y: what the file holds.
        classes: the names that are known already.
        given: whether the user has named them; a label is then its name's place.
    """
    name, labels = y
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and labels.dtype.kind in "biuf":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise ValueError(f"{name} has shape {labels.shape}, but is not one-hot")
        names = classes or tuple(map(str, range(labels.shape[1])))
        labels, classes, given = labels.argmax(1), names, True
    if labels.ndim != 1:
        raise ValueError(f"{name} has shape {labels.shape}; labels have (N,), (N, 1), or one-hot")
    if labels.dtype.kind == "f" and (labels == np.floor(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubUS":
        raise ValueError(f"{name} is {labels.dtype}; labels are whole numbers or texts")
    if given and labels.dtype.kind in "iub":
        low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
        if low < 0 or high >= len(classes or ()):
            raise ValueError(f"{name} goes from {low} to {high}, for {len(classes or ())} classes")
        return labels.astype(np.int64), classes or ()
    values, places = np.unique(labels, return_inverse=True)
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    classes = tuple(texts) if classes is None else classes
    unknown = [text for text in texts if text not in classes]
    if unknown:
        raise ValueError(
            f"{name} has the label {unknown[0]!r}, which is none of those learned: "
            f"{', '.join(classes[:10])}"
        )
    number = {text: k for k, text in enumerate(classes)}
    return np.array([number[text] for text in texts], np.int64)[places], classes
