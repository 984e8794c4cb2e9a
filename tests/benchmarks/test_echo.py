"""The echo canceller learns what the same recipe in PyTorch learns."""

import numpy as np
import pytest

import palto
from palto import nn, optim

pytest.importorskip("soxr", reason="soxr is not installed (pip install 'palto[echo]')")


def test_a_step_is_pytorchs(torch, tmp_path, monkeypatch):
    """Losses, and weights after steps of gradient descent, which go on from each other's states."""
    import echo as benchmark

    from palto.recipes import echo

    monkeypatch.setattr(echo, "FRAMES", 4)
    palto.manual_seed(1)
    training = echo.Training(tmp_path, echo.Plan(batch_size=3, bins=5))
    nn.init.uniform_(training.model.gain.linear3.weight, -0.05, 0.05)
    training.optimizer = optim.SGD(training.model, lr=0.3)
    training.step = training._compiled_step()
    peer = benchmark.TorchTraining(training.model, lambda x: torch.optim.SGD(x, 0.3))
    first = {name: x.numpy() for name, x in training.model.gain.state_dict().items()}
    ours, theirs = training.start(), None
    for batch in benchmark.batches(3, 5, steps=14):  # in the thirteenth all calls begin again
        loss, losses, ours = training.step(ours, *vars(batch).values())
        assert losses.shape == (3,)
        wanted, theirs = peer.step(theirs, batch)
        assert float(loss) == pytest.approx(wanted, rel=1e-3)
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
