"""A small CLIP tower for real pictures: 80 pixels, 25 patches of 16, made by ``python -m bench.world.tower``.

It learns two things at once. Its patches learn to say what an ImageNet network sees at the same place (EfficientNet-
Lite0, frozen; this stands in for the pictures that nobody has here), at the layer whose features a projector gets. Its
class token learns to find the picture's caption among those of the batch, as CLIP does. The caption's side is the mean
of the language model's word embeddings through one matrix, and is thrown away.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from bench.world.llms import smollm2
from bench.world.packages import made_once
from bench.world.pictures import VERSION as PICTURES_VERSION
from bench.world.pictures import RealWorld, real_world
from bench.world.teacher import STRIDE, WIDTH, features_of, teacher

# Any change that alters the tower must raise this number.
VERSION = 1
SIDE, PATCH = 80, 16
PATCHES = (SIDE // PATCH) ** 2
# The layer whose features the projector gets.
LAYER = -2
CONFIG = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": 192,
}
# Each picture as it is, and cut in other ways: the teacher looks at each of them once.
VIEWS = 4
STEPS, BATCH, RATE = 1300, 128, 1.5e-3
# Of the loss on captions, beside that on the teacher's features.
CONTRAST = 0.3
# The teacher needs a side that is a multiple of its stride and gives as many places as the tower has patches.
_TEACHER_SIDE = SIDE // PATCH * STRIDE


def tower() -> Path:
    """The tower with its image processor, in the cache; made in half an hour on one core.

    Raises:
        Unavailable: pictures, language model or teacher can't be had here.
    """
    return made_once(f"tower-{PICTURES_VERSION}.{VERSION}", lambda folder: train(folder, real_world()))


def image_processor() -> CLIPImageProcessorPil:
    """CLIP's preprocessing at `SIDE`, in its `Pil` form, which needs no torchvision."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


class Student(nn.Module):
    """The tower, and what is only there to teach it."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.tower = CLIPVisionModel(CLIPVisionConfig(**CONFIG))
        width = CONFIG["hidden_size"]
        self.to_teacher = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, WIDTH))
        self.picture_side = nn.Linear(width, 128, bias=False)
        self.caption_side = nn.Linear(words, 128, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, pixel_values: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, S, S], [B, D] → the teacher's features as the patches guess them [B, N, 320], the contrastive loss."""
        out = self.tower(pixel_values=pixel_values, output_hidden_states=True)
        guess = self.to_teacher(out.hidden_states[LAYER][:, -PATCHES:])
        ours = functional.normalize(self.picture_side(out.pooler_output), dim=-1)
        theirs = functional.normalize(self.caption_side(captions), dim=-1)
        scores = ours @ theirs.T * self.scale.clamp(max=math.log(50)).exp()
        # Several pictures of a batch may have the same caption: each of them is right.
        right = (captions[:, None] == captions).all(-1).float()
        right = right / right.sum(-1, keepdim=True)
        return guess, functional.cross_entropy(scores, right) + functional.cross_entropy(scores.T, right)


def train(
    folder: Path,
    world: RealWorld,
    *,
    steps: int = STEPS,
    views: int = VIEWS,
    progress: Callable[[str], None] = lambda line: print(line, flush=True),
) -> None:
    """Train the tower and save it as a transformers folder."""
    torch.manual_seed(0)
    records = json.loads(world.pretrain.read_text(encoding="utf-8"))
    captions = caption_vectors([record["conversations"][1]["value"] for record in records])
    pixels, wanted = _seen(world, records, views, progress)
    mean, std = wanted.float().mean((0, 1, 2)), wanted[::7].float().std((0, 1, 2))
    student = Student(captions.shape[1])
    matrices = [p for p in student.parameters() if p.ndim > 1]
    others = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        rows = torch.randperm(len(records))[:BATCH]
        view = torch.randint(views, (len(rows),))
        with torch.autocast("cpu", torch.bfloat16):
            guess, contrast = student(_normalised(pixels[rows, view]), captions[rows])
        distance = functional.mse_loss(guess.float(), (wanted[rows, view].float() - mean) / std)
        (distance + CONTRAST * contrast).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == steps:
            progress(
                f"tower: step {step} of {steps}, teacher {distance.item():.3f}, captions {contrast.item() / 2:.3f}"
            )
    student.tower.save_pretrained(folder)
    image_processor().save_pretrained(folder)


@torch.no_grad()
def caption_vectors(captions: list[str]) -> Tensor:
    """[n, D]: the mean of each caption's word embeddings in SmolLM2, less the mean of all, at length 1."""
    table = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    ids = [tokenizer.encode(" " + caption, add_special_tokens=False) for caption in captions]
    means = torch.stack([table[row].mean(0) for row in ids])
    return functional.normalize(means - table.mean(0), dim=-1)


def _seen(
    world: RealWorld, records: list[dict[str, str]], views: int, progress: Callable[[str], None]
) -> tuple[Tensor, Tensor]:
    """Each picture's views, uint8 [n, views, S, S, 3], and what the teacher sees there, float16 [n, views, N, 320]."""
    network, rng = teacher(), random.Random(0)
    pixels = torch.empty((len(records), views, SIDE, SIDE, 3), dtype=torch.uint8)
    wanted = torch.empty((len(records), views, PATCHES, WIDTH), dtype=torch.float16)
    for number, record in enumerate(records):
        with Image.open(world.images / record["image"]) as file:
            picture = file.convert("RGB")
        cuts = [_cut(picture, rng if view else None) for view in range(views)]
        for view, cut in enumerate(cuts):
            pixels[number, view] = torch.from_numpy(np.array(cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
        large = np.stack([np.asarray(cut) for cut in cuts])
        wanted[number] = features_of(network, torch.from_numpy(large)).half()
        if (number + 1) % 500 == 0:
            progress(f"teacher: {number + 1} of {len(records)} pictures")
    return pixels, wanted


def _cut(picture: Image.Image, rng: random.Random | None) -> Image.Image:
    """The whole picture, or a part of it that may be mirrored, at the teacher's size."""
    side, box = (_TEACHER_SIDE, _TEACHER_SIDE), None
    if rng is not None:
        size = picture.width * rng.uniform(0.6, 1.0)
        left, top = (rng.uniform(0, picture.width - size) for _ in range(2))
        box = (left, top, left + size, top + size)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.resize(side, Image.Resampling.BICUBIC, box=box)


def _normalised(pixels: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] → float32 [B, 3, S, S], as `image_processor` does it for pictures of this size."""
    processor = image_processor()
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


if __name__ == "__main__":
    print(tower())
