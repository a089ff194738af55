"""The score of an evaluation, apart for what was trained on and what wasn't, with its interval."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from basic_lite.console import Sheet
from basic_lite.data.problems import shorten
from basic_lite.errors import UserError
from basic_lite.scoring.looking import Controls, controls_of
from basic_lite.scoring.metrics.circular import as_one, worst
from basic_lite.scoring.metrics.estimate import Estimate, estimate_json, estimated, percent
from basic_lite.scoring.metrics.named import METRICS, MetricName
from basic_lite.scoring.prediction import Prediction
from basic_lite.sizes import number_of
from basic_lite.tools.predictions import require_free, require_writable, write_predictions
from basic_lite.unspaced import word_count

ALL = "all"
# With fewer answers than this it is said that they are few.
FEW = 30
# Words of a reference, on average, from which exact match says little.
_LONG = 8
# Keys of the summary beside the predictions.
TRAINED_ON, NOT_TRAINED_ON, NOT_KNOWN = "trained_on", "not_trained_on", "not_known"


@dataclass(frozen=True)
class EvalResult:
    """Predictions in the order of the data, and how many of them are right.

    Attributes:
        max_new_tokens: the most tokens that an answer might have.
        settings: what they were made with: the model, the data, and how they were asked.
        metric: what their scores are.
    """

    predictions: list[Prediction]
    max_new_tokens: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    metric: MetricName = "exact"

    def __repr__(self) -> str:
        return f"EvalResult({len(self.predictions)} answers, accuracy={self.accuracy}, counts={self.counts})"

    @property
    def accuracy(self) -> dict[str, float]:
        """Question type → mean score; ``all``: of all that have a reference."""
        return {name: one.share for name, one in shares(self.predictions).items()}

    @property
    def counts(self) -> dict[str, int]:
        """Question type → how many have a reference."""
        return {name: one.n for name, one in shares(self.predictions).items()}

    @property
    def score(self) -> float | None:
        """The mean score of all questions; None where the data has no reference answers."""
        return self.accuracy.get(ALL)

    @property
    def exact_match(self) -> float | None:
        """The share of exact matches; None where there are no reference answers, or it was scored otherwise."""
        return self.score if self.metric == "exact" else None

    @property
    def figures(self) -> dict[str, Estimate]:
        """What else the metric says of all answers: precision, recall, F1 and the share of yes for ``yes_no``."""
        scored = [one for one in self.predictions if one.score is not None]
        return METRICS[self.metric].figures([(one.prediction, one.reference) for one in scored])

    @property
    def controls(self) -> Controls | None:
        """The scores with another picture and without one; None where nobody asked, or nothing is scored."""
        return controls_of(merged(self.predictions))

    @property
    def trained_on(self) -> Estimate | None:
        """Over the questions whose pictures the run was trained on; None: there are none."""
        return shares(self.of(True)).get(ALL)

    @property
    def not_trained_on(self) -> Estimate | None:
        """Over the questions with other pictures: the score to go by. None: there are none, or it isn't known."""
        return shares(self.of(False)).get(ALL)

    @property
    def not_known(self) -> Estimate | None:
        """Over the questions of which it isn't known whether their pictures were trained on; None: there are none."""
        return shares(self.of(None)).get(ALL)

    @property
    def cut(self) -> int:
        """How many answers were cut off at ``max_new_tokens``."""
        return sum(prediction.cut for prediction in self.predictions)

    def of(self, trained: bool | None) -> list[Prediction]:
        """Those that were trained on, weren't, or of which it can't be told."""
        return [one for one in self.predictions if one.trained_on is trained]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the predictions as JSON lines, and the scores and settings beside them as ``.summary.json``.

        Raises:
            UserError: it is no path; or something else is there: not these predictions, or they were changed since.
        """
        if not isinstance(path, str | os.PathLike):
            raise UserError(f"save takes the path of a file, such as 'predictions.jsonl', and this is {shorten(path)}")
        require_free(Path(path), self.settings, "save")
        require_writable(Path(path), "save")
        exact = {"exact_match": self.accuracy} if self.metric == "exact" else {}
        summary: dict[str, Any] = {"metric": self.metric, "score": self.accuracy, **exact, "counts": self.counts}
        summary["cut"] = self.cut
        for name, one in (
            (TRAINED_ON, self.trained_on),
            (NOT_TRAINED_ON, self.not_trained_on),
            (NOT_KNOWN, self.not_known),
        ):
            if one is not None:
                # `right` stands for exact matches alone: a list of runs shows it as such.
                left_out = () if exact else ("right",)
                summary[name] = {key: value for key, value in estimate_json(one).items() if key not in left_out}
        if figures := self.figures:
            summary["figures"] = {name: estimate_json(one) for name, one in figures.items()}
        if controls := self.controls:
            summary["controls"] = controls.to_json()
        write_predictions(self.predictions, {**summary, "settings": dict(self.settings)}, Path(path))


def merged(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions, those that count as one (``circular.py``) merged."""
    groups = as_one([one.circle for one in predictions])
    return [_as_one([predictions[at] for at in group]) if len(group) > 1 else predictions[group[0]] for group in groups]


def _as_one(circle: Sequence[Prediction]) -> Prediction:
    score = worst([one.score for one in circle])
    return replace(
        circle[0],
        score=score,
        correct=None if score is None else all(one.correct for one in circle),
        score_other_picture=worst([one.score_other_picture for one in circle]),
        score_no_picture=worst([one.score_no_picture for one in circle]),
    )


def shares(predictions: Sequence[Prediction]) -> dict[str, Estimate]:
    """By question type, then by other groups, and ``all`` at the end, over the predictions that have a reference."""
    groups: dict[str, list[float]] = defaultdict(list)
    types = {one.question_type for one in predictions}
    for one in merged(predictions):
        if one.correct is not None:
            for name in ({one.question_type, *one.groups} - {"", ALL}) | {ALL}:
                groups[name].append(float(one.correct) if one.score is None else one.score)
    ordered = sorted(groups, key=lambda name: (name == ALL, name not in types, name))
    return {name: estimated(groups[name]) for name in ordered}


def accuracy_table(columns: dict[str, dict[str, float]], counts: dict[str, int]) -> Sheet:
    """A table of shares: a row for each question type, a column for each name."""

    def cells(row: str) -> list[str]:
        return [str(counts[row]), *(f"{values[row]:.3f}" if row in values else "–" for values in columns.values())]

    return _by_type(("n", *columns), counts, cells)


def score_table(result: EvalResult) -> Sheet:
    """The score by question type; where part of it was trained on, that is beside what wasn't."""
    metric = METRICS[result.metric]
    names = {False: "not trained on", None: "not known if trained on", True: "trained on"}
    sides = {name: found for mark, name in names.items() if (found := shares(result.of(mark)))}
    if list(sides) == [names[False]]:
        sides = {metric.title: sides[names[False]]}
    columns = [column for name in sides for column in ("n", name, "95 % interval")]
    table = _by_type(columns, result.counts, lambda row: [x for side in sides.values() for x in _cells(side.get(row))])
    circular = any(one.circle for one in result.predictions)
    order = "; right only if it is right in every order of the options" if circular else ""
    table.title = f"{metric.title}: {metric.meaning}{order}"
    return table


def _by_type(columns: Sequence[str], rows: Iterable[str], cells: Callable[[str], Sequence[str]]) -> Sheet:
    """A row for each question type, and below a line the one of all."""
    table = Sheet(("question type", *columns))
    for row in rows:
        if row == ALL:
            table.end_section()
        table.add(row, *cells(row), style="bold" if row == ALL else "")
    return table


def _cells(one: Estimate | None) -> tuple[str, str, str]:
    return (str(one.n), f"{one.share:.3f}", between(one)) if one is not None else ("0", "–", "–")


def between(one: Estimate) -> str:
    """The interval in words."""
    return "{:.2f} to {:.2f}".format(*one.interval)


def remarks(result: EvalResult) -> Iterator[str]:
    """What belongs below the table, so that nobody reads too much into it."""
    told = result.not_trained_on or result.not_known
    if result.counts and (left_out := sum(one.correct is None for one in result.predictions)):
        of, have = number_of(len(result.predictions), "question"), "has" if left_out == 1 else "have"
        yield f"{left_out:,} of {of} {have} no answer in the data, so what the model said isn't scored"
    for name, one in result.figures.items():
        yield f"{name} {percent(one)}"
    if told is None:
        if result.trained_on is not None:
            yield (
                "all of it was trained on, so this doesn't say how the model does on new pictures; ask about others: "
                "those that the run kept, if it did (--held-out), and in a new run data.held_out=0.1 keeps a tenth"
            )
        told = result.trained_on
    if told is None:
        return
    if told.n < FEW:
        s = "s are" if told.n > 1 else " is"
        yield f"{told.n} answer{s} few: among many more like these, the share may well be {between(told)}"
    words = [word_count(one.reference) for one in result.predictions if one.correct is not None]
    if result.metric == "exact" and (not told.share or sum(words) / len(words) >= _LONG):
        yield (
            "exact match wants the reference word for word, and captions and long answers rarely are; judge those by "
            "the answers in the file below, and by the held-out loss, if the run had evaluations (`basic-lite runs` "
            "shows it)"
        )
