"""Pictures of decision boundaries: what colours lie where, and what is refused."""

import numpy as np
import pytest
from PIL import Image

import palto
from palto import data, nn

pytest.importorskip("matplotlib", reason="pictures need the extra plot")
from palto import draw


@pytest.fixture
def examples(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def sides(path):
    """The mean colours of the left and the right half of the picture's middle."""
    image = pixels(path)
    height, width = image.shape[:2]
    rows = image[height // 5 : height * 4 // 5]
    left, right = rows[:, width // 5 : width * 2 // 5], rows[:, width * 3 // 5 : width * 4 // 5]
    return left.mean((0, 1)), right.mean((0, 1))


@pytest.mark.parametrize("form", ["logits", "probability", "column"])
def test_each_side_has_its_class_colour(tmp_path, examples, form):
    """Blue (class 0) on the left, orange (class 1) on the right."""
    neuron = nn.Neuron(2)
    neuron.load_state_dict({"weight": [30.0, 0.0], "threshold": 0.0})
    models = {
        "logits": lambda x: palto.stack([-15 * x[:, 0], 15 * x[:, 0]], axis=-1),
        "probability": neuron,
        "column": lambda x: palto.expand_dims(neuron(x), -1),
    }
    draw.decision_boundary(models[form], *examples, tmp_path / "a.png")
    left, right = sides(tmp_path / "a.png")
    assert left[2] > left[0] + 30 and right[0] > right[2] + 30


def test_an_unsure_model_has_pale_regions(tmp_path, examples):
    for name, steepness in (("sure", 30.0), ("unsure", 0.1)):
        model = nn.Neuron(2)
        model.load_state_dict({"weight": [steepness, 0.0], "threshold": 0.0})
        draw.decision_boundary(model, *examples, tmp_path / f"{name}.png")
    assert pixels(tmp_path / "unsure.png").mean() > pixels(tmp_path / "sure.png").mean() + 15


def test_axes_names_and_units_are_the_table_s(tmp_path):
    train, _ = data.penguins(features=["bill_length_mm", "flipper_length_mm"], missing="drop")
    inputs, labels = train.__getitems__(range(len(train)))
    draw.decision_boundary(
        nn.models.logistic_regression(2, 3), inputs, labels, tmp_path / "a.svg",
        columns=train.encoder.columns, classes=train.classes, title="Penguins",
    )  # fmt: skip
    text = (tmp_path / "a.svg").read_text()
    for word in ("bill_length_mm", "flipper_length_mm", "Chinstrap", "Penguins", "200"):
        assert f">{word}" in text  # millimetres, not standard deviations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": np.zeros((4, 3))}, r"\(N, 2\), got \(4, 3\)"),
        ({"labels": np.zeros(40)}, r"whole numbers of shape \(40,\), got \(40,\) float64"),
        ({"labels": np.full(40, 2)}, "labels from 2 to 2, but the model knows 2 classes"),
        ({"columns": ["x"]}, "two names, got 1"),
        ({"model": lambda x: x[:, 0]}, "a logit becomes one by sigmoid"),
        ({"model": lambda x: x[:3]}, r"points the model is to give .* got \(3, 2\)"),
    ],
)
def test_refusals(tmp_path, examples, change, message):
    given = {"model": nn.Neuron(2), "inputs": examples[0], "labels": examples[1], **change}
    with pytest.raises(ValueError, match=message):
        draw.decision_boundary(path=tmp_path / "a.png", **given)
    assert not (tmp_path / "a.png").exists()
