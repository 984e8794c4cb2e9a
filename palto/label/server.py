"""The app that shows challenges and takes answers."""

from __future__ import annotations

import functools
import io
import ipaddress
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from palto import web
from palto.data import read_image
from palto.data.sources.pictures import read_header
from palto.label.aggregate import NAMED
from palto.label.challenges import Challenges, summary
from palto.label.store import RefusedError, Store

Mode = Literal["challenge", "name", "teach"]

THUMBNAIL = 320  # pixels of the longer side
LANGUAGES = ("en", "ru")
SESSION = "palto-label"
YEAR = 365 * 24 * 3600
KINDS = {"page.css": "text/css", "page.js": "text/javascript"}


def label_app(
    store: Store,
    challenges: Challenges,
    files: Mapping[int, Path],
    *,
    mode: Mode = "challenge",
    display: Sequence[str] = (),
) -> Starlette:
    """The app of `palto label`.

    Args:
        store: images and answers.
        challenges: what to ask next.
        files: each image's file by its id.
        mode: "challenge" asks about nine images at once, "name" shows one after the other, "teach"
            takes the class that is named for known.
        display: how the classes are called towards annotators.
    """
    names = tuple(display) or store.classes

    async def page(request: Request) -> Response:
        asked = request.query_params.get("lang", "")
        language = asked if asked in LANGUAGES else _language(request)
        text = _asset("index.html").replace('lang="en"', f'lang="{language}"', 1)
        answer = Response(text, media_type="text/html")
        if asked in LANGUAGES:
            answer.set_cookie("lang", asked, max_age=YEAR, samesite="strict")
        if _session(request) is None:
            answer.set_cookie(
                SESSION, secrets.token_urlsafe(18), max_age=YEAR, httponly=True, samesite="strict"
            )
        return answer

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in KINDS:
            raise HTTPException(404, "there is no such page")
        return Response(_asset(name), media_type=KINDS[name])

    @functools.lru_cache(maxsize=2000)
    def thumbnail(number: int) -> bytes:
        return _thumbnail(files[number])

    async def image(request: Request) -> Response:
        number = request.path_params["number"]
        if number not in files:
            raise HTTPException(404, "there is no such image")
        try:
            content = await run_in_threadpool(thumbnail, number)
        except (OSError, ValueError):
            challenges.leave_out(number)
            raise HTTPException(404, "this image cannot be read") from None
        headers = {"cache-control": "private, max-age=3600"}
        return Response(content, media_type="image/png", headers=headers)

    def _next(session: str) -> dict[str, Any]:
        if mode == "challenge":
            challenge = challenges.next(session)
        else:
            challenge = challenges.next_single(session, controls=mode == "name")
        progress = challenges.progress()
        if challenge is None:
            return {"done": True, "progress": progress}
        return {
            "done": False,
            "ticket": challenge.ticket,
            "mode": "challenge" if challenge.asked != NAMED else "name",
            "asked": None if challenge.asked == NAMED else names[challenge.asked],
            "classes": list(names),
            "images": list(challenge.images),
            "progress": progress,
        }

    async def new_challenge(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(_next, _required_session(request)))

    async def take(request: Request) -> Response:
        session, answer = _required_session(request), await _object(request)
        return JSONResponse(await run_in_threadpool(_take, session, answer))

    def _take(session: str, answer: dict[str, Any]) -> dict[str, Any]:
        ticket = _checked(answer, "ticket", str)
        shown = _ids(answer, "images")
        if "label" in answer:
            said = dict.fromkeys(shown, _checked(answer, "label", int))
        else:
            chosen = _ids(answer, "chosen")
            if not set(chosen) <= set(shown):
                raise HTTPException(409, "the answer is about other images than the challenge")
            said = {number: int(number in chosen) for number in shown}
        try:
            passed = store.take(session, ticket, said)
        except RefusedError as error:
            raise HTTPException(409, str(error)) from None
        if mode == "teach" and "label" in answer:
            for number, label in said.items():
                challenges.teach(number, label)
        challenges.answered()
        return {"passed": passed, "progress": challenges.progress()}

    async def statistics(request: Request) -> Response:
        if not _is_owner(request):
            raise HTTPException(403, "statistics are for who runs the server, on its machine")
        return JSONResponse(await run_in_threadpool(summary, store, challenges))

    return web.application(
        [
            Route("/", page),
            Route("/api/challenge", new_challenge, methods=["POST"]),
            Route("/api/answer", take, methods=["POST"]),
            Route("/api/statistics", statistics),
            Route("/image/{number:int}", image),
            Route("/{name}", asset),
        ]
    )


# Requests


def _language(request: Request) -> str:
    kept = request.cookies.get("lang")
    if kept in LANGUAGES:
        return str(kept)
    return web.preferred(request.headers.get("accept-language", ""), LANGUAGES)


def _session(request: Request) -> str | None:
    value = request.cookies.get(SESSION, "")
    return value if re.fullmatch(r"[\w-]{24}", value, re.ASCII) else None


def _required_session(request: Request) -> str:
    session = _session(request)
    if session is None:
        raise HTTPException(403, "open the page first: it gives a session")
    return session


def _is_owner(request: Request) -> bool:
    """Who sits at the machine itself: an address that nobody else can answer from."""
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _object(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is no JSON") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the request is no JSON object")
    return value


def _checked(answer: dict[str, Any], name: str, kind: type) -> Any:
    value = answer.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise HTTPException(400, f"{name} is missing, or no {kind.__name__}")
    return value


def _ids(answer: dict[str, Any], name: str) -> list[int]:
    value = _checked(answer, name, list)
    if not all(type(number) is int for number in value) or len(set(value)) < len(value):
        raise HTTPException(400, f"{name} is no list of different whole numbers")
    return list(value)


# Contents


@functools.cache
def _asset(name: str) -> str:
    return resources.files("palto.label").joinpath("page", name).read_text(encoding="utf-8")


def _thumbnail(path: Path) -> bytes:
    """An image, whole and upright, no larger than needed, as a PNG file."""
    with path.open("rb") as file:
        sides = read_header(file).size
    scale = min(THUMBNAIL / max(sides), 1)
    height, width = (max(round(scale * side), 1) for side in sides)
    pixels = read_image(path, size=(height, width), fit="stretch")
    small = io.BytesIO()
    Image.fromarray(pixels).save(small, "PNG")
    return small.getvalue()
