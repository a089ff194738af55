"""The run folder's name: a start that saved nothing doesn't block it, and --overwrite replaces what is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from basic_lite.errors import Interrupted, UserError
from basic_lite.run import train
from basic_lite.tools.dry_run import dry_run
from basic_lite.tools.runs import show_runs
from basic_lite.training import loop, saving
from basic_lite.training.files import remove
from basic_lite.training.lock import locked
from basic_lite.training.step import TrainStep
from tests.support.marks import rest_long
from tests.support.runs import assert_same_weights, log_of, quiet, run, steps_of, tiny_recipe, weights_of

TRACKED = {"training.trackers": ["tensorboard"], "training.max_steps": 2, "supervision.refinement_batches": 1}
# What a run of two steps with a tracker leaves.
NAMES = {
    "recipe.yaml",
    "parts.json",
    "data.json",
    "software.json",
    "trained_on.safetensors",
    "log.jsonl",
    "tensorboard",
    "checkpoint-2",
    "final",
}
Break = Callable[[Path, pytest.MonkeyPatch], dict[str, Any]]


def raising(error: BaseException) -> Callable[..., Any]:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fails


def bad_data(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    (place / "data.json").write_text(json.dumps([{"id": 1, "image": "none.png", "conversations": []}]))
    return {}


def missing_model(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"model.llm": str(place / "nowhere")}


def ctrl_c_while_loading(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr("basic_lite.run.load_for_training", raising(KeyboardInterrupt()))
    return {}


def no_memory_at_load(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr("basic_lite.run.load_for_training", raising(RuntimeError("CUDA out of memory. Tried 2 GiB")))
    patch.setattr("basic_lite.run.memory_advice", lambda *args: ["use less"])
    return {}


def ctrl_c_before_step_1(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    def twice(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(loop.ProgressLine, "start", twice)
    return {}


def error_in_step_1(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(TrainStep, "gradients", raising(ValueError("a bug")))
    return {}


def loss_is_nan_in_step_1(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(loop.Watch, "look", raising(UserError("the loss is nan")))
    return {}


def killed_while_the_folder_is_taken(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr("basic_lite.training.run_folder.dump_recipe", raising(KeyboardInterrupt()))
    return {}


def killed_while_saving(place: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    patch.setattr(saving, "write_training_state", raising(KeyboardInterrupt()))
    patch.setattr("basic_lite.training.files.shutil.rmtree", lambda *args, **kwargs: None)
    return {}


BREAKS: tuple[Break, ...] = (
    bad_data,
    missing_model,
    ctrl_c_while_loading,
    no_memory_at_load,
    ctrl_c_before_step_1,
    error_in_step_1,
    loss_is_nan_in_step_1,
    killed_while_the_folder_is_taken,
    killed_while_saving,
)
LEAVES_A_FOLDER = set(BREAKS[4:])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_recipe(folder)
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("breaks", rest_long(*reversed(BREAKS)))
def test_a_failed_start_does_not_block_its_name(place: Path, monkeypatch: pytest.MonkeyPatch, breaks: Break) -> None:
    folder = place / "runs" / "tiny"
    with monkeypatch.context() as patch:
        changes = breaks(place, patch)
        with pytest.raises((UserError, KeyboardInterrupt, ValueError, Interrupted)):
            run(place, {**TRACKED, **changes})
    assert folder.exists() == (breaks in LEAVES_A_FOLDER)
    (place / "data.json").unlink()
    left = {path.name for path in (folder / "tensorboard").glob("**/events.*")}
    assert run(place, TRACKED) == folder
    # What is there is the whole run's, and of one start alone.
    assert [line["step"] for line in steps_of(folder)] == [1, 2]
    assert [line["step"] for line in log_of(folder) if "refinement" in line] == [0, 2]
    events = {path.name for path in (folder / "tensorboard").glob("**/events.*")}
    assert len(events) == 2 and not left & events  # one with the curves, one with the recipe's values
    assert {path.name for path in folder.iterdir()} == NAMES


def test_a_persons_own_files_are_no_run(place: Path) -> None:
    """A folder with a recipe and a data file of one's own is never taken for a failed start."""
    folder = place / "runs" / "tiny"
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", "data.json", "parts.json"):
        (folder / name).write_text("[]")
        for options in ({}, {"overwrite": True}):
            with pytest.raises(UserError, match="already holds other files and no run"):
                run(place, **options)
    assert len(list(folder.iterdir())) == 3
    # Other programs' checkpoints have the same names.
    shutil.rmtree(folder)
    (folder / "checkpoint-500").mkdir(parents=True)
    (folder / "checkpoint-500" / "trainer_state.json").write_text("{}")
    with pytest.raises(UserError, match="already holds other files and no run"):
        run(place, overwrite=True)
    assert (folder / "checkpoint-500" / "trainer_state.json").exists()


@pytest.fixture(scope="module")
def finished(models: Path) -> Path:
    """A finished run with the remains that a run may have; never changed."""
    folder = run(models, {**TRACKED, "name": "finished", "training.save_every": 1})
    shutil.copytree(folder / "checkpoint-1", folder / "set-aside-checkpoint-1")
    for name in ("predictions_data_final.jsonl", "predictions_data_final.summary.json", "notes.txt"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, in a place of its own."""
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(finished, folder)
    return folder


def again(models: Path, old: Path, changes: dict[str, Any] | None = None, **options: Any) -> Path:
    return run(models, {**TRACKED, "output": str(old.parent), "seed": 5, **(changes or {})}, **options)


def test_overwrite_replaces_a_finished_run(models: Path, old: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"already holds another run .*or replace it with --overwrite"):
        again(models, old)
    assert again(models, old, overwrite=True) == old
    assert {path.name for path in old.iterdir()} == NAMES | {"notes.txt", "kept-1"}  # a person's own file stays
    fresh = again(models, tmp_path / "elsewhere" / "tiny")
    assert_same_weights(old / "final", fresh / "final")
    assert len(list((old / "tensorboard").glob("events.*"))) == 1
    assert [line["step"] for line in steps_of(old)] == [1, 2]
    # And it needs no run to replace.
    assert again(models, old, {"name": "new"}, overwrite=True).is_dir()


def test_a_dry_run_says_what_overwrite_would_replace(models: Path, old: Path) -> None:
    console = quiet()
    dry_run(tiny_recipe(models, {"output": str(old.parent), "name": old.name}), console, overwrite=True)
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "--overwrite would replace the run in" in said and "(finished, " in said and "predictions_data_final" in said
    assert (old / "final").is_dir() and (old / "predictions_data_final.jsonl").exists()


@pytest.mark.long
def test_overwrite_keeps_answers_and_what_people_have_changed(models: Path, old: Path) -> None:
    mine = ["predictions_data_final.jsonl", "predictions_data_final.summary.json", "final/why.md", "recipe.yaml"]
    mine[2:2] = ["tensorboard/mine/plot.png", "checkpoint-1/notes/a.txt"]
    for folder in ("tensorboard/mine", "checkpoint-1/notes", "checkpoint-98"):
        (old / folder).mkdir()
    (old / "checkpoint-98" / "cat.jpg").write_text("no run has written this folder")
    for name in mine:
        (old / name).write_text(f"my {name}")
    console = quiet()
    changes = {**TRACKED, "output": str(old.parent)}
    train(tiny_recipe(models, changes), overwrite=True, console=console)
    said = f"what isn't the run's own was moved to {old / 'kept-1'}: {', '.join(mine)}\n"
    assert said in console.file.getvalue()  # type: ignore[attr-defined]
    assert {p.relative_to(old / "kept-1").as_posix() for p in (old / "kept-1").rglob("*") if p.is_file()} == {*mine}
    assert all((old / "kept-1" / name).read_text() == f"my {name}" for name in mine)
    assert not list(old.glob("predictions*")) and not (old / "final" / "why.md").exists()
    assert (old / "checkpoint-98" / "cat.jpg").exists()
    # A run as it was left has nothing of the kind; new answers go beside the first ones.
    console = quiet()
    train(tiny_recipe(models, changes), overwrite=True, console=console)
    assert "moved" not in console.file.getvalue() and not (old / "kept-2").exists()  # type: ignore[attr-defined]
    (old / "predictions_data_final.jsonl").write_text("other answers")
    train(tiny_recipe(models, changes), overwrite=True, console=quiet())
    assert [path.name for path in (old / "kept-2").iterdir()] == ["predictions_data_final.jsonl"]
    assert (old / "kept-1" / "predictions_data_final.jsonl").read_text() == f"my {mine[0]}"


@pytest.mark.long
def test_a_changed_recipe_is_kept_wherever_it_is_written_anew(models: Path, tmp_path: Path) -> None:
    """On --resume, and in place of a start that saved nothing; one that nobody changed is not kept."""
    changes = {"output": str(tmp_path), "training.save_every": 1, "training.max_steps": 2}

    def changed(folder: Path) -> str:
        text = (folder / "recipe.yaml").read_text() + "# my remark\n"
        (folder / "recipe.yaml").write_text(text)
        return text

    run = train(tiny_recipe(models, {**changes, "name": "one"}), console=quiet()).folder
    for resumed in (False, True):
        for gone in ("final", "checkpoint-2", *(() if resumed else ("checkpoint-1",))):
            shutil.rmtree(run / gone)
        train(tiny_recipe(models, {**changes, "name": "one"}), resume=resumed, console=quiet())
        assert not (run / "kept-1").exists()
    for number, resumed in enumerate((True, False), start=1):
        text, console = changed(run), quiet()
        for gone in ("final", "checkpoint-2", *(() if resumed else ("checkpoint-1",))):
            shutil.rmtree(run / gone)
        train(tiny_recipe(models, {**changes, "name": "one"}), resume=resumed, console=console)
        assert (run / f"kept-{number}" / "recipe.yaml").read_text() == text
        assert f"was moved to {run / f'kept-{number}'}: recipe.yaml" in console.file.getvalue()  # type: ignore[attr-defined]


def test_overwrite_deletes_nothing_before_the_new_run_begins(
    models: Path, old: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same() -> None:
        files = {path.relative_to(finished): path.read_bytes() for path in finished.rglob("*") if path.is_file()}
        assert files == {path.relative_to(old): path.read_bytes() for path in old.rglob("*") if path.is_file()}

    for changes in ({"model.llm": "/nowhere"}, {"data.train": {"path": "/nowhere.json"}}, {"lora.targets": ["none"]}):
        with pytest.raises(UserError):
            again(models, old, changes, overwrite=True)
        same()
    for place in ("load_for_training", "supervise", "Loop"):
        with monkeypatch.context() as patch:
            patch.setattr(f"basic_lite.run.{place}", raising(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                again(models, old, overwrite=True)
        same()
    with locked(old), pytest.raises(UserError, match="another process trains in"):
        again(models, old, overwrite=True)
    same()
    with pytest.raises(UserError, match="--overwrite begins anew and --resume continues"):
        again(models, old, overwrite=True, resume=True)
    same()


@pytest.mark.parametrize("most", [0, 2, 5])
def test_a_replacement_that_is_killed_can_be_repeated(
    models: Path, old: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Wherever the deletion stops, the folder is still a run's."""
    removed: list[Path] = []

    def some(path: Path) -> None:
        if len(removed) == most:
            raise KeyboardInterrupt
        removed.append(path)
        remove(path)

    with monkeypatch.context() as patch:
        patch.setattr("basic_lite.training.run_folder.remove", some)
        with pytest.raises(KeyboardInterrupt):
            again(models, old, overwrite=True)
    assert again(models, old, overwrite=True) == old


@pytest.mark.parametrize("key", ["model.start", "model.projector", "model.llm", "data.train.path"])
def test_overwrite_spares_what_the_new_run_needs(models: Path, old: Path, key: str) -> None:
    shutil.copytree(models / "llm", old / "llm")
    shutil.copy(models / "data.json", old / "photos.json")
    inside = {"model.llm": "llm", "data.train.path": "photos.json"}.get(key, "checkpoint-1")
    with pytest.raises(
        UserError, match=rf"--overwrite replaces the run in .*, and {key} names something in it: .*name=…"
    ):
        again(models, old, {key: str(old / inside)}, overwrite=True)
    assert (old / "final").is_dir()


def test_a_new_run_goes_on_in_place_of_another(models: Path, old: Path, finished: Path) -> None:
    changes = {"model.start": str(finished), "model.llm": None, "model.vision": None}
    folder = again(models, old, {**changes, "training.max_steps": 1}, overwrite=True)
    assert weights_of(folder / "final").keys() == weights_of(finished / "final").keys()
    assert (
        train(
            tiny_recipe(models, {**TRACKED, "name": "finished", "training.save_every": 1}), resume=True, console=quiet()
        ).steps
        == 2
    )


def test_a_start_is_known_by_its_lock_and_another_programs_lock_is_left_alone(tmp_path: Path) -> None:
    starting, others = tmp_path / "starting", tmp_path / "uv"
    others.mkdir()
    (others / "CACHEDIR.TAG").touch()
    starting.mkdir()
    with locked(starting), locked(others):
        assert [row.path for row in show_runs(tmp_path, quiet())] == [starting]
    (others / ".lock").touch()
    before = (others / ".lock").stat()
    assert not show_runs(others, quiet())
    assert (others / ".lock").stat() == before
