"""Pixtral as transformers writes it: LLaVA's classes around Pixtral's vision tower, which takes pictures of any size.

``[IMG_BREAK]`` and ``[IMG_END]`` are text tokens of their own, no placeholders.
"""

from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.views import Batch, View, sized


def tokens_of(config: Any) -> str:
    """By the picture's size; Mistral 3 merges patches besides."""
    side = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)
    return f"one for each {side} × {side} pixels"


def views_of(config: Any, batch: Batch) -> list[View]:
    """Mistral 3 merges patches besides."""
    return sized(batch, config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1))


PIXTRAL = Family(
    name="Pixtral",
    model_type="llava",
    vision_type="pixtral",
    tokens=tokens_of,
    views=views_of,
    not_trained="its vision tower takes pictures of any size, and basic-lite trains on pictures of one size",
)
