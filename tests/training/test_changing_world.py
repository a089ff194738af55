"""What changes around a run while it goes on: the rights of its folder, its disk, its data file, the clock.

Lost pictures are in ``test_dropped``, a data file that is changed before ``--resume`` in ``test_resume``.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from basic_lite.errors import UserError
from basic_lite.run import train
from basic_lite.tools.clean import clean
from basic_lite.tools.report.page import write_report
from basic_lite.tools.runs import row_of
from basic_lite.training.step import TrainStep
from tests.support.marks import rest_long
from tests.support.rights import enlarge, small_disk, without_roots_rights
from tests.support.runs import (
    LOUD,
    WHOLE,
    assert_same_terms,
    assert_same_weights,
    log_of,
    quiet,
    run,
    steps_of,
    tiny_recipe,
)

CHANGES = {**WHOLE, **LOUD, "training.max_steps": 4, "training.save_every": 1, "training.keep": 2, "lora.dropout": 0.2}
HOURS = 5 * 3600.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run around which nothing changed. Models and data lie beside ``runs``."""
    return run(tmp_path_factory.mktemp("world"), CHANGES)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, event: Callable[[], object]) -> None:
    """Let something happen before a step's gradients."""
    real = TrainStep.gradients

    def gradients(self: TrainStep, *args: Any, **how: Any) -> Any:
        if how["number"] == number:
            event()
        return real(self, *args, **how)

    monkeypatch.setattr(TrainStep, "gradients", gradients)


def goes_on(whole: Path, output: Path) -> None:
    """What has stopped can be resumed, and comes to the same end."""
    part = run(whole.parents[1], {**CHANGES, "output": str(output)}, resume=True)
    assert_same_terms(whole, part, rel=0)
    assert_same_weights(whole / "final", part / "final")
    assert not [path for path in part.iterdir() if path.name.endswith((".part", ".old", ".lock"))]


@pytest.mark.parametrize(
    "what", [pytest.param("the folder", marks=pytest.mark.long), pytest.param("the log", marks=pytest.mark.soak)]
)
def test_rights_that_are_taken(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = tmp_path / "tiny" if what == "the folder" else tmp_path / "tiny" / "log.jsonl"
    saying = {
        "the folder": r"checkpoint-3 could not be saved: Permission denied\. The run's last good checkpoint is "
        r"\S*checkpoint-2; make room or allow writing there, and continue with --resume",
        "the log": r"log.jsonl could not be saved: Permission denied\. Make room or allow writing there, and continue",
    }
    with monkeypatch.context() as patch, without_roots_rights():
        at_step(patch, 3, lambda: path.chmod(path.stat().st_mode & ~0o222))
        with pytest.raises(UserError, match=saying[what]):
            run(whole.parents[1], {**CHANGES, "output": str(tmp_path)})
    path.chmod(path.stat().st_mode | 0o200)
    goes_on(whole, tmp_path)


def test_a_disk_that_fills_up(whole: Path, tmp_path: Path) -> None:
    """A file system of its own. A checkpoint takes 350 kB, and a third one is written before the first goes."""
    with small_disk(tmp_path / "disk", "900k") as disk:
        with pytest.raises(UserError, match=r"the disk is full\. .*[mM]ake room or allow writing there.*--resume"):
            run(whole.parents[1], {**CHANGES, "output": str(disk)})
        enlarge(disk, "9m")
        goes_on(whole, disk)


@pytest.mark.parametrize("step", rest_long(3, 0))
def test_curves_that_cannot_be_written(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """TensorBoard writes in a thread of its own, and raises later what went wrong there."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    printed: list[object] = []
    changes = {**CHANGES, "output": str(tmp_path), "training.trackers": ["tensorboard"]}
    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", printed.append)
        hook = threading.excepthook
        at_step(patch, step, lambda: patch.setattr(RecordWriter, "write", full))
        if not step:
            patch.setattr(RecordWriter, "write", full)
        with pytest.raises(UserError, match=r"tensorboard could not be saved: the disk is full\. Make room .*--resume"):
            run(whole.parents[1], changes)
        assert not printed and threading.excepthook == hook
    goes_on(whole, tmp_path)


@pytest.mark.long
def test_a_data_file_that_is_replaced_changes_nothing_of_the_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.json"
    shutil.copy(whole.parents[1] / "data.json", data)
    source = {"path": str(data), "image_dir": str(whole.parents[1] / "images")}
    changes = {**CHANGES, "output": str(tmp_path), "data.train": source}
    records = json.loads(data.read_text())
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: data.write_text(json.dumps(records[::-1])))
        part = run(whole.parents[1], changes)
    assert_same_terms(whole, part, rel=0)
    assert_same_weights(whole / "final", part / "final")
    shutil.rmtree(part / "final")
    with pytest.raises(UserError, match=r"--resume: the training data isn't what it was"):
        run(whole.parents[1], changes, resume=True)


@pytest.mark.long
def test_a_clock_that_is_set_back(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By five hours in the third step: until then all files and times are of what is the future from there on."""
    real, ahead = time.time, [HOURS]
    place = tmp_path / "tiny"

    def set_back() -> None:
        ahead[0] = 0.0
        for path in [place, *place.rglob("*")]:
            os.utime(path, (path.stat().st_mtime + HOURS,) * 2)

    console = quiet()
    changes = {**CHANGES, "output": str(tmp_path), "training.trackers": ["tensorboard"]}
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + ahead[0])
        patch.setattr(time, "time_ns", lambda: int((real() + ahead[0]) * 1e9))
        at_step(patch, 3, set_back)
        train(tiny_recipe(whole.parents[1], changes), console=console, report=write_report)
    assert_same_terms(whole, place, rel=0)
    assert_same_weights(whole / "final", place / "final")
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"finished: 4 steps in 0:\d\d,", said) and re.search(r"4/4 .* left 0:00\n", said), said
    assert all(0 < line["step_s"] < 60 for line in steps_of(place))
    times = [line["time"] for line in log_of(place) if "time" in line]
    assert all(0 <= seconds < 60 for one in times for seconds in one.values() if isinstance(seconds, float))
    # The newest are kept, though two of them seem to be the oldest.
    kept = ["checkpoint-3", "checkpoint-4"]
    assert sorted(path.name for path in place.glob("checkpoint-*")) == kept and not (place / ".lock").exists()
    assert row_of(place).state == "finished, 4 steps" and "4 steps" in write_report(place).read_text()

    shutil.rmtree(place / "final")
    console = quiet()
    train(tiny_recipe(whole.parents[1], changes), resume=True, console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "checkpoint-4 (step 4)" in said and "was changed" not in said and not list(place.glob("kept*"))
    assert_same_weights(whole / "final", place / "final")
    clean([place], yes=True, console=quiet())
    assert not list(place.glob("checkpoint-*")) and row_of(place).state == "finished, 4 steps"
