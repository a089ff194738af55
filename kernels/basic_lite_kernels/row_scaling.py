"""The sizes of a layer's rows as a Triton kernel: one pass over them, nothing kept but two numbers a row.

Symbols: B batch · T sequence · M packed visual tokens · D hidden size. One program has one row. Sums are float32.

Compiled without spills (stack 0) on sm_80 to sm_120 by triton 3.6.0, 3.7.1 and 3.9.0:

    kernel        BLOCK_D        warps
    row_scaling   1024 to 4096   BLOCK_D / 512
                  8192           8
                  16384          16
"""

# mypy: disable-error-code="no-untyped-def"
# (arguments of a kernel have no Python types)

import torch
import triton
import triton.language as tl
from torch import Tensor

from basic_lite_kernels import eager_row_scaling
from basic_lite_kernels.direction_loss import contiguous_rows, massive_bytes, row_options, supports
from basic_lite_kernels.signatures import RowScaling
from basic_lite_kernels.triton_support import require


@triton.jit(do_not_specialize=["T"])
def row_scaling_kernel(
    norm, factor,  # [M] float32, written
    hidden, positions,  # [B, T, D] and [M] int64
    massive,  # [D] uint8, or None
    T, D, stride_b, stride_t,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row: its norm, and 1 / the root mean square of what isn't massive."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    position = tl.load(positions + row)
    source = hidden + position // T * stride_b + position % T * stride_t
    x = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32)
    squares = x * x
    tl.store(norm + row, tl.sqrt_rn(tl.sum(squares)))
    kept = inside
    if massive is not None:
        kept = inside & (tl.load(massive + columns, mask=inside, other=1) == 0)
        squares = tl.where(kept, squares, 0.0)
    rest = tl.sqrt_rn(tl.sum(squares))
    root = tl.sqrt_rn(tl.sum(tl.where(kept, 1.0, 0.0)))
    tl.store(factor + row, tl.where(rest == 0, 0.0, tl.div_rn(root, tl.where(rest == 0, 1.0, rest))))


@torch.compiler.disable
def row_scaling(hidden: Tensor, positions: Tensor, massive: Tensor | None = None) -> RowScaling:
    """``eager_row_scaling.row_scaling`` by a kernel, argument by argument; by eager code where ``hidden`` has a graph.

    Raises:
        KernelUnavailable: see ``direction_loss.supports``.

    Peak extra bytes: 8·M, the results. Traffic: 2·M·D bytes with bf16 layers.
    """
    if torch.is_grad_enabled() and hidden.requires_grad:
        return eager_row_scaling.row_scaling(hidden, positions, massive)
    require("row_scaling", supports(hidden))
    hidden = contiguous_rows(hidden.detach())
    M, D = positions.numel(), hidden.shape[-1]
    norm, factor = (torch.empty(M, dtype=torch.float32, device=hidden.device) for _ in range(2))
    if M:
        with torch.cuda.device_of(hidden):
            row_scaling_kernel[(M,)](
                norm=norm,
                factor=factor,
                hidden=hidden,
                positions=positions.contiguous(),
                massive=massive_bytes(massive),
                T=hidden.shape[1],
                D=D,
                stride_b=hidden.stride(0),
                stride_t=hidden.stride(1),
                **row_options(D),
            )
    return RowScaling(norm, factor, massive)
