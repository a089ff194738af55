"""PaliGemma: SigLIP's patches through one linear layer. Picture and prompt attend to one another both ways.

``token_type_ids`` tell the prompt (0) from the answer (1); only the answer's rows are causal, so only their attention
is read. The embedding module scales words by √D, and visual tokens are not scaled. There is no chat template: a prompt
is the picture, a text and a line break.
"""

from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.views import Batch, View, squares


def _tokens(config: Any) -> str:
    vision = config.vision_config
    return f"{(vision.image_size // vision.patch_size) ** 2} a picture"


def _views(config: Any, batch: Batch) -> list[View]:
    vision = config.vision_config
    return squares(vision.image_size // vision.patch_size, batch["pixel_values"])


PALIGEMMA = Family(
    name="PaliGemma",
    model_type="paligemma",
    tokens=_tokens,
    views=_views,
    prefix=True,
    notes=("the prompt attends both ways, so attention is that of the answers' words alone",),
    not_trained="its projector is one linear layer, and its prompt attends both ways; basic-lite trains LLaVA's "
    "projector before a causal LLM",
)
