"""InternVL as transformers writes it: patches of tiles, four joined into one token before the projector."""

import math
from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.pictures_only import InternVLPictures
from basic_lite.model.families.views import Batch, View, runs, tiles


def _tokens(config: Any) -> str:
    return f"{config.image_seq_length} for each tile, and for the whole picture"


def _views(config: Any, batch: Batch) -> list[View]:
    found = runs(config, batch)  # nothing stands between a picture's tiles
    return tiles(math.isqrt(config.image_seq_length), batch["pixel_values"], found, [True] * len(found))


INTERNVL = Family(
    name="InternVL",
    model_type="internvl",
    tokens=_tokens,
    views=_views,
    processor=InternVLPictures,
    not_trained="its projector joins neighbouring patches of tiles, and basic-lite trains LLaVA's",
)
