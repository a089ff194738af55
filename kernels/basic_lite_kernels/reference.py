"""The operations of BASIC in plain PyTorch: the specification of the kernels, lean enough to train with.

Symbols: B batch · T sequence · M packed visual tokens · H attention heads · H_kv key heads · d head size · D
hidden size · V vocabulary rows. Everything is accumulated in float32 whatever the inputs are (float64 inputs
stay float64), with autocast off: bf16 logits make the SDS gradient 5 to 58 % wrong. Sources are sections of
arXiv 2508.06895 (the method).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows are worked on in chunks of about this much scratch memory. Small next to a training step, large enough
# that a chunk keeps a GPU busy. Where few rows are left to do, it is never more than 4 bytes an element of them: what
# their gradient will take when the scratch is gone.
SCRATCH_BYTES = 8 * 2**20
VOCAB_SCRATCH_BYTES = 192 * 2**20
VOCAB_CHUNK_ROWS = 256
VOCAB_CHUNK_ELEMENTS = 2**18
# Scores in flight at once: as many as a CPU's cache holds (more are no faster there), and enough to keep a GPU busy.
ATTENTION_CHUNK = {"cpu": 2**18, "cuda": 2**22}

# Below this |log p − log q| the direct form of a KL term loses its leading digits, and its series is exact to
# 2e-8.
_SERIES_BELOW = 0.05


def capture_layer(acc: Tensor | None, hidden: Tensor, positions: Tensor, weight: float) -> Tensor:
    """Add one layer's share of the target: ``acc[i] += weight · hidden.view(B·T, D)[positions[i]]``.

    Args:
        acc: [M, D] float32, changed in place; None starts at zero.
        hidden: [B, T, D], the residual stream after a decoder layer, any floating type.
        positions: [M] int64, indices into the flattened B·T.
        weight: w_h of this layer.

    Returns:
        acc, [M, D]. A new tensor with a graph instead where grad mode is on and ``hidden`` has a graph
        (target not detached).

    Peak extra bytes beyond ``acc``: at most SCRATCH_BYTES and 4·M·D. With a graph: 8·M·D.
    Source: method section, target embeddings v̂ = Σ_h w_h ṽ_h; streaming is ours.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])  # [B·T, D]
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    if torch.is_grad_enabled() and (flat.requires_grad or (acc is not None and acc.requires_grad)):
        rows = flat.index_select(0, positions).to(dtype)
        return rows * weight if acc is None else torch.add(acc, rows, alpha=weight)
    if acc is None:
        acc = torch.zeros(positions.numel(), flat.shape[1], dtype=dtype, device=hidden.device)
    row_bytes = flat.shape[1] * (flat.element_size() + acc.element_size())  # gathered, and cast to add
    scratch = min(SCRATCH_BYTES, 4 * acc.numel())
    for start, stop in _row_chunks(positions.numel(), row_bytes, scratch):
        acc[start:stop].add_(flat.index_select(0, positions[start:stop]), alpha=weight)
    return acc


def direction_loss(v: Tensor, target: Tensor, weights: Tensor, kind: Literal["cosine", "mse"] = "cosine") -> Tensor:
    """Directional alignment (DAS), summed over rows.

    ``cosine``: Σ_i a_i ‖v_i/‖v_i‖ − v̂_i/‖v̂_i‖‖² = Σ_i a_i (2 − 2 cos θ_i), with
    ∂/∂v_i = −2 a_i (v̂_i/‖v̂_i‖ − cos θ_i · v_i/‖v_i‖) / ‖v_i‖. A zero vector has no direction: its cosine
    counts as 0 (the term is 2 a_i) and its gradient is 0. ``mse``: Σ_i a_i mean_D (v_i − v̂_i)².

    Args:
        v: [M, D], the initial visual embeddings.
        target: [M, D], v̂; gets a gradient only when it requires one.
        weights: [M], a_i, constants.
        kind: "cosine" or "mse".

    Returns:
        A scalar, float32 (float64 for float64 inputs).

    Peak extra bytes: forward at most SCRATCH_BYTES and 4·M·D; backward 4·M·D, the gradient itself (SCRATCH_BYTES
    more where v or target is no float32); 64·M of row statistics.
    Source: method section, direction alignment supervision; ``mse`` from the ablations.
    """
    if kind not in ("cosine", "mse"):
        raise ValueError(f"direction_loss has no kind {kind!r}; it has 'cosine' and 'mse'")
    return _DirectionLoss.apply(v, target, weights, kind)


class _DirectionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, target: Tensor, weights: Tensor, kind: str) -> Tensor:
        dtype = _compute_dtype(v, target)
        distance = torch.empty(v.shape[0], dtype=dtype, device=v.device)
        inverse_x = inverse_y = None
        if kind == "cosine":
            inverse_x, inverse_y = torch.empty_like(distance), torch.empty_like(distance)
        scratch = min(SCRATCH_BYTES, 4 * v.numel())
        for start, stop in _row_chunks(v.shape[0], 20 * v.shape[1], scratch):
            rows = slice(start, stop)
            x, y = v[rows].to(dtype), target[rows].to(dtype)
            if inverse_x is None or inverse_y is None:
                distance[rows] = (x - y).square_().mean(dim=1)
            else:
                inverse_x[rows], inverse_y[rows], distance[rows] = _unit_distance(x, y)
        ctx.save_for_backward(v, target, weights, inverse_x, inverse_y, distance)
        ctx.kind = kind
        return (distance.double() * weights.double()).sum().to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, target, weights, inverse_x, inverse_y, distance = ctx.saved_tensors
        a = weights.to(distance.dtype) * grad  # [M]
        if ctx.kind == "mse":
            scale = a * (2 / v.shape[1])
            from_x, from_y = (None, None, scale), (None, None, -scale)
        else:
            # 1 − d²/2 keeps the digits of a cosine near 1 that a dot product loses. With a zero row it is 0, and so is
            # the gradient: 1/norm counts as 0.
            cosine = 1 - distance / 2
            from_x = (-cosine * inverse_x, inverse_y, -2 * a * inverse_x)
            from_y = (inverse_x, -cosine * inverse_y, -2 * a * inverse_y)
        dv = _combined(v, v, target, *from_x) if ctx.needs_input_grad[0] else None
        dtarget = _combined(target, v, target, *from_y) if ctx.needs_input_grad[1] else None
        return dv, dtarget, None, None


def _combined(like: Tensor, x: Tensor, y: Tensor, of_x: Tensor | None, of_y: Tensor | None, scale: Tensor) -> Tensor:
    """scale · (of_x · x + of_y · y) of rows, scale · (x − y) where these are None; [M, D] in the type of ``like``.

    In place in the result where x and y have its type. ``scale`` [M] goes on last: 1/norm of a tiny row times the other
    row's may be beyond float32, unit rows times either are not; and rows that are near keep the digits of x − y.
    """
    out = torch.empty_like(like)
    dtype = scale.dtype
    in_place = x.dtype == y.dtype == dtype
    for start, stop in _row_chunks(len(out), 3 * dtype.itemsize * out.shape[1], SCRATCH_BYTES):
        rows = slice(start, stop)
        into = out[rows] if in_place else torch.empty(stop - start, out.shape[1], dtype=dtype, device=out.device)
        if of_x is None or of_y is None:
            torch.sub(x[rows].to(dtype), y[rows].to(dtype), out=into)
        else:
            torch.mul(y[rows].to(dtype), of_y[rows].unsqueeze(1), out=into)
            into.addcmul_(x[rows].to(dtype), of_x[rows].unsqueeze(1))
        into.mul_(scale[rows].unsqueeze(1))
        if not in_place:
            out[rows] = into
    return out


def _unit_distance(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1/norm of the rows of x and y [R, D], 0 for a zero row; squared distance of unit rows, 2 with a zero row; [R]."""
    inverses = []
    for rows in (x, y):
        norm = torch.linalg.vector_norm(rows, dim=1)
        inverses.append(torch.where(norm > 0, 1 / norm, torch.zeros_like(norm)))
    inverse_x, inverse_y = inverses
    difference = (x * inverse_x.unsqueeze(1)).sub_(y * inverse_y.unsqueeze(1))
    distance = difference.square_().sum(dim=1)
    return inverse_x, inverse_y, torch.where((inverse_x > 0) & (inverse_y > 0), distance, 2.0)


class Direction(NamedTuple):
    """What ``capture_and_direction_loss`` leaves for ``weighted_direction_loss``."""

    target: Tensor  # [M, D] float32, v̂ (the same memory as acc)
    kind: Literal["cosine", "mse"]


def capture_and_direction_loss(
    acc: Tensor | None,
    hidden: Tensor,
    positions: Tensor,
    weight: float,
    v: Tensor,
    kind: Literal["cosine", "mse"] = "cosine",
) -> Direction:
    """``capture_layer`` of layer K; the Triton twin measures each row's distance to ``v`` in the same pass."""
    return Direction(capture_layer(acc, hidden, positions, weight), kind)


def weighted_direction_loss(v: Tensor, direction: Direction, weights: Tensor) -> Tensor:
    """``direction_loss`` of what ``capture_and_direction_loss`` left, once the weights a_i [M] are known."""
    return direction_loss(v, direction.target, weights, direction.kind)


def vocab_kl(
    v: Tensor,
    target: Tensor,
    table: Tensor,
    weights: Tensor,
    *,
    scale: float = 1.0,
    excluded: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Semantic distribution loss (SDS): Σ_i a_i KL(p_i ‖ q_i), p = softmax(s v̂ Eᵀ), q = softmax(s v Eᵀ).

    The gradient ∂/∂v_i = a_i s (q_i − p_i) E is made in the forward, chunk by chunk, so no [M, V] tensor
    exists at any time. The table never gets a gradient. ``target`` gets one, a_i s Σ_w p_iw (log p_iw/q_iw −
    KL_i) E_w, where it requires it.

    Args:
        v: [M, D], the initial visual embeddings.
        target: [M, D], v̂.
        table: [V, D], any floating type; a slice of rows is read in place.
        weights: [M], a_i, constants.
        scale: s = factor by which the embedding module scales its rows / temperature.
        excluded: [V] bool, rows that are no words; they get probability 0 on both sides.
        chunk_rows: rows R in flight; None: VOCAB_CHUNK_ROWS, more of a small vocabulary, fewer of a large
            one.

    Returns:
        A scalar ≥ 0, float32 (float64 for float64 inputs); 0 where both sides agree.

    Peak extra bytes: 4·M·D for the gradient + 10·R·V (R ≥ 8): two float32 logit buffers, and 2·R·V in turn
    for table rows cast to float32 and for row arithmetic, in blocks and tiles. The second part is independent
    of M. Source: method section, semantic distribution supervision.
    """
    gradients = tuple(torch.is_grad_enabled() and x.requires_grad for x in (v, target))
    if chunk_rows is None:
        most = max(VOCAB_CHUNK_ROWS, VOCAB_CHUNK_ELEMENTS // table.shape[0])
        chunk_rows = max(16, min(most, VOCAB_SCRATCH_BYTES // (10 * table.shape[0])))
    return _VocabKL.apply(v, target, table, weights, scale, excluded, chunk_rows, gradients)


class _VocabKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        target: Tensor,
        table: Tensor,
        weights: Tensor,
        scale: float,
        excluded: Tensor | None,
        chunk_rows: int,
        gradients: tuple[bool, bool],
    ) -> Tensor:
        dtype = _compute_dtype(v, target)
        dv = torch.zeros_like(v, dtype=dtype) if gradients[0] else None
        dtarget = torch.zeros_like(target, dtype=dtype) if gradients[1] else None
        total = torch.zeros((), dtype=torch.float64, device=v.device)
        rows = max(1, min(chunk_rows, v.shape[0]))
        z, z_target = (torch.empty(rows, table.shape[0], dtype=dtype, device=v.device) for _ in range(2))
        with torch.autocast(v.device.type, enabled=False):
            for start in range(0, v.shape[0], rows):
                chunk = slice(start, min(start + rows, v.shape[0]))
                kl = _kl_rows(
                    v[chunk].to(dtype),
                    target[chunk].to(dtype),
                    table,
                    scale,
                    excluded,
                    (z[: chunk.stop - start], z_target[: chunk.stop - start]),
                    None if dv is None else dv[chunk],
                    None if dtarget is None else dtarget[chunk],
                )
                total += (kl.double() * weights[chunk].double()).sum()
        # a_i goes on after the products, in full precision, never into the logits.
        factor = (weights.to(dtype) * scale).unsqueeze(1)  # [M, 1]
        # Saved, not attributes: autograd drops saved tensors once they were used, attributes live as long as the loss.
        ctx.save_for_backward(
            None if dv is None else dv.mul_(factor).to(v.dtype),
            None if dtarget is None else dtarget.mul_(factor).to(target.dtype),
        )
        return total.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dv, dtarget = (None if saved is None else saved * grad for saved in ctx.saved_tensors)
        return dv, dtarget, None, None, None, None, None, None


def _kl_rows(
    x: Tensor,
    y: Tensor,
    table: Tensor,
    scale: float,
    excluded: Tensor | None,
    logits: tuple[Tensor, Tensor],
    dx: Tensor | None,
    dy: Tensor | None,
) -> Tensor:
    """KL(softmax(s y Eᵀ) ‖ softmax(s x Eᵀ)) of R rows, [R].

    Adds (q − p) E to dx and p (log p/q − KL) E to dy.
    Three passes over two [R, V] buffers, the last two in place: logits, then what multiplies E, then the
    products.
    """
    z, z_target = logits
    # Table rows of another type are cast a block at a time: 4·W·D bytes are at most 2·R·V.
    step = table.shape[0] if table.dtype == x.dtype else max(1, x.shape[0] * table.shape[0] // (2 * x.shape[1]))
    blocks = [slice(w, min(w + step, table.shape[0])) for w in range(0, table.shape[0], step)]
    for block in blocks:
        words = table[block].to(x.dtype)
        torch.mm(x, words.T, out=z[:, block])
        torch.mm(y, words.T, out=z_target[:, block])
        del words  # before the next block is cast
    kl = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
    tile = max(1, 2 * x.shape[0] // 15)  # 15 bytes of scratch an element
    for start in range(0, x.shape[0], tile):
        rows = slice(start, start + tile)
        kl[rows] = _kl_tile(z[rows], z_target[rows], scale, excluded)
    for block in blocks:
        words = table[block].to(x.dtype)
        if dx is not None:
            dx.addmm_(z[:, block], words)
        if dy is not None:
            dy.addmm_(z_target[:, block], words)
        del words
    return kl


def _kl_tile(z: Tensor, z_target: Tensor, scale: float, excluded: Tensor | None) -> Tensor:
    """KL of rows of unscaled logits, [r]; z [r, V] becomes q − p, z_target becomes p (log p/q − KL).

    With u = log p − log q a row's KL is Σ p (u + e^{−u} − 1): the sum that the definition has, plus Σ q − Σ p
    = 0. Every term is ≥ 0, and a rounding error in the normalisers drops out to first order, so nearby p and
    q keep their digits. Likewise q − p = −sign(u) · max(p, q) · (1 − e^{−|u|}) is no difference of nearby
    numbers, and never overflows.
    """
    normalisers = []
    for logits in (z, z_target):
        logits.mul_(scale)
        if excluded is not None:
            # Finite, so that the difference of two excluded logits is 0 and not NaN.
            logits.masked_fill_(excluded, torch.finfo(z.dtype).min / 4)
        # With the row's maximum taken off, the rest of the normaliser is at most log V and keeps its digits.
        logits.sub_(logits.amax(dim=1, keepdim=True))
        normalisers.append(logits.exp().sum(dim=1, keepdim=True, dtype=torch.float64).log())
    offset = (normalisers[1] - normalisers[0]).to(z.dtype)  # [r, 1]

    u = torch.sub(z_target, z).sub_(offset)
    log_p = z_target.sub_(normalisers[1].to(z.dtype))
    scratch = torch.neg(u).clamp_min_(0).add_(log_p).exp_()  # max(p, q)
    torch.abs(u, out=z)
    difference = z.neg_().expm1_().mul_(scratch).mul_(torch.sign(u, out=scratch))
    p = log_p.exp_()

    p_u = torch.mul(p, u, out=scratch)
    series = torch.mul(u, -1 / 120).add_(1 / 24).mul_(u).sub_(1 / 6).mul_(u).add_(0.5).mul_(u).mul_(p_u)
    near = (u > -_SERIES_BELOW) & (u < _SERIES_BELOW)
    kl = torch.where(near, series, p_u.add_(difference), out=series).sum(dim=1)
    p.mul_(u.sub_(kl.unsqueeze(1)))
    return kl


@torch.no_grad()
def attention_mass(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    text_queries: Tensor,
    visual: Tensor,
    valid: Tensor,
    sliding_window: int | None = None,
    softcap: float | None = None,
    longest: int | None = None,
    chunk_elements: int | None = None,
) -> Tensor:
    """How much attention each visual token gets from the text: Σ_j mean_heads softmax_i(s q_j·k_i), causal.

    Divided by K·n and summed over K layers this is a_i. Only rows of text queries are computed; the softmax
    runs over every key the model itself would see: at or before the query, not padding, inside the sliding
    window.

    Args:
        query: [B, H, T, d], after position encoding, as the attention function gets it; strides are free.
        key: [B, H_kv, T, d]; head h reads key head h // (H / H_kv), nothing is expanded.
        scaling: s, the factor on the scores.
        text_queries: [B, T] bool, the rows j that count.
        visual: [B, T] bool, the columns i that count.
        valid: [B, T] bool, False at padding, on either side.
        sliding_window: keys further back than this many positions (the query's own included) are not seen;
            None: all are.
        softcap: scores become c·tanh(score / c) where c is given.
        longest: the most text queries a sample has, or more; None: looked up, which waits for the device.
        chunk_elements: scores in flight at once; None: ATTENTION_CHUNK of the device.

    Returns:
        [B, T] float32 (float64 for float64 inputs), 0 outside ``visual``. No graph. Deterministic: no
        atomics.

    Peak extra bytes: 4·B·T for the result + about 14·chunk_elements, never less than one row of one key
    head's group. Source: method section, weights of visual tokens; computed from queries and keys instead of
    stored maps.
    """
    B, H, T, d = query.shape
    heads_kv = key.shape[1]
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window}; it is a number of positions from 1 on, or None")
    if chunk_elements is None:
        chunk_elements = ATTENTION_CHUNK["cpu" if query.device.type == "cpu" else "cuda"]
    group = H // heads_kv
    dtype = _compute_dtype(query, key)
    mass = torch.zeros(B, T, dtype=dtype, device=query.device)
    counted = text_queries & valid & visual.any(dim=1, keepdim=True)  # a sample without an image needs no row
    if longest is None:
        longest = int(counted.sum(dim=1).max())
    # Counted rows first, in their order; the rest of a row list pads samples with less text and gets weight
    # 0.
    order = torch.argsort((~counted).to(torch.int8), dim=1, stable=True)
    positions = torch.arange(T, device=query.device)

    samples = max(1, min(B, chunk_elements // (heads_kv * T * max(d, group))))
    key_heads = max(1, min(heads_kv, chunk_elements // (samples * T * max(d, group))))
    row_step = max(1, chunk_elements // (samples * key_heads * group * T))
    with torch.autocast(query.device.type, enabled=False):
        for b in range(0, B, samples):
            batch = slice(b, min(b + samples, B))
            for h in range(0, heads_kv, key_heads):
                heads = slice(h, min(h + key_heads, heads_kv))
                keys = key[batch, heads].to(dtype).transpose(2, 3)  # [b, h, d, T]
                queries = query[batch, heads.start * group : heads.stop * group]  # [b, h·g, T, d]
                for r in range(0, longest, row_step):
                    rows = order[batch, r : min(r + row_step, longest)]  # [b, R]
                    used = counted[batch].gather(1, rows)
                    seen = valid[batch].unsqueeze(1) & (positions <= rows.unsqueeze(2))  # [b, R, T]
                    if sliding_window is not None:
                        seen &= positions > rows.unsqueeze(2) - sliding_window
                    mass[batch] += _column_sums(queries, keys, rows, used, seen, scaling, softcap)
    return mass.mul_(visual & valid).div_(H)


def _column_sums(
    queries: Tensor,
    keys: Tensor,
    rows: Tensor,
    used: Tensor,
    seen: Tensor,
    scaling: float,
    softcap: float | None,
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


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _row_chunks(rows: int, row_elements: int, scratch: int) -> Iterator[tuple[int, int]]:
    step = max(1, scratch // max(1, row_elements))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
