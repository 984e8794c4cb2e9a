"""Servers: whom they let in, what they refuse, how they begin and end."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("uvicorn", reason="the extra `web` is not installed")

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from palto import web

LIMIT = 1000


async def say(request):
    return JSONResponse({"query": dict(request.query_params)})


async def take(request):
    body = await request.body()
    return JSONResponse({"bytes": len(body)})


async def ignore(request):
    return JSONResponse({"ignored": True})


async def break_down(request):
    raise RuntimeError("a secret path")


async def refuse(request):
    raise HTTPException(409, "already done")


async def count(request):
    async def numbers():
        for n in range(3):
            yield f"{n}\n"

    return StreamingResponse(numbers(), media_type="text/plain")


def app():
    return web.application(
        [
            Route("/", say),
            Route("/take", take, methods=["POST"]),
            Route("/ignore", ignore, methods=["POST"]),
            Route("/break", break_down),
            Route("/refuse", refuse),
            Route("/count", count),
        ]
    )


def serve(**options):
    server = web.Server(
        app(), web.ServerOptions(port=0, **options), body_bytes=LIMIT, body_seconds=0.3
    )
    return server.in_background()


@pytest.fixture(scope="module")
def server():
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def guarded():
    with serve(token=True) as running:
        yield running


def ask(server, path="/", method="GET", body=None, headers=None):
    """The status, the headers and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def send_raw(server, data, wait=5.0):
    """What comes back on a plain connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as plain:
        plain.sendall(data)
        received = b""
        try:
            while part := plain.recv(4096):
                received += part
        except (TimeoutError, ConnectionResetError):
            pass
        return received


# --- Answers -------------------------------------------------------------------------------------


def test_an_answer_has_the_security_headers_and_names_no_program(server):
    status, headers, text = ask(server)
    assert (status, json.loads(text)) == (200, {"query": {}})
    for name, value in web.SECURITY_HEADERS.items():
        assert headers[name] == value
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    assert "server" not in headers


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/nowhere", 404, "Not Found"),
        ("/take", 405, "Method Not Allowed"),
        ("/refuse", 409, "already done"),
        ("/break", 500, "something went wrong here"),
    ],
)
def test_errors_are_short_json(server, path, status, error):
    got, headers, text = ask(server, path)
    assert (got, json.loads(text)) == (status, {"error": error})
    assert headers["x-content-type-options"] == "nosniff"


def test_a_stream_comes_whole_and_at_once(server):
    started = time.monotonic()
    assert ask(server, "/count")[2] == "0\n1\n2\n"
    assert time.monotonic() - started < web.LINGER


def test_an_app_that_is_not_starlettes_is_guarded_too(caplog):
    async def plain(scope, receive, send):
        raise RuntimeError("a secret path")

    with web.Server(plain, web.ServerOptions(port=0)).in_background() as running:
        status, _, text = ask(running)
    assert status == 500 and "secret" not in text
    assert "a secret path" in caplog.text  # whoever runs the server wants to know


# --- Whom it lets in -----------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1234", "LOCALHOST", "[::1]:80"])
def test_its_own_names_are_welcome(server, host):
    assert ask(server, headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "192.168.1.1", "localhost@evil.example", "", "a b"],
)
def test_other_names_are_refused(server, host):
    assert ask(server, headers={"Host": host})[0] in (400, 421)


def test_two_hosts_or_none_are_refused(server):
    two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert b" 400 " in send_raw(server, two)[:20]
    assert b" 421 " in send_raw(server, b"GET / HTTP/1.0\r\n\r\n")[:20]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_posts_from_other_sites_are_refused(server, headers, status):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    assert ask(server, "/take", "POST", b"abc", headers)[0] == status


def test_a_token_opens_once_and_a_cookie_goes_on(guarded):
    assert ask(guarded)[0] == 401
    assert ask(guarded, "/?token=wrong")[0] == 401
    status, headers, page = ask(guarded, f"/?a=1&token={guarded.token}")
    assert status == 200 and 'content="0;url=/?a=1"' in page
    kept = headers["set-cookie"]
    assert "HttpOnly" in kept and "SameSite=Strict" in kept
    cookie = {"Cookie": kept.split(";")[0]}
    assert json.loads(ask(guarded, headers=cookie)[2]) == {"query": {}}
    assert ask(guarded, headers={"Cookie": "palto-1=x; broken"})[0] == 401
    assert guarded.addresses == (f"http://127.0.0.1:{guarded.port}/?token={guarded.token}",)


def test_a_program_sends_the_token_itself(guarded):
    right = {"Authorization": f"Bearer {guarded.token}"}
    assert ask(guarded, "/take", "POST", b"abc", right)[0] == 200
    assert ask(guarded, headers={"Authorization": "Bearer é"})[0] == 401
    assert ask(guarded, f"/take?token={guarded.token}", "POST", b"abc")[0] == 401


def test_the_page_that_sets_the_cookie_leads_nowhere_else(guarded):
    for path in ("//evil.example/", "/%5Cevil.example", "/%22%3E%3Cscript%3E"):
        page = ask(guarded, f"{path}?token={guarded.token}")[2]
        target = page.split('href="')[1].split('"')[0]
        assert target.startswith("/") and not target.startswith("//")
        assert "\\" not in page and "<script" not in page


def test_the_network_is_let_in_with_a_token_only():
    with serve(host="0.0.0.0") as running:
        assert running.token is not None
        assert all(running.token in address for address in running.addresses)
        assert ask(running)[0] == 401
        right = {"Authorization": f"Bearer {running.token}"}
        assert ask(running, headers=right)[0] == 200
        assert ask(running, headers={**right, "Host": "192.168.1.5:8000"})[0] == 200
        assert ask(running, headers={**right, "Host": "evil.example"})[0] == 421


# --- Bodies --------------------------------------------------------------------------------------


def test_a_body_within_the_limit_arrives(server):
    assert json.loads(ask(server, "/take", "POST", b"x" * LIMIT)[2]) == {"bytes": LIMIT}


@pytest.mark.parametrize("path", ["/take", "/ignore"])
def test_a_long_body_is_refused_by_its_length(server, path):
    status, _, text = ask(server, path, "POST", b"x" * 1_000_000)
    assert status == 413 and "1,000 bytes" in json.loads(text)["error"]


def test_a_body_without_a_length_is_counted(server):
    parts = (b"x" * 400 for _ in range(50))
    assert ask(server, "/take", "POST", parts)[0] == 413


def test_an_endless_body_ends(server):
    head = b"POST /take HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    stop = threading.Event()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
        plain.sendall(head)

        def pour():
            try:
                while not stop.is_set():
                    plain.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
            except OSError:
                pass

        pouring = threading.Thread(target=pour)
        pouring.start()
        started = time.monotonic()
        pouring.join(web.LINGER + 8)
        stop.set()
        assert not pouring.is_alive() and time.monotonic() - started < web.LINGER + 8


def test_a_slow_body_is_refused(server):
    head = b"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc"
    answer = send_raw(server, head)
    assert b" 408 " in answer[:20] and b"connection: close" in answer.lower()


def test_dripping_bodies_hold_up_nobody_and_end(server):
    head = b"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    stop, answers = threading.Event(), []

    def drip():
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            plain.sendall(head)
            try:
                while not stop.wait(0.02):
                    plain.sendall(b"x")
            except OSError:
                pass  # it was ended

    def listen():
        answers.append(send_raw(server, head + b"abc"))

    clients = [threading.Thread(target=target) for target in [drip] * 20 + [listen]]
    for client in clients:
        client.start()
    for _ in range(50):
        assert ask(server, "/take", "POST", b"abc")[0] == 200
    clients[-1].join(20)
    assert b" 408 " in answers[0] and b"not complete after 0.3 seconds" in answers[0]
    stop.wait(0.1)
    for client in clients[:-1]:
        client.join(20)
        assert not client.is_alive()
    stop.set()


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_slow_head_is_refused(server, before):
    head = b"GET / HTTP/1.1\r\nHost: localh"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
        plain.sendall(before)
        if before:
            assert b" 200 " in plain.recv(4096)
        received = b""
        for k in range(len(head)):
            try:
                plain.sendall(head[k : k + 1])
            except OSError:
                break
            time.sleep(0.02)
        try:
            while part := plain.recv(4096):
                received += part
        except ConnectionResetError:
            pass
    assert b"HTTP/1.1 408 " in received and received.endswith(b'complete after 0.3 seconds"}')


def test_a_connection_that_asks_nothing_is_closed_without_a_word(server):
    assert send_raw(server, b"") == b""


# --- Beginning and ending ------------------------------------------------------------------------


def test_a_taken_port_is_an_error_or_the_next_one_is_used(server, monkeypatch):
    with pytest.raises(OSError, match=rf"port {server.port}: taken.*--port"):
        web.Server(app(), web.ServerOptions(port=server.port))
    monkeypatch.setattr(web, "FIRST_PORT", server.port)
    second = web.Server(app())
    assert second.port != server.port
    second.close()


@pytest.mark.parametrize(("host", "port"), [("no such host", 0), ("192.0.2.1", 0)])
def test_a_wrong_host_is_an_error(host, port):
    with pytest.raises(OSError, match=r"no address|not to be had"):
        web.Server(app(), web.ServerOptions(host=host, port=port))


def test_a_wrong_port_is_an_error():
    with pytest.raises(ValueError, match="0 to 65535"):
        web.Server(app(), web.ServerOptions(port=70000))


PROGRAM = """
import asyncio
from starlette.responses import JSONResponse
from starlette.routing import Route
from palto import web

async def slow(request):
    print("asked", flush=True)
    body = await request.body()
    await asyncio.sleep(float(request.query_params["seconds"]))
    return JSONResponse(len(body))

web.ENDING, web.LAST_BYTES = {patience}
app = web.application([Route("/slow", slow, methods=["POST"])])
web.Server(app, web.ServerOptions(port=0)).run("a test")
print("ended", flush=True)
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals for one process")


class Program:
    """A server in a process of its own."""

    def __init__(self, ending, last_bytes):
        program = PROGRAM.format(patience=(ending, last_bytes))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()
        assert line.startswith("a test: http://127.0.0.1:")
        self.port = int(line.rsplit(":", 1)[1].rstrip("/\n"))

    def connect(self, seconds, length, body):
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        head = f"POST /slow?seconds={seconds} HTTP/1.1\r\nHost: localhost\r\n"
        plain.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
        while self.process.stdout.readline() != "asked\n":
            pass
        return plain

    def end(self, how):
        """The exit status, what was printed, what was complained about."""
        self.process.send_signal(how)
        rest, errors = self.process.communicate(timeout=30)
        return self.process.returncode, rest, errors

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def whole(plain):
    """All that comes until the connection ends."""
    with plain:
        received = b""
        while part := plain.recv(4096):
            received += part
        return received


@posix
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_end_gives_answers_under_way_and_waits_for_nobody(how):
    with Program(ending=60, last_bytes=60) as program:  # it waits only while there is something
        silent = socket.create_connection(("127.0.0.1", program.port), timeout=20)
        staying = program.connect(0, 1, b"x")
        assert b" 200 " in staying.recv(100)
        late = program.connect(0.1, 1000, b"x" * 999)  # its last byte comes after the signal
        asked = [program.connect(2.0, 3, b"abc") for _ in range(20)]
        program.process.send_signal(how)
        with pytest.raises(OSError):  # soon nobody listens
            while True:
                socket.create_connection(("127.0.0.1", program.port), timeout=20).close()
                time.sleep(0.01)
        late.sendall(b"x")
        for plain in asked:
            assert whole(plain).endswith(b"\r\n\r\n3")
        assert whole(late).endswith(b"\r\n\r\n1000")
        rest, errors = program.process.communicate(timeout=30)
        assert (program.process.returncode, errors) == (0, "")
        assert rest.endswith("ended\n")
        silent.close()
        staying.close()


@posix
def test_what_takes_too_long_is_cut_off_by_the_end_with_a_word():
    with Program(ending=1, last_bytes=0.2) as program:
        endless = program.connect(1000, 3, b"abc")
        dripping = program.connect(0, 1000, b"abc")
        code, rest, errors = program.end(signal.SIGINT)
        assert code == 0 and rest.endswith("ended\n") and "Traceback" not in errors
        for plain in (endless, dripping):
            refused = whole(plain)
            assert refused.startswith(b"HTTP/1.1 503 ") and b"has been ended" in refused
