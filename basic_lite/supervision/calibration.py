"""What a recipe leaves to measurement: the massive dimensions of each layer, the supervised layers, their weights.

Not of the paper; the reasons are in docs/METHOD.md. In a real LLM's residual stream a few dimensions hold most of the
energy, the same ones for every token; and the layers that refine visual embeddings are not the same in every model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerBase

from basic_lite.data.pixel_table import on_device
from basic_lite.recipe.presets import MEASURED
from basic_lite.recipe.rules import measured_keys
from basic_lite.recipe.schema import SupervisionSection
from basic_lite.supervision.layout import find_layout
from basic_lite.supervision.premise import refinement_curve
from basic_lite.supervision.supervision import Supervision
from basic_lite.supervision.taps import evaluating, watch_layers
from basic_lite.supervision.target import TargetPlan, layer_weights, massive_dimensions, supervised_layers


def scores_decide(settings: SupervisionSection) -> bool:
    """Whether the refinement curve decides which layers make the target."""
    return MEASURED in (settings.layers, settings.layer_weights)


def leaves_open(settings: SupervisionSection) -> bool:
    """Whether a recipe leaves something of the target to measurement."""
    return bool(set(measured_keys(partial(getattr, settings))) - {"gate"})


def moved(batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Host batches on a device, one at a time."""
    return (on_device(batch, device) for batch in batches)


@torch.no_grad()
def choose_target(
    supervision: Supervision,
    batches: Sequence[Mapping[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    by_score: bool = True,
) -> TargetPlan:
    """Choose what the settings leave open, on a few batches. ``supervision`` keeps the target that it has.

    The massive dimensions of each layer are found once (``target_norm: layer``): they are the LLM's own. For what the
    scores decide see ``target_by_gains``.

    Args:
        batches: on the host; wrap the call in the autocast that the training uses.
        by_score: False: only the massive dimensions, and the layers as if none were better than v.
    """
    settings, before, total = supervision.settings, supervision.target_plan, len(supervision.parts.layers)
    massive = before.massive
    if settings.target_norm == "layer" and massive is None:
        massive = tuple(massive_dimensions(energy) for energy in _energies(supervision, batches))
    gains = [0.0] * total
    if by_score and scores_decide(settings):
        supervision.use(TargetPlan(before.layer_weights, massive))  # so that each layer is measured without them
        try:
            curve = refinement_curve(supervision, moved(batches, supervision.device), tokenizer)
        finally:
            supervision.use(before)
        gains = curve.layer_gains
    return target_by_gains(settings, gains, massive)


def target_by_gains(
    settings: SupervisionSection, gains: Sequence[float], massive: tuple[tuple[int, ...], ...] | None
) -> TargetPlan:
    """The target that the settings and the scores of layers 1..L above v's give.

    ``layers: measured``: K is the layer with the best score in the refinement curve, half of the layers if none is
    better than v. ``layer_weights: measured``: w_h ∝ max(0, score_h − score_v), h² if no layer up to K is better.
    """
    count = supervised_layers(settings.layers, len(gains))
    if settings.layers == MEASURED and max(gains) > 0:
        count = gains.index(max(gains)) + 1
    weights = measured_weights(gains[:count]) if settings.layer_weights == MEASURED else None
    return TargetPlan(tuple(weights or layer_weights(settings.layer_weights, count)), massive)


def measured_weights(gains: Sequence[float]) -> list[float] | None:
    """w_h ∝ max(0, gain_h), summing to 1; None where no layer has a gain."""
    raw = [max(0.0, gain) for gain in gains]
    return [gain / sum(raw) for gain in raw] if sum(raw) > 0 else None


def _energies(supervision: Supervision, batches: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Σ x² over the unit rows of all visual tokens, in each dimension after each layer: L tensors [D] float64.

    Unit rows, so that a few tokens as long as all others together don't speak for them.
    """
    parts = supervision.parts
    energies = [torch.zeros(parts.embeddings.weight.shape[1], dtype=torch.float64) for _ in parts.layers]
    with evaluating(parts.model):
        for batch in moved(batches, supervision.device):
            layout = find_layout(batch, parts.image_token_id, "all")
            visual = layout.positions[layout.visual.flatten()[layout.positions]].to(supervision.device)

            def add(h: int, hidden: Tensor, visual: Tensor = visual) -> None:
                rows = hidden.flatten(0, 1).index_select(0, visual).float()
                energies[h - 1] += normalize(rows, dim=1).square().sum(dim=0).double().cpu()

            watch_layers(parts, batch, add)
    return energies
