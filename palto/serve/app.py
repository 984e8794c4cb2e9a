"""A run's predictions over HTTP, and a page to try it."""

from __future__ import annotations

import asyncio
import contextlib
import html
import string
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import TYPE_CHECKING, Any

from palto import web
from palto.extras import require
from palto.serve.batching import Batcher, QueueFullError
from palto.serve.inputs import Inputs, Pictures, Question, inputs_of
from palto.serve.texts import EVERYWHERE
from palto.train.inference import Predictor
from palto.train.run import Run

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

BODY_BYTES = Pictures.body_bytes
HELD_BYTES = 8 * BODY_BYTES  # of bodies that are being read
READERS = 2


def application(run: Run, *, batch_size: int = 32, queue: int = 512, log: bool = True) -> web.App:
    """The app of a run; everything is compiled when it is returned.

    Args:
        run: a run on classes of pictures, or on a table.
        batch_size: how many inputs are computed together at most.
        queue: how many inputs may wait; further ones are refused with 503.
        log: print a line for each request.

    Raises:
        FileNotFoundError: nothing has been trained yet.
        ValueError: the run can be asked about neither pictures nor rows of a table, or a number is
            too small.
        MissingExtraError: the extra `web` is not installed.
    """
    routing = require("starlette.routing", "web", "palto serve")
    predictor = run.predictor()
    batcher = Batcher(predictor, batch_size, queue)
    batcher.warm_up(predictor.blank)
    service = _Service(run, predictor, inputs_of(predictor, queue), batcher)

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        service.close()

    app = web.application(
        [
            *web.page_routes(service.pages, service.files),
            routing.Route("/predict", service.predict, methods=["POST"]),
            routing.Route("/model", service.model),
            routing.Route("/health", service.health),
        ],
        lifespan=lifespan,
    )
    return _Log(app) if log else app


class _Service:
    def __init__(self, run: Run, predictor: Predictor, inputs: Inputs, batcher: Batcher) -> None:
        self._inputs, self._batcher, self._describe = inputs, batcher, predictor.describe
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="palto-read")
        self._held = 0
        self._responses: Any = require("starlette.responses", "web", "palto serve")
        self._refused: Any = require("starlette.exceptions", "web", "palto serve").HTTPException
        folder = resources.files("palto.serve") / "page"
        names = ("page.css", "page.js", f"{inputs.page}.js")
        self.files = {name: (folder / name).read_text(encoding="utf-8") for name in names}
        self.pages = {}
        for language, own in inputs.texts.items():
            texts = {k: html.escape(x) for k, x in (EVERYWHERE[language] | own).items()}
            question, page = (
                string.Template((folder / f"{name}.html").read_text(encoding="utf-8"))
                for name in (inputs.page, "index")
            )
            texts |= {"question": question.substitute(texts), "script": f"{inputs.page}.js"}
            self.pages[language] = page.substitute(texts)
        self._model = {
            "model": run.config.model,
            "data": run.config.data,
            "input": list(run.shape),
            "classes": list(run.classes),
            "parameters": sum(p.size for p in run.model.parameters()),
            **inputs.about,
        }

    async def predict(self, request: Request) -> Response:
        """The answer to what the body asks."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if not self._inputs.takes(kind):
            raise self._refused(415, f"the body should be {self._inputs.wanted}, not {kind[:60]}")
        places = 0
        try:
            with self._holding() as body:
                await self._fill(body, request)
                # Only what has come whole takes a place, so that slow clients keep out nobody.
                places += self._reserve(1)
                asked = await self._read(bytes(body))
            places += self._reserve(len(asked.inputs) - 1)
            found = await asyncio.gather(*map(self._batcher.submit, asked.inputs))
        except require("starlette.requests", "web", "palto serve").ClientDisconnect:
            return self._responses.Response(status_code=400)  # type: ignore[no-any-return]
        finally:
            self._batcher.release(places)
        answers = [
            self._describe(answer) | ({"notes": notes} if notes else {})
            for answer, notes in zip(found, asked.notes, strict=True)
        ]
        return self._json(answers if asked.is_list else answers[0])

    @contextlib.contextmanager
    def _holding(self) -> Iterator[bytearray]:
        """A body, whose bytes are counted among those that are held, until it is read."""
        body = bytearray()
        try:
            yield body
        finally:
            self._held -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        async for part in request.stream():
            body += part
            self._held += len(part)
            if len(body) > self._inputs.body_bytes:
                limit = self._inputs.body_bytes
                raise self._refused(413, f"a request may have at most {limit:,} bytes")
            if self._held > HELD_BYTES:
                raise self._busy()

    async def _read(self, body: bytes) -> Question:
        """What a body asks."""
        if not body:
            raise self._refused(422, f"the body is empty; it should be {self._inputs.wanted}")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, self._inputs.read, body)
        except ValueError as error:
            raise self._refused(422, str(error)) from None

    def _reserve(self, count: int) -> int:
        """Take so many places in the queue."""
        try:
            self._batcher.reserve(count)
        except QueueFullError:
            raise self._busy() from None
        return count

    def _busy(self) -> Exception:
        error: Exception = self._refused(
            503, "too much waits already; try again", {"retry-after": "1"}
        )
        return error

    async def model(self, request: Request) -> Response:
        """What is served."""
        return self._json(self._model)

    async def health(self, request: Request) -> Response:
        """That it lives, and how many inputs wait."""
        return self._json({"status": "ok", "waiting": self._batcher.waiting})

    def _json(self, content: Any) -> Response:
        answer: Response = self._responses.JSONResponse(content)
        return answer

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(cancel_futures=True)
        self._batcher.close()


class _Log:
    """A line for each request: when, what, the status, how long it took."""

    def __init__(self, app: web.App) -> None:
        self._app = app

    async def __call__(self, scope: web.Scope, receive: web.Receive, send: web.Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 503  # where the server ends before an answer

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
