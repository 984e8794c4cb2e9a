"""palto export: what others get, and that they can run it without Palto."""

import json
import subprocess
import sys
import wave

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from palto import cli
from palto.formats import safetensors
from palto.formats.onnx import load
from palto.train.run import Run


def palto(capsys, *words):
    status = cli.main([str(word) for word in words])
    return status, capsys.readouterr()


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for k, kind in enumerate(("blue", "red")):
        folder = tmp_path / "pictures" / kind
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * k] += 150
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def run(pictures, capsys):
    folder = pictures.parent / "run"
    status, said = palto(
        capsys, "train", pictures, "--size", 28, "--model", "lenet", "--epochs", 2,
        "--batch-size", 9, "--out", folder,
    )  # fmt: skip
    assert status == 0, said.err
    return folder


def chances(run, files):
    return np.array([row for *_, row in Run.open(run).predict(files, complain=print)])


def test_a_file_that_onnx_runtime_runs(run, pictures, capsys):
    status, said = palto(capsys, "export", run)
    path = run / "model.onnx"
    assert status == 0 and f"written: {path}" in said.out.replace("\n", "")
    files = [pictures / "red" / "1.png", pictures / "blue" / "2.png"]
    classify = Run.open(run).predictor()
    inputs = np.stack([classify.read(file) for file in files]).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"inputs": inputs})
    wanted = chances(run, files)
    exponentials = np.exp(scores - scores.max(1, keepdims=True))
    np.testing.assert_allclose(exponentials / exponentials.sum(1, keepdims=True), wanted, rtol=1e-4)
    np.testing.assert_allclose(load(path)(inputs), scores, rtol=1e-4, atol=1e-5)
    notes = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(notes["classes"]) == ["blue", "red"]


def test_a_folder_that_explains_itself(run, pictures, capsys, tmp_path):
    out = tmp_path / "handed" / "on"
    status, said = palto(capsys, "export", run, "--to", "folder", "--out", out)
    assert status == 0, said.err
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "model.onnx", "model.safetensors", "predict.py"
    }  # fmt: skip

    files = [pictures / "red" / "3.png", pictures / "blue" / "4.png"]
    script = out / "predict.py"
    code = script.read_text().split('"""')[2]
    assert "palto" not in code and len([line for line in code.splitlines() if line]) <= 22
    ran = subprocess.run(
        [sys.executable, "-I", "-W", "error", script, *files], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    for line, row in zip(ran.stdout.splitlines(), chances(run, files), strict=True):
        best = ["blue", "red"][int(row.argmax())]
        assert f": {best} {row.max():.1%}" in line

    model = Run.open(run).model
    model.load_state_dict(safetensors.load(out / "model.safetensors"))
    card = (out / "README.md").read_text()
    settings = json.loads((out / "config.json").read_text())
    assert f"| accuracy | {settings['measures']['accuracy']:.5g} |" in card
    assert "licence: not stated" in " ".join(card.split()) and settings["command"] in card
    assert settings["configuration"]["epochs"] == 2

    status, said = palto(capsys, "export", run, "--to", "folder", "--out", out)
    assert status == 2 and "is there already" in said.err


@pytest.fixture
def flats(tmp_path):
    """A table of numbers and texts, of both of which some are missing."""
    rng = np.random.default_rng(0)
    lines = ["rooms,district,floor,area,price"]
    for _ in range(90):
        rooms, district = rng.integers(1, 5), rng.choice(["north", "south", "?"])
        area = "" if rng.random() < 0.2 else rooms * 20 + rng.integers(0, 20)
        lines.append(
            f"{rooms},{district},{rng.choice(['1', 'cellar', 'roof'])},{area},{rooms * 3e6}"
        )
    path = tmp_path / "flats.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("target", ["price", "district"])
def test_a_table_is_read_as_palto_reads_it(flats, tmp_path, capsys, target):
    if target == "district":  # a target may not be missing
        flats.write_text(flats.read_text().replace("?", "west"))
    words = ["train", flats, "--target", target, "--batch-size", 10, "--out", tmp_path / "run"]
    status, said = palto(capsys, *words, "--task", "regress" if target == "price" else "classify")
    assert status == 0, said.err
    status, said = palto(capsys, "export", tmp_path / "run", "--to", "folder")
    assert status == 0 and "ROWS.csv" in said.out, said.err
    folder = tmp_path / "run" / "export"
    assert len(code_of(folder)) <= 44
    other = tmp_path / "other.csv"  # another order, more columns, cells in other ways, no target
    other.write_text(
        "\ufefffloor;id; area ;rooms;price;district\r\n"
        "1.0;7;61.5;2;;south\r\n\r\nroof;8; n/a;3;;moon\r\n2;9;-4e1;1;;\r\n"
    )
    for file in (flats, other):
        status, said = palto(capsys, "predict", tmp_path / "run", file)
        assert status == 0, said.err
        found, wanted = run_script(folder, file).splitlines(), said.out.splitlines()
        assert len(found) == len(wanted) == (90 if file == flats else 3)
        for one, two in zip(found, wanted, strict=True):
            (place, said_one), (same, said_two) = (x.split(": ") for x in (one, two))
            assert place == same
            if target == "price":
                assert float(said_one) == pytest.approx(float(said_two), rel=1e-5)
            else:
                assert said_one == said_two
    card = " ".join((folder / "README.md").read_text().split())
    named = "rooms, floor=1, floor=cellar, floor=roof, area, area is missing"
    if target == "price":
        named = named.replace("rooms", "rooms, district=north, district=south")
        assert "a number: price, less the encoder's mean, divided by its scale." in card
    else:
        named += ", price"
    assert f"float32 of shape N x {len(named.split(','))} ({named})" in card

    (tmp_path / "bad.csv").write_text("rooms,district,floor,area\n1,north,2,big\n")
    ran = subprocess.run(
        [sys.executable, "-I", folder / "predict.py", tmp_path / "bad.csv"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 1 and "bad.csv, line 2: ValueError" in ran.stderr


def test_a_table_of_which_no_encoder_was_kept(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    table = tmp_path / "table.csv"
    rows = [f"{a},{b},{c},{2 * a - b}" for a, b, c in x]
    table.write_text("a,b,c,price\n" + "\n".join(rows) + "\n")
    run = tmp_path / "run"
    status, said = palto(
        capsys, "train", table, "--target", "price", "--epochs", 2, "--batch-size", 10, "--out", run
    )
    assert status == 0, said.err
    saved = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(saved | {"encoder": None}))
    status, said = palto(capsys, "export", run, "--to", "folder")
    assert status == 0, said.err
    np.save(tmp_path / "x.npy", x[:2])
    ran = subprocess.run(
        [sys.executable, "-I", run / "export" / "predict.py", tmp_path / "x.npy"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    opened = Run.open(run)
    opened.load_best()
    wanted = np.asarray(opened.model(x[:2]))
    got = json.loads(ran.stdout.rpartition(": ")[2])
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def run_script(folder, *arguments):
    """What the folder's script says, run without a way to Palto."""
    ran = subprocess.run(
        [sys.executable, "-I", "-W", "error", folder / "predict.py", *arguments],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def code_of(folder):
    code = (folder / "predict.py").read_text().split('"""')[2]
    assert "palto" not in code
    return [line for line in code.splitlines() if line]


def test_the_pilot_that_comes_with_palto(tmp_path, capsys, monkeypatch):
    drive = pytest.importorskip("palto.recipes.drive", reason="palto[drive] is not installed")
    monkeypatch.chdir(tmp_path)
    status, said = palto(capsys, "export", "drive", "--to", "folder")
    assert status == 0, said.err
    assert len(code_of(tmp_path / "drive")) <= 22
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    for name, picture in zip(("before", "now"), pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    said = run_script(tmp_path / "drive", tmp_path / "before.png", tmp_path / "now.png")
    seen = np.stack([drive.camera(picture) for picture in pictures], -1)[None]
    steering, pedal = drive.pilot(drive.load_pilot()[0])(seen)[0]
    assert said == f"steering {steering:+.3f}, pedal {pedal:+.3f}\n"
    card = (tmp_path / "drive" / "README.md").read_text()
    assert "palto train drive" in card and "| mean score |" in card and "MIT" in card


def test_the_echo_canceller_that_comes_with_palto(tmp_path, capsys, monkeypatch):
    from palto.recipes import echo

    monkeypatch.chdir(tmp_path)
    status, said = palto(capsys, "export", "echo", "--to", "folder", "--out", "filter")
    assert status == 0, said.err
    assert len(code_of(tmp_path / "filter")) <= 34
    rng = np.random.default_rng(0)
    far = 0.1 * rng.normal(size=9_000)
    mic = np.convolve(far, [0, 0, 0.4, 0.2])[:10_000] + 0.01 * rng.normal(size=9_003)
    sounds = [np.round(32768 * x).astype("<i2") for x in (far, mic)]
    for name, x in zip(("far", "mic"), sounds, strict=True):
        with wave.open(f"{name}.wav", "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(x.tobytes())
    run_script(tmp_path / "filter", "far.wav", "mic.wav", "out.wav")
    with wave.open("out.wav") as file:
        found = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    canceller = echo.Canceller(echo.load_filter()[0])
    wanted = 32768 * canceller.whole(*(x.astype(np.float32) / 32768 for x in sounds))
    assert len(found) == len(mic) and np.abs(wanted).max() > 30
    np.testing.assert_allclose(found, wanted, atol=2)
    card = (tmp_path / "filter" / "README.md").read_text()
    assert "CC-BY-SA-3.0" in card and "| double talk, ERLE in dB |" in card

    # The same step in a call: any number of frames at a time, the state handed on.
    (tmp_path / "echo").mkdir()  # as --to folder makes it, is in nobody's way
    status, said = palto(capsys, "export", "echo")
    assert status == 0, said.err
    session = onnxruntime.InferenceSession("echo.onnx", providers=["CPUExecutionProvider"])
    canceller.reset()
    state = {x.name: np.zeros(x.shape, np.float32) for x in session.get_inputs()[:-2]}
    assert "gain.linear1.weight" in {x.name for x in onnx.load("echo.onnx").graph.initializer}
    for frames in (1, 2, 7):
        blocks = (0.1 * rng.normal(size=(2, frames, 256))).astype(np.float32)
        *after, clean = session.run(None, {"far": blocks[0], "mic": blocks[1], **state})
        state = dict(zip(state, after, strict=True))
        wanted = canceller.process(*blocks.reshape(2, -1))
        np.testing.assert_allclose(clean.reshape(-1), wanted, rtol=1e-3, atol=1e-6)


def test_what_has_not_been_trained_is_not_exported(tmp_path, capsys):
    status, said = palto(capsys, "export", tmp_path)
    assert status == 2 and "holds no trained model" in said.err
    (tmp_path / "tokenizer.json").write_text("{}")
    status, said = palto(capsys, "export", tmp_path)
    assert status == 2 and "Hugging Face's form" in said.err


def test_help_names_what_can_be_exported(capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "run of `palto train`, `palto train drive` or `palto train echo`" in said
