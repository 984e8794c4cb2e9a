"""What a car's network sees and does, as the pictures of a film."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont


def driving(
    scene: np.ndarray,
    saliency: np.ndarray,
    height_seen: float,
    controls: np.ndarray,
    speed: float,
    title: str,
    laps: Sequence[str],
) -> np.ndarray:
    """The scene with what the decision hangs on, and beside it the controls and the laps.

    Args:
        scene: uint8 (400, 600, 3).
        saliency: how much each point matters, from 0 up, float32 of any size.
        height_seen: the upper share of the scene that the network sees.
        controls: the steering from -1, left, to 1, right, and the pedal from -1, brake, to 1, gas.
        speed: from 0 to 100.
        title: a line above.
        laps: a line for each; the last ten are shown.

    Returns:
        A picture, uint8 (400, 840, 3).
    """
    height, width = scene.shape[:2]
    # A few points of the highest slope would outshine all others.
    share = np.minimum(saliency / max(float(np.quantile(saliency, 0.99)), 1e-12), 1)
    heat = Image.fromarray((220 * share).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.8))
    mask = Image.new("L", (width, height))
    mask.paste(heat.resize((width, round(height_seen * height)), Image.Resampling.BICUBIC))
    picture = Image.new("RGB", (width + 240, height), "#202428")
    color = Image.new("RGB", (width, height), "#ff2090")
    picture.paste(Image.composite(color, Image.fromarray(scene), mask))
    draw = ImageDraw.Draw(picture)
    font, left = ImageFont.load_default(12), width + 12
    draw.text((left, 10), title, "white", font)
    steering, pedal = (float(x) for x in np.clip(controls, -1, 1))
    middle = left + 108
    for top, name, start, end, color_name in (
        (36, "steering", middle, middle + 108 * steering, "#58a6ff"),
        (72, "gas" if pedal >= 0 else "brake", middle, middle + 108 * pedal,
         "#3fb950" if pedal >= 0 else "#f85149"),
        (108, f"speed {speed:.0f}", left, left + 2.16 * min(speed, 100), "#d29922"),
    ):  # fmt: skip
        draw.text((left, top), name, "white", font)
        draw.rectangle((left, top + 16, left + 216, top + 26), outline="#606870")
        draw.rectangle((min(start, end), top + 17, max(start, end), top + 25), fill=color_name)
    if laps:
        draw.text((left, 150), "laps", "white", font)
    for line, text in enumerate(laps[-10:]):
        draw.text((left, 172 + 20 * line), text, "white", font)
    return np.asarray(picture)
