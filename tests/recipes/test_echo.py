"""Echo cancellation: the scenes, the filter, how it learns, what it is asked from outside."""

import functools
import json

import numpy as np
import pytest

import palto
from palto import acoustics, cli, nn
from palto.recipes import echo
from palto.recipes.echo import Canceller, KalmanFilter, Plan, Training
from palto.train import TrainingStopped

soundfile = pytest.importorskip(
    "soundfile", reason="soundfile is not installed (pip install 'palto[echo]')"
)
soxr = pytest.importorskip("soxr", reason="soxr is not installed (pip install 'palto[echo]')")
pytest.importorskip("pystoi", reason="pystoi is not installed (pip install 'palto[echo]')")
pytest.importorskip(
    "pyroomacoustics", reason="pyroomacoustics is not installed (pip install 'palto[echo]')"
)

SHORT = Plan(
    steps=5, round_steps=2, batch_size=2, bins=8, scenes=3, seconds=4.0, test_scenes=1, lr=1e-3
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def babble(rng, seconds=3.0):
    """Something like speech: noise of changing loudness and colour."""
    count = int(seconds * echo.RATE)
    loudness = np.repeat(rng.uniform(0, 1, count // 1600 + 1), 1600)[:count]
    x = rng.normal(size=count) * loudness
    x = np.convolve(x, rng.normal(size=12) * np.exp(-np.arange(12) / 4), "same")
    return (8000 * x / np.abs(x).max()).astype(np.int16)


@pytest.fixture
def voices(monkeypatch, rng):
    """Instead of the recordings, which are not here."""
    found = [babble(rng) for _ in range(4)]
    monkeypatch.setattr(echo, "_recordings", lambda languages, keep: found)
    monkeypatch.setattr(echo, "VALIDATION", 2)
    return found


def silent(*_):
    pass


def untouched():
    """A filter that corrects nothing."""
    model = KalmanFilter()
    for parameter in (model.gain.linear3.weight, model.gain.linear3.bias):
        parameter.assign(palto.zeros_like(parameter))
    return model


def unruly():
    """A filter that corrects something."""
    palto.manual_seed(3)
    model = KalmanFilter()
    nn.init.uniform_(model.gain.linear3.weight, -0.3, 0.3)
    return model


# --- Scenes --------------------------------------------------------------------------------------


def test_scenes_are_made_once(voices, tmp_path, monkeypatch):
    scenes, held = echo.training_scenes(tmp_path, 3, 4.0, 0, silent)
    assert scenes.far.shape == (3, 64_000)
    assert held.far.shape == (4, 64_000)
    other, _ = echo.training_scenes(tmp_path, 2, 4.0, 1, silent)
    assert other.far.shape == (2, 64_000)
    monkeypatch.setattr(echo, "make_scenes", None)
    again, _ = echo.training_scenes(tmp_path, 3, 4.0, 0, silent)
    np.testing.assert_array_equal(scenes.echo, again.echo)


# --- The network ---------------------------------------------------------------------------------


def test_the_network_has_the_size_of_its_paper():
    assert sum(x.size for x in KalmanFilter().parameters()) == 5_302


def reference_gain(net, z, memory):
    """The same of PyTorch-like layers of complex numbers, (rows, features)."""

    def linear(layer, z):
        re, im = (z.real @ layer.weight.numpy()[0].T, z.imag @ layer.weight.numpy()[1].T)
        return re + layer.bias.numpy()[0, :, 0] + 1j * (im + layer.bias.numpy()[1, :, 0])

    def prelu(layer, z):
        alpha = layer.weight.numpy()
        return np.where(z.real > 0, z.real, alpha * z.real) + 1j * np.where(
            z.imag > 0, z.imag, alpha * z.imag
        )

    def cell(ours):
        layer = nn.GRUCell(net.width, net.width)
        for name, value in ours.state_dict().items():
            getattr(layer, name).assign(palto.squeeze(value, -1) if "bias" in name else value)
        return lambda x, h: layer(x.astype(np.float32), h.astype(np.float32)).numpy()

    z = prelu(net.prelu1, linear(net.linear1, z))
    real, imag = cell(net.gru_real), cell(net.gru_imag)
    rr, ri = real(z.real, memory[0][0].T), real(z.imag, memory[0][1].T)
    ir, ii = imag(z.real, memory[1][0].T), imag(z.imag, memory[1][1].T)
    z = (rr - ii) + 1j * (ri + ir)
    z = linear(net.linear3, prelu(net.prelu2, linear(net.linear2, z)))
    return z, (np.stack([rr.T, ri.T]), np.stack([ir.T, ii.T]))


def complex_of(pair):
    pair = np.asarray(pair)
    return pair[0] + 1j * pair[1]


def test_a_frame_is_that_of_the_paper(rng):
    model, rows = unruly(), 6
    state = model.start(rows)
    past = np.zeros((3, rows), complex)
    h = before = np.zeros((4, rows), complex)
    memory = [np.zeros((2, 18, rows))] * 2
    for _ in range(5):
        far, mic = rng.normal(size=(2, 2, rows)).astype(np.float32)
        state, found = model(state, palto.asarray(far), palto.asarray(mic))

        x = np.concatenate([past, complex_of(far)[None]])
        level = np.sqrt(np.mean(np.abs(x) ** 2, axis=0) + echo.SILENCE)
        error = (complex_of(mic) - (x * h).sum(0)) / level
        small = error / np.abs(error) * np.log1p(np.abs(error))
        seen = np.concatenate([x / level, small[None], h - before])
        gain, memory = reference_gain(model.gain, seen.T, memory)
        h, before, past = h + gain.T * small, h, x[1:]
        np.testing.assert_allclose(complex_of(state[1]), h, atol=1e-4)
        np.testing.assert_allclose(complex_of(found), (x * h).sum(0), atol=1e-4)


def test_a_filter_that_runs_away_begins_again(rng):
    model = unruly()
    past, filters, before, *memory = model.start(3)
    filters = filters.at[:, :, 1].set(100.0)
    spectra = [palto.asarray(x) for x in rng.normal(size=(2, 2, 3)).astype(np.float32)]
    state, _ = model((past, filters, before, *memory), *spectra)
    energy = np.square(state[1].numpy()).sum((0, 1))
    assert energy[1] == 0
    assert np.all(energy[[0, 2]] > 0)


def test_spectra_are_those_of_numpy(rng):
    x = rng.normal(size=(3, 2, 4 * 256 + 1024)).astype(np.float32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = np.lib.stride_tricks.sliding_window_view(x, 1024, axis=-1)[:, :, ::256]
    wanted = np.fft.rfft(frames * window)
    found = echo.spectra(palto.asarray(x)).numpy()
    np.testing.assert_allclose(found[..., 0, :] + 1j * found[..., 1, :], wanted, atol=1e-3)
    bins = np.array([0, 7, 512, 100])
    found = echo.some_spectra(palto.asarray(x), palto.asarray(echo.waves()[..., bins])).numpy()
    np.testing.assert_allclose(
        found[..., 0, :] + 1j * found[..., 1, :], wanted[..., bins], atol=1e-3
    )


# --- Taking the echo out -------------------------------------------------------------------------


def test_who_corrects_nothing_gives_back_the_microphone(rng):
    far, mic = rng.normal(size=(2, 5000)).astype(np.float32) * 0.1
    np.testing.assert_allclose(Canceller(untouched()).whole(far, mic), mic, atol=1e-5)
    assert Canceller(untouched()).whole(far[:10], mic[:100]).shape == (100,)


def test_frame_by_frame_is_the_whole(rng):
    far, mic = rng.normal(size=(2, 20 * 256)).astype(np.float32) * 0.1
    canceller = Canceller(unruly())
    whole = canceller.whole(far, mic)
    assert np.abs(whole - mic).max() > 0.01
    canceller.reset()
    parts = [canceller.process(far[k : k + 256], mic[k : k + 256]) for k in range(0, 5120, 256)]
    late = np.concatenate(parts)
    np.testing.assert_allclose(late[Canceller.LATENCY :], whole[: -Canceller.LATENCY], atol=1e-4)
    for wrong in (far[:100], far[:0], far[:512]):
        with pytest.raises(ValueError, match="multiple of 256"):
            canceller.process(wrong, mic[:256])


@pytest.mark.parametrize("late", [0, 37, 9000, -5000])
def test_the_delay_is_found(rng, late):
    far = babble(rng, 4).astype(np.float32) / 32768
    heard = np.roll(far, late) * 0.3 + rng.normal(size=len(far)).astype(np.float32) * 1e-3
    assert echo.delay(far, heard) == late
    moved = echo.aligned(far, late)[: len(far)]
    part = slice(10_000, 40_000)
    np.testing.assert_array_equal(moved[part], np.roll(far, late)[part])


def test_where_there_is_no_echo_there_is_no_delay(rng):
    far, other = rng.normal(size=(2, 40_000))
    assert echo.delay(far, other) == 0
    assert echo.delay(np.zeros(1000), other[:1000]) == 0


@pytest.mark.parametrize(
    ("far_rate", "far_channels", "mic_rate", "mic_channels"),
    [(16_000, 1, 16_000, 1), (44_100, 2, 48_000, 2), (8_000, 1, 22_050, 3)],
)
def test_any_rate_and_number_of_channels(rng, far_rate, far_channels, mic_rate, mic_channels):
    time = np.arange(mic_rate * 2 + 77) / mic_rate
    mic = np.stack(
        [np.sin(2 * np.pi * 300 * (k + 1) * time) for k in range(mic_channels)], axis=1
    ).astype(np.float32)
    far = rng.normal(size=(far_rate, far_channels)).astype(np.float32)
    clean, _ = echo.cancel(untouched(), far, far_rate, mic, mic_rate)
    assert clean.shape == mic.shape
    inner = slice(2000, -2000)
    np.testing.assert_allclose(clean[inner], mic[inner], atol=5e-3)


# --- Learning ------------------------------------------------------------------------------------


def weights(training):
    return {name: x.numpy() for name, x in training.model.state_dict().items()}


def test_it_learns_what_an_echo_is(tmp_path, voices, monkeypatch):
    """To a quarter of the echo's energy in what it learns from; elsewhere it is weaker, too."""
    monkeypatch.setattr(echo, "LENGTHS", ((0.0, 50),))
    plan = Plan(steps=150, round_steps=50, batch_size=4, bins=32, scenes=6, seconds=4.0, lr=8e-3)
    training = Training(tmp_path, plan)
    training.run(silent)
    first, _, last = training.rounds
    assert last.loss < -6
    assert last.loss < first.loss - 3
    assert last.erle > 1


def test_a_training_goes_on_as_if_it_had_never_stopped(tmp_path, voices):
    whole = Training(tmp_path / "whole", SHORT)
    whole.run(silent)
    assert [x.steps for x in whole.rounds] == [2, 4, 5]
    assert [x.frames for x in whole.rounds] == [50, 200, 600]

    class Killed(Exception):
        pass

    def kill(what, done, remark):
        if what == "step 4":
            raise Killed

    broken = Training(tmp_path / "broken", SHORT)
    with pytest.raises(Killed):
        broken.run(kill)
    resumed = Training(tmp_path / "broken", SHORT)
    assert len(resumed.rounds) == 2
    resumed.run(silent)
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(resumed)[name], value, err_msg=name)

    with pytest.raises(ValueError, match="--out"):
        Training(tmp_path / "broken", Plan(steps=7))


def test_calls_go_on_from_step_to_step(voices):
    scenes = acoustics.make_scenes(acoustics.KINDS, 4, voices, voices, np.random.default_rng(1))
    plan = Plan(batch_size=5, bins=3)
    calls = echo.Calls(scenes, plan, 200, seed=0)
    before = calls.next()
    assert before.is_new.all()
    assert before.signals.shape == (5, 3, 49 * 256 + 1024)
    began = before.is_new.astype(int)
    for _ in range(30):
        batch = calls.next()
        for k in range(5):
            joined = np.array_equal(batch.signals[k, :, :768], before.signals[k, :, -768:])
            same = np.array_equal(batch.bins[k], before.bins[k])
            assert joined == same == (not batch.is_new[k])
        began += batch.is_new
        before = batch
    assert np.all((7 <= began) & (began <= 9))  # each lasts four steps, but for the first
    calls.drop(np.array([True, False, False, False, False]))
    assert calls.next().is_new[0]


def test_filters_that_diverge_are_left_out(tmp_path, rng):
    """An echo that is nowhere in the microphone: whatever is found is far too much."""
    training = Training(tmp_path, SHORT)
    signals = rng.normal(size=(2, 3, 49 * 256 + 1024)).astype(np.float32) * 0.1
    signals[:, 1] = rng.normal(size=signals[:, 1].shape)
    signals[:, 2] *= 1e-4
    nn.init.uniform_(training.model.gain.linear3.weight, -0.5, 0.5)
    before = weights(training)
    loss, losses, _ = training.step(
        training.start(),
        signals,
        np.tile(np.arange(8), (2, 1)),
        np.ones(2, bool),
        np.zeros(2, np.float32),
    )
    assert np.all(losses.numpy() > echo.DIVERGED)
    assert float(loss) == 0
    for name, value in weights(training).items():
        np.testing.assert_array_equal(value, before[name])


def test_who_diverges_goes_back_to_the_last_good_round(tmp_path, voices, monkeypatch):
    scores = iter([9.0, 8.0, -20.0, -20.0, -20.0, -20.0])
    monkeypatch.setattr(echo, "validate", lambda *_: next(scores))
    plan = Plan(**{**vars(SHORT), "steps": 6, "round_steps": 1})
    training = Training(tmp_path, plan)
    good = {}

    def watch(what, done, remark):
        if what == "step 2":
            good.update(weights(training))
        if what == "step 3":
            assert training.rounds[-1].returned
            for name, value in weights(training).items():
                np.testing.assert_array_equal(value, good[name])

    with pytest.raises(TrainingStopped, match="lower --lr"):
        training.run(watch)
    assert good


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"lr": -1.0}, {"bins": 600}, {"seconds": 1.0}, {"scenes": 0}]
)
def test_a_plan_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plan(**wrong)


# --- The command line ----------------------------------------------------------------------------


def command(capsys, *words):
    try:
        status = cli.main([str(x) for x in words])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    return status, out, err


def test_from_training_to_a_clean_file_by_the_command_line(
    tmp_path, capsys, voices, rng, monkeypatch
):
    monkeypatch.setattr(echo, "test_scenes", functools.partial(echo.test_scenes, seconds=2.0))
    run = tmp_path / "run"
    words = [
        "train", "echo", "--out", run, "--steps", 2, "--batch-size", 2, "--bins", 4,
        "--scenes", 2, "--seconds", 4, "--test-scenes", 1,
    ]  # fmt: skip
    status, out, err = command(capsys, *words)
    assert status == 0, err
    assert "PNLMS" in out
    record = json.loads((run / "filter.json").read_text())
    assert set(record["tests"]) == {"double talk", "path change"}
    for scores in record["tests"].values():
        assert set(scores) - {"SpeexDSP"} == {"microphone", "PNLMS", "Kalman filter", "network"}
        assert scores["microphone"]["erle"] == pytest.approx(0, abs=0.01)
        assert 0 < scores["network"]["stoi"] <= 1
    assert "<svg" in (run / "rounds.svg").read_text()

    far = babble(rng, 2)
    soundfile.write(tmp_path / "far.wav", far, 16_000)
    mic = np.stack([np.roll(far, 1600) // 3] * 2, axis=1)
    soundfile.write(tmp_path / "mic.flac", mic, 16_000, subtype="PCM_24")
    words = ["echo", "--run", run, "-x", tmp_path / "far.wav", "-y", tmp_path / "mic.flac"]
    page = tmp_path / "page.html"
    status, out, err = command(capsys, *words, "-o", tmp_path / "out.wav", "--page", page)
    assert status == 0, err
    assert "100 ms after far.wav" in out
    clean = soundfile.info(tmp_path / "out.wav")
    assert (clean.frames, clean.channels, clean.samplerate) == (32_000, 2, 16_000)
    assert clean.subtype == "PCM_24"
    assert page.read_text().count("<audio") == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-x", "far.wav", "-y", "mic.wav", "-o", "out.mp3"], ".wav or .flac"),
        (["-x", "far.wav", "-y", "mic.wav", "-o", "out.wav", "--page", "x.pdf"], ".html"),
        (["-x", "none.wav", "-y", "mic.wav", "-o", "out.wav"], "no file none.wav"),
        (["-x", "far.wav", "-y", "text.wav", "-o", "out.wav"], "text.wav cannot be read as sound"),
        (["-x", "far.wav", "-y", "mic.wav", "-o", "mic.wav"], "name another file"),
        (["-x", "far.wav", "-y", "slow.wav", "-o", "out.wav"], "4000 samples a second"),
        (["-x", "far.wav", "-y", "empty.wav", "-o", "out.wav"], "shape (0, 1)"),
        (["-x", "far.wav", "-y", "mic.wav", "-o", "nowhere/out.wav"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, capsys, monkeypatch, rng, words, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(echo, "load_filter", lambda folder: (untouched(), {}))
    soundfile.write("far.wav", babble(rng, 1), 16_000)
    soundfile.write("mic.wav", babble(rng, 1), 16_000)
    soundfile.write("slow.wav", babble(rng, 1), 4_000)
    soundfile.write("empty.wav", np.zeros((0, 1)), 16_000)
    (tmp_path / "text.wav").write_text("no sound")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    status, _, err = command(capsys, "echo", *words)
    assert status == 2
    assert told in err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_shipped_filter_takes_an_echo_out(rng):
    model, record = echo.load_filter()
    assert record["command"].startswith("palto train echo")
    assert all(x["network"]["erle"] > 12 for x in record["tests"].values())
    far = (babble(rng, 8) / 32768).astype(np.float32)
    response = rng.normal(size=800) * np.exp(-np.arange(800) / 150)
    heard = np.convolve(far, response)[: len(far)].astype(np.float32)
    heard *= 0.5 * np.abs(far).max() / np.abs(heard).max()
    clean = Canceller(model).whole(far, heard)
    half = len(far) // 2
    assert echo.erle(heard[half:], clean[half:]) > 10
