"""BASIC through the Triton kernels gives what it gives through the reference, taps and all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision.patch_weights import patch_weights
from basic_lite.supervision.target import TargetPlan
from basic_lite_kernels.operations import choose
from tests.support import supervision as kit
from tests.support.kernels import DEVICE, kernel_test, relative, slow_interpreted

TOLERANCE = 2e-5
PLAN = TargetPlan((0.2, 0.0, 0.8), ((5,), (), (0, 31)))


@kernel_test
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"direction": "mse", "target_norm": "final", "token_weights": "uniform"},
        {"detach": False, "layers": 1},
        {"lambda_sds": 0.0, "layers": 1.0},
        {"target_norm": "layer", "sinks": "drop", "layers": 3},
    ],
    ids=["default", "mse", "not-detached", "all-layers", "robust"],
)
def test_kernels_in_place_of_the_reference(settings: dict[str, object]) -> None:
    found = []
    for kernels in ("reference", "triton"):
        operations = choose(kernels, DEVICE).operations
        model = kit.tiny_llava("llama").to(DEVICE)
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
        batch = {name: tensor.to(DEVICE) for name, tensor in kit.tiny_batch("full").items()}
        supervision = kit.build(model, operations, **settings)
        if settings.get("target_norm") == "layer":
            supervision.use(PLAN)
        with supervision.capture(supervision.layout(batch)) as captured:
            model(**kit.inputs(batch))
        losses = supervision.losses(captured)
        (losses.das + losses.sds).backward()
        gradient = model.model.multi_modal_projector.linear_1.weight.grad
        found.append((losses.das.detach(), losses.sds.detach(), gradient))
    for ours, expected in zip(found[1], found[0], strict=True):
        assert relative(ours, expected) < 1e-4


@kernel_test
@pytest.mark.parametrize("robust", [False, True], ids=["", "robust"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"token_weights": "uniform", "vocabulary": "lm_head"}, marks=slow_interpreted),
        pytest.param({"direction": "mse", "target_norm": "final", "temperature": 2.5}, marks=slow_interpreted),
        pytest.param({"text_queries": "response", "layers": kit.LAYERS}, marks=slow_interpreted),
        pytest.param({"detach": False, "layer_weights": "linear"}, marks=slow_interpreted),
    ],
    ids=["default", "uniform", "mse", "response", "not-detached"],
)
@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=slow_interpreted) for kind in ("mistral", "gemma2", "qwen2"))]
)
def test_kernels_match_the_oracle(kind: str, settings: dict[str, Any], robust: bool) -> None:
    """Taps, kernels and model on one device, in float32, against BASIC by the book in float64 on the CPU."""
    if robust and "target_norm" not in settings:
        settings = {**settings, "target_norm": "layer"}
    plan = PLAN if settings.get("target_norm") == "layer" else None
    torch.backends.cudnn.allow_tf32 = False  # the vision tower's first layer
    model, batch = kit.tiny_llava(kind, attention="eager"), kit.tiny_batch(padding_side="left")
    truth = kit.oracle(model, batch, SupervisionSection(**settings), plan)
    supervision = kit.build(model.to(DEVICE), choose("triton", DEVICE).operations, **settings)
    if plan is not None:
        supervision.use(plan)
    with kit.capturing(supervision, batch) as captured:
        model(**{name: x.to(DEVICE) for name, x in kit.inputs(batch).items()}, use_cache=False)
    losses = supervision.losses(captured)
    weights = patch_weights(captured, supervision.settings.token_weights, None)
    for ours, expected in ((weights, truth.weights), (losses.das, truth.das), (losses.sds, truth.sds)):
        assert kit.error(ours.cpu(), expected) <= TOLERANCE
    for loss, expected in ((losses.das, truth.das_grad), (losses.sds, truth.sds_grad)):
        gradients = [g.cpu() for g in kit.projector_grad(model, loss)]
        assert kit.grad_error(gradients, expected) <= TOLERANCE
