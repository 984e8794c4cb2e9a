"""DataLoader: shuffled batches of a dataset, loaded ahead by threads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from palto.data.dataset import Dataset, tell_epoch
from palto.tensor import Tensor
from palto.tensor import functions as F
from palto.tensor.dtypes import Array

Batch = tuple[Tensor, ...]


class DataLoader:
    """Batches of a dataset, as tuples of tensors.

    Each iteration over the loader is one epoch, and the next one follows it. The order depends only
    on the seed and the epoch, not on the number of workers.

    Args:
        dataset: where the examples come from.
        batch_size: examples in a batch; the last one may be smaller.
        shuffle: whether each epoch has another random order.
        num_workers: how many threads load batches ahead; 0 loads each when it is asked for, which
            is fastest for data in memory. NumPy, image decoders and file reads let threads run side
            by side; memory is never copied to another process.
        drop_last: whether a smaller last batch is left out.
        prefetch_factor: batches that each worker loads ahead.
        seed: equal seeds give equal orders.

    Raises:
        ValueError: a size below 1, a negative number of workers, or an empty dataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        num_workers: int = 0,
        drop_last: bool = False,
        prefetch_factor: int = 2,
        seed: int = 0,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("prefetch_factor", prefetch_factor, 1),
            ("seed", seed, 0),
        ):
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name} is a whole number from {least} up, got {value!r}")
        if len(dataset) == 0:
            raise ValueError("the dataset is empty: there is nothing to load")
        if drop_last and batch_size > len(dataset):
            raise ValueError(
                f"drop_last leaves no batch: the dataset has {len(dataset)} examples, a batch "
                f"{batch_size}"
            )
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.num_workers = int(num_workers)
        self.drop_last = bool(drop_last)
        self.prefetch_factor = int(prefetch_factor)
        self.seed = int(seed)
        #: The epoch that the next batch belongs to, and how many batches of it have been given out.
        self._epoch = 0
        self._given = 0
        self._resuming = False

    def __len__(self) -> int:
        """Batches in an epoch."""
        count = len(self.dataset) / self.batch_size
        return math.floor(count) if self.drop_last else math.ceil(count)

    @property
    def epoch(self) -> int:
        """The epoch of the batch given out last, from 0 up."""
        return self._epoch

    def __iter__(self) -> Iterator[Batch]:
        if self._given and not self._resuming:  # an epoch has begun before: this is the next one
            self.set_epoch(self._epoch + 1)
        self._resuming = False
        return self._batches(self._epoch, self._given)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be the epoch of this number, from its beginning."""
        self._epoch, self._given, self._resuming = int(epoch), 0, False

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        tell_epoch(self.dataset, epoch)
        order = self._order(epoch)
        chunks = (
            order[number * self.batch_size : (number + 1) * self.batch_size]
            for number in range(first, len(self))
        )
        source = self._loaded_ahead(chunks) if self.num_workers else map(self._load, chunks)
        for number, arrays in enumerate(source, start=first):
            self._epoch, self._given = epoch, number + 1
            yield tuple(F.asarray(array, copy=False) for array in arrays)

    def _order(self, epoch: int) -> Array:
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.dataset))

    def _load(self, indices: Array) -> tuple[Array, ...]:
        try:
            return self.dataset.__getitems__(indices)
        except Exception as error:
            shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
            error.add_note(f"while loading the batch of dataset indices {shown}")
            raise

    def _loaded_ahead(self, chunks: Iterator[Array]) -> Iterator[tuple[Array, ...]]:
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="palto-loader")
        waiting: deque[Future[tuple[Array, ...]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(self._load, chunk))
                if len(waiting) > self.num_workers * self.prefetch_factor:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the loop over the batches is left early
            pool.shutdown(wait=False, cancel_futures=True)

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: after the batch given out last. It is made of plain numbers."""
        return {
            "epoch": self._epoch,
            "batch": self._given,
            "seed": self.seed,
            "length": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch where `state` was taken: the next iteration ends that epoch.

        After an epoch's last batch there is nothing left of it, and the next iteration is empty.

        Raises:
            ValueError: the state is of a loader with other batches; what differs is named.
        """
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        if missing:
            raise ValueError(f"this is no state of a DataLoader: it lacks {', '.join(missing)}")
        different = [
            f"{name} was {state[name]} and is {own[name]}"
            for name in own
            if name not in ("epoch", "batch") and state[name] != own[name]
        ]
        if different:
            raise ValueError("the state is of a loader with other batches: " + "; ".join(different))
        self.set_epoch(state["epoch"])
        self._given = int(state["batch"])
        self._resuming = self._given > 0
