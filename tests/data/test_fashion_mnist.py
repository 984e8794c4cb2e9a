"""Getting files, hostile files, and the real data set."""

import gzip
import hashlib
import os

import numpy as np
import pytest

from palto import data
from palto.data import fetch
from palto.data.fashion_mnist import read_idx

CONTENT = {"a.gz": b"alpha" * 100, "b": b"beta" * 100}
FILES = {
    "name": "letters",
    "hashes": {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()},
}


def write(folder, contents=CONTENT):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("PALTO_DATA", raising=False)
    return tmp_path / "cache" / "letters"


def test_a_folder_that_the_user_names(tmp_path, monkeypatch, cache):
    files = fetch.Files(**FILES)
    folder = write(tmp_path / "mine")
    assert files.read(folder) == CONTENT
    monkeypatch.setenv("PALTO_DATA", str(folder))
    assert files.read() == CONTENT
    monkeypatch.setenv("PALTO_DATA", str(write(tmp_path / "all" / "letters").parent))
    assert files.read() == CONTENT


def test_a_named_folder_that_lacks_a_file(tmp_path, cache):
    folder = write(tmp_path / "mine", {"b": CONTENT["b"]})
    with pytest.raises(FileNotFoundError, match=r"mine has no a\.gz"):
        fetch.Files(**FILES).read(folder)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_a_damaged_file_in_a_named_folder(tmp_path, cache, damage):
    folder = write(tmp_path / "mine")
    packed = (folder / "a.gz").read_bytes()
    harm = {
        "cut": packed[:-10],
        "flipped": packed[:-12] + bytes([packed[-12] ^ 255]) + packed[-11:],
        "other": gzip.compress(b"something else"),
        "empty": b"",
    }
    (folder / "a.gz").write_bytes(harm[damage])
    with pytest.raises(ValueError, match=r"a\.gz is damaged"):
        fetch.Files(**FILES).read(folder)
    assert (folder / "a.gz").read_bytes() == harm[damage]  # the user's file is left alone


def test_a_folder_of_the_system_is_second_to_the_cache(tmp_path, cache):
    files = fetch.Files(**FILES, folders=(str(write(tmp_path / "system")),))
    assert files.read() == CONTENT
    write(cache)
    (tmp_path / "system" / "b").write_bytes(b"changed")
    assert files.read() == CONTENT


def test_a_damaged_cache_is_fetched_again(tmp_path, cache, monkeypatch, capsys):
    write(cache)
    (cache / "b").write_bytes(b"half")
    published = write(tmp_path / "published")

    def from_web(self, address, cache):
        return self._keep({name: published / name for name in self.hashes}, cache)

    monkeypatch.setattr(fetch.Files, "_from_web", from_web)
    files = fetch.Files(**FILES, addresses=("http://example.invalid/",))
    assert files.read() == CONTENT
    assert "fetching it again" in capsys.readouterr().err
    assert sorted(os.listdir(cache)) == ["a.gz", "b"]
    monkeypatch.delattr(fetch.Files, "_from_web")
    assert fetch.Files(**FILES).read() == CONTENT  # from the cache, by itself


def test_a_truncated_download_is_not_kept(tmp_path, cache, monkeypatch):
    published = write(tmp_path / "published")
    (published / "a.gz").write_bytes((published / "a.gz").read_bytes()[:20])

    def from_web(self, address, cache):
        return self._keep({name: published / name for name in self.hashes}, cache)

    monkeypatch.setattr(fetch.Files, "_from_web", from_web)
    with pytest.raises(data.DataUnavailableError, match=r"a\.gz is damaged"):
        fetch.Files(**FILES, addresses=("http://example.invalid/",)).read()
    assert not cache.exists()


def test_nothing_can_be_reached(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    files = fetch.Files(
        **FILES,
        folders=(str(tmp_path / "nowhere"),),
        debian="letters",
        addresses=("http://127.0.0.1:9/",),
    )
    with pytest.raises(data.DataUnavailableError) as info:
        files.read()
    message = str(info.value)
    for part in ("nowhere has no a.gz", "no apt-get", "127.0.0.1:9", "PALTO_DATA", "a.gz, b"):
        assert part in message


def test_a_cache_that_cannot_be_written(tmp_path, cache, monkeypatch, capsys):
    cache.parent.write_text("a file where the folder should be")
    published = write(tmp_path / "published")
    contents = fetch.Files(**FILES)._keep({n: published / n for n in CONTENT}, cache)
    assert contents == CONTENT
    assert "could not keep letters" in capsys.readouterr().err


def idx(shape, data=b"", kind=8):
    lengths = b"".join(n.to_bytes(4, "big") for n in shape)
    return bytes([0, 0, kind, len(shape)]) + lengths + data


def test_idx_files():
    np.testing.assert_array_equal(read_idx(idx((2, 3), bytes(range(6)))), [[0, 1, 2], [3, 4, 5]])
    assert read_idx(idx((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x1f\x8b",
        b"PK\x03\x04whatever",
        idx((2, 3), bytes(5)),
        idx((2, 3), bytes(7)),
        idx((2, 3), bytes(6), kind=13),
        idx((2**31, 2**31)),
        idx((1,))[:6],
        bytes([0, 0, 8, 255]),
    ],
)
def test_hostile_idx_files(contents):
    with pytest.raises(ValueError, match="idx file"):
        read_idx(contents)


def test_the_real_data():
    try:
        train, test = data.fashion_mnist()
    except data.DataUnavailableError as error:
        pytest.skip(str(error))
    assert (len(train), len(test)) == (60000, 10000)
    assert train.licence == "MIT" and train.classes[9] == "Ankle boot"
    for part, count in ((train, 6000), (test, 1000)):
        np.testing.assert_array_equal(np.bincount(part.labels), [count] * 10)
    images, labels = next(iter(data.DataLoader(test, 2)))
    assert (images.shape, images.dtype.name, labels.tolist()) == ((2, 28, 28, 1), "float32", [9, 2])
    assert 0 <= float(images.min()) and float(images.max()) == 1.0
