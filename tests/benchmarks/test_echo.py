"""The echo canceller learns what the same recipe in PyTorch learns."""

import numpy as np
import pytest

import palto
from palto import nn, optim

pytest.importorskip("soxr", reason="soxr is not installed (pip install 'palto[echo]')")


def test_a_step_is_pytorchs(torch, tmp_path, monkeypatch):
    """Losses, and weights after steps of gradient descent, with backprop cut every four frames."""
    import echo as benchmark

    from palto.recipes import echo

    monkeypatch.setattr(echo, "TRUNCATED", 4)
    palto.manual_seed(1)
    training = echo.Training(tmp_path, echo.Plan())
    nn.init.uniform_(training.model.gain.linear3.weight, -0.05, 0.05)
    training.optimizer = optim.SGD(training.model, lr=0.1)
    training.step = training._compiled_step()
    peer = benchmark.TorchTraining(training.model, lambda x: torch.optim.SGD(x, 0.1))
    sound = benchmark.signals(11, count=3)
    rng = np.random.default_rng(0)
    first = {name: x.numpy() for name, x in training.model.gain.state_dict().items()}
    for _ in range(3):
        bins = rng.permutation(echo.BINS)[:5]
        loss, dropped = training.step(sound, bins)
        assert float(dropped) == 0
        assert float(loss) == pytest.approx(peer.step(sound, bins), rel=1e-4)
    theirs = benchmark.GainNet()
    theirs.load(training.model.gain)
    for (name, mine), other in zip(
        theirs.state_dict().items(), peer.gain.state_dict().values(), strict=True
    ):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-4, err_msg=name)
    moved = [
        np.abs(x.numpy() - first[n]).max() for n, x in training.model.gain.state_dict().items()
    ]
    assert min(moved) > 1e-4
