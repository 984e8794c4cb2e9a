"""DataLoader: shuffled batches of a dataset, gathered from memory or loaded ahead by threads."""

from __future__ import annotations

import atexit
import operator
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from palto.compiler import team
from palto.data.dataset import Dataset, in_epoch, in_memory
from palto.data.gather import Gathering
from palto.tensor import Tensor
from palto.tensor import functions as F
from palto.tensor.dtypes import SUPPORTED, Array

Batch = tuple[Tensor, ...]
#: From the numbers of examples, of one batch or of several, to these.
Load = Callable[[Array], list[Batch]]

#: From arrays in memory, so many batches are gathered in one go, of at most so many bytes by each
#: thread: Python's work is then done once for all of them, and what has been gathered is in a cache
#: when its turn comes.
GATHERED, GATHERED_BYTES = 32, 512 << 10
#: By so many threads at most, for more would wait for the same memory.
GATHERERS = 2


@dataclass
class _Position:
    """How far an iteration has come: batches of the epoch that the user has received."""

    epoch: int
    given: int


class DataLoader:
    """Batches of a dataset, as tuples of tensors.

    Each ``iter()`` of the loader begins the next epoch. The order depends only on the seed and the
    epoch, not on the number of workers. Random numbers made by the dataset do so too, if it
    follows the rule that `Dataset` gives.

    Leaving the loop early, an exception and the end of the program stop the workers; a batch that
    is being loaded then is finished in the background and thrown away.

    A batch never changes. Batches of arrays in memory are views of up to 32 that were gathered at
    once, 1 MiB at most: whoever keeps one of them keeps the others' memory, too.

    Args:
        dataset: where the examples come from.
        batch_size: examples in a batch; the last one may be smaller.
        shuffle: whether each epoch has another random order.
        num_workers: how many threads load batches ahead; 0 loads each when it is asked for, which
            is enough for data in memory, for which more than two are not used. NumPy, image
            decoders and file reads let threads run side by side; memory is never copied to another
            process.
        drop_last: whether a smaller last batch is left out.
        prefetch_factor: batches that each worker loads ahead; of arrays in memory, so many times
            what is gathered at once.
        seed: equal seeds give equal orders.

    Raises:
        TypeError: something that is no dataset, or an answer to yes or no that is neither.
        ValueError: a size below 1, a negative number of workers, or an empty dataset.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        shuffle: bool = False,
        num_workers: int = 0,
        drop_last: bool = False,
        prefetch_factor: int = 2,
        seed: int = 0,
    ) -> None:
        if not (hasattr(dataset, "__getitems__") and hasattr(dataset, "__len__")):
            raise TypeError(
                f"DataLoader wants a palto.data.Dataset, got {type(dataset).__name__}; wrap arrays "
                "in TensorDataset, or derive a class from Dataset"
            )
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("prefetch_factor", prefetch_factor, 1),
            ("seed", seed, 0),
        ):
            if not _is_whole(value) or value < least:
                raise ValueError(f"{name} is a whole number from {least} up, got {value!r}")
        for name, answer in (("shuffle", shuffle), ("drop_last", drop_last)):
            if not isinstance(answer, bool | np.bool_):
                raise TypeError(f"{name} is True or False, got {answer!r}")
        if len(dataset) == 0:
            raise ValueError("the dataset is empty: there is nothing to load")
        if drop_last and batch_size > len(dataset):
            raise ValueError(
                f"drop_last leaves no batch: the dataset has {len(dataset)} examples, a batch "
                f"{batch_size}; make batch_size smaller or keep the last batch"
            )
        self.dataset = dataset
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.num_workers = int(num_workers)
        self.drop_last = bool(drop_last)
        self.prefetch_factor = int(prefetch_factor)
        self.seed = int(seed)
        self._share = (0, 1)
        self._position = _Position(0, 0)  # of the iteration begun last
        self._next = (0, 0)  # the epoch, and the batch in it, with which the next one begins

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def epoch(self) -> int:
        """The epoch of the iteration begun last, from 0 up."""
        return self._position.epoch

    def __iter__(self) -> Iterator[Batch]:
        # Each iteration counts for itself, so that an older one still running disturbs nothing.
        position = self._position = _Position(*self._next)
        self._next = (position.epoch + 1, 0)
        return self._batches(position)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be the epoch of this number, from its beginning.

        Raises:
            ValueError: no whole number from 0 up.
        """
        if not _is_whole(epoch) or epoch < 0:
            raise ValueError(f"an epoch is a whole number from 0 up, got {epoch!r}")
        self._go_to(int(epoch), 0)

    def share(self, rank: int, processes: int) -> None:
        """Load from now on, of every batch, the part of one of several processes alone.

        Batches, their order and what `state_dict` counts stay those of all processes together.

        Raises:
            ValueError: a batch cannot be shared evenly.
        """
        rest = 0 if self.drop_last else len(self.dataset) % self.batch_size
        for size in (self.batch_size, rest):
            if size % processes:
                raise ValueError(
                    f"{processes} processes cannot share a batch of {size} examples; let "
                    "batch_size be a multiple of their number, and drop_last be True"
                )
        self._share = (rank, processes)

    def _own(self, order: Array) -> Array:
        """Of the examples of whole batches, and of a smaller last one, this process's."""
        rank, processes = self._share
        whole = len(order) - len(order) % self.batch_size
        batches = [order[:whole].reshape(-1, self.batch_size), order[None, whole:]]
        return np.concatenate([np.split(x, processes, axis=1)[rank].reshape(-1) for x in batches])

    def _go_to(self, epoch: int, batch: int) -> None:
        self._position = _Position(epoch, batch)
        self._next = (epoch, batch)

    def _batches(self, position: _Position) -> Iterator[Batch]:
        dataset, size = in_epoch(self.dataset, position.epoch), self.batch_size // self._share[1]
        order = self._own(self._order(position.epoch)[: len(self) * self.batch_size])
        load: Load = partial(_load, dataset)
        step, workers = size, self.num_workers
        found = in_memory(dataset, order)
        if found is not None:
            threads = 1 if workers else min(team.thread_count(), GATHERERS)
            gathering, order = Gathering(found[0], threads), found[1]
            at_once = GATHERED_BYTES * threads // (gathering.row_bytes * size or 1)
            at_once = max(min(at_once, GATHERED), 1)
            load, step = partial(_gather, gathering, size), size * at_once
            workers = min(workers, GATHERERS)
        chunks = (order[k : k + step] for k in range(position.given * size, len(order), step))
        for batches in self._loaded_ahead(workers, load, chunks) if workers else map(load, chunks):
            for batch in batches:
                position.given += 1
                yield batch

    def _order(self, epoch: int) -> Array:
        order = np.arange(len(self.dataset))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(order)
        return order

    def _loaded_ahead(
        self, count: int, load: Load, chunks: Iterator[Array]
    ) -> Iterator[list[Batch]]:
        workers = _Workers(count, load)
        waiting: deque[Future[list[Batch]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(workers.submit(chunk))
                if len(waiting) > count * self.prefetch_factor:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the loop over the batches is left early
            workers.stop()

    # Resuming

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: after the batch received last. It is made of plain numbers."""
        return {
            "epoch": self._position.epoch,
            "batch": self._position.given,
            "seed": self.seed,
            "length": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch where `state` was taken: the next iteration ends that epoch.

        After an epoch's last batch there is nothing left of it, and the next iteration is empty.
        The number of workers may be another one.

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
            raise ValueError(
                "the state is of a loader with other batches: "
                + "; ".join(different)
                + "; make the loader as it was, or begin an epoch with set_epoch"
            )
        epoch, batch = state["epoch"], state["batch"]
        try:
            epoch, batch = operator.index(epoch), operator.index(batch)
            possible = epoch >= 0 and 0 <= batch <= len(self)
        except TypeError:
            possible = False
        if not possible:
            raise ValueError(
                f"a state has an epoch from 0 up and a batch from 0 to {len(self)}, got epoch "
                f"{epoch!r} and batch {batch!r}"
            )
        self._go_to(epoch, batch)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _tensor(part: Any) -> Tensor:
    # An array that does not own its memory may show some that the dataset goes on using.
    if type(part) is np.ndarray and part.flags.owndata and part.dtype in SUPPORTED:
        return Tensor(part.shape, part.dtype, part)
    return F.asarray(part, copy=True)


def _gather(gathering: Gathering, size: int, places: Array) -> list[Batch]:
    """The batches at places of arrays in memory."""
    return list(zip(*[_cut(x, size) for x in gathering(places)], strict=True))


def _cut(array: Array, size: int) -> list[Tensor]:
    """The batches that were gathered in one go."""
    dtype, whole, shape = array.dtype, len(array) // size, (size, *array.shape[1:])
    batches = array[: whole * size].reshape(whole, *shape)
    found = [Tensor(shape, dtype, x) for x in batches]
    if len(rest := array[whole * size :]):
        found.append(Tensor(rest.shape, dtype, rest))
    return found


def _load(dataset: Dataset, indices: Array) -> list[Batch]:
    """One batch, checked for what would otherwise go wrong without a sign."""
    try:
        try:
            parts = dataset.__getitems__(indices)
        except StopIteration as error:  # it would end the epoch as if all batches had been given
            raise RuntimeError(f"{type(dataset).__name__} raised StopIteration") from error
        if not isinstance(parts, tuple | list):
            raise TypeError(
                f"{type(dataset).__name__}.__getitems__ answers with a tuple of arrays, got "
                f"{type(parts).__name__}"
            )
        lengths = [len(part) for part in parts]
        if any(length != len(indices) for length in lengths):
            raise ValueError(
                f"{type(dataset).__name__}.__getitems__ was asked for {len(indices)} examples and "
                f"answered with arrays of lengths {lengths}"
            )
        return [tuple(map(_tensor, parts))]
    except Exception as error:
        shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        error.add_note(f"while loading the batch of dataset indices {shown}")
        raise


# Threads

Task = tuple[Future[list[Batch]], Array]


class _Workers:
    """Threads that load batches.

    They are daemons: an executor's threads would hold up the end of the program until all that was
    asked for is loaded, or for ever if a file never answers. They know their tasks and how to load,
    not the iteration that waits for them, so that this one is collected when it is left.
    """

    def __init__(self, count: int, load: Load) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self.threads: list[Thread] = []
        _running.add(self)
        try:
            for number in range(count):
                thread = Thread(
                    target=_work,
                    args=(self._tasks, load),
                    name=f"palto-loader-{number}",
                    daemon=True,
                )
                thread.start()
                self.threads.append(thread)
        except BaseException:  # the system has no room for another thread
            self.stop()
            raise

    def submit(self, indices: Array) -> Future[list[Batch]]:
        """Ask for a batch."""
        future: Future[list[Batch]] = Future()
        self._tasks.put((future, indices))
        return future

    def stop(self) -> None:
        """Forget what has not been begun, and let the threads end; does not wait for them."""
        with suppress(Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self.threads:
            self._tasks.put(None)


def _work(tasks: SimpleQueue[Task | None], load: Load) -> None:
    while (task := tasks.get()) is not None:
        _fulfil(*task, load)
        del task  # a thread that waits keeps no batch alive


def _fulfil(future: Future[list[Batch]], indices: Array, load: Load) -> None:
    try:
        future.set_result(load(indices))
    except BaseException as error:  # it is the user's thread that shall see it
        future.set_exception(error)


_running: weakref.WeakSet[_Workers] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """At the end of the program: threads that soon finish are not cut off inside a library."""
    threads = []
    for workers in list(_running):
        workers.stop()
        threads += workers.threads
    latest = time.monotonic() + 1
    for thread in threads:
        thread.join(max(0, latest - time.monotonic()))
