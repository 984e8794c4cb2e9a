"""Pictures told apart by hand-made features: HOG, principal components, a classifier.

The classical pipeline, made of scikit-image and scikit-learn, which the extra `compare` brings.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from palto import data
from palto.extras import require

#: Principal components that are kept of an image's features.
COMPONENTS = 100
#: Options are chosen by a fifth of the examples; of at most so many, as that takes many fits.
CHOICE = 10_000

#: The options that are tried for each classifier; the first, if examples are too few to choose.
OPTIONS: dict[str, list[dict[str, float]]] = {
    "logistic": [{"C": c} for c in (1.0, 0.1, 0.01, 10.0)],
    "svm": [{"C": c, "gamma": g / COMPONENTS} for c in (10.0, 3.0, 1.0) for g in (1.0, 2.0, 0.5)],
    "boosting": [
        {"max_leaf_nodes": 31, "min_samples_leaf": 20}, {"max_leaf_nodes": 8, "min_samples_leaf": 5}
    ],
}  # fmt: skip


def _sklearn(module: str) -> Any:
    return require(f"sklearn.{module}", "compare", "the classical pipeline")


def classifier(kind: str, options: dict[str, float], seed: int) -> Any:
    """Scikit-learn's classifier of a kind, not fitted yet."""
    if kind == "logistic":
        return _sklearn("linear_model").LogisticRegression(max_iter=2000, **options)
    if kind == "svm":
        return _sklearn("svm").SVC(cache_size=1000, **options)
    trees = _sklearn("ensemble").HistGradientBoostingClassifier
    return trees(early_stopping=False, random_state=seed, **options)


def hog(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients: about 7 x 7 cells, 9 directions, blocks of 2 x 2 cells.

    Args:
        images: (N, H, W, C), from 14 x 14 pixels up.

    Returns:
        float32 (N, features).

    Dalal and Triggs, "Histograms of oriented gradients for human detection", 2005.
    """
    features = require("skimage.feature", "compare", "the classical pipeline")
    if min(images.shape[1:3]) < 14:
        raise ValueError(
            f"HOG wants images from 14 x 14 pixels up, got {images.shape[1]} x {images.shape[2]}; "
            "leave the hog methods out: --methods pixels-svm network"
        )
    cell = (images.shape[1] // 7, images.shape[2] // 7)
    described = [
        features.hog(image, 9, pixels_per_cell=cell, cells_per_block=(2, 2), channel_axis=-1)
        for image in images
    ]
    return np.asarray(described, np.float32)


def pixels(images: np.ndarray) -> np.ndarray:
    """The pixels, (N, H * W * C)."""
    return images.reshape(len(images), -1)


class Features:
    """The features of some images: each image's are computed once, when they are first wanted.

    Args:
        images: the images.
        kind: "hog" or "pixels".
    """

    def __init__(self, images: data.ImageDataset, kind: str) -> None:
        self._images = images
        self._function = {"hog": hog, "pixels": pixels}[kind]
        self._known = np.zeros(len(images), bool)
        self._values = np.zeros((0, 0), np.float32)
        self._seconds = 0.0

    def __call__(self, places: np.ndarray) -> tuple[np.ndarray, float]:
        """The features of the images at `places`, (n, features), and the seconds that they take."""
        missing = places[~self._known[places]]
        for k in range(0, len(missing), 500):
            some = missing[k : k + 500]
            begun = time.perf_counter()
            found = self._function(self._images.__getitems__(some)[0])
            self._seconds += time.perf_counter() - begun
            if not self._values.size:
                self._values = np.zeros((len(self._images), found.shape[1]), np.float32)
            self._values[some], self._known[some] = found, True
        return self._values[places], self._seconds / self._known.sum() * len(places)


class Reduced:
    """Fewer numbers of features: principal components, divided so that they are of size 1."""

    def __init__(self, features: np.ndarray) -> None:
        count = min(COMPONENTS, len(features) - 1, features.shape[1])
        # The solver is named: the one that is chosen otherwise draws random numbers.
        solver = "covariance_eigh" if len(features) > features.shape[1] else "full"
        self._pca = _sklearn("decomposition").PCA(count, svd_solver=solver).fit(features)
        self._size = max(float(self._pca.transform(features).std()), 1e-12)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, features) to (N, components)."""
        return np.asarray(self._pca.transform(features) / self._size, np.float32)


def choose(kind: str, features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """The options of a classifier that do best on examples held out of the training examples."""
    features, labels = features[:CHOICE], labels[:CHOICE]
    scores = np.zeros(len(OPTIONS[kind]))
    whole = data.TensorDataset(features, labels)
    for turn in range(5 if len(labels) <= 1000 else 1):
        learn, measure = data.random_split(whole, [0.8, 0.2], seed + turn, stratify=labels)
        known, asked = learn.indices, measure.indices
        if len(np.unique(labels[known])) < 2 or not len(asked):
            continue
        reduce = Reduced(features[known])
        x, z = reduce(features[known]), reduce(features[asked])
        for place, options in enumerate(OPTIONS[kind]):
            fitted = classifier(kind, options, seed).fit(x, labels[known])
            scores[place] += (fitted.predict(z) == labels[asked]).mean()
    return OPTIONS[kind][int(scores.argmax())]
