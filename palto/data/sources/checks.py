"""What all sources check of the options that a user gives."""

from __future__ import annotations

import os
from pathlib import Path


def existing(path: str | os.PathLike[str]) -> Path:
    """The path, if something is there.

    Raises:
        FileNotFoundError: there is nothing.
    """
    where = Path(path).expanduser()
    if not where.exists():
        raise FileNotFoundError(f"there is no file or folder {where}")
    return where


def a_file(path: str | os.PathLike[str]) -> Path:
    """The path, if a file is there.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is a folder.
    """
    where = existing(path)
    if where.is_dir():
        raise ValueError(f"{where} is a folder; the path of a file is wanted")
    return where


def one_of(name: str, value: object, *possible: object) -> None:
    """Refuse an option that is none of those possible.

    Raises:
        ValueError: it is another.
    """
    if value not in possible:
        shown = ", ".join(map(repr, possible[:-1]))
        raise ValueError(f"{name} is {shown} or {possible[-1]!r}, got {value!r}")


def share(name: str, value: float) -> None:
    """Refuse what is no share of a whole.

    Raises:
        ValueError: it is below 0, or 1 or more.
    """
    if not 0 <= value < 1:
        raise ValueError(f"{name} is a share, from 0 to less than 1, got {value!r}")


def too_few(name: object, count: int, value: float) -> ValueError:
    """The error for a division that leaves one part empty."""
    return ValueError(f"{name} has {count} examples, too few to hold out a share of {value}")
