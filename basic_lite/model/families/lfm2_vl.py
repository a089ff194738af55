"""LFM2-VL: SigLIP 2 on pictures of any shape, patches joined in the projector, an LLM most of whose layers convolve.

Those have no attention weights; they are skipped where attention is read. Its last norm is called ``embedding_norm``.
"""

from typing import Any

from basic_lite.model.families.family import Family
from basic_lite.model.families.views import flat_tiles


def _tokens(config: Any) -> str:
    side = config.vision_config.patch_size * config.downsample_factor
    return f"one for each {side} × {side} pixels of a tile, and for a small copy of the picture"


LFM2_VL = Family(
    name="LFM2-VL",
    model_type="lfm2_vl",
    tokens=_tokens,
    views=flat_tiles,
    norm="embedding_norm",
    not_trained="its projector joins neighbouring patches of tiles of any shape, and most of its LLM's layers have no "
    "attention; basic-lite trains LLaVA's projector",
)
