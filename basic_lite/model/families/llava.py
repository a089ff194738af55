"""LLaVA-1.5: CLIP's patches through a two-layer projector, one token each. The layout that basic-lite trains.

``vision_feature_select_strategy: full`` keeps CLIP's class token, which then is the picture's first visual token.
"""

from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.views import Batch, View, squares
from basic_lite.model.frontend import tokens_per_image


def _tokens(config: Any) -> str:
    return f"{tokens_per_image(config.vision_config, config.vision_feature_select_strategy)} a picture"


def picture_views(config: Any, batch: Batch) -> list[View]:
    """CLIP's class token, where it is kept, comes before the patches."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    before = tokens_per_image(vision, config.vision_feature_select_strategy) - side**2
    return squares(side, batch["pixel_values"], before)


LLAVA = Family(name="LLaVA-1.5", model_type="llava", tokens=_tokens, views=picture_views)
