"""A run goes on while its model is loaded elsewhere: bundles are replaced and deleted. No model gets another's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.errors import UserError
from basic_lite.tools import evaluate, text_probe
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.export import check, command
from basic_lite.tools.export.command import export
from basic_lite.tools.export.merge import Merge
from basic_lite.tools.text_probe import probe_run
from basic_lite.training import bundle
from basic_lite.training.bundle import load_trained
from basic_lite.training.bundle_files import ADAPTER_WEIGHTS, OPTIMIZER
from basic_lite.training.files import sha256
from basic_lite.training.places import MANIFEST, PROJECTOR
from basic_lite.training.text_probe.measure import FROZEN
from basic_lite.training.text_probe.outcome import NoOutcome
from tests.support.runs import quiet, run

REFUSED = r"checkpoint-1 was replaced or deleted while it was read .*; give the command again"
SAVING = {"training.max_steps": 2, "training.save_every": 1, "training.keep": 9}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("finished"), SAVING)


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def take(place: Path, other: Path) -> None:
    """As the run does with a better step: the other bundle takes the place."""
    shutil.rmtree(place)
    shutil.copytree(other, place)


def before(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, act: Callable[[], object]) -> None:
    """Something happens just before a function of a module runs."""
    real = getattr(place, name)

    def late(*arguments: Any, **options: Any) -> Any:
        act()
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, late)


@pytest.mark.parametrize("changed", ["", PROJECTOR, ADAPTER_WEIGHTS])
@pytest.mark.parametrize("replaced", [True, False])
def test_a_bundle_that_changes_while_the_model_is_loaded_is_refused(
    changed: str, replaced: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights were taken for those of the step that was there before; of a deleted one, the message misled."""
    place, other = folder / "checkpoint-1", folder / "final"

    def change() -> None:
        if not changed:
            take(place, other) if replaced else shutil.rmtree(place)
        elif replaced:
            shutil.copyfile(other / changed, place / changed)
        else:
            (place / changed).unlink()

    before(monkeypatch, bundle, "load_base", change)
    with pytest.raises(
        UserError, match=r"checkpoint-1 was replaced or deleted while it was read .*; give the command again"
    ):
        load_trained(place, torch.device("cpu"))


def test_an_export_is_of_one_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each LoRA is read when its layer is written: an export had some of either step."""
    place, real, made = folder / "checkpoint-1", Merge.tensor, list[str]()

    def tensor(merge: Merge, name: str) -> torch.Tensor:
        made.append(name)
        if len(made) == 20:
            take(place, folder / "final")
        return real(merge, name)

    monkeypatch.setattr(Merge, "tensor", tensor)
    with pytest.raises(UserError, match=REFUSED):
        export(place, tmp_path / "out", samples=0, device="cpu", console=quiet())
    assert len(made) > 20 and not (tmp_path / "out").exists()


def test_an_export_is_compared_with_the_model_that_it_was_made_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was compared with the later step, and said not to answer as the trained model does."""
    place = folder / "checkpoint-1"
    before(monkeypatch, check, "load_trained", lambda: take(place, folder / "final"))
    with pytest.raises(UserError, match=REFUSED):
        export(place, tmp_path / "out", samples=1, device="cpu", console=quiet())


def test_an_export_looks_at_what_it_reads(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's optimizer is twice as large as what was trained."""
    before(monkeypatch, command, "write_weights", (folder / "checkpoint-1" / OPTIMIZER).unlink)
    export(folder / "checkpoint-1", tmp_path / "out", samples=0, device="cpu", console=quiet())
    assert (tmp_path / "out" / "config.json").is_file()


def test_an_evaluation_names_the_model_that_answered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = shutil.copytree(folder / "checkpoint-1", folder / "best")
    opened = sha256(place / MANIFEST)
    questions = folder.parent / "q.json"
    questions.write_text(json.dumps([{"question": "what?", "answer": "red"}]))
    before(monkeypatch, evaluate, "make_ready", lambda: take(place, folder / "final"))
    settings = evaluate_run(place, questions, device="cpu").settings
    assert (settings["step"], settings["model_sha256"]) == (1, opened)


def test_the_text_probe_names_the_model_that_it_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest checkpoint may be a later one when the model is loaded."""
    shutil.rmtree(folder / "final")
    later = shutil.move(folder / "checkpoint-2", folder.parent / "later")
    before(monkeypatch, text_probe, "load_trained", lambda: shutil.move(later, folder / "checkpoint-2"))
    monkeypatch.setattr(text_probe, "measured", lambda *_: NoOutcome(FROZEN))
    probe_run(folder, device="cpu")
    (kept,) = folder.glob("text_probe_*.json")
    found = json.loads(kept.read_text())
    assert (kept.name, found["step"]) == ("text_probe_checkpoint-2.json", 2)
    assert found["model_sha256"] == sha256(folder / "checkpoint-2" / MANIFEST)
