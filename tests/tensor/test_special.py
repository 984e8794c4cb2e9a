"""Accuracy of the functions that are computed from others, in units of the last place."""

import math

import numpy as np
import pytest

import palto
from palto.tensor.special import erf


def error_in_ulp(got, wanted):
    """The largest error, measured in the distance between neighbouring numbers of the dtype."""
    exact = np.array([math.inf if abs(w) > np.finfo(got.dtype).max else w for w in wanted])
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    unit = np.spacing(np.abs(exact[finite]).astype(got.dtype)).astype(np.float64)
    return float((np.abs(got[finite].astype(np.float64) - exact[finite]) / unit).max())


BOTH = np.concatenate([s * np.logspace(-8, 1.9, 3000) for s in (1, -1)])

#: The function, its exact value, points, and errors allowed in float32 and float64.
FUNCTIONS = {
    "erf": (math.erf, BOTH, 0.6, 1.5),
    "sinh": (math.sinh, BOTH, 3, 3),
    "cosh": (math.cosh, BOTH, 3, 3),
    "asinh": (math.asinh, np.concatenate([BOTH, [1e15, -1e25, 1e38]]), 3, 3),
    "acosh": (math.acosh, 1 + np.logspace(-6, 25, 3000), 3, 3),
    "atanh": (math.atanh, np.tanh(BOTH[np.abs(BOTH) < 8]), 3, 3),
    "asin": (math.asin, np.sin(BOTH), 4, 4),
    "acos": (math.acos, np.sin(BOTH), 4, 4),
    "atan": (math.atan, BOTH, 3, 3),
    "tan": (math.tan, BOTH[np.abs(BOTH) < 1.5], 4, 4),
    "expm1": (math.expm1, BOTH, 3, 3),
    "log1p": (math.log1p, np.abs(BOTH), 2, 2),
    "log2": (math.log2, np.abs(BOTH), 3, 3),
    "log10": (math.log10, np.abs(BOTH), 3, 3),
    "rsqrt": (lambda v: 1 / math.sqrt(v), np.abs(BOTH), 2, 2),
    "reciprocal": (lambda v: 1 / v, np.abs(BOTH), 1, 1),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy(name, dtype):
    function, points, single, double = FUNCTIONS[name]
    points = points.astype(dtype)
    wanted = [function(float(p)) for p in points]
    got = getattr(palto, name)(palto.asarray(points)).numpy()
    assert got.dtype == dtype
    assert error_in_ulp(got, wanted) <= (single if dtype == np.float32 else double)


def test_erf_everywhere():
    edges = [0.84375, 1.25, 1 / 0.35, 6.0]
    points = np.array([n for e in edges for n in (np.nextafter(e, 0), e, np.nextafter(e, 9))])
    np.testing.assert_allclose(erf(points), [math.erf(p) for p in points], rtol=3e-16)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-320, 300.0])
    np.testing.assert_array_equal(erf(special), [0, 0, 1, -1, np.nan, math.erf(1e-320), 1])
    assert np.signbit(erf(special)[1])
    assert erf(np.float32(0.5)).dtype == np.float32
    assert erf(np.zeros((2, 0, 3))).shape == (2, 0, 3)
    large = np.linspace(-7, 7, 70_000).reshape(-1, 7)[:, ::-1]
    np.testing.assert_allclose(erf(large), np.vectorize(math.erf)(large), rtol=3e-16)


@pytest.mark.parametrize(
    ("name", "points", "wanted"),
    [
        ("sinh", [0.0, np.inf, -np.inf, 800.0], [0, np.inf, -np.inf, np.inf]),
        ("cosh", [0.0, np.inf, -np.inf], [1, np.inf, np.inf]),
        ("asinh", [0.0, np.inf, -np.inf, 1e300], [0, np.inf, -np.inf, math.asinh(1e300)]),
        ("acosh", [1.0, np.inf, 0.5], [0, np.inf, np.nan]),
        ("atanh", [1.0, -1.0, 2.0, 0.0], [np.inf, -np.inf, np.nan, 0]),
        ("asin", [1.0, -1.0, 1.1], [math.pi / 2, -math.pi / 2, np.nan]),
        ("acos", [1.0, -1.0, -1.1], [0, math.pi, np.nan]),
        ("atan", [np.inf, -np.inf], [math.pi / 2, -math.pi / 2]),
        ("logsumexp", [-np.inf, -np.inf], -np.inf),
        ("logsumexp", [np.inf, 0.0], np.inf),
        ("logsumexp", [np.nan, 0.0], np.nan),
        ("logsumexp", [1e300, 1e300], 1e300),
        ("max", [1.0, np.nan], np.nan),
        ("min", [1.0, np.nan], np.nan),
        ("mean", [3.0] * 49, 3.0),
        ("std", [1e8, 1e8 + 1], 0.5),
        ("vector_norm", [3.0, 4.0], 5.0),
    ],
)
def test_special_values(name, points, wanted):
    """Infinities, NaN and the ends of the domain, without a warning."""
    np.testing.assert_allclose(getattr(palto, name)(np.array(points)), wanted, rtol=1e-15)


def test_median_of_nan():
    x = np.array([[1.0, np.nan, 2.0], [3.0, 1.0, 2.0]])
    np.testing.assert_array_equal(palto.median(x, 1), [np.nan, 2])
    assert palto.median(x, 0, keepdims=True).shape == (1, 3)
