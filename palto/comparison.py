"""Results of comparing methods over growing numbers of labelled examples, kept in a file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from palto.train.run import versions

Method = Literal[
    "hog-logistic", "hog-svm", "hog-boosting", "pixels-svm", "network", "network-augmented"
]  # fmt: skip
METHODS: dict[Method, str] = {
    "hog-logistic": "HOG, logistic regression",
    "hog-svm": "HOG, SVM",
    "hog-boosting": "HOG, boosted trees",
    "pixels-svm": "pixels, SVM",
    "network": "network",
    "network-augmented": "network, augmented",
}
METHOD_NAMES: dict[str, Method] = {str(name): name for name in METHODS}
RESULTS_FILE = "results.json"


class Job(NamedTuple):
    """One method, with so many examples, which the seed has chosen."""

    method: Method
    examples: int
    seed: int

    def __str__(self) -> str:
        return f"{METHODS[self.method]}; {self.examples:,} examples, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Attributes:
        accuracy: the share of the test images that is right.
        train_seconds: what learning took: features, components and classifier; or the network's
            steps, compiling included.
        choose_seconds: what choosing the classifier's options took before that.
        predict_seconds: what the answers for all test images took, features included.
        options: what was chosen, or how the network was trained.
    """

    accuracy: float
    train_seconds: float
    predict_seconds: float
    choose_seconds: float = 0.0
    options: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.train_seconds + self.choose_seconds + self.predict_seconds


class Results:
    """What has been found so far, in a folder's file, which is whole at any time.

    Args:
        folder: where the file lies, or will lie.
        setting: all that results depend on besides the job.

    Raises:
        ValueError: the file is damaged, or was made under another setting; it stays as it is.
    """

    def __init__(self, folder: str | os.PathLike[str], setting: dict[str, Any]) -> None:
        self.path = Path(folder) / RESULTS_FILE
        self.setting = setting
        self.about: dict[str, Any] = versions() | {"date": time.strftime("%Y-%m-%d")}
        self.about["processor"] = _processor()
        self.outcomes: dict[Job, Outcome] = {}
        if self.path.exists():
            found = self.open(self.path)
            different = [
                f"{name} was {found.setting.get(name)!r} and is {value!r}"
                for name, value in setting.items()
                if found.setting.get(name) != json.loads(json.dumps(value))
            ]
            if different:
                raise ValueError(
                    f"{self.path} was made otherwise: {'; '.join(different)}. Give the same "
                    "options to go on, or choose another folder with --out"
                )
            self.outcomes, self.about = found.outcomes, found.about

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Results:
        """The results in a file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        results = cls.__new__(cls)
        results.path = Path(path)
        try:
            saved = json.loads(results.path.read_text(encoding="utf-8"))
            results.setting, results.about = dict(saved["setting"]), dict(saved["about"])
            results.outcomes = {
                Job(METHOD_NAMES[x["method"]], int(x["examples"]), int(x["seed"])): Outcome(
                    **x["outcome"]
                )
                for x in saved["results"]
            }
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or of another version ({error!r}); move it away, or choose "
                "another folder with --out"
            ) from None
        return results

    def add(self, job: Job, outcome: Outcome) -> None:
        """Keep a result, and write the file anew."""
        self.outcomes[job] = outcome
        rows = [
            {"method": job.method, "examples": job.examples, "seed": job.seed,
             "outcome": asdict(found)}
            for job, found in self.outcomes.items()
        ]  # fmt: skip
        content = {"setting": self.setting, "about": self.about, "results": rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(self.path.name + ".part")
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, self.path)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those of which there are results, in the order of METHODS."""
        found = {job.method for job in self.outcomes}
        return tuple(method for method in METHODS if method in found)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of examples, from small to large."""
        return tuple(sorted({job.examples for job in self.outcomes}))

    def of(self, method: Method, examples: int) -> list[Outcome]:
        """All results of a method with so many examples, by seed."""
        found = {j.seed: x for j, x in self.outcomes.items() if j[:2] == (method, examples)}
        return [found[seed] for seed in sorted(found)]

    def accuracy(self, method: Method, examples: int) -> tuple[float, float] | None:
        """The mean accuracy and the standard deviation between seeds; None without results."""
        return _mean_and_spread([x.accuracy for x in self.of(method, examples)])

    def gain(self, examples: int) -> tuple[float, float] | None:
        """What augmentation adds to the network's accuracy: the mean over seeds, the deviation."""
        return _mean_and_spread([
            outcome.accuracy - self.outcomes[plain].accuracy
            for job, outcome in self.outcomes.items()
            if job.method == "network-augmented" and job.examples == examples
            and (plain := Job("network", job.examples, job.seed)) in self.outcomes
        ])  # fmt: skip

    def best(self, examples: int) -> Method:
        """The method with the highest mean accuracy at so many examples."""
        found = {m: a[0] for m in self.methods if (a := self.accuracy(m, examples))}
        return max(found, key=lambda method: found[method])


def _mean_and_spread(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
