"""From a Python function to a program: trace, simplify, run."""

from palto.compiler.compile import CompiledFunction, compile

__all__ = ["CompiledFunction", "compile"]
