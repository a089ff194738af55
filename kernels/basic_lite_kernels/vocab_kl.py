"""``vocab_kl``, the SDS loss, from hidden vectors and the vocabulary table: no logits are kept, none are rounded.

Symbols: M packed visual tokens · R rows in flight · D hidden size · V vocabulary rows.

A chunk of R rows takes three matrix products and one pass of ``vocab_kl_kernel``:

1. [v̂ − v; v] Eᵀ in one product, float32 out: [2R, V]. Logits in bf16 would make the gradient 5 to 58 % wrong; factors
   in bf16 don't, and as v̂ − v is taken before it is rounded, a v̂ near v keeps its digits. Where v is far longer than
   v̂ its rounding would drown v̂: such a row has v̂ in the place of v̂ − v.
2. one program a row: normalisers of both sides, then KL and q − p, rounded to the table's dtype.
3. (q − p) E, float32 out: [R, D]. a_i and the scale go on after it, in float32.

Source: method section of arXiv 2508.06895, semantic distribution supervision. Making the gradient in the forward, chunk
by chunk, is the idea of Liger-Kernel's fused linear losses (arXiv 2410.10989, section 3); the numerics are ours.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from basic_lite_kernels.eager_vocab_kl import with_gradients
from basic_lite_kernels.triton_support import require, why_not

# Four numbers a thread and side, so that a load is 16 bytes; 40 registers, so that a processor is full of threads.
# No smaller than the number of threads: q − p may overwrite z. Stack on sm_80 to sm_120:
#
#     BLOCK_V  warps   triton 3.6.0, 3.7.1, 3.9.0
#     1024     8       0
#     2048     8       spills on sm_120 (3.9.0)
#     32768    32      spills (3.9.0)
BLOCK_V = 1024
# A product and a sum stay two roundings. In one instruction z − maximum isn't the difference of the z that the maximum
# was taken of: where both sides agree, or p is nearly 1, that is all there is (an error of 2 % on an H200).
OPTIONS = {"num_warps": 8, "num_stages": 1, "enable_fp_fusion": False}

# Bytes of logits and q − p in flight; none of it is the step's peak. On a card of LARGE_CARD_BYTES or more, whole
# batches; on a smaller one the 576 tokens of an image, and fewer of a vocabulary beyond 78,000. Each chunk reads the
# table twice.
SCRATCH_BYTES = 450 * 10**6
SCRATCH_ROWS = 576
LARGE_CARD_BYTES = 40 * 2**30
LARGE_SCRATCH_BYTES = 10**9

# q − p and p (u − KL) are multiplied by these before fp16 rounds them, and their products divided: a flat softmax over
# a large vocabulary is all below fp16's normal numbers. |q − p| ≤ 1; the other stays below 1000 for any sane logits.
FP16_LIFTS = (2.0**14, 2.0**6)

# v is far longer than v̂ when it is more than so many times as long. Then v̂ − v is longer than v̂, its rounding larger.
FAR = 2.0

# A logit that stands for "no word": far below any other, and finite, so that differences of two are 0 and not NaN.
_NONE = tl.constexpr(-1e38)
# Below this |log p − log q| differences of exponentials lose digits, and their series is exact to 5e-8.
_SERIES_BELOW = tl.constexpr(0.05)


@triton.jit
def _load_logits(z_ptr, change_ptr, excluded_ptr, words, V, stride, scale, base):
    """Scaled logits z and ẑ, [BLOCK_V]; ``_NONE`` behind the vocabulary's end and at excluded rows.

    What lies between V and the stride is read, in vectors, and dropped.
    """
    is_word = words < V
    if excluded_ptr is not None:
        is_word = is_word & (tl.load(excluded_ptr + words, mask=words < stride, other=1) == 0)
    z = tl.load(z_ptr + words, mask=words < stride, other=0.0) * scale
    change = tl.load(change_ptr + words, mask=words < stride, other=0.0) * scale
    return tl.where(is_word, z, _NONE), tl.where(is_word, z * base + change, _NONE)


@triton.jit
def _online(top, total, z):
    """One step of the online softmax, a lane by itself: new maximum, new Σ e^{z − maximum}; one exponential."""
    shrink = tl.exp(-tl.abs(z - top))
    total = tl.where(z > top, total * shrink + 1.0, total + shrink)
    return tl.maximum(top, z), total


@triton.jit
def _compare(z, z_target, log_total, log_ratio):
    """p, u = log p − log q, and q − p, [BLOCK_V], from logits less their maximum: nothing overflows.

    q − p = −sign(u) · max(p, q) · (1 − e^{−|u|}), which is no difference of nearby numbers.
    """
    log_p = z_target - log_total
    u = z_target - z - log_ratio
    gap = tl.abs(u)
    series = gap * (1.0 - gap * (0.5 - gap * (1.0 / 6 - gap * (1.0 / 24))))
    share = tl.where(gap < _SERIES_BELOW, series, 1.0 - tl.exp(-gap)) * tl.exp(log_p + tl.maximum(-u, 0.0))
    return tl.exp(log_p), u, tl.where(u > 0.0, -share, share)


@triton.jit(do_not_specialize=["V"], do_not_specialize_on_alignment=["kl_ptr", "base_ptr"])
def vocab_kl_kernel(
    z_ptr,  # [R, V] float32, unscaled logits of v
    change_ptr,  # [R, V] float32, unscaled logits of v̂ − base · v
    base_ptr,  # [R] float32, 1 or 0
    excluded_ptr,  # [stride] uint8, or None
    kl_ptr,  # [R] float32, written
    dz_ptr,  # [R, V] written with (q − p) · lift, or None; may be z_ptr
    dtarget_ptr,  # [R, V] written with p (u − KL) · lift_target, or None; may be change_ptr; needs dz_ptr
    stride,  # of rows of the four, V rounded up to 16
    V,
    scale,
    lift,
    lift_target,
    BLOCK_V: tl.constexpr,
):
    """One row: KL(p ‖ q) and what multiplies E in the gradients. Reads the two rows of logits twice, or three times."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * stride
    change_ptr += row * stride
    base = tl.load(base_ptr + row)
    lanes = tl.arange(0, BLOCK_V)

    # Each lane keeps its own maximum and sum, so the loop has no reduction across threads.
    top = tl.full([BLOCK_V], _NONE, tl.float32)
    top_target = top
    total = tl.zeros([BLOCK_V], tl.float32)
    total_target = total
    for start in range(0, V, BLOCK_V):
        z, z_target = _load_logits(z_ptr, change_ptr, excluded_ptr, start + lanes, V, stride, scale, base)
        top, total = _online(top, total, z)
        top_target, total_target = _online(top_target, total_target, z_target)
    m = tl.max(top, axis=0)
    m_target = tl.max(top_target, axis=0)
    row_total = tl.sum(total * tl.exp(top - m), axis=0)
    row_total_target = tl.sum(total_target * tl.exp(top_target - m_target), axis=0)
    log_total = tl.log(row_total_target)
    # Not the difference of the logs, which has the rounding of numbers near log V. A plain division is compiled to
    # one that may be 2 units off in the last place, also x / x.
    log_ratio = tl.log(tl.div_rn(row_total_target, row_total))

    # KL = Σ p (u + e^{−u} − 1): the definition's Σ p u, plus Σ q − Σ p = 0. No term is negative, and an error of the
    # normalisers drops out to first order.
    terms = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, V, BLOCK_V):
        words = start + lanes
        z, z_target = _load_logits(z_ptr, change_ptr, excluded_ptr, words, V, stride, scale, base)
        p, u, difference = _compare(z - m, z_target - m_target, log_total, log_ratio)
        series = p * u * u * (0.5 - u * (1.0 / 6 - u * (1.0 / 24 - u * (1.0 / 120))))
        terms += tl.where(tl.abs(u) < _SERIES_BELOW, series, p * u + difference)
        if dz_ptr is not None and dtarget_ptr is None:
            tl.store(dz_ptr + row * stride + words, difference * lift, mask=words < stride)
    kl = tl.sum(terms, axis=0)
    tl.store(kl_ptr + row, kl)

    if dtarget_ptr is not None:
        for start in range(0, V, BLOCK_V):
            words = start + lanes
            z, z_target = _load_logits(z_ptr, change_ptr, excluded_ptr, words, V, stride, scale, base)
            p, u, difference = _compare(z - m, z_target - m_target, log_total, log_ratio)
            tl.store(dz_ptr + row * stride + words, difference * lift, mask=words < stride)
            tl.store(dtarget_ptr + row * stride + words, p * (u - kl) * lift_target, mask=words < stride)


def rows_in_flight(M: int, V: int, device: torch.device) -> int:
    """Rows R of a chunk: what the card's scratch allows at 10·V bytes a row, in chunks of equal size."""
    budget, most = SCRATCH_BYTES, SCRATCH_ROWS
    if device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= LARGE_CARD_BYTES:
        budget, most = LARGE_SCRATCH_BYTES, M
    rows = max(1, min(most, max(16, budget // (10 * V))))
    chunks = max(1, -(-M // rows))
    return max(1, -(-M // chunks))


def supports(v: Tensor, target: Tensor, table: Tensor) -> str | None:
    """Why the kernel doesn't take v, v̂ [M, D] and E [V, D]; None where it does."""
    return why_not(v, target, table)


# An operator of its own, so that torch.compile sees one opaque step with known shapes: no graph break.
@torch.library.custom_op("basic_lite::vocab_kl", mutates_args=())
def _launch(
    v: Tensor, target: Tensor, table: Tensor, weights: Tensor, scale: float, excluded: Tensor | None,
    chunk_rows: int | None, wants_v: bool, wants_target: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss, its gradient for v and for target; an unwanted gradient is empty."""
    M, D = v.shape
    V = table.shape[0]
    R = max(1, min(M, rows_in_flight(M, V, v.device) if chunk_rows is None else chunk_rows))
    wants_v = wants_v or wants_target  # the kernel makes the second only with the first
    dv = torch.empty(v.shape if wants_v else (0,), dtype=v.dtype, device=v.device)
    dtarget = torch.empty(target.shape if wants_target else (0,), dtype=target.dtype, device=v.device)
    kl = torch.empty(M, dtype=torch.float32, device=v.device)
    factor = (weights.to(torch.float32) * scale).unsqueeze(1)  # [M, 1]
    length, target_length = (torch.linalg.vector_norm(x, dim=1, dtype=torch.float32) for x in (v, target))
    base = (length <= FAR * target_length).to(torch.float32)  # [M]

    stride = -(-V // 16) * 16  # every row starts at a multiple of 64 bytes, so loads are vectors
    mask = None if excluded is None else torch.nn.functional.pad(excluded.view(torch.uint8), (0, stride - V))
    logits = torch.empty(2 * R, stride, dtype=torch.float32, device=v.device)
    # A 16-bit table: one buffer first holds [v̂ − v; v] in its dtype, then q − p. A float32 table: q − p overwrites z.
    rounds = table.dtype != torch.float32
    lifts = FP16_LIFTS if table.dtype == torch.float16 else (1.0, 1.0)
    outputs = int(wants_v) + int(wants_target)
    scratch = torch.empty(R * max(outputs * stride, 2 * D) if rounds else 0, dtype=table.dtype, device=v.device)
    with torch.autocast(v.device.type, enabled=False), torch.cuda.device_of(v):
        for start in range(0, M, R):
            rows = slice(start, min(start + R, M))
            r = rows.stop - rows.start
            change, z = logits[:r, :V], logits[r : 2 * r, :V]
            if rounds:
                factors = scratch[: 2 * r * D].view(2 * r, D)
                _less(target[rows], v[rows], base[rows], out=factors[:r])
                factors[r:].copy_(v[rows])
                _mm(factors, table.T, logits[: 2 * r, :V])
                buffers = [scratch[i * r * stride :][: r * stride].view(r, stride)[:, :V] for i in range(outputs)]
            else:
                _mm(_less(target[rows], v[rows], base[rows]), table.T, change)
                _mm(v[rows].float(), table.T, z)
                buffers = [z, change][:outputs]
            dz, dz_target = (*buffers, None, None)[:2]
            vocab_kl_kernel[(r,)](
                z_ptr=z,
                change_ptr=change,
                base_ptr=base[rows],
                excluded_ptr=mask,
                kl_ptr=kl[rows],
                dz_ptr=dz,
                dtarget_ptr=dz_target,
                stride=stride,
                V=V,
                scale=scale,
                lift=lifts[0],
                lift_target=lifts[1],
                BLOCK_V=BLOCK_V,
                **OPTIONS,
            )
            for difference, gradient, lift in ((dz, dv, lifts[0]), (dz_target, dtarget, lifts[1])):
                if difference is not None:
                    _scaled_product(difference, table, factor[rows] / lift, gradient[rows])
    loss = (kl.double() * weights.double()).sum().to(torch.float32)
    return loss, dv, dtarget


@_launch.register_fake
def _(v: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    wants_v, wants_target = rest[-2:]
    dv = v.new_empty(v.shape if wants_v or wants_target else (0,))
    dtarget = target.new_empty(target.shape if wants_target else (0,))
    return v.new_empty((), dtype=torch.float32), dv, dtarget


def _less(target: Tensor, v: Tensor, base: Tensor, out: Tensor | None = None) -> Tensor:
    """v̂ − base · v, [R, D], taken in float32; v and v̂ [R, D], base [R] float32."""
    return torch.addcmul(target, v, base.unsqueeze(1), value=-1, out=out)


def _mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, [n, k] × [k, m], float32 out of 16-bit factors."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:  # the interpreter, in tests: CPUs have no such product
        torch.mm(a.float(), b.float(), out=out)


def _scaled_product(difference: Tensor, table: Tensor, factor: Tensor, out: Tensor) -> None:
    """out = factor · (difference E), [R, D]: multiplied and scaled in float32, then rounded."""
    product = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    _mm(difference, table, product)
    product.mul_(factor)
    if product is not out:
        out.copy_(product)


def vocab_kl(
    v: Tensor, target: Tensor, table: Tensor, weights: Tensor, *, scale: float = 1.0, excluded: Tensor | None = None,
    chunk_rows: int | None = None,
) -> Tensor:  # fmt: skip
    """``eager_vocab_kl.vocab_kl`` by the kernel, argument by argument.

    Unlike eager code it rounds v and v̂ − v [M, D] (v̂ where v is FAR longer) to the type of the table [V, D] before they
    meet it, as matrix instructions want. ``chunk_rows`` None: ``rows_in_flight``.

    Returns:
        A scalar ≥ 0, float32; 0 where both sides agree.

    Raises:
        KernelUnavailable: see ``supports``.
        ValueError: shapes that don't fit one another.

    Peak extra bytes: 4·M·D for the gradient, made in the forward (2·M·D for 16-bit v), and independent of M
    max(10·R·V, 8·R·V + 4·R·D) for a 16-bit table, 8·R·V + 4·R·D for a float32 one (two more, 12·R·V, where a 16-bit
    table's target wants a gradient; V rounded up to 16), and V for a mask. Backward: 4·M·D.
    """
    require("vocab_kl", supports(v, target, table))
    # The kernel goes by addresses, so sizes are looked at here.
    if target.shape != v.shape or weights.shape != v.shape[:1] or table.shape[1:] != v.shape[1:]:
        raise ValueError(
            f"vocab_kl: v {tuple(v.shape)}, target {tuple(target.shape)}, weights {tuple(weights.shape)}, table "
            f"{tuple(table.shape)}; they must be [M, D], [M, D], [M], [V, D]"
        )
    if excluded is not None and (excluded.shape != table.shape[:1] or excluded.dtype != torch.bool):
        raise ValueError(f"vocab_kl: excluded is {excluded.dtype} {tuple(excluded.shape)}; it must be bool [V]")
    wants = [torch.is_grad_enabled() and x.requires_grad for x in (v, target)]
    inputs = v.detach(), target.detach(), table.detach(), weights.detach()
    loss, *gradients = _launch(*inputs, scale, excluded, chunk_rows, *wants)
    dv, dtarget = (made if wanted else None for made, wanted in zip(gradients, wants, strict=True))
    return with_gradients(v, target, loss, dv, dtarget)
