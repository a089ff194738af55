"""``attention_mass``, the attention each visual token gets from the text: no attention map, no atomics.

Symbols: B batch · H attention heads · H_kv key heads · T sequence · d head size · R text queries of a sample, C visual
tokens of a sample, at most.

    lse    pass 1: log Σ exp over all keys that a text query sees; a program has BLOCK_M of the listed queries
    sums   pass 2: Σ over heads and text queries of exp(score − LSE); a program has BLOCK_M of the listed visual keys
    add    the sums, split by split, onto what the layers before have left

Other queries cost nothing, nor do other keys in pass 2. That sums inside one program and writes each number once. Where
a batch is too small to fill the card with tiles of visual keys, the heads are split over programs, each with a partial
sum of its own, added up in order at the end. So the same inputs on the same card give the same bits, always. Source:
method section of arXiv 2508.06895, weights of visual tokens; the two passes follow FlashAttention-2's forward (arXiv
2307.08691, section 3.1) without values.
"""

# mypy: disable-error-code="no-untyped-def"
# (arguments of a kernel have no Python types)

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from basic_lite_kernels.signatures import MassTokens
from basic_lite_kernels.triton_support import AMD_SPILLS, INTERPRETED, ceil_div, is_amd, require, why_not

LOG2_E, LIST_BLOCK = 1 / math.log(2), 1024
# Visual tokens that a program of the last kernel adds, and its warps.
ADDED = {"BLOCK": 256, "num_warps": 4}
# Programs of pass 2 a multiprocessor: causal tiles differ in length.
_PROGRAMS_EACH = 4
# Numbers that change with every batch: no variant of a kernel for those that are 1 or multiples of 16.
_LENGTHS = ["T", "R", "C", "H", "heads_each", "splits", "group", "window"]


class Tiles(NamedTuple):
    """A pass holds BLOCK_M rows (pass 1: text queries; pass 2: keys) and reads the others, BLOCK_N at a time."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int
    maxnreg: int | None = None  # most registers a thread, where the compiler's own choice spills


# No stack on sm_80, 86, 89, 90 and 120 with triton 3.6.0 and 3.7.1, in 16 bits and in float32:
#
#     pass   d       tiles, warps, stages
#     lse    64      128x64, 4, 3
#     lse    128     128x64, 8, 2
#     lse    256     64x64, 8, 2
#     lse    > 256   64x32, 4, 1
#     sums   64      64x64, 8, 3, 168 regs
#     sums   128     64x64, 4, 3
#     sums   256     64x32, 8, 2, 168 regs
#     sums   > 256   64x32, 8, 2, 80 regs
#
# Tried: sums of d > 256 without a limit spill 8 bytes on sm_80, 86 and 89 (3.7.1) and 24 on sm_120 (3.6.0), since the
# compiler stops at 64 registers; in 64x64 24 bytes on sm_120 (3.7.1). A d that is no multiple of 16 spills up to 144
# bytes; no LLM has one. Tiles narrower than 64 columns of d spill too.
@lru_cache(maxsize=64)
def choose_tiles(d: int, dtype: torch.dtype) -> tuple[Tiles, Tiles]:
    """Tiles of pass 1 and pass 2: at most 32 bytes of stack on sm_80, 86, 89, 90 and 120, and 99 KiB of memory."""
    if dtype == torch.float32:
        return Tiles(64, 32, 4, 2), Tiles(64, 32, 4, 2)
    if d > 256:
        return Tiles(64, 32, 4, 1), Tiles(64, 32, 8, 2, maxnreg=80)
    if d > 128:
        return Tiles(64, 64, 8, 2), Tiles(64, 32, 8, 2, maxnreg=168)
    if d > 64:
        return Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 3)
    return Tiles(128, 64, 4, 3), Tiles(64, 64, 8, 3, maxnreg=168)


def supports(query: Tensor, key: Tensor) -> str | None:
    """Why the kernels don't take these queries and keys; None where they do."""
    if is_amd() and not INTERPRETED:
        return AMD_SPILLS
    if query.dtype != key.dtype:
        return f"queries are {query.dtype} and keys {key.dtype}"
    return why_not(query, key)


def _reads_whole_rows(d: int, dtype: torch.dtype) -> bool:
    """Whether a program holds all d columns of its tile, or a part of them at a time."""
    return dtype != torch.float32 and d <= 256


def _block_d(d: int, dtype: torch.dtype) -> int:
    """Columns of a dot, at least 64: narrower tiles spilled registers. Small heads are padded."""
    return max(64, triton.next_power_of_2(d)) if _reads_whole_rows(d, dtype) else 32


@triton.jit
def _scores(product, scale, cap, CAP: tl.constexpr):
    """Scores in base 2. With a soft cap ``scale`` is s / c and ``cap`` c·log2 e."""
    if CAP:
        x = product * scale
        e = tl.exp(-2 * tl.abs(x))
        size = cap * ((1 - e) / (1 + e))
        return tl.where(x < 0, -size, size)
    else:
        return product * scale


@triton.jit
def _load_tile(base, index, used, stride, size, d):
    """Rows ``index`` [N] of a [T, d] slice, its columns ``size`` [S]; 0 where not used or outside: [N, S]."""
    place = index[:, None].to(tl.int64) * stride + size[None, :]
    return tl.load(base + place, mask=used[:, None] & (size < d)[None, :], other=0.0)


@triton.jit
def _products(
    tile_m, base_m, index_m, used_m, stride_m,  # [BLOCK_M, BLOCK_D] with WHOLE; and where it comes from
    base_n, index_n, used_n, stride_n,  # the other tile
    d, WHOLE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Inner products of two tiles of rows, [BLOCK_M, BLOCK_N] float32."""
    size = tl.arange(0, BLOCK_D)
    if WHOLE:
        return tl.dot(tile_m, tl.trans(_load_tile(base_n, index_n, used_n, stride_n, size, d)))
    else:
        # Three tf32 products keep a float32's digits and need its registers thrice: a part of d at a time.
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for part in range(0, d, BLOCK_D):
            left = _load_tile(base_m + part, index_m, used_m, stride_m, size, d - part)
            right = _load_tile(base_n + part, index_n, used_n, stride_n, size, d - part)
            total = tl.dot(left, tl.trans(right), total, input_precision="tf32x3")
        return total


@triton.jit(do_not_specialize=_LENGTHS)
def attention_mass_lse_kernel(
    query, key,  # [B, H, T, d] and [B, H_kv, T, d]
    valid, rows,  # [B, T] and [B, R]
    lse,  # [B, H, R], base 2, written
    T, R, d, group, scale, cap, window,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    CAP: tl.constexpr, WINDOW: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One tile of text queries and one head: log2 Σ 2^score over every key that each of them sees."""
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.load(rows + b * R + place, mask=place < R, other=-1)
    if tl.max(row) < 0:
        return
    used = row >= 0
    query += b * stride_qb + h * tl.cast(stride_qh, tl.int64)
    key += b * stride_kb + h // group * tl.cast(stride_kh, tl.int64)
    tile_m = 0
    if WHOLE:
        tile_m = _load_tile(query, row, used, stride_qt, tl.arange(0, BLOCK_D), d)
    first = 0
    if WINDOW:
        earliest = tl.min(tl.where(used, row, T)) - window + 1
        first = tl.maximum(earliest, 0) // BLOCK_N * BLOCK_N
    total = tl.zeros([BLOCK_M], tl.float32)
    top = total - float("inf")
    for start in range(first, tl.max(row) + 1, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        inside = column < T
        product = _products(
            tile_m, query, row, used, stride_qt, key, column, inside, stride_kt, d, WHOLE, BLOCK_D, BLOCK_M, BLOCK_N
        )
        unpadded = tl.load(valid + b * T + column, mask=inside, other=0) != 0
        seen = unpadded[None, :] & (column[None, :] <= row[:, None])
        if WINDOW:
            seen = seen & (column[None, :] > row[:, None] - window)
        score = tl.where(seen, _scores(product, scale, cap, CAP), float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        # A row that has seen no key yet: −inf − −inf would be NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(score - base[:, None]), 1)
        top = higher
    total = tl.where(used, total, 1.0)
    tl.store(lse + (b * tl.num_programs(1) + h) * R + place, top + tl.log2(total), mask=used)


@triton.jit(do_not_specialize=_LENGTHS)
def attention_mass_sums_kernel(
    query, key,  # [B, H, T, d] and [B, H_kv, T, d]
    rows, columns,  # [B, R] and [B, C]
    lse,  # [B, H, R], base 2
    sums,  # [splits, B, C], written
    R, C, d, H, heads_each, group, scale, cap, window,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    CAP: tl.constexpr, WINDOW: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, LIST_BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of visual tokens and ``heads_each`` heads: what their text queries give each of them, over H."""
    split = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    at = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.load(columns + b * C + at, mask=at < C, other=-1)
    rightmost = tl.max(column)
    if rightmost < 0:
        return
    wanted = column >= 0
    leftmost = tl.min(tl.where(wanted, column, rightmost))

    # Text queries that see a column of this tile: in the list those from ``begin`` to ``end``.
    begin = tl.zeros([], tl.int32)
    end = begin
    for start in range(0, R, LIST_BLOCK):
        place = start + tl.arange(0, LIST_BLOCK)
        row = tl.load(rows + b * R + place, mask=place < R, other=-1)
        listed = row >= 0
        begin += tl.sum((listed & (row < leftmost)).to(tl.int32))
        if WINDOW:
            listed = listed & (row < rightmost + window)
        end += tl.sum(listed.to(tl.int32))

    total = tl.zeros([BLOCK_M], tl.float32)
    for h in range(split * heads_each, tl.minimum((split + 1) * heads_each, H)):
        queries = query + b * stride_qb + h * tl.cast(stride_qh, tl.int64)
        keys = key + b * stride_kb + h // group * tl.cast(stride_kh, tl.int64)
        tile_m = 0
        if WHOLE:
            tile_m = _load_tile(keys, column, wanted, stride_kt, tl.arange(0, BLOCK_D), d)
        head_lse = lse + (b * H + h) * R
        for start in range(begin, end, BLOCK_N):
            place = start + tl.arange(0, BLOCK_N)
            used = place < end
            row = tl.load(rows + b * R + place, mask=used, other=-1)
            norm = tl.load(head_lse + place, mask=used, other=0.0)
            product = _products(
                tile_m, keys, column, wanted, stride_kt, queries, row, used, stride_qt, d, WHOLE, BLOCK_D, BLOCK_M,
                BLOCK_N,
            )  # fmt: skip
            seen = column[:, None] <= row[None, :]  # never for the −1 of an unused place
            if WINDOW:
                seen = seen & (column[:, None] > row[None, :] - window)
            share = tl.exp2(_scores(product, scale, cap, CAP) - norm[None, :])
            total += tl.sum(tl.where(seen, share, 0.0), 1)
    tl.store(sums + (split.to(tl.int64) * tl.num_programs(2) + b) * C + at, total / H, mask=wanted)


@triton.jit(do_not_specialize=_LENGTHS)
def attention_mass_add_kernel(
    sums, columns,  # [splits, B, C] and [B, C]
    mass,  # [B, T] float32, added to
    T, C, splits, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK visual tokens of one sample: the splits' sums in their order, and what was there before."""
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.load(columns + b * C + at, mask=at < C, other=-1)
    wanted = column >= 0
    total = tl.zeros([BLOCK], tl.float32)
    sums += b * C + at
    for _ in range(splits):
        total += tl.load(sums, mask=wanted, other=0.0)
        sums += tl.num_programs(1) * C
    place = mass + b * T + column
    tl.store(place, tl.load(place, mask=wanted, other=0.0) + total, mask=wanted)


@torch.compiler.disable
@torch.no_grad()
def attention_mass(
    query: Tensor, key: Tensor, *, scaling: float, tokens: MassTokens, sliding_window: int | None = None,
    softcap: float | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``eager_attention_mass.attention_mass`` by kernels, argument by argument.

    Query [B, H, T, d] and key [B, H_kv, T, d] are float32, float16 or bfloat16; strides of B, H and T are free.

    Returns:
        [B, T] float32, 0 but at visual tokens; ``out`` where it is given. No graph. Deterministic: no atomics.

    Raises:
        KernelUnavailable: see ``supports``.
        ValueError: shapes that don't fit one another, an ``out`` that isn't contiguous float32, or a window below 1.

    Peak extra bytes: 4·B·T for the result, without ``out``; row statistics 4·B·R·H; partial sums ≤ 1024·P + 4·B·C, P
    the card's multiprocessors.
    """
    B, H, T, d = query.shape
    require("attention_mass", supports(query, key))
    _check(query, key, tokens, out)
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window}; it is a number of positions from 1 on, or None")
    mass = torch.zeros(B, T, dtype=torch.float32, device=query.device) if out is None else out
    rows, columns, valid = tokens.rows.contiguous(), tokens.columns.contiguous(), tokens.valid.contiguous()
    R, C = rows.shape[1], columns.shape[1]
    if B * T * H * R * C == 0:
        return mass
    query, key = (x if x.stride(-1) == 1 or d == 1 else x.contiguous() for x in (query, key))
    lse_tiles, sums_tiles = choose_tiles(d, query.dtype)
    heads_each = _heads_each(B, H, ceil_div(C, sums_tiles.BLOCK_M), query.device)
    splits = ceil_div(H, heads_each)
    lse, sums = (torch.empty(shape, dtype=torch.float32, device=query.device) for shape in ((B, H, R), (splits, B, C)))
    shared = {"query": query, "key": key, "rows": rows, "lse": lse, "R": R, "d": d, "group": H // key.shape[1]}
    shared |= {
        "window": min(sliding_window or 0, T),
        "scale": scaling * LOG2_E if softcap is None else scaling / softcap,
        "cap": 0.0 if softcap is None else softcap * LOG2_E,
        **{f"stride_{x}{name}": t.stride(i) for x, t in (("q", query), ("k", key)) for i, name in enumerate("bht")},
        "CAP": softcap is not None,
        "WINDOW": sliding_window is not None,
    }
    summed = {"columns": columns, "sums": sums, "C": C, "H": H, "heads_each": heads_each, "LIST_BLOCK": LIST_BLOCK}
    with torch.cuda.device_of(query):
        attention_mass_lse_kernel[(ceil_div(R, lse_tiles.BLOCK_M), H, B)](
            valid=valid.view(torch.uint8), T=T, **shared, **tile_options(d, query.dtype, lse_tiles)
        )
        attention_mass_sums_kernel[(ceil_div(C, sums_tiles.BLOCK_M), splits, B)](
            **shared, **summed, **tile_options(d, query.dtype, sums_tiles)
        )
        attention_mass_add_kernel[(ceil_div(C, ADDED["BLOCK"]), B)](sums, columns, mass, T, C, splits, **ADDED)
    return mass


@lru_cache(maxsize=64)
def tile_options(d: int, dtype: torch.dtype, tiles: Tiles) -> dict[str, Any]:
    """Constants and compiler options of a pass; made once, since each layer asks."""
    chosen = {name: value for name, value in tiles._asdict().items() if value is not None}
    return {"WHOLE": _reads_whole_rows(d, dtype), "BLOCK_D": _block_d(d, dtype), **chosen}


def _heads_each(B: int, H: int, tiles: int, device: torch.device) -> int:
    """Heads that one program of pass 2 sums over: as many as leave the card _PROGRAMS_EACH programs a processor."""
    return ceil_div(H, min(H, max(1, _PROGRAMS_EACH * _processors(device) // (B * tiles))))


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    """The card's multiprocessors; 1 for a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _check(query: Tensor, key: Tensor, tokens: MassTokens, out: Tensor | None) -> None:
    B, H, T, d = query.shape
    if key.shape[0] != B or key.shape[2:] != (T, d) or H % key.shape[1]:
        raise ValueError(f"query {list(query.shape)} and key {list(key.shape)} aren't [B, H, T, d] and [B, H_kv, T, d]")
    if tokens.valid.shape != (B, T) or tokens.rows.shape[0] != B or tokens.columns.shape[0] != B:
        raise ValueError(f"the tokens are of {list(tokens.valid.shape)}; the query has [{B}, {T}]")
    if out is not None and (out.dtype != torch.float32 or not out.is_contiguous() or out.shape != (B, T)):
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; it must be contiguous float32 [{B}, {T}]")
