"""Qwen2.5-VL: a picture of any size; four patches are merged into one token at the end of the vision tower.

The merger's own output is in the order of the tower's windows; the tower puts it right after that. Positions of
visual tokens are rows and columns. Without ``mm_token_type_ids`` they would silently be those of text.
"""

from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.pictures_only import Qwen2_5_VLPictures
from basic_lite.model.families.views import merged_patches


def tokens_by_size(config: Any) -> str:
    """For towers that take a picture as large as it is."""
    side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    return f"one for each {side} × {side} pixels"


QWEN2_5_VL = Family(
    name="Qwen2.5-VL",
    model_type="qwen2_5_vl",
    tokens=tokens_by_size,
    views=merged_patches,
    vision_tower="model.visual",
    projector="model.visual.merger",
    processor=Qwen2_5_VLPictures,
    mark="<|vision_start|><|image_pad|><|vision_end|>",
    not_trained="its projector is a part of the vision tower, and the number of visual tokens follows the picture's "
    "size; basic-lite trains LLaVA's projector on pictures of one size",
)
