"""A recipe's model with random weights and its longest step: on a card as it is, in a dry run at toy size on a CPU."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from basic_lite.model.audit import audit, check_parts
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import Loaded, pick_dtype
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Shape
from basic_lite.sizes import GIB
from basic_lite.tools.measure import LongestStep, MakeStep
from basic_lite.training.assembly import make_step
from bench.synthetic import synthetic_model
from tests.support.shapes import SIZES, on_shapes

# The keys of a dry run.
DRY = ["training.device=cpu", "training.optimizer=adamw", "training.micro_batch=2", "training.global_batch=4"]
DRY += ["data.max_length=80", "lora.rank=8"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every program that measures a recipe's step."""
    parser.add_argument("recipe", help="a shipped recipe's name, or a file")
    parser.add_argument("overrides", nargs="*", help="key.path=value, as for basic-lite train")
    parser.add_argument("--shape", choices=SIZES, help="of another model than the recipe's; a dry run's is a toy's")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at toy size")


def device_of(dry: bool) -> torch.device:
    """The card, or the CPU."""
    return torch.device("cpu") if dry else torch.device("cuda", 0)


def recipe_of(name: str, folder: Path, overrides: Sequence[str], *, dry: bool, shape: str | None = None) -> Recipe:
    """A shipped recipe over a folder with its model's configuration, or with another ``shape``; dry a toy's."""
    return on_shapes(name, folder, [*(DRY if dry else []), *overrides], size="toy" if dry else shape)


def limit_memory(device: torch.device, gib: float | None) -> float | None:
    """Let this process allocate only so much of the card. The limit in GiB; None on a CPU, or where none is wanted."""
    if device.type != "cuda" or gib is None:
        return None
    total_gib = torch.cuda.get_device_properties(device).total_memory / GIB
    torch.cuda.set_per_process_memory_fraction(min(gib, total_gib) / total_gib, device)
    return min(gib, total_gib)


def longest_step(recipe: Recipe, device: torch.device, make: MakeStep = make_step) -> tuple[Loaded, LongestStep]:
    """The model, made on the device and checked part by part, and its step."""
    loaded = synthetic_model(recipe, load_frontend(recipe.model), device)
    check_parts(audit(loaded.parts), recipe, pick_dtype(recipe.model.dtype, device))
    return loaded, LongestStep(recipe, loaded, Shape.of(recipe), device, lambda text: None, make)
