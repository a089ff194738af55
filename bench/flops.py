"""The products of a training step, counted: what BASIC's share of a step should be.

Symbols: B batch · T sequence · N visual tokens of a sample · n text queries of a sample · D hidden size · V vocabulary
· L decoder layers · K supervised layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from basic_lite.recipe.schema import Recipe
from basic_lite.supervision.layout import find_layout
from basic_lite.tools.measure import LongestStep


@dataclass(frozen=True)
class Dimensions:
    """What FLOPs are counted from; ``linears``: (in, out) of each linear layer of one decoder layer."""

    B: int
    T: int
    N: int
    n: int  # text queries of a sample
    labelled: int  # of a sample
    D: int
    V: int
    L: int
    K: int
    linears: tuple[tuple[int, int], ...]
    rank: int
    tower_weights: int  # of its linear layers
    tower_tokens: int
    projector_weights: int


def flops(d: Dimensions) -> dict[str, float]:
    """A step's products by part, 2 FLOPs a multiply-add; element-wise work isn't counted.

    Under checkpointing a frozen linear layer is multiplied three times (forward, again, gradient of its input), and an
    adapter's matrices four times (also for their own gradients). Attention's two products are made twice in the
    forwards and four more times in the backward. They are counted in full, not causal. The vision tower runs forward
    only, and the projector isn't recomputed.
    """
    tokens, weights, adapters = d.B * d.T, sum(i * o for i, o in d.linears), sum(i + o for i, o in d.linears)
    visual = d.B * d.N
    return {
        "LLM linears": 6.0 * tokens * weights * d.L,
        "LoRA": 8.0 * tokens * d.rank * adapters * d.L,
        "attention": 16.0 * d.B * d.T**2 * d.D * d.L,
        "LM loss": 4.0 * d.B * d.labelled * d.D * d.V,
        "vision tower": 2.0 * d.B * d.tower_tokens * d.tower_weights,
        "projector": 6.0 * visual * d.projector_weights,
        "attention mass": 2.0 * d.B * d.n * d.T * d.D * d.K,
        "SDS": 6.0 * visual * d.D * d.V,
    }


def basic_share(counted: dict[str, float]) -> float:
    """BASIC's products over those of the step without it."""
    basic = counted["SDS"] + counted["attention mass"]
    return basic / (sum(counted.values()) - basic)


def llama_linears(hidden: int, mlp: int) -> tuple[tuple[int, int], ...]:
    """A Llama layer's linear layers: four of attention, three of the MLP."""
    return ((hidden, hidden),) * 4 + ((hidden, mlp), (hidden, mlp), (mlp, hidden))


# LLaVA-1.5 7B on a sample of 1024 tokens, rank 128, half of its text supervised: what the mid-size model stands for.
SEVEN_B = Dimensions(
    B=1, T=1024, N=576, n=413, labelled=256, D=4096, V=32000, L=32, K=16, linears=llama_linears(4096, 11008), rank=128,
    tower_weights=23 * 12 * 1024**2, tower_tokens=577, projector_weights=1024 * 4096 + 4096**2,
)  # fmt: skip


def dimensions(recipe: Recipe, longest: LongestStep) -> Dimensions:
    """Read the dimensions from the model and the batch, not from the shape."""
    parts, config = longest.loaded.parts, longest.loaded.model.config.text_config
    batch, supervision = longest.batches[0], longest.supervision
    assert supervision is not None, "BASIC is off in this recipe"
    layout = find_layout(batch, parts.image_token_id, "all")
    B, T = batch["input_ids"].shape
    visual = layout.positions.numel() // B
    return Dimensions(
        B=B, T=T, N=visual, n=int(layout.text.sum()) // B, labelled=longest.counts.labelled_tokens // B,
        D=config.hidden_size, V=supervision.vocabulary.rows, L=config.num_hidden_layers, K=supervision.layers,
        linears=llama_linears(config.hidden_size, config.intermediate_size), rank=recipe.lora.rank,
        tower_weights=sum(m.weight.numel() for m in parts.vision_tower.modules() if isinstance(m, nn.Linear)),
        tower_tokens=visual + 1, projector_weights=sum(p.numel() for p in parts.projector.parameters() if p.ndim > 1),
    )  # fmt: skip
