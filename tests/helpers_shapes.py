"""Folders with the configurations of real models, and no weights: what an estimate reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers_models import CHAT_TEMPLATE, SPECIAL, write_image_processor
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from basic_lite.schema import Recipe

# hidden size, MLP, layers, heads, key heads, vocabulary
LLM_SHAPES = {
    "tiny": (512, 1408, 6, 8, 4, 2048),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "13b": (5120, 13824, 40, 40, 40, 32000),
    "34b": (7168, 20480, 60, 56, 8, 64000),
}


def write_llm_shape(folder: Path, size: str) -> Path:
    """Vicuna 7B or 13B, or Yi 34B: configuration, and a tokenizer with a word for each row."""
    hidden, mlp, layers, heads, key_heads, vocabulary = LLM_SHAPES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    words = [*SPECIAL, *(f"w{i}" for i in range(vocabulary - len(SPECIAL)))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write_tower_shape(folder: Path) -> Path:
    """CLIP ViT-L/14-336: 576 tokens an image."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    config.architectures = ["CLIPVisionModel"]
    config.save_pretrained(folder)
    write_image_processor(folder, size=336)
    return folder


def shape_recipe(root: Path, size: str, **keys: Any) -> Recipe:
    """A stage-2 recipe over these folders, written on first use; ``keys``: micro_batch, max_length, rank, others."""
    if not (root / size).exists():
        write_llm_shape(root / size, size)
    if not (root / "tower").exists():
        write_tower_shape(root / "tower")
    micro = keys.pop("micro_batch", 1)
    tree: dict[str, Any] = {
        "name": f"shape_{size}",
        "stage": 2,
        "model": {"vision": str(root / "tower"), "llm": str(root / size)},
        "lora": {"enabled": True, "rank": keys.pop("rank", 16), **keys.pop("lora", {})},
        "data": {"train": {"path": "data.json"}, "max_length": keys.pop("max_length", 1024)},
        "training": {
            "micro_batch": micro,
            "global_batch": keys.pop("global_batch", micro * 4),
            "optimizer": "paged_adamw_8bit",
            **keys.pop("training", {}),
        },
        **keys,
    }
    return Recipe.model_validate(tree)
