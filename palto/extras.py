"""Libraries that some users need: imported at their first use, and asked for by name if absent."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A library that belongs to an extra is not installed; the message says which to install."""


def require(module: str, extra: str, user: str) -> ModuleType:
    """An optional library's module.

    Args:
        module: its dotted name, such as "matplotlib.figure".
        extra: Palto's extra that brings it, such as "plot".
        user: what needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{user} needs {module.split('.')[0]}, which is not installed: "
            f"pip install 'palto[{extra}]'"
        ) from error
