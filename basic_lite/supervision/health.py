"""The shape of visual embeddings on their way through the LLM, and two illnesses that BASIC's target can have.

Real LLMs put most of a residual stream's energy into one dimension and much of it into a few tokens ("massive
activations", "attention sinks"); in toy LLMs, the projector's output is so long that no layer turns it.
docs/METHOD.md has figures of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision.patch_weights import SINK_MULTIPLE

# More than half of v̂'s energy in one dimension: its direction is that dimension's. SmolLM2-135M: .98; its v: .01.
GIANT_SHARE = 0.5
# v̂ many times as long as v, and turned away from it. SmolLM2-135M: 100 times, cos .03 to .34.
GIANT_RATIO, GIANT_COS = 10.0, 0.5
# v so long, and v̂ so near to it, that DAS (2 − 2 cos) is below .1. The demo: 78 times ‖E‖, cos .98. SmolLM2: 2 times.
INERT_RATIO, INERT_COS = 10.0, 0.95


@dataclass(frozen=True)
class Health:
    """Figures of each place of the refinement curve, in its order: v, h1..hL, v̂.

    Norms are means over samples, in units of mean‖E‖. A sample of one visual token has no other ones.
    """

    first_norm: list[float]  # ‖·‖ of a sample's first visual token
    other_norm: list[float]  # ‖·‖ of its other ones
    largest_share: list[float]  # share of all energy (Σ x²) in the dimension that has most
    largest_dimension: list[int]
    sink_share: list[float]  # share of tokens longer than SINK_MULTIPLE times their sample's median
    pairwise_cos: list[float]  # mean cosine of two visual tokens of a sample; near 1: all alike
    cos_v: list[float]  # mean cosine with v

    def illnesses(self, settings: SupervisionSection) -> dict[str, str]:
        """What ails the target: names, and each in words with the keys that treat it.

        Layers brought to one size aren't too long.
        """
        v, target, cos = self.other_norm[0], self.other_norm[-1], self.cos_v[-1]
        share, ratio = self.largest_share[-1], target / v if v > 0 else 0.0
        scaled = settings.target_norm == "layer"
        found = {}
        if share > GIANT_SHARE or (ratio > GIANT_RATIO and cos < GIANT_COS and not scaled):
            keys = [] if scaled else ["supervision.target_norm=layer"]
            keys += ["supervision.sinks=drop"] if settings.sinks == "keep" else []
            found["giant target"] = (
                f"v̂ is {ratio:.3g} times as long as v (cos(v, v̂) {cos:.2f}), and dimension "
                f"{self.largest_dimension[-1]} has {share:.0%} of its energy, so BASIC pulls every v the same way; "
                + (f"treat it with {' and '.join(keys)}" if keys else "the keys that treat it are set, and don't help")
            )
        if v > INERT_RATIO and cos > INERT_COS:
            found["inert residual"] = (
                f"v is {v:.3g} times as long as a word's embedding, so the layers hardly turn it "
                f"(cos(v, v̂) {cos:.2f}), and DAS can do next to nothing; treat it with model.projector_start=matched "
                "where the projector starts fresh"
            )
        return found


class HealthMeter:
    """Adds up what ``Health`` needs while the states pass. It keeps [P, D] sums, and v of one batch."""

    def __init__(self, places: int, mean_norm: float) -> None:
        """Start at zero.

        Args:
            mean_norm: mean‖E‖.
        """
        self._mean_norm = mean_norm
        self._sums = torch.zeros(places, 5, dtype=torch.float64)  # first, others, sinks, pairwise, cos with v
        self._energy: Tensor | None = None  # [P, D]
        self._samples = self._several = self._tokens = 0  # _several: samples of two tokens or more
        self._unit_v: Tensor | None = None

    @torch.no_grad()
    def add(self, place: int, rows: Tensor, tokens: Sequence[int]) -> None:
        """Add a batch's rows at a place. v, at place 0, comes before the other places of its batch.

        Args:
            rows: [M, D], sample by sample.
            tokens: visual tokens of each sample, Σ = M.
        """
        rows = rows.float()
        norms = torch.linalg.vector_norm(rows, dim=1)
        unit = torch.nn.functional.normalize(rows, dim=1)
        if place == 0:
            self._unit_v = unit
            self._samples += len(tokens)
            self._several += sum(count > 1 for count in tokens)
            self._tokens += sum(tokens)
        assert self._unit_v is not None
        sums = rows.new_zeros(5)
        for norm, directions in zip(norms.split(list(tokens)), unit.split(list(tokens)), strict=True):
            count = len(norm)
            sums[0] += norm[0]
            sums[2] += (norm > SINK_MULTIPLE * norm.median()).sum()
            if count > 1:
                sums[1] += norm[1:].mean()
                # ‖Σ u‖² − Σ ‖u‖² is the sum over pairs of two different tokens.
                sums[3] += (directions.sum(dim=0).square().sum() - directions.square().sum()) / (count * (count - 1))
        sums[4] = (unit * self._unit_v).sum()
        energy = rows.square().sum(dim=0).cpu().double()
        if self._energy is None:
            self._energy = energy.new_zeros(len(self._sums), len(energy))
        self._energy[place] += energy
        self._sums[place] += sums.cpu().double()

    def health(self) -> Health | None:
        """The means over everything that was added; None if nothing was."""
        if self._energy is None:
            return None
        several = max(1, self._several)
        divisors = [self._samples * self._mean_norm, several * self._mean_norm, self._tokens, several, self._tokens]
        first, others, sinks, pairwise, cos_v = (self._sums / torch.tensor(divisors, dtype=torch.float64)).T.tolist()
        largest, dimension = self._energy.max(dim=1)
        share = largest / self._energy.sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
        return Health(first, others, share.tolist(), dimension.tolist(), sinks, pairwise, cos_v)
