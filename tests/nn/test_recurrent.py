"""Recurrent layers beside PyTorch's."""

import numpy as np
import pytest

import palto
from palto import nn


def joined(layers, layer, concat):
    """A module around a recurrent one, whose one output is all of its outputs end to end."""

    class Joined(layers.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, *state):
            given = state if len(state) > 1 else (state[0] if state else None)
            outputs = self.layer(x, given)
            flat = []
            while outputs is not None:
                first, outputs = outputs if isinstance(outputs, tuple) else (outputs, None)
                flat.append(first.reshape((-1,)))
            return concat(flat)

    return Joined()


def compare(twins, torch, name, arrays, *sizes, **options):
    twins.layers(
        joined(nn, getattr(nn, name)(*sizes, **options), palto.concat),
        joined(torch.nn, getattr(torch.nn, name)(*sizes, **options), torch.cat),
        *arrays,
    )


KINDS = [("RNN", 1), ("LSTM", 2), ("GRU", 1)]


@pytest.mark.parametrize(("name", "states"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize("begins", [True, False])
def test_a_cell_is_pytorchs(twins, torch, rng, name, states, bias, batch, begins):
    arrays = [rng.normal(size=(*batch, 3))]
    arrays += [rng.normal(size=(*batch, 5)) for _ in range(states * begins)]
    compare(twins, torch, f"{name}Cell", arrays, 3, 5, bias=bias)


@pytest.mark.parametrize(("name", "states"), KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"num_layers": 2, "bidirectional": True},
        {"num_layers": 3, "bias": False},
    ],
)
@pytest.mark.parametrize("batch", [(), (4,)])
@pytest.mark.parametrize("begins", [True, False])
def test_layers_are_pytorchs(twins, torch, rng, name, states, options, batch, begins):
    shape = (*batch, 6, 3) if options.get("batch_first") and batch else (6, *batch, 3)
    parts = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    arrays = [rng.normal(size=shape)]
    arrays += [rng.normal(size=(parts, *batch, 5)) for _ in range(states * begins)]
    compare(twins, torch, name, arrays, 3, 5, **options)


def test_relu_instead_of_tanh(twins, torch, rng):
    compare(twins, torch, "RNN", [rng.normal(size=(6, 4, 3))], 3, 5, nonlinearity="relu")
    compare(twins, torch, "RNNCell", [rng.normal(size=(4, 3))], 3, 5, nonlinearity="relu")


@pytest.mark.parametrize(("name", "states"), KINDS)
def test_compiled_as_eager(rng, name, states):
    palto.manual_seed(0)
    layer = getattr(nn, name)(3, 5, num_layers=2, bidirectional=True)

    def loss(x):
        y, state = layer(x)
        state = palto.concat(state, axis=0) if states > 1 else state
        return (y**2).sum() + palto.sin(state).sum()

    def both(x):
        return palto.value_and_grad(loss)(x)

    x = rng.normal(size=(7, 4, 3)).astype(np.float32)
    value, grad = both(palto.asarray(x))
    compiled_value, compiled_grad = palto.compile(both)(x)
    np.testing.assert_allclose(compiled_value, value, rtol=1e-5)
    np.testing.assert_allclose(compiled_grad, grad, rtol=1e-4, atol=1e-5)


def test_dropout_lies_between_layers_in_training_alone(rng):
    x = palto.asarray(rng.normal(size=(6, 4, 3)).astype(np.float32))
    palto.manual_seed(0)
    layer = nn.GRU(3, 5, num_layers=2, dropout=0.5)
    first, again = (layer(x)[0].numpy() for _ in range(2))
    assert not np.array_equal(first, again)
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0].numpy(), layer(x)[0].numpy())
    single = nn.GRU(3, 5, dropout=0.5)  # there is nothing between
    np.testing.assert_array_equal(single(x)[0].numpy(), single(x)[0].numpy())


def test_weights_start_as_pytorchs_do():
    layer = nn.GRU(10, 400)
    assert [x.shape for x in layer.parameters()] == [(1200, 10), (1200, 400), (1200,), (1200,)]
    for parameter in layer.parameters():
        values = parameter.numpy() * 20
        assert 0.99 < abs(values).max() <= 1
        assert abs(values.var() - 1 / 3) < 0.05


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.GRU(3, 5)(palto.zeros((6, 4, 2))), r"wanted is \(time, N, 3\)"),
        (lambda: nn.GRU(3, 5, batch_first=True)(palto.zeros((6, 4, 2))), r"\(N, time, 3\)"),
        (lambda: nn.GRU(3, 5)(palto.zeros(3)), r"got \(3,\)"),
        (
            lambda: nn.LSTM(3, 5)(palto.zeros((6, 4, 3)), (palto.zeros((1, 4, 5)),)),
            r"\(h, c\), each of shape \(1, 4, 5\)",
        ),
        (lambda: nn.GRUCell(3, 5)(palto.zeros((4, 3)), palto.zeros((1, 5))), r"\(4, 5\)"),
        (lambda: nn.GRU(3, 5, num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: nn.RNN(3, 5, nonlinearity="elu"), "'tanh' or 'relu', got 'elu'"),
        (lambda: nn.GRUCell(3, 5)(palto.zeros((4, 2))), "from 3 to 15"),
    ],
)
def test_what_does_not_fit_is_said(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_looks():
    assert repr(nn.GRU(3, 5)) == "GRU(3, 5)"
    assert repr(nn.LSTM(3, 5, 2, bidirectional=True)) == (
        "LSTM(3, 5, num_layers=2, bidirectional=True)"
    )
    assert repr(nn.RNNCell(3, 5, bias=False)) == "RNNCell(3, 5, bias=False)"
