"""The peak memory of a real step on the CPU, for a model with a few million weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Shape
from basic_lite.tools.measure import LongestStep, MakeStep
from basic_lite.training.assembly import load_for_training, make_step
from bench.measure import held_bytes, peak_bytes, tensor_bytes
from tests.support.runs import whole_recipe

CPU = torch.device("cpu")
SIZES = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}


def recipe_of(folder: Path, changes: dict[str, Any]) -> Recipe:
    common = {"data.max_length": 256, "lora.dropout": 0.05, "training.micro_batch": 4, "training.global_batch": 8}
    return whole_recipe(folder, {**common, **changes})


def unseen(like: Tensor, *, pinned: bool) -> Tensor:
    """Host memory that PyTorch's allocator doesn't know of, as pinned memory isn't the card's."""
    raw = np.empty(like.numel() * like.element_size(), dtype=np.uint8)
    return torch.from_numpy(raw).view(like.dtype).view(like.shape)


@contextmanager
def quick_products() -> Iterator[None]:
    """Products of matrices are made by NumPy, those of bfloat16 in float32 and rounded.

    PyTorch's own take 40 to 90 times as long in bfloat16 as in float32 on a processor without instructions for it (256
    to 1,024 rows and columns, one thread of an AMD EPYC with AVX2). What NumPy needs isn't PyTorch's memory, so no peak
    sees it: the tensors that go in and the one that comes out are the same.
    """

    def product(a: Tensor, b: Tensor) -> Tensor:
        found = torch.from_numpy(np.matmul(_as_array(a), _as_array(b)))
        return torch.empty(found.shape, dtype=a.dtype).copy_(found)

    with torch.library._scoped_library("aten", "IMPL") as library:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that PyTorch's own are overridden
            for name in ("mm", "bmm"):
                library.impl(name, product, "CPU")
        yield


def _as_array(values: Tensor) -> np.ndarray:
    values = values.detach()
    if values.dtype != torch.bfloat16:
        return values.numpy()
    return (values.view(torch.uint16).numpy().astype(np.uint32) << 16).view(np.float32)


@quick_products()
def warmed_step(recipe: Recipe, make: MakeStep = make_step) -> LongestStep:
    """The training step of a real model on the CPU. The optimizer has its state: one sample's step has run."""
    frontend, shape = load_frontend(recipe.model), Shape.of(recipe)
    loaded = load_for_training(recipe, CPU, frontend, lambda text: None)
    step = LongestStep(recipe, loaded, shape, CPU, lambda text: None, make)
    whole = step.batches
    step.batches = [{name: values[: len(values) // shape.samples] for name, values in whole[0].items()}]
    step()
    step.batches = whole
    return step


def held_by(step: LongestStep) -> int:
    return held_bytes(step.loaded.model, step.step.optimizer)


def measured_peak(recipe: Recipe, make: MakeStep = make_step) -> int:
    """Peak bytes of a step of a real training on the CPU; what ``unseen`` makes stands for the host's memory."""
    step = warmed_step(recipe, make)
    resting = step.loaded.parts.vision_tower.parameters() if recipe.model.tower_on_host else []
    with quick_products():
        return held_by(step) - tensor_bytes(resting) + peak_bytes(step, CPU)
