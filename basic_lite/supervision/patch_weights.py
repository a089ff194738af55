"""The patch weights a_i: how much each visual token counts in the losses."""

from typing import Literal

import torch
from torch import Tensor

from basic_lite.supervision.layout import Layout
from basic_lite.supervision.taps import Capture

# A sink's state is longer than so many times the median of its sample's visual tokens. In SmolLM2, from layer 12 on,
# sinks are up to 190 times as long as the median, and 99 % of the other tokens less than 3 times.
SINK_MULTIPLE = 4.0


def attention_masses(capture: Capture) -> Tensor:
    """Σ_i a_i of each sample with an image, [S] float32: its attention mass, mean over layers and text tokens."""
    return _attention_weights(capture).sum(dim=1).index_select(0, capture.layout.rows_with_image)


def patch_weights(
    capture: Capture, kind: Literal["attention", "uniform"] | float, mean_mass: float | Tensor | None
) -> Tensor:
    """a_i, [M] float32, constants. Padding gets 0, and so do sinks where ``supervision.sinks`` is ``drop``.

    Args:
        kind: ``attention``: what attention gives each token. ``uniform``: mean_mass / N for each of a sample's N
            tokens. A number: Σ_i a_i of a sample, spread evenly.
        mean_mass: for ``uniform``; None: the mean over this batch's samples.
    """
    weights = _weights_with_sinks(capture, kind, mean_mass)
    return weights.masked_fill(sinks(capture.norms, capture.layout), 0) if capture.norms else weights


def sinks(norms: list[Tensor], layout: Layout) -> Tensor:
    """Which visual tokens are sinks in some layer, [M] bool, by their norms [M] in each layer.

    The median is that of the sample's own visual tokens (the lower one of two), so it doesn't depend on the batch.
    """
    rows = torch.stack(norms)  # [K, M]
    B, T = layout.visual.shape
    table = rows.new_full((len(rows), B * T), torch.nan)
    table[:, layout.positions] = rows
    table = table.view(-1, B, T).masked_fill(~layout.visual, torch.nan)
    # NaN for a sample without visual tokens, and nothing is longer than that.
    median = table.nanmedian(dim=2).values  # [K, B]
    return (rows > SINK_MULTIPLE * median[:, layout.sample]).any(dim=0)


def _weights_with_sinks(
    capture: Capture, kind: Literal["attention", "uniform"] | float, mean_mass: float | Tensor | None
) -> Tensor:
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
