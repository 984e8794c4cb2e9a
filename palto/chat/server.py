"""Answers for several people at once: a page to talk on, and OpenAI's protocol for programs.

Each conversation comes whole with every request, so nobody can get another's. What the model has
read of some of them is remembered; a request goes on from there if it begins with the same tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import math
import secrets
import string
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from palto import web
from palto.chat.generate import Answer, Options, Progress, Prompt, Reader, Slot, fit
from palto.chat.models import ChatModel
from palto.chat.texts import TEXTS
from palto.chat.turns import Turn, checked
from palto.extras import require

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

BODY_BYTES = 1 << 19
MOST_STOPS, STOP_CHARACTERS = 8, 200
PATIENCE = 5.0  # seconds after which a client that waits is told that it is not forgotten


class BusyError(Exception):
    """As many conversations wait already as may wait."""


class Job:
    """An answer that somebody waits for; pieces come by `pieces`.

    Attributes:
        answer: it, from the moment when it is begun.
    """

    def __init__(self, prompt: Prompt, options: Options) -> None:
        self.prompt, self.options = prompt, options
        self.answer: Answer | None = None
        self.is_wanted = True
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | Progress | Exception | None] = asyncio.Queue()

    def put(self, piece: str | Progress | Exception | None) -> None:
        """Hand over a piece, from any thread; None is the end."""
        with contextlib.suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    async def pieces(self) -> AsyncIterator[str | Progress | None]:
        """Texts and progress as they come; None if nothing has come for a while."""
        try:
            while True:
                try:
                    piece = await asyncio.wait_for(self._queue.get(), PATIENCE)
                except TimeoutError:
                    yield None
                    continue
                if piece is None:
                    return
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.is_wanted = False


class Desk:
    """Answers in a thread of its own, several people in turn: a step for each.

    Args:
        found: the model.
        reader: what reads for it; nobody else may use it meanwhile.
        slots: how many conversations are remembered, and answered at a time.
        queue: how many more may wait.

    Attributes:
        places: how many places in the queue are taken, by those who are being answered, too.
    """

    def __init__(self, found: ChatModel, reader: Reader, slots: int, queue: int) -> None:
        for name, value, least in (("slots", slots, 1), ("queue", queue, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self._found, self._reader = found, reader
        self._free = [reader.new_slot() for _ in range(slots)]  # the longest unused first
        self._waiting: deque[Job] = deque()
        self._active: deque[tuple[Job, Slot]] = deque()
        self._limit = slots + queue
        self.places = 0
        self._changed = threading.Condition()
        self._is_ending = False
        self._thread = threading.Thread(target=self._work, name="palto-chat", daemon=True)
        self._thread.start()

    def enter(self) -> None:
        """Take a place in the queue, which `leave` gives back.

        Raises:
            BusyError: there is none.
        """
        with self._changed:
            if self.places >= self._limit:
                raise BusyError
            self.places += 1

    def leave(self) -> None:
        """Give a place back."""
        with self._changed:
            self.places -= 1

    def submit(self, job: Job) -> None:
        """Answer when it is this one's turn; then its place in the queue is given back."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End the thread, after the step under way."""
        with self._changed:
            self._is_ending = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._active or self._is_ending):
                    self._changed.wait()
                if self._is_ending:
                    return
                while self._waiting and self._free:
                    job = self._waiting.popleft()
                    slot = self._choose(job.prompt.tokens)
                    self._active.append((job, slot))
            job, slot = self._active.popleft()
            if self._step(job, slot):
                self._active.append((job, slot))
            else:
                self._free.append(slot)
                self.leave()

    def _choose(self, tokens: Sequence[int]) -> Slot:
        """The slot that remembers most of a conversation, else the longest unused one."""

        def common(slot: Slot) -> int:
            pairs = enumerate(zip(slot.tokens, tokens, strict=False))
            same = next((k for k, (a, b) in pairs if a != b), min(len(slot.tokens), len(tokens)))
            return same if 2 * same > len(slot.tokens) else 0

        best = max(self._free, key=common)
        chosen = best if common(best) else self._free[0]
        self._free.remove(chosen)
        return chosen

    def _step(self, job: Job, slot: Slot) -> bool:
        """A step of an answer; whether more is to come."""
        if not job.is_wanted:
            return False
        try:
            if job.answer is None:
                job.answer = Answer(self._found, self._reader, slot, job.prompt.tokens, job.options)
            job.put(next(job.answer))
            return True
        except StopIteration:
            job.put(None)
        except Exception as error:
            job.put(error)
        return False


def application(
    found: ChatModel,
    reader: Reader,
    options: Options,
    *,
    system: str | None = None,
    slots: int = 4,
    queue: int = 32,
) -> web.App:
    """The app; its programs are made when it is returned.

    Args:
        found: the model.
        reader: what reads for it.
        options: how to answer where a request says nothing else.
        system: what the model is told to be where a conversation does not begin with it.
        slots: how many conversations are remembered, and answered at a time.
        queue: how many may wait; further ones are refused with 503.

    Raises:
        ValueError: a number is too small.
        MissingExtraError: the extra `chat` is not installed.
    """
    routing = require("starlette.routing", "chat", "palto chat --web")
    reader.warm_up()
    service = _Service(found, reader.context, options, system, Desk(found, reader, slots, queue))

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.desk.close)

    return web.application(
        [
            *web.page_routes(service.pages, service.files),
            routing.Route("/v1/chat/completions", service.complete, methods=["POST"]),
            routing.Route("/v1/models", service.models),
            routing.Route("/health", service.health),
        ],
        lifespan=lifespan,
    )


class _Service:
    def __init__(
        self, found: ChatModel, context: int, options: Options, system: str | None, desk: Desk
    ) -> None:
        self._found, self._context, self._options = found, context, options
        self._system, self.desk = system, desk
        self._begun = int(time.time())
        self._responses: Any = require("starlette.responses", "chat", "palto chat --web")
        exceptions: Any = require("starlette.exceptions", "chat", "palto chat --web")
        self._refused: Any = exceptions.HTTPException
        folder = resources.files("palto.chat") / "page"
        names = ("page.css", "page.js")
        self.files = {name: (folder / name).read_text(encoding="utf-8") for name in names}
        page = string.Template((folder / "index.html").read_text(encoding="utf-8"))
        own = {
            "model": found.name,
            "temperature": f"{options.temperature:g}",
            "longest": str(options.max_tokens),
            "seed": "" if options.seed is None else str(options.seed),
            "context": str(context),
        }
        self.pages = {
            language: page.substitute({k: html.escape(x) for k, x in (texts | own).items()})
            for language, texts in TEXTS.items()
        }

    # What is asked

    async def complete(self, request: Request) -> Response:
        """The answer to a conversation, at once or as it comes; OpenAI's "chat completion"."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise self._refused(415, f"the body should be application/json, not {kind[:60]!r}")
        try:
            self.desk.enter()
        except BusyError:
            wait = {"retry-after": "2"}
            raise self._refused(503, "too many wait already; try again", wait) from None
        try:
            body = await request.body()
            is_stream, prompt, options = await asyncio.to_thread(self._asked, body)
        except BaseException as error:
            self.desk.leave()
            if isinstance(error, ValueError):
                raise self._refused(422, str(error)) from None
            if isinstance(error, require("starlette.requests", "chat", "a page").ClientDisconnect):
                return self._responses.Response(status_code=400)  # type: ignore[no-any-return]
            raise
        job = Job(prompt, options)
        self.desk.submit(job)
        if not is_stream:
            return await self._whole(job, request)
        answer: Response = self._responses.StreamingResponse(
            self._events(job), media_type="text/event-stream"
        )
        return answer

    def _asked(self, body: bytes) -> tuple[bool, Prompt, Options]:
        """Whether a body asks for pieces, and the prompt and the options for the answer.

        Raises:
            ValueError: it makes no sense; the message says why.
        """
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError("the body is no JSON") from None
        if not isinstance(asked, dict):
            raise ValueError("the body should be an object with messages")
        turns = _turns(asked.get("messages"))
        if turns[-1]["role"] != "user":
            raise ValueError("the last turn should be the user's")
        if self._system and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self._system})
        options = _options(asked, self._options)
        prompt = fit(self._found, turns, self._context, options.max_tokens)
        return bool(asked.get("stream")), prompt, options

    # What is answered

    async def _events(self, job: Job) -> AsyncIterator[str]:
        """Server-sent events: a piece of the answer each."""
        number = _number()

        def event(delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return _event(self._head(number, "chat.completion.chunk", choice) | more)

        yield event({"role": "assistant", "content": ""})
        try:
            async for piece in job.pieces():
                if piece is None:
                    yield ": one moment\n\n"  # which clients pass over
                elif isinstance(piece, Progress):
                    yield f": {piece.done}/{piece.total}\n\n"
                elif piece:
                    yield event({"content": piece})
        except ValueError as error:
            yield _event({"error": str(error)})
            return
        assert job.answer is not None
        yield event({}, job.answer.reason, **self._about(job))
        yield "data: [DONE]\n\n"

    async def _whole(self, job: Job, request: Request) -> Response:
        try:
            async for _ in job.pieces():
                if await request.is_disconnected():
                    return self._responses.Response(status_code=400)  # type: ignore[no-any-return]
        except ValueError as error:
            raise self._refused(422, str(error)) from None
        assert job.answer is not None
        message = {"role": "assistant", "content": job.answer.text}
        choice = {"index": 0, "message": message, "finish_reason": job.answer.reason}
        head = self._head(_number(), "chat.completion", choice)
        return self._json(head | self._about(job))

    def _head(self, number: str, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": number, "object": kind, "created": int(time.time()), "model": self._found.name,
            "choices": [choice],
        }  # fmt: skip

    def _about(self, job: Job) -> dict[str, Any]:
        assert job.answer is not None
        asked, count = len(job.prompt.tokens), job.answer.count
        seconds = job.answer.seconds["writing"]
        return {
            "usage": {
                "prompt_tokens": asked, "completion_tokens": count, "total_tokens": asked + count,
                "prompt_tokens_details": {"cached_tokens": asked - job.answer.read},
            },
            "palto": {
                "dropped_turns": job.prompt.dropped,
                "tokens_a_second": round(count / seconds, 1) if seconds else 0.0,
            },
        }  # fmt: skip

    async def models(self, request: Request) -> Response:
        """The one model that there is."""
        model = {"id": self._found.name, "object": "model", "created": self._begun,
                 "owned_by": "palto", "context": self._context}  # fmt: skip
        return self._json({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        """That it lives, and how many are being answered or wait."""
        return self._json({"status": "ok", "waiting": self.desk.places})

    def _json(self, content: Any) -> Response:
        answer: Response = self._responses.JSONResponse(content)
        return answer


def _number() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _turns(messages: Any) -> list[Turn]:
    """A conversation in OpenAI's form, whose texts may come in parts."""
    if isinstance(messages, list):
        messages = [_plain(turn) if isinstance(turn, dict) else turn for turn in messages]
    return checked(messages)


def _plain(turn: dict[str, Any]) -> dict[str, Any]:
    parts, role = turn.get("content"), turn.get("role")
    if isinstance(parts, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
        if all(isinstance(text, str) for text in texts):
            parts = "".join(map(str, texts))
    return {"role": "system" if role == "developer" else role, "content": parts}


def _options(asked: dict[str, Any], own: Options) -> Options:
    """How to answer: what a request says, and one's own options where it says nothing.

    Raises:
        ValueError: a number makes no sense.
    """
    changed: dict[str, Any] = {}
    if asked.get("n") not in (None, 1):
        raise ValueError("n should be 1: one answer at a time")
    longest = asked.get("max_completion_tokens")
    given = asked if longest is None else {**asked, "max_tokens": longest}
    for field in fields(Options):
        value = given.get(field.name)
        if value is None:
            continue
        if field.name == "stop":
            value = (value,) if isinstance(value, str) else value
            fine = isinstance(value, list | tuple) and len(value) <= MOST_STOPS
            if not fine or not all(isinstance(x, str) and len(x) <= STOP_CHARACTERS for x in value):
                raise ValueError(
                    f"stop should be up to {MOST_STOPS} texts of up to {STOP_CHARACTERS} characters"
                )
            changed["stop"] = tuple(value)
            continue
        is_whole = field.name in ("top_k", "seed", "max_tokens")
        kind = int if is_whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            wanted = "a whole number" if is_whole else "a number"
            raise ValueError(f"{field.name} should be {wanted}, got {str(value)[:40]!r}")
        changed[field.name] = value
    options = replace(own, **changed)
    options.check()
    return options
