"""What can't be exported is refused in one sentence, and what went wrong leaves nothing that looks whole."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from basic_lite.cli import main
from basic_lite.errors import UserError
from basic_lite.tools.export import command, tensors
from basic_lite.tools.export.command import export
from basic_lite.tools.export.merge import Merge
from basic_lite.training.bundle_files import open_bundle
from basic_lite.training.places import LOCK
from tests.support.bundles import random_run, write_random_bundle
from tests.support.models import write_llm, write_vision
from tests.support.runs import quiet, whole_recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return random_run(tmp_path)


def refused(run: Path, out: Path, **options: Any) -> str:
    """The message of an export that is refused; nothing is left beside what was there."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError) as caught:
        export(run, out, console=quiet(), **options)
    assert sorted(out.parent.iterdir()) == before
    return str(caught.value)


def test_a_folder_that_exists(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert "exists already" in refused(run, out, samples=0)
    assert "exists already" in refused(run, out / "mine.txt", samples=0)
    (out / "mine.txt").unlink()
    assert export(run, out, samples=0, console=quiet()) and (out / "config.json").is_file()  # an empty folder will do


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    bundle = write_random_bundle(run / "checkpoint-2", whole_recipe(tmp_path), step=2)
    message = refused(run, tmp_path / "out")
    assert "isn't finished" in message and "step 2 of 4" in message and str(bundle) in message
    assert "Finish it with `basic-lite train … --resume`, or name the checkpoint" in message
    with FileLock(run / LOCK):
        assert "It trains now: wait until it ends, or name the checkpoint" in refused(run, tmp_path / "out")
    assert export(bundle, tmp_path / "out", samples=0, console=quiet())
    assert json.loads((tmp_path / "out" / "export.json").read_text())["step"] == 2


def test_no_run(tmp_path: Path) -> None:
    assert "there is no folder" in refused(tmp_path / "nothing", tmp_path / "out")


def test_a_model_of_transformers_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for place, says in ((tmp_path, "is a model as transformers reads it"), (Path("some/vlm"), "is no folder here")):
        message = refused(place, tmp_path / "out")
        assert says in message and "export takes a run of basic-lite" in message


def test_a_base_that_cannot_be_found(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "llm")
    message = refused(run, tmp_path / "out")
    assert "model.llm" in message and "there is no folder" in message


def test_a_base_without_weights(run: Path, tmp_path: Path) -> None:
    weights = tmp_path / "llm" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    assert "can't read" in refused(run, tmp_path / "out")
    weights.unlink()
    assert "has no weights" in refused(run, tmp_path / "out")


def test_another_base(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "llm")
    write_llm(tmp_path / "llm", num_hidden_layers=3)
    assert "doesn't fit this model" in refused(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "llm")
    write_llm(tmp_path / "llm", intermediate_size=64)  # the same by what a bundle remembers
    assert "the adapter was trained on weights of" in refused(run, tmp_path / "out")
    write_llm(tmp_path / "llm")
    vision = load_file(tmp_path / "vision" / "model.safetensors")
    name = next(name for name in vision if name.endswith("pre_layrnorm.weight"))
    save_file(vision | {name: vision[name][:-2].clone()}, tmp_path / "vision" / "model.safetensors", {"format": "pt"})
    message = refused(run, tmp_path / "out")
    assert "model.vision" in message and "has shape [30], trained was [32]" in message
    save_file({}, tmp_path / "vision" / "model.safetensors", {"format": "pt"})
    assert "has no tensor for vision_tower" in refused(run, tmp_path / "out")


def test_a_bundle_that_was_changed(run: Path, tmp_path: Path) -> None:
    with (run / "final" / "projector.safetensors").open("ab") as file:
        file.write(b"0")
    assert "doesn't hold together" in refused(run, tmp_path / "out")


def test_a_merge_into_what_there_is_not(tmp_path: Path) -> None:
    run = random_run(tmp_path, {"quantization.mode": "none"})
    assert "--merge-into original" in refused(run, tmp_path / "out", merge_into="quantized")


def test_data_that_is_gone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "data.json").unlink()
    assert "--no-check" in refused(run, tmp_path / "out")
    assert export(run, tmp_path / "out", samples=0, console=quiet())


def test_too_little_room(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(command, "free_bytes", lambda folder: 1000)
        assert "make room" in refused(run, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(command.psutil, "virtual_memory", lambda: namedtuple("memory", "available")(1000))
        assert "--no-check" in refused(run, tmp_path / "out")
        assert export(run, tmp_path / "out", samples=0, console=quiet())


def test_a_weight_that_the_chosen_type_cannot_hold(tmp_path: Path) -> None:
    write_llm(tmp_path / "llm")
    write_vision(tmp_path / "vision")
    weights = tmp_path / "llm" / "model.safetensors"
    state = load_file(weights)
    state["model.layers.0.mlp.gate_proj.weight"][0, 0] = 1e5
    save_file(state, weights, {"format": "pt"})
    run = random_run(tmp_path)
    message = refused(run, tmp_path / "out", samples=0, dtype="float16")
    assert "gate_proj.weight holds 1e+05, which float16 can't; choose --dtype bfloat16" in message
    assert export(run, tmp_path / "out", samples=0, dtype="bfloat16", console=quiet())


def test_a_disk_that_fills_up(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "save_tensors", full)
    assert "the disk is full" in refused(run, tmp_path / "out")


def test_ctrl_c_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "model_card", stop)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "out", samples=0, console=quiet())
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".basic-lite*"))


def test_what_lies_beside_is_not_touched(tmp_path: Path) -> None:
    """Even where its name is that of the folder and an ending; one of them is the run itself."""
    run = random_run(tmp_path)
    old = run.rename(tmp_path / "mine.old")
    (tmp_path / "mine.part").mkdir()
    (tmp_path / "mine.part" / "precious").write_text("mine")
    assert export(old, tmp_path / "mine", samples=0, console=quiet())
    assert (tmp_path / "mine.part" / "precious").is_file() and open_bundle(old).step == 4


def test_places_that_people_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    assert export(run, tmp_path / "link", samples=0, console=quiet())
    assert (tmp_path / "link").is_symlink() and (tmp_path / "linked" / "config.json").is_file()
    assert "can't be written" in refused(run, tmp_path / ("x" * 300), samples=0)
    assert export(run, Path("new/deep/"), samples=0, console=quiet()) and Path("new/deep/config.json").is_file()


@pytest.mark.long
def test_generation_settings_of_the_llm_change_no_answer(tmp_path: Path) -> None:
    write_llm(tmp_path / "llm")
    settings = tmp_path / "llm" / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"repetition_penalty": 1.8, "do_sample": True}))
    write_vision(tmp_path / "vision")
    assert export(random_run(tmp_path), tmp_path / "out", samples=4, console=quiet())
    assert json.loads((tmp_path / "out" / "export.json").read_text())["check"]["same_answers"] == 4


def test_a_log_that_was_cut_off_and_goes_on(tmp_path: Path) -> None:
    """The card of a checkpoint has the figures up to its step."""
    run = tmp_path / "runs" / "tiny"
    bundle = write_random_bundle(run / "checkpoint-2", whole_recipe(tmp_path), step=2)
    lines = [{"step": 2, "eval_loss": 3.25}, {"step": 4, "eval_loss": 1.25}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "ste')
    (tmp_path / "llm" / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert export(bundle, tmp_path / "out", samples=0, console=quiet())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "3.2500" in card and "1.25" not in card and "at step 2" in card


def test_a_head_that_the_configuration_denies(tmp_path: Path) -> None:
    write_llm(tmp_path / "llm", tie_word_embeddings=True)
    write_vision(tmp_path / "vision")
    run, weights = random_run(tmp_path), tmp_path / "llm" / "model.safetensors"
    state = load_file(weights)
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"] * 2}, weights, {"format": "pt"})
    assert "tie_word_embeddings" in refused(run, tmp_path / "out")


@pytest.mark.parametrize(
    ("scale", "into", "mode"),
    [
        (4.0, "quantized", "nf4"),
        pytest.param(0.0, "original", "nf4", marks=pytest.mark.soak),
        pytest.param(0.0, "original", "none", marks=pytest.mark.soak),
    ],
)
def test_a_wrong_merge_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, into: str, mode: str
) -> None:
    """LoRA with twice its scale, as it comes out where alpha and rank are mixed up, or left out."""
    write_llm(tmp_path / "llm", initializer_range=0.1)
    write_vision(tmp_path / "vision")
    run = random_run(tmp_path, {"quantization.mode": mode})
    right = Merge.tensor

    def wrong(self: Merge, name: str) -> torch.Tensor:
        self.scale = scale
        return right(self, name)

    out = tmp_path / "right"
    assert export(run, out, merge_into=into, samples=2, console=quiet())  # type: ignore[arg-type]
    monkeypatch.setattr(Merge, "tensor", wrong)
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run), str(tmp_path / "out"), "--samples", "2", "--merge-into", into])
    assert stopped.value.code == 1
    report = json.loads((tmp_path / "out" / "export.json").read_text())["check"]
    assert not report["passed"] and report["drift"][into]["kl"] > report["limit"]
    assert "FAILED" in (tmp_path / "out" / "README.md").read_text()


def test_other_inputs_fail_the_check(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that does something else than training did, whatever the logits say."""
    from basic_lite.tools.export import files

    right = files.image_processor_config
    monkeypatch.setattr(files, "image_processor_config", lambda *given: right(*given) | {"resample": 0})
    assert not export(run, tmp_path / "out", samples=2, console=quiet())
    report = json.loads((tmp_path / "out" / "export.json").read_text())["check"]
    assert report["same_pixels"] == 0 and report["same_ids"] == 2 and not report["passed"]
    assert report["drift"]["quantized"]["kl"] < report["limit"]


def test_the_command_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert stopped.value.code == 2 and "there is no folder" in capsys.readouterr().err


def test_a_bundle_inside_a_run_is_taken_as_it_is(run: Path, tmp_path: Path) -> None:
    assert open_bundle(run / "final").step == 4
    assert export(run / "final", tmp_path / "out", samples=0, console=quiet())


@pytest.mark.parametrize(
    "same, said, more", [(4, "answers as", ""), (2, "predicts nearly as", ", and 2 of 4 answers are the same")]
)
def test_what_it_says_of_the_answers_is_what_the_check_found(same: int, said: str, more: str) -> None:
    drift = {"original": SimpleNamespace(kl=0.02)}
    found = SimpleNamespace(passed=True, samples=4, same_answers=same, merged_into="original", drift=drift, limit=0.05)
    told = command._verdict(Path("out"), SimpleNamespace(changed=False), found)  # type: ignore[arg-type]
    assert told == f"exported to out: it {said} the trained model does (KL 0.02 ≤ 0.05 nats a token){more}"
