"""Answers to held-out questions in the middle of a run need no more memory than a step, which a rehearsal counts."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from basic_lite.data.prepare import prepare_data
from basic_lite.training.held_out_score import HeldOutScore
from basic_lite.training.processes import ALONE
from bench.measure import peak_bytes
from tests.support.models import write_llm
from tests.support.peaks import CPU, SIZES, recipe_of, warmed_step
from tests.support.runs import write_data


@pytest.mark.soak
@pytest.mark.parametrize("words", [30, 165])
def test_answers_need_no_more_than_a_step(folder: Path, tmp_path: Path, words: int) -> None:
    """The hardest case: all layers are recomputed, BASIC is off, and each head has keys of its own."""
    write_llm(tmp_path / "llm", vocab_size=4096, num_key_value_heads=SIZES["num_attention_heads"], **SIZES)
    shutil.copytree(folder / "vision", tmp_path / "vision")
    path = write_data(tmp_path, 20)
    records = json.loads(path.read_text())
    for record in records:
        record["conversations"][0]["value"] += " there" * words
    path.write_text(json.dumps(records))
    data = {"path": str(path), "image_dir": str(tmp_path / "images")}
    changes = {"data.eval": data, "training.eval_generate": 20, "supervision.enabled": False}
    recipe = recipe_of(tmp_path, {**changes, "training.gradient_checkpointing": True})
    step = warmed_step(recipe)
    loaded = step.loaded
    prepared = prepare_data(recipe, loaded.frontend, say=lambda text: None)
    assert prepared.eval is not None and prepared.eval_report is not None
    score = HeldOutScore(
        recipe,
        loaded,
        prepared.eval,
        prepared.eval_report,
        ALONE,
        lambda text: None,
        nullcontext,
        longest=recipe.data.max_length,
    )
    assert score.at_once(4) == 4 if words == 165 else score.at_once(4) > 4
    step_peak = peak_bytes(step, CPU)
    answers_peak = peak_bytes(lambda: score.ask(1, 4), CPU)
    print(f"{words}: {score.at_once(4)} at once, {answers_peak:,} of {step_peak:,} bytes")
    assert answers_peak < step_peak
