import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import palto
from palto import nn
from palto.backprop import gradients

F = nn.functional

#: Layers beside PyTorch's, where another name or argument is needed.
PAIRS = {
    "Identity": {}, "Sigmoid": {}, "Tanh": {}, "ReLU": {}, "LeakyReLU": {}, "ELU": {}, "GELU": {},
    "SiLU": {}, "Softplus": {}, "Hardtanh": {}, "PReLU": {},
}  # fmt: skip
EXTREME = [-3e38, -1e20, -1e4, -1000.0, -88.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 88.0, 1e4, 3e38]


@pytest.mark.parametrize("name", PAIRS)
def test_activation_is_pytorchs(twins, torch, rng, name):
    ours, theirs = getattr(nn, name)(), getattr(torch.nn, name)()
    for shape in [(4, 3), (1, 2, 5), (0, 3), ()]:
        x = 3 * rng.normal(size=shape)
        twins.layers(ours, theirs, x if name != "PReLU" or shape else np.ones(1))
    twins.layers(ours, theirs, np.array([[0.0, 1.0, -1.0]]))  # kinks


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LeakyReLU", {"negative_slope": 0.2}),
        ("ELU", {"alpha": 0.5}),
        ("GELU", {"approximate": "tanh"}),
        ("Hardtanh", {"min_val": -2.0, "max_val": 0.5}),
    ],
)
def test_options_are_pytorchs(twins, torch, rng, name, options):
    ours, theirs = getattr(nn, name)(**options), getattr(torch.nn, name)(**options)
    twins.layers(ours, theirs, 3 * rng.normal(size=(4, 5)))


def test_prelu_has_a_slope_for_each_channel(twins, torch, rng):
    twins.layers(nn.PReLU(3), torch.nn.PReLU(3), rng.normal(size=(2, 4, 5, 3)), images=True)
    assert nn.PReLU(3).weight.tolist() == [0.25] * 3


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax_is_pytorchs(twins, torch, rng, name, axis):
    ours, theirs = getattr(nn, name)(axis), getattr(torch.nn, name)(dim=axis)
    twins.layers(ours, theirs, 3 * rng.normal(size=(4, 5, 6)))
    with_masked = rng.normal(size=(3, 4))
    with_masked[:2, 1] = -np.inf
    with_masked[1, 2] = -np.inf
    if axis == -1:
        y = ours(palto.asarray(with_masked)).numpy()
        np.testing.assert_allclose(y, theirs(torch.tensor(with_masked)).numpy())


@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=6),
    st.floats(-1e3, 1e3),
)
def test_softmax_is_a_distribution_and_does_not_feel_a_shift(values, shift):
    x = palto.asarray(values)
    a = F.softmax(x).numpy()
    assert (a >= 0).all()
    assert abs(a.sum() - 1) < 1e-6
    wide = palto.asarray(np.clip(np.array(values), -1e3, 1e3))
    np.testing.assert_allclose(F.softmax(wide + shift).numpy(), F.softmax(wide).numpy(), atol=1e-9)
    assert np.isfinite(F.log_softmax(wide).numpy()).all()


ALL = {
    **{name: getattr(nn, name)() for name in PAIRS},
    "GELU tanh": nn.GELU("tanh"),
    "Maxout": lambda x: nn.Maxout(2)(palto.stack([x, -x], axis=-1)),
    "Softmax": lambda x: nn.Softmax()(palto.stack([x, -x], axis=-1)),
    "LogSoftmax": lambda x: nn.LogSoftmax()(palto.stack([x, x * 0.5], axis=-1)),
}


@pytest.mark.parametrize("name", ALL)
def test_extreme_values(name):
    x = palto.asarray(EXTREME, requires_grad=True)
    y = ALL[name](x)
    finite = [v for v in EXTREME if abs(v) < 1e30] if name == "LogSoftmax" else EXTREME
    assert np.isfinite(y.numpy()[: len(finite)]).all()
    (gradient,) = gradients([y], [palto.ones_like(y)], [x])
    assert np.isfinite(gradient.numpy()).all()


@pytest.mark.parametrize("name", ALL)
def test_nan_shows(name):
    assert np.isnan(ALL[name](palto.asarray([np.nan])).numpy()).any()


def test_tails_keep_their_precision():
    """Float32 far from zero, against formulas that do not cancel, in float64."""
    x = np.array([-80.0, -40.0, -20.0, -5.0, 0.0, 5.0, 20.0], np.float32)
    wide = x.astype(np.float64)
    e = np.exp(wide)
    np.testing.assert_allclose(F.sigmoid(palto.asarray(x)).numpy(), e / (1 + e), rtol=1e-6)
    np.testing.assert_allclose(F.softplus(palto.asarray(x)).numpy(), np.log1p(e), rtol=1e-6)
    leaf = palto.asarray(x, requires_grad=True)
    slope = gradients([F.sigmoid(leaf)], [palto.ones(x.shape)], [leaf])[0].numpy()
    np.testing.assert_allclose(slope, e / (1 + e) ** 2, rtol=1e-5)
    assert F.relu(palto.asarray([-0.0, -1.0])).tolist() == [0, 0]


def test_second_derivatives(gradcheck, rng):
    x = rng.normal(size=(3, 4))
    for function in (F.sigmoid, F.softplus, F.silu, F.gelu, F.elu, F.softmax, F.log_softmax):
        gradcheck(function, x)
        gradcheck(palto.grad(lambda x, f=function: (f(x) ** 2).sum()), x)


def test_maxout(gradcheck, twins, torch, rng):
    x = rng.normal(size=(2, 5, 6))
    gradcheck(lambda x: F.maxout(x, 3), x)
    twins.functions(lambda x: F.maxout(x, 3), lambda x: x.reshape(2, 5, 2, 3).amax(-1), x)
    model = nn.Sequential(nn.Linear(4, 6), nn.Maxout(2))
    assert model(palto.zeros((5, 4))).shape == (5, 3)
    with pytest.raises(ValueError, match=r"a multiple of 4, got shape \(2, 6\)"):
        nn.Maxout(4)(palto.zeros((2, 6)))


def test_maxout_of_two_lines_is_any_convex_kink():
    """max(x, -x) = |x|, and max(x, 0) = relu(x) (Goodfellow et al., 2013)."""
    x = palto.linspace(-2, 2, 9)
    assert F.maxout(palto.stack([x, -x], axis=-1))[:, 0].tolist() == abs(x).tolist()
    zero = palto.zeros_like(x)
    assert F.maxout(palto.stack([x, zero], axis=-1))[:, 0].tolist() == F.relu(x).tolist()


@pytest.mark.parametrize(
    "function",
    [F.sigmoid, F.elu, F.gelu, F.silu, F.softplus, F.softmax, F.log_softmax],
    ids=lambda f: f.__name__,
)
def test_composites_keep_their_name_in_a_trace(traced, rng, function):
    x = rng.normal(size=(3, 4))
    (y,), graph = traced(function, x)
    assert [operation.params.get("name") for operation in graph.operations] == [function.__name__]
    np.testing.assert_allclose(y, function(palto.asarray(x)).numpy(), rtol=1e-15)


def test_integers_pass_relu():
    assert F.relu(palto.asarray([-1, 0, 2])).tolist() == [0, 0, 2]


def test_wrong_names():
    for make in (lambda: nn.GELU("sigmoid"), lambda: F.gelu(palto.ones(2), "sigmoid")):
        with pytest.raises(ValueError, match="'none' or 'tanh', got 'sigmoid'"):
            make()


def test_looks():
    assert repr(nn.ReLU()) == "ReLU()"
    assert repr(nn.LeakyReLU(0.2)) == "LeakyReLU(0.2)"
    assert repr(nn.ELU()) == "ELU(1.0)"
    assert repr(nn.GELU("tanh")) == "GELU(approximate='tanh')"
    assert repr(nn.Hardtanh()) == "Hardtanh(-1.0, 1.0)"
    assert repr(nn.PReLU(3)) == "PReLU(3)"
    assert repr(nn.Maxout(3)) == "Maxout(3)"
    assert repr(nn.Softmax()) == "Softmax()"
    assert repr(nn.LogSoftmax(0)) == "LogSoftmax(axis=0)"
