"""LoRA layers that scale and add within their last product: base + s · h Bᵀ is one ``addmm``, in place.

PEFT multiplies by B, scales and adds: three passes over a layer's whole output [B·T, N], twice its memory, and three
roundings in place of one. Only ``forward`` differs here. So PEFT's names, files and switches are what they were. A
layer class of one's own is PEFT's public way to do this (its guide "Custom models", "dynamic dispatch of custom
modules"). It has ``LoraVariant`` too, but calls its methods private.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


class AddmmLinear(LoraLinear):
    """PEFT's LoRA on a linear layer, 4-bit or not, with the sum inside the product."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., K] → [..., N]; PEFT's own forward where adapters are off or merged, or types differ."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        usual = self.disable_adapters or self.merged or bool(args) or bool(kwargs)
        if usual or any(_product_type(x, self.lora_A[name].weight) != x.dtype for name in names):
            return super().forward(x, *args, **kwargs)
        rows = x.flatten(0, -2)  # the base's output is no view then, and is added to in place without a copy
        out = self.base_layer(rows)
        for name in names:
            low = self.lora_A[name](self.lora_dropout[name](rows))  # [B·T, r]
            out = out.addmm_(low, self.lora_B[name].weight.to(low.dtype).t(), alpha=self.scaling[name])
        return out.view(*x.shape[:-1], -1)


def _product_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type that x and a LoRA weight are multiplied in."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def add_in_product(config: LoraConfig) -> LoraConfig:
    """Let PEFT make these layers; nothing of it is saved with the adapter."""
    config._register_custom_module({nn.Linear: AddmmLinear})
    return config
