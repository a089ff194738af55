"""The real world of the evidence: some 5,000 photos and drawings with captions and questions, in LLaVA's format.

They are Debian's clip art and stamps. What clip art shows is said by its folder (a bird, a flag) and its name or title,
by people who never thought of training: the captions are short and noisy. The colour is measured.
"""

from __future__ import annotations

import random
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from basic_lite.training.files import write_json
from bench.world.captions import QUESTION_TYPES, Shown, caption_record, kind_of, name_of, question_record, shared_words
from bench.world.colours import standing_out
from bench.world.packages import made_once, unpacked_deb
from bench.world.stamps import STAMPS, captioned, on_white

# Any change that alters the pictures or their texts must raise this number: caches outlive commits.
VERSION = 2
HELD_OUT = 400
# Pixels of a side. The pictures are squares on white, so every way of fitting them does the same.
SIDE = 128
# Pictures of one folder and of one kind, at most: there are 1,378 stars and 1,700 icons of desktops.
MOST_OF_A_FOLDER, MOST_OF_A_KIND = 60, 350
# Clip art of more pixels is left out: some has 600 million.
_LARGEST = 20_000_000


@dataclass(frozen=True)
class RealWorld:
    """Where the written world lies; the names are those of the demo's world."""

    folder: Path
    images: Path
    pretrain: Path
    instruct: Path
    eval: Path
    eval_captions: Path

    @staticmethod
    def in_folder(folder: Path) -> RealWorld:
        names = ("images", "pretrain.json", "instruct.json", "eval.json", "eval_captions.json")
        return RealWorld(folder, *(folder / name for name in names))


def real_world() -> RealWorld:
    """The pictures with captions and questions; those of `HELD_OUT` pictures are kept apart.

    Raises:
        Unavailable: there is no apt-get or dpkg, or a package can't be fetched (320 MB in all).
    """
    return RealWorld.in_folder(made_once(f"world-{VERSION}", _write))


def _write(folder: Path) -> None:
    unpacked = folder / "unpacked"
    for package in (STAMPS, "openclipart-png", "openclipart-svg"):
        unpacked_deb(package, unpacked)
    world = RealWorld.in_folder(folder)
    world.images.mkdir()
    shown = list(_shown(unpacked / "usr/share", world.images))
    shutil.rmtree(unpacked)
    train, held_out = shown[:-HELD_OUT], shown[-HELD_OUT:]
    rng, known = random.Random(0), shared_words(train)
    questions = [(picture, kind) for picture in train for kind in QUESTION_TYPES]
    # One question about each held-out picture, of all types in turn.
    asked = [(picture, QUESTION_TYPES[i % len(QUESTION_TYPES)]) for i, picture in enumerate(held_out)]
    write_json(world.pretrain, [caption_record(i, picture, known) for i, picture in enumerate(train)])
    write_json(world.eval_captions, [caption_record(i, picture, known) for i, picture in enumerate(held_out)])
    write_json(world.instruct, [question_record(i, *pair, train, rng) for i, pair in enumerate(questions)])
    write_json(world.eval, [question_record(i, *pair, held_out, rng) for i, pair in enumerate(asked)])


def _shown(share: Path, images: Path) -> Iterator[Shown]:
    """Every picture that is kept, saved as a square; nearly equal ones once."""
    found: Counter[str] = Counter()
    seen: set[bytes] = set()
    for source, folder, name in _sources(share):
        kind = kind_of(folder)
        if kind is None or not name or found[folder] >= MOST_OF_A_FOLDER or found[kind] >= MOST_OF_A_KIND:
            continue
        picture = _square(source)
        if picture is None or (print_ := _fingerprint(picture)) in seen:
            continue
        found.update((folder, kind) if folder != kind else (kind,))
        image = f"{len(seen):05d}.png"
        seen.add(print_)
        picture.save(images / image)
        yield Shown(image, kind, name, standing_out(picture)[0])


def _sources(share: Path) -> list[tuple[Path, str, str]]:
    """File, folder and name of all stamps and clip art, in an order that is always the same."""
    stamps, art = share / "tuxpaint/stamps", share / "openclipart/png"
    rows = [
        (file, str(file.parent.relative_to(stamps)), caption.lower().rstrip(".!"))
        for file, caption in captioned(stamps)
    ]
    for file in sorted(art.rglob("*.png")):
        place = file.relative_to(art)
        svg = (share / "openclipart/svg" / place).with_suffix(".svg").read_text(encoding="utf-8", errors="replace")
        rows.append((file, str(place.parent), name_of(file.stem, svg)))
    random.Random(0).shuffle(rows)
    return rows


def _square(source: Path) -> Image.Image | None:
    """A white square with the picture in its middle; None where the archive's file is damaged, or a giant."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as file:
                if file.width * file.height > _LARGEST:
                    return None
            picture = on_white(source, SIDE)
    except (OSError, Image.DecompressionBombError):
        return None
    square = Image.new("RGB", (SIDE, SIDE), "white")
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square


def _fingerprint(picture: Image.Image) -> bytes:
    return (np.asarray(picture.resize((8, 8), Image.Resampling.BOX)) // 16).tobytes()
