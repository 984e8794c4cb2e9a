import numpy as np
import pytest

from palto import nn
from palto.nn import activations as known

pytest.importorskip("matplotlib", reason="pictures need the extra plot")
from palto import draw
from palto.draw.curves import CURVES, curve_of


def test_every_activation_is_drawn():
    classes = {
        kind
        for kind in vars(known).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind is not nn.Module
    }
    assert {type(curve.layer) for curve in CURVES} == classes


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: type(curve.layer).__name__)
def test_derivatives_are_those_of_the_curves(curve):
    x = np.linspace(-4, 4, 401) + 0.004  # beside the kinks
    value, derivative = curve_of(curve, x)
    slope = (value[2:].astype(np.float64) - value[:-2]) / (x[2:] - x[:-2])
    smooth = np.abs(np.diff(derivative, 2)) < 0.05  # a kink lies between others
    assert smooth.mean() > 0.95
    np.testing.assert_allclose(derivative[1:-1][smooth], slope[smooth], atol=5e-3)


def test_the_picture(tmp_path):
    draw.activations(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert all(f">{type(curve.layer).__name__}<" in text for curve in CURVES)
