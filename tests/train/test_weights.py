"""Weights that are handed on: with their record, and refused if they are not those."""

import json

import numpy as np
import pytest

from palto import nn
from palto.train import load_weights, save_weights


def test_weights_come_back_with_their_record(tmp_path):
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    record = save_weights(tmp_path, "thing", model, {"command": "palto train thing", "score": 7})
    assert sorted(x.name for x in tmp_path.iterdir()) == ["thing.json", "thing.safetensors"]
    found = load_weights(tmp_path, "thing", other, made_by="palto train thing")
    assert found == record == json.loads((tmp_path / "thing.json").read_text())
    assert (found["command"], found["score"]) == ("palto train thing", 7)
    assert {"date", "versions", "sha256"} <= set(found)
    np.testing.assert_array_equal(other.weight.numpy(), model.weight.numpy())


def test_damaged_and_missing_weights_are_refused(tmp_path):
    model = nn.Linear(3, 2)
    with pytest.raises(FileNotFoundError, match="palto train thing"):
        load_weights(tmp_path, "thing", model, made_by="palto train thing")
    save_weights(tmp_path, "thing", model, {})
    with pytest.raises(ValueError, match="weight"):
        load_weights(tmp_path, "thing", nn.Linear(4, 2), made_by="palto train thing")
    weights = tmp_path / "thing.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="hash differs"):
        load_weights(tmp_path, "thing", model, made_by="palto train thing")
    (tmp_path / "thing.json").write_text("[]")
    with pytest.raises(ValueError, match="damaged"):
        load_weights(tmp_path, "thing", model, made_by="palto train thing")
