"""Scores that stand in a run's folder: which of them are shown, and with which interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from basic_lite.tools.report.scores import verdict_of
from basic_lite.tools.runs import row_of
from basic_lite.training.files import sha256
from basic_lite.training.log_lines import read_log
from basic_lite.training.places import MANIFEST

SHARE = {"right": 30, "n": 40, "share": 0.75, "interval_95": [0.6, 0.86]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three steps, as far as its files say."""
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / MANIFEST).write_text('{"step": 3}')
    (tmp_path / "log.jsonl").write_text('{"step": 3, "lm": 2.0}\n')
    return tmp_path


def write_summary(run: Path, **summary: Any) -> None:
    (run / "predictions_a_final.summary.json").write_text(json.dumps(summary))


def test_scores_of_a_checkpoint_between_two_lines_of_the_log_are_shown(run: Path) -> None:
    """As after Ctrl-C: not every step has a line."""
    (run / "checkpoint-5").mkdir()
    manifest = run / "checkpoint-5" / MANIFEST
    manifest.write_text('{"step": 5}')
    settings = {"step": 5, "data": "a", "bundle": "checkpoint-5", "model_sha256": sha256(manifest)}
    write_summary(run, metric="exact", not_trained_on=SHARE, settings=settings)
    assert "exact match 75.0%" in row_of(run).score


@pytest.mark.parametrize(
    ("changed", "shown"),
    [({}, True), ({"step": 4}, False), ({"model_sha256": "x"}, False), ({"bundle": "checkpoint-9"}, True)],
)
def test_scores_of_weights_that_are_no_more_are_not_shown(run: Path, changed: dict[str, Any], shown: bool) -> None:
    """A run that went back has later steps' answers beside it, and those of a step that was made again."""
    settings = {"step": 3, "data": "a", "bundle": "final", "model_sha256": sha256(run / "final" / MANIFEST)}
    write_summary(run, metric="exact", not_trained_on=SHARE, settings=settings | changed)
    assert ("exact match 75.0% [60%, 86%] of 40 not" in row_of(run).score) is shown
    assert (verdict_of(run, read_log(run).rare) is not None) is shown


def test_every_score_has_its_interval(run: Path) -> None:
    settings = {"data": "/x/charts.json"}
    part = {"n": 12, "share": 0.5, "interval_95": [0.25, 0.75]}
    write_summary(run, metric="relaxed", score={"all": 0.4}, counts={"all": 20}, not_known=part, settings=settings)
    assert row_of(run).score == "relaxed 50.0% [25%, 75%] of 12 not known if trained on (charts.json)"
    write_summary(run, exact_match={"all": 0.75}, counts={"all": 40}, settings=settings)  # of an older version
    assert row_of(run).score == "exact match 75.0% [60%, 86%] of 40 not known if trained on (charts.json)"


@pytest.mark.parametrize(
    "summary",
    [
        {"metric": "relaxed", "not_known": {"n": 1e999}, "score": {"all": 10**400}, "counts": {"all": 2}},
        {"exact_match": {"all": 10**400}, "counts": {"all": 2}},
        {"exact_match": {"all": 7.0}, "counts": {"all": 2}},
        {"not_trained_on": {"right": 3, "n": 2}},
    ],
)
def test_odd_scores_are_left_out(run: Path, summary: dict[str, Any]) -> None:
    write_summary(run, **summary)
    assert row_of(run).score == "" and verdict_of(run, []) is None
