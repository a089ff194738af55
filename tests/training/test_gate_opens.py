"""Whole runs with nothing replaced, in a made world where BASIC helps: its gate opens, it trains, the gate shuts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.errors import OutOfMemory, UserError
from basic_lite.run import train
from basic_lite.training.bundle_files import TRAINING
from basic_lite.training.evaluation import Evaluation
from basic_lite.training.gate import Gate
from basic_lite.training.look_lines import GateLook, looks_in
from tests.support.helping import helping_recipe, write_helping_world
from tests.support.runs import assert_same_weights, log_of, quiet, steps_of

STEPS = 12
LOOKS = {"data.held_out": 0.2, "training.eval_every": 2, "training.max_steps": STEPS}
# At this rate the projector is soon so good that v̂ is no better than v.
FAST = {"training.projector_learning_rate": 5e-3, "lora.dropout": 0.1, "training.save_every": 1, "training.keep": 99}
OFF = {"supervision.enabled": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_helping_world(tmp_path_factory.mktemp("helping"), noise=0.08)


def gate_and_steps(run: Path) -> tuple[list[GateLook], list[dict[str, Any]]]:
    steps = [{key: line[key] for key in ("step", "lm", "das", "sds") if key in line} for line in steps_of(run)]
    return looks_in(log_of(run)), steps


def kept_of_the_gate(run: Path) -> dict[str, Any]:
    """By its last checkpoint."""
    training = json.loads((run / f"checkpoint-{STEPS}" / TRAINING).read_text())
    state: dict[str, Any] = training["progress"]["gate"]
    return state


def losses(run: Path) -> list[float]:
    """Of the held-out samples, at each evaluation."""
    return [line["eval_loss"] for line in log_of(run) if "eval_loss" in line]


@pytest.mark.long
def test_it_opens_where_basic_helps_and_shuts_where_it_no_longer_does(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = quiet()
    whole = train(helping_recipe(world, LOOKS | FAST | {"name": "whole"}), console=console).folder
    looks, steps = gate_and_steps(whole)
    first, shut = looks[0], next(look for look in looks if not look.open)
    assert first.open and first.gain is not None and first.again is not None and first.change is not None
    assert first.gain.low > 0 and first.again.low > 0 and first.change.high < 0
    assert 0 < shut.step < STEPS
    assert [step["step"] for step in steps if "das" in step] == list(range(1, shut.step + 1))
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "and its pull lowers the loss: -" in text and f"step {shut.step}: BASIC is off again" in text

    def cut_back(to: int) -> Path:
        """A copy of the run that was killed after this step."""
        part = whole.with_name("part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(whole, part)
        for bundle in [part / "final", *(part / f"checkpoint-{step}" for step in range(to + 1, STEPS + 1))]:
            shutil.rmtree(bundle)
        return part

    def goes_on(part: Path) -> None:
        train(helping_recipe(world, LOOKS | FAST | {"name": "part"}), resume=True, console=quiet())
        assert_same_weights(part / "final", whole / "final")
        assert gate_and_steps(part)[1] == steps
        assert kept_of_the_gate(part) == kept_of_the_gate(whole)

    # From a checkpoint where BASIC was on, and from one where it was off, the run goes on bit for bit.
    for begins in (shut.step - 1, shut.step + 1):
        goes_on(cut_back(begins))

    # So it does from one whose evaluation, and with it the look that shuts the gate, isn't made yet.
    part, make = cut_back(shut.step - 1), Evaluation.make

    def broken(self: Evaluation, step: int) -> None:
        if step == shut.step:
            raise OutOfMemory("in the evaluation", "")
        make(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "make", broken)
        with pytest.raises(UserError, match="out of memory in the evaluation"):
            train(helping_recipe(world, LOOKS | FAST | {"name": "part"}), resume=True, console=quiet())
    assert (part / f"checkpoint-{shut.step}").is_dir()
    goes_on(part)


@pytest.mark.long
def test_what_the_trial_promises_is_what_training_gives(world: Path) -> None:
    on = train(helping_recipe(world, LOOKS | {"name": "on"}), console=quiet()).folder
    off = train(helping_recipe(world, LOOKS | OFF | {"name": "off"}), console=quiet()).folder
    assert all(look.open for look in looks_in(log_of(on)))
    assert all(a < b for a, b in zip(losses(on), losses(off), strict=True))
    assert losses(on)[-1] < losses(off)[-1] - 0.03


@pytest.mark.long
def test_a_pull_that_raises_the_loss_is_refused_although_the_premise_holds(tmp_path: Path) -> None:
    folder = write_helping_world(tmp_path, noise=0.2)
    short = LOOKS | {"training.max_steps": 2}
    run = train(helping_recipe(folder, short | {"name": "run"}), console=quiet())
    first = looks_in(log_of(run.folder))[0]
    assert first.verdict == "holds" and not first.open
    assert first.change is not None and first.change.low > 0
    assert_same_weights(
        run.bundle, train(helping_recipe(folder, short | OFF | {"name": "off"}), console=quiet()).bundle
    )


@pytest.mark.long
def test_a_look_for_which_there_is_no_memory_is_made_once_a_step(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Gate, "_measure", measure)
    console = quiet()
    train(helping_recipe(world, LOOKS | {"name": "short", "training.max_steps": 2}), console=console)
    told = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert told.count("step 0: no look at BASIC's premise") == 1
