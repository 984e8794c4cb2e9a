"""Telephone calls in simulated rooms: what a loudspeaker is given, and what a microphone hears.

Rooms are boxes, whose responses pyroomacoustics computes. A loudspeaker clips and bends what it is
given; there is noise, and somebody speaks in the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palto.extras import require
from palto.formats import safetensors

#: Samples a second.
RATE = 16_000

#: Who talks, and what happens: the far end alone; both; both, and the loudspeaker is suddenly
#: elsewhere; both, and it is moved one to three times, back and forth.
KINDS = ("single talk", "double talk", "path change", "restless")


@dataclass(frozen=True)
class Scenes:
    """Telephone calls as a simulated room hears them; each signal int16 (scenes, time) at 16 kHz.

    Attributes:
        far: what the loudspeaker is given.
        echo: what of it reaches the microphone.
        near: the near end's speech at the microphone.
        noise: what else is there.
    """

    far: np.ndarray
    echo: np.ndarray
    near: np.ndarray
    noise: np.ndarray

    @property
    def mic(self) -> np.ndarray:
        """All that the microphone hears."""
        mic: np.ndarray = self.echo + self.near + self.noise
        return mic

    def save(self, path: Path) -> None:
        """Write them, 16-bit samples as two bytes each."""
        safetensors.save(
            path, {name: np.asarray(x).view(np.uint8) for name, x in vars(self).items()}
        )

    @staticmethod
    def load(paths: Sequence[Path]) -> Scenes:
        """Those of some files, one after the other."""
        parts = [safetensors.load(path) for path in paths]
        return Scenes(
            **{x: np.concatenate([p[x].numpy().view(np.int16) for p in parts]) for x in parts[0]}
        )


def make_scenes(
    kinds: Sequence[str],
    seconds: float,
    far: Sequence[np.ndarray],
    near: Sequence[np.ndarray],
    generator: np.random.Generator,
) -> Scenes:
    """Scenes of some kinds, each in a room of its own.

    Args:
        kinds: of each scene, one of `KINDS`.
        seconds: how long each is.
        far: recordings of whoever is far away, int16.
        near: recordings of whoever is in the room.
        generator: where all choices come from.

    Raises:
        MissingExtraError: pyroomacoustics or SciPy is not installed.
    """
    scenes = [_scene(kind, int(seconds * RATE), far, near, generator) for kind in kinds]
    return Scenes(*(np.stack(signals) for signals in zip(*scenes, strict=True)))


def _scene(
    kind: str,
    length: int,
    far: Sequence[np.ndarray],
    near: Sequence[np.ndarray],
    generator: np.random.Generator,
) -> tuple[np.ndarray, ...]:
    far_end = _talk(far, length, generator)
    played = _loudspeaker(far_end, generator)
    here, elsewhere, mouth = _responses(generator)
    echo = _convolve(played, here)
    moves = []
    if kind == "path change":
        moves = [generator.uniform(0.35, 0.65)]
    if kind == "restless":
        moves = sorted(generator.uniform(0.05, 0.95, generator.integers(1, 4)))
    places = echo.copy(), _convolve(played, elsewhere)
    for number, part in enumerate(moves, 1):
        moment = int(length * part)
        echo[moment:] = places[number % 2][moment:]
    echo *= 10 ** (generator.uniform(-32, -20) / 20) / level(echo)

    near_end = np.zeros(length)
    if kind != "single talk":
        begins = int(length * generator.uniform(0.1, 0.4))
        near_end[begins:] = _talk(near, length - begins, generator)
        near_end = _convolve(near_end, mouth)
        near_end *= level(echo) / level(near_end) * 10 ** (generator.uniform(-6, 6) / 20)
    # Fans and streets: the lower, the louder.
    spectrum = np.fft.rfft(generator.normal(size=length))
    spectrum /= (np.arange(len(spectrum)) + 50) ** generator.uniform(0.3, 1.0)
    noise = np.fft.irfft(spectrum, length)
    noise *= level(echo) / level(noise) * 10 ** (generator.uniform(-40, -15) / 20)

    # A microphone that is nearly overdriven is turned down.
    loudest = np.abs(echo + near_end + noise).max()
    volume = 32_000 * min(1.0, 0.9 / loudest)
    signals = (volume * x for x in (echo, near_end, noise))
    return tuple(np.round(x).astype(np.int16) for x in (32_000 * far_end, *signals))


def _talk(recordings: Sequence[np.ndarray], length: int, generator: np.random.Generator) -> Any:
    """Recordings one after the other, with pauses; a little faster or slower, as other voices."""
    parts, there = [], 0
    while there < length:
        x = recordings[int(generator.integers(len(recordings)))] / 32768
        places = np.arange(0, len(x) - 1, generator.uniform(0.88, 1.14))
        pause = np.zeros(int(RATE * generator.uniform(0.05, 0.5)))
        parts += [np.interp(places, np.arange(len(x)), x), pause]
        there += len(places) + len(pause)
    talk = np.concatenate(parts)[:length]
    talk *= 10 ** (generator.uniform(-28, -18) / 20) / level(talk)
    return talk / max(1.0, np.abs(talk).max())


def _loudspeaker(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Clipped, and bent more to one side than to the other, by an amount at random."""
    top = np.abs(x).max() + 1e-9
    x = np.clip(x / top, -1, 1) if generator.random() < 0.5 else x / top
    x = np.clip(x, -generator.uniform(0.7, 1), generator.uniform(0.7, 1))
    bent = 1.5 * x - 0.3 * x**2
    bent = 2 / (1 + np.exp(-np.where(bent > 0, 4, 0.5) * bent)) - 1
    amount = generator.uniform(0, 0.3)
    distorted: np.ndarray = top * ((1 - amount) * x + amount * bent)
    return distorted


def _responses(generator: np.random.Generator) -> list[np.ndarray]:
    """What the microphone hears of an impulse: of the loudspeaker, of it elsewhere, of a mouth."""
    pra = require("pyroomacoustics", "echo", "palto train echo")
    size = generator.uniform([3, 3, 2.4], [8, 6, 3.5])
    absorption, order = pra.inverse_sabine(generator.uniform(0.15, 0.4), size)
    room = pra.ShoeBox(
        size, fs=RATE, materials=pra.Material(min(absorption, 1.0)), max_order=min(order, 12)
    )
    mic = generator.uniform([0.7, 0.7, 0.7], size - 0.7)
    room.add_microphone(mic)
    for nearest, furthest in ((0.15, 0.6), (0.15, 0.6), (0.4, 1.2)):
        while True:
            direction = generator.normal(size=3)
            place = mic + direction / np.linalg.norm(direction) * generator.uniform(
                nearest, furthest
            )
            if np.all((place > 0.1) & (place < size - 0.1)):
                break
        room.add_source(place)
    room.compute_rir()
    # A buffer or two lie between the loudspeaker's samples and the microphone's.
    late = np.zeros(int(RATE * generator.uniform(0, 0.008)))
    return [np.concatenate([late, response]) for response in room.rir[0]]


def _convolve(x: np.ndarray, response: np.ndarray) -> Any:
    return require("scipy.signal", "echo", "palto train echo").fftconvolve(x, response)[: len(x)]


def level(x: np.ndarray) -> float:
    """The root of the mean square, and a little."""
    return float(np.sqrt(np.mean(np.square(x)))) + 1e-9
