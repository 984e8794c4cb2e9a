"""From a Python function to a program: trace, simplify, run."""

from palto.compiler.compile import CompiledFunction, compile
from palto.compiler.explain import Explanation

__all__ = ["CompiledFunction", "Explanation", "compile"]
