"""Short trainings of a real language model on real pictures, and their exports.

Two hundred samples teach the model to say the colours that it sees, and to name a thing. That is what a comparison of
programs needs: other words for another picture. The things are mostly wrong: towers of 48 pixels that learnt a world of
coloured shapes can't tell a wombat from a koala.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

from filelock import FileLock
from rich.console import Console

from basic_lite.demo import ASSETS
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.training.files import sha256
from basic_lite.training.places import MANIFEST
from bench.world.llms import smollm2
from bench.world.packages import cache_folder, made_once
from bench.world.stamps import pictures
from tests.support import colour_projector
from tests.support.colour_projector import write_projector
from tests.support.siglip_tower import siglip_tower

Tower = Literal["clip", "siglip"]


def real_recipe(tower: Tower) -> Recipe:
    """SmolLM2 in NF4 with LoRA, stage 2: the demo's CLIP tower with `pad`, or the SigLIP tower with `square`.

    BASIC's terms are on at every 12th step, since they double a step's time on a CPU.
    """
    data = pictures()
    vision = str(ASSETS / "vision") if tower == "clip" else str(siglip_tower())
    return Recipe.model_validate(
        {
            "name": tower,
            "stage": 2,
            "output": str(cache_folder() / "runs"),
            "model": {
                "llm": str(smollm2()),
                "vision": vision,
                "vision_feature_select": "default" if tower == "clip" else "full",
                "dtype": "float32",
            },
            "lora": {"enabled": True, "rank": 16, "alpha": 32.0, "dropout": 0.0},
            "data": {
                "train": {"path": str(data.train), "image_dir": str(data.images)},
                "eval": {"path": str(data.held_out), "image_dir": str(data.images)},
                "template": "tokenizer",
                "image_fit": "pad" if tower == "clip" else "square",
                "max_length": 160,
                "workers": 0,
            },
            "supervision": {"refinement_batches": 0, "every_n_steps": 12},
            "training": {
                "learning_rate": 1e-3,
                "projector_learning_rate": 1e-3,
                "global_batch": 8,
                "micro_batch": 8,
                "max_steps": 24,
                "gradient_checkpointing": False,
                "save_every": 1000,
                "device": "cpu",
                "threads": 1,
                "trackers": [],
                "text_probe": False,
            },
        }
    )


def real_run(tower: Tower) -> Path:
    """Folder of the trained run, kept in the cache for as long as recipe, data and weights are the same.

    Raises:
        Unavailable: the model or the pictures can't be had here.
    """
    recipe = real_recipe(tower)
    recipe = recipe.model_copy(update={"name": f"{tower}-{_fingerprint(recipe)}"})
    folder = Path(recipe.output) / recipe.name
    Path(recipe.output).mkdir(exist_ok=True)
    with FileLock(str(folder) + ".making"):
        if (folder / "final" / MANIFEST).is_file():
            return folder
        shutil.rmtree(folder, ignore_errors=True)  # what a broken-off training left
        projector = made_once(f"projector-{recipe.name}", lambda scratch: write_projector(scratch, recipe))
        model = recipe.model.model_copy(update={"projector": str(projector)})
        train(recipe.model_copy(update={"model": model}), console=Console(file=io.StringIO()))
    return folder


def _fingerprint(recipe: Recipe) -> str:
    """Of all that a training is made from."""
    model, data = recipe.model, pictures()
    weights = [Path(str(place)) / "model.safetensors" for place in (model.llm, model.vision)]
    code = [Path(__file__), Path(colour_projector.__file__)]
    parts = [recipe.model_dump_json(), *map(sha256, [*code, *weights, data.train, *sorted(data.images.iterdir())])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def exported(run: Path, out: Path, *options: str) -> Path:
    """`basic-lite export RUN OUT` in float32, merged into what training computed with; its own check is left out."""
    command = [sys.executable, "-m", "basic_lite", "export", str(run), str(out), "--no-check"]
    command += ["--merge-into", "quantized", "--dtype", "float32", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
