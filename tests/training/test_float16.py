"""A backward in float16 loses no gradient that a large step's tokens make small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.training.assembly import load_for_training, make_step, preflight, supervise
from basic_lite.training.step import FLOAT16_TOKENS, StepCounts
from tests.support.runs import tiny_recipe, write_data

CPU = torch.device("cpu")
TOKENS = 2**20


def gradient(folder: Path, *, scaled: bool = True, **changes: Any) -> Tensor:
    """Of a step of TOKENS labelled tokens, of which one micro-batch is here; as if it were all of them."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    recipe = tiny_recipe(folder, {"lora.dropout": 0.0, **changed})
    frontend, data = preflight(recipe, CPU, lambda text: None)
    torch.manual_seed(0)
    loaded = load_for_training(recipe, CPU, frontend, lambda text: None)
    step = make_step(recipe, loaded, supervise(recipe, loaded, lambda text: None), CPU)
    step.float16 &= scaled
    batches = [data.collator([data.train[number] for number in range(4)])]
    counts = StepCounts.of(batches, loaded.parts.image_token_id)
    factor = TOKENS // counts.labelled_tokens
    terms = step.gradients(batches, replace(counts.times(factor), samples_with_image=4 * factor), (1.0, 0.01))
    assert float(terms.sums()["loss"]) < 1e-3, "the loss that is logged isn't scaled"
    return torch.cat([weight.grad.flatten() for weight in step.trainable]) * factor


@pytest.mark.parametrize("where", ["model__dtype", "quantization__compute_dtype"])
def test_it_is_that_of_float32_within_the_types_rounding(tmp_path: Path, where: str) -> None:
    write_data(tmp_path, 8)
    quantized = {"quantization__mode": "none" if where == "model__dtype" else "nf4"}
    exact = gradient(tmp_path, **quantized)
    found, lost = (gradient(tmp_path, scaled=on, **quantized, **{where: "float16"}) for on in (True, False))
    error, without = (float((one - exact).norm() / exact.norm()) for one in (found, lost))
    assert error < 0.05 < 0.5 < without, (error, without)


def test_the_scale_is_a_power_of_two_and_one_elsewhere(tmp_path: Path) -> None:
    write_data(tmp_path, 8)
    for dtype, tokens, scale in (
        ("float32", 2**20, 1),
        ("bfloat16", 2**20, 1),
        ("float16", 0, 1),
        ("float16", 2 * FLOAT16_TOKENS - 1, 1),
        ("float16", 2 * FLOAT16_TOKENS, 2),
        ("float16", 40_000, 128),
    ):
        recipe = tiny_recipe(tmp_path, {"model.dtype": dtype})
        loaded = load_for_training(recipe, CPU, preflight(recipe, CPU, lambda text: None)[0], lambda text: None)
        assert make_step(recipe, loaded, None, CPU).loss_scale(StepCounts(tokens, 1, 1)) == scale
