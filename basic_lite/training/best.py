"""The best step of a run: its bundle is kept in the run folder as ``best/``, whatever comes after it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from basic_lite.console import Say
from basic_lite.recipe.rules import best_by
from basic_lite.recipe.schema import Recipe
from basic_lite.scoring.metrics.estimate import estimate_json
from basic_lite.training.best_text import SCORE
from basic_lite.training.bundle_files import copy_model, open_bundle
from basic_lite.training.files import written_whole
from basic_lite.training.held_out_score import Scored
from basic_lite.training.log import HELD_OUT_LOSS, RunLog
from basic_lite.training.own_files import foreign_in
from basic_lite.training.places import best_between_names, best_record, checkpoints_of
from basic_lite.training.processes import Processes
from basic_lite.training.run_folder import RunFolder

FIX = "The earlier best step is as it was; make room, and continue with --resume"


class BestStep:
    """Keeps the bundle of the step that is best by ``training.metric_for_best_model``; of equals the earlier one.

    What it compares with is read from the bundle, so a run that continues after a kill goes on from there. The bundle
    has no optimizer's state: a new run starts from it (``model.start``).
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        processes: Processes,
        write: Callable[[Path, dict[str, Any]], None],
        say: Say,
    ) -> None:
        """
        Args:
            write: writes the bundle into a folder, with more facts for its manifest.
        """
        self.by = best_by(recipe)
        self._folder, self._processes, self._write, self._say = folder, processes, write, say
        self._metric = recipe.training.eval_metric if self.by == "score" else self.by
        # The folder is taken later, and only then has it its name again.
        place = best_between_names(folder.path) or folder.best
        self._set_aside = self.by is not None and folder.best_is_later
        found = None if folder.overwrite or self.by is None or self._set_aside else best_record(place)
        self._so_far: float | None = processes.from_main(None if found is None else float(found["value"]))

    def begin(self, log: RunLog) -> None:
        """Where the best step was set aside, the best of those before takes its place, from its checkpoint.

        All processes call this, once the folder is the run's. Where that checkpoint is gone the choice begins anew.

        Args:
            log: up to the step that the run continues after.

        Raises:
            UserError: the bundle can't be written.
        """
        if not self._set_aside:
            return
        with self._processes.together():
            if self._processes.is_main:
                self._so_far = self._bring_back(log)
        self._so_far = self._processes.from_main(self._so_far)

    def _bring_back(self, log: RunLog) -> float | None:
        values = [one for one in log.values(HELD_OUT_LOSS if self.by == "loss" else SCORE) if math.isfinite(one[1])]
        if not values:
            return None
        # Of equals the first.
        step, value = (min if self.by == "loss" else max)(values, key=lambda one: one[1])
        checkpoint = self._folder.checkpoint_at(step)
        if checkpoint not in checkpoints_of(self._folder.path):
            self._say(
                f"note: the best step up to here was {step}; a later one had replaced it, and it has no checkpoint. "
                "The best is chosen from the steps from here on"
            )
            return None
        with written_whole(self._folder.best, FIX) as scratch:
            copy_model(open_bundle(checkpoint, "--resume"), scratch, {"best": {"by": self._metric, "value": value}})
        self._say(f"the best step up to here, {step}, is in {self._folder.best} again")
        return value

    def look(self, loss: float, scored: Scored | None) -> None:
        """Keep the model as it is now, if it is better than the best so far. All processes call this.

        Args:
            loss: held-out, of this step.
            scored: its answers; None: they could not be had, and the step isn't compared by them.

        Raises:
            UserError: it can't be written. The earlier one is as it was.
        """
        if self.by is None or (self.by == "score" and scored is None):
            return
        value = loss if scored is None or self.by == "loss" else scored.estimate.share
        so_far, lower = self._so_far, self.by == "loss"
        better = so_far is None or (value < so_far if lower else value > so_far)
        if not math.isfinite(value) or not better:
            return
        record: dict[str, Any] = {"by": self._metric, "value": value}
        record |= {"score": estimate_json(scored.estimate)} if scored is not None and self.by == "score" else {}
        with self._processes.together():
            if self._processes.is_main:
                self._save(record)
        self._so_far = value

    def _save(self, record: dict[str, Any]) -> None:
        place = self._folder.best
        for line in self._folder.keep(list(foreign_in(place)), f"{place} is replaced; what isn't the run's own in it"):
            self._say(line)
        with written_whole(place, FIX) as scratch:
            self._write(scratch, {"best": record})
