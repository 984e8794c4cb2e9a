"""Whether Winograd's convolutions learn as well as direct ones: a CNN on Fashion-MNIST, both ways.

    python benchmarks/winograd.py --epochs 2 --seeds 0 1 --kernel 3

For each seed the same weights and batches, first directly, then in Winograd's way: the mean loss of
the last 200 steps, the accuracy on the 10,000 test images, and the seconds of training.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

import palto
from palto import data, nn, optim

BATCH, RATE = 128, 1e-3


def cnn(kernel: int) -> nn.Module:
    """A network for Fashion-MNIST; of kernels of 3 x 3, the convolutional one of `make bench`."""
    border = kernel // 2
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel, padding=border), nn.ReLU(),
        nn.Conv2d(32, 64, kernel, padding=border), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, kernel, padding=border), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(7 * 7 * 128, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def learned(epochs: int, seed: int, kernel: int) -> tuple[float, float, float]:
    """The last losses, the test accuracy and the seconds of a training run."""
    palto.manual_seed(seed)
    train, test = data.fashion_mnist()
    loader = data.DataLoader(train, BATCH, shuffle=True, drop_last=True, seed=seed)
    model = cnn(kernel)
    schedule = optim.schedules.cosine(RATE, steps=epochs * len(loader), warmup=50)
    optimizer = optim.Adam(model, lr=schedule)

    @palto.compile
    def step(images: palto.Tensor, labels: palto.Tensor) -> palto.Tensor:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    @palto.compile
    def predict(images: palto.Tensor) -> palto.Tensor:
        return palto.argmax(model(images), axis=-1)

    begun, losses = time.perf_counter(), []
    for _ in range(epochs):
        losses += [float(step(images, labels)) for images, labels in loader]
    seconds = time.perf_counter() - begun
    model.eval()
    with palto.no_grad():
        right = [predict(x).numpy() == y.numpy() for x, y in data.DataLoader(test, 500)]
    return float(np.mean(losses[-200:])), float(np.concatenate(right).mean()), seconds


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=2, help="of each training (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of weights (0 1)")
    parser.add_argument(
        "--kernel", type=int, choices=(3, 5), default=3, help="a kernel's side (%(default)s)"
    )
    options = parser.parse_args()
    for seed in options.seeds:
        for choice, name in (("0", "direct"), ("1", "Winograd")):
            os.environ["PALTO_WINOGRAD"] = choice
            loss, accuracy, seconds = learned(options.epochs, seed, options.kernel)
            print(f"seed {seed}, {name}: loss {loss:.4f}, {accuracy:.2%}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
