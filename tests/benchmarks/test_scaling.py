"""What is measured of scaling, and what is calculated."""

import os

import pytest

pytest.importorskip("jax", reason="JAX is not installed (pip install palto[xla])")


def test_two_processes_exchange_their_gradients():
    from scaling import measured

    core = min(os.sched_getaffinity(0))
    found = measured("fully_connected", 2, processes=2, examples=8, cores=[core, core])
    gradients = 4 * (785 * 128 + 129 * 10)
    assert gradients < found["sent"] < 1.01 * gradients
    assert found["seconds"] > 0 and 1 < found["exchanges"] < 20


def test_many_hosts():
    from scaling import efficiency

    assert efficiency(1.0, 0, 1, 10.0, hosts=1) == 1
    # A second of sending at 1 Gb/s, and half as much at 2; two hosts take turns twice.
    assert efficiency(1.0, 125_000_000, 1, 1.0, hosts=2) == pytest.approx(0.5, abs=1e-4)
    assert efficiency(1.0, 125_000_000, 1, 2.0, hosts=2) == pytest.approx(2 / 3, abs=1e-4)
    assert efficiency(1e-3, 0, 1, 1.0) < 0.1  # 510 turns
    assert efficiency(1e-3, 0, 9, 1.0) < efficiency(1e-3, 0, 1, 1.0)
