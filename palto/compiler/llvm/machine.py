"""From IR text to machine code in memory, which is kept on disk for the next time."""

from __future__ import annotations

import _thread
import atexit
import ctypes
import functools
import os
import re
import sys
import threading
from collections.abc import Iterable
from typing import Any

from palto.compiler.llvm import cache

# Part of every key: to be raised when the same text is to become other code.
_FORMAT = b"palto object 1\n"
_EXTERNAL = re.compile(r"^declare [^@\n]*@(?!llvm\.)([\w.$]+)\(", re.MULTILINE)


class Code:
    """Functions in memory, at addresses that are valid as long as this object lives.

    Args:
        image: an object file, as compiled for this machine.
        externals: the functions of this process that it calls.

    Raises:
        LookupError: the process has not one of them.
    """

    def __init__(self, image: bytes, externals: Iterable[str] = ()) -> None:
        llvm = _llvm()
        # MCJIT, because LLJIT keeps 11 KB for each library for good. It owns a target machine.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
        for name in externals:  # LLVM would call address 0
            if llvm.address_of_symbol(name) is None:
                raise LookupError(f"code is to call {name!r}, which this process does not have")
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(image))
        self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function begins that is not internal.

        Raises:
            LookupError: there is none of this name.
        """
        address = int(self._engine.get_function_address(name))
        if not address:
            raise LookupError(
                f"the code has no function {name!r}; define it in the module, and not as internal"
            )
        return address


def load(text: str, *, cached: bool = True) -> Code:
    """Compile a module, or take its code from the cache.

    In the main thread, signal handlers run meanwhile, so that Ctrl-C ends it at once.

    Args:
        text: LLVM IR, without a target. No optimisation passes run.
        cached: whether to look into the cache, and to store there what was compiled.

    Raises:
        LookupError: a function is declared that neither LLVM nor this process has.
        RuntimeError: LLVM does not accept the text.
    """
    if threading.current_thread() is not threading.main_thread():
        return _load(text, cached)
    # In a thread of its own: an exception of a signal handler would end LLVM's wrappers anywhere,
    # with objects freed twice, or would be lost in one of their destructors. A bare thread and
    # lock, because the Python code of threading does not bear such exceptions either.
    outcome: list[Code | BaseException] = []
    done = threading.Lock()
    done.acquire()

    def work() -> None:
        try:
            outcome.append(_load(text, cached))
        except BaseException as error:
            outcome.append(error)
        finally:
            done.release()

    _thread.start_new_thread(work, ())
    done.acquire()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def provide(name: str, address: int) -> None:
    """Let code that is loaded from now on call a function of this process by a name."""
    _llvm().add_symbol(name, address)


def give_back() -> None:
    """Give the system the memory that is free again, which the C library would keep."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _load(text: str, cached: bool) -> Code:
    with _loading:
        externals = _EXTERNAL.findall(text)
        path = cache.place(_identity() + text.encode(), cache.OBJECT) if cached else None
        if path is None:
            return Code(_compile(text), externals)
        image = cache.read(path)
        if image is None:
            image = _compile(text)
            cache.store(path, image)
            give_back()
        return Code(image, externals)


def _compile(text: str) -> bytes:
    llvm, machine = _llvm(), _compiler()
    target = f'target datalayout = "{machine.target_data}"\ntarget triple = "{machine.triple}"\n'
    # A context of its own: the global one would keep every type and constant for good.
    with (
        llvm.create_context() as context,
        llvm.parse_assembly(target + text, context) as module,
    ):
        module.verify()
        return bytes(machine.emit_object(module))


@functools.cache
def _llvm() -> Any:
    """llvmlite, which takes a tenth of a second to import."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@functools.cache
def _host() -> tuple[str, str, str]:
    """The triple, CPU name and features of this machine."""
    llvm = _llvm()
    features = llvm.get_host_cpu_features().flatten()
    return llvm.get_default_triple(), llvm.get_host_cpu_name(), features


def _target_machine() -> Any:
    triple, cpu, features = _host()
    target = _llvm().Target.from_triple(triple)
    return target.create_target_machine(cpu=cpu, features=features, opt=2, jit=True)


@functools.cache
def _compiler() -> Any:
    """The target machine that compiles; those of `Code` belong to their engines."""
    return _target_machine()


@functools.cache
def _identity() -> bytes:
    """What code depends on besides its text."""
    import llvmlite

    parts = [*_host(), llvmlite.__version__, _llvm().llvm_version_info]
    return _FORMAT + "\n".join(map(str, parts)).encode() + b"\n"


# LLVM does one thing at a time anyway. The process neither ends nor forks in the middle of it.
_loading = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_loading.acquire,
        after_in_parent=_loading.release,
        after_in_child=_loading.release,
    )


@atexit.register
def _finish() -> None:
    with _loading:
        pass
