"""What taps must not do: leave traces, change the model, keep maps or layers; and what types they keep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision.patch_weights import patch_weights
from basic_lite_kernels.operations import EAGER
from tests.support import supervision as kit
from tests.support.kernels import MadeShapes

torch.set_num_threads(1)

TOLERANCE = 1e-5


def hooks_and_names(model: Any) -> tuple[int, str, str]:
    return (
        sum(len(m._forward_hooks) for m in model.modules()),
        model.model.language_model.config._attn_implementation,
        model.model.vision_tower.config._attn_implementation,
    )


@pytest.mark.parametrize(
    "kind,attention", [("llama", "sdpa"), ("llama", "eager"), ("mistral", "sdpa"), ("gemma2", "eager")]
)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_taps_leave_no_trace(kind: str, attention: str, padding_side: str) -> None:
    model, batch = kit.tiny_llava(kind, attention=attention), kit.tiny_batch(padding_side=padding_side)
    supervision = kit.build(model)
    plain = model(**kit.inputs(batch), use_cache=False).logits
    before = hooks_and_names(model)  # after transformers has put hooks of its own on the vision tower
    with kit.capturing(supervision, batch) as captured:
        assert hooks_and_names(model)[2] == before[2], "the vision tower is none of the taps' business"
        assert hooks_and_names(model)[1] != before[1]
        tapped = model(**kit.inputs(batch), use_cache=False).logits
        assert hooks_and_names(model)[1] == before[1], "taps close when the LLM returns"
    assert torch.equal(plain, tapped)
    assert hooks_and_names(model) == before
    assert torch.equal(plain, model(**kit.inputs(batch), use_cache=False).logits)
    first = supervision.losses(captured)
    again = kit.run(supervision, batch)[1]
    assert torch.equal(first.das, again.das) and torch.equal(first.sds, again.sds)


def test_generation_is_the_same_before_and_after() -> None:
    model = kit.tiny_llava()
    batch = {k: v for k, v in kit.tiny_batch("image", padding_side="left").items() if k != "labels"}
    before = model.generate(**batch, max_new_tokens=6, do_sample=False)
    kit.run(kit.build(model), batch)
    assert torch.equal(before, model.generate(**batch, max_new_tokens=6, do_sample=False))
    with kit.capturing(kit.build(model), batch) as captured:  # a cache that starts empty is no hindrance
        model(**batch, use_cache=True)
    assert captured.closed


def test_a_forward_that_fails_leaves_no_trace() -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    model(**kit.inputs(batch))
    before = hooks_and_names(model)
    broken = {**kit.inputs(batch), "pixel_values": batch["pixel_values"][:1]}
    with pytest.raises(ValueError, match="do not match"), kit.capturing(kit.build(model), batch):
        model(**broken)
    assert hooks_and_names(model) == before


def test_backward_inside_the_context_finds_the_taps_closed() -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    kit.set_checkpointing(model, True)
    supervision = kit.build(model)
    with kit.capturing(supervision, batch) as captured:
        logits = model(**kit.inputs(batch), use_cache=False).logits
        mass, target = captured.mass, captured.target
        assert mass is not None and target is not None
        kept = mass.clone(), target.clone()
        logits.sum().backward()
    assert torch.equal(kept[0], mass) and torch.equal(kept[1], target) and captured.attended == 2


def test_losses_without_a_forward_are_refused() -> None:
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    supervision = kit.build(model)
    with kit.capturing(supervision, batch) as captured:
        pass
    with pytest.raises(RuntimeError, match="inside"):
        supervision.losses(captured)


@pytest.mark.parametrize("settings", [{}, {"target_norm": "layer", "sinks": "drop"}], ids=["", "robust"])
def test_no_map_no_logits_no_stack_of_hidden_states(settings: dict[str, Any]) -> None:
    """What taps and losses make beyond the model's own tensors, with chunks small enough to matter."""
    model, batch = kit.tiny_llava(), kit.tiny_batch()
    T, M = batch["input_ids"].shape[1], int((batch["input_ids"] == kit.IMAGE).sum())
    supervision = kit.build(model, replace(EAGER, vocab_kl=partial(EAGER.vocab_kl, chunk_rows=5)), **settings)
    with MadeShapes() as plain:
        model(**kit.inputs(batch), use_cache=False)
    with MadeShapes() as tapped:
        _, losses = kit.run(supervision, batch)
        (losses.das + losses.sds).backward()
    extra = tapped.shapes - plain.shapes
    assert extra, "the comparison sees something"
    assert not [s for s in extra if s[-2:] == (T, T)], "attention map"
    own = [(kit.VOCAB, kit.WIDTH), (kit.WIDTH, supervision.vocabulary.rows)]  # E and its transpose, views both
    assert not [s for s in extra if len(s) == 2 and s[0] >= M and s[1] > kit.WIDTH and s not in own], "[M, V]"
    rows = [s for s in extra if s[-2:] == (M, kit.WIDTH)]
    assert all(len(s) == 2 for s in rows), "stacked layers"


@pytest.mark.parametrize("how", ["bf16 model", "bf16 autocast"])
def test_bf16_hidden_states_and_float32_v(how: str) -> None:
    model, batch = kit.tiny_llava(cls=BasicLlavaForConditionalGeneration), kit.tiny_batch(padding_side="left")
    truth = kit.oracle(model, batch, SupervisionSection())
    given = dict(batch)
    if how == "bf16 model":
        model.model.language_model.bfloat16()
        model.model.vision_tower.bfloat16()
        model.lm_head.bfloat16()
        given["pixel_values"] = batch["pixel_values"].bfloat16()
    supervision = kit.build(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "bf16 autocast"):
        with kit.capturing(supervision, batch) as captured:
            model(**given)
        losses = supervision.losses(captured)
    assert captured.v is not None and captured.target is not None and captured.mass is not None
    for value in (captured.v, captured.target, captured.mass, losses.das, losses.sds):
        assert value.dtype == torch.float32
    assert kit.error(losses.das, truth.das) < 0.03 and kit.error(losses.sds, truth.sds) < 0.05
    grads = kit.projector_grad(model, losses.das + losses.sds)
    assert kit.grad_error(grads, [a + b for a, b in zip(truth.das_grad, truth.sds_grad, strict=True)]) < 0.08
    # The losses themselves, given what was captured, are float32 throughout.
    table = supervision.vocabulary.table.double()[~supervision.vocabulary.excluded]
    log_p, log_q = (torch.log_softmax(x.detach().double() @ table.T, 1) for x in (captured.target, captured.v))
    weights = patch_weights(captured, "attention", None).double()
    assert kit.error(losses.sds, (weights * (log_p.exp() * (log_p - log_q)).sum(1)).sum() / 3) < 2e-6


def test_flash_attention_keeps_its_name_and_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for flash-attn, which needs a GPU: it reads its name from the config, its mask is [B, T]."""
    calls = []

    def flash(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
        assert module.config._attn_implementation == "flash_attention_2"
        assert mask is not None and mask.dim() == 2
        T = query.shape[2]
        seen = torch.ones(T, T, dtype=torch.bool).tril() & mask.bool()[:, None, None]
        calls.append(module.layer_idx)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, seen, scaling=options["scaling"])

    monkeypatch.setitem(type(ALL_ATTENTION_FUNCTIONS)._global_mapping, "flash_attention_2", flash)
    model, batch = kit.tiny_llava(), kit.tiny_batch(padding_side="left")
    truth = kit.oracle(model, batch, SupervisionSection())
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    supervision = kit.build(model)
    captured, losses = kit.run(supervision, batch)
    assert calls == list(range(kit.LAYERS))
    assert kit.error(patch_weights(captured, "attention", None), truth.weights) < TOLERANCE
    assert kit.error(losses.das, truth.das) < TOLERANCE
