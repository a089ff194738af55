"""The colours of a picture, as words: found by counting pixels, so that a right answer is known."""

from __future__ import annotations

import numpy as np
from PIL import Image

COLOURS = {
    "black": (20, 20, 20),
    "grey": (125, 125, 125),
    "white": (245, 245, 245),
    "red": (190, 30, 35),
    "orange": (235, 130, 30),
    "brown": (110, 75, 45),
    "yellow": (235, 210, 50),
    "green": (60, 125, 50),
    "blue": (50, 90, 180),
    "purple": (120, 60, 140),
    "pink": (240, 100, 170),
}


def nearest_colours(picture: Image.Image) -> np.ndarray:
    """[h, w] of a picture's pixels: the index of the nearest of `COLOURS`."""
    pixels = np.asarray(picture, dtype=np.float32)
    known = np.array(list(COLOURS.values()), dtype=np.float32)
    return ((pixels[:, :, None] - known) ** 2).sum(-1).argmin(-1)


def standing_out(picture: Image.Image) -> list[str]:
    """All colours but white, the one first that stands out most: a vivid pixel counts more than a dull one."""
    small = picture.resize((48, 48))
    pixels = np.asarray(small, dtype=np.float32)
    vivid = pixels.max(-1) - pixels.min(-1)  # [48, 48]
    shares = np.bincount(nearest_colours(small).ravel(), weights=vivid.ravel() + 15, minlength=len(COLOURS))
    return [name for _, name in sorted(zip(shares, COLOURS, strict=True), reverse=True) if name != "white"]
