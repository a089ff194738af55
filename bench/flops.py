"""A bench step's products, counted: what BASIC's share of it should be. Symbols as in ``rehearsal.cost``."""

from __future__ import annotations

from torch import nn

from basic_lite.recipe.rules import recomputed_layers
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.cost import Sizes, products
from basic_lite.supervision.layout import find_layout
from basic_lite.tools.measure import LongestStep


def flops(
    *, B: int, T: int, N: int, n: int, labelled: int, D: int, V: int, L: int, K: int, mlp: int, rank: int,
    tower_weights: int, tower_tokens: int, projector_weights: int, recomputed: int,
) -> dict[str, float]:  # fmt: skip
    """A step's products by part, as ``rehearsal.cost`` counts them, of a Llama with LoRA on all linear layers.

    Args:
        labelled: tokens of a sample with a label.
        mlp: the MLP's hidden size.
        rank: LoRA's, on all linear layers.
        tower_weights: weights of its linear layers.
        recomputed: decoder layers that run again in the backward.
    """
    linears = [(D, D)] * 4 + [(D, mlp)] * 3  # a Llama layer's: four of attention, three of the MLP
    sizes = Sizes(
        tokens=T, visual=N, labelled=labelled, queries=n, tower_tokens=tower_tokens, D=D, V=V, L=L, K=K,
        llm_weights=L * sum(i * o for i, o in linears), lora_weights=L * rank * sum(i + o for i, o in linears),
        tower_weights=tower_weights, projector_weights=projector_weights, recomputed=recomputed,
    )  # fmt: skip
    return {name: B * count for name, count in products(sizes).items()}


# LLaVA-1.5 7B on a sample of 1024 tokens, rank 128, half of its text supervised: what the mid-size model stands for.
SEVEN_B = flops(
    B=1, T=1024, N=576, n=413, labelled=256, D=4096, V=32000, L=32, K=16, mlp=11008, rank=128,
    tower_weights=23 * 12 * 1024**2, tower_tokens=577, projector_weights=1024 * 4096 + 4096**2, recomputed=32,
)  # fmt: skip


def flops_of(recipe: Recipe, longest: LongestStep) -> dict[str, float]:
    """A step's, with dimensions read from the model and the batch, not from the shape."""
    parts, config = longest.loaded.parts, longest.loaded.model.config.text_config
    batch, supervision = longest.batches[0], longest.supervision
    assert supervision is not None, "BASIC is off in this recipe"
    layout = find_layout(batch, parts.image_token_id, "all")
    B, T = batch["input_ids"].shape
    visual = layout.positions.numel() // B
    return flops(
        B=B, T=T, N=visual, n=int(layout.text.sum()) // B, labelled=longest.counts.labelled_tokens // B,
        D=config.hidden_size, V=supervision.vocabulary.rows, L=config.num_hidden_layers, K=supervision.layers,
        mlp=config.intermediate_size, rank=recipe.lora.rank,
        tower_weights=sum(m.weight.numel() for m in parts.vision_tower.modules() if isinstance(m, nn.Linear)),
        tower_tokens=visual + 1, projector_weights=sum(p.numel() for p in parts.projector.parameters() if p.ndim > 1),
        recomputed=recomputed_layers(recipe.training.gradient_checkpointing, config.num_hidden_layers),
    )  # fmt: skip
