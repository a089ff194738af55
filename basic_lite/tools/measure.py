"""``basic-lite estimate --measure``: two real steps on the longest batch, measured beside what was predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from basic_lite.console import speaker
from basic_lite.errors import UserError
from basic_lite.model.adapt import leave_casts_to_autocast
from basic_lite.model.frontend import Frontend
from basic_lite.rehearsal import Rehearsal, Shape
from basic_lite.rehearsal.batch import longest_batch
from basic_lite.rehearsal.target import GIB
from basic_lite.run import load_for_training, supervise
from basic_lite.schema import Recipe
from basic_lite.train.arguments import use_autocast
from basic_lite.train.optimizer import make_optimizer
from basic_lite.train.step import micro_batch_loss


@dataclass(frozen=True)
class Measured:
    """Bytes of the second step, by the CUDA allocator and by the driver."""

    peak_bytes: int  # of all tensors at once, paged optimizer state apart
    reserved_bytes: int  # what the allocator took for them
    outside_bytes: int  # CUDA's context, managed memory, other processes


def require_gpu() -> None:
    """Refuse before anything is loaded.

    Raises:
        UserError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "--measure runs two real steps, but torch sees no GPU (torch.cuda.is_available() is false); leave it out: "
            "the estimate itself needs none"
        )


def measure(recipe: Recipe, frontend: Frontend, shape: Shape, console: Console) -> Measured:
    """Load the model, run two optimizer steps of at most two micro-batches each, measure the second.

    Raises:
        UserError: no GPU, weights that can't be read, or too little memory.
    """
    require_gpu()
    device = torch.device("cuda", 0)
    say = speaker(console)
    # A fresh projector has the same size, and an earlier stage need not have run.
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"projector": None})})
    loaded = load_for_training(recipe, device, frontend, say)
    supervision = supervise(recipe, loaded, say)
    autocast = use_autocast(recipe, device)
    if autocast:
        leave_casts_to_autocast(loaded.parts)
    optimizer = make_optimizer(loaded.parts, recipe.training, device)
    trainable = [p for p in loaded.model.parameters() if p.requires_grad]
    batch = longest_batch(frontend, shape)
    size = frontend.config.vision_config.image_size
    batch["pixel_values"] = torch.randn(shape.samples * shape.images, 3, size, size)
    labelled = int((batch["labels"][:, 1:] >= 0).sum()) * shape.accumulation
    loaded.model.train()
    loaded.parts.vision_tower.eval()

    def forward(**kwargs: Any) -> Any:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            return loaded.model(**kwargs)

    def step() -> None:
        for first in (True, False)[: min(shape.accumulation, 2)]:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            loss = micro_batch_loss(
                forward,
                loaded.parts,
                supervision,
                inputs,
                lambdas=supervision.lambdas(0, 0) if supervision is not None else (0.0, 0.0),
                num_items_in_batch=labelled,
                samples_with_image=shape.samples * shape.accumulation,
                detailed=first,
            ).loss
            del inputs
            loss.backward()
        if recipe.training.max_grad_norm:
            nn.utils.clip_grad_norm_(trainable, recipe.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    try:
        step()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"--measure ran out of memory at {torch.cuda.max_memory_allocated(device) / GIB:.2f} GiB of tensors; lower "
            "training.micro_batch, or see what the estimate advises"
        ) from error
    free, total = torch.cuda.mem_get_info(device)
    return Measured(
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
        total - free - torch.cuda.memory_reserved(device),
    )


def measure_and_show(recipe: Recipe, frontend: Frontend, rehearsal: Rehearsal, console: Console) -> Measured:
    """Measure, and print it beside the rehearsal."""
    found = measure(recipe, frontend, rehearsal.shape, console)
    predicted = rehearsal.peak_bytes - rehearsal.pageable_bytes
    table = Table(title=f"on {torch.cuda.get_device_name(0)}", title_justify="left", header_style="bold")
    table.add_column("")
    for column in ("predicted GiB", "measured GiB", "difference"):
        table.add_column(column, justify="right")
    table.add_row(
        "tensors at the peak, without the optimizer's pages",
        f"{predicted / GIB:.2f}",
        f"{found.peak_bytes / GIB:.2f}",
        f"{predicted / found.peak_bytes - 1:+.1%}",
    )
    whole = found.reserved_bytes + found.outside_bytes
    table.add_row(
        "taken from the card",
        f"{rehearsal.needed_bytes / GIB:.2f}",
        f"{whole / GIB:.2f}",
        f"{rehearsal.needed_bytes / whole - 1:+.1%}",
    )
    console.print(table)
    return found
