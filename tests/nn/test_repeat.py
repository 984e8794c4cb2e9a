"""Layers of one kind run by one loop: what comes out is what a loop of Python's gives."""

import numpy as np
import pytest

import palto
from palto import nn, optim
from palto.tensor.graph import check

WIDTH = 48
START = palto.asarray(np.array([2, 0]))
#: Something beside the layers that threads share.
WIDE = np.linspace(0, 1, 1 << 16, dtype=np.float32)


class Layer(nn.Module):
    """What a layer may have: weights, a number of its own, and what each call leaves behind."""

    def __init__(self, slope=0.5, memory=None):
        self.first, self.second = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)
        self.norm = nn.RMSNorm(WIDTH)
        self.slope = slope
        self.memory = nn.Buffer(palto.zeros((402, WIDTH))) if memory is None else memory

    def forward(self, x, start=None):
        x = x + self.slope * self.second(nn.functional.relu(self.first(self.norm(x))))
        if start is not None:
            self.memory.assign(palto.dynamic_update_slice(self.memory.read(), x, start))
            x = x + palto.mean(self.memory.read(), axis=0)
        return x


class Sorting(Layer):
    """Its sort is run from Python."""

    def forward(self, x, start=None):
        return super().forward(palto.sort(x, axis=0), start)


class Counting(Layer):
    """It writes where its own memory says."""

    def forward(self, x, start=None):
        place = palto.astype(self.memory.read()[0, :1] * 0 + 1, palto.int64)
        self.memory.assign(palto.dynamic_update_slice(
            self.memory.read(), x, palto.concat([place, place * 0])))  # fmt: skip
        return x * 0.5 + palto.sum(self.memory.read(), axis=0)


class Checking(Layer):
    """It demands something of its values."""

    def forward(self, x, start=None):
        check(palto.all(palto.abs(x) < 1e4), "far too large")
        return super().forward(x, start)


class Dropping(Layer):
    """All such layers draw from one state of random numbers."""

    def forward(self, x, start=None):
        return nn.functional.dropout(super().forward(x, start), 0.5, training=True)


class Moving(Layer):
    """Its memory is replaced as a whole."""

    def forward(self, x, start=None):
        self.memory.assign(self.memory.read() * 0.5 + x[:1])
        return x + palto.mean(self.memory.read(), axis=0)


def layers(kind=Layer, count=5):
    return [kind() for _ in range(count)]


def with_one_memory():
    memory = nn.Buffer(palto.zeros((402, WIDTH)))
    return [Layer(memory=memory) for _ in range(4)]


def of_two_kinds():
    return [Layer(), Layer(), Layer(slope=0.25), Layer(slope=0.25), Sorting(), Layer()]


def x_of(seed, rows=3):
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)


def made(make):
    palto.manual_seed(1)
    found = make()
    for layer in found:
        layer.eval().requires_grad_(False)
    return found


@pytest.mark.parametrize(
    ("make", "start", "loops"),
    [
        (layers, None, 1),
        (layers, START, 1),
        (of_two_kinds, START, 2),
        (lambda: layers(count=1), START, 0),
        (lambda: layers(Moving), None, 1),
        # What no loop can do is done layer by layer.
        (with_one_memory, START, 0),
        (lambda: layers(Sorting), START, 0),
        (lambda: layers(Counting), START, 0),
        (lambda: layers(Checking), START, 0),
        (lambda: layers(Dropping), START, 0),
    ],
)
@pytest.mark.parametrize(("threads", "rows"), [(1, 3), (2, 3), (2, 400)])
def test_the_same_as_layer_by_layer(make, start, loops, threads, rows, executor, monkeypatch):
    monkeypatch.setattr(palto.compiler.team, "_chosen", threads)
    ours, plain = made(make), made(make)
    calls = [(start,)] * len(ours)
    compiled = palto.compile(lambda x: (nn.repeated(ours, x, calls), palto.sin(WIDE)))
    for seed in range(3):
        palto.manual_seed(seed)
        found, _ = compiled(x_of(seed, rows))
        palto.manual_seed(seed)
        expected = palto.asarray(x_of(seed, rows))
        for layer in plain:
            expected = layer(expected, start)
        np.testing.assert_allclose(found.array(), expected.array(), rtol=1e-4, atol=1e-3)
        for own, other in zip(ours, plain, strict=True):
            np.testing.assert_allclose(own.memory.array(), other.memory.array(), 1e-4, 1e-3)
    if executor == "native":
        rows = compiled.explain(x_of(0, rows)).rows
        assert [row.kind for row in rows].count("repeat") == loops


def test_at_once_and_with_gradients(executor):
    """Where nothing is traced, and where backprop wants each layer's own results."""
    ours = [Layer() for _ in range(3)]
    calls = [()] * 3
    plain = palto.asarray(x_of(0))
    for layer in ours:
        plain = layer(plain)
    np.testing.assert_array_equal(nn.repeated(ours, x_of(0), calls).array(), plain.array())

    weights = [weight for layer in ours for weight in layer.parameters()]
    optimizer = optim.SGD(weights, lr=0.0)

    def gradients(run):
        def loss(x):
            total = palto.sum(run(x) ** 2)
            total.backward()
            optimizer.step()
            return total

        palto.compile(loss, keep_grad=True)(x_of(1))
        return [weight.grad.array() for weight in weights]

    def by_hand(x):
        for layer in ours:
            x = layer(x)
        return x

    for one, other in zip(
        gradients(lambda x: nn.repeated(ours, x, calls)), gradients(by_hand), strict=True
    ):
        np.testing.assert_array_equal(one, other)
