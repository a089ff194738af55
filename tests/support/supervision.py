"""Tiny random LLaVA models, batches that hold every awkward case, and BASIC the naive way, in float64."""

from __future__ import annotations

import copy
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from basic_lite.model.parts import find_parts
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision import Capture, Supervision, SupervisionLosses
from basic_lite.supervision.target import TargetPlan
from basic_lite_kernels.operations import EAGER, Operations

VOCAB = 40  # rows of the table
WORDS = 33  # ids the tokenizer has, the image token among them; the rest pads the table
IMAGE = 7
PATCHES = 4  # N of one image, a square
WIDTH = 32  # D
LAYERS = 4  # L
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llm_config(kind: str) -> PreTrainedConfig:
    """Every family the recipes name, with grouped-query attention and what is special about it."""
    if kind == "llama":
        return LlamaConfig(**COMMON)
    if kind == "mistral":
        return MistralConfig(**COMMON, sliding_window=5)
    if kind == "phi3":
        return Phi3Config(**COMMON, sliding_window=6)
    if kind == "gemma":
        return GemmaConfig(**COMMON, head_dim=8)
    if kind == "gemma2":  # softcapped scores, alternating sliding and full layers
        return Gemma2Config(
            **COMMON, head_dim=8, sliding_window=5, attn_logit_softcapping=2.0, query_pre_attn_scalar=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )  # fmt: skip
    if kind == "gemma3":  # scaled embeddings, normed queries and keys, sliding layers with another RoPE
        return Gemma3TextConfig(
            **COMMON, head_dim=8, sliding_window=5, query_pre_attn_scalar=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
        )  # fmt: skip
    if kind == "qwen2":  # sliding in some layers only
        return Qwen2Config(
            **COMMON, use_sliding_window=True, sliding_window=5,
            layer_types=["full_attention", "sliding_attention", "full_attention", "full_attention"],
        )  # fmt: skip
    if kind == "qwen3":
        return Qwen3Config(**COMMON, head_dim=8)
    raise ValueError(kind)


def tiny_llava(
    kind: str = "llama",
    *,
    attention: str = "sdpa",
    seed: int = 0,
    cls: type[LlavaForConditionalGeneration] = LlavaForConditionalGeneration,
) -> LlavaForConditionalGeneration:
    """A random model in float32, weights large enough that attention and logits are far from flat."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8,
        patch_size=8 // math.isqrt(PATCHES),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=llm_config(kind), image_token_id=IMAGE, image_seq_length=PATCHES,
        vision_feature_layer=-1,
    )  # fmt: skip
    model = cls(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    model.model.language_model.set_attn_implementation(attention)
    return model.eval()


class WithSinks(nn.Module):
    """A projector whose second token of each image is thirty times as long."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, features: Tensor) -> Tensor:
        """[images, N, D_vision] → [images, N, D]."""
        out: Tensor = self.projector(features)
        scale = torch.ones(PATCHES, dtype=out.dtype)
        scale[1] = 30
        return out * scale.unsqueeze(1)


def tiny_batch(rows: str = "full", *, padding_side: str = "right", seed: int = 0) -> dict[str, Tensor]:
    """``full``: one image; two images; text only; no text after the image (n = 0). ``text``: no image."""
    generator = torch.Generator().manual_seed(seed)

    def text(count: int) -> list[int]:
        words = [i for i in range(3, WORDS) if i != IMAGE]
        return [words[i] for i in torch.randint(len(words), (count,), generator=generator).tolist()]

    image = [IMAGE] * PATCHES
    samples = {
        "full": [text(2) + image + text(5), text(1) + image + text(3) + image + text(4), text(6), text(3) + image],
        "image": [text(1) + image + text(4), text(2) + image + text(6)],
        "text": [text(6), text(9)],
    }[rows]
    width = max(map(len, samples))
    ids, mask, labels = [], [], []
    for sample in samples:
        pad = width - len(sample)
        supervised = [-100] * (len(sample) - 2) + sample[-2:]
        if sample[-1] == IMAGE:
            supervised = [-100] * len(sample)
        row = (sample, [1] * len(sample), supervised)
        fill = ([0] * pad, [0] * pad, [-100] * pad)
        for out, own, filler in zip((ids, mask, labels), row, fill, strict=True):
            out.append(filler + own if padding_side == "left" else own + filler)
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(labels)}
    images = int((batch["input_ids"] == IMAGE).sum()) // PATCHES
    if images:
        batch["pixel_values"] = torch.randn(images, 3, 8, 8, generator=generator)
    return batch


def word_ids() -> Tensor:
    """Ids the tiny tokenizer would have: the image token inside, and one hole."""
    return torch.tensor([i for i in range(WORDS) if i != 11])


def build(model: LlavaForConditionalGeneration, operations: Operations = EAGER, **settings: Any) -> Supervision:
    """A Supervision of a tiny model."""
    parts, section = find_parts(model), SupervisionSection(**settings)
    return Supervision(parts, section, vocabulary_ids=word_ids(), special_ids=[0, 1, 2], operations=operations)


def set_checkpointing(model: LlavaForConditionalGeneration, on: bool) -> None:
    """Non-re-entrant gradient checkpointing, which works in training mode only (nothing here has dropout)."""
    model.train(on)
    if on:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model's forward takes."""
    return {k: v for k, v in batch.items() if k != "labels"}


@dataclass
class Truth:
    """BASIC by the book, float64."""

    das: Tensor
    sds: Tensor
    weights: Tensor  # [M]
    v: Tensor  # [M, D]
    target: Tensor  # [M, D]
    masses: Tensor  # [S]
    sinks: int  # visual tokens that count as one and were dropped
    das_grad: list[Tensor]
    sds_grad: list[Tensor]


def oracle(
    model: LlavaForConditionalGeneration,
    batch: dict[str, Tensor],
    settings: SupervisionSection,
    plan: TargetPlan | None = None,
) -> Truth:
    """From output_hidden_states and eager output_attentions, one unpadded sample and token at a time.

    ``plan``: the layers, where they aren't those of the settings.
    """
    exact = copy.deepcopy(model).double().eval()
    set_checkpointing(exact, False)
    exact.model.language_model.set_attn_implementation("eager")
    norm = exact.model.language_model.norm
    seen: dict[str, Tensor] = {}
    exact.model.multi_modal_projector.register_forward_hook(lambda m, a, out: seen.update(v=out.flatten(0, 1)))
    norm.register_forward_pre_hook(lambda m, a: seen.update(last=a[0]))  # hidden_states[L] is normed
    plan = plan or plan_of(settings)
    layers = len(plan.layer_weights)

    v, target, attended, sunk = [], [], [], []  # per sample
    image = 0
    for row in range(batch["input_ids"].shape[0]):
        kept = batch["attention_mask"][row].bool()
        ids, labels = batch["input_ids"][row][kept], batch["labels"][row][kept]
        where = [t for t in range(len(ids)) if ids[t] == IMAGE]
        if not where:
            continue
        images = len(where) // PATCHES
        pixels = batch["pixel_values"][image : image + images].double()
        image += images
        out = exact(
            input_ids=ids[None], pixel_values=pixels, output_hidden_states=True, output_attentions=True, use_cache=False
        )
        queries = [
            j
            for j in range(where[0] + 1, len(ids))
            if j not in where
            and (settings.text_queries == "all" or (settings.text_queries == "response") == bool(labels[j] != -100))
        ]
        after = [*out.hidden_states[1:LAYERS], seen["last"]][:layers]
        v.append(seen["v"])
        target.append(refined(after, where, norm if settings.target_norm == "final" else None, plan, settings))
        sunk.append(sink_tokens(after, where) if settings.sinks == "drop" else torch.zeros(len(where)))
        attended.append(attention_shares(out.attentions[:layers], where, queries))

    masses = torch.stack([a.sum() for a in attended])
    if settings.token_weights == "attention":
        weights = torch.cat(attended)
    else:
        sum_a = masses.mean() if settings.token_weights == "uniform" else settings.token_weights
        weights = torch.cat([torch.ones_like(a) * sum_a / len(a) for a in attended])
    weights = torch.where(torch.cat(sunk) > 0, 0.0, weights)
    v_all, v_hat = torch.cat(v), torch.cat(target)
    if settings.detach:
        v_hat = v_hat.detach()
    das, sds = (loss / len(v) for loss in exact_losses(exact, v_all, v_hat, weights, settings))
    parameters = list(exact.model.multi_modal_projector.parameters())
    das_grad = torch.autograd.grad(das, parameters, retain_graph=True)
    sds_grad = torch.autograd.grad(sds, parameters)
    return Truth(
        das.detach(),
        sds.detach(),
        weights,
        v_all.detach(),
        v_hat.detach(),
        masses,
        int(torch.cat(sunk).sum()),
        list(das_grad),
        list(sds_grad),
    )


def plan_of(settings: SupervisionSection) -> TargetPlan:
    """The layers that settings name, and their weights."""
    layers = settings.layers if isinstance(settings.layers, int) else int(settings.layers * LAYERS)
    height = {
        "quadratic": lambda h: h * h,
        "linear": lambda h: h,
        "constant": lambda h: 1,
        "decreasing": lambda h: (layers + 1 - h) ** 2,
    }[settings.layer_weights]
    total = sum(height(h) for h in range(1, layers + 1))
    return TargetPlan(tuple(height(h) / total for h in range(1, layers + 1)))


def refined(
    after: list[Tensor], where: list[int], norm: nn.Module | None, plan: TargetPlan, settings: SupervisionSection
) -> Tensor:
    """v̂ of one sample's visual tokens at ``where``, [n, D], from its layers' outputs [1, T, D]."""
    means = []
    for t in where:
        mean = torch.zeros(WIDTH, dtype=torch.float64)
        for h, states in enumerate(after):
            state = states[0, t] if norm is None else norm(states[0, t][None])[0]
            if settings.target_norm == "layer":
                kept = torch.tensor([plan.massive is None or d not in plan.massive[h] for d in range(WIDTH)])
                state = torch.where(kept, state, 0.0) / state[kept].square().mean().sqrt()
            mean = mean + plan.layer_weights[h] * state
        means.append(mean)
    return torch.stack(means)


def sink_tokens(after: list[Tensor], where: list[int]) -> Tensor:
    """1 for the visual tokens of a sample that are over four times as long as the median in some layer, [n]."""
    found = torch.zeros(len(where))
    for states in after:
        norms = [float(states[0, t].detach().norm()) for t in where]
        median = sorted(norms)[(len(norms) - 1) // 2]
        for i, norm in enumerate(norms):
            assert abs(norm / median - 4) > 1e-3, "too near to tell in float32"
            found[i] = max(found[i], float(norm > 4 * median))
    return found


def attention_shares(attentions: tuple[Tensor, ...], where: list[int], queries: list[int]) -> Tensor:
    """a_i of one sample's visual tokens, [n]: means over layers, heads and queries of maps [1, H, T, T]."""
    found = torch.zeros(len(where), dtype=torch.float64)
    for i, t in enumerate(where):
        shares = [attention[0, :, j, t].mean() for attention in attentions for j in queries]
        if shares:
            found[i] = torch.stack(shares).mean().detach()
    return found


def exact_losses(
    exact: LlavaForConditionalGeneration, v: Tensor, target: Tensor, weights: Tensor, settings: SupervisionSection
) -> tuple[Tensor, Tensor]:
    """L_das and L_sds of v and v̂ [M, D] with a [M], before they are divided by the samples."""
    words = torch.tensor([i for i in word_ids().tolist() if i != IMAGE])
    head = settings.vocabulary == "lm_head"
    table = (exact.lm_head.weight[words] if head else exact.get_input_embeddings()(words)) / settings.temperature
    das = sds = torch.zeros((), dtype=torch.float64)
    for a, x, y in zip(weights, v, target, strict=True):
        if settings.direction == "mse":
            das = das + a * ((x - y) ** 2).mean()
        else:
            das = das + a * ((x / x.norm() - y / y.norm()) ** 2).sum()
        log_p, log_q = torch.log_softmax(table @ y, 0), torch.log_softmax(table @ x, 0)
        sds = sds + a * (log_p.exp() * (log_p - log_q)).sum()
    return das, sds


def error(value: Tensor, truth: Tensor) -> float:
    """Relative to the size of the whole tensor."""
    return float((value.detach().double() - truth).norm() / truth.norm())


def grad_error(values: tuple[Tensor, ...] | list[Tensor], truth: list[Tensor]) -> float:
    """The projector's gradient as one vector."""
    return error(torch.cat([g.flatten() for g in values]), torch.cat([g.flatten() for g in truth]))


def run(supervision: Supervision, batch: dict[str, Tensor], **how: Any) -> tuple[Capture, SupervisionLosses]:
    """A forward with the taps open, then the losses; ``how`` goes to them."""
    with capturing(supervision, batch) as captured:
        supervision.parts.model(**inputs(batch), use_cache=False)
    return captured, supervision.losses(captured, **how)


def capturing(supervision: Supervision, batch: dict[str, Tensor]) -> AbstractContextManager[Capture]:
    """The taps around a forward of a batch."""
    return supervision.capture(supervision.layout(batch))


def projector_grad(model: Any, loss: Tensor) -> list[Tensor]:
    """A loss's gradients of the projector; the graph stays."""
    return list(torch.autograd.grad(loss, list(model.model.multi_modal_projector.parameters()), retain_graph=True))
