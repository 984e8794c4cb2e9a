"""The command that measures loaders: a real run of the smallest kind, and a loader's life."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_run_is_recorded(scripts, tmp_path, torch):
    shutil.copy(Path(scripts).parent / "docs" / "performance.md", tmp_path)
    found = subprocess.run(
        [sys.executable, str(scripts / "loading.py"), "--kinds", "table", "--turns", "1",
         "--workers", "0", "--docs", str(tmp_path)],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(scripts).parent)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    kept = json.loads((tmp_path / "benchmark.json").read_text())["loading"]
    (row,) = kept["epochs"]
    assert set(row["sides"]) == {"Palto", "PyTorch"}
    assert all(side["seconds"] > 0 for side in row["sides"].values())
    assert f"| {row['title']} |" in (tmp_path / "performance.md").read_text()
    assert f"| {row['title']} |" in found.stdout


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is Linux's")
def test_a_life(scripts, tmp_path):
    import loading
    import loading_side

    loading_side.write_files(tmp_path, ["table"])
    assert not (tmp_path / "photos").exists()
    found = loading.life("Palto", "table", 2, tmp_path)
    assert found["first"] > 0
    assert (found["left"], found["stayed"], found["noise"]) == (0, 0, 0)


def test_a_side_that_fails_says_why(scripts, tmp_path):
    import loading

    with pytest.raises(RuntimeError, match=r"(?s)Palto, 0 workers, .*table\.csv"):
        loading.life("Palto", "table", 0, tmp_path)
