"""What a program keeps of its cells between calls, and that every change of a cell is seen."""

import numpy as np
import pytest

import palto
from palto import nn, optim
from palto.compiler.llvm.tiling import Machine
from palto.formats import safetensors
from palto.nn import functional

CHANNELS = 2 * Machine.host().vector_bytes // 4 * 2  # so many as Winograd takes


class Block(nn.Module):
    """Something kept of each kind: a transformed kernel, a scale and a shift."""

    def __init__(self):
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.fc = nn.Linear(CHANNELS, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.conv(x)) + x)
        return self.fc(x.mean((1, 2)))


def trained(model, seed=0):
    """With statistics as if it had been trained, in inference."""
    rng = np.random.default_rng(seed)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for cell in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                cell.assign(rng.uniform(0.5, 1.5, cell.shape).astype(np.float32))
    return model.eval()


def images(count=2):
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 8, 8, CHANNELS)).astype(np.float32)


def agree(found, wanted):
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-3, atol=1e-4)


@pytest.fixture
def made():
    palto.manual_seed(3)
    model = trained(Block())
    function = palto.compile(model)
    function(images())  # traced, and everything is kept
    return model, function


def runs_of_kept(function):
    """Notes whenever the program computes again what it keeps."""
    native, runs = function._latest.program.native, []
    original = native._run_kept

    def counted(threads, state):
        runs.append(state)
        original(threads, state)

    native._run_kept = counted
    return runs


def test_the_program_keeps_and_does_not_compute_again(made):
    model, function = made
    native = function._latest.program.native
    assert native.kept >= 3  # the kernel, brought into order and transformed; scale and shift
    assert all(cell.is_watched for cell in (model.conv.weight, model.norm.running_var))
    assert not model.fc.weight.is_watched
    runs = runs_of_kept(function)
    results = [function(images()).numpy() for _ in range(3)]
    assert not runs
    native._state = None
    np.testing.assert_array_equal(function(images()).numpy(), results[0])  # bit by bit
    assert len(runs) == 1
    np.testing.assert_array_equal(results[1], results[2])
    agree(function(images()), model(images()))


def by_assignment(model):
    model.conv.weight.assign(model.conv.weight * 2)


def by_a_box(model):
    model.conv.weight.assign(model.conv.weight.at[0, 0].set(5.0))


def by_loading(model):
    model.load_state_dict(trained(Block(), seed=7).state_dict())


def by_a_file(model, folder):
    safetensors.save(folder / "model.safetensors", trained(Block(), seed=8).state_dict())
    model.load_state_dict(safetensors.load(folder / "model.safetensors"))


def by_initialising(model):
    nn.init.kaiming_normal_(model.conv.weight)


def by_statistics(model):
    model.norm.running_var.assign(model.norm.running_var * 3)


def by_resetting(model):
    model.norm.reset_running_stats()


def by_freezing(model):
    model.conv.weight.requires_grad = False
    model.conv.weight.assign(model.conv.weight * -1)


def by_another_program(model):
    @palto.compile
    def grow():
        model.conv.weight.assign(model.conv.weight * 1.5)

    grow()


def by_training(model):
    optimizer = optim.Adam(model, lr=0.1)

    @palto.compile
    def step(x):
        (model(x) ** 2).mean().backward()
        optimizer.step()

    model.train()
    step(images())
    model.eval()


def by_eager_training(model):
    optimizer = optim.SGD(model, lr=0.5)
    (model(images()) ** 2).mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "change",
    [
        by_assignment, by_a_box, by_loading, by_a_file, by_initialising, by_statistics,
        by_resetting, by_freezing, by_another_program, by_training, by_eager_training,
    ],
)  # fmt: skip
def test_every_change_is_seen(made, change, tmp_path):
    model, function = made
    before = function(images()).numpy()
    change(*[model, tmp_path][: change.__code__.co_argcount])
    after = function(images())
    assert np.abs(after.numpy() - before).max() > 1e-3
    agree(after, model(images()))


def test_a_program_that_changes_the_cells_again_and_again(made):
    model, function = made

    @palto.compile
    def grow():
        model.norm.weight.assign(model.norm.weight + 1)

    for _ in range(3):
        grow()
        agree(function(images()), model(images()))


def test_a_writer_made_before_the_reader():
    model = trained(Block())

    @palto.compile
    def grow():
        model.conv.weight.assign(model.conv.weight * 1.5)

    grow()
    function = palto.compile(model)
    function(images())
    grow()
    agree(function(images()), model(images()))


def test_two_programs_that_share_cells(made):
    model, function = made
    other = palto.compile(lambda x: model(x) * 2)
    for _ in range(2):
        agree(function(images()), model(images()))
        agree(other(images()), model(images()) * 2)
        by_assignment(model)


def test_two_batches_and_two_models(made):
    model, function = made
    other = trained(Block(), seed=9)
    second = palto.compile(other)
    for count in (1, 2, 5, 1):
        agree(function(images(count)), model(images(count)))
        agree(second(images(count)), other(images(count)))


def test_averaged_weights(made):
    model, function = made
    optimizer = optim.SGD(model, lr=0.5, average="uniform")

    @palto.compile
    def step(x):
        (model(x) ** 2).mean().backward()
        optimizer.step()

    step(images())
    step(images())
    trained_result = function(images()).numpy()
    with optimizer.averaged(model, [images(5)]):
        within = function(images())
        agree(within, model(images()))
        assert np.abs(within.numpy() - trained_result).max() > 1e-4
    np.testing.assert_array_equal(function(images()).numpy(), trained_result)


def test_a_written_cell_that_nobody_keeps_changes_nothing(made):
    model, _ = made
    total = palto.Cell(0.0)

    @palto.compile
    def evaluate(x):
        logits = model(x)
        total.assign(total + logits.sum())
        return logits

    evaluate(images())
    runs = runs_of_kept(evaluate)
    evaluate(images())
    total.assign(0.0)
    evaluate(images())
    assert not runs
    by_assignment(model)
    agree(evaluate(images()), model(images()))
    assert len(runs) == 1


def test_a_cell_that_the_program_writes_is_not_kept_of():
    scale = palto.Cell(np.ones(64, np.float32))

    @palto.compile
    def step(x):
        y = x * palto.exp(scale.read())
        scale.assign(scale + 1)
        return y

    for number in range(3):
        found = step(np.ones((50, 64), np.float32))
        assert float(found[0, 0]) == pytest.approx(np.exp(1 + number), rel=1e-5)


def test_threads_change_between_calls(made):
    _, function = made
    threads = palto.get_num_threads()
    try:
        palto.set_num_threads(1)
        one = function(images()).numpy()
        palto.set_num_threads(2)
        np.testing.assert_array_equal(function(images()).numpy(), one)
        function._latest.program.native._state = None
        np.testing.assert_array_equal(function(images()).numpy(), one)
    finally:
        palto.set_num_threads(threads)


def test_explain_and_calls_do_not_disturb_each_other(made, monkeypatch):
    monkeypatch.setattr("palto.compiler.explain._SECONDS", 0.0)
    monkeypatch.setattr("palto.compiler.explain.flops_peak", lambda kind, threads: 1e6)
    monkeypatch.setattr("palto.compiler.explain.copy_peak", lambda threads: 10.0)
    model, function = made
    wanted = function(images()).numpy()
    found = function.explain(images())
    np.testing.assert_array_equal(function(images()).numpy(), wanted)
    kept = [row for row in found.rows if row.kept]
    assert [row.number for row in kept] == list(range(len(kept))) and kept
    assert not any(row in found.slowest(100) for row in kept)
    # Batch normalisation is part of the convolution, the addition and the ReLU with it.
    each = [row for row in found.rows if not row.kept]
    assert not [row.layers for row in each if row.layers[:1] == ("Block.norm",)]
    product = next(row for row in each if row.kind in ("winograd", "conv"))
    assert {"multiply", "add"} <= set(product.primitives)
    by_assignment(model)
    agree(function(images()), model(images()))


def test_a_failed_check_leaves_what_is_kept(made):
    model, _ = made

    @palto.compile
    def chosen(x, labels):
        return functional.cross_entropy(model(x), labels)

    wanted = float(chosen(images(), np.array([0, 1])))
    with pytest.raises(IndexError):
        chosen(images(), np.array([0, 7]))
    assert float(chosen(images(), np.array([0, 1]))) == wanted


def test_a_library_step_between():
    model = trained(Block())
    function = palto.compile(lambda x: palto.sort(model(x)))
    for _ in range(2):
        agree(function(images()), palto.sort(model(images())))
        by_assignment(model)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (nn.models.lenet, (28, 28, 1)),
        (lambda: nn.models.alexnet(10, (28, 28, 1)), (28, 28, 1)),
        (lambda: nn.models.resnet(8, 10, (16, 16, 3)), (16, 16, 3)),
    ],
    ids=["lenet", "alexnet", "resnet8"],
)
@pytest.mark.parametrize("count", [1, 3])
def test_models_in_inference(make, shape, count):
    palto.manual_seed(0)
    model = trained(make())
    x = np.random.default_rng(0).random((count, *shape), np.float32)
    function = palto.compile(model)
    first = function(x)
    wanted = model(x).numpy()
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(first.numpy() / scale, wanted / scale, atol=2e-4)
    np.testing.assert_array_equal(function(x).numpy(), first.numpy())


@pytest.mark.parametrize(
    ("channels", "kernel", "size", "padding"),
    [(6, 5, 28, 2), (1, 3, 17, 1), (4, 3, 9, 0), (7, 1, 8, 0), (3, 3, 4, 1)],
)
def test_few_channels_of_one(channels, kernel, size, padding):
    rng = np.random.default_rng(0)
    conv = nn.Conv2d(1, channels, kernel, padding=padding)
    x = rng.normal(size=(3, size, size, 1)).astype(np.float32)
    agree(palto.compile(lambda x: palto.tanh(conv(x)))(x), palto.tanh(conv(x)))


def test_one_image_and_rows_of_any_length():
    """A matrix times a vector, also where a batch or the number of rows varies."""
    linear = nn.Linear(131, 37)
    rng = np.random.default_rng(0)
    rows = palto.Dim("rows", max=50)
    scores = palto.compile(lambda k, q: k @ q, dynamic_shapes={"k": {0: rows}})
    for count in (1, 2, 33):
        x = rng.normal(size=(count, 131)).astype(np.float32)
        agree(palto.compile(linear)(x), linear(x))
        vector = rng.normal(size=131).astype(np.float32)
        agree(scores(x, vector), palto.asarray(x) @ vector)
