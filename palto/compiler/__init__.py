"""From a Python function to a program: trace, simplify, fuse, native code."""

from palto.compiler.compile import CompiledFunction, compile
from palto.compiler.executor import Explanation
from palto.compiler.sizes import Dim
from palto.compiler.team import get_num_threads, set_num_threads
from palto.compiler.xla import XLA

__all__ = [
    "XLA",
    "CompiledFunction",
    "Dim",
    "Explanation",
    "compile",
    "get_num_threads",
    "set_num_threads",
]
