"""Classify pictures of clothes: the six steps of deep learning, on Fashion-MNIST.

1. prepare data, and change it at random (augmentation), 2. load it in shuffled batches, 3. build a
model out of layers: AlexNet, in the size for small images, 4. choose a loss, 5. backprop on every
iteration, 6. an optimiser step. Then inference, on images never seen.

Augmentation, forward pass, backprop and optimiser are one function, which `palto.compile` makes a
program of at its first call; so is inference.

    python -m palto.recipes.classify --model lenet --epochs 3
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import palto
from palto import data, nn, optim
from palto.data import augment
from palto.formats import safetensors

IMAGE = (28, 28, 1)
CLASSES = 10

#: The first look at what has been learned, if the first epoch takes longer: after so many seconds,
#: at so many test images.
FIRST_LOOK = 30, 2000


class Choice(NamedTuple):
    """A model, and what goes well with it if the command line says nothing else."""

    make: Callable[[], nn.Module]
    epochs: int = 8
    augment: bool = False


MODELS = {
    "logistic_regression": Choice(lambda: nn.models.logistic_regression(784, CLASSES)),
    "fully_connected": Choice(lambda: nn.models.fully_connected(784, (128,), CLASSES)),
    "lenet": Choice(lambda: nn.models.lenet(CLASSES, image=IMAGE)),
    "alexnet": Choice(lambda: nn.models.alexnet(CLASSES, image=IMAGE), 3, augment=True),
    "resnet": Choice(lambda: nn.models.resnet(20, CLASSES, image=IMAGE), 4, augment=True),
    "fast_resnet": Choice(lambda: nn.models.fast_resnet(CLASSES, image=IMAGE), 4, augment=True),
}

console = Console()


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m palto.recipes.classify",
        description="Train a network to tell ten kinds of clothes apart, and test it.",
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="alexnet", help="what to train (%(default)s)")
    add("--epochs", type=int, help="passes over the 60,000 images (alexnet 3, resnets 4, others 8)")
    add("--batch-size", type=int, default=128, help="images in a step (%(default)s)")
    add("--lr", type=float, default=3e-3, help="the highest learning rate (%(default)s)")
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="mirror training images at random (alexnet, resnets)",
    )
    add("--workers", type=int, default=0, help="threads that load batches (%(default)s)")
    add("--seed", type=int, default=0, help="equal seeds give equal runs (%(default)s)")
    add("--data", help="a folder with the four idx.gz files, if you have them")
    add("--save", help="write what was learned to this safetensors file")
    args = parser.parse_args()
    for name in ("epochs", "augment"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(MODELS[args.model], name))
    for name in ("epochs", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main() -> None:
    """Train, evaluate, and say what to try next."""
    args = arguments()
    palto.manual_seed(args.seed)

    train, test = data.fashion_mnist(args.data)
    loader = data.DataLoader(
        train, args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True,
        seed=args.seed,
    )  # fmt: skip
    model = MODELS[args.model].make()
    steps = args.epochs * len(loader)
    optimizer = optim.Adam(
        model, lr=optim.schedules.cosine(args.lr, steps=steps, warmup=min(100, steps // 10))
    )
    changes = ", mirrored at random" if args.augment else ""
    console.print(f"{args.model}, {count(model):,} parameters; {len(train):,} images{changes}")

    @palto.compile
    def step(images: palto.Tensor, labels: palto.Tensor) -> palto.Tensor:
        if args.augment:
            images = augment.random_horizontal_flip(images)
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    @palto.compile
    def predict(images: palto.Tensor) -> palto.Tensor:
        return palto.argmax(model(images), axis=-1)

    def evaluate(images: data.Dataset) -> np.ndarray:
        """Inference: for every image, whether the model's first choice is right."""
        model.eval()
        with palto.no_grad():
            right = [
                predict(batch).numpy() == labels.numpy()
                for batch, labels in data.DataLoader(images, 500)
            ]
        model.train()
        return np.concatenate(right)

    def show(when: str, right: np.ndarray) -> None:
        console.print(
            f"after {when}: {right.mean():.1%} of {len(right):,} test images right, "
            f"{time.perf_counter() - started:.0f} s"
        )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console.print("compiling the training step ...")
    started, looked = time.perf_counter(), False
    try:
        for epoch in range(args.epochs):
            with Progress(*columns, console=console) as progress:
                task = progress.add_task(f"epoch {epoch + 1}", total=len(loader), loss=np.nan)
                loss = np.nan
                for number, (images, labels) in enumerate(loader, 1):
                    now = float(step(images, labels))
                    loss = now if np.isnan(loss) else 0.98 * loss + 0.02 * now
                    progress.update(task, advance=1, loss=loss)
                    if not looked and time.perf_counter() - started > FIRST_LOOK[0]:
                        looked = True
                        some = data.Subset(test, range(min(FIRST_LOOK[1], len(test))))
                        show(f"{number} steps", evaluate(some))
            looked = True
            right = evaluate(test)
            show(f"epoch {epoch + 1}", right)
    except KeyboardInterrupt:
        console.print("stopped; testing what has been learned so far")
        right = evaluate(test)
    report(right, test)
    if args.save:
        safetensors.save(args.save, model.state_dict(), metadata={"model": args.model})
        console.print(f"saved to {args.save}")
    suggest(args)


def count(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(parameter.size for parameter in model.parameters())


def report(right: np.ndarray, test: data.Dataset) -> None:
    """Accuracy by class, the hardest first."""
    labels = np.concatenate([labels.numpy() for _, labels in data.DataLoader(test, 500)])
    console.print(f"test accuracy {right.mean():.2%}, by class:")
    table = Table("class", "right")
    shares = [(right[labels == k].mean(), name) for k, name in enumerate(test.classes)]
    for share, name in sorted(shares):
        table.add_row(name, f"{share:.1%}")
    console.print(table)


def suggest(args: argparse.Namespace) -> None:
    """What to try next."""
    console.print("\nTry next:")
    console.print(
        f'  make run ARGS="--model {args.model} --epochs {args.epochs * 3}"   train longer'
    )
    if args.augment:
        console.print('  make run ARGS="--no-augment"   learn from the images as they are')
    if args.model == "alexnet":
        console.print('  make run ARGS="--model lenet"   a much smaller network')
        console.print("  .venv/bin/palto train --preset alexnet   the full run, with a report")
    else:
        console.print("  make run   AlexNet")
    console.print('  make run ARGS="--help"   all choices')


if __name__ == "__main__":
    main()
