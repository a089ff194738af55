"""Folders with the configurations of models and no weights: what an estimate and a synthetic model read.

Tests and bench both take them from here, so that what is measured is what was rehearsed.

    recipe = on_shapes("7b_8gb", folder)            a shipped recipe over such folders
    recipe = shape_recipe(folder, "7b", rank=64)    or one made for the purpose
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from basic_lite.data.templates import V1_SYSTEM
from basic_lite.recipe import load_recipe
from basic_lite.recipe.schema import Recipe


@dataclass(frozen=True)
class Tower:
    """Sizes of a CLIP vision encoder."""

    hidden: int
    layers: int
    heads: int
    image_side: int
    patch: int = 14

    @property
    def tokens_per_image(self) -> int:
        return (self.image_side // self.patch) ** 2


@dataclass(frozen=True)
class Size:
    """Sizes of a Llama and of the vision encoder before it."""

    hidden: int  # D
    mlp: int
    layers: int  # L
    heads: int
    key_heads: int
    vocabulary: int  # V
    tied: bool = field(default=False, kw_only=True)  # the head is the table of words
    tower: Tower = Tower(1024, 24, 16, 336)  # CLIP ViT-L/14-336: 576 tokens an image


SIZES = {
    "tiny": Size(512, 1408, 6, 8, 4, 2048),
    "7b": Size(4096, 11008, 32, 32, 32, 32000),  # Vicuna
    "7b-152k": Size(3584, 18944, 28, 28, 4, 152064),  # Qwen2 7B
    "13b": Size(5120, 13824, 40, 40, 40, 32000),
    "34b": Size(7168, 20480, 60, 56, 8, 64000),  # Yi
    # Qwen1.5 0.5B behind SigLIP so400m: 729 tokens an image.
    "0.5b": Size(1024, 2816, 24, 16, 16, 152000, Tower(1152, 27, 16, 384), tied=True),
    # SmolLM2-360M behind SigLIP-B/16: 256 tokens an image.
    "360m": Size(960, 2560, 32, 15, 5, 49152, Tower(768, 12, 12, 256, 16), tied=True),
    # A size that a CPU can train. As in LLaVA-1.5 7B the MLP is 2.69 × D, a head has 128 dimensions, and an image
    # takes more than half of a sample's 256 tokens. Of the vision encoder there is as much as the image tokens need.
    "mid": Size(1024, 2752, 8, 8, 8, 2000, Tower(256, 4, 4, 168)),
    # Linear sizes are multiples of 64, so that NF4 blocks are whole.
    "toy": Size(64, 192, 4, 4, 4, 200, Tower(32, 3, 2, 56)),
}
# Part of a model's name in a recipe → its shape.
SIZE_OF = {
    "vicuna-7b": "7b",
    "vicuna-13b": "13b",
    "Yi-34B": "34b",
    "llava-1.5-7b": "7b",
    "llava-interleave-qwen-0.5b": "0.5b",
    "SmolLM2-360M": "360m",
}

QUESTION = "What is in the picture ?"
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


def write_llm_shape(folder: Path, size: Size) -> None:
    """An LLM: configuration, and a tokenizer with a word for each row."""
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        max_position_embeddings=4096,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("</s>"),
        pad_token_id=SPECIAL.index("<pad>"),
        tie_word_embeddings=size.tied,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    _tokenizer(size.vocabulary).save_pretrained(folder)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word a token: those of a prompt with ``QUESTION``, then w0, w1, … up to ``vocabulary``."""
    splitter = pre_tokenizers.Whitespace()
    prompt = f"{V1_SYSTEM} USER: {QUESTION} ASSISTANT:"
    words = list(dict.fromkeys([*SPECIAL, *(word for word, _ in splitter.pre_tokenize_str(prompt))]))
    words += [f"w{i}" for i in range(vocabulary - len(words))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = splitter
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def write_tower_shape(folder: Path, tower: Tower) -> None:
    """A CLIP vision encoder: configuration, and its image processor's settings."""
    config = CLIPVisionConfig(
        hidden_size=tower.hidden,
        intermediate_size=4 * tower.hidden,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        image_size=tower.image_side,
        patch_size=tower.patch,
    )
    config.architectures = ["CLIPVisionModel"]
    config.save_pretrained(folder)
    write_image_processor(folder, size=tower.image_side)


def write_image_processor(folder: Path, size: int = 16, kind: str = "CLIPImageProcessor") -> None:
    """The settings of CLIP's or SigLIP's image processor, for pictures of ``size``²."""
    settings = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": size} if kind.startswith("CLIP") else {"height": size, "width": size},
        "do_center_crop": kind.startswith("CLIP"),
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_shapes(root: Path, size: str) -> tuple[Path, Path]:
    """The folders of an LLM and its vision encoder, written where they aren't there yet."""
    tower = SIZES[size].tower
    folders = root / size, root / f"tower-{tower.image_side}"
    if not folders[0].exists():
        write_llm_shape(folders[0], SIZES[size])
    if not folders[1].exists():
        write_tower_shape(folders[1], tower)
    return folders


def on_shapes(recipe: str | Path, root: Path, overrides: Sequence[str] = (), *, size: str | None = None) -> Recipe:
    """A recipe with a real model's name, over folders of its shape; without an earlier stage's projector.

    Args:
        size: another shape, one of ``SIZES``.

    Raises:
        KeyError: no shape is known for its model.
    """
    model = load_recipe(recipe).model
    named = str(model.llm or model.base)
    size = size or next((size for name, size in SIZE_OF.items() if name in named), None)
    if size is None:
        raise KeyError(f"no shape is known for the model {named}; known: {', '.join(SIZE_OF)}")
    language, tower = write_shapes(root, size)
    models_here = [f"model.vision={tower}", f"model.llm={language}", "model.projector=null", "model.base=null"]
    return load_recipe(recipe, [*models_here, *overrides])


def shape_recipe(root: Path, size: str, **keys: Any) -> Recipe:
    """A stage-2 recipe over these folders, written on first use; ``keys``: micro_batch, max_length, rank, others."""
    language, tower = write_shapes(root, size)
    micro = keys.pop("micro_batch", 1)
    tree: dict[str, Any] = {
        "name": f"shape_{size}",
        "stage": 2,
        "model": {"vision": str(tower), "llm": str(language), **keys.pop("model", {})},
        "lora": {"enabled": True, "rank": keys.pop("rank", 16), **keys.pop("lora", {})},
        "data": {"train": {"path": "data.json"}, "max_length": keys.pop("max_length", 1024), **keys.pop("data", {})},
        "training": {
            "micro_batch": micro,
            "global_batch": keys.pop("global_batch", micro * 4),
            "optimizer": "paged_adamw_8bit",
            **keys.pop("training", {}),
        },
        **keys,
    }
    return Recipe.model_validate(tree)
