"""The benchmarks are scripts, which import each other by their bare names."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="session", autouse=True)
def scripts():
    """The folder of the benchmarks among those of modules, behind all others."""
    sys.path.append(str(FOLDER))
    yield FOLDER
    sys.path.remove(str(FOLDER))
