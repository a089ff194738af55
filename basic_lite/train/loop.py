"""A run's loop, read from top to bottom: steps → micro-batches → counts → ``TrainStep`` → log, evaluate, save."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console

from basic_lite.console import speaker
from basic_lite.data.prepare import Prepared
from basic_lite.data.problems import RecordProblem
from basic_lite.errors import Interrupted, OutOfMemory, StoppedElsewhere, UserError
from basic_lite.model.load import Loaded
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision import Supervision
from basic_lite.train.assembly import autocast_of, make_step
from basic_lite.train.batches import Batch, Schedule, step_batches
from basic_lite.train.bundle import checkpoints_of, write_bundle
from basic_lite.train.checkpoint import (
    Progress,
    generators_of,
    read_progress,
    restore_training_state,
    write_training_state,
)
from basic_lite.train.evaluation import SAMPLES_PER_BATCH, RefinementLog, held_out_loss
from basic_lite.train.files import written_whole
from basic_lite.train.gradients import GradientCheck
from basic_lite.train.interruption import Interruption
from basic_lite.train.log import RunLog
from basic_lite.train.processes import Processes
from basic_lite.train.progress import ProgressLine
from basic_lite.train.recovery import Recovery, memory_needed
from basic_lite.train.restore import restore_adapter, restore_projector
from basic_lite.train.run_folder import RunFolder, recipe_fingerprint
from basic_lite.train.step import StepCounts
from basic_lite.train.terms import Terms
from basic_lite.units import peak_memory_gib

OUTSIDE = "outside a step's forward and backward: reading data, the optimizer, or saving"


@dataclass(frozen=True)
class Run:
    """What a run's loop works with: all of it made and checked before the first step."""

    recipe: Recipe
    loaded: Loaded
    data: Prepared
    supervision: Supervision | None
    folder: RunFolder
    processes: Processes
    device: torch.device
    console: Console


class Loop:
    """The training of one run, from step 0 or from a checkpoint to the trained bundle."""

    def __init__(self, run: Run) -> None:
        recipe, training = run.recipe, run.recipe.training
        self.run, self.recipe, self.processes, self.device = run, recipe, run.processes, run.device
        self.say = speaker(run.console)
        self.schedule = Schedule(run.data.sampler, recipe)
        self.train_step = make_step(
            recipe, run.loaded, run.supervision, run.device, run.processes, steps=self.schedule.steps
        )
        self.log = RunLog(run.folder.log, run.processes)
        self.line = ProgressLine(run.console, recipe.name, shown=run.processes.is_main)
        self.progress = self._start()
        self._basic_terms: Terms | None = None  # of the last step with BASIC, still on the device
        self.check = GradientCheck(run.loaded.parts, projector_seen=self.progress.projector_seen)
        self.recovery = Recovery(
            training,
            run.device,
            run.loaded.parts.image_token_id,
            self.say,
            alone=run.processes.count == 1,
            lowered_to=self.progress.lowered_to,
        )
        self.refinement = RefinementLog(
            run.supervision,
            run.data.batches_with_images(recipe.supervision.refinement_batches, SAMPLES_PER_BATCH),
            run.loaded.tokenizer,
            self.say,
            run.processes,
            autocast=autocast_of(recipe, run.device),
            fresh=recipe.model.projector is None and recipe.model.base is None,
        )

    def _start(self) -> Progress:
        """Start at step 0, or restore the checkpoint."""
        bundle, parts = self.run.folder.checkpoint, self.run.loaded.parts
        self.processes.copy_main_weights(self.train_step.trainable)
        if self.processes.index:
            # Other samples, so other dropout; the main process draws what it would draw alone.
            torch.manual_seed(self.recipe.seed + self.processes.index)
        if bundle is None:
            return Progress()
        restore_projector(bundle, parts, "--resume")
        if bundle.has_adapter:
            restore_adapter(bundle, parts)
        restore_training_state(
            bundle, self.train_step.optimizer, self.train_step.scheduler, self.device, self.processes
        )
        if (before := bundle.manifest["processes"]) != self.processes.count:
            self.say(
                f"note: the run had {before} process(es) and continues with {self.processes.count}, so dropout differs "
                "from an uninterrupted run's"
            )
        progress = read_progress(bundle)
        self.log.keep_until(progress.step)
        self.say(f"continuing from {bundle.folder} (step {progress.step})")
        if progress.lowered_to is not None and progress.lowered_to < self.recipe.training.micro_batch:
            self.say(f"the run ran out of memory before: it continues with a micro-batch of {progress.lowered_to}")
        return progress

    def train(self) -> list[dict[str, Any]]:
        """Every step that is left, then the final bundle.

        Returns:
            The log lines of these steps.

        Raises:
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
            OutOfMemory: a step has no room for a single sample; the steps before it are saved.
            UserError: something the user can fix.
        """
        try:
            alone = self.processes.count == 1
            with (
                Interruption(self.say, alone=alone) as interruption,
                memory_needed(OUTSIDE),
                closing(self._batches()) as batches,
            ):
                self.log.start_trackers(self.recipe)
                if self.progress.step == 0:
                    self._measure_premise()
                self.line.start(self.progress.step)
                for step in range(self.progress.step + 1, self.schedule.steps + 1):
                    self._optimizer_step(step, batches)
                    self._evaluate(step)
                    stop = self.processes.any(interruption.requested) and step < self.schedule.steps
                    if step % self.recipe.training.save_every == 0 or step == self.schedule.steps or stop:
                        self._save()
                    if stop:
                        raise Interrupted(self.run.folder.checkpoint_at(step))
                self.check.finish(self.schedule.steps)
                self._measure_premise()
                self._save_final()
        finally:
            self.line.close()
            self.log.close()
        return self.log.history

    def _batches(self) -> Generator[list[Batch]]:
        data, first = self.run.data, self.progress.step
        return step_batches(data.train, data.collator, self.schedule, self.recipe, self.device, self.processes, first)

    def _optimizer_step(self, step: int, source: Iterator[list[Batch]]) -> None:
        """Make one optimizer step. On out of memory it is made again with smaller micro-batches."""
        started = time.perf_counter()
        try:
            with self.processes.together():
                batches = next(source)
            counts = StepCounts.of(batches, self.run.loaded.parts.image_token_id).over(self.processes)
            lambdas = self._lambdas(step)
            gradients = partial(self.train_step.gradients, counts=counts, lambdas=lambdas)
            terms = self.recovery.run(gradients, batches, f"step {step}", self._begin_again)
        except (RecordProblem, StoppedElsewhere):
            self._save_before_leaving(all_here=True)
            raise
        except OutOfMemory:
            self._save_before_leaving(all_here=self.processes.count == 1)
            raise
        self.check.look(step, has_image=counts.samples_with_image > 0)
        self.progress.projector_seen = self.check.projector_seen
        rates = self.train_step.rates()
        self.train_step.update()
        self.progress.step = step
        if any(lambdas):
            self._basic_terms = terms
        self._log(step, terms, counts, rates, time.perf_counter() - started)

    def _lambdas(self, step: int) -> tuple[float, float]:
        supervision = self.run.supervision
        return supervision.lambdas(step - 1, self.schedule.steps) if supervision is not None else (0.0, 0.0)

    def _begin_again(self, record: dict[str, int]) -> None:
        self.train_step.drop_gradients()
        self.progress.lowered_to = self.recovery.lowered_to
        self.log.write(self.progress.step, {"out_of_memory": record})

    # --- log, evaluate --------------------------------------------------------------------------------------------

    def _log(self, step: int, terms: Terms, counts: StepCounts, rates: dict[str, float], seconds: float) -> None:
        """Log this step's own values, not a mean since the last line.

        With BASIC off, BASIC's terms are the last known ones.
        """
        if step % self.recipe.training.log_every and step != self.schedule.steps:
            self.line.show(step, self.schedule.steps)
            return
        self._settle_basic_terms()
        values = self.progress.last_terms | terms.values(self.processes)
        values |= {"tokens_per_s": counts.tokens / seconds, "step_s": seconds, **rates}
        values |= {"epoch": self.schedule.epochs_after(step), "peak_memory_gib": peak_memory_gib(self.device)}
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {step} (lm {values['lm']}). "
                "Lower training.projector_learning_rate or training.learning_rate, and start again under another name; "
                "or continue from the last checkpoint with --resume"
            )
        self.log.write(step, values)
        self.line.show(step, self.schedule.steps, values)

    def _settle_basic_terms(self) -> None:
        """Bring the terms of the last step with BASIC to the host. Before that, nothing waits for them."""
        if self._basic_terms is not None:
            values = self._basic_terms.values(self.processes)
            self.progress.last_terms |= {name: value for name, value in values.items() if name not in ("loss", "lm")}
            self._basic_terms = None

    def _evaluate(self, step: int) -> None:
        data, every = self.run.data, self.recipe.training.eval_every
        if data.eval is None or every is None or (step % every and step != self.schedule.steps):
            return
        what = f"the evaluation after step {step}"
        try:
            loss = held_out_loss(
                self.train_step, data.eval, data.collator, self.recipe, self.recovery, what, self._begin_again
            )
        except OutOfMemory:
            self._save_before_leaving(all_here=self.processes.count == 1)
            raise
        self.log.write(step, {"eval_loss": loss, "epoch": self.schedule.epochs_after(step)})
        self._measure_premise()

    def _measure_premise(self) -> None:
        """Measure the curve, at most once a step. The last step's evaluation also serves as the end's."""
        step = self.progress.step
        if not self.log.has(step, "refinement"):
            curve = self.refinement.measure(step)
            if curve is not None:
                self.log.write(step, curve)

    # --- save -----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Save a checkpoint. Older ones are deleted only after it is complete."""
        folder, run = self.run.folder, self.run
        generators = generators_of(self.device, self.processes)
        self._settle_basic_terms()
        if self.processes.is_main:
            good = checkpoints_of(folder.path)
            last = f"The run's last good checkpoint is {good[-1]}" if good else "The run has no checkpoint yet"
            fix = f"{last}; make room, and continue with --resume"
            with written_whole(folder.checkpoint_at(self.progress.step), fix) as scratch:
                write_training_state(
                    scratch, self.progress, self.train_step.optimizer, self.train_step.scheduler, generators
                )
                write_bundle(scratch, run.loaded.parts, run.loaded.tokenizer, self.recipe, self._facts())
            for old in checkpoints_of(folder.path)[: -self.recipe.training.keep]:
                shutil.rmtree(old, ignore_errors=True)
        self.processes.wait()

    def _save_before_leaving(self, *, all_here: bool) -> None:
        """Save the finished steps if all processes stop here: a checkpoint needs what each of them has."""
        if all_here and self.progress.step:
            self.train_step.drop_gradients()
            if not self.processes.from_main(self.run.folder.checkpoint_at(self.progress.step).exists()):
                self._save()

    def _save_final(self) -> None:
        run = self.run
        if self.processes.is_main:
            fix = "Make room, and write it with --resume, which trains nothing anew"
            with written_whole(run.folder.final, fix) as scratch:
                write_bundle(scratch, run.loaded.parts, run.loaded.tokenizer, self.recipe, self._facts())
        self.processes.wait()

    def _facts(self) -> dict[str, Any]:
        """Facts about the run for a bundle's manifest."""
        step = self.progress.step
        return {
            "step": step,
            "total_steps": self.schedule.steps,
            "data": {
                "epoch": self.schedule.epochs_after(step),
                "samples": self.schedule.samples_after(step),
                "seed": self.recipe.seed,
                "fingerprint": self.run.data.report.fingerprint,
            },
            "recipe": recipe_fingerprint(self.recipe),
            "processes": self.processes.count,
        }
