"""Which reply belongs to what was said: what learns to find it, and how well it is found.

Of ten replies one is what somebody has said next, and the others are of other conversations.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import palto
from palto import nn
from palto.data import Dialogues


class Question(NamedTuple):
    """What comes next?

    Attributes:
        said: the turns until now.
        replies: what may follow, the true one first.
    """

    said: list[str]
    replies: list[str]


#: Replies to choose from.
CHOICES = 10


def questions(dialogues: Dialogues, count: int, seed: int) -> list[Question]:
    """Places in conversations, each with the reply and nine of other conversations.

    Raises:
        ValueError: there are fewer than ten conversations with a reply.
    """
    texts = [[turn.text for turn in turns] for turns in dialogues if len(turns) > 1]
    if len(texts) < CHOICES:
        raise ValueError(f"ten conversations with a reply are wanted, got {len(texts)}")
    generator = np.random.default_rng(seed)
    found: list[Question] = []
    while len(found) < count:
        whose, *others = generator.permutation(len(texts))[:CHOICES]
        place = int(generator.integers(1, len(texts[whose])))
        replies = [texts[k][int(generator.integers(1, len(texts[k])))] for k in others]
        if texts[whose][place] not in replies:
            found.append(Question(texts[whose][:place], [texts[whose][place], *replies]))
    return found


def share_right(scores: np.ndarray) -> float:
    """The share of questions whose true reply has the highest score, by itself.

    Args:
        scores: shape (questions, replies), the true reply's first.
    """
    return float(np.mean(scores[:, 0] > scores[:, 1:].max(1)))


class Matcher(nn.Module):
    """Gives what was said a vector, and each reply one: the larger their product, the better.

    What was said is known by what a language model makes of it, and by the words of the last turn,
    of the last four, and of all that is seen; a reply by its words. Learned is to tell the true
    reply from those of the other rows of a batch.

    Args:
        vocabulary: how many tokens there are.
        width: the length of the language model's vectors, and of those here.
        start: the token before a conversation.
        end: the token after each turn.

    Source: Henderson et al.: Efficient natural language response suggestion for Smart Reply (2017).
    """

    #: The last so many turns are taken together; and so many of a row's turns have vectors.
    SPANS, TURNS = (1, 4, 1 << 20), 24

    def __init__(self, vocabulary: int, width: int, start: int, end: int) -> None:
        self._start, self._end = start, end
        parts = (1 + len(self.SPANS)) * width
        self.words = nn.Embedding(vocabulary, width)
        self.said = nn.Linear(parts, width, bias=False)
        self.said_more = nn.Sequential(
            nn.Linear(parts, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.reply_more = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.scale = nn.Parameter(palto.asarray(0.1))

    def loss(self, tokens: palto.Tensor, hidden: palto.Tensor) -> palto.Tensor:
        """How badly the replies in some rows are told from those of other rows, in nats.

        Args:
            tokens: shape (rows, time).
            hidden: what the language model makes of them, (rows, time, width).
        """
        whole, begins, bags, ends = self._turns(tokens, hidden)
        said, replies = self._said(bags, ends)[:, 1:], self._reply(bags[0])[:, :-1]
        rows, turns, width = said.shape
        count = rows * turns
        scores = palto.reshape(said, (count, width)) @ palto.reshape(replies, (count, width)).mT
        # The first turn of a row may be a part of one.
        candidate = palto.reshape(whole[:, :-1], (count,))
        asked = candidate & palto.reshape(~begins[:, :-1], (count,))
        place = palto.arange(count)
        row, own = place // turns, place[:, None] == place
        allowed = own | ((row[:, None] != row) & candidate)
        scores = palto.where(allowed, self.scale * scores, -1e4)
        losses = nn.functional.cross_entropy(scores, place, reduction="none")
        number = palto.sum(palto.astype(asked, losses.dtype))
        return palto.sum(palto.where(asked, losses, 0.0)) / palto.maximum(number, 1.0)

    def forward(
        self, tokens: palto.Tensor, hidden: palto.Tensor, replies: palto.Tensor
    ) -> palto.Tensor:
        """How well replies go with the last whole turn of each row, (rows, replies).

        Args:
            tokens: shape (rows, time).
            hidden: (rows, time, width).
            replies: tokens (rows, replies, time), each with the mark after it.
        """
        _, _, bags, ends = self._turns(tokens, hidden)
        said = self._said([bag[:, :1] for bag in bags], ends[:, :1])
        rows, count, time = replies.shape
        _, _, (words, *_), _ = self._turns(palto.reshape(replies, (rows * count, time)))
        vectors = palto.reshape(self._reply(words[:, 0]), (rows, count, -1))
        return self.scale * palto.sum(said * vectors, axis=-1)

    def _said(self, bags: list[palto.Tensor], ends: palto.Tensor) -> palto.Tensor:
        parts = palto.concat([*bags, ends], axis=-1)
        vectors: palto.Tensor = self.said(parts) + self.said_more(parts)
        return vectors

    def _reply(self, words: palto.Tensor) -> palto.Tensor:
        vectors: palto.Tensor = words + self.reply_more(words)
        return vectors

    def _turns(
        self, tokens: palto.Tensor, hidden: palto.Tensor | None = None
    ) -> tuple[palto.Tensor, palto.Tensor, list[palto.Tensor], palto.Tensor]:
        """Of the last whole turns of each row, the last one first, (rows, turns, ...).

        Returns:
            Whether there is a turn before it in its row; whether it begins a conversation; the
            normed sums of the words in each of `SPANS` up to it; what is `hidden` at its end.
        """
        embedded = self.words(tokens)
        is_end, is_start = tokens == self._end, tokens == self._start
        is_word = ~(is_end | is_start)
        ended = palto.cumulative_sum(palto.astype(is_end, palto.int32), axis=1)
        number = ended - palto.astype(is_end, palto.int32)
        talk = palto.cumulative_sum(palto.astype(is_start, palto.int32), axis=1)
        which = ended[:, -1:] - 1 - palto.arange(self.TURNS, dtype=palto.int32)
        # By how many turns a token is older than a turn is; below 0, if it is younger.
        older = which[:, :, None] - number[:, None]
        own = older == 0
        begins = palto.any(own & is_start[:, None], axis=2)
        whose = palto.max(palto.where(own, talk[:, None], -1), axis=2)
        near = (older >= 0) & is_word[:, None] & (whose[:, :, None] == talk[:, None])
        bags = []
        for span in self.SPANS:
            mask = palto.astype(near & (older < span), embedded.dtype)
            size = palto.sqrt(palto.sum(mask, axis=2, keepdims=True) + 1.0)
            bags.append(mask @ embedded / size)
        last = palto.astype(own & is_end[:, None], embedded.dtype)
        return which > 0, begins, bags, last @ (embedded if hidden is None else hidden)


def by_words(learn: Dialogues, asked: Sequence[Question], last: int) -> np.ndarray:
    """Scores (questions, replies) by common words: the cosine of TF-IDF vectors.

    Args:
        learn: where to count in how many turns a word is.
        asked: the questions.
        last: how many of the last turns a reply is compared with.
    """

    def words(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())

    turns = [set(words(turn.text)) for turns in learn for turn in turns]
    known = Counter(word for turn in turns for word in turn)

    def vector(text: str) -> dict[str, float]:
        counts = Counter(words(text))
        found = {
            word: (1 + math.log(count)) * math.log((1 + len(turns)) / (1 + known[word]))
            for word, count in counts.items()
        }
        norm = math.sqrt(sum(x * x for x in found.values())) or 1.0
        return {word: x / norm for word, x in found.items()}

    scores = []
    for question in asked:
        said = vector(" ".join(question.said[-last:]))
        replies = [vector(reply) for reply in question.replies]
        scores.append([sum(x * said.get(word, 0.0) for word, x in r.items()) for r in replies])
    return np.array(scores)
