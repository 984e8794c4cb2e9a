"""The echo canceller: its training beside the same recipe in PyTorch, and how fast it is in a call.

    python benchmarks/echo.py

Steps are taken in turn. Both take the next 50 frames of 16 calls, get their spectra at 64
frequencies, run the filter over them from where it was, go back, clip, and take a step of Adam.
Sound is noise, for its kind does not change the time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import palto
from palto.recipes import echo

layers = torch.nn


def batches(count: int = 16, bins: int = 64, steps: int = 200) -> Iterator[echo.Batch]:
    """Some frames of calls that go on from step to step."""
    rng = np.random.default_rng(0)
    length = (echo.FRAMES * steps - 1) * echo.HOP + echo.WINDOW
    far = rng.normal(size=(count, length)) * 0.1
    response = rng.normal(size=(count, 1024)) * np.exp(-np.arange(1024) / 200) * 0.1
    heard = np.fft.irfft(np.fft.rfft(far, 2 * length) * np.fft.rfft(response, 2 * length))
    heard = heard[:, :length]
    mic = heard + rng.normal(size=heard.shape) * 0.01
    signals = np.stack([far, mic, heard], axis=1).astype(np.float32)
    places = np.stack([rng.permutation(echo.BINS)[:bins] for _ in range(count)])
    samples = (echo.FRAMES - 1) * echo.HOP + echo.WINDOW
    for number in range(steps):
        start = number * echo.FRAMES * echo.HOP
        yield echo.Batch(
            signals[:, :, start : start + samples], places, np.full(count, number % 12 == 0),
            np.ones(count, np.float32),
        )  # fmt: skip


# --- In PyTorch ----------------------------------------------------------------------------------


class ComplexLinear(layers.Module):
    """A linear layer for the real parts and another one for the imaginary parts."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.real, self.imag = layers.Linear(inputs, outputs), layers.Linear(inputs, outputs)

    def forward(self, z: Any) -> Any:
        """(2, rows, inputs) -> (2, rows, outputs)."""
        return torch.stack([self.real(z[0]), self.imag(z[1])])


class GainNet(layers.Module):
    """What `palto.recipes.echo.GainNet` is; features come last, as PyTorch's layers want them."""

    def __init__(self, width: int = 18) -> None:
        super().__init__()
        self.linear1, self.prelu1 = ComplexLinear(9, width), layers.PReLU()
        self.gru_real, self.gru_imag = (layers.GRUCell(width, width) for _ in range(2))
        self.linear2, self.prelu2 = ComplexLinear(width, width), layers.PReLU()
        self.linear3 = ComplexLinear(width, echo.TAPS)

    def forward(self, z: Any, memory: Any) -> Any:
        """Features (rows, 9) and the memory to gains (rows, 4), complex, and the memory."""
        z = self.prelu1(self.linear1(torch.stack([z.real, z.imag])))
        shape = z.shape
        real, imag = (
            cell(z.flatten(0, 1), state)
            for cell, state in zip((self.gru_real, self.gru_imag), memory, strict=True)
        )
        re, im = real.view(shape), imag.view(shape)
        z = torch.stack([re[0] - im[1], re[1] + im[0]])
        z = self.linear3(self.prelu2(self.linear2(z)))
        return torch.complex(z[0], z[1]), (real, imag)

    def load(self, model: echo.GainNet) -> None:
        """Take the weights of Palto's."""
        found = {}
        for name, value in model.state_dict().items():
            x, (layer, kind) = torch.tensor(value.numpy()), name.split(".")
            if layer.startswith("linear"):
                found[f"{layer}.real.{kind}"], found[f"{layer}.imag.{kind}"] = (
                    part.squeeze(-1) if kind == "bias" else part for part in x
                )
            else:
                found[name] = x.squeeze(-1) if kind.startswith("bias") else x
        self.load_state_dict(found)


class TorchTraining:
    """The step of `palto.recipes.echo.Training`.

    Args:
        model: whose weights it begins with.
        optimizer: makes PyTorch's, of the parameters.
    """

    def __init__(self, model: echo.KalmanFilter, optimizer: Any) -> None:
        self.gain = GainNet()
        self.gain.load(model.gain)
        self.optimizer = optimizer(self.gain.parameters())
        self.window = torch.hann_window(echo.WINDOW)

    def start(self, rows: int) -> Any:
        """Energies, last far frames, filters, those before, memory, before anything was heard."""
        h = torch.zeros((rows, echo.TAPS), dtype=torch.complex64)
        return (0.0, 0.0), h[:, 1:].T, h, h, (torch.zeros((2 * rows, 18)),) * 2

    def step(self, state: Any, batch: echo.Batch) -> tuple[float, Any]:
        """One step; its loss and state. Calls begin all at once."""
        count, rows = len(batch.bins), batch.bins.size
        sound = torch.from_numpy(np.ascontiguousarray(batch.signals))
        spectra = torch.stft(
            sound.flatten(0, 1), echo.WINDOW, echo.HOP, window=self.window, center=False,
            return_complex=True,
        ).unflatten(0, (count, 3))  # fmt: skip
        places = torch.from_numpy(batch.bins)[:, None, :, None].expand(-1, 3, -1, spectra.shape[3])
        spectra = spectra.gather(2, places)  # (calls, 3, bins, frames)
        far, mic, wanted = spectra.permute(1, 3, 0, 2).reshape(3, -1, rows)
        so_far, past, h, before, memory = self.start(rows) if batch.is_new[0] else state
        far = torch.cat([past, far])
        found = []
        for t in range(len(mic)):
            x = far[t : t + echo.TAPS].T
            level = torch.sqrt(_power(x).mean(1, keepdim=True) + echo.SILENCE)
            error = (mic[t] - (x * h).sum(1))[:, None] / level
            size = torch.sqrt(_power(error) + 1e-8)
            error = error * (torch.log1p(size) / size)
            seen = torch.cat([x / level, error, h - before], 1)
            gain, memory = self.gain(seen, memory)
            moved = h + gain * error
            moved = torch.where(_power(moved).sum(1, keepdim=True) < echo.ENERGY, moved, 0.0)
            h, before = moved, h
            found.append((x * h).sum(1))
        parts = (len(mic), count, -1)
        left = _power(torch.stack(found) - wanted).view(parts).sum((0, 2))
        energy = _power(wanted).view(parts).sum((0, 2))
        all_left, all_energy = so_far[0] + left, so_far[1] + energy
        floor = torch.from_numpy(batch.floor)
        now = torch.log10((left + floor) / (energy + floor))
        whole = torch.log10((all_left + floor) / (all_energy + floor))
        losses = 5 * (now + whole)
        kept = losses.detach() < echo.DIVERGED
        loss = torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)
        self.optimizer.zero_grad()
        loss.backward()
        layers.utils.clip_grad_norm_(self.gain.parameters(), 1.0)
        self.optimizer.step()
        past, so_far = far[-echo.TAPS + 1 :], (all_left.detach(), all_energy)
        return loss.item(), (
            so_far, past, h.detach(), before.detach(), [x.detach() for x in memory]
        )  # fmt: skip


def _power(x: Any) -> Any:
    return x.real.square() + x.imag.square()


# --- Side by side --------------------------------------------------------------------------------


def compare(steps: int, threads: int) -> None:
    """Time steps of both in turn, and print the medians."""
    palto.set_num_threads(threads)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        training = echo.Training(folder, echo.Plan())
    peer = TorchTraining(training.model, lambda x: torch.optim.Adam(x, 3e-3, fused=True))
    ours, theirs = training.start(), None
    times: tuple[list[float], list[float]] = ([], [])
    for batch in batches(steps=steps + 1):
        begun = time.perf_counter()
        _, _, ours = training.step(ours, *vars(batch).values())
        between = time.perf_counter()
        _, theirs = peer.step(theirs, batch)
        times[0].append(between - begun)
        times[1].append(time.perf_counter() - between)
    for name, kept in (("median", statistics.median), ("fastest", min)):
        mine, other = (kept(side[1:]) for side in times)  # the first compiles
        print(
            f"training, {threads} {_plural('thread', threads)}, {name} of {steps} steps: "
            f"Palto {mine * 1e3:.0f} ms, PyTorch {other * 1e3:.0f} ms, {other / mine:.1f}x"
        )


def follow_a_call(seconds: int) -> None:
    """Take the echo out of a call as it comes, frame by frame on one thread, and print the time."""
    palto.set_num_threads(1)
    canceller = echo.Canceller(echo.load_filter()[0])
    frames = seconds * echo.RATE // echo.HOP
    sound = np.random.default_rng(0).normal(size=(2, frames + 1, echo.HOP)).astype(np.float32) * 0.1
    times = []
    for far, mic in zip(*sound, strict=True):
        begun = time.perf_counter()
        canceller.process(far, mic)
        times.append(time.perf_counter() - begun)
    each, took = echo.HOP / echo.RATE, times[1:]  # the first compiles
    print(
        f"a call of {seconds} s, frame by frame, 1 thread: real-time factor "
        f"{sum(took) / frames / each:.3f} (median frame {statistics.median(took) / each:.3f}, "
        f"slowest {max(took) / each:.2f})"
    )


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=int, default=30, help="how long the call is")
    options = parser.parse_args()
    for threads in options.threads:
        compare(options.steps, threads)
    follow_a_call(options.seconds)


if __name__ == "__main__":
    main()
