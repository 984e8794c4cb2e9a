"""Getting files: from a folder, from the cache, or from where a data set is published.

Every file is checked by the SHA-256 of its (unpacked) contents. What had to be fetched is kept in
the user's cache folder, written under another name first, so that a file there is whole.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

TIMEOUT = 60


class DataUnavailableError(RuntimeError):
    """Data can be found nowhere; the message says what was tried and what to do."""


@dataclass(frozen=True)
class Files:
    """Files that make up a data set, and where they can be had.

    Attributes:
        name: the name of the data set, and of its folder in the cache.
        hashes: the SHA-256 of each file's contents, unpacked where the name ends in .gz.
        folders: where an operating system may have installed them.
        debian: Debian's package that contains them.
        addresses: addresses to which a file's name is appended.
    """

    name: str
    hashes: Mapping[str, str]
    folders: Sequence[str] = ()
    debian: str | None = None
    addresses: Sequence[str] = ()

    def read(self, folder: str | os.PathLike[str] | None = None) -> dict[str, bytes]:
        """The contents of all files, unpacked.

        Args:
            folder: where they are. By default the folder that the environment variable PALTO_DATA
                names (or one in it, with the data set's name), else the cache, the system's
                folders, Debian's package, and the data set's own addresses.

        Raises:
            FileNotFoundError: the folder named has not all of the files.
            ValueError: a file in the folder named is damaged.
            DataUnavailableError: the files can be found nowhere.
        """
        named = folder or os.environ.get("PALTO_DATA")
        if named:
            inside = Path(named) / self.name
            return self._from_folder(inside if inside.is_dir() else Path(named))
        failures = []
        for source, fetch in self._sources():
            try:
                return fetch()
            except Exception as error:  # whatever goes wrong, the next source may do
                failures.append(f"  {source}: {_first_line(error)}")
        raise DataUnavailableError(
            f"{self.name} could not be found or fetched. Tried:\n"
            + "\n".join(failures)
            + f"\nConnect to the network and try again, or put {', '.join(self.hashes)} into a "
            "folder and name it (the environment variable PALTO_DATA does)."
        )

    def _sources(self) -> list[tuple[str, Callable[[], dict[str, bytes]]]]:
        cache = cache_folder() / self.name
        sources: list[tuple[str, Callable[[], dict[str, bytes]]]] = [
            (f"the cache {cache}", partial(self._from_cache, cache))
        ]
        for place in map(Path, self.folders):
            sources.append((f"the folder {place}", partial(self._from_folder, place)))
        if self.debian is not None:
            fetch = partial(self._from_debian, self.debian, cache)
            sources.append((f"Debian's package {self.debian}", fetch))
        for address in self.addresses:
            sources.append((address, partial(self._from_web, address, cache)))
        return sources

    def _from_folder(self, folder: Path) -> dict[str, bytes]:
        missing = [name for name in self.hashes if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} has no {', '.join(missing)}")
        return {name: self._checked(folder / name) for name in self.hashes}

    def _from_cache(self, cache: Path) -> dict[str, bytes]:
        try:
            return self._from_folder(cache)
        except ValueError as error:
            say(f"{error}; fetching it again")
            shutil.rmtree(cache, ignore_errors=True)
            raise

    def _checked(self, path: Path) -> bytes:
        packed = path.read_bytes()
        try:
            contents = gzip.decompress(packed) if path.suffix == ".gz" else packed
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged: it cannot be unpacked ({_first_line(error)}); "
                f"it has {len(packed):,} bytes"
            ) from None
        found = hashlib.sha256(contents).hexdigest()
        if found != self.hashes[path.name]:
            raise ValueError(
                f"{path} is damaged or another file: its contents have the SHA-256 {found}, "
                f"expected {self.hashes[path.name]}"
            )
        return contents

    def _from_debian(self, package: str, cache: Path) -> dict[str, bytes]:
        for command in ("apt-get", "dpkg-deb"):
            if shutil.which(command) is None:
                raise FileNotFoundError(f"there is no {command} on this system")
        say(f"fetching Debian's package {package} (it is unpacked, not installed) ...")
        with tempfile.TemporaryDirectory(prefix="palto-") as temporary:
            folder = Path(temporary)
            try:
                _run(["apt-get", "download", package], folder)
            except RuntimeError:
                # No lists of packages yet: get them, into this folder, without any rights.
                private = _private_apt(folder)
                _run(["apt-get", *private, "update"], folder)
                _run(["apt-get", *private, "download", package], folder)
            archives = sorted(folder.glob("*.deb"))
            if not archives:
                raise FileNotFoundError(f"apt-get downloaded no {package}")
            _run(["dpkg-deb", "-x", str(archives[0]), "unpacked"], folder)
            found = {path.name: path for path in (folder / "unpacked").rglob("*")}
            return self._keep({name: found[name] for name in self.hashes if name in found}, cache)

    def _from_web(self, address: str, cache: Path) -> dict[str, bytes]:
        import pooch

        pooch.get_logger().setLevel("ERROR")
        with tempfile.TemporaryDirectory(prefix="palto-") as temporary:
            paths = {}
            for name in self.hashes:
                say(f"fetching {address}{name} ...")
                downloader = pooch.HTTPDownloader(timeout=TIMEOUT)
                path = pooch.retrieve(
                    address + name, known_hash=None, fname=name, path=temporary,
                    downloader=downloader,
                )  # fmt: skip
                paths[name] = Path(path)
            return self._keep(paths, cache)

    def _keep(self, paths: Mapping[str, Path], cache: Path) -> dict[str, bytes]:
        """Check fetched files and move them into the cache."""
        missing = [name for name in self.hashes if name not in paths]
        if missing:
            raise FileNotFoundError(f"it lacks {', '.join(missing)}")
        contents = {name: self._checked(paths[name]) for name in self.hashes}
        try:
            cache.mkdir(parents=True, exist_ok=True)
            for name, path in paths.items():
                unfinished = cache / f"{name}.{os.getpid()}.part"
                shutil.copyfile(path, unfinished)
                os.replace(unfinished, cache / name)
        except OSError as error:  # no room, no right: then it is fetched again next time
            say(f"could not keep {self.name} in {cache}: {_first_line(error)}")
        return contents


def cache_folder() -> Path:
    """The user's folder for fetched data."""
    import pooch

    return Path(pooch.os_cache("palto"))


def say(message: str) -> None:
    """Tell the user what goes on."""
    print(message, file=sys.stderr, flush=True)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _run(command: list[str], folder: Path) -> None:
    finished = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=5 * TIMEOUT, check=False
    )
    if finished.returncode:
        lines = [line for line in finished.stderr.splitlines() if line.startswith("E:")]
        reason = lines[0] if lines else finished.stderr.strip()[-200:]
        raise RuntimeError(f"{' '.join(command[:1] + command[-2:])} failed: {reason}")


def _private_apt(folder: Path) -> list[str]:
    """Options with which apt-get keeps all that it writes in `folder`."""
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    settings = {
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "1",
        "APT::Sandbox::User": "root",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
