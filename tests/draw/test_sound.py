import base64
import io
import re
import wave

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="pictures need the extra plot")
from PIL import Image

from palto import draw


def test_a_page_has_a_picture_and_a_player_of_each_sound(tmp_path):
    time = np.arange(16_000) / 16_000
    tone = 0.5 * np.sin(2 * np.pi * 2000 * time)
    draw.sound_page(
        tmp_path / "page.html", "before & after", {"a <tone>": tone, "short": tone[:100]}, 16_000
    )
    text = (tmp_path / "page.html").read_text()
    assert "before &amp; after" in text
    assert "a &lt;tone&gt;" in text
    assert "http" not in text

    first, _ = re.findall(r"data:audio/wav;base64,([^\"]+)", text)
    with wave.open(io.BytesIO(base64.b64decode(first))) as file:
        played = np.frombuffer(file.readframes(99_999), "<i2")
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
    np.testing.assert_allclose(played / 32767, tone, atol=1e-4)

    picture, _ = re.findall(r"data:image/png;base64,([^\"]+)", text)
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"), float)
    height, width = image.shape
    inner = image[int(0.1 * height) : int(0.7 * height), int(0.4 * width) : int(0.6 * width)]
    rows = inner.mean(1)
    assert rows.max() > 4 * np.median(rows)  # one bright line, a quarter up from 0 to 8 kHz
    assert 0.5 < np.argmax(rows) / len(rows) < 0.95


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError):
        draw.sound_page(tmp_path / "none" / "page.html", "t", {"x": np.zeros(9)}, 16_000)
    assert list(tmp_path.iterdir()) == []
