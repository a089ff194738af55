"""What there is to say of a run's best step, from its bundle's manifest and the log. No torch is needed here."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from basic_lite.intervals import difference_of_chosen
from basic_lite.resampling import LEAST_SAMPLES, Interval, draws_of
from basic_lite.scoring.looking import points
from basic_lite.scoring.metrics.estimate import Estimate, estimated, percent
from basic_lite.scoring.metrics.named import METRICS
from basic_lite.training.data_json import met_before
from basic_lite.training.loss_text import NO_NUMBER
from basic_lite.training.places import BEST, best_record

# In the log: the scores of generated answers, and what they are made of.
SCORE, OTHER_SCORE, NO_SCORE = "eval_score", "eval_score_other_picture", "eval_score_no_picture"
GENERATED = "generated"
LOSS = "loss"


@dataclass(frozen=True)
class Best:
    """The best step beside the last one.

    Attributes:
        place: its bundle.
        by: the metric's name, or ``LOSS``.
        last: the last step that was looked at.
        values: value of the best and of the last step; None: the log has none.
        scores: of both, with their difference, whose interval knows that the best was chosen; None: they aren't of one
            sample, or it goes by the loss.
        own: the score of the best step, with its interval; None: it goes by the loss, or the log has none.
        looks: how many steps it was chosen from.
        flattered: about how much better than it is the best of so many looks seems to be; None: not known.
        known: how much of the data is known to be trained on, in words; nothing: none of it.
    """

    place: Path
    step: int
    by: str
    last: int
    values: tuple[float, float | None]
    scores: tuple[Estimate, Estimate, Interval] | None
    own: Estimate | None
    looks: int
    flattered: float | None
    known: str

    @property
    def short(self) -> str:
        """For a list: the step, and what it is best by."""
        value = f"{self.values[0]:.3f}" if self.by == LOSS else f"{self.values[0]:.1%}"
        value += " [{:.0%}, {:.0%}]".format(*self.own.interval) if self.own is not None else ""
        return f"best at step {self.step}: {self._metric} {value}"

    def lines(self) -> Iterator[str]:
        """For the terminal and the page: which step is best, by how much, and how far to trust that."""
        own = percent(self.scores[0]) if self.scores is not None else self._in_figures(self.values[0])
        if self.step == self.last:
            yield f"best step by {self._metric}: the last, {self.step:,}, with {own}{self._of}; also in {self.place}"
        else:
            yield f"best step by {self._metric}: {self.step:,}, with {own}{self._of}; its weights are in {self.place}"
            yield f"the last step, {self.last:,}, has {self._last_value()}"
        if self.looks > 1:
            yield self._looked_often()
        if self.known:
            yield f"not all of that data is new to it: {self.known}"

    @property
    def _metric(self) -> str:
        return "held-out loss" if self.by == LOSS else METRICS[self.by].title if self.by in METRICS else self.by

    @property
    def _of(self) -> str:
        return f" of {self.scores[0].n:,} held-out questions" if self.scores is not None else ""

    def _in_figures(self, value: float) -> str:
        return f"{value:.3f}" if self.by == LOSS else f"{100 * value:.0f} %"

    def _last_value(self) -> str:
        if self.scores is None:
            last = self.values[1]
            if last is None:
                return "no such value"
            if not math.isfinite(last):
                return f"a value that {NO_NUMBER}"
            return f"{self._in_figures(last)}; how sure that difference is, isn't measured"
        best, last_one, gain = self.scores
        if best.share == last_one.share:
            return f"as much, {percent(last_one)}, and of equals the earlier is kept"
        says = f"{percent(last_one)}: the best has {points(gain)} more"
        if best.n < LEAST_SAMPLES:
            return f"{says}, of too few questions to tell"
        return says if gain.low > 0 else f"{says}, which may be chance"

    def _looked_often(self) -> str:
        text = f"it is the best of {self.looks} looks at the same data, so it seems better than it is"
        flattered = 100 * (self.flattered or 0.0)
        much = f", here by about {flattered:.1f} points" if flattered >= 0.05 else ""
        return f"{text}{much}; ask other questions for a fair score"


def best_of(run: Path, log: Sequence[Mapping[str, Any]]) -> Best | None:
    """What a run's best bundle and its log say; None where none is kept, or they don't fit.

    Args:
        log: what ``read_log`` finds rare in it.
    """
    record = best_record(run / BEST)
    if record is None or type(record["step"]) is not int or not has_step(log, record["step"]):
        return None
    by, value, step = str(record["by"]), float(record["value"]), record["step"]
    found = values_of(log, "eval_loss") if by == LOSS else values_of(log, SCORE)
    last = max(found, default=step)
    scores = {at: one for at, one in scores_of(log).items() if at in found} if by != LOSS else {}
    alike = {at: one for at, one in scores.items() if len(one) == len(scores[max(scores)])}
    both = step in alike and last in alike
    return Best(
        place=run / BEST,
        step=step,
        by=by,
        last=max(last, step),
        values=(value, found.get(max(last, step))),
        scores=_compared(alike, step, last) if both else None,
        own=estimated(scores[step]) if step in scores else None,
        looks=len(found),
        flattered=flattered_by(list(alike.values())) if both and len(alike) > 1 else None,
        known=met_before(run),
    )


def has_step(log: Sequence[Mapping[str, Any]], step: int) -> bool:
    """Whether a run has made a step, by its log; an empty one doesn't say.

    It hasn't, where it went back to an earlier checkpoint since.
    """
    return not log or step <= max(line["step"] for line in log)


def values_of(log: Sequence[Mapping[str, Any]], name: str) -> dict[int, float]:
    """The steps that have a number of that name; of two lines of a step the later counts."""
    return {line["step"]: line[name] for line in log if line.get(name) is not None}


def scores_of(log: Sequence[Mapping[str, Any]]) -> dict[int, list[float]]:
    """Of each step with generated answers, the score of each question."""
    found = {}
    for line in log:
        if scores := (line.get(GENERATED) or {}).get("scores"):
            found[line["step"]] = [float(one) for one in scores]
    return found


def _compared(looks: Mapping[int, Sequence[float]], best: int, last: int) -> tuple[Estimate, Estimate, Interval]:
    steps = list(looks)
    gain = difference_of_chosen(np.array(list(looks.values())), steps.index(best), steps.index(last))
    return estimated(looks[best]), estimated(looks[last]), gain


def flattered_by(looks: Sequence[Sequence[float]]) -> float:
    """By how much the best of several looks at the same questions seems better than it is.

    The bootstrap's estimate of the optimism of a choice (Efron and Tibshirani 1993, chapter 17): questions are drawn
    anew, the best look on the draw is chosen, and its score there is held against its score on all questions. It is an
    expected value, no bound. Of five looks at 60 questions, in 400 worlds each: 5.2 points where the five were equally
    good and the best was flattered by 7.4; 3.7 beside 4.3 where they rose from .5 to .7; 2.1 beside 1.3 where one was
    better than the others by .2.

    Args:
        looks: of each step, in order, the score of each question.
    """
    kinds, counts = np.unique(np.array(looks).T, axis=0, return_counts=True)  # [kinds, looks]
    drawn = draws_of(counts) @ kinds / counts.sum()  # [draws, looks]
    whole = counts @ kinds / counts.sum()
    chosen = drawn.argmax(axis=1)
    return float((drawn[np.arange(len(drawn)), chosen] - whole[chosen]).mean())
