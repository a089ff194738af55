"""BASIC the naive way, which the bench holds ours against: it must compute the same, or the comparison is void."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from basic_lite.console import speaker
from basic_lite.model.load import Loaded
from basic_lite.supervision import Supervision
from basic_lite.training.assembly import load_for_training, preflight, supervise
from basic_lite.training.step import Batch, StepCounts, TrainStep
from bench import rehearse
from bench.naive_step import NaiveStep
from tests.support.runs import quiet, whole_recipe, write_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Supervision, Batch]:
    """An NF4 model of four layers with adapters that do something, and a padded batch with text-only samples."""
    folder = tmp_path_factory.mktemp("naive")
    write_data(folder, 6, text_only=2)
    recipe = whole_recipe(folder, {"training.micro_batch": 4})
    torch.manual_seed(0)
    frontend, data = preflight(recipe, CPU, lambda text: None)
    loaded = load_for_training(recipe, CPU, frontend, lambda text: None)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:  # zeros at the start, which would hide the gradients of A
            parameter.data.normal_(std=0.1)
    # Far from flat, so that SDS is more than rounding and attention is uneven.
    loaded.parts.embeddings.weight.data.normal_(std=0.5)
    supervision = supervise(recipe, loaded, speaker(quiet()))
    assert supervision is not None and supervision.layers == 2 and recipe.training.gradient_checkpointing
    batch = data.collator([data.train[i] for i in range(8)])
    assert not batch["attention_mask"].all()
    assert (batch["input_ids"] == loaded.parts.image_token_id).any(1).tolist().count(True) == 6
    return loaded, supervision, batch


def loss_and_gradients(
    kind: type[TrainStep], attention: str, trained: tuple[Loaded, Supervision, Batch], lambdas: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss; gradients of the projector and of LoRA, each as one vector."""
    loaded, supervision, batch = trained
    loaded.parts.language_model.set_attn_implementation(attention)
    step = kind(loaded.parts, supervision, device=CPU)
    step.drop_gradients()
    loss = step.loss(batch, StepCounts(37, 11, 1), lambdas).loss
    loss.backward()
    trainable = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trainable.values())
    lora = torch.cat([p.grad.flatten() for name, p in trainable.items() if "lora_" in name])
    projector = torch.cat([p.grad.flatten() for name, p in trainable.items() if "lora_" not in name])
    return loss.detach(), projector, lora


def relative(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).norm() / truth.norm())


@pytest.mark.parametrize("lambdas", [(1.0, 0.01), (1e3, 0.0), (0.0, 1e3)], ids=["recipes' λ", "DAS", "SDS"])
def test_the_naive_step_is_the_same_step(
    trained: tuple[Loaded, Supervision, Batch], lambdas: tuple[float, float]
) -> None:
    ours = loss_and_gradients(TrainStep, "sdpa", trained, lambdas)
    naive = loss_and_gradients(NaiveStep, "eager", trained, lambdas)
    without = loss_and_gradients(TrainStep, "sdpa", trained, (0.0, 0.0))
    for what, value, truth, off in zip(("loss", "projector", "LoRA"), naive, ours, without, strict=True):
        assert relative(value, truth) <= 1e-4, what
        if what != "LoRA" and lambdas != (1.0, 0.01):  # BASIC reaches the projector alone: its target is a constant
            assert relative(off, truth) > 0.1, f"{what}: BASIC changes too little of it for this comparison"


def test_the_naive_step_refuses_what_it_does_not_do(trained: tuple[Loaded, Supervision, Batch]) -> None:
    loaded, supervision, batch = trained
    loaded.parts.language_model.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="eager"):
        NaiveStep(loaded.parts, supervision, device=CPU).loss(batch, StepCounts(1, 1, 1), (1.0, 0.01))
    with pytest.raises(ValueError, match="without BASIC"):
        NaiveStep(loaded.parts, None, device=CPU).loss(batch, StepCounts(1, 1, 1), (1.0, 0.01))


@pytest.mark.soak
def test_committed_rehearsal_is_what_the_code_says(tmp_path: Path) -> None:
    rows = json.loads(rehearse.RESULTS.read_text(encoding="utf-8"))["rows"]
    assert [rehearse.Setting(**row["setting"]) for row in rows] == list(rehearse.SETTINGS)
    now = rehearse.rehearse_row(rehearse.SETTINGS[0], tmp_path)
    for who in ("off", "ours", "naive"):
        # Another version of transformers or PEFT in the range may keep a few tensors more or less.
        assert getattr(now, who).needed_bytes == pytest.approx(rows[0][who]["needed_bytes"], rel=0.005), who
    assert now.naive.adds_bytes > now.maps_bytes > 100 * now.ours.adds_bytes > 0
    for row in rows:  # the goal: at most 1 % of the peak, and 150 MiB at 8 images
        assert row["ours"]["share"] <= 0.01 and row["ours"]["adds_bytes"] <= 150 * 2**20, row["setting"]
        assert row["naive"]["needed_bytes"] > row["ours"]["needed_bytes"]
