"""Directional alignment (DAS) as Triton kernels: layers stream into v̂, and loss and gradient come in one pass.

Symbols: B batch · T sequence · M packed visual tokens · D hidden size · K supervised layers. One program has one row.

    after layer h < K   capture_layer: acc[M, D] += w_h · hidden[positions]
    after layer K       capture_and_direction_loss: the same, finishing v̂, and in that pass each row's distance and its
                        gradient, both without a_i, which may not be known yet (``token_weights: uniform``)
    at the loss         weighted_direction_loss: Σ_i a_i distance_i; a_i and the upstream gradient go onto the gradient
                        in the backward, row by row, read on the device

``direction_loss`` has the last two in one call for a v̂ that is already there. Beyond v, all of it holds v̂ and one
gradient: 8 bytes per M·D, where the naive chain (stack, sum, normalise, subtract) holds 132. Sums are float32.
Source: method section of arXiv 2508.06895, target embeddings and direction alignment supervision; streaming is ours.
"""

# mypy: disable-error-code="no-untyped-def"
# (arguments of a kernel have no Python types)

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from basic_lite_kernels import reference
from basic_lite_kernels.compiling import CompileCase

Kind = Literal["cosine", "mse"]

# A row stays in registers: 32 numbers of v and of v̂ a thread, 16 warps. No decoder's hidden size is larger.
LONGEST_ROW = 16384
# Columns that a program takes where rows are not reduced, and its warps.
ELEMENTWISE = {"BLOCK_D": 1024, "num_warps": 4}
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Direction(NamedTuple):
    """What the pass over layer K leaves for ``weighted_direction_loss``; no part has a graph."""

    target: Tensor  # [M, D] float32, v̂ (the same memory as acc)
    distance: Tensor  # [M] float32: 2 − 2 cos θ_i, or mean_D (v_i − v̂_i)²
    dv: Tensor | None  # [M, D] float32, ∂ distance_i / ∂ v_i; None where v needs no gradient


@triton.jit
def _captured(acc, hidden, position, weight, T, stride_b, stride_t, columns, inside, FIRST: tl.constexpr):
    """acc + weight · hidden[position] for some columns of a row; FIRST: acc holds nothing yet."""
    source = hidden + position // T * stride_b + position % T * stride_t
    y = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32) * weight
    if not FIRST:
        y += tl.load(acc + columns, mask=inside, other=0.0)
    return y


@triton.jit(do_not_specialize=["T"])
def capture_layer_kernel(
    acc,  # [M, D] float32, changed
    hidden, positions,  # [B, T, D] and [M] int64
    weight, T, D, stride_b, stride_t,
    FIRST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_D columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    acc += row * D
    position = tl.load(positions + row)
    y = _captured(acc, hidden, position, weight, T, stride_b, stride_t, columns, inside, FIRST)
    tl.store(acc + columns, y, mask=inside)


@triton.jit
def _inverse_norm(x):
    """1/‖x‖, 0 for a zero row. Squares that overflow give 0 too, as in the reference: no NaN from finite rows."""
    norm = tl.sqrt_rn(tl.sum(x * x))
    return tl.where(norm > 0, tl.div_rn(1.0, tl.where(norm > 0, norm, 1.0)), 0.0)


@triton.jit(do_not_specialize=["T"])
def direction_loss_kernel(
    v,  # [M, D]
    target,  # [M, D]; float32 and changed where hidden is given
    distance,  # [M] float32, written
    dv, dtarget,  # [M, D] float32, written, or None
    hidden, positions,  # [B, T, D] and [M] int64, or None
    weight, T, D, stride_v, stride_target, stride_b, stride_t,
    COSINE: tl.constexpr, FIRST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row: finish v̂ where hidden is given, then the distance of v and v̂ and its gradients. Reads each once."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    x = tl.load(v + row * stride_v + columns, mask=inside, other=0.0).to(tl.float32)
    target += row * stride_target
    if hidden is None:
        y = tl.load(target + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        position = tl.load(positions + row)
        y = _captured(target, hidden, position, weight, T, stride_b, stride_t, columns, inside, FIRST)
        tl.store(target + columns, y, mask=inside)

    # The gradients are scale_x (y − share · x) and scale_y (x − share · y), of unit rows x, y with the cosine.
    if COSINE:
        inverse_x = _inverse_norm(x)
        inverse_y = _inverse_norm(y)
        x *= inverse_x
        y *= inverse_y
        # From the differences: 2 − 2 x·y loses every digit of a small distance.
        total = tl.sum((x - y) * (x - y))
        total = tl.where((inverse_x > 0) & (inverse_y > 0), total, 2.0)
        share = 1 - total / 2  # cos θ; 0 with a zero row
        scale_x = -2 * inverse_x
        scale_y = -2 * inverse_y
    else:
        total = tl.sum((x - y) * (x - y)) / D
        share = 1.0
        scale_x = -2.0 / D
        scale_y = scale_x
    tl.store(distance + row, total)
    if dv is not None:
        tl.store(dv + row * D + columns, (y - share * x) * scale_x, mask=inside)
    if dtarget is not None:
        tl.store(dtarget + row * D + columns, (x - share * y) * scale_y, mask=inside)


@triton.jit
def direction_loss_backward_kernel(
    out, gradient, weights, upstream,  # [M, D] written, maybe the gradient; [M, D] float32; [M]; a scalar
    D, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_D columns of one row, times a_i and the upstream gradient."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    factor = tl.load(weights + row).to(tl.float32) * tl.load(upstream).to(tl.float32)
    x = tl.load(gradient + row * D + columns, mask=inside, other=0.0)
    tl.store(out + row * D + columns, x * factor, mask=inside)


def row_options(D: int) -> dict[str, int]:
    """Configuration of ``direction_loss_kernel``: a row in one block, 16 numbers a thread, 32 above 4096."""
    block = max(triton.next_power_of_2(D), 1024)
    return {"BLOCK_D": block, "num_warps": 16 if block > 8192 else min(block // 512, 8)}


@torch.compiler.disable
def capture_layer(acc: Tensor | None, hidden: Tensor, positions: Tensor, weight: float) -> Tensor:
    """Add one layer's share of the target: ``acc[i] += weight · hidden.view(B·T, D)[positions[i]]``.

    Args:
        acc: [M, D] float32, changed in place; None starts at zero, without writing the zeros.
        hidden: [B, T, D], float32, float16 or bfloat16; strides of B and T are free.
        positions, weight: [M] int64, indices into the flattened B·T; w_h of this layer.

    Returns:
        acc, [M, D]. Where grad mode is on and ``hidden`` or ``acc`` has a graph (target not detached) a new tensor with
        a graph, made by the reference's ``capture_layer``: its backward is PyTorch's own scatter.

    Peak extra bytes beyond ``acc`` (4·M·D): 0. With a graph: 8·M·D.
    Source: method section, target embeddings v̂ = Σ_h w_h ṽ_h; streaming is ours.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or (acc is not None and acc.requires_grad)):
        return reference.capture_layer(acc, hidden, positions, weight)
    hidden, first, positions = _rows("hidden", hidden), acc is None, positions.contiguous()
    acc = _accumulator(acc, hidden, positions)
    M, D = acc.shape
    if M:
        sizes = hidden.shape[1], D, hidden.stride(0), hidden.stride(1)
        grid = M, triton.cdiv(D, ELEMENTWISE["BLOCK_D"])
        with torch.cuda.device_of(acc):
            capture_layer_kernel[grid](acc, hidden, positions, float(weight), *sizes, FIRST=first, **ELEMENTWISE)
    return acc


@torch.compiler.disable
def capture_and_direction_loss(
    acc: Tensor | None, hidden: Tensor, positions: Tensor, weight: float, v: Tensor, kind: Kind = "cosine"
) -> Direction:
    """``capture_layer`` of layer K and, in the same pass, each row's distance to v with its gradient.

    Args:
        acc, hidden, positions, weight: as ``capture_layer`` takes them. No graph is kept to ``hidden``.
        v, kind: [M, D], the initial visual embeddings; "cosine" or "mse".

    Returns:
        v̂ and what ``weighted_direction_loss`` needs. The gradient is made where ``v`` requires one, whatever grad mode
        is: a checkpointed layer's hook may run with it off.

    Peak extra bytes beyond ``acc`` (4·M·D): 4·M·D for the gradient + 4·M. Traffic: 18·M·D bytes with a bf16 ``hidden``.
    Source: method section, direction alignment supervision; ``mse`` from the ablations; the fusion is ours.
    """
    hidden, first, positions = _rows("hidden", hidden.detach()), acc is None, positions.contiguous()
    acc = _accumulator(None if acc is None else acc.detach(), hidden, positions)
    distance, dv, _ = _measure(v, acc, kind, (v.requires_grad, False), (hidden, positions, float(weight), first))
    return Direction(acc, distance, dv)


@torch.compiler.disable
def weighted_direction_loss(v: Tensor, direction: Direction, weights: Tensor) -> Tensor:
    """Σ_i a_i distance_i of the pass that ``capture_and_direction_loss`` made.

    Args:
        v, direction: [M, D], the v of that pass, with its graph; and what the pass returned.
        weights: [M], a_i, constants.

    Returns:
        A scalar, float32, with a graph to ``v`` alone.

    Peak extra bytes: 12·M. The backward turns the pass's gradient into the result, in place; a retained graph, or a v
    that isn't float32, costs one more [M, D]. Source: as ``capture_and_direction_loss``.
    """
    _require_weights(v, weights)
    return _DirectionLoss.apply(v, direction.target, weights, direction.distance, direction.dv, None)


@torch.compiler.disable
def direction_loss(v: Tensor, target: Tensor, weights: Tensor, kind: Kind = "cosine") -> Tensor:
    """Directional alignment (DAS), summed over rows.

    ``cosine``: Σ_i a_i ‖v_i/‖v_i‖ − v̂_i/‖v̂_i‖‖² = Σ_i a_i (2 − 2 cos θ_i), with
    ∂/∂v_i = −2 a_i (v̂_i/‖v̂_i‖ − cos θ_i · v_i/‖v_i‖) / ‖v_i‖, and ∂/∂v̂_i the same with v and v̂ exchanged. A zero
    vector has no direction: its cosine counts as 0 (the term is 2 a_i) and both gradients are 0.
    ``mse``: Σ_i a_i mean_D (v_i − v̂_i)², with ∂/∂v_i = 2 a_i (v_i − v̂_i) / D = −∂/∂v̂_i.

    Args:
        v: [M, D], the initial visual embeddings; float32, float16 or bfloat16.
        target: [M, D], v̂; gets a gradient only when it requires one.
        weights, kind: [M], a_i, constants; "cosine" or "mse".

    Returns:
        A scalar, float32.

    Peak extra bytes: 4·M·D for the gradient, made in the forward and scaled in place in the backward, + 12·M; 4·M·D
    more for the target's gradient, for a retained graph, and for inputs that aren't float32.
    Source: method section, direction alignment supervision; ``mse`` from the ablations.
    """
    _require_weights(v, weights)
    needed = [torch.is_grad_enabled() and x.requires_grad for x in (v, target)]
    return _DirectionLoss.apply(v, target, weights, *_measure(v, target, kind, needed))


def _require_weights(v: Tensor, weights: Tensor) -> None:
    if weights.shape != v.shape[:1]:
        raise ValueError(f"weights are {list(weights.shape)} for v {list(v.shape)}; they must be [M]")


def _measure(
    v: Tensor, target: Tensor, kind: str, needed: Iterable[bool], capture: tuple[Any, ...] | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Distances [M] and their gradients for v and the target, [M, D] where ``needed``; all float32, without a_i.

    ``capture``: hidden, positions, weight and whether ``target`` holds nothing yet.
    """
    if kind not in ("cosine", "mse"):
        raise ValueError(f"direction_loss has no kind {kind!r}; it has 'cosine' and 'mse'")
    M, D = v.shape
    if target.shape != v.shape or D > LONGEST_ROW:
        raise ValueError(
            f"v is {list(v.shape)} and the target {list(target.shape)}; both must be [M, D], D at most {LONGEST_ROW} "
            "(kernels: reference has no such limit)"
        )
    v, target = _rows("v", v.detach()), _rows("target", target.detach())
    hidden, positions, weight, first = capture or (None, None, 0.0, False)
    distance = torch.empty(M, dtype=torch.float32, device=v.device)
    dv, dtarget = (distance.new_empty(M, D) if need else None for need in needed)
    T, *of_hidden = (1, 0, 0) if hidden is None else (hidden.shape[1], hidden.stride(0), hidden.stride(1))
    if M:
        with torch.cuda.device_of(v):
            direction_loss_kernel[(M,)](
                v, target, distance, dv, dtarget, hidden, positions, weight, T, D,
                v.stride(0), target.stride(0), *of_hidden,
                COSINE=kind == "cosine", FIRST=first, **row_options(D),
            )  # fmt: skip
    return distance, dv, dtarget


def _rows(name: str, x: Tensor) -> Tensor:
    """x with a contiguous last dimension; copied only where it has none."""
    if x.dtype not in _TYPES:
        raise TypeError(f"{name} is {x.dtype}; the Triton kernels take float32, float16, bfloat16 (kernels: reference)")
    return x if x.stride(-1) == 1 else x.contiguous()


def _accumulator(acc: Tensor | None, hidden: Tensor, positions: Tensor) -> Tensor:
    """acc, or memory for it. [M, D]"""
    shape = (positions.numel(), hidden.shape[-1])
    if acc is None:
        return torch.empty(shape, dtype=torch.float32, device=hidden.device)
    if acc.dtype != torch.float32 or not acc.is_contiguous() or acc.shape != shape:
        raise ValueError(f"acc is {acc.dtype} {list(acc.shape)}; it must be contiguous float32 {list(shape)}")
    return acc


class _DirectionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, target: Tensor, weights: Tensor, distance: Tensor, *rows: Any) -> Tensor:
        ctx.save_for_backward(weights, *rows)
        ctx.types = v.dtype, target.dtype
        return (distance * weights).sum(dtype=torch.float64).to(torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *gradients = ctx.saved_tensors
        # Where the graph goes away after this, so does the saved gradient, and its memory may be the result.
        # A private call: where a version of torch lacks it, the gradient is copied rather than scaled in place.
        keep = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()
        results = [
            None if gradient is None else _scaled(gradient, weights, grad, dtype, in_place=not keep)
            for gradient, dtype in zip(gradients, ctx.types, strict=True)
        ]
        return *results, None, None, None, None


def _scaled(gradient: Tensor, weights: Tensor, upstream: Tensor, dtype: torch.dtype, *, in_place: bool) -> Tensor:
    """gradient [M, D] times a_i and the upstream gradient; both are read on the device, so nothing waits."""
    if in_place and dtype == gradient.dtype:
        out = gradient
        # A second loss on the same pass must find out, not compute with what is left.
        torch.autograd.graph.increment_version(gradient)
    else:
        out = torch.empty_like(gradient, dtype=dtype)
    M, D = gradient.shape
    if M:
        grid = M, triton.cdiv(D, ELEMENTWISE["BLOCK_D"])
        with torch.cuda.device_of(out):
            direction_loss_backward_kernel[grid](out, gradient, weights.contiguous(), upstream, D, **ELEMENTWISE)
    return out


def compile_cases() -> list[CompileCase]:
    """Every configuration a launcher can choose: with bf16 layers, float32 v and v̂, and the most that a pass can do."""
    types = dict.fromkeys(("T", "D", "stride_v", "stride_target", "stride_b", "stride_t"), "i32")
    types |= {"weight": "fp32", "hidden": "*bf16", "positions": "*i64"}
    cases = []

    def add(name: str, function: Any, options: dict[str, int], **constants: Any) -> None:
        constants["BLOCK_D"] = options["BLOCK_D"]
        signature = {key: types.get(key, "*fp32") for key in function.arg_names if key not in constants}
        divisible = tuple(key for key in signature if key == "D" or key.startswith("stride"))
        warps = {"num_warps": options["num_warps"]}
        cases.append(CompileCase(name, function, signature, constants, warps, divisible=divisible))

    add("capture_layer", capture_layer_kernel, ELEMENTWISE, FIRST=False)
    add("capture_layer[first]", capture_layer_kernel, ELEMENTWISE, FIRST=True)
    add("direction_loss_backward", direction_loss_backward_kernel, ELEMENTWISE)
    for name, absent in (("direction_loss", ("hidden", "positions")), ("capture_and_direction_loss", ("dtarget",))):
        for D, kind in itertools.product((4096, 1024, 2048, 8192, 16384), ("cosine", "mse")):
            constants = {"COSINE": kind == "cosine", "FIRST": False, **dict.fromkeys(absent)}
            add(f"{name}[{kind}, BLOCK_D={D}]", direction_loss_kernel, row_options(D), **constants)
    return cases
