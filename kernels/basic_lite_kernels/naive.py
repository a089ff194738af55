"""Each operation in a few lines of PyTorch: the specification. Tests and benches compare with it, in any float type.

Symbols: B batch · T sequence · M packed visual tokens · H attention heads · H_kv key heads · d head size · D hidden
size · V vocabulary rows · K supervised layers. Rows of zeros have no direction and are left to the tests.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from basic_lite_kernels.signatures import Kind, RowScaling


def refined_target(
    hiddens: Sequence[Tensor], positions: Tensor, layer_weights: Tensor, scalings: Sequence[RowScaling | None] = ()
) -> Tensor:
    """v̂ = Σ_h w_h ṽ_h, [M, D], from K layers' outputs [B, T, D], ``positions`` [M] in the flattened B·T, w [K].

    With ``scalings``, one a layer, massive dimensions count as 0, and the rest of each row is times its factor.

    Peak extra bytes: 4·M·D·(2·K + 1), the stack, its weighted copy and the sum.
    """
    each = zip(hiddens, scalings or [None] * len(hiddens), strict=True)
    stacked = torch.stack([_scaled(_wide(x.flatten(0, 1)[positions]), scaling) for x, scaling in each])  # [K, M, D]
    return (layer_weights[:, None, None] * stacked).sum(0)


def row_scaling(hidden: Tensor, positions: Tensor, massive: Tensor | None = None) -> RowScaling:
    """‖row‖ of the rows ``positions`` [M] of [B, T, D], and 1 / root mean square of what isn't ``massive`` [D] bool."""
    rows = _wide(hidden.flatten(0, 1)[positions])
    count = rows.shape[1] if massive is None else (~massive).sum()
    squares = _kept(rows, massive).square().sum(-1)
    return RowScaling(rows.square().sum(-1).sqrt(), (count / squares).sqrt(), massive)


def direction_loss(v: Tensor, target: Tensor, weights: Tensor, kind: Kind = "cosine") -> Tensor:
    """DAS: Σ_i a_i ‖v_i/‖v_i‖ − v̂_i/‖v̂_i‖‖², or Σ_i a_i mean_D (v_i − v̂_i)². v and v̂ [M, D], a [M]."""
    if kind == "mse":
        return (weights * (v - target).square().mean(-1)).sum()
    x, y = (F.normalize(rows, dim=-1, eps=torch.finfo(rows.dtype).tiny) for rows in (v, target))
    return (weights * (x - y).square().sum(-1)).sum()


def vocab_kl(
    v: Tensor, target: Tensor, table: Tensor, weights: Tensor, *, scale: float = 1.0, excluded: Tensor | None = None
) -> Tensor:
    """SDS: Σ_i a_i KL(softmax(s v̂ Eᵀ) ‖ softmax(s v Eᵀ)). v and v̂ [M, D], E [V, D], a [M], ``excluded`` [V] bool.

    Peak extra bytes: 20·M·V, log p, log q, and three more while they are multiplied.
    """
    words = table if excluded is None else table[~excluded]
    log_p = F.log_softmax(scale * _wide(target @ words.T), dim=-1)  # [M, V]
    log_q = F.log_softmax(scale * _wide(v @ words.T), dim=-1)
    return (weights * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)).sum()


def attention_map(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    valid: Tensor,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal softmax attention, [B, H, T, T], of query [B, H, T, d] and key [B, H_kv, T, d]; ``valid`` [B, T] bool."""
    at = torch.arange(query.shape[2], device=query.device)
    seen = valid[:, None, None, :] & (at <= at[:, None])
    if sliding_window is not None:
        seen = seen & (at > at[:, None] - sliding_window)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # [B, H, T, d]
    scores = (query @ key.transpose(2, 3)) * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    return F.softmax(_wide(scores).masked_fill(~seen, -torch.inf), dim=-1)


def column_sums(attention: Tensor, text_queries: Tensor, visual: Tensor) -> Tensor:
    """Attention that visual tokens get from the text, mean over heads, [B, T], of a map [B, H, T, T]; masks [B, T]."""
    mean = _wide(attention.mean(1))  # [B, T, T]
    return mean.masked_fill(~text_queries[:, :, None], 0).sum(1).masked_fill(~visual, 0)


def attention_mass(
    query: Tensor, key: Tensor, *, scaling: float, text_queries: Tensor, visual: Tensor, valid: Tensor,
    sliding_window: int | None = None, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """The column sums of one layer's map, [B, T]; over K·n and summed over layers they are a_i.

    Peak extra bytes: some 12·B·H·T², the scores, the scores without what isn't seen, and the map.
    """
    attention = attention_map(query, key, scaling=scaling, valid=valid, sliding_window=sliding_window, softcap=softcap)
    return column_sums(attention, text_queries & valid, visual & valid)


def _scaled(rows: Tensor, scaling: RowScaling | None) -> Tensor:
    return rows if scaling is None else _kept(rows, scaling.massive) * scaling.factor[:, None]


def _kept(rows: Tensor, massive: Tensor | None) -> Tensor:
    """Rows [M, D] with 0 in the massive dimensions."""
    return rows if massive is None else rows.masked_fill(massive, 0)


def _wide(x: Tensor) -> Tensor:
    """Cast to float32 at least: 16-bit products are rounded, but what follows them is not."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
