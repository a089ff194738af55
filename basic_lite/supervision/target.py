"""The target v̂: which layers make it, with what weight, and which rows of their outputs."""

from typing import Literal

import torch
from torch import Tensor, nn

from basic_lite.errors import UserError
from basic_lite.recipe.rules import layers_problem

LayerWeights = Literal["quadratic", "linear", "constant", "decreasing"]


def supervised_layers(layers: int | float, total: int) -> int:
    """K from the key ``supervision.layers``: a count (int) or a fraction (float) of the LLM's L layers.

    A fraction is rounded down, to one layer at least.

    Raises:
        UserError: K is not in 1..L.
    """
    problem = layers_problem(layers, total)
    if problem is not None:
        raise UserError(f"supervision.layers: {problem}")
    if isinstance(layers, float):
        # Binary fractions fall short of decimal ones: 0.29 · 100 is 28.999…
        return max(1, int(layers * total + 1e-9))
    return layers


def layer_weights(kind: LayerWeights, count: int) -> list[float]:
    """w_h for h = 1..K, summing to 1: h² (paper), h, 1, or ``decreasing``: h² in reverse order."""
    power = {"quadratic": 2, "linear": 1, "constant": 0, "decreasing": 2}[kind]
    raw = [h**power for h in range(1, count + 1)]
    if kind == "decreasing":
        raw.reverse()
    return [w / sum(raw) for w in raw]


def visual_rows(hidden: Tensor, positions: Tensor, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return the tensor [B, T, D] and the positions [M] to read a layer's share of v̂ from.

    Args:
        hidden: [B, T, D], the layer's output.
        positions: [M], the visual tokens in its flattened B·T.
        norm: the LLM's last norm, where ``target_norm`` is ``final``; then the rows are copied, normed: [1, M, D].
    """
    if norm is None:
        return hidden, positions
    rows = norm(hidden.flatten(0, 1).index_select(0, positions))[None]
    return rows, torch.arange(positions.numel(), device=positions.device)
