"""Conversations: who said what, checked, kept in files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from palto.formats.whole import write_whole

ROLES = ("system", "user", "assistant")
MOST_TURNS = 10_000


class Turn(TypedDict):
    """What one side says."""

    role: str  # one of `ROLES`
    content: str


def checked(value: Any) -> list[Turn]:
    """A conversation that comes from outside: a list of {"role": ..., "content": ...}.

    Raises:
        ValueError: it is none; the message says where.
    """
    if not isinstance(value, list) or not value:
        raise ValueError("messages should be a list of turns, at least one")
    if len(value) > MOST_TURNS:
        raise ValueError(f"messages should be at most {MOST_TURNS:,} turns, got {len(value):,}")
    turns: list[Turn] = []
    for place, turn in enumerate(value):
        role = turn.get("role") if isinstance(turn, dict) else None
        content = turn.get("content") if isinstance(turn, dict) else None
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"turn {place + 1} should have a role ({', '.join(ROLES)}) and a content, a text"
            )
        try:
            content.encode()
        except UnicodeEncodeError:  # half of a pair of UTF-16
            raise ValueError(f"the content of turn {place + 1} is no Unicode text") from None
        turns.append({"role": role, "content": content})
    return turns


def save(path: str | os.PathLike[str], turns: Sequence[Turn]) -> None:
    """Write a conversation to a JSON file, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    contents = json.dumps({"messages": list(turns)}, ensure_ascii=False, indent=1) + "\n"
    write_whole(Path(path).expanduser(), contents.encode())


def load(path: str | os.PathLike[str]) -> list[Turn]:
    """The conversation in a file of `save`.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no conversation.
    """
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        return checked(found.get("messages") if isinstance(found, dict) else found)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no conversation: {error}") from None
