"""A network's graph: its numbers are those of backprop, and the picture shows them."""

from xml.etree import ElementTree

import numpy as np
import pytest

from palto import draw, nn
from palto.draw import graph
from palto.nn import functional as f


def named(nodes):
    return {node.name: node for node in nodes}


def squared_error(w, x, b, y):
    return (f.sigmoid(w * x + b) - y) ** 2


NUMBERS = {"w": 0.5, "x": 2.0, "b": -1.5, "y": 1.0}


def test_an_expression_by_hand():
    nodes = draw.backprop_graph(squared_error, NUMBERS)
    assert [node.name for node in nodes if node.inputs] == ["×", "+", "sigmoid", "−", "square"]
    p = 1 / (1 + np.exp(0.5))
    passed = 2 * (p - 1) * p * (1 - p)
    expected = {
        "w": 2 * passed, "x": 0.5 * passed, "b": passed, "y": -2 * (p - 1), "×": passed,
        "+": passed, "sigmoid": 2 * (p - 1), "−": 2 * (p - 1), "square": 1,
    }  # fmt: skip
    found = {name: float(node.gradient) for name, node in named(nodes).items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert float(nodes[-1].value) == pytest.approx((p - 1) ** 2, rel=1e-5)
    assert named(nodes)["sigmoid"].derivatives == pytest.approx([p * (1 - p)], rel=1e-5)


def test_a_gradient_is_the_sum_over_the_ways_back():
    """Each node's gradient is what its readers hand back: the chain rule, on every node."""
    nodes = draw.backprop_graph(
        lambda a, b: (a * b + a) * f.sigmoid(a) - 3 / b, {"a": 0.7, "b": 1.3}
    )
    handed = [0.0] * len(nodes)
    handed[-1] = 1.0
    for node in reversed(nodes):
        for place, derivative in zip(node.inputs, node.derivatives, strict=True):
            handed[place] += float(node.gradient) * derivative
    assert [float(node.gradient) for node in nodes] == pytest.approx(handed, rel=1e-5)
    assert "3 ÷" in named(nodes)  # a constant is part of the operation's name


def test_a_module_has_the_gradients_of_backward():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    inputs = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    labels = np.array([0, 1, 1, 0, 1])

    def loss(x, y):
        return f.cross_entropy(model(x), y)

    nodes = named(draw.backprop_graph(loss, {"x": inputs, "y": labels}))
    assert not any(p.grad is not None for p in model.parameters())  # drawing leaves no trace
    loss(inputs, labels).backward()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(nodes[name].gradient, parameter.grad.numpy(), atol=1e-6)
        np.testing.assert_array_equal(nodes[name].value, parameter.numpy())
    assert nodes["y"].gradient is None
    assert {"x", "y", "matmul", "+", "relu", "cross_entropy_of_labels"} <= set(nodes)


def test_running_statistics_stay():
    norm = nn.BatchNorm1d(2)
    before = {name: value.numpy() for name, value in norm.state_dict().items()}
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    nodes = draw.backprop_graph(lambda x: f.sigmoid(norm(x)).mean(), {"x": x})
    assert nodes[0].gradient.shape == (6, 2)
    for name, value in norm.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_the_layout_goes_from_left_to_right_and_nothing_lies_on_anything():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.ELU(), nn.Linear(3, 1))
    x = np.ones((4, 2), np.float32)
    nodes = draw.backprop_graph(lambda x: model(x).mean() + (x**2).sum(), {"x": x})
    spots, ways = graph._layout(nodes)
    for place, node in enumerate(nodes):
        for source in node.inputs:
            columns = [spots[source][0], *(c for c, _ in ways[source, place]), spots[place][0]]
            assert columns == list(range(columns[0], columns[-1] + 1))
    assert any(ways.values())
    taken = [*spots, *(spot for way in ways.values() for spot in way)]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_picture(tmp_path, kind):
    pytest.importorskip("matplotlib", reason="pictures need Matplotlib")
    path = tmp_path / f"graph.{kind}"
    nodes = draw.backprop(squared_error, NUMBERS, path, step="×")
    first = path.read_bytes()
    draw.backprop(squared_error, NUMBERS, path, step="×")
    assert path.read_bytes() == first
    if kind == "svg":
        ElementTree.fromstring(first)
        text = first.decode()  # Matplotlib names each text in a comment
        for node in nodes:
            assert f">{graph.shown(node.value)}<" in text
            assert f">{graph.shown(node.gradient)}<" in text
        back, given = float(named(nodes)["×"].gradient), 2.0
        product = " · ".join(map(graph._number, (back, given)))
        assert f">{product} = {graph._number(back * given)}<" in text


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.float32(-0.12345), "−0.123"),
        (np.array([[2.0]]), "2"),
        (np.array([1, 0]), "[1, 0]"),
        (np.ones((4, 3)), "4 × 3"),
        (np.ones(9), "9"),
    ],
)
def test_what_is_shown(array, text):
    assert graph.shown(np.asarray(array)) == text


def test_what_cannot_be_drawn(tmp_path):
    for function in (lambda x: x * np.ones(2, np.float32), lambda x: 3, lambda x: x.detach()):
        with pytest.raises(ValueError, match="one number that depends on its inputs"):
            draw.backprop_graph(function, {"x": 1.0})
    with pytest.raises(ValueError, match=r"an operation of the graph \(×, \+.*got 'tanh'"):
        draw.backprop(squared_error, NUMBERS, tmp_path / "x.svg", step="tanh")

    def long(x):
        for _ in range(100):
            x = f.sigmoid(x)
        return x

    with pytest.raises(ValueError, match="100 operations, more than the 60"):
        draw.backprop_graph(long, {"x": 1.0})
    assert not list(tmp_path.iterdir())
