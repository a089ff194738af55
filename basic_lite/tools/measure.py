"""``basic-lite estimate --measure``: two real steps on the longest batch, measured beside what was predicted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from basic_lite.console import Say, speaker
from basic_lite.data.tokens import IGNORE
from basic_lite.errors import UserError
from basic_lite.model.adapt import leave_casts_to_autocast
from basic_lite.model.frontend import Frontend
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Rehearsal, Shape
from basic_lite.rehearsal.batch import longest_batch
from basic_lite.run import load_for_training, supervise
from basic_lite.supervision import Supervision
from basic_lite.train.arguments import use_autocast
from basic_lite.train.optimizer import make_optimizer
from basic_lite.train.step import attention_pass, micro_batch_loss
from basic_lite.units import GIB

MOST_MICRO_BATCHES = 2


class RealStep:
    """Optimizer steps of a recipe on its longest batch: the losses, clipping and optimizer that training has.

    A step has the recipe's micro-batches, but at most ``MOST_MICRO_BATCHES``: from the second on all are alike.
    """

    def __init__(self, recipe: Recipe, loaded: Loaded, shape: Shape, device: torch.device, say: Say) -> None:
        """
        Args:
            loaded: the recipe's model on ``device``, adapted; its LoRA layers leave casts to autocast from now on.
            shape: of the longest batch.
        """
        self.recipe, self.loaded, self.shape, self.device = recipe, loaded, shape, device
        self.supervision = supervise(recipe, loaded, say)
        self.autocast = use_autocast(recipe, device)
        if self.autocast:
            leave_casts_to_autocast(loaded.parts)
        self.optimizer = make_optimizer(loaded.parts, recipe.training, device)
        self.trainable = [p for p in loaded.model.parameters() if p.requires_grad]
        self.batch = longest_batch(loaded.frontend, shape)
        size = loaded.frontend.config.vision_config.image_size
        self.batch["pixel_values"] = torch.randn(shape.samples * shape.images, 3, size, size)
        self.micro_batches = min(shape.accumulation, MOST_MICRO_BATCHES)
        self._labelled = int((self.batch["labels"][:, 1:] != IGNORE).sum()) * shape.accumulation
        loaded.model.train()
        loaded.parts.vision_tower.eval()

    @property
    def micro_batch_tokens(self) -> int:
        """Of one micro-batch, padding apart."""
        return int(self.batch["attention_mask"].sum())

    def __call__(self, *, basic: bool = True, lap: Callable[[], object] = lambda: None) -> None:
        """One step.

        Args:
            basic: False leaves BASIC out, as ``supervision.enabled: false`` would.
            lap: called at the start, after the forwards that ``token_weights: uniform`` needs first (whether there are
                any or not), after each micro-batch's backward, and after the optimizer.
        """
        lap()
        supervision = self.supervision if basic else None
        mean_mass = None
        if supervision is not None and supervision.needs_mean_mass:
            mean_mass = self.mean_mass(supervision)
        lap()
        for index in range(self.micro_batches):
            self._micro_batch(supervision, mean_mass, detailed=index == 0)
            lap()
        if self.recipe.training.max_grad_norm:
            nn.utils.clip_grad_norm_(self.trainable, self.recipe.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        lap()

    def _inputs(self) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, copy=True) for name, tensor in self.batch.items()}

    def mean_mass(self, supervision: Supervision) -> Tensor:
        """The step's mean attention mass, for ``token_weights: uniform``, as the trainer takes it."""
        self.loaded.model.eval()
        masses = [attention_pass(self._forward, supervision, self._inputs()) for _ in range(self.micro_batches)]
        self.loaded.model.train()
        self.loaded.parts.vision_tower.eval()
        return torch.cat(masses).mean()

    def _micro_batch(self, supervision: Supervision | None, mean_mass: Tensor | None, *, detailed: bool) -> None:
        inputs = self._inputs()
        loss = micro_batch_loss(
            self._forward,
            self.loaded.parts,
            supervision,
            inputs,
            lambdas=supervision.lambdas(0, 0) if supervision is not None else (0.0, 0.0),
            num_items_in_batch=self._labelled,
            samples_with_image=self.shape.samples * self.shape.accumulation,
            mean_mass=mean_mass,
            detailed=detailed,
        ).loss
        del inputs
        loss.backward()

    def _forward(self, **kwargs: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.loaded.model(**kwargs)


@dataclass(frozen=True)
class Measured:
    """Bytes of a step, by the CUDA allocator and by the driver."""

    peak_bytes: int  # of all tensors at once, paged optimizer state apart
    reserved_bytes: int  # what the allocator took for them
    outside_bytes: int  # CUDA's context, managed memory, other processes


def measure_step(step: RealStep, *, basic: bool = True, lap: Callable[[], object] = lambda: None) -> Measured:
    """Run one step on a GPU, after one that made the optimizer's state, and see what it took.

    Raises:
        torch.cuda.OutOfMemoryError: too little memory.
    """
    device = step.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # what loading and earlier steps have left there isn't this step's
    torch.cuda.reset_peak_memory_stats(device)
    step(basic=basic, lap=lap)
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    return Measured(
        torch.cuda.max_memory_allocated(device),
        torch.cuda.max_memory_reserved(device),
        total - free - torch.cuda.memory_reserved(device),
    )


def predicted_bytes(rehearsal: Rehearsal) -> int:
    """What ``Measured.peak_bytes`` should be: paged optimizer state is managed memory, not the allocator's."""
    return rehearsal.peak_bytes - rehearsal.pageable_bytes


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
    """Load the model, run two optimizer steps, measure the second.

    Raises:
        UserError: no GPU, weights that can't be read, or too little memory.
    """
    require_gpu()
    device = torch.device("cuda", 0)
    say = speaker(console)
    # A fresh projector has the same size, and an earlier stage need not have run.
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"projector": None})})
    step = RealStep(recipe, load_for_training(recipe, device, frontend, say), shape, device, say)
    try:
        step()
        return measure_step(step)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"--measure ran out of memory at {torch.cuda.max_memory_allocated(device) / GIB:.2f} GiB of tensors; lower "
            "training.micro_batch, or see what the estimate advises"
        ) from error


def measure_and_show(recipe: Recipe, frontend: Frontend, rehearsal: Rehearsal, console: Console) -> Measured:
    """Measure, and print it beside the rehearsal."""
    found = measure(recipe, frontend, rehearsal.shape, console)
    predicted = predicted_bytes(rehearsal)
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
