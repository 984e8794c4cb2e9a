"""The app over HTTP, as somebody who means no good would use it."""

import http.client
import io
import json
import re
from collections import Counter

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

from palto import web
from palto.label.challenges import Challenges
from palto.label.server import SESSION, label_app


@pytest.fixture
def server(store, files):
    app = label_app(store, Challenges(store, seed=0), files, display=["r<b>", "g", "b"])
    with web.Server(app, web.ServerOptions(port=0), body_bytes=1 << 16).in_background() as running:
        yield running


class Visitor:
    """A browser, as far as cookies go."""

    def __init__(self, server, **headers):
        self.server, self.headers = server, headers
        self.page = self.ask("/", raw=True)

    def ask(self, path, content=None, *, raw=False, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        body = json.dumps(content).encode() if content is not None else body
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, {**self.headers, **headers})
        answer = connection.getresponse()
        text = answer.read()
        for kept in answer.headers.get_all("set-cookie") or ():
            if kept.startswith(SESSION):
                assert "HttpOnly" in kept and "samesite=strict" in kept.lower()
                self.headers["Cookie"] = kept.split(";")[0]
        connection.close()
        return (answer, text) if raw else (answer.status, json.loads(text))

    def challenge(self):
        status, given = self.ask("/api/challenge", {})
        assert status == 200
        return given


@pytest.fixture
def visitor(server):
    return Visitor(server)


def answer_to(given, **changes):
    return {"ticket": given["ticket"], "images": given["images"], "chosen": [], **changes}


def test_a_challenge_is_answered_once_by_its_session(server, visitor, store):
    given = visitor.challenge()
    assert given["asked"] in ("r<b>", "g", "b") and len(given["images"]) == 9
    other = Visitor(server)
    assert other.ask("/api/answer", answer_to(given))[0] == 409
    assert Visitor(server).challenge()["ticket"] != given["ticket"]
    status, result = visitor.ask("/api/answer", answer_to(given))
    assert status == 200 and result["passed"] is False  # nothing was chosen
    assert visitor.ask("/api/answer", answer_to(given)) == (
        409, {"error": "this challenge has been answered"},
    )  # fmt: skip
    assert len(store.answers(all_of_them=True).image) == 9


def test_forged_answers_change_nothing(visitor, store, files):
    given = visitor.challenge()
    shown = given["images"]
    other = next(number for number in files if number not in shown)
    for content, status in (
        (answer_to(given, images=[*shown[1:], other]), 409),
        (answer_to(given, images=[*shown, other]), 409),
        (answer_to(given, chosen=[other]), 409),
        (answer_to(given, images=[*shown, shown[0]]), 400),
        (answer_to(given, images="all"), 400),
        (answer_to(given, images=[str(number) for number in shown]), 400),
        (answer_to(given, images=[True] * 9), 400),
        (answer_to(given, chosen=None), 400),
        (answer_to(given, chosen=[{}]), 400),
        (answer_to(given, chosen=[10**30]), 409),
        (answer_to(given, ticket=7), 400),
        (answer_to(given, ticket="x' OR 1=1 --"), 409),
        (answer_to(given, label=5), 409),
        (answer_to(given, label=True), 400),
        ([], 400),
        ("text", 400),
    ):
        got, text = visitor.ask("/api/answer", content)
        assert got == status, (content, text)
        assert set(text) == {"error"} and "Traceback" not in text["error"]
    for body in (b"", b"{", b"\xff", b"[" * 60_000):
        assert visitor.ask("/api/answer", body=body)[0] == 400
    assert len(store.answers(all_of_them=True).image) == 0
    assert visitor.ask("/api/answer", answer_to(given))[0] == 200


def test_oversized_and_foreign_requests_are_refused(visitor):
    assert visitor.ask("/api/answer", body=b"x" * (1 << 17))[0] == 413
    foreign = {"Origin": "http://evil.example"}
    assert visitor.ask("/api/challenge", {}, **foreign)[0] == 403
    assert visitor.ask("/api/challenge", {}, Host="evil.example")[0] == 421


def test_without_a_session_nothing_is_given(server, visitor):
    visitor.headers["Cookie"] = f"{SESSION}=../../etc; other=1"
    assert visitor.ask("/api/challenge", {})[0] == 403


@pytest.mark.parametrize(
    "path",
    ["/../labels.palto.sqlite", "/%2e%2e/pyproject.toml", "/..%2fserver.py", "/server.py",
     "/image/../../x", "/image/-1", "/image/999999", "/image/1e3", "/image/" + "9" * 400,
     "/labels.palto.sqlite", "/page.js/..", "/image/00-red.png", "/index.html%00"],
)  # fmt: skip
def test_only_images_by_id_and_the_page_are_served(visitor, path):
    assert visitor.ask(path)[0] == 404


def test_images_are_small_pngs(visitor, files):
    answer, content = visitor.ask(f"/image/{next(iter(files))}", raw=True)
    assert answer.headers["content-type"] == "image/png" and content[:4] == b"\x89PNG"


def test_a_large_image_is_shown_small_and_whole(visitor, files):
    number, path = next(iter(files.items()))
    Image.new("RGB", (1600, 400), "red").save(path)
    _, content = visitor.ask(f"/image/{number}", raw=True)
    assert Image.open(io.BytesIO(content)).size == (320, 80)


def test_an_image_that_breaks_later_is_left_out(visitor, files):
    given = visitor.challenge()
    files[given["images"][0]].write_bytes(b"broken")
    status, text = visitor.ask(f"/image/{given['images'][0]}")
    assert (status, text) == (404, {"error": "this image cannot be read"})
    shown = Counter(n for _ in range(10) for n in visitor.challenge()["images"])
    assert given["images"][0] not in shown


@pytest.mark.parametrize(
    ("wish", "language"),
    [("ru-RU,ru;q=0.9,en;q=0.8", "ru"), ("en-GB,ru;q=0.5", "en"), ("de,fr;q=0.9", "en"),
     ("de, en;q=0.2, ru;q=0.7", "ru"), ("", "en"), ("ru;q=x,;;,q=,*", "en")],
)  # fmt: skip
def test_the_language_is_the_one_wished_for(server, wish, language):
    _, text = Visitor(server, **{"Accept-Language": wish}).page
    assert f'<html lang="{language}"'.encode() in text


def test_the_page_says_everything_in_both_languages(visitor):
    _, script = visitor.ask("/page.js", raw=True)
    texts = script.decode().split("const TEXTS", 1)[1].split("\n};", 1)[0]
    english, russian = (re.findall(r"\b(\w+): [(\"]", part) for part in texts.split("ru: {"))
    assert english == russian and len(english) > 10


def test_statistics_are_for_the_owner(visitor):
    given = visitor.challenge()
    visitor.ask("/api/answer", answer_to(given))
    status, told = visitor.ask("/api/statistics")
    assert status == 200 and told["answers"] == 9 and told["annotators"][0]["challenges"] == 1
