"""Reading and writing text with a language model, in Palto, transformers and llama.cpp.

    pip install transformers accelerate gguf llama-cpp-python
    python benchmarks/chat.py --threads 1 2 --turns 5

All sides read the same GGUF file, by default SmolLM2-135M-Instruct in 4 bits, which is fetched as
`palto chat` does. Each is a process of its own, on as many CPUs as it has threads; they take turns,
with a pause before each, and of a side's turns the fastest counts. In a turn a side reads a prompt
(of 512 tokens) and then writes others (64), one after the other, the likeliest each time.

- transformers goes in float32 and in bfloat16; asked for by `--sides`, also through torch.compile
  with a static cache.
- llama.cpp is llama-cpp-python, built on this machine for its processor; also as it reads the
  file's own blocks, because its other layouts (for AMX among them) do not run on every machine.

Printed are tokens a second of both, the most memory that the process took beyond its imports, how
far the logits after the prompt are from those of transformers in float32 (which has the file's
weights to the bit), and for Palto what part of the bandwidth of a large copy a written token
reaches: it reads every weight, and as much of the cache as is filled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

#: Seconds before each turn, for threads that still spin to fall asleep.
PAUSE = 0.3
#: What the sides are called in the command that starts them.
SIDES = (
    "Palto", "transformers float32", "transformers bfloat16", "llama.cpp", "llama.cpp own blocks",
)  # fmt: skip
COMPILED = "transformers float32 compiled"

#: Reads tokens after those that were read before, or from the beginning, and gives the last logits.
Read = Callable[[list[int], bool], np.ndarray]


# --- Sides ---------------------------------------------------------------------------------------


def palto_side(path: Path, threads: int, context: int) -> tuple[Read, dict[str, Any]]:
    """Palto's own loader and reader, as `palto chat` has them."""
    import palto
    from palto.chat import generate, models

    palto.set_num_threads(threads)
    found = models.load(path)
    reader = generate.Reader(found, context)
    slot = reader.new_slot()

    def read(tokens: list[int], anew: bool) -> np.ndarray:
        if anew:
            slot.tokens.clear()
        for start in range(0, len(tokens), reader.chunk):
            logits = reader.read(slot, tokens[start : start + reader.chunk])
        return logits

    weights = sum(cell.array().nbytes for _, cell in found.model.named_cells())
    model = found.model
    layers = len(model.layers)
    a_token = 2 * layers * model.key_value_heads * model.head * 4
    return read, {"weights": weights, "cached": a_token}


def transformers_side(dtype: str, compiled: bool) -> Callable[..., tuple[Read, dict[str, Any]]]:
    """transformers, in a dtype, perhaps through torch.compile."""

    def make(path: Path, threads: int, context: int) -> tuple[Read, dict[str, Any]]:
        import torch
        import transformers

        torch.set_num_threads(threads)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=getattr(torch, dtype)
        ).eval()
        forward = torch.compile(model.forward) if compiled else model.forward
        state: dict[str, Any] = {}

        @torch.inference_mode()
        def read(tokens: list[int], anew: bool) -> np.ndarray:
            if anew:
                state["cache"] = (
                    transformers.StaticCache(config=model.config, max_cache_len=context)
                    if compiled
                    else transformers.DynamicCache()
                )
                state["seen"] = 0
            places = torch.arange(state["seen"], state["seen"] + len(tokens))
            state["seen"] += len(tokens)
            logits = forward(
                torch.tensor([tokens]), past_key_values=state["cache"], cache_position=places,
                use_cache=True, logits_to_keep=1,
            ).logits  # fmt: skip
            return logits[0, -1].float().numpy()

        return read, {}

    return make


def llama_side(repacked: bool) -> Callable[..., tuple[Read, dict[str, Any]]]:
    """llama.cpp by its Python package, with other layouts of weights or without."""

    def make(path: Path, threads: int, context: int) -> tuple[Read, dict[str, Any]]:
        import llama_cpp
        from llama_cpp import llama_cpp as library

        defaults = library.llama_model_default_params

        def params() -> Any:  # Llama() has no argument for this
            chosen = defaults()
            chosen.use_extra_bufts = repacked
            return chosen

        library.llama_model_default_params = params
        model = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=context, n_ubatch=context, n_threads=threads,
            n_threads_batch=threads, verbose=False,
        )  # fmt: skip

        def read(tokens: list[int], anew: bool) -> np.ndarray:
            if anew:
                model.reset()
            model.eval(tokens)
            pointer = library.llama_get_logits_ith(model.ctx, -1)
            return np.ctypeslib.as_array(pointer, (model.n_vocab(),)).copy()

        return read, {}

    return make


MAKERS: dict[str, Callable[..., tuple[Read, dict[str, Any]]]] = {
    "Palto": palto_side,
    "transformers float32": transformers_side("float32", False),
    "transformers bfloat16": transformers_side("bfloat16", False),
    COMPILED: transformers_side("float32", True),
    "llama.cpp": llama_side(repacked=True),
    "llama.cpp own blocks": llama_side(repacked=False),
}
#: The module that a side's name begins with.
MODULES = {"Palto": "palto", "transformers": "transformers", "llama.cpp": "llama_cpp"}


def live(side: str, options: argparse.Namespace) -> None:
    """A side's process: says what it found, then takes a turn for each line on its input."""
    from side import peak_memory

    threads, written = options.threads[0], options.written
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print is no answer
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import_module(MODULES[side.split()[0]])
    before = peak_memory()
    begun = time.perf_counter()
    read, facts = MAKERS[side](options.file, threads, 2 * options.prompt)
    tokens = np.random.default_rng(0).integers(5, 200, options.prompt).tolist()
    first = read(tokens, True)
    np.save(options.logits, first)
    read([int(first.argmax())], False)
    facts["start"] = time.perf_counter() - begun
    print(json.dumps(facts), file=say)
    for _ in sys.stdin:
        begun = time.perf_counter()
        token = int(read(tokens, True).argmax())
        middle = time.perf_counter()
        for _ in range(written):
            token = int(read([token], False).argmax())
        end = time.perf_counter()
        answer = {
            "reading": options.prompt / (middle - begun),
            "writing": written / (end - middle),
            "memory": peak_memory() - before,
        }
        if side == "Palto":
            from palto.compiler import explain

            answer["copy"] = explain.copy_peak.__wrapped__(threads)  # in each turn anew
        print(json.dumps(answer), file=say)


# --- Turns ---------------------------------------------------------------------------------------


class Side:
    """A side's process, seen from outside."""

    def __init__(self, name: str, threads: int, options: argparse.Namespace, folder: Path) -> None:
        self.name = name
        self._logits = folder / f"{name}.npy"
        command = [sys.executable, __file__, "--side", name, "--file", str(options.file)]
        command += ["--threads", str(threads), "--logits", str(self._logits)]
        command += ["--prompt", str(options.prompt), "--written", str(options.written)]
        environment = dict(os.environ, PALTO_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.facts = self._answer()
        self.turns: list[dict[str, float]] = []

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} cannot take part here, see above")
        return json.loads(line)

    def turn(self) -> None:
        """Read and write once."""
        assert self._process.stdin is not None
        time.sleep(PAUSE)
        print(file=self._process.stdin, flush=True)
        self.turns.append(self._answer())

    def best(self, what: str) -> float:
        """The most of all turns."""
        return max(turn[what] for turn in self.turns)

    def logits(self) -> np.ndarray:
        """What it found after the prompt."""
        return np.load(self._logits)

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()


def compare(threads: int, options: argparse.Namespace) -> None:
    """A table of all sides on so many threads."""
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for name in options.sides:
            try:
                sides.append(Side(name, threads, options, Path(folder)))
            except RuntimeError as error:
                print(error, file=sys.stderr)
        for _ in range(options.turns):
            for side in sides:
                side.turn()
        reference = next((s.logits() for s in sides if s.name == "transformers float32"), None)
        for side in sides:
            reading, writing = side.best("reading"), side.best("writing")
            line = f"| {side.name} | {threads} | {reading:,.0f} | {writing:.1f} "
            line += f"| {side.best('memory'):,.0f} MB | {side.facts['start']:.1f} s | "
            if reference is not None:
                width = min(len(reference), len(side.logits()))
                off = np.abs(side.logits()[:width] - reference[:width]).max()
                line += f"{off:.2g} of {np.abs(reference).max():.2g} | "
            if "cached" in side.facts:
                cached = side.facts["cached"] * (options.prompt + options.written / 2)
                rate = (side.facts["weights"] + cached) * writing / 1e9
                line += f"{rate:.1f} GB/s, {rate / side.best('copy'):.0%} of a copy |"
            print(line, flush=True)
            side.end()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--file", type=Path, help="a GGUF file of a llama, instead of SmolLM2")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=5, help="how many each (%(default)s)")
    parser.add_argument("--sides", nargs="+", choices=MAKERS, default=list(SIDES))
    parser.add_argument("--prompt", type=int, default=512, help="tokens (%(default)s)")
    parser.add_argument("--written", type=int, default=64, help="tokens (%(default)s)")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--logits", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        live(options.side, options)
        return
    if options.file is None:
        from palto.chat import models

        options.file = models.FILES.path(models.SMOLLM2)
    options.file = options.file.resolve()
    print("| | threads | read, tokens/s | written, tokens/s | memory | start | logits off by | |")
    print("|---|---|---|---|---|---|---|---|")
    for threads in options.threads:
        compare(threads, options)


if __name__ == "__main__":
    main()
