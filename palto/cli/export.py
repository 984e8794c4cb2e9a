"""The command that hands a trained model on to other programs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

import palto
from palto.cli.exported import Exported, exported, holds_model
from palto.formats import onnx, safetensors

#: What lies in an exported folder.
MODEL_FILE, WEIGHTS_FILE, CARD_FILE = "model.onnx", "model.safetensors", "README.md"
SCRIPT_FILE, DESCRIPTION_FILE = "predict.py", "config.json"
#: Where the weights lie that come with Palto, by application.
SHIPPED = Path(palto.__file__).parent / "weights"


@dataclass(frozen=True)
class Export:
    """Write trained weights for other programs.

    One file that ONNX Runtime, browsers and others run: palto export runs/my-run --to onnx

    A folder that explains itself: palto export runs/my-run --to folder --out my-model

    What comes with Palto, the pilot of the self-driving car or the echo canceller: palto export
    drive --to folder, palto export echo --to folder

    The folder holds the weights (safetensors), the network (ONNX), a card with measures, the data's
    licence and the command that made it, and a script that predicts without Palto.
    """

    run_folder: Positional[Path]
    """The folder of a run of `palto train`, `palto train drive` or `palto train echo`; or drive or
    echo, for what comes with Palto."""
    to: Literal["onnx", "folder"] = "onnx"
    """One file, or a folder with all that others need."""
    out: Path | None = None
    """Where to; by default model.onnx, or export/, in the run's folder, and for what comes with
    Palto drive.onnx, or drive/, here."""

    def run(self) -> int:
        """Do it."""
        folder, out = self.run_folder, self.out
        names = {"onnx": MODEL_FILE, "folder": "export"}
        is_shipped = not holds_model(folder) and (SHIPPED / folder).is_dir()
        if is_shipped:
            folder, names = SHIPPED / folder, {"onnx": f"{folder}.onnx", "folder": str(folder)}
        target = out or (Path() if is_shipped else folder) / names[self.to]
        found = exported(folder)
        if self.to == "onnx":
            write_onnx(found, target)
        else:
            write_folder(found, target)
            print(f"try it: python {target / SCRIPT_FILE} {found.arguments}")
        print(f"written: {target}")
        return 0


def write_onnx(found: Exported, path: Path) -> None:
    """Write the network with its weights, and what is known of it as the file's notes."""
    onnx.export(
        found.function,
        path,
        *found.examples,
        dynamic_shapes=found.dynamic_shapes,
        input_names=found.inputs,
        output_names=found.outputs,
        notes={name: value if isinstance(value, str) else json.dumps(value)
               for name, value in found.about.items()},
    )  # fmt: skip


def write_folder(found: Exported, target: Path) -> None:
    """Write the folder, whole or not at all.

    Raises:
        FileExistsError: it is there already.
    """
    if target.exists():
        raise FileExistsError(f"{target} is there already; name another folder with --out")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        write_onnx(found, unfinished / MODEL_FILE)
        safetensors.save(
            unfinished / WEIGHTS_FILE, found.model.state_dict(), metadata={"format": "palto"}
        )
        texts = {
            DESCRIPTION_FILE: json.dumps(found.about, indent=1, ensure_ascii=False) + "\n",
            SCRIPT_FILE: found.script,
            CARD_FILE: card(found),
        }
        for name, text in texts.items():
            (unfinished / name).write_text(text, encoding="utf-8")
        os.chmod(unfinished, 0o755)
        os.rename(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def card(found: Exported) -> str:
    """The text of README.md."""
    about = found.about
    measures = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.5g} |" for name, value in about["measures"].items()
    )
    return f"""---
library_name: palto
pipeline_tag: {found.task}
---

# {found.title}

{_filled("A network that was trained with Palto. " + found.what)}

## Use

    pip install {found.packages}
    python {SCRIPT_FILE} {found.arguments}

## Measures

On data that it was not trained on:

| measure | value |
|---|---|
{measures}

They say nothing about data of another kind.

## Data

{
        _filled(
            found.licence + " What that licence demands of works made from the data holds for this "
            "model as well."
        )
    }

## Made by

    {about["command"]}

with palto {about["versions"].get("palto", "of an unknown version")}; all settings are in {
        DESCRIPTION_FILE
    }.

## Files

| file | what |
|---|---|
| {MODEL_FILE} | the network with its weights, for ONNX Runtime and others |
| {WEIGHTS_FILE} | the weights alone, under the names of Palto's state dict |
| {DESCRIPTION_FILE} | what is known of the model: measures, settings, versions |
| {SCRIPT_FILE} | runs it without Palto |
"""


def _filled(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)
