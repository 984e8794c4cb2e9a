"""A crowd that does not exist: annotators whose errors are known, to measure what is made of them.

The setting of the lecture: some of the annotators click at random, the others mistake some classes
for others, each in a way of its own; every image is labelled a few times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palto.label.aggregate import NAMED, Answers


@dataclass(frozen=True)
class Crowd:
    """Simulated annotators.

    An annotator that does not click at random has an accuracy, drawn evenly from `accuracy`; what
    is wrong is spread over the other classes at random (evenly distributed over all ways to do so),
    for each class in another way.

    Attributes:
        annotators: how many there are.
        random_clickers: the share of them that clicks at random.
        accuracy: the least and the greatest accuracy of the others.
        labels_each: how many annotators see an image.
    """

    annotators: int = 40
    random_clickers: float = 0.25
    accuracy: tuple[float, float] = (0.6, 0.9)
    labels_each: int = 3

    def confusions(self, classes: int, rng: np.random.Generator) -> np.ndarray:
        """What each annotator names (last axis) where the class is (axis 1), shape (J, K, K)."""
        others = rng.dirichlet(np.ones(classes - 1), (self.annotators, classes))
        right = rng.uniform(*self.accuracy, self.annotators)
        confusion = np.empty((self.annotators, classes, classes))
        for k in range(classes):
            wrong = others[:, k] * (1 - right[:, None])
            confusion[:, k] = np.insert(wrong, k, right, axis=1)
        confusion[: round(self.random_clickers * self.annotators)] = 1 / classes
        return confusion

    def _seen(self, images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Images and annotators, row by row; nobody sees an image twice."""
        order = rng.random((images, self.annotators)).argsort(1)[:, : self.labels_each]
        return np.repeat(np.arange(images), self.labels_each), order.ravel()

    def name(self, truth: np.ndarray, classes: int, seed: int = 0) -> Answers:
        """Each image's class, named by some annotators.

        Args:
            truth: the true classes, shape (N,).
            classes: how many there are.
            seed: equal seeds give equal answers.
        """
        rng = np.random.default_rng(seed)
        confusion = self.confusions(classes, rng)
        image, who = self._seen(len(truth), rng)
        bounds = confusion[who, truth[image]].cumsum(1)
        said = (rng.random((len(who), 1)) > bounds[:, :-1]).sum(1)
        return Answers(image, who, np.full(len(who), NAMED), said)

    def point(self, truth: np.ndarray, classes: int, seed: int = 0) -> Answers:
        """Yes or no to one class, drawn evenly, for each image and annotator that sees it.

        Who clicks at random says yes or no as a coin falls; the others are right as often as their
        accuracy says, for yes and for no.
        """
        rng = np.random.default_rng(seed)
        right = rng.uniform(*self.accuracy, self.annotators)
        right[: round(self.random_clickers * self.annotators)] = 0.5
        image, who = self._seen(len(truth), rng)
        asked = rng.integers(0, classes, len(image))
        is_right = rng.random(len(image)) < right[who]
        return Answers(image, who, asked, ((asked == truth[image]) == is_right).astype(int))
