"""DAS and SDS of a captured batch, and the patch weights a_i."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from basic_lite.supervision.taps import Capture


@dataclass(frozen=True)
class SupervisionLosses:
    """L_das and L_sds before λ: sums over this batch's samples / samples with an image of the whole step.

    ``metrics`` are detached scalars, means over this batch; empty where it has no image. ``samples`` counts
    this batch's samples with an image, to weight them by.
    """

    das: Tensor
    sds: Tensor
    samples: int
    metrics: dict[str, Tensor] = field(default_factory=dict)


def attention_masses(capture: Capture) -> Tensor:
    """Σ_i a_i of each sample with an image, [S] float32: its attention mass, mean over layers and text."""
    layout = capture.layout
    per_token = _attention_weights(capture)  # [B, T]
    return per_token.sum(dim=1)[layout.has_image]


def patch_weights(
    capture: Capture, kind: Literal["attention", "uniform"] | float, mean_mass: float | Tensor | None
) -> Tensor:
    """a_i, [M] float32, a constant.

    ``attention``: what attention gives each token. ``uniform``: each of a sample's N tokens gets mean_mass /
    N; None means the mean over this batch's samples. A number: Σ_i a_i, spread evenly. Padding gets 0.
    """
    layout = capture.layout
    if kind == "attention":
        return _attention_weights(capture).flatten()[layout.positions]
    if kind == "uniform":
        total = attention_masses(capture).mean() if mean_mass is None else mean_mass
    else:
        total = kind
    visual = layout.visual.flatten()[layout.positions]
    return visual.float() * total / layout.patches.clamp_min(1)[layout.sample]


def _attention_weights(capture: Capture) -> Tensor:
    """a at every position, [B, T]: mass / (K n), and 0 for a sample without text after its image."""
    assert capture.mass is not None, "no attention was tapped"
    n = capture.layout.text.sum(dim=1, keepdim=True)
    return capture.mass / (capture.attended * n.clamp_min(1))


def zero_with_graph(module: nn.Module) -> Tensor:
    """Exactly 0, with a graph to every trainable parameter: gradient 0, even of infinite weights."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    device = next(module.parameters()).device
    zero = torch.zeros((), device=device)
    for parameter in parameters:
        zero = zero + parameter.flatten()[:0].sum(dtype=torch.float32)
    return zero
