"""The page's verdict on answers: the held-out score, and whether the model looks at the picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from basic_lite.scoring.looking import controls_of
from basic_lite.scoring.metrics.named import METRICS
from basic_lite.scoring.prediction import Prediction
from basic_lite.tools.report.scores import score_charts, verdict_of
from basic_lite.tools.score import EvalResult
from basic_lite.training.held_out_score import Scored
from basic_lite.training.log_lines import read_log


def predictions(right: int, other: int, none: int, of: int = 40) -> list[Prediction]:
    return [
        Prediction(
            i + 1, "", "", ["p.png"], "q", "a", "a", i < right, trained_on=False, score=float(i < right),
            other_picture="b", no_picture="b", score_other_picture=float(i < other), score_no_picture=float(i < none),
        )
        for i in range(of)
    ]  # fmt: skip


def look(step: int, right: int, other: int, none: int) -> dict[str, Any]:
    """A line of the log, as a run writes it and as it is read again."""
    line = {"step": step, **Scored(METRICS["exact"], predictions(right, other, none)).record()}
    return dict(json.loads(json.dumps(line)))


def evaluated(
    run: Path, step: int, right: int, other: int, *, data: str = "held-out", of: int = 60, known: int = 0
) -> None:
    """``known``: so many of the questions, from the first, are trained on."""
    made = [replace(one, trained_on=at < known) for at, one in enumerate(predictions(right, other, 20, of))]
    settings = {"data": data, "step": step, "model_sha256": str(step)}
    EvalResult(made, 8, settings, "exact").save(run / f"predictions_{Path(data).stem}_{step}.jsonl")


def write_known(run: Path, met: int) -> None:
    """What a run notes of the 20 pictures of its held-out data."""
    told = {"of": {"pictures": [met, 20]}, "known": True}
    (run / "data.json").write_text(json.dumps({"eval": {"trained_on": told}}))


def test_the_last_look_with_its_controls_in_the_words_of_eval(tmp_path: Path) -> None:
    log = [look(10, 10, 10, 9), {"step": 11, "lm": 2.0}, look(20, 32, 12, 10)]
    write_known(tmp_path, 0)
    verdict = verdict_of(tmp_path, log)
    assert verdict is not None
    (score, looks) = verdict.cards()
    assert score == ("Held-out score", "80\u00a0% [65, 90]", "exact match, 40 held-out questions, step 20")
    assert looks[:2] == (
        "Does it look at the picture?",
        "80\u00a0%; 30\u00a0% with another picture; 25\u00a0% without one",
    )
    controls = controls_of(predictions(32, 12, 10))
    assert controls is not None and looks[2] == "; ".join([*list(controls.lines())[1:], next(controls.lines())])
    assert looks[2].startswith("it looks at the picture: its own one is worth +50 points")


def test_eval_counts_where_it_is_of_the_same_weights_or_later_ones(tmp_path: Path) -> None:
    log = [look(10, 20, 20, 20)]
    evaluated(tmp_path, 5, 50, 10)
    assert verdict_of(tmp_path, log).step == 10  # type: ignore[union-attr]
    evaluated(tmp_path, 10, 30, 29)
    verdict = verdict_of(tmp_path, log)
    assert verdict is not None and (verdict.step, verdict.score.n) == (10, 60), "it has more questions"
    told = list(verdict.cards())[1][2]
    assert told.startswith("it may not look at the picture")
    evaluated(tmp_path, 20, 59, 0, data="/data/other.json")
    assert verdict_of(tmp_path, log).step == 10  # type: ignore[union-attr]
    alone = verdict_of(tmp_path, [])
    assert alone is not None and alone.of == "held-out questions"


def test_questions_that_were_trained_on_are_told_and_others_are_preferred(tmp_path: Path) -> None:
    log = [look(10, 40, 20, 20), {"step": 20, "lm": 2.0}]
    write_known(tmp_path, 20)
    verdict = verdict_of(tmp_path, log)
    told = "exact match, 40 held-out questions (20 of 20 pictures trained on), step 10"
    assert verdict is not None and next(verdict.cards())[2] == told
    ((_, chart),) = score_charts(tmp_path, log)
    assert "held-out questions (20 of 20 pictures trained on); at step 10" in chart.says
    # All of it trained on: as little worth. Of the first 20 trained on: the other 40 count.
    evaluated(tmp_path, 20, 60, 20, known=60)
    verdict = verdict_of(tmp_path, log)
    assert verdict is not None and next(verdict.cards())[2] == "exact match, 60 held-out questions, trained on, step 20"
    evaluated(tmp_path, 5, 40, 20, data="/data/new.json", known=20)
    verdict = verdict_of(tmp_path, log)
    assert verdict is not None and verdict.new and verdict.score.share == 0.5
    score, looks = verdict.cards()
    assert score[2] == "exact match, 40 questions of new.json, step 5" and looks[2].endswith("; of all 60 questions")


def test_an_evaluation_without_reference_answers_is_passed_over(tmp_path: Path) -> None:
    made = [replace(one, score=None, correct=None) for one in predictions(1, 1, 1)]
    EvalResult(made, 8, {"data": "/data/asked.json", "step": 20}).save(tmp_path / "predictions_asked_20.jsonl")
    assert verdict_of(tmp_path, []) is None
    evaluated(tmp_path, 10, 30, 29)
    assert verdict_of(tmp_path, []).step == 10  # type: ignore[union-attr]


def test_other_questions_are_named_where_there_are_no_held_out_ones(tmp_path: Path) -> None:
    evaluated(tmp_path, 20, 59, 0, data="/data/other.json")
    verdict = verdict_of(tmp_path, [])
    assert verdict is not None
    assert next(verdict.cards())[::2] == ("Score", "exact match, 60 questions of other.json, step 20")
    # Trained on: to call that score held-out would be false.
    evaluated(tmp_path, 30, 1, 0, data="/data/questions.json", of=1, known=1)
    (tmp_path / "predictions_other_20.summary.json").unlink()
    verdict = verdict_of(tmp_path, [])
    assert verdict is not None
    assert next(verdict.cards())[::2] == ("Score", "exact match, 1 question of questions.json, trained on, step 30")


def test_the_curve_has_all_three_with_intervals(tmp_path: Path) -> None:
    ((title, chart),) = score_charts(tmp_path, [look(10, 10, 10, 9), look(20, 32, 12, 10)])
    assert title == "Held-out score" and [line.name for line in chart.lines] == [
        "own picture",
        "another picture",
        "no picture",
    ]
    assert [list(line.points) for line in chart.lines] == [
        [(10, 0.25), (20, 0.8)],
        [(10, 0.25), (20, 0.3)],
        [(10, 0.225), (20, 0.25)],
    ]
    for line in chart.lines:
        for (_, y), bar in zip(line.points, line.bars, strict=True):
            assert bar is not None and bar[0] < y < bar[1]
    assert "It looks at the picture" in chart.says and chart.svg().count("<circle") == 6


@pytest.mark.parametrize(
    "generated",
    [
        3,
        [],
        {},
        {"metric": "exact"},
        {"metric": "exact", "score": {"n": 0, "share": 1, "interval_95": [0, 1]}},
        {"metric": "exact", "score": {"n": "x"}},
        {"metric": "exact", "score": {"n": 1e999, "share": 1}},
        {"metric": "exact", "score": {"n": 2, "right": 3, "share": 1, "interval_95": [0, 1]}},
        {"metric": "exact", "score": {"n": 2, "share": 1, "interval_95": 4}},
    ],
)
def test_lines_that_somebody_changed_are_passed_over(tmp_path: Path, generated: Any) -> None:
    (tmp_path / "predictions_x.summary.json").write_text(json.dumps(generated))
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 4, "generated": generated}) + "\n")
    read = read_log(tmp_path)
    assert read.damaged == 1 and verdict_of(tmp_path, read.rare) is None
