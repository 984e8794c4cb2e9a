"""Where labels are kept: an SQLite database, which a killed process leaves whole.

Every answer is on disk before it is acknowledged. Answers that came are never changed or deleted:
what is made of them is computed anew.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palto.label.aggregate import NAMED, Answers

DATABASE = "labels.palto.sqlite"  # in the folder of the images
VERSION = 1
EXPIRY = 1800.0  # seconds in which a challenge is to be answered

_SCHEMA = """
CREATE TABLE class (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE image (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, hash TEXT NOT NULL,
                    known INTEGER REFERENCES class);
CREATE TABLE annotator (id INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, began REAL NOT NULL);
CREATE TABLE challenge (id INTEGER PRIMARY KEY, ticket TEXT NOT NULL UNIQUE,
                        annotator INTEGER NOT NULL REFERENCES annotator, asked INTEGER NOT NULL,
                        handed_out REAL NOT NULL, answered REAL, passed INTEGER);
CREATE TABLE tile (challenge INTEGER NOT NULL REFERENCES challenge, image INTEGER NOT NULL
                   REFERENCES image, PRIMARY KEY (challenge, image)) WITHOUT ROWID;
CREATE TABLE answer (challenge INTEGER NOT NULL REFERENCES challenge, image INTEGER NOT NULL
                     REFERENCES image, said INTEGER NOT NULL, was_control INTEGER NOT NULL,
                     PRIMARY KEY (challenge, image)) WITHOUT ROWID;
CREATE INDEX answer_of_image ON answer (image);
"""


class RefusedError(ValueError):
    """An answer that cannot be taken; `reason` is a word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Challenge:
    """Images shown together, and what is asked about them.

    Attributes:
        ticket: how it is called towards who answers it.
        asked: the class that is asked about; `NAMED` where the class of a single image is asked.
        images: their ids, in the order shown.
    """

    ticket: str
    asked: int
    images: tuple[int, ...]


class Store:
    """The images of a folder, what is known about them, and what people have answered.

    Several threads may use it.

    Args:
        path: the database's file; made if it is not there.
        classes: the names of the classes; by default those that the database has.

    Raises:
        OSError: the file cannot be opened or written.
        ValueError: it is no such database, has other classes, or there are no classes.
    """

    def __init__(self, path: Path, classes: Sequence[str] = ()) -> None:
        self.path = path
        self._lock = threading.RLock()
        if not path.exists():  # nothing is left behind where classes are missing
            _check_classes(classes)
        try:
            self._database = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=10
            )
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be opened: {error}") from None
        try:
            self._open(tuple(classes))
        except sqlite3.Error as error:
            self._database.close()
            raise ValueError(f"{path} cannot be used as a database of labels: {error}") from None
        except ValueError:
            self._database.close()
            raise
        self.classes: tuple[str, ...] = tuple(
            name for (name,) in self._database.execute("SELECT name FROM class ORDER BY id")
        )

    def _open(self, classes: tuple[str, ...]) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
        self._database.execute("PRAGMA foreign_keys = ON")
        with self._writing() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise ValueError(f"{self.path} is a database of another program")
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                _name_classes(database, classes)
                database.execute(f"PRAGMA user_version = {VERSION}")
            elif version != VERSION:
                raise ValueError(f"{self.path} is of version {version}, this Palto's is {VERSION}")
            else:
                have = [n for (n,) in database.execute("SELECT name FROM class ORDER BY id")]
                if not classes or list(classes) == have:
                    return
                if database.execute("SELECT count(*) FROM image").fetchone()[0]:
                    raise ValueError(
                        f"{self.path} has the classes {','.join(have)}, got {','.join(classes)}; "
                        "leave --classes out, or choose another file with --database"
                    )
                _name_classes(database, classes)  # it has been made, but nothing has come of it

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written in the block, or nothing."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[int, ...]]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    # Images

    def add_images(self, paths: Mapping[str, Path], known: Mapping[str, int]) -> None:
        """Take in images, those that it has already too.

        Args:
            paths: each image's name, as it is kept, and its file.
            known: the class of those whose class is known.
        """
        have = set(self.images().values())
        new = [(name, _hash(path)) for name, path in paths.items() if name not in have]
        with self._writing() as database:
            database.executemany("INSERT INTO image (path, hash) VALUES (?, ?)", new)
            database.executemany(
                "UPDATE image SET known = ? WHERE path = ?", [(k, n) for n, k in known.items()]
            )

    def images(self) -> dict[int, str]:
        """The name of each image by its id."""
        rows = self._rows("SELECT id, path FROM image ORDER BY id")
        return {number: str(name) for number, name in rows}

    def known(self) -> dict[int, int]:
        """The class of each image whose class is known."""
        return dict(
            (a, b) for a, b in self._rows("SELECT id, known FROM image WHERE known IS NOT NULL")
        )

    # Challenges

    def annotator(self, session: str) -> int:
        """The annotator of a session, a new one for a new session."""
        with self._writing() as database:
            database.execute(
                "INSERT OR IGNORE INTO annotator (session, began) VALUES (?, ?)",
                (session, time.time()),
            )
            (number,) = database.execute(
                "SELECT id FROM annotator WHERE session = ?", (session,)
            ).fetchone()
        return int(number)

    def hand_out(self, session: str, asked: int, images: Sequence[int]) -> Challenge:
        """Give a challenge to a session."""
        annotator = self.annotator(session)
        ticket = secrets.token_urlsafe(18)
        with self._writing() as database:
            number = database.execute(
                "INSERT INTO challenge (ticket, annotator, asked, handed_out) VALUES (?, ?, ?, ?)",
                (ticket, annotator, asked, time.time()),
            ).lastrowid
            database.executemany(
                "INSERT INTO tile VALUES (?, ?)", [(number, image) for image in images]
            )
        return Challenge(ticket, asked, tuple(images))

    def take(self, session: str, ticket: str, said: Mapping[int, int]) -> bool | None:
        """Take the answer to a challenge, once.

        Args:
            session: who answers.
            ticket: the challenge's.
            said: for each image 1 for yes and 0 for no; the class, where one is to be named.

        Returns:
            Whether the controls among the images were answered rightly, None without controls.

        Raises:
            RefusedError: no such challenge was given to this session, it has been answered or has
                expired, or the answer is about other images or classes.
        """
        with self._writing() as database:
            row = database.execute(
                "SELECT challenge.id, asked, handed_out, answered FROM challenge "
                "JOIN annotator ON annotator.id = challenge.annotator "
                "WHERE ticket = ? AND session = ?",
                (ticket, session),
            ).fetchone()
            if row is None:
                raise RefusedError("unknown", "no such challenge was given to you")
            number, asked, handed_out, answered = row
            if answered is not None:
                raise RefusedError("answered", "this challenge has been answered")
            if time.time() - handed_out > EXPIRY:
                raise RefusedError("expired", "this challenge is too old; take a new one")
            known = dict(
                database.execute(
                    "SELECT image, known FROM tile JOIN image ON image.id = tile.image "
                    "WHERE challenge = ?",
                    (number,),
                ).fetchall()
            )
            if set(said) != set(known):
                raise RefusedError("images", "the answer is about other images than the challenge")
            possible = range(len(self.classes)) if asked == NAMED else range(2)
            if any(value not in possible for value in said.values()):
                raise RefusedError("values", "an answer is out of range")
            controls = {image: k for image, k in known.items() if k is not None}
            right = [
                said[image] == (k if asked == NAMED else int(k == asked))
                for image, k in controls.items()
            ]
            # Who misses one of several controls may be tired; who misses more was not looking.
            passed = None if not right else right.count(False) <= (len(right) > 2)
            database.execute(
                "UPDATE challenge SET answered = ?, passed = ? WHERE id = ?",
                (time.time(), passed, number),
            )
            database.executemany(
                "INSERT INTO answer VALUES (?, ?, ?, ?)",
                [(number, image, value, image in controls) for image, value in said.items()],
            )
        return passed

    # What came of it

    def answers(self, *, all_of_them: bool = False) -> Answers:
        """The answers that count: of challenges whose controls were passed, or had none.

        Images are numbered in the order of `images()`, annotators from 0.

        Args:
            all_of_them: also those of challenges that were failed.
        """
        rows = self._rows(
            "SELECT answer.image, annotator, asked, said FROM answer "
            "JOIN challenge ON challenge.id = answer.challenge "
            + ("" if all_of_them else "WHERE passed IS NOT 0 ")
            + "ORDER BY challenge.id, answer.image"
        )
        table = np.array(rows, np.int64).reshape(-1, 4)
        place = {number: k for k, number in enumerate(self.images())}
        image = np.array([place[int(i)] for i in table[:, 0]], np.int64)
        _, annotator = np.unique(table[:, 1], return_inverse=True)
        return Answers(image, annotator.astype(np.int64), table[:, 2], table[:, 3])

    def known_array(self) -> np.ndarray:
        """The known classes in the order of `images()`, -1 where none is known."""
        known = self.known()
        return np.array([known.get(number, -1) for number in self.images()], np.int64)

    def counts(self) -> dict[int, int]:
        """How many answers that count each image has."""
        rows = self._rows(
            "SELECT answer.image, count(*) FROM answer JOIN challenge "
            "ON challenge.id = answer.challenge WHERE passed IS NOT 0 GROUP BY answer.image"
        )
        return dict((a, b) for a, b in rows)

    def annotators(self) -> list[tuple[int, int, int, int]]:
        """Of each annotator: id, challenges answered, those passed, those failed."""
        rows = self._rows(
            "SELECT annotator.id, count(answered), coalesce(sum(passed = 1), 0), "
            "coalesce(sum(passed = 0), 0) FROM annotator JOIN challenge "
            "ON challenge.annotator = annotator.id GROUP BY annotator.id ORDER BY 2 DESC, 1"
        )
        return [(a, b, c, d) for a, b, c, d in rows]

    def seen_by(self, session: str) -> set[tuple[int, int]]:
        """What a session has been asked already: (image, class asked or `NAMED`)."""
        rows = self._rows(
            "SELECT tile.image, asked FROM tile JOIN challenge ON challenge.id = tile.challenge "
            "JOIN annotator ON annotator.id = challenge.annotator "
            "WHERE session = ? AND answered IS NOT NULL",
            (session,),
        )
        return {(a, b) for a, b in rows}


def _name_classes(database: sqlite3.Connection, classes: Sequence[str]) -> None:
    _check_classes(classes)
    database.execute("DELETE FROM class")
    database.executemany("INSERT INTO class VALUES (?, ?)", enumerate(classes))


def _check_classes(classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise ValueError("at least two classes are needed: --classes cat,dog")
    if len(set(classes)) < len(classes) or not all(name.strip() for name in classes):
        raise ValueError(f"classes have different names, got {', '.join(classes)}")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(names: Iterable[str], most: int = 5) -> str:
    """Some names for a message."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
