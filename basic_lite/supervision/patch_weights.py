"""The patch weights a_i: how much each visual token counts in the losses."""

from typing import Literal

from torch import Tensor

from basic_lite.supervision.taps import Capture


def attention_masses(capture: Capture) -> Tensor:
    """Σ_i a_i of each sample with an image, [S] float32: its attention mass, mean over layers and text tokens."""
    return _attention_weights(capture).sum(dim=1).index_select(0, capture.layout.rows_with_image)


def patch_weights(
    capture: Capture, kind: Literal["attention", "uniform"] | float, mean_mass: float | Tensor | None
) -> Tensor:
    """a_i, [M] float32, constants. Padding gets 0.

    Args:
        kind: ``attention``: what attention gives each token. ``uniform``: mean_mass / N for each of a sample's N
            tokens. A number: Σ_i a_i of a sample, spread evenly.
        mean_mass: for ``uniform``; None: the mean over this batch's samples.
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
