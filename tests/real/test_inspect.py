"""``inspect`` on SmolLM2 with the real tower: the training's own curve, and the same from the exported folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.tools.inspect.command import inspect
from bench.world.llms import smollm2
from bench.world.packages import Unavailable
from bench.world.pictures import RealWorld, real_world
from bench.world.tower import tower
from tests.support.runs import log_of, quiet

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def world() -> RealWorld:
    try:
        return real_world()
    except Unavailable as error:
        pytest.skip(str(error))


def test_a_real_run_equals_its_own_curve(world: RealWorld, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "real",
            "stage": 1,
            "output": str(tmp_path),
            "model": {"llm": str(smollm2()), "vision": str(tower()), "vision_feature_select": "full"},
            "lora": {"enabled": False},
            "data": {
                "train": {"path": str(world.eval_captions), "image_dir": str(world.images), "limit": 2},
                "template": "plain",
                "image_fit": "square",
                "max_length": 96,
                "workers": 0,
            },
            "supervision": {"refinement_batches": 1},
            "training": {
                "global_batch": 2,
                "micro_batch": 2,
                "max_steps": 1,
                "device": "cpu",
                "trackers": [],
                "eval_answers": 0,
            },
        }
    )
    folder = train(recipe, console=quiet()).folder
    logged = [line["refinement"] for line in log_of(folder) if "refinement" in line][-1]
    found = inspect(str(folder), device="cpu", console=quiet())
    assert found.look is not None
    curve = found.look.curve.to_dict()
    assert curve["score"] == pytest.approx(logged["score"], abs=1e-5) and len(curve["score"]) == 32
    for key, values in logged["health"].items():
        assert curve["health"][key] == pytest.approx(values, rel=1e-5, abs=1e-5)
    assert "giant target" in found.look.illnesses, "SmolLM2's massive dimension"
    assert all(mass is not None and 0 < mass < 1 for mass in found.look.attention)
