"""The main recipe, on a small data set of the same form."""

import numpy as np
import pytest

from palto import data, nn
from palto.formats import safetensors
from palto.recipes import classify


@pytest.fixture
def small(monkeypatch):
    """Ten patterns with noise, in the place of the ten kinds of clothes."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (10, 28, 28, 1))

    def dataset(n):
        labels = rng.integers(0, 10, n)
        noise = rng.integers(-40, 40, (n, 28, 28, 1))
        images = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
        return data.ImageDataset(images, labels, classes=[f"kind {k}" for k in range(10)])

    datasets = dataset(1280), dataset(200)
    monkeypatch.setattr(data, "fashion_mnist", lambda folder=None: datasets)


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["classify", *words])
    classify.main()
    return capsys.readouterr().out


@pytest.mark.parametrize("model", ["logistic_regression", "fully_connected"])
def test_it_learns_and_says_so(small, monkeypatch, capsys, model):
    out = run(
        monkeypatch, capsys, "--model", model, "--epochs", "3", "--batch-size", "32", "--lr", "5e-3"
    )
    assert "1,280 images" in out and "after epoch 3: 100.0% of 200 test images right" in out
    assert "test accuracy 100.00%" in out and "kind 7" in out and "Try next" in out


def test_what_was_learned_is_saved(small, monkeypatch, capsys, tmp_path):
    path = tmp_path / "clothes.safetensors"
    words = ("--model", "logistic_regression", "--epochs", "1", "--save", str(path))
    assert f"saved to {path}" in run(monkeypatch, capsys, *words).replace("\n", "")
    model = nn.models.logistic_regression(784, 10)
    model.load_state_dict(safetensors.load(path))


def test_equal_seeds_give_equal_runs(small, monkeypatch, capsys):
    words = ("--model", "logistic_regression", "--epochs", "1", "--batch-size", "320")
    first, second = (
        run(monkeypatch, capsys, *words, "--seed", "4").split("test accuracy")[1] for _ in range(2)
    )
    assert first == second


def test_interrupted_it_tests_what_it_has(small, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(classify.Progress, "add_task", lambda *a, **k: interrupted(None))
    out = run(monkeypatch, capsys, "--model", "fully_connected", "--epochs", "1")
    assert "stopped" in out and "test accuracy" in out


def test_a_first_look_before_a_long_epoch_ends(small, monkeypatch, capsys):
    monkeypatch.setattr(classify, "FIRST_LOOK", (0, 50))
    words = ("--model", "logistic_regression", "--epochs", "2")
    out = run(monkeypatch, capsys, *words)
    assert "compiling the training step" in out
    assert "after 1 steps" in out and out.count("of 50 test images right") == 1
    assert out.count("of 200 test images right") == 2
    monkeypatch.setattr(classify, "FIRST_LOOK", (1000, 50))
    unlooked = run(monkeypatch, capsys, *words)
    assert "of 50 test images" not in unlooked
    assert out.split("test accuracy")[1] == unlooked.split("test accuracy")[1]


def test_augmentation_can_be_chosen(small, monkeypatch, capsys, tmp_path):
    words = ("--model", "logistic_regression", "--epochs", "1", "--save")
    plain = run(monkeypatch, capsys, *words, str(tmp_path / "plain"))
    changed = run(monkeypatch, capsys, *words, str(tmp_path / "changed"), "--augment")
    assert "mirrored" not in plain.split("compiling")[0] and "mirrored at random" in changed
    assert (tmp_path / "plain").read_bytes() != (tmp_path / "changed").read_bytes()


def chosen(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["classify", *words])
    return classify.arguments()


def test_without_words_it_is_alexnet_with_augmentation(monkeypatch):
    args = chosen(monkeypatch)
    assert args.model == "alexnet" and args.augment and 2 <= args.epochs <= 4
    assert not chosen(monkeypatch, "--no-augment").augment
    args = chosen(monkeypatch, "--model", "fully_connected")
    assert (args.epochs, args.batch_size, args.lr, args.augment) == (8, 128, 3e-3, False)
    assert chosen(monkeypatch, "--epochs", "5", "--lr", "1e-4").lr == 1e-4


@pytest.mark.parametrize("model", classify.MODELS)
def test_every_model_takes_the_images(model):
    module = classify.MODELS[model].make()
    assert module(np.zeros((1, *classify.IMAGE), np.float32)).shape == (1, classify.CLASSES)


@pytest.mark.parametrize("words", [["--epochs", "0"], ["--model", "gan"], ["--lr", "fast"]])
def test_wrong_words_are_explained(monkeypatch, capsys, words):
    monkeypatch.setattr("sys.argv", ["classify", *words])
    with pytest.raises(SystemExit):
        classify.main()
    assert words[0] in capsys.readouterr().err


def test_help_teaches(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["classify", "--help"])
    with pytest.raises(SystemExit):
        classify.main()
    out = capsys.readouterr().out
    for part in ("--model", "lenet", "alexnet 3", "--no-augment"):
        assert part in out
