"""Labels that are not sure: a table beside the images, with a probability for each class."""

from __future__ import annotations

import csv
import io

import numpy as np

from palto.data.sources.stores import Name, Store
from palto.tensor.dtypes import Array

#: The table's file, at the top of the folder or archive.
TABLE: Name = ("labels.csv",)
#: The name of its first column; those of the others are the classes.
FILE_COLUMN = "file"


def has_soft_labels(store: Store) -> bool:
    """Whether there is such a table."""
    if TABLE not in store.files:
        return False
    with store.open(TABLE) as file:
        return file.readline(1 << 16).decode("utf-8-sig", "replace").startswith(f"{FILE_COLUMN},")


def read_soft_labels(store: Store) -> tuple[list[Name], Array, tuple[str, ...]]:
    """The images of the table, their probabilities and the classes.

    The table's first line is ``file,cat,dog``; every other one names a file, as seen from the
    table's folder, and gives the probability of each class: ``images/1.png,0.9,0.1``.

    Returns:
        The names (N), the probabilities, float32 (N, classes), whose rows add up to 1, and the
        classes.

    Raises:
        ValueError: the table is none of this kind, or names an image that is not there; the message
            names the line.
    """
    where = store.path(TABLE)
    with store.open(TABLE) as file:
        try:
            rows = list(csv.reader(io.StringIO(file.read().decode("utf-8-sig"))))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{where} is no table: {error}") from error
    classes = tuple(cell.strip() for cell in rows[0][1:])
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(
            f"{where}, line 1: wanted is {FILE_COLUMN!r} and two or more different classes, got "
            f"{','.join(rows[0])}"
        )
    there = set(store.files)
    names: list[Name] = []
    seen: set[Name] = set()
    shares: list[list[float]] = []
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue
        name = tuple(part for part in row[0].replace("\\", "/").split("/") if part not in ("", "."))
        if name not in there:
            raise ValueError(f"{where}, line {line}: there is no file {row[0]!r}")
        if name in seen:
            raise ValueError(f"{where}, line {line}: {row[0]!r} stands there for the second time")
        seen.add(name)
        try:
            values = [float(cell) for cell in row[1:]]
        except ValueError:
            values = []
        total = sum(values)
        if len(values) != len(classes) or min(values) < 0 or not abs(total - 1) <= 0.01:
            raise ValueError(
                f"{where}, line {line}: wanted are {len(classes)} probabilities that add up to 1, "
                f"got {','.join(row[1:])}"
            )
        names.append(name)
        shares.append([value / total for value in values])
    if not names:
        raise ValueError(f"{where} names no images")
    return names, np.array(shares, np.float32), classes
