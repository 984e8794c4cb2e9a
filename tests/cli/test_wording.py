"""Errors on the command line name its options."""

import numpy as np
import pytest

from palto import cli
from palto.cli.compare import Compare
from palto.cli.runs import Evaluate, Predict, Train
from palto.cli.wording import in_options


@pytest.mark.parametrize(
    ("command", "text", "wanted"),
    [
        (Train(), 'x.csv: say with target= which: a', "x.csv: say with --target which: a"),
        (Train(), "devices are for executor='xla'", "--devices are for --executor xla"),
        (Train(), "clip the gradients (clip_norm)", "clip the gradients (--clip-norm)"),
        (Train(), "runs/seed=0/size is gone", "runs/seed=0/size is gone"),
        (None, "size is for tables", "size is for tables"),
        (
            Train(),
            'remove it, or leave it out with on_error="skip"',
            "remove it, or leave it out with --skip-bad-images",
        ),
        (Train(), 'teaches nothing; missing="drop" removes it', "teaches nothing: remove it"),
        (Evaluate("x"), 'Remove them, or leave them out with on_error="skip".', "Remove them."),
        (Predict("x", ()), "('a,b' by ',': delimiter= says otherwise)", "('a,b' by ',')"),
    ],
)  # fmt: skip
def test_parameters_become_options(command, text, wanted):
    assert in_options(text, command) == wanted


def said(capsys, *words):
    assert cli.main([str(word) for word in words]) == 2
    return capsys.readouterr().err.replace("\n", " ")


@pytest.fixture
def table(tmp_path):
    rows = [f"{k / 7},{k}" for k in range(60)]
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "\n".join(rows) + "\n")
    return path


def test_a_table(table, capsys):
    assert "say with --target which column" in said(capsys, "train", table)
    assert "--size is for image files" in said(capsys, "train", table, "--size", 8)
    absent = said(capsys, "train", table, "--target", "z")
    assert absent.strip().endswith("(cells separated by ',')")
    table.write_text(table.read_text() + "x,1\n")
    classified = said(capsys, "train", table, "--target", "a")
    assert "line 62, column 'a': 'x' is no number; --task classify takes" in classified
    table.write_text("a;b\n" + "1,5;2\n2,5;3\n" * 20 + "2;3\n" * 50)
    assert "'1,5' is no number; write fractions with a point" in said(
        capsys, "train", table, "--target", "b"
    )
    table.write_bytes("a,b\nf\xfcnf,1\n".encode("latin1"))
    assert "no utf-8 text" in (error := said(capsys, "train", table, "--target", "b"))
    assert error.strip().endswith("save it as UTF-8")


def test_arrays(tmp_path, capsys):
    arrays = tmp_path / "x.npz"
    np.savez(arrays, one=np.zeros((4, 8, 8, 1), np.float32), two=np.zeros((4, 8, 8, 1)))
    assert "Call two of them images and labels" in said(capsys, "train", arrays)
    assert "--target is for tables" in said(capsys, "train", arrays, "--target", "y")
    assert "--task is for tables" in said(capsys, "train", arrays, "--task", "regress")


def test_devices(table, capsys):
    assert "--devices are for --executor xla" in said(
        capsys, "train", table, "--target", "a", "--devices", 2
    )


@pytest.mark.parametrize("command", ["train", "compare"])
def test_pictures_that_cannot_be_read(tmp_path, capsys, monkeypatch, command):
    from PIL import Image

    for kind in ("blue", "red"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8), kind).save(tmp_path / "photos" / kind / f"{k}.png")
    (tmp_path / "photos" / "red" / "bad.png").write_bytes(b"nothing")
    monkeypatch.chdir(tmp_path)
    if command == "compare":
        for module in ("matplotlib", "skimage", "sklearn"):
            pytest.importorskip(module, reason=f"{module} is not installed")
    wrong = said(capsys, command, "photos")
    assert "leave them out with --skip-bad-images." in wrong
    monkeypatch.setattr(cli.compare.compare, "jobs", lambda plan, count, classes: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # so the images have been read
        Compare(data="photos", skip_bad_images=True).run()
    assert "8 images" not in wrong and "1 of 9 images cannot be read" in capsys.readouterr().err


def test_the_task_of_a_table(table, tmp_path, capsys):
    ratings = tmp_path / "ratings.csv"
    ratings.write_text("a,stars\n" + "".join(f"{k % 9},{k % 5}\n" for k in range(60)))
    words = ["train", ratings, "--target", "stars", "--epochs", "1", "--out"]
    for more, wanted in (([], "5 classes"), (["--task", "regress"], "numbers to predict")):
        out = tmp_path / f"run{len(more)}"
        assert cli.main([str(word) for word in [*words, out, *more]]) == 0
        assert wanted in capsys.readouterr().out
        assert cli.main(["evaluate", str(out)]) == 0
        measured = capsys.readouterr().out
        assert ("accuracy" in measured) == (not more)
    again = [str(x) for x in ["train", "penguins", "--target", "year", "--task", "regress"]]
    assert cli.main([*again, "--epochs", "1", "--out", str(tmp_path / "penguins")]) == 0
    assert "numbers to predict" in capsys.readouterr().out
