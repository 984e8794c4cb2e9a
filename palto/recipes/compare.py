"""Hand-made features against a network that learns its own, on the same labelled images.

The classical pipeline is made of parts that people have thought out: features (histograms of
oriented gradients, or the pixels), fewer numbers of them (principal components), a classifier
(logistic regression, support vectors, boosted trees). The network learns all of it end to end, from
the images as they are, or from images changed at random (augmentation).

All methods get the same examples, a growing number of them, and are measured on the same test
images. Each result is written down at once, so that a comparison that was stopped goes on.

    palto compare --quick
"""

from __future__ import annotations

import math
import os
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

import palto
from palto import data, nn, optim, train
from palto.classical import Features, Reduced, choose, classifier, hog
from palto.comparison import METHODS, Job, Method, Outcome, Results
from palto.extras import require
from palto.train.run import AugmentName, ModelName, build_augmentation, build_model

NOT_PICTURES = (
    "this compares ways to tell pictures apart, and the data holds something else; give a folder "
    "of pictures by class, an .npz of images and labels, or a name from `palto data`"
)


@dataclass(frozen=True)
class Plan:
    """What is compared, and how long the network learns."""

    sizes: tuple[int, ...] = (100, 300, 1_000, 3_000, 10_000, 30_000, 60_000)
    """Numbers of labelled examples to learn from. Larger ones than there are mean all."""
    seeds: int = 3
    """How often: each time with other examples and other first weights."""
    methods: tuple[Method, ...] = tuple(METHODS)
    """What to compare."""
    model: ModelName = "fast_resnet"
    """The network."""
    augment: tuple[AugmentName, ...] = ("crop", "flip")
    """How `network-augmented` changes images. Leave out flip where left and right differ."""
    epochs: int = 8
    """The network's passes over the examples ..."""
    steps: int = 1200
    """... and the fewest steps it takes, which count where examples are few."""

    def __post_init__(self) -> None:
        if not self.sizes or not self.methods:
            raise ValueError("a comparison wants at least one size and one method")
        for name, value, least in (
            ("sizes", min(self.sizes), 10),
            ("seeds", self.seeds, 1),
            ("epochs", self.epochs, 1),
            ("steps", self.steps, 10),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


# --- The images ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """What all methods learn from and are measured on, in memory."""

    train: data.ImageDataset
    test: data.ImageDataset

    @classmethod
    def of(cls, learn: data.Dataset, test: data.Dataset | None) -> Images:
        """Two data sets, as `palto.data.open_source` gives them.

        Raises:
            ValueError: they are not images with labels, or there is nothing to measure on.
        """
        if test is None:
            raise ValueError(
                "there is nothing to measure on: give a share of the images, --validation 0.2"
            )
        first = learn.__getitems__([0])
        if not learn.classes or len(first) != 2 or first[0].ndim != 4:
            raise ValueError(NOT_PICTURES)
        return cls(_in_memory(learn), _in_memory(test))

    def tested_on(self, count: int) -> Images:
        """The same with at most so many test images, the same share of every class."""
        rest = len(self.test) - count
        if rest <= 0:
            return self
        some = data.random_split(self.test, [count, rest], stratify=self.test.labels)[0].indices
        images, labels = (x[some] for x in self.test.arrays)
        return Images(self.train, data.ImageDataset(images, labels, classes=self.test.classes))

    @property
    def fingerprint(self) -> int:
        """A number that other images or labels hardly share."""
        number = 0
        for part in (self.train, self.test):
            for array in part.arrays:
                number = zlib.crc32(array.tobytes(), number)
        return number

    def chosen(self, examples: int, seed: int) -> data.Subset:
        """So many training examples, the same share of every class; more hold all that fewer do."""
        rest = len(self.train) - examples
        labels = self.train.labels
        return data.random_split(self.train, [examples, rest], seed, stratify=labels)[0]


def _in_memory(dataset: data.Dataset) -> data.ImageDataset:
    """Files are read and decoded once, not once for each method."""
    if isinstance(dataset, data.ImageDataset):
        return dataset
    source = dataset.as_bytes() if isinstance(dataset, data.ImageFiles) else dataset
    parts = [
        source.__getitems__(np.arange(k, min(k + 1000, len(source))))
        for k in range(0, len(source), 1000)
    ]
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return data.ImageDataset(images, labels, classes=dataset.classes, licence=dataset.licence)


# --- The two kinds of methods ---------------------------------------------------------------------

#: Those of the training images and those of the test images, by kind.
AllFeatures = dict[str, tuple[Features, Features]]


def all_features(images: Images) -> AllFeatures:
    """Nothing is computed yet."""
    return {
        kind: (Features(images.train, kind), Features(images.test, kind))
        for kind in ("hog", "pixels")
    }


def classical(job: Job, images: Images, features: AllFeatures, threads: int) -> Outcome:
    """Features, components, a classifier with the options that were chosen for it."""
    source, kind = job.method.split("-")
    with require("threadpoolctl", "compare", "the classical pipeline").threadpool_limits(threads):
        learn, test = features[source]
        places = images.chosen(job.examples, job.seed).indices
        x, described = learn(places)
        y = images.train.labels[places].astype(np.int64)
        begun = time.perf_counter()
        options = choose(kind, x, y, job.seed)
        chosen = time.perf_counter()
        reduce = Reduced(x)
        fitted = classifier(kind, options, job.seed).fit(reduce(x), y)
        learned = time.perf_counter()
        asked, described_too = test(np.arange(len(images.test)))
        begun_again = time.perf_counter()
        right = fitted.predict(reduce(asked)) == images.test.labels
        answered = time.perf_counter()
    return Outcome(
        float(right.mean()),
        described + learned - chosen,
        described_too + answered - begun_again,
        chosen - begun,
        options,
    )


# --- The network ---------------------------------------------------------------------------------

#: In 12 epochs of 5,000 images Adam at this rate did better than SGD with Nesterov's momentum at
#: 0.1, on training images held out.
HIGHEST_RATE, SMOOTHING = 3e-3, 0.1


def schedule(plan: Plan, examples: int) -> tuple[int, int]:
    """The batch size and the epochs for so many examples."""
    batch = 2 ** max(4, min(7, int(math.log2(examples / 16))))
    batch = min(batch, examples)
    return batch, max(plan.epochs, math.ceil(plan.steps / (examples // batch)))


def cross_entropy(
    outputs: palto.Tensor, labels: palto.Tensor, *, reduction: str = "mean"
) -> palto.Tensor:
    """The loss; a part of each label is spread over all classes, while learning."""
    share = SMOOTHING if reduction == "mean" else 0.0
    return nn.functional.cross_entropy(outputs, labels, label_smoothing=share, reduction=reduction)


def network(job: Job, images: Images, plan: Plan) -> Outcome:
    """The network, trained from the first weights on.

    Raises:
        KeyboardInterrupt: somebody has asked to stop.
    """
    palto.manual_seed(job.seed)
    batch, epochs = schedule(plan, job.examples)
    learn = images.chosen(job.examples, job.seed)
    loader = data.DataLoader(learn, batch, shuffle=True, drop_last=True, seed=job.seed)
    image, classes = learn[0][0].shape, len(images.train.classes)
    names = plan.augment if job.method == "network-augmented" else ()
    begun = time.perf_counter()
    model = build_model(plan.model, image, classes)
    rate = optim.schedules.one_cycle(HIGHEST_RATE, epochs * len(loader), pct_start=0.25)
    trainer = train.Trainer(
        model,
        optim.Adam(model, lr=rate),
        cross_entropy,
        train.Classification(classes),
        augment=build_augmentation(names, classes, image),
        show=False,
    )
    trainer.fit(loader, epochs=epochs)
    if trainer.was_interrupted:
        raise KeyboardInterrupt
    # Both sizes of batches are answered once, so that compiling counts as training.
    at_once, count = min(500, len(images.test)), len(images.test)
    some = data.Subset(images.test, range(at_once + count % at_once if count > at_once else count))
    trainer.evaluate(data.DataLoader(some, at_once))
    learned = time.perf_counter()
    accuracy = trainer.evaluate(data.DataLoader(images.test, at_once)).measures["accuracy"]
    return Outcome(
        accuracy,
        learned - begun,
        time.perf_counter() - learned,
        options={"batch_size": batch, "epochs": epochs},
    )


# --- The comparison ------------------------------------------------------------------------------


def jobs(plan: Plan, count: int, classes: int) -> list[Job]:
    """All jobs of a plan for data of `count` training examples, the shortest first.

    A classical method learns from all examples only once: each seed would choose the same ones.

    Raises:
        ValueError: a size is below twice the number of classes.
    """
    sizes = sorted({min(size, count) for size in plan.sizes})
    if sizes[0] < 2 * classes:
        raise ValueError(
            f"{sizes[0]} examples are too few for {classes} classes: compare from {2 * classes} up"
        )
    return [
        Job(method, size, seed)
        for size in sizes
        for seed in range(plan.seeds)
        for method in METHODS
        if method in plan.methods
        and not (seed and size == count and not method.startswith("network"))
    ]


def run(
    images: Images,
    plan: Plan,
    folder: str | os.PathLike[str],
    *,
    name: str = "images",
    watch: Callable[[Job, Outcome | None, int, float | None], None] | None = None,
) -> Results:
    """Do all jobs of a plan that the folder has no result of yet.

    Args:
        images: what to learn from and to measure on.
        plan: what to compare.
        folder: where `results.json` lies, or will lie.
        name: what the images are called.
        watch: told each job as it begins, with how many are left and the seconds that they may take
            (None while nothing is known), and again with its outcome.

    Raises:
        MissingExtraError: scikit-learn or scikit-image is not installed.
        ValueError: the folder's file is damaged or of another comparison; too few examples.
        KeyboardInterrupt: somebody has asked to stop; all finished jobs are in the file.
    """
    threads = palto.get_num_threads()
    setting = {
        "data": name,
        "fingerprint": images.fingerprint,
        "train": len(images.train),
        "test": len(images.test),
        "image": list(images.train[0][0].shape),
        "classes": list(images.train.classes),
        "licence": images.train.licence,
        "model": plan.model,
        "augment": list(plan.augment),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "threads": threads,
    }
    results = Results(folder, setting)
    features = all_features(images)
    todo = jobs(plan, len(images.train), len(images.train.classes))
    todo = [job for job in todo if job not in results.outcomes]
    if any(job.method.startswith("hog") for job in todo):
        hog(images.test.__getitems__([0])[0])  # what is missing or too small is said at once
    while todo:
        job = todo[0]
        if watch is not None:
            watch(job, None, len(todo), seconds_left(results, todo, plan))
        if job.method.startswith("network"):
            outcome = network(job, images, plan)
        else:
            outcome = _interruptible(partial(classical, job, images, features, threads))
        results.add(job, outcome)
        del todo[0]
        if watch is not None:
            watch(job, outcome, len(todo), seconds_left(results, todo, plan))
    return results


def seconds_left(results: Results, todo: list[Job], plan: Plan) -> float | None:
    """What jobs may take, by the nearest size that each method has done; None if one has none."""

    def cost(job: Job) -> float:
        if job.method.startswith("network"):
            batch, epochs = schedule(plan, job.examples)
            return float(epochs * (job.examples // batch) * batch) + 2000
        if job.method.endswith("svm"):  # choosing options and the test images take their time, too
            return math.pow(job.examples, 1.5) + 5e6
        return float(job.examples + 10_000)

    total = 0.0
    for job in todo:
        done = [other for other in results.outcomes if other.method == job.method]
        if not done:
            return None
        near = min(done, key=lambda other: abs(math.log(other.examples / job.examples)))
        total += results.outcomes[near].seconds * cost(job) / cost(near)
    return total


def _interruptible(work: Callable[[], Outcome]) -> Outcome:
    """The result of a function that may stay in a library for minutes; Ctrl-C gets through."""
    found: list[Outcome | BaseException] = []

    def do() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=do, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]
