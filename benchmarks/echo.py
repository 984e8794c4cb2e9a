"""The training of the echo canceller beside the same recipe in PyTorch, step by step in turn.

    python benchmarks/echo.py
    python benchmarks/echo.py --steps 200 --frames 40 100 200

Both take signals of the same length, get their spectra at 64 frequencies, run the filter over all
frames with truncated backprop, clip, and take a step of Adam. Sound is noise, for its kind does not
change the time. The median of the steps counts, on one thread each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch

import palto
from palto.recipes import echo

functional, layers = torch.nn.functional, torch.nn


def signals(frames: int, count: int = 16) -> np.ndarray:
    """Far end, microphone and echo, float32 (3, count, time)."""
    rng = np.random.default_rng(0)
    length = (frames - 1) * echo.HOP + echo.WINDOW
    far = rng.normal(size=(count, length)) * 0.1
    response = rng.normal(size=(count, 1024)) * np.exp(-np.arange(1024) / 200) * 0.1
    heard = np.fft.irfft(np.fft.rfft(far, 2 * length) * np.fft.rfft(response, 2 * length))
    heard = heard[:, :length]
    mic = heard + rng.normal(size=heard.shape) * 0.01
    return np.stack([far, mic, heard]).astype(np.float32)


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

    def step(self, sound: np.ndarray, bins: np.ndarray) -> float:
        """One step; its loss."""
        count, rows = sound.shape[1], sound.shape[1] * len(bins)
        spectra = torch.stft(
            torch.from_numpy(sound).flatten(0, 1), echo.WINDOW, echo.HOP, window=self.window,
            center=False, return_complex=True,
        )  # fmt: skip
        spectra = spectra[:, torch.from_numpy(bins)].view(3, rows, -1)
        far, mic, wanted = spectra.permute(0, 2, 1)
        far = functional.pad(torch.view_as_real(far), (0, 0, 0, 0, echo.TAPS - 1, 0))
        far = torch.view_as_complex(far)
        h = before = torch.zeros((rows, echo.TAPS), dtype=torch.complex64)
        memory = (torch.zeros((2 * rows, 18)),) * 2
        found = []
        for t in range(len(mic)):
            if t % echo.TRUNCATED == 0:
                h, before, memory = h.detach(), before.detach(), [x.detach() for x in memory]
            x = far[t : t + echo.TAPS].T
            level = torch.sqrt(_power(x).mean(1, keepdim=True) + echo.SILENCE)
            error = (mic[t] - (x * h).sum(1))[:, None] / level
            size = torch.sqrt(_power(error) + 1e-8)
            seen = torch.cat([x / level, error * (torch.log1p(size) / size), h - before], 1)
            gain, memory = self.gain(seen, memory)
            moved = h + gain * error
            moved = torch.where(_power(moved).sum(1, keepdim=True) < echo.ENERGY, moved, 0.0)
            h, before = moved, h
            found.append((x * h).sum(1))
        parts = (len(mic), count, len(bins))
        left = _power(torch.stack(found) - wanted).view(parts).sum((0, 2))
        losses = 10 * torch.log10((left + 1e-6) / (_power(wanted).view(parts).sum((0, 2)) + 1e-6))
        kept = losses.detach() < echo.DIVERGED
        loss = torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)
        self.optimizer.zero_grad()
        loss.backward()
        layers.utils.clip_grad_norm_(self.gain.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def _power(x: Any) -> Any:
    return x.real.square() + x.imag.square()


# --- Side by side --------------------------------------------------------------------------------


def measure(frames: int, steps: int) -> tuple[float, float]:
    """The median seconds of a step, Palto's and PyTorch's."""
    with tempfile.TemporaryDirectory() as folder:
        training = echo.Training(folder, echo.Plan())
        peer = TorchTraining(training.model, lambda x: torch.optim.Adam(x, 2e-3, fused=True))
        sound, rng = signals(frames), np.random.default_rng(1)
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(steps + 2):
            bins = rng.permutation(echo.BINS)[:64]
            for side, step in zip(times, (training.step, peer.step), strict=True):
                begun = time.perf_counter()
                step(sound, bins)
                if number >= 2:  # the first compiles
                    side.append(time.perf_counter() - begun)
    ours, theirs = (statistics.median(side) for side in times)
    return ours, theirs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--frames", type=int, nargs="+", default=[40, 100, 200])
    options = parser.parse_args()
    palto.set_num_threads(1)
    torch.set_num_threads(1)
    for frames in options.frames:
        ours, theirs = measure(frames, options.steps)
        print(
            f"{frames} frames, median of {options.steps} steps: Palto {ours * 1e3:.0f} ms, PyTorch "
            f"{theirs * 1e3:.0f} ms, {theirs / ours:.1f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
