"""From many people's answers to one label: Dawid-Skene, and the majority's vote beside it.

A. P. Dawid and A. M. Skene: Maximum likelihood estimation of observer error-rates using the EM
algorithm. Applied Statistics 28 (1979), 20-28.

Nobody knows who is right. But whoever agrees with the others about most images is probably right
about this one too, and the others' agreement counts by how good they are. Expectation-maximisation
solves both at once: from the images' probable classes to how each annotator errs, and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: In `Answers.asked`: no class was asked about, the answer names one.
NAMED = -1
START = 0.75  # how often an annotator is taken to be right before anything is known


@dataclass(frozen=True)
class Answers:
    """Answers, one in each row of four arrays of whole numbers, each of shape (A,).

    Attributes:
        image: the place of the image, from 0 up.
        annotator: who answered, from 0 up.
        asked: the class that was asked about ("is this a cat?"), or `NAMED`.
        said: 1 for yes and 0 for no; the class, where one was to be named.
    """

    image: np.ndarray
    annotator: np.ndarray
    asked: np.ndarray
    said: np.ndarray

    @classmethod
    def naming(cls, image: np.ndarray, annotator: np.ndarray, said: np.ndarray) -> Answers:
        """Answers that each name a class."""
        return cls(image, annotator, np.full(len(image), NAMED), said)

    def check(self, images: int, classes: int) -> None:
        """Refuse answers that do not fit.

        Raises:
            ValueError: columns of different lengths, or numbers that are out of range.
        """
        if len({len(column) for column in vars(self).values()}) != 1:
            raise ValueError("the columns of answers have different lengths")
        top = np.where(self.asked == NAMED, classes, 2)
        for name, column, low, high in (
            ("image", self.image, 0, images),
            ("annotator", self.annotator, 0, np.inf),
            ("asked", self.asked, NAMED, classes),
            ("said", self.said, 0, top),
        ):
            bad = (column < low) | (column >= high)
            if bad.any():
                raise ValueError(f"answers: {name} {column[bad][0]} is out of range")


@dataclass(frozen=True)
class Consensus:
    """What answers say together.

    Attributes:
        probabilities: of the classes of each image, shape (N, K).
        prior: how frequent the classes are, shape (K,).
        confusion: what each annotator names (last axis) where the class is (axis 1), (J, K, K).
        sensitivity: how often each says yes where yes is right, shape (J,).
        specificity: how often each says no where no is right, shape (J,).
        iterations: of the EM algorithm.
    """

    probabilities: np.ndarray
    prior: np.ndarray
    confusion: np.ndarray
    sensitivity: np.ndarray
    specificity: np.ndarray
    iterations: int

    @property
    def labels(self) -> np.ndarray:
        """The most probable class of each image, shape (N,)."""
        return np.asarray(self.probabilities.argmax(1))


def majority_vote(
    answers: Answers, images: int, classes: int, known: np.ndarray | None = None
) -> np.ndarray:
    """The share of the votes that each class gets.

    A no is a vote for all other classes, shared among them. An image without votes may be anything.

    Args:
        answers: the answers.
        images: how many images there are, N.
        classes: how many classes there are, K.
        known: the class of each image, -1 where it is not known, shape (N,).

    Returns:
        Shape (N, K); rows add up to 1.

    Raises:
        ValueError: answers that are out of range.
    """
    answers.check(images, classes)
    votes = np.zeros((images, classes))
    named = answers.asked == NAMED
    yes = ~named & (answers.said == 1)
    no = ~named & (answers.said == 0)
    np.add.at(votes, (answers.image[named], answers.said[named]), 1)
    np.add.at(votes, (answers.image[yes], answers.asked[yes]), 1)
    if classes > 1:
        share = 1 / (classes - 1)
        np.add.at(votes, answers.image[no], share)
        np.add.at(votes, (answers.image[no], answers.asked[no]), -share)
    votes = np.maximum(votes, 0)  # what rounding leaves of a difference
    votes[votes.sum(1) < 1e-9] = 1
    votes /= votes.sum(1, keepdims=True)
    return _with_known(votes, known)


def dawid_skene(
    answers: Answers,
    images: int,
    classes: int,
    *,
    known: np.ndarray | None = None,
    smoothing: float = 1.0,
    iterations: int = 200,
    tolerance: float = 1e-5,
) -> Consensus:
    """The classes of images, and how good annotators are, from answers alone or with some known.

    Of each annotator there is a confusion matrix for classes that are named, and a sensitivity and
    a specificity for questions about one class: the same ones for every class, as three to nine
    answers a challenge would not be enough for more. An image's known class is kept, and so teaches
    how its annotators err.

    Args:
        answers: the answers.
        images: how many images there are, N.
        classes: how many classes there are, K.
        known: the class of each image, -1 where it is not known, shape (N,).
        smoothing: how many answers each entry of a confusion is given beforehand, so that nothing
            is impossible for not having been seen; near 0 it is Dawid and Skene's own estimate.
        iterations: at most so many.
        tolerance: it ends when no probability has changed by more.

    Returns:
        The probabilities and the annotators' errors. An image without answers has the prior.

    Raises:
        ValueError: answers that are out of range.
    """
    answers.check(images, classes)
    annotators = int(answers.annotator.max(initial=-1)) + 1
    named = answers.asked == NAMED
    image, who, said = answers.image[named], answers.annotator[named], answers.said[named]
    q_image, q_who = answers.image[~named], answers.annotator[~named]
    asked, yes = answers.asked[~named], answers.said[~named] == 1
    is_answered = np.bincount(answers.image, minlength=images) > 0
    is_answered = is_answered if is_answered.any() else np.ones(images, np.bool_)

    def expect() -> np.ndarray:
        """How probable the classes of each image are."""
        score = np.tile(np.log(prior), (images, 1))
        np.add.at(score, image, np.log(confusion)[who, :, said])
        inside = np.log(np.where(yes, sensitivity[q_who], 1 - sensitivity[q_who]))
        outside = np.log(np.where(yes, 1 - specificity[q_who], specificity[q_who]))
        np.add.at(score, q_image, outside[:, None])
        np.add.at(score, (q_image, asked), inside - outside)
        score = np.exp(score - score.max(1, keepdims=True))
        return _with_known(score / score.sum(1, keepdims=True), known)

    # It begins with everybody equally good: for classes that are named, a vote.
    prior = np.full(classes, 1 / classes)
    confusion = np.full((annotators, classes, classes), (1 - START) / max(classes - 1, 1))
    confusion[:, range(classes), range(classes)] = START
    sensitivity = specificity = np.full(annotators, START)
    belief = expect()
    steps = 0
    while steps < iterations:
        steps += 1
        # Maximisation: how frequent the classes are, and how each annotator errs.
        prior = belief[is_answered].sum(0) + smoothing
        prior /= prior.sum()
        confusion = np.full((annotators, classes, classes), smoothing)
        np.add.at(confusion.transpose(0, 2, 1), (who, said), belief[image])
        confusion /= confusion.sum(2, keepdims=True)
        is_right = belief[q_image, asked]
        sensitivity = _rate(annotators, q_who, is_right, yes, smoothing)
        specificity = _rate(annotators, q_who, 1 - is_right, ~yes, smoothing)
        # Expectation.
        before, belief = belief, expect()
        if np.abs(belief - before).max(initial=0) <= tolerance:
            break
    return Consensus(belief, prior, confusion, sensitivity, specificity, steps)


def _rate(
    annotators: int, who: np.ndarray, weight: np.ndarray, success: np.ndarray, smoothing: float
) -> np.ndarray:
    """Of each annotator's answers, weighted, the share that succeeds."""
    total = np.bincount(who, weight, annotators) + 2 * smoothing
    rate: np.ndarray = (np.bincount(who, weight * success, annotators) + smoothing) / total
    return rate


def _with_known(belief: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    if known is not None:
        rows = np.flatnonzero(known >= 0)
        belief[rows] = 0
        belief[rows, known[rows]] = 1
    return belief
