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


class Plain(nn.Module):
    """A weight, a number, and whatever else it is given."""

    def __init__(self, **others):
        self.weight = nn.Parameter(np.random.default_rng(id(self) % 97).random(4, np.float32) + 0.5)
        for name, value in others.items():
            setattr(self, name, value)

    def forward(self, x, added=None):
        x = x * self.weight
        if added is not None:
            x = x + (added[0] if isinstance(added, tuple) else added)
        return x + self.extra(x) if hasattr(self, "extra") else x


class Slotted(Plain):
    """What it holds is in no dictionary."""

    __slots__ = ("hidden",)

    def forward(self, x):
        return x * self.weight + self.hidden


class Shared(nn.Module):
    """A module that several layers have, with the weight of one of them."""

    def __init__(self, weight):
        self.weight = weight

    def forward(self, x):
        return x + self.weight


def twice(own):
    return own * 2, [()] * 8


def first_again(own):
    return [*own, own[0]], [()] * 5


def first_ones_weight(own):
    return own, [(own[0].weight,)] * 4


def first_ones_weight_in_a_tuple(own):
    return own, [((own[0].weight,),)] * 4


def what_the_first_one_holds(own):
    held = own[0].weight.read()
    return own, [(held,)] * 4


def a_module_with_the_first_ones_weight(own):
    shared = Shared(own[0].weight)
    for layer in own:
        layer.extra = shared
    return own, [()] * 4


def a_closure_with_the_first_ones_weight(own):
    for layer in own:
        layer.extra = lambda x: x * own[0].weight
    return own, [()] * 4


def one_closure_with_the_first_ones_weight(own):
    first = own[0]

    def extra(x):
        return x * first.weight

    for layer in own:
        layer.extra = extra
    return own, [()] * 4


def known_by_identity(own):
    table = {id(layer): 0.5 * number for number, layer in enumerate(own)}
    for layer in own:
        layer.extra = lambda x, own=layer: x * table[id(own)]
    return own, [()] * 4


def in_slots(_):
    own = [Slotted() for _ in range(4)]
    for number, layer in enumerate(own):
        object.__setattr__(layer, "hidden", float(number))
    return own, [()] * 4


def of_two_zeros(own):
    zeros = [0.0, -0.0, 0.0, -0.0]
    for layer, zero in zip(own, zeros, strict=True):
        layer.extra = Zero(zero)
    return own, [()] * 4


class Zero(nn.Module):
    """It tells the two zeros apart."""

    def __init__(self, zero):
        self.zero = zero

    def forward(self, x):
        return 1 if str(self.zero) == "0.0" else -1


@pytest.mark.parametrize(
    "arrange",
    [
        twice, first_again, first_ones_weight, first_ones_weight_in_a_tuple,
        what_the_first_one_holds, a_module_with_the_first_ones_weight,
        a_closure_with_the_first_ones_weight, one_closure_with_the_first_ones_weight,
        known_by_identity, in_slots, of_two_zeros,
    ],
)  # fmt: skip
def test_layers_that_only_look_alike(arrange):
    own, arguments = arrange([Plain() for _ in range(4)])
    for layer in own:
        layer.requires_grad_(False)

    def plain(x):
        for layer, given in zip(own, arguments, strict=True):
            x = layer(x, *given)
        return x

    x = np.random.default_rng(0).random((3, 4), np.float32)
    compiled = palto.compile(lambda x: nn.repeated(own, x, arguments))
    np.testing.assert_allclose(compiled(x).array(), plain(palto.asarray(x)).array(), rtol=1e-5)


def test_layers_that_know_each_other():
    own = [Plain() for _ in range(3)]
    for layer in own:
        layer.requires_grad_(False)
        layer.owner = layer
    x = np.ones((3, 4), np.float32)
    found = palto.compile(lambda: nn.repeated(own, x, [()] * 3))()  # of a constant, too
    np.testing.assert_allclose(found.array(), nn.repeated(own, x, [()] * 3).array(), rtol=1e-6)


def test_as_many_arguments_as_layers():
    with pytest.raises(ValueError, match=r"got 2 layers and arguments for 1; give a tuple"):
        nn.repeated([Plain(), Plain()], np.ones((3, 4), np.float32), [()])
