"""The universal approximation theorem: certificates that must hold at every point."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import palto
from palto import nn, optim
from palto.formats import safetensors
from palto.theory import NotCertifiedError, Superposition, approximate, certify


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def wave(x):
    return np.sin(2 * np.pi * x[:, 0])


def product(x):
    return x[:, 0] * x[:, 1]


def nothing(x):
    return np.zeros(len(x))


def values(network, x):
    """The network's own values, run at once and compiled."""
    tensor = palto.asarray(x)
    with palto.no_grad():
        run = palto.compile(lambda x: network(x))
        return np.concatenate([network(tensor).numpy(), run(tensor).numpy()])


def error(network, function, x):
    wanted = np.asarray(function(x)).reshape(-1)
    return float(np.abs(values(network, x) - np.concatenate([wanted, wanted])).max())


def adversarial(network, rng):
    """Points where a staircase rises, and beside them; borders of cells; corners; any points."""
    n = network.weight.shape[1]
    weight, threshold = network.weight.numpy(), network.threshold.numpy()
    points = [rng.uniform(size=(4000, n)), rng.integers(0, 17, (500, n)) / 16]
    if n == 1:
        steep = weight[:, 0] != 0
        places, width = (threshold[steep] / weight[steep, 0]), 1 / np.abs(weight[steep, 0])
        shifts = np.array([-40, -5, -1, 0, 1, 5, 40])
        points.append((places[:, None] + shifts * width[:, None]).reshape(-1, 1))
    points.append(np.nextafter(points[1], 0.5))
    return np.clip(np.concatenate(points), 0, 1)


# One dimension: the staircase


@settings(max_examples=15)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    st.lists(st.floats(0.5, 20), min_size=4, max_size=4),
    st.floats(0.05, 1),
    st.integers(0, 10**6),
)
def test_the_bound_of_a_staircase_holds(sizes, rates, tolerance, seed):
    """For sums of waves, whose Lipschitz constant is known exactly."""
    pairs = list(zip(sizes, rates, strict=False))

    def function(x):
        return sum(size * np.sin(rate * x[:, 0] + k) for k, (size, rate) in enumerate(pairs))

    found = approximate(function, tolerance, lipschitz=sum(abs(a * b) for a, b in pairs))
    assert found.method == "staircase" and found.bound < tolerance
    assert found.bound == pytest.approx(sum(found.parts.values()))
    points = adversarial(found.network, np.random.default_rng(seed))
    assert error(found.network, function, points) <= found.bound


@settings(max_examples=15)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=9), st.floats(0.05, 1))
@example([1.0, 1.0, -1.0, -1.0], 0.1)  # flat, steep, flat
@example([0.0, 0.0], 0.1)
def test_it_holds_for_functions_with_kinks(heights, tolerance):
    nodes = np.linspace(0, 1, len(heights))

    def function(x):
        return np.interp(x[:, 0], nodes, heights)

    steepest = np.abs(np.diff(heights)).max() * (len(heights) - 1)
    found = approximate(function, tolerance, lipschitz=steepest * (1 + 1e-9))
    points = adversarial(found.network, np.random.default_rng(0))
    assert error(found.network, function, points) <= found.bound < tolerance


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_tight_lipschitz_constant_is_taken_at_any_scale(scale):
    found = approximate(lambda x: scale * 3 * x[:, 0], scale / 10, lipschitz=scale * 3)
    points = adversarial(found.network, np.random.default_rng(0))
    assert error(found.network, lambda x: scale * 3 * x[:, 0], points) <= found.bound


def test_fast_waves_are_not_taken_for_wrong():
    """Their arguments are rounded more than their values."""
    assert approximate(lambda x: np.sin(1000 * x[:, 0]), 0.5, lipschitz=1000).units > 600


def test_as_many_units_as_the_proof_says():
    """V / (2 tolerance) for a function that rises and falls by V in all, here 4."""
    counts = {}
    for tolerance in (0.4, 0.1, 0.025):
        counts[tolerance] = approximate(wave, tolerance, lipschitz=2 * math.pi).units
        least = 4 / (2 * tolerance)
        assert 0.7 * least <= counts[tolerance] <= 1.15 * least + 2
    assert 3.3 <= counts[0.025] / counts[0.1] <= 4.7


def test_where_a_function_is_flat_there_are_no_steps():
    def bump(x):
        return np.maximum(0, 1 - 20 * np.abs(x[:, 0] - 0.5))

    network = approximate(bump, 0.05, lipschitz=20).network
    places = network.threshold.numpy()[1:] / network.weight.numpy()[1:, 0]
    assert len(places) < 25 < 20 / (2 * 0.05)  # what equal steps would need
    assert places.min() > 0.44 and places.max() < 0.56


def test_a_modulus_is_for_functions_without_a_lipschitz_constant():
    def root(x):
        return np.sqrt(x[:, 0])

    with pytest.raises(NotCertifiedError, match="is not true of this function"):
        approximate(root, 0.05, lipschitz=5)
    found = approximate(root, 0.05, modulus=np.sqrt)
    points = np.concatenate([np.geomspace(1e-12, 1, 500), [0]])[:, None]
    assert error(found.network, root, points) <= found.bound < 0.05
    assert found.units < 15


def test_a_constant_is_one_unit():
    found = approximate(lambda x: np.full(len(x), 3.0), 0.1, lipschitz=0)
    assert found.units == 1 and found.bound < 1e-12
    assert error(found.network, lambda x: np.full(len(x), 3.0), np.zeros((1, 1))) <= found.bound


def test_values_in_a_column_and_of_other_dtypes():
    column = approximate(lambda x: np.float32(3) * x.astype(np.float32), 0.1, lipschitz=3)
    row = approximate(lambda x: 3 * x[:, 0], 0.1, lipschitz=3)
    assert abs(column.units - row.units) <= 1
    assert approximate(lambda x: np.ones(len(x), int), 0.1, lipschitz=0).units == 1


# Two and three dimensions: cells

SURFACES = {
    "product": (product, 2, math.sqrt(2), 0.1),
    "waves": (lambda x: np.sin(4 * x[:, 0]) * np.cos(3 * x[:, 1]), 2, 5.0, 0.15),
    "kink": (lambda x: np.abs(x - 0.4).sum(1), 2, math.sqrt(2), 0.2),
    "large": (lambda x: 1e6 * product(x), 2, 1e6 * math.sqrt(2), 1e5),
    "flat": (nothing, 2, 0.0, 0.1),
    "volume": (lambda x: x.prod(1), 3, math.sqrt(3), 0.15),
}


@pytest.mark.parametrize("name", SURFACES)
def test_the_bound_of_cells_holds(name, rng):
    function, n, lipschitz, tolerance = SURFACES[name]
    found = approximate(function, tolerance, n, lipschitz=lipschitz)
    assert found.method == "cells" and found.bound < tolerance
    assert found.bound == pytest.approx(sum(found.parts.values()))
    assert error(found.network, function, adversarial(found.network, rng)) <= found.bound


def test_a_network_that_cells_refute_is_followed_by_a_larger_one(monkeypatch, rng):
    wanted = approximate(product, 0.02, 2, lipschitz=math.sqrt(2))
    monkeypatch.setattr("palto.theory.universal._PROMISING", 100)  # whatever the test points say
    found = approximate(product, 0.02, 2, lipschitz=math.sqrt(2))
    assert found.units <= wanted.units and found.units > 8
    assert error(found.network, product, adversarial(found.network, rng)) <= found.bound


def test_a_smaller_tolerance_takes_more_units():
    units = [approximate(product, t, 2, lipschitz=1.5).units for t in (0.3, 0.03)]
    assert units[0] < units[1] < 100


def test_a_modulus_in_two_dimensions(rng):
    def root(x):
        return np.sqrt(x.mean(1))

    found = approximate(root, 0.25, 2, modulus=np.sqrt)
    assert error(found.network, root, adversarial(found.network, rng)) <= found.bound


# Any network


@settings(max_examples=10)
@given(
    st.integers(1, 3),
    st.integers(1, 30),
    st.sampled_from([0.3, 3.0, 30.0, 1e4]),
    st.sampled_from([palto.float64, palto.float32]),
    st.integers(0, 10**6),
)
def test_the_bound_of_any_network_holds(n, units, steepness, dtype, seed):
    """Against 0: so the bound is one of the network's size, as it computes in its own dtype."""
    rng = np.random.default_rng(seed)
    network = Superposition(n, units, dtype)
    weight = rng.normal(size=(units, n)) * steepness ** (1 / n)
    network.load_state_dict(
        {
            "weight": weight,
            "threshold": (weight * rng.uniform(size=(units, n))).sum(1),
            "alpha": rng.normal(size=units),
        }
    )
    points = adversarial(network, rng).astype(dtype)
    largest = float(np.abs(values(network, points)).max())
    size = np.abs(network.alpha.numpy()).sum(dtype=np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palto.theory.cells._MOST_NEURONS", 3_000_000)
        for tolerance in (1.5 * size, 1.1 * largest):
            try:
                bound = certify(network, nothing, tolerance, lipschitz=0)
            except NotCertifiedError as error:  # the best bound is one, too
                bound = error.bound
                assert bound >= tolerance
            assert largest <= bound
        with pytest.raises(NotCertifiedError):
            certify(network, nothing, 0.9 * largest + 1e-300, lipschitz=0)


def test_a_staircase_passes_the_test_of_cells():
    """Two ways to the same certificate."""
    found = approximate(wave, 0.2, lipschitz=2 * math.pi)
    assert certify(found.network, wave, 0.2, lipschitz=2 * math.pi) < 0.2


def test_a_small_error_between_the_samples_is_found():
    """A network that is right but for one narrow peak, which no coarse grid meets."""
    found = approximate(wave, 0.2, lipschitz=2 * math.pi)
    state = {name: tensor.numpy() for name, tensor in found.network.state_dict().items()}
    place, steepness = 0.123456, 1e5
    bad = Superposition(1, found.units + 2)
    bad.load_state_dict(
        {
            "weight": np.concatenate([state["weight"], [[steepness], [steepness]]]),
            "threshold": np.concatenate(
                [state["threshold"], [steepness * place - 5, steepness * place + 5]]
            ),
            "alpha": np.concatenate([state["alpha"], [1.0, -1.0]]),
        }
    )
    with pytest.raises(NotCertifiedError, match="not as good: at x = "):
        certify(bad, wave, 0.2, lipschitz=2 * math.pi)


def test_the_network_is_a_module_that_trains_further(tmp_path):
    """Trained on, compiled, saved, loaded, certified again."""
    found = approximate(product, 0.1, 2, lipschitz=math.sqrt(2))
    network = found.network
    assert isinstance(network, nn.Module) and repr(network) == f"Superposition(2, {found.units})"
    optimizer = optim.Adam(network, lr=1e-3)
    points = np.random.default_rng(0).uniform(size=(512, 2))
    inputs, wanted = palto.asarray(points), palto.asarray(product(points))

    @palto.compile
    def step():
        loss = nn.functional.mse_loss(network(inputs), wanted)
        loss.backward()
        optimizer.step()
        return loss

    first = float(step())
    losses = [float(step()) for _ in range(200)]
    assert losses[-1] < 0.9 * first
    safetensors.save(tmp_path / "network.safetensors", network.state_dict())
    loaded = Superposition(2, found.units)
    loaded.load_state_dict(safetensors.load(tmp_path / "network.safetensors"))
    np.testing.assert_array_equal(loaded(inputs).numpy(), network(inputs).numpy())
    assert certify(loaded, product, 0.15, lipschitz=math.sqrt(2)) < 0.15


def test_gradients(check_gradients, rng):
    network = Superposition(2, 3)
    check_gradients(network, rng.normal(size=(4, 2)))
    assert network(palto.zeros((5, 2))).shape == (5,)


# Refusals


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (wave, {}, "values alone prove nothing.*slope of 6.28"),
        (wave, {"lipschitz": 6}, "lipschitz=6 is not true of this function"),
        (wave, {"lipschitz": 7, "modulus": np.sqrt}, "not both"),
        (wave, {"lipschitz": "7"}, "number from 0 up, got '7'"),
        (wave, {"lipschitz": -1}, "number from 0 up, got -1"),
        (wave, {"lipschitz": math.nan}, "number from 0 up, got nan"),
        (wave, {"modulus": lambda d: 1 - d}, "0 up|grows with the distance"),
        (wave, {"modulus": lambda d: 1.0}, "for 1024 distances"),
        (wave, {"modulus": lambda d: 3 + 0 * d}, "may still change by 3"),
        (wave, {"lipschitz": 7, "tolerance": 0}, "positive number, got 0"),
        (wave, {"lipschitz": 7, "tolerance": 1e-9}, "finer grids are not tried"),
        (wave, {"lipschitz": 7, "tolerance": 1e-3, "max_units": 100}, "max_units"),
        (wave, {"lipschitz": 7, "max_units": 0}, "from 1 up, got 0"),
        (wave, {"lipschitz": 7, "tolerance": "0.1"}, "positive number, got '0.1'"),
        (wave, {"lipschitz": 7, "dimension": 0}, "1, 2 or 3, got 0"),
        (wave, {"lipschitz": 7, "dimension": 4}, "1, 2 or 3, got 4"),
        (wave, {"lipschitz": 7, "dimension": True}, "1, 2 or 3, got True"),
        ("wave", {"lipschitz": 7}, "got 'wave'"),
        (lambda x: 1.0, {"lipschitz": 7}, r"values of shape \(\d+,\), got \(\)"),
        (lambda x: np.tile(x, 2), {"lipschitz": 7}, r"got \(\d+, 2\)"),
        (lambda x: x[:, 0] + 1j, {"lipschitz": 7}, "real numbers, got complex128"),
        (lambda x: 1 / x[:, 0], {"lipschitz": 7}, r"is inf at x = \(0\)"),
        (lambda x: np.log(x[:, 0] - 0.5), {"lipschitz": 7}, "is (nan|-inf) at"),
        (lambda x: x[:, 0] > 1 / 3, {"lipschitz": 1e4}, "is not true of this function"),
        (lambda x: 1e-3 * (x[:, 0] > 0.777), {"lipschitz": 50}, "is not true of this function"),
        (lambda x: x[:, 0] > x[:, 1], {"lipschitz": 100, "dimension": 2}, "is not true"),
        (product, {"lipschitz": 1.3, "dimension": 2}, "is not true of this function"),
        (product, {"lipschitz": 2, "dimension": 2, "max_units": 2}, "2 to 2 units.*max_units"),
        (product, {"lipschitz": 2, "dimension": 2, "tolerance": 1e-5}, "must be looked at|fitted"),
    ],
)
def test_refusals(function, options, message):
    options = {"tolerance": 0.1, **options}
    with pytest.raises(NotCertifiedError, match=message):
        approximate(function, options.pop("tolerance"), options.pop("dimension", 1), **options)


def test_a_mistake_in_the_function_says_how_it_was_called():
    with pytest.raises(IndexError) as caught:
        approximate(product, 0.1, lipschitz=2)
    assert "the function was called with points, float64 (" in caught.value.__notes__[0]


def test_a_peak_that_only_cells_meet():
    """Half of the certificate's points are asked by nobody else: they are compared, too."""
    centre = np.array([0.40625, 0.40625])  # of a cell

    def peak(x):
        return product(x) + 0.3 * np.maximum(0, 1 - 500 * np.abs(x - centre).max(1))

    with pytest.raises(NotCertifiedError, match="is not true of this function"):
        approximate(peak, 0.1, 2, lipschitz=1.5)


def test_other_modules_are_not_certified():
    with pytest.raises(TypeError, match="a Superposition is certified, got a Linear"):
        certify(nn.Linear(1, 1), wave, 0.1, lipschitz=7)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(math.nan, palto.float64), (math.inf, palto.float64), (3e38, palto.float32)],
)
def test_weights_that_have_no_certificate(size, dtype):
    """Sums of numbers near the largest may be infinite on the way."""
    network = Superposition(1, 4, dtype)
    network.weight.assign(palto.asarray(np.full((4, 1), size, dtype)))
    with pytest.raises(NotCertifiedError, match="NaN, infinite or too large"):
        certify(network, wave, 2.0, lipschitz=7)


def test_a_refusal_says_how_near_it_came(monkeypatch):
    """Of a network of steep neurons that cancel: right, but not to be shown with few cells."""
    monkeypatch.setattr("palto.theory.cells._MOST_NEURONS", 1_000_000)
    network = Superposition(3, 40)
    weight = np.full((40, 3), 3e4)
    network.load_state_dict(
        {
            "weight": weight,
            "threshold": np.full(40, 4e4),
            "alpha": np.tile([1.0, -1.0], 20) * 100,
        }
    )
    with pytest.raises(NotCertifiedError, match="best bound is") as caught:
        certify(network, nothing, 0.01, lipschitz=0)
    assert 0.01 < caught.value.bound < math.inf
