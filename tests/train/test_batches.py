"""The batch size: the noise is what theory says, and a study leaves the model as it was."""

import math

import numpy as np
import pytest

from palto import data, nn, optim, random, train
from palto.nn import functional as f

EXAMPLES, FEATURES = 300, 6


@pytest.fixture(scope="module")
def regression():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    targets = inputs @ rng.normal(size=(FEATURES, 1)) + 0.5 * rng.normal(size=(EXAMPLES, 1))
    return data.TensorDataset(inputs, targets.astype(np.float32))


@pytest.fixture(scope="module")
def model():
    return nn.Linear(FEATURES, 1)


@pytest.fixture(scope="module")
def study(model, regression):
    return train.batch_study(
        model, f.mse_loss, regression, (1, 4, 16, 64, 256), draws=400, show=False
    )


def by_hand(model, dataset):
    """tr(Sigma) and |G|^2 from every example's gradient, 2 (p - y) (x, 1)."""
    inputs, targets = (x.astype(np.float64) for x in dataset.arrays)
    weight, bias = model.weight.numpy(), model.bias.numpy()
    errors = 2 * (inputs @ weight.T + bias - targets)
    each = errors * np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
    mean = each.mean(0)
    return np.square(each - mean).sum(1).mean(), np.square(mean).sum()


def test_the_noise_falls_as_one_over_the_root(study):
    sizes, noise = np.array([(row.size, row.noise) for row in study.rows]).T
    slope, _ = np.polyfit(np.log(sizes), np.log(noise), 1)
    assert slope == pytest.approx(-0.5, abs=0.03)


def test_the_noise_is_that_of_the_examples(study, model, regression):
    spread, norm = by_hand(model, regression)
    for row in study.rows:
        assert row.noise == pytest.approx(math.sqrt(spread / norm / row.size), rel=0.15)
        assert row.squared_norm == pytest.approx(norm + spread / row.size, rel=0.25)


def test_the_noise_scale_is_the_direct_one(study, model, regression):
    spread, norm = by_hand(model, regression)
    assert study.noise_scale == pytest.approx(spread / norm, rel=0.15)


def test_the_formula_without_noise():
    norm, spread = 3.0, 50.0
    found = train.gradient_noise_scale(4, norm + spread / 4, 64, norm + spread / 64)
    assert found == pytest.approx(spread / norm)
    assert train.gradient_noise_scale(1, 50.0, 2, 25.0) == math.inf  # only noise
    assert train.gradient_noise_scale(1, 3.0, 2, 3.0) == 0  # no noise
    for small, big in ((2, 2), (4, 2), (0, 2)):
        with pytest.raises(ValueError, match="0 < small < big"):
            train.gradient_noise_scale(small, 1.0, big, 1.0)


def test_rows_are_right(study, model, regression):
    assert [row.size for row in study.rows] == [1, 4, 16, 64, 256]
    inputs, targets = regression.arrays
    assert study.start == pytest.approx(float(f.mse_loss(model(inputs), targets)), rel=1e-4)
    for row in study.rows:
        assert row.seconds > 0
        assert row.examples_per_second == row.size / row.seconds
    losses = [row.loss for row in study.rows]
    assert losses[1] < losses[3] < study.start  # more steps on as many examples learn more
    text = str(study)
    assert all(f"{row.loss:.4f}" in text for row in study.rows)
    assert f"{study.noise_scale:,.0f} examples" in text


def test_the_losses_are_those_of_runs_by_hand(regression):
    model = nn.Linear(FEATURES, 1)
    start = model.state_dict()
    found = train.batch_study(
        model, f.mse_loss, regression, (50, 100), draws=2, examples=200, seed=3, show=False,
        optimizer=lambda m: optim.SGD(m, lr=0.1, momentum=0.9),
    )  # fmt: skip
    for row in found.rows:
        model.load_state_dict(start)
        optimizer = optim.SGD(model, lr=0.1, momentum=0.9)
        loader = data.DataLoader(regression, row.size, shuffle=True, seed=3)
        for _, (inputs, targets) in zip(range(200 // row.size), loader, strict=False):
            f.mse_loss(model(inputs), targets).backward()
            optimizer.step()
        inputs, targets = regression.arrays
        expected = float(f.mse_loss(model(inputs), targets))
        assert row.loss == pytest.approx(expected, rel=1e-4)


def test_a_study_changes_nothing(regression):
    model = nn.Sequential(
        nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)
    )
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    state = random.default_generator.state.numpy()
    train.batch_study(model, f.mse_loss, regression, (8, 32), draws=3, examples=64, show=False)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    np.testing.assert_array_equal(random.default_generator.state.numpy(), state)
    model(regression.arrays[0]).mean().backward()  # no gradient waits for a step


def test_progress(regression, capsys):
    found = train.batch_study(nn.Linear(FEATURES, 1), f.mse_loss, regression, (8, 32), draws=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines == str(found).splitlines()[:3]


@pytest.mark.parametrize("sizes", [(), (8,), (8, 8), (0, 8), (8, 301)])
def test_wrong_sizes(sizes, model, regression):
    with pytest.raises(ValueError, match="two or more numbers from 1 to 300"):
        train.batch_study(model, f.mse_loss, regression, sizes)


def test_wrong_models_and_draws(regression):
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        train.batch_study(nn.Identity(), f.mse_loss, regression, (8, 32))
    with pytest.raises(ValueError, match="two draws or more, got 1"):
        train.batch_study(nn.Linear(FEATURES, 1), f.mse_loss, regression, (8, 32), draws=1)
