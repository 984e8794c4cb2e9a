"""Adaptive filters find a response that is known."""

import numpy as np
import pytest

from palto import adaptive

without = pytest.mark.skipif(
    adaptive.speexdsp_library() is None, reason="the system has no SpeexDSP"
)
FILTERS = [
    adaptive.pnlms,
    adaptive.frequency_domain_kalman,
    pytest.param(adaptive.speexdsp, marks=without),
]


@pytest.fixture(scope="module")
def call():
    """Far end and echo, of a response that decays."""
    rng = np.random.default_rng(0)
    far = rng.normal(size=32_000).astype(np.float32) * 0.1
    response = rng.normal(size=400) * np.exp(-np.arange(400) / 60) * 0.3
    return far, np.convolve(far, response)[: len(far)].astype(np.float32)


def lowered(echo, left):
    return 10 * np.log10(np.mean(echo**2) / np.mean(left**2))


@pytest.mark.parametrize("cancel", FILTERS)
def test_a_response_is_found(cancel, call):
    far, echo = call
    clean = cancel(far, echo)
    assert clean.shape == echo.shape
    assert clean.dtype == np.float32
    assert lowered(echo[-8000:], clean[-8000:]) > 15


@pytest.mark.parametrize("cancel", FILTERS)
def test_what_is_not_echo_stays(cancel, call):
    far, echo = call
    near = np.random.default_rng(1).normal(size=len(far)).astype(np.float32) * 0.01
    clean = cancel(far, echo + near)
    assert lowered(echo[-8000:], (clean - near)[-8000:]) > 8
    alone = cancel(np.zeros_like(far), near)
    assert lowered(near, alone - near + 1e-9) > (15 if cancel is adaptive.speexdsp else 100)


@pytest.mark.parametrize("cancel", FILTERS)
def test_any_length(cancel, call):
    far, echo = (x[:1001] for x in call)
    assert cancel(far, echo).shape == (1001,)
    assert cancel(far[:700], echo).shape == (1001,)
    assert np.all(np.isfinite(cancel(far[:700], echo)))


@pytest.mark.skipif(adaptive.speexdsp_library() is not None, reason="the system has SpeexDSP")
def test_that_speexdsp_is_missing_is_said():
    with pytest.raises(RuntimeError, match="libspeexdsp1"):
        adaptive.speexdsp(np.zeros(9), np.zeros(9))
