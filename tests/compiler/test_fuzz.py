"""A sample of random graphs, and whether the fuzzer finds and shrinks what is planted."""

import copy
import dataclasses
import json
import os
import signal
import time

import numpy as np
import pytest

import palto
from palto.compiler.program import Program
from palto.tensor.graph import Primitive

from . import fuzz

GRAPHS, GROUP = 160, 20


@pytest.fixture(autouse=True)
def threads_can_be_set(monkeypatch):
    monkeypatch.delenv("PALTO_THREADS", raising=False)


@pytest.mark.parametrize("start", range(0, GRAPHS, GROUP))
def test_random_graphs(start):
    for seed in range(start, start + GROUP):
        recipe, _ = fuzz.make_recipe(seed)
        failure = fuzz.check(recipe)
        assert failure is None, (
            f"seed {seed}: {failure.kind}: {failure.message}; to shrink it:\n"
            f"python tests/compiler/fuzz.py --only {seed}\n{fuzz.snippet(recipe)}"
        )


def test_a_recipe_is_plain_data_and_repeats():
    recipe, _ = fuzz.make_recipe(3)
    again, _ = fuzz.make_recipe(3)
    assert json.loads(json.dumps(recipe)) == recipe == again
    assert fuzz.source_of(recipe) == fuzz.source_of(copy.deepcopy(recipe))


def test_a_snippet_runs(capsys):
    for seed in range(5):
        recipe, _ = fuzz.make_recipe(seed)
        source = fuzz.snippet(recipe).replace(
            "from tests.compiler.fuzz import make_array", "make_array = given"
        )
        with np.errstate(all="ignore"):
            exec(source, {"given": fuzz.make_array})
    assert "Tensor" in capsys.readouterr().out


def test_every_operation_occurs():
    seen = set()
    for seed in range(10_000, 10_250):
        recipe, _ = fuzz.make_recipe(seed)
        seen.update(step["operation"] for step in recipe["steps"])
    rare = set(fuzz.OPERATIONS) - seen
    assert len(rare) < len(fuzz.OPERATIONS) / 10, f"hardly ever made: {sorted(rare)}"


@pytest.fixture
def plant(monkeypatch):
    """``plant(name, wrong)``: in programs, but not at once, the primitive's meaning is `wrong`.

    `wrong` gets the right meaning and the arrays and parameters.
    """
    plain = Program.run
    inside = []

    def run(self, *given):
        inside.append(True)
        try:
            return plain(self, *given)
        finally:
            inside.pop()

    def plant(name, wrong):
        row = palto.tensor.primitives.TABLE[name]
        right = row.numpy

        def meaning(*arrays, **params):
            return right(*arrays, **params) if inside else wrong(right, *arrays, **params)

        # What runs at once is what is changed: it is the same primitive for every program.
        assert isinstance(row, Primitive) and dataclasses.is_dataclass(row)
        object.__setattr__(row, "numpy", meaning)
        monkeypatch.setattr(Program, "run", run)
        planted.append((row, right))

    planted = []
    yield plant
    for row, right in planted:
        object.__setattr__(row, "numpy", right)


def fails(recipe):
    failure = fuzz.failure_of(recipe)
    return failure is not None and failure.kind == "values"


def first_failure(seeds):
    for seed in seeds:
        recipe, _ = fuzz.make_recipe(seed)
        if fails(recipe):
            return recipe
    raise AssertionError("the planted mistake was not found")


@pytest.mark.parametrize(
    ("name", "wrong", "most_steps"),
    [
        ("maximum", lambda right, x, y: x if x.size > 20 else right(x, y), 2),
        ("tanh", lambda right, x: right(x) * np.asarray(1.001, x.dtype), 2),
        ("flip", lambda right, x, axes: right(x, axes=axes[:1]) if x.shape[0] != 3 else x, 2),
        ("cumulative_sum", lambda right, x, axis: right(x[..., ::1], axis=0), 3),
    ],
)
def test_a_planted_mistake_is_found_and_shrunk(plant, name, wrong, most_steps):
    plant(name, wrong)
    recipe = first_failure(range(50_000, 51_000))
    small = fuzz.shrink(recipe, fails, seconds=20)
    assert fails(small)
    assert len(small["steps"]) <= min(most_steps, len(recipe["steps"]))
    assert len(small["inputs"]) + len(small["cells"]) <= 3
    sizes = [np.prod(part["shape"]) for part in [*small["inputs"].values()]]
    assert max(sizes, default=0) <= 64


def test_rounding_is_no_failure():
    wanted = np.float32([1, 2, 1000])
    close = wanted * np.float32(1 + 1e-6)
    assert fuzz.difference(wanted, [wanted], close, exact=False, scale=0) is None
    assert "exact" in fuzz.difference(wanted, [wanted], close, exact=True, scale=0)
    far = wanted * np.float32(1 + 1e-3)
    assert fuzz.difference(wanted, [wanted], far, exact=False, scale=0)
    assert fuzz.difference(wanted, [far], far, exact=False, scale=0) is None


def test_infinities_and_denormals():
    wanted = np.float32([1, np.inf, np.nan, 1e-40])
    flushed = np.float32([1, np.inf, np.nan, 0])
    assert fuzz.difference(wanted, [wanted], flushed, exact=True, scale=0) is None
    for place, value in ((1, np.nan), (1, -np.inf), (2, 0), (0, np.inf)):
        wrong = wanted.copy()
        wrong[place] = value
        assert fuzz.difference(wanted, [wanted], wrong, exact=True, scale=0)
        if value == value:  # what overflowed, times what rounding makes 0, is NaN
            assert fuzz.difference(wanted, [wanted], wrong, exact=False, scale=0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")  # JAX's
@pytest.mark.parametrize(
    ("ending", "wanted"),
    [
        (lambda recipe: None, "fine"),
        (lambda recipe: fuzz.Failure("values", "other numbers"), "fails"),
        (lambda recipe: os.kill(os.getpid(), signal.SIGKILL), "crashes"),
        (lambda recipe: time.sleep(60), "hangs"),
    ],
)
def test_a_crash_is_seen_from_outside(monkeypatch, ending, wanted):
    monkeypatch.setattr(fuzz, "failure_of", ending)
    assert fuzz.in_child({}, seconds=0.2 if wanted == "hangs" else 60) == wanted
