"""The demo's vision encoder: a tiny CLIP, trained from scratch on pictures and captions."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPVisionModel, PreTrainedTokenizerFast

from basic_lite.demo.world import IMAGE_SIZE, caption, render, sample_scene

VISION_CONFIG = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": 8,
    "projection_dim": 96,
}


TEXT_CONFIG = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "projection_dim": 96,
}

STEPS = 1200
_BATCH = 128
# Drawn before the first step.
_PICTURES = 24000
_LEARNING_RATE = 1e-3


def image_processor() -> CLIPImageProcessorPil:
    """CLIP's preprocessing at 48×48, in its `Pil` form, which needs no torchvision."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [B, 48, 48, 3] → float32 [B, 3, 48, 48], as `image_processor` does it for images of this size."""
    processor = image_processor()
    scaled = torch.from_numpy(pixels).float() / 255
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return ((scaled - mean) / std).permute(0, 3, 1, 2).contiguous()


def train_vision(
    out_dir: Path,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    steps: int = STEPS,
    progress: Callable[[str], None] = print,
) -> None:
    """Train the encoder contrastively beside a two-layer text tower and save it with its image processor.

    Args:
        out_dir: gets config, weights and preprocessor config, as AutoModel and AutoImageProcessor read them.
        tokenizer: reads the captions for the text tower, which is thrown away afterwards.
        seed: the seed of scenes, pictures, initial weights and batch order.
        steps: the steps of AdamW, whose rate warms up over 100 of them and falls to zero as a cosine.
        progress: called with one line of text every 50 steps.
    """
    rng = random.Random(f"vision {seed}")
    # A short trial need not draw what it never shows.
    pictures = min(_PICTURES, steps * _BATCH)
    pixel_rng = np.random.default_rng([seed, 2])
    scenes = [sample_scene(rng, held_out=False) for _ in range(pictures)]
    pixels = np.stack([np.asarray(render(scene, pixel_rng)) for scene in scenes])
    captions = [caption(scene) + tokenizer.eos_token for scene in scenes]
    texts = tokenizer(captions, padding=True, add_special_tokens=False, return_tensors="pt")

    torch.manual_seed(seed)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text_config = TEXT_CONFIG | special | {"vocab_size": len(tokenizer)}
    model = CLIPModel(CLIPConfig(vision_config=VISION_CONFIG, text_config=text_config, projection_dim=96))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    for step in range(steps):
        warm_up = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * warm_up * 0.5 * (1 + np.cos(np.pi * step / steps))
        chosen = torch.tensor(rng.sample(range(pictures), _BATCH))
        loss = model(
            pixel_values=normalised(pixels[chosen.numpy()]),
            input_ids=texts["input_ids"][chosen],
            attention_mask=texts["attention_mask"][chosen],
            return_loss=True,
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            progress(f"vision: step {step + 1} of {steps}, contrastive loss {loss.item():.3f}")

    encoder = CLIPVisionModel(model.config.vision_config)
    encoder.load_state_dict(model.vision_model.state_dict())
    encoder.save_pretrained(out_dir)
    image_processor().save_pretrained(out_dir)
