"""The trainer: transformers' loop, with BASIC's taps open during the forward and exact accumulation of every term."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from basic_lite.console import Say
from basic_lite.data.problems import RecordProblem
from basic_lite.errors import UserError, is_out_of_memory
from basic_lite.model.adapt import leave_casts_to_autocast
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision import Supervision
from basic_lite.train.bundle import checkpoints_of, open_bundle, save_bundle, seal_checkpoint
from basic_lite.train.callbacks import JsonLog
from basic_lite.train.memory import (
    free_what_is_left,
    out_of_memory,
    random_state,
    set_random_state,
    slices,
)
from basic_lite.train.optimizer import make_optimizer
from basic_lite.train.restore import restore_adapter, restore_projector
from basic_lite.train.step import attention_pass, micro_batch_loss
from basic_lite.train.terms import Terms, TokenMean
from basic_lite.units import peak_memory_gib

Batch = dict[str, Tensor]
T = TypeVar("T")


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
        say: Say,
        log: JsonLog,
    ) -> None:
        """
        Args:
            say: where a smaller micro-batch is announced.
            log: and where it is recorded.
        """
        self.loaded = loaded
        self.recipe = recipe
        self.supervision = supervision
        self.sampler = sampler
        self.terms = Terms()
        self.step_has_image = False
        self._samples_with_image = 1
        self._mean_mass: Tensor | None = None
        self._rates: dict[str, float] = {}
        self._eval = TokenMean()
        self._say, self._log = say, log
        # Samples in memory at once: the recipe's, or fewer once a step ran out of memory.
        self.micro_batch = recipe.training.micro_batch
        self._step_batches: list[Batch] = []
        self._batches_done = 0
        self._random: list[Tensor] = []
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
        if args.bf16:
            leave_casts_to_autocast(loaded.parts)

    # --- data -----------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        return _own_generator(super().get_eval_dataloader(eval_dataset), self.args.seed)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        return self.sampler

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches stay on the host until their turn.

        A step's micro-batches are fetched together; accelerate would put all their pixels on the device at once,
        1.3 MiB an image of 336², whatever the micro-batch is.
        """
        loader = super().get_train_dataloader()
        if getattr(loader, "device", None) is not None:
            loader.device = None
        return _own_generator(loader, self.args.seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor | None]:
        """The step's micro-batches, and its labelled tokens; also counts its samples with an image."""
        self.terms.begin_step()
        batches: list[Batch] = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
            except RecordProblem as problem:
                self._save_before_leaving()
                raise problem.found_while_training() from problem
        self._step_batches, self._batches_done, self._random = batches, 0, []
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
        self.terms.tokens = int(counts[2])
        # Taken before the step: when the log line is written, the scheduler has moved on.
        groups = self.optimizer.param_groups if self.optimizer is not None else []
        self._rates = {f"lr_{g['name']}": g["lr"] for g in groups if not g["name"].endswith("_bias")}
        uniform = self.supervision is not None and self.supervision.needs_mean_mass
        self._mean_mass = None
        if uniform and any(self._lambdas()):
            step = self.state.global_step + 1
            self._mean_mass = self._where_memory_suffices(
                lambda: self._measure_mean_mass(batches), batches, f"step {step}"
            )
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
            for part in self._slices(batch):
                masses.append(attention_pass(model, self.supervision, self._prepare_inputs(part)))
        model.train()
        total = torch.cat(masses).sum()
        if self.args.world_size > 1:
            total = self.accelerator.reduce(total, "sum")
        return total / self._samples_with_image

    # --- memory ---------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of one micro-batch, or of its parts where memory suffices for no more.

        Without memory the whole optimizer step starts again with half the samples at once, since a backward that broke
        off has left some of its gradients. It draws the same dropout as a run that had that micro-batch from the start,
        and every term is divided by the step's own counts, so the step is the one that such a run makes.

        Raises:
            UserError: there is no memory for a single sample.
        """
        if self._batches_done == 0:
            self._random = random_state(self.args.device)
        todo = [inputs]

        def run() -> Tensor:
            for batch in todo:
                loss = torch.zeros((), device=self.args.device)
                for part in self._slices(batch):
                    loss += super(BasicTrainer, self).training_step(model, part, num_items_in_batch)
            return loss  # of the last one: the others' were returned before

        def begin_again() -> None:
            todo[:] = self._step_batches[: self._batches_done + 1]
            model.zero_grad()
            self.terms.begin_again()
            set_random_state(self._random, self.args.device)

        step = self.state.global_step + 1
        loss = self._where_memory_suffices(run, self._step_batches, f"step {step}", begin_again)
        self._batches_done += 1
        if self._batches_done == len(self._step_batches):
            self._random = []  # what comes after the step must not go back to its beginning
        return loss

    def _slices(self, batch: Batch) -> Iterator[Batch]:
        return slices(batch, self.micro_batch, self.loaded.parts.image_token_id)

    def _where_memory_suffices(
        self, run: Callable[[], T], batches: list[Batch], what: str, begin_again: Callable[[], None] = lambda: None
    ) -> T:
        """``run()``, which cuts ``batches`` into slices, with smaller and smaller ones."""
        while True:
            try:
                return run()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                found = str(error)
            # Here the exception is gone, and with it the frames that held the failed attempt's tensors.
            free_what_is_left()
            self._halve_micro_batch(found, max(len(batch["input_ids"]) for batch in batches), what)
            begin_again()

    def _halve_micro_batch(self, found: str, largest: int, what: str) -> None:
        """To a divisor of the recipe's micro-batch, so that a run could have begun with it.

        Args:
            largest: samples of the largest micro-batch among those that were tried.
            what: was being done.
        """
        samples = min(self.micro_batch, largest)
        if samples == 1 or self.args.world_size > 1:
            when = f"in {what} with a micro-batch of {samples}"
            if self.args.world_size > 1:  # the other processes wait for this one, and a checkpoint needs them all
                when += f", in one of {self.args.world_size} processes: --resume goes on from the last checkpoint"
            else:
                if self._random:
                    set_random_state(self._random, self.args.device)
                self._save_before_leaving()
            raise out_of_memory(self.recipe, self.args.device, when, found)
        whole = self.recipe.training.micro_batch
        self.micro_batch = max(n for n in range(1, (samples + 1) // 2 + 1) if whole % n == 0 and n < samples)
        total = self.recipe.training.global_batch
        self._say(
            f"out of memory in {what} with a micro-batch of {samples}: it starts again with {self.micro_batch}, "
            f"accumulated {total // self.micro_batch} times; the global batch stays {total}. "
            f"Set training.micro_batch={self.micro_batch} to begin with that"
        )
        record = {"micro_batch": samples, "now": self.micro_batch}
        self._log.write({"step": self.state.global_step, "out_of_memory": record})

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
            loss = self._evaluation_loss(model, inputs)
            return (loss, {"loss": loss}) if return_outputs else loss
        lambdas = self._lambdas()
        supervision = self.supervision if any(lambdas) else None
        result = micro_batch_loss(
            model,
            self.loaded.parts,
            supervision,
            inputs,
            lambdas=lambdas,
            num_items_in_batch=num_items_in_batch,
            samples_with_image=self._samples_with_image,
            mean_mass=self._mean_mass,
            detailed=supervision is not None and self.terms.first_micro_batch,
        )
        loss, outputs = result.loss, result.outputs
        self.terms.add("loss", loss)
        self.terms.add("lm", outputs.loss)
        if result.basic is not None:
            self.terms.add("das", result.basic.das)
            self.terms.add("sds", result.basic.sds)
            self.terms.add_means(result.basic.metrics, int(self._has_image(inputs).sum()))
        if self.args.world_size > 1:
            loss = loss * self.args.world_size  # DDP averages gradients; the counts above are over all processes
        return (loss, outputs) if return_outputs else loss

    def _evaluation_loss(self, model: nn.Module, inputs: Batch) -> Tensor:
        """Mean L_lm over a batch's labelled tokens, and into the evaluation's own mean."""

        def run() -> list[tuple[Tensor, int]]:
            parts = list(self._slices(inputs))
            return [(model(**part).loss, int((part["labels"][:, 1:] != -100).sum())) for part in parts]

        found = self._where_memory_suffices(run, [inputs], f"the evaluation after step {self.state.global_step}")
        for loss, count in found:
            self._eval.add(loss, count)
        total = max(sum(count for _, count in found), 1)
        return torch.stack([loss * (count / total) for loss, count in found]).sum()

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
        if "eval_loss" in logs:
            # The mean over labelled tokens: the parent's is a mean of batch means, which depends on the batch size.
            logs["eval_loss"] = self._eval.take(self.accelerator)
        if "loss" in logs:
            # Of this step alone, not a mean since the last line: so a resumed run logs what an uninterrupted one does.
            logs.update(self.terms.take(self.accelerator))
            logs.update(self._rates)
            logs.pop("learning_rate", None)
            logs["peak_memory_gib"] = peak_memory_gib(self.args.device)
            if not math.isfinite(logs["loss"]):
                raise UserError(
                    f"the loss is {logs['loss']} at step {self.state.global_step} (lm {logs['lm']}). Lower "
                    "training.projector_learning_rate or training.learning_rate and start again under another name, or "
                    "go on from the last checkpoint with --resume"
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
            samples=self.samples_seen(),
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            run = Path(str(self.args.output_dir))
            seal_checkpoint(run / f"checkpoint-{self.state.global_step}")
            # Older ones go only when the new one is whole, so that there is one at any time.
            for old in checkpoints_of(run)[: -self.recipe.training.keep]:
                shutil.rmtree(old, ignore_errors=True)

    def _save_before_leaving(self) -> None:
        """A checkpoint of the last whole step, where there is none yet; no step is under way."""
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.state.global_step and not folder.exists():
            self._save_checkpoint(self.model, None)

    def samples_seen(self) -> int:
        """Samples the run has trained on so far; the last step of an epoch may be smaller."""
        samples, batch = len(self.sampler), self.recipe.training.global_batch
        epochs, step = divmod(self.state.global_step, -(-samples // batch))
        return epochs * samples + min(step * batch, samples)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        bundle = open_bundle(Path(resume_from_checkpoint), "--resume")
        restore_projector(bundle, self.loaded.parts, "--resume")
        if bundle.has_adapter:
            restore_adapter(bundle, self.loaded.parts)


def _own_generator(loader: DataLoader[Any], seed: int) -> DataLoader[Any]:
    """Give a data loader a generator of its own.

    It draws a base seed for its workers whenever it is iterated, by default from the global generator: evaluating, or
    resuming in the middle of an epoch, would then change the dropout of every later step.
    """
    inner = getattr(loader, "base_dataloader", loader)  # accelerate's wrapper iterates the one inside
    inner.generator = torch.Generator().manual_seed(seed)
    return loader
