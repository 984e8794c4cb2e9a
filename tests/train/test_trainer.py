"""The trainer: learning, stopping, going on to the bit, and what goes wrong."""

import json
import os
import signal
import threading

import numpy as np
import pytest

import palto
from palto import data, nn, optim, train


@pytest.fixture
def examples():
    """Three noisy directions to tell apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 230)
    inputs = np.eye(3, 6)[labels] * 2 + rng.normal(size=(230, 6))
    return data.TensorDataset(inputs.astype(np.float32), labels)


def network():
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
    )


def noisy(inputs, targets):
    return inputs + palto.random.normal(inputs.shape) * 0.1, targets


def make(examples, folder=None, **options):
    palto.manual_seed(7)
    model = network()
    optimizer = optim.Adam(
        model, lr=optim.schedules.cosine(1e-2, steps=200, warmup=5), average="tail"
    )
    trainer = train.Trainer(
        model, optimizer, nn.functional.cross_entropy, train.Classification(3),
        augment=noisy, folder=folder, **{"show": False, **options},
    )  # fmt: skip
    loader = data.DataLoader(examples, 16, shuffle=True, num_workers=1, seed=3)
    return trainer, loader, data.DataLoader(examples, 100)


def values(trainer):
    return {
        **{f"model.{k}": v.numpy() for k, v in trainer.model.state_dict().items()},
        **{f"optimizer.{k}": v.numpy() for k, v in trainer.optimizer.state_dict().items()},
        "random": palto.random.default_generator.state.numpy(),
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def without_time(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def test_it_learns(examples):
    trainer, loader, validation = make(examples)
    history = trainer.fit(loader, validation, epochs=6)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["step"] == 6 * 15
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["accuracy"] > 0.8
    assert trainer.model.training
    measured = trainer.evaluate(validation)
    assert measured.count == 230 and measured.confusion.sum() == 230
    assert measured.measures["accuracy"] == history[-1]["accuracy"]
    wrong = 230 - np.trace(measured.confusion)
    assert len(measured.mistakes) == min(wrong, 24)
    for mistake in measured.mistakes:
        assert mistake.truth == examples.arrays[1][mistake.place] != mistake.guess
        assert mistake.truth_probability <= mistake.probability
    assert trainer.fit(loader, validation, epochs=6) == history  # all done already


@pytest.mark.parametrize("stop_at", [1, 7, 15, 16, 40])
def test_resumed_it_goes_on_to_the_bit(examples, tmp_path, stop_at):
    whole, loader, validation = make(examples)
    whole.fit(loader, validation, epochs=4)

    broken, loader, validation = make(examples, tmp_path)
    step, count = broken._step, [0]

    def interrupted(*batch):
        count[0] += 1
        if count[0] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*batch)

    broken._step = interrupted
    broken.fit(loader, validation, epochs=4)
    assert broken.was_interrupted and count[0] == stop_at

    palto.manual_seed(99)
    resumed, loader, validation = make(examples, tmp_path)
    for parameter in resumed.model.parameters():
        parameter.assign(parameter * 0)
    assert resumed.resume(loader)
    assert f"resumed after step {stop_at}" in resumed.notes[-1]
    resumed.fit(loader, validation, epochs=4)
    assert without_time(resumed.history) == without_time(whole.history)
    assert_same(values(resumed), values(whole))


@pytest.mark.parametrize("epochs", [1, 3])
def test_resumed_after_an_epoch_it_goes_on_to_the_bit(examples, tmp_path, epochs):
    whole, loader, validation = make(examples)
    whole.fit(loader, validation, epochs=4)
    first, loader, validation = make(examples, tmp_path)
    first.fit(loader, validation, epochs=epochs)
    resumed, loader, validation = make(examples, tmp_path)
    assert resumed.resume(loader)
    resumed.fit(loader, validation, epochs=4)
    assert without_time(resumed.history) == without_time(whole.history)
    assert_same(values(resumed), values(whole))


def test_resume_without_checkpoints(examples, tmp_path):
    trainer, loader, _ = make(examples, tmp_path)
    assert not trainer.resume(loader)
    assert not make(examples)[0].resume(loader)


def test_a_checkpoint_of_another_model(examples, tmp_path):
    trainer, loader, _ = make(examples, tmp_path)
    trainer.fit(loader, epochs=1)
    other = nn.Sequential(nn.Linear(6, 3))
    stranger = train.Trainer(
        other, optim.Adam(other), nn.functional.cross_entropy, train.Classification(3),
        folder=tmp_path, show=False,
    )  # fmt: skip
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"does not fit.*unexpected.*layers\.4\.weight"):
        stranger.resume(loader)
    assert_same(before, other.state_dict())


def test_the_newest_and_the_best_are_kept(examples, tmp_path):
    trainer, loader, validation = make(examples, tmp_path)
    trainer.fit(loader, validation, epochs=5)
    best = max(range(5), key=lambda i: trainer.history[i]["accuracy"])
    kept = sorted(os.listdir(tmp_path))
    assert kept == sorted({f"checkpoint-{best + 1:06d}", "checkpoint-000005"})
    assert trainer.checkpoints.best().state["progress"]["epoch"] == best + 1
    assert trainer.checkpoints.newest().state["progress"]["epoch"] == 5


def test_early_stopping(examples):
    trainer, loader, validation = make(examples, patience=2)
    trainer.optimizer.lr = 0.0
    trainer.model.eval()  # with a rate of zero nothing gets better
    trainer.fit(loader, validation, epochs=50)
    assert len(trainer.history) == 3
    assert "stopped early after epoch 3" in trainer.notes[-1]


class Explodes(nn.Module):
    def forward(self, x):
        return palto.exp(x * 1000)


def test_a_loss_that_is_not_finite_names_the_layer(examples):
    palto.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), Explodes(), nn.Linear(4, 3), nn.Dropout(0.5))
    trainer = train.Trainer(
        model, optim.SGD(model, lr=0.1), nn.functional.cross_entropy, train.Classification(3),
        augment=noisy, show=False,
    )  # fmt: skip
    before = values(trainer)
    with pytest.raises(train.TrainingStopped, match=r"step 1 .*layers\.1 \(Explodes\).*before"):
        trainer.fit(data.DataLoader(examples, 16), epochs=1)
    assert_same(values(trainer), before)


def test_a_gradient_that_is_not_finite_names_the_parameter(examples):
    class Root(nn.Module):
        def __init__(self):
            self.scale = nn.Parameter(palto.zeros((1,)))

        def forward(self, x):
            return x + palto.sqrt(self.scale)

    model = nn.Sequential(nn.Linear(6, 3), Root())
    trainer = train.Trainer(
        model, optim.SGD(model, lr=0.1), nn.functional.cross_entropy, train.Classification(3),
        show=False,
    )  # fmt: skip
    with pytest.raises(train.TrainingStopped, match=r"gradient is not finite at layers\.1\.scale"):
        trainer.fit(data.DataLoader(examples, 16), epochs=1)


def test_inputs_that_are_not_finite(examples):
    bad = data.TensorDataset(np.full((4, 6), np.nan, np.float32), np.zeros(4, np.int64))
    trainer, _, _ = make(examples)
    with pytest.raises(train.TrainingStopped, match="inputs themselves"):
        trainer.fit(data.DataLoader(bad, 4), epochs=1)


def test_a_full_disk_does_not_end_training(examples, tmp_path, monkeypatch):
    trainer, loader, validation = make(examples, tmp_path)
    trainer.fit(loader, validation, epochs=1)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    trainer.fit(loader, validation, epochs=2)
    assert "could not be saved" in trainer.notes[-1] and "No space" in trainer.notes[-1]
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["checkpoint-000001"]
    trainer.fit(loader, validation, epochs=3)
    assert trainer.checkpoints.newest().state["progress"]["epoch"] == 3


def test_a_folder_that_cannot_be_made(examples, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make(examples, tmp_path / "file" / "inside")


def test_regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5, 3.0] + 1)[:, None].astype(np.float32)
    model = nn.Linear(4, 1)
    trainer = train.Trainer(
        model, optim.Adam(model, lr=0.05), nn.functional.mse_loss, train.Regression(), show=False
    )
    loader = data.DataLoader(data.TensorDataset(x, y), 20, shuffle=True)
    history = trainer.fit(loader, data.DataLoader(data.TensorDataset(x, y), 50), epochs=30)
    assert history[-1]["validation_loss"] < 1e-3 and history[-1]["r2"] > 0.999


def test_in_another_thread(examples):
    trainer, loader, validation = make(examples)
    thread = threading.Thread(target=lambda: trainer.fit(loader, validation, epochs=1))
    thread.start()
    thread.join()
    assert len(trainer.history) == 1


def test_what_it_says(examples, capsys):
    trainer, loader, validation = make(examples, show=True)
    trainer.fit(loader, validation, epochs=2)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1  train loss") and "accuracy" in first and "%" in first
    assert second.startswith("epoch 2")


def test_checkpoint_states_are_json(examples, tmp_path):
    trainer, loader, validation = make(examples, tmp_path)
    trainer.fit(loader, validation, epochs=1)
    state = json.loads((tmp_path / "checkpoint-000001" / "state.json").read_text())
    assert state["history"] == trainer.history and state["loader"]["batch"] == 15
