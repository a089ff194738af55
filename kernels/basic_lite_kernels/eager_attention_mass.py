"""``attention_mass`` in plain PyTorch: a few text queries at a time, never a [T, T] map.

Symbols: B batch · T sequence · H attention heads · H_kv key heads · d head size. Sums are float32 whatever the inputs
are (float64 inputs stay float64), with autocast off.
Source: method section of arXiv 2508.06895, weights of visual tokens; from queries and keys instead of stored maps.
"""

import torch
from torch import Tensor

from basic_lite_kernels.signatures import MassTokens, compute_dtype

# Scores in flight at once: as many as a CPU's cache holds (more are no faster there), and enough to keep a GPU busy.
CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**22}


@torch.no_grad()
def attention_mass(
    query: Tensor, key: Tensor, *, scaling: float, tokens: MassTokens, sliding_window: int | None = None,
    softcap: float | None = None, out: Tensor | None = None, chunk_elements: int | None = None,
) -> Tensor:  # fmt: skip
    """How much attention each visual token gets from the text: Σ_j mean_heads softmax_i(s q_j·k_i), causal.

    Divided by K·n and summed over K layers this is a_i. Only rows of text queries are computed; the softmax runs over
    every key the model itself would see: at or before the query, not padding, inside the sliding window.

    Args:
        query: [B, H, T, d], after position encoding, as the attention function gets it; strides are free.
        key: [B, H_kv, T, d]; head h reads key head h // (H / H_kv), nothing is expanded.
        scaling: s, the factor on the scores.
        tokens: the rows j and the columns i that count, and what is padding, on either side.
        sliding_window: keys further back than this many positions (the query's own included) are not seen;
            None: all are.
        softcap: scores become c·tanh(score / c) where c is given.
        out: [B, T], is added to and returned; None: a new one.
        chunk_elements: scores in flight at once; None: CHUNK_ELEMENTS of the device.

    Returns:
        [B, T] float32 (float64 for float64 inputs), 0 but at visual tokens. No graph. Deterministic: no atomics.

    Raises:
        ValueError: ``sliding_window`` is below 1.

    Peak extra bytes: 4·B·T for the result + at most 14·chunk_elements, never less than one row of one key head's group.
    """
    B, H, T, d = query.shape
    heads_kv = key.shape[1]
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window}; it is a number of positions from 1 on, or None")
    if chunk_elements is None:
        chunk_elements = CHUNK_ELEMENTS["cpu" if query.device.type == "cpu" else "cuda"]
    group = H // heads_kv
    dtype = compute_dtype(query, key)
    mass = torch.zeros(B, T, dtype=dtype, device=query.device)
    longest = tokens.rows.shape[1]
    positions = torch.arange(T, device=query.device)

    samples = max(1, min(B, chunk_elements // (heads_kv * T * max(d, group))))
    key_heads = max(1, min(heads_kv, chunk_elements // (samples * T * max(d, group))))
    row_step = max(1, chunk_elements // (samples * key_heads * group * T))
    with torch.autocast(query.device.type, enabled=False):
        for b in range(0, B, samples):
            batch = slice(b, b + samples)
            for h in range(0, heads_kv, key_heads):
                keys = key[batch, h : h + key_heads].to(dtype).transpose(2, 3)  # [b, h, d, T]
                queries = query[batch, h * group : (h + key_heads) * group]  # [b, h·g, T, d]
                for r in range(0, longest, row_step):
                    listed = tokens.rows[batch, r : min(r + row_step, longest)]  # [b, R]
                    # What pads the lists of samples with less text has the weight 0.
                    rows, used = listed.clamp_min(0).long(), listed >= 0
                    seen = tokens.valid[batch].unsqueeze(1) & (positions <= rows.unsqueeze(2))  # [b, R, T]
                    if sliding_window is not None:
                        seen &= positions > rows.unsqueeze(2) - sliding_window
                    mass[batch] += _column_sums(queries, keys, rows, used, seen, scaling, softcap)
    mass = mass.mul_(_visual(tokens)).div_(H)
    return mass if out is None else out.add_(mass)


def _visual(tokens: MassTokens) -> Tensor:
    """[B, T] bool, from the list."""
    B, T = tokens.valid.shape
    marked = torch.zeros(B, T + 1, dtype=torch.bool, device=tokens.columns.device)
    columns = tokens.columns.long()
    return marked.scatter_(1, columns.masked_fill(columns < 0, T), True)[:, :T]


def _column_sums(
    queries: Tensor, keys: Tensor, rows: Tensor, used: Tensor, seen: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    """Attention of the chosen rows, summed over rows and heads, [b, T].

    queries [b, h·g, T, d], keys [b, h, d, T], rows and used [b, R], seen [b, R, T].
    """
    b, heads, d, T = keys.shape
    group, R = queries.shape[1] // heads, rows.shape[1]
    index = rows[:, None, :, None].expand(-1, queries.shape[1], -1, d)
    chosen = queries.gather(2, index).to(keys.dtype).view(b, heads, group * R, d)
    scores = torch.matmul(chosen, keys).mul_(scaling).view(b, heads, group, R, T)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    scores.masked_fill_(~seen[:, None, None], torch.finfo(scores.dtype).min)
    scores.sub_(scores.amax(dim=-1, keepdim=True)).exp_()
    # Dividing by the row sum, leaving out rows that only pad, and summing over rows and heads is one product.
    share = used[:, None, None, :].to(scores.dtype) / scores.sum(dim=-1)  # [b, h, g, R]
    return torch.bmm(share.reshape(b, 1, -1), scores.view(b, -1, T)).squeeze(1)
