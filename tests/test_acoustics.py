"""Telephone calls in simulated rooms."""

import numpy as np
import pytest

from palto import acoustics

pytest.importorskip(
    "pyroomacoustics", reason="pyroomacoustics is not installed (pip install 'palto[echo]')"
)


@pytest.fixture
def voices():
    """Noise of changing loudness."""
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.uniform(0, 1, (4, 30)), 1600, axis=1)
    return list(
        (4000 * loudness * rng.normal(size=loudness.shape)).clip(-32000, 32000).astype(np.int16)
    )


def lowered(echo, left):
    return 10 * np.log10(np.sum(echo**2) / np.sum(left**2))


def test_scenes_are_made_from_a_seed_and_kept(voices, tmp_path):
    scenes, again = (
        acoustics.make_scenes(acoustics.KINDS, 4, voices, voices, np.random.default_rng(5))
        for _ in range(2)
    )
    scenes.save(tmp_path / "scenes.safetensors")
    loaded = acoustics.Scenes.load([tmp_path / "scenes.safetensors"] * 2)
    for name, signals in vars(scenes).items():
        assert signals.shape == (4, 4 * acoustics.RATE)
        assert signals.dtype == np.int16
        np.testing.assert_array_equal(signals, vars(again)[name])
        np.testing.assert_array_equal(np.concatenate([signals] * 2), vars(loaded)[name])
    assert not scenes.near[0].any()
    assert scenes.near[1].any()
    whole = sum(x.astype(int) for x in (scenes.echo, scenes.near, scenes.noise))
    np.testing.assert_array_equal(scenes.mic, whole)  # nothing is beyond 16 bits


def test_in_a_path_change_another_response_comes(voices, monkeypatch):
    """A filter of the first half's best fit is good in it, and useless after the change."""
    monkeypatch.setattr(acoustics, "_loudspeaker", lambda x, generator: x)
    fits = {}
    for kind in ("double talk", "path change"):
        scenes = acoustics.make_scenes([kind], 4, voices, voices, np.random.default_rng(1))
        far, heard = scenes.far[0].astype(float), scenes.echo[0].astype(float)
        delayed = np.stack([np.roll(far, k) for k in range(200)], axis=1)
        first, last = slice(400, 10_000), slice(-10_000, None)
        fit = np.linalg.lstsq(delayed[first], heard[first], rcond=None)[0]
        left = heard - delayed @ fit
        fits[kind] = [lowered(heard[part], left[part]) for part in (first, last)]
    assert fits["double talk"][0] > 8
    assert abs(fits["double talk"][1] - fits["double talk"][0]) < 4
    assert fits["path change"][0] - fits["path change"][1] > 5


@pytest.mark.parametrize(
    ("kind", "counts", "from_", "to"),
    [
        ("single talk", {0}, 0, 1),
        ("double talk", {0}, 0, 1),
        ("path change", {1}, 0.35, 0.65),
        ("restless", {1, 2, 3}, 0.05, 0.95),
    ],
)
def test_when_the_loudspeaker_moves(voices, monkeypatch, kind, counts, from_, to):
    """It stands where its sound comes as it is, or where it comes upside down."""
    monkeypatch.setattr(acoustics, "_loudspeaker", lambda x, generator: x)
    monkeypatch.setattr(
        acoustics, "_responses", lambda generator: [np.array([x]) for x in (1.0, -1.0, 1.0)]
    )
    scenes = acoustics.make_scenes([kind] * 12, 4, voices, voices, np.random.default_rng(2))
    found = set()
    for far, heard in zip(scenes.far.astype(float), scenes.echo.astype(float), strict=True):
        loud = np.flatnonzero((np.abs(far) > 500) & (np.abs(heard) > 20))
        moved = loud[1:][np.diff(np.sign(far[loud] * heard[loud])) != 0]
        assert np.all((moved >= from_ * len(far)) & (moved <= to * len(far) + 10_000))
        found.add(len(moved))
    assert found == counts
