"""Commands that make a run, go on with it, and use it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from palto.train.machines import Machines
from palto.train.run import (
    PRESETS,
    REPORT_FILE,
    Config,
    Examples,
    PresetName,
    Run,
    open_examples,
)
from palto.train.trainer import Trainer


@dataclass(frozen=True)
class Train(Machines, Config):
    """Train a model on a data set or on your own pictures.

    On Fashion-MNIST, with all defaults: palto train

    The full run, AlexNet with augmentation: palto train --preset alexnet

    A preset is a set of other defaults, which `palto train --preset alexnet --help` shows. Options
    beside it count as always: palto train --preset alexnet --epochs 5

    On a folder with one subfolder for each class: palto train photos/ --size 64

    On a table: palto train table.csv --target price

    On four GPUs: palto train --executor xla --devices 4

    Better: palto train --model lenet --augment crop flip --epochs 20

    An application instead, the self-driving car, the echo canceller or the chat model: palto train
    drive --help, palto train echo --help, palto train chat --help
    """

    data: Positional[str] = "fashion-mnist"
    """A folder of images by class, a .csv, .npz, .zip, .tar.gz, or a name from `palto data`."""
    preset: PresetName | None = None
    """Defaults that go well together, named by their model."""
    out: Path | None = None
    """The run's folder; by default a new one in runs/."""

    def run(self) -> int:
        """Do it."""
        names = [field.name for field in dataclasses.fields(Config)]
        config = Config(**{name: getattr(self, name) for name in names})
        if self.processes is not None and self.out is None:
            raise ValueError("several processes share the run's folder: name it with --out")
        executor = self.meet()
        examples = open_examples(config)
        if executor.rank == 0:
            print(_described(config, examples))
        folder = self.out or _new_folder(config)
        run = Run.create(folder, config, examples, executor=executor)
        return _finish(run, run.fit(examples, executor=executor))


@dataclass(frozen=True)
class Resume(Machines):
    """Go on with a run that was stopped, exactly where it was."""

    run_folder: Positional[Path]
    """The run's folder."""

    def run(self) -> int:
        """Do it."""
        executor = self.meet()
        run = Run.open(self.run_folder)
        return _finish(run, run.fit(run.examples(), resume=True, executor=executor))


@dataclass(frozen=True)
class Evaluate:
    """Measure a run's best weights on its test examples, or on other data.

    Other data is measured on as a whole, or on its test part where it has one. A table becomes
    numbers in the way that the run has learned: palto evaluate runs/my-run --data other.csv
    """

    run_folder: Positional[Path]
    """The run's folder."""
    data: str | None = None
    """Other data than the run's own."""

    def run(self) -> int:
        """Do it."""
        run = Run.open(self.run_folder)
        result = run.evaluate(run.examples(self.data))
        for name, value in result.measures.items():
            print(f"{name.replace('_', ' ')}: {_shown(name, value)}")
        if result.confusion is not None:
            table = Table("class", "examples", "found", "right when named")
            truths, guesses = result.confusion.sum(1), result.confusion.sum(0)
            for k, name in enumerate(run.classes):
                hits = result.confusion[k, k]
                table.add_row(
                    name, f"{truths[k]:,}", _share(hits, truths[k]), _share(hits, guesses[k])
                )
            Console().print(table)
        return 0


@dataclass(frozen=True)
class Predict:
    """Say what pictures show, or what the rows of a table lead to.

    Classes come with the probability of each: palto predict runs/my-run new.jpg

    A table (.csv) has the columns that the run learned from, in any order, and an answer for each
    line. An empty cell is unknown. Numbers are in the unit of the column that is predicted: palto
    predict runs/my-run rows.csv
    """

    run_folder: Positional[Path]
    """The run's folder."""
    files: Positional[tuple[Path, ...]]
    """Pictures or tables, as the run was trained on, or folders of them."""
    top: int = 3
    """How many classes to name."""
    json: bool = False
    """One JSON object a line, for other programs."""

    def run(self) -> int:
        """Do it."""
        run = Run.open(self.run_folder)
        predictor = run.predictor()
        if not self.files:
            raise ValueError(
                f"name {predictor.kind} to predict, or folders of them: palto predict "
                f"{self.run_folder} {predictor.kind.upper()}"
            )
        failed = 0
        for file, line, answer in predictor.predict(self.files, complain=_complain):
            if answer is None:
                failed += 1
                continue
            said = predictor.describe(answer)
            if self.json:
                place = {"file": str(file)} | ({} if line is None else {"line": line})
                print(json.dumps(place | said))
                continue
            if predictor.classes:
                named = list(said["probabilities"].items())[: self.top]
                text = ", ".join(f"{name} {p:.1%}" for name, p in named)
            else:
                text = str(np.float32(said["value"]))
            print(f"{file}{'' if line is None else f', line {line}'}: {text}")
        return 1 if failed else 0


@dataclass(frozen=True)
class Profile:
    """Show what a run's training step does, the slowest part first, and how fast this machine is.

    Each line is a loop around some operations, or a matrix product; `of peak` says how near it
    comes to what the machine can do. The run itself stays as it is.

    The step that training takes: palto profile runs/my-run

    What a prediction costs: palto profile runs/my-run --inference --batch-size 1
    """

    run_folder: Positional[Path]
    """The run's folder."""
    inference: bool = False
    """The step of evaluation instead."""
    batch_size: int | None = None
    """Examples in the step; by default as many as the run's own steps have."""

    def run(self) -> int:
        """Do it."""
        run = Run.open(self.run_folder)
        explanation = run.explain(
            run.examples(), training=not self.inference, batch_size=self.batch_size
        )
        console = Console()
        print(explanation.profile(console.width if console.is_terminal else None))
        return 0


@dataclass(frozen=True)
class Report:
    """Write a run's page anew."""

    run_folder: Positional[Path]
    """The run's folder."""

    def run(self) -> int:
        """Do it."""
        run = Run.open(self.run_folder)
        print(str(run.write_report(run.load_best(), run.examples())))
        return 0


def preset_named(words: list[str]) -> Train:
    """The defaults of `palto train`: those of the preset that is named among the words, if any."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset", choices=PRESETS)
    try:
        name = parser.parse_known_args(words)[0].preset
    except argparse.ArgumentError:  # the command line itself says what is wrong
        name = None
    return Train() if name is None else Train(**vars(PRESETS[name]), preset=name)


def _described(config: Config, examples: Examples) -> str:
    train, test = examples.train, examples.test
    kind = f"{len(train.classes)} classes" if train.classes else "numbers to predict"
    return (
        f"{config.data}: {len(train):,} examples to learn from, {len(test):,} to measure on, "
        f"{kind}; {config.model}"
    )


def _new_folder(config: Config) -> Path:
    """A new folder in runs/, named by the time and what is done."""
    source = Path(config.data).stem or "data"
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.model}-{source}"
    folder = Path("runs") / stem
    number = 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{stem}-{number}"
    return folder


def _finish(run: Run, trainer: Trainer) -> int:
    if trainer.executor.rank:
        return 130 if trainer.was_interrupted else 0
    if trainer.was_interrupted:
        print(f"stopped; go on with: palto resume {run.folder}")
        return 130
    print(f"report: {run.folder / REPORT_FILE}")
    if run.encoder is not None:
        print(f"try it: palto predict {run.folder} ROWS.csv")
    elif run.is_classification and len(run.shape) == 3:
        print(f"try it: palto predict {run.folder} PICTURE ...")
    return 0


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _shown(name: str, value: float) -> str:
    return f"{value:.2%}" if name == "accuracy" or name.startswith("top") else f"{value:.4f}"
