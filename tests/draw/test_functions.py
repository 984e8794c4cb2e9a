import numpy as np
import pytest

from palto import nn

pytest.importorskip("matplotlib", reason="pictures need the extra plot")
from palto import draw


@pytest.mark.parametrize("dimension", [1, 2])
def test_a_function_and_its_network(tmp_path, dimension):
    network = nn.Linear(dimension, 1)
    path = tmp_path / "a.svg"
    draw.approximation(lambda x: x.sum(1), network, 0.25, path, dimension=dimension)
    text = path.read_text()
    assert ">network" in text and (">within 0.25<" in text) == (dimension == 1)


def test_other_dimensions(tmp_path):
    with pytest.raises(ValueError, match="1 or 2 numbers can be drawn, got 3"):
        draw.approximation(np.sum, nn.Linear(3, 1), 0.1, tmp_path / "a.png", dimension=3)
