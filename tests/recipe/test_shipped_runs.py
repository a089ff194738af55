"""Every shipped recipe runs for two optimizer steps, its models and data replaced by tiny local ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from basic_lite.recipe import load_recipe, shipped_recipes
from basic_lite.run import train
from basic_lite.tools.dry_run import dry_run
from basic_lite.tools.evaluate import evaluate_run
from tests.support.models import write_llava, write_llm, write_vision
from tests.support.runs import quiet, steps_of, write_data

# The recipe whose plan is looked for in a plain run; for a tiny model that takes longer than to train it.
PLANNED = "7b_qlora"


def tiny_overrides(folder: Path, text: str) -> list[str]:
    """What stands in for weights, data and card; all else is the recipe's own, but for a plan to be looked for."""
    values = {
        "output": str(folder / "runs"),
        "data.train": {"path": str(folder / "data.json"), "image_dir": str(folder / "images")},
        "data.workers": 0,
        "training.max_steps": 2,
        "training.log_every": 1,
        "training.device": "cpu",
    }
    if "base:" in text:
        values["model.base"] = str(folder / "llava")
    else:
        values |= {"model.vision": str(folder / "vision"), "model.llm": str(folder / "llm")}
    if "projector:" in text:
        values["model.projector"] = str(folder / "stage1" / "first")
    if "paged_adamw_8bit" in text:
        values["training.optimizer"] = "adamw_8bit"  # paging is CUDA's
    if "plan: auto" in text:
        values["training.plan"] = "manual"
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_llm(folder / "llm")
    write_vision(folder / "vision")
    write_llava(folder / "llava")
    write_data(folder, 5, text_only=1)
    text = "name: first\nstage: 1\nmodel: {vision: v, llm: l}\ndata: {train: {path: d.json}}\n"
    first = folder / "first.yaml"
    first.write_text(text)
    overrides = [*tiny_overrides(folder, text), f"output={folder / 'stage1'}", "training.global_batch=4"]
    train(load_recipe(first, [*overrides, "data.template=plain"]), console=quiet())
    return folder


@pytest.mark.long
@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_two_steps(path: Path, material: Path) -> None:
    overrides = tiny_overrides(material, path.read_text())
    recipe = load_recipe(path, overrides)
    dry_run(recipe, quiet())
    if path.stem == PLANNED:
        recipe = load_recipe(path, [*overrides, "training.plan=auto"])
    result = train(recipe, console=quiet())
    lines = steps_of(result.folder)
    assert result.steps == 2 and lines[-1]["step"] == 2
    assert not any(term in line for line in lines for term in ("das", "sds")), "5 records can't open the gate"
    answered = evaluate_run(
        result.folder, material / "data.json", image_dir=material / "images", limit=2, console=quiet()
    )
    assert len(answered.predictions) == 2


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.soak] * (path.stem not in ("7b_pretrain", "7b_qlora")))
        for path in shipped_recipes()
    ],
)
def test_basic_acts_in_the_papers_preset(path: Path, material: Path) -> None:
    overrides = [*tiny_overrides(material, path.read_text()), "supervision.preset=paper", f"name={path.stem}_paper"]
    (*_, last) = steps_of(train(load_recipe(path, overrides), console=quiet()).folder)
    assert last["das"] > 0 and last["sds"] > 0
