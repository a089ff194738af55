"""A rehearsed look at the premise against a really measured one, and a trial of the pull against a step."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import CLIPVisionModel

from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.rules import changed_recipe
from basic_lite.rehearsal import Machine, Rehearser
from basic_lite.supervision.calibration import moved
from basic_lite.supervision.premise import see_patches
from basic_lite.tools.estimate import estimate
from basic_lite.training.assembly import autocast_of
from basic_lite.training.pull import Pull
from basic_lite.training.step import Batch
from bench.measure import peak_bytes
from tests.support.models import clip_config, write_llm
from tests.support.peaks import CPU, held_by, quick_products, warmed_step
from tests.support.runs import whole_recipe
from tests.support.shapes import write_image_processor

MEASURED = {"supervision.preset": "measured", "data.held_out": 0.1}
CASES: dict[str, dict[str, Any]] = {
    "paper": {},
    "measured, bf16 autocast": {**MEASURED, "model.dtype": "bfloat16", "training.autocast": "bfloat16"},
    "measured, layers kept on the host, no checkpointing": {**MEASURED, "training.gradient_checkpointing": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few million weights, 64 tokens an image."""
    root = tmp_path_factory.mktemp("look")
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}
    write_llm(root / "llm", vocab_size=4096, num_key_value_heads=4, **sizes)
    torch.manual_seed(0)
    CLIPVisionModel(clip_config(hidden_size=64, image_size=64)).save_pretrained(root / "vision")
    write_image_processor(root / "vision", size=64)
    return root


@pytest.mark.soak
def test_where_a_look_needs_most_it_is_said_and_the_key_helps(folder: Path) -> None:
    changes = {"supervision.refinement_batches": 256, "training.micro_batch": 2, "training.global_batch": 4}
    recipe = whole_recipe(folder, {**MEASURED, "data.max_length": 128, "training.device": "cpu", **changes})
    rehearsed = Rehearser(recipe, load_frontend(recipe.model), Machine.this_cpu(recipe)).rehearse()
    assert rehearsed.look is not None and rehearsed.look_is_larger
    assert rehearsed.needed_bytes == rehearsed.look.peak_bytes > rehearsed.peak_bytes
    # Of 1,024 samples every second one keeps its six layers on this machine, 64 rows of 256 numbers each.
    assert rehearsed.look.peak_bytes > 512 * 6 * 64 * 256 * 4
    console = Console(file=io.StringIO(), width=200)
    found = estimate(recipe, gpu=1.2 * rehearsed.peak_bytes / 2**30, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "a look at the premise" in text and "it needs more than a step" in text and "doesn't fit" in text
    (advice,) = found.advice
    assert advice.overrides == ("supervision.refinement_batches=8",) and advice.fits
    smaller = changed_recipe(recipe, {"supervision.refinement_batches": 8})
    again = Rehearser(smaller, load_frontend(recipe.model), Machine.this_cpu(smaller)).rehearse()
    assert again.needed_bytes == advice.needed_bytes < 1.2 * rehearsed.peak_bytes


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(case, id=name, marks=pytest.mark.long if "autocast" in name else pytest.mark.soak)
        for name, case in CASES.items()
    ],
)
def test_a_rehearsed_look_is_the_measured_one(folder: Path, changes: dict[str, Any]) -> None:
    common = {"data.max_length": 256, "supervision.refinement_batches": 8}
    recipe = whole_recipe(folder, {**common, "training.micro_batch": 8, "training.global_batch": 8, **changes})
    rehearsed = Rehearser(recipe, load_frontend(recipe.model), Machine.this_cpu(recipe)).rehearse()
    look = rehearsed.look
    assert look is not None and look.samples == 8 and sum(look.by_part.values()) == look.peak_bytes
    step = warmed_step(recipe)
    loaded, supervision, autocast = step.loaded, step.supervision, autocast_of(recipe, CPU)
    assert supervision is not None
    curve = step.batches[:1] * 4  # 32 samples
    kept = range(1, 32, 2) if "data.held_out" in changes else range(0)

    def measure(curve: list[Batch] = curve) -> None:
        with autocast(), quick_products():
            see_patches(supervision, moved(curve, CPU), loaded.tokenizer, kept=kept)

    measure(curve[:1])  # mean ‖E‖ is computed once
    measured = held_by(step) + peak_bytes(measure, CPU)
    print(f"rehearsed {look.peak_bytes / 2**20:.1f} MiB, measured {measured / 2**20:.1f}", look.by_part)
    assert look.peak_bytes == pytest.approx(measured, rel=0.02)


@pytest.mark.soak
@pytest.mark.parametrize("changes", [{"stage": 1, "lora.enabled": False}, {}], ids=["stage 1", "stage 2"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trial_of_the_pull_needs_no_more_than_a_step(
    folder: Path, changes: dict[str, Any], accumulation: int
) -> None:
    """The gradient adds up on the host, which here is where all else is, so one of the projector comes on top."""
    sizes = {"data.max_length": 256, "training.micro_batch": 8, "training.global_batch": 8 * accumulation}
    recipe = whole_recipe(folder, {**MEASURED, **sizes, **changes})
    rehearsed = Rehearser(recipe, load_frontend(recipe.model), Machine.this_cpu(recipe)).rehearse()
    step = warmed_step(recipe)
    held = held_by(step)
    pull = Pull(step.step, step.batches[:1] * 2, step.batches[:1] * 2, lambda: 8)
    measured = held + peak_bytes(pull.tried, CPU)
    projector = sum(weight.nbytes for weight in step.loaded.parts.projector.parameters())
    print(f"step {rehearsed.peak_bytes / 2**20:.1f} MiB, trial {measured / 2**20:.1f}, {projector / 2**20:.1f}")
    assert 0.7 * rehearsed.peak_bytes < measured <= 1.001 * rehearsed.peak_bytes + projector
