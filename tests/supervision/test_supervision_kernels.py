"""BASIC through the Triton kernels gives what it gives through the reference, taps and all."""

from __future__ import annotations

import pytest

from basic_lite.supervision.target import TargetPlan
from basic_lite_kernels.operations import choose
from tests.support import supervision as kit
from tests.support.kernels import DEVICE, kernel_test, relative, run_interpreted


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
            supervision.use(TargetPlan((0.2, 0.0, 0.8), ((5,), (), (0, 31))))
        with supervision.capture(supervision.layout(batch)) as captured:
            model(**kit.inputs(batch))
        losses = supervision.losses(captured)
        (losses.das + losses.sds).backward()
        gradient = model.model.multi_modal_projector.linear_1.weight.grad
        found.append((losses.das.detach(), losses.sds.detach(), gradient))
    for ours, expected in zip(found[1], found[0], strict=True):
        assert relative(ours, expected) < 1e-4


def test_through_the_interpreter() -> None:
    run_interpreted(__file__)
