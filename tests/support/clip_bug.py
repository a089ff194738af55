"""llama.cpp's bug with CLIP towers (ggml-org/llama.cpp issue 25814), computed here: right, and as it does it.

It puts the class token behind the patches instead of before them. So every token gets its neighbour's position, and
the first patch is cut off as if it were the class token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.support.answers import Answer, Prompt


@torch.no_grad()
def largest_drift(folder: Path, prompts: Sequence[Prompt], answers: Sequence[Answer], *, with_bug: bool) -> float:
    """The largest difference between the log-probabilities of ``answers`` and those computed here for their tokens.

    Args:
        folder: an exported folder with a CLIP tower.
        with_bug: compute as llama.cpp does.
    """
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    drifts = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with Image.open(prompt.image) as picture:
            content = [{"type": "image", "image": picture.convert("RGB")}, {"type": "text", "text": prompt.question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        features = _features(model, inputs["pixel_values"], with_bug)  # [N, D]
        ids = torch.cat([inputs["input_ids"], torch.tensor([answer.ids])], 1)  # [1, T]
        states = model.get_input_embeddings()(ids)
        states[ids == model.config.image_token_id] = features
        logits = model(inputs_embeds=states).logits[0, inputs["input_ids"].shape[1] - 1 : -1]
        found = logits.log_softmax(-1).gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
        drifts.append((found - torch.tensor(answer.logprobs)).abs().max().item())
    return max(drifts)


def _features(model: torch.nn.Module, pixel_values: Tensor, with_bug: bool) -> Tensor:
    """[1, 3, h, w] → [N, D], what the projector hands to the language model."""
    tower = model.model.vision_tower
    positions = tower.embeddings.position_embedding.weight
    tokens = tower.embeddings(pixel_values) - positions  # [1, 1 + N, D]
    if with_bug:
        tokens = tokens.roll(-1, dims=1)
    states = tower.pre_layrnorm(tokens + positions)
    for layer in tower.encoder.layers[: model.config.vision_feature_layer + 1]:
        states = layer(states, attention_mask=None)
    return model.model.multi_modal_projector(states[0, 1:])
