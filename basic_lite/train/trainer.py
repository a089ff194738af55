"""The trainer: transformers' loop, with BASIC's taps open during the forward and exact accumulation of every term."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from basic_lite.errors import UserError
from basic_lite.model.load import Loaded
from basic_lite.schema import Recipe
from basic_lite.supervision import Supervision
from basic_lite.supervision.losses import zero_with_graph
from basic_lite.train.bundle import open_bundle, restore_adapter, restore_projector, save_bundle, seal_checkpoint
from basic_lite.train.optimizer import make_optimizer
from basic_lite.train.terms import Terms

Batch = dict[str, Tensor]


class BasicTrainer(Trainer):
    """``Trainer`` for L = L_lm + λ1 L_das + λ2 L_sds.

    Every term is a sum divided by a count over the *whole* optimizer step (labelled tokens for L_lm, samples with an
    image for the others), so micro-batches 1×8 and 8×1 make the same step. The counts are taken in
    ``get_batch_samples``, where the step's micro-batches are all at hand.
    """

    # The losses are already divided by the step's counts; the parent must not divide by the accumulation steps again.
    loss_is_scaled_for_ga = True
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        *,
        loaded: Loaded,
        recipe: Recipe,
        supervision: Supervision | None,
        sampler: Sampler[int],
        args: TrainingArguments,
        train_dataset: Dataset[Any],
        eval_dataset: Dataset[Any] | None,
        data_collator: Any,
        callbacks: list[Any],
    ) -> None:
        self.loaded = loaded
        self.recipe = recipe
        self.supervision = supervision
        self.sampler = sampler
        self.terms = Terms()
        self.step_has_image = False
        self._samples_with_image = 1
        self._mean_mass: Tensor | None = None
        self._rates: dict[str, float] = {}
        super().__init__(
            model=loaded.model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # it would print every log line as a dict
        # Older versions of the range lack the class attribute above and decide by this one.
        self.model_accepts_loss_kwargs = True

    # --- data -----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        return self.sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | None]:
        """The step's micro-batches, and its labelled tokens; also counts its samples with an image."""
        batches: list[Batch] = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        if not batches:
            return batches, None
        labelled = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        with_image = sum(int(self._has_image(batch).sum()) for batch in batches)
        tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
        counts = torch.tensor([labelled, with_image, tokens], device=device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self._samples_with_image = max(int(counts[1]), 1)
        self.step_has_image = with_image > 0
        self.terms.begin_step(int(counts[2]))
        # Taken before the step: when the log line is written, the scheduler has moved on.
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        self._rates = {f"lr_{g['name']}": g["lr"] for g in groups if not g["name"].endswith("_bias")}
        uniform = self.supervision is not None and self.supervision.needs_mean_mass
        self._mean_mass = self._measure_mean_mass(batches) if uniform and any(self._lambdas()) else None
        return batches, counts[0].clamp(min=1)

    def _has_image(self, batch: Batch) -> Tensor:
        return (batch["input_ids"] == self.loaded.parts.image_token_id).any(dim=1)

    @torch.no_grad()
    def _measure_mean_mass(self, batches: list[Batch]) -> Tensor:
        """The step's mean attention mass Σ_i a_i, for uniform token weights: one more forward, without dropout.

        Always measured this way, so that it is the same whatever the micro-batch and the number of processes.
        """
        assert self.supervision is not None
        model = self.model_wrapped
        model.eval()
        masses = []
        for batch in batches:
            inputs = self._prepare_inputs(batch)
            with self.supervision.capture(inputs, weights_only=True) as captured:
                model(**_without_labels(inputs))
            masses.append(self.supervision.masses(captured))
        model.train()
        total = torch.cat(masses).sum()
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        return total / self._samples_with_image

    # --- losses ---------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """L of one micro-batch, each term divided by its count over the whole step. In evaluation: L_lm alone."""
        self.loaded.parts.vision_tower.eval()
        if not model.training:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss
        lambda_das, lambda_sds = self._lambdas()
        supervision = self.supervision if lambda_das > 0 or lambda_sds > 0 else None
        with supervision.capture(inputs) if supervision is not None else nullcontext() as captured:
            outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs.loss
        self.terms.add("lm", outputs.loss)
        if supervision is not None and captured is not None:
            losses = supervision.losses(
                captured,
                samples_with_image=self._samples_with_image,
                mean_mass=self._mean_mass,
                detailed=self.terms.first_of_step(),
            )
            if lambda_das > 0:
                loss = loss + lambda_das * losses.das
            if lambda_sds > 0:
                loss = loss + lambda_sds * losses.sds
            self.terms.add("das", losses.das)
            self.terms.add("sds", losses.sds)
            self.terms.add_means(losses.metrics, int(self._has_image(inputs).sum()))
        if not loss.requires_grad:
            # A text-only batch in stage 1 reaches no trainable weight; it still takes part, with gradient zero.
            loss = loss + zero_with_graph(self.loaded.parts.projector)
        if self.args.world_size > 1:
            loss = loss * self.args.world_size  # DDP averages gradients; the counts above are over all processes
        return (loss, outputs) if return_outputs else loss

    def _lambdas(self) -> tuple[float, float]:
        if self.supervision is None:
            return 0.0, 0.0
        return self.supervision.lambdas(self.state.global_step, self.state.max_steps)

    # --- optimizer ------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Two groups of parameters: LoRA and the projector, each with its own learning rate."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.loaded.parts, self.recipe.training, self.args.device)
        return self.optimizer

    # --- log ------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the terms of the loss, BASIC's measures, tokens/s and peak memory to a training log line."""
        if "loss" in logs:
            logs.update(self.terms.take(time.perf_counter()))
            logs.update(self._rates)
            logs.pop("learning_rate", None)
            logs["peak_memory_gib"] = peak_memory_gib(self.args.device)
            if not all(torch.isfinite(torch.tensor(logs[name])) for name in ("loss", "lm")):
                raise UserError(
                    f"the loss is {logs['loss']} at step {self.state.global_step} (lm {logs['lm']}); nothing was "
                    f"saved after the "
                    "last checkpoint. Lower training.projector_learning_rate or training.learning_rate, or go on from "
                    "the last "
                    "checkpoint with --resume"
                )
        super().log(logs, start_time)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        save_bundle(
            Path(output_dir or str(self.args.output_dir)),
            self.loaded.parts,
            self.loaded.tokenizer,
            self.recipe,
            step=self.state.global_step,
            total_steps=self.state.max_steps,
            epoch=self.state.epoch or 0.0,
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            seal_checkpoint(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        bundle = open_bundle(Path(resume_from_checkpoint), "--resume")
        restore_projector(bundle, self.loaded.parts.projector, "--resume")
        if bundle.has_adapter:
            restore_adapter(bundle, self.loaded.parts)


def _without_labels(batch: Batch) -> Batch:
    # One logit column is kept, since the head's output isn't wanted.
    kept: dict[str, Any] = {name: value for name, value in batch.items() if name != "labels"}
    kept["logits_to_keep"] = 1
    return kept


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: allocated on the GPU, else the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
