"""Where a run says its time goes: the parts add up, the key fits, and measuring changes no bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.model.parts import find_parts
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.training import breakdown, time_use
from basic_lite.training.breakdown import Breakdown, Clock
from basic_lite.training.differences import differences
from basic_lite.training.log import RunLog
from basic_lite.training.processes import ALONE
from basic_lite.training.time_use import (
    ANSWERING,
    BACKWARD,
    BASIC,
    DATA,
    EVALUATING,
    FORWARD,
    IDLE,
    OPTIMIZER,
    SAVING,
    TOWER,
    TimeUse,
)
from tests.support import supervision as kit
from tests.support.runs import log_of, quiet, tiny_recipe, weights_of

torch.set_num_threads(1)

CHANGES = {"training.max_steps": 9, "training.save_every": 9, "lora.dropout": 0.1}
OWN = (DATA, TOWER, FORWARD, BACKWARD, BASIC, OPTIMIZER, IDLE)  # the parts of a step itself


class Hand:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a run that measured three of its steps, and of one that measured none."""
    folder = tmp_path_factory.mktemp("time_use")
    runs = []
    for name, last_one_measured in (("with", 3), ("without", 10**9)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time_use, "STEPS", last_one_measured)
            train(tiny_recipe(folder, {**CHANGES, "name": name}), console=quiet())
        runs.append(folder / "runs" / name)
    return runs[0], runs[1]


def time_lines(run: Path) -> list[dict[str, Any]]:
    return [line["time"] for line in log_of(run) if "parts_s" in line.get("time", {})]


def test_the_parts_are_the_step(measured: tuple[Path, Path]) -> None:
    (line,) = time_lines(measured[0])
    parts = line["parts_s"]
    assert line["steps"] == {"first": 5, "last": 7}
    assert sum(parts[part] for part in OWN) == pytest.approx(line["step_s"], rel=0.05)
    assert min(parts[part] for part in OWN) > 0
    assert parts[BACKWARD] > parts[TOWER] and parts[FORWARD] > parts[TOWER]
    # Each step's own line has its time without what comes after it.
    own = [one["step_s"] for one in log_of(measured[0]) if "step_s" in one and 5 <= one["step"] <= 7]
    assert sum(own) / 3 == pytest.approx(line["step_s"], rel=0.05)
    whole = next(one["time"] for one in log_of(measured[0]) if "whole_s" in one.get("time", {}))
    assert 0 < whole["saving_s"] < whole["whole_s"]


@pytest.mark.long
def test_an_evaluation_after_each_step_is_no_part_of_the_steps(tmp_path: Path) -> None:
    data = {"path": str(tmp_path / "data.json"), "image_dir": str(tmp_path / "images")}
    changes = {"data.eval": data, "training.eval_every": 1, "supervision.refinement_batches": 1}
    train(tiny_recipe(tmp_path, CHANGES | changes), console=quiet())
    lines = log_of(tmp_path / "runs" / "tiny")
    (line,) = time_lines(tmp_path / "runs" / "tiny")
    parts, own = line["parts_s"], [one["step_s"] for one in lines if "step_s" in one and 5 <= one["step"] <= 7]
    assert parts[EVALUATING] > 0.3 * line["step_s"], "it must be felt where it is counted twice"
    assert sum(parts[part] for part in OWN) == pytest.approx(line["step_s"], rel=0.05)
    assert sum(own) / 3 == pytest.approx(line["step_s"], rel=0.05)
    # All that the run evaluated is a step's mean, as many times as there were steps.
    whole = next(one["time"] for one in lines if "whole_s" in one.get("time", {}))
    assert 7 * parts[EVALUATING] < whole["evaluating_s"] < whole["whole_s"]


@pytest.mark.parametrize("broken_off", [False, True], ids=["whole", "broken off"])
def test_the_model_is_not_timed_beside_the_steps(tmp_path: Path, broken_off: bool) -> None:
    hand = Hand()
    watch, log = Breakdown(Clock(torch.device("cpu"), hand)), RunLog(tmp_path / "log.jsonl", ALONE)
    use = TimeUse(watch, find_parts(kit.tiny_llava()), tiny_recipe(tmp_path), log, print, first=0, last=7)
    search = watch.wrap(breakdown.SDS, lambda: setattr(hand, "seconds", hand.seconds + 3.0))
    taken: dict[str, float] = {}
    for number in range(1, 8):
        with use.step(number):
            watch.base(breakdown.OPTIMIZER)
            hand.seconds += 0.6
            with use.apart(EVALUATING):
                watch.base(breakdown.OTHER)  # as the model's hooks do
                search()
                watch.enter(breakdown.LLM)
                hand.seconds += 2.0
                watch.leave()
                watch.base(breakdown.MEASURES)
                hand.seconds += 1.0
                if broken_off and number == 6:
                    use.drop()
            hand.seconds += 0.1
            if number == 6:
                taken = watch.take() if watch.running else {}
    expected = {EVALUATING: 12_000.0, breakdown.OPTIMIZER: 1_200.0, breakdown.BETWEEN: 200.0}
    assert taken == pytest.approx({} if broken_off else expected)


def test_measuring_changes_no_bit(measured: tuple[Path, Path]) -> None:
    with_it, without = measured
    assert not time_lines(without)
    terms = [[{k: v for k, v in line.items() if k in ("step", "loss", "lm", "das", "sds")} for line in log_of(run)
              if "loss" in line] for run in measured]  # fmt: skip
    assert terms[0] == terms[1] and len(terms[0]) == 9
    first, second = weights_of(with_it / "final"), weights_of(without / "final")
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_steps_are_measured_again_and_a_step_that_breaks_off_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_use, "AGAIN_AFTER", 10)
    monkeypatch.setattr(time_use, "SHORT_S", -1.0)
    hand, said = Hand(), []
    watch, log = Breakdown(Clock(torch.device("cpu"), hand)), RunLog(tmp_path / "log.jsonl", ALONE)
    recipe = tiny_recipe(tmp_path, {"data.workers": 2})
    use = TimeUse(watch, find_parts(kit.tiny_llava()), recipe, log, said.append, first=100, last=127)
    for number in range(101, 128):
        with use.step(number):
            with use.reading():
                hand.seconds += 0.3
            watch.base(breakdown.OPTIMIZER)
            hand.seconds += 0.6
            watch.base(breakdown.BETWEEN)
            hand.seconds += 0.1
            if number == 116:
                use.drop()
        if number == 104:
            assert not watch.running
    lines = time_lines(tmp_path)
    assert [line["steps"]["first"] for line in lines] == [105, 125]
    assert lines[0]["parts_s"] | {"saving": 0.0, "evaluating": 0.0, "answering": 0.0} == pytest.approx(
        dict.fromkeys((TOWER, FORWARD, BACKWARD, BASIC, SAVING, EVALUATING, ANSWERING), 0.0)
        | {DATA: 0.3, OPTIMIZER: 0.6, IDLE: 0.1}
    )
    assert len(said) == 1, "the same key is named once"


RECIPE: dict[str, Any] = {"training.gradient_checkpointing": True, "data.workers": 2}


@pytest.mark.parametrize(
    ("parts", "changes", "cores", "found"),
    [
        ({DATA: 31, BACKWARD: 69}, {}, 16, "the GPU waits 31% for pictures: set data.workers=3"),
        ({DATA: 50, BACKWARD: 50}, {"data.workers": 0}, 16, "the GPU waits 50% for pictures: set data.workers=1"),
        ({DATA: 75, BACKWARD: 25}, {"data.workers": 0}, 16, "set data.workers=3"),
        ({DATA: 80, BACKWARD: 20}, {"data.workers": 4}, 16, "set data.workers=16"),
        ({DATA: 80, BACKWARD: 20}, {}, 2,
         "2 workers use the 2 cores there are: set data.jpeg_draft=true for large JPEGs"),
        ({DATA: 80, BACKWARD: 20}, {"data.jpeg_draft": True}, 2,
         "2 workers use the 2 cores there are: make the picture files smaller"),
        ({DATA: 75, BACKWARD: 25}, {"data.jpeg_draft": True}, 16, "set data.workers=8"),
        ({DATA: 6, SAVING: 20, BACKWARD: 74},
         {"training.save_every": 50}, 8, "saving takes 20%: set training.save_every=500"),
        ({EVALUATING: 20, BACKWARD: 80}, {"training.eval_every": 50}, 8,
         "take 20%: set training.eval_every=100"),
        ({EVALUATING: 20, SAVING: 30, BACKWARD: 50}, {"training.eval_every": 10_000, "training.save_every": 10_000}, 8,
         "nothing waits; the backward computes layers again, to save memory: "
         "training.plan=auto does as little of it as fits"),
        ({BASIC: 12, BACKWARD: 88}, {}, 8, "BASIC takes 12%: set supervision.sds_tokens=64"),
        ({BASIC: 12, BACKWARD: 88}, {"supervision.sds_tokens": 2}, 8,
         "BASIC takes 12%: set supervision.every_n_steps=2"),
        ({OPTIMIZER: 30, BACKWARD: 70}, {}, 8,
         "the optimizer takes 30%: set training.global_batch higher, for fewer steps"),
        ({IDLE: 30, BACKWARD: 70}, {}, 8, "the GPU waits 30% between steps: set training.log_every higher"),
        ({BACKWARD: 70, FORWARD: 30}, {}, 8,
         "nothing waits; the backward computes layers again, to save memory: "
         "training.plan=auto does as little of it as fits"),
    ],
)  # fmt: skip
def test_the_key_that_changes_most(
    tmp_path_factory: pytest.TempPathFactory, parts: dict[str, float], changes: dict[str, Any], cores: int, found: str
) -> None:
    recipe: Recipe = tiny_recipe(tmp_path_factory.getbasetemp() / "time_use_keys", {**RECIPE, **changes})
    text, key = time_use.time_text(parts, recipe, steps=10_000, on_gpu=True, cores=cores)
    now = text.removesuffix(" in the next run (this one keeps it)")
    assert now.endswith(found)
    if given := re.search(r"set (\S+)=(\w+)", found):
        changed = changed_recipe(recipe, {given[1]: json.loads(given[2])})
        assert (now != text) is bool(differences(recipe, changed)), "a run that goes on takes what changes nothing"
    assert (not key and "nothing waits" in text) or key in text or key == "pictures"
