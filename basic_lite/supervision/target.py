"""The target v̂: which layers make it, with what weight, and which rows and dimensions of their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from basic_lite.errors import UserError
from basic_lite.recipe.rules import layers_problem

LayerWeights = Literal["quadratic", "linear", "constant", "decreasing", "measured"]

# A massive dimension has more than so many times the mean energy of a layer's dimensions, and more than this share of
# all energy. In SmolLM2 (D 576) dimension 507 has up to .99, 570 times the mean; ordinary ones have a few times the
# mean. Where D is large, twenty times the mean is next to nothing: what has less than the share of the
# energy moves a cosine of two rows by less than the share. Where D is small, the share alone is soon reached.
MASSIVE_MULTIPLE = 20
MASSIVE_SHARE = 0.05
# SmolLM2 has 2 to 9. Where the energy falls evenly there would be no end, and nothing left of a row.
MOST_MASSIVE = 16

# K of `layers: measured` before the first measurement: the paper's.
UNTIL_MEASURED = 0.5


@dataclass(frozen=True)
class TargetPlan:
    """Which layers make v̂. ``dataclasses.asdict`` gives what JSON can hold, and ``of`` reads it.

    Raises:
        ValueError: no weight, a negative one, none above 0, or fewer lists of dimensions than weights.
    """

    layer_weights: tuple[float, ...]  # w_h of the supervised layers h = 1..K; layers of weight 0 add nothing
    # Of each layer, those beyond K too: dimensions that ``target_norm: layer`` leaves out.
    massive: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        if not self.layer_weights or min(self.layer_weights) < 0 or max(self.layer_weights) == 0:
            raise ValueError(f"layer weights are 0 or more, and one is above 0; found {self.layer_weights}")
        if self.massive is not None and len(self.massive) < len(self.layer_weights):
            raise ValueError(f"{len(self.massive)} lists of massive dimensions for {len(self.layer_weights)} layers")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TargetPlan:
        """The plan that ``dataclasses.asdict`` and JSON have made a dict with lists of."""
        massive = given["massive"]
        massive = None if massive is None else tuple(tuple(dimensions) for dimensions in massive)
        return cls(tuple(given["layer_weights"]), massive)

    def text(self, total: int) -> str:
        """The plan in words, of an LLM with ``total`` layers."""
        weights = ", ".join(f"{weight:.2f}" for weight in self.layer_weights)
        out = f"layers 1..{len(self.layer_weights)} of {total}, weights {weights}"
        if self.massive is not None:
            supervised = self.massive[: len(self.layer_weights)]
            found = sorted({dimension for dimensions in supervised for dimension in dimensions})
            out += f"; massive dimensions left out: {', '.join(map(str, found)) or 'none'}"
        return out

    @property
    def last(self) -> int:
        """The last layer h that adds to v̂."""
        return max(h for h in range(1, len(self.layer_weights) + 1) if self.adds(h))

    def adds(self, h: int) -> bool:
        """Whether layer h has a share of v̂."""
        return h <= len(self.layer_weights) and self.layer_weights[h - 1] > 0

    def masks(self, width: int, device: torch.device) -> list[Tensor | None]:
        """For each layer its massive dimensions as a mask [D] bool; None where it has none."""

        def mask(dimensions: tuple[int, ...]) -> Tensor:
            return torch.zeros(width, dtype=torch.bool).index_fill(0, torch.tensor(dimensions), True).to(device)

        massive = self.massive or [()] * len(self.layer_weights)
        return [mask(dimensions) if dimensions else None for dimensions in massive]


def massive_dimensions(energy: Tensor) -> tuple[int, ...]:
    """Dimensions that hold most of the energy of a layer's visual states, lowest first; often none.

    One hides the next: where 507 has .987 of the energy, 247 has .005, but 40 % of the rest. So they are looked for
    again in what is left, until no dimension there is massive.

    Args:
        energy: [D], for each dimension the sum of squares over tokens; best of unit rows, or sinks speak for all.
    """
    rest = energy.double().cpu().clone()
    found: set[int] = set()
    while True:
        least = max(MASSIVE_SHARE, MASSIVE_MULTIPLE / max(1, rest.numel() - len(found)))
        more = (rest > least * rest.sum()).nonzero().flatten()
        if not more.numel() or len(found) + more.numel() > MOST_MASSIVE:
            return tuple(sorted(found))
        found.update(more.tolist())
        rest[more] = 0


def supervised_layers(layers: int | float | str, total: int) -> int:
    """K from the key ``supervision.layers``: a count (int) or a fraction (float) of the LLM's L layers.

    A fraction is rounded down, to one layer at least. ``measured``: half, until it has been measured.

    Raises:
        UserError: K is not in 1..L.
    """
    if isinstance(layers, str):
        layers = UNTIL_MEASURED
    problem = layers_problem(layers, total)
    if problem is not None:
        raise UserError(f"supervision.layers: {problem}")
    if isinstance(layers, float):
        # Binary fractions fall short of decimal ones: 0.29 · 100 is 28.999…
        return max(1, int(layers * total + 1e-9))
    return layers


def layer_weights(kind: LayerWeights, count: int) -> list[float]:
    """w_h for h = 1..K, summing to 1: h² (paper), h, 1, or ``decreasing``: h² in reverse order.

    ``measured``: h², until it has been measured.
    """
    power = {"quadratic": 2, "linear": 1, "constant": 0, "decreasing": 2, "measured": 2}[kind]
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
