"""The demo's own small world: scenes, their pictures, captions and questions, in LLaVA's published format.

A *scene* is one to four objects on a 3×3 grid. An object is a colour and a shape; no two objects of a scene
share both, so "the red circle" always means at most one thing. Everything follows from a seed, save whether
a scene is held out: that follows from the scene alone, so a model trained on one seed's training scenes has
seen no held-out scene of any other seed.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from basic_lite.training.files import written_whole
from basic_lite.whole_file import write_whole

# Any change that alters a written world must raise this number: folders of another version are written anew.
WORLD_VERSION = 4

IMAGE_SIZE = 48
GRID = 3
CELL = IMAGE_SIZE // GRID

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (30, 150, 50),
    "blue": (35, 60, 215),
    "yellow": (235, 205, 20),
    "purple": (130, 40, 160),
    "orange": (240, 125, 15),
    "cyan": (25, 190, 205),
    "black": (25, 25, 25),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross", "ring", "diamond")
ROWS: tuple[str, ...] = ("top", "middle", "bottom")
COLUMNS: tuple[str, ...] = ("left", "centre", "right")
NUMBERS: tuple[str, ...] = ("one", "two", "three", "four")
QUESTION_TYPES: tuple[str, ...] = ("colour", "shape", "count", "position", "existence", "side")

# Few one-object scenes: only 9 · 48 exist, so more would mean showing each of them many times.
COUNT_WEIGHTS: tuple[float, ...] = (0.1, 0.3, 0.3, 0.3)
# One scene in this many is held out.
HELD_OUT_EVERY = 9
# Numbers of pictures and records. Held-out scenes differ from each other and from every training scene. Each record of
# `pretrain.json` has a picture of its own; questions are of all types equally often; `eval_…`: of held-out pictures.
SIZES = {
    "train_scenes": 8000,
    "held_out_scenes": 1000,
    "captions": 4000,
    "questions": 16000,
    "eval_questions": 1002,
    "eval_captions": 200,
}

CAPTION_REQUEST = "describe the image."


@dataclass(frozen=True, order=True)
class Thing:
    """One object: its grid cell 0..8 in raster order, its colour and its shape."""

    cell: int
    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def position(self) -> str:
        return f"{ROWS[self.cell // GRID]} {COLUMNS[self.cell % GRID]}"


@dataclass(frozen=True)
class Scene:
    """Objects in raster order, in distinct cells, with distinct (colour, shape) pairs."""

    things: tuple[Thing, ...]

    @property
    def held_out(self) -> bool:
        """True for about one scene in nine, by a checksum of what is in it."""
        text = ";".join(f"{t.cell}{t.colour}{t.shape}" for t in self.things)
        return zlib.crc32(text.encode()) % HELD_OUT_EVERY == 0


@dataclass(frozen=True)
class Question:
    """One question about one scene, with its only right answer."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class World:
    """Where a written world lies: LLaVA JSON, whose `image` names are relative to `images`."""

    folder: Path
    images: Path
    pretrain: Path
    instruct: Path
    eval: Path
    eval_captions: Path

    @staticmethod
    def in_folder(folder: Path) -> World:
        names = ("images", "pretrain.json", "instruct.json", "eval.json", "eval_captions.json")
        return World(folder, *(folder / name for name in names))


def sample_scene(rng: random.Random, *, held_out: bool) -> Scene:
    """Draw one scene from the training side (`held_out=False`) or from the held-out side."""
    while True:
        count = rng.choices(range(1, len(COUNT_WEIGHTS) + 1), COUNT_WEIGHTS)[0]
        cells = sorted(rng.sample(range(GRID * GRID), count))
        pairs = rng.sample(PAIRS, count)
        scene = Scene(tuple(Thing(cell, *pair) for cell, pair in zip(cells, pairs, strict=True)))
        if scene.held_out == held_out:
            return scene


PAIRS: list[tuple[str, str]] = [(colour, shape) for colour in COLOURS for shape in SHAPES]


def caption(scene: Scene) -> str:
    """Name all objects and places in raster order: `red circle top left and blue ring middle right`."""
    return " and ".join(f"{t.name} {t.position}" for t in scene.things)


def ask(scene: Scene, kind: str, rng: random.Random, *, yes: bool | None = None) -> Question | None:
    """Ask `scene` a question of type `kind`, or return None where no unambiguous one exists.

    Args:
        yes: the answer that a yes/no question shall have; None tosses a coin, so that chance is one half.

    Raises:
        ValueError: `kind` is not one of QUESTION_TYPES.
    """
    if kind not in QUESTION_TYPES:
        raise ValueError(f"question type {kind!r} is unknown; use one of {', '.join(QUESTION_TYPES)}")
    things = scene.things
    wanted = rng.random() < 0.5 if yes is None else yes
    if kind == "count":
        return Question(kind, "how many objects are there?", NUMBERS[len(things) - 1])
    if kind == "existence":
        present = {t.shape for t in things}
        shape = rng.choice([s for s in SHAPES if (s in present) == wanted])
        return Question(kind, f"is there a {shape}?", "yes" if wanted else "no")
    if kind == "shape":
        thing = _alone(things, lambda t: t.colour, rng)
        return Question(kind, f"what shape is the {thing.colour} object?", thing.shape) if thing else None
    thing = _alone(things, lambda t: t.shape, rng)
    if thing is None:
        return None
    if kind == "position":
        return Question(kind, f"where is the {thing.shape}?", thing.position)
    if kind == "side":
        if (thing.cell % GRID == 0) != wanted:
            return None
        return Question(kind, f"at the left, is there a {thing.shape}?", "yes" if wanted else "no")
    return Question(kind, f"what colour is the {thing.shape}?", thing.colour)


def _alone(things: Sequence[Thing], by: Callable[[Thing], str], rng: random.Random) -> Thing | None:
    """Choose an object that no other one shares `by` with."""
    counts = Counter(by(t) for t in things)
    alone = [t for t in things if counts[by(t)] == 1]
    return rng.choice(alone) if alone else None


def chance(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Accuracy of the best constant answer, by question type.

    Args:
        records: LLaVA records with a `question_type`; the last turn of each is the answer.

    Returns:
        question type → share of its records that have the type's most frequent answer, 0..1.
    """
    answers: dict[str, Counter[str]] = {}
    for record in records:
        answers.setdefault(record["question_type"], Counter())[record["conversations"][-1]["value"]] += 1
    return {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}


_NAMED = re.compile(rf"\b({'|'.join(COLOURS)})\s+({'|'.join(SHAPES)})\b")


def caption_f1(predicted: str, reference: str) -> float:
    """F1 over the objects that two captions name, 0..1.

    An object is a colour word directly followed by a shape word, in any letter case; each (colour, shape)
    pair counts once per caption, and places are ignored. With p, r the sets of `predicted` and `reference`:
    F1 = 2·|p ∩ r| / (|p| + |r|), and 1 when both are empty.
    """
    p, r = set(_NAMED.findall(predicted.lower())), set(_NAMED.findall(reference.lower()))
    return 2 * len(p & r) / (len(p) + len(r)) if p or r else 1.0


# Shapes are drawn at twice the size and then halved, which smooths their edges.
_SCALE = 2


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw `scene` as a 48×48 RGB image: jittered places, sizes and shades on a light, noisy ground."""
    ground = rng.integers(205, 241)
    picture = Image.new("RGB", (IMAGE_SIZE * _SCALE, IMAGE_SIZE * _SCALE), (int(ground),) * 3)
    draw = ImageDraw.Draw(picture)
    for thing in scene.things:
        radius = rng.uniform(5.4, 6.8)
        slack = CELL / 2 - radius
        x = (thing.cell % GRID + 0.5) * CELL + rng.uniform(-slack, slack)
        y = (thing.cell // GRID + 0.5) * CELL + rng.uniform(-slack, slack)
        shade = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3), 0, 255)
        red, green, blue = (int(level) for level in shade)
        _draw(draw, thing.shape, x * _SCALE, y * _SCALE, radius * _SCALE, (red, green, blue))
    pixels = np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), dtype=np.float32)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * 6
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _draw(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, int, int]) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        side = r * 0.88
        draw.rectangle((x - side, y - side, x + side, y + side), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + r * 0.85), (x - r, y + r * 0.85)], fill=fill)
    elif shape == "cross":
        arm = r * 0.34
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=round(r * 0.38))
    else:
        draw.polygon([(x, y - r), (x + r * 0.8, y), (x, y + r), (x - r * 0.8, y)], fill=fill)


def write_world(
    folder: Path, seed: int = 0, *, progress: Callable[[str], None] = lambda line: None, **sizes: int
) -> World:
    """Write the world of `seed` below `folder`, or reuse it where exactly this world already lies there.

    The folder holds `images/*.png`, the record files `pretrain.json`, `instruct.json`, `eval.json` and
    `eval_captions.json` as LLaVA JSON, and `world.json`, which says what was written. It is written beside
    its final place and moved there when it is complete.

    Args:
        folder: where the world shall lie; a folder that holds another world is replaced.
        seed: everything random follows from it.
        progress: called with one line of text now and then.
        sizes: instead of those in ``SIZES``.

    Raises:
        ValueError: an unknown size, or more captions than pictures.
        FileExistsError: `folder` holds files but no world, so replacing it could destroy something else.
    """
    if unknown := sizes.keys() - SIZES.keys():
        raise ValueError(f"a world has no size {', '.join(unknown)}; it has {', '.join(SIZES)}")
    identity = {"version": WORLD_VERSION, "seed": seed, **SIZES, **sizes}
    for captions, scenes in (("captions", "train_scenes"), ("eval_captions", "held_out_scenes")):
        if identity[captions] > identity[scenes]:
            raise ValueError(
                f"{captions} is {identity[captions]} and {scenes} is {identity[scenes]}: each picture has one caption, "
                "so ask for fewer captions or more pictures"
            )
    world = World.in_folder(folder)
    marker = folder / "world.json"
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) == identity:
            return world
    elif folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds files but no world.json; give an empty or a new folder")

    with written_whole(folder, "Free some space, or choose another folder") as draft:
        _write(World.in_folder(draft), identity, progress)
    return world


def scenes_of(seed: int, train_scenes: int, held_out_scenes: int) -> tuple[list[Scene], list[Scene]]:
    """The training and the held-out scenes of a world. The held-out ones are all distinct."""
    rng = random.Random(f"scenes {seed}")
    train = [sample_scene(rng, held_out=False) for _ in range(train_scenes)]
    held_out: dict[Scene, None] = {}
    while len(held_out) < held_out_scenes:
        held_out.setdefault(sample_scene(rng, held_out=True))
    return train, list(held_out)


def _write(world: World, identity: Mapping[str, int], progress: Callable[[str], None]) -> None:
    seed = identity["seed"]
    train, held_out = scenes_of(seed, identity["train_scenes"], identity["held_out_scenes"])
    world.images.mkdir()
    scenes = train + held_out
    pixels = np.random.default_rng([seed, 1])
    for number, scene in enumerate(scenes):
        # Noise hardly compresses; the lowest level is several times faster and the files are as small.
        render(scene, pixels).save(world.images / _image_name(number), compress_level=1)
        if (number + 1) % 3000 == 0 or number + 1 == len(scenes):
            progress(f"world: {number + 1} of {len(scenes)} pictures")

    rng = random.Random(f"records {seed}")
    first = len(train)
    files = {
        world.pretrain: _captions(train[: identity["captions"]], 0),
        world.instruct: _questions(train, 0, identity["questions"], rng),
        world.eval: _questions(held_out, first, identity["eval_questions"], rng),
        world.eval_captions: _captions(held_out[: identity["eval_captions"]], first),
    }
    for path, records in files.items():
        write_whole(path, json.dumps(records, indent=1))
    write_whole(world.folder / "world.json", json.dumps(identity, indent=1))


def _image_name(number: int) -> str:
    return f"{number:06d}.png"


def _record(identity: str, image: str, question: str, answer: str, kind: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": identity, "image": image, "conversations": turns, "question_type": kind}


def _captions(scenes: Sequence[Scene], first: int) -> list[dict[str, Any]]:
    return [
        _record(f"caption-{number:06d}", _image_name(number), CAPTION_REQUEST, caption(scene), "caption")
        for number, scene in enumerate(scenes, first)
    ]


def _questions(scenes: Sequence[Scene], first: int, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Ask the scenes in turn, every type and both answers of the yes/no types equally often."""
    records: list[dict[str, Any]] = []
    order = list(range(len(scenes)))
    rng.shuffle(order)
    position = 0
    while len(records) < count:
        turn = len(records)
        kind = QUESTION_TYPES[turn % len(QUESTION_TYPES)]
        question = None
        # A scene that has no unambiguous question of this type is passed over.
        while question is None:
            number = order[position % len(order)]
            position += 1
            question = ask(scenes[number], kind, rng, yes=turn // len(QUESTION_TYPES) % 2 == 0)
        identity = f"question-{first + turn:06d}"
        records.append(_record(identity, _image_name(first + number), question.text, question.answer, kind))
    rng.shuffle(records)
    return records
