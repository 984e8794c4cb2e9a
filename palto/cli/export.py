"""The command that hands a trained model on to other programs."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tyro.conf import Positional

from palto import Dim
from palto.formats import onnx, safetensors
from palto.train.run import CONFIG_FILE, Run

#: What lies in an exported folder.
MODEL_FILE, WEIGHTS_FILE, CARD_FILE = "model.onnx", "model.safetensors", "README.md"
SCRIPT_FILE, DESCRIPTION_FILE = "predict.py", "config.json"

_HEAD = '''"""Run the model without Palto: python predict.py {what} ...

Needs: pip install {packages}
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
{imports}
here = Path(__file__).parent
model = json.loads((here / "config.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])

for name in sys.argv[1:]:
'''
_READ_PICTURE = """\
    height, width, channels = model["shape"]
    with Image.open(name) as file:
        picture = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    inputs = np.asarray(picture, np.float32).reshape(1, height, width, channels) / 255
"""
_READ_ARRAY = """\
    inputs = np.load(name).astype(np.float32).reshape(-1, *model["shape"])
"""
_SAY_CLASSES = """\
    (scores,) = session.run(None, {"inputs": inputs})
    for row in scores:
        chances = np.exp(row - row.max())
        chances /= chances.sum()
        best = np.argsort(-chances)[:3]
        print(f"{name}: " + ", ".join(f"{model['classes'][k]} {chances[k]:.1%}" for k in best))
"""
_SAY_NUMBERS = """\
    (numbers,) = session.run(None, {"inputs": inputs})
    print(f"{name}: {numbers.tolist()}")
"""


@dataclass(frozen=True)
class Export:
    """Write a run's best weights for other programs.

    One file that ONNX Runtime, browsers and others run: palto export runs/my-run --to onnx

    A folder that explains itself: palto export runs/my-run --to folder --out my-model

    The folder holds the weights (safetensors), the network (ONNX), a card with measures, the data's
    licence and the command that made it, and a script that predicts without Palto.
    """

    run_folder: Positional[Path]
    """The run's folder."""
    to: Literal["onnx", "folder"] = "onnx"
    """One file, or a folder with all that others need."""
    out: Path | None = None
    """Where to; by default model.onnx, or export/, in the run's folder."""

    def run(self) -> int:
        """Do it."""
        run = Run.open(self.run_folder)
        description = _description(run)
        if self.to == "onnx":
            target = self.out or run.folder / MODEL_FILE
            _write_onnx(run, target, description)
        else:
            target = self.out or run.folder / "export"
            _write_folder(run, target, description)
            print(f"try it: python {target / SCRIPT_FILE} {_example(run)}")
        print(f"written: {target}")
        return 0


def _example(run: Run) -> str:
    return "PICTURE" if _takes_pictures(run) else "ARRAY.npy"


def _takes_pictures(run: Run) -> bool:
    return run.is_classification and len(run.shape) == 3


def _description(run: Run) -> dict[str, Any]:
    """What somebody who has the model alone must know; the run's best weights are loaded."""
    checkpoints = run.load_best().checkpoints
    best = None if checkpoints is None else checkpoints.best()
    assert best is not None  # load_best has found it
    saved = json.loads((run.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    history = best.state["history"]
    table = {} if run.encoder is None else {"encoder": run.encoder.as_dict()}
    return table | {
        "model": run.config.model,
        "shape": list(run.shape),
        "classes": list(run.classes),
        "measures": history[-1] if history else {},
        "data": run.config.data,
        "licence": saved.get("licence"),
        "command": run.command,
        "configuration": dataclasses.asdict(run.config),
        "versions": saved.get("versions", {}),
    }


def _write_onnx(run: Run, path: Path, description: dict[str, Any]) -> None:
    onnx.export(
        run.model,
        path,
        np.zeros((2, *run.shape), np.float32),
        dynamic_shapes={_first_argument(run): {0: Dim("batch", max=64)}},
        input_names=["inputs"],
        output_names=["scores" if run.is_classification else "prediction"],
        notes={name: value if isinstance(value, str) else json.dumps(value)
               for name, value in description.items()},
    )  # fmt: skip


def _first_argument(run: Run) -> str:
    return next(iter(inspect.signature(run.model.forward).parameters))


def _write_folder(run: Run, target: Path, description: dict[str, Any]) -> None:
    if target.exists():
        raise FileExistsError(f"{target} is there already; name another folder with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _write_onnx(run, unfinished / MODEL_FILE, description)
        safetensors.save(
            unfinished / WEIGHTS_FILE, run.model.state_dict(), metadata={"format": "palto"}
        )
        texts = {
            DESCRIPTION_FILE: json.dumps(description, indent=1, ensure_ascii=False) + "\n",
            SCRIPT_FILE: script(pictures=_takes_pictures(run), classes=run.is_classification),
            CARD_FILE: card(description, _example(run)),
        }
        for name, text in texts.items():
            (unfinished / name).write_text(text, encoding="utf-8")
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def script(*, pictures: bool, classes: bool) -> str:
    """The text of predict.py: for pictures or arrays, for classes or numbers."""
    head = _HEAD.format(
        what="PICTURE" if pictures else "ARRAY.npy",
        packages="numpy onnxruntime" + (" pillow" if pictures else ""),
        imports="from PIL import Image, ImageOps\n" if pictures else "",
    )
    read = _READ_PICTURE if pictures else _READ_ARRAY
    return head + read + (_SAY_CLASSES if classes else _SAY_NUMBERS)


def card(description: dict[str, Any], example: str) -> str:
    """The text of README.md."""
    measures = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.5g} |"
        for name, value in description["measures"].items()
    )
    classes = description["classes"]
    kind = "image-classification" if example == "PICTURE" else "tabular-classification"
    kind = kind if classes else "tabular-regression"
    shape = " x ".join(map(str, description["shape"]))
    licence = description["licence"] or "not stated: ask whoever gave you the data"
    of_what = f"{len(classes)} classes ({', '.join(classes)})" if classes else "a number"
    layout = ", height x width x channels, numbers from 0 to 1" if example == "PICTURE" else ""
    return f"""---
library_name: palto
pipeline_tag: {kind}
---

# {description["model"]} on {description["data"]}

A network that was trained with Palto. It takes float32 of shape N x {shape}{layout}, and gives
{of_what}.

## Use

    pip install numpy onnxruntime pillow
    python {SCRIPT_FILE} {example}

## Measures

On data that it was not trained on, after the epoch whose weights these are:

| measure | value |
|---|---|
{measures}

They say nothing about data of another kind.

## Data

{description["data"]}, licence: {licence}. What that licence demands of works made from the data
holds for this model as well.

## Made by

    {description["command"]}

with palto {description["versions"].get("palto", "of an unknown version")}; all settings are in
{DESCRIPTION_FILE}.

## Files

| file | what |
|---|---|
| {MODEL_FILE} | the network with its weights, for ONNX Runtime and others |
| {WEIGHTS_FILE} | the weights alone, under the names of Palto's state dict |
| {DESCRIPTION_FILE} | shapes, classes, measures, settings |
| {SCRIPT_FILE} | predicts without Palto |
"""
