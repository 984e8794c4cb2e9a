import numpy as np
import pytest

import palto
from palto import nn


@pytest.mark.parametrize("shape", [(4, 5), (1, 5), (0, 5), (5,), (2, 3, 5), (2, 1, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs(twins, torch, rng, shape, bias):
    twins.layers(nn.Linear(5, 3, bias), torch.nn.Linear(5, 3, bias), rng.normal(size=shape))


def test_linear_starts_as_pytorchs_does():
    layer = nn.Linear(400, 300)
    assert layer.weight.shape == (300, 400)
    for parameter in (layer.weight, layer.bias):
        values = parameter.numpy() * 20  # uniform in +-1
        assert abs(values).max() <= 1
        assert abs(values).max() > 0.99
        assert abs(values.mean()) < 0.1
        assert abs(values.var() - 1 / 3) < 0.05


def test_a_wrong_shape_names_the_layer_and_the_remedy():
    model = nn.Sequential(nn.Linear(784, 10))
    with pytest.raises(ValueError) as caught:
        model(palto.zeros((64, 28, 28, 1)))
    assert str(caught.value) == (
        "a linear layer from 784 to 10 wants an input of shape (..., 784), got (64, 28, 28, 1); "
        "put nn.Flatten() before it"
    )
    assert caught.value.__notes__ == ["in layer Sequential.layers.0: Linear(784, 10)"]
    with pytest.raises(ValueError, match=r"got \(64, 783\)\n"):
        model(palto.zeros((64, 783)))
    with pytest.raises(ValueError, match=r"got \(\)\n"):
        model(palto.asarray(1.0))


def test_integer_images_want_a_cast():
    with pytest.raises(TypeError, match="cast one of them first") as caught:
        nn.Linear(4, 2)(palto.zeros((3, 4), dtype=palto.uint8))
    assert "Linear(4, 2)" in caught.value.__notes__[0]


def test_flatten_keeps_channels_fastest(rng):
    images = rng.normal(size=(2, 3, 4, 5))
    np.testing.assert_array_equal(
        nn.Flatten()(palto.asarray(images)).numpy(), images.reshape(2, 60)
    )
    assert nn.Flatten(2)(palto.zeros((2, 3, 4, 5))).shape == (2, 3, 20)
    assert nn.Flatten(0, 1)(palto.zeros((2, 3, 4, 5))).shape == (6, 4, 5)
    assert nn.Flatten()(palto.zeros((0, 3, 4))).shape == (0, 12)


def test_looks():
    assert repr(nn.Linear(3, 2)) == "Linear(3, 2)"
    assert repr(nn.Linear(3, 2, bias=False)) == "Linear(3, 2, bias=False)"
    assert repr(nn.Flatten()) == "Flatten()"
    assert repr(nn.Flatten(2)) == "Flatten(start_axis=2, end_axis=-1)"
