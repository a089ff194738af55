"""Liger's kernels on fake tensors, where no kernel can be launched: what each keeps, makes, reads and writes.

Each launch is one element-wise operation of torch that takes and gives tensors of the same sizes (liger-kernel 0.8.5;
a test compares what is made). Values don't matter.
"""

from typing import Any

import torch
from torch import Tensor

from basic_lite.model.liger_kernels import LigerKernels


class _Norm(torch.autograd.Function):
    """Keeps x and a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1].numel(), dtype=torch.float32))
        return (x * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        return torch.zeros_like(gradient).addcmul_(gradient, ctx.saved_tensors[0]), None


class _Rope(torch.autograd.Function):
    """In place, where heads lie side by side in memory; else in a copy."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _turned(q, k)

    @staticmethod
    def backward(ctx: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_turned(q, k), None, None


def _turned(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Query [B, H, T, d] and key [B, H_kv, T, d], of which [B, T, H, d] is contiguous."""
    rows = [heads.transpose(1, 2).contiguous() for heads in (q, k)]
    torch._foreach_neg_([x.data for x in rows])  # a kernel writes without autograd's knowledge too
    return rows[0].transpose(1, 2), rows[1].transpose(1, 2)


class _Gate(torch.autograd.Function):
    """Keeps gate and up; the backward overwrites them with their gradients."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        return gate * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        torch._foreach_mul_([gate, up], [gradient.contiguous()] * 2)
        return gate, up


class _Halves(torch.autograd.Function):
    """Keeps gate and up in one tensor; the backward makes another one."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return gate * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        return (both.unflatten(-1, (2, -1)) * gradient.unsqueeze(-2)).flatten(-2)


def _rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str) -> Tensor:
    out: Tensor = _Norm.apply(x, weight)
    return out


FAKE = LigerKernels(_rms_norm, _Rope.apply, _Gate.apply, _Gate.apply, _Halves.apply)
