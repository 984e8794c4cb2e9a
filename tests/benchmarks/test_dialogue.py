"""Learning to converse in PyTorch is the same learning."""

import numpy as np
import pytest

import palto
from palto.recipes.dialogue import LanguageModel, Plan

pytest.importorskip("jinja2", reason="jinja2 is not installed (pip install 'palto[chat]')")


def test_steps_are_pytorchs(torch):
    """Losses of some steps, with groups, decay and clipping."""
    import dialogue as benchmark

    plan = Plan(
        vocabulary=300, width=16, layers=2, heads=2, hidden=32, context=16, batch_size=2, lr=0.01
    )
    palto.manual_seed(0)
    model = LanguageModel(plan, plan.vocabulary).model
    theirs = benchmark.torch_step(model, plan, compiled=False)
    ours = benchmark.palto_step(model, plan)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(12):
        rows = rng.integers(8, size=(2, 17))
        tokens, following = (np.ascontiguousarray(x) for x in (rows[:, :-1], rows[:, 1:]))
        losses.append((ours(tokens, following), theirs(tokens, following)))
    np.testing.assert_allclose(*np.transpose(losses), rtol=2e-4)
    assert losses[-1][0] < losses[0][0] - 1
