"""Qwen3.5: Qwen3-VL's vision tower without DeepStack, and an LLM most of whose layers have linear attention.

Those have no attention weights; they are skipped where attention is read.
"""

from dataclasses import replace

from basic_lite.model.families.pictures_only import Qwen3VLPictures
from basic_lite.model.families.qwen2_5_vl import QWEN2_5_VL

QWEN3_5 = replace(QWEN2_5_VL, name="Qwen3.5", model_type="qwen3_5", processor=Qwen3VLPictures)
