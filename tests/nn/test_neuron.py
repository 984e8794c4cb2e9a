import numpy as np
import pytest

import palto
from palto import nn


@pytest.mark.parametrize("shape", [(5, 3), (3,), (2, 4, 3), (0, 3)])
def test_the_classical_neuron(rng, shape):
    """sigma(sum of w_i x_i - w_0)."""
    x = rng.normal(size=shape).astype(np.float32)
    neuron = nn.Neuron(3)
    total = x @ neuron.weight.numpy() - neuron.threshold.numpy()
    np.testing.assert_allclose(
        neuron(palto.asarray(x)).numpy(), 1 / (1 + np.exp(-total)), rtol=1e-5
    )


def test_it_is_one_row_of_a_linear_layer(rng):
    neuron, layer = nn.Neuron(3, palto.tanh), nn.Linear(3, 1)
    layer.weight.assign(neuron.weight.read().reshape(1, 3).detach())
    layer.bias.assign(-neuron.threshold.read().reshape(1).detach())
    x = palto.asarray(rng.normal(size=(4, 3)).astype(np.float32))
    np.testing.assert_allclose(neuron(x).numpy(), palto.tanh(layer(x)).numpy()[:, 0], rtol=1e-6)


def test_a_product_separates_what_no_line_can():
    """XOR: x1 + x2 - 2 x1 x2 > 1/2."""
    neuron = nn.Neuron(
        [lambda x: x[..., 0], lambda x: x[..., 1], lambda x: x[..., 0] * x[..., 1]],
        activation=lambda s: (s > 0).astype(palto.float32),
    )
    neuron.load_state_dict({"weight": [1.0, 1.0, -2.0], "threshold": 0.5})
    corners = palto.asarray([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    assert neuron(corners).tolist() == [0, 1, 1, 0]


def test_features_may_be_modules():
    inner = nn.Neuron(2)
    outer = nn.Neuron([inner, lambda x: x[..., 0] ** 2])
    names = [name for name, _ in outer.named_parameters()]
    assert names == ["weight", "threshold", "features.0.weight", "features.0.threshold"]
    assert outer(palto.zeros((5, 2))).shape == (5,)


@pytest.mark.parametrize("products", [False, True])
def test_gradients(gradcheck, rng, products):
    features = [lambda x: x[..., 0] * x[..., 1], lambda x: palto.sin(x).sum(-1)]
    neuron = nn.Neuron(features if products else 3).to(palto.float64)
    x = rng.normal(size=(4, 3))
    gradcheck(neuron, x)

    def of_parameters(weight, threshold):
        f = palto.asarray(x)
        f = palto.stack([feature(f) for feature in features], axis=-1) if products else f
        return nn.functional.sigmoid((f * weight).sum(-1) - threshold)

    weight, threshold = neuron.weight.numpy(), neuron.threshold.numpy()
    np.testing.assert_allclose(
        of_parameters(palto.asarray(weight), palto.asarray(threshold)).numpy(),
        neuron(palto.asarray(x)).numpy(),
        rtol=1e-12,
    )
    gradcheck(of_parameters, weight, threshold)


def test_backprop_reaches_weight_and_threshold(rng):
    neuron = nn.Neuron(3, activation=lambda s: s)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    neuron(palto.asarray(x)).sum().backward()
    np.testing.assert_allclose(neuron.weight.grad.numpy(), x.sum(0), rtol=1e-5)
    assert neuron.threshold.grad.item() == -4


def test_traced(traced, rng):
    neuron = nn.Neuron(3)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    (y,), _ = traced(neuron, x)
    np.testing.assert_array_equal(y, neuron(palto.asarray(x)).numpy())


def test_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\(..., 3\), got \(5, 2\)"):
        nn.Neuron(3)(palto.zeros((5, 2)))
    assert repr(nn.Neuron(3)) == "Neuron(3)"
