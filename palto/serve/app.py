"""A run's predictions over HTTP, and a page to drop a picture on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import string
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from palto import web
from palto.extras import require
from palto.serve.batching import Batcher, QueueFullError
from palto.serve.texts import TEXTS
from palto.train.run import Run

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

BODY_BYTES = 32 << 20  # a photograph is smaller
#: Types that say nothing (the last is what curl says); the contents show what it is.
ANY_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
DECODERS = 2
FILES = {"page.js": "text/javascript", "page.css": "text/css"}


def application(run: Run, *, batch_size: int = 32, queue: int = 512, log: bool = True) -> web.App:
    """The app of a run; everything is compiled when it is returned.

    Args:
        run: a run whose inputs are pictures, and whose outputs are classes.
        batch_size: how many pictures are computed together at most.
        queue: how many pictures may wait; further ones are refused with 503.
        log: print a line for each request.

    Raises:
        FileNotFoundError: nothing has been trained yet.
        ValueError: the run is not about the classes of pictures, or a number is too small.
        MissingExtraError: the extra `web` is not installed.
    """
    routing = require("starlette.routing", "web", "palto serve")
    classify = run.classifier()
    batcher = Batcher(classify, batch_size, queue)
    batcher.warm_up(np.zeros(classify.shape, np.uint8))
    service = _Service(run, classify.read, batcher)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        service.close()

    app = web.application(
        [
            routing.Route("/", service.page),
            *(routing.Route(f"/{name}", service.file) for name in FILES),
            routing.Route("/predict", service.predict, methods=["POST"]),
            routing.Route("/model", service.model),
            routing.Route("/health", service.health),
        ],
        lifespan=lifespan,
    )
    return _Log(app) if log else app


class _Service:
    def __init__(self, run: Run, read: Any, batcher: Batcher) -> None:
        self._run, self._read, self._batcher = run, read, batcher
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="palto-decode")
        self._responses: Any = require("starlette.responses", "web", "palto serve")
        self._refused: Any = require("starlette.exceptions", "web", "palto serve").HTTPException
        folder = resources.files("palto.serve") / "page"
        self._files = {name: (folder / name).read_text(encoding="utf-8") for name in FILES}
        self._page = string.Template((folder / "index.html").read_text(encoding="utf-8"))
        self._parameters = sum(p.size for p in run.model.parameters())

    async def predict(self, request: Request) -> Response:
        """The probabilities of a picture's classes, the likeliest first."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "image/svg+xml" or not (kind.startswith("image/") or kind in ANY_TYPES):
            raise self._refused(
                415, f"the body should be a picture (PNG, JPEG, WebP, ...), not {kind[:60]}"
            )
        try:
            self._batcher.reserve()  # before the body is read, so that memory is bounded, too
        except QueueFullError:
            raise self._refused(
                503, "too many pictures wait already; try again", {"retry-after": "1"}
            ) from None
        try:
            body = await request.body()
            if not body:
                raise self._refused(422, "the body is empty; it should be a picture")
            loop = asyncio.get_running_loop()
            try:
                picture = await loop.run_in_executor(self._decoders, self._read, io.BytesIO(body))
            except (ValueError, OSError) as error:
                raise self._refused(422, f"this picture cannot be read: {error}") from None
            found = await self._batcher.submit(picture)
        except require("starlette.requests", "web", "palto serve").ClientDisconnect:
            return self._responses.Response(status_code=400)  # type: ignore[no-any-return]
        finally:
            self._batcher.release()
        pairs = zip(self._run.classes, found.tolist(), strict=True)
        named = sorted(pairs, key=lambda pair: -pair[1])
        return self._json({"class": named[0][0], "probabilities": dict(named)})

    async def model(self, request: Request) -> Response:
        """What is served."""
        config = self._run.config
        return self._json(
            {
                "model": config.model,
                "data": config.data,
                "input": list(self._run.shape),
                "classes": list(self._run.classes),
                "parameters": self._parameters,
            }
        )

    async def health(self, request: Request) -> Response:
        """That it lives, and how many pictures wait."""
        return self._json({"status": "ok", "waiting": self._batcher.waiting})

    async def page(self, request: Request) -> Response:
        """The page, in Russian where the browser prefers it to English."""
        texts = TEXTS[web.preferred(request.headers.get("accept-language", ""), tuple(TEXTS))]
        headers = {"vary": "accept-language"}
        answer: Response = self._responses.HTMLResponse(
            self._page.substitute(texts), headers=headers
        )
        return answer

    async def file(self, request: Request) -> Response:
        """A file of the page."""
        name = request.url.path.removeprefix("/")
        answer: Response = self._responses.Response(self._files[name], media_type=FILES[name])
        return answer

    def _json(self, content: Any) -> Response:
        answer: Response = self._responses.JSONResponse(content)
        return answer

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown()
        self._batcher.close()


class _Log:
    """A line for each request: when, what, the status, how long it took."""

    def __init__(self, app: web.App) -> None:
        self._app = app

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watched(message: web.Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            took = (time.perf_counter() - started) * 1000
            path = ascii(scope["path"])[1:-1]
            clock = time.strftime("%H:%M:%S")
            print(f"{clock} {scope['method']} {path} {status} {took:.1f} ms", flush=True)
