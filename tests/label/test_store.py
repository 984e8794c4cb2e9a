"""What is kept, and what is refused; challenges, the folder, what is exported."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from palto import data
from palto.label import NAMED, challenges, dawid_skene
from palto.label import store as stores
from palto.label.challenges import Challenges
from palto.label.folder import export, take_in
from palto.label.store import DATABASE, RefusedError, Store

from .conftest import COLOURS, draw


def honest(challenge, truth):
    if challenge.asked == NAMED:
        return {image: truth[image] for image in challenge.images}
    return {image: int(truth[image] == challenge.asked) for image in challenge.images}


def answer_all(store, maker, truth, session="someone", say=honest):
    count = 0
    while (challenge := maker.next(session)) is not None:
        store.take(session, challenge.ticket, say(challenge, truth))
        maker.answered()
        count += 1
        assert count < 200
    return count


# --- The folder ----------------------------------------------------------------------------------


def test_folders_tell_what_is_known(store, files, truth):
    assert len(files) == 30
    assert store.known() == {n: k for n, k in truth.items() if "/" in store.images()[n]}
    assert len(store.known()) == 6


def test_images_are_added_later_and_broken_ones_are_named(store, files, photos, truth):
    draw(photos / "later.png", "red")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no")
    (photos / "broken text.png").write_text("<html>")
    said = []
    again = take_in(store, photos, complain=said.append)
    assert set(files) < set(again) and len(again) == 31
    assert len(said) == 1 and "broken.jpg" in said[0] and "broken text.png" in said[0]


def test_a_table_tells_what_is_known(store, photos, tmp_path):
    table = tmp_path / "known.csv"
    table.write_text("file,class\n06-red.png,red\n")
    take_in(store, photos, table, complain=print)
    assert len(store.known()) == 7
    table.write_text("file,class\n06-red.png,rot\n")
    with pytest.raises(ValueError, match=r"line 2: .*red,green,blue, got 06-red.png,rot"):
        take_in(store, photos, table, complain=print)


# --- Challenges ----------------------------------------------------------------------------------


def test_a_challenge_mixes_controls_of_both_kinds_with_unknown_images(store, files, truth):
    maker = Challenges(store, seed=0)
    known = store.known()
    for _ in range(20):
        challenge = maker.next("someone")
        assert len(set(challenge.images)) == 9
        controls = [known[image] == challenge.asked for image in challenge.images if image in known]
        assert controls.count(True) == 2 and controls.count(False) == 2


def test_nobody_is_asked_the_same_twice_and_all_images_get_sure(store, files, truth):
    maker = Challenges(store, seed=0)
    asked = []

    def say(challenge, truth):
        known = store.known()
        asked.extend((n, challenge.asked) for n in challenge.images if n not in known)
        return honest(challenge, truth)

    answer_all(store, maker, truth, say=say)
    assert len(asked) == len(set(asked))
    labels = dawid_skene(store.answers(), 30, 3, known=store.known_array()).labels
    assert labels.tolist() == list(truth.values())
    assert Challenges(store).progress() == {"images": 30, "sure": 30}


def test_a_model_says_which_images_to_ask_about(store, files, truth):
    maker = Challenges(store, seed=0)
    unknown = [number for number in files if number not in store.known()]
    doubtful = set(unknown[:5])
    for number in unknown:
        sure = np.eye(3)[truth[number]] * 0.97 + 0.01
        maker.propose(number, np.full(3, 1 / 3) if number in doubtful else sure)
    challenge = maker.next("someone")
    assert set(challenge.images) - set(store.known()) == doubtful


def test_single_images_are_named(store, files, truth):
    maker = Challenges(store, seed=0)
    for _ in range(30):
        challenge = maker.next_single("someone")
        if challenge is None:
            break
        assert challenge.asked == NAMED and len(challenge.images) == 1
        store.take("someone", challenge.ticket, honest(challenge, truth))
    assert (store.answers().asked == NAMED).all()


def test_without_known_images_all_answers_count(store, files, truth):
    with store._writing() as database:
        database.execute("UPDATE image SET known = NULL")
    maker = Challenges(store, seed=0)
    challenge = maker.next("someone")
    assert store.take("someone", challenge.ticket, honest(challenge, truth)) is None
    assert len(store.answers().image) == 9


def test_answers_with_failed_controls_are_kept_but_do_not_count(store, files, truth):
    maker = Challenges(store, seed=0)
    challenge = maker.next("robot")
    wrong = {image: 1 - said for image, said in honest(challenge, truth).items()}
    assert store.take("robot", challenge.ticket, wrong) is False
    assert len(store.answers().image) == 0
    assert len(store.answers(all_of_them=True).image) == 9
    assert challenges.summary(store, maker)["annotators"] == [
        {"annotator": 1, "challenges": 1, "passed": 0, "failed": 1}
    ]


# --- What is refused -----------------------------------------------------------------------------


def test_an_answer_is_taken_once_from_whom_was_asked_about_what_was_shown(
    store, files, truth, monkeypatch
):
    maker = Challenges(store, seed=0)
    challenge = maker.next("a")
    said = honest(challenge, truth)
    other = next(number for number in files if number not in challenge.images)
    some = dict(list(said.items())[1:])
    for session, ticket, answer, reason in (
        ("b", challenge.ticket, said, "unknown"),
        ("a", "made up", said, "unknown"),
        ("a", challenge.ticket, {**some, other: 1}, "images"),
        ("a", challenge.ticket, {**said, other: 1}, "images"),
        ("a", challenge.ticket, some, "images"),
        ("a", challenge.ticket, dict.fromkeys(said, 2), "values"),
    ):
        with pytest.raises(RefusedError) as error:
            store.take(session, ticket, answer)
        assert error.value.reason == reason
    assert len(store.answers(all_of_them=True).image) == 0
    second = maker.next("a")  # another tab
    assert store.take("a", second.ticket, honest(second, truth))
    assert store.take("a", challenge.ticket, said)
    with pytest.raises(RefusedError, match="has been answered"):
        store.take("a", challenge.ticket, said)
    late = maker.next("a")
    monkeypatch.setattr(stores, "EXPIRY", -1)
    with pytest.raises(RefusedError, match="too old"):
        store.take("a", late.ticket, honest(late, truth))


def test_classes_may_be_corrected_before_there_are_images(tmp_path):
    Store(tmp_path / "new", ("cat", "dgo")).close()
    again = Store(tmp_path / "new", ("cat", "dog"))
    assert again.classes == ("cat", "dog")
    again.close()


def test_other_databases_and_classes_are_refused(store, files, photos, tmp_path):
    with pytest.raises(ValueError, match="has the classes red,green,blue, got red"):
        Store(photos / DATABASE, ("red", "blue"))
    (tmp_path / "text").write_text("not a database, but long enough to look like a damaged one")
    with pytest.raises(ValueError, match="cannot be used"):
        Store(tmp_path / "text", ("a", "b"))
    with pytest.raises(ValueError, match="--classes cat,dog"):
        Store(tmp_path / "new")
    with pytest.raises(OSError, match="cannot be opened"):
        Store(tmp_path / "nowhere" / "x", ("a", "b"))


WRITER = """
import sys
from pathlib import Path
from palto.label.store import Store
store = Store(Path(sys.argv[1]))
images = list(store.images())[:9]
while True:
    challenge = store.hand_out("someone", 0, images)
    store.take("someone", challenge.ticket, dict.fromkeys(images, 1))
    print(challenge.ticket, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_what_was_acknowledged_survives_a_kill(store, files, photos):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(photos / DATABASE)], stdout=subprocess.PIPE, text=True
    ) as writer:
        tickets = [writer.stdout.readline().strip() for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
        tickets += writer.stdout.read().split()
    again = Store(photos / DATABASE)
    kept = again._rows("SELECT ticket FROM challenge WHERE answered IS NOT NULL")
    assert set(tickets) <= {ticket for (ticket,) in kept}
    assert len(again.answers(all_of_them=True).image) == 9 * len(kept)
    assert again._rows("PRAGMA integrity_check") == [("ok",)]
    again.close()


# --- Export --------------------------------------------------------------------------------------


def test_what_is_exported_trains_with_soft_labels(store, files, photos, truth, tmp_path):
    maker = Challenges(store, seed=0)
    with pytest.raises(ValueError, match="labelled yet"):
        with store._writing() as database:
            database.execute("UPDATE image SET known = NULL")
        export(store, photos, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    take_in(store, photos, complain=print)
    answer_all(store, maker, truth)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="labelled again"):
        export(store, photos, photos / "out")
    count, consensus = export(store, photos, out)
    assert count == 30
    with pytest.raises(FileExistsError, match="is there already"):
        export(store, photos, out)
    train, test = data.open_source(out, validation=0.2)
    assert train.classes == tuple(COLOURS) and len(train) + len(test) == 30
    _, soft = train.__getitems__([0, 1])
    assert soft.shape == (2, 3) and soft.dtype == np.float32
    _, hard = test.__getitems__([0, 1])
    assert hard.shape == (2,) and hard.dtype == np.int64  # to measure on
    whole, _ = data.open_source(out)
    names = [path.relative_to(out / "images").as_posix() for path in whole.paths]
    assert names == list(store.images().values())
    np.testing.assert_allclose(whole.soft_labels, consensus.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,a\nx.png,1\n", "line 1"),
        ("file,a,b\nx.png,0.5,0.2\n", "line 2.*add up to 1"),
        ("file,a,b\nx.png,2,-1\n", "line 2"),
        ("file,a,b\nx.png,nan,1\n", "line 2"),
        ("file,a,b\nx.png,1\n", "line 2"),
        ("file,a,b\nx.png,1,0\nx.png,1,0\n", "line 3.*second time"),
        ("file,a,b\n../x.png,1,0\n", "line 2: there is no file"),
        ("file,a,b\n", "names no images"),
    ],
)
def test_a_wrong_table_of_soft_labels_names_its_line(tmp_path, table, message):
    draw(tmp_path / "x.png", "red")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        data.open_source(tmp_path)
