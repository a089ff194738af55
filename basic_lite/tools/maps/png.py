"""Token maps as one image file, drawn with Pillow, to be pasted into a text."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from basic_lite.outside import open_file
from basic_lite.supervision.picture_maps import PictureMaps
from basic_lite.tools.maps.panels import (
    COLOURED,
    COLOURS,
    GREY,
    HEAT,
    PLAIN,
    RING,
    SINK,
    colours_of,
    heat_of,
    in_text_text,
    listed,
    title_of,
    words_fit,
)

# Pixels of a panel's width, of what is between two, of a line of text.
PANEL, GAP, LINE = 336, 24, 20
ACROSS = 3
_INK, _SOFT, _PAPER = (29, 36, 51), (86, 96, 116), (255, 255, 255)
_LETTERS = 44  # in a line below a panel
# What tells our files from others, in a text that Pillow writes near a file's beginning.
_MARK = "basic-lite inspect --maps"

# Fonts of systems, most letters first for the most common ones; names are looked for where a system has its fonts.
FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG file with our mark.

    Raises:
        OSError: it can't be written.
    """
    info = PngInfo()
    info.add_text("Software", _MARK)
    image.save(path, pnginfo=info)


def is_own(path: Path) -> bool:
    """Whether a path is a file that ``save`` wrote.

    Raises:
        OSError: it can't be read.
    """
    if path.is_symlink() or not path.is_file():
        return False
    with open_file(path) as file:
        return _MARK.encode() in file.read(200)


def sheet(one: PictureMaps, strongest: float) -> Image.Image:
    """All maps of a picture on white: the picture, attention, words, and the trace.

    Args:
        strongest: the a_i that has the hottest colour.
    """
    drawn = [*_maps(one, strongest), (_trace(one), ["How far the layers turn v:", "cos(v, ṽ), 1 is not at all"])]
    rows = [drawn[start : start + ACROSS] for start in range(0, len(drawn), ACROSS)]
    heights = [max(image.height + LINE * len(text) for image, text in row) + GAP for row in rows]
    across = min(ACROSS, len(drawn))
    out = Image.new("RGB", (across * (PANEL + GAP) + GAP, sum(heights) + GAP), _PAPER)
    pen, y = ImageDraw.Draw(out), GAP
    for row, height in zip(rows, heights, strict=True):
        for n, (image, text) in enumerate(row):
            x = GAP + n * (PANEL + GAP)
            out.paste(image, (x, y))
            for number, line in enumerate(text):
                _write(pen, (x, y + image.height + 6 + number * LINE), line, 15, _SOFT if number else _INK)
        y += height
    return out


def _maps(one: PictureMaps, strongest: float) -> list[tuple[Image.Image, list[str]]]:
    found = []
    if one.rows:
        found.append((_canvas(one), ["The picture, as the vision tower gets it"]))
        if one.attention is not None:
            text = ["Attention a", f"{one.mass:.0%} of the attention of {one.whose}"]
            found.append((_attention(one, strongest), [*text, f"{len(one.sinks)} sinks (ring)"]))
    for place in range(len(one.places)):
        image = _words(one, place) if one.rows else Image.new("RGB", (PANEL, 1), _PAPER)
        found.append(
            (image, [title_of(one, place)[0], *wrap(in_text_text(one, place), _LETTERS), *_legend(one, place)])
        )
    return found


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    anchor: str | None = None,
    **stroke: Any,
) -> None:
    shown, font = drawable(text, size)
    pen.text(at, shown, colour, font, anchor, **stroke)


def _legend(one: PictureMaps, place: int) -> list[str]:
    words, rest = listed(one, place)
    said = [*(f"{word}: {count}" for word, count in words), *([rest] if rest else [])]
    return wrap(drawable(", ".join(said), 15)[0], _LETTERS)[:4]


def _canvas(one: PictureMaps) -> Image.Image:
    image = one.image()
    return image.resize((PANEL, max(1, round(PANEL * one.rows / one.columns))), Image.Resampling.BICUBIC)


def _box(one: PictureMaps, size: tuple[int, int], n: int) -> tuple[int, int, int, int]:
    row, column = divmod(n, one.columns)
    width, height = size[0] / one.columns, size[1] / one.rows
    return round(column * width), round(row * height), round((column + 1) * width) - 1, round((row + 1) * height) - 1


def _laid(image: Image.Image, one: PictureMaps, colours: Sequence[tuple[int, int, int, float]]) -> Image.Image:
    """Colours with opacity (r, g, b, α) over an image, a patch each."""
    over = Image.new("RGBA", image.size)
    pen = ImageDraw.Draw(over)
    for n, (red, green, blue, alpha) in enumerate(colours):
        pen.rectangle(_box(one, image.size, n), (red, green, blue, round(255 * alpha)))
    return Image.alpha_composite(image.convert("RGBA"), over).convert("RGB")


def _rings(image: Image.Image, one: PictureMaps) -> None:
    pen = ImageDraw.Draw(image)
    for n in one.sinks:
        left, top, right, bottom = _box(one, image.size, n)
        inset = (right - left) * RING
        pen.ellipse((left + inset, top + inset, right - inset, bottom - inset), outline=SINK, width=2)


def _attention(one: PictureMaps, strongest: float) -> Image.Image:
    grey = ImageOps.grayscale(_canvas(one)).point(lambda value: round(value * GREY)).convert("RGB")
    image = _laid(grey, one, [(*HEAT, heat) for heat in heat_of(one, strongest)])
    _rings(image, one)
    return image


def _words(one: PictureMaps, place: int) -> Image.Image:
    colours, fits = {} if words_fit(one) else colours_of(one), words_fit(one)
    shades = [(*COLOURS[colours[word]], COLOURED) if word in colours else (0, 0, 0, PLAIN) for word in one.words[place]]
    image = _laid(_canvas(one), one, shades)
    _rings(image, one)
    pen = ImageDraw.Draw(image)
    for n in one.in_text[place]:
        pen.rectangle(_box(one, image.size, n), outline=(255, 255, 255), width=2 if fits else 1)
    for n, word in enumerate(one.words[place]) if fits else ():
        left, top, right, bottom = _box(one, image.size, n)
        size = max(7, round(1.4 * (right - left) / max(len(word), 7)))
        middle = ((left + right) / 2, (top + bottom) / 2)
        _write(pen, middle, word, size, (255, 255, 255), "mm", stroke_width=1, stroke_fill=(0, 0, 0))
    return image


def _trace(one: PictureMaps) -> Image.Image:
    """The chart of cos(v, ṽ_h): 0 or the lowest value at the bottom, 1 at the top."""
    image = Image.new("RGB", (PANEL, PANEL * 2 // 3), _PAPER)
    pen = ImageDraw.Draw(image)
    left, right, top, bottom = 40, PANEL - 10, 10, image.height - 26
    low = min(0.0, *(value for _, value, _ in one.trace))

    def at(n: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * (n + 0.5) / len(one.trace)
        return x, bottom - (bottom - top) * (value - low) / (1 - low)

    for value in (0.0, 0.5, 1.0):
        y = at(0, value)[1]
        pen.line((left, y, right, y), (201, 208, 220))
        _write(pen, (left - 6, y), f"{value:g}", 13, _SOFT, "rm")
    every = max(1, len(one.trace) // 6)
    for n, (mean, least, most) in enumerate(one.trace):
        pen.line((*at(n, least), *at(n, most)), (160, 185, 225), 3)
        x, y = at(n, mean)
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), (31, 95, 191))
        if n % every == 0 or n == len(one.trace) - 1:
            name = "v̂" if n == len(one.trace) - 1 else f"h{n + 1}"
            _write(pen, (x, bottom + 14), name, 13, _SOFT, "mm")
    pen.line([at(n, mean) for n, (mean, _, _) in enumerate(one.trace)], (31, 95, 191), 2)
    return image


@cache
def _fonts(size: int) -> list[ImageFont.FreeTypeFont]:
    """Those of ``FONTS`` that are here, and the one that comes with Pillow, which has English letters alone."""
    found = []
    for name in FONTS:
        with suppress(OSError):
            found.append(ImageFont.truetype(name, size))
    own = ImageFont.load_default(size)
    assert isinstance(own, ImageFont.FreeTypeFont), "Pillow without FreeType"
    return [*found, own]


@cache
def _known(number: int, letter: str) -> bool:
    """Whether font ``number`` has a letter: it draws all that it lacks alike."""
    font = _fonts(20)[number]
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


def drawable(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Text, and the first font that has most of its letters; what it lacks is written as numbers, such as U+72D7."""
    fonts = _fonts(size)
    plain = text.replace("v̂", "v^").replace("ṽ", "v~") if len(fonts) == 1 else text
    known = [sum(_known(number, letter) for letter in plain) for number in range(len(fonts))]
    best = known.index(max(known))
    return "".join(one if _known(best, one) else f"U+{ord(one):04X}" for one in plain), fonts[best]
