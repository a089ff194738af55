"""Shares, their intervals, and what is said below the table."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from basic_lite.console import show
from basic_lite.scoring.metrics.estimate import Share
from basic_lite.scoring.prediction import Prediction
from basic_lite.tools.score import EvalResult, remarks, score_table


def results(*groups: tuple[bool | None, int, int], reference: str = "red") -> EvalResult:
    """Of each group: whether it was trained on, how many are right, and of how many."""
    return EvalResult(
        [
            Prediction(1, "", "", [], "what ?", reference, "x", n < right, trained_on=trained)
            for trained, right, total in groups
            for n in range(total)
        ]
    )


# Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3.
@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_of_the_literature(right: int, n: int, low: float, high: float) -> None:
    assert Share(right, n).interval == pytest.approx((low, high), abs=5e-5)
    mirrored = Share(n - right, n).interval
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_columns_follow_what_is_known() -> None:
    def columns(result: EvalResult) -> list[str]:
        return [name for name in score_table(result).columns if name not in ("question type", "n", "95 % interval")]

    assert columns(results((None, 1, 2))) == ["not known if trained on"]
    assert columns(results((False, 1, 2))) == ["exact match"]
    assert columns(results((True, 1, 2))) == ["trained on"]
    assert columns(results((True, 1, 2), (False, 1, 2))) == ["not trained on", "trained on"]
    assert columns(results((True, 1, 2), (None, 1, 2))) == ["not known if trained on", "trained on"]
    ((cells, _),) = score_table(results((True, 9, 9), (False, 5, 5))).rows
    assert list(cells) == ["all", "5", "1.000", "0.57 to 1.00", "9", "1.000", "0.70 to 1.00"]


@pytest.mark.parametrize("marks", [(True,), (False,), (None,), (True, False)])
def test_the_table_says_what_its_shares_are(marks: tuple[bool | None, ...]) -> None:
    stream = io.StringIO()
    show(Console(file=stream, width=40), score_table(results(*((mark, 1, 2) for mark in marks))))
    assert stream.getvalue().startswith("exact match: the share of answers that are the record's own, word for word\n")


def test_a_type_may_be_on_one_side_only() -> None:
    predictions = [
        Prediction(1, "", "colour", [], "", "red", "red", True, trained_on=True),
        Prediction(2, "", "shape", [], "", "round", "red", False, trained_on=False),
    ]
    rows = [list(cells) for cells, _ in score_table(EvalResult(predictions)).rows]
    assert rows[0][:4] == ["colour", "0", "–", "–"] and rows[1][:3] == ["shape", "1", "0.000"] and rows[2][0] == "all"


def test_remarks_say_few_and_long_and_no_more_than_needed() -> None:
    assert list(remarks(results((False, 20, 40)))) == []
    (few,) = remarks(results((False, 5, 5)))
    assert few == "5 answers are few: among many more like these, the share may well be 0.57 to 1.00"
    assert next(iter(remarks(results((False, 1, 1))))).startswith("1 answer is few")
    for result in (results((None, 0, 40)), results((None, 20, 40), reference="a long text of many words, a caption")):
        (only,) = remarks(result)
        assert only.startswith("exact match wants the reference word for word")
    assert list(remarks(EvalResult([]))) == []


def test_questions_without_an_answer_are_counted() -> None:
    """They were left out of the score, and nobody said so."""
    asked = Prediction(1, "", "", [], "", "", "red", None)
    (said,) = remarks(EvalResult([*results((False, 20, 40)).predictions, asked, asked]))
    assert said == "2 of 42 questions have no answer in the data, so what the model said isn't scored"
    (said, *_) = remarks(EvalResult([*results((False, 1, 1)).predictions, asked]))
    assert said.startswith("1 of 2 questions has no answer in the data, ")
    assert list(remarks(EvalResult([asked]))) == []  # the table's place says it
