"""Keys that are each right and can't work together, and what is unusual but possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from basic_lite.errors import UserError
from basic_lite.recipe import dump_recipe, load_recipe
from basic_lite.recipe.rules import accumulation, batch_problem, layers_problem
from tests.support.recipes import GOOD, problem, write_recipe


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["model.base=b"], "model.base", "remove model.base or model.vision and model.llm"),
        (["model.llm=null"], "model.vision", "add model.llm"),
        (["model.vision=null"], "model.llm", "add model.vision"),
        (["model.vision=null", "model.llm=null"], "model", "give model.vision and model.llm"),
        (["data.train.hub=h"], "data.train.path", "data.train.path and data.train.hub at once"),
        (["data.train.path="], "data.train", "give one of data.train.path"),
        (["data.train=[]"], "data.train", "the list of sources is empty"),
        (["data.train.config=c"], "data.train.config", "belongs to data.train.hub"),
        (["data.train.split=test"], "data.train.split", "a file has no splits, so all of it would be read, not test"),
        (["data.train={parquet: a.parquet, split: test}"], "data.train.split", "a file has no splits, so all of it"),
        (["data.train={hub: h, columns: {imag: x}}"], "data.train.columns.imag", "did you mean 'image'?"),
        (["stage=1"], "lora.enabled", "stage=2"),
        (["lora.targets=[q_proj, model.embed_tokens]"], "lora.targets.1", "vocabulary table"),
        (["lora.targets=[lm_head]"], "lora.targets.0", "vocabulary table"),
        (["lora.targets=[]"], "lora.targets", "all-linear"),
        (["lora.targets=[multi_modal_projector.linear_1]"], "lora.targets.0", "not part of the LLM"),
        (["supervision.layers=0"], "supervision.layers", "at least 1"),
        # One mistake, one problem: what mends the first divides the global batch.
        (
            ["training.micro_batch=4096", "data.max_length=5000"],
            "training.micro_batch",
            "more than any machine holds; set training.micro_batch=1",
        ),
        (["supervision.layers=-3"], "supervision.layers", "at least 1"),
        (["supervision.layers=1.5"], "supervision.layers", "at most 1"),
        (["supervision.layers=16.0"], "supervision.layers", "write 16, without a dot"),
        (["supervision.layers=0.0"], "supervision.layers", "above 0"),
        (
            ["supervision.guard=0.5", "supervision.detach=false"],
            "supervision.guard",
            "set supervision.detach=true, or supervision.guard=null",
        ),
        (
            ["model.projector_start=matched", "model.projector=runs/stage1"],
            "model.projector_start",
            "remove model.projector_start, or model.projector",
        ),
        (
            ["model.projector_start=matched", "model.start=runs/stage1"],
            "model.projector_start",
            "remove model.projector_start, or model.start",
        ),
        (
            ["supervision.preset=measured", "supervision.refinement_batches=7"],
            "supervision.gate",
            "supervision.refinement_batches=16",
        ),
        (["supervision.stages=[]"], "supervision.stages", "supervision.enabled=false"),
        (["supervision.token_weights=0"], "supervision.token_weights", "number above 0"),
        (["training.micro_batch=48"], "training.micro_batch", "micro_batch=32, or training.global_batch=144"),
        (["training.betas=[0.9, 1]"], "training.betas", "below 1"),
        (["training.eval_every=5"], "training.eval_every", "add data.eval"),
        (["training.eval_generate=5"], "training.eval_generate", "set training.eval_generate=0"),
        (
            ["training.metric_for_best_model=score"],
            "training.metric_for_best_model",
            "training.metric_for_best_model=loss",
        ),
        (
            ["training.metric_for_best_model=loss"],
            "training.metric_for_best_model",
            "training.metric_for_best_model=off",
        ),
        (["training.projector_learning_rate=0", "training.learning_rate=0"], "training.learning_rate", "nothing"),
        (["training.projector_learning_rate=0", "lora.enabled=false"], "training.projector_learning_rate", "LoRA"),
        (["model.attention=flash_attention_2", "training.device=cpu"], "model.attention", "sdpa"),
        (["kernels=triton", "training.device=cpu"], "kernels", "kernels=reference"),
        (
            ["training.optimizer=paged_adamw_8bit", "training.device=cpu"],
            "training.optimizer",
            "training.optimizer=adamw_8bit",
        ),
        (
            ["training.offload_activations=true", "training.gradient_checkpointing=false"],
            "training.offload_activations",
            "set training.gradient_checkpointing=true",
        ),
        (
            ["training.offload_activations=true", "training.gradient_checkpointing=0"],
            "training.offload_activations",
            "true or a number of layers",
        ),
        (
            ["training.offload_activations=true", "training.device=cpu"],
            "training.offload_activations",
            "set training.offload_activations=false",
        ),
        (["model.tower_on_host=true", "training.device=cpu"], "model.tower_on_host", "set model.tower_on_host=false"),
        (["model.image_token=< image>"], "model.image_token", "white space"),
        (["name=a/b"], "name", "can't be the name of a folder"),
        (["name=.."], "name", "can't be the name of a folder"),
        (["name=nul.2"], "name", "on Windows it is a device"),
        (["name=COM1"], "name", "on Windows it is a device"),
        (["model.projector=runs/../runs/run"], "model.projector", "this run itself writes"),
        (
            ["model.attention=flash_attention_2", "model.dtype=float32", "training.autocast=off"],
            "model.attention",
            "16 bit",
        ),
    ],
)
def test_impossible_combinations(tmp_path: Path, overrides: list[str], key: str, says: str) -> None:
    line = problem(tmp_path, GOOD, *overrides)
    assert f": {key}: " in line
    assert says in line


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.enabled=false"],
        ["supervision.lambda_das=0", "supervision.lambda_sds=0"],
        ["supervision.direction=off", "supervision.lambda_sds=0"],
        ["supervision.enabled=false", "supervision.stages=[]"],
        ["data.template=plain"],
        ["training.projector_learning_rate=0"],
        ["model={base: b, projector: p}"],
        ["lora.enabled=false", "lora.targets=[lm_head]"],
        ["data.train=[{hub: h, config: c, columns: {image: picture}}, {path: p}]"],
    ],
)
def test_what_is_unusual_but_possible_is_allowed(tmp_path: Path, overrides: list[str]) -> None:
    recipe = load_recipe(write_recipe(tmp_path, GOOD), overrides)
    assert load_recipe(write_recipe(tmp_path, dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("micro", "whole", "processes", "says"),
    [
        (4, 16, 2, None),
        (3, 16, 1, "set training.micro_batch=2, or training.global_batch=18"),
        (4, 20, 2, "micro_batch 4 on each of 2 processes does not divide global_batch 20; set training.micro_batch=2"),
        (1, 5, 2, "set training.global_batch=6"),
    ],
)
def test_a_batch_divides_over_micro_batches_and_processes(
    micro: int, whole: int, processes: int, says: str | None
) -> None:
    found = batch_problem(micro, whole, processes)
    assert found is None if says is None else found is not None and says in found


def test_accumulation_counts_micro_batches_of_one_process(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, GOOD), ["training.global_batch=24", "training.micro_batch=4"])
    assert (accumulation(recipe), accumulation(recipe, 2), accumulation(recipe, 3)) == (6, 3, 2)
    with pytest.raises(UserError, match=r"training\.micro_batch: micro_batch 4 on each of 4 processes"):
        accumulation(recipe, 4)


def test_layers_are_looked_at_again_when_the_llm_is_known() -> None:
    assert layers_problem(5) is None and layers_problem(4, 4) is None and layers_problem(1.0, 4) is None
    assert "the LLM has 4 layers" in str(layers_problem(5, 4))
