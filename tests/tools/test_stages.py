"""``basic-lite run``: both stages and the export in one command, which can be given again at any time."""

from __future__ import annotations

import gc
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from filelock import FileLock
from transformers import LlavaForConditionalGeneration

import basic_lite.tools.stages as stages
from basic_lite import cli
from basic_lite.errors import UserError
from basic_lite.model.audit import planned_parts
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import pick_device
from basic_lite.recipe import dump_recipe
from basic_lite.recipe.sequence import load_sequence
from basic_lite.sizes import size_text
from basic_lite.tools.export.folder import open_source
from basic_lite.tools.stages import look_ahead
from basic_lite.training.places import LOCK
from basic_lite.training.run_folder import RunFolder
from basic_lite.training.step import TrainStep
from tests.support.marks import rest_long
from tests.support.models import write_llm
from tests.support.runs import assert_same_weights, quiet, steps_of, tiny_recipe

Command = Callable[..., tuple[int, str, str]]
FIRST = {"name": "first", "stage": 1, "lora.enabled": False, "training.max_steps": 2}
SECOND = {"name": "second", "training.max_steps": 3, "training.save_every": 1}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny models, data, and the recipes of both stages."""
    monkeypatch.chdir(tmp_path)
    for name, changes in (("one", FIRST), ("two", SECOND)):
        text = dump_recipe(tiny_recipe(tmp_path, {**changes, "output": "runs"}))
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``basic-lite run`` with both recipes; returns exit status, stdout, stderr."""

    def command(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["run", "one.yaml", "two.yaml", *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(stopped.value.code or 0), out, err

    return command


def models_in_memory() -> list[object]:
    return [one for one in gc.get_objects() if type(one) is LlavaForConditionalGeneration]


@pytest.mark.soak
def test_both_stages_and_the_export_with_the_estimate_first(here: Path, command: Command) -> None:
    earlier = models_in_memory()  # other tests' of this process
    code, out, err = command("--export", "mine")
    assert code == 0, err
    # The estimate of all of it comes before the first step, and its sizes are the real ones.
    rows = {row.split()[0]: row for row in out.splitlines() if row.startswith(("first ", "second ", "export ", "all "))}
    assert (
        set(rows) == {"first", "second", "export", "all"} and "2 steps" in rows["first"] and "3 steps" in rows["second"]
    )
    assert f"exported to {here / 'mine'}" in out.split("what all of it takes")[1]
    source = open_source(Path("runs/second"), None, "auto", pick_device("cpu"))
    assert size_text(source.size_bytes) in rows["export"]
    # Stage 2 began with stage 1's projector.
    started = json.loads(Path("runs/second/final/manifest.json").read_text())["started_from"]
    assert started["key"] == "model.projector" and Path(started["bundle"]) == Path("runs/first/final")
    # The first model doesn't lie in memory while the second trains.
    gc.collect()
    assert not [one for one in models_in_memory() if not any(one is other for other in earlier)]

    # Given again: all of it is there.
    code, out, err = command("--export", "mine")
    assert code == 0 and "mine is the export of runs/second/final already" in out and out.count("taken as it is") == 2
    assert err.count("is finished; its bundle is") == 2
    # A failed check of the export stays one.
    report = json.loads(Path("mine/export.json").read_text())
    report["check"]["passed"] = False
    Path("mine/export.json").write_text(json.dumps(report))
    assert command("--export", "mine")[0] == 1
    # And an export of something else is in the way.
    report["manifest_sha256"] = "0"
    Path("mine/export.json").write_text(json.dumps(report))
    code, _, err = command("--export", "mine")
    assert code == 2 and "--export: mine exists already" in err

    # Other settings: the run isn't touched. A smaller micro-batch is none, since the result is the same.
    manifest = Path("runs/second/final/manifest.json").read_bytes()
    code, _, err = command("2:lora.rank=2")
    assert code == 2 and "runs/second already holds another run (lora.rank: 4 → 2)" in err
    assert command("training.micro_batch=1")[0] == 0
    assert Path("runs/second/final/manifest.json").read_bytes() == manifest

    # The first stage was trained anew: the second one is of another projector.
    shutil.rmtree("runs/first")
    code, _, err = command()
    assert code == 2 and "it began with another projector than runs/first has now" in err
    assert not Path("runs/first").exists()


@pytest.mark.soak
def test_stopped_in_the_second_stage_the_same_command_goes_on(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("output=whole")[0] == 0
    real, calls = TrainStep.gradients, 0

    def interrupting(self: TrainStep, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 + 2:  # steps of the first stage, and the second one's second
            signal.raise_signal(signal.SIGINT)
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "gradients", interrupting)
        code, _, err = command("--export", "my model")
    assert code == 130
    assert 'the same command goes on: basic-lite run one.yaml two.yaml --export "my model"' in err
    made = Path("runs/first/final/manifest.json").read_bytes()
    code, out, err = command("--export", "my model")
    assert code == 0, err
    assert "goes on after step 2 of 3" in out and re.search(r"^first .*taken as it is$", out, re.MULTILINE)
    assert Path("runs/first/final/manifest.json").read_bytes() == made and Path("my model/config.json").is_file()
    assert_same_weights(Path("whole/second/final"), Path("runs/second/final"))
    assert [line["loss"] for line in steps_of(Path("runs/second"))] == [
        line["loss"] for line in steps_of(Path("whole/second"))
    ]


WRONG = {
    "a key": (["2:lora.rnk=3"], "did you mean `lora.rank`"),
    "data": (["2:data.train.path=nothing.json"], r"recipe 2 \(second\) would be refused: .*nothing.json"),
    "both at once": (["data.train.path=no.json"], r"recipes 1 \(first\) and 2 \(second\) would be refused: .*no.json"),
    "another model": (["2:model.llm=other"], r"the projector of first, .*llm: .*64.* there, .*128.* here.*give both"),
    "a projector": (["2:model.projector=x"], "is the run of recipe 1; leave it out"),
    "a start": (["2:model.start=x"], "remove model.start"),
    "one name": (["name=x"], "recipes 1 and 2 would both train in runs/x; .*as in 2:name=NEW"),
    "a folder in use": (["2:name=taken"], r"recipe 2 \(taken\) would be refused: .*already holds other files"),
    "the export": (["--export", "taken"], "--export: taken exists already"),
}  # fmt: skip


@pytest.mark.parametrize("case", rest_long("data", *(case for case in WRONG if case != "data")))
def test_what_a_later_stage_would_refuse_is_refused_before_the_first(here: Path, command: Command, case: str) -> None:
    write_llm(here / "other", hidden_size=128)
    (here / "runs" / "taken").mkdir(parents=True)
    for place in ("runs/taken", "taken"):
        Path(place).mkdir(exist_ok=True)
        Path(place, "thesis.txt").write_text("do not lose")
    words, says = WRONG[case]
    for dry_run in ([], ["--dry-run"]):
        code, _, err = command(*words, *dry_run)
        assert code == 2 and re.search(says, err), err
    assert sorted(path.name for path in Path("runs").iterdir()) == ["taken"]


def test_a_stage_that_another_process_trains_is_refused_before_the_first(here: Path) -> None:
    """It was told after all checks, and of a later stage when the first one had been trained."""
    (here / "runs" / "second").mkdir(parents=True)
    says = r"recipe 1 \(second\) would be refused: another process trains in runs/second now"
    with FileLock(here / "runs" / "second" / LOCK), pytest.raises(UserError, match=says):
        look_ahead(load_sequence(["two.yaml"], print), None, console=quiet())


@pytest.mark.long
def test_a_dry_run_shows_all_and_leaves_nothing(here: Path, command: Command) -> None:
    code, out, err = command("--dry-run", "--export", "mine", "training.device=auto")
    assert code == 0, err
    assert "dry run: nothing was loaded" in out and "RTX 4090" in out and "energy" in out
    assert not Path("runs").exists() and not Path("mine").exists()


def test_where_nothing_is_left_no_time_and_no_memory_are_added_up(here: Path) -> None:
    recipe, console = load_sequence(["two.yaml"], print)[0], quiet()
    frontend = load_frontend(recipe.model)
    parts = planned_parts(recipe, frontend, torch.float32)
    finished = stages.StageOutlook(recipe, cast(RunFolder, None), frontend, parts)
    stages._show([finished, finished], Path("mine"), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    export = size_text(stages.export_bytes(finished))
    assert re.search(rf"^all +- +{export} +\S+ GiB of disk are free$", said, re.MULTILINE), said
    assert "time" not in said and "rehearsed" not in said and said.count("taken as it is") == 2


def test_a_named_projector_gives_way_and_the_line_says_so(here: Path) -> None:
    (here / "two.yaml").write_text((here / "two.yaml").read_text().replace("projector: null", "projector: runs/old"))
    said: list[str] = []
    first, second = load_sequence(["one.yaml", "two.yaml", "output=my", "2:training.max_steps=9"], said.append)
    assert second.model.projector == "my/first" and second.output == "my"
    assert (first.training.max_steps, second.training.max_steps) == (2, 9)
    assert said == ["note: second takes the projector of my/first, and not of runs/old, which its recipe names"]


def test_after_a_lora_comes_no_other_recipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "two.yaml", "one.yaml", "2:stage=2", "output=my runs"])
    assert stopped.value.code == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "recipe 1 (second) trains a LoRA" in told
    assert told.endswith('train on from it with: basic-lite train one.yaml "model.start=my runs/second"')


def test_stages_in_the_wrong_order_are_told(here: Path) -> None:
    with pytest.raises(
        UserError, match=r"recipe 1 \(second\) is for stage 2, and .* for stage 1; name them in their or"
    ):
        load_sequence(["two.yaml", "one.yaml"], print)


@pytest.mark.long
def test_memory_decides_before_the_first_step(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = load_sequence(["two.yaml", "training.micro_batch=4"], print)
    needed: list[int] = []
    real = stages.Rehearser.rehearse

    def recording(self: stages.Rehearser, shape: Any) -> Any:
        rehearsal = real(self, shape)
        needed.append(rehearsal.least_bytes)
        return rehearsal

    monkeypatch.setattr(stages.Rehearser, "rehearse", recording)
    monkeypatch.setattr(stages, "memory_of", lambda device: (needed[0] - 1, 0))
    console = quiet()
    look_ahead(recipes, None, console=console)
    assert "note: a micro-batch of 4 needs" in console.file.getvalue()  # type: ignore[attr-defined]
    assert needed[1] < needed[0]  # a single sample
    monkeypatch.setattr(stages, "memory_of", lambda device: (needed[1] - 1, 0))
    with pytest.raises(UserError, match=r"recipe 1 \(second\) .* a step with a single sample needs"):
        look_ahead(recipes, None, console=quiet())
    assert not Path("runs").exists()
