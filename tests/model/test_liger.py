"""Liger's kernels in the LLM: the modules' own steps bit for bit, and training by the kernels within rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Olmo2Config

from basic_lite.data.prepare import prepare_data
from basic_lite.errors import UserError
from basic_lite.model.adapt import adapt, lora_parameters
from basic_lite.model.audit import audit, check_parts, render_fusions
from basic_lite.model.frontend import load_frontend
from basic_lite.model.liger import ATTENTIONS, NORMS, LigerMlp, LigerNorm, _LigerAttention, fuse, fusions, with_liger
from basic_lite.model.liger_kernels import PLAIN, TRIALS, LigerKernels, choose_liger
from basic_lite.model.load import Loaded, load_base
from basic_lite.model.parts import find_parts
from basic_lite.recipe import load_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.training.assembly import make_step, supervise
from basic_lite.training.step import StepCounts
from tests.support import supervision as kit
from tests.support.kernels import DEVICE, kernel_test, relative, slow_interpreted
from tests.support.liger import runnable_liger
from tests.support.marks import rest_long
from tests.support.models import LLM_KINDS, text_config, write_llm, write_vision
from tests.support.recipes import GOOD, write_recipe
from tests.support.runs import LOUD, whole_recipe, write_data
from tests.support.steps import CPU

KINDS = (*LLM_KINDS, "gemma3")
# Of a tiny model: 4 layers with 2 norms, 4 or 6 in Qwen 3 and Gemma 3, and the last norm.
NORM_COUNT = dict.fromkeys(KINDS, 9) | {"qwen3": 17, "gemma3": 25}


def recipe_of(folder: Path, kind: str, changes: dict[str, Any] | None = None) -> Recipe:
    """A tiny recipe whose LLM is of a family; each has its own folder of checkpoints."""
    root = folder / kind
    root.mkdir(exist_ok=True)
    if not (root / "data.json").exists():
        write_data(root, 4)
    return whole_recipe(root, changes, kind=kind)


def adapted(recipe: Recipe, kernels: LigerKernels | None, device: torch.device = CPU) -> Loaded:
    """The recipe's model with LoRA that isn't zero; its LLM by the kernels given, or as transformers has it."""
    torch.manual_seed(3)
    loaded = load_base(recipe, device, load_frontend(recipe.model))
    if kernels is not None:
        loaded = replace(loaded, parts=with_liger(loaded.parts, kernels))
    adapt(loaded.parts, recipe)
    for number, parameter in enumerate(lora_parameters(loaded.model).values()):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data.copy_(values * 0.05)
    return loaded


def losses_and_gradients(recipe: Recipe, loaded: Loaded, device: torch.device = CPU) -> list[Tensor]:
    """Of a micro-batch with BASIC on: L, its terms, and every gradient."""
    data = prepare_data(recipe, loaded.frontend, say=lambda text: None)
    supervision = supervise(recipe, loaded, lambda text: None)
    step = make_step(recipe, loaded, supervision, device)
    batch = data.collator([data.train[0], data.train[1]])
    torch.manual_seed(4)  # of dropout
    found = step.loss(batch, StepCounts(6, 2, 0), (1.0, 1.0))
    found.loss.backward()
    assert found.basic is not None
    terms = [found.loss.detach(), found.lm.detach(), found.basic.das.detach(), found.basic.sds.detach()]
    return [*terms, *(p.grad for p in step.trainable if p.grad is not None)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("liger")


@pytest.mark.parametrize("attention", rest_long("eager", "sdpa"))
@pytest.mark.parametrize("kind", KINDS)
def test_the_modules_are_transformers_own_steps(folder: Path, kind: str, attention: str) -> None:
    """With plain PyTorch in the kernels' places no bit differs: NF4, LoRA, checkpointing and taps notice nothing."""
    recipe = recipe_of(folder, kind, {**LOUD, "model.attention": attention, "lora.dropout": 0.2})
    usual, ours = adapted(recipe, None), adapted(recipe, PLAIN)
    assert all(one.fused == 0 for one in fusions(usual.parts.language_model))
    assert [(one.operation, one.fused, one.total, one.why_not) for one in fusions(ours.parts.language_model)] == [
        ("RMSNorm", NORM_COUNT[kind], NORM_COUNT[kind], ""),
        ("RoPE", 4, 4, ""),
        ("gated MLP", 4, 4, ""),
    ]
    assert ours.parts.norm is ours.parts.language_model.norm
    assert list(ours.model.state_dict()) == list(usual.model.state_dict())
    check_parts(audit(ours.parts), recipe, torch.float32)
    theirs, mine = losses_and_gradients(recipe, usual), losses_and_gradients(recipe, ours)
    assert len(mine) == len(theirs) > 20
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    ids = torch.arange(5, 25)[None]
    answers = [x.model.eval().generate(input_ids=ids, max_new_tokens=6, do_sample=False) for x in (usual, ours)]
    assert torch.equal(*answers)


def test_two_models_of_a_process_have_their_own(folder: Path) -> None:
    recipe = recipe_of(folder, "llama")
    ours, usual = adapted(recipe, PLAIN), adapted(recipe, None)
    kinds = [{type(m) for m in x.parts.language_model.modules()} for x in (ours, usual)]
    assert LigerNorm in kinds[0] and not kinds[1] & {LigerNorm, LigerMlp, *ATTENTIONS.values()}
    assert not kinds[0] & {*NORMS, *ATTENTIONS}


@pytest.mark.parametrize("rotated", [1.0, 0.5])
def test_heads_that_turn_in_part(tmp_path: Path, rotated: float) -> None:
    """Phi-4-mini turns three quarters of a head's dimensions."""
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": rotated}
    write_llm(tmp_path / "phi3" / "llm", "phi3", rope_parameters=parameters)
    write_vision(tmp_path / "phi3" / "vision")
    recipe = recipe_of(tmp_path, "phi3", LOUD)
    mine, theirs = (losses_and_gradients(recipe, adapted(recipe, kernels)) for kernels in (PLAIN, None))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_window_that_a_family_ignores_stays_ignored() -> None:
    """A Llama's config may have one left over: neither its attention nor the weights that BASIC reads have a window."""
    found = []
    for window, fused in ((None, False), (5, False), (5, True)):
        model = kit.tiny_llava()
        model.config.text_config.sliding_window = model.model.language_model.config.sliding_window = window
        if fused:
            with_liger(find_parts(model), PLAIN)
        found.append(kit.run(kit.build(model), kit.tiny_batch())[1].das.item())
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-6)


def test_another_family_stays_as_it_is(tmp_path: Path) -> None:
    config = text_config("llama", 64).to_dict()
    for key in ("model_type", "architectures", "head_dim"):
        config.pop(key, None)
    language = AutoModelForCausalLM.from_config(Olmo2Config(**config)).model
    assert [(one.fused, one.total, one.why_not) for one in fusions(language)] == [
        (0, 17, "Liger's kernel isn't for Olmo2RMSNorm"),
        (0, 4, "Liger's kernel isn't for Olmo2Attention"),
        (0, 4, "Liger's kernel isn't for Olmo2MLP"),
    ]
    assert render_fusions(language) == []


def test_an_activation_without_a_kernel(tmp_path: Path) -> None:
    write_llm(tmp_path / "llama" / "llm", "llama", hidden_act="relu")
    write_vision(tmp_path / "llama" / "vision")
    loaded = adapted(recipe_of(tmp_path, "llama"), PLAIN)
    norm, rope, mlp = fusions(loaded.parts.language_model)
    assert (norm.fused, rope.fused, mlp.fused) == (9, 4, 0)
    assert mlp.why_not == "Liger's kernel isn't for LlamaMLP with ReLU"
    assert render_fusions(loaded.parts.language_model)


def test_where_it_cannot_run(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert not choose_liger(False, DEVICE, said.append)
    if DEVICE.type == "cpu":
        assert not choose_liger("auto", CPU, said.append)
        with pytest.raises(UserError, match=r"use_liger_kernel is true, but .* no NVIDIA or AMD GPU; set .*=auto"):
            choose_liger(True, CPU, said.append)
        parts = adapted(recipe_of(folder, "llama"), None).parts
        assert fuse(parts, "auto", CPU, said.append) is parts
    assert said == []
    with pytest.raises(
        UserError, match=r"(?s)training.use_liger_kernel: true needs a GPU .* set training.use_liger_kernel=auto"
    ):
        load_recipe(write_recipe(tmp_path, GOOD), ["training.use_liger_kernel=true", "training.device=cpu"])
    assert load_recipe(write_recipe(tmp_path, GOOD)).training.use_liger_kernel == "auto"


@pytest.fixture(scope="module")
def liger() -> Iterator[LigerKernels]:
    with runnable_liger() as kernels:
        yield kernels


@kernel_test
@pytest.mark.parametrize("name", TRIALS)
def test_kernels_compute_what_the_modules_did(liger: LigerKernels, name: str) -> None:
    assert relative(TRIALS[name](liger, DEVICE), TRIALS[name](PLAIN, DEVICE)) < 1e-6


@kernel_test
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow_interpreted * (kind != "llama")) for kind in KINDS])
def test_training_by_the_kernels(liger: LigerKernels, tmp_path: Path, kind: str) -> None:
    write_llm(tmp_path / kind / "llm", kind, num_hidden_layers=2)
    write_vision(tmp_path / kind / "vision")
    recipe = recipe_of(tmp_path, kind, {**LOUD, "training.gradient_checkpointing": 1, "supervision.guard": 0.5})
    found = [losses_and_gradients(recipe, adapted(recipe, kernels, DEVICE), DEVICE) for kernels in (liger, None)]
    for mine, theirs in zip(*found, strict=True):
        assert relative(mine, theirs) < 1e-4


@kernel_test
def test_asked_for_by_name(liger: LigerKernels, folder: Path) -> None:
    recipe, said = recipe_of(folder, "llama"), list[str]()
    parts = fuse(load_base(recipe, DEVICE, load_frontend(recipe.model)).parts, True, DEVICE, said.append)
    assert sum(isinstance(m, _LigerAttention) for m in parts.language_model.modules()) == 4 and said == []
