"""Palto and PyTorch do the same work in each step that is measured."""

import dataclasses

import pytest

#: Small enough for a test; the command itself compares the losses of all.
NAMES = ["fully_connected", "unet", "gru", "tabular", "policy", "policy_inference", "separable"]


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_pytorchs(name, torch):
    from steps import PaltoStep, TorchStep
    from workloads import WORKLOADS

    ours, theirs = PaltoStep(WORKLOADS[name]), TorchStep(WORKLOADS[name])
    for tolerance in (1e-5, 1e-3):  # Adam divides what may be rounding by itself
        assert ours() == pytest.approx(theirs(), rel=tolerance)


def test_channels_last_and_fused_adam_do_the_same(torch):
    from steps import TorchStep
    from workloads import WORKLOADS

    sides = [
        TorchStep(WORKLOADS["separable"], channels_last=quick, fused=quick)
        for quick in (False, True)
    ]
    for _ in range(2):
        plain, quick = (side() for side in sides)
        assert quick == pytest.approx(plain, rel=1e-3)


def test_products_are_most_of_what_a_model_computes():
    """The count of a forward pass beside the summary's, which has all operations in it."""
    from steps import palto_model
    from workloads import WORKLOADS

    for workload in WORKLOADS.values():
        inputs = workload.batch()[0]
        summary = palto_model(workload).summary((inputs.shape, inputs.dtype.name))
        products = dataclasses.replace(workload, trains=False).flops
        assert 0.85 < products / summary.flops < 1, workload.name
