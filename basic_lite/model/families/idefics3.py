"""Idefics3 and SmolVLM: SigLIP's patches, several of them joined by the connector, tile by tile.

Tiles stand between text tokens such as ``<row_1_col_2>``; these are no placeholders. Padding tiles, all zeros, are
dropped before the vision tower.
"""

from dataclasses import replace
from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.pictures_only import SmolVLMPictures
from basic_lite.model.families.views import Batch, View, runs, tiles


def _tokens(config: Any) -> str:
    vision = config.vision_config
    each = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
    return f"{each} for each tile, and for the whole picture"


def _views(config: Any, batch: Batch) -> list[View]:
    vision, values = config.vision_config, batch["pixel_values"].flatten(0, 1)
    held = (values != 0).flatten(1).any(dim=1)
    found = runs(config, batch)
    # A picture's last tile is the whole picture, behind a token of its own, ``<global-img>``.
    last = [run.before == found[-1].before for run in found]
    return tiles(vision.image_size // vision.patch_size // config.scale_factor, values[held], found, last)


IDEFICS3 = Family(
    name="Idefics3",
    model_type="idefics3",
    tokens=_tokens,
    views=_views,
    vision_tower="model.vision_model",
    projector="model.connector",
    language_model="model.text_model",
    not_trained="its connector joins neighbouring patches of tiles, and basic-lite trains LLaVA's projector",
)
SMOLVLM = replace(IDEFICS3, name="SmolVLM", model_type="smolvlm", processor=SmolVLMPictures)
