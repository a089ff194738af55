"""A small set of real pictures for tests: Debian's stamps, each with one question about its colours and its name."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from basic_lite.training.files import write_json
from bench.world.colours import standing_out
from bench.world.packages import made_once, unpacked_deb

# Any change that alters the pictures or their answers must raise this number: caches outlive commits.
PICTURES_VERSION = 1
STAMPS = "tuxpaint-stamps-default"
QUESTION = "Which colours do you see, and what is it?"
HELD_OUT = 30
# Captions of more characters are left out: they are stories about the picture.
LONGEST = 40
# Pictures of the same colours, at most; else a model would do well that always says the commonest ones.
MOST_ALIKE = 16
# No picture that is kept is larger than this; the towers of the tests see 48 pixels.
SIDE = 224


@dataclass(frozen=True)
class Pictures:
    """Captioned pictures as LLaVA JSON; ``image`` names are relative to ``images``."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def train(self) -> Path:
        return self.folder / "train.json"

    @property
    def held_out(self) -> Path:
        return self.folder / "held_out.json"


def pictures() -> Pictures:
    """Photos and drawings, with answers to `QUESTION`; the last `HELD_OUT` kept apart. Nothing is installed.

    An answer names two colours, found by counting pixels, and then gives the picture's caption. Even a weak tower and a
    short training show the colours.

    Raises:
        Unavailable: there is no apt-get or dpkg, or the package can't be fetched (161 MB).
    """
    return Pictures(made_once(f"pictures-{PICTURES_VERSION}", _write_pictures))


def colours_of(picture: Image.Image) -> str:
    """The two colours that stand out, as an answer begins."""
    return " and ".join(standing_out(picture)[:2]).capitalize()


def captioned(stamps: Path) -> list[tuple[Path, str]]:
    """The stamps that are pictures of pixels and have a caption, in an order that is always the same."""
    rows = []
    for text in sorted(stamps.rglob("*.txt")):
        # The first line is English, the others are translations.
        caption = text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        if 0 < len(caption) <= LONGEST and text.with_suffix(".png").exists():
            rows.append((text.with_suffix(".png"), caption))
    random.Random(0).shuffle(rows)
    return rows


def on_white(source: Path, side: int = SIDE) -> Image.Image:
    """A picture of at most ``side`` pixels, white where it is transparent."""
    picture = Image.open(source).convert("RGBA")
    picture.thumbnail((side, side))
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white


def _write_pictures(folder: Path) -> None:
    unpacked = folder / "unpacked"
    unpacked_deb(STAMPS, unpacked)
    (folder / "images").mkdir()
    records: list[dict[str, Any]] = []
    found: Counter[str] = Counter()
    for source, caption in captioned(unpacked / "usr/share/tuxpaint/stamps"):
        name = f"{len(records):03d}.png"
        picture = on_white(source)
        colours = colours_of(picture)
        found[colours] += 1
        if found[colours] > MOST_ALIKE:
            continue
        picture.save(folder / "images" / name)
        answer = f"{colours}. {caption}"
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]
        records.append({"id": source.stem, "image": name, "conversations": turns})
    write_json(folder / "train.json", records[:-HELD_OUT])
    write_json(folder / "held_out.json", records[-HELD_OUT:])
    shutil.rmtree(unpacked)
