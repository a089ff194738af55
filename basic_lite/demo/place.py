"""Where a demo lies on disk, and its stages and scores there."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from basic_lite.console import counting
from basic_lite.data.records import Record
from basic_lite.data.sources import load_records
from basic_lite.demo.world import World, caption_f1
from basic_lite.model.load import Loaded
from basic_lite.recipe import load_recipe, shipped_recipe
from basic_lite.recipe.schema import Recipe, SourceSection
from basic_lite.scoring.metrics.exact import exact
from basic_lite.tools.evaluate import evaluate
from basic_lite.training.answer import answer, chat_format
from basic_lite.training.files import saving, sha256, write_json
from basic_lite.training.log_lines import lines_of
from basic_lite.training.places import MANIFEST

EVAL_BATCH = 64
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scores:
    """Held-out results of one model: exact match by question type, and of captions their F1 and how many are right."""

    accuracy: dict[str, float]
    counts: dict[str, int]
    caption_f1: float | None = None
    captions: int = 0
    captions_right: int | None = None


@dataclass(frozen=True)
class Place:
    """Where a demo's models, world and runs lie."""

    out: Path
    models: Path
    world: World
    seed: int

    def recipe(self, stage: int, folder: Path, **changes: Any) -> Recipe:
        """A shipped demo recipe on this demo's files, its runs below ``folder``; ``changes``: dotted keys with __."""
        values: dict[str, Any] = {
            "seed": self.seed,
            "output": str(folder),
            "model.vision": str(self.models / "vision"),
            "model.llm": str(self.models / "llm"),
            "data.train.path": str(self.world.pretrain if stage == 1 else self.world.instruct),
            "data.train.image_dir": str(self.world.images),
        }
        if stage == 2:
            values["model.projector"] = str(folder / "stage1")
            # For one evaluation at the end; an export's check and its card take held-out data too.
            values |= {"data.eval.path": str(self.world.eval), "data.eval.image_dir": str(self.world.images)}
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        return load_recipe(shipped_recipe(f"demo_stage{stage}"), overrides)

    def records(self, path: Path) -> list[Record]:
        return list(load_records(SourceSection(path=str(path), image_dir=str(self.world.images)), root=Path.cwd()))


def logged(run: Path, key: str) -> list[Any]:
    """The values of ``key`` in a run's log, from those lines that have it."""
    return [line[key] for line in lines_of(run) if key in line]


def scores_of(
    path: Path,
    load: Callable[[], Loaded],
    place: Place,
    recipe: Recipe,
    questions: list[Record],
    console: Console,
    *,
    captions: bool = False,
    shuffle: int | None = None,
) -> Scores:
    """Scores from ``path`` when they are of this very model and data, else measured and written there."""
    # Before training it is of no stage; after the first one, nothing of the second is in it.
    stages = {"before": (), "stage1": ("stage1",)}.get(path.stem, ("stage1", "stage2"))
    bundles = [place.out / stage / "final" / MANIFEST for stage in stages]
    stamp = {
        "world": sha256(place.world.eval),
        "models": [sha256(weights) for weights in sorted(place.models.rglob("*.safetensors"))],
        "bundles": [sha256(bundle) for bundle in bundles if bundle.is_file()],
    }
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["stamp"] == stamp:
            return Scores(**old["scores"])
    loaded = load()
    with counting(console, "questions", len(questions)) as count:
        result = evaluate(loaded, recipe, questions, batch_size=EVAL_BATCH, shuffle_images=shuffle, progress=count)
    scores = Scores(result.accuracy, result.counts, *(caption_score(loaded, recipe, place) if captions else ()))
    with saving(path, "Make room, and give the same command again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"stamp": stamp, "scores": vars(scores)})
    return scores


def caption_score(loaded: Loaded, recipe: Recipe, place: Place) -> tuple[float, int, int]:
    """Mean F1 of held-out captions, asked for as in stage 1, their number, and how many are right word for word."""
    records = place.records(place.world.eval_captions)
    chat = chat_format(recipe, loaded.frontend)
    texts = answer(loaded, chat, records, image_fit=recipe.data.image_fit, batch_size=EVAL_BATCH)
    pairs = [(text, chat.reference(record)) for text, record in zip(texts, records, strict=True)]
    right = sum(exact(text, [reference], "") == 1 for text, reference in pairs)
    return sum(caption_f1(*pair) for pair in pairs) / len(pairs), len(pairs), right
