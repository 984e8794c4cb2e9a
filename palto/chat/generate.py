"""Answers: a model reads a conversation and goes on with it, token by token."""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import palto
from palto.chat.models import ChatModel
from palto.chat.sampling import Sampler, Sampling
from palto.chat.tokens import Stops
from palto.chat.turns import Turn

CHUNK = 128  # tokens of a prompt that are read together at most
LEAST = 16  # tokens of a context, to talk in and to train with


class Slot:
    """What a model remembers of one conversation; made by `Reader.new_slot`.

    Attributes:
        tokens: those whose keys and values are remembered.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        #: The cache's arrays while another slot is in it.
        self.arrays: list[np.ndarray] | None = None


class Reader:
    """A model that reads conversations, each with a memory of its own, one at a time.

    Args:
        found: the model.
        context: the longest conversation, in tokens; by default what the model has learned.

    Attributes:
        context: the longest conversation.
        chunk: how many tokens are read together at most.
        cells: where keys and values lie of the conversation that is being read.

    Raises:
        ValueError: a context that is too small, or longer than the model's.
    """

    def __init__(self, found: ChatModel, context: int | None = None) -> None:
        context = found.context if context is None else context
        if not LEAST <= context <= found.context:
            raise ValueError(
                f"a context should be from {LEAST} to {found.context:,} tokens, which "
                f"{found.name} has learned to look back on; got {context:,}"
            )
        self.context, self.chunk = context, min(CHUNK, context - 1)
        self._vocabulary = found.tokenizer.vocabulary
        self._cache = found.model.new_cache(context)
        self.cells = [*self._cache.keys, *self._cache.values]
        self._slot: Slot | None = None
        model, cache = found.model, self._cache

        def read(tokens: Any, position: Any, length: int) -> Any:
            hidden = model.hidden(tokens, cache, position, length)
            return model.logits(hidden[:, -1])[0]

        length = palto.Dim("length", max=context)
        chunk = palto.Dim("chunk", max=self.chunk)
        self._one, self._many = (
            palto.compile(read, dynamic_shapes={"length": length} | more, keep_plan=False)
            for more in ({}, {"tokens": {1: chunk}})
        )

    @property
    def program_count(self) -> int:
        """How many programs have been needed."""
        return self._one.program_count + self._many.program_count

    def new_slot(self) -> Slot:
        """A memory for another conversation."""
        return Slot()

    def read(self, slot: Slot, tokens: Sequence[int]) -> np.ndarray:
        """Read up to `chunk` more tokens of a conversation.

        Returns:
            The logits of the token after them, float32 (vocabulary,).
        """
        self._enter(slot)
        position, step = len(slot.tokens), self._one if len(tokens) == 1 else self._many
        # Always longer than what is read, so that one program serves beginnings, too.
        length = max(position, 1) + len(tokens)
        logits = step(np.asarray([tokens], np.int64), np.asarray(position), length)
        slot.tokens += tokens
        return np.asarray(logits.array()[: self._vocabulary])

    def warm_up(self) -> None:
        """Make the programs, so that nobody waits for them later."""
        slot = self.new_slot()
        for count in (2, 1):  # programs for several tokens, and for one
            self.read(slot, [0] * count)
        self._slot = None  # whoever comes first takes over the cells

    def _enter(self, slot: Slot) -> None:
        """Put a conversation's keys and values into the cache; nothing is copied."""
        if self._slot is slot:
            return
        if self._slot is not None:
            self._slot.arrays = [cell.array() for cell in self.cells]
        if self._slot is not None or slot.arrays:
            arrays, slot.arrays = slot.arrays, None  # the program writes where nobody else looks
            for cell in self.cells:
                cell.store(arrays.pop(0) if arrays else np.zeros(cell.shape, cell.dtype))
        self._slot = slot


@dataclass(frozen=True, kw_only=True)
class Options(Sampling):
    """How to answer."""

    max_tokens: int = 512
    """The longest answer, in tokens."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""

    def check(self) -> None:
        """Raise a ValueError if a number makes no sense."""
        super().check()
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens should be at least 1, got {self.max_tokens}")


@dataclass(frozen=True)
class Prompt:
    """A conversation as a model reads it.

    Attributes:
        tokens: all of them.
        dropped: how many turns at its beginning had no room.
    """

    tokens: list[int]
    dropped: int


def fit(found: ChatModel, turns: Sequence[Turn], context: int, max_tokens: int) -> Prompt:
    """A conversation's tokens, without the oldest turns if it is too long.

    A system's turn at the beginning stays. Of the context a quarter, or what the longest answer
    needs if that is less, is left free.

    Raises:
        ValueError: the last turn alone is too long, or the model takes no such conversation.
    """
    room = context - min(max_tokens, context // 4)
    tokens = found.tokenizer.prompt(turns)
    whole, half = len(tokens), room // 2
    if whole <= room:
        return Prompt(tokens, 0)
    # Half of the room at a time, so that the beginning, once read, stays the same for a while.
    target = -(-(whole - room) // half) * half
    start = int(bool(turns) and turns[0]["role"] == "system")
    cuts = [k for k, turn in enumerate(turns) if turn["role"] == "user" and k > start]

    def cut_at(cut: int) -> list[int]:
        return found.tokenizer.prompt([*turns[:start], *turns[cut:]])

    place = bisect.bisect_left(cuts, target, key=lambda cut: whole - len(cut_at(cut)))
    if cuts:
        cut = cuts[min(place, len(cuts) - 1)]
        tokens = cut_at(cut)
        if len(tokens) <= room:
            return Prompt(tokens, cut - start)
    raise ValueError(
        f"this message is too long: with all that belongs to it it has {len(tokens):,} tokens, and "
        f"of the context of {context:,} {room:,} are for it; shorten it, or choose a longer context"
    )


@dataclass(frozen=True)
class Progress:
    """A part of the prompt has been read: so many of its tokens are done."""

    done: int
    total: int


class Answer(Iterator[str | Progress]):
    """An answer as it comes. Each step of the iteration is one run of the model, or less.

    Args:
        found: the model.
        reader: what reads for it.
        slot: what it remembers; of the prompt only what is new is read.
        prompt: the conversation's tokens.
        options: how to answer.

    Attributes:
        text: all of it so far.
        read: how many tokens of the prompt had to be read.
        seconds: what reading and writing have taken, without waiting for others.
        reason: why it has ended: "stop" (the model, or a text in `options.stop`), "length" (no
            more tokens allowed, or no room); None as long as it has not.
    """

    def __init__(
        self, found: ChatModel, reader: Reader, slot: Slot, prompt: Sequence[int], options: Options
    ) -> None:
        self._tokenizer, self._reader, self._slot = found.tokenizer, reader, slot
        self._options, self._prompt = options, list(prompt)
        self._sampler = Sampler(options)
        self._stream, self._stops = found.tokenizer.stream(), Stops(options.stop)
        self._logits: np.ndarray | None = None
        if not prompt or len(prompt) >= reader.context:
            raise ValueError(
                f"a prompt should have from 1 to {reader.context - 1:,} tokens, got {len(prompt):,}"
            )
        same = 0
        for old, new in zip(slot.tokens, self._prompt[:-1], strict=False):
            if old != new:
                break
            same += 1
        del slot.tokens[same:]
        self._tokens: list[int] = []
        self.text, self.read = "", len(prompt) - same
        self.seconds = {"reading": 0.0, "writing": 0.0}
        self.reason: Literal["stop", "length"] | None = None

    @property
    def count(self) -> int:
        """How many tokens it has so far."""
        return len(self._tokens)

    def __next__(self) -> str | Progress:
        if self.reason is not None:
            raise StopIteration
        begun, phase = time.perf_counter(), "reading" if self._logits is None else "writing"
        try:
            if self._logits is None:
                return self._read()
            piece = self._write()
            self.text += piece
            return piece
        finally:
            self.seconds[phase] += time.perf_counter() - begun

    def _read(self) -> Progress:
        done = len(self._slot.tokens)
        logits = self._reader.read(self._slot, self._prompt[done : done + self._reader.chunk])
        done, total = len(self._slot.tokens), len(self._prompt)
        if done == total:
            self._logits = logits
        return Progress(done - total + self.read, self.read)

    def _write(self) -> str:
        assert self._logits is not None
        token = self._sampler(self._logits, self._tokens)
        if token in self._tokenizer.ends:
            return self._end("stop")
        self._tokens.append(token)
        text = self._stops.add(self._stream.add(token))
        if self._stops.found:
            self.reason = "stop"
            return text
        if self.count == self._options.max_tokens or len(self._slot.tokens) == self._reader.context:
            return text + self._end("length")
        self._logits = self._reader.read(self._slot, [token])
        return text

    def _end(self, reason: Literal["stop", "length"]) -> str:
        self.reason = reason
        text = self._stops.add(self._stream.rest())
        return text + self._stops.rest()
