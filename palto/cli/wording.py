"""Errors of the library in the words of the command line."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

#: What errors advise that no option of a command does, and what is advised instead.
_WITHOUT_OPTION = {
    r', or leave (it|them) out with on_error="skip"': "",
    r": delimiter= says otherwise": "",
    r'; decimal="," reads fractions with a comma': "; write fractions with a point",
    r'; missing="drop" removes it': ": remove it",
    r'name its encoding, such as encoding="cp1252"': "save it as UTF-8",
    r"Name it with labels=": "Put both into one .npz, as images and labels",
    r"Name arrays with images= and labels=": "Call two of them images and labels",
    r"Say layout=.*": "Bring them into the order N, H, W, C",
}


def in_options(text: str, command: Any) -> str:
    """An error's text, in which parameters of functions are called as the options of a command.

    Args:
        text: of the error.
        command: a dataclass of options, or None where none is known.
    """
    names = [] if command is None else [field.name for field in dataclasses.fields(command)]
    if "skip_bad_images" in names:
        text = text.replace('on_error="skip"', "--skip-bad-images")
    for name in names:
        option = f"--{name.replace('_', '-')}"
        text = re.sub(rf"(?:^|(?<=; )){name}(?= (?:is|are|must|should) )", option, text)
        text = text.replace(f"({name})", f"({option})")
        text = re.sub(rf"(?<![\w./-]){name}=[\"'](\w+)[\"']", rf"{option} \1", text)
        text = re.sub(rf"(?<![\w./-]){name}=(?= |$)", option, text)
    for hint, instead in _WITHOUT_OPTION.items():
        text = re.sub(hint, instead, text)
    return text
