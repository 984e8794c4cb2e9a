"""What explain() says of programs, and that it leaves everything as it was."""

import copy
import gc

import numpy as np
import pytest

import palto
from palto import nn, optim
from palto.compiler import explain as explaining
from palto.nn import functional
from palto.tensor.graph import Operation


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Profiles of a few runs, and a machine that is not measured."""
    monkeypatch.setattr("palto.compiler.explain._SECONDS", 0.0)
    monkeypatch.setattr("palto.compiler.explain.flops_peak", lambda kind, threads: 1e6)
    monkeypatch.setattr("palto.compiler.explain.copy_peak", lambda threads: 10.0)


class Network(nn.Module):
    def __init__(self):
        self.first = nn.Linear(20, 32)
        self.norm = nn.LayerNorm(32)
        self.second = nn.Linear(32, 5)

    def forward(self, x):
        return self.second(palto.maximum(self.norm(self.first(x)), 0))


def learning():
    model = Network()
    optimizer = optim.Adam(model, lr=1e-2)

    @palto.compile
    def step(x, y):
        noise = palto.random.normal(x.shape) * 0.1
        loss = functional.cross_entropy(model(x + noise), y)
        loss.backward()
        optimizer.step()
        return loss

    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 20)).astype(np.float32)
    return model, optimizer, step, (x, rng.integers(0, 5, 16))


def state(model, optimizer):
    tensors = {**model.state_dict(), **optimizer.state_dict()}
    tensors["random"] = palto.random.default_generator.state.read()
    return {name: np.array(palto.asarray(x).array()) for name, x in tensors.items()}


def steps_of(function):
    return function._latest.program.native.steps


def test_rows_are_all_steps_in_order():
    *_, step, batch = learning()
    found = step.explain(*batch)
    assert [row.number for row in found.rows] == list(range(len(steps_of(step))))
    for row, real in zip(found.rows, steps_of(step), strict=True):
        assert row.seconds >= 0 and row.peak >= 0 and row.threads >= 1
        assert row.waits == real.barrier
        assert row.units == (real.kernel.units if real.kernel else 0)
        assert row.read >= 0 and row.written >= 0 and row.primitives
    assert sum(row.seconds for row in found.rows) > 0 and found.seconds > 0
    assert {"matmul", "rows", "check"} <= {row.kind for row in found.rows}
    assert 0 < found.kernels <= len(found.rows)
    assert found.arena_bytes > 0 and found.lowering_seconds > 0 and found.code_seconds > 0
    assert sum(found.shares.values()) == pytest.approx(1)
    times = [row.seconds for row in found.slowest()]
    assert times == sorted(times, reverse=True) and len(times) <= 10


@pytest.mark.parametrize("called", [False, True])
def test_nothing_changes(called):
    model, optimizer, step, batch = learning()
    if called:
        step(*batch)
    before = state(model, optimizer)
    step.explain(*batch)
    after = state(model, optimizer)
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert not any(p.grad is not None for p in model.parameters())


def test_learning_goes_on_as_if_nothing_had_been():
    losses = []
    for explains in (False, True):
        palto.manual_seed(3)
        *_, step, batch = learning()
        mine = []
        for _ in range(3):
            if explains:
                step.explain(*batch)
            mine.append(float(step(*batch)))
        losses.append(mine)
        assert step.program_count == 1
    assert losses[0] == losses[1]


def test_a_linear_layer():
    layer = nn.Linear(300, 40)

    @palto.compile
    def forward(x):
        return palto.maximum(layer(x), 0)

    found = forward.explain(np.ones((70, 300), np.float32))
    (row,) = found.rows
    assert (row.kind, row.shape, row.summed, row.dtype) == ("matmul", (70, 40), 300, "float32")
    assert row.flops == 2 * 70 * 300 * 40 + 2 * 70 * 40  # and the bias, and the maximum
    assert row.read == 4 * (70 * 300 + 300 * 40 + 40) and row.written == 4 * 70 * 40
    assert set(row.primitives) == {"matmul", "add", "maximum"}
    assert row.layers == ("Linear",) and "x" in row.tile
    assert row.seconds > 0
    assert row.gflops == pytest.approx(row.flops / row.seconds / 1e9)
    assert row.bandwidth == pytest.approx((row.read + row.written) / row.seconds / 1e9)
    assert row.peak == pytest.approx(row.gflops / 1e6)


def test_what_is_read_of_a_table_and_of_a_slice():
    table = palto.Cell(np.zeros((1000, 8), np.float32))

    @palto.compile
    def look_up(numbers):
        return palto.take(table, numbers, axis=0) * 2, table[:3] + 1

    found = look_up.explain(np.array([1, 2, 900]))
    rows = [row for row in found.rows if row.kind == "map"]
    assert sum(row.read for row in rows) == 3 * 8 + 2 * 3 * 8 * 4
    assert sum(row.written for row in rows) == 2 * 3 * 8 * 4


def test_kinds_of_steps():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)

    @palto.compile
    def many(x, numbers):
        loop = palto.scan(lambda h, row: (h + row, h), x[0], x)
        return (
            palto.sort(x, axis=0), palto.cumulative_sum(x, axis=0), palto.sum(x, axis=0),
            palto.nn.functional.softmax(x), palto.take(x, numbers, axis=0), loop,
        )  # fmt: skip

    found = many.explain(x, np.array([0, 3]))
    kinds = {row.kind for row in found.rows}
    assert {"library", "running", "reduce", "rows", "check"} <= kinds
    assert all(row.seconds > 0 for row in found.rows if row.kind in ("library", "scan"))
    assert any("0 <= x < 40" in row.primitives for row in found.rows if row.kind == "check")


def test_the_text():
    *_, step, batch = learning()
    found = step.explain(*batch)
    text = str(found)
    for part in ("Network.first", "Network.norm", "Network.second", "matmul", "the slowest",
                 "GFLOP/s", "step: ", "kernels", "of peak", "machine code"):  # fmt: skip
        assert part in text
    assert repr(found) == text
    assert "…" not in text
    assert all(" x " in line for line in text.splitlines() if " bool " in line)


def test_a_narrow_table():
    *_, step, batch = learning()
    found = step.explain(*batch)
    for width in (80, 120, 160):
        lines = found.table(found.rows, width).splitlines()
        assert len(lines) == 2 + len(found.rows)
        assert max(map(len, lines)) <= width
        for name in ("step", "kind", "layer", "computes", "time", "share", "of peak"):
            assert name in lines[0]


def test_without_arguments():
    *_, step, batch = learning()
    with pytest.raises(ValueError, match=r"call it first, or give explain\(\) the arguments"):
        step.explain()
    step(*batch)
    assert len(step.explain().rows) == len(steps_of(step))


def test_made_up_arguments_that_fail():
    @palto.compile
    def divide(x, y):
        return x // y

    divide(np.array([6]), np.array([2]))
    with pytest.raises(ZeroDivisionError) as caught:
        divide.explain()
    assert "give it those of a call" in caught.value.__notes__[0]


def test_a_function_of_no_arguments():
    total = palto.Cell(1.0)

    @palto.compile
    def double():
        total.assign(total * 2)

    assert len(double.explain().rows) == 1
    assert float(total) == 1.0


def test_a_cell_that_is_only_written():
    last = palto.Cell(np.zeros(3, np.float32))

    @palto.compile
    def keep(x):
        last.assign(x * 2)

    keep.explain(np.ones(3, np.float32))
    assert not last.numpy().any()


def test_a_method():
    class Model:
        def __init__(self):
            self.scale = palto.Cell(3.0)

        @palto.compile
        def forward(self, x):
            return x * self.scale

    model = Model()
    x = np.ones(4, np.float32)
    assert model.forward.explain(x).name == "forward"
    assert model.forward(x).numpy().tolist() == [3, 3, 3, 3]
    assert len(model.forward.explain().rows) == 1


def test_a_program_that_does_nothing():
    @palto.compile
    def nothing(x):
        return palto.zeros((0, 3))

    assert "nothing: " in str(nothing.explain(np.ones(2, np.float32)))


def test_the_mistakes_of_a_call():
    @palto.compile
    def pick(x, i):
        return palto.take(x, i, axis=0)

    with pytest.raises(IndexError, match="index 7 is out of range"):
        pick.explain(np.ones(3, np.float32), np.array([7]))
    with pytest.raises(palto.TraceError, match="cannot be inside a program"):
        palto.compile(lambda x: pick.explain(x, x))(np.ones(3))


def test_with_bounds_watched(monkeypatch):
    monkeypatch.setenv("PALTO_DEBUG", "1")
    *_, step, batch = learning()
    assert step.explain(*batch).rows


def test_what_the_machine_can_do(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(explaining, "_TRYING", 0.0)
    monkeypatch.setattr(explaining, "_COPIED", 1 << 20)
    explaining.copy_peak.cache_clear()
    try:
        assert explaining.flops_peak("float", 1) > explaining.flops_peak("double", 1) > 0.1
        assert explaining.copy_peak(2) > 0.01
    finally:
        explaining.copy_peak.cache_clear()


def test_products_that_comparisons_come_after():
    """The dtype is the product's own, whatever is computed from it in registers."""
    layer = nn.Linear(40, 50)
    slope = palto.compile(
        palto.grad(lambda x: palto.sum(layer(nn.functional.gelu(layer2(x), approximate="tanh"))))
    )
    layer2 = nn.Linear(40, 40)
    found = slope.explain(np.ones((30, 40), np.float32))
    products = [row for row in found.rows if row.kind == "matmul"]
    assert products
    assert all(row.dtype == "float32" for row in products)
    assert any("less" in row.primitives for row in products)


def test_without_a_plan_it_runs_the_same_and_lets_go_of_the_graph():
    class Net(nn.Module):
        def __init__(self):
            self.table, self.out = nn.Embedding(10, 8), nn.Linear(8, 3)

        def forward(self, places):
            return self.out(self.table(places))

    def operations():
        gc.collect()
        return sum(type(x) is Operation for x in gc.get_objects())

    net, dim = Net(), palto.Dim("n", max=20)

    def forward(places):
        return net(places)

    before = operations()
    light = palto.compile(forward, keep_plan=False, dynamic_shapes={"places": {0: dim}})
    for count in (5, 7):
        places = np.arange(count)
        np.testing.assert_allclose(
            light(places).numpy(), net(palto.asarray(places)).numpy(), rtol=1e-5
        )
    assert light.program_count == 1
    assert operations() == before
    whole = palto.compile(forward)
    whole(np.arange(5))
    assert operations() > before
    with pytest.raises(IndexError, match="embedding index 10 is out of range") as caught:
        light(np.array([3, 10]))
    assert caught.value.__notes__ == ["in layer Net.table"]
    with pytest.raises(ValueError, match=r"forward was compiled with keep_plan=False"):
        light.explain()

    # A part that Python runs wants its steps.
    ordered = palto.compile(lambda x: palto.sort(x) * 2, keep_plan=False)
    np.testing.assert_array_equal(ordered(np.array([3.0, 1.0])).numpy(), [2, 6])
    # What is kept between calls, and a step that writes cells.
    cell = palto.Cell(np.zeros(3, np.float32))

    @palto.compile(keep_plan=False)
    def step(x):
        cell.assign(cell.read() + x)
        return palto.sum(cell.read())

    for total in (3, 6):
        assert float(step(np.ones(3, np.float32))) == total
    assert float(copy.deepcopy(step)(np.ones(3, np.float32))) == 9
