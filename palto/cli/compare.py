"""The command that compares hand-made features with a network on labelled images."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from tyro.conf import Positional

from palto import data
from palto.comparison import METHODS, RESULTS_FILE, Job, Outcome, Results
from palto.data.sources.named import TABLES
from palto.draw import learning_curves, learning_gain, time_against_accuracy
from palto.extras import require
from palto.recipes import compare
from palto.recipes.compare import Images, Plan

#: A first look, where nothing else is asked for.
_QUICK: dict[str, Any] = {
    "sizes": (100, 300, 1000),
    "seeds": 1,
    "methods": ("hog-logistic", "hog-svm", "network", "network-augmented"),
    "steps": 300,
    "epochs": 5,
}
_QUICK_TEST = 2000


@dataclass(frozen=True)
class Compare(Plan):
    """Compare hand-made features with a network that learns its own, end to end.

    Both get the same labelled images, from few to all, and answer for the same test images. The
    classical pipeline is HOG (histograms of oriented gradients) or the pixels, principal
    components, and a classifier of scikit-learn, whose options are chosen on held-out training
    images. The network learns with and without augmentation, so the run also says what augmentation
    is worth where labels are scarce.

    A first look, in about two minutes: palto compare --quick

    On Fashion-MNIST, all of it: palto compare --out comparison

    On your own images, one subfolder for each class: palto compare photos/ --size 64

    Augmentation alone: palto compare --methods network network-augmented --sizes 1000 10000

    The folder gets results.json, results.md and pictures. Each result is kept at once: Ctrl-C
    stops, and the same command goes on. More sizes, seeds or methods add to what is there. Needs:
    pip install 'palto[compare]'
    """

    data: Positional[str] = "fashion-mnist"
    """A folder of images by class, an .npz, .zip, .tar.gz, or a name from `palto data`."""
    out: Path | None = None
    """The folder of the results: comparison, or comparison-quick."""
    quick: bool = False
    """A first look: fewer and smaller sizes, one seed, fewer steps, 2,000 test images."""
    size: int | None = None
    """Height and width that images of a folder are brought to."""
    channels: Literal[1, 3] | None = None
    """Colours of a folder's images: 1 for grey, 3 for colour."""
    skip_bad_images: bool = False
    """Leave out images that cannot be read, instead of stopping."""
    validation: float = 0.2
    """The share of the images to measure on, where the data has no test part."""

    def run(self) -> int:
        """Do it."""
        for module in ("matplotlib", "skimage", "sklearn"):
            require(module, "compare", "palto compare")
        if self.data.lower().endswith(TABLES):
            raise ValueError(compare.NOT_PICTURES)
        plan, console = self._plan(), Console()
        learn, test = data.open_source(
            self.data,
            size=self.size,
            channels=self.channels,
            on_error="skip" if self.skip_bad_images else "raise",
            validation=self.validation,
        )
        images = Images.of(learn, test)
        if self.quick:
            images = images.tested_on(_QUICK_TEST)
        count, classes = len(images.train), len(images.train.classes)
        console.print(
            f"{self.data}: {count:,} images to learn from, {len(images.test):,} to measure on, "
            f"{classes} classes",
            soft_wrap=True,
        )
        out = self.out or Path("comparison-quick" if self.quick else "comparison")
        total = len(compare.jobs(plan, count, classes))
        try:
            with _Watch(console, total) as watch:
                results = compare.run(images, plan, out, name=self.data, watch=watch.told)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on")
            if (out / RESULTS_FILE).exists():
                write_report(Results.open(out / RESULTS_FILE), out)
            return 130
        for rows in (accuracy_table(results), time_table(results)):
            console.print(_table(list(rows)))
        gains = list(gain_table(results))
        if len(gains) > 1:
            console.print(_table(gains))
        console.print(f"all of it, with pictures: {write_report(results, out)}", soft_wrap=True)
        return 0

    def _plan(self) -> Plan:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Plan)}
        if self.quick:
            usual = dataclasses.asdict(Plan())
            values |= {name: x for name, x in _QUICK.items() if values[name] == usual[name]}
        return Plan(**values)


class _Watch:
    """Shows progress: a line for each finished job, and what is being done."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("{task.fields[left]}"),
            console=console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total, left="")

    def __enter__(self) -> _Watch:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def told(self, job: Job, outcome: Outcome | None, left: int, seconds: float | None) -> None:
        """See `compare.run`."""
        rest = "" if seconds is None else f"about {_duration(seconds)} left"
        self._bar.update(self._task, completed=self._total - left, left=rest)
        if outcome is None:
            self._bar.update(self._task, description=str(job))
            return
        self._console.print(
            f"{job}: {outcome.accuracy:.2%}, learned in {_duration(outcome.train_seconds)}"
            + (f"; {rest}" if left and rest and not self._console.is_terminal else ""),
            highlight=False,
            soft_wrap=True,
        )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _table(rows: list[list[str]]) -> Table:
    table = Table(*rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    return table


# --- The report ----------------------------------------------------------------------------------


def write_report(results: Results, folder: Path) -> Path:
    """Write results.md and its pictures, made of the results alone.

    Args:
        results: what `palto.recipes.compare` has found.
        folder: where to.

    Returns:
        The path of results.md.
    """
    setting, about = results.setting, results.about
    title = f"{setting['data']}, {setting['test']:,} test images"
    curves = {
        METHODS[method]: [
            (size, *found)
            for size in results.sizes
            if (found := results.accuracy(method, size)) is not None
        ]
        for method in results.methods
    }
    learning_curves(folder / "learning-curve.svg", curves, title=title)
    times = {
        METHODS[method]: [
            (statistics.fmean(x.train_seconds for x in outcomes), found[0], size)
            for size in results.sizes
            if (outcomes := results.of(method, size)) and (found := results.accuracy(method, size))
        ]
        for method in results.methods
    }
    time_against_accuracy(folder / "time.svg", times, title=title)
    threads = setting["threads"]
    parts = [
        f"# Comparison on {setting['data']}",
        f"{setting['train']:,} images to learn from, {setting['test']:,} to measure on, of shape "
        f"{' x '.join(map(str, setting['image']))}, {len(setting['classes'])} classes. Means over "
        "the seeds, with the standard deviation; * marks the best of a row.",
        _markdown(list(accuracy_table(results))),
        "![Accuracy against the number of labelled examples](learning-curve.svg)",
        f"With {results.sizes[-1]:,} examples, on {threads} thread{'s' * (threads != 1)}. Features "
        "count as training, as does compiling; a support-vector machine uses one thread.",
        _markdown(list(time_table(results))),
        "![Accuracy against the seconds of training](time.svg)",
    ]
    gains = [(size, *gain) for size in results.sizes if (gain := results.gain(size)) is not None]
    if gains:
        pair = {METHODS[m]: curves[METHODS[m]] for m in ("network", "network-augmented")}
        learning_gain(folder / "augmentation.svg", pair, gains, title=title)
        parts += [
            f"What augmentation ({', '.join(setting['augment'])}) is worth to the network:",
            _markdown(list(gain_table(results))),
            "![Accuracy with and without augmentation, and the gain](augmentation.svg)",
        ]
    parts += [
        f"The network is {setting['model']}; it takes {setting['epochs']} epochs, and at least "
        f"{setting['steps']:,} steps. "
        f"Measured on {about['date']}; {about['processor']}; Palto {about['palto']}, Python "
        f"{about['python']}.",
    ]
    path = folder / "results.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def accuracy_table(results: Results) -> Iterator[list[str]]:
    """Accuracies as text: the methods, then a row for each number of examples, the best marked *.

    Means over the seeds, and the standard deviation where there are several.
    """
    yield ["examples", *(METHODS[method] for method in results.methods)]
    for size in results.sizes:
        row, best = [f"{size:,}"], results.best(size)
        for method in results.methods:
            found = results.accuracy(method, size)
            mark = " *" if method == best else ""
            row.append("" if found is None else _share(found) + mark)
        yield row


def time_table(results: Results) -> Iterator[list[str]]:
    """Accuracy and seconds of each method with the most examples, as text; headings first."""
    size = results.sizes[-1]
    yield ["method", "accuracy", "training", "choosing options", "answers for the test images"]
    for method in results.methods:
        if found := results.of(method, size):
            seconds = [
                statistics.fmean(getattr(x, f"{part}_seconds") for x in found)
                for part in ("train", "choose", "predict")
            ]
            accuracy = statistics.fmean(x.accuracy for x in found)
            shown = [f"{x:.1f} s" if x else "-" for x in seconds]
            yield [METHODS[method], f"{100 * accuracy:.2f} %", *shown]


def gain_table(results: Results) -> Iterator[list[str]]:
    """What augmentation adds to the network, in points of a hundred, as text; headings first."""
    yield ["examples", "without", "with augmentation", "gain in points"]
    for size in results.sizes:
        gain = results.gain(size)
        pair = [results.accuracy(m, size) for m in ("network", "network-augmented")]
        if gain is not None:
            spread = f" ± {100 * gain[1]:.2f}" if gain[1] else ""
            yield [f"{size:,}", *(_share(x) for x in pair if x), f"{100 * gain[0]:+.2f}{spread}"]


def _share(found: tuple[float, float]) -> str:
    """A mean accuracy, and the deviation where there are several runs."""
    mean, deviation = found
    return f"{100 * mean:.2f} %" + (f" ± {100 * deviation:.1f}" if deviation else "")


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
