"""Trained weights that are handed on: a safetensors file, and beside it how it came to be."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palto.formats import safetensors
from palto.formats.whole import write_whole
from palto.nn.module import Module
from palto.train.run import versions


def save_weights(
    folder: str | os.PathLike[str],
    name: str,
    model: Module,
    about: Mapping[str, Any],
    *,
    dtype: Any = None,
) -> dict[str, Any]:
    """Write `name`.safetensors and `name`.json, whole or not at all.

    Args:
        folder: where to.
        name: of both files.
        model: whose weights they are.
        about: what is to be known of them, as JSON takes it: the command, the scores.
        dtype: of the weights in the file; by default those of the model.

    Returns:
        What the JSON file holds: `about`, the date, versions, and the hash of the weights.
    """
    weights, record_file = _files(folder, name)
    state = model.state_dict()
    if dtype is not None:
        state = {name: x.astype(dtype) for name, x in state.items()}
    safetensors.save(weights, state)
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        **about,
        "sha256": _hash(weights),
    }
    write_whole(record_file, (json.dumps(record, indent=1) + "\n").encode())
    return record


def load_weights(
    folder: str | os.PathLike[str], name: str, model: Module, *, made_by: str
) -> dict[str, Any]:
    """Load `name`.safetensors into a model.

    Args:
        folder: where the files lie.
        name: of both.
        model: gets the weights.
        made_by: the command that makes them, for the message if they are not there.

    Returns:
        Their record.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: the weights are not those that the record speaks of, or are of another model.
    """
    weights, record_file = _files(folder, name)
    for path in (weights, record_file):
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no trained {name} ({path.name} is missing); a folder of "
                f"`{made_by}` has one when the training is over"
            )
    try:
        record = dict(json.loads(record_file.read_text(encoding="utf-8")))
        expected = record["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record_file} is damaged: {error!r}") from None
    if _hash(weights) != expected:
        raise ValueError(
            f"{weights} is not the file that {record_file} describes: its hash differs"
        )
    model.load_state_dict(safetensors.load(weights))
    return record


def _files(folder: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    return Path(folder) / f"{name}.safetensors", Path(folder) / f"{name}.json"


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
