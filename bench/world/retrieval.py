"""How much a tower sees: ``python -m bench.world.retrieval`` finds the captions of held-out pictures by its features.

A ridge regression goes from the mean of a picture's patch features to its caption's vector, the same for every tower.
A held-out picture's own caption is then looked for among those of all held-out pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer, SiglipVisionModel

from basic_lite.demo import ASSETS
from bench.world.llms import smollm2
from bench.world.pictures import RealWorld, real_world
from bench.world.tower import LAYER, tower

# Strengths of the ridge, relative to the features' own variance; the best on a tenth of the training pictures is taken.
RIDGES = (0.01, 0.1, 1.0, 10.0)
BATCH = 64
Features = Callable[[list[Image.Image]], Tensor]


@dataclass(frozen=True)
class Found:
    """Shares of held-out pictures whose own caption is first, or among the first ten; the median rank, from 1."""

    first: float
    ten: float
    median: float

    def text(self) -> str:
        return f"first {self.first:.3f}, among ten {self.ten:.3f}, median rank {self.median:.0f}"


def of_tower(folder: Path) -> Features:
    """Mean patch features [n, D] of a CLIP or SigLIP tower, at the layer that a projector gets."""
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    first = 0 if isinstance(model, SiglipVisionModel) else 1  # CLIP has a class token before the patches

    @torch.no_grad()
    def features(pictures: list[Image.Image]) -> Tensor:
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        return model(pixel_values=pixels, output_hidden_states=True).hidden_states[LAYER][:, first:].mean(1)

    return features


def of_pixels(side: int = 8) -> Features:
    """The picture at 8 × 8 pixels: what needs no network."""

    def features(pictures: list[Image.Image]) -> Tensor:
        small = [np.asarray(picture.resize((side, side), Image.Resampling.BOX)).ravel() for picture in pictures]
        return torch.from_numpy(np.stack(small)).float() / 255

    return features


def retrieval(features: Features, world: RealWorld) -> Found:
    """Fit on the training pictures, look for the captions of the held-out ones."""
    (x, train), (held_x, held) = (_read(features, world, path) for path in (world.pretrain, world.eval_captions))
    vectors = caption_vectors(train + held)
    y, held_y = vectors[: len(train)], vectors[len(train) :]
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x, held_x = (x - mean) / std, (held_x - mean) / std
    part = len(x) * 9 // 10
    tried = {ridge: ranks(_fit(x[:part], y[:part], ridge, x[part:]), y[part:], train[part:]) for ridge in RIDGES}
    best = min(tried, key=lambda ridge: tried[ridge].log().mean())
    rank = ranks(_fit(x, y, best, held_x), held_y, held)
    return Found(*(float((rank <= most).float().mean()) for most in (1, 10)), float(rank.median()))


@torch.no_grad()
def caption_vectors(captions: list[str]) -> Tensor:
    """[n, D]: the mean of each caption's word embeddings in SmolLM2, less the mean of all words, at length 1."""
    table = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    ids = [tokenizer.encode(" " + caption, add_special_tokens=False) for caption in captions]
    means = torch.stack([table[row].mean(0) for row in ids])
    return functional.normalize(means - table.mean(0), dim=-1)


def chance(captions: list[str]) -> Found:
    """What guessing gives."""
    rank = ranks(torch.randn(len(captions), 64), torch.randn(len(captions), 64), captions)
    return Found(*(float((rank <= most).float().mean()) for most in (1, 10)), float(rank.median()))


def ranks(guessed: Tensor, vectors: Tensor, captions: list[str]) -> Tensor:
    """[n]: how many other captions come before each picture's own, and 1. The same caption twice counts once."""
    scores = functional.normalize(guessed, dim=-1) @ functional.normalize(vectors, dim=-1).T  # [n, n]
    first = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    different = sorted(first.values())
    own = torch.tensor([first[caption] for caption in captions])
    kept = scores[:, different]
    return (kept > scores.gather(1, own[:, None])).sum(1).float() + 1


def _fit(x: Tensor, y: Tensor, ridge: float, new: Tensor) -> Tensor:
    gram = x.T @ x / len(x) + ridge * torch.eye(x.shape[1])
    # Both sides are centred: what all captions share says nothing of this one.
    return new @ torch.linalg.solve(gram, x.T @ (y - y.mean(0)) / len(x))


def _read(features: Features, world: RealWorld, path: Path) -> tuple[Tensor, list[str]]:
    records = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for start in range(0, len(records), BATCH):
        pictures = [Image.open(world.images / r["image"]).convert("RGB") for r in records[start : start + BATCH]]
        rows.append(features(pictures))
    return torch.cat(rows), [record["conversations"][1]["value"] for record in records]


if __name__ == "__main__":
    world = real_world()
    texts = [r["conversations"][1]["value"] for r in json.loads(world.eval_captions.read_text(encoding="utf-8"))]
    print("chance:", chance(texts).text(), flush=True)
    makers = {
        "8 × 8 pixels": of_pixels,
        "the demo's tower": lambda: of_tower(ASSETS / "vision"),
        "the real world's tower": lambda: of_tower(tower()),
    }
    for name, make in makers.items():
        print(f"{name}:", retrieval(make(), world).text(), flush=True)
