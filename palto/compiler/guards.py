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
import inspect
import io
import operator
import os
import sys
import types
from collections import deque
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
_STDLIB = os.path.dirname(os.__file__)
#: Code that names one of these may look at any attribute.
_SEES_ALL = {"vars", "__dict__", "dir", "asdict", "astuple"}


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
            same = now.shape == expected.shape and now.dtype == expected.dtype
            return same and now.tobytes() == expected.tobytes()
        if isinstance(now, float | complex):
            return repr(now) == repr(self.expected)  # tells -0.0 from 0.0, and NaN is itself
        return bool(now == self.expected)

    def changed(self) -> Fact | None:
        """Itself, if the value is no longer what it was."""
        return None if self.holds() else self


@dataclass(slots=True)
class Attributes:
    """All that an object's attributes are, of one that notes their changes."""

    path: str
    owner: Watched
    expected: dict[str, Any]

    def changed(self) -> Fact | None:
        """What is no longer what it was."""
        now = _attributes(self.owner)
        if [*now] != [*self.expected]:
            names = functools.partial(tuple, now)
            return Fact(f"the attributes of {self.path}", names, tuple(self.expected), True)
        for name, value in self.expected.items():
            if now[name] is not value:
                read = functools.partial(now.get, name)
                fact = Fact(f"{self.path}.{name}", read, value, isinstance(value, _BY_VALUE))
                if not fact.holds():
                    return fact
        return None


def _attributes(owner: Watched) -> dict[str, Any]:
    """But for arrays, which may change without a note."""
    found = {k: x for k, x in vars(owner).items() if not isinstance(x, np.ndarray)}
    return {**found, "__class__": type(owner)}


class Guards:
    """What a function's program takes for granted.

    Args:
        function: the function.
        statics: its arguments that are not tensors.
    """

    def __init__(self, function: Callable[..., Any], statics: list[Any]) -> None:
        # Of ordinary objects only those attributes and methods matter that the code names, and
        # which code there is depends on them: so the walk is repeated until no more is found.
        self._names: set[str] = set()
        self._strict = False
        while True:
            self._collected = set(self._names)
            self._walk(function, statics)
            if self._strict:
                #: Taken apart, as they are looked at before every call.
                self._reads = [(fact.read, fact.expected, fact) for fact in self._quick]
                return
            self._strict = self._collected == self._names
            self._names = self._collected

    def _walk(self, function: Callable[..., Any], statics: list[Any]) -> None:
        self._quick: list[Fact] = []
        self._watched: list[Fact | Attributes] = []
        self._seen: dict[int, Any] = {}
        self._count = graph.mutation_count
        self._value(getattr(function, "__name__", "the function"), function, 0, watched=False)
        for index, static in enumerate(statics):
            self._value(f"argument {index}", static, 0, watched=False)

    def add_cells(self, cells: tuple[Cell, ...]) -> None:
        """Rely also on the dtype of these cells, and on whether they are frozen."""
        for cell in cells:
            self._cell(cell)

    def changed(self) -> Fact | None:
        """The first value that is no longer what it was."""
        for read, expected, fact in self._reads:
            if read() is not expected and not fact.holds():
                return fact
        if self._count != graph.mutation_count:
            count = graph.mutation_count
            for watched in self._watched:
                if (found := watched.changed()) is not None:
                    return found
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

    def _token(self, path: str, read: Callable[[], Any], *, watched: bool = False) -> None:
        """Rely on a value made up to be compared."""
        (self._watched if watched else self._quick).append(Fact(path, read, read(), True))

    def _array(self, path: str, array: Array) -> Array:
        if array.nbytes > LARGEST_CONSTANT and self._strict:
            raise TraceError(
                f"the compiled function uses {path}, a NumPy array of shape {array.shape} "
                f"({array.nbytes / 2**20:.0f} MB), whose changes it could not see; make it a "
                "tensor once, by palto.asarray outside, or pass it as an argument"
            )
        return array.copy() if self._strict else array

    def _cell(self, cell: Cell) -> None:
        if not self._first_visit(cell):
            return
        name = cell.name or "a cell"
        for attribute in ("requires_grad", "dtype"):
            read = functools.partial(getattr, cell, attribute)
            self._fact(f"{name}.{attribute}", read, watched=True)

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
        if isinstance(value, Cell):
            self._cell(value)
            return
        if isinstance(value, (*_BY_VALUE, Tensor, np.ndarray)):
            return
        if depth > _DEEPEST:
            self._refuse_depth(path)
            return
        if isinstance(value, types.ModuleType):
            if not _is_library(value):
                for name in sorted(attributes & set(vars(value))):
                    read = functools.partial(vars(value).get, name, _MISSING)
                    self._inside(f"{path}.{name}", read, depth, attributes=attributes)
            return
        if not self._first_visit(value):
            return
        if isinstance(value, types.FunctionType):
            self._function(path, value, depth)
        elif isinstance(value, types.MethodType):
            self._value(path.rpartition(".")[0] or "self", value.__self__, depth, watched=False)
            self._value(path, value.__func__, depth + 1, watched=False)
        elif isinstance(value, functools.partial):
            self._value(path, value.func, depth + 1, watched=False)
            for place, part in enumerate((*value.args, *value.keywords.values())):
                self._value(f"{path} argument {place}", part, depth + 1, watched=False)
        elif isinstance(value, np.random.Generator):
            self._token(f"the state of {path}", lambda: repr(value.bit_generator.state))
        elif isinstance(value, list | tuple):
            if isinstance(value, list):
                self._token(f"len({path})", functools.partial(len, value))
            for index in range(min(len(value), _MOST_ITEMS)):
                read = functools.partial(operator.getitem, value, index)  # its length is the same
                lasting = watched and isinstance(value, tuple)
                self._inside(f"{path}[{index}]", read, depth, watched=lasting)
        elif isinstance(value, dict | types.MappingProxyType):
            self._token(f"the keys of {path}", functools.partial(tuple, value))
            for key in list(value)[:_MOST_ITEMS]:
                read = functools.partial(value.get, key, _MISSING)
                self._inside(f"{path}[{key!r}]", read, depth)
        elif isinstance(value, set | frozenset | deque | bytearray):
            freeze = {set: frozenset, deque: tuple, bytearray: bytes}.get(type(value), frozenset)
            self._token(path, functools.partial(freeze, value))
        elif isinstance(value, type):
            self._class(path, value, value, depth)
        elif hasattr(value, "__wrapped__"):  # a decorated function, such as a compiled one
            self._value(path, value.__wrapped__, depth + 1, watched=False)
        elif isinstance(value, Iterator) and not isinstance(value, io.IOBase):
            self._refuse_iterator(path, value)
        elif not isinstance(value, types.BuiltinFunctionType):
            self._object(path, value, depth)

    def _function(self, path: str, function: types.FunctionType, depth: int) -> None:
        library = _is_library(function)
        attributes = _attributes_used(function.__code__)
        closure = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, closure, strict=True):
            self._inside(
                name, functools.partial(_cell_contents, cell), depth, attributes=attributes
            )
        for index, _ in enumerate(function.__defaults__ or ()):
            self._inside(
                f"{path} default {index}", functools.partial(_default, function, index), depth
            )
        for name in function.__kwdefaults__ or {}:
            read = functools.partial(_keyword_default, function, name)
            self._inside(f"{path} default {name}", read, depth)
        if library:  # its own globals are taken for constant
            return
        self._collected |= attributes | _texts(function.__code__)
        self._collected |= set(_globals_used(function.__code__)) & _SEES_ALL
        self._fact(
            f"{path}.__code__", functools.partial(getattr, function, "__code__"), watched=False
        )
        for name in _globals_used(function.__code__):
            read = functools.partial(function.__globals__.get, name, _MISSING)
            self._inside(name, read, depth, attributes=attributes)

    def _object(self, path: str, value: Any, depth: int) -> None:
        """An instance: its type's methods and defaults, and its own attributes."""
        slots = [
            name
            for kind in type(value).__mro__
            if not _is_library(kind)
            for name in _slots(kind)
            if hasattr(value, name)
        ]
        names = slots
        if isinstance(value, Watched):
            self._watched.append(Attributes(path, value, _attributes(value)))
            for name, part in [*vars(value).items()]:
                if isinstance(part, np.ndarray):
                    read = functools.partial(getattr, value, name, None)
                    self._fact(f"{path}.{name}", read, watched=False)
                self._value(f"{path}.{name}", part, depth + 1, watched=True)
        else:
            if hasattr(value, "__dict__"):

                def own() -> tuple[str, ...]:
                    return tuple(name for name in vars(value) if self._matters(name))

                self._token(f"the attributes of {path}", own)
                names = [*own(), *slots]
            self._fact(f"the type of {path}", lambda: type(value), watched=False)
        for name in names:
            read = functools.partial(getattr, value, name, _MISSING)
            self._inside(f"{path}.{name}", read, depth, watched=isinstance(value, Watched))
        self._class(path, type(value), value, depth)

    def _class(self, path: str, kind: type, owner: Any, depth: int) -> None:
        """What a class gives to its instances, or to those who use it directly."""
        for base in kind.__mro__:
            if _is_library(base):
                continue
            for name, member in list(vars(base).items()):
                if isinstance(member, staticmethod | classmethod):
                    member = member.__func__
                if not (self._matters(name) or name == "forward" or _is_special(name, owner)):
                    continue
                if isinstance(member, property):
                    self._value(f"{path}.{name}", member.fget, depth + 1, watched=False)
                elif isinstance(member, types.FunctionType):
                    read = functools.partial(inspect.getattr_static, base, name, _MISSING)
                    self._fact(f"{base.__name__}.{name}", read, watched=False)
                    self._value(f"{path}.{name}", member, depth + 1, watched=False)
                elif not name.startswith("__") and not hasattr(member, "__get__"):
                    # An instance's own attribute, where it has one: it may get one later.
                    read = functools.partial(getattr, owner, name, _MISSING)
                    self._inside(f"{path}.{name}", read, depth)

    def _matters(self, name: str) -> bool:
        """Whether code that was reached names this attribute."""
        return name in self._names or not self._names.isdisjoint(_SEES_ALL)

    def _inside(
        self,
        path: str,
        read: Callable[[], Any],
        depth: int,
        *,
        watched: bool = False,
        attributes: frozenset[str] = frozenset(),
    ) -> None:
        value = self._fact(path, read, watched=watched)
        self._value(path, value, depth + 1, watched=watched, attributes=attributes)

    def _refuse_depth(self, path: str) -> None:
        if self._strict:
            raise TraceError(
                f"the compiled function depends on objects nested more than {_DEEPEST} deep, at "
                f"{path[:200]}, which is too far to see whether they change; pass what it needs as "
                "arguments"
            )

    def _refuse_iterator(self, path: str, value: Any) -> None:
        if self._strict:
            raise TraceError(
                f"the compiled function uses the iterator {path} ({type(value).__name__}), whose "
                "place it could not see; take the next value outside, and pass it as an argument"
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


def _is_special(name: str, owner: Any) -> bool:
    """Whether Python itself calls a method of this name, on an instance or to make one."""
    made = name in ("__init__", "__new__", "__post_init__", "__init_subclass__", "__del__")
    return name.startswith("__") and name.endswith("__") and (not made or isinstance(owner, type))


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


@functools.lru_cache(maxsize=4096)
def _texts(code: types.CodeType) -> frozenset[str]:
    """The texts in code, which may name attributes: getattr(x, "name")."""
    texts = (text for part in _codes(code) for text in part.co_consts if isinstance(text, str))
    return frozenset(texts)


def _globals_used(code: types.CodeType) -> tuple[str, ...]:
    return _names(code, "LOAD_GLOBAL", "LOAD_NAME")


def _attributes_used(code: types.CodeType) -> frozenset[str]:
    return frozenset(_names(code, "LOAD_ATTR", "LOAD_METHOD"))


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType, *operations: str) -> tuple[str, ...]:
    """What code, and functions inside it, name in some instructions."""
    named = {
        instruction.argval
        for part in _codes(code)
        for instruction in dis.get_instructions(part)
        if instruction.opname in operations
    }
    return tuple(sorted(named))


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
    if path is None:
        return root in sys.stdlib_module_names and root != "__main__"
    return "site-packages" in path or path.startswith((_STDLIB, "<frozen"))
