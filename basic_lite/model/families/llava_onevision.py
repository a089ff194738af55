"""LLaVA-OneVision: LLaVA-NeXT's tiles and line ends with SigLIP; large grids are scaled down after the projector.

So there v is a mean of several outputs of the projector. Several pictures in one conversation aren't cut into tiles.
"""

from dataclasses import replace
from typing import Any

from basic_lite.model.families.llava_next import LLAVA_NEXT
from basic_lite.model.families.pictures_only import LlavaOnevisionPictures


def _tokens(config: Any) -> str:
    vision = config.vision_config
    each = (vision.image_size // vision.patch_size) ** 2
    return f"{each} for the whole picture, and its tiles, cropped, up to {config.vision_aspect_ratio}"


LLAVA_ONEVISION = replace(
    LLAVA_NEXT, name="LLaVA-OneVision", model_type="llava_onevision", tokens=_tokens, processor=LlavaOnevisionPictures
)
