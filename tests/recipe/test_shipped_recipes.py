"""The shipped recipes: valid, with the method's hyperparameters, and commands in their headers that work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from basic_lite.errors import UserError
from basic_lite.recipe import dump_recipe, find_recipe, load_recipe, shipped_recipe, shipped_recipes
from basic_lite.recipe.schema import Recipe
from basic_lite.recipe.sequence import load_sequence
from tests.support.recipes import write_recipe

SHIPPED = {path.stem: path for path in shipped_recipes()}

# METHOD: LLaVA-1.5's two stages, learning rates of the QLoRA edition.
SHARED = {
    "model.vision": "openai/clip-vit-large-patch14-336",
    "model.vision_feature_layer": -2,
    "model.vision_feature_select": "default",
    "quantization.mode": "nf4",
    "quantization.double": True,
    "data.max_length": 2048,
    "training.epochs": 1.0,
    "training.max_steps": None,
    "training.scheduler": "cosine",
    "training.warmup_ratio": 0.03,
    "training.weight_decay": 0.0,
    "supervision.enabled": True,
    "supervision.stages": [1, 2],
    "supervision.preset": "measured",
    "supervision.gate": True,
    "supervision.token_weights": "attention",
    "supervision.text_queries": "all",
    "supervision.detach": True,
    "supervision.direction": "cosine",
    "supervision.vocabulary": "input_embeddings",
    "supervision.temperature": 1.0,
    "supervision.lambda_das": 1.0,
    "supervision.lambda_sds": 0.01,
    "supervision.every_n_steps": 1,
}
STAGE_1 = SHARED | {
    "stage": 1,
    "model.projector": None,
    "lora.enabled": False,
    "training.projector_learning_rate": 1e-3,
    "training.global_batch": 256,
    "data.template": "plain",
    "data.image_fit": "square",
}
STAGE_2 = SHARED | {
    "stage": 2,
    "lora.enabled": True,
    "lora.rank": 128,
    "lora.alpha": 256.0,
    "lora.dropout": 0.05,
    "lora.targets": "all-linear",
    "training.learning_rate": 2e-4,
    "training.projector_learning_rate": 2e-5,
    "training.global_batch": 128,
    "data.template": "v1",
    "data.image_fit": "pad",
}
HYPERPARAMETERS = {
    "7b_pretrain": STAGE_1 | {"model.llm": "lmsys/vicuna-7b-v1.5"},
    "7b_qlora": STAGE_2 | {"model.llm": "lmsys/vicuna-7b-v1.5", "model.projector": "runs/7b_pretrain"},
    # Rank 64 at the method's alpha / rank: what a 16 GB card holds.
    "13b_qlora": STAGE_2
    | {"model.llm": "lmsys/vicuna-13b-v1.5", "model.projector": "runs/13b_pretrain"}
    | {"lora.rank": 64, "lora.alpha": 128.0},
}

# The method as published, where a recipe is opened with `supervision.preset=paper`.
PAPER = {
    "supervision.gate": False,
    "supervision.layers": 0.5,
    "supervision.layer_weights": "quadratic",
    "supervision.target_norm": "none",
    "supervision.sinks": "keep",
    "supervision.guard": None,
}


def value_of(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def test_there_are_recipes() -> None:
    """The tests below run over what is found, and pass where nothing is."""
    smaller_cards, demo = {"7b_8gb", "34b_24gb"}, {"demo_stage1", "demo_stage2", "demo_photos"}
    small = {"small_pretrain", "small_instruct"}
    assert set(SHIPPED) == {*HYPERPARAMETERS, *smaller_cards, *small, *demo, "my_photos", "my_photos_small"}
    assert len(SHIPPED) == 12


def test_a_shipped_recipe_is_found_by_its_name() -> None:
    assert shipped_recipe("7b_qlora") == shipped_recipe("7b_qlora.yaml") == SHIPPED["7b_qlora"]
    assert find_recipe("7b_qlora") == find_recipe("recipes/7b_qlora.yaml") == SHIPPED["7b_qlora"]
    with pytest.raises(UserError, match=r"there are: .*7b_pretrain"):
        shipped_recipe("70b")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_is_valid_and_opens_with_its_commands(name: str, tmp_path: Path) -> None:
    path = SHIPPED[name]
    recipe = load_recipe(path)
    assert load_recipe(write_recipe(tmp_path, dump_recipe(recipe))) == recipe
    header = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert header is not None
    assert f"basic-lite train recipes/{name}.yaml" in header.group(0)
    if name.startswith("demo"):
        assert "#   basic-lite demo" in header.group(0)
    else:
        assert recipe.name == name
        for weights in filter(None, (recipe.model.base, recipe.model.vision, recipe.model.llm)):
            assert f"hf download {weights}" in header.group(0)
        assert f"basic-lite train recipes/{name}.yaml --dry-run" in header.group(0)


@pytest.mark.parametrize("name", SHIPPED)
def test_commands_in_a_header_are_ones_this_program_takes(name: str) -> None:
    for command in re.findall(r"^#   basic-lite train (.+)$", SHIPPED[name].read_text(encoding="utf-8"), re.M):
        recipe, *rest = [word for word in command.split() if not word.startswith("--")]
        if recipe == "photos.yaml":  # the command above it writes this one
            continue
        loaded = load_recipe(recipe, rest)
        if name == "13b_qlora" and loaded.stage == 1:
            assert load_recipe(SHIPPED[name]).model.projector == f"{loaded.output}/{loaded.name}"
            assert loaded.model.llm == load_recipe(SHIPPED[name]).model.llm


@pytest.mark.parametrize("name", ["small_pretrain", "small_instruct"])
def test_both_small_recipes_go_into_one_command(name: str) -> None:
    lines = re.findall(r"^#   basic-lite run (.+)$", SHIPPED[name].read_text(encoding="utf-8"), re.M)
    assert lines
    for line in lines:
        said: list[str] = []
        first, second = load_sequence(line.partition(" --export")[0].split(), said.append)
        assert second.model.projector == f"{first.output}/{first.name}"
        assert (first.model.vision, first.model.llm) == (second.model.vision, second.model.llm)
        assert any("takes the projector of" in text for text in said) == ("output=" in line)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameters_are_the_methods(name: str) -> None:
    recipe = load_recipe(SHIPPED[name])
    found = {key: value_of(recipe, key) for key in HYPERPARAMETERS[name]}
    assert found == HYPERPARAMETERS[name]
    assert "adamw" in recipe.training.optimizer
    paper = load_recipe(SHIPPED[name], ["supervision.preset=paper"])
    assert {key: value_of(paper, key) for key in PAPER} == PAPER


def test_the_demos_models_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = load_recipe("demo_photos").model
    assert all(name is not None and (Path(name) / "config.json").is_file() for name in (model.vision, model.llm))
    (tmp_path / "basic_lite/demo/assets/llm").mkdir(parents=True)  # what is here comes first
    assert load_recipe("demo_photos").model.llm == "basic_lite/demo/assets/llm"


def test_demo_recipes_fit_together() -> None:
    first, second = load_recipe("demo_stage1"), load_recipe("demo_stage2")
    assert (first.stage, second.stage) == (1, 2)
    assert second.model.projector == f"{first.output}/{first.name}"
    assert first.quantization.mode == second.quantization.mode == "nf4"
    assert (first.model.vision, first.model.llm) == (second.model.vision, second.model.llm)


def test_of_several_wrong_names_the_shipped_recipes_are_listed_once() -> None:
    with pytest.raises(UserError) as caught:
        load_sequence(["nothing", "of_this"], print)
    said = str(caught.value)
    assert "the recipe nothing doesn't exist" in said and "the recipe of_this doesn't exist" in said
    assert said.count("Shipped recipes:") == 1
