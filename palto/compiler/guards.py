"""Guards: the Python state that a program took for granted, and whether it still is so.

A trace turns whatever Python values a function reads into constants. These are found by walking
from the function through its closure, the globals it names, its defaults, the objects it is bound
to and their attributes. Numbers, strings and the like are compared by value, other objects by
identity. Objects that note their changes (`Watched`) are looked at again only after a change.
"""

from __future__ import annotations

import dis
import enum
import functools
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from palto.compiler.trace import LARGEST_CONSTANT
from palto.tensor import graph
from palto.tensor.graph import Array, Watched
from palto.tensor.tensor import Cell, Tensor, TraceError

_DEEPEST = 64
_MOST_ITEMS = 1000
_BY_VALUE = (
    bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype, enum.Enum, range,
    slice,
)  # fmt: skip
_MISSING = object()


@dataclass(slots=True)
class Fact:
    """One value that the program relies on, and how to read it again."""

    path: str
    read: Callable[[], Any]
    expected: Any
    by_value: bool

    def holds(self) -> bool:
        """Whether the value is still what it was."""
        now = self.read()
        if now is self.expected:
            return True
        if not self.by_value or type(now) is not type(self.expected):
            return False
        if isinstance(now, np.ndarray):
            expected: Array = self.expected
            return now.shape == expected.shape and now.tobytes() == expected.tobytes()
        return bool(now == self.expected) or bool(now != now and self.expected != self.expected)


class Guards:
    """What a function's program takes for granted.

    Args:
        function: the function.
        statics: its arguments that are not tensors.
    """

    def __init__(self, function: Callable[..., Any], statics: list[Any]) -> None:
        self._quick: list[Fact] = []
        self._watched: list[Fact] = []
        self._seen: dict[int, Any] = {}
        self._count = graph.mutation_count
        self._function(getattr(function, "__name__", "the function"), function, 0)
        for index, static in enumerate(statics):
            self._value(f"argument {index}", static, 0, watched=False)

    def add_cells(self, cells: tuple[Cell, ...]) -> None:
        """Rely also on the cells' dtype and on whether they are frozen."""
        for cell in cells:
            name = cell.name or "a cell"
            for attribute in ("requires_grad", "dtype"):
                self._fact(
                    f"{name}.{attribute}", functools.partial(getattr, cell, attribute), watched=True
                )

    def changed(self) -> Fact | None:
        """The first value that is no longer what it was."""
        for fact in self._quick:
            if not fact.holds():
                return fact
        if self._count != graph.mutation_count:
            count = graph.mutation_count
            for fact in self._watched:
                if not fact.holds():
                    return fact
            self._count = count
        return None

    # Walking

    def _fact(self, path: str, read: Callable[[], Any], *, watched: bool) -> Any:
        value = read()
        by_value = isinstance(value, _BY_VALUE)
        expected = value
        if isinstance(value, np.ndarray):
            by_value, expected = True, self._array(path, value)
        (self._watched if watched else self._quick).append(Fact(path, read, expected, by_value))
        return value

    def _array(self, path: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if array.nbytes > LARGEST_CONSTANT:
            raise TraceError(
                f"the compiled function uses {path}, a NumPy array of shape {array.shape} "
                f"({array.nbytes / 2**20:.0f} MB), whose changes it could not see; make it a "
                "tensor once, by palto.asarray outside, or pass it as an argument"
            )
        return array.copy()

    def _function(self, path: str, function: Any, depth: int) -> None:
        if isinstance(function, functools.partial):
            self._function(path, function.func, depth)
            for index, value in enumerate(function.args):
                self._value(f"{path} argument {index}", value, depth, watched=False)
            for name, value in function.keywords.items():
                self._value(f"{path} argument {name}", value, depth, watched=False)
            return
        if isinstance(function, types.MethodType):
            self._value(path.rpartition(".")[0] or "self", function.__self__, depth, watched=False)
            function = function.__func__
        function = getattr(function, "__wrapped__", function)
        if not isinstance(function, types.FunctionType):
            if not isinstance(function, types.BuiltinFunctionType | type):
                self._value(path, function, depth, watched=False)
            return
        if not self._first_visit(function) or _is_library(function):
            return
        self._refuse_depth(path, depth)
        attributes = _attributes_used(function.__code__)
        closure = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, closure, strict=True):
            self._read(name, functools.partial(_cell_contents, cell), depth, attributes)
        namespace = function.__globals__
        for name in _globals_used(function.__code__):
            if name in namespace:
                read = functools.partial(namespace.get, name, _MISSING)
                self._read(name, read, depth, attributes)
        for index, _ in enumerate(function.__defaults__ or ()):
            self._read(
                f"{path} default {index}", functools.partial(_default, function, index), depth
            )
        for name in function.__kwdefaults__ or {}:
            read = functools.partial(_keyword_default, function, name)
            self._read(f"{path} default {name}", read, depth)

    def _read(
        self,
        path: str,
        read: Callable[[], Any],
        depth: int,
        attributes: frozenset[str] = frozenset(),
    ) -> None:
        value = self._fact(path, read, watched=False)
        self._value(path, value, depth + 1, watched=False, attributes=attributes)

    def _value(
        self,
        path: str,
        value: Any,
        depth: int,
        *,
        watched: bool,
        attributes: frozenset[str] = frozenset(),
    ) -> None:
        """Look inside an object that has been found."""
        if isinstance(value, (*_BY_VALUE, Tensor, np.ndarray)):
            return
        if _is_library(value):
            return
        self._refuse_depth(path, depth)
        if isinstance(value, types.ModuleType):
            for name in sorted(attributes & set(vars(value))):
                read = functools.partial(vars(value).get, name, _MISSING)
                self._read(f"{path}.{name}", read, depth, attributes)
            return
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            self._function(path, value, depth)
            return
        if not self._first_visit(value):
            return
        if isinstance(value, list | tuple):
            self._fact(f"len({path})", functools.partial(len, value), watched=False)
            for index in range(min(len(value), _MOST_ITEMS)):
                read = functools.partial(_item, value, index)
                self._inside(f"{path}[{index}]", read, depth, watched=watched and _fixed(value))
        elif isinstance(value, dict):
            self._fact(f"len({path})", functools.partial(len, value), watched=False)
            for key in list(value)[:_MOST_ITEMS]:
                read = functools.partial(value.get, key, _MISSING)
                self._inside(f"{path}[{key!r}]", read, depth, watched=False)
        elif isinstance(value, type):
            self._attributes(path, value, depth, watched=False, names=_plain_names(value))
        elif hasattr(value, "__dict__"):
            notes = isinstance(value, Watched)
            self._attributes(path, value, depth, watched=notes, names=list(vars(value)))
            for kind in type(value).__mro__:
                if _is_library(kind):
                    continue
                for name, member in vars(kind).items():
                    if isinstance(member, types.FunctionType):
                        self._function(f"{path}.{name}", member, depth + 1)
                    elif isinstance(member, _BY_VALUE) and not name.startswith("__"):
                        # The object's own, where it has one: it may get one later.
                        read = functools.partial(getattr, value, name, _MISSING)
                        self._fact(f"{path}.{name}", read, watched=False)

    def _attributes(
        self, path: str, value: Any, depth: int, *, watched: bool, names: list[str]
    ) -> None:
        for name in names:
            read = functools.partial(getattr, value, name, _MISSING)
            self._inside(f"{path}.{name}", read, depth, watched=watched)

    def _inside(self, path: str, read: Callable[[], Any], depth: int, *, watched: bool) -> None:
        value = self._fact(path, read, watched=watched)
        self._value(path, value, depth + 1, watched=watched)

    def _refuse_depth(self, path: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise TraceError(
                f"the compiled function depends on objects nested more than {_DEEPEST} deep, at "
                f"{path[:200]}, which is too far to see whether they change; pass what it needs as "
                "arguments"
            )

    def _first_visit(self, value: Any) -> bool:
        if id(value) in self._seen:
            return False
        self._seen[id(value)] = value  # kept, so that no other object takes its identity
        return True


def _cell_contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name not assigned yet
        return _MISSING


def _default(function: types.FunctionType, index: int) -> Any:
    defaults = function.__defaults__ or ()
    return defaults[index] if index < len(defaults) else _MISSING


def _keyword_default(function: types.FunctionType, name: str) -> Any:
    return (function.__kwdefaults__ or {}).get(name, _MISSING)


def _item(sequence: Any, index: int) -> Any:
    return sequence[index] if index < len(sequence) else _MISSING


def _fixed(value: Any) -> bool:
    return isinstance(value, tuple)


def _plain_names(kind: type) -> list[str]:
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__")
    ]


def _globals_used(code: types.CodeType) -> list[str]:
    return _names(code, "LOAD_GLOBAL", "LOAD_NAME")


def _attributes_used(code: types.CodeType) -> frozenset[str]:
    return frozenset(_names(code, "LOAD_ATTR", "LOAD_METHOD"))


def _names(code: types.CodeType, *operations: str) -> list[str]:
    """What code, and functions inside it, name in some instructions."""
    return sorted(
        {
            instruction.argval
            for part in _codes(code)
            for instruction in dis.get_instructions(part)
            if instruction.opname in operations
        }
    )


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_library(value: Any) -> bool:
    """Whether this is code that does not belong to the user's program."""
    if isinstance(value, types.ModuleType):
        name, path = value.__name__, getattr(value, "__file__", None)
    elif isinstance(value, types.FunctionType):
        name, path = value.__module__ or "", value.__code__.co_filename
    elif isinstance(value, type):
        name = value.__module__
        path = getattr(sys.modules.get(name), "__file__", None)
    else:
        return isinstance(value, types.BuiltinFunctionType)
    root = name.partition(".")[0]
    if root == "palto":
        return not name.startswith("palto.recipes")
    in_stdlib = root in sys.stdlib_module_names and root != "__main__"
    return in_stdlib or "site-packages" in (path or "")
