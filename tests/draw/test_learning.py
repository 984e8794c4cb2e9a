"""Learning curves as files."""

import pytest

from palto.draw import learning

pytest.importorskip("matplotlib", reason="Matplotlib is not installed (pip install 'palto[plot]')")

CURVES = {"one": [(10, 0.5, 0.1), (100, 0.7, 0.05)], "another": [(10, 0.6, 0.0)]}


def test_curves_and_gains_are_drawn_alike_each_time(tmp_path):
    for path in (tmp_path / "a.svg", tmp_path / "b.svg"):
        learning.learning_curves(path, CURVES, title="what is shown")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    learning.learning_gain(tmp_path / "gain.png", CURVES, [(10, 0.1, 0.02)])
    learning.time_against_accuracy(
        tmp_path / "time.png", {"one": [(1.0, 0.5, 10), (9.0, 0.7, 100)]}
    )
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())


def test_errors_are_bars_of_a_deviation_up_and_down(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(learning, "save", lambda figure, path: drawn.append(figure))
    learning.learning_curves(tmp_path / "x.svg", CURVES)
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log"
    bars = axes.containers[0].lines[2][0].get_segments()
    assert bars[0].tolist() == [pytest.approx([10, 40]), pytest.approx([10, 60])]
