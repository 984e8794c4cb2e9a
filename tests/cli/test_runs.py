"""The command line, as a new user meets it: from a folder of pictures to a prediction."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palto import asarray, cli
from palto.train.run import (
    PRESETS,
    Config,
    Run,
    build_augmentation,
    build_model,
    open_examples,
)

from ..documents import ROOT, commands

KINDS = ("blue", "green", "red")


@pytest.fixture
def pictures(tmp_path):
    """Thirty pictures in three folders, by their colour."""
    rng = np.random.default_rng(0)
    for k, kind in enumerate(KINDS):
        folder = tmp_path / "pictures" / kind
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., 2 - k] += 150
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def palto(capsys, *words):
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as ended:  # the command line itself is wrong
        status = ended.code
    return status, capsys.readouterr()


def trained(pictures, capsys, *words):
    out = pictures.parent / "run"
    status, said = palto(
        capsys, "train", pictures, "--model", "logistic_regression", "--epochs", "6",
        "--batch-size", "9", "--lr", "1e-2", "--out", out, *words,
    )  # fmt: skip
    assert status == 0, said.err
    return out, said.out


def test_from_a_folder_of_pictures_to_a_prediction(pictures, capsys):
    run, said = trained(pictures, capsys)
    assert "54 examples to learn from, 6 to measure on, 3 classes" in said
    assert f"palto predict {run}" in said.replace("\n", "")
    page = (run / "report.html").read_text()
    assert "blue" in page and "logistic_regression" in page

    status, said = palto(capsys, "evaluate", run)
    assert status == 0 and "accuracy: 100.00%" in said.out

    status, said = palto(capsys, "predict", run, pictures / "red" / "3.png", pictures / "blue")
    lines = said.out.splitlines()
    assert status == 0 and len(lines) == 21
    assert lines[0].split(": ")[1].startswith("red ") and "%" in lines[0]
    assert all(": blue " in line for line in lines[1:])


def test_the_command_that_readme_begins_with(pictures, capsys, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    shutil.move(pictures, "photos")
    words, *_ = commands(ROOT / "README.md")
    assert words[:2] == ["train", "photos/"]
    status, said = palto(capsys, *words, "--epochs", "1")
    assert status == 0, said.err


def test_predictions_for_programs(pictures, capsys):
    run, _ = trained(pictures, capsys)
    status, said = palto(capsys, "predict", run, pictures / "green" / "0.png", "--json")
    assert status == 0, said.err
    found = json.loads(said.out)
    assert sorted(found["probabilities"]) == list(KINDS)
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_files_to_predict_have_to_be_named(pictures, price_run, capsys):
    run, _ = trained(pictures, capsys)
    for folder, kind in ((run, "pictures"), (price_run, "tables")):
        status, said = palto(capsys, "predict", folder)
        assert status == 2 and said.out == ""
        assert f"name {kind} to predict" in said.err and f"palto predict {folder} " in said.err


def test_a_picture_that_cannot_be_read(pictures, capsys):
    run, _ = trained(pictures, capsys)
    (pictures / "broken.png").write_bytes(b"no picture")
    status, said = palto(
        capsys, "predict", run, pictures / "broken.png", pictures / "red" / "0.png"
    )
    assert status == 1 and "broken.png" in said.err and "red" in said.out


def write_flats(path):
    """A table of flats: the price, in roubles, follows from the others."""
    rng = np.random.default_rng(0)
    lines = ["rooms,district,area,price"]
    for _ in range(200):
        rooms, district = rng.integers(1, 5), rng.choice(["north", "south"])
        area = rooms * 20 + rng.integers(0, 20)
        price = area * (110_000 if district == "south" else 90_000)
        lines.append(f"{rooms},{district},{area},{price}")
    path.write_text("\n".join(lines) + "\n")
    return path


def train_on(table, target, out):
    words = ["train", table, "--target", target, "--epochs", "80", "--batch-size", "16",
             "--lr", "1e-2", "--out", out]  # fmt: skip
    assert cli.main([str(word) for word in words]) == 0
    return out


@pytest.fixture(scope="module")
def flat_runs(tmp_path_factory):
    """A folder with the table, and a run for each of two columns."""
    folder = tmp_path_factory.mktemp("flats")
    table = write_flats(folder / "flats.csv")
    for target in ("price", "district"):
        train_on(table, target, folder / target)
    return folder


@pytest.fixture
def flats(tmp_path):
    return write_flats(tmp_path / "flats.csv")


@pytest.fixture
def price_run(flat_runs, tmp_path):
    return Path(shutil.copytree(flat_runs / "price", tmp_path / "price"))


def test_from_a_table_to_numbers_in_its_unit(flats, price_run, capsys):
    run = price_run
    rows = flats.parent / "rows.csv"
    rows.write_text("area;id;district;rooms\n60;7;south;2\n\n90;8;north;4\n")  # another order
    status, said = palto(capsys, "predict", run, rows)
    assert status == 0 and "rows.csv: not learned from, so left out: 'id'" in said.err
    lines = said.out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{rows}, line 2", f"{rows}, line 4"]
    prices = [float(line.split(": ")[1]) for line in lines]
    np.testing.assert_allclose(prices, [6_600_000, 8_100_000], rtol=0.05)

    status, said = palto(capsys, "predict", run, rows, "--json")
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [row["line"] for row in found] == [2, 4] and found[0].keys() == {"file", "line", "value"}
    np.testing.assert_allclose([row["value"] for row in found], prices, rtol=1e-6)

    status, said = palto(capsys, "evaluate", run, "--data", flats)
    measured = float(re.search(r"mean absolute error: ([\d.]+)", said.out)[1])
    status, said = palto(capsys, "predict", run, flats, "--json")
    guesses = [json.loads(line)["value"] for line in said.out.splitlines()]
    truth = [float(line.split(",")[3]) for line in flats.read_text().split()[1:]]
    assert measured == pytest.approx(np.abs(np.subtract(guesses, truth)).mean(), rel=1e-4)


def test_from_a_table_to_classes(flats, flat_runs, capsys):
    run = flat_runs / "district"
    status, said = palto(capsys, "predict", run, flats, "--top", "1")
    lines = said.out.splitlines()
    assert status == 0 and len(lines) == 200
    truth = [line.split(",")[1] for line in flats.read_text().split()[1:]]
    right = np.mean([t == line.split()[-2] for t, line in zip(truth, lines, strict=True)])
    status, said = palto(capsys, "evaluate", run, "--data", flats)
    accuracy = float(re.search(r"accuracy: ([\d.]+)%", said.out)[1]) / 100
    assert right == pytest.approx(accuracy, abs=1e-4) and right > 0.9

    # Numbers are those of the table that was learned from, whatever is in the other one.
    one = flats.parent / "one.csv"
    one.write_text("\n".join(flats.read_text().split()[:2]))
    (alone,) = palto(capsys, "predict", run, one)[1].out.splitlines()
    among = palto(capsys, "predict", run, flats)[1].out.splitlines()[0]
    assert alone.split(": ")[1] == among.split(": ")[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("rooms,district\n1,south\n", "has no column 'area'"),
        ("rooms,district,area\n1,south,big\n", "line 2, column 'area': 'big' is no number"),
        ("rooms,district,area\n1,south\n", "line 2 has 2 cells instead of 3"),
        ("rooms,district,area\n", "has no rows"),
        ("", "is empty"),
    ],
)
def test_rows_that_cannot_be_read(flats, price_run, capsys, rows, message):
    run = price_run
    (flats.parent / "bad.csv").write_text(rows)
    status, said = palto(capsys, "predict", run, flats.parent / "bad.csv", flats)
    assert status == 1 and message in said.err and "bad.csv" in said.err
    assert len(said.out.splitlines()) == 200  # the other file's


def test_a_category_that_is_new(flats, price_run, capsys):
    run = price_run
    new = flats.parent / "new.csv"
    new.write_text("rooms,district,area\n1,south,30\n1,moon,30\n1,,30\n")
    status, said = palto(capsys, "predict", run, new)
    assert status == 0 and "line 3, column 'district': 'moon' was not learned" in said.err
    _, moon, unknown = (line.split(": ")[1] for line in said.out.splitlines())
    assert moon == unknown


def test_data_of_another_kind(flats, pictures, price_run, capsys):
    run = price_run
    status, said = palto(capsys, "evaluate", run, "--data", pictures)
    assert status == 2 and "is no table; wanted is one with the columns 'rooms'" in said.err
    status, said = palto(capsys, "predict", run, pictures)
    assert status == 2 and "holds no tables" in said.err
    other, _ = trained(pictures, capsys)
    status, said = palto(capsys, "evaluate", other, "--data", pictures)
    assert "accuracy: 100.00%" in said.out and "20" in said.out  # all of it
    status, said = palto(capsys, "predict", other, flats)
    assert status == 1 and "flats.csv" in said.err
    shutil.rmtree(pictures / "red")
    status, said = palto(capsys, "evaluate", other, "--data", pictures)
    assert status == 2 and "and 2 classes, the run (32, 32, 3) and 3" in said.err


def test_a_run_that_has_kept_no_encoder(flats, price_run, capsys):
    run = price_run
    saved = json.loads((run / "run.json").read_text())
    del saved["encoder"]
    (run / "run.json").write_text(json.dumps(saved))
    for words in (["predict", run, flats], ["serve", run]):
        status, said = palto(capsys, *words)
        assert status == 2 and "run.json has no encoder. Train on the table again" in said.err
    status, said = palto(capsys, "evaluate", run)  # its own data, read as when it was trained
    assert status == 0 and "r2" in said.out
    saved["encoder"] = {"columns": []}
    (run / "run.json").write_text(json.dumps(saved))
    status, said = palto(capsys, "predict", run, flats)
    assert status == 2 and "run.json is damaged" in said.err and "no encoder of a table" in said.err


def test_a_run_reads_its_table_as_it_did_though_rows_were_added(flats, capsys):
    run = train_on(flats, "price", flats.parent / "run")
    assert f"palto predict {run} ROWS.csv" in capsys.readouterr().out.replace("\n", "")
    before = palto(capsys, "predict", run, flats)[1].out
    with flats.open("a") as file:
        file.write("1000,south,100000,1\n" * 10)  # which would move all means
    assert palto(capsys, "evaluate", run)[0] == 0
    assert palto(capsys, "predict", run, flats)[1].out.startswith(before)


def test_resume_after_more_epochs_are_done_changes_nothing(pictures, capsys):
    run, _ = trained(pictures, capsys)
    before = sorted(os.listdir(run / "checkpoints"))
    status, said = palto(capsys, "resume", run)
    assert status == 0 and "resumed after step 36 (epoch 6)" in said.out
    assert "the run is over: all 6 epochs are done" in said.out
    assert sorted(os.listdir(run / "checkpoints")) == before


def test_a_run_that_is_there_already(pictures, capsys):
    run, _ = trained(pictures, capsys)
    status, said = palto(capsys, "train", pictures, "--out", run)
    assert status == 2 and "holds a run already" in said.err and "palto resume" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "lenet", "--size", "64"], "28 or 32"),
        (["--model", "fast_resnet"], "wants images"),
        (["--augment", "flip"], "augmentation is for images"),
        (["--label-smoothing", "0.1"], "--label-smoothing is for classes, this data has numbers"),
    ],
)
def test_a_start_that_fails_leaves_no_folder(
    pictures, flats, monkeypatch, capsys, tmp_path, words, message
):
    monkeypatch.chdir(tmp_path)
    data = [pictures] if "--size" in words else [flats, "--target", "price"]
    status, said = palto(capsys, "train", *data, *words)
    assert status == 2 and message in said.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nowhere"], "nowhere"),
        (["resume", "nowhere"], "holds no run"),
        (["evaluate", "nowhere"], "holds no run"),
        (["profile", "nowhere"], "holds no run"),
        (["train", "--epochs", "0"], "epochs must be at least 1"),
        (["train", "--lr", "-1"], "lr must be a positive number"),
        (["summary", "alexnet", "--shape", "5", "5", "1"], "alexnet"),
        (["train", "--preset", "gan"], "'alexnet'"),
        (["train", "--preset"], "preset"),
        (["train", "nowhere", "--preset", "lenet"], "nowhere"),
    ],
)
def test_mistakes_are_one_clear_sentence(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    status, said = palto(capsys, *words)
    assert status == 2 and message in said.err.replace("\n", " ")
    assert "Traceback" not in said.err
    assert "--help" not in said.err or f"palto {words[0]} --help" in said.err


def test_a_half_written_run(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"config": {')
    status, said = palto(capsys, "resume", tmp_path)
    assert status == 2 and "run.json is damaged" in said.err


@pytest.fixture
def asked_for(monkeypatch):
    """What `palto train` would train, without doing it."""
    seen = []

    def run(self):
        seen.append(self)
        return 0

    monkeypatch.setattr(cli.Train, "run", run)
    return seen


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_set_of_defaults(asked_for, capsys, name):
    status, said = palto(capsys, "train", "--preset", name)
    assert status == 0, said.err
    (asked,) = asked_for
    preset = PRESETS[name]
    assert asked.data == "fashion-mnist" and asked.model == name and asked.preset == name
    assert {key: getattr(asked, key) for key in vars(preset)} == vars(preset)


def test_options_go_before_the_preset(asked_for, capsys):
    for words in (
        ["photos", "--epochs", "3", "--preset", "alexnet", "--augment", "flip"],
        ["--preset=alexnet", "--augment", "flip", "--epochs", "3", "--", "photos"],
    ):
        status, said = palto(capsys, "train", *words)
        assert status == 0, said.err
    first, second = asked_for
    assert first == second and first.model == "alexnet"
    assert (first.data, first.epochs, first.augment) == ("photos", 3, ("flip",))


def test_the_presets_take_fashion_mnist():
    for preset in PRESETS.values():
        model = build_model(preset.model, (28, 28, 1), 10)
        change = build_augmentation(preset.augment, 10, (28, 28, 1))
        images, labels = asarray(np.zeros((2, 28, 28, 1), np.float32)), asarray([1, 2])
        if change is not None:
            images, labels = change(images, labels)
        assert model(images).shape == (2, 10)


def test_help_shows_what_a_preset_holds(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--preset", "alexnet", "--help"])
    said = capsys.readouterr().out
    assert "(default: flip)" in said and "(default: alexnet)" in said


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    for part in ("palto train photos/", "--preset alexnet", "--augment", "--epochs", "default"):
        assert part in said
    for name in ("drive", "echo", "chat"):
        assert f"palto train {name} --help" in " ".join(said.split())


def test_help_of_profile_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["profile", "--help"])
    said = capsys.readouterr().out
    for part in ("palto profile runs/my-run", "--inference", "--batch-size", "the slowest part"):
        assert part in said


def test_summary(capsys):
    status, said = palto(capsys, "summary", "lenet")
    assert status == 0 and "Conv2d" in said.out


def test_profile(pictures, capsys):
    run, _ = trained(pictures, capsys)
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    status, said = palto(capsys, "profile", run)
    assert status == 0, said.err
    for part in ("Sequential.layers.1", "matmul", "of peak", "GFLOP/s", "step: ", "kernels"):
        assert part in said.out
    shares = [float(share) for share in re.findall(r" (\d+\.\d)%", said.out)]
    assert len(shares) > 5 and shares == sorted(shares, reverse=True)  # the slowest first
    status, said = palto(capsys, "profile", run, "--inference", "--batch-size", "2")
    assert status == 0 and "answer: " in said.out and re.search(r"matmul .* 2x3 of 3072 ", said.out)
    assert before == {path: path.read_bytes() for path in before}
    status, said = palto(capsys, "profile", run, "--batch-size", "0")
    assert status == 2 and "--batch-size must be from 1 to 54" in said.err


def test_profile_before_anything_is_learnt(pictures, capsys, tmp_path):
    config = Config(data=str(pictures), model="logistic_regression")
    Run.create(tmp_path / "new", config, open_examples(config))
    status, said = palto(capsys, "profile", tmp_path / "new")
    assert status == 0 and "step: " in said.out


def test_data(capsys):
    status, said = palto(capsys, "data")
    assert status == 0 and "fashion-mnist" in said.out and "MIT" in said.out


def test_interrupted_and_resumed_it_ends_where_the_unbroken_run_does(pictures):
    words = [
        "train", pictures, "--model", "fully_connected", "--epochs", "12", "--batch-size", "3",
        "--augment", "flip", "noise",
    ]  # fmt: skip

    def run(*arguments):
        command = [sys.executable, "-m", "palto.cli", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole, broken = pictures.parent / "whole", pictures.parent / "broken"
    first = run(*words, "--out", whole)
    second = run(*words, "--out", broken)
    while not list((broken / "checkpoints").glob("checkpoint-*")) and second.poll() is None:
        time.sleep(0.05)
    second.send_signal(signal.SIGINT)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 130, err
    assert f"palto resume {broken}" in out.replace("\n", "")
    third = run("resume", broken)
    for process in (first, third):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err

    def history(folder):
        newest = sorted((folder / "checkpoints").glob("checkpoint-*"))[-1]
        entries = json.loads((newest / "state.json").read_text())["history"]
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]

    assert history(whole) == history(broken) and len(history(whole)) == 12
