"""One image file, of whatever kind, to bytes of one shape."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np

from palto.data.sources.checks import one_of
from palto.tensor.dtypes import Array

if TYPE_CHECKING:
    from PIL.Image import Image

Channels = Literal[1, 3]
Fit = Literal["crop", "stretch"]
Size = tuple[int, int]
Result = TypeVar("Result")

#: What may be opened: a file is known by its contents, whatever its name ends in. (Pillow knows
#: more formats, some of which start other programs.)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: How the name of an image ends.
SUFFIXES = frozenset([
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
])  # fmt: skip
FILE_LIMIT = 1 << 28  # bytes of one image file
GREY_MODES = frozenset(["1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"])
NOT_IMAGES = (
    (b"version https://git-lfs", "it is a Git LFS pointer, not the image: run git lfs pull"),
    (b"<", "it is a web page or other text, not an image"),
)
EXIF_ORIENTATION = 0x0112


class Header(NamedTuple):
    """What is known of an image before it is decoded; `size` is (height, width), upright."""

    size: Size
    grey: bool


def read_image(
    path: str | os.PathLike[str], *, size: int | Size, channels: Channels = 3, fit: Fit = "crop"
) -> Array:
    """One image file as a network sees it, in the way of `image_folder`.

    Args:
        path: the file.
        size: (height, width), or one number for both.
        channels: 3 for colour, 1 for grey.
        fit: "crop" or "stretch".

    Returns:
        Bytes of shape (H, W, C).

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no image, or a damaged one, and the message names the file; or an option
            is none of those possible.
    """
    sides = both_sides(size)
    one_of("channels", channels, 1, 3)
    one_of("fit", fit, "crop", "stretch")
    with open(path, "rb") as file:
        try:
            return decode(file, sides, channels, fit)
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def both_sides(size: int | Size) -> Size:
    """A size as (height, width).

    Raises:
        ValueError: it is none.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in sides)
    if len(sides) != 2 or not whole or not all(1 <= n <= 1 << 14 for n in sides):
        raise ValueError(
            "size is a whole number of pixels from 1 to 16384, or two of them (height, width), "
            f"got {size!r}"
        )
    return int(sides[0]), int(sides[1])


def read_header(file: BinaryIO) -> Header:
    """Size and kind of an image, without its pixels.

    Raises:
        ValueError: it is none, or one too large to decode.
    """
    return _guarded(_header, file)


def decode(file: BinaryIO, size: Size, channels: Channels, fit: Fit) -> Array:
    """An image as bytes of shape (*size, channels).

    Turned upright as its EXIF data says; of several frames the first; 16-bit grey divided by 257;
    what is transparent shows white; a colour profile is not applied.

    Raises:
        ValueError: it is no image, damaged, or too large; the message is the reason.
    """
    return _guarded(partial(_decode, size=size, channels=channels, fit=fit), file)


def _guarded(read: Callable[[BinaryIO], Result], file: BinaryIO) -> Result:
    try:
        return read(file)
    except MemoryError:
        raise ValueError("there is not enough memory to decode it") from None
    except Exception as error:  # what a damaged file makes decoders raise is not documented
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"it declares more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return f"it is no image that can be read ({', '.join(FORMATS)}), or its head is damaged"
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _opened(file: BinaryIO) -> Image:
    from PIL import Image

    start = file.read(32)
    file.seek(0)
    if not start:
        raise ValueError("the file is empty")
    for prefix, reason in NOT_IMAGES:
        if start.lstrip().startswith(prefix):
            raise ValueError(reason)
    image = Image.open(file, formats=FORMATS)
    if Image.MAX_IMAGE_PIXELS is not None and math.prod(image.size) > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    if 0 in image.size:
        raise ValueError("it has no pixels")
    return image


def _header(file: BinaryIO) -> Header:
    with _opened(file) as image:
        width, height = image.size
        # Pillow turns TIFF itself, and would decode a PNG in search of what is not in its head.
        known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        if known and _orientation(image) >= 5:
            width, height = height, width
        return Header((height, width), image.mode in GREY_MODES)


def _decode(file: BinaryIO, size: Size, channels: Channels, fit: Fit) -> Array:
    from PIL import Image, ImageOps

    height, width = size
    with _opened(file) as image:
        # A JPEG file can be decoded at an eighth of its size or so; twice what is wanted is enough.
        scale = 2 * max(size) / min(image.size)
        image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image.load()
        plain = _plain(_upright(image), channels)
    if plain.size != (width, height):
        if fit == "crop":
            plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
        else:
            plain = plain.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(plain).reshape(height, width, channels)


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF data says nothing
        return 1


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(_orientation(image))  # fmt: skip
    return image if turn is None else image.transpose(turn)


def _plain(image: Image, channels: Channels) -> Image:
    """The image in grey or in colour, 8 bits, nothing transparent."""
    from PIL import Image as images

    if image.mode == "F":
        raise ValueError("its pixels are fractions of no known range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image.convert("I"))
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(
                f"its 32-bit pixels go from {values.min()} to {values.max()}: save it with 8 or 16 "
                "bits"
            )
        image = images.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = images.alpha_composite(images.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which always copies
