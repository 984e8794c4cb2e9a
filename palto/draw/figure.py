"""What all pictures share: a figure without windows, a file that depends on its contents alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from palto.extras import require


def new_figure(width: float, height: float) -> Any:
    """An empty `matplotlib.figure.Figure`, in inches; it shares no state with pyplot's.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figures = require("matplotlib.figure", "plot", "a picture")
    return figures.Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure as the kind of file that its name says; equal figures give equal bytes.

    Raises:
        ValueError: Matplotlib knows no such kind.
        OSError: the file cannot be written.
    """
    settings = {"svg.hashsalt": "palto", "svg.fonttype": "none"}  # text stays text
    kind = Path(path).suffix.lower()
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}}.get(kind)
    with require("matplotlib", "plot", "a picture").rc_context(settings):
        figure.savefig(path, dpi=120, metadata=metadata)
