"""A folder of images to label, and the folder of labelled ones that it becomes."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from palto.data import read_image
from palto.data.sources.soft_labels import FILE_COLUMN, TABLE
from palto.data.sources.stores import is_image, open_store
from palto.label.aggregate import Consensus, dawid_skene
from palto.label.store import Store, listed

SMALL = 32  # pixels; to see whether an image can be decoded


def take_in(
    store: Store,
    folder: Path,
    known_table: Path | None = None,
    *,
    complain: Callable[[str], None],
) -> dict[int, Path]:
    """Take the folder's images into the store, and say where each is.

    An image in a subfolder that is named like a class is of that class. Others are unknown, but for
    those that the table names: ``file,class`` in its first line, and then as ``1.jpg,cat``.

    Args:
        store: where they are noted.
        folder: the folder.
        known_table: a .csv file of known classes, files as seen from the folder.
        complain: called with a sentence about images that are left out.

    Returns:
        The file of each image that can be shown, by its id.

    Raises:
        OSError: the folder or the table cannot be read.
        ValueError: there are no images, or the table names what is not there.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = [name for name in open_store(folder).files if is_image(name)]
    have = set(store.images().values())
    paths, broken = {}, []
    known = {}
    for name in names:
        text = "/".join(name)
        path = folder.joinpath(*name)
        if text not in have:
            try:
                read_image(path, size=SMALL)
            except (OSError, ValueError):
                broken.append(text)
                continue
            if name[0] in store.classes and len(name) > 1:
                known[text] = store.classes.index(name[0])
        paths[text] = path
    if broken:
        complain(f"left out, as they cannot be read: {listed(broken)}")
    if not paths:
        raise ValueError(f"{folder} has no images that can be shown")
    if known_table is not None:
        known |= _read_known(known_table, store.classes, paths)
    store.add_images(paths, known)
    return {number: paths[name] for number, name in store.images().items() if name in paths}


def _read_known(table: Path, classes: Sequence[str], paths: dict[str, Path]) -> dict[str, int]:
    known = {}
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        if [cell.strip() for cell in next(rows, [])] != ["file", "class"]:
            raise ValueError(f"{table}: the first line is to be file,class")
        for row in filter(None, rows):
            if len(row) != 2 or row[0] not in paths or row[1] not in classes:
                raise ValueError(
                    f"{table}, line {rows.line_num}: wanted is an image of the folder and one of "
                    f"{','.join(classes)}, got {','.join(row)}"
                )
            known[row[0]] = classes.index(row[1])
    return known


def export(store: Store, folder: Path, out: Path) -> tuple[int, Consensus]:
    """Write the labelled images, with the probability of each class, for `palto train`.

    `out` gets a copy of each image that is known or has an answer that counts, in images/, and the
    table labels.csv. It appears when it is complete.

    Returns:
        How many images there are, and the consensus that the labels are.

    Raises:
        OSError: it cannot be written, or is there already.
        ValueError: nothing has been labelled yet, or `out` lies in the folder itself.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: choose another folder, or remove it")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies in {folder}, where its images would be labelled again")
    answers, known = store.answers(), store.known_array()
    images = list(store.images().values())
    consensus = dawid_skene(answers, len(images), len(store.classes), known=known)
    chosen = sorted({*answers.image.tolist(), *(k for k, label in enumerate(known) if label >= 0)})
    chosen = [place for place in chosen if (folder / images[place]).is_file()]
    if not chosen:
        raise ValueError("no image has been labelled yet")
    unfinished = out.with_name(out.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for place in chosen:
        copy = unfinished / "images" / images[place]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / images[place], copy)
    with (unfinished / TABLE[0]).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([FILE_COLUMN, *store.classes])
        for place in chosen:
            shares = [f"{p:.6f}" for p in consensus.probabilities[place]]
            table.writerow([f"images/{images[place]}", *shares])
    os.replace(unfinished, out)
    return len(chosen), consensus
