"""`palto label`: what it refuses, how far it is, and from its export to a trained model."""

import pytest

from palto.cli import label as command
from palto.cli import main
from palto.label.challenges import Challenges
from palto.label.folder import take_in
from palto.label.store import DATABASE, Store
from palto.train.run import Run
from tests.label.conftest import draw


@pytest.fixture
def labelled(tmp_path):
    """40 images of two colours; one annotator has answered all that there was to answer."""
    folder = tmp_path / "photos"
    for k in range(40):
        name = ("red", "blue")[k % 2]
        draw(folder / (name if k < 8 else ".") / f"{k}-{name}.png", name)
    store = Store(folder / DATABASE, ("red", "blue"))
    take_in(store, folder, complain=print)
    maker = Challenges(store, seed=0)
    names = store.images()
    while (challenge := maker.next("someone")) is not None:
        wanted = store.classes[challenge.asked]
        said = {number: int(wanted in names[number]) for number in challenge.images}
        store.take("someone", challenge.ticket, said)
        maker.answered()
    store.close()
    return folder


def test_the_status(labelled, capsys):
    assert main(["label", str(labelled), "--status"]) == 0
    assert "40 of 40 images are sure, 8 were known" in capsys.readouterr().out


def test_training_on_what_was_labelled(labelled, tmp_path, capsys):
    out, run = tmp_path / "out", tmp_path / "run"
    assert main(["label", str(labelled), "--export", str(out)]) == 0
    assert "40 images" in capsys.readouterr().out
    words = ["train", str(out), "--epochs", "4", "--batch-size", "8", "--out", str(run)]
    assert main([*words, "--validation", "0.25"]) == 0
    assert main(["evaluate", str(run)]) == 0
    assert "accuracy: 100.00%" in capsys.readouterr().out
    proposals = {}

    class Maker:
        propose = staticmethod(proposals.__setitem__)

    files = dict(enumerate(sorted((labelled / "red").glob("*.png"))))
    command._propose(Run.open(run), ("red", "blue"), Maker, files)
    assert list(proposals) == list(files)
    assert all(p.argmax() == 0 and abs(p.sum() - 1) < 1e-5 for p in proposals.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no folder nowhere"),
        (["."], "--classes cat,dog"),
        ([".", "--classes", "a"], "--classes cat,dog"),
        ([".", "--classes", "a,a"], "classes have different names"),
        ([".", "--classes", "a,b"], "no images"),
        ([".", "--status"], "nothing has been labelled"),
        ([".", "--export", "out"], "nothing has been labelled"),
        ([".", "--classes", "a,b", "--names", "x"], "1 names for the 2 classes"),
        ([".", "--classes", "a,b", "--run", "x"], "holds no run"),
        ([".", "--classes", "a,b", "--mode", "teach", "--host", "0.0.0.0"], "for you alone"),
    ],
)
def test_mistakes_are_explained(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["label", *words]) == 2
    assert message in capsys.readouterr().err
    if "a,b" not in words:  # there are no classes to keep
        assert not any(tmp_path.iterdir())
