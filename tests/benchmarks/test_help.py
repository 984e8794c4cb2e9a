"""What benchmarks of a part of Palto say of themselves, and that they measure what is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def said(scripts, name, *words):
    environment = {**os.environ, "PYTHONPATH": str(Path(scripts).parent)}
    return subprocess.run(
        [sys.executable, str(scripts / name), *words],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "option"), [("contract.py", "--assembly"), ("calls.py", "--threads")]
)
def test_help_measures_nothing(scripts, name, option):
    found = said(scripts, name, "--help")
    assert found.returncode == 0 and option in found.stdout
    assert "GFLOP/s" not in found.stdout and "us a call" not in found.stdout


def test_calls_on_the_threads_that_are_named(scripts):
    found = said(scripts, "calls.py", "--threads", "1", "--seconds", "0.05")
    assert found.returncode == 0, found.stderr
    assert [line.split(":")[0] for line in found.stdout.splitlines()] == [
        "training step, 1 threads", "inference, 1 threads",
    ]  # fmt: skip


def test_contractions_that_are_named(scripts):
    found = said(scripts, "contract.py", "1x128x784", "64x10x128")
    assert found.returncode == 0, found.stderr
    rows = [line for line in found.stdout.splitlines() if "GFLOP/s" in line]
    assert [row.split("  ")[0] for row in rows] == ["matmul 1x128x784", "matmul 64x10x128"]
    found = said(scripts, "contract.py", "none such")
    assert found.returncode == 2 and "matmul 64x10x128" in found.stderr
