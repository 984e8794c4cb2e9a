"""The command that measures language models: a real run of the smallest kind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..chat.tiny import Tiny

pytest.importorskip("gguf", reason="gguf is not installed (pip install 'palto[chat]')")
pytest.importorskip("tokenizers", reason="tokenizers is not installed (pip install 'palto[chat]')")


def test_a_run_prints_a_row(scripts, tmp_path):
    path = Tiny().gguf(tmp_path / "tiny.gguf", "Q4_1")
    found = subprocess.run(
        [sys.executable, str(scripts / "chat.py"), "--file", str(path), "--threads", "1",
         "--turns", "1", "--sides", "Palto", "--prompt", "80", "--written", "3"],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(scripts).parent)},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    _, _, row = found.stdout.splitlines()
    name, threads, read, written, *_, bandwidth = row.strip("| ").split(" | ")
    assert (name, threads) == ("Palto", "1")
    assert float(read.replace(",", "")) > 0 and float(written) > 0
    assert bandwidth.endswith("of a copy")
