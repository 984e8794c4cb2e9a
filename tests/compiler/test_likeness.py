"""Kernels that are shared by like nests, and kept on disk for like programs."""

import numpy as np
import pytest

import palto
from palto import nn, optim
from palto.compiler import likeness
from palto.compiler.likeness import _Description
from palto.compiler.llvm import cache
from palto.compiler.lowering import Lowering
from palto.compiler.memory import Buffer
from palto.compiler.views import Read


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty cache, into which every program's kernels go."""
    monkeypatch.setenv("PALTO_CACHE", str(tmp_path))
    monkeypatch.setattr(likeness, "WORTH_KEEPING", 0.0)
    return tmp_path


@pytest.fixture
def written(monkeypatch):
    """The nests whose kernels were written, not found."""
    nests, original = [], Lowering._write
    monkeypatch.setattr(
        Lowering, "_write", lambda self, wanted: (nests.append(wanted), original(self, wanted))[1]
    )
    return nests


def kept(folder):
    return sorted(folder.glob(f"*{cache.TEXT}"))


def trained(steps=3):
    """Losses and weights of a small network's first steps, by a program of its own."""
    palto.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 3))
    optimizer = optim.Adam(model, lr=1e-2)

    @palto.compile
    def step(x, labels):
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss

    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(16, 6)).astype(np.float32), rng.integers(0, 3, 16)
    losses = [float(step(x, labels)) for _ in range(steps)]
    return losses, [p.read().array() for p in model.parameters()], step


def test_a_like_program_writes_nothing(folder, written):
    losses, weights, step = trained()
    assert written and kept(folder)
    count = len(written)
    again, same_weights, same_step = trained()
    assert len(written) == count
    assert again == losses
    for a, b in zip(weights, same_weights, strict=True):
        np.testing.assert_array_equal(a, b)
    shown = [[row.tile for row in s.explain().rows] for s in (step, same_step)]
    assert shown[0] == shown[1] and any(shown[0])


@pytest.mark.parametrize("damage", ["flipped", "empty", "none"])
def test_a_damaged_file_is_written_again(folder, written, damage):
    losses, _, _ = trained()
    count = len(written)
    for path in kept(folder):
        whole = path.read_bytes()
        if damage == "none":
            path.unlink()
        else:
            middle = len(whole) // 2
            flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
            path.write_bytes(flipped if damage == "flipped" else b"")
    assert trained()[0] == losses
    assert len(written) == 2 * count


def test_other_code_or_another_machine_is_another_file(folder, written, monkeypatch):
    trained()
    count = len(written)
    monkeypatch.setattr(likeness, "_source", lambda: "changed")
    trained()
    assert len(written) == 2 * count


def test_quick_programs_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(likeness, "WORTH_KEEPING", 1e9)
    trained()
    assert not kept(folder)


def test_without_a_cache(folder, written, monkeypatch):
    monkeypatch.setenv("PALTO_CACHE", "off")
    losses, _, _ = trained()
    assert trained()[0] == losses and not kept(folder)


@pytest.mark.parametrize("greatest", [8, 12])
def test_programs_of_any_length_are_not_kept(folder, greatest):
    """Their descriptions do not say for which sizes they are planned."""
    axis = palto.Dim("batch", max=greatest)
    double = palto.compile(lambda x: (x * 2).sum(0), dynamic_shapes={"x": {0: axis}})
    for n in (greatest, 5):
        np.testing.assert_array_equal(double(np.ones((n, 3), np.float32)).array(), [2 * n] * 3)
    assert not kept(folder)


@pytest.mark.parametrize(
    "value", [object(), (1, ("1*t140234[1*m0+0]<9+0",)), lambda: 1, palto.Dim("batch", max=8)]
)
def test_what_another_process_cannot_have_is_not_lasting(value):
    with pytest.raises(likeness._NotLasting):
        likeness._lasting(value)


def test_memory_with_room_behind_it_is_not_like_memory_without():
    """A load of some bytes may reach beyond the arena's buffers, not beyond an argument's."""
    x = palto.asarray(np.zeros(5, bool))
    told = {
        role: _Description(
            lambda y, role=role: Buffer(y.shape, y.dtype, role), lambda y: True
        )._read(Read(x, ()))
        for role in ("arena", "input", "output")
    }
    assert told["arena"] != told["input"] == told["output"]
