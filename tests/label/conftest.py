"""A folder of images to label, and its store."""

import numpy as np
import pytest
from PIL import Image

from palto.label.folder import take_in
from palto.label.store import DATABASE, Store

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 60, 220)}


def draw(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), COLOURS[name], np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    """30 images: 2 of each colour are known, by their folders."""
    for k in range(30):
        name = list(COLOURS)[k % 3]
        draw(tmp_path / "photos" / (name if k < 6 else ".") / f"{k:02}-{name}.png", name)
    return tmp_path / "photos"


@pytest.fixture
def store(photos):
    made = Store(photos / DATABASE, tuple(COLOURS))
    yield made
    made.close()


@pytest.fixture
def files(store, photos):
    return take_in(store, photos, complain=print)


@pytest.fixture
def truth(store, files):
    """The class of each image by its id."""
    return {
        number: list(COLOURS).index(name.rsplit("-")[-1].removesuffix(".png"))
        for number, name in store.images().items()
    }
