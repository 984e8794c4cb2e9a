"""A run: from a configuration to a trained model in a folder, and back from the folder."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from palto import __version__
from palto.compiler import Explanation
from palto.compiler.executor import Executor
from palto.data import DataLoader, Dataset, TableDataset, TableEncoder, augment, open_source
from palto.data.sources.tables import Task
from palto.nn import functional, models
from palto.nn.convolution import Conv2d
from palto.nn.module import Module
from palto.optim import SGD, Adam, AdamW, Optimizer, schedules
from palto.tensor import Tensor, random
from palto.tensor import functions as F
from palto.train.inference import PictureClassifier, Prediction, Predictor, TablePredictor
from palto.train.metrics import Classification, Evaluation, Regression
from palto.train.report import Mistake, Report
from palto.train.trainer import Trainer

ModelName = Literal[
    "logistic_regression", "fully_connected", "lenet", "alexnet", "resnet", "fast_resnet"
]  # fmt: skip
AugmentName = Literal["crop", "flip", "rotation", "jitter", "erasing", "noise", "mixup"]
PresetName = Literal["fast_resnet", "alexnet", "lenet", "fully_connected"]

CONFIG_FILE = "run.json"
REPORT_FILE = "report.html"
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Config:
    """What to learn from, what to train, and how."""

    data: str = "fashion-mnist"
    """A folder of images by class, a .csv, .npz, .zip, .tar.gz, or a name from `palto data`."""
    model: ModelName = "fully_connected"
    """The network."""
    epochs: int = 8
    """Passes over the training examples."""
    batch_size: int = 128
    """Examples in a step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """How gradients move the weights."""
    lr: float | None = None
    """The highest learning rate, reached after a short rise, left along a cosine; by default 3e-3,
    and 1e-3 for alexnet on images above 64 pixels."""
    weight_decay: float = 0.0
    """How strongly weights are drawn to zero."""
    clip_norm: float | None = None
    """The largest norm of all gradients together."""
    label_smoothing: float = 0.0
    """The share of each label that is spread over all classes."""
    augment: tuple[AugmentName, ...] = ()
    """Change training images at random, in these ways."""
    validation: float = 0.1
    """The share of the training examples to measure on, where the data has no test part."""
    patience: int | None = None
    """Stop after so many epochs without a better result."""
    size: int | None = None
    """Height and width that images of a folder are brought to."""
    channels: Literal[1, 3] | None = None
    """Colours of a folder's images: 1 for grey, 3 for colour."""
    target: str | None = None
    """The column of a table that is to be predicted."""
    task: Task | None = None
    """How the target is predicted: classify takes its cells as classes, regress as numbers."""
    skip_bad_images: bool = False
    """Leave out images that cannot be read, instead of stopping."""
    workers: int = 0
    """Threads that load batches ahead."""
    seed: int = 0
    """Equal seeds give equal runs."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("validation", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be a positive number, got {self.lr}")


#: Named defaults, each for a whole run on Fashion-MNIST.
PRESETS: dict[PresetName, Config] = {
    "fast_resnet": Config(model="fast_resnet", epochs=8, label_smoothing=0.1, augment=("flip",)),
    "alexnet": Config(model="alexnet", epochs=12, augment=("flip",)),
    "lenet": Config(model="lenet", epochs=20, augment=("flip",)),
    "fully_connected": Config(model="fully_connected", epochs=12),
}


@dataclass(frozen=True)
class Examples:
    """What a run learns from and is measured on.

    Attributes:
        train: the training examples.
        test: the others.
        shape: the shape of one input, (H, W, C) for images.
        classes: the names of the labels; none where targets are numbers.
        encoder: how a table became numbers; None for other data.
    """

    train: Dataset
    test: Dataset
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    encoder: TableEncoder | None = None


def open_examples(
    config: Config, encoder: TableEncoder | None = None, *, only_test: bool = False
) -> Examples:
    """The data that a configuration names.

    Args:
        config: names the data, and how it is read.
        encoder: of the table that was learned from, if a table was.
        only_test: measure on all of data that has no test part, instead of dividing it.

    Raises:
        OSError, ValueError, DataUnavailableError: it cannot be found or read; the message says why.
    """
    train, test = open_source(
        config.data,
        size=config.size,
        channels=config.channels,
        target=config.target if encoder is None else None,  # an encoder knows both
        task=config.task if encoder is None else None,
        encoder=encoder,
        on_error="skip" if config.skip_bad_images else "raise",
        validation=0.0 if only_test else config.validation,
        seed=config.seed,
    )
    if test is None and only_test:
        test = train
    if test is None:
        raise ValueError(
            f"{config.data} has no test part, and validation is 0: give a share to measure on, "
            "such as --validation 0.1"
        )
    inputs, _ = train.__getitems__([0])
    found = train.encoder if isinstance(train, TableDataset) else None
    return Examples(train, test, inputs.shape[1:], train.classes, found)


def build_model(name: ModelName, shape: tuple[int, ...], outputs: int) -> Module:
    """A model for inputs of one shape.

    Raises:
        ValueError: the model does not take such inputs.
    """
    features = math.prod(shape)
    if name == "logistic_regression":
        return models.logistic_regression(features, outputs)
    if name == "fully_connected":
        return models.fully_connected(features, (128,), outputs)
    if len(shape) != 3:
        raise ValueError(
            f"{name} wants images, this data has inputs of shape {shape}; choose fully_connected "
            "or logistic_regression"
        )
    image = (shape[0], shape[1], shape[2])
    if name == "lenet":
        return models.lenet(outputs, image=image)
    if name == "alexnet":
        return models.alexnet(outputs, image=image)
    if name == "fast_resnet":
        return models.fast_resnet(outputs, image=image)
    return models.resnet(20 if max(image) <= 64 else 18, outputs, image=image)


def build_augmentation(
    names: tuple[AugmentName, ...], classes: int, shape: tuple[int, ...]
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """One function of (images, labels) that changes them in the named ways, in this order.

    Raises:
        ValueError: the inputs are no images.
    """
    if not names:
        return None
    if len(shape) != 3:
        raise ValueError(f"augmentation is for images; this data has inputs of shape {shape}")
    border = max(shape[0] // 12, 1)

    def change(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for name in names:
            if name == "crop":
                images = augment.random_crop(images, padding=border)
            elif name == "flip":
                images = augment.random_horizontal_flip(images)
            elif name == "rotation":
                images = augment.random_rotation(images, 10)
            elif name == "jitter":
                images = augment.color_jitter(images, brightness=0.2, contrast=0.2)
            elif name == "erasing":
                images = augment.random_erasing(images)
            elif name == "noise":
                images = augment.gaussian_noise(images, 0.02)
            else:
                images, labels = augment.mixup(images, labels, alpha=0.2, classes=classes)
        return images, labels

    return change


class Run:
    """A training run and its folder.

    Args:
        folder: where everything of the run lies.
        config: what was asked for.
        shape: the shape of one input.
        classes: the names of the labels.
        command: the command that began it.
        encoder: how the table that it learns from becomes numbers, if it is a table.

    Raises:
        ValueError: the model or the augmentation does not take such inputs.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Config,
        shape: tuple[int, ...],
        classes: tuple[str, ...],
        command: str,
        encoder: TableEncoder | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.config = config
        self.shape = shape
        self.classes = classes
        self.command = command
        self.encoder = encoder
        random.manual_seed(config.seed)
        self.model = build_model(config.model, shape, len(classes) or 1)
        self._augmentation = build_augmentation(config.augment, len(classes), shape)

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        config: Config,
        examples: Examples,
        *,
        executor: Executor | None = None,
    ) -> Run:
        """Begin a run in a folder that has none yet.

        Of several processes the first one begins it, and the others take part.

        Raises:
            FileExistsError: the folder holds a run.
            ValueError: the model, the augmentation or the loss does not take the examples; nothing
                is written then.
            OSError: the folder cannot be written to.
        """
        if config.label_smoothing and not examples.classes:
            raise ValueError("label_smoothing is for classes, this data has numbers: leave it out")
        path = Path(folder)
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        run = cls(path, config, examples.shape, examples.classes, command, examples.encoder)
        if executor is not None and executor.rank:
            return run
        if (path / CONFIG_FILE).exists():
            raise FileExistsError(
                f"{path} holds a run already; go on with it by `palto resume {path}`, or choose "
                "another folder with --out"
            )
        path.mkdir(parents=True, exist_ok=True)
        _write_json(
            path / CONFIG_FILE,
            {
                "config": dataclasses.asdict(config),
                "shape": list(run.shape),
                "classes": list(run.classes),
                "encoder": None if run.encoder is None else run.encoder.as_dict(),
                "command": run.command,
                "versions": versions(),
                "licence": examples.train.licence,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
        )
        return run

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """A run that was begun before.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: its description is damaged.
        """
        path = Path(folder) / CONFIG_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no run ({CONFIG_FILE} is missing); a run's folder is what "
                "`palto train` names at its end"
            )
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            config = Config(**saved["config"] | {"augment": tuple(saved["config"]["augment"])})
            encoder = saved.get("encoder")  # runs of Palto's first days have none
            return cls(folder, config, tuple(saved["shape"]), tuple(saved["classes"]),
                       saved["command"], encoder and TableEncoder.from_dict(encoder))  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged or of another version: {error}") from None

    @property
    def is_classification(self) -> bool:
        """Whether the targets are labels."""
        return bool(self.classes)

    def trainer(
        self, steps: int, *, show: bool = True, executor: Executor | None = None
    ) -> Trainer:
        """The trainer for this run's model, its checkpoints in the run's folder.

        Args:
            steps: the length of the whole run, which the learning rate follows.
            show: print progress.
            executor: who runs it; by default what `PALTO_EXECUTOR` says.
        """
        config = self.config
        highest = config.lr
        if highest is None:
            is_large = config.model == "alexnet" and max(self.shape) > 64
            highest = 1e-3 if is_large else 3e-3
        rate = schedules.cosine(highest, steps=steps + 1, warmup=min(100, steps // 10))
        makers: dict[str, Callable[[], Optimizer]] = {
            "adam": lambda: Adam(self.model, lr=rate, weight_decay=config.weight_decay),
            "adamw": lambda: AdamW(self.model, lr=rate, weight_decay=config.weight_decay),
            "sgd": lambda: SGD(
                self.model, lr=rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
            ),
        }
        return Trainer(
            self.model,
            makers[config.optimizer](),
            self._loss(),
            self._task(),
            augment=self._augmentation,
            clip_norm=config.clip_norm,
            folder=self.folder / "checkpoints",
            patience=config.patience,
            show=show,
            executor=executor,
        )

    def _task(self) -> Classification | Regression:
        if self.is_classification:
            return Classification(len(self.classes))
        return Regression(1.0 if self.encoder is None else self.encoder.scale)

    def _loss(self) -> Callable[..., Tensor]:
        if not self.is_classification:

            def squared_error(
                outputs: Tensor, targets: Tensor, *, reduction: str = "mean"
            ) -> Tensor:
                targets = F.reshape(targets, outputs.shape)
                return functional.mse_loss(outputs, targets, reduction=reduction)

            return squared_error
        smoothing = self.config.label_smoothing

        def cross_entropy(outputs: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
            share = smoothing if reduction == "mean" else 0.0  # measured on the labels themselves
            return functional.cross_entropy(
                outputs, targets, label_smoothing=share, reduction=reduction
            )

        return cross_entropy

    def examples(self, data: str | None = None) -> Examples:
        """The run's own data, or other data of the same kind, to be measured on.

        Args:
            data: a name or a path. What has no test part is measured on as a whole.

        Raises:
            OSError, ValueError, DataUnavailableError: it cannot be found or read, or is of another
                kind; the message says why.
        """
        if data is None:
            return open_examples(self.config, self.encoder)
        config = dataclasses.replace(self.config, data=data)
        examples = open_examples(config, self.encoder, only_test=True)
        if (examples.shape, examples.classes) != (self.shape, self.classes):
            raise ValueError(
                f"{data} has inputs of shape {examples.shape} and {len(examples.classes)} classes, "
                f"the run {self.shape} and {len(self.classes)}: name data of the same kind"
            )
        return examples

    def fit(
        self,
        examples: Examples,
        *,
        resume: bool = False,
        show: bool = True,
        executor: Executor | None = None,
    ) -> Trainer:
        """Train to the end, or go on doing so, and write the report.

        Of several processes the first one writes it.

        Raises:
            ValueError: the checkpoint is of another model or of other data.
            TrainingStopped: a loss or a gradient is not finite.
        """
        config = self.config
        train = DataLoader(
            examples.train,
            min(config.batch_size, len(examples.train)),
            shuffle=True,
            num_workers=config.workers,
            drop_last=True,
            seed=config.seed,
        )
        trainer = self.trainer(config.epochs * len(train), show=show, executor=executor)
        if resume:
            trainer.resume(train)
        trainer.fit(train, _batches(examples.test, config), epochs=config.epochs)
        if trainer.history and trainer.executor.rank == 0:
            self.write_report(trainer, examples)
        return trainer

    def load_best(self) -> Trainer:
        """A trainer whose model holds the best weights so far.

        Raises:
            FileNotFoundError: nothing has been saved yet.
        """
        trainer = self.trainer(1, show=False)
        assert trainer.checkpoints is not None
        checkpoint = trainer.checkpoints.best()
        if checkpoint is None:
            raise FileNotFoundError(f"{self.folder} holds no checkpoint yet; train it first")
        self.model.load_state_dict(checkpoint.tensors["model"])
        newest = trainer.checkpoints.newest()
        assert newest is not None
        trainer.history = list(newest.state["history"])
        trainer.notes = list(newest.state["notes"])
        self.model.eval()
        return trainer

    def evaluate(self, examples: Examples) -> Evaluation:
        """Measure the best weights on the test examples."""
        return self.load_best().evaluate(_batches(examples.test, self.config))

    def explain(
        self, examples: Examples, *, training: bool = True, batch_size: int | None = None
    ) -> Explanation:
        """Say what a step of training, or of evaluation, does, and how fast.

        Args:
            examples: the data.
            training: whether of training.
            batch_size: the run's own by default.

        Raises:
            ValueError: the batch size is less than 1, or there are fewer examples.
        """
        data = examples.train if training else examples.test
        size = batch_size
        if size is None:
            size = min(self.config.batch_size if training else EVALUATION_BATCH, len(data))
        if not 1 <= size <= len(data):
            raise ValueError(f"batch_size must be from 1 to {len(data)}, got {size}")
        inputs, targets = next(iter(DataLoader(data, size)))
        return self.trainer(1, show=False).explain(inputs, targets, training=training)

    def predict(
        self, files: Iterable[str | os.PathLike[str]], *, complain: Callable[[str], None]
    ) -> Iterator[Prediction]:
        """What pictures show, or what the rows of tables lead to; see `Predictor.predict`.

        Raises:
            FileNotFoundError: a file is not there, or nothing has been trained yet.
            ValueError: the run can be asked about neither pictures nor tables.
        """
        return self.predictor().predict(files, complain=complain)

    def predictor(self) -> Predictor:
        """The best weights as a function.

        Raises:
            FileNotFoundError: nothing has been trained yet.
            ValueError: the run can be asked about neither pictures nor tables.
        """
        if self.encoder is None and not (self.is_classification and len(self.shape) == 3):
            raise ValueError(
                f"{self.folder} cannot be asked: it was trained neither to tell pictures apart nor "
                f"on a table. (A run on a table of the first days did not keep how columns become "
                f"numbers: {CONFIG_FILE} has no encoder. Train on the table again.)"
            )
        self.load_best()
        if self.encoder is not None:
            return TablePredictor(self.model, self.encoder)
        return PictureClassifier(self.model, self.shape, self.classes)

    def write_report(self, trainer: Trainer, examples: Examples) -> Path:
        """Write the run's page: curves, confusions, filters, worst mistakes, how it was made."""
        final = self.model.state_dict()
        best = trainer.checkpoints.best() if trainer.checkpoints else None
        if best is not None:
            self.model.load_state_dict(best.tensors["model"])
        try:
            started = time.perf_counter()
            alone = self.trainer(1, show=False, executor=trainer.executor.alone)
            result = alone.evaluate(_batches(examples.test, self.config))
            rate = result.count / (time.perf_counter() - started)
            filters = _first_filters(self.model)
        finally:
            self.model.load_state_dict(final)
        return Report(
            title=f"{self.config.model} on {self.config.data}",
            history=trainer.history,
            classes=self.classes,
            confusion=result.confusion,
            filters=filters,
            mistakes=self._mistakes(result, examples.test),
            metrics={
                **result.measures,
                "parameters": sum(p.size for p in self.model.parameters()),
                "test examples a second": rate,
            },
            configuration=dataclasses.asdict(self.config),
            command=self.command,
            versions=versions(),
            model_summary=str(self.model.summary((1, *self.shape))),
            notes=trainer.notes,
        ).write(self.folder / REPORT_FILE)

    def _mistakes(self, result: Evaluation, test: Dataset) -> list[Mistake]:
        if len(self.shape) != 3:
            return []
        return [
            Mistake(
                np.asarray(test.__getitems__([example.place])[0][0]),
                example.truth,
                example.guess,
                example.probability,
                example.truth_probability,
            )
            for example in result.mistakes
        ]


def _batches(dataset: Dataset, config: Config) -> DataLoader:
    return DataLoader(dataset, min(EVALUATION_BATCH, len(dataset)), num_workers=config.workers)


def _first_filters(model: Module) -> np.ndarray | None:
    for module in model.modules():
        if isinstance(module, Conv2d):
            return module.weight.numpy()
    return None


def versions() -> dict[str, str]:
    """What the numbers of a run depend on."""
    return {
        "palto": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                          else os.cpu_count()),
    }  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
