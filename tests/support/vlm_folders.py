"""Tiny models of other families as folders that transformers opens, with tokenizer, processor and chat template."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.import_utils import DummyObject

from tests.support.models import tiny_tokenizer, write_llava
from tests.support.vlms import TINY

ROWS = 64


@dataclass(frozen=True)
class Processed:
    """A family's processor files.

    Attributes:
        kind: the processor's class.
        images: preprocessor_config.json.
        tokens: special tokens of its tokenizer; the first one is the placeholder.
        mark: what the chat template writes for a picture.
        own: processor_config.json.
        named: special tokens that the tokenizer knows by a name.
        count: visual tokens of a picture of 32 × 32 pixels.
    """

    kind: str
    images: dict[str, Any]
    tokens: tuple[str, ...]
    count: int
    mark: str = "<image>"
    own: dict[str, Any] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)


_SIXTEEN = {"height": 16, "width": 16}
_GRID = {"image_grid_pinpoints": [[32, 32]], "do_pad": True}
_QWEN_IMAGES = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 64,
    "max_pixels": 4096,
}
_QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
_SMALL = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}

PROCESSED = {
    "LLaVA-NeXT": Processed(
        "LlavaNextProcessor",
        {
            "image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 16}, "crop_size": _SIXTEEN,
            **_GRID,
        },
        ("<image>",), 20,
        own={"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "LLaVA-OneVision": Processed(
        "LlavaOnevisionProcessor",
        {"image_processor_type": "LlavaOnevisionImageProcessor", "size": _SIXTEEN, **_GRID},
        ("<image>", "<video>"), 20,
        own={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "Idefics3": Processed(
        "Idefics3Processor",
        {"image_processor_type": "Idefics3ImageProcessor", **_SMALL},
        ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"), 20,
        own={"image_seq_len": 4},
    ),
    "InternVL": Processed(
        "InternVLProcessor",
        {"image_processor_type": "GotOcr2ImageProcessor", "size": _SIXTEEN},
        ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"), 20, "<IMG_CONTEXT>",
        own={"image_seq_length": 4},
        named={
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "Qwen2.5-VL": Processed("Qwen2_5_VLProcessor", _QWEN_IMAGES, _QWEN_TOKENS, 16, _QWEN_MARK),
    "Qwen3-VL": Processed("Qwen3VLProcessor", _QWEN_IMAGES, _QWEN_TOKENS, 16, _QWEN_MARK),
    "Qwen3.5": Processed("Qwen3VLProcessor", _QWEN_IMAGES, _QWEN_TOKENS, 16, _QWEN_MARK),
    "Gemma 3": Processed(
        "Gemma3Processor", {"image_processor_type": "Gemma3ImageProcessor", "size": _SIXTEEN},
        ("<img>", "<boi>", "<eoi>"), 4, "<boi>",
        own={"image_seq_length": 4},
        named={"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"},
    ),
    "PaliGemma": Processed(
        "PaliGemmaProcessor",
        {"image_processor_type": "SiglipImageProcessor", "size": _SIXTEEN, "image_seq_length": 4}, ("<image>",), 4,
    ),
}  # fmt: skip
# transformers has these for torchvision alone, or with a package that isn't here.
LACKING = {"SmolVLM": "num2words", "Mistral 3": "torchvision", "Pixtral": "torchvision", "LFM2-VL": "torchvision"}
if isinstance(transformers.Idefics3ImageProcessorPil, DummyObject):  # 5.17 hides it where there is no torchvision
    LACKING |= {"SmolVLM": "torchvision", "Idefics3": "torchvision"}
LACKED = {
    "SmolVLM": Processed(
        "SmolVLMProcessor",
        {"image_processor_type": "SmolVLMImageProcessor", **_SMALL},
        ("<image>", "<fake_token_around_image>", "<global-img>"), 20,
        own={"image_seq_len": 4},
    ),
    "Mistral 3": Processed("PixtralProcessor", {"image_processor_type": "PixtralImageProcessor"}, ("[IMG]",), 16),
    "Pixtral": Processed("PixtralProcessor", {"image_processor_type": "PixtralImageProcessor"}, ("[IMG]",), 16),
    "LFM2-VL": Processed("Lfm2VlProcessor", {"image_processor_type": "Lfm2VlImageProcessor"}, ("<image>",), 16),
}  # fmt: skip


def template(mark: str) -> str:
    """A chat template that writes ``mark`` for a picture."""
    return (
        "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}" + mark + "{% else %}{{ c['text'] }}{% endif %}{% endfor %} "
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )


def require_processor(name: str) -> None:
    """Skip a test whose family's processor can't be had here."""
    if name in LACKING:
        pytest.importorskip(LACKING[name])


def write_vlm(folder: Path, name: str, *, seed: int = 0) -> Path:
    """A family's tiny model, whole."""
    processed = {**PROCESSED, **LACKED}[name]
    tokenizer = tiny_tokenizer(processed.tokens)
    config = copy.deepcopy(TINY[name].config)
    key = "image_token_index" if "image_token_index" in config else "image_token_id"
    config[key] = tokenizer.convert_tokens_to_ids(processed.tokens[0])
    config["image_token_id"] = config[key]
    config["text_config"]["vocab_size"] = ROWS
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **processed.named}))
    images = {**processed.images, "processor_class": processed.kind, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processed.kind, **processed.own}))
    if name != "PaliGemma":  # which has none
        (folder / "chat_template.jinja").write_text(template(processed.mark))
    return folder


def write_llava_with_template(folder: Path) -> Path:
    """The tiny llava-hf checkpoint of ``write_llava`` with what AutoProcessor needs."""
    write_llava(folder)
    own = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor", **own}))
    (folder / "chat_template.jinja").write_text(template("<image>"))
    return folder
