"""DataLoader: order, resuming, threads, and what goes wrong in them."""

import gc
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import palto
from palto import data


def numbers(n):
    return data.TensorDataset(np.arange(n))


def seen(batches):
    return [tuple(batch[0].tolist()) for batch in batches]


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    gc.collect()
    deadline = time.monotonic() + 10
    while any(t.name.startswith("palto-loader") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "the loader's threads live on"
        time.sleep(0.01)


def test_batches():
    loader = data.DataLoader(numbers(7), 3)
    assert len(loader) == 3
    assert seen(loader) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert all(isinstance(x, palto.Tensor) and x.dtype == palto.int64 for (x,) in loader)


def test_drop_last():
    loader = data.DataLoader(numbers(7), 3, drop_last=True)
    assert len(loader) == 2
    assert seen(loader) == [(0, 1, 2), (3, 4, 5)]


def test_every_epoch_has_another_order_and_every_example():
    loader = data.DataLoader(numbers(50), 8, shuffle=True, seed=3)
    first, second = seen(loader), seen(loader)
    assert first != second
    for epoch in (first, second):
        assert sorted(sum(epoch, ())) == list(range(50))
    again = data.DataLoader(numbers(50), 8, shuffle=True, seed=3)
    assert seen(again) == first
    again.set_epoch(1)
    assert seen(again) == second
    assert seen(data.DataLoader(numbers(50), 8, shuffle=True, seed=4)) != first


@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    workers=st.integers(0, 3),
    other_workers=st.integers(0, 3),
    stop=st.integers(0, 60),
    drop_last=st.booleans(),
)
def test_resumed_anywhere_the_rest_is_the_same(
    n, batch_size, workers, other_workers, stop, drop_last
):
    drop_last = drop_last and batch_size <= n

    def make(workers):
        return data.DataLoader(
            numbers(n), batch_size, shuffle=True, num_workers=workers, drop_last=drop_last, seed=5
        )

    def three_epochs(loader):
        while loader.epoch < 3:
            for (batch,) in loader:
                yield loader.epoch, tuple(batch.tolist())
            if loader.epoch == 2:
                return

    whole = list(three_epochs(make(0)))
    stop = min(stop, len(whole) - 1)
    loader = make(workers)
    run = three_epochs(loader)
    before = [next(run) for _ in range(stop)]
    state = loader.state_dict()
    run.close()
    resumed = make(other_workers)
    resumed.load_state_dict(state)
    assert before + list(three_epochs(resumed)) == whole


def test_the_state_is_plain_and_checked():
    loader = data.DataLoader(numbers(10), 2)
    state = loader.state_dict()
    assert all(isinstance(value, int) for value in state.values())
    with pytest.raises(ValueError, match="batch_size was 2 and is 5"):
        data.DataLoader(numbers(10), 5).load_state_dict(state)
    with pytest.raises(ValueError, match="lacks epoch"):
        loader.load_state_dict({"batch": 1})


class Slow(data.Dataset):
    """Each batch sleeps, as a disk or a decoder does, and counts how many do at once."""

    def __init__(self, n=12):
        self.n = n
        self.lock = threading.Lock()
        self.running = self.most = self.loaded = 0

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return index

    def __getitems__(self, indices):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.02)
        with self.lock:
            self.running -= 1
            self.loaded += 1
        return (np.asarray(indices),)


def test_workers_load_side_by_side_and_in_order():
    dataset = Slow()
    assert seen(data.DataLoader(dataset, 1, num_workers=3)) == [(i,) for i in range(12)]
    assert dataset.most == 3


def test_prefetch_is_bounded():
    dataset = Slow(100)
    iterator = iter(data.DataLoader(dataset, 1, num_workers=2, prefetch_factor=2))
    next(iterator)
    time.sleep(0.3)
    assert dataset.loaded <= 6
    iterator.close()


def test_leaving_the_loop_early():
    loader = data.DataLoader(Slow(100), 1, num_workers=2)
    for _ in loader:
        break
    assert loader.epoch == 0
    next(iter(loader))
    assert loader.epoch == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_comes_with_its_batch(workers):
    class Broken(Slow):
        def __getitems__(self, indices):
            if 5 in indices:
                raise OSError("cannot read")
            return super().__getitems__(indices)

    got = []
    with pytest.raises(OSError, match="cannot read") as info:
        for (batch,) in data.DataLoader(Broken(), 2, num_workers=workers):
            got.append(batch)
    assert len(got) == 2
    assert any("dataset indices 4, 5" in note for note in info.value.__notes__)


def test_epochs_are_told_to_the_dataset():
    class Noisy(data.Dataset):
        def __len__(self):
            return 4

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __getitem__(self, index):
            return np.random.default_rng((0, self.epoch, index)).random()

    runs = [
        [seen(loader), seen(loader)]
        for loader in (data.DataLoader(Noisy(), 2, num_workers=w) for w in (0, 2))
    ]
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[0][1]
    subset = data.Subset(data.ConcatDataset([Noisy()]), [0, 1])
    assert seen(data.DataLoader(subset, 2)) == runs[0][0][:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is a whole number from 1 up, got 0"),
        ({"batch_size": 2.5}, "got 2.5"),
        ({"num_workers": -1}, "num_workers"),
        ({"prefetch_factor": 0}, "prefetch_factor"),
        ({"batch_size": 11, "drop_last": True}, "drop_last leaves no batch"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        data.DataLoader(numbers(10), **options)


def test_an_empty_dataset():
    with pytest.raises(ValueError, match="empty"):
        data.DataLoader(numbers(0))
