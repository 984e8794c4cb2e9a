"""DataLoader: order, resuming, threads, and what goes wrong in them."""

import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import palto
from palto import data
from palto.data import gather


def numbers(n):
    return data.TensorDataset(np.arange(n))


def seen(batches):
    return [tuple(batch[0].tolist()) for batch in batches]


def wait_for_the_threads():
    deadline = time.monotonic() + 10
    while any(t.name.startswith("palto-loader") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "the loader's threads live on"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    gc.collect()
    wait_for_the_threads()


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


def test_each_iter_is_the_next_epoch():
    loader = data.DataLoader(numbers(20), 4, shuffle=True)
    first, second = iter(loader), iter(loader)
    assert loader.epoch == 1
    mixed = [seen([a, b]) for a, b in zip(first, second, strict=True)]
    loader.set_epoch(0)
    assert seen(loader) == [a for a, _ in mixed]
    assert seen(loader) == [b for _, b in mixed]


def test_an_older_iteration_does_not_touch_the_state():
    loader = data.DataLoader(numbers(20), 4, shuffle=True)
    old, new = iter(loader), iter(loader)
    next(new)
    next(old), next(old)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_counts_what_was_received(workers):
    loader = data.DataLoader(numbers(20), 1, num_workers=workers)
    for count, _ in enumerate(loader, start=1):
        assert loader.state_dict()["batch"] == count


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_after_the_last_batch_the_rest_is_empty(workers):
    loader = data.DataLoader(numbers(10), 3, shuffle=True, num_workers=workers)
    seen(loader)
    state = loader.state_dict()
    resumed = data.DataLoader(numbers(10), 3, shuffle=True, num_workers=workers)
    resumed.load_state_dict(state)
    assert seen(resumed) == []
    assert resumed.state_dict() == state
    assert seen(resumed) == seen(loader)
    assert resumed.epoch == 1


@pytest.mark.parametrize("state", [{"batch": 6}, {"batch": -1}, {"epoch": -1}, {"batch": "2"}])
def test_a_state_that_cannot_be(state):
    loader = data.DataLoader(numbers(10), 2)
    with pytest.raises(ValueError, match="a batch from 0 to 5"):
        loader.load_state_dict({**loader.state_dict(), **state})
    assert seen(loader)[0] == (0, 1)


def test_the_state_is_plain_and_checked():
    loader = data.DataLoader(numbers(10), 2)
    state = loader.state_dict()
    assert all(isinstance(value, int) for value in state.values())
    with pytest.raises(ValueError, match="batch_size was 2 and is 5"):
        data.DataLoader(numbers(10), 5).load_state_dict(state)
    with pytest.raises(ValueError, match="lacks epoch"):
        loader.load_state_dict({"batch": 1})


# --- Arrays in memory: many batches are gathered at once -----------------------------------------


@pytest.fixture(params=[0, 1 << 62], ids=["code", "NumPy"])
def before_code(request, monkeypatch):
    """What gathers: the machine code at once, or never."""
    monkeypatch.setattr(gather, "BEFORE_CODE", request.param)


def in_memory():
    """Images of bytes and labels; as floats, 32 batches of 9 are more than is gathered at once."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (700, 50, 40, 1), np.uint8)
    return data.ImageDataset(images, rng.integers(0, 9, 700).astype(np.uint8))


DATASETS = {
    "arrays": lambda: data.TensorDataset(*in_memory().arrays),
    "images": in_memory,
    "bytes": lambda: in_memory().as_bytes(),
    "no elements": lambda: data.TensorDataset(np.zeros((700, 0), np.float32), np.arange(700)),
    "subset": lambda: data.Subset(data.Subset(in_memory(), range(650)), range(649, 2, -1)),
    "concatenation": lambda: data.ConcatDataset([in_memory(), in_memory().as_bytes()]),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("batch_size", "drop_last"), [(1, False), (9, False), (9, True), (900, 0)])
@pytest.mark.parametrize("name", DATASETS)
def test_batches_are_what_the_dataset_answers(name, batch_size, drop_last, workers, before_code):
    dataset = DATASETS[name]()
    loader = data.DataLoader(
        dataset, batch_size, shuffle=True, num_workers=workers, drop_last=bool(drop_last)
    )
    kept = list(loader)
    for array in getattr(dataset, "arrays", ()):
        assert not any(np.shares_memory(batch.array(), array) for batch in kept[0])
    assert len(kept) == len(loader)
    rows = data.TensorDataset(np.arange(len(dataset)))
    order = data.DataLoader(rows, batch_size, shuffle=True, drop_last=bool(drop_last))
    for batch, (places,) in zip(kept, order, strict=True):
        expected = dataset.__getitems__(places.numpy())
        for tensor, array in zip(batch, expected, strict=True):
            assert (tensor.shape, tensor.dtype.name) == (array.shape, array.dtype.name)
            np.testing.assert_array_equal(tensor.array(), array)


def test_whoever_keeps_a_batch_keeps_little_else(before_code):
    for name in ("images", "bytes"):
        for batch_size in (1, 9, 300):
            for images, labels in data.DataLoader(DATASETS[name](), batch_size):
                for kept in (images.array(), labels.array()):
                    whole = kept if kept.base is None else kept.base
                    edge = 64  # so that it begins where a line of the cache does
                    assert whole.nbytes <= max(kept.nbytes, 1 << 20) + edge
                    assert whole.nbytes <= 32 * batch_size * kept[:1].nbytes + edge


def test_a_subset_whose_indices_were_changed_reads_nothing_else(before_code):
    subset = data.Subset(data.TensorDataset(np.arange(9)), [1, 2])
    subset.indices[1] = 9
    with pytest.raises(IndexError, match="out of bounds"):
        list(data.DataLoader(subset, 2))
    subset.indices[1] = -1
    assert seen(data.DataLoader(subset, 2)) == [(1, 8)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_owns_its_memory(workers, before_code):
    loader = data.DataLoader(numbers(40), 4, num_workers=workers)
    batches = [batch.array() for (batch,) in loader]
    for batch in batches:
        batch += 100
    assert [x.tolist() for x in batches] == [list(range(k, k + 4)) for k in range(100, 140, 4)]
    assert seen(loader)[0] == (0, 1, 2, 3)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: data.Subset(x, range(20))])
def test_others_are_asked_for_one_batch_at_a_time(wrap):
    asked = []

    class Own(data.TensorDataset):
        def __getitems__(self, indices):
            asked.append(len(indices))
            return super().__getitems__(indices)

    batches = iter(data.DataLoader(wrap(Own(np.arange(20))), 8))
    for count in (1, 2, 3):
        next(batches)
        assert asked == [8, 8, 4][:count]


def most_memory(dataset, workers):
    """Bytes at the most while a slow reader lets the workers load as far ahead as they do."""
    tracemalloc.start()
    try:
        for number, _ in enumerate(data.DataLoader(dataset, 8, num_workers=workers)):
            if number < 3:
                time.sleep(0.1)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        wait_for_the_threads()


def test_memory_does_not_grow_with_the_number_of_workers():
    dataset = data.TensorDataset(np.zeros((4000, 5000), np.uint8))  # ten pieces of 2 MB
    alone, two, eight = (most_memory(dataset, workers) for workers in (0, 2, 8))
    assert eight < 1.2 * two
    assert eight < alone + 6 * (2 << 20)  # nothing is copied but what is loaded ahead


@pytest.mark.parametrize("dtype", ["int16", ">f4"])
def test_a_dtype_that_no_tensor_holds(dtype):
    with pytest.raises(TypeError, match=rf"no dtype dtype\('{dtype}'\)"):
        next(iter(data.DataLoader(data.TensorDataset(np.zeros(9, dtype)))))


# --- Threads -------------------------------------------------------------------------------------


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


def test_an_iteration_that_nobody_holds_is_stopped():
    dataset = Slow(1000)
    iterator = iter(data.DataLoader(dataset, 1, num_workers=2))
    next(iterator)
    del iterator
    gc.collect()
    wait_for_the_threads()
    assert dataset.loaded < 20


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pthread_kill")
def test_an_interrupt_ends_the_loop():
    class Interrupted(Slow):
        def __getitems__(self, indices):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return super().__getitems__(indices)

    with pytest.raises(KeyboardInterrupt):
        seen(data.DataLoader(Interrupted(), 1, num_workers=1))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other interrupts")
def test_a_program_that_catches_ctrl_c_ends_at_once_and_quietly():
    code = """
        import time
        from palto import data

        class Slow(data.Dataset):
            def __len__(self):
                return 10_000

            def __getitem__(self, index):
                time.sleep(0.01)
                return index

        try:
            for batch in data.DataLoader(Slow(), 2, num_workers=4):
                print("loads", flush=True)
        except KeyboardInterrupt:
            print("stopped")
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(data.__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "loads\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.splitlines()[-1], err) == (0, "stopped", "")


def test_the_end_of_the_program_waits_for_nobody_and_is_quiet():
    code = """
        import time
        from palto import data

        class Stuck(data.Dataset):
            def __len__(self):
                return 9

            def __getitem__(self, index):
                if index:
                    time.sleep(600)
                return index

        batches = iter(data.DataLoader(Stuck(), num_workers=2))
        print(next(batches)[0].tolist())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(data.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "[0]\n", "")


def test_a_thread_that_cannot_start(monkeypatch):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "palto-loader-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        seen(data.DataLoader(numbers(5), 1, num_workers=3))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_let_go(workers):
    alive = weakref.WeakSet()

    class Array(np.ndarray):
        pass

    class Watched(Slow):
        def __getitems__(self, indices):
            array = super().__getitems__(indices)[0].view(Array)  # slow: each thread has its turn
            alive.add(Key(array))
            return (array,)

    class Key:  # arrays cannot be in a set
        def __init__(self, array):
            array.key = self

    iterator = iter(data.DataLoader(Watched(), 1, num_workers=workers))
    for _ in range(12):
        next(iterator)
    gc.collect()
    assert len(alive) <= 1, "a thread that waits keeps the batch that it has loaded"
    iterator.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_tensors_do_not_show_the_dataset_memory(workers):
    class View(Slow):
        memory = np.arange(12)

        def __getitems__(self, indices):
            return (self.memory[indices[0] : indices[-1] + 1],)

    dataset = View()
    ((batch,), *_) = data.DataLoader(dataset, 3, num_workers=workers)
    dataset.memory[:] = -1
    assert batch.tolist() == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda i: np.zeros(len(i)), TypeError, "a tuple of arrays, got ndarray"),
        (lambda i: (np.zeros(len(i)), np.zeros(1)), ValueError, r"2 .* of lengths \[2, 1\]"),
        (lambda i: next(iter(())), RuntimeError, "raised StopIteration"),
    ],
    ids=["no tuple", "too few", "StopIteration"],
)
def test_a_wrong_answer_is_not_taken(workers, answer, error, message):
    class Wrong(Slow):
        def __getitems__(self, indices):
            return answer(indices)

    with pytest.raises(error, match=message) as info:
        seen(data.DataLoader(Wrong(), 2, num_workers=workers))
    assert any("dataset indices 0, 1" in note for note in info.value.__notes__)


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
    lines = traceback.format_exception(info.value)
    assert any('raise OSError("cannot read")' in line for line in lines)  # where it happened


def test_epochs_are_told_to_the_dataset():
    class Noisy(data.Dataset):
        def __len__(self):
            return 4

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __getitem__(self, index):
            return np.random.default_rng((0, self.epoch, index)).random()

    dataset = Noisy()
    one, other = iter(data.DataLoader(dataset, 1)), data.DataLoader(dataset, 1, num_workers=2)
    whole = seen(data.DataLoader(dataset, 1))
    begun = seen([next(one), next(one)])
    other.set_epoch(7)
    seen(other)
    assert begun + seen(one) == whole  # another loader over the same dataset disturbs nothing

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
        ({"batch_size": True}, "batch_size is a whole number from 1 up, got True"),
        ({"seed": -1}, "seed"),
        ({"shuffle": "no"}, "shuffle is True or False, got 'no'"),
        ({"drop_last": 1}, "drop_last is True or False, got 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data.DataLoader(numbers(10), **options)


def test_an_empty_dataset():
    with pytest.raises(ValueError, match="empty"):
        data.DataLoader(numbers(0))


def test_no_dataset():
    with pytest.raises(TypeError, match="got list; wrap arrays in TensorDataset"):
        data.DataLoader([1, 2, 3])


@pytest.mark.parametrize("epoch", [-1, 1.5, True])
def test_no_epoch(epoch):
    with pytest.raises(ValueError, match="an epoch is a whole number from 0 up"):
        data.DataLoader(numbers(3)).set_epoch(epoch)


# Several processes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_load_parts_of_the_same_batches(processes, drop_last, workers):
    examples = data.TensorDataset(np.arange(51), np.arange(51) * 10)
    options = {"shuffle": True, "drop_last": drop_last, "num_workers": workers, "seed": 4}
    if not drop_last:
        examples = data.Subset(examples, range(48 if processes == 2 else 51))
    whole = data.DataLoader(examples, 6, **options)
    loaders = [data.DataLoader(examples, 6, **options) for _ in range(processes)]
    for rank, loader in enumerate(loaders):
        loader.share(rank, processes)
        loader.load_state_dict({**whole.state_dict(), "batch": 3})
    whole.load_state_dict({**whole.state_dict(), "batch": 3})
    for batch, *parts in zip(whole, *loaders, strict=True):
        for column, shares in zip(batch, zip(*parts, strict=True), strict=True):
            assert {len(share) for share in shares} == {len(column) // processes}
            np.testing.assert_array_equal(np.concatenate(shares), column)
        assert {str(loader.state_dict()) for loader in loaders} == {str(whole.state_dict())}


@pytest.mark.parametrize(("size", "drop_last", "bad"), [(5, True, 5), (4, False, 3)])
def test_processes_that_cannot_share_a_batch(size, drop_last, bad):
    loader = data.DataLoader(data.TensorDataset(np.arange(11)), size, drop_last=drop_last)
    with pytest.raises(ValueError, match=f"2 processes cannot share a batch of {bad} examples"):
        loader.share(0, 2)
