"""Videos, written picture by picture."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from palto.extras import require


class Video:
    """An MP4 file (H.264) in the making; a context manager.

    The file gets its name when it is whole: what was there before stays if something goes wrong.

    Args:
        path: the file.
        size: width and height of the pictures; both even, as H.264 wants.
        rate: pictures a second.
        extra: Palto's extra that brings PyAV, for the message if it is missing.

    Raises:
        MissingExtraError: PyAV is not installed.
        ValueError: a width or height that is odd; a file name that does not end with .mp4.
        OSError: the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], size: tuple[int, int], rate: int, *, extra: str
    ) -> None:
        av = require("av", extra, "a video")
        self.path, self.size = Path(path), size
        if self.path.suffix.lower() != ".mp4":
            raise ValueError(f"a video's name ends with .mp4, got {self.path}")
        if any(x % 2 for x in size):
            raise ValueError(f"the width and height of a video are even, got {size}")
        self._unfinished = self.path.with_name(f".{self.path.name}.part")
        self._frame: Any = av.VideoFrame
        self._file = av.open(str(self._unfinished), "w", format="mp4")
        self._stream = self._file.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"  # what every player takes
        self._stream.options = {"crf": "23", "preset": "veryfast"}

    def add(self, picture: np.ndarray) -> None:
        """One more picture, uint8 (height, width, 3)."""
        if picture.shape != (self.size[1], self.size[0], 3) or picture.dtype != np.uint8:
            raise ValueError(
                f"this video is of pictures uint8 {(self.size[1], self.size[0], 3)}, got "
                f"{picture.dtype} {picture.shape}"
            )
        frame = self._frame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._file.mux(self._stream.encode(frame))

    def __enter__(self) -> Video:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file, or throw it away after an error."""
        if error is None:
            self._file.mux(self._stream.encode(None))
        self._file.close()
        if error is None:
            os.replace(self._unfinished, self.path)
        else:
            self._unfinished.unlink(missing_ok=True)
