"""What compiling has made, kept on disk for the next time.

What lies in the cache is executed, so its folder must be one that only its user may write to.
Nothing that is wrong with the cache is an error: then things are made again, and not stored.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

#: Bytes that the cache may hold; what was used longest ago is removed first.
LIMIT = 256 << 20

#: How names end: object files, and the text of kernels.
OBJECT, TEXT = ".o", ".ll"

_DIGEST = hashlib.sha256().digest_size
_UNFINISHED = ".part"


def folder() -> Path | None:
    """The folder of compiled code: the environment variable PALTO_CACHE, else the user's cache.

    None if PALTO_CACHE is ``0`` or ``off``.
    """
    variable = os.environ.get("PALTO_CACHE")
    if variable in ("0", "off"):
        return None
    if variable:
        return Path(variable).expanduser()
    import pooch

    return Path(pooch.os_cache("palto")) / "compiled"


def place(key: bytes, ending: str) -> Path | None:
    """The file of what is made of the key, where there is a cache."""
    home = folder()
    return None if home is None else home / f"{hashlib.sha256(key).hexdigest()}{ending}"


def read(path: Path) -> bytes | None:
    """What a file of the cache holds; None if there is none, or none that is whole."""
    try:
        contents = path.read_bytes()
    except OSError:
        return None
    digest, body = contents[:_DIGEST], contents[_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        return None
    with suppress(OSError):
        os.utime(path)  # eviction goes by the time of the last use
    return body


def store(path: Path, body: bytes) -> None:
    """Put something into the cache at once or, whatever the reason, not at all."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(hashlib.sha256(body).digest() + body)
            unfinished.replace(path)
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
        _evict(path.parent)


def _evict(home: Path) -> None:
    """Remove what was used longest ago until the cache is within its limit."""
    files = []
    for entry in os.scandir(home):
        if entry.name.endswith((OBJECT, TEXT, _UNFINISHED)):
            with suppress(OSError):  # another process may have removed it
                status = entry.stat()
                files.append((status.st_mtime_ns, status.st_size, entry.path))
    excess = sum(size for _, size, _ in files) - LIMIT
    for _, size, path in sorted(files):
        if excess <= 0:
            break
        with suppress(OSError):
            os.unlink(path)
        excess -= size
