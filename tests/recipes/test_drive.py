"""The self-driving car: what it sees, who teaches it, how it learns, its commands."""

import hashlib
import json

import numpy as np
import pytest

import palto
from palto import cli

pytest.importorskip("gymnasium", reason="Gymnasium is not installed (pip install 'palto[drive]')")
av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'palto[drive]')")

drive = pytest.importorskip("palto.recipes.drive")
Lap, Plan, Road = drive.Lap, drive.Plan, drive.Road
Training, View = drive.Training, drive.View

#: Laps of a second: long enough for everything but the score.
SHORT = Plan(rounds=2, laps=2, steps=4, batch_size=8, cars=2, frames=40)


@pytest.fixture(autouse=True)
def few_tracks(monkeypatch):
    monkeypatch.setattr(drive, "VALIDATION_TRACKS", range(1_000_000, 1_000_002))
    monkeypatch.setattr(drive, "TEST_TRACKS", range(2_000_000, 2_000_002))


def silent(*_):
    pass


def blind(road):
    """The same road without pictures, which take most of the time."""
    picture = np.zeros((96, 96, 3), np.uint8)
    road.unwrapped._render = lambda mode: picture
    return road


# --- The road and the teacher --------------------------------------------------------------------


def test_the_camera_is_grey_half_as_large_and_without_instruments():
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[84:] = 255
    assert drive.camera(picture).max() == 0
    picture[2:4, 4:6] = (100, 200, 50)
    seen = drive.camera(picture)
    assert seen.shape == (42, 48)
    assert seen[1, 2] == pytest.approx(0.299 * 100 + 0.587 * 200 + 0.114 * 50, abs=1)
    assert np.count_nonzero(seen) == 1


def test_a_road_shows_the_picture_of_now_and_one_of_before():
    road = Road([5])
    seen, info = road.reset()
    assert seen.shape == (42, 48, 2)
    assert info["teacher"].shape == (2,)
    assert not info["lost"]
    newest = [seen[..., 1]]
    for _ in range(8):
        seen, *_, info = road.step(np.array([0.1, 1.0], np.float32))
        newest.append(seen[..., 1])
    np.testing.assert_array_equal(seen[..., 0], newest[-1 - drive.GAP])
    assert not np.array_equal(seen[..., 0], seen[..., 1])
    assert info["speed"] > 0
    road.close()


def test_a_road_without_further_tracks_is_parked():
    road = blind(Road([1, 2], frames=3))
    for _ in range(2):
        _, info = road.reset()
        assert not info["parked"]
        for _ in range(3):
            *_, cut_off, info = road.step(np.zeros(2, np.float32))
        assert cut_off
    _, info = road.reset()
    assert info["parked"]
    _, reward, ended, cut_off, info = road.step(np.ones(2, np.float32))
    assert (reward, ended, cut_off, info["parked"]) == (0.0, False, False, True)


def lap_of_the_teacher(track, disturbance=0.0):
    """(score, finished, ever lost, lost at the end) of a lap; pushes to the steering in between."""
    road = blind(Road([track]))
    _, info = road.reset()
    generator = np.random.default_rng(track)
    score, push, over, ever_lost = 0.0, 0.0, False, False
    while not over:
        if disturbance and generator.random() < 0.02:
            push = 0.0 if push else generator.normal() * disturbance
        _, reward, ended, cut_off, info = road.step(info["teacher"] + np.float32([push, 0]))
        score, over = score + reward, ended or cut_off
        ever_lost |= info["lost"]
    return score, info["finished"], ever_lost


@pytest.mark.parametrize("track", range(30, 36))
def test_the_teacher_finishes_its_laps_on_the_road(track):
    score, finished, ever_lost = lap_of_the_teacher(track)
    assert finished
    assert score > 890
    assert not ever_lost


def test_the_teacher_comes_back_to_the_road():
    laps = [lap_of_the_teacher(track, disturbance=0.5) for track in range(40, 46)]
    assert any(ever_lost for _, _, ever_lost in laps)  # the pushes are strong enough
    assert np.mean([score for score, _, _ in laps]) > 800


def test_laps_driven_side_by_side_are_those_driven_one_by_one():
    tracks = [70, 71, 72]
    seen = []
    together = drive.drive(
        drive.teacher, tracks, cars=2, frames=40,
        witness=lambda view, driving: seen.append(int(driving.sum())),
    )  # fmt: skip
    for track, lap in zip(tracks, together, strict=True):
        road = blind(Road([track], frames=40))
        _, info = road.reset()
        score = 0.0
        for _ in range(40):
            _, reward, *_, info = road.step(info["teacher"])
            score += reward
        assert lap == Lap(track, pytest.approx(score, abs=0.06), 40, False, 0.0)
    assert sum(seen) == 3 * 40


# --- Learning ------------------------------------------------------------------------------------


def weights(training):
    return {name: x.numpy() for name, x in training.model.state_dict().items()}


def test_the_network_has_the_size_it_claims_and_compiles():
    model = drive.PilotNet()
    assert sum(x.size for x in model.parameters()) == 279_284
    pictures = np.random.default_rng(0).integers(0, 256, (3, 42, 48, 2), np.uint8)
    compiled = drive.pilot(model)(pictures)
    np.testing.assert_allclose(compiled, model(palto.asarray(pictures)).numpy(), atol=1e-5)


def test_the_network_goes_to_other_programs(tmp_path):
    pytest.importorskip("onnx", reason="ONNX is not installed (pip install 'palto[onnx]')")
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    model, _ = drive.load_pilot()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 42, 48, 2), np.uint8)
    path = tmp_path / "pilot.onnx"
    palto.formats.onnx.export(
        model, path, pictures, dynamic_shapes={"pictures": {0: palto.Dim("batch", max=8)}}
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (controls,) = session.run(None, {session.get_inputs()[0].name: pictures})
    np.testing.assert_allclose(controls, drive.pilot(model)(pictures), atol=1e-5)


def test_what_a_decision_hangs_on_is_its_slope():
    model = drive.PilotNet()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 42, 48, 2), np.uint8)
    controls, slopes = palto.compile(model.explain)(palto.asarray(pictures))
    np.testing.assert_allclose(controls.numpy(), model(palto.asarray(pictures)).numpy(), atol=1e-5)
    assert slopes.shape == (2, 42, 48)
    seen, step = pictures.astype(np.float32) / 255 - 0.5, 1e-2
    for row, column in ((20, 20), (5, 40)):
        change = 0.0
        for frame in range(2):
            moved = [seen.copy(), seen.copy()]
            moved[0][1, row, column, frame] += step
            moved[1][1, row, column, frame] -= step
            up, down = (model.decide(palto.asarray(x)).numpy()[1] for x in moved)
            change += np.abs(up - down).sum() / (2 * step)
        assert slopes.numpy()[1, row, column] == pytest.approx(change, rel=0.05, abs=1e-4)


def test_learning_follows_the_teacher_in_pictures_and_mirrored_pictures(tmp_path):
    """Bright on the right means right; bright on the left is never shown, yet learned."""
    training = Training(tmp_path, Plan(rounds=1, steps=200, batch_size=16, lr=2e-3))
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 60, (64, 42, 48, 2), np.uint8)
    pictures[:, 10:30, 30:44] = 250
    controls = np.tile(np.float32([0.5, 0.25]), (64, 1))
    palto.formats.safetensors.save(
        tmp_path / "lesson-000.safetensors", {"pictures": pictures, "controls": controls}
    )
    training._learn(0, training._examples(1), silent)
    answer = drive.pilot(training.model)
    np.testing.assert_allclose(answer(pictures).mean(0), [0.5, 0.25], atol=0.1)
    mirrored = np.ascontiguousarray(pictures[:, :, ::-1])
    np.testing.assert_allclose(answer(mirrored).mean(0), [-0.5, 0.25], atol=0.1)


def test_a_training_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole = Training(tmp_path / "whole", SHORT)
    whole.run(silent)

    class Killed(Exception):
        pass

    def kill(what, done, remark):
        if what.startswith("round 1: learning") or what.startswith("round 1: validation"):
            raise Killed

    broken = Training(tmp_path / "broken", SHORT)
    with pytest.raises(Killed):
        broken.run(kill)
    resumed = Training(tmp_path / "broken", SHORT)
    assert len(resumed.rounds) == 1
    resumed.run(silent)
    assert [x.examples for x in resumed.rounds] == [x.examples for x in whole.rounds] == [40, 80]
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(resumed)[name], value, err_msg=name)

    with pytest.raises(ValueError, match="--out"):
        Training(tmp_path / "broken", Plan(rounds=3))


def test_the_teacher_takes_the_wheel_of_a_lost_network(tmp_path, monkeypatch):
    training = Training(tmp_path, SHORT)
    asked = {}

    def stop(wheel, *_, **__):
        asked["controls"] = wheel(
            View(
                np.zeros((2, 42, 48, 2), np.uint8),
                np.float32([[0.3, 0.4], [0.5, 0.6]]),
                np.array([True, False]),
            )
        )
        raise InterruptedError

    monkeypatch.setattr(drive, "drive", stop)
    with pytest.raises(InterruptedError):
        training._lessons(1, silent)
    np.testing.assert_array_equal(asked["controls"][0], np.float32([0.3, 0.4]))
    own = drive.pilot(training.model)(np.zeros((2, 42, 48, 2), np.uint8))
    np.testing.assert_array_equal(asked["controls"][1], own[1])


def test_in_cloning_the_teacher_always_drives(tmp_path, monkeypatch):
    training = Training(tmp_path, Plan(method="cloning"))

    def stop(wheel, *_, **__):
        assert wheel is drive.teacher
        raise InterruptedError

    monkeypatch.setattr(drive, "drive", stop)
    with pytest.raises(InterruptedError):
        training._lessons(1, silent)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"lr": -1.0}, {"frames": 0}])
def test_a_plan_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plan(**wrong)


# --- The pilot that comes with Palto -------------------------------------------------------------


def test_the_shipped_pilot_is_the_one_of_its_record():
    model, record = drive.load_pilot()
    weights = drive.SHIPPED / "pilot.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["sha256"]
    assert record["command"].startswith("palto train drive")
    laps = [Lap(**x) for x in record["tests"]["pilot"]["laps"]]
    assert record["tests"]["pilot"]["mean score"] == pytest.approx(drive.mean_score(laps), abs=0.06)
    assert sum(x.size for x in model.parameters()) == 279_284


def test_the_shipped_pilot_drives():
    lap = drive.drive(drive.wheel(drive.load_pilot()[0]), [2_000_003], cars=1)[0]
    assert lap.finished
    assert lap.score > 880


# --- The command line ----------------------------------------------------------------------------


def command(capsys, *words):
    try:
        status = cli.main([str(x) for x in words])
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    return status, out, err


def test_from_training_to_a_film_by_the_command_line(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    words = [
        "train", "drive", "--out", run, "--rounds", "1", "--laps", "2", "--steps", "3",
        "--batch-size", "8", "--cars", "2", "--frames", "20",
    ]  # fmt: skip
    status, out, err = command(capsys, *words)
    assert status == 0, err
    assert "teacher" in out
    assert "chance" in out
    record = json.loads((run / "pilot.json").read_text())
    assert set(record["tests"]) == {"pilot", "teacher", "chance"}
    assert "<svg" in (run / "rounds.svg").read_text()

    road = drive.Road
    monkeypatch.setattr(drive, "Road", lambda tracks, render_mode: road(tracks, 30, render_mode))
    film = tmp_path / "lap.mp4"
    status, out, err = command(capsys, "drive", "--run", run, "--tracks", 2, "--video", film)
    assert status == 0, err
    assert "not finished" in out
    with av.open(str(film)) as video:
        pictures = [x.to_ndarray(format="rgb24") for x in video.decode(video=0)]
    assert len(pictures) == 2 * 15 + 50
    assert pictures[0].shape == (400, 840, 3)
    assert pictures[0].std() > 10

    status, _, err = command(capsys, "train", "drive", "--out", run, "--rounds", "2")
    assert status == 2
    assert "another folder" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tracks", "0"], "tracks must be at least 1"),
        (["--first", "-1"], "first must be at least 0"),
        (["--driver", "teacher", "--video", "x.mp4"], "leave --driver pilot"),
        (["--run", "nowhere"], "palto train drive"),
        (["--video", "lap.avi"], ".mp4"),
    ],
)
def test_what_cannot_be_driven_is_said(capsys, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(capsys, "drive", *words)
    assert status == 2
    assert told in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_training(capsys):
    status, out, _ = command(capsys, "train", "drive", "--help")
    assert status == 0
    assert "palto train drive" in out
    assert "--method" in out
