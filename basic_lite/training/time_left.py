"""How long a run will still take: the time so far, shared out by the tokens of its steps and evaluations."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from statistics import fmean

import numpy as np

from basic_lite.data.prepare import Prepared
from basic_lite.recipe.schema import Recipe
from basic_lite.supervision.supervision import Supervision
from basic_lite.training.batches import Schedule
from basic_lite.training.refinement_log import SAMPLES_PER_BATCH

# A token's forward over its forward and backward, and a look's forwards with their search over that.
FORWARD, LOOK = 1 / 3, 1 / 2
# A generated token over that: a guess, which counts until the first answers are measured.
ANSWERED = 10


class TimeLeft:
    """Seconds left after a step, from the seconds so far.

    The first step of a program also loads libraries, so it isn't measured.

    Args:
        work: of each step of the run, from the first, and of what comes between it and the next.
        inside: how much of that is the step itself.
        looks: steps after which held-out questions are answered. That is no part of ``work``: it is measured by itself.
    """

    def __init__(self, work: list[float], inside: list[float], looks: Sequence[int] = ()) -> None:
        self._looks, self._expected = sorted(looks), 0.0
        self._answering_s: list[float] = []
        self._apart_s = 0.0  # of that, since ``_measured_from``
        self._until = [0.0, *accumulate(work)]  # the work of so many steps, and what follows each
        self._inside = inside
        self._measured_from: tuple[int, float] | None = None

    def after(self, step: int, now: float) -> float | None:
        """Seconds left when a step has just been made; None: nothing is measured yet.

        Args:
            now: seconds of any clock that runs on.
        """
        if self._measured_from is None:
            self._measured_from, self._apart_s = (step, now), 0.0
            return None
        first, started = self._measured_from
        done = self._done(step) - self._done(first)
        if done <= 0:
            return None
        each_s, looks = (now - started - self._apart_s) / done, sum(look >= step for look in self._looks)
        look_s = fmean(self._answering_s) if self._answering_s else each_s * self._expected
        return each_s * (self._until[-1] - self._done(step)) + look_s * looks

    def expect(self, tokens: tuple[int, int]) -> None:
        """Tokens of the questions and of the answers of one look: what it is taken to cost until one is measured."""
        asked, answered = tokens
        self._expected = asked * FORWARD + answered * ANSWERED

    def answered(self, seconds: float) -> None:
        """Held-out questions were answered, in so many seconds."""
        self._answering_s.append(seconds)
        self._apart_s += seconds

    def _done(self, step: int) -> float:
        """The work when a step has been made, without what follows it."""
        return self._until[step - 1] + self._inside[step - 1]


def time_left_of(recipe: Recipe, data: Prepared, schedule: Schedule, supervision: Supervision | None) -> TimeLeft:
    """The work of a run's steps in tokens, padding included, and of its evaluations and curves in as many tokens."""
    inside = list(_tokens(schedule, data.report.lengths))
    curve = SAMPLES_PER_BATCH * recipe.supervision.refinement_batches * float(data.report.lengths.mean())
    look = curve * LOOK if supervision is not None else 0.0
    evaluation = 0.0 if data.eval_report is None else float(data.eval_report.lengths.sum()) * FORWARD + look
    looks = [step for step in range(1, schedule.steps + 1) if schedule.evaluates(step)]
    looks = looks if data.eval is not None else []
    work = list(inside)
    for step in looks:
        work[step - 1] += evaluation
    if data.eval is None and work:
        work[-1] += look
    return TimeLeft(work, inside, looks if recipe.training.eval_generate else ())


def _tokens(schedule: Schedule, lengths: np.ndarray) -> Iterator[float]:
    """Of each step, as its micro-batches are padded."""
    size = schedule.micro_batch
    for step in range(schedule.steps):
        own = lengths[schedule.samples_of(step)]
        groups = (own[start : start + size] for start in range(0, len(own), size))
        yield float(sum(len(group) * int(group.max()) for group in groups))
