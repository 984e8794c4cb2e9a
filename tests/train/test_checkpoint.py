"""Checkpoints: whole or not there, whatever happens while one is written."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

import palto
from palto.train import Checkpoints

WRITER = """
import sys
import numpy as np
from palto.train import Checkpoints

checkpoints = Checkpoints(sys.argv[1])
newest = checkpoints.newest()
number = newest.state["number"] if newest else 0
print("ready", flush=True)
while True:
    number += 1
    values = np.full(20_000, number, np.float32)
    checkpoints.save(
        {"model": {"a": values, "b": values}, "optimizer": {"c": values}},
        {"number": number}, is_best=number % 7 == 0,
    )
"""


def test_kills_at_random_moments_lose_nothing(tmp_path):
    """A sample of the kills; PALTO_KILLS asks for more."""
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    last = 0
    for _ in range(int(os.environ.get("PALTO_KILLS", "8"))):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.15))
        writer.kill()
        writer.communicate()
        checkpoints = Checkpoints(tmp_path)
        newest = checkpoints.newest()
        if newest is None:
            assert last == 0
            continue
        number = newest.state["number"]
        assert number >= last
        for part in newest.tensors.values():
            for value in part.values():
                np.testing.assert_array_equal(value, np.full(20_000, number, np.float32))
        best = checkpoints.best()
        assert best.state["number"] == number or best.state["number"] % 7 == 0
        assert not list(tmp_path.glob("*.part"))
        last = number
    assert last > 0


def save(checkpoints, number, **options):
    return checkpoints.save(
        {"model": {"x": palto.asarray([float(number)])}}, {"number": number}, **options
    )


def test_newest_and_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() is None and checkpoints.best() is None
    for number in range(1, 6):
        save(checkpoints, number, is_best=number == 2)
    assert checkpoints.newest().state["number"] == 5
    assert checkpoints.best().state["number"] == 2
    assert len(os.listdir(tmp_path)) == 2
    assert Checkpoints(tmp_path).best().tensors["model"]["x"].tolist() == [2.0]


@pytest.mark.parametrize("harm", ["cut tensors", "no tensors", "cut state", "other state"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, harm):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, is_best=True)
    folder = save(checkpoints, 2)
    file = folder / ("state.json" if "state" in harm else "model.safetensors")
    if harm == "no tensors":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3] if "cut" in harm else b"[1, 2]")
    assert checkpoints.newest().state["number"] == 1
    assert save(checkpoints, 3).name == "checkpoint-000003"
    assert checkpoints.newest().state["number"] == 3


def test_all_damaged_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    folder = save(checkpoints, 1)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint can be read.*model\.safetensors"):
        checkpoints.newest()


def test_what_a_cut_off_save_left_is_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    (tmp_path / "checkpoint-000002.part").mkdir()
    (tmp_path / "checkpoint-000002.part" / "model.safetensors").write_bytes(b"half")
    assert Checkpoints(tmp_path).newest().state["number"] == 1
    assert os.listdir(tmp_path) == ["checkpoint-000001"]


def test_a_full_disk_keeps_what_is_there(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(checkpoints, 2)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["checkpoint-000001"]
    assert checkpoints.newest().state["number"] == 1
