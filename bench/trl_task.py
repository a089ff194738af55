"""What ``beside_trl`` trains on both sides: a llava-hf checkpoint of a synthetic model, and data for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerBase

from basic_lite.data.prepare import prepare_data
from basic_lite.data.templates import V1_SYSTEM
from basic_lite.model.frontend import Frontend, load_frontend
from basic_lite.model.load import pick_device
from basic_lite.recipe.schema import ModelSection, Recipe
from bench.synthetic import synthetic_model
from tests.support.shapes import QUESTION, SIZES, shape_recipe

MICRO_BATCH, GLOBAL_BATCH = 2, 4
# One sample in so many is shorter than the others, by up to half of its text.
SHORTER_EVERY = 8


@dataclass(frozen=True)
class Task:
    """Where the checkpoint and the data are, and how long both sides train.

    ``rows``: TRL's, in the order in which basic-lite's sampler draws the samples. basic-lite's are data.json, beside
    their pictures in ``images``.
    """

    folder: Path
    size: str  # in ``shapes``
    tokens: int  # T, of a full sample
    steps: int

    @property
    def llava(self) -> Path:
        return self.folder / "llava"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.json"

    def recipe(self, output: Path) -> Recipe:
        """NF4 for the LLM's linear layers, LoRA on all of them, one learning rate, AdamW, BASIC off."""
        source = {"path": str(self.folder / "data.json"), "image_dir": str(self.folder / "images")}
        rates = {"learning_rate": 2e-4, "projector_learning_rate": 2e-4}
        training = {"optimizer": "adamw", "max_steps": self.steps, "threads": 1, "trackers": [], **rates}
        recipe = shape_recipe(
            self.folder,
            self.size,
            output=str(output),
            micro_batch=MICRO_BATCH,
            global_batch=GLOBAL_BATCH,
            max_length=self.tokens,
            supervision={"enabled": False, "refinement_batches": 0},
            data={"train": source, "workers": 0},
            training={"device": pick_device("auto").type, **training},
            lora={"alpha": 32.0, "dropout": 0.0},
        )
        return recipe.model_copy(update={"model": ModelSection(base=str(self.llava))})


def write_task(task: Task) -> None:
    """The checkpoint with its processor, and the data for both sides."""
    torch.manual_seed(0)
    whole: dict[str, Any] = {"lora": {"enabled": False}, "quantization": {"mode": "none"}}
    composed = shape_recipe(task.folder, task.size, stage=1, **whole)
    frontend = load_frontend(composed.model)
    _write_checkpoint(task, composed, frontend)
    tokenizer = frontend.tokenizer
    records = _write_data(task, tokenizer)
    recipe = task.recipe(task.folder)
    data = prepare_data(recipe, load_frontend(recipe.model), say=lambda line: None)
    rows = []
    for index in data.sampler.order(0):
        record = records[int(data.train.indices[index])]
        question, answer = (turn["value"] for turn in record["conversations"])
        prompt = f"{tokenizer.bos_token}{V1_SYSTEM} USER: {question} ASSISTANT:"
        images = [str(task.folder / "images" / record["image"])]
        rows.append({"prompt": prompt, "completion": f" {answer}{tokenizer.eos_token}", "images": images})
    task.rows.write_text(json.dumps(rows), encoding="utf-8")


def _write_checkpoint(task: Task, recipe: Recipe, frontend: Frontend) -> None:
    loaded = synthetic_model(recipe, frontend, torch.device("cpu"))
    model = LlavaForConditionalGeneration(loaded.model.config)
    model.load_state_dict(loaded.model.state_dict())
    # TRL rounds what it trains of a quantised model to bf16, so both start from such a projector.
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model.save_pretrained(task.llava)
    LlavaProcessor(
        image_processor=frontend.image_processor,
        tokenizer=frontend.tokenizer,
        patch_size=SIZES[task.size].tower.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops again
    ).save_pretrained(task.llava)


def _write_data(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """LLaVA's JSON beside a folder of noise pictures; full samples have exactly ``task.tokens`` tokens."""
    tower, folder = SIZES[task.size].tower, task.folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted(word for word in tokenizer.get_vocab() if word.startswith("w") and word[1:].isdigit())
    # Beside the image and the answer: <s>, the prompt's words, </s>.
    around = 2 + len(tokenizer.tokenize(f"{V1_SYSTEM} USER: {QUESTION} ASSISTANT:"))
    full = task.tokens - tower.tokens_per_image - around
    draw = np.random.default_rng(0)
    records = []
    for i in range(task.steps * GLOBAL_BATCH):
        pixels = draw.integers(0, 256, (tower.image_side, tower.image_side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        count = full if i % SHORTER_EVERY else int(draw.integers(full // 2, full))
        answer = " ".join(draw.choice(words, count))
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": answer}]
        records.append({"id": i, "image": f"{i}.png", "conversations": turns})
    (task.folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    return records
