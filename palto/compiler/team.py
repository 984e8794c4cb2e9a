"""The threads that run a program together.

The caller's thread is number 0; the others are threads of Python that last as long as the process.
A run is one native call: it puts the program into each worker's mailbox, takes part itself, and
waits for the workers. So no signal handler can come between, and all of them take part in every
barrier.

A worker waits in native code, at first: a run then starts within a microsecond. Soon it parks: it
marks its mailbox, returns to Python and blocks on its own lock. The runner exchanges the mailbox's
state for a job, and so either the worker sees the job, or the runner sees that it has parked and
releases its lock; the worker's mark is an exchange too, and fails if a job has come before it.
"""

from __future__ import annotations

import _thread
import ctypes
import math
import os
import platform
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from threading import get_ident
from typing import ClassVar

from palto.compiler.llvm import machine

MAX_THREADS = 1024

_NO_FAILURE = (1 << 63) - 1  # as a code: no failure has been recorded
_PATIENCE = 20e-6  # seconds for which a thread waits before it gives way to others at every turn
_YIELDS = 200  # how often it does so, about 70 us if nobody wants to run, before it parks
_LISTEN_INTERVAL = 0.08  # seconds between two looks for signals

# Offsets of the memory that threads share. What different threads write lies on different lines.
_LINE = 128
_ARRIVED, _STATE = 0, 1 * _LINE  # of the barrier: its count; twice its number, plus its answer
_LOCK, _CODE, _VALUE = 2 * _LINE, 2 * _LINE + 8, 2 * _LINE + 16  # of the failure
_DUE, _CALLERS_MODE = 3 * _LINE, 3 * _LINE + 8  # thread 0's own: when to listen next
_SPINS, _CORES, _INTERVAL, _LISTENER = (4 * _LINE + 8 * i for i in range(4))  # constants
_MAILBOXES = 4 * _LINE  # the worker's number times _LINE is added
_PROGRAM, _TABLE, _THREADS, _WAKE = (8 * (i + 1) for i in range(4))  # after a mailbox's state
_PARKED, _IDLE, _JOB = 0, 1, 2  # a mailbox that nobody has used yet is that of a parked worker

_is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
_is_arm = platform.machine().lower() in ("arm64", "aarch64")
_pause, _declare_pause = "", ""
if _is_x86:
    _pause = "call void @llvm.x86.sse2.pause()"
    _declare_pause = "declare void @llvm.x86.sse2.pause()"
elif _is_arm:
    _pause = "call void @llvm.aarch64.isb(i32 15)"
    _declare_pause = "declare void @llvm.aarch64.isb(i32)"
_yield = "SwitchToThread" if os.name == "nt" else "sched_yield"

_FLOAT_MODE = (
    """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define internal i32 @palto_enter() {
  %word = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %word)
  %before = load i32, ptr %word, align 4
  %flushing = or i32 %before, 32832
  store i32 %flushing, ptr %word, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %word)
  ret i32 %before
}
define internal void @palto_leave(i32 %before) {
  %word = alloca i32, align 4
  store i32 %before, ptr %word, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %word)
  ret void
}
"""
    if _is_x86
    else """
define internal i32 @palto_enter() {
  ret i32 0
}
define internal void @palto_leave(i32 %before) {
  ret void
}
"""
)

#: What programs call; see `support`.
_PROVIDED = {
    "palto_barrier": "i1 (ptr, i64, i64)",
    "palto_fail": "void (ptr, i64, i64)",
    "palto_failed": "i1 (ptr)",
    "palto_listen": "void (ptr)",
    "palto_clock": "i64 ()",
    "palto_note": "void (ptr, i64, i64)",
    "palto_note_part": "void (ptr, i64, i64, i64)",
}

_SUPPORT = f"""
declare i64 @llvm.readcyclecounter()
declare i32 @{_yield}()
{_declare_pause}
{_FLOAT_MODE}
define i64 @palto_clock() {{
  %now = call i64 @llvm.readcyclecounter()
  ret i64 %now
}}
; Thread 0's clock at the beginning of a step, if somebody asks.
define void @palto_note(ptr %profile, i64 %step, i64 %thread) {{
entry:
  %address = ptrtoint ptr %profile to i64
  %off = icmp eq i64 %address, 0
  %other = icmp ne i64 %thread, 0
  %skip = or i1 %off, %other
  br i1 %skip, label %end, label %write
write:
  %now = call i64 @palto_clock()
  %place = getelementptr i64, ptr %profile, i64 %step
  store i64 %now, ptr %place, align 8
  br label %end
end:
  ret void
}}
; The time since the last note, as that of what comes before a step: later ones begin later.
define void @palto_note_part(ptr %profile, i64 %step, i64 %last, i64 %thread) {{
entry:
  %address = ptrtoint ptr %profile to i64
  %off = icmp eq i64 %address, 0
  %other = icmp ne i64 %thread, 0
  %skip = or i1 %off, %other
  br i1 %skip, label %end, label %write
write:
  %now = call i64 @palto_clock()
  %last_at = getelementptr i64, ptr %profile, i64 %last
  %before = load i64, ptr %last_at, align 8
  %passed = sub i64 %now, %before
  br label %each
each:
  %number = phi i64 [ %step, %write ], [ %following, %each ]
  %place = getelementptr i64, ptr %profile, i64 %number
  %old = load i64, ptr %place, align 8
  %new = add i64 %old, %passed
  store i64 %new, ptr %place, align 8
  %following = add i64 %number, 1
  %more = icmp sle i64 %following, %last
  br i1 %more, label %each, label %end
end:
  ret void
}}
; For how many turns a thread waits before it gives way: few where threads share cores.
define internal i64 @palto_patience(ptr %sync, i64 %threads) {{
  %spins_at = getelementptr i8, ptr %sync, i64 {_SPINS}
  %spins = load i64, ptr %spins_at, align 8
  %cores_at = getelementptr i8, ptr %sync, i64 {_CORES}
  %cores = load i64, ptr %cores_at, align 8
  %crowded = icmp sgt i64 %threads, %cores
  %patience = select i1 %crowded, i64 20, i64 %spins
  ret i64 %patience
}}
; One turn of waiting.
define internal void @palto_wait(ptr %sync, i64 %turn, i64 %threads) {{
  %patience = call i64 @palto_patience(ptr %sync, i64 %threads)
  %brief = icmp slt i64 %turn, %patience
  br i1 %brief, label %pause, label %yield
pause:
  {_pause}
  ret void
yield:
  %ignored = call i32 @{_yield}()
  ret void
}}
define void @palto_fail(ptr %sync, i64 %code, i64 %value) {{
entry:
  %lock = getelementptr i8, ptr %sync, i64 {_LOCK}
  %code_at = getelementptr i8, ptr %sync, i64 {_CODE}
  %value_at = getelementptr i8, ptr %sync, i64 {_VALUE}
  br label %try
try:
  %turn = phi i64 [ 0, %entry ], [ %next, %again ]
  %held = atomicrmw xchg ptr %lock, i64 1 acquire
  %free = icmp eq i64 %held, 0
  br i1 %free, label %compare, label %again
again:
  call void @palto_wait(ptr %sync, i64 %turn, i64 1)
  %next = add i64 %turn, 1
  br label %try
compare:
  %recorded = load atomic i64, ptr %code_at monotonic, align 8
  %smaller = icmp slt i64 %code, %recorded
  br i1 %smaller, label %record, label %done
record:
  store i64 %value, ptr %value_at, align 8
  store atomic i64 %code, ptr %code_at release, align 8
  br label %done
done:
  store atomic i64 0, ptr %lock release, align 8
  ret void
}}
define i1 @palto_failed(ptr %sync) {{
  %code_at = getelementptr i8, ptr %sync, i64 {_CODE}
  %code = load atomic i64, ptr %code_at acquire, align 8
  %failed = icmp ne i64 %code, {_NO_FAILURE}
  ret i1 %failed
}}
; Thread 0 only: now and then, lets Python run the handlers of signals.
define void @palto_listen(ptr %sync) {{
entry:
  %due_at = getelementptr i8, ptr %sync, i64 {_DUE}
  %due = load i64, ptr %due_at, align 8
  %now = call i64 @llvm.readcyclecounter()
  %early = icmp slt i64 %now, %due
  br i1 %early, label %done, label %listen
listen:
  %mode_at = getelementptr i8, ptr %sync, i64 {_CALLERS_MODE}
  %mode = load i32, ptr %mode_at, align 4
  %listener_at = getelementptr i8, ptr %sync, i64 {_LISTENER}
  %listener = load ptr, ptr %listener_at, align 8
  call void @palto_leave(i32 %mode)
  %raised = call i32 %listener()
  %same_mode = call i32 @palto_enter()
  %interval_at = getelementptr i8, ptr %sync, i64 {_INTERVAL}
  %interval = load i64, ptr %interval_at, align 8
  %later = call i64 @llvm.readcyclecounter()
  %next = add i64 %later, %interval
  store i64 %next, ptr %due_at, align 8
  %quiet = icmp eq i32 %raised, 0
  br i1 %quiet, label %done, label %interrupt
interrupt:
  call void @palto_fail(ptr %sync, i64 -1, i64 0)
  br label %done
done:
  ret void
}}
define i1 @palto_barrier(ptr %sync, i64 %thread, i64 %threads) {{
entry:
  %first = icmp eq i64 %thread, 0
  br i1 %first, label %listen, label %arrive
listen:
  call void @palto_listen(ptr %sync)
  %alone = icmp eq i64 %threads, 1
  br i1 %alone, label %answer, label %arrive
answer:
  %own = call i1 @palto_failed(ptr %sync)
  ret i1 %own
arrive:
  %state_at = getelementptr i8, ptr %sync, i64 {_STATE}
  %before = load atomic i64, ptr %state_at monotonic, align 8
  %others = atomicrmw add ptr %sync, i64 1 acq_rel
  %missing = sub i64 %threads, %others
  %last = icmp eq i64 %missing, 1
  br i1 %last, label %publish, label %wait
publish: ; number and answer in one word, which does not change before all have arrived again
  %failed = call i1 @palto_failed(ptr %sync)
  %bit = zext i1 %failed to i64
  %odd = or i64 %before, 1
  %number = add i64 %odd, 1
  %published = or i64 %number, %bit
  store atomic i64 0, ptr %sync monotonic, align 8
  store atomic i64 %published, ptr %state_at release, align 8
  ret i1 %failed
wait:
  %turn = phi i64 [ 0, %arrive ], [ %next, %again ]
  %state = load atomic i64, ptr %state_at acquire, align 8
  %waiting = icmp eq i64 %state, %before
  br i1 %waiting, label %again, label %open
again:
  call void @palto_wait(ptr %sync, i64 %turn, i64 %threads)
  %next = add i64 %turn, 1
  br label %wait
open:
  %low = and i64 %state, 1
  %answer_of_all = icmp ne i64 %low, 0
  ret i1 %answer_of_all
}}
"""

_TEAM = f"""
define i64 @run(ptr %sync, ptr %program, ptr %table, i64 %threads, i64 %listens) {{
entry:
  %code_at = getelementptr i8, ptr %sync, i64 {_CODE}
  store atomic i64 {_NO_FAILURE}, ptr %code_at monotonic, align 8
  %interval_at = getelementptr i8, ptr %sync, i64 {_INTERVAL}
  %interval = load i64, ptr %interval_at, align 8
  %now = call i64 @llvm.readcyclecounter()
  %soon = add i64 %now, %interval
  %listening = icmp ne i64 %listens, 0
  %due = select i1 %listening, i64 %soon, i64 {_NO_FAILURE}
  %due_at = getelementptr i8, ptr %sync, i64 {_DUE}
  store i64 %due, ptr %due_at, align 8
  %mailboxes = getelementptr i8, ptr %sync, i64 {_MAILBOXES}
  br label %hand_out
hand_out:
  %worker = phi i64 [ 1, %entry ], [ %next_worker, %handed ]
  %more = icmp slt i64 %worker, %threads
  br i1 %more, label %hand, label %take_part
hand:
  %offset = mul i64 %worker, {_LINE}
  %mailbox = getelementptr i8, ptr %mailboxes, i64 %offset
  %program_at = getelementptr i8, ptr %mailbox, i64 {_PROGRAM}
  store ptr %program, ptr %program_at, align 8
  %table_at = getelementptr i8, ptr %mailbox, i64 {_TABLE}
  store ptr %table, ptr %table_at, align 8
  %threads_at = getelementptr i8, ptr %mailbox, i64 {_THREADS}
  store i64 %threads, ptr %threads_at, align 8
  %was = atomicrmw xchg ptr %mailbox, i64 {_JOB} acq_rel
  %parked = icmp eq i64 %was, {_PARKED}
  br i1 %parked, label %wake, label %handed
wake:
  %wake_at = getelementptr i8, ptr %mailbox, i64 {_WAKE}
  %waker = load ptr, ptr %wake_at, align 8
  call void %waker()
  br label %handed
handed:
  %next_worker = add i64 %worker, 1
  br label %hand_out
take_part:
  %mode = call i32 @palto_enter()
  %mode_at = getelementptr i8, ptr %sync, i64 {_CALLERS_MODE}
  store i32 %mode, ptr %mode_at, align 4
  call void %program(ptr %table, ptr %sync, i64 0, i64 %threads)
  call void @palto_leave(i32 %mode)
  br label %join
join:
  %joined = phi i64 [ 1, %take_part ], [ %next_joined, %finished ]
  %running = icmp slt i64 %joined, %threads
  br i1 %running, label %watch, label %end
watch:
  %joined_offset = mul i64 %joined, {_LINE}
  %joined_mailbox = getelementptr i8, ptr %mailboxes, i64 %joined_offset
  br label %look
look:
  %turn = phi i64 [ 0, %watch ], [ %next_turn, %again ]
  %state = load atomic i64, ptr %joined_mailbox acquire, align 8
  %busy = icmp eq i64 %state, {_JOB}
  br i1 %busy, label %again, label %finished
again:
  call void @palto_wait(ptr %sync, i64 %turn, i64 %threads)
  %next_turn = add i64 %turn, 1
  br label %look
finished:
  %next_joined = add i64 %joined, 1
  br label %join
end:
  %code = load atomic i64, ptr %code_at acquire, align 8
  ret i64 %code
}}
; Does what comes into a mailbox; returns when it has parked.
define void @work(ptr %sync, i64 %thread) {{
entry:
  %mode = call i32 @palto_enter()
  %mailboxes = getelementptr i8, ptr %sync, i64 {_MAILBOXES}
  %offset = mul i64 %thread, {_LINE}
  %mailbox = getelementptr i8, ptr %mailboxes, i64 %offset
  %program_at = getelementptr i8, ptr %mailbox, i64 {_PROGRAM}
  %table_at = getelementptr i8, ptr %mailbox, i64 {_TABLE}
  %threads_at = getelementptr i8, ptr %mailbox, i64 {_THREADS}
  br label %look
look:
  %turn = phi i64 [ 0, %entry ], [ %next_turn, %wait ], [ 0, %job ], [ 0, %park ]
  %threads = phi i64 [ 1, %entry ], [ %threads, %wait ], [ %job_threads, %job ], [ 1, %park ]
  %state = load atomic i64, ptr %mailbox acquire, align 8
  %has_job = icmp eq i64 %state, {_JOB}
  br i1 %has_job, label %job, label %idle
job:
  %program = load ptr, ptr %program_at, align 8
  %table = load ptr, ptr %table_at, align 8
  %job_threads = load i64, ptr %threads_at, align 8
  call void %program(ptr %table, ptr %sync, i64 %thread, i64 %job_threads)
  store atomic i64 {_IDLE}, ptr %mailbox release, align 8
  br label %look
idle:
  %patience = call i64 @palto_patience(ptr %sync, i64 %threads)
  %longest = add i64 %patience, {_YIELDS}
  %waited = icmp sgt i64 %turn, %longest
  br i1 %waited, label %park, label %wait
wait:
  call void @palto_wait(ptr %sync, i64 %turn, i64 %threads)
  %next_turn = add i64 %turn, 1
  br label %look
park:
  %exchanged = cmpxchg ptr %mailbox, i64 {_IDLE}, i64 {_PARKED} acq_rel acquire
  %did = extractvalue {{ i64, i1 }} %exchanged, 1
  br i1 %did, label %end, label %look
end:
  call void @palto_leave(i32 %mode)
  ret void
}}
define void @spin(ptr %sync, i64 %turns) {{
entry:
  br label %again
again:
  %turn = phi i64 [ 0, %entry ], [ %next, %again ]
  call void @palto_wait(ptr %sync, i64 -1, i64 1)
  %next = add i64 %turn, 1
  %more = icmp slt i64 %next, %turns
  br i1 %more, label %again, label %end
end:
  ret void
}}
define i64 @clock() {{
  %now = call i64 @llvm.readcyclecounter()
  ret i64 %now
}}
"""

# Integers pass fastest as if they were pointers.
_RUN = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_void_p] * 5)
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_CLOCK = ctypes.CFUNCTYPE(ctypes.c_int64)
_LISTEN = ctypes.CFUNCTYPE(ctypes.c_int32)
_WAKE_UP = ctypes.CFUNCTYPE(None)


@dataclass(frozen=True)
class Failure:
    """What a program recorded with ``palto_fail``."""

    INTERRUPTED: ClassVar[int] = -1  #: the code that stands for an exception of a signal handler

    code: int
    value: int


def run(address: int, table: int, threads: int) -> Failure | None:
    """Run a native function on so many threads; programs run one at a time in a process.

    Floating point flushes denormals to zero meanwhile (on x86). In the main thread, handlers of
    signals run while the program does, at barriers and every 80 ms at most; what one raises
    (KeyboardInterrupt, after Ctrl-C) is recorded like a failure and raised again from here. Nothing
    can interrupt a program between two barriers.

    Args:
        address: of a ``void program(ptr table, ptr sync, i64 thread, i64 threads)``.
        table: an address, for the program.
        threads: how many take part, the caller's among them.

    Returns:
        The failure recorded with the smallest code; None if there was none.

    Raises:
        RuntimeError: a signal handler runs a program inside a program.
    """
    is_main = get_ident() == _main_thread
    if is_main and _team is not None and _team.is_running:
        raise RuntimeError(
            "a signal handler called a compiled function while another one runs, which cannot be; "
            "let the handler set a flag and act on it after the call"
        )
    with _lock:
        team = _team if _team is not None and 1 <= threads <= _team.size else _grow(threads)
        code: int = team.run(team.sync, address, table, threads, is_main)
        if code == _NO_FAILURE:
            return None
        failure = Failure(code, ctypes.c_int64.from_address(team.sync + _VALUE).value)
        caught = team.caught[-1] if team.caught else None
        team.caught.clear()
    if code == Failure.INTERRUPTED and caught is not None:
        try:
            raise caught
        finally:
            del caught  # whose traceback refers to this frame
    return failure


def run_if_free(address: int, table: int, threads: int) -> bool:
    """`run`, unless a program runs already; whether it did."""
    if not _lock.acquire(blocking=False):
        return False
    try:
        is_inside = _team is not None and _team.is_running  # in a handler of a signal
        if not is_inside:
            run(address, table, threads)
        return not is_inside
    finally:
        _lock.release()


def thread_count() -> int:
    """On how many threads programs run.

    The environment variable PALTO_THREADS says it, else `set_num_threads`, else it is what the
    process may use: the CPUs of its affinity mask, and of its container's quota.

    Raises:
        ValueError: PALTO_THREADS is not a whole number from 1 to 1024.
    """
    return _demanded() or _chosen or _usable_cpus()


@cache
def _demanded() -> int | None:
    """What PALTO_THREADS says; looked at once, as even that takes a microsecond."""
    variable = os.environ.get("PALTO_THREADS", "").strip()
    if not variable:
        return None
    if not (variable.isascii() and variable.isdigit() and 1 <= int(variable) <= MAX_THREADS):
        raise ValueError(
            f"the environment variable PALTO_THREADS is {variable!r}; give it a whole number from "
            f"1 to {MAX_THREADS}, or unset it"
        )
    return int(variable)


def get_num_threads() -> int:
    """On how many threads compiled functions run."""
    return thread_count()


def set_num_threads(count: int) -> None:
    """Choose on how many threads compiled functions run. PALTO_THREADS goes before.

    Args:
        count: at least 1. Results do not depend on it.
    """
    global _chosen
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_THREADS:
        raise ValueError(
            f"set_num_threads got {count!r}; it takes a whole number from 1 to {MAX_THREADS}"
        )
    _chosen = count


def clock() -> int:
    """What ``palto_clock`` says now."""
    return int(_native().clock())


@cache
def cycles_per_second() -> float:
    """How fast ``palto_clock`` counts. The first call may take a twentieth of a second."""
    native = _native()
    time.sleep(max(0.0, native.begin[0] + 0.05 - time.perf_counter()))
    seconds, cycles = time.perf_counter(), native.clock()
    return float((cycles - native.begin[1]) / (seconds - native.begin[0]))


class _Native:
    """The compiled functions of a team, and how fast this machine waits and counts."""

    def __init__(self) -> None:
        self._code = machine.load(_SUPPORT + _TEAM)
        for name in _PROVIDED:
            machine.provide(name, self._code.address(name))
        self.run = _RUN(self._code.address("run"))
        self.work = _WORK(self._code.address("work"))
        self.clock = _CLOCK(self._code.address("clock"))
        spin = _WORK(self._code.address("spin"))
        nothing = ctypes.create_string_buffer(_MAILBOXES + _LINE)
        turns, measured = 5000, []
        self.begin = time.perf_counter(), self.clock()
        for _ in range(3):  # the fastest, as others may have taken the CPU meanwhile
            start = time.perf_counter(), self.clock()
            spin(ctypes.addressof(nothing), turns)
            measured.append((time.perf_counter() - start[0], self.clock() - start[1]))
        seconds, cycles = min(measured)
        self.spins = max(100, int(_PATIENCE / seconds * turns))
        self.interval = int(_LISTEN_INTERVAL / seconds * cycles)


def _native() -> _Native:
    with _making:  # code that somebody else's copy replaces would be freed under his feet
        return _made()


@cache
def _made() -> _Native:
    return _Native()


def support() -> str:
    """The declarations of what programs may call; from now on, code that does can be loaded.

    ``i1 @palto_barrier(ptr sync, i64 thread, i64 threads)`` returns when all threads have arrived;
    every thread gets the same answer: whether a failure or an interruption was recorded before.
    ``void @palto_fail(ptr sync, i64 code, i64 value)`` records a failure: the smallest code stays
    (from 0 on), and of equal ones the first. ``i1 @palto_failed(ptr sync)`` says whether there is
    one. ``void @palto_listen(ptr sync)`` lets Python handle signals, now and then, in thread 0;
    barriers do so too. ``i64 @palto_clock()`` counts cycles; see `cycles_per_second`.
    ``void @palto_note(ptr profile, i64 step, i64 thread)`` is for profiles: thread 0 writes its
    clock into the table, unless that is null; ``palto_note_part`` likewise, for a part of a step.
    """
    _native()
    signatures = (kind.replace("(", f"@{name}(", 1) for name, kind in _PROVIDED.items())
    return "".join(f"declare {signature}\n" for signature in signatures)


class _Team:
    """Threads of this process that wait for programs, and the memory that they share."""

    def __init__(self) -> None:
        self._native = native = _native()
        self.run = native.run
        self.size = 1
        self.caught: list[BaseException] = []
        self.listener = _listen(self.caught)
        next(self.listener)
        self._callbacks: list[object] = [_LISTEN(self.listener.__next__)]
        memory = ctypes.create_string_buffer(_MAILBOXES + (MAX_THREADS + 1) * _LINE)
        # Workers that spin while the interpreter ends still look at it: it is never freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
        self.sync = -(-ctypes.addressof(memory) // _LINE) * _LINE
        constants = (native.spins, _usable_cpus(), native.interval, _pointer(self._callbacks[0]))
        for place, value in zip((_SPINS, _CORES, _INTERVAL, _LISTENER), constants, strict=True):
            self._set(place, value)

    @property
    def is_running(self) -> bool:
        """Whether a program runs that has let handlers of signals run, and waits for them."""
        return bool(self.listener.gi_running)  # type: ignore[attr-defined]

    def grow(self, threads: int) -> None:
        """Start the threads that are missing.

        A signal handler may come between any two lines, and call this too or raise: a second thread
        for a mailbox does no harm, as only one at a time is woken.
        """
        while (number := self.size) < threads:
            lock = threading.Lock()
            lock.acquire()
            _thread.start_new_thread(_work, (self._native, self.sync, number, lock))
            # The lock's own method: in a function of Python's, a signal handler could raise.
            self._callbacks.append(_WAKE_UP(lock.release))
            self._set(_MAILBOXES + number * _LINE + _WAKE, _pointer(self._callbacks[-1]))
            self.size = max(self.size, number + 1)

    def _set(self, place: int, value: int) -> None:
        ctypes.c_int64.from_address(self.sync + place).value = value


def _pointer(callback: object) -> int:
    return ctypes.cast(callback, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def _work(native: _Native, sync: int, thread: int, lock: threading.Lock) -> None:
    """What a worker does all its life."""
    while True:
        lock.acquire()
        native.work(sync, thread)


def _listen(caught: list[BaseException]) -> Generator[int, None, None]:
    """Each step lets handlers of signals run, and yields whether one of them raised an exception.

    Python runs them when the generator resumes. That is inside the ``try``: a function would be
    entered outside of its own.
    """
    raised = 0
    while True:
        try:
            yield raised
            raised = 0
        except GeneratorExit:
            return
        except BaseException as error:
            caught.append(error)
            raised = 1


def _grow(threads: int) -> _Team:
    """The team, with at least so many threads."""
    global _team
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"a program runs on 1 to {MAX_THREADS} threads, not on {threads}")
    if _team is None:
        _team = _Team()
    _team.grow(threads)
    return _team


@cache
def _usable_cpus(root: Path = Path("/")) -> int:
    """The CPUs of the affinity mask, and not more than the container's quota, rounded up."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _container_quota(root)
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def _container_quota(root: Path) -> float | None:
    """How many CPUs the control groups of this process allow (Linux); None if any number.

    Args:
        root: the folder of proc and sys.
    """
    quotas = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, group = [*line.split(":", 2), "", ""][1:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controllers and "cpu")
        # Each group limits those in it. In a container the path may begin outside of it.
        inner = PurePosixPath(group.lstrip("/"))
        for folder in (mount / inner, *(mount / outer for outer in inner.parents)):
            if controllers:
                files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                limit = [_text(folder / name).strip() for name in files]
            else:
                limit = _text(folder / "cpu.max").split()
            if len(limit) == 2 and all(number.isdigit() for number in limit) and int(limit[1]):
                quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _forget() -> None:
    """Begin anew: in a child process there is none of the parent's threads but one."""
    global _team, _lock, _making, _main_thread
    _team, _lock, _making, _main_thread = None, threading.RLock(), threading.RLock(), get_ident()


_chosen: int | None = None
_team: _Team | None = None
_making = threading.RLock()
_lock = threading.RLock()  # a signal handler that runs a program may interrupt `run` itself
_main_thread = threading.main_thread().ident
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
