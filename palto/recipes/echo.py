"""A network takes the echo out of a telephone call: the neural Kalman filter.

The loudspeaker plays the far end's speech, the room gives it back to the microphone, and the far
end hears itself. What was played is known; the room, the loudspeaker's distortion and the speech of
the near end are not. For each frequency a filter h of four complex numbers says how the room
answers the last four frames; at each frame it is corrected by what it has not foreseen. By how
much, is what a Kalman filter computes from assumptions about noise and movement. Here a recurrent
network, the same for all frequencies, has learned it.

After Yang, Jiang and others, "Low-complexity acoustic echo cancellation with neural Kalman
filtering", 2023.

    palto train echo
    palto echo -x far.wav -y mic.wav -o out.wav
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import palto
from palto import adaptive, data, nn, optim, signal
from palto.acoustics import KINDS, RATE, Scenes, level, make_scenes
from palto.extras import MissingExtraError, require
from palto.train import RoundTraining, TrainingStopped, Watch, load_weights, save_weights

#: Samples in a frame and between two of them, frequencies, and frames that a filter looks back on.
WINDOW, HOP = 1024, 256
BINS, TAPS = WINDOW // 2 + 1, 4
#: A frame is complete, and its first samples can be returned, so many samples after they came.
LATENCY = WINDOW - HOP

#: Languages, each another speaker, but for English and Spanish. Those of the test are heard nowhere
#: else; of the others each tenth recording is for validation.
VOICES, TEST_VOICES = ("en", "es", "fr"), ("it", "ru")

# --- Scenes --------------------------------------------------------------------------------------


def _recordings(languages: Sequence[str], keep: Callable[[int], bool]) -> list[np.ndarray]:
    """Those of some numbers that are not silent and last a second or more."""
    found = []
    for language in languages:
        for number, (_, x) in enumerate(sorted(data.speech(language).items())):
            if keep(number) and len(x) >= RATE and level(x / 32768) > 0.01:
                found.append(x)
    return found


#: Which scenes are learned from, and how often: a change of the path is over in half a second, and
#: would hardly be seen in calls that have one. What is tested.
LEARNED = {"single talk": 0.05, "double talk": 0.15, "restless": 0.8}
TESTED = ["double talk", "path change"]
#: So many scenes lie in one file; so many of each kind that is tested are for validation.
PART, VALIDATION = 25, 4


def training_scenes(
    folder: Path, count: int, seconds: float, seed: int, watch: Watch
) -> tuple[Scenes, Scenes]:
    """Scenes to learn from and for validation, made where they do not lie in the folder yet."""
    sizes = [min(PART, count - first) for first in range(0, count, PART)]
    # Names say what is in a file: a folder may hold those of a run that was given up.
    name = f"scenes-{seed}-{seconds:g}s"
    paths = [folder / f"{name}-{k:03d}-{n}.safetensors" for k, n in enumerate(sizes)]
    last = folder / f"{name}-validation.safetensors"
    if not all(path.exists() for path in (*paths, last)):
        voices = _recordings(VOICES, lambda number: number % 10 != 0)
        for k, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            watch("making scenes", k / len(paths), f"{k * PART} of {count}")
            if not path.exists():
                generator = np.random.default_rng((seed, k))
                kinds = generator.choice(list(LEARNED), size=size, p=list(LEARNED.values()))
                make_scenes(list(kinds), seconds, voices, voices, generator).save(path)
        held = _recordings(VOICES, lambda number: number % 10 == 0)
        generator = np.random.default_rng((seed, 10**6))
        make_scenes(TESTED * VALIDATION, seconds, held, held, generator).save(last)
    return Scenes.load(paths), Scenes.load([last])


def test_scenes(kind: str, count: int, seconds: float = 10.0) -> Scenes:
    """Scenes of voices and rooms that training never comes to."""
    voices = [_recordings([language], lambda _: True) for language in TEST_VOICES]
    generator = np.random.default_rng((2_000_000, KINDS.index(kind)))
    half = [kind] * math.ceil(count / 2)
    first, second = (
        make_scenes(half, seconds, far, near, generator) for far, near in (voices, voices[::-1])
    )
    both = zip(vars(first).values(), vars(second).values(), strict=True)
    return Scenes(*(np.concatenate(signals)[:count] for signals in both))


# --- The network ---------------------------------------------------------------------------------

# A complex tensor is a real one with the real and imaginary parts along its first axis. The rows,
# frequencies of one or more calls, come last: (2, features, rows), so that they lie side by side in
# the processor's vectors, which a few features would leave half empty.


class ComplexLinear(nn.Module):
    """A linear layer for the real parts and another one for the imaginary parts.

    Args:
        inputs: features of the input.
        outputs: features of the output.
        scale: of the first weights, in the 1 / sqrt(inputs) that linear layers begin with.
    """

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0) -> None:
        self.weight = nn.Parameter(palto.zeros((2, outputs, inputs)))
        self.bias = nn.Parameter(palto.zeros((2, outputs, 1)))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -scale * inputs**-0.5, scale * inputs**-0.5)

    def forward(self, z: palto.Tensor) -> palto.Tensor:
        """(2, inputs, rows) -> (2, outputs, rows)."""
        return self.weight @ z + self.bias


class RowsLastGRU(nn.Module):
    """A step of a GRU, as `nn.GRUCell` computes it, for rows that come last.

    Args:
        width: features of the input and of the state.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.weight_ih = nn.Parameter(palto.zeros((3 * width, width)))
        self.weight_hh = nn.Parameter(palto.zeros((3 * width, width)))
        self.bias_ih = nn.Parameter(palto.zeros((3 * width, 1)))
        self.bias_hh = nn.Parameter(palto.zeros((3 * width, 1)))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, z: palto.Tensor, state: palto.Tensor) -> palto.Tensor:
        """Two of shape (..., width, rows) -> the next state."""
        given = self.weight_ih @ z + self.bias_ih
        maps = self.weight_hh @ state + self.bias_hh
        first, second = self.width, 2 * self.width
        reset = nn.functional.sigmoid(given[..., :first, :] + maps[..., :first, :])
        update = nn.functional.sigmoid(given[..., first:second, :] + maps[..., first:second, :])
        new = palto.tanh(given[..., second:, :] + reset * maps[..., second:, :])
        return new + update * (state - new)


class GainNet(nn.Module):
    """By how much to correct the filters; 5,302 parameters.

    Args:
        width: of its layers.
    """

    def __init__(self, width: int = 18) -> None:
        self.width = width
        self.linear1 = ComplexLinear(2 * TAPS + 1, width)
        self.prelu1 = nn.PReLU()
        self.gru_real = RowsLastGRU(width)
        self.gru_imag = RowsLastGRU(width)
        self.linear2 = ComplexLinear(width, width)
        self.prelu2 = nn.PReLU()
        self.linear3 = ComplexLinear(
            width, TAPS, scale=0.01
        )  # at first it corrects hardly anything

    def forward(
        self, z: palto.Tensor, real: palto.Tensor, imag: palto.Tensor
    ) -> tuple[palto.Tensor, palto.Tensor, palto.Tensor]:
        """Features (2, 9, rows) and the memory, two (2, width, rows), to gains (2, 4, rows)."""
        z = self.prelu1(self.linear1(z))
        real, imag = self.gru_real(z, real), self.gru_imag(z, imag)
        z = palto.stack([real[0] - imag[1], real[1] + imag[0]])
        return self.linear3(self.prelu2(self.linear2(z))), real, imag


#: The last far frames, the filters, those before, the two parts of the network's memory; rows last.
State = tuple[palto.Tensor, ...]
#: Between two frames of a call: the last samples of both ends, (2, 768), what the last frames add
#: to the next samples, (3, 256), and the filters' state.
Call = tuple[palto.Tensor, palto.Tensor, State]

#: Filters beyond this energy have run away, and begin again.
ENERGY = 100.0
#: Added to the mean square of the far end, that nothing is divided by silence.
SILENCE = 1e-5


class KalmanFilter(nn.Module):
    """From spectra of the far end and the microphone to those of the echo, frame by frame."""

    def __init__(self) -> None:
        self.gain = GainNet()

    def start(self, rows: int) -> State:
        """The state before anything was heard."""
        taps, memory = palto.zeros((2, TAPS, rows)), palto.zeros((2, self.gain.width, rows))
        return palto.zeros((2, TAPS - 1, rows)), taps, taps, memory, memory

    def forward(
        self, state: State, far: palto.Tensor, mic: palto.Tensor
    ) -> tuple[State, palto.Tensor]:
        """A frame: spectra (2, rows) -> the next state, and the echo (2, rows).

        With x the last four far frames, h the filters and y the microphone: e = y - x h,
        h' = h + k e, and the echo is x h'. The network gives k in units of the far end's level, for
        it need not know how loud a frequency is, and of a compressed e: when the near end speaks
        while the far end is silent, e is a hundred times too large, and h must not run away.
        """
        past, filters, before, *memory = state
        x = palto.concat([past, far[:, None]], axis=1)
        level = palto.sqrt(palto.sum(palto.square(x), axis=(0, 1)) / TAPS + SILENCE)
        error = (mic - _times(x, filters)) / level
        size = palto.sqrt(palto.sum(palto.square(error), axis=0) + 1e-8)
        compressed = error * (palto.log1p(size) / size)
        seen = palto.concat([x / level, compressed[:, None], filters - before], axis=1)
        gain, *memory = self.gain(seen, *memory)
        re, im = compressed[0], compressed[1]
        moved = filters + palto.stack([gain[0] * re - gain[1] * im, gain[0] * im + gain[1] * re])
        energy = palto.sum(palto.square(moved), axis=(0, 1))
        moved = palto.where(energy < ENERGY, moved, 0.0)
        return (x[:, 1:], moved, filters, *memory), _times(x, moved)

    def begin(self) -> Call:
        """A call before anything was heard."""
        return palto.zeros((2, LATENCY)), palto.zeros((LATENCY // HOP, HOP)), self.start(BINS)

    def stream(self, call: Call, far: palto.Tensor, mic: palto.Tensor) -> tuple[Call, palto.Tensor]:
        """The next samples of a call, (frames, 256), to its state and `mic` without the echo.

        What is returned belongs to the samples of `LATENCY` samples ago.
        """
        last, tail, state = call
        now = palto.reshape(palto.stack([far, mic]), (2, -1))
        both = palto.concat([last, now], axis=1)
        heard = spectra(both)
        state, echo = palto.scan(
            lambda state, frame: self(state, *frame), state, (heard[0], heard[1])
        )
        clean = heard[1] - echo
        frames = palto.fft.irfft(palto.complex(clean[:, 0], clean[:, 1]), n=WINDOW)
        # Four windows' squares overlap to 1.5.
        frames = frames * (signal.hann_window(WINDOW) / 1.5)
        count, blocks = far.shape[0], WINDOW // HOP
        total = palto.pad(tail, [(0, count), (0, 0)])
        for k in range(blocks):
            part = frames[:, k * HOP : (k + 1) * HOP]
            total = total + palto.pad(part, [(k, blocks - 1 - k), (0, 0)])
        return (both[:, -LATENCY:], total[count:], state), total[:count]


def _times(x: palto.Tensor, h: palto.Tensor) -> palto.Tensor:
    """The complex sum of x h over the taps: two (2, taps, rows) -> (2, rows)."""
    return palto.stack(
        [
            palto.sum(x[0] * h[0] - x[1] * h[1], axis=0),
            palto.sum(x[0] * h[1] + x[1] * h[0], axis=0),
        ]
    )


def spectra(x: palto.Tensor) -> palto.Tensor:
    """Signals (..., time) to spectra (..., frames, 2, frequencies)."""
    z = signal.stft(x, WINDOW, HOP, signal.hann_window(WINDOW), center=False).mT
    return palto.stack([palto.real(z), palto.imag(z)], axis=-2)


def waves() -> np.ndarray:
    """What frames are multiplied by and summed for their spectra: (1024, 2, frequencies)."""
    angles = 2 * np.pi / WINDOW * (np.outer(np.arange(WINDOW), np.arange(BINS)) % WINDOW)
    window = signal.hann_window(WINDOW).numpy()[:, None, None]
    return (np.stack([np.cos(angles), -np.sin(angles)], axis=1) * window).astype(np.float32)


def some_spectra(x: palto.Tensor, kernels: palto.Tensor) -> palto.Tensor:
    """`spectra` at the frequencies of some `waves`, for which a convolution is quicker."""
    count = kernels.shape[2]
    kernels = palto.reshape(kernels, (WINDOW, 1, 2 * count))
    found = nn.functional.conv1d(palto.reshape(x, (-1, x.shape[-1], 1)), kernels, stride=HOP)
    return palto.reshape(found, (*x.shape[:-1], found.shape[1], 2, count))


# --- Taking the echo out -------------------------------------------------------------------------


class Canceller:
    """Takes the echo out of a call while it goes on.

    What is returned belongs to the samples of `LATENCY` samples ago, 48 milliseconds.

    Args:
        model: the trained filter.
    """

    LATENCY = LATENCY

    def __init__(self, model: KalmanFilter) -> None:
        self._model = model
        model.eval()
        self._stream = palto.compile(model.stream)
        self.reset()

    def reset(self) -> None:
        """Begin another call."""
        self._call = self._model.begin()

    def process(self, far: np.ndarray, mic: np.ndarray) -> np.ndarray:
        """The next samples of a call.

        Args:
            far: what the loudspeaker is given, float32 (256 k,), 16,000 samples a second, in +-1.
            mic: what the microphone hears meanwhile.

        Returns:
            As many samples without the echo, those of `LATENCY` samples ago.

        Raises:
            ValueError: not the same number of samples, or no multiple of 256.
        """
        far, mic = np.asarray(far, np.float32), np.asarray(mic, np.float32)
        if far.ndim != 1 or far.shape != mic.shape or len(far) == 0 or len(far) % HOP:
            raise ValueError(
                f"far and mic want the same number of samples, a multiple of {HOP}, got shapes "
                f"{far.shape} and {mic.shape}"
            )
        with palto.no_grad():
            self._call, clean = self._stream(self._call, far.reshape(-1, HOP), mic.reshape(-1, HOP))
        now: np.ndarray = clean.numpy().reshape(-1)
        return now

    def whole(self, far: np.ndarray, mic: np.ndarray) -> np.ndarray:
        """A whole call: `mic` without the echo, as long and sample by sample at the same time.

        Args:
            far: float32 (time,), 16,000 samples a second; cut off or filled up with silence.
            mic: float32 (time,).
        """
        self.reset()
        block = 64 * HOP
        count = math.ceil((len(mic) + self.LATENCY) / block) * block
        both = np.zeros((2, count), np.float32)
        for row, x in zip(both, (far[: len(mic)], mic), strict=True):
            row[: len(x)] = x
        parts = [self.process(*both[:, start : start + block]) for start in range(0, count, block)]
        clean: np.ndarray = np.concatenate(parts)[self.LATENCY :][: len(mic)]
        return clean


#: The loudspeaker's sound may be so late in the microphone's file, or so early, in seconds.
LATEST, EARLIEST = 1.0, -0.5
#: The far end is left so many samples early, for the first to arrive is not always the loudest.
MARGIN = 48


def delay(far: np.ndarray, mic: np.ndarray) -> int:
    """How many samples after `far` its echo comes in `mic`; 0 if none can be made out.

    By the peak of the cross-correlation of both with all frequencies equally loud (Knapp, Carter,
    "The generalized correlation method for estimation of time delay", 1976).
    """
    length = 1 << (max(len(far), len(mic)) + RATE).bit_length()
    cross = np.fft.rfft(mic, length) * np.conj(np.fft.rfft(far, length))
    correlation = np.abs(
        np.fft.irfft(cross / (np.abs(cross) + 1e-9 * np.abs(cross).max() + 1e-30), length)
    )
    latest, earliest = int(LATEST * RATE), int(EARLIEST * RATE)
    near = np.concatenate([correlation[earliest:], correlation[: latest + 1]])
    best = int(np.argmax(near))
    return best + earliest if near[best] > 8 * level(correlation) else 0


def aligned(far: np.ndarray, samples: int) -> np.ndarray:
    """`far` so many samples later, or earlier if below 0; what is cut off there is missing here."""
    if samples < 0:
        return far[-samples:]
    return np.concatenate([np.zeros(samples, far.dtype), far])


def cancel(
    model: KalmanFilter, far: np.ndarray, far_rate: int, mic: np.ndarray, mic_rate: int
) -> tuple[np.ndarray, int]:
    """What a microphone has recorded, without the echo of what was played meanwhile.

    Both recordings may have any rate and number of channels. The far end's channels are taken
    together; each microphone is treated by itself. Of sounds above 8 kHz nothing is left.

    Args:
        model: the trained filter.
        far: what was played, float (time, channels) in +-1.
        far_rate: its samples a second.
        mic: what was recorded, float (time, channels).
        mic_rate: its samples a second.

    Returns:
        float32, the shape and time of `mic`; and by how many samples, 16,000 a second, the echo
        comes after `far`.

    Raises:
        ValueError: a recording is empty, not finite, or has a rate below 8,000.
        MissingExtraError: soxr is not installed.
    """
    soxr = require("soxr", "echo", "palto echo")
    for name, x, rate in (("far end", far, far_rate), ("microphone", mic, mic_rate)):
        if x.ndim != 2 or x.size == 0 or not np.all(np.isfinite(x)):
            raise ValueError(
                f"the {name}'s recording must be finite numbers (time, channels), at least one, "
                f"got {x.dtype.name} of shape {x.shape}"
            )
        if rate < 8000:
            raise ValueError(f"the {name}'s recording has {rate} samples a second; 8,000 or more "
                             "are wanted")  # fmt: skip
    played = soxr.resample(np.asarray(far, np.float32).mean(1), far_rate, RATE)
    heard = soxr.resample(np.asarray(mic, np.float32), mic_rate, RATE)
    late = delay(played, heard.mean(1))
    played = aligned(played, late - MARGIN)
    canceller = Canceller(model)
    clean = np.stack([canceller.whole(played, x) for x in heard.T], axis=1)
    clean = soxr.resample(clean, RATE, mic_rate)
    result = np.zeros(mic.shape, np.float32)
    result[: len(clean)] = clean[: len(mic)]
    return result, late


# --- Learning ------------------------------------------------------------------------------------

#: A step of the optimiser sees so many frames, and backprop goes no further back.
FRAMES = 50
#: After how many frames, of several steps, another call begins, and from which part of the training
#: on. A filter that errs little in a second may still be far off after ten.
LENGTHS = ((0.0, 50), (0.15, 100), (0.3, 200), (0.5, 600))
#: What part of a call's mean energy of the echo counts as silence.
QUIET = 0.003
#: Filters whose loss is beyond, in dB, have diverged: the step leaves them out, they begin again.
DIVERGED = 10.0


@dataclass(frozen=True)
class Plan:
    """How the filter is trained."""

    steps: int = 6000
    """Steps of the optimiser."""
    round_steps: int = 200
    """After so many steps there is a validation and a checkpoint."""
    batch_size: int = 16
    """Calls in a step."""
    bins: int = 64
    """Frequencies of each call that are looked at, other ones in each call."""
    lr: float = 3e-3
    """The learning rate that warming up leads to; it then falls to zero."""
    scenes: int = 300
    """How many scenes to learn from."""
    seconds: float = 10.0
    """How long a scene is."""
    test_scenes: int = 10
    """How many scenes of each kind the test has."""
    seed: int = 0
    """Of everything that is random."""

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a number out of range.
        """
        for name in ("steps", "round_steps", "batch_size", "bins", "scenes", "test_scenes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.bins > BINS:
            raise ValueError(f"bins must be at most {BINS}, got {self.bins}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a positive number, got {self.lr}")
        if not 4 <= self.seconds <= 60:
            raise ValueError(f"seconds must be from 4 to 60, got {self.seconds}")

    def length(self, step: int) -> int:
        """For how many frames a call is followed that begins in some step."""
        return [frames for part, frames in LENGTHS if step >= part * self.steps][-1]


@dataclass(frozen=True)
class Round:
    """What came of some steps.

    Attributes:
        steps: of the optimiser until now.
        frames: for how many frames a call was followed.
        loss: the mean of the losses, in dB: the error of the echo, relative to the echo.
        dropped: the share of the calls that had diverged.
        erle: by how many dB the echo of the scenes for validation was lowered.
        returned: whether the filter had diverged, and that of the last good round was taken back.
        seconds: since the training began, interruptions not counted.
    """

    steps: int
    frames: int
    loss: float
    dropped: float
    erle: float
    returned: bool
    seconds: float


@dataclass
class Batch:
    """What a step learns from: some frames of several calls.

    Attributes:
        signals: far end, microphone and echo, float32 (calls, 3, time).
        bins: at which frequencies of each call, (calls, bins).
        is_new: whether the call begins, or goes on from the step before, (calls,).
        floor: what is added to the error's and the echo's energy, (calls,): a small part of what
            the echo usually has, that there is a measure also where nobody speaks.
    """

    signals: np.ndarray
    bins: np.ndarray
    is_new: np.ndarray
    floor: np.ndarray


class Calls:
    """Calls that are followed side by side, each until it is over; then another one begins.

    Args:
        scenes: what to take them from.
        plan: how many, and at how many frequencies.
        length: frames after which a call is over.
        seed: of everything that is random.
    """

    def __init__(self, scenes: Scenes, plan: Plan, length: int, seed: Any) -> None:
        self._scenes, self._plan, self._length = scenes, plan, length
        self._generator = np.random.default_rng(seed)
        count = plan.batch_size
        self._scene, self._place, self._left = (np.zeros(count, int) for _ in range(3))
        self._volume, self._bins = np.ones(count), np.zeros((count, plan.bins), int)
        self._floor = np.zeros(count, np.float32)
        self._is_first = True

    def next(self) -> Batch:
        """The next frames of all calls."""
        scenes, count = self._scenes, self._plan.batch_size
        samples = (FRAMES - 1) * HOP + WINDOW
        signals = np.zeros((count, 3, samples), np.float32)
        is_new = self._left < FRAMES
        for k in range(count):
            if is_new[k]:
                self._begin(k)
            part = slice(self._place[k], self._place[k] + samples)
            far, echo, near, noise = (x[self._scene[k], part] for x in vars(scenes).values())
            signals[k] = far * self._volume[k], echo + near + noise, echo
            self._place[k] += FRAMES * HOP
            self._left[k] -= FRAMES
        self._is_first = False
        return Batch(signals / 32768, self._bins.copy(), is_new, self._floor.copy())

    def _begin(self, k: int) -> None:
        """Take a call from anywhere in a scene; the first are shorter, that not all end at once."""
        generator, scenes = self._generator, self._scenes
        longest = (scenes.far.shape[1] - WINDOW) // HOP + 1
        length = min(self._length, longest // FRAMES * FRAMES)
        self._scene[k] = generator.integers(len(scenes.far))
        self._place[k] = generator.integers(longest - length + 1) * HOP
        shorter = FRAMES * generator.integers(1, length // FRAMES + 1)
        self._left[k] = shorter if self._is_first else length
        self._bins[k] = generator.permutation(BINS)[: self._plan.bins]
        self._volume[k] = 10 ** (generator.uniform(-6, 6) / 20)
        # The mean energy of a spectrum is that of a sample times the window's.
        mean = level(scenes.echo[self._scene[k], ::8] / 32768) ** 2 * 0.375 * WINDOW
        self._floor[k] = QUIET * mean * FRAMES * self._plan.bins

    def drop(self, which: np.ndarray) -> None:
        """Let some calls be over."""
        self._left[which] = 0


class Training(RoundTraining[Plan, Round]):
    """A run of the training in a folder, which holds the scenes, too.

    Args:
        folder: where it lies, or will lie.
        plan: how to train.

    Raises:
        ValueError, OSError: see `palto.train.RoundTraining`.
    """

    #: A validation that is so many dB below the best has diverged, once there was one as good.
    FALL = 4.0

    def __init__(self, folder: str | os.PathLike[str], plan: Plan) -> None:
        palto.manual_seed(plan.seed)
        self.model = KalmanFilter()
        rate = optim.schedules.cosine(
            plan.lr, steps=plan.steps + 1, warmup=min(100, plan.steps // 2)
        )
        self.optimizer = optim.Adam(self.model, lr=rate)
        super().__init__(folder, plan, self.model, self.optimizer, Round)
        self.step = self._compiled_step()
        self.canceller = Canceller(self.model)

    def _compiled_step(self) -> Callable[..., tuple[palto.Tensor, palto.Tensor, Any]]:
        model, optimizer = self.model, self.optimizer
        all_waves = palto.Cell(waves())

        def heard(_: Any, call: Any) -> tuple[Any, palto.Tensor]:
            """The spectra of one call, (3, frames, 2, bins)."""
            signals, bins = call
            return (), some_spectra(signals, palto.take(all_waves.read(), bins, axis=2))

        def follow(_: Any, call: Any) -> tuple[Any, Any]:
            """One call for some frames: its loss in dB, and its state."""
            state, (far, mic, echo), is_new, floor = call
            energies, *state = (palto.where(is_new, 0.0, x) for x in state)
            state, found = palto.scan(
                lambda state, frame: model(state, *frame), tuple(state), (far, mic)
            )
            # Of the error and of the echo: in these frames, and since the call began. By the first
            # moments in which hardly any echo is left count as much as others; by the second those
            # in which much is heard.
            now = palto.stack([palto.sum(palto.square(x)) for x in (found - echo, echo)])
            energies = energies + now
            both = palto.stack([now, energies]) + floor
            loss = 10 * palto.mean(palto.log10(both[:, 0] / both[:, 1]))
            return (), (loss, (energies, *state))

        @palto.compile
        def step(
            states: State,
            signals: palto.Tensor,
            bins: palto.Tensor,
            is_new: palto.Tensor,
            floor: palto.Tensor,
        ) -> tuple[palto.Tensor, palto.Tensor, State]:
            """The next frames of some calls; see `Batch`. Their loss, losses and states."""
            # One call after the other: what it needs then stays in the processor's caches.
            _, seen = palto.scan(heard, (), (signals, bins))
            _, (losses, states) = palto.scan(follow, (), (states, seen, is_new, floor))
            kept = losses.detach() < DIVERGED
            count = palto.maximum(palto.sum(palto.astype(kept, palto.float32)), 1.0)
            loss = palto.sum(palto.where(kept, losses, 0.0)) / count
            loss.backward()
            optim.clip_grad_norm_(model, 1.0)
            optimizer.step()
            return loss, losses, tuple(x.detach() for x in states)

        return step

    def start(self) -> State:
        """The states of a step's calls, before anything was heard: their energies, and filters."""
        state = (palto.zeros(2), *self.model.start(self.plan.bins))
        return tuple(palto.zeros((self.plan.batch_size, *x.shape)) for x in state)

    def run(self, watch: Watch) -> None:
        """Train until all steps are done.

        Raises:
            KeyboardInterrupt: somebody has asked to stop; all whole rounds are kept.
            TrainingStopped: it diverges again and again.
        """
        plan = self.plan
        scenes, held = training_scenes(self.folder, plan.scenes, plan.seconds, plan.seed, watch)
        while not self.rounds or self.rounds[-1].steps < plan.steps:
            first, before = (
                (self.rounds[-1].steps, self.rounds[-1].seconds) if self.rounds else (0, 0.0)
            )
            began = time.perf_counter() - before
            last = min(first + plan.round_steps, plan.steps)
            calls = Calls(scenes, plan, plan.length(first), (plan.seed, 1, first))
            states, told = self.start(), []
            for number in range(first, last):
                batch = calls.next()
                try:
                    loss, losses, states = self.step(states, *vars(batch).values())
                except FloatingPointError:  # a gradient was not finite: no weight was changed
                    calls.drop(np.ones(plan.batch_size, bool))
                    told.append((0.0, 1.0))
                    continue
                diverged = ~(losses.numpy() < DIVERGED)
                calls.drop(diverged)
                told.append((float(loss), diverged.mean()))
                if number % 10 == 9 and number + 1 < last:
                    remark = f"loss {np.mean([x for x, _ in told]):.2f} dB"
                    watch("learning", (number + 1) / plan.steps, remark)
            loss, dropped = np.mean(told, axis=0)
            erle = validate(self.canceller, held)
            best = max((x.erle for x in self.rounds), default=-math.inf)
            returned = best > self.FALL and not erle > best - self.FALL
            if returned:
                self._return()
            taken = round(time.perf_counter() - began, 1)
            one = Round(last, plan.length(first), round(float(loss), 3), round(float(dropped), 4),
                        round(erle, 3), returned, taken)  # fmt: skip
            # The last one, for which the learning rate is lowest, is what is kept: ERLE alone does
            # not say after which round speech sounds best.
            self.keep(one, is_best=not returned)
            watch(f"step {last}", 1.0, described(one))

    def _return(self) -> None:
        """Go back to the weights of the last good round; other sequences come next.

        Raises:
            TrainingStopped: that was done after each of the last three rounds.
        """
        good = self.checkpoints.best()
        if good is None or (len(self.rounds) > 2 and all(x.returned for x in self.rounds[-3:])):
            raise TrainingStopped(
                f"the filter diverges again and again ({described(self.rounds[-1])}); train with a "
                "lower --lr, in another folder"
            )
        self.model.load_state_dict(good.tensors["model"])


def described(one: Round) -> str:
    """A round in a line."""
    return (
        f"calls of {one.frames} frames, loss {one.loss:.2f} dB, {one.dropped:.1%} diverged; "
        f"validation: echo lowered by {one.erle:.2f} dB" + (", taken back" * one.returned)
    )


# --- How good it is ------------------------------------------------------------------------------


def erle(echo: np.ndarray, left: np.ndarray) -> float:
    """Echo return loss enhancement: by how many dB an echo is weaker of which this is left."""
    return 10 * math.log10((np.sum(np.square(echo)) + 1e-9) / (np.sum(np.square(left)) + 1e-9))


#: From the far end and the microphone, float32 (time,), to the microphone without the echo.
Method = Callable[[np.ndarray, np.ndarray], np.ndarray]


def methods(model: KalmanFilter) -> dict[str, Method]:
    """What is compared: nothing at all, adaptive filters, and the network."""
    found: dict[str, Method] = {
        "microphone": lambda far, mic: mic,
        "PNLMS": adaptive.pnlms,
        "Kalman filter": adaptive.frequency_domain_kalman,
    }
    if adaptive.speexdsp_library() is not None:
        found["SpeexDSP"] = adaptive.speexdsp
    return found | {"network": Canceller(model).whole}


def validate(canceller: Canceller, scenes: Scenes) -> float:
    """The mean ERLE of scenes."""
    scores = [_scores(canceller.whole, scenes, k) for k in range(len(scenes.far))]
    return float(np.mean([x["erle"] for x in scores]))


def _scores(method: Method, scenes: Scenes, number: int, speech: bool = False) -> dict[str, float]:
    """The ERLE of a scene, and if wanted how its near speech sounds afterwards."""
    far, mic, echo, near = (
        x[number].astype(np.float32) / 32768
        for x in (scenes.far, scenes.mic, scenes.echo, scenes.near)
    )
    clean = method(far, mic)
    found = {"erle": erle(echo, echo - (mic - clean))}
    if speech:
        stoi = require("pystoi", "echo", "STOI").stoi
        found["stoi"] = float(stoi(near, clean, RATE))
        try:
            pesq = require("pesq", "pesq", "PESQ").pesq
            found["pesq"] = float(pesq(RATE, near, clean, "wb"))
        except MissingExtraError:  # it wants a C compiler; the other scores stand alone
            pass
    return found


def examine(model: KalmanFilter, plan: Plan, watch: Watch) -> dict[str, dict[str, Any]]:
    """The mean scores of all methods in scenes for testing, by kind and by method.

    "erle" in dB; of the near speech "stoi", from 0 to 1, and where it is installed "pesq",
    wide-band, from 1 to 4.6.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in TESTED:
        scenes = test_scenes(kind, plan.test_scenes)
        found[kind] = {}
        for name, method in methods(model).items():
            watch(f"test: {kind}", 0.0, name)
            scores = [_scores(method, scenes, k, speech=True) for k in range(len(scenes.far))]
            found[kind][name] = {
                x: round(float(np.mean([score[x] for score in scores])), 3) for x in scores[0]
            }
    return found


# --- Weights, with what is known of them ----------------------------------------------------------

#: How the files of the weights are called, and where those lie that come with Palto.
NAME, SHIPPED = "filter", Path(palto.__file__).parent / "weights" / "echo"


def save_filter(training: Training, tests: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Write the model's weights and their record into the training's folder; return the record."""
    about = {
        "command": command,
        "plan": asdict(training.plan),
        "rounds": [asdict(x) for x in training.rounds],
        "training seconds": training.rounds[-1].seconds,
        "tests": dict(tests),
    }
    return save_weights(training.folder, NAME, training.model, about)


def load_filter(
    folder: str | os.PathLike[str] = SHIPPED,
) -> tuple[KalmanFilter, dict[str, Any]]:
    """A trained filter, and the record of how it came to be; see `palto.train.load_weights`."""
    model = KalmanFilter()
    return model, load_weights(folder, NAME, model, made_by="palto train echo")
