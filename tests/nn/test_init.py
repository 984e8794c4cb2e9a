import math

import numpy as np
import pytest

import palto
from palto import nn
from palto.nn import init

SHAPES = {"linear": ((300, 200), 200, 300), "conv": ((3, 3, 40, 50), 360, 450)}


@pytest.fixture(params=SHAPES)
def weight(request):
    shape, fan_in, fan_out = SHAPES[request.param]
    return nn.Parameter(np.zeros(shape, np.float32)), fan_in, fan_out


def moments(cell):
    values = cell.numpy().astype(np.float64)
    return values.mean(), values.std(), abs(values).max()


def check_uniform(cell, bound):
    mean, std, largest = moments(cell)
    assert abs(mean) < 0.02 * bound
    assert std == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert 0.99 * bound < largest <= bound * (1 + 1e-6)


def check_normal(cell, std, mean=0.0):
    found, spread, largest = moments(cell)
    assert found == pytest.approx(mean, abs=0.02 * std)
    assert spread == pytest.approx(std, rel=0.02)
    assert largest - abs(mean) > 3.5 * std


def test_fans_are_pytorchs(torch):
    theirs = torch.nn.init._calculate_fan_in_and_fan_out
    assert init.fans((300, 200)) == theirs(torch.empty(300, 200))
    assert init.fans((3, 5, 40, 50)) == theirs(torch.empty(50, 40, 3, 5))
    with pytest.raises(ValueError, match=r"at least two axes, got shape \(3,\)"):
        init.fans((3,))


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_kaiming(weight, mode):
    cell, fan_in, fan_out = weight
    fan = fan_in if mode == "fan_in" else fan_out
    assert init.kaiming_uniform_(cell, mode=mode) is cell
    check_uniform(cell, math.sqrt(6 / fan))
    init.kaiming_uniform_(cell, a=math.sqrt(5), mode=mode)
    check_uniform(cell, 1 / math.sqrt(fan))
    init.kaiming_normal_(cell, mode=mode, nonlinearity="relu")
    check_normal(cell, math.sqrt(2 / fan))


def test_xavier(weight):
    cell, fan_in, fan_out = weight
    init.xavier_uniform_(cell, gain=2)
    check_uniform(cell, 2 * math.sqrt(6 / (fan_in + fan_out)))
    init.xavier_normal_(cell)
    check_normal(cell, math.sqrt(2 / (fan_in + fan_out)))


def test_kaiming_keeps_the_signals_size(rng):
    """He et al. (2015): through ten layers of relu the mean square stays what it is."""
    x = palto.asarray(rng.normal(size=(64, 256)).astype(np.float32))
    for _ in range(10):
        layer = nn.Linear(256, 256, bias=False)
        init.kaiming_normal_(layer.weight)
        x = nn.functional.relu(layer(x))
    assert 0.3 < (x * x).mean().item() * 2 < 3


@pytest.mark.parametrize("shape", [(20, 20), (30, 10), (10, 30), (3, 3, 4, 10), (2, 2, 3, 30)])
def test_orthogonal(shape):
    cell = init.orthogonal_(nn.Parameter(np.zeros(shape, np.float32)), gain=3)
    matrix = cell.numpy().astype(np.float64)
    matrix = matrix if len(shape) == 2 else matrix.reshape(-1, shape[-1]).T
    rows, columns = matrix.shape
    square = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    np.testing.assert_allclose(square, 9 * np.eye(min(rows, columns)), atol=1e-5)


def test_plain_ones():
    cell = nn.Parameter(np.zeros((100, 200), np.float32))
    init.uniform_(cell, 3, 5)
    assert 3 <= cell.numpy().min() < 3.01 < 4.99 < cell.numpy().max() <= 5
    init.normal_(cell, 2.0, 0.5)
    check_normal(cell, 0.5, 2.0)
    assert (init.ones_(cell).numpy() == 1).all()
    assert (init.constant_(cell, 0.3).numpy() == np.float32(0.3)).all()
    assert not init.zeros_(cell).numpy().any()
    double = nn.Parameter(np.zeros(3))
    assert init.normal_(double).dtype == palto.float64


def test_gains_are_pytorchs(torch):
    for name in ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name))
    assert init.calculate_gain("leaky_relu", 0.2) == pytest.approx(
        torch.nn.init.calculate_gain("leaky_relu", 0.2)
    )


def test_seeds_and_generators():
    def draw(**options):
        return init.kaiming_uniform_(nn.Parameter(np.zeros((3, 4), np.float32)), **options).tolist()

    first, second = draw(), draw()
    palto.manual_seed(0)
    assert draw() == first != second
    generators = [palto.random.Generator(5), palto.random.Generator(5)]
    assert draw(generator=generators[0]) == draw(generator=generators[1]) != first


def test_errors():
    cell = nn.Parameter(np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match="no gain is known for 'swish', only for linear, "):
        init.kaiming_uniform_(cell, nonlinearity="swish")
    with pytest.raises(ValueError, match="'fan_in' or 'fan_out', got 'fan'"):
        init.kaiming_uniform_(cell, mode="fan")


def test_parameters_stay_trainable_and_no_graph_is_kept():
    cell = init.normal_(nn.Parameter(np.zeros((3, 4), np.float32)))
    assert cell.requires_grad
    assert cell.read().operation is None


@pytest.mark.parametrize("name", ["uniform", "normal"])
def test_large_weights_are_the_same_draws(name, monkeypatch):
    """A program draws them; the sequence goes on behind them as it would."""
    drawn = []
    for many in (1, 10**9):
        monkeypatch.setattr(nn.init, "_MANY", many)
        palto.manual_seed(4)
        cell = palto.Cell(np.zeros((37, 29), np.float32))
        getattr(nn.init, f"{name}_")(cell, -0.5, 1.5)
        drawn.append((cell.numpy(), palto.random.uniform((3,)).numpy()))
    (one, after), (other, expected) = drawn
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert np.array_equal(after, expected)
    assert name == "normal" or (-0.5 <= one.min() and one.max() < 1.5)
