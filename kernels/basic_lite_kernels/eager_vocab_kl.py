"""``vocab_kl``, the SDS loss, in plain PyTorch: a chunk of rows at a time, never a [M, V] tensor.

Symbols: M packed visual tokens · R rows in flight · D hidden size · V vocabulary rows. Sums are float32 whatever the
inputs are (float64 inputs stay float64), with autocast off: bf16 logits make the gradient 5 to 58 % wrong.
Source: method section of arXiv 2508.06895, semantic distribution supervision.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from basic_lite_kernels.signatures import compute_dtype

SCRATCH_BYTES = 192 * 2**20
CHUNK_ROWS = 256
CHUNK_ELEMENTS = 2**18

# Below this |log p − log q| the direct form of a KL term loses its leading digits; its series is exact to 2e-8 there.
_SERIES_BELOW = 0.05


def vocab_kl(
    v: Tensor, target: Tensor, table: Tensor, weights: Tensor, *, scale: float = 1.0, excluded: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Tensor:  # fmt: skip
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
        chunk_rows: R; None: from CHUNK_ROWS and V.

    Returns:
        A scalar ≥ 0, float32 (float64 for float64 inputs); 0 where both sides agree.

    Peak extra bytes: 4·M·D for the gradient + 10·R·V (R ≥ 8): two float32 logit buffers, and 2·R·V in turn
    for table rows cast to float32 and for row arithmetic, in blocks and tiles. The second part is independent of M.
    """
    if chunk_rows is None:
        most = max(CHUNK_ROWS, CHUNK_ELEMENTS // table.shape[0])
        chunk_rows = max(16, min(most, SCRATCH_BYTES // (10 * table.shape[0])))
    wants = [torch.is_grad_enabled() and x.requires_grad for x in (v, target)]
    with torch.no_grad(), torch.autocast(v.device.type, enabled=False):
        loss, *gradients = _loss_and_gradients(v, target, table, weights, scale, excluded, chunk_rows, wants)
    return with_gradients(v, target, loss, *gradients)


def with_gradients(v: Tensor, target: Tensor, loss: Tensor, dv: Tensor | None, dtarget: Tensor | None) -> Tensor:
    """``loss`` with a graph to v and the target, from gradients that were made with it; None: not wanted."""
    result: Tensor = _VocabKL.apply(v, target, loss, dv, dtarget)
    return result


class _VocabKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, target: Tensor, loss: Tensor, *gradients: Tensor | None) -> Tensor:
        # Saved, not attributes: autograd drops saved tensors once they were used, attributes live as long as the loss.
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Not in place: a second backward finds them as they were.
        dv, dtarget = (None if saved is None else saved * grad for saved in ctx.saved_tensors)
        return dv, dtarget, None, None, None


def _loss_and_gradients(
    v: Tensor, target: Tensor, table: Tensor, weights: Tensor, scale: float, excluded: Tensor | None, chunk_rows: int,
    wants: list[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The loss, and its gradients for v and for the target where they are wanted."""
    dtype = compute_dtype(v, target)
    dv, dtarget = (torch.zeros_like(v, dtype=dtype) if wanted else None for wanted in wants)
    total = torch.zeros((), dtype=torch.float64, device=v.device)
    rows = max(1, min(chunk_rows, v.shape[0]))
    z, z_target = (torch.empty(rows, table.shape[0], dtype=dtype, device=v.device) for _ in range(2))
    for start in range(0, v.shape[0], rows):
        chunk = slice(start, min(start + rows, v.shape[0]))
        logits = z[: chunk.stop - start], z_target[: chunk.stop - start]
        gradients = [None if made is None else made[chunk] for made in (dv, dtarget)]
        kl = _kl_rows(v[chunk].to(dtype), target[chunk].to(dtype), table, scale, excluded, logits, gradients)
        total += (kl.double() * weights[chunk].double()).sum()
    # a_i goes on after the products, in full precision, never into the logits.
    factor = (weights.to(dtype) * scale).unsqueeze(1)  # [M, 1]
    dv = None if dv is None else dv.mul_(factor).to(v.dtype)
    dtarget = None if dtarget is None else dtarget.mul_(factor).to(target.dtype)
    return total.to(dtype), dv, dtarget


def _kl_rows(
    x: Tensor, y: Tensor, table: Tensor, scale: float, excluded: Tensor | None, logits: tuple[Tensor, Tensor],
    gradients: list[Tensor | None],
) -> Tensor:  # fmt: skip
    """KL(softmax(s y Eᵀ) ‖ softmax(s x Eᵀ)) of R rows, [R].

    Adds (q − p) E to the first gradient and p (log p/q − KL) E to the second. Three passes over two [R, V] buffers, the
    last two in place: logits, then what multiplies E, then the products.
    """
    # Table rows of another type are cast a block at a time: 4·W·D bytes are at most 2·R·V.
    step = table.shape[0] if table.dtype == x.dtype else max(1, x.shape[0] * table.shape[0] // (2 * x.shape[1]))
    blocks = [slice(w, min(w + step, table.shape[0])) for w in range(0, table.shape[0], step)]
    for block in blocks:
        words = table[block].to(x.dtype)
        for rows, out in zip((x, y), logits, strict=True):
            torch.mm(rows, words.T, out=out[:, block])
        del words  # before the next block is cast
    tile = max(1, 2 * x.shape[0] // 15)  # 15 bytes of scratch an element
    tiles = zip(*(z.split(tile) for z in logits), strict=True)
    kl = torch.cat([_kl_tile(z, z_target, scale, excluded) for z, z_target in tiles])
    for block in blocks:
        words = table[block].to(x.dtype)
        for difference, gradient in zip(logits, gradients, strict=True):
            if gradient is not None:
                gradient.addmm_(difference[:, block], words)
        del words
    return kl


def _kl_tile(z: Tensor, z_target: Tensor, scale: float, excluded: Tensor | None) -> Tensor:
    """KL of rows of unscaled logits, [r]; z [r, V] becomes q − p, z_target becomes p (log p/q − KL).

    With u = log p − log q a row's KL is Σ p (u + e^{−u} − 1): the sum that the definition has, plus Σ q − Σ p
    = 0. Every term is ≥ 0, and a rounding error in the normalisers drops out to first order, so nearby p and
    q keep their digits. q − p is computed as −sign(u) · max(p, q) · (1 − e^{−|u|}), which is no difference of
    nearby numbers and never overflows.
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
