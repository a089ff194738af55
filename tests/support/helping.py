"""A made model and data in which BASIC helps: its premise holds, and its pull lowers the LM loss.

The LLM's first layer turns a noisy word into that word, its last layer says the word that the picture shows, and the
projector hands over noisy words. So v̂ after layer 1 names the picture better than v, and a v that is pulled there is
said more surely.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from basic_lite.model.frontend import load_image_processor
from basic_lite.recipe.schema import Recipe
from tests.support.models import write_llava
from tests.support.runs import whole_recipe

THINGS = ("red", "blue", "green", "cat", "dog", "square", "circle", "left", "right", "one", "two", "three")
WORD = 4.0  # the length of a word embedding


def write_helping_world(folder: Path, *, noise: float, count: int = 200, seed: int = 0) -> Path:
    """Write ``base``, ``images`` and ``data.json``.

    Args:
        noise: of the projector, beside words of length 2. At .08 BASIC's pull lowers the loss. At .2 it raises it,
            although the premise holds.
    """
    generator = torch.Generator().manual_seed(seed)
    write_llava(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = LlavaForConditionalGeneration.from_pretrained(folder / "base")
    llm, hidden = model.model.language_model, model.config.text_config.hidden_size
    words = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))[0]  # [V, D], V = D: orthonormal
    things = [tokenizer.convert_tokens_to_ids(thing) for thing in THINGS]
    shown = _pictures(count, np.random.default_rng(seed))
    with torch.no_grad():
        llm.embed_tokens.weight.copy_(words * WORD)
        model.lm_head.weight.copy_(words * 1.5)
        for weight in llm.layers.parameters():
            if weight.dim() > 1:
                weight.zero_()
        _answers_to_words(llm.layers[0].mlp, words[things], words[things] * 2.5)
        _answers_to_words(llm.layers[-2].mlp, words[things], words[tokenizer.eos_token_id].expand(len(things), -1) * 4)
        copies = llm.layers[-1].self_attn
        copies.v_proj.weight[: len(things)] = words[things]
        copies.o_proj.weight[:, : len(things)] = words[things].T * 6
        for weight in llm.layers.parameters():
            if weight.dim() > 1:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.005)
        _fit(model, [image for _, image in shown], words[[things[thing] for thing, _ in shown]] * WORD / 2, generator)
        others = words[[index for index in range(5, len(tokenizer) - 1) if index not in things]]
        projector = model.model.multi_modal_projector
        projector.linear_2.weight += noise * others.T @ torch.randn(len(others), hidden, generator=generator)
    model.save_pretrained(folder / "base")
    (folder / "images").mkdir()
    records = []
    for index, (thing, image) in enumerate(shown):
        image.save(folder / "images" / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": THINGS[thing]}]
        records.append({"id": index, "image": f"{index}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def _pictures(count: int, random: np.random.Generator) -> list[tuple[int, Image.Image]]:
    """Pictures of 16 × 16 with the number of what they show: a colour for each thing and quarter, and noise."""
    colours = np.random.default_rng(5).integers(40, 215, (len(THINGS), 2, 2, 3))
    found = []
    for thing in random.integers(len(THINGS), size=count):
        quarters = colours[thing] + random.normal(0, 18, (2, 2, 3))
        pixels = quarters.repeat(8, 0).repeat(8, 1) + random.normal(0, 18, (16, 16, 3))
        found.append((int(thing), Image.fromarray(pixels.clip(0, 255).astype("uint8"))))
    return found


def _answers_to_words(mlp: nn.Module, words: Tensor, answers: Tensor) -> None:
    """An MLP whose neuron j adds ``answers[j]`` where it meets ``words[j]``. Both: [words, D]."""
    mlp.gate_proj.weight[: len(words)] = words * 3
    mlp.up_proj.weight[: len(words)] = words
    mlp.down_proj.weight[:, : len(words)] = answers.T


def _fit(model: Any, images: Sequence[Image.Image], targets: Tensor, generator: torch.Generator) -> None:
    """Fit the projector's second layer to a target [D] for each picture, by ridge regression over random features."""
    processor = load_image_processor(model.config._name_or_path, "model.base")
    pixels = torch.as_tensor(np.stack(processor(images=list(images), return_tensors="np")["pixel_values"])).float()
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    projector = model.model.multi_modal_projector
    first = projector.linear_1.weight
    first.copy_(torch.randn(first.shape, generator=generator) * 0.3)
    inner = nn.functional.gelu(projector.linear_1(features))
    x = torch.cat([inner, torch.ones_like(inner[..., :1])], -1).flatten(0, 1)
    y = targets.repeat_interleave(inner.shape[1], 0)
    fitted = torch.linalg.solve(x.T @ x + 30 * torch.eye(x.shape[1]), x.T @ y)
    projector.linear_2.weight.copy_(fitted[:-1].T)
    projector.linear_2.bias.copy_(fitted[-1])


def helping_recipe(folder: Path, changes: dict[str, Any] | None = None) -> Recipe:
    """Stage 2 over that world, with `measured`."""
    own = {
        "model": {"base": str(folder / "base")},
        "quantization.mode": "none",
        "supervision.preset": "measured",
        "supervision.refinement_batches": 16,
        "training.learning_rate": 1e-4,
    }
    return whole_recipe(folder, {**own, **(changes or {})})
