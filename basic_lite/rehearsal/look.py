"""A look at BASIC's premise on fake tensors: one batch of the refinement curve, with what it holds beside the model.

Curve and gate go through the same code (``premise.nearest_by_place``). The curve of all layers takes the most: a gate's
other forwards keep less.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from basic_lite.recipe.rules import changed_recipe, evaluates
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal.ledger import HOST, Ledger, fake
from basic_lite.supervision import Supervision
from basic_lite.supervision.calibration import leaves_open, scores_decide
from basic_lite.supervision.health import HealthMeter
from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.premise import SEARCHED_PATCHES, layers_on_host, nearest_by_place
from basic_lite.supervision.taps import evaluating
from basic_lite.training.refinement_log import SAMPLES_PER_BATCH, curve_batches

LOOK = "a look at the premise"


@dataclass(frozen=True)
class Look:
    """What a look needs, with all that training holds between two steps; bytes. ``by_part`` sums to ``peak_bytes``."""

    samples: int  # at once
    by_part: dict[str, int]
    peak_bytes: int
    host_bytes: int  # most pinned host memory at once; layers of samples that decide wait in host memory of their own


def look_is_made(recipe: Recipe) -> bool:
    """Whether a run with BASIC measures its curve, or has a gate or a target that look."""
    settings = recipe.supervision
    return settings.refinement_batches > 0 or settings.gate or leaves_open(settings)


def samples_at_once(recipe: Recipe, micro_batch: int) -> int:
    """Samples of a look's batch, at another micro-batch than the recipe's."""
    return curve_batches(changed_recipe(recipe, {"training.micro_batch": micro_batch}))[1]


class _FewPlaces(HealthMeter):
    """A meter that adds v, the last layer and v̂ alone: at other places it takes and gives back the same."""

    def add(self, place: int, rows: Tensor, tokens: Sequence[int]) -> None:
        if place == 0 or place >= len(self._sums) - 2:
            super().add(place, rows, tokens)


@torch.no_grad()
def rehearse_look(
    recipe: Recipe,
    supervision: Supervision,
    ledger: Ledger,
    batch: dict[str, Tensor],
    autocast: AbstractContextManager[object],
    *,
    cuda: bool,
) -> Look:
    """Go through a batch as the curve does, the last one of an evaluation: others have left their layers on the host.

    Args:
        batch: a look's longest; fake pixels.
        autocast: the training's.
        cuda: it stands for a card, where the host's memory is another one.
    """
    parts, samples = supervision.parts, len(batch["input_ids"])
    total = SAMPLES_PER_BATCH * recipe.supervision.refinement_batches
    # Of an evaluation's curve, every second sample decides (see ``Gate.kept``).
    keeps = recipe.supervision.gate and scores_decide(recipe.supervision) and evaluates(recipe)
    layout = find_layout(batch, parts.image_token_id, "all")
    patches = min(SEARCHED_PATCHES, int(layout.patches.max()))
    ledger.reset_peak()
    with ledger, ledger.scope(LOOK), autocast, evaluating(parts.model):
        meter = _FewPlaces(len(parts.layers) + 2, 1.0)
        earlier = max(0, total - samples) // 2 * keeps
        shape = (earlier, len(parts.layers), patches, parts.embeddings.weight.shape[1])
        kept = [] if cuda else [fake(ledger, shape, parts.embeddings.weight.dtype, LOOK)]
        _, states = nearest_by_place(supervision, batch, layout, meter, each_layer=True)
        if keeps and not cuda:
            kept += [layers_on_host(supervision, rows) for rows in states[1::2]]
    host = ledger.most.get(HOST, 0)
    return Look(samples, dict(sorted(ledger.at_peak.items(), key=lambda item: -item[1])), ledger.peak, host)
