"""Films: pictures of a drive, and the file that holds them."""

import numpy as np
import pytest

from palto.draw import Video, driving


def test_a_picture_of_driving_shows_controls_and_what_they_hang_on():
    scene = np.full((400, 600, 3), 100, np.uint8)
    saliency = np.zeros((42, 48), np.float32)

    def drawn(steering, pedal, saliency=saliency, laps=()):
        return driving(scene, saliency, 0.875, np.float32([steering, pedal]), 50, "title", laps)

    left, right, brake = drawn(-1, 0.5), drawn(1, 0.5), drawn(1, -0.5)
    assert left.shape == (400, 840, 3)
    assert left.dtype == np.uint8
    np.testing.assert_array_equal(left[:, :600], scene)
    assert (left[57, 640] != right[57, 640]).any()
    assert (left[57, 800] != right[57, 800]).any()
    assert (right[93, 740] != brake[93, 740]).any()
    saliency = saliency.copy()
    saliency[18:24, 22:28] = 7.5
    seen = drawn(0, 0, saliency)[:, :600].astype(int) - scene
    assert abs(seen[165:185, 295:325]).max() > 50
    assert not seen[360:].any()
    assert (drawn(0, 0, laps=["7   900   15.0 s"]) != drawn(0, 0)).any()


def test_a_video_holds_its_pictures_and_is_whole_or_not_there(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'palto[drive]')")
    path = tmp_path / "film.mp4"
    with Video(path, (64, 48), 25, extra="drive") as video:
        for value in (0, 100, 200):
            for _ in range(10):
                video.add(np.full((48, 64, 3), value, np.uint8))
    with av.open(str(path)) as film:
        seen = [x.to_ndarray(format="rgb24").mean() for x in film.decode(video=0)]
    assert len(seen) == 30
    np.testing.assert_allclose([seen[5], seen[15], seen[25]], [0, 100, 200], atol=4)

    before = path.read_bytes()
    with (
        pytest.raises(ValueError, match="uint8"),
        Video(path, (64, 48), 25, extra="drive") as video,
    ):
        video.add(np.zeros((48, 48, 3), np.uint8))
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["film.mp4"]
    with pytest.raises(ValueError, match="even"):
        Video(path, (63, 48), 25, extra="drive")
    with pytest.raises(ValueError, match=r"\.mp4"):
        Video(tmp_path / "film.gif", (64, 48), 25, extra="drive")
