"""The table of penguins, which comes with Palto."""

import numpy as np
import pytest

from palto import cli, data


def test_all_penguins():
    everything, rest = data.penguins(validation=0)
    assert rest is None and len(everything) == 344
    assert everything.classes == ("Adelie", "Chinstrap", "Gentoo")
    assert (everything.licence, everything.name) == ("CC0-1.0", "Palmer penguins")
    _, labels = everything.__getitems__(range(344))
    assert np.bincount(labels).tolist() == [152, 68, 124]
    assert "sex=male" in everything.columns and "bill_length_mm is missing" in everything.columns


def test_measures_alone():
    names = ["bill_length_mm", "flipper_length_mm"]
    train, test = data.penguins(features=names, missing="drop")
    assert (len(train) + len(test), list(train.columns)) == (342, names)
    x, y = train.__getitems__(range(len(train)))
    assert (x.shape[1], x.dtype, y.dtype) == (2, np.float32, np.int64)
    bill = train.encoder.columns[0]
    assert 43 < bill.mean < 45 and 5 < bill.scale < 6  # millimetres


def test_another_target():
    with pytest.raises(
        ValueError, match=r"'body_mass_g': nothing is there .* missing=.drop. removes"
    ):
        data.penguins(target="body_mass_g")
    train, test = data.penguins(target="body_mass_g", features=["species"], missing="drop")
    assert train.classes == () and len(train) + len(test) == 342
    _, mass = train.__getitems__(range(len(train)))
    assert mass.dtype == np.float32 and np.isfinite(mass).all()
    assert 4000 < train.encoder.mean < 4400  # grams
    train, test = data.penguins(target="sex", missing="drop")
    assert train.classes == ("female", "male") and len(train) + len(test) == 333
    train, _ = data.open_source("penguins", target="island", validation=0.1)
    assert train.classes == ("Biscoe", "Dream", "Torgersen")
    with pytest.raises(ValueError, match="target is for tables, which fashion-mnist is not"):
        data.open_source("fashion-mnist", target="island")


def test_by_name_and_on_the_command_line(tmp_path, capsys):
    train, test = data.open_source("penguins", validation=0.1, seed=3)
    assert len(train) > 300 and 30 <= len(test) <= 36
    assert cli.main(["data"]) == 0 and "penguins" in capsys.readouterr().out
    run = tmp_path / "run"
    words = ["train", "penguins", "--epochs", "8", "--batch-size", "32", "--out", str(run)]
    assert cli.main(words) == 0
    assert cli.main(["evaluate", str(run)]) == 0
    assert "Chinstrap" in capsys.readouterr().out
