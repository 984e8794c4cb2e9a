"""Requests that come at the same time, computed together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np


class QueueFullError(Exception):
    """As many items wait already as may wait."""


class Batcher:
    """Puts together whatever has come while the last batch was computed; it needs no timer.

    A batch is filled up to a power of two by repeating its last item, so that few programs serve
    all sizes. Use it from one event loop; batches are computed in a thread of its own.

    Args:
        compute: from a batch (N, ...) to N results.
        batch_size: the largest batch.
        limit: how many items may wait or be computed.

    Attributes:
        limit: so many.
        waiting: how many items do.
    """

    def __init__(
        self, compute: Callable[[np.ndarray], np.ndarray], batch_size: int, limit: int
    ) -> None:
        for name, value in (("batch_size", batch_size), ("queue", limit)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._compute = compute
        self._batch_size = batch_size
        self.limit = limit
        self._items: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="palto-compute")
        self._work: asyncio.Task[None] | None = None
        self.waiting = 0

    @property
    def sizes(self) -> list[int]:
        """The sizes of batches that are computed."""
        powers = [1 << k for k in range(self._batch_size.bit_length())]
        return sorted({*powers, self._batch_size})

    def warm_up(self, item: np.ndarray) -> None:
        """Compute a batch of each size, so that no request waits for a compiler."""
        for size in self.sizes:
            self._compute(np.stack([item] * size))

    def reserve(self, count: int = 1) -> None:
        """Take places in the queue; each is given back by `release`.

        Raises:
            QueueFullError: there are not so many.
        """
        if self.waiting + count > self.limit:
            raise QueueFullError
        self.waiting += count

    def release(self, count: int = 1) -> None:
        """Give places back."""
        self.waiting -= count

    async def submit(self, item: np.ndarray) -> np.ndarray:
        """The item's result."""
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._items.append((item, future))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._items:
            count = min(len(self._items), self._batch_size)
            taken = [self._items.popleft() for _ in range(count)]
            taken = [(item, future) for item, future in taken if not future.done()]
            if not taken:
                continue
            size = next(size for size in self.sizes if size >= len(taken))
            items = [item for item, _ in taken]
            items += items[-1:] * (size - len(items))
            try:
                results = await loop.run_in_executor(self._thread, self._compute, np.stack(items))
            except Exception as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(taken, results[: len(taken)], strict=True):
                if not future.done():  # its client may be gone
                    future.set_result(result)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()
