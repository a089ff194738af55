"""How much memory a picture takes while it is decoded, and to RGB without more than that."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from basic_lite.data.problems import BadImage

# The most that one picture may take. A photograph of 108 megapixels takes 0.9 GB where it lies on its side.
MOST_BYTES = 1_000_000_000

# Pillow's bytes a pixel, and a line of its table of lines.
_PIXEL, _LINE = {"1": 1, "L": 1, "P": 1}, 8
# What decoders take beside the picture that they make, bytes a pixel; measured with Pillow 12.3 on 16 megapixels of one
# colour, and with room for more channels. Of the others (raw lines, or a line at a time) nothing.
_BESIDE = {"WEBP": 12, "JPEG2000": 20, "HEIF": 8, "AVIF": 6, "TIFF": 4, "QOI": 8, "PSD": 4, "ICO": 8}
# What of that is held as long as the file is open.
_HELD = {"WEBP": 8}
_ORIENTATION = 0x0112
# Pixels that are converted at a time.
_TILE = 1 << 20

Box = tuple[int, int, int, int]


def require_room(image: Image.Image) -> None:
    """Refuse a picture that would take too much memory, before it is decoded: its file may be small all the same.

    Raises:
        BadImage: it would.
    """
    kind, pixels = image.format or "", image.width * image.height
    own, rgb = _bytes(image.size, image.mode), 0 if image.mode == "RGB" else _bytes(image.size, "RGB")
    beside = _coefficients(image) if kind in ("JPEG", "MPO") else _BESIDE.get(kind, 0) * pixels
    _require(image, max(own + beside, own + rgb + _HELD.get(kind, 0) * pixels), image.size)


def require_room_to_turn(image: Image.Image, size: tuple[int, int]) -> None:
    """As ``require_room``, of a picture that is decoded and may have to be turned: then it is there twice.

    Args:
        size: the width and height that it has in its file.

    Raises:
        BadImage: it would take too much.
    """
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF, with which nothing is turned; Pillow raises what its parser trips over
        return
    if turned:
        held = _HELD.get(image.format or "", 0) * size[0] * size[1]
        _require(image, 2 * _bytes(size, image.mode) + held, size)


def _require(image: Image.Image, needed: int, size: tuple[int, int]) -> None:
    if needed > MOST_BYTES:
        raise BadImage(
            f"it would take {needed / 1e9:.1f} GB of memory ({size[0]:,} × {size[1]:,} pixels, {image.format})",
            "save it with fewer pixels, or leave the record out",
        )


def _bytes(size: tuple[int, int], mode: str) -> int:
    line = size[0] * (2 if mode.startswith("I;16") else _PIXEL.get(mode, 4))
    return size[1] * (-(-line // 4) * 4 + _LINE)


def _coefficients(image: Image.Image) -> int:
    """What a progressive JPEG takes: all its coefficients, at 2 bytes, for as many scans as there are."""
    if "progressive" not in image.info and "progression" not in image.info:
        return 0
    layers = [(across, down) for _, across, down, _ in getattr(image, "layer", [])] or [(1, 1)] * 4
    widest, highest = max(across for across, _ in layers), max(down for _, down in layers)
    share = sum(across * down for across, down in layers) / max(widest * highest, 1)
    return int(2 * share * image.width * image.height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode to RGB. Transparency is dropped, as in LLaVA; 16-bit and float greys are scaled.

    Beside both pictures it takes some 30 MB.
    """
    if image.mode == "RGB":
        return image
    convert = _converter(image)
    if image.width * image.height <= _TILE:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for box in _tiles(image.size):
        whole.paste(convert(image.crop(box)), box)
    return whole


def _tiles(size: tuple[int, int]) -> Iterator[Box]:
    width = min(size[0], _TILE)
    height = max(_TILE // width, 1)
    for top in range(0, size[1], height):
        for left in range(0, size[0], width):
            yield left, top, min(left + width, size[0]), min(top + height, size[1])


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    if image.mode.startswith("I;16"):
        return lambda part: Image.fromarray((np.asarray(part).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        top = max((float(np.fmax.reduce(_array(image.crop(box)), None)) for box in _tiles(image.size)), default=0.0)
        # Which range was meant is not stored: unit floats, bytes, or 16 bit.
        scale = 255.0 if image.mode == "F" and not top > 1 else 1.0 if not top > 255 else 255.0 / 65535

        def scaled(part: Image.Image) -> Image.Image:
            grey = np.nan_to_num(_array(part), copy=False)
            return Image.fromarray((grey * scale).clip(0, 255).astype(np.uint8)).convert("RGB")

        return scaled
    if image.mode == "P" and "transparency" in image.info:
        return _of_palette
    return lambda part: part.convert("RGB")


def _of_palette(part: Image.Image) -> Image.Image:
    """Its colours alone. Pillow warns where a palette's transparency would be lost, so that goes first."""
    part = part.copy()
    del part.info["transparency"]
    return part.convert("RGB")


def _array(part: Image.Image) -> np.ndarray:
    return np.array(part, dtype=np.float64)
