"""palto serve: answers are those of palto predict, whoever asks, however many at once."""

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

from palto import cli, serve, web
from palto.train.run import Run

from .helpers import KINDS, ask, encoded, picture


def test_hundreds_at_once_get_each_its_own_answer(server, folder, tmp_path):
    bodies = [encoded(picture(i % 3, 1000 + i)) for i in range(300)]
    for i, body in enumerate(bodies):
        (tmp_path / f"{i:03}.png").write_bytes(body)
    found = Run.open(folder).predict([tmp_path], complain=pytest.fail)
    wanted = [prediction.answer for prediction in found]
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda body: ask(server, body), bodies))
    classes = Run.open(folder).classes
    for (status, text), expected in zip(answers, wanted, strict=True):
        assert status == 200, text
        got = json.loads(text)["probabilities"]
        np.testing.assert_allclose([got[name] for name in classes], expected, atol=2e-6)
    assert len({tuple(row.tolist()) for row in wanted}) > 290  # so a swapped answer would show


@pytest.mark.parametrize(
    ("body", "kind", "status", "message"),
    [
        (b"", "image/png", 422, "empty"),
        (b"no picture", "image/png", 422, "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", 415, "svg"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png", 422, "web page"),
        (b"{}", "application/json", 415, "application/json"),
        (encoded(picture(0, 1), "JPEG")[:400], "image/jpeg", 422, "cannot be read"),
        (bytes((1 << 20) + 1), "image/png", 413, "at most"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(server, body, kind, status, message):
    got, text = ask(server, body, kind)
    assert got == status and message in json.loads(text)["error"]


def test_a_decompression_bomb_is_not_decoded(server):
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    status, text = ask(server, bomb)
    assert status == 422 and "pixels" in text


@pytest.mark.parametrize(
    "body",
    [
        encoded(picture(2, 5).convert("CMYK"), "JPEG"),
        encoded(picture(2, 5).convert("P")),
        encoded(picture(2, 5).convert("RGBA")),
        encoded(Image.fromarray(np.full((40, 40), 30_000, np.uint16))),
        encoded(picture(2, 5), "GIF", save_all=True, append_images=[picture(0, 6)]),
        encoded(picture(2, 5), "WEBP"),
    ],
)
def test_kinds_of_pictures_are_read_as_by_predict(server, folder, tmp_path, body):
    (tmp_path / "x.png").write_bytes(body)
    run = Run.open(folder)
    [(_, _, wanted)] = run.predict([tmp_path / "x.png"], complain=pytest.fail)
    status, text = ask(server, body, None)
    got = json.loads(text)["probabilities"]
    assert status == 200
    np.testing.assert_allclose([got[name] for name in run.classes], wanted, atol=2e-6)


def test_clients_that_leave_do_not_hurt_the_others(server):
    body = encoded(picture(1, 3))
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    for part in (body, body[:100], b""):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(head.encode() + part)
    status, text = ask(server, body)
    assert status == 200 and json.loads(text)["class"] == "green"


def test_one_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    for k, kind in enumerate(KINDS):
        connection.request("POST", "/predict", encoded(picture(k, 9)))
        assert json.loads(connection.getresponse().read())["class"] == kind
    connection.close()


def test_what_is_served(server):
    status, text = ask(server, None, None, "/model", "GET")
    assert status == 200 and json.loads(text)["classes"] == list(KINDS)
    assert json.loads(ask(server, None, None, "/health", "GET")[1])["status"] == "ok"
    for language, word in (("ru-RU,ru;q=0.9,en;q=0.8", "Что на картинке"), ("de,en", "Choose")):
        headers = {"accept-language": language}
        assert word in ask(server, None, None, "/", "GET", headers)[1]


def test_batches_hold_what_came_meanwhile_and_the_queue_is_bounded():
    sizes, first = [], threading.Event()

    def compute(batch):
        sizes.append(len(batch))
        first.wait(10)
        if (batch < 0).any():
            raise RuntimeError("broken")
        return batch * 2

    async def work():
        batcher = serve.Batcher(compute, 6, 10)
        for _ in range(10):
            batcher.reserve()
        with pytest.raises(serve.QueueFullError):
            batcher.reserve()
        tasks = [asyncio.create_task(batcher.submit(np.float32([0])))]
        await asyncio.sleep(0.05)
        tasks += [asyncio.create_task(batcher.submit(np.float32([i]))) for i in range(1, 10)]
        await asyncio.sleep(0.05)
        tasks[3].cancel()
        first.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[3], asyncio.CancelledError)
        assert [float(x[0]) for i, x in enumerate(found) if i != 3] == [
            2.0 * i for i in range(10) if i != 3
        ]
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.submit(np.float32([-1]))
        assert float((await batcher.submit(np.float32([4])))[0]) == 8  # it goes on
        batcher.close()

    asyncio.run(work())
    assert sizes[:3] == [1, 6, 4]


def test_a_full_queue_says_when_to_come_again(folder):
    app = serve.application(Run.open(folder), batch_size=1, queue=1, log=False)
    with web.Server(app, web.ServerOptions(port=0)).in_background() as server:
        body = encoded(picture(0, 1).resize((1500, 1500)))
        with ThreadPoolExecutor(20) as clients:
            answers = list(clients.map(lambda _: ask(server, body)[0], range(60)))
    assert set(answers) == {200, 503}


def test_slow_uploads_take_no_place_in_the_queue(folder):
    app = serve.application(Run.open(folder), queue=2, log=False)
    body = encoded(picture(1, 3))
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with web.Server(app, web.ServerOptions(port=0)).in_background() as server:
        slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
        for client in slow:
            client.sendall(head.encode() + body[:-1])
        assert [ask(server, body)[0] for _ in range(20)] == [200] * 20
        for client in slow[:2]:
            client.sendall(body[-1:])
            assert b" 200 " in client.recv(100)
        for client in slow:
            client.close()


def test_bodies_that_are_held_are_bounded(folder, monkeypatch):
    app = serve.application(Run.open(folder), log=False)
    monkeypatch.setattr(serve.app, "HELD_BYTES", 100_000)
    body = encoded(picture(1, 3))
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n"
    with web.Server(app, web.ServerOptions(port=0)).in_background() as server:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head + bytes(99_500))
            while (answer := ask(server, body))[0] == 200:  # until so much has been read
                pass
            assert answer[0] == 503 and "try again" in answer[1]
        while (answer := ask(server, body))[0] == 503:  # until it is noticed that it has gone
            pass
        assert answer[0] == 200


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals for one process")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_in_good_order_under_load(folder, how):
    words = [sys.executable, "-m", "palto.cli", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    port = int(line.rsplit(":", 1)[1].strip().strip("/"))
    bodies = [encoded(picture(k, 1)) for k in range(3)]
    started = threading.Barrier(9)

    def client(k):
        """Ask until nobody answers any more; how many answers came."""
        count = 0
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(connection):
                try:
                    connection.request("POST", "/predict", bodies[k % 3])
                    answer = connection.getresponse()
                except OSError:  # refused, or its connection was not taken up any more
                    return count
                text = answer.read()  # what has begun comes whole
            if answer.status == 503:  # its body came too late
                assert b"has been ended" in text
                return count
            assert answer.status == 200, text
            assert json.loads(text)["class"] == KINDS[k % 3]
            count += 1
            if count == 5:
                started.wait(30)

    with ThreadPoolExecutor(8) as clients:
        counts = [clients.submit(client, k) for k in range(8)]
        started.wait(30)
        process.send_signal(how)
        out, err = process.communicate(timeout=20)
        total = sum(count.result() for count in counts)
    assert (process.returncode, err) == (0, "")
    assert out.count("POST /predict 200") == total >= 40


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    said = capsys.readouterr().out
    for part in ("palto serve runs/my-run", "--batch-size", "--host", "curl", "--quiet"):
        assert part in said
