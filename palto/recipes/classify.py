"""Classify pictures of clothes: the six steps of deep learning, on Fashion-MNIST.

1. prepare data, 2. load it in shuffled batches, 3. build a model out of layers, 4. choose a loss,
5. backprop on every iteration, 6. an optimiser step. Then inference, on images never seen.

    python -m palto.recipes.classify --model lenet --epochs 3
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

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
from palto.formats import safetensors

IMAGE = (28, 28, 1)
CLASSES = 10

MODELS: dict[str, Callable[[], nn.Module]] = {
    "logistic_regression": lambda: nn.models.logistic_regression(784, CLASSES),
    "fully_connected": lambda: nn.models.fully_connected(784, (128,), CLASSES),
    "lenet": lambda: nn.models.lenet(CLASSES, image=IMAGE),
    "alexnet": lambda: nn.models.alexnet(CLASSES, image=IMAGE),
    "resnet": lambda: nn.models.resnet(20, CLASSES, image=IMAGE),
}

console = Console()


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m palto.recipes.classify",
        description="Train a network to tell ten kinds of clothes apart, and test it.",
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="fully_connected", help="what to train (%(default)s)")
    add("--epochs", type=int, default=8, help="passes over the 60,000 images (%(default)s)")
    add("--batch-size", type=int, default=128, help="images in a step (%(default)s)")
    add("--lr", type=float, help="the highest learning rate (3e-3; alexnet 1e-3)")
    add("--workers", type=int, default=0, help="threads that load batches (%(default)s)")
    add("--seed", type=int, default=0, help="equal seeds give equal runs (%(default)s)")
    add("--data", help="a folder with the four idx.gz files, if you have them")
    add("--save", help="write what was learned to this safetensors file")
    args = parser.parse_args()
    for name in ("epochs", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.lr is None:
        args.lr = 1e-3 if args.model == "alexnet" else 3e-3
    return args


def main() -> None:
    """Train, evaluate, and say what to try next."""
    args = arguments()
    started = time.perf_counter()
    palto.manual_seed(args.seed)

    train, test = data.fashion_mnist(args.data)
    loader = data.DataLoader(
        train, args.batch_size, shuffle=True, num_workers=args.workers, drop_last=True,
        seed=args.seed,
    )  # fmt: skip
    model = MODELS[args.model]()
    steps = args.epochs * len(loader)
    optimizer = optim.Adam(
        model, lr=optim.schedules.cosine(args.lr, steps=steps, warmup=min(100, steps // 10))
    )
    console.print(f"{args.model}, {count(model):,} parameters; {len(train):,} images")

    @palto.compile
    def step(images: palto.Tensor, labels: palto.Tensor) -> palto.Tensor:
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    try:
        for epoch in range(args.epochs):
            with Progress(*columns, console=console) as progress:
                task = progress.add_task(f"epoch {epoch + 1}", total=len(loader), loss=np.nan)
                loss = np.nan
                for images, labels in loader:
                    now = float(step(images, labels))
                    loss = now if np.isnan(loss) else 0.98 * loss + 0.02 * now
                    progress.update(task, advance=1, loss=loss)
            right = evaluate(model, test)
            console.print(
                f"after epoch {epoch + 1}: {right.mean():.1%} of {len(test):,} test images right, "
                f"{time.perf_counter() - started:.0f} s"
            )
    except KeyboardInterrupt:
        console.print("stopped; testing what has been learned so far")
        right = evaluate(model, test)
    report(right, test)
    if args.save:
        safetensors.save(args.save, model.state_dict(), metadata={"model": args.model})
        console.print(f"saved to {args.save}")
    suggest(args)


def count(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(parameter.size for parameter in model.parameters())


def evaluate(model: nn.Module, test: data.Dataset) -> np.ndarray:
    """Inference: for every test image, whether the model's first choice is right."""
    model.eval()
    predict = palto.compile(lambda images: model(images).argmax(-1))
    with palto.no_grad():
        right = [
            predict(images).numpy() == labels.numpy()
            for images, labels in data.DataLoader(test, 500)
        ]
    model.train()
    return np.concatenate(right)


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
    if args.model == "fully_connected":
        console.print('  make run ARGS="--model lenet"              a convolutional network')
    console.print(
        f'  make run ARGS="--model {args.model} --epochs {args.epochs * 3}"   train longer'
    )
    console.print('  make run ARGS="--help"                     all choices')


if __name__ == "__main__":
    main()
