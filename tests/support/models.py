"""Tiny random checkpoints on disk: vision encoders, LLMs of every supported family, a llava-hf one. No network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.support.shapes import CHAT_TEMPLATE, SPECIAL, write_image_processor

WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "green",
    "cat",
    "dog",
    "square",
    "circle",
    "is",
    "what",
    "colour",
    "how",
    "many",
    "left",
    "right",
    "of",
    "one",
    "two",
    "three",
    "yes",
    "no",
    "in",
    "image",
    "picture",
    "USER",
    "ASSISTANT",
    ":",
    ".",
    ",",
    "?",
    "!",
    "describe",
    "it",
    "there",
    "and",
]
LLM_KINDS = ("llama", "mistral", "gemma", "phi3", "qwen2", "qwen3")


def tiny_tokenizer(extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; ``extra``: special tokens to add, such as ``<image>``."""
    words = [*SPECIAL, *dict.fromkeys(WORDS), "user", "assistant", "system"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    if extra:
        tokenizer.add_special_tokens({"additional_special_tokens": list(extra)})
    return tokenizer


def text_config(kind: str, vocab_size: int, **changes: Any) -> Any:
    """A tiny configuration of an LLM family; linear sizes are multiples of 64, so that NF4 blocks are whole."""
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    family = {
        "llama": (LlamaConfig, {}),
        "mistral": (MistralConfig, {"sliding_window": 12}),
        "gemma": (GemmaConfig, {"head_dim": 16}),
        "phi3": (Phi3Config, {"sliding_window": 12}),
        "qwen2": (Qwen2Config, {}),
        "qwen3": (Qwen3Config, {"head_dim": 16}),
        "gemma3": (Gemma3TextConfig, {"head_dim": 16, "sliding_window": 12}),
        "mixtral": (MixtralConfig, {"num_local_experts": 2, "tie_word_embeddings": False}),
    }
    cls, own = family[kind]
    return cls(**{**common, **own, **changes})


def clip_config(**changes: Any) -> CLIPVisionConfig:
    base = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return CLIPVisionConfig(**{**base, "image_size": 16, "patch_size": 8, "projection_dim": 16, **changes})


def write_llm(folder: Path, kind: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A tiny random LLM with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = text_config(kind, changes.pop("vocab_size", len(tokenizer)), **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_vision(folder: Path, kind: str = "clip", *, seed: int = 0) -> Path:
    """``clip`` (vision part alone), ``clip_full`` (with its text tower, as published), or ``siglip``."""
    torch.manual_seed(seed)
    if kind == "clip":
        CLIPVisionModel(clip_config()).save_pretrained(folder)
    elif kind == "clip_full":
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = CLIPConfig(
            vision_config=clip_config().to_dict(), text_config={**text, "vocab_size": 50}, projection_dim=16
        )
        CLIPModel(config).save_pretrained(folder)
    else:
        SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=16,
                patch_size=8,
            )
        ).save_pretrained(folder)
    write_image_processor(folder, kind="SiglipImageProcessor" if kind == "siglip" else "CLIPImageProcessor")
    return folder


def write_llava(folder: Path, *, seed: int = 0, image_token: bool = True, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny llava-hf checkpoint with its processor files."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(("<image>",) if image_token else ())
    image_id = len(tokenizer) - 1
    config = LlavaConfig(
        vision_config=clip_config(),
        text_config=text_config("llama", 64),
        image_token_index=image_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )
    LlavaForConditionalGeneration(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_image_processor(folder)
    return folder
