"""BASIC's step the naive way: what one would write in an afternoon on top of transformers. The bench's baseline.

The model runs with eager attention, returns all its attention maps, hidden states and logits, and the losses are made
of those by ``bench.naive``. It gives the same loss and gradients as ``basic_lite.train.step.micro_batch_loss``, so the
two take each other's place in the step bench and in a rehearsal.

What gradient checkpointing does to it (read in transformers 5.23, and measured against the rehearsal):

- **Hidden states cost next to nothing more.** A checkpointed layer's input is kept for its backward anyway, and that is
  what ``output_hidden_states`` hands out.
- **Attention maps are all kept**, [B, H, T, T] of each of the L layers, not of the K that are needed. Checkpointing
  drops what a layer saves for its backward, but a map that was handed out lives as long as the outputs do: until the
  loss is made. That is 2·L·B·H·T² bytes in bf16. The backward then makes each map once more, one layer at a time,
  without handing it out, since transformers collects only while the model's forward runs.

Left out, to the naive way's good: under ``transformers.Trainer`` with bf16, accelerate turns every output that is bf16
to float32 when the forward returns, the maps too, which is 4·L·B·H·T² bytes more at that moment.

Symbols: B batch · T sequence · M packed visual tokens · H attention heads · D hidden size · V vocabulary · L decoder
layers · K supervised layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from basic_lite.model.parts import Parts
from basic_lite.supervision import Supervision, SupervisionLosses
from basic_lite.supervision.layout import find_layout
from basic_lite.train.step import MicroBatch
from bench import naive


def micro_batch_loss(
    model: Callable[..., Any],
    parts: Parts,
    supervision: Supervision | None,
    inputs: Mapping[str, Tensor],
    *,
    lambdas: tuple[float, float],
    num_items_in_batch: Tensor | int | None,
    samples_with_image: int,
    mean_mass: Tensor | None = None,
    detailed: bool = False,
    operations: Any = naive,
) -> MicroBatch:
    """L_lm + λ1 L_das + λ2 L_sds; arguments as those of ``basic_lite.train.step.micro_batch_loss``.

    Of ``supervision`` it takes the settings, K, w_h and E; the embeddings' measures, which ours logs, are not made.

    Args:
        model: in a type of its own where ``parts.model`` is wrapped; its LLM's attention must be ``eager``.
        mean_mass: None; ``detailed``: no matter.
        operations: who computes the parts: ``bench.naive``, or that with a clock around each.

    Raises:
        ValueError: settings other than the recipes' (attention weights, cosine, detached, un-normed); no supervision; a
            batch without images; another attention than eager.
    """
    if supervision is None or not supervision.active or mean_mass is not None:
        raise ValueError("the naive step is BASIC's, with attention weights; without BASIC take basic_lite's own")
    settings = supervision.settings
    if (settings.token_weights, settings.direction, settings.target_norm, settings.detach) != (
        "attention", "cosine", "none", True
    ):  # fmt: skip
        raise ValueError("the naive step has the recipes' settings alone: attention, cosine, none, detached")
    if parts.language_model.config._attn_implementation != "eager":
        raise ValueError("only eager attention hands out its maps; set model.attention to eager")
    labels = inputs["labels"]
    layout = find_layout(inputs, parts.image_token_id, settings.text_queries)
    if layout.samples_with_image == 0:
        raise ValueError("the naive step has nothing to do for a batch without images")
    # The projector is asked: the name under which the outputs hold v changes from one transformers to the next.
    projected: list[Tensor] = []  # one of [I, N, D]
    handle = parts.projector.register_forward_hook(lambda _module, _arguments, out: projected.append(out))
    try:
        outputs = model(
            **{name: tensor for name, tensor in inputs.items() if name != "labels"},
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
    finally:
        handle.remove()
    lm = parts.model.loss_function(
        logits=outputs.logits,  # [B, T, V]
        labels=labels,
        vocab_size=outputs.logits.shape[-1],
        num_items_in_batch=num_items_in_batch,
    )

    K = supervision.layers
    v = projected[0].flatten(0, 1).float()  # [M, D]
    hiddens = outputs.hidden_states[1 : K + 1]  # the first is the embeddings
    target = operations.refined_target(
        hiddens, layout.positions, torch.tensor(supervision.plan.weights, device=v.device)
    )
    with torch.no_grad():
        mass = sum(
            operations.column_sums(attention, layout.text, layout.visual) for attention in outputs.attentions[:K]
        )
        per_token = mass / (K * layout.text.sum(1, keepdim=True).clamp_min(1))  # [B, T]
        weights = per_token.flatten()[layout.positions]  # [M], a_i

    words = supervision.vocabulary
    table = words.table.float() if words.excluded is None else words.table[~words.excluded].float()  # [V, D]
    scale = words.scale / settings.temperature
    das = operations.direction_distance(v, target, weights) / samples_with_image
    sds = operations.vocab_kl(v, target, table if scale == 1 else table * scale, weights) / samples_with_image
    loss = lm + lambdas[0] * das + lambdas[1] * sds
    return MicroBatch(loss, outputs, SupervisionLosses(das=das, sds=sds, samples=layout.samples_with_image))
