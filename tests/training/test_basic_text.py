"""What BASIC will do is said in one sentence, the same before a run and in a dry run, and as the gate decides."""

from __future__ import annotations

import io
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from basic_lite.data.prepare import prepare_data
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import load_base
from basic_lite.resampling import LEAST_SAMPLES
from basic_lite.run import train
from basic_lite.tools.dry_run import dry_run
from basic_lite.training.assembly import supervise
from basic_lite.training.basic_text import basic_text, why_off
from basic_lite.training.recovery import samples_in
from tests.support.runs import gate_of, quiet, tiny_recipe, write_data

GATE: dict[str, Any] = {"supervision.preset": "measured", "supervision.refinement_batches": 8}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "BASIC is on from the first step to the last"),
        ({"supervision.every_n_steps": 4}, "BASIC is on from the first step to the last, in one step of 4"),
        (GATE, "BASIC is off at first. It goes on once its premise is shown to hold and its pull to lower the loss"),
        (GATE | {"data.train.limit": 9}, "warning: BASIC stays off in this run: 3 samples decide whether its premise"),
        ({"supervision.enabled": False}, "BASIC is off in this run: supervision.enabled is false"),
        ({"supervision.stages": [1]}, "BASIC is off in this run: this is stage 2, and supervision.stages is [1]"),
        ({"supervision.lambda_das": 0, "supervision.lambda_sds": 0}, "BASIC is off in this run: both of its losses"),
    ],
)
def test_a_run_and_its_dry_run_say_it_once(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write_data(tmp_path, 48)
    recipe = tiny_recipe(tmp_path, {**changes, "training.max_steps": 1})
    console = Console(file=io.StringIO(), width=160)
    dry_run(recipe, console)
    train(recipe, console=(run := quiet()))
    for told in (console, run):
        lines = told.file.getvalue().splitlines()  # type: ignore[attr-defined]
        said = [line for line in lines if line.startswith(("BASIC is o", "warning: BASIC"))]
        assert len(said) == 1 and said[0].startswith(says), said


# Scores choose layers on a third, decide on another and are asked again on the last; or decide on a half.
ALL_DECIDE: dict[str, Any] = {"supervision.layers": 2, "supervision.layer_weights": "quadratic"}


@pytest.mark.parametrize(
    ("settings", "pictures", "held_out"),
    [
        ({}, 47, None),
        ({}, 48, None),
        ({}, 48, 0.2),
        (ALL_DECIDE, 31, None),
        (ALL_DECIDE, 32, None),
        (ALL_DECIDE, 40, 0.2),
    ],
)
def test_it_warns_exactly_where_too_few_samples_would_decide(
    tmp_path: Path, settings: dict[str, Any], pictures: int, held_out: float | None
) -> None:
    write_data(tmp_path, pictures)
    recipe = tiny_recipe(tmp_path, GATE | settings | {"data.held_out": held_out})
    gate, data = gate_of(recipe)
    decide = gate.deciding
    assert decide == samples_in(gate.again) <= samples_in(gate.testing)
    warned = f"stays off in this run: {decide} samples decide" in basic_text(recipe, data)
    assert warned == (decide < LEAST_SAMPLES)
    assert bool(gate.outlook()) != warned  # then it tells of no look


@pytest.mark.parametrize("settings", [{}, ALL_DECIDE])
@pytest.mark.parametrize(("pictures", "batches"), [(14, 8), (14, 64), (14, 2), (60, 2), (60, 7)])
def test_what_it_advises_is_needed_and_enough(
    tmp_path: Path, settings: dict[str, Any], pictures: int, batches: int
) -> None:
    frontend = load_frontend(tiny_recipe(tmp_path).model)

    def told(pictures: int, batches: int) -> str:
        write_data(tmp_path, pictures)
        recipe = tiny_recipe(tmp_path, GATE | settings)
        measured = recipe.supervision.model_copy(update={"refinement_batches": batches})
        recipe = recipe.model_copy(update={"supervision": measured})
        return basic_text(recipe, prepare_data(recipe, frontend, say=lambda text: None))

    text = told(pictures, batches)
    more = re.search(r"take (\d+) more samples with pictures", text)
    raised = re.search(r"supervision\.refinement_batches=(\d+)", text)
    if not text.startswith("warning"):
        assert not more and not raised and pictures == 60 and settings and batches == 7
        return
    more_pictures, more_batches = pictures + int(more[1]) if more else pictures, int(raised[1]) if raised else batches
    assert not told(more_pictures, more_batches).startswith("warning")
    assert more is None or told(more_pictures - 1, more_batches).startswith("warning")
    assert raised is None or told(more_pictures, more_batches - 1).startswith("warning")


def test_the_recipe_says_off_where_nothing_is_computed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    loaded = load_base(recipe, torch.device("cpu"), load_frontend(recipe.model))
    for enabled, direction, das, sds in product([True, False], ["cosine", "mse", "off"], [0, 1], [0, 1]):
        settings = {"enabled": enabled, "direction": direction, "lambda_das": das, "lambda_sds": sds}
        recipe = tiny_recipe(tmp_path, {f"supervision.{key}": value for key, value in settings.items()})
        supervision = supervise(recipe, loaded, lambda text: None)
        assert (why_off(recipe) is None) == (supervision is not None and supervision.active), settings
