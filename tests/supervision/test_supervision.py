"""The oracle: BASIC through the taps, in float32, against BASIC by the book, in float64."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from basic_lite.errors import UserError
from basic_lite.model.llava import BasicLlavaForConditionalGeneration
from basic_lite.model.parts import find_parts
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision import Capture, Supervision, SupervisionLosses, choose_kernels
from basic_lite.supervision.metrics import nearest_special_share
from basic_lite.supervision.patch_weights import patch_weights
from basic_lite.supervision.target import layer_weights, supervised_layers
from basic_lite_kernels.eager_direction_loss import EagerTargetStream
from basic_lite_kernels.operations import EAGER
from tests.support.supervision import (
    IMAGE,
    LAYERS,
    PATCHES,
    VOCAB,
    WIDTH,
    build,
    error,
    grad_error,
    inputs,
    oracle,
    set_checkpointing,
    tiny_batch,
    tiny_llava,
    word_ids,
)

torch.set_num_threads(1)

TOLERANCE = 1e-5
SWITCHES: list[dict[str, Any]] = [
    {},
    {"layers": 1},
    {"layers": 0.75},
    {"layers": LAYERS},
    {"layer_weights": "linear"},
    {"layer_weights": "constant"},
    {"layer_weights": "decreasing"},
    {"detach": False},
    {"detach": False, "target_norm": "final", "layers": LAYERS, "direction": "mse", "vocabulary": "lm_head"},
    {"target_norm": "final"},
    {"token_weights": "uniform"},
    {"token_weights": 0.6},
    {"text_queries": "prompt"},
    {"text_queries": "response"},
    {"direction": "mse"},
    {"vocabulary": "lm_head"},
    {"temperature": 2.5},
]


def run(supervision: Supervision, batch: dict[str, Tensor], **how: Any) -> tuple[Capture, SupervisionLosses]:
    with supervision.capture(supervision.layout(batch)) as captured:
        supervision.parts.model(**inputs(batch), use_cache=False)
    return captured, supervision.losses(captured, **how)


def capturing(supervision: Supervision, batch: dict[str, Tensor]) -> AbstractContextManager[Capture]:
    return supervision.capture(supervision.layout(batch))


def projector_grad(model: Any, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.model.multi_modal_projector.parameters()), retain_graph=True))


def assert_matches_oracle(model: Any, batch: dict[str, Tensor], checkpointing: bool = False, **settings: Any) -> None:
    supervision = build(model, **settings)
    set_checkpointing(model, checkpointing)
    captured, losses = run(supervision, batch)
    truth = oracle(model, batch, supervision.settings)
    assert captured.v is not None and captured.target is not None
    assert captured.v.dtype == captured.target.dtype == torch.float32
    errors = {
        "v": error(captured.v, truth.v),
        "target": error(captured.target, truth.target),
        "weights": error(patch_weights(captured, supervision.settings.token_weights, None), truth.weights),
        "das": error(losses.das, truth.das),
        "sds": error(losses.sds, truth.sds),
        "das gradient": grad_error(projector_grad(model, losses.das), truth.das_grad),
        "sds gradient": grad_error(projector_grad(model, losses.sds), truth.sds_grad),
    }
    if supervision.reads_attention:
        errors["masses"] = error(supervision.masses(captured), truth.masses)
    assert all(value <= TOLERANCE for value in errors.values()), errors


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("settings", SWITCHES, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()) or "default")
def test_oracle_for_every_switch(settings: dict[str, Any], checkpointing: bool) -> None:
    """The batch has one image, two images, a text-only row and a sample without text after its image."""
    side = "left" if checkpointing else "right"
    assert_matches_oracle(tiny_llava(), tiny_batch(padding_side=side), checkpointing, **settings)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    ("kind", "attention"),
    # gemma2 caps its scores, which transformers' sdpa refuses.
    [
        *product(["llama", "mistral", "phi3", "gemma", "qwen2", "qwen3"], ["sdpa", "eager"]),
        ("gemma2", "eager"),
    ],
)
def test_oracle_for_every_llm(kind: str, attention: str, padding_side: str) -> None:
    assert_matches_oracle(tiny_llava(kind, attention=attention), tiny_batch(padding_side=padding_side), layers=3)


def test_oracle_where_everything_is_small() -> None:
    """A fresh model: nearly flat distributions, v close to v̂, where float32 differences lose their digits."""
    model = tiny_llava()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.08)
    assert_matches_oracle(model, tiny_batch("image"))


def test_total_gradient_with_the_lm_loss() -> None:
    model, batch = tiny_llava(cls=BasicLlavaForConditionalGeneration), tiny_batch(padding_side="left")
    supervision = build(model)
    set_checkpointing(model, True)
    with supervision.capture(supervision.layout(batch)) as captured:
        lm = model(**batch).loss
    losses = supervision.losses(captured)
    grads = projector_grad(model, lm + losses.das + 0.01 * losses.sds)
    truth = oracle(model, batch, supervision.settings)
    exact = tiny_llava(cls=BasicLlavaForConditionalGeneration).double()
    given = {k: (x.double() if x.is_floating_point() else x) for k, x in batch.items()}
    lm_grads = projector_grad(exact, exact(**given).loss)
    total = [a + b + 0.01 * c for a, b, c in zip(lm_grads, truth.das_grad, truth.sds_grad, strict=True)]
    assert grad_error(grads, total) <= TOLERANCE


# ---- one step, however it is cut


@pytest.mark.parametrize("token_weights", ["attention", "uniform", 0.4])
def test_micro_batches_add_up(token_weights: Any) -> None:
    model = tiny_llava()
    supervision = build(model, token_weights=token_weights)
    batch = tiny_batch(padding_side="left")
    _, whole = run(supervision, batch)

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
            with torch.no_grad(), supervision.capture(supervision.layout(part), weights_only=True) as captured:
                model(**inputs(part), use_cache=False)
            assert captured.v is None and captured.target is None
            masses.append(supervision.masses(captured))
        mean_mass = float(torch.cat(masses).mean())
    pieces = [run(supervision, part, samples_with_image=3, mean_mass=mean_mass)[1] for part in parts]
    assert [p.samples for p in pieces] == [1, 1, 0, 1] and whole.samples == 3
    for name in ("das", "sds"):
        total = sum(getattr(p, name) for p in pieces)
        assert error(total, getattr(whole, name).detach().double()) < 2e-6
        truth = [g.double() for g in projector_grad(model, getattr(whole, name))]
        assert grad_error(projector_grad(model, total), truth) < 5e-6


def test_a_batch_without_images_gives_exact_zeros_with_a_graph() -> None:
    model = tiny_llava()
    supervision = build(model)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight[0, 0] = torch.inf  # even then
    captured, losses = run(supervision, tiny_batch("text"), samples_with_image=5)
    assert losses.samples == 0 and losses.metrics == {} and captured.v is None
    (losses.das + losses.sds).backward()
    for parameter in model.model.multi_modal_projector.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert losses.das.item() == losses.sds.item() == 0.0
    assert supervision.masses(captured).numel() == 0


def test_a_lambda_of_zero_computes_nothing() -> None:
    model, batch = tiny_llava(), tiny_batch()
    kinds: list[str | None] = []

    def stream(kind: Any) -> EagerTargetStream:
        kinds.append(kind)
        return EagerTargetStream(kind)

    def forbidden(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("computed for nothing")

    for settings in ({"lambda_das": 0.0}, {"direction": "off"}):
        _, losses = run(build(model, replace(EAGER, target_stream=stream), **settings), batch)
        assert losses.das.item() == 0.0 and losses.das.requires_grad and losses.sds.item() > 0
        assert 0 < losses.metrics["cos"].item() < 1
    assert kinds == [None, None], "a stream without a kind has no loss"
    _, losses = run(build(model, replace(EAGER, vocab_kl=forbidden), lambda_sds=0.0), batch)
    assert losses.sds.item() == 0.0 and losses.das.item() > 0


@pytest.mark.parametrize(
    "settings",
    [{"enabled": False}, {"lambda_das": 0.0, "lambda_sds": 0.0}, {"direction": "off", "lambda_sds": 0.0}],
)
def test_nothing_is_tapped_when_there_is_nothing_to_compute(settings: dict[str, Any]) -> None:
    model, batch = tiny_llava(), tiny_batch()
    supervision = build(model, **settings)
    assert not supervision.active and supervision.lambdas(0, 10) == (0.0, 0.0)
    with supervision.capture(supervision.layout(batch)) as captured:
        assert not any(m._forward_hooks for m in model.modules())
        assert model.model.language_model.config._attn_implementation == "sdpa"
        model(**inputs(batch))
    losses = supervision.losses(captured)
    assert losses.das.item() == losses.sds.item() == 0.0


# ---- what taps must not do


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
    model, batch = tiny_llava(kind, attention=attention), tiny_batch(padding_side=padding_side)
    supervision = build(model)
    plain = model(**inputs(batch), use_cache=False).logits
    before = hooks_and_names(model)  # after transformers has put hooks of its own on the vision tower
    with supervision.capture(supervision.layout(batch)) as captured:
        assert hooks_and_names(model)[2] == before[2], "the vision tower is none of the taps' business"
        assert hooks_and_names(model)[1] != before[1]
        tapped = model(**inputs(batch), use_cache=False).logits
        assert hooks_and_names(model)[1] == before[1], "taps close when the LLM returns"
    assert torch.equal(plain, tapped)
    assert hooks_and_names(model) == before
    assert torch.equal(plain, model(**inputs(batch), use_cache=False).logits)
    first = supervision.losses(captured)
    again = run(supervision, batch)[1]
    assert torch.equal(first.das, again.das) and torch.equal(first.sds, again.sds)


def test_generation_is_the_same_before_and_after() -> None:
    model = tiny_llava()
    batch = {k: v for k, v in tiny_batch("image", padding_side="left").items() if k != "labels"}
    before = model.generate(**batch, max_new_tokens=6, do_sample=False)
    run(build(model), batch)
    assert torch.equal(before, model.generate(**batch, max_new_tokens=6, do_sample=False))
    with capturing(build(model), batch) as captured:  # a cache that starts empty is no hindrance
        model(**batch, use_cache=True)
    assert captured.closed


def test_a_forward_that_fails_leaves_no_trace() -> None:
    model, batch = tiny_llava(), tiny_batch()
    model(**inputs(batch))
    before = hooks_and_names(model)
    broken = {**inputs(batch), "pixel_values": batch["pixel_values"][:1]}
    with pytest.raises(ValueError, match="do not match"), capturing(build(model), batch):
        model(**broken)
    assert hooks_and_names(model) == before


def test_backward_inside_the_context_finds_the_taps_closed() -> None:
    model, batch = tiny_llava(), tiny_batch()
    set_checkpointing(model, True)
    supervision = build(model)
    with supervision.capture(supervision.layout(batch)) as captured:
        logits = model(**inputs(batch), use_cache=False).logits
        mass, target = captured.mass, captured.target
        assert mass is not None and target is not None
        kept = mass.clone(), target.clone()
        logits.sum().backward()
    assert torch.equal(kept[0], mass) and torch.equal(kept[1], target) and captured.attended == 2


def test_losses_without_a_forward_are_refused() -> None:
    model, batch = tiny_llava(), tiny_batch()
    supervision = build(model)
    with supervision.capture(supervision.layout(batch)) as captured:
        pass
    with pytest.raises(RuntimeError, match="inside"):
        supervision.losses(captured)


class Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.made[tuple(value.shape)] += 1
        return out


def test_no_map_no_logits_no_stack_of_hidden_states() -> None:
    """What taps and losses make beyond the model's own tensors, with chunks small enough to matter."""
    model, batch = tiny_llava(), tiny_batch()
    T, M = batch["input_ids"].shape[1], int((batch["input_ids"] == IMAGE).sum())
    supervision = build(model, replace(EAGER, vocab_kl=partial(EAGER.vocab_kl, chunk_rows=5)))
    with Shapes() as plain:
        model(**inputs(batch), use_cache=False)
    with Shapes() as tapped:
        _, losses = run(supervision, batch)
        (losses.das + losses.sds).backward()
    extra = tapped.made - plain.made
    assert extra, "the comparison sees something"
    assert not [s for s in extra if s[-2:] == (T, T)], "attention map"
    own = [(VOCAB, WIDTH), (WIDTH, supervision.vocabulary.rows)]  # E and its transpose, views both
    assert not [s for s in extra if len(s) == 2 and s[0] >= M and s[1] > WIDTH and s not in own], "[M, V]"
    rows = [s for s in extra if s[-2:] == (M, WIDTH)]
    assert all(len(s) == 2 for s in rows), "stacked layers"


# ---- precision


@pytest.mark.parametrize("how", ["bf16 model", "bf16 autocast"])
def test_bf16_hidden_states_and_float32_v(how: str) -> None:
    model, batch = tiny_llava(cls=BasicLlavaForConditionalGeneration), tiny_batch(padding_side="left")
    truth = oracle(model, batch, SupervisionSection())
    given = dict(batch)
    if how == "bf16 model":
        model.model.language_model.bfloat16()
        model.model.vision_tower.bfloat16()
        model.lm_head.bfloat16()
        given["pixel_values"] = batch["pixel_values"].bfloat16()
    supervision = build(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "bf16 autocast"):
        with supervision.capture(supervision.layout(batch)) as captured:
            model(**given)
        losses = supervision.losses(captured)
    assert captured.v is not None and captured.target is not None and captured.mass is not None
    for value in (captured.v, captured.target, captured.mass, losses.das, losses.sds):
        assert value.dtype == torch.float32
    assert error(losses.das, truth.das) < 0.03 and error(losses.sds, truth.sds) < 0.05
    grads = projector_grad(model, losses.das + losses.sds)
    assert grad_error(grads, [a + b for a, b in zip(truth.das_grad, truth.sds_grad, strict=True)]) < 0.08
    # The losses themselves, given what was captured, are float32 throughout.
    table = supervision.vocabulary.table.double()[~supervision.vocabulary.excluded]
    log_p, log_q = (torch.log_softmax(x.detach().double() @ table.T, 1) for x in (captured.target, captured.v))
    weights = patch_weights(captured, "attention", None).double()
    assert error(losses.sds, (weights * (log_p.exp() * (log_p - log_q)).sum(1)).sum() / 3) < 2e-6


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
    model, batch = tiny_llava(), tiny_batch(padding_side="left")
    truth = oracle(model, batch, SupervisionSection())
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    supervision = build(model)
    captured, losses = run(supervision, batch)
    assert calls == list(range(LAYERS))
    assert error(patch_weights(captured, "attention", None), truth.weights) < TOLERANCE
    assert error(losses.das, truth.das) < TOLERANCE


# ---- switches


def test_layer_counts() -> None:
    assert [supervised_layers(x, 32) for x in (16, 0.5, 1, 1.0, 32, 0.01)] == [16, 16, 1, 32, 32, 1]
    assert supervised_layers(0.5, 5) == 2 and supervised_layers(0.29, 100) == 29
    for bad in (0, -1, 33, 0.0, 1.5, 16.0, -0.5):
        with pytest.raises(UserError, match=r"supervision\.layers.*32"):
            supervised_layers(bad, 32)


def test_layer_weights() -> None:
    assert layer_weights("quadratic", 3) == pytest.approx([1 / 14, 4 / 14, 9 / 14])
    assert layer_weights("decreasing", 3) == pytest.approx([9 / 14, 4 / 14, 1 / 14])
    assert layer_weights("linear", 3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert layer_weights("constant", 4) == [0.25] * 4


def test_lambdas_warm_up_and_rest() -> None:
    model = tiny_llava()
    supervision = build(model, warmup_ratio=0.1, every_n_steps=2, lambda_das=2.0, lambda_sds=0.5)
    steps = [supervision.lambdas(step, 80) for step in range(12)]
    assert steps[0] == (0.0, 0.0) and steps[4] == (1.0, 0.25) and steps[8] == steps[10] == (2.0, 0.5)
    assert all(pair == (0.0, 0.0) for pair in steps[1::2])
    assert build(model).lambdas(0, 10) == (1.0, 0.01)
    assert build(model, direction="off").lambdas(3, 10) == (0.0, 0.01)


# ---- vocabulary


def test_vocabulary_leaves_out_rows_that_are_no_words() -> None:
    vocabulary = build(tiny_llava()).vocabulary
    assert vocabulary.rows == 33 and vocabulary.excluded is not None
    assert vocabulary.excluded.nonzero().flatten().tolist() == [IMAGE, 11]
    weight = vocabulary._module.weight
    assert isinstance(weight, Tensor) and vocabulary.table.data_ptr() == weight.data_ptr(), "a slice, not a copy"
    words = weight[[i for i in word_ids().tolist() if i != IMAGE]]
    assert torch.allclose(vocabulary.mean_norm(), words.norm(dim=1).mean())
    parts = find_parts(tiny_llava())
    whole = Supervision(parts, SupervisionSection(), vocabulary_ids=torch.arange(IMAGE), operations=EAGER).vocabulary
    assert whole.excluded is None and whole.rows == IMAGE


def test_gemma_embeddings_count_as_the_llm_sees_them() -> None:
    model = tiny_llava("gemma")
    vocabulary = build(model).vocabulary
    seen = model.get_input_embeddings()(word_ids())
    assert vocabulary.scale == pytest.approx(WIDTH**0.5, rel=1e-6)
    assert torch.allclose(vocabulary.scale * vocabulary.table[word_ids()], seen)
    assert build(model, vocabulary="lm_head").vocabulary.scale == 1.0
    model.bfloat16()
    assert build(model).vocabulary.scale == pytest.approx(WIDTH**0.5, rel=2**-7)


def test_nearest_word_is_the_cosine_search() -> None:
    vocabulary = build(tiny_llava()).vocabulary
    rows = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(3))
    words = torch.tensor([i for i in word_ids().tolist() if i != IMAGE])
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], vocabulary.table[words][None], dim=2)
    assert torch.equal(vocabulary.nearest(rows), words[cosine.argmax(1)])
    special = words[:9]
    share = nearest_special_share(rows, vocabulary, special)
    assert share.item() == pytest.approx((torch.isin(words[cosine.argmax(1)], special)).float().mean().item())


@pytest.mark.parametrize("table,target", [("input_embeddings", "embed_tokens"), ("lm_head", "lm_head")])
def test_lora_on_a_vocabulary_table_is_refused(table: str, target: str) -> None:
    model = tiny_llava()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[target]), model)
    with pytest.raises(UserError, match=r"LoRA on a vocabulary table.*lora\.targets"):
        build(model, vocabulary=table)
    other = "lm_head" if table == "input_embeddings" else "input_embeddings"
    build(model, vocabulary=other)
    build(model, vocabulary=table, enabled=False)


def test_other_refusals_name_the_key() -> None:
    model = tiny_llava()
    with pytest.raises(UserError, match=r"supervision\.layers is 9.*4 layers"):
        build(model, layers=9)
    with pytest.raises(UserError, match="set kernels to auto or reference"):
        choose_kernels("triton", torch.device("cpu"), print)
    with pytest.raises(UserError, match="40 rows"):
        Supervision(find_parts(model), SupervisionSection(), vocabulary_ids=torch.arange(50), operations=EAGER)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCAB, WIDTH, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="quantised"):
        build(model, vocabulary="lm_head")
    model.model.language_model.config.layer_types = ["full_attention", "chunked_attention"] * 2
    with pytest.raises(UserError, match=r"chunked_attention.*supervision\.token_weights"):
        build(model)
    build(model, token_weights=0.5)


# ---- metrics


def test_metrics_are_what_they_say() -> None:
    model, batch = tiny_llava(), tiny_batch()
    supervision = build(model)
    captured, _ = run(supervision, batch)
    metrics = supervision.losses(captured, detailed=True).metrics
    v, target = captured.v, captured.target
    assert v is not None and target is not None
    v = v.detach()
    weights = patch_weights(captured, "attention", None)
    cosine = torch.nn.functional.cosine_similarity
    pairwise = []
    for rows in v.split([PATCHES, 2 * PATCHES, PATCHES]):
        grid = cosine(rows[:, None], rows[None], dim=2)
        pairwise.append(grid[~torch.eye(len(rows), dtype=torch.bool)].mean())
    expected = {
        "sum_a": weights.sum() / 3,
        "cos": cosine(v, target).mean(),
        "pairwise_cos": torch.stack(pairwise).mean(),
        "norm_to_target": v.norm(dim=1).mean() / target.norm(dim=1).mean(),
        "norm_to_vocabulary": v.norm(dim=1).mean() / supervision.vocabulary.mean_norm(),
        "nearest_special_share": torch.isin(supervision.vocabulary.nearest(v), torch.tensor([0, 1, 2])).float().mean(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        assert metrics[name].item() == pytest.approx(value.item(), abs=1e-6), name
        assert not metrics[name].requires_grad
    assert 0 < metrics["sum_a"].item() <= 1
