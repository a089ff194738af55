"""Doubtful settings are said before a run, with a key and a value that works; good ones are not."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from basic_lite.demo.world import SIZES
from basic_lite.recipe import load_recipe, shipped_recipes
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.tools.dry_run import dry_run
from basic_lite.training.assembly import projector_is_fresh
from basic_lite.training.sanity import sanity_warnings
from tests.support.runs import quiet, tiny_recipe, write_data

TRAINED = {"model.projector": "runs/stage1"}
# Samples of the shipped recipes' data; of one's own photos, the fewest and the most that are likely.
SAMPLES = {
    "demo_stage1": [SIZES["captions"]],
    "demo_stage2": [SIZES["questions"]],
    "demo_photos": [20, 50, 1000],
    "my_photos": [40, 50, 1000],
    "my_photos_small": [40, 50, 1000],
    "7b_pretrain": [558_128],
    "small_pretrain": [150_000],
    "small_instruct": [157_712],
}


def recipe_of(folder: Path, **keys: Any) -> Recipe:
    usual = {"training.epochs": 1.0, "training.max_steps": None, "training.global_batch": 8, "training.micro_batch": 4}
    return tiny_recipe(folder, usual | {key.replace("__", "."): value for key, value in keys.items()})


def found(recipe: Recipe, samples: int) -> list[str]:
    training = recipe.training
    a_pass = math.ceil(samples / training.global_batch)
    steps = training.max_steps or math.ceil(a_pass * training.epochs)
    return sanity_warnings(recipe, samples=samples, steps=steps, fresh=projector_is_fresh(recipe))


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_shipped_recipes_raise_no_doubt(path: Path) -> None:
    for samples in SAMPLES.get(path.stem, [665_298]):
        assert found(load_recipe(path), samples) == []


@pytest.mark.parametrize("samples", [1, 3, 7, 50, 390, 3000, 6000])
def test_what_is_advised_against_few_steps_is_enough(tmp_path: Path, samples: int) -> None:
    keys: dict[str, Any] = {"training__global_batch": 128, "training__micro_batch": 16}
    (text,) = found(recipe_of(tmp_path, **keys), samples)
    assert f"the run has {math.ceil(samples / 128)} optimizer step" in text
    assert f" ({samples:,} sample{'s' * (samples > 1)}, " in text
    advised = {f"training__{key}": float(value) for key, value in re.findall(r"training\.(\w+)=(\d+)", text)}
    assert advised
    whole = {key: value if key.endswith("epochs") else int(value) for key, value in advised.items()}
    again = found(recipe_of(tmp_path, **(keys | whole)), samples)
    assert [text for text in again if "optimizer step" in text] == []


def test_few_steps_that_are_set(tmp_path: Path) -> None:
    (text,) = found(recipe_of(tmp_path, training__max_steps=20), 1000)
    assert "the run has 20 optimizer steps" in text and "training.max_steps=100" in text
    assert found(recipe_of(tmp_path, training__max_steps=50), 1000) == []
    # A trained model has been taught already.
    goes_on = recipe_of(
        tmp_path, training__max_steps=20, model__start="runs/photos", model__llm=None, model__vision=None
    )
    assert found(goes_on, 1000) == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"lora.enabled": False}, "stage 2 without LoRA trains the projector alone, and it is fresh.*stage=1"),
        (
            {"training.projector_learning_rate": 2e-5},
            r"is 2e-05, and the projector is fresh.*model\.projector.*model\.b",
        ),
        (
            {"stage": 1, "lora.enabled": False, "training.projector_learning_rate": 1e-4},
            "is 0.0001, and the projector is fresh.*set training.projector_learning_rate=1e-3",
        ),
        ({"stage": 1, "lora.enabled": False, "training.projector_learning_rate": 1e-3}, None),
        ({"lora.enabled": False, **TRAINED}, None),
        ({"training.projector_learning_rate": 2e-5, **TRAINED}, None),
        ({"training.warmup_ratio": 0.75}, "rates still rise in 94 of 125 steps; set training.warmup_ratio=0.03"),
        ({"training.warmup_ratio": 0.75, "training.scheduler": "constant"}, None),
        ({"training.epochs": 31.0}, r"goes 31 times over 1,000 samples.*training\.epochs=10.*data\.held_out=0\.1"),
        ({"training.max_steps": 125 * 40}, r"goes 40 times over 1,000 samples.*training\.max_steps=1250"),
        ({"training.epochs": 30.0}, None),
        ({"data.held_out": 0.1}, None),  # it evaluates at the end
        ({"data.held_out": 0.1, "training.eval_every": 25}, None),
        ({"data.eval": {"path": "e.json"}, "training.eval_every": 126}, "eval_every is 126 and the run has 125 steps"),
    ],
)
def test_doubts(tmp_path: Path, keys: dict[str, Any], expected: str | None) -> None:
    texts = found(recipe_of(tmp_path, **keys), 1000)
    assert len(texts) == (expected is not None), texts
    assert expected is None or re.search(expected, texts[0]), texts


def test_train_and_a_dry_run_say_them(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    recipe = tiny_recipe(tmp_path, {"training.max_steps": 1, "lora.enabled": False})
    for start in (dry_run, train):
        console = quiet()
        start(recipe, console=console)  # type: ignore[operator]
        said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
        assert "warning: the run has 1 optimizer step (6 samples, 4 a step)" in said
        assert "warning: stage 2 without LoRA" in said
