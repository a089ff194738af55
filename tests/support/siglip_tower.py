"""A SigLIP-type vision tower that sees: derived from the demo's CLIP tower, and taught to give its features.

No registry has a SigLIP tower, and one with random weights shows an LLM little of a picture. This one has the size of
the demo's (48 pixels, patches of 8, 4 layers of 96) and SigLIP's parts: no class token, no norm before the layers, a
bias on the patches, the tanh form of GELU, mean and deviation of 0.5.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import CLIPVisionModel, SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from basic_lite.demo import ASSETS
from basic_lite.demo.vision import VISION_CONFIG, normalised
from basic_lite.demo.world import render, sample_scene
from bench.world.packages import made_once
from bench.world.stamps import PICTURES_VERSION, pictures

# Any change that alters the tower must raise this number.
TOWER_VERSION = 1
# The layer of both towers whose features the projector gets.
LAYER = -2
STEPS = 150
_BATCH = 32


def siglip_tower() -> Path:
    """The tower with its image processor, in the cache; made in about half a minute."""
    return made_once(f"siglip-tower-{PICTURES_VERSION}.{TOWER_VERSION}", _make)


def features_of(model: torch.nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """[B, 3, 48, 48] → [B, 36, 96]: the patches' hidden states at `LAYER`, without a class token."""
    states = model(pixel_values=pixel_values, output_hidden_states=True).hidden_states[LAYER]
    return states[:, -36:]


def _make(folder: Path) -> None:
    teacher = CLIPVisionModel.from_pretrained(ASSETS / "vision").eval()
    student = derived(teacher)
    images = _images()
    rng = random.Random(0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        batch = images[rng.sample(range(len(images)), _BATCH)]
        with torch.no_grad():
            wanted = features_of(teacher, normalised(batch))
        given = features_of(student, torch.from_numpy(batch).permute(0, 3, 1, 2) / 127.5 - 1)
        functional.mse_loss(given, wanted).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    student.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(folder)


def derived(clip: CLIPVisionModel) -> SiglipVisionModel:
    """A SigLIP tower with a CLIP tower's weights, where both have the same parts."""
    sizes = {name: VISION_CONFIG[name] for name in VISION_CONFIG if name != "projection_dim"}
    model = SiglipVisionModel(SiglipVisionConfig(**sizes, vision_use_head=False))
    source, own = clip.state_dict(), model.state_dict()
    state = {name: source[name] if name in source else own[name] for name in own}
    state = {name: tensor if tensor.shape == own[name].shape else own[name] for name, tensor in state.items()}
    processor = json.loads((ASSETS / "vision" / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (torch.tensor(processor[name])[None, :, None, None] for name in ("image_mean", "image_std"))
    # Both see the same pixel x: (x − mean) / std there, (x − ½) / ½ here.
    patches = _only(source, "patch_embedding.weight")
    state[_key(own, "patch_embedding.weight")] = patches * 0.5 / std
    state[_key(own, "patch_embedding.bias")] = (patches * (0.5 - mean) / std).sum((1, 2, 3))
    state[_key(own, "position_embedding.weight")] = _only(source, "position_embedding.weight")[1:]
    model.load_state_dict(state)
    return model


def _key(state: dict[str, torch.Tensor], ending: str) -> str:
    (name,) = (name for name in state if name.endswith(ending))
    return name


def _only(state: dict[str, torch.Tensor], ending: str) -> torch.Tensor:
    return state[_key(state, ending)]


def _images() -> np.ndarray:
    """uint8 [n, 48, 48, 3]: the real training pictures, and as many of the demo's small world."""
    real = pictures()
    names = [record["image"] for record in json.loads(real.train.read_text(encoding="utf-8"))]
    rows = [np.asarray(Image.open(real.images / name).resize((48, 48), Image.Resampling.BICUBIC)) for name in names]
    rng, pixels = random.Random(0), np.random.default_rng(0)
    rows += [np.asarray(render(sample_scene(rng, held_out=False), pixels)) for _ in names]
    return np.stack(rows)
