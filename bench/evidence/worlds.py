"""The two worlds that the evidence is from: their recipes, what is held out, and what a caption's score is."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console

from basic_lite.data.records import Record
from basic_lite.data.sources import load_records
from basic_lite.demo import ASSETS
from basic_lite.demo.place import Place
from basic_lite.demo.world import caption_f1, write_world
from basic_lite.recipe import load_recipe
from basic_lite.recipe.schema import Recipe, SourceSection
from basic_lite.training.files import sha256
from basic_lite.training.places import PROJECTOR
from bench.world.llms import smollm2
from bench.world.packages import cache_folder, made_once
from bench.world.pictures import VERSION, real_world
from bench.world.start import write_start
from bench.world.tower import tower

# A start belongs to one version of the pictures, and to one way of fitting it.
START_VERSION = f"{VERSION}.1"
HERE = Path(__file__).resolve().parent
STAGES = (1, 2)
# Held-out samples: their loss in training, their loss and answers after it, and those of the refinement curve.
Sizes = Mapping[str, int]
SIZES: dict[str, Sizes] = {
    "demo": {"during": 200, "losses": 200, "answers": 200, "curve": 200, "eval_every": 50, "batches": 16},
    "real": {"during": 96, "losses": 200, "answers": 100, "curve": 32, "eval_every": 80, "batches": 16},
}
# Seconds instead of minutes: does it still run?
TINY: Sizes = {"during": 4, "losses": 6, "answers": 4, "curve": 4, "eval_every": 2, "batches": 8}
TINY_WORLD = {
    "train_scenes": 40,
    "held_out_scenes": 12,
    "captions": 32,
    "questions": 48,
    "eval_questions": 12,
    "eval_captions": 6,
}


@dataclass(frozen=True)
class EvidenceWorld:
    """One world: how its two stages are trained, and what is held out of them."""

    name: str
    base: Callable[[int, Path, Mapping[str, Any]], Recipe]  # stage, folder for the runs, recipe keys
    images: Path
    held_out: Mapping[int, Path]  # stage → LLaVA JSON
    caption_score: Callable[[str, str], float]  # caption, reference → 0 to 1
    sizes: Sizes
    changes: Mapping[str, Any]  # for all variants

    def recipe(self, stage: int, folder: Path, overrides: Mapping[str, Any], seed: int) -> Recipe:
        """A variant's recipe of a stage; its runs lie below ``folder``."""
        evaluation = {
            "data.eval.path": str(self.held_out[stage]),
            "data.eval.image_dir": str(self.images),
            "data.eval.limit": self.sizes["during"],
            "training.eval_every": self.sizes["eval_every"],
            # Of 4 samples, for the curve on the way.
            "supervision.refinement_batches": self.sizes["batches"],
            "training.eval_answers": 0,
            "training.text_probe": False,
            "training.trackers": [],
        }
        # Stage 2 opens stage 1's projector, which nothing may scale.
        here = {key: value for key, value in overrides.items() if stage == 1 or key != "model.projector_start"}
        return self.base(stage, folder, {**evaluation, **self.changes, **here, "seed": seed})

    def records(self, stage: int, count: int) -> list[Record]:
        """The first held-out records of a stage."""
        source = SourceSection(path=str(self.held_out[stage]), image_dir=str(self.images), limit=count)
        return list(load_records(source, root=Path.cwd()))

    def setup(self, seed: int) -> dict[str, Any]:
        """What results of a seed must share to be compared: schedule, data and weights."""
        recipes = [self.recipe(stage, Path("runs"), {}, seed) for stage in STAGES]
        setup: dict[str, Any] = {"held_out": dict(self.sizes)}
        for recipe in recipes:
            training = recipe.training
            setup[f"stage{recipe.stage}"] = {
                "steps": training.max_steps,
                "batch": training.global_batch,
                "rates": [training.learning_rate, training.projector_learning_rate],
                "warmup_ratio": training.warmup_ratio,
                "autocast": training.autocast,
                "template": recipe.data.template,
                "quantization": recipe.quantization.mode,
                "lora": recipe.lora.rank if recipe.lora.enabled else None,
                "data": sha256(Path(str(_one(recipe.data.train).path)))[:12],
            }
        model = recipes[0].model
        weights = {name: Path(str(getattr(model, name))) / "model.safetensors" for name in ("vision", "llm")}
        if model.projector is not None:
            weights["start"] = Path(model.projector) / "final" / PROJECTOR
        return setup | {name: sha256(file)[:12] for name, file in weights.items()}


# Of a stage: what the demo's recipe had when the results were made, and has no longer.
_AS_MEASURED: dict[int, dict[str, Any]] = {2: {"lora__dropout": 0.05}}


def demo_world(*, tiny: bool = False) -> EvidenceWorld:
    """The demo's world, models and recipes. The seed changes initial weights and order, never the world."""
    sizes = TINY_WORLD if tiny else {}
    folder = cache_folder() / ("demo-tiny" if tiny else "demo")
    # Of several processes one writes it.
    with FileLock(f"{folder}.lock"):
        world = write_world(folder, 0, **sizes)
    place = Place(cache_folder(), ASSETS, world, 0)
    steps = {"training.max_steps": 4, "training.global_batch": 8, "training.micro_batch": 8, "training.log_every": 1}
    return EvidenceWorld(
        name="demo",
        base=lambda stage, folder, changes: place.recipe(stage, folder, **{**_AS_MEASURED.get(stage, {}), **changes}),
        images=world.images,
        held_out={1: world.eval_captions, 2: world.eval},
        caption_score=caption_f1,
        sizes=TINY if tiny else SIZES["demo"],
        changes={"data.workers": 0, **(steps if tiny else {})},
    )


def real(*, tiny: bool = False) -> EvidenceWorld:
    """SmolLM2 with the tower of `bench.world.tower`, on captioned clip art.

    Raises:
        Unavailable: models or pictures can't be had here.
    """
    world, vision, llm = real_world(), tower(), smollm2()

    def base(stage: int, folder: Path, changes: Mapping[str, Any]) -> Recipe:
        values: dict[str, Any] = {
            "output": str(folder),
            "model.vision": str(vision),
            "model.llm": str(llm),
            "data.train.path": str(world.pretrain if stage == 1 else world.instruct),
            "data.train.image_dir": str(world.images),
        }
        if stage == 2:
            values["model.projector"] = str(folder / "stage1")
            return _read(stage, {**values, **changes})
        values |= {"data.train.limit": 64} if tiny else {}
        start = _start(_read(stage, {**values, "seed": changes["seed"]}), tiny)
        return _read(stage, {**values, **changes, "model.projector": str(start)})

    steps = {"training.max_steps": 2, "training.global_batch": 2, "training.micro_batch": 2, "training.log_every": 1}
    return EvidenceWorld(
        name="real",
        base=base,
        images=world.images,
        held_out={1: world.eval_captions, 2: world.eval},
        caption_score=word_f1,
        sizes=TINY if tiny else SIZES["real"],
        changes=steps if tiny else {},
    )


WORLDS = {"demo": demo_world, "real": real}


def _read(stage: int, values: Mapping[str, Any]) -> Recipe:
    return load_recipe(
        HERE / f"real_stage{stage}.yaml", [f"{key}={json.dumps(value)}" for key, value in values.items()]
    )


def _start(recipe: Recipe, tiny: bool) -> Path:
    """The fitted projector that all variants of a seed start stage 1 from."""
    name = f"start-{START_VERSION}-{'tiny' if tiny else recipe.seed}"
    return made_once(name, lambda folder: write_start(folder, recipe))


def word_f1(predicted: str, reference: str) -> float:
    """F1 over the words of two captions, each word counted once, in any letter case: 2·|p ∩ r| / (|p| + |r|)."""
    p, r = (set(text.lower().replace(",", " ").split()) for text in (predicted, reference))
    return 2 * len(p & r) / (len(p) + len(r)) if p or r else 1.0


def quiet() -> Console:
    """A console that shows nothing: a run's own lines are in its log."""
    return Console(file=io.StringIO())


def work_folder(world: EvidenceWorld, setup: Mapping[str, Any]) -> Path:
    """Where unfinished runs of a set-up lie."""
    digest = hashlib.sha256(json.dumps(setup).encode()).hexdigest()[:8]
    folder = cache_folder() / "evidence" / f"{world.name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _one(source: SourceSection | list[SourceSection]) -> SourceSection:
    assert isinstance(source, SourceSection)
    return source
