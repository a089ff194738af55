"""A stand-in for bitsandbytes' ``Linear4bit`` that holds and uses the same bytes.

``Params4bit`` can't be built on a fake tensor. What a step needs of it is its size and what its products take: the
weight dequantised to the compute type, once in the forward and once more in the backward, and nothing kept between
but the packed weight (bitsandbytes 0.50, ``MatMul4Bit``). For few rows bitsandbytes has fused kernels that dequantise
nothing; counting the dequantised weight there too errs on the safe side.
"""

from typing import Any

import torch
from torch import Tensor, nn

from basic_lite.model.audit import BLOCK, NESTED_BLOCK

NF4_VALUES = 16
STATISTIC_VALUES = 256


class NF4Linear(nn.Linear):
    """K → N without values: packed weight [N·K/2, 1] uint8 and its statistics."""

    def __init__(self, linear: nn.Linear, *, double: bool, compute_dtype: torch.dtype) -> None:
        """
        Args:
            linear: the layer it stands for; its weight's type is what bitsandbytes dequantises to in the backward.
            double: statistics in 8 bit with statistics of their own.
            compute_dtype: type of the product.
        """
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        count = linear.in_features * linear.out_features
        blocks = -(-count // BLOCK)
        self.weight = nn.Parameter(torch.empty(-(-count // 2), 1, dtype=torch.uint8, device="meta"), False)
        self.bias = linear.bias
        self.weight_dtype = linear.weight.dtype
        self.compute_dtype = compute_dtype
        sizes: dict[str, tuple[int, ...]] = {"code": (NF4_VALUES,), "absmax": (blocks,)}
        if double:
            sizes |= {"nested_absmax": (-(-blocks // NESTED_BLOCK),), "nested_code": (STATISTIC_VALUES,), "offset": ()}
        for name, size in sizes.items():
            dtype = torch.uint8 if double and name == "absmax" else torch.float32
            self.register_buffer(name, torch.empty(size, dtype=dtype, device="meta"), persistent=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """[N, K]; statistics in 8 bit are turned to float32 first. Then one kernel reads the packed weight."""
        absmax = self.absmax.float() if self.absmax.dtype == torch.uint8 else self.absmax
        weight = self.weight.new_zeros((self.out_features, self.in_features), dtype=dtype)
        del absmax
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., N] in the type of x, as ``Linear4bit.forward`` casts."""
        return _Product.apply(x.to(self.compute_dtype), self.bias, self).to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        # A custom operator on the device: autocast doesn't reach into it.
        with torch.autocast(x.device.type, enabled=False):
            weight = layer.dequantised(x.dtype)
            return nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        weight = ctx.layer.dequantised(ctx.layer.weight_dtype).to(grad.dtype)
        return torch.matmul(grad, weight), None, None
