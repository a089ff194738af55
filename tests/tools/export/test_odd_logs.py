"""An export whose run has a log with lines that no run has written: nothing in it stops the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from basic_lite.tools.export.card import _measured, hub_name
from basic_lite.tools.export.command import export
from tests.support.bundles import random_run
from tests.support.runs import quiet

pytestmark = pytest.mark.long

GOOD: list[dict[str, Any]] = [
    {"step": 2, "step_s": 30.0, "peak_memory_gib": 1.5, "eval_loss": 3.25},
    {"step": 4, "step_s": 30.0, "peak_memory_gib": 1.25},
]
ODD: list[Any] = [
    {"step": None}, {"step": "x"}, {"step": -1, "step_s": 1.0}, {"step": True, "eval_loss": 1.0}, {"eval_loss": 1.0},
    {"step": 1, "eval_loss": "x"}, {"step": 1, "eval_loss": [1]}, {"step": 1, "refinement": [1]}, "x", 3, None, [1],
    {"step": 1, "refinement": {"score": [1]}}, {"step": 1, "refinement": "x"}, {"step": 1, "step_s": "x"},
    {"step": 1, "step_s": float("nan")}, {"step": 1, "step_s": 1.0, "peak_memory_gib": float("inf")},
    {"step": 1, "step_s": 1.0, "peak_memory_gib": "x"}, {"step": 1, "step_s": None},
]  # fmt: skip


def write_log(run: Path, lines: list[Any]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')


@pytest.mark.parametrize("place", range(len(ODD)))
def test_an_odd_line_changes_no_figure(tmp_path: Path, place: int) -> None:
    write_log(tmp_path, GOOD)
    expected = _measured(tmp_path, 4, None)
    assert expected == [
        ("LM loss on `data.eval`, at step 4", "3.2500"),
        ("time of the steps", "2.0 min"),
        ("peak memory", "1.50 GiB"),
    ]
    write_log(tmp_path, [GOOD[0], ODD[place], GOOD[1]])
    damaged = ("the run's log", "1 line of log.jsonl is damaged and left out")
    assert _measured(tmp_path, 4, None) == [*expected, damaged]


def test_where_a_gate_judged_the_curve_has_no_verdict(tmp_path: Path) -> None:
    """Half of the curve's samples chose the target, so it is too good: the card says what the gate found."""
    curve = {"places": ["v", "target"], "own": [0.1, 0.13], "control": [0.05, 0.05], "samples": 64, "patches": 640}
    curve |= {"score": [0.05, 0.08], "gains": [[0.03, 0.006, 0.06]]}
    write_log(tmp_path, [{"step": 2, "refinement": curve}])
    assert [text for _, text in _measured(tmp_path, 4, None) if text.endswith("over 64 samples: holds")]
    look = {
        "open": False,
        "verdict": "can't tell",
        "v": 0.05,
        "target": 0.06,
        "gain": [0.01, -0.02, 0.04],
        "samples": 32,
    }
    write_log(tmp_path, [{"step": 2, "refinement": curve, "gate": look}])
    rows = _measured(tmp_path, 4, None)
    assert not any(text.endswith(": holds") for _, text in rows)
    found = "gain of v̂ over v +0.010 [-0.020, +0.040] over 32 samples, step 2: can't tell"
    assert ("whether it holds, by the samples that decide", found) in rows


def test_steps_that_say_nothing_of_their_memory(tmp_path: Path) -> None:
    write_log(tmp_path, [{"step": 2, "step_s": 1.0}])
    measured = dict(_measured(tmp_path, 4, None))
    assert measured["time of the steps"] == "0.0 min" and "peak memory" not in measured


def test_an_export_is_finished_whatever_the_log_holds(tmp_path: Path) -> None:
    run = random_run(tmp_path)
    write_log(run, [*ODD, *GOOD, {"step": 4, "step_s": 1.0}])
    assert export(run, tmp_path / "out", samples=0, console=quiet())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "3.2500" in card and f"{len(ODD)} lines of log.jsonl are damaged and left out" in card


def test_the_name_to_publish_under_is_one_that_the_hub_takes() -> None:
    """It was the folder's, with spaces and all."""
    assert [hub_name(one) for one in ("llava_1.5", "out é 🐱 2", "模型")] == ["llava_1.5", "out-2", "NAME"]
