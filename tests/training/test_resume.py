"""Going on with a run: bit for bit, from any state that a kill can leave, and never from something foreign."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from basic_lite.errors import UserError
from basic_lite.run import train
from basic_lite.training import loop, tensor_files
from basic_lite.training.bundle_files import GENERATORS, OPTIMIZER, TRAINING, open_bundle
from basic_lite.training.files import sha256
from basic_lite.training.places import MANIFEST, checkpoints_of
from tests.support.marks import rest_long
from tests.support.runs import (
    GUARDED,
    LOUD,
    TERMS,
    WHOLE,
    assert_same_terms,
    assert_same_weights,
    log_of,
    quiet,
    run,
    steps_of,
    tiny_recipe,
    write_data,
)

SAVING = {"training.max_steps": 4, "training.save_every": 1, "training.keep": 9, "lora.dropout": 0.2, **LOUD}


def unfinish(folder: Path, *steps: int) -> None:
    """What a run that died before its end leaves: no final bundle, no checkpoints of these steps."""
    shutil.rmtree(folder / "final")
    for step in steps:
        shutil.rmtree(folder / f"checkpoint-{step}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of four steps, a checkpoint each; never changed."""
    place = tmp_path_factory.mktemp("finished")
    run(place, SAVING)
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that lacks the final bundle and the last checkpoint; data and models are shared."""
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(finished / "runs" / "tiny", folder)
    unfinish(folder, 4)
    return folder


def resume(place: Path, finished: Path, changes: dict[str, Any] | None = None, **kwargs: Any) -> Path:
    return run(finished, {**SAVING, "output": str(place.parent), **(changes or {})}, resume=True, **kwargs)


def stopped(self: Any) -> None:
    raise KeyboardInterrupt


def reseal(checkpoint: Path) -> None:
    """Make a changed checkpoint look whole."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name]["sha256"] = sha256(checkpoint / name)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("optimizer", "workers", "evaluated"),
    [
        ("adamw", 1, True),
        *[pytest.param(*case, marks=pytest.mark.long) for case in (("adamw", 0, False), ("adamw_8bit", 0, True))],
        pytest.param("adamw", 2, False, marks=pytest.mark.soak),
    ],
)
def test_resume_is_exact(tmp_path: Path, optimizer: str, workers: int, evaluated: bool) -> None:
    # Dropout makes it a test of the generators too; seven steps of four from thirteen samples cross an epoch's end.
    write_data(tmp_path, 13)
    data = {"path": str(tmp_path / "data.json"), "image_dir": str(tmp_path / "images")}
    changes = {
        "data.workers": workers,
        "data.eval": data if evaluated else None,
        "training.eval_every": 3 if evaluated else None,
        **WHOLE,
        **LOUD,
        "lora.dropout": 0.3,
        "training.max_steps": 7,
        "training.save_every": 4,
        "training.keep": 9,
        "training.optimizer": optimizer,
        "supervision.refinement_batches": 1,
        **(GUARDED if workers == 2 else {}),
    }
    whole = run(tmp_path, {**changes, "name": "whole"})
    part = Path(shutil.copytree(whole, whole.with_name("part")))
    # What a crash after step 5 leaves: the checkpoint of step 4, log lines beyond it, and half a line.
    unfinish(part, 7)
    lines = [line for line in (part / "log.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 5]
    (part / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "lo')
    run(tmp_path, {**changes, "name": "part"}, resume=True)
    assert [line["step"] for line in steps_of(part)] == list(range(1, 8))
    assert_same_terms(whole, part, rel=0, names=(*TERMS, *(["guard_ratio_after"] if workers == 2 else [])))
    assert_same_weights(whole / "final", part / "final")
    for name in ("eval_loss", "refinement"):
        found = [[line[name] for line in log_of(folder) if name in line] for folder in (whole, part)]
        assert found[0] == found[1] and (found[0] or name == "eval_loss")
        assert name != "eval_loss" or len(found[0]) == (3 if evaluated else 0)


@pytest.mark.parametrize("log_every", rest_long(3, 2))
def test_log_lines_do_not_depend_on_where_a_run_was_resumed(tmp_path: Path, log_every: int) -> None:
    changes = {"training.max_steps": 4, "training.save_every": 2, "training.keep": 9}
    # BASIC is on in steps 1 and 3. The line of step 4, and with 2 every line, shows the terms of the step before.
    changes |= {"supervision.every_n_steps": 2, "training.log_every": log_every}
    whole = run(tmp_path, {**changes, "name": "whole"})
    part = Path(shutil.copytree(whole, whole.with_name("part")))
    unfinish(part, 4)
    run(tmp_path, {**changes, "name": "part"}, resume=True)
    assert [line["step"] for line in steps_of(part)] == [log_every, 4]  # the last step is always there
    assert all(line["das"] > 0 and "cos" in line for line in steps_of(part))
    assert_same_terms(whole, part, rel=0)


def test_resume_may_change_the_micro_batch_but_not_the_rate(place: Path, finished: Path) -> None:
    with pytest.raises(UserError, match=r"--resume.*\n.*training.learning_rate: 0.001 → 0.1"):
        resume(place, finished, {"training.learning_rate": 0.1})
    resume(place, finished, {"training.micro_batch": 1})
    assert [line["step"] for line in steps_of(place)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "length", rest_long({"training.max_steps": None, "training.epochs": 1.0}, {"training.max_steps": 3})
)
def test_a_run_that_dies_before_its_final_bundle_is_finished_without_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: dict[str, Any]
) -> None:
    changes = {**length, "supervision.refinement_batches": 1}
    whole = run(tmp_path, {**changes, "name": "whole"})

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_save_final", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, {**changes, "name": "part"})
    part = run(tmp_path, {**changes, "name": "part"}, resume=True)
    assert [line["step"] for line in steps_of(part)] == [1, 2, 3]
    assert [line["step"] for line in log_of(part) if "refinement" in line] == [0, 3]
    assert_same_terms(whole, part, rel=0)
    assert_same_weights(whole / "final", part / "final")


def test_changed_data_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path, SAVING)
    unfinish(folder, 4)
    path = tmp_path / "data.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps(records, indent=3))  # the same samples
    run(tmp_path, SAVING, resume=True)
    unfinish(folder, 4)
    for change in ("text", "image", "order"):
        changed = json.loads(json.dumps(records))
        if change == "text":
            changed[3]["conversations"][1]["value"] = "it is blue and more"
        elif change == "image":
            changed[3]["image"] = "4.png"
        else:
            changed[3], changed[4] = changed[4], changed[3]
        path.write_text(json.dumps(changed))
        with pytest.raises(
            UserError, match=r"--resume: the training data isn't what it was when .*checkpoint-3 was saved"
        ):
            run(tmp_path, SAVING, resume=True)


def test_a_checkpoint_of_another_run_is_refused(place: Path, finished: Path, tmp_path: Path) -> None:
    other = run(finished, {**SAVING, "output": str(tmp_path / "other"), "seed": 5})
    shutil.rmtree(place / "checkpoint-3")
    shutil.copytree(other / "checkpoint-3", place / "checkpoint-3")
    with pytest.raises(UserError, match=r"--resume: .*checkpoint-3 .*\n.*seed: 5 → 0"):
        resume(place, finished)
    first = {**SAVING, "output": str(tmp_path / "other"), "name": "one", "stage": 1, "lora.enabled": False}
    stage_one = run(finished, first)
    shutil.rmtree(place / "checkpoint-3")
    shutil.copytree(stage_one / "checkpoint-3", place / "checkpoint-3")
    with pytest.raises(UserError, match=r"--resume: .*checkpoint-3 (.*\n)*.*stage: 1 → 2"):
        resume(place, finished)


def test_an_older_versions_checkpoint_is_refused_by_name(place: Path, finished: Path) -> None:
    newest = place / "checkpoint-3"
    for name in (OPTIMIZER, GENERATORS, TRAINING):
        (newest / name).unlink()
    (newest / "trainer_state.json").write_text("{}")
    manifest = json.loads((newest / MANIFEST).read_text())
    manifest["files"] = {n: f for n, f in manifest["files"].items() if (newest / n).exists()}
    manifest["files"]["trainer_state.json"] = {"sha256": sha256(newest / "trainer_state.json"), "bytes": 2}
    (newest / MANIFEST).write_text(json.dumps({**manifest, "basic_lite": "0.1.0"}))
    with pytest.raises(UserError, match=r"written by basic-lite 0.1.0, which kept its training state in pickle files"):
        resume(place, finished)


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(checkpoint: Path) -> None:
        state = json.loads((checkpoint / TRAINING).read_text())
        replaced = change(state)
        (checkpoint / TRAINING).write_text(json.dumps(state if replaced is None else replaced))

    return edit


def _other_shapes(checkpoint: Path) -> None:
    save_file({name: t.flatten()[:1] for name, t in load_file(checkpoint / OPTIMIZER).items()}, checkpoint / OPTIMIZER)


def _other_8_bit_shapes(checkpoint: Path) -> None:
    state = load_file(checkpoint / OPTIMIZER)
    moments = {"exp_avg": "state1", "exp_avg_sq": "state2"}
    renamed = {"/".join(moments.get(part, part) for part in name.split("/")): t for name, t in state.items()}
    save_file({name: t.flatten()[:1].clone() for name, t in renamed.items()}, checkpoint / OPTIMIZER)


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "a list": _edit(lambda state: [1]),
    "no optimizer": _edit(lambda state: {"progress": state["progress"]}),
    "unknown progress": _edit(lambda state: state["progress"].update(colour="red")),
    "one group": _edit(lambda state: state["optimizer"].update(groups=state["optimizer"]["groups"][:1])),
    "no JSON": lambda checkpoint: (checkpoint / TRAINING).write_bytes(b"\xff{"),
    "other shapes": _other_shapes,
    "other shapes of bitsandbytes": _other_8_bit_shapes,
    "other names": lambda checkpoint: save_file(
        {"x": load_file(checkpoint / GENERATORS)["0.0"]}, checkpoint / OPTIMIZER
    ),
    "short generator": lambda checkpoint: save_file(
        {"0.0": load_file(checkpoint / GENERATORS)["0.0"][:5].clone()}, checkpoint / GENERATORS
    ),
    "no safetensors": lambda checkpoint: (checkpoint / OPTIMIZER).write_bytes(b"no tensors"),
}


# One of each file: a checkpoint before it is taken whatever is wrong in the newest one.
GO_ON = {"a list", "short generator", "no safetensors"}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_foreign_training_state_is_refused(place: Path, finished: Path, foreign: str) -> None:
    FOREIGN[foreign](place / "checkpoint-3")
    reseal(place / "checkpoint-3")
    with pytest.raises(UserError, match=r"checkpoint-3.*--checkpoint"):
        resume(place, finished)
    if foreign in GO_ON:
        resume(place, finished, checkpoint=2)  # as the message says
        assert [line["step"] for line in steps_of(place)] == [1, 2, 3, 4]


def test_a_checkpoint_that_was_cut_off_is_passed_over(
    place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed while saving continues from the one before. A damaged one is refused, another can be named."""
    # What a kill leaves: the scratch folder under its temporary name.
    shutil.copytree(place / "checkpoint-3", place / "checkpoint-4.part")
    assert [path.name for path in checkpoints_of(place)] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    with (place / "checkpoint-3" / OPTIMIZER).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(UserError, match=r"optimizer.safetensors was changed.*--checkpoint"):
        resume(place, finished)
    with pytest.raises(UserError, match=r"--checkpoint 9: .* it has 1, 2, 3"):
        resume(place, finished, checkpoint=9)
    resume(place, finished, checkpoint=2)
    assert [line["step"] for line in steps_of(place)] == [1, 2, 3, 4]
    assert (place / "set-aside-checkpoint-3").is_dir() and open_bundle(place / "checkpoint-3").step == 3
    assert_same_weights(place / "final", finished / "runs" / "tiny" / "final")
    # A second time, and from a finished run: what is made anew can't be taken for what is there.
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_save_final", stopped)
        with pytest.raises(KeyboardInterrupt):
            resume(place, finished, checkpoint=2)
    assert not (place / "final").exists() and (place / "set-aside-final").is_dir()
    resume(place, finished)
    assert_same_weights(place / "final", finished / "runs" / "tiny" / "final")


def test_what_a_person_or_a_kill_did_to_the_folders_other_files_does_not_matter(place: Path, finished: Path) -> None:
    recipe = place / "recipe.yaml"
    recipe.write_text(recipe.read_text()[:300])
    with (place / "log.jsonl").open("ab") as stream:
        stream.write(b'\xff\xfe\n[1, 2]\n7\n{"step": "x"}\n{"step": null}\n' + b"[" * 100_000 + b"\n")
    (place / "checkpoint-6").write_text("a file")
    (place / "checkpoint-²").mkdir()
    resume(place, finished)
    assert_same_weights(place / "final", finished / "runs" / "tiny" / "final")
    assert [line["step"] for line in steps_of(place)] == [1, 2, 3, 4]


def test_a_checkpoint_that_lost_its_manifest_is_not_passed_over_in_silence(place: Path, finished: Path) -> None:
    (place / "checkpoint-3" / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"checkpoint-3 lacks its manifest.json: it is damaged.*--checkpoint STEP"):
        resume(place, finished)


def test_there_is_no_run_to_continue(place: Path, finished: Path) -> None:
    with pytest.raises(UserError, match=r"--resume: there is no run in .*typo to continue; correct name or output"):
        resume(place, finished, {"name": "typo"})
    assert not (place.parent / "typo").exists()


def test_a_file_where_the_model_must_go_is_said_first(place: Path, finished: Path) -> None:
    (place / "final").write_text("a file")
    with pytest.raises(UserError, match="final is a file, and the trained model must go there"):
        resume(place, finished)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: … (os error 28)"),
        Exception("No space left on device (os error 28)"),  # as tokenizers raises it
    ],
)
def test_a_full_disk_is_said_with_the_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real, calls = tensor_files.save_file, 0

    def filling(tensors: Any, path: str, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:  # four files a checkpoint: the second one finds no room
            Path(path).write_bytes(b"half")
            raise error
        real(tensors, path, *args)

    monkeypatch.setattr(tensor_files, "save_file", filling)
    with pytest.raises(UserError, match=r"checkpoint-2 could not be saved: the disk is full.*checkpoint-1; make room"):
        run(tmp_path, SAVING)
    folder = tmp_path / "runs" / "tiny"
    assert sorted(path.name for path in folder.glob("checkpoint*")) == ["checkpoint-1"]
    monkeypatch.undo()
    if isinstance(error, OSError):  # what is left is the same, whatever was raised
        assert train(tiny_recipe(tmp_path, SAVING), resume=True, console=quiet()).steps == 4
