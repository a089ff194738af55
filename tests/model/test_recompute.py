"""Recomputing some of the LLM's layers: the first so many run twice, the others once, and no bit changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.rules import recomputed_layers
from basic_lite.training.assembly import preflight
from basic_lite.training.differences import differences
from tests.support.runs import LOUD, whole_recipe, write_data
from tests.support.steps import CPU, load_tiny, two_steps

KEY = "training.gradient_checkpointing"
LAYERS = 4  # of the tiny LLM, of which BASIC watches two
MICRO_BATCHES = 4  # of ``two_steps``


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recompute")
    write_data(root, 8)
    whole_recipe(root)
    return root


CASES: dict[str, dict[str, Any]] = {
    "NF4, LoRA, attention's mass": {},
    "eager, bf16 autocast": {"model.attention": "eager", "model.dtype": "bfloat16", "training.autocast": "bfloat16"},
    "target with a graph": {"supervision.detach": False},
    "guarded, layers of one size": {
        "supervision.guard": 0.5,
        "supervision.target_norm": "layer",
        "supervision.sinks": "drop",
    },
    "uniform weights": {"supervision.token_weights": "uniform"},
}


MARKS = {
    "eager, bf16 autocast": pytest.mark.long,
    "target with a graph": pytest.mark.long,
    "guarded, layers of one size": pytest.mark.soak,
    "uniform weights": pytest.mark.soak,
}


@pytest.mark.parametrize(
    "changes", [pytest.param(changes, id=name, marks=MARKS.get(name, ())) for name, changes in CASES.items()]
)
def test_the_same_bits_whatever_the_number(folder: Path, changes: dict[str, Any]) -> None:
    changes = {**LOUD, "lora.dropout": 0.3, **changes}
    every = list(two_steps(whole_recipe(folder, {**changes, KEY: True})))
    assert len(every) > 20 and not torch.equal(every[0], every[1])
    for count in (False, 1, LAYERS - 1):
        some = list(two_steps(whole_recipe(folder, {**changes, KEY: count})))
        assert len(some) == len(every)
        assert all(torch.equal(a, b) for a, b in zip(every, some, strict=True)), count


@pytest.mark.parametrize("setting, count", [(True, 4), (False, 0), (0, 0), (1, 1), (3, 3), (4, 4)])
def test_the_first_layers_run_twice(folder: Path, setting: bool | int, count: int) -> None:
    recipe = whole_recipe(folder, {KEY: setting})
    loaded, runs = load_tiny(recipe), [0] * LAYERS

    for index, layer in enumerate(loaded.parts.layers):

        def ran(module: Any, *_: Any, index: int = index) -> None:
            runs[index] += module.training  # its attention is tried before the steps

        layer.mlp.register_forward_pre_hook(ran)
    list(two_steps(recipe, loaded))
    assert runs == [2 * MICRO_BATCHES] * count + [MICRO_BATCHES] * (LAYERS - count)


def test_a_number_of_layers() -> None:
    assert [recomputed_layers(setting, 4) for setting in (True, False, 0, 1, 4)] == [4, 0, 0, 1, 4]
    with pytest.raises(
        UserError, match=r"gradient_checkpointing: 5 layers .* the LLM has 4; give a number from 0 to 4"
    ):
        recomputed_layers(5, 4)


def test_too_many_are_refused_before_anything_is_loaded(folder: Path) -> None:
    recipe = whole_recipe(folder, {KEY: LAYERS + 1})
    assert load_frontend(recipe.model).layer_count == LAYERS
    with pytest.raises(UserError, match="the LLM has 4"):
        preflight(recipe, CPU, lambda text: None)


def test_a_run_may_continue_with_another_number(folder: Path) -> None:
    assert not differences(whole_recipe(folder, {KEY: True}), whole_recipe(folder, {KEY: 2}))
