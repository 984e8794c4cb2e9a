"""Training on several devices and in several processes: the losses of one device, and what is lost.

Devices are simulated on this machine's cores, and processes meet on its loopback.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from palto import cli, data, nn, optim, train
from palto.train.checkpoint import Checkpoints
from palto.train.machines import Machines

pytest.importorskip(
    "jax", reason="JAX is not installed: programs by XLA are skipped (pip install palto[xla])"
)


def environment(devices):
    """That of a process that sees so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PALTO_THREADS": "1"}


def start(words, devices=1):
    return subprocess.Popen(
        [sys.executable, *map(str, words)], env=environment(devices), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process):
    """Its exit status and what it said, at the latest after two minutes."""
    try:
        out, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, errors


def free_address():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listening.getsockname()[1]}"


FOUR_DEVICES = """
    import json, re
    import jax, numpy as np
    import palto
    from palto import nn, optim
    from palto.compiler import XLA
    from palto.data import augment

    class Network(nn.Module):
        def __init__(self):
            self.convolution, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.dropout, self.out = nn.Dropout(0.2), nn.Linear(128, 5)

        def forward(self, x):
            x = nn.functional.max_pool2d(nn.functional.relu(self.norm(self.convolution(x))), 2)
            return self.out(self.dropout(palto.reshape(x, (x.shape[0], -1))))

    def losses(executor):
        palto.manual_seed(0)
        model = Network()
        optimizer = optim.Adam(model, 1e-2)

        @palto.compile(executor=executor)
        def step(x, y):
            x = augment.random_crop(augment.random_horizontal_flip(x), padding=1)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optim.clip_grad_norm_(optimizer, 1.0)
            optimizer.step()
            return loss

        rng = np.random.default_rng(0)
        batches = [(rng.random((n, 8, 8, 3)).astype("f"), rng.integers(0, 5, n))
                   for n in (16, 16, 16, 16, 15, 16, 16, 16)]
        return [float(step(x, y)) for x, y in batches], step, batches[0]

    one, _, _ = losses("xla")
    native, _, _ = losses("native")
    four, step, batch = losses(XLA(4))
    program = next(iter(step._entries.values()))[0].program
    with jax.enable_x64(True):
        given = [program._where.put(x, shared=True) for x in batch]
        cells = [[program._where.put(program._recording.reads[n].array()) for n in places]
                 for places in (program._over, program._beside)]
        function = next(iter(program._functions.values()))[0]
        text = function.lower(given, *cells).compile().as_text()
    shapes = re.findall(r"= f32\\[([0-9,]*)\\]\\S* convolution", text)
    print(json.dumps({"one": one, "native": native, "four": four, "shapes": shapes,
                      "reduced": " all-reduce(" in text}))
"""


def test_four_devices_give_the_losses_of_one():
    status, out, errors = ended(start(["-c", textwrap.dedent(FOUR_DEVICES)], devices=4))
    assert status == 0, errors
    found = json.loads(out)
    np.testing.assert_allclose(found["one"], found["native"], rtol=2e-5)
    np.testing.assert_allclose(found["four"], found["one"], rtol=2e-5)
    assert "4,8,8,8" in found["shapes"] and found["reduced"]  # each a quarter of the batch
    assert not any(shape.startswith("16,8,8") for shape in found["shapes"])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Examples, and the history of a run that one process does, natively."""
    folder = tmp_path_factory.mktemp("unbroken")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 240)
    images = np.clip(rng.random((240, 6, 6, 3)) + labels[:, None, None, None] * 0.1, 0, 1)
    np.savez(
        folder / "examples.npz", x_train=images[:192].astype("f"), y_train=labels[:192],
        x_test=images[192:].astype("f"), y_test=labels[192:],
    )  # fmt: skip
    run = folder / "run"
    assert cli.main(["train", *words_of(folder), "--out", str(run)]) == 0
    return folder, history(run)


def words_of(folder):
    return [
        str(folder / "examples.npz"), "--batch-size", "16", "--epochs", "80", "--augment", "crop",
        "--model", "fully_connected",
    ]  # fmt: skip


def history(run):
    newest = Checkpoints(run / "checkpoints", writes=False).newest()
    return [] if newest is None else newest.state["history"]


def assert_alike(found, wanted, rtol):
    for one, other in zip(found, wanted, strict=True):
        for name in ("train_loss", "validation_loss", "step"):
            np.testing.assert_allclose(one[name], other[name], rtol=rtol, err_msg=name)


@pytest.fixture
def two_processes(unbroken, tmp_path):
    """Two processes of two devices each, in the third epoch of a run; and the run's folder."""
    folder, _ = unbroken
    run, address = tmp_path / "run", free_address()
    processes = [
        start(
            ["-m", "palto.cli", "train", *words_of(folder), "--out", run, "--executor", "xla",
             "--devices", 2, "--coordinator", address, "--processes", 2, "--rank", rank],
            devices=2,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    latest = time.monotonic() + 120
    try:
        while len(history(run) if run.exists() else []) < 2 and time.monotonic() < latest:
            time.sleep(0.05)
        yield processes, run
    finally:
        for process in processes:
            process.kill()


def goes_on(run, wanted):
    """One process resumes the run natively, and it was and becomes the unbroken one."""
    before = history(run)
    assert 2 <= len(before) < 80
    assert_alike(before, wanted[: len(before)], rtol=2e-5)
    assert cli.main(["resume", str(run)]) == 0
    assert_alike(history(run), wanted, rtol=1e-3)


@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_run_and_another_number_goes_on(unbroken, two_processes, victim):
    processes, run = two_processes
    processes[victim].send_signal(signal.SIGKILL)
    _, _, last_words = ended(processes[victim])
    status, _, errors = ended(processes[1 - victim])
    assert status not in (0, 1), errors
    assert "Start all processes again" in errors and "Traceback" not in errors, errors
    assert f"process {victim} of 2 ended before its work was done" in last_words
    goes_on(run, unbroken[1])


def test_asked_to_stop_one_process_stops_all(unbroken, two_processes):
    processes, run = two_processes
    processes[1].send_signal(signal.SIGTERM)
    for process in reversed(processes):
        status, out, errors = ended(process)
        assert status == 130, errors
    assert f"stopped; go on with: palto resume {run}" in out
    goes_on(run, unbroken[1])


SEEDS_THAT_DIFFER = """
    import sys
    import numpy as np
    import palto
    from palto import data, nn, optim, train
    from palto.compiler.xla.processes import join

    rank = int(sys.argv[2])
    join(sys.argv[1], 2, rank)
    palto.manual_seed(rank)
    model = nn.Linear(4, 3)
    trainer = train.Trainer(
        model, optim.SGD(model, 0.1), nn.functional.cross_entropy, train.Classification(3),
        executor="xla", show=False,
    )
    examples = data.TensorDataset(np.ones((8, 4), "f"), np.zeros(8, np.int64))
    try:
        trainer.fit(data.DataLoader(examples, 4), epochs=1)
    except ValueError as error:
        print(error)
"""


def test_processes_that_do_not_begin_alike():
    address = free_address()
    code = textwrap.dedent(SEEDS_THAT_DIFFER)
    processes = [start(["-c", code, address, rank]) for rank in (0, 1)]
    for process in processes:
        status, out, errors = ended(process)
        assert status == 0, errors
        assert "the processes do not begin alike" in out


ALONE = """
    import sys
    from palto.compiler.xla import processes

    processes._PATIENCE = 3
    processes.join(sys.argv[1], 2, 1)
"""


def test_a_process_that_nobody_meets():
    status, _, errors = ended(start(["-c", textwrap.dedent(ALONE), free_address()]))
    assert status != 0
    assert "another one is lost, out of reach, or was not started in 3 seconds" in errors


def test_a_batch_that_devices_cannot_share():
    model = nn.Linear(4, 3)
    trainer = train.Trainer(
        model, optim.SGD(model, 0.1), nn.functional.cross_entropy, train.Classification(3),
        executor="xla", devices=3, show=False,
    )  # fmt: skip
    examples = data.TensorDataset(np.ones((8, 4), "f"), np.zeros(8, np.int64))
    with pytest.raises(ValueError, match="3 devices share every batch"):
        trainer.fit(data.DataLoader(examples, 4), epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "belong together"),
        ({"executor": "xla", "coordinator": "here:1", "processes": 2}, "belong together"),
        ({"coordinator": "here:1", "processes": 2, "rank": 0}, "add --executor xla"),
        (
            {"executor": "xla", "coordinator": "here", "processes": 2, "rank": 0},
            "coordinator is HOST:PORT of process 0, got 'here'",
        ),
        (
            {"executor": "xla", "coordinator": "here:1", "processes": 2, "rank": 2},
            "with processes=2 it is from 0 to 1, got 2",
        ),
        ({"devices": 2}, "devices are for executor='xla'"),
    ],
)
def test_machines_that_do_not_fit_together(options, message):
    with pytest.raises(ValueError, match=message):
        Machines(**options).meet()


def test_several_processes_name_their_folder(capsys):
    words = ["--executor", "xla", "--coordinator", "here:1", "--processes", "2", "--rank", "0"]
    assert cli.main(["train", *words]) == 2
    assert "name it with --out" in capsys.readouterr().err
