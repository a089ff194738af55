"""LLaVA-NeXT: the whole picture and its tiles through LLaVA's projector; a learned row ends each line of the tiles.

That row, ``image_newline``, fills placeholders as patches do, but it is the same in every picture. The tiles' features
are put together as one picture and cropped, so the projector's own output has another order and more rows.
"""

from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.views import whole_and_tiles


def _tokens(config: Any) -> str:
    vision = config.vision_config
    return f"{(vision.image_size // vision.patch_size) ** 2} for the whole picture, and its tiles, cropped"


LLAVA_NEXT = Family(
    name="LLaVA-NeXT",
    model_type="llava_next",
    tokens=_tokens,
    views=whole_and_tiles,
    separator="model.image_newline",
    notes=("the rows that end lines of patches are left out",),
    not_trained="it cuts pictures into tiles with a learned row after each line, and basic-lite hands over whole ones",
)
