"""The evidence's real world and Gemma 3: the recipes still train, and what was made from packages is right."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from basic_lite.recipe.schema import Recipe
from basic_lite.training.assembly import load_for_training, make_step, preflight, supervise
from basic_lite.training.processes import ALONE
from basic_lite.training.step import StepCounts
from bench.evidence.__main__ import main
from bench.evidence.runs import read_results
from bench.world.llms import gemma3
from bench.world.packages import Unavailable
from bench.world.pictures import RealWorld, real_world
from bench.world.tower import tower

pytestmark = pytest.mark.real

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world() -> RealWorld:
    try:
        return real_world()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def gemma() -> Path:
    try:
        return gemma3()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.soak  # six minutes
def test_the_evidences_real_recipes_still_run(world: RealWorld, tmp_path: Path) -> None:
    """Both stages of real_stage1.yaml and real_stage2.yaml, two steps each, and all that is measured after them."""
    assert main(["real", "--tiny", "--seeds", "1", "--variants", "measured", "--out", str(tmp_path)]) == 0
    (result,) = read_results(tmp_path, "real")
    for stage in ("stage1", "stage2"):
        found = result[stage]
        assert all(math.isfinite(line["loss"]) for line in found["log"] if "loss" in line)
        assert any("gate" in line for line in found["log"])
        assert len(found["curve"]["score"]) == 32, "v, 30 layers, v̂"


def test_gemma_speaks(gemma: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gemma)
    model = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.float32).eval()
    ids = tokenizer("A photo of a dog that plays with a ball on the beach.", return_tensors="pt").input_ids
    with torch.no_grad():
        found = model(ids, labels=ids)
    assert bool(torch.isfinite(found.logits).all())
    assert found.loss < 4.5 < math.log(model.config.vocab_size), "by chance it would be 12.5"


def test_gemma_learns_from_pictures_with_basic(gemma: Path, world: RealWorld) -> None:
    """A step of stage 1: scaled embeddings, sliding windows, one key head, a vocabulary of 262,144."""
    recipe = Recipe.model_validate(
        {
            "name": "gemma",
            "stage": 1,
            "model": {"llm": str(gemma), "vision": str(tower()), "vision_feature_select": "full", "dtype": "float32"},
            "quantization": {"mode": "none"},
            "lora": {"enabled": False},
            "data": {
                "train": {"path": str(world.eval_captions), "image_dir": str(world.images), "limit": 4},
                "template": "plain",
                "image_fit": "square",
                "max_length": 96,
                "workers": 0,
            },
            "training": {"global_batch": 2, "micro_batch": 2, "max_steps": 1, "device": "cpu", "trackers": []},
        }
    )
    frontend, data = preflight(recipe, CPU, print)
    loaded = load_for_training(recipe, CPU, frontend, print)
    supervision = supervise(recipe, loaded, print)
    assert supervision is not None
    assert supervision.vocabulary.scale == pytest.approx(math.sqrt(640), rel=1e-3)
    step = make_step(recipe, loaded, supervision, CPU)
    (batch,) = data.batches_with_images(2, 2)
    counts = StepCounts.of([batch], loaded.parts.image_token_id)
    terms = step.gradients([batch], counts, supervision.lambdas(0, 1), number=1).values(ALONE)
    assert terms["lm"] < math.log(supervision.vocabulary.rows) and 0 < terms["sum_a"] <= 1
    assert 0 < terms["das"] < 4 and 0 < terms["sds"] < math.inf
    for parameter in loaded.parts.projector.parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        assert float(parameter.grad.abs().sum()) > 0
