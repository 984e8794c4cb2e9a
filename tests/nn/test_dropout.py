import numpy as np
import pytest

import palto
from palto import nn

F = nn.functional


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p):
    """Each element is 0 with probability p, else 1 / (1 - p): mean 1, variance p / (1 - p)."""
    y = nn.Dropout(p)(palto.ones(40_000)).numpy()
    kept = y[y != 0]
    np.testing.assert_allclose(kept, 1 / (1 - p), rtol=1e-6)
    assert abs(len(kept) / len(y) - (1 - p)) < 0.01
    assert abs(y.mean() - 1) < 5 * np.sqrt(p / (1 - p) / 40_000)


def test_inference_is_the_identity():
    x = palto.asarray([1.0, np.nan])
    assert nn.Dropout(0.5).eval()(x) is x
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x


def test_everything_dropped():
    x = palto.ones(5).detach().requires_grad_()
    y = F.dropout(x * 2, 1.0)
    assert y.tolist() == [0] * 5


def test_gradients_pass_where_elements_stay():
    x = palto.ones(100).detach().requires_grad_()
    y = F.dropout(x, 0.25)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())


def test_draws_differ_and_a_seed_repeats_them():
    layer, x = nn.Dropout(), palto.ones(64)
    first, second = layer(x).tolist(), layer(x).tolist()
    palto.manual_seed(0)
    assert layer(x).tolist() == first != second
    own = nn.Dropout(generator=palto.random.Generator(3))
    assert own(x).tolist() == nn.Dropout(generator=palto.random.Generator(3))(x).tolist()


def test_a_trace_draws_what_eager_draws(traced):
    layer, x = nn.Dropout(), np.ones(64, np.float32)
    (y,), _ = traced(layer, x)  # its draw is thrown away with the trace
    np.testing.assert_array_equal(y, layer(palto.asarray(x)).numpy())


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_no_probability(p):
    for make in (lambda: nn.Dropout(p), lambda: F.dropout(palto.ones(2), p)):
        with pytest.raises(ValueError, match="a probability from 0 to 1, got"):
            make()


def test_looks():
    assert repr(nn.Dropout(0.3)) == "Dropout(0.3)"
