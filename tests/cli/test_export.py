"""palto export: what others get, and that they can run it without Palto."""

import json
import subprocess
import sys

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
    assert "licence: not stated" in card and settings["command"] in card
    assert settings["configuration"]["epochs"] == 2

    status, said = palto(capsys, "export", run, "--to", "folder", "--out", out)
    assert status == 2 and "is there already" in said.err


def test_numbers_of_a_table(tmp_path, capsys):
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


def test_what_has_not_been_trained_is_not_exported(tmp_path, capsys):
    status, said = palto(capsys, "export", tmp_path)
    assert status == 2 and "holds no run" in said.err
