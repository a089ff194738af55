"""Folders with the configurations of real models, and no weights: what an estimate and a synthetic model read.

Tests and bench both take them from here, so that what is measured is what was rehearsed.

    recipe = on_shapes("7b_8gb", folder)            a shipped recipe over such folders
    recipe = shape_recipe(folder, "7b", rank=64)    or one made for the purpose
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast

from basic_lite.recipe import load_recipe
from basic_lite.recipe.schema import Recipe

# hidden size, MLP, layers, heads, key heads, vocabulary: Vicuna 7B and 13B, Yi 34B, and one for the CPU
LLM_SHAPES = {
    "tiny": (512, 1408, 6, 8, 4, 2048),
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "13b": (5120, 13824, 40, 40, 40, 32000),
    "34b": (7168, 20480, 60, 56, 8, 64000),
}
# Part of an LLM's name in a recipe → its shape.
SHAPE_OF = {"vicuna-7b": "7b", "vicuna-13b": "13b", "Yi-34B": "34b"}

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + ' ' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


def write_llm_shape(folder: Path, size: str) -> Path:
    """An LLM of ``LLM_SHAPES``: configuration, and a tokenizer with a word for each row."""
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
    """The folders ``root/size`` and ``root/tower``, written where they aren't there yet."""
    if not (root / size).exists():
        write_llm_shape(root / size, size)
    if not (root / "tower").exists():
        write_tower_shape(root / "tower")
    return root / size, root / "tower"


def on_shapes(recipe: str | Path, root: Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe with a real LLM's name, over folders of its shape; without an earlier stage's projector.

    Raises:
        KeyError: no shape is known for its LLM.
    """
    llm = str(load_recipe(recipe).model.llm)
    size = next((size for name, size in SHAPE_OF.items() if name in llm), None)
    if size is None:
        raise KeyError(f"no shape is known for model.llm {llm}; known: {', '.join(SHAPE_OF)}")
    language, tower = write_shapes(root, size)
    models_here = [f"model.vision={tower}", f"model.llm={language}", "model.projector=null"]
    return load_recipe(recipe, [*models_here, *overrides])


def shape_recipe(root: Path, size: str, **keys: Any) -> Recipe:
    """A stage-2 recipe over these folders, written on first use; ``keys``: micro_batch, max_length, rank, others."""
    language, tower = write_shapes(root, size)
    micro = keys.pop("micro_batch", 1)
    tree: dict[str, Any] = {
        "name": f"shape_{size}",
        "stage": 2,
        "model": {"vision": str(tower), "llm": str(language)},
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
