import numpy as np
import pytest

import palto
from palto import nn
from palto.nn.module import observers


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, bias=False), nn.BatchNorm2d(16), nn.AvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(400, 10),
    )  # fmt: skip


def test_hand_computed():
    summary = lenet().summary((2, 28, 28, 1))
    rows = {row.path: row for row in summary.rows}
    n = 2
    conv1, conv2, pooled = n * 28 * 28 * 6, n * 10 * 10 * 16, n * 14 * 14 * 6
    expected = {
        "": (0, 0, (n, 10)),
        "layers.0": (156, 2 * conv1 * 25 + conv1, (n, 28, 28, 6)),
        "layers.1": (0, 2 * conv1, (n, 28, 28, 6)),  # a comparison and a choice
        "layers.2": (0, 4 * pooled, (n, 14, 14, 6)),
        "layers.3": (2400, 2 * conv2 * 150, (n, 10, 10, 16)),
        # x * scale + shift, which are a few operations for each channel
        "layers.4": (32, 2 * conv2 + 6 * 16, (n, 10, 10, 16)),
        "layers.5": (0, 5 * n * 5 * 5 * 16, (n, 5, 5, 16)),
        "layers.6": (0, 0, (n, 400)),
        "layers.7": (0, 0, (n, 400)),
        "layers.8": (4010, 2 * n * 400 * 10 + n * 10, (n, 10)),
    }
    assert {p: (r.parameters, r.flops, *r.outputs) for p, r in rows.items()} == expected
    assert summary.parameters == summary.trainable == 156 + 2400 + 32 + 4010
    assert summary.flops == sum(flops for _, flops, _ in expected.values())
    assert summary.bytes == 4 * (summary.parameters + 32) + 8  # and the statistics


def test_nothing_changes_and_nothing_is_computed():
    model = nn.Sequential(nn.Linear(10_000, 100), nn.BatchNorm1d(100), nn.Dropout())
    model[1].eval()
    before = {name: cell.numpy() for name, cell in model.named_cells()}
    draws = palto.random.default_generator.state.tolist()
    summary = model.summary((10**9, 10_000))
    assert summary.rows[1].flops == 10**9 * (2 * 10_000 * 100 + 100)
    assert all((before[name] == cell.numpy()).all() for name, cell in model.named_cells())
    assert palto.random.default_generator.state.tolist() == draws
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert observers == []


def test_inputs_of_other_kinds():
    class Model(nn.Module):
        def __init__(self):
            self.embed = nn.Embedding(7, 4)
            self.attend = nn.MultiheadAttention(4, 2)

        def forward(self, tokens, x):
            return self.attend(self.embed(tokens), x), x

    model = Model()
    for tokens in (
        ((2, 3), "int64"),
        ([2, 3], palto.int32),
        palto.zeros((2, 3), dtype=palto.int64),
    ):
        summary = model.summary(tokens, (2, 5, 4))
        assert summary.rows[0].outputs == ((2, 3, 4), (2, 5, 4))
        assert summary.rows[1].outputs == ((2, 3, 4),)


def test_a_layer_called_twice_and_one_never():
    class Model(nn.Module):
        def __init__(self):
            self.shared, self.unused = nn.Linear(3, 3, bias=False), nn.Linear(3, 2)

        def forward(self, x):
            return self.shared(self.shared(x)) + 1

    model = Model()
    model.shared.weight.requires_grad_(False)
    summary = model.summary((5, 3))
    own, shared, unused = summary.rows
    assert own.flops == 15
    assert (shared.calls, shared.flops, shared.parameters) == (2, 2 * 2 * 5 * 9, 9)
    assert (unused.calls, unused.flops, unused.parameters, unused.outputs) == (0, 0, 8, ())
    assert (summary.parameters, summary.trainable) == (17, 8)
    text = str(summary)
    assert "(5, 3) x 2" in text
    assert "not called" in text
    assert "8 of the parameters are trained" in text


def test_looks():
    text = str(nn.Sequential(nn.Linear(300, 1000), nn.Softmax()).summary((1, 300)))
    assert [line.split() for line in text.splitlines() if "─" not in line] == [
        ["layer", "type", "output", "parameters", "FLOPs"],
        ["Sequential", "(1,", "1000)", "-", "-"],
        ["layers.0", "Linear", "(1,", "1000)", "301,000", "601,000"],
        ["layers.1", "Softmax", "(1,", "1000)", "-", "5,000"],
        ["total", "1.15", "MB", "301,000", "606,000"],
    ]
    assert repr(nn.ReLU().summary((1, 2))).splitlines()[0].split()[0] == "layer"


def test_a_mistake_is_reported_as_in_a_call():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"got \(5, 4\)") as caught:
        model.summary((5, 4))
    assert caught.value.__notes__ == ["in layer Sequential.layers.0: Linear(3, 2)"]
    assert observers == []
    assert model(palto.asarray(np.zeros((5, 3), np.float32))).shape == (5, 2)
