"""``Supervision``: exact zeros, what is not computed, its switches and its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from basic_lite.errors import UserError
from basic_lite.model.parts import find_parts
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision import Supervision, choose_kernels
from basic_lite.supervision.supervision import kernels_refused
from basic_lite.supervision.target import layer_weights, supervised_layers
from basic_lite_kernels.eager_direction_loss import EagerTargetStream
from basic_lite_kernels.operations import EAGER, KernelUnavailable
from basic_lite_kernels.triton_support import require
from tests.support import supervision as kit

torch.set_num_threads(1)


def test_a_batch_without_images_gives_exact_zeros_with_a_graph() -> None:
    model = kit.tiny_llava()
    supervision = kit.build(model)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight[0, 0] = torch.inf  # even then
    captured, losses = kit.run(supervision, kit.tiny_batch("text"), samples_with_image=5)
    assert losses.samples == 0 and losses.metrics == {} and captured.v is None
    (losses.das + losses.sds).backward()
    for parameter in model.model.multi_modal_projector.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert losses.das.item() == losses.sds.item() == 0.0
    assert supervision.masses(captured).numel() == 0


def test_a_lambda_of_zero_computes_nothing() -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    kinds: list[str | None] = []

    def stream(kind: Any) -> EagerTargetStream:
        kinds.append(kind)
        return EagerTargetStream(kind)

    def forbidden(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("computed for nothing")

    for settings in ({"lambda_das": 0.0}, {"direction": "off"}):
        _, losses = kit.run(kit.build(model, replace(EAGER, target_stream=stream), **settings), batch)
        assert losses.das.item() == 0.0 and losses.das.requires_grad and losses.sds.item() > 0
        assert 0 < losses.metrics["cos"].item() < 1
    assert kinds == [None, None], "a stream without a kind has no loss"
    _, losses = kit.run(kit.build(model, replace(EAGER, vocab_kl=forbidden), lambda_sds=0.0), batch)
    assert losses.sds.item() == 0.0 and losses.das.item() > 0


@pytest.mark.parametrize(
    "settings", [{"enabled": False}, {"lambda_das": 0.0, "lambda_sds": 0.0}, {"direction": "off", "lambda_sds": 0.0}]
)
def test_nothing_is_tapped_when_there_is_nothing_to_compute(settings: dict[str, Any]) -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    supervision = kit.build(model, **settings)
    assert not supervision.active and supervision.lambdas(0, 10) == (0.0, 0.0)
    with kit.capturing(supervision, batch) as captured:
        assert not any(m._forward_hooks for m in model.modules())
        assert model.model.language_model.config._attn_implementation == "sdpa"
        model(**kit.inputs(batch))
    losses = supervision.losses(captured)
    assert losses.das.item() == losses.sds.item() == 0.0


def test_layer_counts() -> None:
    assert [supervised_layers(x, 32) for x in (16, 0.5, 1, 1.0, 32, 0.01)] == [16, 16, 1, 32, 32, 1]
    assert supervised_layers(0.5, 5) == 2 and supervised_layers(0.29, 100) == 29
    with pytest.raises(UserError, match=r"supervision\.layers: K = 33, but the LLM has 32 layers"):
        supervised_layers(33, 32)
    for bad in (0, -1):
        with pytest.raises(UserError, match=f"K = {bad} layers .* at least 1"):
            supervised_layers(bad, 32)
    for bad in (0.0, 1.5, 16.0, -0.5):
        with pytest.raises(UserError, match=r"supervision\.layers: give a fraction .*found"):
            supervised_layers(bad, 32)


def test_layer_weights() -> None:
    assert layer_weights("quadratic", 3) == pytest.approx([1 / 14, 4 / 14, 9 / 14])
    assert layer_weights("decreasing", 3) == pytest.approx([9 / 14, 4 / 14, 1 / 14])
    assert layer_weights("linear", 3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert layer_weights("constant", 4) == [0.25] * 4


def test_lambdas_warm_up_and_rest() -> None:
    model = kit.tiny_llava()
    supervision = kit.build(model, warmup_ratio=0.1, every_n_steps=2, lambda_das=2.0, lambda_sds=0.5)
    steps = [supervision.lambdas(step, 80) for step in range(12)]
    assert steps[0] == (0.0, 0.0) and steps[4] == (1.0, 0.25) and steps[8] == steps[10] == (2.0, 0.5)
    assert all(pair == (0.0, 0.0) for pair in steps[1::2])
    assert kit.build(model).lambdas(0, 10) == (1.0, 0.01)
    assert kit.build(model, warmup_ratio=0.5).lambdas(1, 3) == (0.5, 0.005), "a step and a half are two"
    assert kit.build(model, direction="off").lambdas(3, 10) == (0.0, 0.01)


def test_refused_kernels_are_advised_once() -> None:
    with pytest.raises(UserError) as here:
        choose_kernels("triton", torch.device("cpu"), print)
    assert str(here.value).startswith("kernels: the Triton kernels were asked for and can't run here: ")
    assert str(here.value).count("set kernels to auto or reference") == 1
    with pytest.raises(KernelUnavailable) as later:
        require("vocab_kl", "its tensors are on cpu, not a GPU")
    assert kernels_refused(later.value) == (
        "kernels: the Triton kernel of vocab_kl can't run: its tensors are on cpu, not a GPU; "
        "set kernels to auto or reference"
    )


def test_other_refusals_name_the_key() -> None:
    model = kit.tiny_llava()
    with pytest.raises(UserError, match=r"supervision\.layers: K = 9.*4 layers"):
        kit.build(model, layers=9)
    with pytest.raises(UserError, match="40 rows"):
        Supervision(find_parts(model), SupervisionSection(), vocabulary_ids=torch.arange(50), operations=EAGER)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(kit.VOCAB, kit.WIDTH, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="quantised"):
        kit.build(model, vocabulary="lm_head")
    model.model.language_model.config.layer_types = ["full_attention", "chunked_attention"] * 2
    with pytest.raises(UserError, match=r"chunked_attention.*supervision\.token_weights"):
        kit.build(model)
    kit.build(model, token_weights=0.5)
