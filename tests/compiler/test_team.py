"""The team: threads that run a program together, wait without cost, and can be interrupted."""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from palto.compiler import team
from palto.compiler.llvm import machine

# Programs. A table is an array of i64.
PROGRAMS = """
; [rounds, 0, 0, 0, a slot for each of 16 threads, a sum for each]. In every round a thread writes
; its slot, and adds up all slots.
define void @exchange(ptr %table, ptr %sync, i64 %thread, i64 %threads) {
entry:
  %rounds = load i64, ptr %table
  %slots = getelementptr i64, ptr %table, i64 4
  %slot = getelementptr i64, ptr %slots, i64 %thread
  br label %round
round:
  %r = phi i64 [ 0, %entry ], [ %r1, %next ]
  %sum = phi i64 [ 0, %entry ], [ %sum1, %next ]
  %hundreds = mul i64 %r, 100
  %mine = add i64 %hundreds, %thread
  store i64 %mine, ptr %slot
  %a = call i1 @palto_barrier(ptr %sync, i64 %thread, i64 %threads)
  br label %add
add:
  %i = phi i64 [ 0, %round ], [ %i1, %add ]
  %part = phi i64 [ %sum, %round ], [ %sum1, %add ]
  %other = getelementptr i64, ptr %slots, i64 %i
  %x = load i64, ptr %other
  %sum1 = add i64 %part, %x
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %threads
  br i1 %more, label %add, label %next
next:
  %b = call i1 @palto_barrier(ptr %sync, i64 %thread, i64 %threads)
  %failed = or i1 %a, %b
  %r1 = add i64 %r, 1
  %again = icmp slt i64 %r1, %rounds
  %same = icmp eq i1 %failed, false
  %go = and i1 %again, %same
  br i1 %go, label %round, label %end
end:
  %sums = getelementptr i64, ptr %slots, i64 16
  %place = getelementptr i64, ptr %sums, i64 %thread
  store i64 %sum1, ptr %place
  ret void
}
; [rounds, then for each round and each of 8 threads: code or -1, value, answer of the barrier].
define void @fail(ptr %table, ptr %sync, i64 %thread, i64 %threads) {
entry:
  %rounds = load i64, ptr %table
  br label %round
round:
  %r = phi i64 [ 0, %entry ], [ %r1, %meet ]
  %row = mul i64 %r, 24
  %column = mul i64 %thread, 3
  %cell = add i64 %row, %column
  %place = add i64 %cell, 1
  %code_at = getelementptr i64, ptr %table, i64 %place
  %value_at = getelementptr i64, ptr %code_at, i64 1
  %answer_at = getelementptr i64, ptr %code_at, i64 2
  %code = load i64, ptr %code_at
  %fails = icmp sge i64 %code, 0
  br i1 %fails, label %fail, label %meet
fail:
  %value = load i64, ptr %value_at
  call void @palto_fail(ptr %sync, i64 %code, i64 %value)
  br label %meet
meet:
  %answer = call i1 @palto_barrier(ptr %sync, i64 %thread, i64 %threads)
  %bit = zext i1 %answer to i64
  store i64 %bit, ptr %answer_at
  %r1 = add i64 %r, 1
  %again = icmp slt i64 %r1, %rounds
  br i1 %again, label %round, label %end
end:
  ret void
}
; [stop, decision, rounds done]: runs until somebody sets the first word, or a failure.
define void @endless(ptr %table, ptr %sync, i64 %thread, i64 %threads) {
entry:
  %decision_at = getelementptr i64, ptr %table, i64 1
  %rounds_at = getelementptr i64, ptr %table, i64 2
  %first = icmp eq i64 %thread, 0
  br label %round
round:
  br i1 %first, label %decide, label %meet
decide:
  %stop = load atomic i64, ptr %table monotonic, align 8
  store i64 %stop, ptr %decision_at
  %rounds = load i64, ptr %rounds_at
  %more = add i64 %rounds, 1
  store i64 %more, ptr %rounds_at
  br label %meet
meet:
  %a = call i1 @palto_barrier(ptr %sync, i64 %thread, i64 %threads)
  %decision = load i64, ptr %decision_at
  %b = call i1 @palto_barrier(ptr %sync, i64 %thread, i64 %threads)
  %failed = or i1 %a, %b
  %stops = icmp ne i64 %decision, 0
  %ends = or i1 %failed, %stops
  br i1 %ends, label %end, label %round
end:
  ret void
}
; [a double, half of it for each thread].
define void @halve(ptr %table, ptr %sync, i64 %thread, i64 %threads) {
  %x = load double, ptr %table
  %half = fmul double %x, 0.5
  %next = add i64 %thread, 1
  %place = getelementptr double, ptr %table, i64 %next
  store double %half, ptr %place
  ret void
}
; [now for each thread].
define void @clock(ptr %table, ptr %sync, i64 %thread, i64 %threads) {
  %now = call i64 @palto_clock()
  %place = getelementptr i64, ptr %table, i64 %thread
  store i64 %now, ptr %place
  ret void
}
"""


class Programs:
    """Runs the programs above; scripts in other processes use it too."""

    def __init__(self):
        self.code = machine.load(team.support() + PROGRAMS, cached=False)

    def run(self, name, table, threads):
        return team.run(self.code.address(name), table.ctypes.data, threads)

    def exchange(self, threads, rounds):
        table = np.zeros(40, np.int64)
        table[0] = rounds
        assert self.run("exchange", table, threads) is None
        expected = sum(100 * r * threads + sum(range(threads)) for r in range(rounds))
        assert table[20 : 20 + threads].tolist() == [expected] * threads


@pytest.fixture(scope="module", autouse=True)
def no_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALTO_CACHE", "off")
        patch.delenv("PALTO_THREADS", raising=False)
        yield


@pytest.fixture(scope="module")
def programs():
    return Programs()


START = f"""
import importlib.util, os, signal, sys, threading, time
import numpy as np
os.environ["PALTO_CACHE"] = "off"
specification = importlib.util.spec_from_file_location("programs", {__file__!r})
module = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)
from palto.compiler import team
programs = module.Programs()
"""


def script(text):
    """A process that runs a script after START; its output is read, and errors with it."""
    return subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def says(process, expected):
    output, _ = process.communicate(timeout=60)
    assert output.split() == expected.split()
    assert process.returncode == 0


# --- Runs and barriers ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_thread_sees_what_the_others_wrote(programs, threads):
    for rounds in (1, 2, 7, 200):
        programs.exchange(threads, rounds)


def test_ten_thousand_runs(programs):
    table = np.zeros(40, np.int64)
    table[0] = 2
    address = programs.code.address("exchange")
    for _ in range(10_000):
        table[20:] = 0
        assert team.run(address, table.ctypes.data, 2) is None
        assert table[20] == table[21] == 202


def test_runs_after_parking_lose_no_wake_up(programs):
    for pause in np.linspace(0, 3e-4, 300):  # around the moment when a worker parks
        time.sleep(pause)
        programs.exchange(2 + int(pause * 1e6) % 2, 2)


def test_the_number_of_threads_may_change(programs):
    for threads in (5, 1, 2, 16, 3):
        programs.exchange(threads, 3)


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_the_number_of_threads_is_checked(programs, threads):
    with pytest.raises(ValueError, match=f"1 to 1024 threads, not on {threads}"):
        programs.run("halve", np.zeros(9), threads)


def test_python_threads_take_turns(programs):
    problems = []

    def many():
        try:
            for _ in range(200):
                programs.exchange(2, 3)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=many) for _ in range(3)]
    for thread in threads:
        thread.start()
    many()
    for thread in threads:
        thread.join()
    assert not problems


def test_who_cannot_wait_goes_on_alone(programs):
    halves, held = np.array([3.0, 0, 0]), np.zeros(3, np.int64)
    wanted = programs.code.address("halve"), halves.ctypes.data, 2
    busy = threading.Thread(target=programs.run, args=("endless", held, 2))
    busy.start()
    while not held[2]:
        time.sleep(0.001)
    assert not team.run_if_free(*wanted) and halves[1] == 0
    held[0] = 1
    busy.join()
    assert team.run_if_free(*wanted)
    assert halves.tolist() == [3.0, 1.5, 1.5]


# --- Failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_agree_about_failures(programs, threads):
    random = np.random.default_rng(threads)
    rounds = 6
    for _ in range(150):
        cells = np.full((rounds, 8, 3), -1, np.int64)
        failing = random.random((rounds, 8)) < 0.08
        cells[..., 0][failing] = random.integers(0, 9, failing.sum())
        cells[..., 1] = np.arange(rounds * 8).reshape(rounds, 8)
        table = np.concatenate([[rounds], cells.ravel()])
        failure = programs.run("fail", table, threads)
        answers = table[1:].reshape(rounds, 8, 3)[:, :threads, 2]
        assert (answers == answers[:, :1]).all()
        used = cells[:, :threads]
        wanted = np.logical_or.accumulate((used[..., 0] >= 0).any(1))
        assert (answers[:, 0] == wanted).all()
        codes = used[..., 0][used[..., 0] >= 0]
        assert (failure is None) == (not len(codes))
        if failure is not None:
            assert failure.code == codes.min()
            first = np.nonzero((used[..., 0] == failure.code).any(1))[0][0]
            values = used[first, :, 1][used[first, :, 0] == failure.code]
            assert failure.value in values


def test_a_failure_is_of_its_run_only(programs):
    cells = np.full((1, 8, 3), -1, np.int64)
    cells[0, 0, :2] = 7, -(1 << 40)
    assert programs.run("fail", np.append(1, cells), 2) == team.Failure(7, -(1 << 40))
    programs.exchange(2, 5)


# --- Costs, modes ---------------------------------------------------------------------------------


def test_parked_threads_use_no_cpu(programs):
    programs.exchange(4, 3)
    time.sleep(0.2)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


@pytest.mark.skipif(not team._is_x86, reason="only x86 has a mode to set")
@pytest.mark.parametrize("threads", [1, 3])
def test_denormals_are_flushed_inside_only(programs, threads):
    smallest = np.nextafter(0, 1) * 4
    table = np.array([smallest, *[7.0] * 8])
    programs.run("halve", table, threads)
    assert table[1 : 1 + threads].tolist() == [0.0] * threads
    assert smallest * np.float64(0.5) > 0
    table[0] = 3.0
    programs.run("halve", table, threads)
    assert table[1 : 1 + threads].tolist() == [1.5] * threads


def test_the_clock_counts_cycles(programs):
    table = np.zeros(8, np.int64)
    programs.run("clock", table, 1)
    before, start = table[0], time.perf_counter()
    time.sleep(0.1)
    programs.run("clock", table, 1)
    seconds = time.perf_counter() - start
    assert (table[0] - before) / team.cycles_per_second() == pytest.approx(seconds, rel=0.2)


# --- Signals, forks, the end ----------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send one process Ctrl-C")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_ctrl_c_ends_a_long_program(threads):
    process = script(f"""
    for _ in range(2):
        print("ready", flush=True)
        try:
            programs.run("endless", np.zeros(3, np.int64), {threads})
        except KeyboardInterrupt:
            programs.exchange({threads}, 5)
            print("interrupted", flush=True)
    """)
    for _ in range(2):
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        start = time.perf_counter()
        process.send_signal(2)
        assert process.stdout.readline() == "interrupted\n"
        assert time.perf_counter() - start < 5  # 0.1 s on a machine with nothing else to do
    says(process, "")


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send one process Ctrl-C")
def test_ctrl_c_ends_a_long_scan():
    process = script("""
    import palto
    endless = palto.compile(
        lambda x: palto.scan(lambda c, _: (palto.sin(c) + 1, None), x, length=2**40)[0]
    )
    for _ in range(2):
        try:
            print("ready", flush=True)
            endless(np.ones(9, np.float32))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """)
    for _ in range(2):
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)
        process.send_signal(2)
        assert process.stdout.readline() == "interrupted\n"
    says(process, "")


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals on Windows")
def test_other_handlers_run_and_let_the_program_go_on():
    says(
        script("""
    def stop(*_):
        assert np.float64(5e-324) * 1 > 0  # the caller's mode
        try:
            programs.exchange(2, 1)
        except RuntimeError as error:
            print("nested" if "set a flag" in str(error) else error)
        table[0] = 1

    def alarm(table):
        while not table[2]:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGALRM)

    table = np.zeros(3, np.int64)
    signal.signal(signal.SIGALRM, stop)
    threading.Thread(target=alarm, args=(table,)).start()
    print(programs.run("endless", table, 2))

    def wrong(*_):
        raise ValueError("from a handler")

    signal.signal(signal.SIGALRM, wrong)
    table = np.zeros(3, np.int64)
    threading.Thread(target=alarm, args=(table,)).start()
    try:
        programs.run("endless", table, 2)
    except ValueError as error:
        print(error)

    # A handler that interrupts the dispatch itself may run programs.
    count = 0
    def work(*_):
        global count
        programs.exchange(3, 2)
        count += 1
    signal.signal(signal.SIGALRM, work)
    for wanted in range(1, 50):
        signal.setitimer(signal.ITIMER_REAL, 1e-5 * wanted)
        while count < wanted:
            programs.exchange(2, 2)
    print("done")
    """),
        "nested None from a handler done",
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send one process Ctrl-C")
def test_ctrl_c_at_any_moment_leaves_the_team_usable():
    says(
        script("""
    table = np.zeros(40, np.int64)
    table[0] = 3
    address, place = programs.code.address("exchange"), table.ctypes.data
    programs.exchange(2, 3)
    delays = np.random.default_rng(0).uniform(1e-5, 5e-4, 300).tolist()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    while interrupted < len(delays):
        try:
            signal.setitimer(signal.ITIMER_REAL, delays[interrupted])
            while True:
                team.run(address, place, 2 + interrupted % 40 // 39)
        except KeyboardInterrupt:
            interrupted += 1
    programs.exchange(2, 100)
    print("usable")
    """),
        "usable",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_makes_a_team_of_its_own():
    says(
        script("""
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: about forks and threads
    programs.exchange(3, 5)
    busy = threading.Thread(target=programs.run, args=("endless", held := np.zeros(3, np.int64), 2))
    for running in (False, True):
        if running:
            busy.start()
            while not held[2]:
                time.sleep(0.01)
        child = os.fork()
        if not child:
            programs.exchange(3, 50)
            programs.exchange(4, 50)
            print("child", flush=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    held[0] = 1
    busy.join()
    programs.exchange(3, 5)
    print("parent")
    """),
        "child child parent",
    )


@pytest.mark.parametrize("pause", [0, 0.0001, 0.3])
def test_the_interpreter_ends_in_silence(pause):
    processes = [script(f"programs.exchange(4, 3)\ntime.sleep({pause})") for _ in range(3)]
    for process in processes:
        says(process, "")


# --- How many threads -----------------------------------------------------------------------------


def test_palto_threads_goes_before_set_num_threads(monkeypatch):
    monkeypatch.setattr(team, "_chosen", None)
    usable = team.get_num_threads()
    assert 1 <= usable <= (os.cpu_count() or 1)
    team.set_num_threads(7)
    assert team.get_num_threads() == team.thread_count() == 7
    monkeypatch.setenv("PALTO_THREADS", " 3 ")
    team._demanded.cache_clear()
    assert team.thread_count() == 3
    monkeypatch.setenv("PALTO_THREADS", "")
    team._demanded.cache_clear()
    assert team.thread_count() == 7


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5", "1025", "٣", "1e2"])
def test_a_wrong_palto_threads_is_named(monkeypatch, wrong):
    monkeypatch.setenv("PALTO_THREADS", wrong)
    team._demanded.cache_clear()
    with pytest.raises(ValueError, match=rf"PALTO_THREADS is '{wrong}'.*whole number from 1"):
        team.thread_count()


@pytest.mark.parametrize("wrong", [0, -2, 1.0, "2", True, None, 1025])
def test_a_wrong_number_of_threads_is_named(wrong):
    with pytest.raises(ValueError, match=f"got {wrong!r}; it takes a whole number"):
        team.set_num_threads(wrong)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/elsewhere\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/docker/1\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n3:cpuset:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "nonsense\n::\n", "sys/fs/cgroup/cpu.max": "a b c\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 0\n"}, None),
    ],
)
def test_quotas_of_containers(tmp_path, files, quota):
    for name, text in files.items():
        path = Path(tmp_path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert team._container_quota(tmp_path) == quota
    usable = team._usable_cpus(tmp_path)
    assert 1 <= usable <= max(1, np.ceil(quota or 1e9))
