"""palto chat --web: each gets the answer to the own conversation, whoever asks meanwhile."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

from palto import web
from palto.chat import server as chat
from palto.chat.generate import Answer, Options, Reader, fit

OPTIONS = Options(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def server(found):
    app = chat.application(found, Reader(found, 200), OPTIONS, slots=2, queue=10)
    options = web.ServerOptions(port=0)
    with web.Server(app, options, body_bytes=chat.BODY_BYTES).in_background() as running:
        yield running


def ask(server, body, path="/v1/chat/completions", method="POST", kind="application/json"):
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = json.dumps(body) if isinstance(body, dict | list) else body
    try:
        connection.request(method, path, body, {"content-type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def said(text, *earlier):
    turns = [*earlier, text]
    return [
        {"role": "assistant" if number % 2 else "user", "content": content}
        for number, content in enumerate(turns)
    ]


def alone(found, reader, turns, **options):
    """The answer where nobody else asks."""
    options = Options(**{"temperature": 0, "max_tokens": 12, **options})
    prompt = fit(found, turns, 200, options.max_tokens)
    answer = Answer(found, reader, reader.new_slot(), prompt.tokens, options)
    list(answer)
    return answer


def events(text):
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    return [b.removeprefix("data: ") for b in blocks if not b.startswith(":")]


def test_an_answer_as_openai_has_it(server, found, reader):
    turns = said("Hello")
    wanted = alone(found, reader, turns)
    status, text = ask(server, {"model": "any", "messages": turns})
    answer = json.loads(text)
    assert status == 200
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": wanted.text}
    assert choice["finish_reason"] == wanted.reason
    usage = answer["usage"]
    assert usage["completion_tokens"] == wanted.count
    assert usage["prompt_tokens"] == len(found.tokenizer.prompt(turns))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_an_answer_in_pieces(server, found, reader):
    turns = said("été 🙂, how?")
    wanted = alone(found, reader, turns)
    status, text = ask(server, {"messages": turns, "stream": True})
    assert status == 200
    *pieces, end = events(text)
    assert end == "[DONE]"
    pieces = [json.loads(piece) for piece in pieces]
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert len({piece["id"] for piece in pieces}) == 1
    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == wanted.text
    assert [piece["choices"][0]["finish_reason"] for piece in pieces[:-1]] == [None] * (
        len(pieces) - 1
    )
    assert pieces[-1]["choices"][0]["finish_reason"] == wanted.reason
    assert pieces[-1]["palto"]["dropped_turns"] == 0


def test_many_at_once_get_each_the_own_answer(server, found, reader):
    questions = [
        said(f"{word} {number}") for word in ("Hello", "Paris", "été") for number in (1, 2)
    ]
    questions += [said("and you?", f"Hello {number}", "fine") for number in range(4)]
    wanted = [alone(found, reader, turns).text for turns in questions]
    assert len(set(wanted)) == len(wanted)  # so a swapped answer would show
    with ThreadPoolExecutor(len(questions)) as people:
        answers = list(people.map(lambda turns: ask(server, {"messages": turns}), questions))
    for (status, text), expected in zip(answers, wanted, strict=True):
        assert status == 200, text
        assert json.loads(text)["choices"][0]["message"]["content"] == expected


def test_a_conversation_goes_on_where_it_was(server, found):
    first = said("I am a new conversation")
    text = ask(server, {"messages": first})[1]
    reply = json.loads(text)["choices"][0]["message"]
    ask(server, {"messages": said("somebody else")})
    longer = [*first, reply, {"role": "user", "content": "more"}]
    usage = json.loads(ask(server, {"messages": longer})[1])["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached >= len(found.tokenizer.prompt(first))


def test_options(server, found, reader):
    turns = said("Hello")
    for options in (
        {"max_tokens": 3}, {"temperature": 1.5, "seed": 5, "top_k": 9, "top_p": 0.8},
        {"max_tokens": 12, "min_p": 0.1, "temperature": 0.5, "seed": 1},
        {"max_tokens": 12, "repetition_penalty": 1.5},
    ):  # fmt: skip
        status, text = ask(server, {"messages": turns, **options})
        wanted = alone(found, reader, turns, **options)
        assert status == 200
        assert json.loads(text)["choices"][0]["message"]["content"] == wanted.text
    long = alone(found, reader, turns).text
    for stop in (long[3:5], [long[3:5], "never"]):
        text = ask(server, {"messages": turns, "stop": stop})[1]
        assert json.loads(text)["choices"][0]["message"]["content"] == long[: long.find(long[3:5])]
    text = ask(server, {"messages": turns, "max_completion_tokens": 2})[1]
    assert json.loads(text)["usage"]["completion_tokens"] == 2
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"text": "lo"}]}]
    text = ask(server, {"messages": parts})[1]
    assert json.loads(text)["choices"][0]["message"]["content"] == long


def test_a_long_conversation_loses_its_beginning_and_says_so(server):
    turns = said("and now?", *["many words " * 4] * 40)
    status, text = ask(server, {"messages": turns})
    assert status == 200
    assert json.loads(text)["palto"]["dropped_turns"] > 0
    status, text = ask(server, {"messages": said("word " * 3000)})
    assert status == 422
    assert "too long" in json.loads(text)["error"]


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 422, "no JSON"),
        (b"{", 422, "no JSON"),
        (b"[" * 100_000, 422, "no JSON"),
        (b"\xff\xfe", 422, "no JSON"),
        (b"[]", 422, "object with messages"),
        ({}, 422, "messages should be a list"),
        ({"messages": []}, 422, "at least one"),
        ({"messages": [7]}, 422, "turn 1"),
        ({"messages": HI * 20_000}, 413, "at most"),
        ({"messages": HI * 11_000}, 422, "at most 10,000 turns"),
        ({"messages": [{"role": "root", "content": "x"}]}, 422, "turn 1 should have a role"),
        ({"messages": [*HI, {"role": "user", "content": None}]}, 422, "turn 2"),
        ({"messages": [*HI, {"role": "user", "content": [{"image_url": "x"}]}]}, 422, "turn 2"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 422, "no Unicode"),
        ({"messages": [*HI, {"role": "assistant", "content": "x"}]}, 422, "the user's"),
        ({"messages": HI, "temperature": "hot"}, 422, "temperature should be a number"),
        ({"messages": HI, "temperature": -1}, 422, "temperature should be"),
        (b'{"messages": [{"role": "user", "content": "x"}], "top_p": NaN}', 422, "top_p"),
        (b'{"messages": [{"role": "user", "content": "x"}], "min_p": 1e999}', 422, "min_p"),
        ({"messages": HI, "top_k": 1.5}, 422, "top_k should be a whole number"),
        ({"messages": HI, "max_tokens": 0}, 422, "max_tokens"),
        ({"messages": HI, "max_tokens": True}, 422, "max_tokens"),
        ({"messages": HI, "seed": -1}, 422, "seed"),
        ({"messages": HI, "stop": 7}, 422, "stop should be"),
        ({"messages": HI, "stop": ["x"] * 9}, 422, "stop should be"),
        ({"messages": HI, "stop": "x" * 1000}, 422, "stop should be"),
        ({"messages": HI, "n": 3}, 422, "n should be 1"),
        (bytes(chat.BODY_BYTES + 1), 413, "at most"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(server, body, status, message):
    got, text = ask(server, body)
    assert message in json.loads(text)["error"]
    assert got == status


def test_other_kinds_and_ways(server):
    assert ask(server, b"hello", kind="text/plain")[0] == 415
    assert ask(server, None, method="GET")[0] == 405
    assert ask(server, None, "/nothing", "GET")[0] == 404
    status, text = ask(server, None, "/v1/models", "GET")
    assert (status, json.loads(text)["data"][0]["id"]) == (200, "tiny")
    assert '<label for="message">' in ask(server, None, "/", "GET")[1]


def waiting(server):
    return json.loads(ask(server, None, "/health", "GET")[1])["waiting"]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_clients_that_leave_make_room(server):
    body = json.dumps({"messages": HI, "stream": True, "max_tokens": 150, "temperature": 2.0})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    for part in (body, body[:20], ""):
        for _ in range(6):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(head.encode() + part.encode())
                if part == body:
                    client.recv(100)
    until(lambda: waiting(server) == 0)
    assert ask(server, {"messages": HI})[0] == 200


def test_the_queue_is_bounded_and_turns_are_fair(found):
    """Steps are counted: two who ask at once are answered in turn, further ones wait or go."""
    reader = Reader(found, 200)
    order, gate = [], threading.Event()
    read = reader.read

    def counted(slot, tokens):
        gate.wait(30)
        order.append(id(slot))
        return read(slot, tokens)

    app = chat.application(found, reader, OPTIONS, slots=2, queue=1)
    reader.read = counted
    with web.Server(app, web.ServerOptions(port=0)).in_background() as server:
        with ThreadPoolExecutor(3) as people:
            asked = [
                people.submit(ask, server, {"messages": said(f"number {number}")})
                for number in range(3)
            ]
            until(lambda: waiting(server) == 3)
            status, text = ask(server, {"messages": HI})
            assert status == 503
            assert "try again" in json.loads(text)["error"]
            gate.set()
            assert {answer.result()[0] for answer in asked} == {200}
        begin = order[:20]
        assert max(begin.count(slot) for slot in set(begin)) <= 12
        assert len(set(order)) == 2
        assert ask(server, {"messages": HI})[0] == 200


def test_slots_and_queues(found):
    for arguments in ({"slots": 0}, {"queue": -1}):
        with pytest.raises(ValueError, match="must be at least"):
            chat.Desk(found, None, **{"slots": 1, "queue": 1, **arguments})
