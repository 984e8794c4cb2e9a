"""Opening data by what a user types: a name that Palto knows, or a path."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from palto.data.dataset import Dataset, ImageDataset, random_split
from palto.data.fetch import Files
from palto.data.sources.arrays import numpy_archive
from palto.data.sources.checks import too_few
from palto.data.sources.dialogues import FILES as CHITCHAT
from palto.data.sources.elpv import FILES as ELPV
from palto.data.sources.elpv import elpv
from palto.data.sources.fashion_mnist import FILES as FASHION_MNIST
from palto.data.sources.fashion_mnist import fashion_mnist
from palto.data.sources.images import OnError, Options, image_archive, image_folder
from palto.data.sources.penguins import TABLE as PENGUINS
from palto.data.sources.penguins import penguins
from palto.data.sources.pictures import Channels, Fit, Size
from palto.data.sources.speech import FILES as SPEECH
from palto.data.sources.stores import ARCHIVES
from palto.data.sources.tables import TableEncoder, Task, csv_table

Pair = tuple[Dataset, Dataset | None]

TABLES = (".csv", ".tsv", ".txt")
ARRAYS = (".npz", ".npy")
KINDS = (
    "a folder of images by class, an archive of such a folder "
    f"({', '.join(ARCHIVES)}), a table ({', '.join(TABLES)}), or arrays ({', '.join(ARRAYS)})"
)


@dataclass(frozen=True)
class Source:
    """A data set that Palto knows by name.

    Attributes:
        name: what to call it by.
        what: what is in it.
        size: how much there is to fetch.
        licence: under which terms it may be used.
        origin: who has published it, and where.
        files: its files, and where they can be had; none where they come with Palto.
        open: gives its examples, those to learn from and the others; of a table, the column to be
            predicted is the second argument, the task the third. None where examples have no
            answers: then a function of its name in `palto.data` gives what there is.
        resizes: whether its images can be had in any size, in colour or grey.
        table: its table, where it has columns, one of which is predicted.
        command: the command that learns from it, where its examples have no answers.
    """

    name: str
    what: str
    size: str
    licence: str
    origin: str
    files: tuple[Files, ...]
    open: Callable[[Options, str | None, Task | None], Pair] | None
    resizes: bool = False
    table: Path | None = None
    command: str | None = None

    @property
    def here(self) -> bool:
        """Whether its files are on this machine."""
        return all(files.here for files in self.files)


SOURCES = {
    source.name: source
    for source in (
        Source(
            name="fashion-mnist",
            what="70,000 grey pictures of clothes, 28 x 28, 10 classes",
            size="31 MB",
            licence="MIT",
            origin="Zalando Research; Debian's package dataset-fashion-mnist",
            files=(FASHION_MNIST,),
            open=lambda *_: fashion_mnist(),
        ),
        Source(
            name="elpv",
            what="2,624 grey photographs of solar cells, 300 x 300, 4 grades of defects",
            size="91 MB",
            licence="CC-BY-NC-SA-4.0",
            origin="ZAE Bayern; the Python package elpv-dataset",
            files=(ELPV,),
            open=lambda options, *_: elpv(size=options.size, channels=options.channels),
            resizes=True,
        ),
        Source(
            name="penguins",
            what="a table of 344 penguins, 3 species by 7 columns",
            size="comes with Palto",
            licence="CC0-1.0",
            origin="Palmer Station LTER; the Python package palmerpenguins",
            files=(),
            open=lambda x, target, task: penguins(
                target=target or "species", task=task, validation=x.validation, seed=x.seed
            ),
            table=PENGUINS,
        ),
        Source(
            name="speech",
            what="2,831 recordings of speech, 131 minutes, 5 languages, 16,000 samples a second",
            size="55 MB",
            licence="CC-BY-SA-3.0, in Italian CC-BY-3.0",
            origin="Digium and others; Debian's packages asterisk-core-sounds-*-g722",
            files=tuple(SPEECH.values()),
            open=None,
            command="palto train echo",
        ),
        Source(
            name="chitchat",
            what="4,017 conversations of two people in English",
            size="8 MB",
            licence="MIT",
            origin="BYU's PCC Lab; the Python package chitchat-dataset",
            files=(CHITCHAT,),
            open=None,
            command="palto train chat",
        ),
    )
}


def available() -> tuple[Source, ...]:
    """The data sets that Palto knows by name."""
    return tuple(SOURCES.values())


def _named(text: str) -> Source | None:
    return SOURCES.get(text.lower().replace("_", "-"))


def _is_meant(text: str) -> str:
    near = difflib.get_close_matches(text.lower(), SOURCES, 1)
    return f" (is {near[0]!r} meant?)" if near else ""


def fetch_source(name: str) -> Source:
    """Bring a data set's files to this machine, where they are not there.

    Raises:
        ValueError: there is none of this name.
        DataUnavailableError: it can be found nowhere.
    """
    source = _named(name)
    if source is None:
        raise ValueError(
            f"there is no data set {name!r}{_is_meant(name)}. Palto knows {', '.join(SOURCES)}"
        )
    for files in source.files:
        files.read()
    return source


def open_source(
    spec: str | os.PathLike[str],
    *,
    size: int | Size | None = None,
    channels: Channels | None = None,
    fit: Fit = "crop",
    on_error: OnError = "raise",
    target: str | None = None,
    task: Task | None = None,
    encoder: TableEncoder | None = None,
    validation: float = 0.0,
    seed: int = 0,
) -> tuple[Dataset, Dataset | None]:
    """The data that a user names: a data set's name, or a path.

    A path may be that of a folder of images by class (`image_folder`), of an archive of such a
    folder (`image_archive`), of a table (`csv_table`), or of arrays (`numpy_archive`). A name comes
    first: a folder of that name is opened with "./" before it.

    Args:
        spec: the name or path.
        size: (height, width) of images from files, or one number for both.
        channels: 3 or 1, for images from files.
        fit: "crop" or "stretch", for images from files.
        on_error: "raise" or "skip": what is done about image files that cannot be read.
        target: the column of a table to be predicted.
        task: "classify" or "regress", for a table; by default as the target looks.
        encoder: of another table: this one becomes numbers in the same way.
        validation: the share to hold out, where the data has no such part itself.
        seed: of the division.

    Returns:
        The examples to learn from, and those held out: None where there are none.

    Raises:
        FileNotFoundError: there is no data set and no file of this name.
        OSError: a file cannot be read.
        ValueError: the data is damaged, of an unknown kind, or an option does not go with it.
        DataUnavailableError: the data set can be found nowhere.
    """
    text = os.fspath(spec)
    images = Options(size, channels, fit, on_error, validation, seed=seed)
    images.check()
    source = _named(text)
    path = Path(text).expanduser()
    kind = path.name.lower()
    has_files = path.is_dir() or kind.endswith(ARCHIVES) or (source is not None and source.resizes)
    if source is None and not path.exists():
        opened = [name for name, known in SOURCES.items() if known.open is not None]
        raise FileNotFoundError(
            f"there is no file {text!r}, and no data set of this name{_is_meant(text)}"
            f". Palto knows {', '.join(opened)}; and opens {KINDS}"
        )
    if source is not None and source.open is None:
        raise ValueError(
            f"{text} holds no examples with answers: {source.what}; `{source.command}` learns from "
            f"them, and palto.data.{source.name} gives them"
        )
    is_table = not has_files and kind.endswith(TABLES) if source is None else bool(source.table)
    for option, value, fits, wanted in (
        ("size", size, has_files, "image files"),
        ("channels", channels, has_files, "image files"),
        ("target", target, is_table, "tables"),
        ("task", task, is_table, "tables"),
    ):
        if value is not None and not fits:
            raise ValueError(f"{option} is for {wanted}, which {text} is not: leave it out")
    if encoder is not None:
        if not is_table:
            names = ", ".join(repr(column.name) for column in encoder.columns)
            raise ValueError(f"{text} is no table; wanted is one with the columns {names}")
        table = source.table if source is not None and source.table else path
        return csv_table(table, encoder=encoder, validation=validation, seed=seed)
    if source is not None and source.open is not None:
        return source.open(images, target, task)
    if path.is_dir():
        return image_folder(path, **images._asdict())
    if kind.endswith(ARCHIVES):
        return image_archive(path, **images._asdict())
    if kind.endswith(TABLES):
        return csv_table(path, target=target, task=task, validation=validation, seed=seed)
    if kind.endswith(ARRAYS):
        train, test = numpy_archive(path)
        return _divided(train, validation, seed) if test is None and validation else (train, test)
    raise ValueError(f"{text} is of no kind that Palto knows: it opens {KINDS}")


def _divided(dataset: ImageDataset, share: float, seed: int) -> Pair:
    first, second = random_split(dataset, [1 - share, share], seed, stratify=dataset.labels)
    if not (len(first) and len(second)):
        raise too_few(dataset.name, len(dataset), share)
    return first, second
