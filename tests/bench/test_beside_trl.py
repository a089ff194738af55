"""The comparison with TRL: all of it where TRL is installed, else our half of it and what it says without TRL."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from basic_lite.data.prepare import prepare_data
from basic_lite.model.frontend import load_frontend
from tests.support.shapes import SIZES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def beside_trl(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import beside_trl

    return beside_trl


def test_without_trl_it_says_what_to_install(
    beside_trl: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert beside_trl.main(["--tiny"]) == 2
    assert "pip install trl" in capsys.readouterr().err


def test_samples_are_as_long_as_the_task_says(beside_trl: Any, tmp_path: Path) -> None:
    task = beside_trl.Task(tmp_path, "toy", 80, steps=4)
    beside_trl.write_task(task)
    recipe = task.recipe(tmp_path / "runs")
    frontend = load_frontend(recipe.model)
    assert frontend.tokens_per_image == SIZES[task.size].tower.tokens_per_image == 16
    data = prepare_data(recipe, frontend, say=lambda line: None)
    lengths = sorted(data.report.lengths)
    # Two of sixteen are shorter; none is cut, none holds an unknown word.
    assert lengths[2:] == [task.tokens] * 14 and lengths[1] < task.tokens
    for sample in (data.train[0], data.train[1]):
        assert sample["input_ids"][-1] == frontend.tokenizer.eos_token_id == sample["labels"][-1]
        assert frontend.tokenizer.unk_token_id not in sample["input_ids"]


@pytest.mark.long
def test_our_side_is_measured(beside_trl: Any, tmp_path: Path) -> None:
    task = beside_trl.Task(tmp_path, "toy", 80, steps=beside_trl.WARM_UP + 2)
    beside_trl.write_task(task)
    run = beside_trl.train_apart("basic-lite", task, tmp_path / "ours")
    # Warm-up and the last step, whose memory is recorded, are not timed.
    assert len(run.step_ms) == 1 and run.step_ms[0] > 0
    assert len(run.losses) == task.steps
    # Step 1 has the first four rows that TRL is given.
    rows = json.loads(task.rows.read_text(encoding="utf-8"))
    assert run.labelled == sum(len(row["completion"].removesuffix("</s>").split()) + 1 for row in rows[:4])
    assert run.labelled < run.tokens <= 4 * task.tokens
    # Held: at least the trained weights with AdamW's two moments; in a step: at least their gradients on top.
    assert run.resident_bytes > run.held_bytes > 3 * 4 * run.trained and run.tensor_bytes > 4 * run.trained

    other = dataclasses.replace(run, who="TRL")
    assert beside_trl.differences([run, other], "cpu") == []
    wrong = dataclasses.replace(other, labelled=run.labelled + 1, losses=[run.losses[0] * 1.01, *run.losses[1:]])
    found = beside_trl.differences([run, wrong], "cpu")
    assert len(found) == 2 and "labelled" in found[0] and "loss of step 1" in found[1]
    assert beside_trl.differences([run, dataclasses.replace(other, losses=run.losses[:-1])], "cpu")


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL isn't installed: pip install trl")
def test_both_sides_train_the_same(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "bench.beside_trl", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loss of step 5" in done.stdout and "at least as fast" in done.stdout
    (found,) = tmp_path.glob("*.json")
    result = json.loads(found.read_text(encoding="utf-8"))
    assert result["same_task"] and [run["who"] for run in result["runs"]] == ["basic-lite", "TRL"]
