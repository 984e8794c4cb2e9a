"""Where image files lie: in a folder, or in an archive that is read without being unpacked."""

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from palto.data.sources.pictures import FILE_LIMIT, SUFFIXES

#: How the names of archives end.
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVE_LIMIT = 1 << 31  # bytes that a packed .tar may unpack to
TEXT_LIMIT = 1 << 16  # bytes of a file that is no image, such as a licence

#: The parts of a path within a store.
Name = tuple[str, ...]


class Store(ABC):
    """Files by name. Hidden ones (with a leading dot, or in __MACOSX) are left out.

    Attributes:
        root: the folder or archive itself.
        files: the names of all files, sorted.
        folders: the names of all folders.
        problems: what cannot be read, with the reason.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[Name] = []
        self.folders: set[Name] = set()
        self.problems: list[tuple[Name, str]] = []

    @abstractmethod
    def open(self, name: Name) -> BinaryIO:
        """The contents of a file. Several threads may ask at once.

        Raises:
            OSError, ValueError, RuntimeError: they cannot be read.
        """

    def path(self, name: Name) -> Path:
        """How a file is called towards the user."""
        return self.root.joinpath(*name)


def open_store(path: Path) -> Store:
    """The folder or archive at a path.

    Raises:
        OSError: it cannot be opened or listed.
        ValueError: it is neither, or a damaged archive.
    """
    if path.is_dir():
        return Folder(path)
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    try:
        return Zip(path, path.name) if is_zip else Tar(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # tarfile, zipfile and three packers have many of their own
        raise ValueError(
            f"{path} cannot be read as an archive ({', '.join(ARCHIVES)}): {error}; if it is one, "
            "it may have been cut off on its way: get it again"
        ) from error


def is_image(name: Name) -> bool:
    """Whether a file calls itself an image."""
    return os.path.splitext(name[-1])[1].lower() in SUFFIXES


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _parts(name: str) -> Name | None:
    """The parts of a name in an archive, None for a hidden one.

    Raises:
        ValueError: the name leads out of the archive.
    """
    parts = tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
    if ".." in parts:
        raise ValueError("its name leads out of the archive")
    return None if not parts or any(map(_hidden, parts)) else parts


class Folder(Store):
    """A folder on disk. Links are followed, except into a folder that they are in."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        todo: list[tuple[Name, frozenset[tuple[int, int]]]] = [((), frozenset())]
        while todo:
            name, above = todo.pop()
            try:
                found = self.path(name).stat()
                if (found.st_dev, found.st_ino) in above:
                    continue  # a link back to where it lies
                entries = os.listdir(self.path(name))
            except OSError as error:
                if not name:
                    raise type(error)(f"{root} cannot be listed: {error.strerror}") from None
                self.problems.append((name, f"cannot be listed: {error.strerror}"))
                continue
            self.folders.add(name)
            above |= {(found.st_dev, found.st_ino)}
            for entry in entries:
                if _hidden(entry):
                    continue
                if self.path((*name, entry)).is_dir():
                    todo.append(((*name, entry), above))
                else:
                    self.files.append((*name, entry))
        self.files.sort()

    def open(self, name: Name) -> BinaryIO:
        """The file on disk."""
        path = self.path(name)
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no ordinary file")  # to open a pipe would wait for ever
        if found.st_size > FILE_LIMIT:
            raise ValueError(_too_long(found.st_size))
        return path.open("rb")


class Zip(Store):
    """A .zip archive, on disk or in memory."""

    def __init__(self, source: Path | io.BytesIO, name: str) -> None:
        super().__init__(source if isinstance(source, Path) else Path(name))
        self._zip = zipfile.ZipFile(source)
        self._infos: dict[Name, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            try:
                parts = _parts(info.filename)
            except ValueError as error:
                self.problems.append(((info.filename,), str(error)))
                continue
            if parts is not None and info.is_dir():
                self.folders.add(parts)
            elif parts is not None:
                self._infos[parts] = info
        self.files = sorted(self._infos)
        self.folders |= {name[:k] for name in self.files for k in range(len(name))}

    def open(self, name: Name) -> BinaryIO:
        """A file, unpacked while it is read, no further than its entry declares."""
        info = self._infos[name]
        if info.flag_bits & 1:
            raise ValueError("it is encrypted: unpack the archive with its password")
        if info.file_size > FILE_LIMIT:
            raise ValueError(_too_long(info.file_size))
        return cast(BinaryIO, self._zip.open(info))


class Tar(Store):
    """A .tar archive.

    A packed one (.tar.gz) can be read only from its beginning on: it is read once, and the files
    are kept in memory as they are.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._places: dict[Name, tuple[int, int]] = {}
        self._contents: dict[Name, bytes] = {}
        with root.open("rb") as file, _unpacked(file) as stream:
            limited = _Limited(stream, ARCHIVE_LIMIT if stream is not file else sys.maxsize)
            with tarfile.open(fileobj=limited, mode="r:") as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members = []  # else it keeps them all
                    limited.check(member.offset_data + member.size)
                    try:
                        self._add(tar, member, packed=stream is not file)
                    except ValueError as error:
                        self.problems.append(((member.name,), str(error)))
            if limited.latest.strip(b"\0"):  # tarfile takes a damaged head for the end
                raise ValueError(f"it is damaged after {limited.tell():,} bytes")
        self.files = sorted([*self._places, *self._contents])
        self.folders |= {name[:k] for name in self.files for k in range(len(name))}

    def _add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, packed: bool) -> None:
        parts = _parts(member.name)
        if parts is not None and member.isdir():
            self.folders.add(parts)
        if parts is None or not member.isreg():
            return
        if member.issparse():
            raise ValueError("it is stored as a sparse file: unpack the archive")
        if not packed:
            self._places[parts] = member.offset_data, member.size
            return
        if is_image(parts) and member.size > FILE_LIMIT:
            raise ValueError(_too_long(member.size))
        kept = is_image(parts) or member.size <= TEXT_LIMIT
        file = tar.extractfile(member) if kept else None
        self._contents[parts] = file.read() if file is not None else b""

    def open(self, name: Name) -> BinaryIO:
        """A file, in memory."""
        if name in self._contents:
            return io.BytesIO(self._contents[name])
        start, size = self._places[name]
        if size > FILE_LIMIT:
            raise ValueError(_too_long(size))
        with self.root.open("rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size))


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[Any]:
    import bz2
    import gzip
    import lzma

    start = file.read(6)
    file.seek(0)
    if not start:
        raise ValueError("it is empty")
    for mark, unpack in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(mark):
            with unpack(file) as stream:
                yield stream
            return
    yield file


class _Limited:
    """What tarfile needs of a file, without unpacking for ever.

    Attributes:
        latest: what was read last.
    """

    def __init__(self, file: Any, limit: int) -> None:
        self._file = file
        self._limit = limit
        self.tell = file.tell
        self.latest = b""

    def check(self, place: int) -> None:
        if place > self._limit:
            raise ValueError(
                f"it unpacks to more than {self._limit:,} bytes: unpack it, and name the folder"
            )

    def read(self, count: int = -1) -> bytes:
        if count > FILE_LIMIT:
            raise ValueError(_too_long(count))
        self.latest = self._file.read(count)
        return self.latest

    def seek(self, place: int) -> int:
        self.check(place)
        return int(self._file.seek(place))


def _too_long(size: int) -> str:
    return f"it has {size:,} bytes; an image file has at most {FILE_LIMIT:,}"
