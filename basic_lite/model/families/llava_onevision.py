"""LLaVA-OneVision: LLaVA-NeXT's tiles and line ends with SigLIP; large grids are scaled down after the projector.

So there v is a mean of several outputs of the projector. Several pictures in one conversation aren't cut into tiles.
"""

from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.pictures_only import LlavaOnevisionPictures
from basic_lite.model.families.views import whole_and_tiles


def _tokens(config: Any) -> str:
    vision = config.vision_config
    each = (vision.image_size // vision.patch_size) ** 2
    return f"{each} for the whole picture, and its tiles, cropped, up to {config.vision_aspect_ratio}"


LLAVA_ONEVISION = Family(
    name="LLaVA-OneVision",
    model_type="llava_onevision",
    tokens=_tokens,
    views=whole_and_tiles,
    separator="model.image_newline",
    processor=LlavaOnevisionPictures,
    notes=("the rows that end lines of patches are left out",),
    not_trained="it cuts pictures into tiles with a learned row after each line, and basic-lite hands over whole ones",
)
