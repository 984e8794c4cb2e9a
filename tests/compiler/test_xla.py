"""What is special about programs by XLA; that they compute what others do is in test_native.py.

Their values stay on a device between calls, other executors work on the same cells, what somebody
holds never changes, and checks leave every cell as it was although its old value was given away.
"""

import gc
import signal
import sys
import threading
import weakref

import numpy as np
import pytest

import palto
from palto import nn, optim
from palto.compiler import XLA, executors
from palto.compiler.executors import chosen
from palto.tensor.graph import check

jax = pytest.importorskip(
    "jax", reason="JAX is not installed: programs by XLA are skipped (pip install palto[xla])"
)

from palto.compiler.xla.program import DeviceTensor  # noqa: E402


def doubling():
    cell = palto.Cell(np.float32([1, 2, 3]))

    @palto.compile(executor="xla")
    def double(x):
        cell.assign(cell * 2 + x)
        return palto.sum(cell)

    return cell, double


def test_a_value_stays_on_the_device_until_it_is_asked_for():
    cell, double = doubling()
    total = double(np.zeros(3, "f"))
    assert isinstance(total, DeviceTensor) and not total.is_fetched
    assert isinstance(cell.read(), DeviceTensor) and not cell.read().is_fetched
    double(np.zeros(3, "f"))
    assert float(total) == 12 and total.is_fetched
    np.testing.assert_array_equal(cell, [4, 8, 12])
    assert cell.read().is_fetched


def test_an_old_value_is_given_to_the_program_that_writes_a_new_one():
    cell, double = doubling()
    double(np.zeros(3, "f"))
    before = cell._leaf.device
    double(np.zeros(3, "f"))
    assert before.is_deleted()


@pytest.mark.parametrize("is_fetched", [False, True])
def test_what_somebody_holds_stays(is_fetched):
    cell, double = doubling()
    double(np.zeros(3, "f"))
    held = cell.read()
    array = held.array() if is_fetched else None
    for _ in range(3):
        double(np.zeros(3, "f"))
    np.testing.assert_array_equal(held, [2, 4, 6])
    if is_fetched:
        held = None
        double(np.zeros(3, "f"))
        gc.collect()
        np.testing.assert_array_equal(array, [2, 4, 6])
    np.testing.assert_array_equal(cell, np.float32([1, 2, 3]) * (32 if is_fetched else 16))


def test_what_is_returned_of_a_cell_outlives_its_next_value():
    cell = palto.Cell(np.ones(4, "f"))
    look = palto.compile(lambda: cell.read(), executor="xla")

    @palto.compile(executor="xla")
    def swap(other):
        old = cell.read()
        cell.assign(palto.reshape(other, (4,)))
        return old

    other = np.full(4, 2, "f")
    found = [look(), swap(other), look(), swap(other * 3), look()]
    other[:] = -1
    swap(other)
    assert [float(x[0]) for x in found] == [1, 1, 2, 2, 6]


def test_native_and_xla_take_turns_on_the_same_cells():
    palto.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))
    optimizer = optim.Adam(model, 0.05)

    def step(x, y):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    def answer(x):
        return model(x)

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6)).astype("f"), rng.integers(0, 3, 12)
    cells = [cell for _, cell in (*model.named_cells(), *optimizer.named_cells())]
    first = [cell.numpy() for cell in cells]

    def losses(*steps):
        for cell, value in zip(cells, first, strict=True):
            cell.assign(value)
        palto.manual_seed(1)
        model.train()
        found = [float(run(x, y)) for run in steps for _ in range(2)]
        model.eval()
        return [*found, *[run(x).numpy().sum() for run in answers]]

    steps = [palto.compile(step, executor=name) for name in ("native", "xla")]
    answers = [palto.compile(answer, executor=name) for name in ("native", "xla", "native")]
    native, xla = steps
    wanted = losses(native, native, native)
    np.testing.assert_allclose(losses(native, xla, native), wanted, rtol=2e-4)
    np.testing.assert_allclose(losses(xla, native, xla), wanted, rtol=2e-4)
    np.testing.assert_allclose(losses(xla, step, native), wanted, rtol=2e-4)


def test_what_is_kept_of_cells_is_computed_again_when_xla_writes_them():
    norm = nn.BatchNorm1d(40)
    weight = nn.Linear(40, 40)
    norm.eval()
    predict = palto.compile(lambda x: weight(norm(x)), executor="native")
    x = np.ones((2, 40), "f")
    before = predict(x).numpy()
    palto.compile(lambda: norm.running_mean.assign(norm.running_mean - 1), executor="xla")()
    wanted = weight(norm(palto.asarray(x))).numpy()
    assert not np.allclose(before, wanted)
    np.testing.assert_allclose(predict(x), wanted, rtol=1e-5, atol=1e-6)


def test_a_failed_check_gives_the_old_values_back():
    cell, other = palto.Cell(np.float32([1, 2])), palto.Cell(np.float32([5]))

    @palto.compile(executor="xla")
    def step(i):
        cell.assign(cell * palto.take(palto.asarray([2.0, 3.0]), i))
        other.assign(palto.ones((1,)) * 7)
        return cell

    step(np.array(0))
    with pytest.raises(IndexError, match="index 5 is out of range: it must be from 0 to 1"):
        step(np.array(5))
    np.testing.assert_array_equal(cell, [2, 4])
    step(np.array(1))
    np.testing.assert_array_equal(cell, [6, 12])
    np.testing.assert_array_equal(other, [7])


def test_an_argument_may_be_written_to_after_the_call():
    step = palto.compile(lambda x: (x + 1, palto.sum(x, 1)), executor="xla")
    for number in range(30):
        x = np.full((400, 1000), number, "f")
        more, total = step(x)
        x[:] = -5
        assert (more.array() == number + 1).all() and (total.array() == number * 1000).all()


def test_ctrl_c_never_loses_a_value():
    cell = palto.Cell(np.zeros((600, 600), "f"))

    @palto.compile(executor="xla")
    def step(x):
        check(palto.isfinite(x).all(), "x is not finite")
        last, _ = palto.scan(lambda c, _: (c @ x, None), palto.eye(600), length=40)
        cell.assign(cell + last)

    x = np.eye(600, dtype="f")
    step(x)
    for number in range(12):
        before = float(cell[0, 0])
        timer = threading.Timer(0.01 + 0.02 * number, signal.raise_signal, [signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                step(x)
        assert before <= float(cell[0, 0]) == round(float(cell[1, 1]))
    step(x)


def test_a_device_tensor_is_a_tensor_like_others():
    _, double = doubling()
    y = double(np.ones(3, "f"))
    assert float(y + 1) == 16.0
    again = palto.compile(lambda x: x * 2, executor="xla")(y)  # without a way through NumPy
    assert not y.is_fetched or float(again) == 30
    assert float(palto.compile(lambda x: x * 2, executor="native")(again)) == 60
    constant = palto.compile(lambda: again + 1, executor="xla")
    assert float(constant()) == 31


def test_one_function_for_each_of_the_latest_sizes_of_a_dim(monkeypatch):
    monkeypatch.setattr("palto.compiler.xla.program.MOST_SIZES", 2)
    batch = palto.Dim("batch", max=32)

    @palto.compile(dynamic_shapes={"x": {0: batch}}, executor="xla")
    def mean(x):
        centred = x - palto.mean(x, 0)
        rows = palto.concat([centred, centred[::-1]])
        return palto.sum(rows * palto.arange(rows.shape[0], dtype=x.dtype)[:, None]) / x.shape[0]

    for size in (32, 7, 2, 7):
        x = np.random.default_rng(size).normal(size=(size, 3)).astype("f")
        np.testing.assert_allclose(mean(x), mean._function(palto.asarray(x)), rtol=1e-4, atol=1e-5)
    assert mean.program_count == 1
    assert [*mean._latest.program._functions] == [(("batch", 2),), (("batch", 7),)]


def test_a_checkpoint_is_computed_again():
    def loss(x):
        return palto.sum(palto.checkpoint(lambda y: palto.tanh(y @ y.T), x))

    step = palto.compile(lambda x: palto.value_and_grad(loss)(x), executor="xla")
    x = np.random.default_rng(0).normal(size=(5, 5)).astype("f")
    for got, wanted in zip(step(x), palto.value_and_grad(loss)(palto.asarray(x)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    program = step._latest.program
    with jax.enable_x64(True):
        text = next(iter(program._functions.values()))[0].lower([x], [], []).as_text()
    assert "optimization_barrier" in text and text.count("stablehlo.tanh") == 2


def test_jax_itself_stays_as_it_was():
    _, double = doubling()
    double(np.ones(3, "f"))
    assert jax.numpy.arange(3).dtype == np.int32
    assert jax.config.jax_default_matmul_precision is None


def test_programs_are_freed():
    cell, double = doubling()
    double(np.ones(3, "f"))
    program = weakref.ref(double._latest.program)
    del double
    gc.collect()
    assert program() is None and float(palto.sum(cell)) == 15


def test_the_environment_chooses(monkeypatch):
    monkeypatch.setenv("PALTO_EXECUTOR", "xla")
    assert isinstance(palto.compile(lambda x: x)(np.ones(2)), DeviceTensor)
    monkeypatch.setenv("PALTO_EXECUTOR", "tpu")
    with pytest.raises(ValueError, match="PALTO_EXECUTOR is 'native' or 'xla', got 'tpu'"):
        palto.compile(lambda x: x)
    monkeypatch.delenv("PALTO_EXECUTOR")
    assert isinstance(chosen(), executors.Native)
    assert type(palto.compile(lambda x: x)(np.ones(2))) is palto.Tensor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "cuda"}, "executor is 'native' or 'xla', got 'cuda'"),
        ({"executor": "native", "devices": 2}, "devices are for executor='xla'"),
        ({"executor": XLA(), "devices": 2}, "an executor knows its devices"),
        ({"executor": "xla", "devices": 0}, "devices is a whole number from 1 up, got 0"),
    ],
)
def test_executors_that_there_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        chosen(**options)


def test_more_devices_than_there_are():
    many = len(jax.devices()) + 1
    step = palto.compile(lambda x: x + 1, executor=XLA(many))
    with pytest.raises(ValueError, match=f"devices={many}, but JAX sees {many - 1} here"):
        step(np.ones(4))


def learning_step(executor):
    model = nn.models.fully_connected(20, (32,), 5)
    optimizer = optim.Adam(model, lr=1e-2)

    def step(x, y):
        loss = nn.functional.cross_entropy(model(x + palto.random.normal(x.shape)), y)
        loss.backward()
        optimizer.step()
        return loss

    cells = [cell for _, cell in (*model.named_cells(), *optimizer.named_cells())]
    cells.append(palto.random.default_generator.state)
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(16, 20)).astype("f"), rng.integers(0, 5, 16)
    return palto.compile(step, executor=executor), cells, batch


def test_explain_says_what_xla_says():
    step, cells, batch = learning_step("xla")
    before = [cell.numpy() for cell in cells]
    found = step.explain(*batch)
    for cell, value in zip(cells, before, strict=True):
        np.testing.assert_array_equal(cell, value)
    layers = {layer for row in found.rows for layer in row.layers}
    assert {"Sequential.layers.1", "Sequential.layers.3"} <= layers
    assert not any("(" in layer for layer in layers)
    computed = {name for row in found.rows for name in row.primitives}
    assert {"matmul", "sum", "exp"} <= computed
    # Two products of 16 x 20 x 32 numbers and of 16 x 32 x 5 forward, and the gradients.
    assert 2 * 16 * (2 * 20 * 32 + 3 * 32 * 5) < found.flops < 200_000
    parameters = 20 * 32 + 32 + 32 * 5 + 5
    assert found.argument_bytes > 3 * 4 * parameters  # and Adam's two moments
    assert 3 * 4 * parameters < found.donated_bytes <= found.result_bytes
    assert found.seconds > 0 and found.devices == 1 and not found.between
    heaviest = found.heaviest(3)
    assert heaviest[0].read + heaviest[0].written >= heaviest[1].read + heaviest[1].written > 0
    text = str(found)
    assert "operations of XLA on 1 device" in text and "what reads and writes most:" in text
    assert step.explain().flops == found.flops
    with pytest.raises(IndexError, match="label 7 is out of range"):
        step.explain(batch[0], batch[1] * 0 + 7)


def test_explain_of_a_loop_and_of_a_size():
    layer = nn.LSTM(3, 5)
    time = palto.Dim("time", max=32)
    run = palto.compile(lambda x: layer(x)[0], dynamic_shapes={"x": {0: time}}, executor="xla")
    found = run.explain(np.ones((7, 2, 3), "f"))
    (loop,) = (row for row in found.rows if row.kind == "while")
    assert loop.layers[0] == "LSTM" and {"matmul", "tanh"} <= set(loop.primitives)
    assert run.explain().flops > found.flops  # at the greatest size
    empty = palto.compile(lambda x: x, executor="xla").explain(np.ones(3))
    assert empty.flops == 0 and "0 exchanges" not in str(empty)


def test_without_jax(monkeypatch):
    from palto.compiler import xla

    xla._programs.cache_clear()
    monkeypatch.setitem(sys.modules, "jax", None)
    step = palto.compile(lambda x: x + 1, executor="xla")
    with pytest.raises(palto.extras.MissingExtraError, match=r"pip install 'palto\[xla\]'"):
        step(np.ones(3))
    monkeypatch.undo()
    assert float(step(np.float32(1))) == 2
