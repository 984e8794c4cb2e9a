"""Tables in text files (CSV, TSV) as numbers for a network."""

from __future__ import annotations

import codecs
import csv
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from palto.data.dataset import TensorDataset, random_split
from palto.data.fetch import say
from palto.data.sources.checks import a_file, one_of, share, too_few
from palto.tensor.dtypes import Array

Task = Literal["classify", "regress"]
Missing = Literal["mean", "drop", "raise"]

DELIMITERS = (",", ";", "\t", "|")
#: Cells that hold nothing, in any case of letters.
MISSING = frozenset(["", "na", "n/a", "nan", "null", "none", "?"])
MAX_CATEGORIES = 64  # different texts of a column, each of which becomes a feature
MAX_CLASSES = 10_000
FEW = 20  # whole numbers of at most so many values are classes, unless `task` says otherwise
LARGEST = 1e100  # so that squares are finite
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")


@dataclass(frozen=True)
class Column:
    """How one column becomes features.

    Attributes:
        name: its heading.
        mean: what is subtracted from its numbers, and stands for missing ones.
        scale: what they are divided by then.
        indicator: whether a second feature says which numbers are missing.
        categories: for a column of texts, those that have a feature each.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    indicator: bool = False
    categories: tuple[str, ...] | None = None

    @property
    def features(self) -> list[str]:
        """The names of its features."""
        if self.categories is not None:
            return [f"{self.name}={text}" for text in self.categories]
        return [self.name, f"{self.name} is missing"] if self.indicator else [self.name]


@dataclass(frozen=True)
class TableEncoder:
    """How a table becomes numbers, learned from one table and kept for others.

    Attributes:
        columns: the columns that become features.
        target: the column to be predicted.
        classes: the names of the labels; None where the target is a number.
        mean: what is subtracted from a target that is a number.
        scale: what it is divided by then.
    """

    columns: tuple[Column, ...]
    target: str
    classes: tuple[str, ...] | None = None
    mean: float = 0.0
    scale: float = 1.0

    @property
    def features(self) -> tuple[str, ...]:
        """The names of all features, in the order of the last axis."""
        return tuple(name for column in self.columns for name in column.features)

    def restore(self, targets: Array) -> Array:
        """Predicted numbers in the target's own units."""
        return np.asarray(targets) * self.scale + self.mean

    def encode(self, row: Mapping[str, Any], number: int = 1) -> tuple[Array, list[str]]:
        """The features of a row that comes from elsewhere than a file.

        Args:
            row: a number, a text, or None for unknown, by the column's name.
            number: the row's own, for messages.

        Returns:
            The features, float32 (F,), and in sentences what in the row is made no use of.

        Raises:
            ValueError: a column is absent, or a cell is of a wrong kind; the message names both.
        """
        notes = [f"row {number}: {text}" for text in self._unused(row)]
        parts = []
        for column in self.columns:
            cells = _Cells(None, column.name, ".", 0, column.categories or ())
            cells.add(number, _as_text(cells, row, number))
            parts.append(cells.encode(column, notes)[0])
        return np.concatenate(parts), notes

    def _unused(self, names: Iterable[str]) -> list[str]:
        """A sentence about the columns that are none of its own, if there are some."""
        known = {self.target, *(column.name for column in self.columns)}
        more = [repr(name) for name in names if name not in known]
        shown = ", ".join(more[:10]) + (", ..." if len(more) > 10 else "")
        return [f"not learned from, so left out: {shown}"] if more else []

    def as_dict(self) -> dict[str, Any]:
        """All of it in lists, texts and numbers, for a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> TableEncoder:
        """What `as_dict` has written.

        Raises:
            ValueError: it is something else.
        """
        try:
            columns = tuple(
                Column(
                    str(column["name"]), float(column["mean"]), float(column["scale"]),
                    bool(column["indicator"]), _texts(column["categories"]),
                )
                for column in saved["columns"]
            )  # fmt: skip
            return cls(
                columns, str(saved["target"]), _texts(saved["classes"]), float(saved["mean"]),
                float(saved["scale"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is no encoder of a table, as TableEncoder.as_dict writes it: {error!r}"
            ) from error


def _as_text(cells: _Cells, row: Mapping[str, Any], number: int) -> str:
    """A row's cell as it would be written in a file.

    Raises:
        ValueError: it is absent, or of another kind.
    """
    if cells.name not in row:
        raise cells.error(number, "it is absent; None (null in JSON) says that it is unknown")
    cell = row[cells.name]
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float | np.number):
        kind = type(cell).__name__
        raise cells.error(number, f"a {kind} is neither a number, nor a text, nor None")
    return str(cell).strip()


def _texts(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(map(str, values))


class TableDataset(TensorDataset):
    """The rows of a table: features, float32 (F,), and the target.

    The target is a label, int64 (), or a standardised number, float32 (1,); rows to predict have
    none.

    Attributes:
        columns: the names of the features.
        encoder: how the table became numbers.
        lines: the line of the file that each row begins at, int64 (N,).
        notes: what was decided when the table was read, in sentences.
    """

    def __init__(
        self,
        *arrays: Array,
        encoder: TableEncoder,
        lines: Array,
        name: str,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(*arrays)
        self.encoder, self.lines, self.name, self.notes = encoder, lines, name, tuple(notes)
        self.columns, self.classes = encoder.features, encoder.classes or ()


def csv_table(
    path: str | os.PathLike[str],
    *,
    target: str | None = None,
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    task: Task | None = None,
    missing: Missing = "mean",
    delimiter: str | None = None,
    decimal: str = ".",
    encoding: str = "utf-8",
    encoder: TableEncoder | Mapping[str, Any] | None = None,
    with_target: bool = True,
    validation: float = 0.0,
    seed: int = 0,
) -> tuple[TableDataset, TableDataset | None]:
    """A table in a text file, whose first line names the columns.

    A column most of whose cells are numbers is one of numbers: from each the mean is subtracted,
    and the result divided by the standard deviation. A missing one becomes the mean, so 0; where a
    column lacks some, a further feature is 1 for those. A cell that is no number is an error.

    Another column is one of categories: each of its texts has a feature, which is 1 in the rows
    with this text (one-hot). Where the text is missing or was never seen, all of them are 0. A
    column of more than 64 texts is left out; it is an error if it was asked for.

    A target of texts, or of whole numbers of at most 20 values, is a class; any other is a number,
    and is standardised like a feature (``encoder.restore`` undoes it). A target may not be missing.

    Args:
        path: the file.
        target: the column to be predicted.
        features: the columns to predict it from; by default all others.
        categorical: columns of categories, although they may look like numbers (such as codes).
        task: "classify" or "regress"; by default as the target looks.
        missing: what is done about missing cells: "mean", as above; "drop" leaves out the rows
            that have some, also those without a target; or "raise".
        delimiter: what separates cells; by default the one of comma, semicolon, tab and | that fits
            the first lines.
        decimal: how fractions are written, "." or ",".
        encoding: how the text is encoded; a byte order mark comes first.
        encoder: of another table, or its dict: this table becomes numbers in the same way.
        with_target: False for rows to be predicted: the target's column need not be there.
        validation: the share of the rows to hold out; statistics are those of the other rows.
        seed: of the division.

    Returns:
        The rows to learn from, and those held out: None where there are none.

    Raises:
        OSError: the file cannot be opened.
        ValueError: something is wrong in it; the message names file, line, column and cell.
    """
    where = a_file(path)
    if isinstance(encoder, Mapping):
        encoder = TableEncoder.from_dict(encoder)
    if encoder is not None:
        if features is not None or categorical or target not in (None, encoder.target):
            raise ValueError("an encoder knows these: leave out target, features and categorical")
        target, features = encoder.target, [column.name for column in encoder.columns]
    one_of("task", task, "classify", "regress", None)
    one_of("missing", missing, "mean", "drop", "raise")
    one_of("decimal", decimal, ".", ",")
    share("validation", validation)
    if not with_target and encoder is None:
        raise ValueError("rows without a target can be read with the encoder of others only")

    file = _File(where, delimiter, encoding)
    if target is None:
        raise ValueError(
            f"{where}: say with target= which column is to be predicted: {', '.join(file.names)}"
        )
    chosen = list(features) if features is not None else [x for x in file.names if x != target]
    if target in chosen:
        raise ValueError(f"{target!r} is the target, so it cannot be one of the features")
    file.refuse_absent([*chosen, *categorical, *([target] if with_target else [])])
    known: dict[str, tuple[str, ...] | None] = {}
    if encoder is not None:
        known = {x.name: x.categories for x in encoder.columns} | {target: encoder.classes}
    cells = {name: _Cells(where, name, decimal, MAX_CATEGORIES, known.get(name)) for name in chosen}
    wanted = _Cells(where, target, decimal, MAX_CLASSES, known.get(target)) if with_target else None
    count = file.read([*cells.values(), *([wanted] if wanted is not None else [])])
    if missing == "raise":
        for column in cells.values():
            column.refuse_missing(
                'missing="mean" puts the mean there, missing="drop" leaves the row out'
            )
    if wanted is not None and missing != "drop":
        wanted.refuse_missing('a row without a target teaches nothing; missing="drop" removes it')

    notes = [] if encoder is None else encoder._unused(file.names)
    rows = np.arange(count)
    if missing == "drop":
        needed = [*cells.values(), *([wanted] if wanted is not None else [])]
        rows = rows[np.all([column.is_filled for column in needed], axis=0)]
        if not len(rows):
            raise ValueError(f'{where}: a cell is missing in every row; missing="mean" keeps them')
        if len(rows) < count:
            notes.append(f"{count - len(rows)} rows with missing cells: left out")
    classes = encoder.classes if encoder is not None else None
    if wanted is not None and encoder is None:
        classes = _classes(wanted, task, notes)
    labels = wanted.label(classes) if wanted is not None and classes is not None else None
    parts = _divided(where, rows, validation, seed, labels)
    if encoder is None:
        asked = features is not None
        columns = [x.fit(parts[0], x.name in categorical, asked, notes) for x in cells.values()]
        mean, scale = (
            (0.0, 1.0) if wanted is None or labels is not None else wanted.spread(parts[0])
        )
        encoder = TableEncoder(tuple(x for x in columns if x), target, classes, mean, scale)
    if not encoder.columns:
        raise ValueError(f"{where} has no column that could be a feature")
    arrays = [np.concatenate([cells[x.name].encode(x, notes) for x in encoder.columns], axis=1)]
    if labels is not None:
        arrays.append(labels)
    elif wanted is not None:
        arrays.append(wanted.standard(encoder.mean, encoder.scale)[:, None])
    for note in notes:
        say(f"{where.name}: {note}")
    lines = np.asarray(next(iter(cells.values())).lines)
    datasets = [
        TableDataset(
            *(x[part] for x in arrays), encoder=encoder, lines=lines[part], name=where.name,
            notes=notes,
        )
        for part in parts
    ]  # fmt: skip
    return datasets[0], datasets[1] if len(datasets) > 1 else None


def _divided(
    where: Path, rows: Array, validation: float, seed: int, labels: Array | None
) -> list[Array]:
    """The rows of the one or two parts."""
    if not validation:
        return [rows]
    lengths = [1 - validation, validation]
    stratify = None if labels is None else labels[rows]
    parts = random_split(TensorDataset(rows), lengths, seed, stratify=stratify)
    if not all(map(len, parts)):
        raise too_few(where, len(rows), validation)
    return [np.sort(rows[part.indices]) for part in parts]


class _Cells:
    """One column as it is read: every cell as a number where it is one, and as a text's code."""

    MISSING, OTHER = -1, -2

    def __init__(
        self, file: Path | None, name: str, decimal: str, limit: int, known: Sequence[str] | None
    ) -> None:
        self.file, self.name, self.decimal = file, name, decimal
        self.texts = {text: code for code, text in enumerate(known or ())}
        self.limit = limit if known is None else len(known)
        self.numbers = array("d")
        self.codes = array("q")
        self.lines = array("q")
        self.first_text: tuple[int, str] | None = None  # line and cell
        self.first_other: tuple[int, str] | None = None
        self.count = 0  # of numbers

    def add(self, line: int, cell: str) -> None:
        """Take up the next cell."""
        number, code = math.nan, self.MISSING
        if cell.lower() not in MISSING:
            found = self._number(cell)
            if found is None:
                self.first_text = self.first_text or (line, cell)
            else:
                number = found
                self.count += 1
                if "." in cell and number.is_integer():
                    cell = str(int(number))  # 1.0 is the same class as 1
            code = self.texts.get(cell, self.OTHER)
            if code == self.OTHER and len(self.texts) < self.limit:
                code = self.texts[cell] = len(self.texts)
            if code == self.OTHER:
                self.first_other = self.first_other or (line, cell)
        self.numbers.append(number)
        self.codes.append(code)
        self.lines.append(line)

    def _number(self, cell: str) -> float | None:
        if self.decimal == ",":
            cell = cell.replace(".", "_").replace(",", ".")
        try:
            number = math.nan if "_" in cell else float(cell)
        except ValueError:
            return None
        return number if abs(number) <= LARGEST else None

    def error(self, line: int, problem: str) -> ValueError:
        """An error about a cell of this column."""
        where = f"row {line}" if self.file is None else f"{self.file}, line {line}"
        return ValueError(f"{where}, column {self.name!r}: {problem}")

    def refuse_missing(self, remedy: str) -> None:
        """Raise at the first missing cell.

        Raises:
            ValueError: there is one.
        """
        places = np.flatnonzero(~self.is_filled)
        if len(places):
            raise self.error(
                self.lines[int(places[0])], f"nothing is there (in {len(places)} rows); {remedy}"
            )

    @property
    def _has_decimal_comma(self) -> bool:
        return self.decimal == "." and all(map(DECIMAL_COMMA.fullmatch, self.texts))

    @property
    def is_filled(self) -> Array:
        """Where something is there, bool (N,)."""
        return np.asarray(np.asarray(self.codes) != self.MISSING)

    @property
    def is_number(self) -> bool:
        """Whether most cells are numbers."""
        return 2 * self.count > int(self.is_filled.sum())

    def values(self, remedy: str = "") -> Array:
        """The numbers, NaN where nothing is there.

        Raises:
            ValueError: a cell is no number.
        """
        if self.first_text is not None:
            line, cell = self.first_text
            if DECIMAL_COMMA.fullmatch(cell) and self.decimal == "." and self.file is not None:
                remedy = '; decimal="," reads fractions with a comma'
            raise self.error(line, f"{cell!r} is no number{remedy}")
        return np.asarray(self.numbers)

    def spread(self, rows: Array) -> tuple[float, float]:
        """Mean and standard deviation of the numbers in some rows; 1 for those that are all equal.

        Raises:
            ValueError: a cell is no number.
        """
        values = self.values()[rows]
        values = values[~np.isnan(values)]
        if not len(values):
            return 0.0, 1.0
        mean, deviation = float(values.mean()), float(values.std())
        return mean, deviation if deviation > 1e-12 * abs(mean) else 1.0

    def fit(self, rows: Array, categorical: bool, asked: bool, notes: list[str]) -> Column | None:
        """How this column becomes features; None, with a note, where it does not.

        Raises:
            ValueError: a cell is no number, or the column was asked for and cannot be taken.
        """
        codes = np.asarray(self.codes)
        problem = None
        if not self.texts:
            problem = "has no cells that hold something"
        elif self.is_number and not categorical:
            mean, scale = self.spread(rows)
            indicator = bool((codes[rows] == self.MISSING).any())
            return Column(self.name, mean, scale, indicator)
        elif self._has_decimal_comma and not categorical:
            self.values()  # says so
        elif (codes == self.OTHER).any():
            problem = f"has more than {self.limit} different texts, too many for categories"
        if problem is None:
            used = set(codes[rows].tolist())
            texts = sorted(text for text, code in self.texts.items() if code in used)
            return Column(self.name, categories=tuple(texts))
        if asked or categorical:
            raise ValueError(f"{self.file}: column {self.name!r} {problem}")
        notes.append(f"column {self.name!r} {problem}: left out")
        return None

    def encode(self, column: Column, notes: list[str]) -> Array:
        """The features of this column, float32 (N, F).

        Raises:
            ValueError: a cell is no number.
        """
        if column.categories is not None:
            codes = self.label(column.categories, strict=False)
            unknown = np.flatnonzero((codes < 0) & (np.asarray(self.codes) != self.MISSING))
            if len(unknown):
                first = int(unknown[0])
                code = self.codes[first]
                cell = self.first_other[1] if self.first_other else list(self.texts)[code]
                where = f"{'row' if self.file is None else 'line'} {self.lines[first]}"
                more = f"; {len(unknown) - 1} more rows have such cells"
                notes.append(
                    f"{where}, column {self.name!r}: {cell!r} was not learned, and counts as "
                    f"unknown{more if len(unknown) > 1 else ''}"
                )
            one_hot = codes[:, None] == np.arange(len(column.categories))
            return np.asarray(one_hot, np.float32)
        values = self.standard(column.mean, column.scale)
        lacking = np.isnan(values)
        parts = [np.where(lacking, np.float32(0), values)]
        if column.indicator:
            parts.append(lacking.astype(np.float32))
        return np.stack(parts, axis=1)

    def standard(self, mean: float, scale: float) -> Array:
        """The standardised numbers, float32 (N,)."""
        return ((self.values() - mean) / scale).astype(np.float32)

    def label(self, classes: Sequence[str], strict: bool = True) -> Array:
        """The number of each cell's text among `classes`, int64 (N,); negative for no such text.

        Raises:
            ValueError: there is no such text, and `strict` is set.
        """
        number = {text: k for k, text in enumerate(classes)}
        table = np.array([number.get(text, self.OTHER) for text in self.texts] + [self.OTHER] * 2)
        labels: Array = table[np.asarray(self.codes)]
        if strict and self.first_other is not None:
            line, cell = self.first_other
            shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
            raise self.error(line, f"{cell!r} is none of the classes {shown}")
        return labels


def _classes(cells: _Cells, task: Task | None, notes: list[str]) -> tuple[str, ...] | None:
    """The classes of a target, None for one that is a number.

    Raises:
        ValueError: it can be neither, or there is one class only.
    """
    numeric = cells.is_number
    if task == "regress" or (numeric and task is None):
        values = cells.values('; task="classify" takes all cells as names of classes')
        values = values[~np.isnan(values)]
        different = len(np.unique(values))
        few = different <= FEW and 2 * different <= len(values)
        if task == "regress" or not few or (values != np.floor(values)).any():
            if task is None:
                notes.append(f"target {cells.name!r} is a number (task classify makes classes)")
            return None
        notes.append(f"target {cells.name!r} has {different} classes (task regress predicts it)")
    if (np.asarray(cells.codes) == cells.OTHER).any():
        raise ValueError(
            f"{cells.file}: target {cells.name!r} has more than {cells.limit:,} classes"
        )
    if task is None and len(cells.texts) == len(cells.codes) > 2:
        raise ValueError(
            f"{cells.file}: target {cells.name!r} has another text in each of its "
            f"{len(cells.codes)} rows: that can be no class"
        )
    if len(cells.texts) < 2:
        raise ValueError(
            f"{cells.file}: target {cells.name!r} is {next(iter(cells.texts))!r} in all rows: "
            "there is nothing to learn"
        )
    if cells.first_text is None:
        return tuple(sorted(cells.texts, key=lambda text: (cells._number(text), text)))
    return tuple(sorted(cells.texts))


class _File:
    """A text file with a table: its delimiter, the names of its columns, its rows."""

    def __init__(self, path: Path, delimiter: str | None, encoding: str) -> None:
        self.path = path
        with path.open("rb") as file:
            head = file.read(1 << 16)
        self.encoding = encoding
        for mark, name in (
            (codecs.BOM_UTF8, "utf-8-sig"),
            (codecs.BOM_UTF16_LE, "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16"),
        ):
            if head.startswith(mark):
                self.encoding = name
        if head.startswith(b"PK") or (b"\0" in head and self.encoding != "utf-16"):
            raise ValueError(f"{path} is no text: save the table as CSV (UTF-8)")
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise ValueError(f"a delimiter is one sign, got {delimiter!r}")
        self.delimiter = delimiter or self._guess()
        line, self.names = next(self._read(), (0, []))
        if not self.names:
            raise ValueError(f"{path} is empty")
        for number, name in enumerate(self.names, 1):
            if not name:
                raise ValueError(f"{path}, line {line}: column {number} has no name")
            if self.names.count(name) > 1:
                raise ValueError(f"{path}, line {line}: two columns are called {name!r}")
        if all(_is_number(name) for name in self.names):
            raise ValueError(
                f"{path}, line {line}: the names of the columns should be here, these are numbers: "
                f"{', '.join(self.names)[:80]}; add a line with names"
            )

    def refuse_absent(self, names: Sequence[str]) -> None:
        """Raise at the first name that no column has.

        Raises:
            ValueError: there is one.
        """
        for name in names:
            if name not in self.names:
                raise ValueError(
                    f"{self.path} has no column {name!r}, but {', '.join(map(repr, self.names))} "
                    f"(cells separated by {self.delimiter!r}: delimiter= says otherwise)"
                )

    def read(self, columns: Sequence[_Cells]) -> int:
        """Let the columns take up their cells of all rows; how many rows there are.

        Raises:
            ValueError: there are none, or one is damaged.
        """
        places = [(self.names.index(column.name), column) for column in columns]
        count = 0
        for line, row in self._rows():
            count += 1
            for place, column in places:
                column.add(line, row[place])
        if count == 0:
            raise ValueError(f"{self.path} has no rows below the names of its columns")
        return count

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows below the names, each with the number of its first line.

        Raises:
            ValueError: a row has other cells than there are names, or the text is damaged.
        """
        rows = self._read()
        next(rows)
        for line, row in rows:
            if len(row) != len(self.names):
                raise ValueError(
                    f"{self.path}, line {line} has {len(row)} cells instead of {len(self.names)}: "
                    f"{self.delimiter.join(row)[:80]!r}; cells are separated by "
                    f"{self.delimiter!r}, and those that contain it are quoted"
                )
            yield line, row

    def _read(self) -> Iterator[tuple[int, list[str]]]:
        line = 0
        try:
            with self.path.open(newline="", encoding=self.encoding) as file:
                reader = csv.reader(file, delimiter=self.delimiter, strict=True)
                for row in reader:
                    first, line = line + 1, reader.line_num
                    cells = [cell.strip() for cell in row]
                    if any(cells):  # not an empty line, nor one of delimiters alone
                        yield first, cells
        except csv.Error as error:
            raise ValueError(f"{self.path}, line {line + 1}: {error}") from error
        except UnicodeError as error:
            raise ValueError(
                f"{self.path}, after line {line}: it is no {self.encoding} text ({error}); name "
                'its encoding, such as encoding="cp1252"'
            ) from error
        except LookupError as error:
            raise ValueError(f"{error}; encoding names one of Python's") from error

    def _guess(self) -> str:
        """The delimiter that divides the first rows into the most cells, equally many in each."""
        best = ("\t" if self.path.suffix.lower() == ".tsv" else ",", 1)
        for delimiter in DELIMITERS:
            self.delimiter = delimiter
            try:
                lengths = [len(row) for _, row in islice(self._read(), 10)]
            except ValueError:
                continue
            if len(set(lengths)) == 1 and lengths[0] > best[1]:
                best = (delimiter, lengths[0])
        return best[0]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
