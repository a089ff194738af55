"""The metrics by their names, as ``--metric`` takes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from basic_lite.choices import require_one_of
from basic_lite.scoring.metrics.anls import anls
from basic_lite.scoring.metrics.choice import choice, choice_unread
from basic_lite.scoring.metrics.estimate import Estimate
from basic_lite.scoring.metrics.exact import exact
from basic_lite.scoring.metrics.relaxed import relaxed
from basic_lite.scoring.metrics.vqa import LEAST_ANSWERS, textvqa, vqa
from basic_lite.scoring.metrics.yes_no import figures, yes_no, yes_no_unread

MetricName = Literal["exact", "vqa", "textvqa", "relaxed", "yes_no", "choice", "anls"]
# Of a partial score: from here on an answer counts as right where only right and wrong are told apart.
RIGHT = 0.5


@dataclass(frozen=True)
class Metric:
    """How answers are scored.

    Attributes:
        title: its name for people.
        meaning: what the score is, for a table's title.
        score: from an answer, the right answers (at least one) and the question, to a score from 0 to 1.
        least_answers: right answers that a question must have.
        unread: from a right answer and the question, why the answer can't be read; empty: it can.
        figures: what else there is to say of all answers, from pairs of an answer and what is right.
    """

    name: MetricName
    title: str
    meaning: str
    score: Callable[[str, Sequence[str], str], float]
    least_answers: int = 1
    unread: Callable[[str, str], str] = lambda answer, question: ""
    figures: Callable[[Sequence[tuple[str, str]]], dict[str, Estimate]] = lambda pairs: {}


METRICS: dict[str, Metric] = {
    one.name: one
    for one in (
        Metric("exact", "exact match", "the share of answers that are the record's own, word for word", exact),
        Metric("vqa", "VQA accuracy", "the mean agreement with the people asked", vqa, LEAST_ANSWERS),
        Metric("textvqa", "TextVQA accuracy", "the mean agreement with the people asked", textvqa, LEAST_ANSWERS),
        Metric("relaxed", "relaxed accuracy", "the share of right answers; numbers may be 5 % off", relaxed),
        Metric(
            "yes_no", "accuracy", "the share of answers that say yes or no rightly", yes_no,
            unread=yes_no_unread, figures=figures,
        ),
        Metric("choice", "accuracy", "the share of answers that name the right option", choice, unread=choice_unread),
        Metric("anls", "ANLS", "the mean likeness to the right answer, letter by letter", anls),
    )
}  # fmt: skip


def metric_named(name: str) -> Metric:
    """The metric of a name.

    Raises:
        UserError: there is none.
    """
    require_one_of(name, METRICS, "metric")
    return METRICS[name]
