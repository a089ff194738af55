"""v̂ and the DAS loss as Triton kernels: layers are added as they pass; loss and gradient take one pass.

Symbols: B batch · T sequence · M packed visual tokens · D hidden size · K supervised layers. One program has one row.

    after layer h < K   capture_layer: acc[M, D] += w_h · hidden[positions], maybe with a factor for each row and
                        without the massive dimensions (``row_scaling`` finds the factors)
    after layer K       the fused pass: the same, which finishes v̂, and each row's distance to v with its gradient,
                        both without a_i, which isn't known yet with ``token_weights: uniform``
    at the loss         Σ_i a_i distance_i; in the backward a_i and the upstream gradient are multiplied onto the
                        gradient, row by row, read on the device

Beyond v this holds v̂ and one gradient: 8 bytes per M·D, where the naive chain (stack, sum, normalise, subtract) holds
132. Sums are float32. Source: method section of arXiv 2508.06895, target embeddings and direction alignment
supervision; the streaming and the fusion are ours.

Compiled without spills (stack 0) on sm_80 to sm_120 by triton 3.6.0, 3.7.1 and 3.9.0, with factors and massive
dimensions or without:

    kernel                          BLOCK_D        warps
    capture_layer, backward         1024           4
    direction_loss, fused pass      1024 to 4096   BLOCK_D / 512
                                    8192           8
                                    16384          16
"""

# mypy: disable-error-code="no-untyped-def"
# (arguments of a kernel have no Python types)

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from basic_lite_kernels import eager_direction_loss
from basic_lite_kernels.signatures import Kind, RowScaling
from basic_lite_kernels.triton_support import ceil_div, require, why_not

# A row stays in registers: 32 numbers of v and of v̂ a thread, 16 warps. No decoder's hidden size is larger.
LONGEST_ROW = 16384
# Columns that a program takes where rows are not reduced, and its warps.
ELEMENTWISE = {"BLOCK_D": 1024, "num_warps": 4}
# What a kernel is told where no layer is added.
_NO_LAYER = {"hidden": None, "positions": None, "factor": None, "massive": None, "weight": 0.0}
_NO_LAYER |= {"T": 1, "stride_b": 0, "stride_t": 0, "FIRST": False}


def supports(rows: Tensor) -> str | None:
    """Why the kernels don't take rows like those of ``rows`` [..., D]; None where they do."""
    D = rows.shape[-1]
    return why_not(rows) or (f"rows of {D} numbers, and a kernel holds {LONGEST_ROW}" if D > LONGEST_ROW else None)


@triton.jit
def _captured(
    acc, hidden, positions, factor, massive, row, weight, T, stride_b, stride_t, columns, inside, FIRST: tl.constexpr
):  # fmt: skip
    """acc + weight · factor · hidden for some columns of a row, 0 for massive ones; FIRST: acc holds nothing yet."""
    position = tl.load(positions + row)
    source = hidden + position // T * stride_b + position % T * stride_t
    wanted = inside
    if massive is not None:
        wanted = inside & (tl.load(massive + columns, mask=inside, other=1) == 0)
    if factor is not None:
        weight *= tl.load(factor + row)
    y = tl.load(source + columns, mask=wanted, other=0.0).to(tl.float32) * weight
    if not FIRST:
        y += tl.load(acc + columns, mask=inside, other=0.0)
    return y


@triton.jit(do_not_specialize=["T"])
def capture_layer_kernel(
    acc,  # [M, D] float32, changed
    hidden, positions,  # [B, T, D] and [M] int64
    factor, massive,  # [M] float32, or None, and [D] uint8, or None
    weight, T, D, stride_b, stride_t,
    FIRST: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_D columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < D
    acc += row * D
    y = _captured(acc, hidden, positions, factor, massive, row, weight, T, stride_b, stride_t, columns, inside, FIRST)
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
    factor, massive,  # [M] float32, or None, and [D] uint8, or None
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
        y = _captured(
            target, hidden, positions, factor, massive, row, weight, T, stride_b, stride_t, columns, inside, FIRST
        )
        tl.store(target + columns, y, mask=inside)

    # The gradients are scale_x (y − share · x) and scale_y (x − share · y), of unit rows x, y with the cosine.
    if COSINE:
        inverse_x = _inverse_norm(x)
        inverse_y = _inverse_norm(y)
        x *= inverse_x
        y *= inverse_y
        # From the differences: 2 − 2 x·y loses every digit of a small distance. A zero row gives 2, a broken one NaN.
        total = tl.sum((x - y) * (x - y))
        total = tl.where((inverse_x > 0) & (inverse_y > 0), total, total * 0 + 2)
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


@lru_cache(maxsize=64)
def row_options(D: int) -> dict[str, int]:
    """Configuration of ``direction_loss_kernel``: a row in one block, 16 numbers a thread, 32 above 4096."""
    block = max(triton.next_power_of_2(D), 1024)
    return {"BLOCK_D": block, "num_warps": 16 if block > 8192 else min(block // 512, 8)}


@torch.compiler.disable
def capture_layer(
    acc: Tensor | None, hidden: Tensor, positions: Tensor, weight: float, scaling: RowScaling | None = None
) -> Tensor:
    """``eager_direction_loss.capture_layer`` by a kernel, argument by argument.

    ``acc`` [M, D] is float32; None starts at zero, without writing the zeros. ``hidden`` [B, T, D] is float32, float16
    or bfloat16; strides of B and T are free.

    Returns:
        acc. Where grad mode is on and ``hidden`` or ``acc`` has a graph (target not detached) a new tensor with a
        graph, made by eager code: its backward is PyTorch's own scatter.

    Raises:
        KernelUnavailable: see ``supports``.

    Peak extra bytes beyond ``acc`` (4·M·D): 0. With a graph: as eager code.
    """
    if _has_graph(acc, hidden):
        return eager_direction_loss.capture_layer(acc, hidden, positions, weight, scaling)
    require("capture_layer", supports(hidden))
    acc, layer = _next_layer(acc, hidden, positions, weight, scaling)
    M, D = acc.shape
    if M:
        grid = M, ceil_div(D, ELEMENTWISE["BLOCK_D"])
        with torch.cuda.device_of(acc):
            capture_layer_kernel[grid](acc=acc, D=D, **layer, **ELEMENTWISE)
    return acc


@torch.compiler.disable
def direction_loss(v: Tensor, target: Tensor, weights: Tensor, kind: Kind = "cosine") -> Tensor:
    """``eager_direction_loss.direction_loss`` by a kernel, argument by argument; a scalar, float32.

    ∂/∂v̂_i is ∂/∂v_i with v and v̂ exchanged; with ``mse`` ∂/∂v_i = 2 a_i (v_i − v̂_i) / D = −∂/∂v̂_i.

    Raises:
        KernelUnavailable: see ``supports``.

    Peak extra bytes: 4·M·D for the gradient, made in the forward and scaled in place in the backward, + 12·M; 4·M·D
    more for the target's gradient, for a retained graph, and for inputs that aren't float32.
    """
    require("direction_loss", supports(v) or supports(target))
    wants_v, wants_target = (torch.is_grad_enabled() and x.requires_grad for x in (v, target))
    measured = _measure(v, target, kind, wants_v=wants_v, wants_target=wants_target)
    return _weighted(v, target, weights, measured)


class TritonTargetStream(eager_direction_loss.EagerTargetStream):
    """v̂ and DAS by the kernels; see ``signatures.TargetStream``.

    The fused pass makes v's gradient where v requires one, whatever grad mode is: the hook of a checkpointed layer may
    run with it off.

    Peak extra bytes: v̂ (4·M·D) and, from ``finish`` on, the gradient (4·M·D) + 4·M; ``loss`` 12·M. The backward turns
    the gradient into the result, in place; a retained graph, or a v that isn't float32, costs one more [M, D].
    Traffic of the fused pass: 18·M·D bytes with bf16 layers.
    """

    def __init__(self, kind: Kind | None) -> None:
        super().__init__(kind, capture_layer=capture_layer, direction_loss=direction_loss)
        self._measured: _Measured | None = None

    @torch.compiler.disable
    def finish(
        self, hidden: Tensor, positions: Tensor, weight: float, v: Tensor, scaling: RowScaling | None = None
    ) -> None:
        """See ``TargetStream``.

        Raises:
            ValueError: v isn't of the target's shape.
        """
        if self.kind is None or _has_graph(self.target, hidden):
            super().finish(hidden, positions, weight, v, scaling)
            return
        require("direction_loss", supports(hidden) or supports(v))
        so_far = None if self.target is None else self.target.detach()
        self.target, layer = _next_layer(so_far, hidden.detach(), positions, weight, scaling)
        self._measured = _measure(v, self.target, self.kind, wants_v=v.requires_grad, wants_target=False, layer=layer)
        self._v = v

    def loss(self, weights: Tensor) -> Tensor:
        """See ``TargetStream``.

        Raises:
            ValueError: ``weights`` aren't one for each row of v.
        """
        if self._measured is None:  # v̂ has a graph
            return super().loss(weights)
        assert self._v is not None and self.target is not None
        return _weighted(self._v, self.target, weights, self._measured)


class _Measured(NamedTuple):
    """Distances and their gradients, float32, without a_i; a gradient nobody wants is None."""

    distance: Tensor  # [M]: 2 − 2 cos θ_i, or mean_D (v_i − v̂_i)²
    dv: Tensor | None  # [M, D]
    dtarget: Tensor | None  # [M, D]


def _has_graph(acc: Tensor | None, hidden: Tensor) -> bool:
    return torch.is_grad_enabled() and (hidden.requires_grad or (acc is not None and acc.requires_grad))


def _next_layer(
    acc: Tensor | None, hidden: Tensor, positions: Tensor, weight: float, scaling: RowScaling | None
) -> tuple[Tensor, dict[str, Any]]:
    """``acc`` or memory for it, [M, D], and what kernels are told of a layer [B, T, D] that is added to it."""
    hidden, shape = contiguous_rows(hidden), (positions.numel(), hidden.shape[-1])
    layer = _NO_LAYER | {"hidden": hidden, "positions": positions.contiguous(), "weight": float(weight)}
    layer |= {"T": hidden.shape[1], "stride_b": hidden.stride(0), "stride_t": hidden.stride(1), "FIRST": acc is None}
    if scaling is not None:
        layer |= {"factor": scaling.factor.detach().contiguous(), "massive": massive_bytes(scaling.massive)}
    if acc is None:
        acc = torch.empty(shape, dtype=torch.float32, device=hidden.device)
    elif acc.dtype != torch.float32 or not acc.is_contiguous() or acc.shape != shape:
        raise ValueError(f"acc is {acc.dtype} {list(acc.shape)}; it must be contiguous float32 {list(shape)}")
    return acc, layer


def _measure(
    v: Tensor, target: Tensor, kind: str, *, wants_v: bool, wants_target: bool, layer: dict[str, Any] = _NO_LAYER
) -> _Measured:
    """The distance of each row of v and the target [M, D]; with ``layer`` in the pass that finishes the target."""
    if kind not in ("cosine", "mse"):
        raise ValueError(f"direction_loss has no kind {kind!r}; it has 'cosine' and 'mse'")
    if target.shape != v.shape:
        raise ValueError(f"v is {list(v.shape)} and the target {list(target.shape)}; both must be [M, D]")
    M, D = v.shape
    v, target = contiguous_rows(v.detach()), contiguous_rows(target.detach())
    distance = torch.empty(M, dtype=torch.float32, device=v.device)
    dv, dtarget = (distance.new_empty(M, D) if wanted else None for wanted in (wants_v, wants_target))
    if M:
        with torch.cuda.device_of(v):
            direction_loss_kernel[(M,)](
                v=v,
                target=target,
                distance=distance,
                dv=dv,
                dtarget=dtarget,
                D=D,
                stride_v=v.stride(0),
                stride_target=target.stride(0),
                COSINE=kind == "cosine",
                **layer,
                **row_options(D),
            )
    return _Measured(distance, dv, dtarget)


def contiguous_rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension; copied only where it has none."""
    return x if x.stride(-1) == 1 else x.contiguous()


def massive_bytes(massive: Tensor | None) -> Tensor | None:
    """A mask [D] bool as kernels read it, uint8."""
    return None if massive is None else massive.contiguous().view(torch.uint8)


@torch.compiler.disable
def _weighted(v: Tensor, target: Tensor, weights: Tensor, measured: _Measured) -> Tensor:
    """Σ_i a_i distance_i, with a graph to v and the target where their gradients were made."""
    if weights.shape != v.shape[:1]:
        raise ValueError(f"weights are {list(weights.shape)} for v {list(v.shape)}; they must be [M]")
    loss: Tensor = _DirectionLoss.apply(v, target, weights, *measured)
    return loss


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
        grid = M, ceil_div(D, ELEMENTWISE["BLOCK_D"])
        with torch.cuda.device_of(out):
            direction_loss_backward_kernel[grid](out, gradient, weights.contiguous(), upstream, D, **ELEMENTWISE)
    return out
