"""The oracle: BASIC through the taps, in float32, against BASIC by the book, in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.supervision.patch_weights import patch_weights
from basic_lite.supervision.target import TargetPlan
from basic_lite.training.step import StepCounts, TrainStep
from tests.support import supervision as kit

torch.set_num_threads(1)

TOLERANCE = 1e-5
SWITCHES: list[dict[str, Any]] = [
    {},
    {"layers": 1},
    {"layers": 0.75},
    {"layers": kit.LAYERS},
    {"layer_weights": "linear"},
    {"layer_weights": "constant"},
    {"layer_weights": "decreasing"},
    {"detach": False},
    {"detach": False, "target_norm": "final", "layers": kit.LAYERS, "direction": "mse", "vocabulary": "lm_head"},
    {"target_norm": "final"},
    {"token_weights": "uniform"},
    {"token_weights": 0.6},
    {"text_queries": "prompt"},
    {"text_queries": "response"},
    {"direction": "mse"},
    {"vocabulary": "lm_head"},
    {"temperature": 2.5},
    {"sinks": "drop", "token_weights": "uniform"},
    {"sinks": "drop", "token_weights": 0.6, "target_norm": "final"},
    {"target_norm": "layer", "direction": "mse"},
]
ROBUST: dict[str, Any] = {"target_norm": "layer", "sinks": "drop"}
PLANS = {
    "massive": TargetPlan((0.3, 0.7), ((5,), (0, 3, 17))),
    "massive in one layer": TargetPlan((0.25, 0.25, 0.5), ((), (31,), ())),
    "a band": TargetPlan((0.0, 0.4, 0.6, 0.0), ((1,), (2,), (), (4,))),
}


def assert_matches_oracle(
    model: Any, batch: dict[str, Tensor], checkpointing: bool = False, plan: TargetPlan | None = None, **settings: Any
) -> None:
    if settings.get("sinks") == "drop":
        model.model.multi_modal_projector = kit.WithSinks(model.model.multi_modal_projector)
    supervision = kit.build(model, **settings)
    if plan is not None:
        supervision.use(plan)
    kit.set_checkpointing(model, checkpointing)
    captured, losses = kit.run(supervision, batch)
    truth = kit.oracle(model, batch, supervision.settings, plan)
    assert truth.sinks == (len(batch["pixel_values"]) if settings.get("sinks") == "drop" else 0)
    assert captured.v is not None and captured.target is not None
    assert captured.v.dtype == captured.target.dtype == torch.float32
    errors = {
        "v": kit.error(captured.v, truth.v),
        "target": kit.error(captured.target, truth.target),
        "weights": kit.error(patch_weights(captured, supervision.settings.token_weights, None), truth.weights),
        "das": kit.error(losses.das, truth.das),
        "sds": kit.error(losses.sds, truth.sds),
        "das gradient": kit.grad_error(kit.projector_grad(model, losses.das), truth.das_grad),
        "sds gradient": kit.grad_error(kit.projector_grad(model, losses.sds), truth.sds_grad),
    }
    if supervision.reads_attention:
        errors["masses"] = kit.error(supervision.masses(captured), truth.masses)
    assert all(value <= TOLERANCE for value in errors.values()), errors


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("settings", SWITCHES, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()) or "default")
def test_oracle_for_every_switch(settings: dict[str, Any], checkpointing: bool) -> None:
    """The batch has one image, two images, a text-only row and a sample without text after its image."""
    side = "left" if checkpointing else "right"
    assert_matches_oracle(kit.tiny_llava(), kit.tiny_batch(padding_side=side), checkpointing, **settings)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("more", [{}, {"detach": False}, {"sinks": "keep"}], ids=["", "not-detached", "sinks-kept"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_oracle_of_the_robust_target(plan: TargetPlan, more: dict[str, Any], checkpointing: bool) -> None:
    side = "left" if checkpointing else "right"
    assert_matches_oracle(
        kit.tiny_llava(), kit.tiny_batch(padding_side=side), checkpointing, plan=plan, **{**ROBUST, **more}
    )


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    ("kind", "attention"),
    # gemma2 caps its scores, which transformers' sdpa refuses.
    [
        *product(["llama", "mistral", "phi3", "gemma", "gemma3", "qwen2", "qwen3"], ["sdpa", "eager"]),
        ("gemma2", "eager"),
    ],
)
def test_oracle_for_every_llm(kind: str, attention: str, padding_side: str) -> None:
    assert_matches_oracle(
        kit.tiny_llava(kind, attention=attention), kit.tiny_batch(padding_side=padding_side), layers=3
    )


@pytest.mark.parametrize("kind", ["gemma", "gemma3"])
def test_oracle_of_the_head_where_embeddings_are_scaled(kind: str) -> None:
    """The scale is the embedding module's, and the head's rows count as they are."""
    assert_matches_oracle(kit.tiny_llava(kind), kit.tiny_batch(), vocabulary="lm_head")


@pytest.mark.parametrize("settings", [{}, {"direction": "mse"}, {"target_norm": "layer"}, {"detach": False}], ids=str)
@pytest.mark.parametrize("patches", [1, 16])
def test_oracle_for_other_numbers_of_visual_tokens(
    patches: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One visual token in an image, and more of them than text."""
    monkeypatch.setattr(kit, "PATCHES", patches)
    assert_matches_oracle(kit.tiny_llava(), kit.tiny_batch(padding_side="left"), **settings)


def with_lora(dropout: float = 0.0) -> tuple[Any, list[Tensor]]:
    """A tiny model whose LLM has adapters that are far from 0, and their weights."""
    model = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration)
    config = LoraConfig(r=2, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "down_proj"])
    inject_adapter_in_model(config, model.model.language_model)
    adapter = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for parameter in adapter:
            parameter.normal_(std=0.25)
    return model, list(adapter)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("detach", [True, False])
def test_oracle_with_lora(detach: bool, checkpointing: bool) -> None:
    """The adapted LLM makes v̂ and a_i; BASIC trains the adapter only where v̂ isn't detached."""
    (model, adapter), batch = with_lora(), kit.tiny_batch()
    assert_matches_oracle(model, batch, checkpointing, detach=detach)
    losses = kit.run(kit.build(model, detach=detach), batch)[1]
    found = torch.autograd.grad(losses.das + losses.sds, adapter, allow_unused=True)
    assert any(gradient is not None and bool(gradient.any()) for gradient in found) != detach


def test_the_mean_mass_is_measured_without_dropout() -> None:
    (model, _), batch = with_lora(dropout=0.5), kit.tiny_batch()
    supervision = kit.build(model, token_weights="uniform")
    step = TrainStep(supervision.parts, supervision, device=torch.device("cpu"))
    mean = step.mean_mass([batch], StepCounts.of([batch], kit.IMAGE), (1.0, 0.01))
    assert mean is not None
    assert float(mean) == pytest.approx(float(kit.oracle(model, batch, supervision.settings).masses.mean()), rel=1e-5)


def test_oracle_where_everything_is_small() -> None:
    """A fresh model: nearly flat distributions, v close to v̂, where float32 differences lose their digits."""
    model = kit.tiny_llava()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.08)
    assert_matches_oracle(model, kit.tiny_batch("image"))


def test_total_gradient_with_the_lm_loss() -> None:
    model, batch = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration), kit.tiny_batch(padding_side="left")
    supervision = kit.build(model)
    kit.set_checkpointing(model, True)
    with kit.capturing(supervision, batch) as captured:
        lm = model(**batch).loss
    losses = supervision.losses(captured)
    grads = kit.projector_grad(model, lm + losses.das + 0.01 * losses.sds)
    truth = kit.oracle(model, batch, supervision.settings)
    exact = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration).double()
    given = {k: (x.double() if x.is_floating_point() else x) for k, x in batch.items()}
    lm_grads = kit.projector_grad(exact, exact(**given).loss)
    total = [a + b + 0.01 * c for a, b, c in zip(lm_grads, truth.das_grad, truth.sds_grad, strict=True)]
    assert kit.grad_error(grads, total) <= TOLERANCE


@pytest.mark.parametrize("robust", [False, True], ids=["", "robust"])
@pytest.mark.parametrize("token_weights", ["attention", "uniform", 0.4])
def test_micro_batches_add_up(token_weights: Any, robust: bool) -> None:
    model = kit.tiny_llava()
    if robust:
        model.model.multi_modal_projector = kit.WithSinks(model.model.multi_modal_projector)
    supervision = kit.build(model, token_weights=token_weights, **(ROBUST if robust else {}))
    if robust:
        supervision.use(PLANS["massive"])
    batch = kit.tiny_batch(padding_side="left")
    _, whole = kit.run(supervision, batch)

    images = torch.tensor([1, 2, 0, 1])
    parts = []
    for row in range(4):
        part = {k: v[row : row + 1] for k, v in batch.items() if k != "pixel_values"}
        start = int(images[:row].sum())
        if images[row]:
            part["pixel_values"] = batch["pixel_values"][start : start + int(images[row])]
        parts.append(part)
    mean_mass = None
    assert supervision.needs_mean_mass == (token_weights == "uniform")
    if supervision.needs_mean_mass:
        masses = []
        for part in parts:
            with torch.no_grad(), supervision.capture(supervision.layout(part), attention_only=True) as captured:
                model(**kit.inputs(part), use_cache=False)
            assert captured.v is None and captured.target is None
            masses.append(supervision.masses(captured))
        mean_mass = float(torch.cat(masses).mean())
    pieces = [kit.run(supervision, part, samples_with_image=3, mean_mass=mean_mass)[1] for part in parts]
    assert [p.samples for p in pieces] == [1, 1, 0, 1] and whole.samples == 3
    for name in ("das", "sds"):
        total = sum(getattr(p, name) for p in pieces)
        assert kit.error(total, getattr(whole, name).detach().double()) < 2e-6
        truth = [g.double() for g in kit.projector_grad(model, getattr(whole, name))]
        assert kit.grad_error(kit.projector_grad(model, total), truth) < 5e-6
