"""Dawid-Skene: what it finds in simulated crowds, and beside crowd-kit's."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palto import compile as compiled
from palto import data, manual_seed, nn, no_grad, optim
from palto.label import NAMED, Answers, dawid_skene, majority_vote
from palto.label.simulate import Crowd

CLASSES = 10


def right(probabilities, truth):
    return float((probabilities.argmax(1) == truth).mean())


def crowd_kit_accuracy(answers, truth):
    aggregation = pytest.importorskip(
        "crowdkit.aggregation", reason="crowd-kit is not installed (pip install crowd-kit)"
    )
    import pandas

    table = pandas.DataFrame(
        {"task": answers.image, "worker": answers.annotator, "label": answers.said}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # crowd-kit's calls of pandas are not ours
        labels = aggregation.DawidSkene(n_iter=100).fit_predict(table)
    return float((labels.reindex(range(len(truth))).to_numpy() == truth).mean())


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_with_random_clickers(seed):
    """The lecture's claim: a quarter clicks at random, three labels an image."""
    truth = np.random.default_rng(100 + seed).integers(0, CLASSES, 2000)
    answers = Crowd().name(truth, CLASSES, seed)
    assert len(answers.image) == 3 * 2000
    consensus = dawid_skene(answers, 2000, CLASSES)
    found = right(consensus.probabilities, truth)
    assert found >= right(majority_vote(answers, 2000, CLASSES), truth) + 0.05
    clickers = consensus.confusion[:10].diagonal(axis1=1, axis2=2).mean(1)
    others = consensus.confusion[10:].diagonal(axis1=1, axis2=2).mean(1)
    assert clickers.max() < others.min()


@pytest.mark.parametrize("seed", range(2))
def test_beside_crowd_kit(seed):
    truth = np.random.default_rng(100 + seed).integers(0, CLASSES, 2000)
    answers = Crowd().name(truth, CLASSES, seed)
    theirs = crowd_kit_accuracy(answers, truth)
    own = right(dawid_skene(answers, 2000, CLASSES).probabilities, truth)
    assert own >= theirs - 0.005
    # Without smoothing both are Dawid and Skene's estimate.
    plain = dawid_skene(answers, 2000, CLASSES, smoothing=1e-3, iterations=100)
    assert abs(right(plain.probabilities, truth) - theirs) <= 0.01


def learned_accuracy(images, targets, test_images, test_labels, seed):
    """What a small network gets right that has learned from these targets for 40 epochs."""
    manual_seed(seed)
    model = nn.models.fully_connected(784, (128,), CLASSES)
    optimizer = optim.Adam(model, lr=1e-3)

    @compiled
    def step(inputs, wanted):
        loss = nn.functional.cross_entropy(model(inputs), wanted)
        loss.backward()
        optimizer.step()
        return loss

    loader = data.DataLoader(data.TensorDataset(images, targets), 100, shuffle=True, seed=seed)
    for _ in range(40):
        for inputs, wanted in loader:
            step(inputs, wanted)
    with no_grad():
        return right(model(test_images).numpy(), test_labels)


@pytest.mark.parametrize("seed", (1, 2))
def test_a_classifier_learns_more_from_soft_labels(seed):
    try:
        train, test = data.fashion_mnist()
    except data.DataUnavailableError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(seed)
    images, truth = train.__getitems__(rng.permutation(len(train))[:2000])
    test_images, test_labels = test.__getitems__(np.arange(5000))
    answers = Crowd().name(truth, CLASSES, seed)
    votes = majority_vote(answers, 2000, CLASSES)
    majority = (votes + 1e-9 * rng.random(votes.shape)).argmax(1)  # a draw is decided by chance
    soft = dawid_skene(answers, 2000, CLASSES).probabilities.astype(np.float32)
    from_votes, from_consensus = (
        learned_accuracy(images, targets, test_images, test_labels, seed)
        for targets in (majority, soft)
    )
    assert from_consensus >= from_votes + 0.02


@pytest.mark.parametrize("seed", range(3))
def test_questions_about_one_class(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, 1000)
    answers = Crowd(labels_each=6).point(truth, 3, seed)
    consensus = dawid_skene(answers, 1000, 3)
    assert right(consensus.probabilities, truth) >= 0.03 + right(
        majority_vote(answers, 1000, 3), truth
    )
    quality = consensus.sensitivity + consensus.specificity - 1
    assert quality[:10].mean() < 0.15 < 0.3 < quality[10:].mean()


def test_both_kinds_of_answers_and_known_images_count_together():
    # Annotator 0 is shown to be right by known images, annotator 1 to be wrong.
    known = np.array([0, 1, 0, 1, 0, 1, 0, 1, -1, -1])
    image = np.array([*range(8), *range(8), 8, 8, 9, 9])
    annotator = np.array([0] * 8 + [1] * 8 + [0, 1, 0, 1])
    named = np.array([0, 1] * 4 + [1, 0] * 4)
    asked = np.array([NAMED] * 16 + [NAMED, NAMED, 1, 1])
    said = np.array([*named, 1, 0, 1, 0])
    asked[[0, 8]], said[[0, 8]] = 0, (1, 0)  # the first answer of both is to a question
    result = dawid_skene(Answers(image, annotator, asked, said), 10, 2, known=known)
    assert result.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 1, 1]
    assert (result.probabilities[:8].max(1) == 1).all()
    assert result.probabilities[8, 1] > 0.9


def test_the_majority():
    answers = Answers(
        np.array([0, 0, 0, 1, 2]), np.array([0, 1, 2, 0, 0]),
        np.array([NAMED, NAMED, NAMED, 2, 2]), np.array([1, 1, 0, 1, 0]),
    )  # fmt: skip
    votes = majority_vote(answers, 4, 3)
    np.testing.assert_allclose(
        votes, [[1 / 3, 2 / 3, 0], [0, 0, 1], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]], atol=1e-12
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 4))
def test_probabilities_are_probabilities(seed, count, classes):
    rng = np.random.default_rng(seed)
    asked = rng.integers(-1, classes, count)
    said = np.where(asked == NAMED, rng.integers(0, classes, count), rng.integers(0, 2, count))
    answers = Answers(rng.integers(0, 5, count), rng.integers(0, 3, count), asked, said)
    result = dawid_skene(answers, 5, classes)
    np.testing.assert_allclose(result.probabilities.sum(1), 1)
    assert (result.probabilities >= 0).all() and np.isfinite(result.confusion).all()


@pytest.mark.parametrize(
    "columns", [([9], [0], [-1], [0]), ([0], [-1], [-1], [0]), ([0], [0], [3], [0]),
                ([0], [0], [1], [2]), ([0], [0], [-1], [3]), ([0, 0], [0], [-1], [0])],
)  # fmt: skip
def test_answers_that_do_not_fit_are_refused(columns):
    with pytest.raises(ValueError, match="answers"):
        dawid_skene(Answers(*map(np.array, columns)), 5, 3)


def test_no_answers_at_all():
    empty = np.zeros(0, np.int64)
    result = dawid_skene(Answers(empty, empty, empty, empty), 4, 2, known=np.array([0, -1, -1, -1]))
    assert result.probabilities[0].tolist() == [1, 0]
