"""The evidence's command: tiny, from the first run to the page; intervals against known cases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from basic_lite.errors import UserError
from basic_lite.recipe import load_recipe, shipped_recipe
from basic_lite.training.assembly import load_for_training, make_step, preflight
from basic_lite.training.step import StepCounts
from bench.evidence import worlds
from bench.evidence.__main__ import main
from bench.evidence.intervals import over_samples, over_seeds
from bench.evidence.measure import batch_of, losses
from bench.evidence.report import came_out, curves, seed_by_seed
from bench.evidence.runs import read_results, require_same_setup
from bench.evidence.variants import PARTS, VARIANTS
from bench.evidence.worlds import demo_world, word_f1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BASIC_LITE_REAL_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(cache: Path, *more: str) -> int:
    return main(["demo", "--tiny", "--out", str(cache / "results"), *more])


@pytest.mark.soak
def test_two_variants_two_seeds_and_the_page(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cache, "--seeds", "1") == 0
    assert run(cache, "--seeds", "2") == 0
    assert capsys.readouterr().out.count("done before") == 2
    results = read_results(cache / "results", "demo")
    assert [(result["variant"], result["seed"]) for result in results] == [
        ("off", 0), ("off", 1), ("paper", 0), ("paper", 1),
    ]  # fmt: skip
    for result in results:
        for stage in ("stage1", "stage2"):
            found = result[stage]
            assert len(found["tokens"]) == len(found["nll"]) == len(found["nll_other_picture"]) == 6
            assert found["nll"] != found["nll_other_picture"]
            assert [line["step"] for line in found["log"] if "eval_loss" in line] == [2, 4]
            assert any("das" in line for line in found["log"]) is (result["variant"] == "paper")
            assert -1 <= found["v"]["pairwise_cos"] <= 1 and found["v"]["norm_to_vocabulary"] > 0
            assert found["curve"]["places"][0] == "v"
        assert str(Path.home()) not in json.dumps(result)
    off, paper = (result["stage1"]["nll"] for result in results if result["seed"] == 0)
    assert off != paper
    # Nothing is left of finished runs but their locks.
    assert [
        path for path in (cache / "cache/evidence").rglob("*") if path.is_dir() and path.name.startswith("off")
    ] == []

    page = cache / "page.md"
    assert main(["report", "--out", str(cache / "results"), "--page", str(page)]) == 0
    text = page.read_text()
    assert "| paper | 2 seeds |" in text and "| measured | missing |" in text
    assert text.count("### What was expected") == 2 and "No result yet" in text


@pytest.mark.long
def test_results_of_another_set_up_are_refused(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cache, "--seeds", "1", "--variants", "off") == 0
    (path,) = (cache / "results/demo").glob("*.json")
    result = json.loads(path.read_text())
    result["setup"]["stage1"]["steps"] = 5
    path.write_text(json.dumps(result))
    assert run(cache, "--seeds", "1", "--variants", "off") == 2
    assert "stage1.steps was 5 and is 4" in capsys.readouterr().err


def test_each_seed_has_its_own_start(tmp_path: Path) -> None:
    """A result of another seed may have another start, one of the same seed may not."""
    result = {"seed": 0, "setup": {"start": "a", "stage1": {"steps": 4}}}
    (tmp_path / "off_0.json").write_text(json.dumps(result))
    require_same_setup(tmp_path, 0, result["setup"])
    require_same_setup(tmp_path, 1, {"start": "b", "stage1": {"steps": 4}})
    with pytest.raises(UserError, match="start was a and is b"):
        require_same_setup(tmp_path, 0, {"start": "b", "stage1": {"steps": 4}})
    with pytest.raises(UserError, match="steps was 4 and is 5"):
        require_same_setup(tmp_path, 1, {"start": "b", "stage1": {"steps": 5}})


def test_an_unknown_variant_is_refused(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cache, "--variants", "papper") == 2
    assert "papper" in capsys.readouterr().err


def test_the_demos_runs_keep_the_dropout_that_the_results_had(cache: Path) -> None:
    """The demo itself has none."""
    world = demo_world(tiny=True)
    assert world.recipe(2, cache, {}, 0).lora.dropout == 0.05
    assert world.recipe(2, cache, {"lora.dropout": 0.1}, 0).lora.dropout == 0.1
    assert load_recipe(shipped_recipe("demo_stage2")).lora.dropout == 0


def test_losses_are_the_models_own(cache: Path) -> None:
    """Per sample, against the loss that training takes."""
    world = demo_world(tiny=True)
    recipe = world.recipe(1, cache, {"supervision.enabled": False}, 0)
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    loaded = load_for_training(recipe, cpu, preflight(recipe, cpu, print)[0], print)
    records = world.records(1, 5)
    tokens, sums = losses(loaded, recipe, records)
    batch = batch_of(loaded, recipe, records)
    step = make_step(recipe, loaded, None, cpu)
    step.parts.model.eval()
    with torch.no_grad():
        lm = float(step.forward(**step.inputs(batch)).loss)
    assert sum(tokens) == StepCounts.of([batch], loaded.parts.image_token_id).labelled_tokens
    assert sum(sums) / sum(tokens) == pytest.approx(lm, rel=1e-4)


def test_seeds_interval_is_student_t() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.high - found.mean == pytest.approx(4.303 / math.sqrt(3))
    assert not found.clear and over_seeds([1.0, 1.1, 1.2]).clear
    assert math.isnan(over_seeds([1.0]).low) and over_seeds([1.0]).text() == "+1.000"


def test_samples_interval_covers_as_it_says() -> None:
    """Of 200 draws with a true mean of 0, about 95 % of the intervals have 0 inside."""
    rng = np.random.default_rng(1)
    inside = sum(not over_samples(rng.normal(size=60), np.ones(60), seed).clear for seed in range(200))
    assert 180 <= inside <= 198
    weighted = over_samples(np.array([1.0, 5.0]), np.array([3.0, 1.0]))
    assert weighted.mean == 2.0


def test_word_f1() -> None:
    assert word_f1("a bird, goose", "bird, goose") == pytest.approx(2 * 2 / 5)
    assert word_f1("", "") == 1.0 and word_f1("x", "") == 0.0


@pytest.mark.soak
def test_the_gates_looks_are_shown(cache: Path) -> None:
    assert run(cache, "--seeds", "1", "--variants", "off,measured") == 0
    off, measured = read_results(cache / "results", "demo")
    assert "The gate" not in came_out([off])
    assert "- measured, seed 0, stage 2: 0: shut (" in came_out([off, measured])
    assert len(measured["stage1"]["curve"]["score"]) == 6


def test_differences_are_shown_seed_by_seed() -> None:
    def result(variant: str, seed: int, loss: float) -> dict[str, Any]:
        stage = {"tokens": [1, 3], "nll": [loss, 3 * loss + 4]}
        return {"variant": variant, "seed": seed, "stage1": stage, "stage2": {**stage, "nll": [4 * loss, 0.0]}}

    groups = {name: [result(name, seed, by_seed[seed]) for seed in by_seed] for name, by_seed in LOSSES.items()}
    assert seed_by_seed(groups).splitlines()[2:] == [
        "| variant | LM loss 1, seed 0 | LM loss 1, seed 2 | LM loss 2, seed 0 | LM loss 2, seed 2 |",
        "|---|---|---|---|---|",
        "| sds | – | -0.250 | – | -0.250 |",
        "| paper | +0.500 | +1.000 | +0.500 | +1.000 |",
    ]


LOSSES: dict[str, dict[int, float]] = {
    "off": {0: 2.0, 2: 3.0},
    "measured": {},
    "sds": {1: 9.0, 2: 2.75},
    "paper": {0: 2.5, 2: 4.0},
}


def test_curves_are_the_means_over_seeds() -> None:
    def result(variant: str, seed: int, score: list[float], log: list[int]) -> dict[str, Any]:
        curve = {"places": ["v", "h1", "h2", "target"], "samples": 6, "score": score}
        lines = [{"step": step, "refinement": {**curve, "score": [seed + step / 10] * 4}} for step in log]
        stage = {"curve": curve, "log": lines}
        return {"variant": variant, "seed": seed, "stage1": stage, "stage2": stage}

    two = [result("paper", 0, [0.1, 0.2, 0.3, 0.4], [0, 2, 4]), result("paper", 1, [0.3, 0.2, 0.3, 0.4], [0, 2])]
    rows = curves({"off": [result("off", 0, [0.5, 0, 0, 0.25], [])], "paper": two, "measured": []}).splitlines()
    assert rows[0] == "| variant | stage | step | samples | v | h1 | h2 | v̂ |" and len(rows) == 2 + 2 + 2 * 3
    assert rows[2] == "| off | 1 | after | 6 | 0.500 | 0.000 | 0.000 | 0.250 |"
    assert rows[5].startswith("| paper | 1 | 2 | 6 | 0.700 ± 0.707 | "), "a step that both seeds have"
    assert rows[6] == "| paper | 1 | after | 6 | 0.200 ± 0.141 | 0.200 ± 0.000 | 0.300 ± 0.000 | 0.400 ± 0.000 |"


def test_every_variant_has_a_recipe_of_both_stages(cache: Path, tmp_path: Path) -> None:
    world = demo_world(tiny=True)
    for name, overrides in VARIANTS.items():
        one, two = (world.recipe(stage, tmp_path / name, overrides, 0) for stage in (1, 2))
        assert one.model.projector_start == ("matched" if name.endswith("_start") else "default")
        assert two.model.projector_start == "default" and two.model.projector is not None


def test_every_part_is_tried_with_and_without() -> None:
    assert {f"{how}_{part}" for part in PARTS for how in ("with", "without")} <= VARIANTS.keys()
    assert "missing" in came_out([])
    assert worlds.SIZES["demo"].keys() == worlds.SIZES["real"].keys() == worlds.TINY.keys()
