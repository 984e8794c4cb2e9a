"""The comparison: fair, kept, and gone on with."""

import json
import os
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from palto import classical, cli, data
from palto.comparison import Job, Outcome, Results
from palto.recipes import compare
from palto.recipes.compare import Images, Plan

pytest.importorskip(
    "sklearn", reason="scikit-learn is not installed (pip install 'palto[compare]')"
)
pytest.importorskip(
    "skimage", reason="scikit-image is not installed (pip install 'palto[compare]')"
)

PLAN = Plan(
    sizes=(20, 40), seeds=2, methods=("pixels-svm", "network-augmented"), epochs=1, steps=10
)


def striped(count, seed, rare=0):
    """Pictures of stripes that lie or stand; a third class, of noise, has `rare` examples."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(count - rare) % 2, np.full(rare, 2)])
    images = rng.uniform(0, 60, (count, 16, 16, 1))
    for image, label in zip(images, labels, strict=True):
        stripes = 120 * (np.arange(16) // 2 % 2)
        if label < 2:
            image[..., 0] += stripes[:, None] if label else stripes[None, :]
    return data.ImageDataset(
        images.astype(np.uint8), labels, classes=("a", "b", "c")[: 2 + (rare > 0)]
    )


@pytest.fixture(scope="module")
def images():
    return Images(striped(60, 0), striped(30, 1))


@pytest.fixture
def archive(tmp_path):
    """The same as a file of a user's."""
    learn, test = striped(60, 0), striped(30, 1)
    path = tmp_path / "stripes.npz"
    np.savez(
        path, train_images=learn.images, train_labels=learn.labels,
        test_images=test.images, test_labels=test.labels,
    )  # fmt: skip
    return path


def command(capsys, *words):
    try:
        status = cli.main(["compare", *map(str, words)])
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr()


# --- Fairness ------------------------------------------------------------------------------------


def test_all_methods_learn_from_the_same_examples(images, monkeypatch, tmp_path):
    seen = []
    chosen = Images.chosen

    def watched(self, examples, seed):
        subset = chosen(self, examples, seed)
        seen.append(tuple(subset.indices))
        return subset

    monkeypatch.setattr(Images, "chosen", watched)
    plan = Plan(sizes=(20,), seeds=1, methods=("hog-svm", "network"), epochs=1, steps=10)
    compare.run(images, plan, tmp_path)
    assert len(seen) == 2 and len(set(seen)) == 1 and len(set(seen[0])) == 20


def test_more_examples_hold_the_fewer_ones_and_seeds_choose_others(images):
    few, more, other = (set(images.chosen(*x).indices) for x in ((20, 0), (40, 0), (20, 1)))
    assert few < more and few != other


def test_subsets_have_the_same_share_of_every_class(images):
    for seed in range(3):
        labels = images.train.labels[images.chosen(20, seed).indices]
        assert Counter(labels.tolist()) == {0: 10, 1: 10}


def test_options_are_chosen_among_training_images_alone(images, monkeypatch):
    seen = []

    def watched(kind, features, labels, seed):
        seen.append((features, labels))
        return classical.OPTIONS[kind][0]

    monkeypatch.setattr(compare, "choose", watched)
    compare.classical(Job("pixels-svm", 20, 0), images, compare.all_features(images), 1)
    inputs, labels = images.train.__getitems__(images.chosen(20, 0).indices)
    np.testing.assert_array_equal(seen[0][0], inputs.reshape(20, -1))
    np.testing.assert_array_equal(seen[0][1], labels)


def test_a_class_with_fewer_examples_than_asked():
    rare = Images(striped(60, 0, rare=2), striped(30, 1, rare=3))
    labels = rare.train.labels[rare.chosen(20, 0).indices]
    assert len(labels) == 20 and Counter(labels.tolist())[2] <= 2
    features = compare.all_features(rare)
    for method in ("pixels-svm", "hog-logistic", "hog-boosting"):
        outcome = compare.classical(Job(method, 20, 0), rare, features, 1)
        assert 0.5 < outcome.accuracy <= 1


def test_larger_sizes_than_there_are_mean_all():
    made = compare.jobs(Plan(seeds=2, methods=("hog-svm", "network")), 500, 10)
    assert [tuple(job) for job in made if job.examples > 300] == [
        ("hog-svm", 500, 0), ("network", 500, 0), ("network", 500, 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="20 examples are too few for 11 classes: compare from 22"):
        compare.jobs(PLAN, 500, 11)


# --- What is learned -----------------------------------------------------------------------------


def test_few_examples_get_enough_steps():
    plan = Plan()
    for examples in (10, 100, 999, 60_000):
        batch, epochs = compare.schedule(plan, examples)
        assert epochs >= plan.epochs and epochs * (examples // batch) >= plan.steps


def test_mean_spread_and_gain(tmp_path):
    results = Results(tmp_path, {})
    for seed, (plain, augmented) in enumerate([(0.5, 0.6), (0.7, 0.9)]):
        results.add(Job("network", 20, seed), Outcome(plain, 1, 1))
        results.add(Job("network-augmented", 20, seed), Outcome(augmented, 1, 1))
    results.add(Job("network", 20, 2), Outcome(0.6, 1, 1))  # without its pair
    assert results.accuracy("network", 20) == pytest.approx((0.6, 0.1))
    assert results.gain(20) == pytest.approx((0.15, 0.1 / 2**0.5))
    assert results.best(20) == "network-augmented" and results.gain(40) is None


# --- Going on ------------------------------------------------------------------------------------


def test_a_comparison_that_was_stopped_goes_on(archive, capsys, monkeypatch):
    words = (archive, "--out", archive.parent / "out", "--sizes", 20, "--seeds", 2, "--steps", 10,
             "--epochs", 1, "--methods", "pixels-svm", "network")  # fmt: skip
    network, calls = compare.network, []

    def stopped(job, *rest):
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return network(job, *rest)

    monkeypatch.setattr(compare, "network", stopped)
    status, said = command(capsys, *words)
    file = archive.parent / "out" / "results.json"
    assert status == 130 and "goes on" in said.out
    before = json.loads(file.read_text())["results"]
    assert len(before) == 3

    status, said = command(capsys, *words)
    after = json.loads(file.read_text())["results"]
    assert status == 0 and after[:3] == before and len(after) == 4
    assert [job.seed for job in calls] == [0, 1, 1]
    page = (archive.parent / "out" / "results.md").read_text()
    assert "| 20 |" in page and "learning-curve.svg" in page
    assert {p.name for p in file.parent.glob("*.svg")} == {"learning-curve.svg", "time.svg"}

    status, said = command(capsys, *words, "--steps", 11)
    assert status == 2 and "steps was 10 and is 11" in said.err
    assert json.loads(file.read_text())["results"] == after


def test_a_kill_while_a_result_is_written_loses_that_one_alone(tmp_path, monkeypatch):
    results = Results(tmp_path, {"epochs": 1})
    results.add(Job("network", 20, 0), Outcome(0.5, 1, 1))

    def killed(*_):
        raise SystemExit

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        results.add(Job("network", 20, 1), Outcome(0.6, 1, 1))
    monkeypatch.undo()
    found = Results(tmp_path, {"epochs": 1})
    assert found.outcomes == {Job("network", 20, 0): Outcome(0.5, 1, 1)}
    found.add(Job("network", 20, 1), Outcome(0.7, 1, 1))
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", ["{", "[]", '{"setting": {}, "about": {}, "results": [{}]}'])
def test_a_damaged_file_is_named_and_stays(images, tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"damaged.*move it away"):
        compare.run(images, PLAN, tmp_path)
    assert (tmp_path / "results.json").read_text() == content


def test_a_file_of_other_images(images, tmp_path):
    few = Plan(sizes=(20,), seeds=1, methods=("pixels-svm",))
    compare.run(images, few, tmp_path)
    with pytest.raises(ValueError, match="fingerprint was"):
        compare.run(Images(striped(60, 5), images.test), few, tmp_path)


def test_a_missing_library_is_named(archive, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    status, said = command(capsys, archive, "--out", archive.parent / "out")
    assert status == 2 and "palto[compare]" in said.err
    assert not (archive.parent / "out").exists()


def test_a_folder_of_pictures(tmp_path, capsys):
    learn = striped(50, 0)
    for place, (image, label) in enumerate(zip(learn.images, learn.labels, strict=True)):
        path = tmp_path / "photos" / learn.classes[label] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    words = (tmp_path / "photos", "--size", 14, "--seeds", 1, "--out", tmp_path / "out")
    status, said = command(capsys, *words, "--sizes", 20, 1000, "--methods", "hog-logistic")
    assert status == 0, said.err
    assert "40 images to learn from, 10 to measure on, 2 classes" in said.out
    found = Results.open(tmp_path / "out" / "results.json")
    assert found.sizes == (20, 40) and found.setting["image"] == [14, 14, 1]


def test_data_that_is_no_pictures(tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("x,y,kind\n" + "1,2,a\n2,1,b\n" * 20)
    status, said = command(capsys, table, "--out", tmp_path / "out")
    assert status == 2 and "tell pictures apart" in said.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": (5,)}, "sizes must be at least 10"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"sizes": ()}, "at least one size"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Plan(**options)


def test_time_left_grows_with_the_images_to_come(tmp_path):
    results = Results(tmp_path, {})
    plan = Plan(methods=("hog-svm",))
    assert compare.seconds_left(results, [Job("hog-svm", 100, 0)], plan) is None
    results.outcomes[Job("hog-svm", 1000, 0)] = Outcome(0.5, 10, 2)
    one = compare.seconds_left(results, [Job("hog-svm", 1000, 1)], plan)
    more = compare.seconds_left(results, [Job("hog-svm", 60_000, 1)], plan)
    assert one == pytest.approx(12) and more > 3 * one
