"""A step as part of a program: the same numbers, but for rounding, and nothing half done.

Adam divides by the root of what may be a tiny square, so noise in a gradient can grow. In float64
the comparison is sharp nevertheless: a wrong rule, or a wrong eps, is far above `NOISE`.
"""

import numpy as np
import pytest

import palto
from palto import optim
from palto.nn.module import Parameter
from palto.tensor.graph import Graph, Trace

from .conftest import Case, assert_same, values

schedules = optim.schedules

#: How much a compiled step may differ from the eager one, by dtype.
NOISE = {"float64": 1e-11, "float32": 1e-5}

STEPS = {
    "sgd": (lambda n: optim.SGD(n, 0.1), None),
    "momentum": (lambda n: optim.SGD(n, 0.1, momentum=0.9, dampening=0.2, weight_decay=0.1), None),
    "nesterov": (lambda n: optim.SGD(n, 0.1, momentum=0.9, nesterov=True), None),
    "adam": (lambda n: optim.Adam(n, 0.05), None),
    "adam-pytorch": (lambda n: optim.Adam(n, 0.05, variant="pytorch", weight_decay=0.1), None),
    "adamw": (lambda n: optim.AdamW(n, 0.05), None),
    "uniform": (lambda n: optim.Adam(n, 0.05, average="uniform"), None),
    "tail": (lambda n: optim.SGD(n, 0.05, average="tail"), None),
    "cosine": (lambda n: optim.Adam(n, schedules.cosine(0.05, 10, warmup=3)), None),
    "one-cycle": (lambda n: optim.Adam(n, schedules.one_cycle(0.05, 10)), None),
    "groups": (
        lambda n: optim.Adam(
            [{"params": n.hidden, "lr": schedules.step(0.1, 3)}, {"params": n.out, "eps": 1e-3}]
        ),
        None,
    ),
    "clipped": (lambda n: optim.Adam(n, 0.05), lambda n: optim.clip_grad_norm_(n, 0.1)),
    "clipped-value": (lambda n: optim.Adam(n, 0.05), lambda n: optim.clip_grad_value_(n, 0.01)),
    "checked": (lambda n: optim.Adam(n, 0.05), optim.check_gradients),
}


def step_of(case, network, optimizer, between):
    def step(x, y):
        loss = ((network(x) - y) ** 2).mean()
        loss.backward()
        if between is not None:
            between(network)
        optimizer.step()
        return loss

    return step


def close(number, dtype="float64"):
    return pytest.approx(number, rel=NOISE[dtype])


def assert_same_state(optimizer, other, rtol=0.0):
    assert dict(other.named_cells()).keys() == dict(optimizer.named_cells()).keys()
    for (name, cell), (_, wanted) in zip(optimizer.named_cells(), other.named_cells(), strict=True):
        np.testing.assert_allclose(cell.numpy(), wanted.numpy(), rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize(
    ("executor", "dtype"),
    [("native", "float64"), ("native", "float32"), ("xla", "float64")],
    indirect=["executor"],
)
@pytest.mark.parametrize("name", STEPS)
def test_ten_compiled_steps_are_the_eager_ones(name, dtype, executor):
    case = Case(dtype)
    make, between = STEPS[name]
    eager, compiled = case.network(), case.network()
    optimizers = make(eager), make(compiled)
    run = step_of(case, eager, optimizers[0], between)
    program = palto.compile(step_of(case, compiled, optimizers[1], between))
    for _ in range(10):
        wanted = run(palto.asarray(case.x), palto.asarray(case.y))
        assert program(case.x, case.y).item() == close(wanted.item(), dtype)
    assert program.program_count == 1
    assert_same(compiled, eager, NOISE[dtype])
    assert_same_state(optimizers[1], optimizers[0], NOISE[dtype])


@pytest.mark.parametrize("name", ["nesterov", "adam", "tail", "cosine", "clipped"])
def test_a_traced_step_assigns_every_cell(case32, name):
    make, between = STEPS[name]
    eager, network = case32.network(), case32.network()
    reference, optimizer = make(eager), make(network)
    before = values(network)
    trace = Trace()
    with trace.active():
        step_of(case32, network, optimizer, between)(
            palto.asarray(case32.x), palto.asarray(case32.y)
        )
    state = [cell for n, cell in optimizer.named_cells() if not n.endswith("lr")]
    assert set(trace.assignments) == {*network.parameters(), *state}
    assert not trace.pending
    assert_same(network, before)  # a trace writes nothing

    reads, writes = list(trace.reads), list(trace.assignments)
    graph = Graph.reaching(
        list(trace.reads.values()), list(trace.assignments.values()), trace.tensors
    )
    results = graph.evaluate(*(cell.read().array() for cell in reads))
    for cell, value in zip(writes, results, strict=True):
        cell.assign(value)
    step_of(case32, eager, reference, between)(palto.asarray(case32.x), palto.asarray(case32.y))
    assert_same(network, eager)
    assert_same_state(optimizer, reference)


def test_lr_changes_without_another_program(case, executor):
    eager, compiled = case.network(), case.network()
    optimizers = optim.Adam(eager, 0.1), optim.Adam(compiled, 0.1)
    run = step_of(case, eager, optimizers[0], None)
    program = palto.compile(step_of(case, compiled, optimizers[1], None))
    for lr in (0.1, 0.03, palto.asarray(0.2), 0.0):
        for optimizer in optimizers:
            optimizer.lr = lr
        run(palto.asarray(case.x), palto.asarray(case.y))
        program(case.x, case.y)
        assert_same(compiled, eager, NOISE["float64"])
    assert program.program_count == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda o: setattr(o.groups[0], "weight_decay", 0.5),
        lambda o: setattr(o.groups[0], "betas", (0.5, 0.6)),
        lambda o: setattr(o, "variant", "pytorch"),
        lambda o: setattr(o, "lr", schedules.exponential(0.1, 0.5)),
        lambda o: o.groups[0].slots[0].parameter.requires_grad_(False),
    ],
    ids=["decay", "betas", "variant", "schedule", "frozen"],
)
def test_other_changes_are_seen(case, change):
    eager, compiled = case.network(), case.network()
    optimizers = optim.Adam(eager, 0.1), optim.Adam(compiled, 0.1)
    run = step_of(case, eager, optimizers[0], None)
    program = palto.compile(step_of(case, compiled, optimizers[1], None))
    for _ in range(2):
        run(palto.asarray(case.x), palto.asarray(case.y))
        program(case.x, case.y)
        assert_same(compiled, eager, NOISE["float64"])
        for optimizer in optimizers:
            change(optimizer)
    run(palto.asarray(case.x), palto.asarray(case.y))
    program(case.x, case.y)
    assert_same(compiled, eager, NOISE["float64"])


def test_lr_set_inside_a_program():
    x = Parameter(np.zeros(1))
    optimizer = optim.SGD([x], 1.0)

    @palto.compile
    def step():
        x.sum().backward()
        optimizer.step()
        optimizer.lr = optimizer.lr * 0.5
        return optimizer.lr

    assert [float(step()) for _ in range(4)] == [0.5, 0.25, 0.125, 0.0625]
    assert x.item() == -(1 + 0.5 + 0.25 + 0.125)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda n: optim.clip_grad_norm_(n, 1.0), "the norm of the gradients is not finite"),
        (optim.check_gradients, r"the gradient of hidden\.weight is not finite"),
    ],
    ids=["norm", "check"],
)
def test_a_failed_check_leaves_everything_as_it_was(case32, check, message, executor):
    network = case32.network()
    optimizer = optim.Adam(network, average="uniform")
    program = palto.compile(step_of(case32, network, optimizer, check))
    program(case32.x, case32.y)
    before = values(network)
    state = {name: value.numpy() for name, value in optimizer.state_dict().items()}
    bad = case32.x.copy()
    bad[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match=message):
        program(bad, case32.y)
    assert_same(network, before)
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name], err_msg=name)
    program(case32.x, case32.y)
    assert optimizer.count.item() == 2


def test_the_norm_comes_out_of_a_program(case):
    network = case.network()

    @palto.compile
    def norm(x, y):
        ((network(x) - y) ** 2).mean().backward()
        return optim.clip_grad_norm_(network, 0.1)

    case.loss(network).backward()
    wanted = optim.clip_grad_norm_(network, 0.1)
    optim.SGD(network).zero_grad()
    assert norm(case.x, case.y).item() == close(wanted.item())


def test_a_missing_gradient_is_found_while_tracing(case32):
    network = case32.network()
    network.extra = Parameter(np.zeros(3, np.float32))
    before = values(network)
    program = palto.compile(step_of(case32, network, optim.Adam(network), None))
    with pytest.raises(RuntimeError, match="since the last step for extra"):
        program(case32.x, case32.y)
    assert_same(network, before)


def test_a_second_step_without_backward_is_found_while_tracing(case32):
    network = case32.network()
    optimizer = optim.Adam(network)

    @palto.compile
    def step(x, y):
        ((network(x) - y) ** 2).mean().backward()
        optimizer.step()
        optimizer.step()

    with pytest.raises(RuntimeError, match="no gradient has been computed since the last step"):
        step(case32.x, case32.y)


def test_two_steps_in_one_program(case):
    eager, compiled = case.network(), case.network()
    optimizers = optim.Adam(eager, 0.1), optim.Adam(compiled, 0.1)
    run = step_of(case, eager, optimizers[0], None)
    inside = step_of(case, compiled, optimizers[1], None)

    @palto.compile
    def twice(x, y):
        return inside(x, y), inside(x, y)

    for _ in range(3):
        wanted = [run(palto.asarray(case.x), palto.asarray(case.y)).item() for _ in range(2)]
        assert [loss.item() for loss in twice(case.x, case.y)] == close(wanted)
    assert_same(compiled, eager, NOISE["float64"])


def test_two_optimisers_in_one_program(case):
    """As for a generator and its judge, each with a loss of its own."""
    eager, compiled = case.network(), case.network()

    def step_of_two(network):
        first, second = optim.Adam(network.hidden, 0.1), optim.SGD(network.out, 0.1, momentum=0.9)

        def step(x, y):
            score = ((network(x) - y) ** 2).mean()
            score.backward(inputs=network.hidden.parameters(), retain_graph=True)
            (-score).backward(inputs=network.out.parameters())
            first.step()
            second.step()
            return score

        return step

    run, program = step_of_two(eager), palto.compile(step_of_two(compiled))
    for _ in range(5):
        wanted = run(palto.asarray(case.x), palto.asarray(case.y))
        assert program(case.x, case.y).item() == close(wanted.item())
    assert_same(compiled, eager, NOISE["float64"])


def test_a_program_sees_the_average(case):
    network = case.network()
    optimizer = optim.Adam(network, 0.1, average="uniform")
    program = palto.compile(step_of(case, network, optimizer, None))
    predict = palto.compile(network)
    for _ in range(5):
        program(case.x, case.y)
    training = predict(case.x).numpy()
    with optimizer.averaged(network):
        averaged = predict(case.x).numpy()
        eager = network(palto.asarray(case.x)).numpy()
        np.testing.assert_allclose(averaged, eager, rtol=NOISE["float64"])
    assert np.abs(averaged - training).max() > 1e-3
    np.testing.assert_array_equal(predict(case.x).numpy(), training)
    assert predict.program_count == 1


def test_optimisers_are_made_outside(case32):
    network = case32.network()
    with pytest.raises(palto.TraceError, match="made inside a compiled function; make modules, op"):
        palto.compile(lambda: optim.SGD(network) and None)()
