"""Which images to show next, and what to ask about them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from palto.label.aggregate import NAMED, Consensus, dawid_skene
from palto.label.store import Challenge, Store

TILES = 9
CONTROLS = 2  # of each kind in a challenge: images that show the class, and images that do not
SURE = 0.95  # the probability from which on an image is called sure
ENOUGH = 2  # answers, without which nothing is
NAMED_CONTROLS = 0.2  # the share of controls among single images
REFRESH = 3  # challenges after which the consensus is computed anew, or a share of all so far:
REFRESH_SHARE = 0.02


class Challenges:
    """Makes challenges out of what is known so far.

    In a challenge a few tiles are controls, whose class is known: some show the class asked about,
    some do not. The others are images of unknown class: those that are least sure, by the answers
    so far and a model's proposals, else those with the fewest answers. Nobody is asked the same
    twice. Without known images there are no controls, and all answers count.

    Args:
        store: the images and answers.
        seed: of the choices.
    """

    def __init__(self, store: Store, seed: int | None = None) -> None:
        self.store = store
        self.order = tuple(store.images())
        self._place = {number: k for k, number in enumerate(self.order)}
        self._known = store.known_array()
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._proposed = np.full((len(self.order), len(store.classes)), np.nan)
        self._usable = np.ones(len(self.order), np.bool_)
        self._count = sum(done for _, done, _, _ in store.annotators())
        self._refresh()

    # What is known

    def propose(self, image: int, probabilities: np.ndarray) -> None:
        """Take a model's opinion about an image, shape (K,)."""
        self._proposed[self._place[image]] = np.clip(probabilities, 1e-3, 1)

    def leave_out(self, image: int) -> None:
        """Never show an image, as it cannot be."""
        self._usable[self._place[image]] = False

    def teach(self, image: int, label: int) -> None:
        """Let an image's class be known from now on."""
        name = self.store.images()[image]
        self.store.add_images({}, {name: label})
        with self._lock:
            self._known[self._place[image]] = label

    def answered(self) -> None:
        """Count a challenge that was answered."""
        with self._lock:
            self._new += 1
            self._count += 1
            if self._new >= max(REFRESH, REFRESH_SHARE * self._count):
                self._refresh()

    def _refresh(self) -> None:
        self.consensus: Consensus = dawid_skene(
            self.store.answers(), len(self.order), len(self.store.classes), known=self._known
        )
        self._new = 0

    def _belief(self) -> np.ndarray:
        """The probabilities by the answers and the model together, shape (N, K)."""
        belief = self.consensus.probabilities.copy()
        has = ~np.isnan(self._proposed[:, 0]) & (self._known < 0)
        belief[has] *= self._proposed[has]
        total: np.ndarray = belief.sum(1, keepdims=True)
        return belief / np.where(total > 0, total, 1)

    def _counts(self) -> np.ndarray:
        counts = self.store.counts()
        return np.array([counts.get(number, 0) for number in self.order])

    def sure(self) -> np.ndarray:
        """Which images are sure: known, or answered alike by people enough, shape (N,)."""
        probable = self.consensus.probabilities.max(1, initial=0) >= SURE
        return np.asarray((self._known >= 0) | (probable & (self._counts() >= ENOUGH)))

    def progress(self) -> dict[str, int]:
        """How many images there are, and how many are sure."""
        with self._lock:
            usable = self._usable | (self._known >= 0)
            return {"images": int(usable.sum()), "sure": int((self.sure() & usable).sum())}

    # Choosing

    def next(self, session: str) -> Challenge | None:
        """A challenge of up to nine images, None if nothing is left to ask."""
        with self._lock:
            belief, seen = self._belief(), self._seen(session)
            open_ones = self._usable & (self._known < 0) & ~self.sure()
            doubt = belief * (1 - belief)
            asked = self._asked(doubt[open_ones].sum(0), open_ones, seen)
            if asked is None:
                return None
            controls = self._controls(asked, seen)
            possible = np.flatnonzero(open_ones & ~seen[:, asked])
            images = [*controls, *self._least_sure(possible, doubt[:, asked])]
            images = [self.order[place] for place in images[:TILES]]
            self._rng.shuffle(images)
        return self.store.hand_out(session, asked, images)

    def next_single(self, session: str, *, controls: bool = True) -> Challenge | None:
        """One image whose class is to be named, now and then a control; None if none is left."""
        with self._lock:
            seen = self._seen(session)[:, NAMED]
            possible = np.flatnonzero(self._usable & (self._known < 0) & ~self.sure() & ~seen)
            known = np.flatnonzero(self._usable & (self._known >= 0) & ~seen)
            if not len(possible):
                return None
            if controls and len(known) and self._rng.random() < NAMED_CONTROLS:
                place = int(self._rng.choice(known))
            else:
                place = self._least_sure(possible, 1 - self._belief().max(1))[0]
        return self.store.hand_out(session, NAMED, [self.order[place]])

    def _seen(self, session: str) -> np.ndarray:
        """What a session has been asked, (N, K + 1); the last column is about single images."""
        seen = np.zeros((len(self.order), len(self.store.classes) + 1), np.bool_)
        for image, asked in self.store.seen_by(session):
            seen[self._place[image], asked] = True
        return seen

    def _asked(self, doubt: np.ndarray, open_ones: np.ndarray, seen: np.ndarray) -> int | None:
        """A class, the likelier the more there is to learn about it."""
        left = (open_ones[:, None] & ~seen[:, :-1]).any(0)
        if (self._known >= 0).any():  # then one that has a control, if possible
            have = np.bincount(self._known[self._known >= 0], minlength=len(left)) > 0
            left = left & have if (left & have).any() else left
        if not left.any():
            return None
        weight = np.where(left, doubt + 1e-6, 0)
        return int(self._rng.choice(len(left), p=weight / weight.sum()))

    def _controls(self, asked: int, seen: np.ndarray) -> list[int]:
        chosen: list[int] = []
        for kind in (self._known == asked, (self._known >= 0) & (self._known != asked)):
            places = np.flatnonzero(kind & self._usable)
            fresh = self._rng.random(len(places)) + seen[places, asked]  # those not seen come first
            chosen += [int(place) for place in places[fresh.argsort()[:CONTROLS]]]
        return chosen

    def _least_sure(self, places: np.ndarray, doubt: np.ndarray) -> Sequence[int]:
        """The places, those first that a model or people doubt, else those with fewest answers."""
        chance = self._rng.random(len(places))
        counts = self._counts()[places]
        if np.isnan(self._proposed).all():
            ranks = np.lexsort((chance, -doubt[places].round(2), counts))
        else:
            ranks = np.lexsort((chance, counts, -doubt[places].round(3)))
        return [int(place) for place in places[ranks]]


def summary(store: Store, challenges: Challenges) -> dict[str, Any]:
    """What has come in so far, for the owner."""
    answers = store.answers()
    people = store.annotators()
    return {
        **challenges.progress(),
        "known": len(store.known()),
        "answers": len(store.answers(all_of_them=True).image),
        "answers that count": len(answers.image),
        "classes": {
            name: int((challenges.consensus.labels[challenges.sure()] == k).sum())
            for k, name in enumerate(store.classes)
        },
        "annotators": [
            {"annotator": number, "challenges": done, "passed": passed, "failed": failed}
            for number, done, passed, failed in people
        ],
    }
