import numpy as np
import pytest

import palto
from palto import optim
from palto.nn import BatchNorm1d, Module, Parameter

from .conftest import assert_same, values


def weights_of_tail(steps, tail):
    """How much each iterate counts, from the definition: a^k = a + (x - a) (h + 1) / (k + h)."""
    growth = 2 / tail - 2
    weights = np.zeros(steps)
    for k in range(1, steps + 1):
        new = (growth + 1) / (k + growth)
        weights *= 1 - new
        weights[k - 1] = new
    return weights


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"average": "uniform"}, np.full(30, 1 / 30)),
        ({"average": "tail"}, weights_of_tail(30, 0.2)),
        ({"average": "tail", "tail": 0.5}, weights_of_tail(30, 0.5)),
        ({"average": "tail", "tail": 1}, np.full(30, 1 / 30)),
    ],
    ids=["uniform", "tail", "half", "whole"],
)
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_the_average_of_the_iterates(case, name, options, weights):
    network = case.network()
    optimizer = getattr(optim, name)(network, 0.1, **options)
    start, iterates = values(network), []
    for _ in range(30):
        case.train(network, optimizer, 1)
        iterates.append(values(network))
    assert weights.sum() == pytest.approx(1)
    mean = {name: np.tensordot(weights, np.stack([x[name] for x in iterates]), 1) for name in start}
    with optimizer.averaged(network):
        assert_same(network, mean, 1e-12)
    assert_same(network, iterates[-1])
    case.train(network, optimizer, 1)


@pytest.mark.parametrize("tail", [0.1, 0.2, 0.5, 1.0])
def test_a_tail_is_as_old_as_a_mean_over_the_last_part(tail):
    steps = 2000
    age = (weights_of_tail(steps, tail) * np.arange(steps)[::-1]).sum()
    assert age == pytest.approx(tail * steps / 2, rel=0.02)


def test_training_values_come_back_after_an_exception(case):
    network = case.network()
    optimizer = optim.Adam(network, average="uniform")
    case.train(network, optimizer, 3)
    before = values(network)
    with pytest.raises(KeyError), optimizer.averaged(network):
        assert not np.array_equal(network.out.weight.numpy(), before["out.weight"])
        raise KeyError
    assert_same(network, before)


def test_eval_never_swaps(case):
    network = case.network()
    optimizer = optim.Adam(network, average="uniform")
    case.train(network, optimizer, 3)
    before = values(network)
    network.eval()
    assert_same(network, before)


def test_averaging_is_asked_for(case):
    network = case.network()
    optimizer = optim.Adam(network)
    with (
        pytest.raises(ValueError, match="keeps no average; make it with average='uniform'"),
        optimizer.averaged(network),
    ):
        pass


def test_frozen_parameters_have_no_average(case):
    network = case.network()
    network.hidden.requires_grad_(False)
    before = values(network)
    optimizer = optim.Adam(network, average="uniform")
    case.train(network, optimizer, 3)
    with optimizer.averaged(network):
        np.testing.assert_array_equal(network.hidden.weight.numpy(), before["hidden.weight"])


# --- Batch normalisation -------------------------------------------------------------------------


class Noise(Module):
    """Draws random numbers in training, and counts how often."""

    def __init__(self):
        self.calls = 0

    def forward(self, x):
        if self.training:
            self.calls += 1
            return x + palto.random.normal(x.shape, dtype=x.dtype)
        return x


class Normed(Module):
    def __init__(self):
        self.weight = Parameter(np.random.default_rng(2).normal(size=(4, 3)))
        self.norm = BatchNorm1d(3).to("float64")
        self.noise = Noise()

    def forward(self, x):
        return self.norm(self.noise(x @ self.weight))


def unbiased(x, axis):
    return np.var(x, axis, ddof=1)


@pytest.fixture
def normed():
    model = Normed()
    optimizer = optim.SGD(model, 0.1, average="uniform")
    rng = np.random.default_rng(3)
    for _ in range(4):
        (model(palto.asarray(rng.normal(size=(8, 4)))) ** 3).sum().backward()
        optimizer.step()
    return model, optimizer, rng.normal(size=(12, 4))


@pytest.mark.parametrize(
    "batches",
    [
        lambda x: [x],
        lambda x: [x[:4], x[4:8], x[8:]],
        lambda x: iter([(palto.asarray(x[:10]), 0), [palto.asarray(x[10:]), 1]]),
    ],
    ids=["one", "three", "of-different-sizes-with-labels"],
)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_computed_anew(normed, batches, momentum):
    model, optimizer, x = normed
    model.norm.momentum = momentum
    statistics = {name: cell.numpy() for name, cell in model.named_buffers()}
    calls = model.noise.calls
    model.eval()
    with optimizer.averaged(model, batches(x)):
        hidden = x @ model.weight.numpy()
        parts = [len(b[0] if isinstance(b, tuple | list) else b) for b in batches(x)]
        split = np.split(hidden, np.cumsum(parts)[:-1])
        for found, of in ((model.norm.running_mean, np.mean), (model.norm.running_var, unbiased)):
            wanted = sum(len(h) / 12 * of(h, axis=0) for h in split)
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)
        assert not model.training
        assert not model.norm.training
    assert model.norm.momentum == momentum
    assert model.noise.calls == calls
    for name, cell in model.named_buffers():
        np.testing.assert_array_equal(cell.numpy(), statistics[name])


def test_modes_are_kept(normed):
    model, optimizer, x = normed
    model.noise.eval()
    with optimizer.averaged(model, [x]):
        assert model.training
        assert model.norm.training
        assert not model.noise.training


@pytest.mark.parametrize(
    ("batches", "message"),
    [(None, "1 batch normalisation layers"), ([], "batches is empty"), (["x"], "asarray|dtype")],
)
def test_batches_are_needed(normed, batches, message):
    model, optimizer, _ = normed
    before = values(model)
    statistics = {name: cell.numpy() for name, cell in model.named_buffers()}
    with pytest.raises((ValueError, TypeError), match=message), optimizer.averaged(model, batches):
        pass
    assert_same(model, before)
    for name, cell in model.named_buffers():
        np.testing.assert_array_equal(cell.numpy(), statistics[name])
    assert model.norm.momentum == 0.1
    assert model.norm.training
