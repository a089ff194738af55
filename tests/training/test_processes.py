"""Two processes of ``accelerate launch`` on the CPU: they make one process's run, and what stops one stops both."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite import run as run_module
from basic_lite.data.prepare import prepare_data
from basic_lite.errors import StoppedElsewhere, UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe import Recipe, dump_recipe
from basic_lite.run import train
from basic_lite.training import assembly
from basic_lite.training.batches import Schedule
from basic_lite.training.interruption import Interruption
from basic_lite.training.processes import SHARDING, Processes
from basic_lite.training.trained_on import read_record
from tests.support.launched import TWO, launch, launch_command, planned, started
from tests.support.runs import (
    GUARDED,
    TERMS,
    assert_same_terms,
    assert_same_weights,
    log_of,
    quiet,
    steps_of,
    whole_recipe,
    write_data,
)

PAGE = Path(__file__).parents[2] / "docs" / "TRAINING.md"
WITH_IMAGE, TEXT_ONLY = 12, 6
# 18 samples in steps of 8: an epoch's last step has one micro-batch, so the second process has none.
COMMON = {
    "training.global_batch": 8,
    "training.micro_batch": 2,
    "training.max_steps": 4,
    "training.keep": 9,
    "data.group_by": "none",
    "supervision.lambda_das": 1.0,
    "supervision.lambda_sds": 1.0,
    "seed": 41,  # in step 2 one process has only text
}
SETTINGS: dict[str, dict[str, Any]] = {
    "saved": {"training.save_every": 2, "training.eval_every": 2, "supervision.refinement_batches": 1},
    # Held-out questions are shared out.
    "asked": {"training.eval_every": 2, "training.eval_generate": 9, "quantization.mode": "none"},
    "off": {"supervision.enabled": False},
    "every-other": {"supervision.every_n_steps": 2, "training.gradient_checkpointing": False},
    "uniform": {"supervision.token_weights": "uniform"},
    "stage-1": {"stage": 1, "lora.enabled": False, "model.projector_start": "matched"},
    "guarded": GUARDED,
    # The main process chooses the target, the other one takes it over.
    "measured": {"supervision.preset": "measured", "supervision.gate": False, "supervision.refinement_batches": 2},
    # Whole steps of text alone, in which the projector has no gradient of its own.
    "text-steps": {"supervision.enabled": False, "data.group_by": "modality_length", "training.global_batch": 4},
    # Pictures that break: the second process loses a whole micro-batch.
    "dropped": {"data.check_images": "exists", "data.bad_records": "drop"},
}
# Soak tests: "text-steps" is without BASIC too, and the others have BASIC in each step; generation is slow.
SOAK = ("off", "every-other", "asked")
DROPOUT = {"lora.dropout": 0.2, "training.save_every": 2}


def recipe_of(folder: Path, name: str, changes: dict[str, Any]) -> Recipe:
    held_out = {"path": str(folder / "data.json"), "image_dir": str(folder / "images")}
    if "training.eval_every" in changes:
        changes = {**changes, "data.eval": held_out}
    if name.endswith("-dropped"):
        broken = folder / "broken"
        changes = {**changes, "data.train": {"path": str(broken / "data.json"), "image_dir": str(broken / "images")}}
    return whole_recipe(folder, {**COMMON, **changes, "name": name})


def schedule_of(recipe: Recipe) -> Schedule:
    return Schedule(prepare_data(recipe, load_frontend(recipe.model), say=lambda text: None).sampler, recipe)


def no_half_files(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.endswith((".part", ".old"))]


def in_one_and_two(folder: Path, names: Collection[str]) -> list[dict[str, Any]]:
    """Run these settings in one process; their runs in two are still to be launched."""
    for name in names:
        train(recipe_of(folder, f"one-{name}", SETTINGS[name]), console=quiet())
    return [planned(recipe_of(folder, f"two-{name}", SETTINGS[name])) for name in names]


def launched(plan: Path, planned_runs: list[dict[str, Any]]) -> None:
    plan.write_text(json.dumps(planned_runs))
    done = launch(plan)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs: each setting in one process and in two, and runs that go on."""
    folder = tmp_path_factory.mktemp("processes")
    for place in (folder, folder / "broken"):
        write_data(place, WITH_IMAGE, text_only=TEXT_ONLY)
    for sample in schedule_of(recipe_of(folder, "whole", {})).micro_batches(0, TwoProcesses(1))[0]:
        (folder / "broken" / "images" / f"{sample}.png").write_bytes(b"no picture")
    out, saved = folder / "runs", SETTINGS["saved"]
    planned_runs = in_one_and_two(folder, [name for name in SETTINGS if name not in SOAK])
    planned_runs += [
        planned(recipe_of(folder, "one-then-two", saved), copy_of=out / "one-saved", checkpoint=2),
        planned(recipe_of(folder, "dropout", DROPOUT)),
        planned(recipe_of(folder, "dropout-again", DROPOUT), copy_of=out / "dropout", checkpoint=2),
    ]
    launched(folder / "plan.json", planned_runs)
    shutil.copytree(out / "two-saved", out / "two-then-one")
    train(recipe_of(folder, "two-then-one", saved), resume=True, checkpoint=2, console=quiet())
    return out


def test_the_runs_have_steps_with_text_alone_and_with_nothing(tmp_path: Path) -> None:
    write_data(tmp_path, WITH_IMAGE, text_only=TEXT_ONLY)
    schedule = schedule_of(recipe_of(tmp_path, "steps", {}))

    def kind(step: int, process: int) -> str:
        samples = [i for batch in schedule.micro_batches(step, TwoProcesses(process)) for i in batch]
        return "nothing" if not samples else "text" if min(samples) >= WITH_IMAGE else "images"

    kinds = [(kind(step, 0), kind(step, 1)) for step in range(COMMON["training.max_steps"])]
    assert kinds == [("images", "images"), ("text", "images"), ("images", "nothing"), ("images", "images")]


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in SOAK])
def test_two_processes_make_the_steps_of_one(runs: Path, name: str) -> None:
    assert_two_are_as_one(runs, name)


@pytest.mark.soak
def test_two_processes_make_more_steps_of_one(tmp_path: Path) -> None:
    write_data(tmp_path, WITH_IMAGE, text_only=TEXT_ONLY)
    launched(tmp_path / "plan.json", in_one_and_two(tmp_path, SOAK))
    for name in SOAK:
        assert_two_are_as_one(tmp_path / "runs", name)


def assert_two_are_as_one(runs: Path, name: str) -> None:
    one, two = runs / f"one-{name}", runs / f"two-{name}"
    assert json.loads((two / "final" / "manifest.json").read_text())["processes"] == 2
    terms = TERMS[:2] if SETTINGS[name].get("supervision.enabled") is False else TERMS
    assert_same_terms(one, two, rel=2e-5, names=terms)
    # Adam's first steps are sign-like, so rounding of tiny gradients is magnified; the rate is 1e-3.
    assert_same_weights(one / "final", two / "final", rtol=0, atol=5e-5)
    if name == "asked":
        assert_same_weights(one / "best", two / "best", rtol=0, atol=5e-5)
    scores = [[line["generated"]["scores"] for line in log_of(run) if "generated" in line] for run in (one, two)]
    assert scores[0] == scores[1] and len(scores[0]) == 2 * (name == "asked")


@pytest.mark.long
def test_what_was_dropped_is_written_once(runs: Path) -> None:
    said = [[line for line in log_of(runs / f"{n}-dropped") if "dropped" in line] for n in ("one", "two")]
    assert said[0] == said[1] and said[0][0]["step"] == 1 and len(said[0][0]["dropped"]) == 2
    data = [json.loads((runs / f"{n}-dropped" / "data.json").read_text()) for n in ("one", "two")]
    assert data[0] == data[1] and len(data[0]["dropped_while_training"]) == len(said[0])


@pytest.mark.long
def test_evaluation_and_curve_are_those_of_one_process(runs: Path) -> None:
    one, two = ([line for line in log_of(runs / name) if "loss" not in line] for name in ("one-saved", "two-saved"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    losses = [[line["eval_loss"] for line in lines if "eval_loss" in line] for lines in (one, two)]
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=2e-5)
    curves = [[line["refinement"] for line in lines if "refinement" in line] for lines in (one, two)]
    assert len(curves[0]) == len(curves[1]) == 3  # at the start, and at two evaluations
    for alone, together in zip(*curves, strict=True):
        assert together["places"] == alone["places"] and together["patches"] == alone["patches"] > 0
        for name in ("own", "control", "score"):
            assert together[name] == pytest.approx(alone[name], abs=1e-6)


@pytest.mark.parametrize("shown", [True, False])
def test_records_are_counted_where_it_is_asked_for(
    tmp_path: Path, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, WITH_IMAGE)
    recipe = recipe_of(tmp_path, "counted", {})
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assembly.preflight(recipe, torch.device("cpu"), lambda text: None, shown=shown)
    assert (f"checked {WITH_IMAGE} of {WITH_IMAGE} records" in capsys.readouterr().err) == shown


@pytest.mark.long
def test_a_resumed_run_is_the_unbroken_one(runs: Path) -> None:
    assert_same_terms(runs / "dropout", runs / "dropout-again", rel=0)
    assert_same_weights(runs / "dropout" / "final", runs / "dropout-again" / "final")


@pytest.mark.long
@pytest.mark.parametrize("name", ["one-then-two", "two-then-one"])
def test_another_number_of_processes_goes_on(runs: Path, name: str) -> None:
    assert_same_terms(runs / "one-saved", runs / name, rel=2e-5)
    assert_same_weights(runs / "one-saved" / "final", runs / name / "final", rtol=0, atol=5e-5)


@pytest.mark.long
def test_only_the_main_process_writes(runs: Path) -> None:
    first, second = (json.loads((runs.parent / f"plan.json.rank{rank}").read_text()) for rank in range(2))
    assert any("manifest.json" in change for change in first) and any("log.jsonl" in change for change in first)
    assert second == []
    assert no_half_files(runs)
    told = [read_record(runs / name) for name in ("one-saved", "two-saved")]
    assert told[0] == told[1] and told[0] is not None and told[0].digests


# --- what goes wrong in one process ---------------------------------------------------------------------------------


def write_recipe(folder: Path, changes: dict[str, Any]) -> tuple[Recipe, list[str]]:
    """A recipe file, and the command that runs it in two processes."""
    recipe = whole_recipe(folder, {"data.group_by": "none", "training.micro_batch": 1, "training.keep": 9, **changes})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return recipe, launch_command("-m", "basic_lite", "train", str(folder / "recipe.yaml"))


@pytest.mark.soak  # an error of one process without a launch: below
def test_a_picture_that_one_process_cannot_read_stops_both(tmp_path: Path) -> None:
    write_data(tmp_path, 12)
    # Not opened before the run, which would refuse it.
    changes = {"training.max_steps": 6, "training.save_every": 100, "data.check_images": "exists"}
    recipe, command = write_recipe(tmp_path, changes)
    picture = tmp_path / "images" / f"{schedule_of(recipe).samples_of(2)[1]}.png"  # the second process's, in step 3
    good = picture.read_bytes()
    picture.write_bytes(good[:50])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    # The launcher ends with a traceback of its own; the processes with one line of the one that found it.
    assert done.stderr.count("error: ") == 1 and "[rank" not in done.stderr
    assert "can't be decoded" in done.stderr and "continue with --resume" in done.stderr
    folder = tmp_path / "runs" / "tiny"
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"] and no_half_files(folder)
    picture.write_bytes(good)
    train(recipe, resume=True, console=quiet())
    assert [line["step"] for line in steps_of(folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_launch_saves_once_and_goes_on_exactly(tmp_path: Path, number: int) -> None:
    write_data(tmp_path, 12)
    # With a loader's worker, to which the launcher sends the signal as well.
    changes = {"training.max_steps": 40, "training.save_every": 100, "lora.dropout": 0.2, "data.workers": 1}
    recipe, command = write_recipe(tmp_path, changes)
    out = tmp_path / "runs"
    process = started(command, out / "tiny" / "log.jsonl", 3)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert error.count("stopped, saved in") == 1 and "continue with: accelerate launch --multi_gpu" in error
    saved = list((out / "tiny").glob("checkpoint-*"))
    assert len(saved) == 1 and no_half_files(out)
    plan = tmp_path / "plan.json"
    whole = recipe.model_copy(update={"name": "whole"})
    again = recipe.model_copy(update={"name": "again"})
    plan.write_text(json.dumps([planned(whole), planned(again, copy_of=out / "tiny")]))
    done = launch(plan)
    assert done.returncode == 0, done.stderr
    assert_same_terms(out / "whole", out / "again", rel=0)
    assert_same_weights(out / "whole" / "final", out / "again" / "final")


@pytest.mark.soak
def test_a_process_that_is_killed_ends_the_launch(tmp_path: Path) -> None:
    write_data(tmp_path, 12)
    _, command = write_recipe(tmp_path, {"training.max_steps": 4000, "training.save_every": 1000})
    process = started(command, tmp_path / "runs" / "tiny" / "log.jsonl", 3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and no_half_files(tmp_path / "runs")
    assert "of 2 lost another one" in error and "[rank" not in error


@pytest.mark.soak
def test_no_memory_in_one_process_stops_with_a_message(tmp_path: Path) -> None:
    write_data(tmp_path, 12)
    recipe, _ = write_recipe(tmp_path, {"training.max_steps": 6, "training.save_every": 1})
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps([planned(recipe, no_memory_at=5)]))
    done = launch(plan, timeout_s=120)
    assert done.returncode != 0 and "[rank" not in done.stderr
    assert "out of memory in step 3" in done.stderr
    assert "in one of several processes: --resume continues from the last checkpoint" in done.stderr
    folder = tmp_path / "runs" / "tiny"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert no_half_files(folder)


def test_the_page_gives_the_launch_that_is_tested() -> None:
    assert " ".join(["accelerate launch", *TWO, "-m basic_lite train recipes/"]) in PAGE.read_text(encoding="utf-8")


# --- without a launch -----------------------------------------------------------------------------------------------


class TwoProcesses(Processes):
    """One of two processes, of which the other one says what it is told to."""

    def __init__(self, index: int, other_fails: bool = False) -> None:
        super().__init__()
        self._index, self._other_fails = index, other_fails

    count = property(lambda self: 2)  # type: ignore[assignment]
    index = property(lambda self: self._index)  # type: ignore[assignment]

    def any(self, flag: bool) -> bool:
        return flag or self._other_fails

    def gather(self, value: Any) -> list[Any]:
        return [value, self._other_fails] if self.index == 0 else [self._other_fails, value]


def test_the_first_process_that_has_an_error_tells_it() -> None:
    def told(processes: Processes, act: Callable[[], None]) -> type[BaseException]:
        with pytest.raises(UserError) as found, processes.together():
            act()
        return found.type

    def fail() -> None:
        raise UserError("broken")

    def work() -> None:
        pass

    assert told(TwoProcesses(0), fail) is told(TwoProcesses(1), fail) is told(TwoProcesses(0, True), fail) is UserError
    assert told(TwoProcesses(0, True), work) is told(TwoProcesses(1, True), work) is StoppedElsewhere
    assert told(TwoProcesses(1, True), fail) is StoppedElsewhere


def test_a_signal_that_the_launcher_sends_on_is_no_second_one() -> None:
    with Interruption(lambda text: None, alone=False) as interruption:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
    assert interruption.requested


@pytest.mark.parametrize("variable", list(SHARDING))
def test_a_launcher_that_shards_the_model_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(
        UserError, match=rf"asks for {SHARDING[variable]} \({variable}\).*accelerate launch --multi_gpu"
    ):
        train(whole_recipe(tmp_path), console=quiet())
    assert not (tmp_path / "runs").exists()


def test_each_process_takes_its_own_gpu_before_anything_asks_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[Any] = []

    def stop(*_: Any, **__: Any) -> Any:
        happened.append("kernels")
        raise UserError("far enough")

    def asked(**_: Any) -> bool:
        happened.append("bf16")
        return True

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="started process 1 on this machine, and torch sees 1 GPUs"):
        train(whole_recipe(tmp_path, {"training.device": "auto"}), console=quiet())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: happened.append(torch.device(device)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", asked)
    monkeypatch.setattr(run_module, "connect", lambda *_, **__: happened.append("connect") or Processes())
    monkeypatch.setattr(assembly, "choose_kernels", stop)
    monkeypatch.setattr(run_module, "tell_device", lambda *_, **__: None)  # it would ask the card
    with pytest.raises(UserError, match="far enough"):
        train(whole_recipe(tmp_path, {"training.device": "auto"}), console=quiet())
    assert happened[0] == torch.device("cuda", 1)
    assert happened.index("connect") < happened.index("kernels")
