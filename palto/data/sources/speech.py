"""Speech in five languages: what the telephone system Asterisk says, recorded in studios.

Digium, Inc., and others; English, Spanish, French and Russian CC-BY-SA-3.0, Italian CC-BY-3.0, as
Debian's packages asterisk-core-sounds-*-g722 say in full. English and Spanish have one speaker.
"""

from __future__ import annotations

import io
import os
import tarfile

import numpy as np

from palto.data.fetch import Contents, Files
from palto.extras import require
from palto.tensor.dtypes import Array

RATE = 16_000
_ARCHIVES = {
    "en": ("38c5261820b406dcb0ecb37675720da2b0864850690690352ca52707eb623806", 10565860),
    "es": ("e4e3b4281057d3b81b779298fd6be705f57411513955c518eed1bcaabbd615b8", 13048380),
    "fr": ("7add61d5e42279ecff1bbdf842a5a946ac3644fac9a0fe44384731aa7270c8e0", 10822860),
    "it": ("46b4cf7afc508a5fcfc051b7ea233251c0d195dd4ef83cc4b7facb4c6429b016", 10087176),
    "ru": ("673b4238a6b8269960f055d868c6a11083f7a0d00979167cb01554046b48ed9b", 10579440),
}
FILES = {
    language: Files(
        name="speech",
        contents={f"asterisk-core-sounds-{language}-g722_1.6.1-1_all.deb": Contents(*known)},
        debian=f"asterisk-core-sounds-{language}-g722",
    )
    for language, known in _ARCHIVES.items()
}


def speech(language: str, folder: str | os.PathLike[str] | None = None) -> dict[str, Array]:
    """Some 500 recordings, 25 minutes, of one speaker.

    Args:
        language: "en", "es", "fr", "it" or "ru".
        folder: where Debian's package is. By default it is looked for as `fashion_mnist` says, or
            fetched; 10 MB, kept in the cache.

    Returns:
        Samples by the recording's name, int16 (time,), 16,000 a second.

    Raises:
        FileNotFoundError: the folder named lacks the file.
        ValueError: another language; the file in the folder named is damaged.
        DataUnavailableError: the package can be found nowhere.
        MissingExtraError: PyAV, which decodes them, is not installed.
    """
    if language not in FILES:
        raise ValueError(f"speech is there in {', '.join(FILES)}, not in {language!r}")
    av = require("av", "echo", "speech")
    (package,) = FILES[language].read(folder).values()
    found = {}
    with tarfile.open(fileobj=io.BytesIO(_member(package, "data.tar.xz"))) as files:
        for entry in files:
            if not entry.name.endswith(".g722") or not entry.size:
                continue
            coded = files.extractfile(entry)
            assert coded is not None  # it is a file
            with av.open(io.BytesIO(coded.read()), format="g722") as recording:
                parts = [x.to_ndarray()[0] for x in recording.decode(audio=0)]
            if parts:
                found[entry.name.split("/", 6)[-1].removesuffix(".g722")] = np.concatenate(parts)
    return found


def _member(package: bytes, name: str) -> bytes:
    """A file in a Debian package, which is an archive of ar's: heads of 60 bytes, even places."""
    place = 8
    while place < len(package):
        title, size = package[place : place + 16], int(package[place + 48 : place + 58])
        if title.decode("ascii").strip(" /") == name:
            return package[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise ValueError(f"this Debian package has no {name}")
