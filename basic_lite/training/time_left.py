"""How long a run will still take: the time so far, shared out by the tokens of its steps and evaluations."""

from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from basic_lite.data.prepare import Prepared
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision.supervision import Supervision
from basic_lite.training.batches import Schedule
from basic_lite.training.evaluation import SAMPLES_PER_BATCH

# A token's forward over its forward and backward, and a look's forwards with their search over that.
FORWARD, LOOK = 1 / 3, 1 / 2


class TimeLeft:
    """Seconds left after a step, from the seconds so far.

    The first step of a program also loads libraries, so it isn't measured.

    Args:
        work: of each step of the run, from the first, and of what comes between it and the next.
        inside: how much of that is the step itself.
    """

    def __init__(self, work: list[float], inside: list[float]) -> None:
        self._until = [0.0, *accumulate(work)]  # the work of so many steps, and what follows each
        self._inside = inside
        self._measured_from: tuple[int, float] | None = None

    def after(self, step: int, now: float) -> float | None:
        """Seconds left when a step has just been made; None: nothing is measured yet.

        Args:
            now: seconds of any clock that runs on.
        """
        if self._measured_from is None:
            self._measured_from = step, now
            return None
        first, started = self._measured_from
        done = self._done(step) - self._done(first)
        return (now - started) / done * (self._until[-1] - self._done(step)) if done > 0 else None

    def _done(self, step: int) -> float:
        """The work when a step has been made, without what follows it."""
        return self._until[step - 1] + self._inside[step - 1]


def time_left_of(recipe: Recipe, data: Prepared, schedule: Schedule, supervision: Supervision | None) -> TimeLeft:
    """The work of a run's steps in tokens, padding included, and of its evaluations and curves in as many tokens."""
    inside = list(_tokens(schedule, data.report.lengths))
    curve = SAMPLES_PER_BATCH * recipe.supervision.refinement_batches * float(data.report.lengths.mean())
    look = curve * LOOK if supervision is not None else 0.0
    evaluation = 0.0 if data.eval_report is None else float(data.eval_report.lengths.sum()) * FORWARD + look
    every, last = recipe.training.eval_every, schedule.steps
    work = [
        own + (evaluation if data.eval is not None and (step == last or (every and step % every == 0)) else 0.0)
        for step, own in enumerate(inside, 1)
    ]
    if data.eval is None and work:
        work[-1] += look
    return TimeLeft(work, inside)


def _tokens(schedule: Schedule, lengths: np.ndarray) -> Iterator[float]:
    """Of each step, as its micro-batches are padded."""
    size = schedule.micro_batch
    for step in range(schedule.steps):
        own = lengths[schedule.samples_of(step)]
        groups = (own[start : start + size] for start in range(0, len(own), size))
        yield float(sum(len(group) * int(group.max()) for group in groups))
