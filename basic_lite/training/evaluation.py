"""An evaluation in the run: the held-out loss, answers to held-out questions with their score, the best step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from basic_lite.console import Say
from basic_lite.errors import UserError
from basic_lite.sizes import number_of
from basic_lite.training.assembly import autocast_of
from basic_lite.training.batches import Schedule, loading
from basic_lite.training.best import BestStep
from basic_lite.training.best_text import best_of
from basic_lite.training.checkpoint import Progress
from basic_lite.training.dropped import DroppedRecords
from basic_lite.training.held_out_score import HeldOutScore, Scored
from basic_lite.training.log import RunLog
from basic_lite.training.log_lines import read_log
from basic_lite.training.loss_text import held_out_text
from basic_lite.training.made import Run
from basic_lite.training.progress import duration_text
from basic_lite.training.recovery import Recovery
from basic_lite.training.step import StepCounts, TrainStep
from basic_lite.training.time_left import TimeLeft
from basic_lite.training.time_use import ANSWERING, EVALUATING, TimeUse


class Evaluation:
    """Evaluates where it is due. All processes do it together."""

    def __init__(
        self,
        run: Run,
        schedule: Schedule,
        train_step: TrainStep,
        recovery: Recovery,
        log: RunLog,
        say: Say,
        *,
        dropped: DroppedRecords,
        time: TimeUse,
        left: TimeLeft,
        begin_again: Callable[[dict[str, Any]], None],
        write: Callable[[Path, dict[str, Any]], None],
    ) -> None:
        """
        Args:
            begin_again: see ``Recovery.attempts``.
            write: writes the model's bundle into a folder, with more facts for its manifest.

        Raises:
            UserError: a question of ``training.eval_generate`` can't be asked.
        """
        recipe, data = run.recipe, run.data
        self.recipe, self.data, self.schedule = recipe, data, schedule
        self.train_step, self.recovery, self.log, self.say = train_step, recovery, log, say
        self._dropped, self._time, self._left, self._begin_again = dropped, time, left, begin_again
        self.best = BestStep(recipe, run.folder, train_step.processes, write, say)
        self._told = False
        self.score = None
        if recipe.training.eval_generate and data.eval is not None and data.eval_report is not None:
            longest = int(data.report.lengths.max())
            autocast = autocast_of(recipe, train_step.device)
            self.score = HeldOutScore(
                recipe, run.loaded, data.eval, data.eval_report, train_step.processes, say, autocast, longest=longest
            )
            self._left.expect(self.score.tokens)
            for line in self.score.outlook():
                say(line)

    def restore(self, progress: Progress) -> None:
        """Go on as a run that was never stopped."""
        if self.score is not None:
            self.score.lowered = progress.answered_at_once

    def remember(self, progress: Progress) -> None:
        """What ``restore`` needs."""
        progress.answered_at_once = None if self.score is None else self.score.lowered

    def due(self, step: int) -> bool:
        """Every so many steps, at the end, and before the first of a run that goes on from another one's weights."""
        due = self.schedule.evaluates(step) if step else self.recipe.model.start is not None
        return self.data.eval is not None and due

    def make(self, step: int) -> None:
        """Evaluate after a step. Its line in the log is the last thing: what is there needs not be done again.

        Raises:
            OutOfMemory: not even one sample has room.
            UserError: no record can be read, or the best step can't be saved.
        """
        with self._time.apart(EVALUATING):
            loss = self._loss(step)
        earlier = self.log.values("eval_loss")
        self.say(held_out_text(step, loss, earlier))
        scored = self._score(step)
        self.best.look(loss, scored)
        record = {} if scored is None else scored.record()
        self.log.write(step, {"eval_loss": loss, "epoch": self.schedule.epochs_after(step), **record})

    def summary(self) -> list[str]:
        """What to say of the best step at the run's end; nothing where none is kept."""
        if self.best.by is None or not self.train_step.processes.is_main:
            return []
        best = best_of(self.log.path.parent, read_log(self.log.path.parent).rare)
        return [] if best is None else list(best.lines())

    @torch.no_grad()
    def _loss(self, after: int) -> float:
        """Mean L_lm over the labelled tokens of held-out data, whatever the batches are and however many processes.

        Raises:
            OutOfMemory: not even one sample has room.
            UserError: no record could be read.
        """
        step, recovery, dataset = self.train_step, self.recovery, self.data.eval
        assert dataset is not None
        processes, size, what = step.processes, self.recipe.training.micro_batch, f"the evaluation after step {after}"
        order = list(range(len(dataset)))
        groups = [order[i : i + size] for i in range(0, len(order), size)][processes.index :: processes.count]
        total, count = 0.0, 0
        dropped: list[str] = []

        step.parts.model.eval()
        with processes.together(), loading(dataset, groups, self.data.collator, self.recipe, step.device) as loader:
            for batch, problems in loader:
                dropped += problems
                if batch is None:
                    continue
                for attempt in recovery.attempts([batch], what, self._begin_again, backward=False):
                    with attempt as parts:
                        means = [float(step.forward(**step.inputs(part)).loss) for part in parts]
                        labelled = [StepCounts.of([part], recovery.image_token_id).labelled_tokens for part in parts]
                total += sum(mean * tokens for mean, tokens in zip(means, labelled, strict=True) if tokens)
                count += sum(labelled)
        step.train_mode()
        self._dropped.note(after, dropped, where=what)
        total, count = processes.sum([total, float(count)])
        with processes.together():
            if not count:
                raise UserError(
                    f"{what}: none of the {len(order):,} held-out records can be read any more; is the folder with "
                    "their pictures still there? Continue with --resume once it is"
                )
        return total / count

    def _score(self, step: int) -> Scored | None:
        if self.score is None:
            return None
        with self._time.apart(ANSWERING) as seconds:
            scored = self.score.ask(step, self.recovery.plan.micro_batch)
        self._left.answered(seconds())
        if scored is not None:
            self.say(f"step {step}: {scored.text()} ({seconds():.1f} s{self._still_to_come(step, seconds())})")
        return scored

    def _still_to_come(self, step: int, seconds: float) -> str:
        """What the answers of all later evaluations will take, once it is measured; said once."""
        if self._told:
            return ""
        self._told = True
        if not (left := sum(self.due(later) for later in range(step + 1, self.schedule.steps + 1))):
            return ""
        return f"; so {duration_text(seconds * left)} for the {number_of(left, 'evaluation')} left"
