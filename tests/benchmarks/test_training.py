"""The command: a real run of the smallest step, Palto alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def command(scripts, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(scripts).parent)}
    return subprocess.run(
        [sys.executable, str(scripts / "training.py"), *arguments],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip


def test_a_run_is_recorded_and_redrawn(scripts, tmp_path):
    pytest.importorskip("matplotlib")
    shutil.copy(Path(scripts).parent / "docs" / "performance.md", tmp_path)
    options = ["--workload", "policy", "--threads", "1", "--seconds", "0.1", "--peers", "--docs"]
    found = command(scripts, *options, str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert "policy 4-64-64-2, batch 8 | 1 |" in found.stdout
    page = (tmp_path / "performance.md").read_text()
    assert "policy 4-64-64-2, batch 8 | 1 |" in page
    kept = json.loads((tmp_path / "benchmark.json").read_text())["policy"]["1"]
    side = kept["sides"]["Palto"]
    assert side["steps"] >= len(side["medians of turns"]) >= 3
    assert side["warm"] < side["compile"] and side["best"] <= side["median"]
    found = command(scripts, "--redraw", "--docs", str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "performance.md").read_text() == page


def test_a_dry_run_writes_nothing(scripts, tmp_path):
    options = ["--workload", "policy_inference", "--threads", "1", "--seconds", "0.1", "--peers",
               "--dry-run", "--docs"]  # fmt: skip
    found = command(scripts, *options, str(tmp_path))
    assert found.returncode == 0, found.stderr
    assert "inference | 1 |" in found.stdout
    assert not list(tmp_path.iterdir())


def test_a_side_that_computes_something_else_is_found(scripts):
    import training
    from workloads import WORKLOADS

    def side(*losses, repeats=1):
        return training.Side("Palto", "compile", None, "1.0", list(losses), repeats, 0.0, 0.0)

    ours = side(2.3, 2.1)
    training.compare(WORKLOADS["policy"], ours, side(2.3001, 2.11))
    training.compare(WORKLOADS["policy"], ours, side(1.0, 0.5, repeats=50))
    for other in (side(2.31, 2.1), side(2.3, 2.2)):
        with pytest.raises(RuntimeError, match="not do the same work"):
            training.compare(WORKLOADS["policy"], ours, other)
