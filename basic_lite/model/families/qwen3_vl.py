"""Qwen3-VL: as Qwen2.5-VL, and DeepStack: features of earlier vision layers are added after the first decoder layers.

The additions are made between layers, so a layer's own output lacks them; the next layer's input has them.
"""

from dataclasses import replace

from basic_lite.model.families.pictures_only import Qwen3VLPictures
from basic_lite.model.families.qwen2_5_vl import QWEN2_5_VL

QWEN3_VL = replace(
    QWEN2_5_VL,
    name="Qwen3-VL",
    model_type="qwen3_vl",
    processor=Qwen3VLPictures,
    notes=(
        "DeepStack adds features of the vision tower after the first decoder layers, so what is better there need not "
        "be the LLM's work",
    ),
)
