"""A sample of damaged files, and whether the fuzzer notices what is planted."""

import subprocess
import sys

import pytest

from . import fuzz

CASES = 100


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_files_are_loaded_or_refused(kind):
    if kind in ("gguf", "folder"):
        for name in ("gguf", "tokenizers"):
            pytest.importorskip(name, reason="palto[chat] is not installed")
    found = {"loaded": 0, "refused": 0}
    for number in range(CASES):
        result, why = fuzz.run_case(kind, number)
        assert result in found, f"python tests/formats/fuzz.py --only {kind}:{number}: {why}"
        found[result] += 1
    assert min(found.values()) >= 5, found  # neither is all of them sound, nor all of them refused


def test_a_case_repeats(tmp_path):
    contents = []
    for place in ("a", "b"):
        folder = tmp_path / place / "model"
        folder.mkdir(parents=True)
        contents.append(fuzz.onnx_file(fuzz.random.Random(5), folder).read_bytes())
    assert contents[0] == contents[1]


PLANTED = """
import sys, numpy as np
from tests.formats import fuzz

secret = lambda path: path.parent.parent / "secret"
planted = {
    "KeyError": lambda rng, path: {}["x"],
    "opens": lambda rng, path: [np.zeros(3)] if secret(path).read_bytes() else [],
    "the secret": lambda rng, path: [np.float32([1, fuzz.SECRET])],
    "os.system": lambda rng, path: __import__("os").system("true") or [],
}
planted["says ValueError"] = lambda rng, path: (_ for _ in ()).throw(ValueError("no"))
sys.addaudithook(fuzz._audit)
for name, use in planted.items():
    fuzz.KINDS["planted"] = (fuzz.safetensors_file, use)
    result, why = fuzz.run_case("planted", 1)
    assert result == "finding" and name in why, (name, result, why)
sound = lambda rng, path: [np.zeros(len(path.read_bytes()))]
fuzz.KINDS["planted"] = (fuzz.safetensors_file, sound)
assert fuzz.run_case("planted", 1) == ("loaded", "")
"""


def test_what_is_planted_is_found():
    ran = subprocess.run(
        [sys.executable, "-c", PLANTED], cwd=fuzz.ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_the_command_runs_cases_in_a_process_of_its_own():
    counts, findings = fuzz.fuzz(["safetensors"], 60, 1, fuzz.MEMORY, most=20)
    assert not findings and counts["safetensors"].total() > 20
