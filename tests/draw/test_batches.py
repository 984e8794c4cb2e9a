"""The picture of a batch study."""

from xml.etree import ElementTree

import pytest

from palto import draw
from palto.train import BatchRow, BatchStudy


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need Matplotlib")
    rows = [BatchRow(size, 1e-3 + 1e-5 * size, 5 / size**0.5, 9.0, 1.0) for size in (1, 8, 64)]
    path = tmp_path / "batches.svg"
    for scale in (25.0, float("inf")):
        draw.batch_study(BatchStudy(tuple(rows), scale, 640, 2.3), path)
        text = path.read_text()
        ElementTree.fromstring(text)
        assert (">noise scale<" in text) == (scale == 25.0)
        assert ">After 640 examples each<" in text
        assert all(f">{size}<" in text for size in (1, 8, 64))
