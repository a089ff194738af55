"""What the name of a model on the hub says of its kind, for where its configuration can't be read."""

import os
import re

# Vision-language models that aren't built like LLaVA, so that they can't be trained here.
_KINDS = {
    "a Qwen-VL": r"qwen[\d.]*-?(vl|omni)|qvq",
    "an InternVL": r"internvl",
    "an Idefics": r"idefics|smolvlm",
    "a LLaVA-NeXT": r"llava-(v1\.6|next|onevision|interleave)",
    "a PaliGemma": r"paligemma",
    "a Gemma 3": r"gemma-3n?-(4b|12b|27b|e2b|e4b)",
    "a Llama Vision": r"llama-3\.2-(11b|90b)-vision|llama-4",
    "a Phi Vision": r"phi-(3|3\.5)-vision|phi-4-multimodal",
    "a MiniCPM-V": r"minicpm-(v|o)",
    "a Molmo": r"molmo",
    "a Pixtral": r"pixtral",
    "a DeepSeek-VL": r"deepseek-vl",
    "a GLM-V": r"glm-4[\d.]*v",
    "a Kimi-VL": r"kimi-vl",
    "a BLIP": r"blip",
}


def kind_in_name(name: str) -> str | None:
    """The kind of vision-language model that OWNER/NAME is, with its article; None: another one, or a folder."""
    owner, _, own = name.partition("/")
    if not owner or not own or "/" in own or os.path.exists(owner):
        return None
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, own.lower())), None)
