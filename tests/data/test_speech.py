"""Recorded speech: out of a Debian package made here, with tones in it."""

import hashlib
import io
import tarfile

import numpy as np
import pytest

from palto import data
from palto.data.fetch import Contents, Files
from palto.data.sources.speech import FILES

av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'palto[echo]')")


def coded(samples):
    """As G.722."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="g722") as file:
        stream = file.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return sink.getvalue()


def package(recordings):
    """A Debian package with files of these names and contents."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as files:
        for name, content in recordings.items():
            entry = tarfile.TarInfo(f"./usr/share/asterisk/sounds/en_US_f_Allison/{name}")
            entry.size = len(content)
            files.addfile(entry, io.BytesIO(content))
    whole = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", packed.getvalue())):
        head = f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n"
        whole += head.encode() + content + b"\n" * (len(content) % 2)
    return whole


@pytest.fixture
def folder(tmp_path, monkeypatch):
    time = np.arange(3200) / 16_000
    tone = (8000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    content = package(
        {
            "tone.g722": coded(tone),
            "digits/1.g722": coded(tone[:1600]),
            "empty.g722": b"",
            "x": b"y",
        }
    )
    (tmp_path / "english.deb").write_bytes(content)
    known = Contents(hashlib.sha256(content).hexdigest(), len(content))
    monkeypatch.setitem(FILES, "en", Files("speech", {"english.deb": known}))
    return tmp_path


def test_recordings_are_samples_by_name(folder):
    found = data.speech("en", folder)
    assert {name: x.shape for name, x in found.items()} == {
        "tone": (3200,), "digits/1": (1600,)
    }  # fmt: skip
    tone = found["tone"]
    assert tone.dtype == np.int16
    assert np.abs(np.fft.rfft(tone)).argmax() == round(440 * 3200 / 16_000)
    assert 7000 < np.abs(tone[1000:]).max() < 9000


def test_what_is_missing_or_damaged_is_said(folder):
    with pytest.raises(ValueError, match="en, es, fr, it, ru, not in 'de'"):
        data.speech("de")
    with pytest.raises(FileNotFoundError, match=r"1\.6\.1-1_all\.deb"):
        data.speech("ru", folder)
    content = bytearray((folder / "english.deb").read_bytes())
    content[100] ^= 1
    (folder / "english.deb").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        data.speech("en", folder)
