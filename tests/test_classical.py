"""Hand-made features, and classifiers of them."""

import numpy as np
import pytest

from palto import classical, data

pytest.importorskip(
    "sklearn", reason="scikit-learn is not installed (pip install 'palto[compare]')"
)
pytest.importorskip(
    "skimage", reason="scikit-image is not installed (pip install 'palto[compare]')"
)


def striped(count, colours=1):
    """Images of stripes that lie (0) or stand (1), in noise, and the labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    stripes = np.arange(16) // 2 % 2 * 0.5
    shapes = np.where(labels[:, None, None] == 1, stripes[:, None], stripes[None, :])
    noise = rng.uniform(0, 0.2, (count, 16, 16, colours))
    return (shapes[..., None] + noise).astype(np.float32), labels


@pytest.mark.parametrize("colours", [1, 3])
def test_hog_sees_which_way_stripes_go(colours):
    images, labels = striped(8, colours)
    described = classical.hog(images)
    assert described.shape == (8, 7 * 7 * 4 * 9) and described.dtype == np.float32
    same = described @ described.T
    assert same[labels == 0][:, labels == 0].min() > same[labels == 0][:, labels == 1].max()


def test_hog_wants_pixels():
    with pytest.raises(ValueError, match="14 x 14"):
        classical.hog(np.zeros((1, 8, 8, 1), np.float32))


def test_features_are_computed_once(monkeypatch):
    counts = []

    def counted(some):
        counts.append(len(some))
        return some.reshape(len(some), -1)

    monkeypatch.setattr(classical, "pixels", counted)
    images, labels = striped(10)
    features = classical.Features(data.ImageDataset(images, labels), "pixels")
    first, seconds = features(np.array([3, 1]))
    again, longer = features(np.array([1, 3, 5, 7]))
    assert counts == [2, 2] and 0 < seconds < longer
    np.testing.assert_array_equal(again[[1, 0]], first)
    np.testing.assert_array_equal(again, images[[1, 3, 5, 7]].reshape(4, -1))


def test_components_are_of_size_one():
    images, _ = striped(40)
    reduced = classical.Reduced(classical.pixels(images))(classical.pixels(images))
    assert reduced.shape == (40, 39) and reduced.std() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("kind", classical.OPTIONS)
def test_options_are_those_that_do_best_on_what_is_held_out(kind, monkeypatch):
    """Of a classifier that can do it under one set of options alone, that one is chosen."""
    able = classical.OPTIONS[kind][-1]

    class Classifier:
        def __init__(self, options):
            self.options = options

        def fit(self, inputs, labels):
            return self

        def predict(self, inputs):
            return np.full(len(inputs), 1 if self.options == able else 7)

    labels = np.ones(20, np.int64)
    labels[0] = 0
    monkeypatch.setattr(classical, "classifier", lambda kind, options, seed: Classifier(options))
    features = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    assert classical.choose(kind, features, labels, 0) == able


def test_too_few_examples_to_choose_by_take_the_first_options():
    features, labels = np.eye(2, 5, dtype=np.float32), np.array([0, 1])
    assert classical.choose("svm", features, labels, 0) == classical.OPTIONS["svm"][0]


@pytest.mark.parametrize("kind", classical.OPTIONS)
def test_classifiers_learn_stripes(kind):
    images, labels = striped(80)
    reduce = classical.Reduced(classical.hog(images[:60]))
    features = reduce(classical.hog(images))
    fitted = classical.classifier(kind, classical.OPTIONS[kind][-1], 0)
    fitted.fit(features[:60], labels[:60])
    assert (fitted.predict(features[60:]) == labels[60:]).mean() == 1
