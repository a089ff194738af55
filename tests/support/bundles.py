"""Bundles of tiny models whose adapter and projector have random weights: what a run leaves, without the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from basic_lite.model.adapt import adapt, lora_parameters
from basic_lite.model.load import load_base, pick_dtype
from basic_lite.recipe.schema import Recipe
from basic_lite.training.bundle import write_bundle
from tests.support.data import write_image
from tests.support.runs import whole_recipe

CPU = torch.device("cpu")


def facts(step: int = 4, total: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A manifest's facts about a run."""
    data = {"epoch": 1.0, "samples": 16, "seed": 0, "fingerprint": "0"}
    return {"step": step, "total_steps": total, "data": data, "machine": {"dtype": str(dtype)}}


def write_random_bundle(folder: Path, recipe: Recipe, *, step: int = 4, total: int = 4) -> Path:
    """A bundle of the recipe's model; LoRA changes its answers."""
    torch.manual_seed(5)
    loaded = load_base(recipe, CPU)
    adapt(loaded.parts, recipe)
    with torch.no_grad():
        for parameter in lora_parameters(loaded.model).values():
            parameter.normal_(std=0.1)
    folder.mkdir(parents=True)
    write_bundle(
        folder, loaded.parts, loaded.tokenizer, recipe, facts(step, total, pick_dtype(recipe.model.dtype, CPU))
    )
    return folder


def random_run(folder: Path, changes: dict[str, Any] | None = None, *, kind: str = "llama", **given: Any) -> Path:
    """A run folder with a final bundle. Its pictures are noise of several shapes: two ways to resize never agree."""
    run = folder / "runs" / "tiny"
    write_random_bundle(run / "final", whole_recipe(folder, changes, kind=kind), **given)
    for n, picture in enumerate(sorted((folder / "images").iterdir())):
        write_image(picture, size=[(20, 16), (16, 16), (9, 31)][n % 3], seed=n)
    return run
