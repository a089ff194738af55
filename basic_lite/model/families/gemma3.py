"""Gemma 3: SigLIP's patches, pooled, normed and projected. Visual tokens of a picture attend to one another both ways.

Only ``token_type_ids`` says so; without them the attention would silently be causal. Text rows stay causal. The
embedding module scales words by √D, and visual tokens are not scaled.
"""

import math
from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.views import Batch, View, squares


def _tokens(config: Any) -> str:
    return f"{config.mm_tokens_per_image} a picture"


def _views(config: Any, batch: Batch) -> list[View]:
    return squares(math.isqrt(config.mm_tokens_per_image), batch["pixel_values"])


GEMMA3 = Family(
    name="Gemma 3",
    model_type="gemma3",
    tokens=_tokens,
    views=_views,
    mark="<start_of_image>",
    not_trained="its projector pools and norms patches, and its visual tokens attend to one another both ways; "
    "basic-lite trains LLaVA's projector before a causal LLM",
)
