"""The command that takes the echo out of a recorded call."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from tyro.conf import arg

from palto.draw import sound_page
from palto.extras import require

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Echo:
    """Take the loudspeaker's echo out of what a microphone has recorded.

    palto echo -x far.wav -y mic.wav -o out.wav

    With a filter of your own, from `palto train echo`: palto echo --run runs/echo -x ...

    The result has the microphone's length, rate, channels and timing. The recordings may have any
    rate from 8,000 samples a second and any number of channels; that the echo comes up to a second
    later in the microphone's recording, or half a second earlier, does not matter. Above 8 kHz
    nothing is left. Needs: pip install 'palto[echo]'
    """

    far: Annotated[Path, arg(aliases=["-x"])]
    """What the loudspeaker has played: a .wav, .flac or .ogg file."""
    mic: Annotated[Path, arg(aliases=["-y"])]
    """What the microphone has recorded meanwhile."""
    out: Annotated[Path, arg(aliases=["-o"])]
    """Where to write the result, a .wav or .flac file; what is there is replaced."""
    page: Path | None = None
    """Write a page, too, on which to see and hear the sound before and after; an .html file."""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """The folder of a training; by default the filter that comes with Palto."""

    def run(self) -> int:
        """Do it."""
        require("soundfile", "echo", "palto echo")
        require("soxr", "echo", "palto echo")
        from palto.recipes import echo

        console = Console()
        if self.out.suffix.lower() not in (".wav", ".flac"):
            raise ValueError(f"--out wants a .wav or .flac file, got {self.out}")
        if self.page is not None and self.page.suffix.lower() != ".html":
            raise ValueError(f"--page wants an .html file, got {self.page}")
        for given in (self.far, self.mic):
            if given.exists() and self.out.exists() and os.path.samefile(given, self.out):
                raise ValueError(f"--out is {given} itself; name another file")
        far, far_rate, _ = read(self.far)
        mic, mic_rate, form = read(self.mic)
        model, _ = echo.load_filter(self.run_folder or echo.SHIPPED)
        clean, late = echo.cancel(model, far, far_rate, mic, mic_rate)
        write(self.out, clean, mic_rate, form)
        if self.page is not None:
            sounds = {f"{self.mic.name}, as recorded": mic, f"{self.out.name}, without echo": clean}
            sound_page(
                self.page, "Before and after", {x: y.mean(1) for x, y in sounds.items()}, mic_rate
            )
        if late:
            console.print(f"the echo comes {late / echo.RATE * 1000:.0f} ms after {self.far.name}")
        else:
            console.print(f"no delay to {self.far.name} can be made out")
        console.print(
            f"{self.out}: {len(clean) / mic_rate:.1f} s, {mic_rate:,} samples a second, "
            f"{clean.shape[1]} {'channel' if clean.shape[1] == 1 else 'channels'}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        return 0


def read(path: Path) -> tuple[np.ndarray, int, str]:
    """Samples, float32 (time, channels), how many there are a second, and the file's sample format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none with sound in it.
    """
    soundfile: Any = require("soundfile", "echo", "palto echo")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with soundfile.SoundFile(path) as file:
            return file.read(dtype="float32", always_2d=True), file.samplerate, file.subtype
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be read as sound: {error.error_string}") from None


def write(path: Path, samples: np.ndarray, rate: int, form: str) -> None:
    """Write a file, whole or not at all, in a sample format if the file's kind has it.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    soundfile: Any = require("soundfile", "echo", "palto echo")
    kind = path.suffix[1:].upper()
    form = form if soundfile.check_format(kind, form) else "PCM_16"
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        soundfile.write(unfinished, samples, rate, subtype=form, format=kind)
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise
