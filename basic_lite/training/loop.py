"""A run's loop, read from top to bottom: steps → micro-batches → counts → ``TrainStep`` → log, evaluate, save."""

import time
from collections.abc import Container, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from basic_lite.console import speaker
from basic_lite.errors import Interrupted, OutOfMemory, UserError
from basic_lite.model.base_files import digests_of_models
from basic_lite.model.device import peak_memory_gib
from basic_lite.supervision.premise import SeenPatches
from basic_lite.training.assembly import autocast_of, machine_facts, make_step, projector_is_fresh, software_of
from basic_lite.training.basic_text import basic_text
from basic_lite.training.batches import Schedule, StepBatches, step_batches
from basic_lite.training.bundle import require_same_files, restore_adapter, restore_projector, write_bundle
from basic_lite.training.checkpoint import Progress, read_progress, restore_training_state
from basic_lite.training.dropped import DroppedRecords
from basic_lite.training.evaluation import Evaluation
from basic_lite.training.garbage import set_aside
from basic_lite.training.gate import make_gate
from basic_lite.training.gradients import GradientCheck
from basic_lite.training.interruption import Interruption
from basic_lite.training.log import RunLog
from basic_lite.training.loss_text import overfit_text
from basic_lite.training.made import Run
from basic_lite.training.places import LOG
from basic_lite.training.plan import Plan, start_plan
from basic_lite.training.progress import OF_IMAGES, Pace, ProgressLine, finished_text
from basic_lite.training.recovery import Recovery, memory_needed, random_state, set_random_state
from basic_lite.training.refinement_log import RefinementLog, curve_batches
from basic_lite.training.samples import HeldOutAnswers
from basic_lite.training.saving import save_checkpoint, save_final
from basic_lite.training.step import Batch, StepCounts, Terms
from basic_lite.training.text_probe.at_end import probe_at_end
from basic_lite.training.time_left import time_left_of
from basic_lite.training.time_use import EVALUATING, SAVING, TimeUse
from basic_lite.training.watch import Watch

OUTSIDE = "outside a step's forward and backward: reading data, the optimizer, or saving"


class Loop:
    """The training of one run, from step 0 or from a checkpoint to the trained bundle."""

    def __init__(self, run: Run) -> None:
        recipe, training = run.recipe, run.recipe.training
        self.run, self.recipe, self.processes, self.device = run, recipe, run.processes, run.device
        self.say = speaker(run.console)
        self.schedule = Schedule(run.data.sampler, recipe)
        last, mark = self.schedule.steps, run.breakdown.base
        self.train_step = make_step(
            recipe, run.loaded, run.supervision, run.device, run.processes, steps=last, mark=mark
        )
        self.log = RunLog(run.folder.path / LOG, run.processes)
        left = time_left_of(recipe, run.data, self.schedule, run.supervision)
        self.line = ProgressLine(run.console, recipe.name, left=left, shown=run.processes.is_main)
        self.model_files = digests_of_models(recipe.model)
        self.progress = self._start()
        self.dropped = DroppedRecords(
            run.folder.path, self.log, run.processes, self.say, on=run.data.drops, summary=run.data.summary()
        )
        self.first = self.progress.step  # steps done before this program began
        self.pace = Pace(run.device, self.first, last, self.say)
        self.time = TimeUse(run.breakdown, run.loaded.parts, recipe, self.log, self.say, first=self.first, last=last)
        self._basic_terms: Terms | None = None  # of the last step with BASIC, still on the device
        self._before: list[torch.Tensor] = []  # the generators as they were before a step that isn't made yet
        losses, leave = self.progress.losses, self._save_before_leaving
        self.watch = Watch(
            self.train_step, run.data.train, self.schedule, run.folder, self.log, self.say, losses=losses, save=leave
        )
        self.check = GradientCheck(run.loaded.parts, projector_seen=self.progress.projector_seen)
        own = Plan.of(recipe, len(run.loaded.parts.layers))
        self.recovery = Recovery(
            training,
            run.device,
            run.loaded.parts.image_token_id,
            self.say,
            alone=run.processes.count == 1,
            active=start_plan(own, self.progress.lowered(own), run.loaded, run.device, self.say),
            next_plan=run.next_plan,
        )
        self.evaluation = Evaluation(
            run,
            self.schedule,
            self.train_step,
            self.recovery,
            self.log,
            self.say,
            dropped=self.dropped,
            time=self.time,
            left=left,
            begin_again=self._begin_again,
            write=self._write_bundle,
        )
        self.evaluation.restore(self.progress)
        autocast = autocast_of(recipe, run.device)
        self.answers = HeldOutAnswers(recipe, run.loaded, run.data.eval, run.data.eval_report, self.say, autocast)
        count, size = curve_batches(recipe)
        self.refinement = RefinementLog(
            run.supervision,
            run.data.batches_with_images(count if run.processes.is_main else 0, size),
            run.loaded.tokenizer,
            self.say,
            autocast,
            fresh=projector_is_fresh(recipe),
        )
        self._seen: SeenPatches | None = None  # what the last curve was made of, until the gate has seen it
        self.gate = make_gate(
            recipe,
            *(run.loaded, run.supervision, run.data, self.schedule, run.processes, self.say),
            self.train_step,
            lambda: self.recovery.plan.micro_batch,
        )
        if self.gate is not None:
            self.gate.restore(self.progress.gate, run.folder.checkpoint)
        shown = self.gate is not None and self.gate.state.open
        self.say(basic_text(recipe, run.data, shown=shown))
        for line in self.gate.outlook() if self.gate is not None and run.processes.is_main else ():
            self.say(line)

    def _start(self) -> Progress:
        """Start at step 0, or restore the checkpoint."""
        bundle, parts = self.run.folder.checkpoint, self.run.loaded.parts
        self.processes.copy_main_weights(self.train_step.trainable)
        if self.processes.index:
            # Other samples, so other dropout; the main process draws what it would draw alone.
            torch.manual_seed(self.recipe.seed + self.processes.index)
        if bundle is None:
            return Progress()
        require_same_files(bundle, self.model_files)
        restore_projector(bundle, parts, "--resume")
        if bundle.has_adapter:
            restore_adapter(bundle, parts)
        progress, step = read_progress(bundle, self.schedule.steps), self.train_step
        restore_training_state(bundle, progress, step.optimizer, step.scheduler, self.device, self.processes)
        if (before := bundle.manifest.get("processes", 1)) != self.processes.count:
            self.say(
                f"note: the run had {before} process(es) and continues with {self.processes.count}, so dropout differs "
                "from an uninterrupted run's"
            )
        was, now = bundle.manifest["machine"], machine_facts(self.recipe, self.device)
        if was != now:
            self.say(f"note: the run was computed with {was} and continues with {now}, so its numbers will differ")
        self.log.keep_until(progress.step)
        self.say(f"continuing from {bundle.folder} (step {progress.step})")
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
        processes, last, began = self.processes, self.schedule.steps, time.perf_counter()
        try:
            with (
                Interruption(self.say, alone=not processes.launched) as interruption,
                memory_needed(OUTSIDE),
                set_aside(),
                closing(self._batches()) as source,
            ):
                self.log.start_trackers(self.recipe)
                self.dropped.write()
                self.evaluation.best.begin(self.log)
                if self.progress.step == 0:
                    self._look(0, evaluated=False)
                    self._measure_premise()
                    if processes.is_main:
                        self.answers.ask(0, self.log, every=True)
                # Also the one that stopped the run, once it goes on.
                if not processes.from_main(self.log.has(self.progress.step, "eval_loss")):
                    evaluated = self._evaluate(self.progress.step)
                    if self.progress.step:  # the look before the first step is made
                        self._look(self.progress.step, evaluated=evaluated)
                self.line.start(self.progress.step)
                for step in range(self.progress.step + 1, last + 1):
                    with self.time.step(step):
                        self._turn(step, source, interruption)
                self.check.finish(last)
                self._measure_premise()
                self._save_final()
                self.time.finish(last, time.perf_counter() - began)
                probe_at_end(self.recipe, self.run.loaded, processes, self.log, last, self.say, interruption)
        finally:
            self.time.drop()
            self.line.close()
            self.log.close()
        folder, seconds = self.run.folder, time.perf_counter() - began
        losses, new = self.log.values("eval_loss"), self.run.data.eval_is_new
        if overfit := overfit_text(losses, self.recipe, self.schedule.epochs_after, new=new):
            self.say(overfit)
        if self.gate is not None and (came := self.gate.summary(last)):
            self.say(came)
        for line in self.evaluation.summary():
            self.say(line)
        self.run.report()
        self.say(finished_text(self.first, last, seconds, self.log.values, folder.path, folder.final))
        return self.log.history()

    def _turn(self, step: int, source: Generator[StepBatches], interruption: Interruption) -> None:
        """One step, and what follows it where it is due: a look, an evaluation, a checkpoint."""
        processes, last, started = self.processes, self.schedule.steps, time.perf_counter()
        with self.time.reading(), self._kept_when_stopped(all_here=True), processes.together():
            batches, dropped = next(source)
        counts = StepCounts.of(batches, self.run.loaded.parts.image_token_id).over(processes)
        lost = self.dropped.note(step, dropped)
        with self._kept_when_stopped(all_here=True), processes.together():
            self.dropped.require_some(step, lost, left=counts.tokens > 0)
        if counts.tokens:
            self._step(step, batches, counts, started)
            self.pace.add(step, started)
        else:
            self.train_step.skip()
            self.progress.step = step
        evaluated = self._evaluate(step)
        with self.time.apart(EVALUATING):
            self._look(step, evaluated=evaluated)
        stop = processes.any(interruption.requested) and step < last
        if step % self.recipe.training.save_every == 0 or step == last or stop:
            with self.time.apart(SAVING):
                self._save()
        if stop:
            raise Interrupted(self.run.folder.checkpoint_at(step))

    def _step(self, step: int, batches: list[Batch], counts: StepCounts, started: float) -> None:
        """Gradients of all micro-batches, the update, the log line."""
        lambdas, self._before = self._lambdas(step), random_state(self.device)
        with self._kept_when_stopped(all_here=False):
            for attempt in self.recovery.attempts(batches, f"step {step}", self._begin_again):
                with attempt as parts:
                    terms = self.train_step.gradients(parts, counts, lambdas, number=step)
        self.watch.look(step, parts, terms, counts)
        with self.processes.together():
            self.check.look(step, has_image=counts.samples_with_image > 0)
        rates = self.train_step.rates()
        self.train_step.update()
        self.progress.step, self._before = step, []
        if any(lambdas) and counts.samples_with_image:
            self._basic_terms = terms
            if self.gate is not None:
                self.gate.state.steps_on += 1
        self._log(step, terms, counts, rates, started)

    def _batches(self) -> Generator[StepBatches]:
        data, first = self.run.data, self.progress.step
        return step_batches(data.train, data.collator, self.schedule, self.recipe, self.device, self.processes, first)

    @contextmanager
    def _kept_when_stopped(self, *, all_here: bool) -> Iterator[None]:
        """Save the steps so far when something stops the run between two of them.

        Args:
            all_here: whether it stops all processes at this place; a checkpoint needs what each of them has.
        """
        try:
            yield
        except (OutOfMemory, UserError):
            if all_here or self.processes.count == 1:
                self._save_before_leaving()
            raise

    def _lambdas(self, step: int) -> tuple[float, float]:
        supervision = self.run.supervision
        if supervision is None or not (self.gate is None or self.gate.state.open):
            return 0.0, 0.0
        return supervision.lambdas(step - 1, self.schedule.steps)

    def _undo_step(self) -> None:
        """Leave nothing of a step that broke off: its gradients go, and what it drew is drawn again."""
        self.train_step.drop_gradients()
        if self._before:
            set_random_state(self._before, self.device)

    def _begin_again(self, record: dict[str, Any]) -> None:
        self.time.drop()
        self._undo_step()
        self.log.write(self.progress.step, {"out_of_memory": record})

    def _log(self, step: int, terms: Terms, counts: StepCounts, rates: dict[str, float], started: float) -> None:
        """Log this step's own values. With BASIC off, BASIC's are the last known ones."""
        if step % self.recipe.training.log_every and step != self.schedule.steps:
            self.line.show(step, self.schedule.steps)
            return
        self._settle_basic_terms()
        values = self.progress.last_terms | terms.values(self.processes)
        seconds = time.perf_counter() - started  # the values have waited for the device
        values |= {"tokens_per_s": counts.tokens / seconds, "step_s": seconds, **rates}
        values |= {"epoch": self.schedule.epochs_after(step), "peak_memory_gib": peak_memory_gib(self.device)}
        self.log.write(step, values)
        # A step of text alone has no BASIC: the line keeps the values of the last step with images.
        without = () if counts.samples_with_image else OF_IMAGES
        self.line.show(step, self.schedule.steps, {k: v for k, v in values.items() if k not in without})

    def _settle_basic_terms(self) -> None:
        """Bring the terms of the last step with BASIC to the host. Before that, nothing waits for them."""
        if self._basic_terms is not None:
            values = self._basic_terms.values(self.processes)
            self.progress.last_terms |= {name: value for name, value in values.items() if name not in ("loss", "lm")}
            self._basic_terms = None

    def _evaluate(self, step: int) -> bool:
        """Evaluate where it is due; returns whether it was."""
        if not self.evaluation.due(step):
            return False
        with self._kept_when_stopped(all_here=True):
            self.evaluation.make(step)
        with self.time.apart(EVALUATING):
            self._measure_premise(self.gate.kept if self.gate is not None and step < self.schedule.steps else ())
            if step and self.processes.is_main:
                self.answers.ask(step, self.log, every=step == self.schedule.steps)
            self.run.report()
        return True

    def _look(self, step: int, *, evaluated: bool) -> None:
        """Let the gate look at the premise where it is due. After the last step there is nothing to decide."""
        seen, self._seen = (self._seen if evaluated else None), None
        if self.gate is None or step == self.schedule.steps or not self.gate.due(step, evaluated=evaluated):
            return
        if self.processes.from_main(self.log.has(step, "gate")):
            return
        record = self.gate.look(step, seen)
        if record is not None:
            self.log.write(step, record)
        if not self.gate.state.open:
            # The last values of BASIC would be read as this step's.
            self._basic_terms, self.progress.last_terms = None, {}

    def _measure_premise(self, kept: Container[int] = ()) -> None:
        """Measure the curve, at most once a step. The last step's evaluation also serves as the end's."""
        step = self.progress.step
        if not self.log.has(step, "refinement"):
            # Where a gate judges, some of these samples chose the target.
            judged = self.gate is None or not self.gate.decides
            measured = self.refinement.measure(step, kept, judged=judged)
            record, self._seen = measured or ({}, None)
            if record:
                self.log.write(step, record)

    def _save(self) -> None:
        """Save a checkpoint."""
        generators = self.processes.gather(random_state(self.device))
        self._settle_basic_terms()
        self.progress.remember(self.recovery.plan, self.recovery.active.own)
        self.progress.projector_seen = self.check.projector_seen
        self.evaluation.remember(self.progress)
        self.progress.gate = None if self.gate is None else asdict(self.gate.state)
        with self.processes.together():
            if self.processes.is_main:
                what = self.run.folder, self.progress, self.train_step, generators, self._write_bundle
                save_checkpoint(*what, keep=self.recipe.training.keep, say=self.say)

    def _save_before_leaving(self) -> None:
        self._undo_step()
        if self.progress.step and not self.processes.from_main(
            self.run.folder.checkpoint_at(self.progress.step).exists()
        ):
            self._save()

    def _save_final(self) -> None:
        with self.processes.together():
            if self.processes.is_main:
                save_final(self.run.folder, self._write_bundle)

    def _write_bundle(self, folder: Path, more: dict[str, Any] | None = None) -> None:
        """Write the model as it is now; ``more``: facts for its manifest beside the run's own."""
        step = self.progress.step
        facts = {
            "step": step,
            "total_steps": self.schedule.steps,
            "data": {
                "epoch": self.schedule.epochs_after(step),
                "samples": self.schedule.samples_after(step),
                "seed": self.recipe.seed,
                **self.run.data.fingerprints,
            },
            "machine": machine_facts(self.recipe, self.device),
            "software": software_of(self.device),
            "processes": self.processes.count,
            "model_files": self.model_files,
            "started_from": self.run.started_from,
            "target": None if self.gate is None else self.gate.state.plan,
            **(more or {}),
        }
        write_bundle(folder, self.run.loaded.parts, self.run.loaded.tokenizer, self.recipe, facts)
