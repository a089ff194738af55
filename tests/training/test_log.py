"""``log.jsonl`` as the loop uses it: what it knows of its lines without reading them again, and what it keeps."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import pytest

from basic_lite.training import log as module
from basic_lite.training.log import RunLog
from basic_lite.training.log_lines import whole_lines
from basic_lite.training.processes import ALONE


def test_it_answers_as_the_file_does_and_never_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        (0, {"eval_loss": 5.0}),
        (1, {"loss": 4.0}),
        (2, {"loss": 3.5}),
        (2, {"eval_loss": 3.0}),
        (2, {"gate": {}}),
    ]
    before = RunLog(path, ALONE)
    for step, values in [*lines, (3, {"loss": 9.0, "eval_loss": 9.0})]:
        before.write(step, values)
    with path.open("a") as stream:
        stream.write('{"step": "x", "eval_loss": "y"}\n{"step": 4, "lo')
    after = RunLog(path, ALONE)
    after.keep_until(2)
    after.write(3, {"loss": 3.0, "gate": {}})
    assert after.history() == [{"step": 3, "loss": 3.0, "gate": {}}]
    assert after.values("loss") == [(1, 4.0), (2, 3.5), (3, 3.0)]

    def refuse(*_: object) -> None:
        raise AssertionError("it was read again")

    for name in ("json_lines", "whole_lines"):
        monkeypatch.setattr(module, name, refuse)
    assert after.values("eval_loss") == [(0, 5.0), (2, 3.0)] and before.values("eval_loss")[-1] == (3, 9.0)
    assert after.has(3, "gate") and after.has(3, "loss") and not after.has(3, "eval_loss") and not after.has(4, "gate")


@pytest.mark.parametrize("name", ["eval_loss", "gate", "loss", "other"])
def test_what_a_resumed_run_asks_first(tmp_path: Path, name: str) -> None:
    """Whether the step that it goes on from was evaluated and looked at."""
    path = tmp_path / "log.jsonl"
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}, {"step": 2, "gate": {}}, {"step": 1, "other": 2}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = RunLog(path, ALONE)
    log.keep_until(2)
    assert log.has(2, name) == any(line["step"] == 2 and name in line for line in lines)
    assert not log.has(3, name) and list(whole_lines(path)) == lines and log.history() == []


def test_lines_are_not_kept_in_memory(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", ALONE)
    levels = []
    for step in range(1, 601):
        log.write(step, {f"value_{number}": step / 7 for number in range(20)})
        if step in (100, 600):
            gc.collect()
            levels.append(sys.getallocatedblocks())
    assert levels[1] - levels[0] < 500 and len(log.history()) == 600, "one block a line would be 500"
