"""Random graphs: run at once, run as programs, compared; a failure is shrunk to a few lines.

    python tests/compiler/fuzz.py --graphs 100000 --seed 0 --jobs 2 [--quick]
    python tests/compiler/fuzz.py --only 4711

A *recipe* is plain data: inputs, cells, and steps that each apply one operation to earlier values.
From it comes the source of a Python function, which is run at once and under ``palto.compile``,
with 1, 2 and 3 threads, two calls each. Whole numbers and bools must agree exactly, floats within
what rounding can do: the graph is also run with a little noise on every rounded value, and what
that moves is allowed, with some slack. A value is *exact* when no correct implementation can
differ in it (inputs, what only moves them, small sums of multiples of 1/64); steps that jump, such
as comparisons, take exact floats only. All threads' results must agree to the bit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

if __name__ == "__main__":  # before NumPy starts its threads
    os.environ.pop("OPENBLAS_CORETYPE", None)
    os.environ.pop("PALTO_THREADS", None)  # goes before palto.set_num_threads
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PALTO_CACHE", "off")  # no graph comes twice

import numpy as np

import palto
from palto import nn
from palto.compiler.llvm import machine

FLOATS = ("float32", "float64")
SIGNED = ("int8", "int32", "int64")
INTEGERS = (*SIGNED, "uint8", "uint32")
REAL = (*INTEGERS, *FLOATS)
NUMERIC = (*REAL, "complex64")
INEXACT = (*FLOATS, "complex64", "bfloat16")
DTYPES = (*NUMERIC, "bool", "bfloat16")
#: How often a new input has each dtype.
DTYPE_WEIGHTS = dict.fromkeys(DTYPES, 1) | {"float32": 22, "int64": 3, "float64": 2, "bool": 2}

LENGTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 129)
THREADS = (1, 2, 3)
#: The size of the noise on a rounded value, relative to the largest magnitude beside it.
NOISE = {"float32": 2e-6, "complex64": 2e-6, "float64": 1e-12, "bfloat16": 2.0**-8}
#: The error allowed without any noise.
FLOOR = {"float32": 2e-5, "complex64": 2e-5, "float64": 1e-10, "bfloat16": 2.0**-7}
SLACK = 8
_NOISE = np.random.default_rng(0).uniform(-1, 1, 2**20)


# --- Operations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """A kind of step.

    Attributes:
        template: Python source; ``{0}`` is the first input, ``{args}`` all, ``{axis}`` a parameter.
        make: chooses inputs and parameters; None when nothing fits.
        exact: "always" if exact inputs give an exact output (and rounded ones are only moved),
            "rounds" if they do but others are rounded anew, "grid" if small multiples of 1/64 do.
        jumps: whether float inputs must be exact.
        kinks: whether they must be where a gradient is taken.
        product: whether the output's size is that of a product of the inputs.
        statement: whether the template is a statement, which has no value.
        valid: from the inputs' values and parameters to whether the result is defined.
        weight: how often it is tried.
    """

    template: str
    make: Callable[[Generator], tuple[list[str], dict[str, Any]] | None]
    exact: str
    jumps: bool
    kinks: bool
    product: bool
    statement: bool
    valid: Callable[..., bool] | None
    weight: float


OPERATIONS: dict[str, Operation] = {}

Made = tuple[list[str], dict[str, Any]] | None


def operation(
    name: str,
    template: str,
    *,
    exact: str = "never",
    jumps: bool = False,
    kinks: bool = False,
    product: bool = False,
    statement: bool = False,
    valid: Callable[..., bool] | None = None,
    weight: float = 1.0,
) -> Callable[[Callable[[Generator], Made]], Callable[[Generator], Made]]:
    """Enter the decorated chooser into the table."""

    def enter(make: Callable[[Generator], Made]) -> Callable[[Generator], Made]:
        OPERATIONS[name] = Operation(
            template, make, exact, jumps, kinks, product, statement, valid, weight
        )
        return make

    return enter


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def text(value: Any) -> str:
    """A parameter as Python source; lists are tuples."""
    return repr(_as_tuple(value))


def expression(step: dict[str, Any]) -> str:
    """The step as Python source."""
    parameters = {
        name: value
        if name in ("dtype", "function")
        else (_index_text(value) if name == "index" else text(value))
        for name, value in step["parameters"].items()
    }
    template = OPERATIONS[step["operation"]].template
    return template.format(*step["inputs"], args=", ".join(step["inputs"]), **parameters)


# --- Values --------------------------------------------------------------------------------------


@dataclass
class Value:
    """What is known about one value of a recipe.

    Attributes:
        exact: no correct implementation can differ in it.
        moving: it depends on a cell that is assigned, so the second call has another.
    """

    name: str
    array: np.ndarray
    exact: bool
    moving: bool

    @property
    def dtype(self) -> str:
        return self.array.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def top(self) -> float:
        """The largest finite magnitude."""
        return largest(self.array)

    @property
    def finite(self) -> bool:
        return self.dtype not in INEXACT or bool(np.isfinite(_wide(self.array)).all())

    @property
    def on_grid(self) -> bool:
        """Whether all elements are small multiples of 1/64."""
        if self.dtype not in INEXACT:
            return True
        wide = _wide(self.array) * 64
        return bool((np.abs(wide) < 2**17).all() and (wide == np.rint(wide)).all())


def _wide(array: np.ndarray) -> np.ndarray:
    """In float64; of complex numbers both parts, along a new last axis."""
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], -1).astype(np.float64)
    return array.astype(np.float64)


def largest(array: np.ndarray) -> float:
    """The largest finite magnitude; 0 of nothing."""
    if array.size == 0:
        return 0.0
    if array.dtype.kind in "biu":
        return float(max(abs(int(array.max())), abs(int(array.min()))))
    with np.errstate(all="ignore"):
        sizes = np.abs(array.astype(np.float32) if array.dtype.name == "bfloat16" else array)
        top = sizes.max()
        if not np.isfinite(top):
            finite = sizes[np.isfinite(sizes)]
            top = finite.max() if finite.size else 0.0
    return float(top)


def make_array(fill: str | list, dtype: str, shape: list[int], seed: int) -> np.ndarray:
    """The array of an input: random numbers of some kind, or the numbers themselves."""
    kind = palto.asarray(0, dtype=dtype).dtype
    if isinstance(fill, list):
        if dtype == "complex64":
            return np.array([complex(*part) for part in fill], kind).reshape(shape)
        return np.array(fill).astype(kind).reshape(shape)
    rng = np.random.default_rng(seed)
    if fill == "uniform":  # from 0.5 to 2
        values = rng.uniform(0.5, 2, shape)
    elif fill == "normal":
        values = rng.normal(size=shape)
        if dtype == "complex64":
            values = values + 1j * rng.normal(size=shape)
    elif fill == "grid":  # multiples of 1/4
        values = rng.integers(-16, 17, shape) / 4
    elif fill == "special":
        special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e30, -1e-30, 3.5, -2.5]
        values = rng.choice(special, shape)
    elif fill == "bits":
        values = rng.random(shape) < 0.5
    elif fill == "small":
        values = rng.integers(0 if dtype[0] == "u" else -9, 10, shape)
    elif fill == "wide":
        info = np.iinfo(kind)
        values = rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)
        ends = rng.choice(np.array([info.min, info.max], kind), shape)
        values = np.where(rng.random(shape) < 0.2, ends, values)
    elif fill == "divisor":
        choices = [1, 2, 3, 5, 7, 100] + ([] if dtype[0] == "u" else [-1, -1, -2, -7])
        values = rng.choice(choices, shape)
        values = values * 0.5 if dtype in FLOATS else values
    else:
        low, high = (int(part) for part in fill.split(":"))  # "low:high", whole numbers
        values = rng.integers(low, high, shape)
    with np.errstate(all="ignore"):
        return np.asarray(values).astype(kind)


class Invalid(Exception):
    """A recipe whose result is not defined to the precision that is compared."""


class Evaluation:
    """A recipe run step by step, with what is known about every value."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self.recipe = recipe
        self.values: dict[str, Value] = {}
        self.scope: dict[str, Any] = {"palto": palto, "nn": nn, "np": np}
        palto.manual_seed(recipe["seed"])

    def run(self) -> None:
        """All of it.

        Raises:
            Invalid: a step's result is not defined.
            Exception: whatever a step raises.
        """
        for name in self.recipe["inputs"]:
            self.add_input(name)
        for name in self.recipe["cells"]:
            self.add_cell(name)
        gradient = self.recipe["gradient"]
        for place, step in enumerate(self.recipe["steps"]):
            if gradient and place == gradient["count"]:
                self.add_gradient()
            self.add_step(step, bool(gradient) and place < gradient["count"])
        if gradient and gradient["count"] == len(self.recipe["steps"]):
            self.add_gradient()

    def add_input(self, name: str) -> None:
        array = make_array(**self.recipe["inputs"][name])
        self.scope[name] = palto.asarray(array)
        self.values[name] = Value(name, array, True, False)

    def add_cell(self, name: str) -> None:
        description = self.recipe["cells"][name]
        array = make_array(**{k: v for k, v in description.items() if k != "moving"})
        self.scope[name] = palto.Cell(array, name=name)
        moving = description["moving"]
        self.values[name] = Value(name, array, not moving or array.dtype.kind in "biu", moving)

    def add_step(self, step: dict[str, Any], in_gradient: bool) -> None:
        kind = OPERATIONS[step["operation"]]
        inputs = [self.values[name] for name in step["inputs"]]
        exact = all(value.exact for value in inputs)
        if not exact and (kind.jumps or (kind.kinks and in_gradient)):
            raise Invalid(f"{step['operation']} of a rounded value")
        if kind.valid is not None and not kind.valid(inputs, **step["parameters"]):
            raise Invalid(f"{step['operation']} out of range")
        if kind.statement:
            for line in expression(step).split("; "):
                exec(line, self.scope)
            return
        result = eval(expression(step), self.scope)
        name = step["name"]
        self.scope[name] = result
        array = result.array()
        moving = any(value.moving for value in inputs)
        value = Value(name, array, True, moving)
        if array.dtype.name in INEXACT:
            if kind.exact == "grid" and exact:
                exact = all(part.on_grid for part in inputs) and value.on_grid
                if kind.product and exact:
                    elements = max((part.array.size for part in inputs), default=1)
                    exact = math.prod(max(part.top, 1) for part in inputs) * elements < 2**12
                elif exact:
                    exact = sum(part.top * max(part.array.size, 1) for part in inputs) < 2**16
            value.exact = exact and kind.exact != "never" and not moving
        self.values[name] = value

    def add_gradient(self) -> None:
        lines = gradient_lines(self.recipe, noted=None)
        exec("\n".join(lines), self.scope)
        names = [f"g{i}" for i in range(len(self.recipe["gradient"]["to"]))]
        for name in ("loss", *names):
            self.values[name] = Value(name, self.scope[name].array(), False, True)


# --- Source --------------------------------------------------------------------------------------


def _line(step: dict[str, Any], noted: Evaluation | None, indent: str) -> list[str]:
    kind, source = OPERATIONS[step["operation"]], expression(step)
    if kind.statement:
        return [indent + line for line in source.split("; ")]
    if noted is not None:
        inputs = "".join(f", {name}" for name in step["inputs"])
        steady = noted.values[step["name"]].exact or kind.exact == "always"
        source = f"note({step['name']!r}, {source}, {steady}, {kind.product}{inputs})"
    return [f"{indent}{step['name']} = {source}"]


def gradient_lines(recipe: dict[str, Any], noted: Evaluation | None) -> list[str]:
    """The part of the function whose gradient is taken."""
    gradient = recipe["gradient"]
    inner, outer = recipe["steps"][: gradient["count"]], recipe["steps"][gradient["count"] :]
    wanted = [name for step in outer for name in step["inputs"]] + recipe["returns"]
    kept = [step["name"] for step in inner if step["name"] in wanted]
    to = gradient["to"]
    arguments = ", ".join(to)
    tuple_of = "".join(f"palto.detach({name}), " for name in kept)
    lines = [f"def scalar({arguments}):"]
    for step in inner:
        lines += _line(step, noted, "    ")
    loss = gradient["form"].format(gradient["loss"])
    lines += [f"    return {loss}, ({tuple_of})"]
    places = text(list(range(len(to))))
    left = f"(loss, ({''.join(f'{name}, ' for name in kept)}))"
    if not kept:
        left = "(loss, _)"
    grads = "".join(f"g{i}, " for i in range(len(to)))
    lines += [
        f"{left}, ({grads}) = palto.value_and_grad(scalar, {places}, has_aux=True)({arguments})"
    ]
    if noted is not None:
        steps = text([step["name"] for step in inner])
        found = "".join(f"g{i}, " for i in range(len(to)))
        lines += [f"loss, {found}= note.gradient((loss, {found}), ({arguments},), {steps})"]
    return lines


def source_of(recipe: dict[str, Any], noted: Evaluation | None = None) -> str:
    """The recipe as a Python function; `noted`, with every value passed through note()."""
    lines = []
    gradient = recipe["gradient"]
    count = gradient["count"] if gradient else 0
    if gradient:
        lines += gradient_lines(recipe, noted)
    for step in recipe["steps"][count:]:
        lines += _line(step, noted, "")
    returns = "".join(f"{name}, " for name in recipe["returns"])
    body = "\n".join(f"    {line}" for line in [*lines, f"return ({returns})"])
    return f"def function({', '.join(recipe['inputs'])}):\n{body}\n"


def snippet(recipe: dict[str, Any]) -> str:
    """A program that shows what the function gives at once and compiled."""
    lines = ["import numpy as np", "import palto", "from palto import nn"]
    if "inf" in str(recipe) or "nan" in str(recipe):
        lines += ["from numpy import inf, nan"]
    described = {**recipe["inputs"], **recipe["cells"]}
    if not all(isinstance(part["fill"], list) for part in described.values()):
        lines += ["from tests.compiler.fuzz import make_array"]
    lines += [f"palto.manual_seed({recipe['seed']})"]
    for name, part in described.items():
        part = {k: v for k, v in part.items() if k != "moving"}
        fill, dtype, shape = part["fill"], part["dtype"], tuple(part["shape"])
        if isinstance(fill, list):
            numbers = str([complex(*x) for x in fill] if dtype == "complex64" else fill)
            value = f"np.array({numbers}).astype({dtype!r}).reshape({shape})"
            if dtype == "bfloat16":
                value = f"np.array({numbers}).astype(palto.bfloat16).reshape({shape})"
        else:
            value = (
                f"make_array(fill={fill!r}, dtype={dtype!r}, shape={shape}, seed={part['seed']})"
            )
        lines += [
            f"{name} = {value}" if name in recipe["inputs"] else f"{name} = palto.Cell({value})"
        ]
    lines += ["", "", source_of(recipe).rstrip(), "", ""]
    arguments = ", ".join(f"palto.asarray({name})" for name in recipe["inputs"])
    states = ", ".join(f"{name}.read()" for name in recipe["cells"])
    state = f", {states}" if states else ""
    lines += [f"# print(function({arguments}){state})  # at once"]
    lines += [f"print(palto.compile(function)({', '.join(recipe['inputs'])}){state})"]
    return "\n".join(lines) + "\n"


# --- Making recipes ------------------------------------------------------------------------------


class Generator:
    """Makes the recipe of a seed, running every step as it goes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.recipe: dict[str, Any] = {
            "seed": seed, "inputs": {}, "cells": {}, "steps": [], "gradient": None, "returns": [],
        }  # fmt: skip
        self.evaluation = Evaluation(self.recipe)
        self.in_gradient = False
        self.limit = self.random.choices([300, 3000, 60_000], [80, 18, 2])[0]

    @property
    def values(self) -> dict[str, Value]:
        return self.evaluation.values

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def length(self) -> int:
        if self.chance(0.02):
            return 0
        return self.random.choice(LENGTHS if self.chance(0.6) else LENGTHS[:5])

    def shape(self, least: int = 0, most: int = 4) -> list[int]:
        weights = [1, 4, 6, 4, 2][least : most + 1]
        for _ in range(50):
            ndim = self.random.choices(range(least, most + 1), weights)[0]
            shape = [self.length() for _ in range(ndim)]
            if math.prod(shape) <= self.limit:
                return shape
        return [2] * least

    def dtype(self, among: tuple[str, ...]) -> str:
        return self.random.choices(among, [DTYPE_WEIGHTS[name] for name in among])[0]

    def fill(self, dtype: str, *, special: bool = True) -> str:
        if dtype == "bool":
            return "bits"
        if dtype in INTEGERS:
            return self.random.choice(["small", "small", "wide"])
        if dtype == "complex64":
            return "normal"
        kinds, weights = ["normal", "grid", "uniform", "special"], [5, 4, 2, 0.4 * special]
        return self.random.choices(kinds, weights)[0]

    def new(self, dtype: str, shape: Any, fill: str | None = None) -> str:
        """A new input, or a cell."""
        is_cell = not self.in_gradient and self.chance(0.15)
        where = self.recipe["cells" if is_cell else "inputs"]
        name = f"{'c' if is_cell else 'x'}{len(where)}"
        where[name] = {
            "dtype": dtype, "shape": list(shape), "fill": fill or self.fill(dtype),
            "seed": self.random.randrange(10**6),
        }  # fmt: skip
        if is_cell:
            # What must stay in a range (an index, a divisor) may not move.
            where[name]["moving"] = fill is None and self.chance(0.7)
            self.evaluation.add_cell(name)
        else:
            self.evaluation.add_input(name)
        return name

    def pick(
        self,
        dtypes: tuple[str, ...],
        *,
        least: int = 0,
        most: int = 4,
        exact: bool = False,
        test: Callable[[Value], bool] | None = None,
        fresh: float = 0.2,
    ) -> Value:
        """A value of one of these dtypes, often a late one, or a new input."""
        if not self.chance(fresh):
            fitting = [
                value
                for value in self.values.values()
                if value.dtype in dtypes
                and least <= value.ndim <= most
                and (value.exact or not exact)
                and (test is None or test(value))
            ]
            if fitting:
                return fitting[-1 - int(len(fitting) * self.random.random() ** 2)]
        for _ in range(20):
            name = self.new(self.dtype(dtypes), self.shape(least, most))
            value = self.values[name]
            if test is None or test(value):
                break
        return value

    def beside(self, x: Value, *, fill: str | None = None, exact: bool = False) -> Value:
        """A value of the dtype of `x` that broadcasts with it."""
        if fill is None and self.chance(0.55):
            fitting = [
                y
                for y in self.values.values()
                if y.dtype == x.dtype and (y.exact or not exact) and _broadcast(x.shape, y.shape)
            ]
            if fitting:
                return self.random.choice(fitting)
        shape = [n if self.chance(0.75) else 1 for n in x.shape]
        if self.chance(0.2):
            shape = shape[self.random.randint(0, len(shape)) :]
        if len(shape) < 4 and self.chance(0.05):
            shape = [2, *shape]
        if self.chance(0.3):  # ones of x's own grow
            shape = [
                self.random.choice(LENGTHS[:6])
                if n == 1 and (i >= len(x.shape) or x.shape[::-1][i] == 1)
                else n
                for i, n in enumerate(shape[::-1])
            ][::-1]
        return self.values[self.new(x.dtype, shape, fill)]

    def axis(self, x: Value) -> int:
        return self.random.randrange(-x.ndim, x.ndim)

    def axes(self, x: Value) -> list[int] | int | None:
        if x.ndim == 0 or self.chance(0.15):
            return None
        if self.chance(0.4):
            return self.axis(x)
        return sorted(self.random.sample(range(x.ndim), self.random.randint(1, x.ndim)))

    def try_step(self, name: str) -> bool:
        """Append a step of this operation, if one can be made."""
        inputs, cells = len(self.recipe["inputs"]), len(self.recipe["cells"])
        step = None
        try:
            made = OPERATIONS[name].make(self)
            if made is not None:
                names, parameters = made
                names = [x.name if isinstance(x, Value) else x for x in names]
                step = {
                    "name": None
                    if OPERATIONS[name].statement
                    else f"v{sum(s['name'] is not None for s in self.recipe['steps'])}",
                    "operation": name,
                    "inputs": names,
                    "parameters": parameters,
                }
                self.evaluation.add_step(step, self.in_gradient)
                if step["name"] and self.values[step["name"]].array.size > 4 * self.limit:
                    del self.values[step["name"]]
                    step = None
        except (Invalid, ValueError, TypeError):
            step = None
        if step is None:  # what was made for it stays out
            for kind, count in (("inputs", inputs), ("cells", cells)):
                for extra in list(self.recipe[kind])[count:]:
                    del self.recipe[kind][extra], self.values[extra]
            return False
        self.recipe["steps"].append(step)
        return True

    def make(self) -> dict[str, Any]:
        """The recipe."""
        wanted = self.random.randint(6, 15)
        with_gradient = self.chance(0.4)
        section = self.random.randint(2, 7) if with_gradient else 0
        self.in_gradient = section > 0
        tries = 0
        while len(self.recipe["steps"]) < wanted and tries < 6 * wanted:
            tries += 1
            if self.in_gradient and len(self.recipe["steps"]) >= section:
                self.end_gradient()
            self.try_step(self.random.choices(_NAMES, _WEIGHTS)[0])
        if self.in_gradient:
            self.end_gradient()
        self.choose_returns()
        return self.recipe

    def end_gradient(self) -> None:
        self.in_gradient = False
        to = [name for name, part in self.recipe["inputs"].items() if part["dtype"] in FLOATS]
        floats = [
            step["name"]
            for step in self.recipe["steps"]
            if step["name"] and self.values[step["name"]].dtype in FLOATS
        ]
        if not to or not floats:
            return
        self.random.shuffle(to)
        self.recipe["gradient"] = {
            "count": len(self.recipe["steps"]),
            "loss": floats[-1],
            "form": self.random.choice(
                ["palto.sum({})", "palto.mean(palto.square({}))", "palto.sum(palto.tanh({}))"]
            ),
            "to": to[: self.random.randint(1, 4)],
        }
        try:
            self.evaluation.add_gradient()
        except (ValueError, TypeError, palto.BackwardError):
            self.recipe["gradient"] = None

    def choose_returns(self) -> None:
        names = [name for name in self.values if name[0] in "vgl"]
        used = {name for step in self.recipe["steps"] for name in step["inputs"]}
        ends = [name for name in names if name not in used]
        others = [name for name in names if name in used and self.chance(0.2)]
        extra = [name for name in self.values if name[0] in "xc" and self.chance(0.03)]
        self.recipe["returns"] = [*ends, *others, *extra]


def _broadcast(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    pairs = zip(first[::-1], second[::-1], strict=False)
    return all(n == m or 1 in (n, m) for n, m in pairs)


def make_recipe(seed: int) -> tuple[dict[str, Any], Evaluation]:
    """The recipe of a seed, and its values."""
    generator = Generator(seed)
    with np.errstate(all="ignore"):
        return generator.make(), generator.evaluation


# --- Elementwise ---------------------------------------------------------------------------------


def _unary(
    name: str,
    template: str,
    dtypes: tuple[str, ...] = FLOATS,
    *,
    test: Callable[[Value], bool] | None = None,
    weight: float = 0.5,
    **options: Any,
) -> None:
    jumps, kinks = options.get("jumps", False), options.get("kinks", False)

    @operation(name, template, weight=weight, **options)
    def make(g: Generator) -> Made:
        exact = jumps or (kinks and g.in_gradient)
        return [g.pick(dtypes, exact=exact, test=test)], {}


def _below(limit: float) -> Callable[[Value], bool]:
    return lambda value: value.top < limit


_FUNCTIONAL = "nn.functional"
for _name, _template in {
    "exp": "palto.exp({0})",
    "expm1": "palto.expm1({0})",
    "sinh": "palto.sinh({0})",
    "cosh": "palto.cosh({0})",
}.items():
    _unary(_name, _template, test=_below(30))
    _unary(f"{_name} of tanh", _template.replace("{0}", "palto.tanh({0})"), weight=0.3)
_unary("exp anywhere", "palto.exp({0})", weight=0.1)
for _name, _domain in {
    "log": "palto.abs({0}) + 0.5",
    "log1p": "palto.abs({0}) + 0.1",
    "log2": "palto.square({0}) + 0.25",
    "log10": "palto.square({0}) + 0.25",
    "sqrt": "palto.square({0}) + 0.25",
    "rsqrt": "palto.square({0}) + 0.25",
    "reciprocal": "palto.square({0}) + 0.5",
    "asin": "0.9 * palto.tanh({0})",
    "acos": "0.9 * palto.sin({0})",
    "acosh": "palto.square({0}) + 1.5",
    "atanh": "0.9 * palto.tanh({0})",
    "tan": "palto.tanh({0})",
}.items():
    _test = _below(1e4) if "sin(" in _domain else None
    _unary(f"{_name} inside", f"palto.{_name}({_domain})", kinks="abs" in _domain, test=_test)
    _unary(f"{_name} anywhere", f"palto.{_name}({{0}})", test=_below(1e4), weight=0.06)
_unary("sin", "palto.sin({0})", test=_below(1e4))
_unary("cos", "palto.cos({0})", test=_below(1e4))
for _name in ("tanh", "atan", "asinh", "erf"):
    _unary(_name, f"palto.{_name}({{0}})", weight=0.8)
for _name in ("sigmoid", "softplus", "silu", "gelu", "elu"):
    # Their bodies hold a kink at zero that cancels; it is no jump.
    _unary(_name, f"{_FUNCTIONAL}.{_name}({{0}})", ("float32",), weight=0.5)
_unary("gelu tanh", f"{_FUNCTIONAL}.gelu({{0}}, approximate='tanh')", ("float32",))
for _name in ("relu", "leaky_relu", "hardtanh"):
    _unary(
        _name, f"{_FUNCTIONAL}.{_name}({{0}})", kinks=True, weight=1 if _name == "relu" else 0.3,
        exact="never" if _name == "leaky_relu" else "always",
    )  # fmt: skip
for _name in ("floor", "ceil", "round", "trunc"):
    _unary(_name, f"palto.{_name}({{0}})", REAL, jumps=True, exact="always", weight=0.3)
_unary("sign", "palto.sign({0})", REAL, jumps=True, exact="always", weight=0.3)
_unary("abs", "palto.abs({0})", REAL, kinks=True, exact="always")
_unary("abs of complex", "palto.abs({0})", ("complex64",), weight=0.3)
_unary("negative", "palto.negative({0})", NUMERIC, exact="always")
_unary("positive", "palto.positive({0})", NUMERIC, exact="always", weight=0.1)
_unary("square", "palto.square({0})", NUMERIC, exact="grid", product=True)
_unary("bitwise_invert", "palto.bitwise_invert({0})", (*INTEGERS, "bool"), exact="always")
_unary("logical_not", "palto.logical_not({0})", ("bool",), exact="always", weight=0.3)
for _name in ("isnan", "isinf", "isfinite"):
    _unary(_name, f"palto.{_name}({{0}})", jumps=True, exact="always", weight=0.2)
_unary("real", "palto.real({0})", ("complex64",), exact="always", weight=0.3)
_unary("imag", "palto.imag({0})", ("complex64",), exact="always", weight=0.3)
_unary("conj", "palto.conj({0})", NUMERIC, exact="always", weight=0.2)
_unary("exp of complex", "palto.exp({0})", ("complex64",), test=_below(20), weight=0.3)
_unary("detach", "palto.detach({0})", DTYPES, exact="always", weight=0.2)


def _binary(
    name: str,
    template: str,
    dtypes: tuple[str, ...],
    *,
    fill: str | None = None,
    test: Callable[[Value], bool] | None = None,
    swap: bool = True,
    weight: float = 1.0,
    **options: Any,
) -> None:
    jumps, kinks = options.get("jumps", False), options.get("kinks", False)

    @operation(name, template, weight=weight, **options)
    def make(g: Generator) -> Made:
        exact = jumps or (kinks and g.in_gradient)
        x = g.pick(dtypes, exact=exact, test=test, fresh=0.1)
        pair = [x, g.beside(x, fill=fill, exact=exact)]
        return (pair[::-1] if swap and fill is None and g.chance(0.5) else pair), {}


def _nonzero(values: list[Value], **_: Any) -> bool:
    x, y = values
    settled = y.name[0] == "x" or not y.moving
    if y.dtype in FLOATS:
        return settled and x.top < 1e6
    return settled and bool(y.array.all())


def _natural(values: list[Value], **_: Any) -> bool:
    return not values[1].moving and int(values[1].array.min(initial=0)) >= 0


for _name in ("add", "subtract"):
    _binary(_name, f"palto.{_name}({{0}}, {{1}})", NUMERIC, exact="grid", weight=3)
_binary("multiply", "palto.multiply({0}, {1})", NUMERIC, exact="grid", product=True, weight=3)
_binary("divide", "palto.divide({0}, {1})", FLOATS, fill="uniform", weight=1)
_binary("divide anywhere", "palto.divide({0}, {1})", FLOATS, weight=0.2)
_binary("divide complex", "palto.divide({0}, {1})", ("complex64",), fill="normal", weight=0.2)
for _name in ("maximum", "minimum"):
    _binary(_name, f"palto.{_name}({{0}}, {{1}})", REAL, exact="always", kinks=True, weight=0.7)
_binary("atan2", "palto.atan2({0}, {1})", FLOATS, jumps=True, weight=0.4)
_binary("atan2 right", "palto.atan2({0}, palto.square({1}) + 0.5)", FLOATS, weight=0.2)
_binary("pow", "palto.pow(palto.square({0}) + 0.5, palto.tanh({1}))", FLOATS, weight=0.5)
_binary("pow of whole", "palto.pow({0}, {1})", INTEGERS, fill="0:5", weight=0.3, exact="always",
        valid=_natural)  # fmt: skip
for _name in ("floor_divide", "remainder"):
    _binary(_name, f"palto.{_name}({{0}}, {{1}})", REAL, fill="divisor", jumps=True,
            valid=_nonzero, weight=0.5)  # fmt: skip
for _name in ("and", "or", "xor"):
    _binary(f"bitwise_{_name}", f"palto.bitwise_{_name}({{0}}, {{1}})", (*INTEGERS, "bool"),
            exact="always", weight=0.5)  # fmt: skip
    _binary(f"logical_{_name}", f"palto.logical_{_name}({{0}}, {{1}})", ("bool",),
            exact="always", weight=0.2)  # fmt: skip
for _name in ("left", "right"):
    _binary(f"bitwise_{_name}_shift", f"palto.bitwise_{_name}_shift({{0}}, {{1}})", INTEGERS,
            fill="0:9", exact="always", weight=0.3,
            valid=lambda values: not values[1].moving and values[1].top < 9
            and int(values[1].array.min(initial=0)) >= 0)  # fmt: skip
_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
for _name in _COMPARISONS:
    _binary(_name, f"palto.{_name}({{0}}, {{1}})",
            NUMERIC if "equal" in _name and len(_name) < 10 else (*REAL, "bool"),
            jumps=True, exact="always", weight=0.5)  # fmt: skip
_binary("complex", "palto.complex({0}, {1})", ("float32",), exact="always", weight=0.3)
_binary("huber_loss", f"{_FUNCTIONAL}.huber_loss(*palto.broadcast_arrays({{0}}, {{1}}))",
        ("float32",), kinks=True, weight=0.3)  # fmt: skip
_binary("mse_loss", f"{_FUNCTIONAL}.mse_loss(*palto.broadcast_arrays({{0}}, {{1}}))",
        ("float32",), weight=0.3)  # fmt: skip


@operation("with a number", "{0} {function} {number}", weight=2.0)
def _with_number(g: Generator) -> Made:
    x = g.pick(NUMERIC, fresh=0.05)
    if x.dtype in INTEGERS:
        return [x], {"function": g.random.choice("+-*"), "number": g.random.randint(0, 7)}
    number = g.random.choice([0.5, -1.0, 2.0, 0.1, 3, 0.0])
    function = g.random.choice("+-*/" if number else "+-*")
    return [x], {"function": function, "number": number}


@operation("number with", "{number} {function} palto.asarray({0})", weight=0.7)
def _number_with(g: Generator) -> Made:
    made = _with_number(g)
    if made is not None and made[1]["function"] == "/":
        made[1]["function"] = "-"
    return made


@operation("power", "palto.asarray({0}) ** {number}", weight=0.5)
def _power(g: Generator) -> Made:
    x = g.pick(FLOATS)
    return [x], {"number": g.random.choice([1, 2, 3, 4] + [0.5, -1, 1.5] * (x.name[0] == "x"))}


@operation("compare with a number", "{0} {function} {number}", jumps=True, weight=1.0)
def _compare_number(g: Generator) -> Made:
    x = g.pick(REAL, exact=True)
    number = g.random.choice([0, 1, 2, 0.25] if x.dtype in FLOATS else [0, 1, 2])
    return [x], {"function": g.random.choice(["<", "<=", ">", ">=", "==", "!="]), "number": number}


@operation("where", "palto.where({0}, {1}, {2})", exact="always", weight=2.0)
def _where(g: Generator) -> Made:
    x = g.pick(DTYPES)
    y = g.beside(x)
    condition = g.values[g.new("bool", x.shape)]
    bools = [v for v in g.values.values() if v.dtype == "bool" and _broadcast(v.shape, x.shape)]
    if bools and g.chance(0.8):
        condition = g.random.choice(bools)
    return [condition, x, y], {}


@operation("where with a number", "palto.where({0}, {1}, {number})", exact="always")
def _where_number(g: Generator) -> Made:
    x = g.pick(REAL)
    bools = [v for v in g.values.values() if v.dtype == "bool" and _broadcast(v.shape, x.shape)]
    condition = g.random.choice(bools) if bools else g.new("bool", x.shape)
    return [condition, x], {"number": 0 if g.chance(0.6) else 1}


@operation("clip", "palto.clip({0}, {low}, {high})", kinks=True, exact="always", weight=0.5)
def _clip(g: Generator) -> Made:
    return [g.pick(FLOATS, exact=g.in_gradient)], {
        "low": g.random.choice([None, -1.0, 0.5]),
        "high": g.random.choice([None, 1.0, 2.0]),
    }


def _castable(values: list[Value], dtype: str) -> bool:
    x = values[0]
    to = dtype.removeprefix("palto.")
    if x.dtype not in INEXACT or to in (*INEXACT, "bool"):
        return True
    low = 0 if to[0] == "u" else -100
    wide = _wide(x.array)
    return not x.moving and bool(np.isfinite(wide).all() and (wide >= low).all() and x.top <= 100)


@operation("cast", "palto.astype({0}, {dtype})", exact="rounds", valid=_castable, weight=2.0)
def _cast(g: Generator) -> Made:
    x = g.pick(DTYPES)
    to = g.random.choices(DTYPES, [8 if d == "float32" else 1 for d in DTYPES])[0]
    if to == x.dtype or (to not in INEXACT and not x.exact):
        return None
    return [x], {"dtype": f"palto.{to}"}


# --- Reductions ----------------------------------------------------------------------------------


def _reduction(
    name: str,
    dtypes: tuple[str, ...],
    *,
    template: str | None = None,
    weight: float = 0.6,
    **options: Any,
) -> None:
    jumps, kinks = options.get("jumps", False), options.get("kinks", False)
    source = template or f"palto.{name}({{0}}, {{axis}}, keepdims={{keepdims}})"

    @operation(name, source, weight=weight, **options)
    def make(g: Generator) -> Made:
        x = g.pick(dtypes, exact=jumps or (kinks and g.in_gradient), fresh=0.1)
        return [x], {"axis": g.axes(x), "keepdims": g.chance(0.3)}


_reduction("sum", (*NUMERIC, "bool"), exact="grid", weight=2)
_reduction("mean", (*FLOATS, "complex64"), weight=1)
_reduction("var", (*FLOATS, "complex64"))
_reduction("max", (*REAL, "bool"), exact="always", kinks=True, weight=1)
_reduction("min", (*REAL, "bool"), exact="always", kinks=True)
_reduction("logsumexp", ("float32", "float64"))
_reduction("any", (*REAL, "bool"), jumps=True, weight=0.4)
_reduction("all", (*REAL, "bool"), jumps=True, weight=0.4)
_reduction("prod", FLOATS, weight=0.3,
           template="palto.prod(palto.tanh({0}) + 1.2, {axis}, keepdims={keepdims})")  # fmt: skip
_reduction("vector_norm", FLOATS,
           template="palto.vector_norm({0}, axis={axis}, keepdims={keepdims})",
           kinks=True, weight=0.3)  # fmt: skip
_reduction("std", FLOATS, template="palto.sqrt(palto.var({0}, {axis}, keepdims={keepdims}) + 0.1)",
           weight=0.3)  # fmt: skip


def _along(
    name: str,
    template: str,
    dtypes: tuple[str, ...],
    *,
    weight: float = 0.6,
    extra: Callable[[Generator, Value], dict[str, Any]] = lambda g, x: {},
    **options: Any,
) -> None:
    @operation(name, template, weight=weight, **options)
    def make(g: Generator) -> Made:
        x = g.pick(dtypes, least=1, exact=options.get("jumps", False))
        return [x], {"axis": g.axis(x), **extra(g, x)}


_ORDERED = (*REAL, "bool")
_along("cumulative_sum", "palto.cumulative_sum({0}, axis={axis})", (*NUMERIC, "bool"), exact="grid")
_along("argmax", "palto.argmax({0}, {axis})", _ORDERED, jumps=True)
_along("argmin", "palto.argmin({0}, {axis})", _ORDERED, jumps=True, weight=0.3)
_along("median", "palto.median({0}, {axis})", FLOATS, jumps=True, weight=0.2)
_along("sort", "palto.sort({0}, axis={axis}, descending={descending})", _ORDERED, jumps=True,
       exact="always", extra=lambda g, x: {"descending": g.chance(0.5)})  # fmt: skip
_along("argsort", "palto.argsort({0}, axis={axis}, descending={descending})", _ORDERED,
       jumps=True, extra=lambda g, x: {"descending": g.chance(0.5)})  # fmt: skip
_along("top_k", "palto.top_k({0}, min({k}, palto.asarray({0}).shape[{axis}]), axis={axis})"
       "[{part}]", _ORDERED, jumps=True, exact="always",
       extra=lambda g, x: {"k": g.random.randint(0, 4), "part": int(g.chance(0.5))})  # fmt: skip
_along("softmax", f"{_FUNCTIONAL}.softmax({{0}}, {{axis}})", FLOATS, weight=1)
#: Passes over rows in a row, whose results share memory with what they read.
_along(
    "softmax beside itself",
    f"{_FUNCTIONAL}.softmax({{0}}, {{axis}}) + {{0}} * 0.1",
    FLOATS,
    weight=2,
)
_along("log_softmax", f"{_FUNCTIONAL}.log_softmax({{0}}, {{axis}})", FLOATS)
_along("fft", "palto.fft.fft({0}, axis={axis})", ("float32", "complex64"))
_along("ifft", "palto.fft.ifft({0}, axis={axis})", ("complex64",), weight=0.3)
_along("rfft", "palto.fft.rfft({0}, axis={axis})", ("float32",))
_along("irfft", "palto.fft.irfft({0}, axis={axis}, n={n})", ("complex64",), weight=0.3,
       extra=lambda g, x: {"n": g.random.choice([1, 4, 7, 16])})  # fmt: skip


# --- Movement ------------------------------------------------------------------------------------


@operation("reshape", "palto.reshape({0}, {shape})", exact="always", weight=2.0)
def _reshape(g: Generator) -> Made:
    x = g.pick(DTYPES, fresh=0.05)
    rest, shape = x.array.size, []
    if rest == 0:
        return [x], {"shape": g.random.choice([[0], [3, 0], [0, 2]])}
    for _ in range(g.random.randint(0, 3)):
        divisor = g.random.choice([d for d in (1, 2, 3, 4, 5, 7, 8, 16) if rest % d == 0])
        shape.append(divisor)
        rest //= divisor
    shape.insert(g.random.randint(0, len(shape)), rest)
    return [x], {"shape": shape}


@operation("permute_dims", "palto.permute_dims({0}, {axes})", exact="always", weight=2.5)
def _permute(g: Generator) -> Made:
    x = g.pick(DTYPES, least=2, fresh=0.1)
    order = list(range(x.ndim))
    g.random.shuffle(order)
    return [x], {"axes": order}


@operation("broadcast_to", "palto.broadcast_to({0}, {shape})", exact="always", weight=1.0)
def _broadcast_to(g: Generator) -> Made:
    x = g.pick(DTYPES, most=3)
    shape = [g.random.choice([2, 3, 8]) if n == 1 and g.chance(0.8) else n for n in x.shape]
    if g.chance(0.6):
        shape = [g.length(), *shape]
    return [x], {"shape": shape}


@operation(
    "pad",
    "palto.tensor.functions.pad_widths({0}, {low}, {high}, {interior}, value={value})",
    exact="always",
    weight=1.0,
)
def _pad(g: Generator) -> Made:
    x = g.pick(DTYPES, least=1)

    def widths() -> list[int]:
        return [g.random.choice([0, 0, 1, 2, 3]) for _ in range(x.ndim)]

    interior = widths() if g.chance(0.4) else [0] * x.ndim
    value = 1 if x.dtype != "bool" and g.chance(0.3) else 0
    return [x], {"low": widths(), "high": widths(), "interior": interior, "value": value}


@operation("slice", "palto.asarray({0})[{index}]", exact="always", weight=2.5)
def _slice(g: Generator) -> Made:
    x = g.pick(DTYPES, least=1, fresh=0.1)
    parts = []
    for n in x.shape:
        kind = g.random.random()
        if kind < 0.35:
            parts.append(["whole"])
        elif kind < 0.5 and n:
            parts.append(["at", g.random.randrange(-n, n)])
        elif kind < 0.55:
            parts.append(["new"])
            parts.append(["whole"])
        else:
            start, stop = (g.random.choice([None, g.random.randint(-n, n)]) for _ in range(2))
            parts.append(["slice", start, stop, g.random.choice([None, 1, 2, 3, -1, -1, -2])])
    return [x], {"index": parts}


def _index_text(parts: list[list[Any]]) -> str:
    texts = []
    for kind, *numbers in parts:
        if kind == "whole":
            texts.append(":")
        elif kind == "at":
            texts.append(str(numbers[0]))
        elif kind == "new":
            texts.append("None")
        else:
            texts.append(":".join("" if n is None else str(n) for n in numbers))
    return ", ".join(texts)


_along("flip", "palto.flip({0}, axis={axis})", DTYPES, exact="always", weight=1)
_along("roll", "palto.roll({0}, {shift}, axis={axis})", DTYPES, exact="always", weight=1,
       extra=lambda g, x: {"shift": g.random.randint(-9, 9)})  # fmt: skip
_along("repeat", "palto.repeat({0}, {repeats}, axis={axis})", DTYPES, exact="always", weight=0.3,
       extra=lambda g, x: {"repeats": g.random.randint(0, 3)})  # fmt: skip
_along("moveaxis", "palto.moveaxis({0}, {axis}, {to})", DTYPES, exact="always", weight=0.4,
       extra=lambda g, x: {"to": g.axis(x)})  # fmt: skip
_along("expand_dims", "palto.expand_dims({0}, {axis})", DTYPES, exact="always", weight=0.4)


@operation("tile", "palto.tile({0}, {repetitions})", exact="always", weight=0.2)
def _tile(g: Generator) -> Made:
    x = g.pick(DTYPES, most=3)
    return [x], {"repetitions": [g.random.randint(1, 3) for _ in range(g.random.randint(1, 3))]}


def _joining(g: Generator, same: bool) -> Made:
    x = g.pick(DTYPES, least=0 if same else 1, most=3)
    axis = g.random.randint(0, x.ndim if same else x.ndim - 1)
    parts = [x]
    for _ in range(g.random.randint(1, 2)):
        fitting = [
            y
            for y in g.values.values()
            if y.dtype == x.dtype
            and y.ndim == x.ndim
            and all(n == m or (i == axis and not same) for i, (n, m) in enumerate(
                zip(y.shape, x.shape, strict=True)))
        ]  # fmt: skip
        if fitting and g.chance(0.7):
            parts.append(g.random.choice(fitting))
        else:
            shape = list(x.shape)
            if not same:
                shape[axis] = g.random.randint(0, 5)
            parts.append(g.values[g.new(x.dtype, shape)])
    g.random.shuffle(parts)
    return parts, {"axis": axis}


@operation("concat", "palto.concat([{args}], axis={axis})", exact="always", weight=1.5)
def _concat(g: Generator) -> Made:
    return _joining(g, same=False)


@operation("stack", "palto.stack([{args}], axis={axis})", exact="always", weight=0.8)
def _stack(g: Generator) -> Made:
    return _joining(g, same=True)


for _name in ("tril", "triu"):

    @operation(_name, f"palto.{_name}({{0}}, k={{k}})", exact="always", weight=0.5)
    def _triangle(g: Generator) -> Made:
        return [g.pick(NUMERIC, least=2)], {"k": g.random.randint(-2, 2)}


@operation("arange", "palto.arange({start}, {stop}, {step}, dtype={dtype})", exact="always")
def _arange(g: Generator) -> Made:
    return [], {
        "start": g.random.randint(-3, 3), "stop": g.random.choice([0, 5, 17, 40]),
        "step": g.random.choice([1, 1, 2, 3]),
        "dtype": f"palto.{g.random.choice(['float32', 'int64', 'int32', 'float64'])}",
    }  # fmt: skip


@operation("linspace", "palto.linspace({start}, {stop}, {number})", weight=0.3)
def _linspace(g: Generator) -> Made:
    return [], {"start": -1.0, "stop": g.random.choice([0.5, 3.0]), "number": g.length()}


@operation("eye", "palto.eye({rows}, {columns}, k={k})", exact="always", weight=0.2)
def _eye(g: Generator) -> Made:
    return [], {"rows": g.length(), "columns": g.length(), "k": g.random.randint(-1, 1)}


@operation("full", "palto.full({shape}, {number})", exact="always", weight=0.3)
def _full(g: Generator) -> Made:
    return [], {"shape": g.shape(), "number": g.random.choice([0.0, 1.5, 3, True])}


@operation("one_hot", "palto.one_hot({0}, {classes})", exact="always", weight=0.4)
def _one_hot(g: Generator) -> Made:
    return [g.pick(INTEGERS, most=3)], {"classes": g.random.choice([0, 1, 5, 16])}


# --- Contractions --------------------------------------------------------------------------------


@operation("matmul", "palto.matmul({0}, {1})", exact="grid", product=True, weight=4.0)
def _matmul(g: Generator) -> Made:
    x = g.pick((*FLOATS, *FLOATS, "int64", "int32", "complex64"), least=1, fresh=0.15)
    fitting = [
        y
        for y in g.values.values()
        if y.dtype == x.dtype
        and y.ndim
        and y.shape[-2 if y.ndim > 1 else 0] == x.shape[-1]
        and (y.ndim < 3 or x.ndim < 3 or _broadcast(x.shape[:-2], y.shape[:-2]))
    ]
    if fitting and g.chance(0.5):
        return [x, g.random.choice(fitting)], {}
    inner = x.shape[-1]
    kind = g.random.random()
    if kind < 0.15:
        shape = [inner]
    elif kind < 0.75 or x.ndim < 3:
        shape = [inner, g.length()]
    else:
        shape = [*(n if g.chance(0.8) else 1 for n in x.shape[:-2]), inner, g.length()]
    return [x, g.new(x.dtype, shape, None if x.dtype in INTEGERS else "normal")], {}


@operation(
    "matmul transposed",
    "palto.matmul({0}, palto.matrix_transpose({1}))",
    exact="grid",
    product=True,
    weight=1.5,
)
def _matmul_transposed(g: Generator) -> Made:
    x = g.pick(FLOATS, least=2, fresh=0.1)
    fitting = [y for y in g.values.values() if y.dtype == x.dtype and y.ndim == 2
               and y.shape[-1] == x.shape[-1]]  # fmt: skip
    y = g.random.choice(fitting) if fitting and g.chance(0.5) else None
    return [x, y or g.new(x.dtype, [g.length(), x.shape[-1]])], {}


@operation(
    "transposed matmul",
    "palto.matmul(palto.matrix_transpose({0}), {1})",
    exact="grid",
    product=True,
    weight=1.0,
)
def _transposed_matmul(g: Generator) -> Made:
    x = g.pick(FLOATS, least=2, most=2, fresh=0.1)
    return [x, g.new(x.dtype, [x.shape[0], g.length()])], {}


@operation("einsum", "palto.einsum({equation}, {0}, {1})", product=True, weight=0.5)
def _einsum(g: Generator) -> Made:
    x = g.pick(FLOATS, least=2, most=2)
    rows, inner = x.shape
    kind = g.random.randrange(3)
    if kind == 0:
        return [x, g.new(x.dtype, [inner, g.length()])], {"equation": "ij,jk->ki"}
    if kind == 1:
        return [x, g.new(x.dtype, [rows, inner])], {"equation": "ij,ij->i"}
    return [x, g.new(x.dtype, [g.random.randint(1, 4), inner])], {"equation": "ij,kj->ikj"}


@operation("outer", "palto.outer({0}, {1})", exact="grid", product=True, weight=0.3)
def _outer(g: Generator) -> Made:
    x = g.pick(FLOATS, least=1, most=1)
    return [x, g.new(x.dtype, [g.length()])], {}


def _image(g: Generator, dims: int, dtypes: tuple[str, ...] = FLOATS) -> Value:
    lengths = [LENGTHS[:11], LENGTHS[:8], LENGTHS[:5]][dims - 1]

    def fits(value: Value) -> bool:
        return value.ndim == dims + 2 and 0 not in value.shape and max(value.shape) < 70

    fitting = [v for v in g.values.values() if v.dtype in dtypes and fits(v)]
    if fitting and g.chance(0.6):
        return g.random.choice(fitting)
    space = [g.random.choice(lengths) for _ in range(dims)]
    channels = g.random.choice([1, 2, 3, 4, 6, 8, 16])
    dtype = g.dtype(dtypes)
    return g.values[
        g.new(dtype, [g.random.randint(1, 3), *space, channels], g.fill(dtype, special=False))
    ]


@operation(
    "conv",
    "palto.conv({0}, {1}, stride={stride}, padding={padding}, input_dilation={input_dilation}, "
    "kernel_dilation={kernel_dilation}, groups={groups})",
    exact="grid",
    product=True,
    weight=2.5,
)
def _conv(g: Generator) -> Made:
    dims = g.random.choices([1, 2, 3], [3, 5, 1])[0]
    x = _image(g, dims)
    channels = x.shape[-1]
    divisors = [d for d in (1, 2, 3, 4, 8) if channels % d == 0]
    groups = 1 if g.chance(0.6) else g.random.choice([*divisors, channels])
    outputs = groups * g.random.choice([1, 1, 2, 3, 5])
    plain = g.chance(0.4)
    kernel = [g.random.choice([1, 2, 3, 3, 5]) for _ in range(dims)]
    w = g.new(x.dtype, [*kernel, channels // groups, outputs], g.random.choice(["normal", "grid"]))

    def steps(most: int) -> list[int]:
        return [1 if plain or g.chance(0.6) else g.random.randint(2, most) for _ in range(dims)]

    low = 0 if plain else -1
    padding = [[g.random.randint(low, 2), g.random.randint(low, 2)] for _ in range(dims)]
    return [x, w], {
        "stride": steps(3), "padding": padding, "input_dilation": steps(2),
        "kernel_dilation": steps(2), "groups": groups,
    }  # fmt: skip


@operation("conv of many channels", "palto.conv({0}, {1}, padding={padding})", product=True)
def _many_channels(g: Generator) -> Made:
    """What is computed in Winograd's way."""
    side = g.random.choice([3, 3, 4, 5])
    x = g.new("float32", [1, 8, g.random.choice([7, 8]), 16], "normal")
    w = g.new("float32", [side, side, 16, 16], "normal")
    padding = [[g.random.randint(0, side - 1), g.random.randint(0, side - 1)] for _ in range(2)]
    return [x, w], {"padding": padding}


def _window(g: Generator, dims: int, x: Value, *, pads: bool) -> dict[str, Any]:
    window = [g.random.choice([1, 2, 2, 3, 3, 5]) for _ in range(dims)]
    padding = [
        [g.random.randint(0, k // 2), g.random.randint(0, k // 2)] if pads else [0, 0]
        for k in window
    ]
    return {
        "window": window,
        "stride": [g.random.choice([1, 2, k]) for k in window],
        "padding": padding,
    }


@operation(
    "window_max",
    "palto.tensor.functions.window_max({0}, window={window}, stride={stride}, "
    "padding={padding})[0]",
    exact="always",
    kinks=True,
    weight=1.0,
)
def _window_max(g: Generator) -> Made:
    dims = g.random.choice([1, 2, 2, 3])
    x = _image(g, dims)
    if g.in_gradient and not x.exact:
        return None
    return [x], _window(g, dims, x, pads=g.chance(0.6))


@operation(
    "window_sum",
    "palto.tensor.functions.window_sum({0}, window={window}, stride={stride}, "
    "padding={padding}, input_dilation={input_dilation})",
    exact="grid",
    weight=0.8,
)
def _window_sum(g: Generator) -> Made:
    dims = g.random.choice([1, 2, 2, 3])
    x = _image(g, dims)
    gaps = [1 if g.chance(0.8) else 2 for _ in range(dims)]
    return [x], {**_window(g, dims, x, pads=g.chance(0.6)), "input_dilation": gaps}


@operation("max_pool2d", f"{_FUNCTIONAL}.max_pool2d({{0}}, 2)", exact="always", kinks=True)
def _max_pool(g: Generator) -> Made:
    x = _image(g, 2)
    return None if g.in_gradient and not x.exact else ([x], {})


@operation("avg_pool2d", f"{_FUNCTIONAL}.avg_pool2d({{0}}, 2)", weight=0.5)
def _avg_pool(g: Generator) -> Made:
    return [_image(g, 2)], {}


# --- Indices -------------------------------------------------------------------------------------


def _indices(g: Generator, shape: list[int], length: int) -> str:
    """Indices into an axis of `length`: given, or computed and brought into range."""
    kind = g.random.choice(["int64", "int64", "int32", "uint8"])
    return g.new(kind, shape, f"0:{min(length, 255)}")


def _in_range(axis_length: Callable[[list[Value], dict[str, Any]], int]) -> Callable[..., bool]:
    def valid(values: list[Value], **parameters: Any) -> bool:
        index = values[-1]
        if index.moving:
            return False
        length = axis_length(values, parameters)
        return index.array.size == 0 or bool(
            (index.array.astype(np.int64) >= 0).all() and (index.array < length).all()
        )

    return valid


@operation(
    "take",
    "palto.take({0}, {1}, axis={axis})",
    exact="always",
    valid=_in_range(lambda values, p: values[0].shape[p["axis"]]),
    weight=1.5,
)
def _take(g: Generator) -> Made:
    x = g.pick(DTYPES, least=1, most=3, test=lambda v: 0 not in v.shape)
    axis = g.random.randrange(x.ndim)
    shape = g.random.choice([[], [g.length()], [3], [2, 4]])
    return [x, _indices(g, shape, x.shape[axis])], {"axis": axis}


@operation(
    "take computed",
    "palto.take({0}, palto.remainder(palto.astype({1}, palto.int64), palto.asarray({0}).shape[0]))",
    exact="always",
    jumps=True,
    weight=0.8,
)
def _take_computed(g: Generator) -> Made:
    x = g.pick(DTYPES, least=1, most=3, exact=True, test=lambda v: v.shape[0] > 0)
    return [x, g.pick(INTEGERS, most=2)], {}


@operation(
    "index",
    "palto.asarray({0})[{1}]",
    exact="always",
    valid=_in_range(lambda values, p: values[0].shape[0]),
    weight=0.5,
)
def _index(g: Generator) -> Made:
    x = g.pick(DTYPES, least=1, most=3, test=lambda v: v.shape[0] > 0)
    return [x, _indices(g, [g.length()], x.shape[0])], {}


@operation(
    "take_along_axis",
    "palto.take_along_axis({0}, {1}, axis={axis})",
    exact="always",
    valid=_in_range(lambda values, p: values[0].shape[p["axis"]]),
    weight=0.8,
)
def _take_along(g: Generator) -> Made:
    x = g.pick(DTYPES, least=1, most=3, test=lambda v: 0 not in v.shape)
    axis = g.random.randrange(x.ndim)
    shape = list(x.shape)
    shape[axis] = g.random.randint(1, 4)
    return [x, _indices(g, shape, x.shape[axis])], {"axis": axis}


@operation(
    "scatter_add",
    "palto.scatter_add({1}, {0}, size={size}, axis={axis})",
    exact="grid",
    valid=_in_range(lambda values, p: p["size"]),
    weight=1.2,
)
def _scatter(g: Generator) -> Made:
    x = g.pick((*FLOATS, "int64", "int32", "complex64"), least=1, most=3)
    axis = g.random.randrange(x.ndim)
    size = g.random.choice([1, 2, 7, 16, 33])
    return [x, _indices(g, [x.shape[axis]], size)], {"size": size, "axis": axis}


@operation("at add", "palto.asarray({0}).at[{index}].add({1})", weight=0.5)
def _at_add(g: Generator) -> Made:
    x = g.pick(NUMERIC, least=1)
    return [x, g.values[g.new(x.dtype, [])]], {"index": [["slice", None, None, 2]]}


@operation("at set", "palto.asarray({0}).at[{index}].set({1})", exact="always", weight=0.5)
def _at_set(g: Generator) -> Made:
    x = g.pick(NUMERIC, least=1)
    step = g.random.choice([1, -1, 2])
    return [x, g.values[g.new(x.dtype, [])]], {"index": [["slice", None, None, step]]}


def _starts_valid(values: list[Value], **parameters: Any) -> bool:
    starts = values[-1]
    sizes = parameters.get("sizes") or values[1].shape
    return not starts.moving and all(
        0 <= start <= n - size
        for start, n, size in zip(starts.array.tolist(), values[0].shape, sizes, strict=True)
    )


@operation(
    "dynamic_slice",
    "palto.dynamic_slice({0}, {1}, {sizes})",
    exact="always",
    valid=_starts_valid,
    weight=0.8,
)
def _dynamic_slice(g: Generator) -> Made:
    x = g.pick(DTYPES, least=1)
    sizes = [g.random.randint(min(n, 1), n) for n in x.shape]
    room = min(n - size for n, size in zip(x.shape, sizes, strict=True))
    return [x, g.new("int64", [x.ndim], f"0:{room + 1}")], {"sizes": sizes}


@operation(
    "dynamic_update_slice",
    "palto.dynamic_update_slice({0}, {1}, {2})",
    exact="always",
    valid=_starts_valid,
    weight=0.8,
)
def _dynamic_update(g: Generator) -> Made:
    x = g.pick(DTYPES, least=1)
    sizes = [g.random.randint(min(n, 1), n) for n in x.shape]
    room = min(n - size for n, size in zip(x.shape, sizes, strict=True))
    return [x, g.new(x.dtype, sizes), g.new("int64", [x.ndim], f"0:{room + 1}")], {}


# --- Random numbers, loops, composites -----------------------------------------------------------


def _drawing(name: str, template: str, exact: str, weight: float) -> None:
    @operation(name, template, exact=exact, weight=weight)
    def make(g: Generator) -> Made:
        return None if g.in_gradient else ([], {"shape": g.shape()})


_drawing("random uniform", "palto.random.uniform({shape})", "always", 0.5)
_drawing("random between", "palto.random.uniform({shape}, -1.0, 3.0)", "never", 0.3)
_drawing("random normal", "palto.random.normal({shape})", "never", 0.5)
_drawing("random integers", "palto.random.integers({shape}, -5, 1000)", "always", 0.4)
_drawing("random bernoulli", "palto.random.bernoulli({shape}, 0.3)", "always", 0.4)


@operation("random permutation", "palto.random.permutation({number})", exact="always", weight=0.2)
def _permutation(g: Generator) -> Made:
    return None if g.in_gradient else ([], {"number": g.length()})


_SCANS = {
    "recurrence": "lambda s, x: (palto.tanh(s * 0.5 + x), s - x)",
    "sum": "lambda s, x: (s + x, s * 2)",
    "decay": "lambda s, x: ((s * 0.9 + x * 0.1), {})",
    "product": "lambda s, x: (s * palto.tanh(x) + 0.5, palto.sum(s))",
}


@operation(
    "scan",
    "palto.scan({function}, {0}, {1}, reverse={reverse})[0]",
    weight=0.8,
)
def _scan(g: Generator) -> Made:
    x = g.pick(FLOATS, least=1, most=3, test=lambda v: v.shape[0] < 20)
    start = g.new(x.dtype, x.shape[1:], "grid")
    return [start, x], {
        "function": g.random.choice(list(_SCANS.values())),
        "reverse": g.chance(0.3),
    }


@operation("scan outputs", "palto.scan({function}, {0}, {1}, reverse={reverse})[1]", weight=0.6)
def _scan_outputs(g: Generator) -> Made:
    made = _scan(g)
    if made is None or made[1]["function"] == _SCANS["decay"]:
        return None
    return made


@operation(
    "scan with a matrix",
    "palto.scan(lambda s, x: (palto.tanh(palto.matmul(s, {2}) + x), s), {0}, {1})[{part}]",
    product=True,
    weight=0.4,
)
def _scan_matrix(g: Generator) -> Made:
    x = g.pick(("float32",), least=3, most=3, test=lambda v: v.shape[0] < 12 and v.shape[2] < 20)
    if x.shape[0] >= 12 or x.shape[2] >= 20:
        return None
    start = g.new("float32", x.shape[1:], "normal")
    return [start, x, g.new("float32", [x.shape[2]] * 2, "normal")], {
        "part": g.random.randint(0, 1)
    }


@operation(
    "layer_norm", f"{_FUNCTIONAL}.layer_norm({{0}}, {{shape}}, {{1}}, {{2}}, eps=0.1)", weight=1.0
)
def _layer_norm(g: Generator) -> Made:
    x = g.pick(("float32",), least=1, test=lambda v: v.shape[-1] > 1)
    shape = list(x.shape[-1:])
    return [x, g.new("float32", shape, "uniform"), g.new("float32", shape, "normal")], {
        "shape": shape
    }


@operation("rms_norm", f"{_FUNCTIONAL}.rms_norm({{0}}, {{shape}}, eps=0.1)", weight=0.4)
def _rms_norm(g: Generator) -> Made:
    x = g.pick(("float32",), least=1)
    return [x], {"shape": list(x.shape[-1:])}


@operation(
    "linear", f"{_FUNCTIONAL}.relu(palto.matmul({{0}}, {{1}}) + {{2}})", product=True, weight=1.5
)
def _linear(g: Generator) -> Made:
    if g.in_gradient:
        return None
    x = g.pick(("float32",), least=2)
    width = g.length()
    return [x, g.new("float32", [x.shape[-1], width], "normal"), g.new("float32", [width])], {}


@operation(
    "linear gelu",
    f"{_FUNCTIONAL}.gelu(palto.matmul({{0}}, {{1}}) + {{2}})",
    product=True,
    weight=1.0,
)
def _linear_gelu(g: Generator) -> Made:
    x = g.pick(("float32",), least=2)
    width = g.length()
    return [x, g.new("float32", [x.shape[-1], width], "normal"), g.new("float32", [width])], {}


@operation(
    "cross_entropy",
    f"{_FUNCTIONAL}.cross_entropy({{0}}, {{1}}, reduction={{reduction}})",
    valid=_in_range(lambda values, p: values[0].shape[-1]),
    weight=1.0,
)
def _cross_entropy(g: Generator) -> Made:
    x = g.pick(FLOATS, least=1, test=lambda v: v.shape[-1] > 0)
    labels = g.new("int64", x.shape[:-1], f"0:{x.shape[-1]}")
    return [x, labels], {"reduction": g.random.choice(["mean", "sum", "none"])}


@operation(
    "attention",
    f"{_FUNCTIONAL}.scaled_dot_product_attention({{0}}, {{1}}, {{2}}, is_causal={{causal}})",
    product=True,
    weight=0.8,
)
def _attention(g: Generator) -> Made:
    x = g.pick(("float32",), least=3, test=lambda v: 0 not in v.shape and max(v.shape) < 70)
    if 0 in x.shape:
        return None
    causal = g.chance(0.5)
    shape = [*x.shape[:-2], x.shape[-2] if causal else g.random.randint(1, 17), x.shape[-1]]
    return [x, g.new("float32", shape, "normal"), g.new("float32", shape, "normal")], {
        "causal": causal
    }


@operation("checkpoint", "palto.checkpoint(lambda a, b: palto.tanh(a) * b + a, {0}, {1})")
def _checkpoint(g: Generator) -> Made:
    x = g.pick(FLOATS)
    return [x, g.beside(x)], {}


@operation("gradient", "palto.grad(lambda a: palto.sum(palto.tanh(a * {1}) * a))({0})", weight=0.8)
def _gradient(g: Generator) -> Made:
    x = g.pick(FLOATS)
    return [x, g.beside(x)], {}


@operation("gradient of softmax", f"palto.grad(lambda a: palto.sum({_FUNCTIONAL}.softmax(a, -1) * "
           "{1}))({0})", weight=0.5)  # fmt: skip
def _gradient_of_softmax(g: Generator) -> Made:
    x = g.pick(FLOATS, least=1)
    return [x, g.beside(x)], {}


# --- Cells ---------------------------------------------------------------------------------------


def _moving_cells(g: Generator) -> list[Value]:
    return [v for v in g.values.values() if v.name[0] == "c" and v.moving]


@operation("read", "{0}.read()", exact="always", weight=0.7)
def _read(g: Generator) -> Made:
    cells = [v for v in g.values.values() if v.name[0] == "c"]
    return ([g.random.choice(cells)], {}) if cells else None


@operation("assign", "{0}.assign({1})", statement=True, weight=2.5)
def _assign(g: Generator) -> Made:
    if g.in_gradient:
        return None
    cells = _moving_cells(g)
    g.random.shuffle(cells)
    for cell in cells:
        fitting = [
            v
            for v in g.values.values()
            if v.dtype == cell.dtype and v.shape == cell.shape and v.name != cell.name
        ]
        if fitting:
            return [cell, fitting[-1] if g.chance(0.6) else g.random.choice(fitting)], {}
    return None


_UPDATES = {
    "{0}.assign({0} * 0.9 + {1})": True,
    "{0}.assign({0} - 0.1 * {1}); {0}.assign({0} * 0.5)": True,
    "{0}.assign(palto.roll({0}, 1, axis=0))": False,
    "{0}.assign(palto.flip({0}, axis=-1) * 0.5)": False,
    "{0}.assign(palto.tanh({0}) + palto.sum({0}) * 0.01)": False,
    "{0}.assign(palto.cumulative_sum({0}, axis=-1) * 0.25)": False,
}
for _place, (_template, _with) in enumerate(_UPDATES.items()):

    @operation(f"update {_place}", _template, statement=True, weight=0.6)
    def _update(g: Generator, with_other: bool = _with) -> Made:
        if g.in_gradient:
            return None
        cells = [v for v in _moving_cells(g) if v.dtype in FLOATS and v.ndim]
        if not cells:
            return None
        cell = g.random.choice(cells)
        others = [
            v
            for v in g.values.values()
            if v.dtype == cell.dtype and _broadcast(v.shape, cell.shape) and v.ndim <= cell.ndim
            and all(n == 1 or n == m for n, m in zip(v.shape[::-1], cell.shape[::-1], strict=False))
        ]  # fmt: skip
        return [cell, *([g.random.choice(others)] if with_other else [])], {}


@operation("swap", "old = {0}.read(); {0}.assign({1}); {1}.assign(old)", statement=True, weight=1.0)
def _swap(g: Generator) -> Made:
    cells = _moving_cells(g)
    if g.in_gradient or not cells:
        return None
    cell = g.random.choice(cells)
    for other in cells:
        if other.name != cell.name and (other.shape, other.dtype) == (cell.shape, cell.dtype):
            return [cell, other], {}
    name = f"c{len(g.recipe['cells'])}"
    g.recipe["cells"][name] = {**g.recipe["cells"][cell.name], "seed": g.random.randrange(10**6)}
    g.evaluation.add_cell(name)
    return [cell, name], {}


_NAMES = list(OPERATIONS)
_WEIGHTS = [OPERATIONS[name].weight for name in _NAMES]


# --- Running and comparing -----------------------------------------------------------------------


@dataclass
class Failure:
    """How a program differed.

    Attributes:
        kind: "values", "threads", "exception", "arguments" or "crash".
        message: what differed.
    """

    kind: str
    message: str


class Notes:
    """note(): lets a value pass, with noise if it is rounded, and keeps its scale."""

    def __init__(self, run: int) -> None:
        self.scales: dict[str, float] = {}
        self._place = 7919 * run

    def __call__(
        self, name: str, value: Any, steady: bool, product: bool, *inputs: Any
    ) -> palto.Tensor:
        array = value.array()
        dtype = array.dtype.name
        if dtype not in INEXACT:
            return value
        tops = [largest(x.array()) for x in inputs if x.dtype.name in INEXACT]
        scale = max(math.prod(tops), *tops[2:], 0.0) if product else max(tops, default=0.0)
        self.scales[name] = scale = min(max(scale, largest(array)), 1e30)
        if steady:
            return value
        return self.moved(value, NOISE[dtype] * scale)

    def gradient(
        self, found: tuple[Any, ...], inputs: tuple[Any, ...], steps: tuple[str, ...]
    ) -> list[Any]:
        """The loss and the gradients; rounding in backprop is that of the largest on the way."""
        tops = [largest(x.array()) for x in (*found, *inputs)]
        scale = min(max(tops + [self.scales.get(name, 0.0) for name in steps]), 1e30)
        for place in range(len(found)):
            self.scales[f"g{place - 1}" if place else "loss"] = scale
        return [self.moved(x, NOISE[x.dtype.name] * scale) for x in found]

    def moved(self, value: palto.Tensor, amplitude: float) -> palto.Tensor:
        """With noise, and without denormals, which programs flush to zero."""
        array = value.array()
        self._place = (self._place + 101) % (len(_NOISE) // 4)
        noise = amplitude * _NOISE[self._place : self._place + array.size].reshape(array.shape)
        with np.errstate(all="ignore"):
            if array.dtype.kind == "c":
                new = array + noise * (0.7 + 0.7j)
            else:
                wide = array.astype(np.float64) + noise
                new = np.where(np.abs(wide) < 1.2e-38, 0.0, wide)
            delta = np.where(np.isfinite(new), new - array.astype(new.dtype), 0)
        if array.dtype.name == "bfloat16":
            return palto.asarray(new.astype(array.dtype))
        return value + palto.asarray(delta.astype(array.dtype))


def _compiled_source(source: str, scope: dict[str, Any]) -> Callable[..., Any]:
    exec(compile(source, "<recipe>", "exec"), scope)
    return scope["function"]


class _Runner:
    """Runs a recipe's function from its first state, some calls in a row."""

    def __init__(self, evaluation: Evaluation, source: str, note: Any = None) -> None:
        recipe = evaluation.recipe
        self.recipe = recipe
        self.arrays = {
            name: evaluation.values[name].array for name in (*recipe["inputs"], *recipe["cells"])
        }
        self.cells = {name: palto.Cell(self.arrays[name], name=name) for name in recipe["cells"]}
        scope = {"palto": palto, "nn": nn, "np": np, **self.cells}
        if note is not None:
            scope["note"] = note
        self.function = _compiled_source(source, scope)

    def calls(self, function: Callable[..., Any], wrap: Any, count: int) -> list[Any]:
        """What each call returned, then the cells; an exception in place of what it stopped."""
        palto.manual_seed(self.recipe["seed"])
        for name, cell in self.cells.items():
            cell.assign(self.arrays[name])
        arguments = [self.arrays[name].copy() for name in self.recipe["inputs"]]
        kept: list[Any] = []
        for _ in range(count):
            try:
                returned = function(*[wrap(array) for array in arguments])
            except Exception as error:
                kept.append(error)
                break
            kept.append([*returned, *(cell.read() for cell in self.cells.values())])
        state = palto.random.default_generator.state.read()
        results = [x if isinstance(x, Exception) else [y.array() for y in x] for x in kept]
        results.append([state.array()])
        for array, name in zip(arguments, self.recipe["inputs"], strict=True):
            if array.tobytes() != self.arrays[name].tobytes():
                results.append(RuntimeError(f"the argument {name} was changed"))
        return results


def check(recipe: dict[str, Any], calls: int = 2) -> Failure | None:
    """Run the recipe in all ways.

    Raises:
        Invalid, or what a step raises: the recipe itself is at fault.
    """
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        evaluation = Evaluation(recipe)
        evaluation.run()
        source = source_of(recipe)
        plain = _Runner(evaluation, source)
        state_moves = any(part["moving"] for part in recipe["cells"].values()) or any(
            step["operation"].startswith("random") for step in recipe["steps"]
        )
        base = plain.calls(plain.function, palto.asarray, calls if state_moves else 1)
        while not state_moves and len(base) <= calls and not isinstance(base[0], Exception):
            base.insert(1, base[0])
        noise = _Noise(evaluation, calls if state_moves else 1)
        program = _Runner(evaluation, source)
        compiled = palto.compile(program.function)
        first: list[Any] = []
        names = [*recipe["returns"], *recipe["cells"]]
        exact = [evaluation.values[name].exact for name in names]
        try:
            for threads in THREADS:
                palto.set_num_threads(threads)
                got = program.calls(compiled, lambda array: array, calls)
                failure = _compare(names, base, noise, got, exact)
                if failure is not None:
                    failure.message += f" with {threads} threads"
                    return failure
                failure = _same_bits(names, first, got) if first else None
                if failure is not None:
                    failure.message += f" with {threads} threads and with {THREADS[0]}"
                    return failure
                first = first or got
        finally:
            palto.set_num_threads(1)
    return None


class _Noise:
    """What noise moves, found out when it is asked for."""

    def __init__(self, evaluation: Evaluation, calls: int) -> None:
        self._evaluation, self._calls = evaluation, calls
        self._runs: list[Any] = []
        self._scales: dict[str, float] = {}

    def runs(self, call: int, place: int, count: int) -> list[np.ndarray] | None:
        """A result in so many noisy runs; None where one raised."""
        while len(self._runs) < count:
            notes = Notes(len(self._runs) + 1)
            source = source_of(self._evaluation.recipe, self._evaluation)
            runner = _Runner(self._evaluation, source, notes)
            self._runs.append(runner.calls(runner.function, palto.asarray, self._calls))
            self._scales.update(notes.scales)
        call = min(call, self._calls - 1)
        results = [run[call] for run in self._runs[:count] if len(run) > call]
        if any(isinstance(result, Exception) for result in results):
            return None
        return [result[place] for result in results]

    def scale(self, name: str) -> float:
        """The largest magnitude beside a value."""
        return self._scales.get(name, 0.0)


def _compare(
    names: list[str], base: Any, noise: _Noise, got: Any, exact: list[bool]
) -> Failure | None:
    for call, (wanted, result) in enumerate(zip(base, got, strict=False)):
        if isinstance(wanted, Exception) or isinstance(result, Exception):
            if type(wanted) is type(result):
                continue
            return _other_exception(call, wanted, result)
        if call == len(base) - 1:
            if wanted[0].tolist() != result[0].tolist():
                return Failure("values", f"random state {result[0]}, not {wanted[0]}")
            continue
        for place, name in enumerate(names):
            if wanted[place].tobytes() == result[place].tobytes():
                continue
            message = None
            for count in (1, 3, 10):  # more noise where a little does not explain it
                runs = noise.runs(call, place, count)
                if runs is None:
                    break
                message = difference(
                    wanted[place], runs, result[place], exact[place], noise.scale(name)
                )
                if message is None:
                    break
            if message:
                return Failure("values", f"call {call}, {name}: {message}")
    if len(base) != len(got):
        return Failure("arguments", "an argument was changed")
    return None


def _other_exception(call: int, wanted: Any, result: Any) -> Failure:
    raised, where = (wanted, "at once") if isinstance(wanted, Exception) else (result, "compiled")
    other = type(result if raised is wanted else wanted).__name__
    trace = "".join(traceback.format_exception(raised)[-3:])
    return Failure("exception", f"call {call}, {where}: {trace}(and {other} otherwise)")


def difference(
    wanted: np.ndarray, noisy: list[np.ndarray], got: np.ndarray, exact: bool, scale: float
) -> str | None:
    """How far `got` is from `wanted`, if that is more than rounding explains."""
    if (wanted.shape, wanted.dtype) != (got.shape, got.dtype):
        return f"{got.dtype.name}{got.shape}, not {wanted.dtype.name}{wanted.shape}"
    if wanted.size == 0:
        return None
    dtype = wanted.dtype.name
    if dtype not in INEXACT:
        if np.array_equal(wanted, got):
            return None
        bad = np.argwhere(np.atleast_1d(wanted != got))[0].tolist()
        at = tuple(bad) if wanted.ndim else ()
        return f"at {bad}: {got[at]}, not {wanted[at]}"
    if wanted.tobytes() == got.tobytes():
        return None
    wide, ours = _wide(wanted), _wide(got)
    runs = [_wide(run) for run in noisy]
    steady = np.ones(wide.shape, bool)
    allowed = 0.0
    for run in runs:
        steady &= np.isfinite(run) == np.isfinite(wide)
        steady &= np.isfinite(run) | (run == wide) | (np.isnan(run) & np.isnan(wide))
        both = np.isfinite(run) & np.isfinite(wide)
        allowed = max(allowed, float(np.abs(run[both] - wide[both]).max(initial=0.0)))
    scale = max(scale, largest(wanted))
    allowed = 1.2e-38 if exact else SLACK * allowed + FLOOR[dtype] * scale + 1.2e-38
    with np.errstate(all="ignore"):
        near = np.abs(ours - wide) <= allowed
    agree = near | (ours == wide) | (np.isnan(ours) & np.isnan(wide)) | ~steady
    if not exact:  # what has overflowed times what rounding makes 0 is NaN
        agree |= (np.isnan(ours) & np.isinf(wide)) | (np.isinf(ours) & np.isnan(wide))
    if dtype == "complex64":  # which part is infinite and which is not a number is left open
        agree |= ~(np.isfinite(wide).all(-1) | np.isfinite(ours).all(-1))[..., None]
    if agree.all():
        return None
    at = tuple(np.argwhere(~np.atleast_1d(agree))[0].tolist()) if wide.ndim else ()
    return (
        f"at {list(at)}: {ours[at]!r}, not {wide[at]!r} ({dtype}{wanted.shape}, "
        f"{'exact' if exact else f'allowed {allowed:.2g}'}, "
        f"{int((~agree).sum())} of {wide.size} differ)"
    )


def _same_bits(names: list[str], first: Any, second: Any) -> Failure | None:
    for call, (one, two) in enumerate(zip(first, second, strict=True)):
        if isinstance(one, Exception):
            continue
        for name, a, b in zip([*names, "state"], one, two, strict=False):
            if a.tobytes() != b.tobytes() and not np.array_equal(
                _wide(a), _wide(b), equal_nan=True
            ):
                return Failure("threads", f"call {call}, {name}: other bits")
    return None


# --- Shrinking -----------------------------------------------------------------------------------


def failure_of(recipe: dict[str, Any]) -> Failure | None:
    """The failure, in this process; None also for recipes that are at fault themselves."""
    try:
        return check(recipe)
    except Exception:
        return None


def shrink(
    recipe: dict[str, Any],
    fails: Callable[[dict[str, Any]], bool],
    *,
    seconds: float = 30.0,
) -> dict[str, Any]:
    """A smaller recipe that still fails.

    Args:
        recipe: one that fails.
        fails: whether another still does.
        seconds: how long to go on.
    """
    end = time.monotonic() + seconds
    best = without_dead(recipe)
    if not fails(best):
        best = recipe
    improved = True
    while improved:
        improved = False
        for candidate in _smaller(best):
            if time.monotonic() > end:
                return best
            candidate = without_dead(candidate)
            if _size(candidate) < _size(best) and fails(candidate):
                best, improved = candidate, True
                break
    return best


def _size(recipe: dict[str, Any]) -> tuple[Any, ...]:
    described = [*recipe["inputs"].values(), *recipe["cells"].values()]
    numbers = [abs(n) for n in _numbers([step["parameters"] for step in recipe["steps"]])]
    return (
        len(recipe["steps"]) + bool(recipe["gradient"]) + len(recipe["returns"]),
        len(described),
        sum(math.prod(part["shape"]) + sum(part["shape"]) for part in described),
        len(recipe["gradient"]["to"] + [recipe["gradient"]["form"]]) if recipe["gradient"] else 0,
        sum(numbers) + 0.5 * len(numbers),
        sum(_FILL_ORDER.get(part["fill"], 5) if isinstance(part["fill"], str) else 9
            for part in described) + sum(part.get("moving", False) for part in described),
    )  # fmt: skip


_FILL_ORDER = {"small": 0, "grid": 0, "bits": 0, "normal": 1, "uniform": 1}


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for part in value for n in _numbers(part)]
    return [value] if isinstance(value, int | float) else []


def without_dead(recipe: dict[str, Any]) -> dict[str, Any]:
    """Without steps, inputs and cells that nothing needs."""
    recipe = copy.deepcopy(recipe)
    gradient = recipe["gradient"]
    needed = set(recipe["returns"])
    steps = []
    count = gradient["count"] if gradient else 0
    grads = {"loss", *(f"g{i}" for i in range(len(gradient["to"])))} if gradient else set()
    for place in reversed(range(len(recipe["steps"]))):
        if gradient and place == count - 1:
            gradient = _kept_gradient(recipe, needed, grads)
        step = recipe["steps"][place]
        if step["name"] is None or step["name"] in needed:
            steps.insert(0, step)
            needed.update(step["inputs"])
    if gradient:
        recipe["gradient"]["count"] = sum(
            any(step is kept for kept in steps) for step in recipe["steps"][:count]
        )
        needed.update(gradient["to"])
    recipe["steps"] = steps
    recipe["inputs"] = {k: v for k, v in recipe["inputs"].items() if k in needed}
    recipe["cells"] = {k: v for k, v in recipe["cells"].items() if k in needed}
    return recipe


def _kept_gradient(recipe: dict[str, Any], needed: set[str], grads: set[str]) -> Any:
    if not grads & needed:
        recipe["gradient"] = None
        return None
    needed.add(recipe["gradient"]["loss"])
    return recipe["gradient"]


def _smaller(recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Recipes that are a little simpler."""
    for name in recipe["returns"] if len(recipe["returns"]) > 1 else []:
        yield {**recipe, "returns": [name]}
    for place in range(len(recipe["returns"])):
        yield {**recipe, "returns": recipe["returns"][:place] + recipe["returns"][place + 1 :]}
    yield from _without_steps(recipe)
    if recipe["gradient"]:
        yield from _without_gradient(recipe)
    for place, step in enumerate(recipe["steps"]):  # an input in place of another
        for position, name in enumerate(step["inputs"]):
            if name[0] == "v":
                for other in step["inputs"]:
                    if other != name and other[0] == "x":
                        changed = copy.deepcopy(recipe)
                        changed["steps"][place]["inputs"][position] = other
                        yield changed
    yield from _shorter(recipe)
    for place, step in enumerate(recipe["steps"]):
        for simpler in _simpler(step["parameters"]):
            changed = copy.deepcopy(recipe)
            changed["steps"][place]["parameters"] = simpler
            yield changed
    for where in ("inputs", "cells"):
        for name, part in recipe[where].items():
            for fill in ("grid", "small", "normal"):
                whole = part["dtype"] in INTEGERS
                if (
                    isinstance(part["fill"], str)
                    and part["fill"] != fill
                    and (fill == "small") == whole
                ):
                    changed = copy.deepcopy(recipe)
                    changed[where][name]["fill"] = fill
                    yield changed
            if part.get("moving"):
                changed = copy.deepcopy(recipe)
                changed[where][name]["moving"] = False
                yield changed


def _without_steps(recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        evaluation = Evaluation(recipe)
        with np.errstate(all="ignore"):
            evaluation.run()
    except Exception:
        return
    for place in reversed(range(len(recipe["steps"]))):
        step = recipe["steps"][place]
        changed = copy.deepcopy(recipe)
        del changed["steps"][place]
        gradient = changed["gradient"]
        if gradient and place < gradient["count"]:
            gradient["count"] -= 1
        if step["name"] is None:
            yield changed
            continue
        value = evaluation.values[step["name"]]
        for other in step["inputs"]:  # one of its inputs in its place
            known = evaluation.values[other]
            if (known.shape, known.dtype) == (value.shape, value.dtype):
                yield _renamed(changed, step["name"], other)
        yield from _as_input(changed, step["name"], value)


def _as_input(recipe: dict[str, Any], name: str, value: Value) -> Iterator[dict[str, Any]]:
    """The recipe with an input in place of a value."""
    new = next(f"x{i}" for i in range(10**6) if f"x{i}" not in recipe["inputs"])
    fills: list[Any] = ["normal", "grid"]
    if value.dtype in INTEGERS:
        fills = ["small"]
    elif value.dtype == "bool":
        fills = ["bits"]
    if value.array.size <= 64:
        numbers = value.array.reshape(-1)
        if value.dtype == "complex64":
            fills.append([[float(x.real), float(x.imag)] for x in numbers])
        elif value.dtype == "bfloat16":
            fills.append(numbers.astype(np.float32).tolist())
        else:
            fills.append(numbers.tolist())
    for fill in fills:
        changed = _renamed(recipe, name, new)
        changed["inputs"][new] = {
            "dtype": value.dtype, "shape": list(value.shape), "fill": fill, "seed": 0
        }  # fmt: skip
        if changed["gradient"] and value.dtype in FLOATS and name[0] == "v":
            more = copy.deepcopy(changed)
            more["gradient"]["to"].append(new)
            yield more
        yield changed


def _without_gradient(recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        evaluation = Evaluation(recipe)
        with np.errstate(all="ignore"):
            evaluation.run()
    except Exception:
        return
    gradient = recipe["gradient"]
    names = ["loss", *(f"g{i}" for i in range(len(gradient["to"])))]
    plain: list[dict[str, Any]] = [{**copy.deepcopy(recipe), "gradient": None}]
    for name in names:
        if any(name in step["inputs"] for step in recipe["steps"]):
            plain = [
                changed
                for one in plain
                for changed in _as_input(one, name, evaluation.values[name])
            ]
    for changed in plain:
        changed["returns"] = [name for name in changed["returns"] if name not in names]
        yield changed
    for place in range(1, len(gradient["to"])):
        changed = copy.deepcopy(recipe)
        last = len(gradient["to"]) - 1
        if f"g{last}" not in changed["returns"] + [
            n for s in changed["steps"] for n in s["inputs"]
        ]:
            changed["gradient"]["to"].pop()
            yield changed
        del place
        break
    if len(gradient["to"]) > 1:  # towards one input alone
        for place, name in enumerate(gradient["to"]):
            if f"g{place}" in recipe["returns"]:
                changed = copy.deepcopy(recipe)
                changed["gradient"]["to"] = [name]
                changed["returns"] = ["g0"]
                if not any(n[0] == "g" for s in changed["steps"] for n in s["inputs"]):
                    yield changed
    if gradient["form"] != "palto.sum({})":
        changed = copy.deepcopy(recipe)
        changed["gradient"]["form"] = "palto.sum({})"
        yield changed


def _renamed(recipe: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    changed = copy.deepcopy(recipe)
    for step in changed["steps"]:
        step["inputs"] = [new if name == old else name for name in step["inputs"]]
    changed["returns"] = list(
        dict.fromkeys(new if name == old else name for name in changed["returns"])
    )
    if changed["gradient"] and changed["gradient"]["loss"] == old:
        changed["gradient"]["loss"] = new
    return changed


def _shorter(recipe: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One length, wherever it stands, made smaller; or one axis of one input."""
    described = [*recipe["inputs"].values(), *recipe["cells"].values()]
    lengths = sorted({n for part in described for n in part["shape"] if n > 1}, reverse=True)
    for length in lengths:
        for small in dict.fromkeys((1, 2, 3, length // 2, length - 1)):
            if small < length:
                yield _with_length(recipe, length, small)
    for where in ("inputs", "cells"):
        for name, part in recipe[where].items():
            for axis, length in enumerate(part["shape"]):
                for small in dict.fromkeys((1, 2, length // 2, length - 1)):
                    if 0 < small < length and isinstance(part["fill"], str):
                        changed = copy.deepcopy(recipe)
                        changed[where][name]["shape"][axis] = small
                        yield changed


def _with_length(recipe: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    changed = copy.deepcopy(recipe)
    for part in [*changed["inputs"].values(), *changed["cells"].values()]:
        before = part["shape"]
        part["shape"] = [new if n == old else n for n in before]
        if isinstance(part["fill"], list) and part["shape"] != before:
            part["fill"] = part["fill"][: math.prod(part["shape"])]
    for step in changed["steps"]:
        for key in ("shape", "sizes", "size", "classes"):
            if key in step["parameters"]:
                value = step["parameters"][key]
                step["parameters"][key] = (
                    [new if n == old else n for n in value]
                    if isinstance(value, list)
                    else (new if value == old else value)
                )
    return changed


def _simpler(value: Any) -> Iterator[Any]:
    """The same data with one number smaller."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in ("dtype", "function", "equation"):
                for simpler in _simpler(part):
                    yield {**value, name: simpler}
    elif isinstance(value, list):
        if value and isinstance(value[0], str):
            if value[0] == "slice":
                yield ["whole"]
            return
        for place, part in enumerate(value):
            for simpler in _simpler(part):
                yield [*value[:place], simpler, *value[place + 1 :]]
    elif value is True:
        yield False
    elif isinstance(value, int) and value not in (0, False):
        for small in dict.fromkeys((0, 1, value - 1 if value > 0 else value + 1)):
            if abs(small) < abs(value):
                yield small


# --- Command line --------------------------------------------------------------------------------


def _report(seed: int, failure: Failure, recipe: dict[str, Any]) -> str:
    return (
        f"\n=== seed {seed}: {failure.kind}: {failure.message}\n"
        f"# {json.dumps(recipe)}\n{snippet(recipe)}"
    )


def in_child(recipe: dict[str, Any], seconds: float = 60.0) -> str:
    """How a recipe ends in a process of its own: "fine", "fails", "hangs" or "crashes"."""
    child = os.fork()
    if child == 0:
        status = 3
        with contextlib.suppress(BaseException):
            status = 1 if failure_of(recipe) else 0
        os._exit(status)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return "crashes"
            return {0: "fine", 1: "fails"}.get(os.WEXITSTATUS(status), "crashes")
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def generate_quickly() -> None:
    """Let LLVM select instructions the fast way: less good code, in a third of the time."""

    def quick() -> Any:
        triple, cpu, features = machine._host()
        target = machine._llvm().Target.from_triple(triple)
        return target.create_target_machine(cpu=cpu, features=features, opt=0, jit=True)

    machine._target_machine = quick


def run_batch(start: int, count: int, stop_after: float) -> None:
    """In a worker: a line of JSON for what happens, the seed before it is run."""
    out = sys.stdout
    occurrences: collections.Counter[str] = collections.Counter()
    done = 0
    for seed in range(start, start + count):
        print(json.dumps({"seed": seed}), file=out, flush=True)
        recipe, _ = make_recipe(seed)
        occurrences.update(step["operation"] for step in recipe["steps"])
        occurrences["(gradient of a section)"] += recipe["gradient"] is not None
        failure = None
        try:
            failure = check(recipe)
        except Exception as error:
            failure = Failure("recipe", "".join(traceback.format_exception(error)[-3:]))
        done += 1
        if failure is not None:
            kind = failure.kind

            def fails(other: dict[str, Any], kind: str = kind) -> bool:
                found = failure_of(other)
                return found is not None and found.kind == kind

            small = shrink(recipe, fails, seconds=stop_after) if kind != "recipe" else recipe
            failure = failure_of(small) or failure
            print(json.dumps({"failed": seed, "report": _report(seed, failure, small)}), flush=True)
    print(json.dumps({"done": done, "occurrences": occurrences}), file=out, flush=True)


@dataclass
class _Job:
    """A worker process and the seeds that are left to it."""

    next_seed: int
    last_seed: int
    process: subprocess.Popen[bytes] | None = None
    current: int = -1
    heard: float = 0.0
    buffer: bytes = b""
    finished: bool = field(default=False)


class Driver:
    """Runs all seeds in worker processes, survives their crashes, and counts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.graphs = 0
        self.failures: list[int] = []
        self.crashes: list[int] = []
        self.occurrences: collections.Counter[str] = collections.Counter()
        share = -(-options.graphs // options.jobs)
        end = options.seed + options.graphs
        self.jobs = [
            _Job(first, min(first + share, end)) for first in range(options.seed, end, share)
        ]
        self.begun = self.shown = time.monotonic()

    def run(self) -> int:
        try:
            while any(not job.finished for job in self.jobs):
                for job in self.jobs:
                    if job.process is None and not job.finished:
                        self.start(job)
                self.listen()
        finally:
            for job in self.jobs:
                if job.process is not None:
                    job.process.kill()
                    job.process.wait()
        self.summary()
        return bool(self.failures or self.crashes)

    def start(self, job: _Job) -> None:
        if job.next_seed >= job.last_seed:
            job.finished = True
            return
        count = min(self.options.batch, job.last_seed - job.next_seed)
        command = [sys.executable, __file__, "--worker", str(job.next_seed), str(count),
                   "--shrink-seconds", str(self.options.shrink_seconds)]  # fmt: skip
        command += ["--quick"] if self.options.quick else []
        job.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        job.buffer, job.current, job.heard = b"", -1, time.monotonic()

    def listen(self) -> None:
        running = [job for job in self.jobs if job.process is not None]
        pipes = {job.process.stdout: job for job in running if job.process}
        ready, _, _ = select.select(list(pipes), [], [], 1.0)
        for pipe in ready:
            job = pipes[pipe]
            data = os.read(pipe.fileno(), 2**16)
            job.heard = time.monotonic()
            if not data:
                self.end(job)
                continue
            *lines, job.buffer = (job.buffer + data).split(b"\n")
            for line in lines:
                self.note(job, json.loads(line))
        for job in running:
            silent = time.monotonic() - job.heard
            if job.process is not None and silent > self.options.patience:
                job.process.kill()
        if time.monotonic() - self.shown > self.options.every:
            self.shown = time.monotonic()
            print(self.progress(), flush=True)

    def note(self, job: _Job, message: dict[str, Any]) -> None:
        if "seed" in message:
            self.graphs += job.current >= 0
            job.current = message["seed"]
        elif "failed" in message:
            self.failures.append(message["failed"])
            print(message["report"], flush=True)
        else:
            self.graphs += 1
            self.occurrences.update(message["occurrences"])
            job.next_seed, job.current = job.current + 1, -2

    def end(self, job: _Job) -> None:
        assert job.process is not None
        status = job.process.wait()
        job.process = None
        if job.current == -2:
            return
        if job.current == -1:
            raise RuntimeError(f"a worker ended with status {status} before its first graph")
        self.crashes.append(job.current)
        job.next_seed = job.current + 1
        recipe, _ = make_recipe(job.current)
        how = in_child(recipe)
        failure = Failure("crash", f"status {status}; alone it {how}")
        if how == "crashes":
            recipe = shrink(
                recipe, lambda other: in_child(other) == how, seconds=self.options.shrink_seconds
            )
        print(_report(job.current, failure, recipe), flush=True)

    def progress(self) -> str:
        seconds = time.monotonic() - self.begun
        return (
            f"{self.graphs} graphs, {self.graphs / seconds:.0f} a second, "
            f"{len(self.failures)} failures, {len(self.crashes)} crashes"
        )

    def summary(self) -> None:
        print(f"\n{self.progress()}")
        for name, seeds in (("failures", self.failures), ("crashes", self.crashes)):
            if seeds:
                print(f"{name}: seeds {', '.join(map(str, seeds))}")
        print("operations:")
        for name in sorted([*OPERATIONS, "(gradient of a section)"]):
            print(f"  {self.occurrences[name]:8d}  {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Random graphs, at once and compiled.")
    parser.add_argument("--graphs", type=int, default=1000, help="how many")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first graph; then one more each"
    )
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--only", type=int, metavar="SEED", help="replay one graph")
    parser.add_argument("--show", action="store_true", help="with --only: show it as it is")
    parser.add_argument("--batch", type=int, default=2000, help="graphs in one process")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between progress lines")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds until a graph hangs")
    parser.add_argument("--shrink-seconds", type=float, default=30.0, help="to shrink a failure")
    parser.add_argument("--quick", action="store_true", help="with LLVM's fast code generation")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        generate_quickly()
    if options.worker:
        run_batch(*options.worker, options.shrink_seconds)
        return 0
    if options.only is None:
        return Driver(options).run()
    recipe, _ = make_recipe(options.only)
    if options.show:
        print(snippet(recipe))
    failure = check(recipe)
    if failure is None:
        print(f"seed {options.only}: fine")
        return 0
    kind = failure.kind

    def fails(other: dict[str, Any]) -> bool:
        found = failure_of(other)
        return found is not None and found.kind == kind

    small = shrink(recipe, fails, seconds=options.shrink_seconds)
    print(_report(options.only, failure_of(small) or failure, small))
    return 1


if __name__ == "__main__":
    sys.exit(main())
