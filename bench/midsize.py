"""A LLaVA of a size that a CPU can train, with the proportions of LLaVA-1.5 7B and weights drawn from a seed.

    parts = write(folder)                       two checkpoints and the data, in seconds
    recipe = stage2(parts, device="cpu")        a recipe over them: NF4, LoRA on all linear layers, BASIC on

As in LLaVA-1.5 7B the MLP is 2.69 × D, a head has 128 dimensions, and an image takes more than half of a sample's
tokens. Layers and vocabulary are fewer, and of the vision encoder there is only as much as the image tokens need.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from basic_lite.data.templates import V1_SYSTEM
from basic_lite.recipe.schema import Recipe

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
QUESTION = "What is in the picture ?"
# One sample in so many is shorter than the others, by up to half of its text.
SHORTER_EVERY = 8


@dataclass(frozen=True)
class Size:
    """Sizes of the LLM (D, MLP, layers, heads, V), of the vision encoder, and T, tokens of a full sample."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    vocabulary: int
    image_side: int
    patch: int
    tower_hidden: int
    tower_layers: int
    tokens: int

    @property
    def tokens_per_image(self) -> int:
        return (self.image_side // self.patch) ** 2


MID = Size(
    hidden=1024, mlp=2752, layers=8, heads=8, vocabulary=2000,
    image_side=168, patch=14, tower_hidden=256, tower_layers=4, tokens=256,
)  # fmt: skip
# Linear sizes are multiples of 64, so that NF4 blocks are whole.
TINY = Size(
    hidden=64, mlp=192, layers=4, heads=4, vocabulary=200,
    image_side=56, patch=14, tower_hidden=32, tower_layers=3, tokens=80,
)  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """What ``write`` has written."""

    size: Size
    llm: Path
    vision: Path
    data: Path
    images: Path

    @staticmethod
    def of(folder: Path, size: Size) -> Parts:
        return Parts(size, folder / "llm", folder / "vision", folder / "data.json", folder / "images")


def write(folder: Path, size: Size = MID, *, samples: int = 64, seed: int = 0) -> Parts:
    """Write an LLM, a vision encoder and ``samples`` LLaVA records with pictures into ``folder``."""
    parts = Parts.of(folder, size)
    torch.manual_seed(seed)
    tokenizer = _tokenizer(size.vocabulary)
    llm = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=4 * size.tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(llm).save_pretrained(parts.llm)
    tokenizer.save_pretrained(parts.llm)
    vision = CLIPVisionConfig(
        hidden_size=size.tower_hidden,
        intermediate_size=4 * size.tower_hidden,
        num_hidden_layers=size.tower_layers,
        num_attention_heads=size.tower_hidden // 16 if size.tower_hidden < 64 else size.tower_hidden // 64,
        image_size=size.image_side,
        patch_size=size.patch,
        projection_dim=size.tower_hidden,
    )
    CLIPVisionModel(vision).save_pretrained(parts.vision)
    side = {"height": size.image_side, "width": size.image_side}
    CLIPImageProcessorPil(size={"shortest_edge": size.image_side}, crop_size=side).save_pretrained(parts.vision)
    _write_data(parts, tokenizer, samples, seed)
    return parts


def stage2(
    parts: Parts,
    *,
    device: str = "cpu",
    output: Path | None = None,
    micro_batch: int = 2,
    global_batch: int = 4,
    max_steps: int = 8,
    changes: dict[str, Any] | None = None,
) -> Recipe:
    """A stage-2 recipe over these checkpoints; ``changes``: dotted keys to values, on top of everything else."""
    tree: dict[str, Any] = {
        "name": "midsize",
        "stage": 2,
        "output": str(output or parts.data.parent / "runs"),
        "model": {"llm": str(parts.llm), "vision": str(parts.vision)},
        "lora": {"enabled": True, "rank": 16, "alpha": 32.0, "dropout": 0.0},
        "data": {
            "train": {"path": str(parts.data), "image_dir": str(parts.images)},
            "max_length": parts.size.tokens,
            "workers": 0,
        },
        "supervision": {"refinement_batches": 0},
        "training": {
            "micro_batch": micro_batch,
            "global_batch": global_batch,
            "max_steps": max_steps,
            "gradient_checkpointing": True,
            "device": device,
            "trackers": [],
        },
    }
    for key, value in (changes or {}).items():
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return Recipe.model_validate(tree)


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word a token: the prompt's own words, then w0, w1, … up to ``vocabulary``."""
    splitter = pre_tokenizers.Whitespace()
    prompt = f"{V1_SYSTEM} USER: {QUESTION} ASSISTANT:"
    words = list(dict.fromkeys([*SPECIAL, *(word for word, _ in splitter.pre_tokenize_str(prompt))]))
    words += [f"w{i}" for i in range(vocabulary - len(words))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = splitter
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words.index("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _write_data(parts: Parts, tokenizer: PreTrainedTokenizerFast, samples: int, seed: int) -> None:
    """LLaVA's JSON beside a folder of noise pictures; full samples have exactly ``size.tokens`` tokens."""
    size = parts.size
    parts.images.mkdir(parents=True, exist_ok=True)
    words = [word for word in tokenizer.get_vocab() if word.startswith("w") and word[1:].isdigit()]
    words.sort(key=lambda word: int(word[1:]))
    # Beside the image and the answer: <s>, the prompt's words, </s>.
    around = 2 + len(tokenizer.tokenize(f"{V1_SYSTEM} USER: {QUESTION} ASSISTANT:"))
    full = size.tokens - size.tokens_per_image - around
    draw = np.random.default_rng(seed)
    records = []
    for i in range(samples):
        pixels = draw.integers(0, 256, (size.image_side, size.image_side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(parts.images / f"{i}.png")
        count = full if i % SHORTER_EVERY else int(draw.integers(full // 2, full))
        answer = " ".join(words[k] for k in draw.integers(0, len(words), count))
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]
        records.append({"id": i, "image": f"{i}.png", "conversations": turns})
    parts.data.write_text(json.dumps(records), encoding="utf-8")
