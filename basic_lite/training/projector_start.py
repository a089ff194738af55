"""``model.projector_start: matched``: a fresh projector whose output is as long as the LLM's words."""

import math
import statistics

import torch
from torch import Tensor, nn

from basic_lite.console import Say
from basic_lite.data.pixel_table import on_device
from basic_lite.data.prepare import Prepared
from basic_lite.errors import UserError
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision.taps import hooked
from basic_lite.supervision.vocabulary import Vocabulary
from basic_lite.training.assembly import autocast_of

# Always the same ones. Norms of some thousand visual tokens differ little, so a few samples are enough.
SAMPLES, SAMPLES_PER_BATCH = 8, 4


@torch.no_grad()
def match_projector(
    recipe: Recipe, loaded: Loaded, data: Prepared, device: torch.device, say: Say, *, resumed: bool = False
) -> None:
    """Where the recipe asks for it, scale a fresh projector's output to mean‖E‖ of the LLM's input embeddings.

    E is what the LLM sees, with the scale that its embedding module may put on it. The factor goes into the weight and
    the bias of ``linear_2``, so the projector keeps its layout.

    Args:
        resumed: a checkpoint's weights will take the projector's place, so nothing is done.

    Raises:
        UserError: the output or E has no length to scale.
    """
    if recipe.model.projector_start == "default" or resumed:
        return
    batches = data.batches_with_images(SAMPLES, SAMPLES_PER_BATCH)
    norms = [norm for batch in batches for norm in _norms(recipe, loaded, batch, device).tolist()]
    before = statistics.fmean(norms) if norms else 0.0
    wanted = float(Vocabulary(loaded.parts, "input_embeddings", loaded.vocabulary_ids).mean_norm())
    factor = wanted / before if before else 0.0
    if not 0 < factor < math.inf:
        raise UserError(
            f"model.projector_start is matched, but the mean norm is {before:g} at the projector's output and "
            f"{wanted:g} in the LLM's embeddings, so no factor leads from one to the other; "
            "check model.vision and model.llm, or remove model.projector_start"
        )
    linear = loaded.parts.projector.linear_2
    assert isinstance(linear, nn.Linear)
    linear.weight.mul_(factor)
    if linear.bias is not None:
        linear.bias.mul_(factor)
    say(
        f"model.projector_start: the fresh projector's output was multiplied by {factor:.3g}, "
        f"from a mean norm of {before:.3g} to {wanted:.3g}, that of the LLM's input embeddings"
    )


def _norms(recipe: Recipe, loaded: Loaded, batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """‖v_i‖ of a batch's visual tokens, [M] float32."""
    found: list[Tensor] = []
    with (
        hooked(loaded.parts.projector, lambda out: found.append(out.float().flatten(0, -2).norm(dim=1))),
        autocast_of(recipe, device)(),
    ):
        loaded.parts.model.model.get_image_features(pixel_values=on_device(batch, device)["pixel_values"])
    return torch.cat(found)
