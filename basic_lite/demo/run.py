"""``basic-lite demo``: both stages on the small world, through the same code as any run, and a table at the end."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from basic_lite.console import quiet_libraries, speaker
from basic_lite.demo import ASSETS
from basic_lite.demo.compare import beside, compare_on_and_off
from basic_lite.demo.place import CPU, Place, Scores, scores_of
from basic_lite.demo.rebuild import rebuild as rebuild_models
from basic_lite.demo.report import Phases, refinement_of, show_report
from basic_lite.demo.world import write_world
from basic_lite.errors import UserError
from basic_lite.model.load import Loaded, load_base
from basic_lite.recipe.rules import changed_recipe
from basic_lite.run import run_stage
from basic_lite.tools.report.page import write_report
from basic_lite.training.bundle import load_trained
from basic_lite.training.files import write_json


def demo(
    out: Path, *, seed: int = 0, rebuild: bool = False, compare: bool = False, console: Console | None = None
) -> Place:
    """Make the world, train both stages, evaluate on held-out images, print the table.

    Everything lies below ``out`` and is reused by the next call with the same settings.

    Args:
        compare: train both stages with BASIC on from the start as well, and compare the two runs.

    Returns:
        Where it lies.

    Raises:
        UserError: ``out`` holds something else.
        Interrupted: Ctrl-C during a training; the same call continues.
    """
    console = console or Console(highlight=False)
    quiet_libraries()
    # As in the demo's recipes: so small a model is no faster on two threads, and sums come out the same anywhere.
    torch.set_num_threads(1)
    phases = Phases(console)
    place = _prepare(out, seed, rebuild, phases)
    with beside(place, console) if compare else nullcontext() as other:
        columns, captions = _train_and_score(place, phases, console)
        show_report(place, columns, captions, phases, console)
        if other is not None:
            compare_on_and_off(place, other, console)
    return place


def _prepare(out: Path, seed: int, rebuild: bool, phases: Phases) -> Place:
    """Models (shipped, or rebuilt from the seed) and the world on disk."""
    console = phases.console
    models = ASSETS
    if rebuild:
        with phases.phase("models"):
            models = out / "models"
            marker = models / "rebuilt.json"
            if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == {"seed": seed}:
                phases.reused.add("models")
            else:
                marker.unlink(missing_ok=True)
                rebuild_models(models, seed, progress=speaker(console))
                write_json(marker, {"seed": seed})
    with phases.phase("world"):
        marker = out / "world" / "world.json"
        before = marker.stat().st_mtime_ns if marker.is_file() else None
        try:
            world = write_world(marker.parent, seed, progress=speaker(console))
        except FileExistsError as error:
            raise UserError(f"{error}; or choose another folder with --out") from error
        if marker.stat().st_mtime_ns == before:
            phases.reused.add("world")
        speaker(console)(f"pictures and LLaVA JSON files in {world.folder}")
    return Place(out, models, world, seed)


def _train_and_score(
    place: Place, phases: Phases, console: Console
) -> tuple[dict[str, Scores], dict[str, dict[str, Any]]]:
    """Scores before training, after each stage, and with other images; refinement curves of both stages."""
    one, two = place.recipe(1, place.out), place.recipe(2, place.out)
    questions = place.records(place.world.eval)
    columns: dict[str, Scores] = {}

    def measured(name: str, key: str, load: Callable[[], Loaded], **kwargs: Any) -> None:
        columns[name] = scores_of(place.out / "scores" / f"{key}.json", load, place, two, questions, console, **kwargs)

    with phases.phase("answers before training"):
        # A fresh projector: the pictures reach the LLM as noise.
        fresh = changed_recipe(two, {"model.projector": None})
        transformers.set_seed(two.seed)
        measured("before training", "before", lambda: load_base(fresh, CPU))
    with phases.phase("stage 1: the projector learns captions") as name:
        if run_stage(one, replace=True, console=console, report=write_report):
            phases.reused.add(name)
    with phases.phase("answers after stage 1"):
        measured("after stage 1", "stage1", lambda: load_trained(place.out / "stage1", CPU)[0], captions=True)
    with phases.phase("stage 2: projector and LoRA learn questions") as name:
        if run_stage(two, replace=True, console=console, report=write_report):
            phases.reused.add(name)
    with phases.phase("answers after stage 2"):
        measured("after stage 2", "stage2", lambda: load_trained(place.out / "stage2", CPU)[0], captions=True)
        measured("other image", "shuffled", lambda: load_trained(place.out / "stage2", CPU)[0], shuffle=place.seed)
    return columns, {stage: refinement_of(place.out / stage) for stage in ("stage1", "stage2")}
