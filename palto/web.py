"""What every server of Palto's does: it listens, says where, lets in whom it should, and ends.

A server shows an app (Starlette's, or any other ASGI app) to browsers. By default only this machine
reaches it. A web page from elsewhere that is open in the same browser is kept out all the same: by
the Host header (DNS rebinding) and by the Origin header (requests across sites).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import html
import ipaddress
import json
import logging
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode

from palto.extras import require

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FIRST_PORT = 8000
PORTS = 20  # that are tried, if none is asked for
LINGER = 2.0  # seconds in which what a refused client still sends is read and forgotten
ENDING = 3  # seconds that running answers get when the server ends
LAST_BYTES = 0.5  # seconds that bodies which are still coming get then
#: What browsers are told with each answer; an app's own header of the same name takes its place.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
TYPES = {"js": "text/javascript", "css": "text/css"}  # of a page's files
ENDED = "the server has been ended; ask again when it is back"
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.IGNORECASE)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where to listen, and whom to let in."""

    host: str = "127.0.0.1"
    """The address to listen on. Only this machine reaches the default; 0.0.0.0 lets in the network,
    phones too, if they have the whole address, which holds a token."""
    port: int | None = None
    """The port, 0 for any free one; by default the first free one from 8000 on."""
    token: bool = False
    """Ask for a token on this machine too, where other people may be logged in."""


class Server:
    """Shows an app at an address, from the moment it is made: then its address is known.

    Args:
        app: what answers; see `application`.
        options: where to listen, and whom to let in.
        body_bytes: the largest body of a request.
        body_seconds: how long a client may take to send a request's headers, and again its body.

    Attributes:
        token: what a client has to know, None if nothing. It is part of `addresses`; a browser that
            came with it gets a cookie, a program may send it as `Authorization: Bearer TOKEN`.
        port: the port that was taken.
        addresses: where it is reached, as a person would open it.

    Raises:
        MissingExtraError: the extra `web` is not installed.
        OSError: the port is taken, or the host is none of this machine's; the message says which.
        ValueError: the port is no port.
    """

    def __init__(
        self,
        app: App,
        options: ServerOptions | None = None,
        *,
        body_bytes: int = 1 << 20,
        body_seconds: float = 20.0,
    ) -> None:
        options = options or ServerOptions()
        self._socket = _listen(options.host, options.port)
        place, self.port = self._socket.getsockname()[:2]
        address = ipaddress.ip_address(place.split("%")[0])
        is_open = not address.is_loopback
        self.token = secrets.token_urlsafe(24) if is_open or options.token else None
        names = [_network_address(address)] if address.is_unspecified else []
        names += ["localhost"] if options.host == "localhost" else []
        names += ["127.0.0.1" if address.version == 4 else "::1"] if address.is_unspecified else []
        names = list(dict.fromkeys(names)) or [str(address)]
        query = "" if self.token is None else "?" + urlencode({"token": self.token})
        self.addresses = tuple(f"http://{_bracketed(n)}:{self.port}/{query}" for n in names)
        known = {options.host.lower(), "localhost"}
        if is_open:
            known |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        self._guard = Guard(
            app,
            knows=lambda name: name in known or _is_number(name, loopback=not is_open),
            token=self.token,
            cookie=f"palto-{self.port}",  # cookies do not tell ports apart
            body_bytes=body_bytes,
            body_seconds=body_seconds,
        )
        self._server = _uvicorn(self._guard, body_seconds)

    def run(self, what: str = "serving") -> None:
        """Say where it is, and answer until Ctrl-C, or until `kill` ends it in the same way.

        Answers under way are still given, for a moment; then this returns. It wants the program's
        main thread, which gets signals.
        """
        print(f"{what}: {self.addresses[0]}", flush=True)
        for address in self.addresses[1:]:
            print(f"{' ' * len(what)}  {address}", flush=True)
        print("Ctrl-C ends it.", flush=True)
        # uvicorn gives back each signal when it has ended: so to whoever called, who may tidy up.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                self._run()
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextlib.contextmanager
    def in_background(self) -> Iterator[Server]:
        """Answer in another thread, for as long as the block lasts."""
        thread = threading.Thread(target=self._run, name="palto-web", daemon=True)
        thread.start()
        while not self._server.started and thread.is_alive():
            time.sleep(0.005)
        try:
            yield self
        finally:
            self._server.should_exit = True
            thread.join()

    def close(self) -> None:
        """Give the port back, if the server has not run."""
        self._socket.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()


def _uvicorn(guard: Guard, head_seconds: float) -> Any:
    """A server of uvicorn's, but for two things.

    A connection is closed if the head of a request takes too long, as clients that are slow on
    purpose would fill the table of open files. The guard hears of the end as it begins, so that
    slow bodies do not hold it up.
    """
    uvicorn = require("uvicorn", "web", "a server")
    reading = require("h11", "web", "a server").IDLE  # the client's state, until a head is whole
    protocol: Any = require("uvicorn.protocols.http.h11_impl", "web", "a server").H11Protocol
    body = json.dumps({"error": f"the request was not complete after {head_seconds:g} seconds"})
    refusal = (
        "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}"
    ).encode()

    class Protocol(protocol):  # type: ignore[misc]
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.await_head(True)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.await_head(self.conn.their_state is reading)

        def connection_lost(self, exc: Exception | None) -> None:
            self.await_head(False)
            super().connection_lost(exc)

        def await_head(self, awaited: bool) -> None:
            if awaited and self.timer is None:
                self.timer = self.loop.call_later(head_seconds, self.give_up)
            elif not awaited and self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def give_up(self) -> None:
            if self.conn.trailing_data[0]:  # else nobody asks: a browser has connected in advance
                self.transport.write(refusal)
            self.transport.close()

    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            guard.end()
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            guard, http=Protocol, ws="none", log_config=None, log_level="error", access_log=False,
            server_header=False, proxy_headers=False, timeout_graceful_shutdown=ENDING,
        )
    )  # fmt: skip


def application(routes: Sequence[Any], **options: Any) -> Starlette:
    """A Starlette app whose errors are short JSON: `{"error": "there is no such page"}`.

    Args:
        routes: Starlette's routes.
        options: more of what `Starlette` takes.
    """
    applications = require("starlette.applications", "web", "a server")
    exceptions = require("starlette.exceptions", "web", "a server")
    responses = require("starlette.responses", "web", "a server")

    async def told(request: Request, error: Exception) -> Response:
        known = isinstance(error, exceptions.HTTPException)
        status = error.status_code if known else 500  # type: ignore[attr-defined]
        text = error.detail if known else "something went wrong here"  # type: ignore[attr-defined]
        headers = error.headers if known else None  # type: ignore[attr-defined]
        answer: Response = responses.JSONResponse({"error": text}, status, headers)
        return answer

    app: Starlette = applications.Starlette(
        routes=list(routes),
        exception_handlers={exceptions.HTTPException: told, Exception: told},
        **options,
    )
    return app


def page_routes(pages: Mapping[str, str], files: Mapping[str, str]) -> list[Any]:
    """Routes to a page and what it loads.

    Args:
        pages: its HTML by language; the one that the browser prefers is at "/".
        files: the text of each .css and .js, by the names under which they are found.
    """
    responses: Any = require("starlette.responses", "web", "a page")
    routing: Any = require("starlette.routing", "web", "a page")

    async def page(request: Request) -> Response:
        accepted = request.headers.get("accept-language", "")
        text = pages[preferred(accepted, tuple(pages))]
        answer: Response = responses.HTMLResponse(text, headers={"vary": "accept-language"})
        return answer

    def file(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            kind = TYPES[name.rpartition(".")[2]]
            found: Response = responses.Response(files[name], media_type=kind)
            return found

        return answer

    return [routing.Route("/", page), *(routing.Route(f"/{x}", file(x)) for x in files)]


def preferred(accepted: str, languages: Sequence[str]) -> str:
    """The language that a browser likes best, of those that there are; the first without a wish.

    Args:
        accepted: the header Accept-Language, such as "ru-RU,ru;q=0.9,en;q=0.5".
        languages: the short names of those that there are.
    """
    wishes = []
    for place, part in enumerate(accepted.split(",")):
        match = re.fullmatch(r"\s*([a-zA-Z]+)[^;]*(?:;\s*q=([0-9.]{1,5}))?\s*", part)
        if match and match[1].lower() in languages:
            wish = match[2] or "1"
            number = float(wish) if re.fullmatch(r"\d(\.\d*)?", wish) else 0.0
            wishes.append((-number, place, match[1].lower()))
    return min(wishes)[2] if wishes else languages[0]


class Guard:
    """Stands before an app: refuses what should not reach it, and adds headers to what it answers.

    Args:
        app: what answers.
        knows: whether a name in a Host header, in lower case, is the server's own.
        token: what clients have to know, if anything.
        cookie: the name of the cookie that keeps it.
        body_bytes: the largest body of a request, counted as it comes.
        body_seconds: how long a body may take.
    """

    def __init__(
        self,
        app: App,
        *,
        knows: Callable[[str], bool],
        token: str | None,
        cookie: str,
        body_bytes: int,
        body_seconds: float,
    ) -> None:
        self.app = app
        self._knows = knows
        self._token = token
        self._cookie = cookie
        self.body_bytes = body_bytes
        self.body_seconds = body_seconds
        self.is_ending = False
        self._waits: set[asyncio.Timeout] = set()
        self.refused: Any = require("starlette.exceptions", "web", "a server").HTTPException

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request as ASGI has it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # uvicorn is told to speak nothing else
            return
        exchange = _Exchange(scope, receive, send, self)
        try:
            self._check(scope, exchange)
            if await self._welcome(scope, exchange):
                return
            await self.app(scope, exchange.receive, exchange.send)
        except self.refused as error:
            await exchange.answer(error.status_code, {"error": error.detail})
        except asyncio.CancelledError:  # it took too long for a server that ends
            await exchange.answer(503, {"error": ENDED})
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await exchange.answer(500, {"error": "something went wrong here"})

    def end(self) -> None:
        """Wait only a moment more for what clients still have to send."""
        self.is_ending = True
        for wait in self._waits:
            self._shorten(wait)

    def _shorten(self, wait: asyncio.Timeout) -> None:
        end = asyncio.get_running_loop().time() + LAST_BYTES
        if not wait.expired():
            wait.reschedule(min(end, wait.when() or end))

    async def received(self, receive: Receive, deadline: float) -> Message:
        """What a client sends next, by the event loop's clock.

        Raises:
            TimeoutError: nothing has come until then, or the server ends.
        """
        async with asyncio.timeout_at(deadline) as wait:
            self._waits.add(wait)
            try:
                if self.is_ending:
                    self._shorten(wait)
                return await receive()
            finally:
                self._waits.discard(wait)

    def _check(self, scope: Scope, exchange: _Exchange) -> None:
        host = exchange.header("host")
        match = HOST.fullmatch(host)
        if match is None or not self._knows(match[1].strip("[]").lower()):
            raise self.refused(
                421, f"this server is not called {host[:100]!r}; open the address that it printed"
            )
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            self._check_origin(scope, exchange, host)
        length = exchange.header("content-length")
        if length.isdecimal() and int(length) > self.body_bytes:
            raise self.refused(413, exchange.too_large)

    def _check_origin(self, scope: Scope, exchange: _Exchange, host: str) -> None:
        """Programs send no Origin. A form of a page without a referrer sends the word null."""
        origin, site = exchange.header("origin"), exchange.header("sec-fetch-site")
        own = origin.lower() in ("", f"{scope['scheme']}://{host}".lower())
        if (origin, site) == ("null", "same-origin"):
            return
        if not own or site not in ("", "same-origin", "none"):
            raise self.refused(403, "this request comes from another site")

    async def _welcome(self, scope: Scope, exchange: _Exchange) -> bool:
        """Check the token; whether the answer is given already: a cookie for a new browser."""
        if self._token is None:
            return False
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and scope["method"] == "GET" and self._is_token(given):
            # A page that goes on by itself, as a redirection would still count as coming from the
            # site where the address was clicked, which gets no strict cookie.
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            target = "/" + quote(scope["path"].lstrip("/")) + (f"?{rest}" if rest else "")
            shown = html.escape(target)
            await exchange.answer(
                200,
                f'<!doctype html><meta charset="utf-8"><title>Palto</title>'
                f'<meta http-equiv="refresh" content="0;url={shown}"><a href="{shown}">Palto</a>',
                {"set-cookie": f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"},
            )
            return True
        bearer = exchange.header("authorization")
        if bearer.lower().startswith("bearer ") and self._is_token(bearer[7:].strip()):
            return False
        if self._is_token(_cookies(exchange.header("cookie")).get(self._cookie, "")):
            return False
        raise self.refused(401, "a token is needed: open the whole address that the server printed")

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return secrets.compare_digest(given.encode(), self._token.encode())


class _Exchange:
    """One request and its answer: the body is counted and timed, headers are added."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, guard: Guard) -> None:
        self._guard, self._receive, self._send = guard, receive, send
        self.too_large = f"a request may have at most {guard.body_bytes:,} bytes"
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._deadline: float | None = None
        self._count = 0
        has_body = self.header("content-length") not in ("", "0")
        self._is_read = not has_body and not self.header("transfer-encoding")
        self._started = False

    def header(self, name: str) -> str:
        """A header's value, "" without; one that comes twice is joined, and fits nothing."""
        wanted = name.encode()
        return ", ".join(value.decode("latin-1") for key, value in self._headers if key == wanted)

    async def receive(self) -> Message:
        """The next part of the request's body."""
        if self._is_read:
            return await self._receive()  # which waits until the client is gone
        guard = self._guard
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + guard.body_seconds
        try:
            message = await guard.received(self._receive, self._deadline)
        except TimeoutError:
            if guard.is_ending:
                raise guard.refused(503, ENDED) from None
            text = f"the request was not complete after {guard.body_seconds:g} seconds"
            raise guard.refused(408, text) from None
        self._note(message)
        if self._count > self._guard.body_bytes:
            raise self._guard.refused(413, self.too_large)
        return message

    def _note(self, message: Message) -> None:
        self._count += len(message.get("body", b""))
        self._is_read = not message.get("more_body", False)

    async def send(self, message: Message) -> None:
        """A part of the answer."""
        if message["type"] == "http.response.start":
            self._started = True
            headers = list(message.get("headers", ()))
            present = {key.lower() for key, _ in headers}
            more = {k.encode(): v.encode() for k, v in SECURITY_HEADERS.items()}
            headers += [(key, value) for key, value in more.items() if key not in present]
            if not self._is_read:
                await self._forget_the_rest()
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def _forget_the_rest(self) -> None:
        """Who is still sending does not hear an answer: let it finish, for a moment."""
        end = asyncio.get_running_loop().time() + LINGER
        with contextlib.suppress(TimeoutError):
            while not self._is_read and not self._guard.is_ending:
                self._note(await self._guard.received(self._receive, end))

    async def answer(
        self, status: int, content: Any, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole answer: HTML if it is text, else JSON; nothing if one has begun."""
        if self._started:
            return
        kind = "text/html" if isinstance(content, str) else "application/json"
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        all_headers = {
            "content-type": f"{kind}; charset=utf-8",
            "content-length": str(len(body)),
            **(headers or {}),
        }
        raw = [(key.encode(), value.encode()) for key, value in all_headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket that waits for connections.

    Raises:
        OSError: it cannot be had; the message says why.
        ValueError: the port is no port.
    """
    if port is not None and not 0 <= port <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535, got {port}")
    ports = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"there is no address {host!r} to listen on: {error.strerror}") from None
    family, _, _, _, place = min(found, key=lambda row: row[0] != socket.AF_INET)
    for number in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":  # there it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((place[0], number, *place[2:]))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and number != ports[-1]:
                continue
            taken = error.errno == errno.EADDRINUSE
            tried = f"port {number}" if port is not None else f"ports {ports[0]} to {ports[-1]}"
            reason = (
                "taken by another program: choose another one with --port, or --port 0 for any"
                if taken
                else f"not to be had on {host}: {error.strerror}"
            )
            raise OSError(f"{tried}: {reason}") from None
        return listener
    raise AssertionError("there is at least one port to try")


def _network_address(unspecified: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The address by which this machine's network knows it; nothing is sent to find it."""
    is_new = unspecified.version == 6
    family = socket.AF_INET6 if is_new else socket.AF_INET
    anywhere = "2001:db8::1" if is_new else "192.0.2.1"  # reserved for documentation
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((anywhere, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "::1" if is_new else "127.0.0.1"


def _is_number(name: str, *, loopback: bool) -> bool:
    """Whether a host is a plain address, which no name server can point elsewhere."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not loopback


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _cookies(header: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}
