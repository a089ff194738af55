"""A recipe's training section in transformers' words."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import torch
from transformers import TrainingArguments

from basic_lite.errors import UserError
from basic_lite.recipe.schema import Recipe


def steps_of(recipe: Recipe, samples: int) -> int:
    """Optimizer steps of a run over ``samples`` samples."""
    if recipe.training.max_steps is not None:
        return recipe.training.max_steps
    batch = recipe.training.global_batch
    per_epoch = max(1, samples // batch) if world_size() > 1 else math.ceil(samples / batch)
    return max(1, math.ceil(per_epoch * recipe.training.epochs))


def world_size() -> int:
    """Processes of a launcher such as accelerate's; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def accumulation_of(recipe: Recipe) -> int:
    """Micro-batches of one optimizer step on one process.

    Raises:
        UserError: the global batch doesn't divide over the processes.
    """
    world = world_size()
    micro, total = recipe.training.micro_batch, recipe.training.global_batch
    if total % (micro * world):
        raise UserError(
            f"training.global_batch {total} doesn't divide into {world} processes × micro_batch {micro}; change "
            "training.micro_batch or training.global_batch"
        )
    return total // (micro * world)


def use_autocast(recipe: Recipe, device: torch.device) -> bool:
    """bf16 autocast: where asked for, or (``auto``) where the GPU has it."""
    if recipe.training.autocast == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return recipe.training.autocast == "bfloat16"


def check_arguments(recipe: Recipe, device: torch.device | None) -> None:
    """Refuse what can't run here, before anything is loaded.

    Args:
        device: None: not known yet, as in a dry run for another machine.

    Raises:
        UserError: a tracker isn't installed, a paged optimizer or offloading has no GPU, or the batch doesn't divide
            over processes.
    """
    accumulation_of(recipe)
    if device is not None and device.type != "cuda" and recipe.training.optimizer.startswith("paged_"):
        raise UserError(
            f"training.optimizer is {recipe.training.optimizer}, which pages its state out of GPU memory, but the run "
            f"is on the {device.type}; use adamw or adamw_8bit"
        )
    offloads = {
        "training.offload_activations": recipe.training.offload_activations,
        "model.tower_on_host": recipe.model.tower_on_host,
    }
    for key in [key for key, on in offloads.items() if on and device is not None and device.type != "cuda"]:
        raise UserError(
            f"{key} is true, which moves tensors out of GPU memory, but the run is on the {device}; set {key} to false"
        )
    for name in recipe.training.trackers:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"training.trackers names {name}, which isn't installed: pip install {name}, or take it out of the list"
            )


def training_arguments(recipe: Recipe, folder: Path, device: torch.device, *, steps: int) -> TrainingArguments:
    """``TrainingArguments`` of a run of ``steps`` optimizer steps."""
    section = recipe.training
    beta1, beta2 = section.betas
    return TrainingArguments(
        output_dir=str(folder),
        run_name=recipe.name,
        seed=recipe.seed,
        use_cpu=device.type == "cpu",
        max_steps=steps,
        per_device_train_batch_size=section.micro_batch,
        per_device_eval_batch_size=section.micro_batch,
        gradient_accumulation_steps=accumulation_of(recipe),
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.scheduler,
        warmup_steps=math.ceil(steps * section.warmup_ratio),
        weight_decay=section.weight_decay,
        adam_beta1=beta1,
        adam_beta2=beta2,
        max_grad_norm=section.max_grad_norm,
        bf16=use_autocast(recipe, device),
        eval_strategy="steps" if section.eval_every else "no",
        eval_steps=section.eval_every,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=section.save_every,
        logging_steps=section.log_every,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[name for name in section.trackers if name != "tensorboard"],
        dataloader_num_workers=recipe.data.workers,
        dataloader_pin_memory=device.type == "cuda",
        dataloader_persistent_workers=recipe.data.workers > 0,
        # Every process must take part in every step: the incomplete batch at an epoch's end is left out then.
        dataloader_drop_last=world_size() > 1,
        remove_unused_columns=False,
        label_names=["labels"],
    )
