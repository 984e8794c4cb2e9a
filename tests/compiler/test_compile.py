"""``palto.compile``: whole steps, program by program, against the same function run plainly."""

import numpy as np
import pytest

import palto
from palto import nn


class Network(nn.Module):
    """A little of everything that has state: parameters, a running mean, random numbers."""

    def __init__(self):
        self.weights = [nn.Parameter(palto.random.normal(shape) * 0.3) for shape in SHAPES]
        self.mean = nn.Buffer(palto.zeros((8,)))

    def forward(self, x):
        x = palto.tanh(x @ self.weights[0])
        if self.training:
            self.mean.assign(self.mean * 0.9 + x.mean(0).detach() * 0.1)
            x = x * palto.random.bernoulli(x.shape, 0.5).astype(palto.float32)
        return (x - self.mean) @ self.weights[1]


SHAPES = [(4, 8), (8, 3)]


def descend(network, rate):
    """Plain gradient descent, as a graph function of cells."""
    with palto.no_grad():
        for parameter in network.parameters():
            parameter.assign(parameter - rate * parameter.grad)
            parameter.set_grad(parameter.grad, pending=False)


def make_step(network, rate):
    def step(x, y):
        loss = ((network(x) - y) ** 2).mean()
        loss.backward()
        descend(network, rate)
        return {"loss": loss, "first": network.weights[0][0]}

    return step


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 3)).astype(np.float32))
        for _ in range(10)
    ]


def test_ten_steps_are_those_of_the_plain_function(batches, executor):
    histories = []
    for wrap in (lambda f: f, palto.compile):
        palto.manual_seed(1)
        network = Network()
        step = wrap(make_step(network, palto.Cell(0.1)))
        losses = [step(palto.asarray(x), palto.asarray(y))["loss"].item() for x, y in batches]
        histories.append((losses, network.state_dict()))
    (plain, plain_state), (compiled, compiled_state) = histories
    np.testing.assert_allclose(plain, compiled, rtol=1e-6)
    assert len(set(plain)) == 10
    for name, value in plain_state.items():
        np.testing.assert_allclose(value, compiled_state[name], rtol=1e-5, atol=1e-6)


def test_one_program_for_many_steps(batches, executor):
    rate = palto.Cell(0.1)
    step = palto.compile(make_step(Network(), rate))
    for x, y in batches:
        step(x, y)
        rate.assign(rate.read() * 0.9)
    assert step.program_count == 1


def test_train_and_eval_are_two_programs(batches):
    network = Network()
    forward = palto.compile(network)
    x = batches[0][0]
    network.eval()
    still = forward(x)
    np.testing.assert_array_equal(forward(x), still)
    network.train()
    assert not np.array_equal(forward(x), still)
    network.eval()
    forward(x)
    assert forward.program_count == 2


def test_learning_rate_zero_changes_nothing(batches):
    network = Network().eval()
    before = network.state_dict()
    palto.compile(make_step(network, palto.Cell(0.0)))(*batches[0])
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_keep_grad(batches, executor):
    network = Network().eval()
    x, y = (palto.asarray(part) for part in batches[0])

    @palto.compile(keep_grad=True)
    def gradients(x, y):
        ((network(x) - y) ** 2).mean().backward()

    gradients(x, y)
    kept = [parameter.grad.numpy() for parameter in network.parameters()]
    for parameter in network.parameters():
        assert parameter.has_pending_grad()
        parameter.set_grad(None, pending=False)
    ((network(x) - y) ** 2).mean().backward()
    for parameter, grad in zip(network.parameters(), kept, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), grad, rtol=1e-5, atol=1e-7)


def test_second_order(batches, executor):
    weight = palto.Cell(np.full((4,), 0.3, np.float32), requires_grad=True)

    def penalised(x):
        def score(x):
            return palto.tanh(x @ weight).sum()

        slope = palto.grad(score)(x)
        loss = ((palto.vector_norm(slope, axis=-1) - 1) ** 2).mean()
        loss.backward()
        grad = weight.grad
        weight.set_grad(None, pending=False)
        return loss, grad

    x = palto.asarray(batches[0][0])
    for plain, compiled in zip(penalised(x), palto.compile(penalised)(x), strict=True):
        np.testing.assert_allclose(plain.numpy(), compiled.numpy(), rtol=1e-5)


def test_accumulation_over_two_losses(batches, executor):
    network = Network().eval()

    @palto.compile(keep_grad=True)
    def both(x, y):
        (network(x) - y).mean().backward()
        ((network(x) - y) ** 2).mean().backward(accumulate=True)

    both(*batches[0])
    kept = [parameter.grad.numpy() for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.set_grad(None, pending=False)
    x, y = (palto.asarray(part) for part in batches[0])
    ((network(x) - y).mean() + ((network(x) - y) ** 2).mean()).backward()
    for parameter, grad in zip(network.parameters(), kept, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), grad, rtol=1e-5, atol=1e-6)


def test_second_backward_before_a_step_raises(batches):
    network = Network()

    @palto.compile
    def twice(x, y):
        (network(x) - y).mean().backward()
        (network(x) - y).mean().backward()

    with pytest.raises(palto.BackwardError, match="accumulate=True"):
        twice(*batches[0])


def test_scan_and_checkpoint_in_a_program(executor):
    w = palto.Cell(np.float32(0.5), requires_grad=True)

    def rolled(x):
        def step(state, element):
            state = palto.tanh(state * w + element)
            return state, state

        _, states = palto.scan(step, palto.zeros(()), x)
        loss = palto.checkpoint(lambda s: (s * s * w).sum(), states)
        loss.backward()
        grad = w.grad
        w.set_grad(None, pending=False)
        return loss, grad

    x = palto.asarray(np.linspace(-1, 1, 7, dtype=np.float32))
    for plain, compiled in zip(rolled(x), palto.compile(rolled)(x), strict=True):
        np.testing.assert_allclose(plain.numpy(), compiled.numpy(), rtol=1e-6)


def test_check_stops_before_any_cell_is_written(executor):
    cell = palto.Cell(1.0)

    @palto.compile
    def step(x):
        cell.assign(cell * x)
        palto.tensor.graph.check(palto.isfinite(cell).all(), "the cell is not finite")

    step(np.float32(2))
    with pytest.raises(FloatingPointError, match="the cell is not finite"):
        step(np.float32(np.inf))
    assert float(cell) == 2


def test_error_in_a_program_names_the_layer(executor):
    class Lookup(nn.Module):
        def __init__(self):
            self.table = nn.Parameter(palto.zeros((5, 2)))

        def forward(self, index):
            return palto.take(self.table, index, role="token")

    lookup = palto.compile(nn.Sequential(Lookup()))
    lookup(np.array([1]))
    with pytest.raises(IndexError, match="token 9 is out of range: it must be from 0 to 4") as info:
        lookup(np.array([9]))
    assert any("Sequential.layers.0" in note for note in info.value.__notes__)


def test_wrong_use_of_compile():
    with pytest.raises(TypeError, match="takes a function"):
        palto.compile(3)
    with pytest.raises(TypeError, match="int16"):
        palto.compile(lambda x: x)(np.zeros(3, np.int16))


def test_looks():
    step = palto.compile(make_step(Network(), palto.Cell(0.1)))
    assert step.__name__ == "step"
    assert "step" in repr(step) and "0 programs" in repr(step)
