"""What one would write without kernels: each operation in a few lines of eager PyTorch. The bench's baseline.

Symbols: B batch · T sequence · M packed visual tokens · H attention heads · d head size · D hidden size · V vocabulary
rows · K supervised layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def direction_loss(
    hiddens: Sequence[Tensor], positions: Tensor, layer_weights: Tensor, v: Tensor, weights: Tensor
) -> Tensor:
    """DAS from the K layers' hidden states: stack → weighted sum → normalise → squared distance.

    Args:
        hiddens: K of [B, T, D].
        positions: [M] int64, indices into the flattened B·T.
        layer_weights: [K], w_h.
        v: [M, D].
        weights: [M], a_i.

    Peak extra bytes: 4·M·D·(2·K + 1), 132·M·D at K 16: the stack, its weighted copy and the sum.
    """
    return direction_distance(v, refined_target(hiddens, positions, layer_weights), weights)


@torch.no_grad()
def refined_target(hiddens: Sequence[Tensor], positions: Tensor, layer_weights: Tensor) -> Tensor:
    """v̂ [M, D] float32: stack → weighted sum. Arguments and bytes as in ``direction_loss``."""
    stacked = torch.stack([h.flatten(0, 1)[positions].float() for h in hiddens])  # [K, M, D]
    return (layer_weights[:, None, None] * stacked).sum(0)  # [M, D]


def direction_distance(v: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Σ_i a_i ‖v_i/‖v_i‖ − v̂_i/‖v̂_i‖‖² of v and v̂ [M, D], a_i [M]."""
    distance = (F.normalize(v, dim=-1) - F.normalize(target, dim=-1)).square().sum(-1)  # [M]
    return (weights * distance).sum()


def vocab_kl(v: Tensor, target: Tensor, table: Tensor, weights: Tensor) -> Tensor:
    """SDS from full logits of both sides.

    Args:
        v: [M, D].
        target: [M, D], v̂.
        table: [V, D], of v's type (autocast: of any).
        weights: [M], a_i.

    Peak extra bytes: 20·M·V: log p, log q, and three more while they are multiplied. (24 where the logits get a name
    and so stay alive.)
    """
    log_p = F.log_softmax(target @ table.T, dim=-1)  # [M, V]
    log_q = F.log_softmax(v @ table.T, dim=-1)
    kl = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)  # [M]
    return (weights * kl).sum()


def attention_mass(
    query: Tensor, key: Tensor, scaling: float, mask: Tensor, text_queries: Tensor, visual: Tensor
) -> Tensor:
    """Text-query × visual-key column sums from the map that ``output_attentions`` gives, as transformers makes it.

    Args:
        query: [B, H, T, d].
        key: [B, H_kv, T, d].
        scaling: s.
        mask: [B, 1, T, T], 0 where seen, the type's lowest number elsewhere.
        text_queries, visual: [B, T] bool.

    Returns:
        [B, T] float32.

    Peak extra bytes: some 9·B·H·T² in float32, some 8·B·H·T² in bf16; of these the map itself (4 or 2) stays until all
    K layers are done.
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # [B, H, T, d]
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling + mask
    attention = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)  # [B, H, T, T]
    return column_sums(attention, text_queries, visual)


def column_sums(attention: Tensor, text_queries: Tensor, visual: Tensor) -> Tensor:
    """Text-query × visual-key column sums [B, T] float32 of one layer's map [B, H, T, T]."""
    mean = attention.mean(1).float()  # [B, T, T]
    return (mean * text_queries[:, :, None]).sum(1) * visual
