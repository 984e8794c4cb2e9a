"""Sounds on a page: what they look like, and a player for each."""

from __future__ import annotations

import base64
import html
import io
import os
import wave
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from palto.draw.figure import new_figure

#: So many seconds of a sound are put on a page.
SECONDS = 60
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; }}
h2 {{ font-size: 1.1rem; margin: 1.6rem 0 .4rem; }}
img, audio {{ display: block; width: 100%; }}
</style>
<h1>{title}</h1>
{sounds}
</html>
"""


def sound_page(
    path: str | os.PathLike[str], title: str, sounds: Mapping[str, np.ndarray], rate: int
) -> None:
    """Write a page that needs no other file: of each sound a spectrogram and a player.

    Args:
        path: the .html file.
        title: its title.
        sounds: samples in +-1, (time,), by what they are; of long ones the first minute.
        rate: samples a second.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        OSError: the file cannot be written.
    """
    parts = []
    for name, samples in sounds.items():
        shown = np.asarray(samples)[: SECONDS * rate]
        picture = base64.b64encode(_spectrogram(shown, rate)).decode()
        player = base64.b64encode(_wav(shown, rate)).decode()
        parts.append(
            f"<h2>{html.escape(name)}</h2>\n"
            f'<img alt="Spectrogram: {html.escape(name)}" src="data:image/png;base64,{picture}">\n'
            f'<audio controls src="data:audio/wav;base64,{player}"></audio>'
        )
    target = Path(path)
    unfinished = target.with_name(target.name + ".part")
    unfinished.write_text(
        _PAGE.format(title=html.escape(title), sounds="\n".join(parts)), encoding="utf-8"
    )
    os.replace(unfinished, target)


def _spectrogram(samples: np.ndarray, rate: int) -> bytes:
    """How loud each frequency is, in dB below full scale, as a .png file."""
    window, hop = 512, max(128, len(samples) // 1200)
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window)) / (window / 4)) ** 2
    figure = new_figure(9, 2.2)
    axes = figure.add_subplot()
    axes.imshow(
        10 * np.log10(power.T + 1e-12), aspect="auto", origin="lower", cmap="magma",
        vmin=-90, vmax=-20, extent=(0, len(samples) / rate, 0, rate / 2000),
    )  # fmt: skip
    axes.set(xlabel="seconds", ylabel="kHz")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, metadata={"Software": None})
    return sink.getvalue()


def _wav(samples: np.ndarray, rate: int) -> bytes:
    sink = io.BytesIO()
    with wave.open(sink, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return sink.getvalue()
