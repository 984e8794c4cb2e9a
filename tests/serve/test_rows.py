"""palto serve of a run on a table: rows as JSON, answered as by palto predict."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

from palto import cli, serve, web
from palto.data.sources.penguins import TABLE
from palto.train.run import Run

from .helpers import ask


@pytest.fixture(scope="module")
def rows():
    """All penguins, each as a row of JSON; what is missing is null."""
    numbers = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g", "year")
    with TABLE.open() as file:
        return [
            {
                name: None if cell in ("", "NA") else float(cell) if name in numbers else cell
                for name, cell in row.items()
            }
            for row in csv.DictReader(file)
        ]


def asked(server, content, **options):
    status, text = ask(server, json.dumps(content), "application/json", **options)
    return status, json.loads(text)


def test_hundreds_at_once_get_each_its_own_answer(table_server, penguins, rows):
    found = Run.open(penguins).predict([TABLE], complain=pytest.fail)
    wanted = [prediction.answer for prediction in found]
    with ThreadPoolExecutor(30) as clients:
        answers = list(clients.map(lambda row: asked(table_server, row), rows))
    together = asked(table_server, rows)
    assert together[0] == 200 and len(together[1]) == len(rows) == len(wanted)
    classes, right = Run.open(penguins).classes, 0
    for (status, answer), other, row, expected in zip(
        answers, together[1], rows, wanted, strict=True
    ):
        assert status == 200 and answer.keys() == {"class", "probabilities"}
        for found in (answer, other):
            got = [found["probabilities"][name] for name in classes]
            np.testing.assert_allclose(got, expected, atol=2e-6)
            assert found["class"] == classes[int(np.argmax(expected))]
        right += answer["class"] == row["species"]
    assert right > 0.95 * len(rows)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", None])
def test_what_is_not_known_is_said(table_server, rows, kind):
    row = {"name": "Pingu", **rows[0], "island": "Atlantis"}
    status, text = ask(table_server, json.dumps(row), kind)
    answer = json.loads(text)
    assert status == 200 and answer["notes"] == [
        "row 1: not learned from, so left out: 'name'",
        "row 1, column 'island': 'Atlantis' was not learned, and counts as unknown",
    ]
    without = asked(table_server, {**rows[0], "island": None})[1]
    assert without["probabilities"] == answer["probabilities"] and "notes" not in without
    strange = asked(table_server, {**rows[0], "island": "\ud800", "\udfff": 1})[1]
    assert strange["probabilities"] == without["probabilities"]
    assert r"'\ud800' was not learned" in strange["notes"][1]
    answers = asked(table_server, [rows[0], row])[1]
    assert "notes" not in answers[0] and answers[1]["notes"][0].startswith("row 2: not learned")


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        ("", "application/json", 422, "empty; it should be JSON"),
        ("{", "application/json", 422, "no JSON"),
        (b"\xff\xfe", None, 422, "no JSON"),
        ("[" * 100_000, None, 422, "no JSON"),
        ("9" * 100_000, None, 422, "no JSON"),
        ("[]", None, 422, "the list is empty"),
        ("3", None, 422, "row 1 is no object with the columns as names"),
        ("[{}, []]", None, 422, "row 2 is no object with the columns as names"),
        ("{}", None, 422, "row 1, column 'island': it is absent"),
        ("x", "text/csv", 415, "should be JSON: a row"),
        (b"{" + bytes(1 << 20), None, 413, "at most 1,048,576 bytes"),
        (
            "[" + ",".join(["{ROW}"] * 600) + "]",
            None,
            422,
            "600 rows are too many: ask at most 512",
        ),
        ('{ROW, "year": "new"}', None, 422, "row 1, column 'year': 'new' is no number"),
        ('[{ROW}, {ROW, "year": []}]', None, 422, "row 2, column 'year': a list is neither"),
        ('{ROW, "year": ' + "[" * 900 + "]" * 900 + "}", None, 422, "a list is neither"),
        (r'{ROW, "year": "\ud800"}', None, 422, r"row 1, column 'year': '\ud800' is no number"),
        ('{ROW, "year": 1e400}', None, 422, "row 1, column 'year': 'inf' is no number"),
    ],
)
def test_what_is_wrong_is_refused_with_a_reason(table_server, rows, body, kind, status, message):
    if isinstance(body, str):
        body = body.replace("ROW", json.dumps(rows[0])[1:-1])
    got, text = ask(table_server, body, kind)
    assert got == status and message in json.loads(text)["error"]


def test_a_full_queue_refuses_rows_too(penguins, rows):
    app = serve.application(Run.open(penguins), queue=8, log=False)
    with web.Server(app, web.ServerOptions(port=0)).in_background() as server:
        assert asked(server, rows[:8])[0] == 200
        status, answer = asked(server, rows[:9])
        assert status == 422 and "9 rows are too many: ask at most 8" in answer["error"]
        with ThreadPoolExecutor(16) as clients:
            statuses = list(clients.map(lambda _: asked(server, rows[:6])[0], range(100)))
        assert set(statuses) <= {200, 503} and 200 in statuses
        assert json.loads(ask(server, None, None, "/health", "GET")[1])["waiting"] == 0


def test_what_is_served(table_server):
    model = json.loads(ask(table_server, None, None, "/model", "GET")[1])
    assert model["target"] == "species" and model["classes"] == ["Adelie", "Chinstrap", "Gentoo"]
    columns = {column["name"]: column for column in model["columns"]}
    assert columns["island"]["categories"] == ["Biscoe", "Dream", "Torgersen"]
    assert 4000 < columns["body_mass_g"]["mean"] < 4400
    for language, word in (("ru", "Предсказание: species"), ("en", "Prediction: species")):
        headers = {"accept-language": language}
        assert f"<h1>{word}</h1>" in ask(table_server, None, None, "/", "GET", headers)[1]


def test_numbers_are_in_the_targets_unit_and_names_are_text(tmp_path):
    name = "<b>a & b</b>"
    with (tmp_path / "table.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["x", "$kind", name])
        rows.writerows([k, "pq"[k % 2], 5e6 + 1000 * k + 500 * (k % 2)] for k in range(100))
    words = ["train", str(tmp_path / "table.csv"), "--target", name, "--lr", "1e-2"]
    words += ["--epochs", "60", "--batch-size", "16", "--model", "logistic_regression"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    app = serve.application(Run.open(tmp_path / "run"), log=False)
    with web.Server(app, web.ServerOptions(port=0)).in_background() as server:
        answer = asked(server, {"x": 50, "$kind": "q"})[1]
        page = ask(server, None, None, "/", "GET")[1]
    assert answer.keys() == {"value"} and abs(answer["value"] - 5_050_500) < 1500
    assert "<h1>Prediction: &lt;b&gt;a &amp; b&lt;/b&gt;</h1>" in page and "<b>" not in page
