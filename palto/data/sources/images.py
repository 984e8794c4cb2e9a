"""Images by class: a folder, or an archive, with one subfolder for each class."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from palto.data.dataset import BytesOrFloats, Example, Indices, _whole_numbers, random_split
from palto.data.fetch import say
from palto.data.sources.checks import existing, one_of, share, too_few
from palto.data.sources.pictures import (
    Channels,
    Fit,
    Header,
    Size,
    both_sides,
    decode,
    read_header,
)
from palto.data.sources.soft_labels import has_soft_labels, read_soft_labels
from palto.data.sources.stores import Name, Store, is_image, open_store
from palto.tensor.dtypes import Array

Item = TypeVar("Item")
Result = TypeVar("Result")
OnError = Literal["raise", "skip"]
HeldOut = Literal["valid", "test"]

#: How the folders of a divided data set are called.
PARTS = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
DEFAULT_SIZE = (64, 64)  # for images of several sizes, or of one larger than the next number
LARGEST_KEPT = 256 * 256  # pixels
CACHE_BYTES = 1 << 30
THREADS = 8  # that look at files when a data set is opened
LICENCES = ("license", "licence", "copying")
MANY = 2000  # images take long enough to say so
SHOWN = 5  # files that a message names


class Skipped(NamedTuple):
    """A file that was left out, and why."""

    path: Path
    reason: str


class ImageFiles(BytesOrFloats):
    """Image files with a label each, decoded when they are asked for.

    Examples are images, float32 (H, W, C) from 0 to 1 (`as_bytes` gives bytes), and labels, int64,
    or where they are not sure a probability for each class, float32 (classes,). Decoding lets
    threads run side by side: give a DataLoader ``num_workers``.

    Attributes:
        paths: the files, in the order of the examples; in an archive, as if it were a folder.
        labels: all labels, shape (N,).
        soft_labels: the probability of each class, float32 (N, classes), or None where labels are
            sure; `labels` are the most probable ones then.
        size: (height, width) of every image.
        channels: 3 for colour, 1 for grey.
        fit: how images of another shape are brought to `size`.
        skipped: the files that were left out, with the reasons.
        notes: what was decided or left out when the data was opened, in sentences.
    """

    def __init__(
        self,
        pictures: Pictures,
        rows: Array,
        labels: Array,
        *,
        classes: Sequence[str],
        licence: str | None = None,
        name: str | None = None,
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self._pictures, self._rows = pictures, rows
        self.labels = labels
        self.soft_labels: Array | None = None
        self.size, self.channels, self.fit = pictures.size, pictures.channels, pictures.fit
        self.classes, self.licence, self.name = tuple(classes), licence, name
        self.skipped, self.notes = tuple(skipped), tuple(notes)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, in the order of the examples."""
        return tuple(self._pictures.path(row) for row in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Indices) -> tuple[Array, ...]:
        """Images (n, H, W, C) as float32 from 0 to 1, or as bytes, and labels (n,) as int64.

        Labels that are not sure are float32 (n, classes).

        Raises:
            ValueError: an image is damaged; the message names the file and the reason.
        """
        places = _whole_numbers(indices)
        labels = self.labels if self.soft_labels is None else self.soft_labels
        return self._given(self._pictures.gather(self._rows[places])), labels[places]

    def select(self, indices: Indices) -> ImageFiles:
        """Some of the examples, in this order; what has been decoded is shared."""
        selected = copy.copy(self)
        selected._rows, selected.labels = self._rows[indices], self.labels[indices]
        if self.soft_labels is not None:
            selected.soft_labels = self.soft_labels[indices]
        return selected

    def split(self, held_out: float, seed: int = 0) -> tuple[ImageFiles, ImageFiles]:
        """The examples divided at random, a share of each class in the second part.

        The second part is to measure on: it has the most probable labels, where they are not sure.

        Raises:
            ValueError: a part would be empty.
        """
        parts = random_split(self, [1 - held_out, held_out], seed, stratify=self.labels)
        if not all(map(len, parts)):
            raise too_few(self.name, len(self), held_out)
        first, second = (self.select(np.sort(part.indices)) for part in parts)
        second.soft_labels = None
        return first, second


class Pictures:
    """Image files of a store as bytes of one shape; kept in memory where all of them fit.

    Args:
        store: where they are.
        names: their names.
        size: (height, width) to bring them to.
        channels: 3 or 1.
        fit: how they are brought to that size.
        cache_bytes: the memory that they may take up.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[Name],
        size: Size,
        channels: Channels,
        fit: Fit,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.store, self.names = store, names
        self.size, self.channels, self.fit = size, channels, fit
        shape = (len(names), *size, channels)
        self._kept = np.empty(shape, np.uint8) if np.prod(shape) <= cache_bytes else None
        self._is_kept = np.zeros(len(names), np.bool_)

    def path(self, row: int) -> Path:
        """The file of a row."""
        return self.store.path(self.names[row])

    def read(self, row: int) -> Array:
        """One image, bytes of shape (H, W, C).

        Raises:
            ValueError: it cannot be read; the message names the file.
        """
        if self._kept is not None and self._is_kept[row]:
            kept: Array = self._kept[row]
            return kept
        try:
            with self.store.open(self.names[row]) as file:
                pixels = decode(file, self.size, self.channels, self.fit)
        except Exception as error:
            raise ValueError(
                f"{self.path(row)}: {reason_of(error)}; replace or remove it, or leave it out "
                'with on_error="skip"'
            ) from error
        if self._kept is not None:  # the mark after the pixels: another thread may look
            self._kept[row] = pixels
            self._is_kept[row] = True
        return pixels

    def gather(self, rows: Array) -> Array:
        """Images of some rows, new bytes of shape (n, H, W, C).

        Raises:
            ValueError: one cannot be read; the message names the file.
        """
        if self._kept is not None:
            for row in rows[~self._is_kept[rows]]:
                self.read(row)
            return self._kept.take(rows, axis=0)
        images = np.empty((len(rows), *self.size, self.channels), np.uint8)
        for image, row in zip(images, rows, strict=True):
            image[...] = self.read(row)
        return images

    def problem(self, row: int) -> str | None:
        """Why an image cannot be read, None if it can."""
        try:
            self.read(row)
        except ValueError as error:
            return reason_of(error.__cause__ or error)
        return None


def reason_of(error: BaseException) -> str:
    """What an error says, without the file's name."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def image_folder(
    folder: str | os.PathLike[str],
    *,
    size: int | Size | None = None,
    channels: Channels | None = None,
    fit: Fit = "crop",
    on_error: OnError = "raise",
    validation: float = 0.0,
    held_out: HeldOut | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> tuple[ImageFiles, ImageFiles | None]:
    """A folder of images with one subfolder for each class, or for each part and class.

    As in::

        photos/                  photos/
            cat/  1.jpg ...          train/  cat/ ...  dog/ ...
            dog/  2.png ...          valid/  cat/ ...  dog/ ...     (or val, validation)
                                     test/   cat/ ...  dog/ ...

    Or a table ``labels.csv`` stands beside the images, with labels that are not sure: its first
    line is ``file,cat,dog``, the others are as ``images/1.jpg,0.9,0.1``. `palto label` writes such
    a folder.

    Images are PNG, JPEG, WebP, BMP, GIF (the first frame), TIFF or PPM files, at any depth below
    their class. They are turned upright as their EXIF data says; 16-bit grey is divided by 257,
    what is transparent shows white, CMYK and palettes become colours; colour profiles are not
    applied. Hidden files, other files and empty folders are left out (see ``notes``); a link is
    followed, except back into a folder that it is in.

    When the folder is opened, the head of every image is read, not its pixels. An image that turns
    out to be damaged later is an error then, with its name; ``on_error="skip"`` decodes all images
    at once to find those first.

    Args:
        folder: its path.
        size: (height, width), or one number for both. By default that of the images, if they all
            have the same, of at most 256 x 256 pixels; else 64 x 64.
        channels: 3 for colour, 1 for grey; by default grey if all images are.
        fit: how an image of another shape is brought to `size`: "crop" scales the shorter side and
            cuts the longer one equally on both sides, "stretch" keeps all and distorts.
        on_error: what is done about images that cannot be read, "raise" or "skip".
        validation: the share of each class to hold out, where the folder has no such part itself.
        held_out: which part is the second one, "valid" or "test"; by default the validation part,
            where there is one: test images are to stay unseen until the end.
        classes: the names of the classes; by default the folders' names, sorted.
        seed: of the division.
        cache_bytes: decoded images are kept in memory, as bytes, if all of them fit into so many;
            0 keeps none.

    Returns:
        The examples to learn from, and those held out: None where there are none.

    Raises:
        OSError: the folder does not exist or cannot be listed.
        ValueError: it has no images, or of one class only; an image cannot be read; an option is
            none of those possible.
    """
    path = existing(folder)
    if not path.is_dir():
        raise ValueError(f"{path} is a file; image_folder wants a folder, image_archive an archive")
    options = Options(
        size, channels, fit, on_error, validation, held_out, classes, seed, cache_bytes
    )
    return _open(path, options)


def image_archive(
    path: str | os.PathLike[str],
    *,
    size: int | Size | None = None,
    channels: Channels | None = None,
    fit: Fit = "crop",
    on_error: OnError = "raise",
    validation: float = 0.0,
    held_out: HeldOut | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
) -> tuple[ImageFiles, ImageFiles | None]:
    """An archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz) of images by class.

    It is read where it is: nothing is written to disk. A packed .tar is read once, and its images
    are kept in memory as they are; it may unpack to 4 GiB. All else is as in `image_folder`.

    Args:
        path: of the archive.
        size: as for `image_folder`, like all that follow.
        channels: 3 for colour, 1 for grey.
        fit: "crop" or "stretch".
        on_error: "raise" or "skip".
        validation: the share of each class to hold out.
        held_out: which part is the second one.
        classes: the names of the classes.
        seed: of the division.
        cache_bytes: for how many bytes of decoded images there is memory.

    Returns:
        The examples to learn from, and those held out or None.

    Raises:
        OSError: the archive does not exist or cannot be opened.
        ValueError: it is damaged, or no such archive; what `image_folder` raises.
    """
    where = existing(path)
    if where.is_dir():
        raise ValueError(f"{where} is a folder: image_folder reads those")
    options = Options(
        size, channels, fit, on_error, validation, held_out, classes, seed, cache_bytes
    )
    return _open(where, options)


class Options(NamedTuple):
    """What `image_folder` is told; checked by `check`."""

    size: int | Size | None = None
    channels: Channels | None = None
    fit: Fit = "crop"
    on_error: OnError = "raise"
    validation: float = 0.0
    held_out: HeldOut | None = None
    classes: Sequence[str] | None = None
    seed: int = 0
    cache_bytes: int = CACHE_BYTES

    def check(self) -> None:
        """Refuse what is not possible.

        Raises:
            ValueError: an option is none of those possible.
        """
        if self.size is not None:
            both_sides(self.size)
        one_of("channels", self.channels, 1, 3, None)
        one_of("fit", self.fit, "crop", "stretch")
        one_of("on_error", self.on_error, "raise", "skip")
        one_of("held_out", self.held_out, "valid", "test", None)
        share("validation", self.validation)


class Labelled(NamedTuple):
    """The images of one part, each with the name of its class."""

    names: list[Name]
    classes: list[str]


def _open(path: Path, options: Options) -> tuple[ImageFiles, ImageFiles | None]:
    options.check()
    store = open_store(path)
    if has_soft_labels(store):
        return _open_soft(store, options)
    parts, notes = _parts(store, options.held_out)
    datasets = build(store, parts, options, name=path.name, notes=notes)
    return datasets[0], datasets[1] if len(datasets) > 1 else None


def _open_soft(store: Store, options: Options) -> tuple[ImageFiles, ImageFiles | None]:
    """The images that a table of soft labels names.

    Raises:
        ValueError: see `image_folder` and `read_soft_labels`; options that do not go with a table.
    """
    names, shares, classes = read_soft_labels(store)
    if options.held_out is not None:
        raise ValueError(f"{store.root} has a table of labels, not a folder {options.held_out!r}")
    if options.classes is not None and tuple(options.classes) != classes:
        raise ValueError(f"{store.root} has the classes {', '.join(classes)}: leave classes out")
    part = Labelled(names, [classes[k] for k in shares.argmax(1)])
    whole_options = options._replace(classes=classes, validation=0.0)
    (dataset,) = build(store, [part], whole_options, name=store.root.name)
    dataset.soft_labels = shares[dataset._rows]
    return (
        dataset.split(options.validation, options.seed) if options.validation else (dataset, None)
    )


def build(
    store: Store,
    parts: Sequence[Labelled],
    options: Options,
    *,
    name: str,
    notes: Sequence[str] = (),
    licence: str | None = None,
) -> list[ImageFiles]:
    """The data sets of the parts; two of them, if a share of a single part is to be held out.

    Raises:
        ValueError: see `image_folder`.
    """
    notes = list(notes)
    names = [image for part in parts for image in part.names]
    looked = _each(partial(_look, store), names)
    bad = {row: found for row, found in enumerate(looked) if isinstance(found, str)}
    heads = [found for found in looked if isinstance(found, Header)]
    size, channels = _shape(name, heads, options, notes)
    pictures = Pictures(store, names, size, channels, options.fit, options.cache_bytes)
    if options.on_error == "skip":
        rows = [row for row in range(len(names)) if row not in bad]
        if len(rows) >= MANY:
            say(f"{name}: decoding {len(rows):,} images to find damaged ones ...")
        problems = zip(rows, _each(pictures.problem, rows), strict=True)
        bad |= {row: problem for row, problem in problems if problem is not None}
    skipped = [Skipped(store.path(image), reason) for image, reason in store.problems]
    skipped += [Skipped(pictures.path(row), bad[row]) for row in sorted(bad)]
    if skipped:
        listed = _listed(skipped)
        counted = f"{name}: {len(skipped)} of {len(names)} images cannot be read"
        if options.on_error == "raise":
            raise ValueError(
                f"{counted}:\n{listed}\n"
                'Replace or remove them, or leave them out with on_error="skip".'
            )
        notes.append(f"{counted} and are left out:\n{listed}")

    datasets: list[ImageFiles] = []
    classes = tuple(options.classes or ())
    start = 0
    for part in parts:
        sound = [k for k in range(len(part.names)) if start + k not in bad]
        own = [part.classes[k] for k in sound]
        classes = classes or tuple(sorted(set(own)))
        if len(classes) < 2 or not sound:
            raise ValueError(
                f"{name} has {_counted(len(sound), 'image')} of "
                + (f"one class only, {classes[0]!r}" if len(classes) == 1 else "no class")
                + f": to tell classes apart takes two or more.\n{EXPECTED}"
            )
        number = {text: k for k, text in enumerate(classes)}
        for k, text in zip(sound, own, strict=True):
            if text not in number:
                raise ValueError(
                    f"{store.path(part.names[k])} is of class {text!r}, which is none of those "
                    f"learned: {', '.join(classes)}"
                )
        datasets.append(
            ImageFiles(
                pictures,
                rows=np.array(sound) + start,
                labels=np.array([number[text] for text in own], np.int64),
                classes=classes,
                licence=licence or _licence(store),
                name=name,
                skipped=skipped,
                notes=notes,
            )
        )
        start += len(part.names)
    for note in notes:
        say(note)
    if len(datasets) == 1 and options.validation:
        return list(datasets[0].split(options.validation, options.seed))
    return datasets


EXPECTED = """Expected is one subfolder for each class, or for each part and class:
    photos/cat/1.jpg        photos/train/cat/1.jpg
    photos/cat/2.jpg   or   photos/train/dog/2.jpg
    photos/dog/3.jpg        photos/test/cat/3.jpg
Put the images into such folders, named by what the images show."""


def _parts(store: Store, held_out: HeldOut | None) -> tuple[list[Labelled], list[str]]:
    """The images by part and class, and what is to be said about the other files.

    Raises:
        ValueError: there are no images, or the folders are no classes and no parts.
    """
    images = [name for name in store.files if is_image(name)]
    endings = Counter(
        os.path.splitext(name[-1])[1].lower() or "no ending"
        for name in store.files
        if not is_image(name) and not _is_licence(name)
    )
    shown = ", ".join(f"{ending} ({n})" for ending, n in endings.most_common(SHOWN))
    if not images:
        raise ValueError(
            f"{store.root} has no images"
            + (f"; its files end in {shown}: save images as PNG or JPEG" if shown else "")
            + (f"; {store.problems[0][1]}" if store.problems else "")
            + f".\n{EXPECTED}"
        )
    notes = [f"{store.root}: files that are no images are left out: {shown}"] if shown else []
    base = _base(store, images)
    parts = _divided(store.path(base), _folders_in(base, images))
    if held_out is not None and held_out not in parts:
        raise ValueError(
            f"{store.root} has no folder for the part {held_out!r}"
            + (f", but {', '.join(parts.values())}" if parts else "")
        )
    found = [_labelled(store, images, (*base, parts["train"]) if parts else base, notes)]
    second = held_out or ("valid" if "valid" in parts else "test")
    if second in parts:
        try:
            found.append(_labelled(store, images, (*base, parts[second]), notes))
        except ValueError:
            if held_out is not None:
                raise
            notes.append(f"{store.root}: {parts[second]} is left out: it has no class folders")
    return found, notes


def _base(store: Store, images: Sequence[Name]) -> Name:
    """The folder that the classes or parts are in: archives often have one folder around all."""
    base: Name = ()
    while True:
        folders = _folders_in(base, [*images, *((*name, "") for name in store.folders)])
        deep = sum(len(name) > len(base) + 2 for name in images)
        if len(folders) > 1 or 2 * deep <= len(images):
            return base
        base += (folders.pop(),)


def _folders_in(base: Name, files: Iterable[Name]) -> set[str]:
    """The folders right in `base` that some of the files are in."""
    depth = len(base)
    return {name[depth] for name in files if len(name) > depth + 1 and name[:depth] == base}


def _divided(where: Path, folders: Iterable[str]) -> dict[str, str]:
    """Which folder is which part; nothing if they are classes.

    Raises:
        ValueError: some are parts and others are not, or none is to learn from.
    """
    roles = {word: part for part, words in PARTS.items() for word in words}
    parts = {roles[name.lower()]: name for name in folders if name.lower() in roles}
    others = sorted(set(folders) - set(parts.values()))
    if len(parts) < 2 and (others or "train" not in parts):
        return {}
    if others:
        raise ValueError(
            f"{where} has folders for parts, {', '.join(sorted(parts.values()))}, and beside them "
            f"{', '.join(others[:SHOWN])}: give each part one folder, and move the others away"
        )
    if "train" not in parts:
        raise ValueError(f"{where} has {', '.join(sorted(parts.values()))}, but no folder train")
    return parts


def _labelled(store: Store, images: Sequence[Name], base: Name, notes: list[str]) -> Labelled:
    """The images below `base`, by the folders right in it.

    Raises:
        ValueError: there are none in folders.
    """
    depth = len(base)
    own = [name for name in images if name[:depth] == base]
    inside = [name for name in own if len(name) > depth + 1]
    where = store.path(base)
    if not inside:
        raise ValueError(
            f"{where} has {_counted(len(own), 'image')}, but in no class folders.\n{EXPECTED}"
        )
    classes = [name[depth] for name in inside]
    if len(inside) < len(own):
        stray = _counted(len(own) - len(inside), "image")
        notes.append(f"{where}: {stray} in no class folder left out")
    folders = _folders_in(base, ((*name, "") for name in store.folders))
    empty = sorted(folders - set(classes))
    if empty:
        notes.append(f"{where}: folders without images left out: {', '.join(empty[:SHOWN])}")
    return Labelled(inside, classes)


def _shape(
    name: str, heads: Sequence[Header], options: Options, notes: list[str]
) -> tuple[Size, Channels]:
    """The size and the channels to bring all images to."""
    sizes = {head.size for head in heads}
    if options.size is not None:
        size = both_sides(options.size)
    elif len(sizes) == 1 and np.prod(next(iter(sizes))) <= LARGEST_KEPT:
        size = next(iter(sizes))
    else:
        size = DEFAULT_SIZE
        if sizes:
            low, high = min(sizes, key=np.prod), max(sizes, key=np.prod)
            notes.append(
                f"{name}: images are {low[0]}x{low[1]}"
                + (f" to {high[0]}x{high[1]}" if low != high else "")
                + f" (height x width); all are brought to {size[0]}x{size[1]}: size= chooses"
                " another"
            )
    return size, options.channels or (1 if all(head.grey for head in heads) else 3)


def _look(store: Store, name: Name) -> Header | str:
    """The head of an image, or why it cannot be read."""
    try:
        with store.open(name) as file:
            return read_header(file)
    except Exception as error:
        return reason_of(error)


def _each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as threads:
        return list(threads.map(function, items))


def _is_licence(name: Name) -> bool:
    return len(name) <= 2 and os.path.splitext(name[-1])[0].lower() in LICENCES


def _licence(store: Store) -> str | None:
    """The first line of a file LICENSE, LICENCE or COPYING at the top, if there is one."""
    for name in sorted(filter(_is_licence, store.files), key=len):
        with suppress(Exception), store.open(name) as file:  # an unreadable one is an unknown one
            lines = file.read(4096).decode("utf-8-sig", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.strip()), None)
    return None


def _listed(skipped: Sequence[Skipped]) -> str:
    lines = [f"  {path}: {reason}" for path, reason in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        lines.append(f"  and {len(skipped) - SHOWN} more")
    return "\n".join(lines)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
