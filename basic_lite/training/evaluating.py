"""An evaluation in the run: the held-out loss, answers to held-out questions with their score, the best step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from basic_lite.console import Say
from basic_lite.training.assembly import autocast_of
from basic_lite.training.batches import Schedule
from basic_lite.training.best import BestStep
from basic_lite.training.best_text import best_of
from basic_lite.training.checkpoint import Progress
from basic_lite.training.dropped import DroppedRecords
from basic_lite.training.evaluation import evaluates, held_out_loss, held_out_text
from basic_lite.training.held_out_score import HeldOutScore, Scored
from basic_lite.training.log import RunLog
from basic_lite.training.log_lines import read_log
from basic_lite.training.made import Run
from basic_lite.training.progress import duration_text
from basic_lite.training.recovery import Recovery
from basic_lite.training.step import TrainStep
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

    def begin(self) -> None:
        """Once the folder is the run's, before the first step."""
        self.best.begin(self.log)

    def restore(self, progress: Progress) -> None:
        """Go on as a run that was never stopped."""
        if self.score is not None:
            self.score.lowered = progress.answered_at_once

    def remember(self, progress: Progress) -> None:
        """What ``restore`` needs."""
        progress.answered_at_once = None if self.score is None else self.score.lowered

    def due(self, step: int) -> bool:
        """Every so many steps, at the end, and before the first of a run that goes on from another one's weights."""
        due = evaluates(self.recipe, step, self.schedule.steps) if step else self.recipe.model.start is not None
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

    def _loss(self, step: int) -> float:
        assert self.data.eval is not None
        what = f"the evaluation after step {step}"
        return held_out_loss(
            self.train_step,
            self.data.eval,
            self.data.collator,
            self.recipe,
            self.recovery,
            what,
            self._begin_again,
            lambda problems: self._dropped.note(step, problems, where=what),
        )

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
        return f"; so {duration_text(seconds * left)} for the {left} evaluation{'s' * (left > 1)} left"
