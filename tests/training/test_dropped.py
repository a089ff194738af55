"""A picture that breaks while a run goes on: its step is exactly the step of the remaining samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.data.prepare import Prepared, prepare_data
from basic_lite.errors import UserError
from basic_lite.model.frontend import load_frontend
from basic_lite.run import train
from basic_lite.tools.export.folder import open_source
from basic_lite.tools.export.samples import choose_samples
from basic_lite.training import loop
from basic_lite.training.batches import Schedule
from tests.support.runs import (
    LOUD,
    assert_same_terms,
    assert_same_weights,
    log_of,
    quiet,
    run,
    steps_of,
    tiny_recipe,
    write_data,
)

Changes = dict[str, Any]
# The check sees that a file is there, so what is broken from the start is met in training.
MET: Changes = {"data.check_images": "exists", "data.bad_records": "drop", "data.group_by": "none", **LOUD}
MET |= {"training.max_steps": 5, "training.save_every": 1, "training.keep": 9, "lora.dropout": 0.2}


def prepared(folder: Path, changes: Changes) -> Prepared:
    recipe = tiny_recipe(folder, changes)
    return prepare_data(recipe, load_frontend(recipe.model), say=lambda text: None)


def order_of(folder: Path, changes: Changes) -> list[int]:
    """The samples of the first epoch in their order."""
    return list(prepared(folder, changes).sampler.order(0).tolist())


def cut(folder: Path, number: int) -> None:
    path = folder / "images" / f"{number}.png"
    path.write_bytes(path.read_bytes()[:50])


def breaking_at_start(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """The picture breaks after everything was checked, before the first step."""
    start = loop.Loop._start

    def broken(self: loop.Loop) -> Any:
        cut(folder, number)
        return start(self)

    monkeypatch.setattr(loop.Loop, "_start", broken)


def without(monkeypatch: pytest.MonkeyPatch, *lost: int) -> None:
    """The reference: micro-batches from which samples were taken before anything reads them."""
    micro_batches = Schedule.micro_batches

    def fewer(self: Schedule, step: int, processes: Any) -> list[list[int]]:
        left = [[i for i in group if i not in lost] for group in micro_batches(self, step, processes)]
        return [group for group in left if group]

    monkeypatch.setattr(Schedule, "micro_batches", fewer)


@pytest.mark.parametrize(
    ("workers", "micro", "switches"),
    [
        (0, 2, {}),
        pytest.param(2, 1, {}, marks=pytest.mark.long),  # a micro-batch that lost all it had
        pytest.param(0, 4, {"supervision.token_weights": "uniform"}, marks=pytest.mark.soak),
    ],
)
def test_a_step_is_that_of_the_samples_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, micro: int, switches: Changes
) -> None:
    write_data(tmp_path, 9, text_only=2)
    changes = {**MET, **switches, "data.workers": workers, "training.micro_batch": micro}
    lost = next(number for number in order_of(tmp_path, changes)[4:] if number < 9)  # a picture of step 2
    step = order_of(tmp_path, changes).index(lost) // 4 + 1
    with monkeypatch.context() as patch:
        without(patch, lost)
        expected = run(tmp_path, {**changes, "name": "expected"})
    cut(tmp_path, lost)
    console = quiet()
    folder = train(tiny_recipe(tmp_path, {**changes, "name": "dropped"}), console=console).folder
    assert_same_terms(expected, folder, rel=0)
    assert_same_weights(expected / "final", folder / "final")
    said = [line["step"] for line in log_of(folder) if "dropped" in line]
    assert said[0] == step and len(said) == 2  # five steps are almost two epochs
    written = json.loads((folder / "data.json").read_text())["dropped_while_training"]
    assert [line["step"] for line in written] == said
    assert f"record {lost + 1} (id {lost}): image '{lost}.png' can't be decoded" in written[0]["records"][0]
    assert f"dropped in step {step}: " in console.file.getvalue()  # type: ignore[attr-defined]
    assert "dropped_while_training" not in (expected / "data.json").read_text()


@pytest.mark.long
def test_a_run_goes_on_with_the_samples_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture was broken at the start, one breaks later: a resumed run drops the same ones in the same steps."""
    write_data(tmp_path, 12)
    cut(tmp_path, 3)
    changes = {**MET, "data.check_images": "open"}
    place = order_of(tmp_path, changes)[9]  # met in step 3
    later = int(prepared(tmp_path, changes).report.kept[place])
    good = (tmp_path / "images" / f"{later}.png").read_bytes()
    with monkeypatch.context() as patch:
        breaking_at_start(patch, tmp_path, later)
        whole = run(tmp_path, {**changes, "name": "whole"})
    dropped = [line for line in log_of(whole) if "dropped" in line]
    assert dropped[0]["step"] == 3 and f"{later}.png" in dropped[0]["dropped"][0]
    for step in (2, 3):  # before and after the step that lost a sample
        folder = tmp_path / "runs" / f"part{step}"
        shutil.copytree(whole, folder)
        shutil.rmtree(folder / "final")
        run(tmp_path, {**changes, "name": folder.name}, resume=True, checkpoint=step)
        assert_same_terms(whole, folder, rel=0)
        assert_same_weights(whole / "final", folder / "final")
        assert [line for line in log_of(folder) if "dropped" in line] == dropped
        both = [json.loads((one / "data.json").read_text()) for one in (whole, folder)]
        for name in ("dropped_while_training", "broken_pictures", "used"):
            assert both[0].get(name) == both[1].get(name) and both[0]["train"].get(name) == both[1]["train"].get(name)
        assert both[1]["train"]["broken_pictures"] == [3]
    # Repaired in the meantime, it is trained on from there.
    (tmp_path / "images" / f"{later}.png").write_bytes(good)
    shutil.rmtree(folder / "final")
    run(tmp_path, {**changes, "name": folder.name}, resume=True, checkpoint=2)
    assert not [line for line in log_of(folder) if "dropped" in line]


@pytest.mark.long
def test_a_run_that_stopped_can_go_on_without_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path, 12)
    place = order_of(tmp_path, MET)[5]
    with monkeypatch.context() as patch:
        without(patch, place)
        expected = run(tmp_path, {**MET, "name": "expected"})
    # Saved when it stops, between two steps.
    opened = {**MET, "data.check_images": "open", "training.save_every": 9}
    with monkeypatch.context() as patch:
        breaking_at_start(patch, tmp_path, place)
        with pytest.raises(UserError, match=r"it was whole before the run; continue with --resume, .*bad_records=drop"):
            run(tmp_path, {**opened, "data.bad_records": "refuse"})
    folder = run(tmp_path, opened, resume=True)
    assert_same_weights(expected / "final", folder / "final")
    assert [line["step"] for line in steps_of(folder)] == [1, 2, 3, 4, 5]


def test_a_step_without_any_sample_changes_nothing(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    changes = {**MET, "training.global_batch": 1, "training.micro_batch": 1, "training.scheduler": "linear"}
    order = order_of(tmp_path, changes)
    whole = run(tmp_path, {**changes, "name": "whole"})
    cut(tmp_path, order[2])
    folder = run(tmp_path, {**changes, "name": "lost"})
    assert [line["step"] for line in steps_of(folder)] == [1, 2, 4, 5]
    rates = [{line["step"]: line["lr_lora"] for line in steps_of(one)} for one in (whole, folder)]
    assert all(rates[1][step] == rates[0][step] for step in rates[1])
    assert_same_weights(folder / "checkpoint-2", folder / "checkpoint-3")


@pytest.mark.long
def test_a_disk_that_is_gone_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path, 40)
    changes = {**MET, "training.global_batch": 8, "training.max_steps": 4}
    whole = run(tmp_path, {**changes, "name": "whole"})
    log = loop.Loop._log

    def vanishing(self: loop.Loop, step: int, *rest: Any) -> None:
        log(self, step, *rest)
        if step == 1:
            (tmp_path / "images").rename(tmp_path / "away")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_log", vanishing)
        with pytest.raises(UserError, match=r"step 3: none of the last 16 records could be read; is the folder"):
            run(tmp_path, changes)
    (tmp_path / "away").rename(tmp_path / "images")
    folder = run(tmp_path, changes, resume=True, checkpoint=1)
    assert_same_weights(whole / "final", folder / "final")


@pytest.mark.long
def test_held_out_records_are_dropped_too(tmp_path: Path) -> None:
    write_data(tmp_path, 12)
    records = json.loads((tmp_path / "data.json").read_text())
    for name, held in (("eval", records[:5]), ("fewer", [*records[:2], *records[3:5]])):
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
    (tmp_path / "train.json").write_text(json.dumps(records[5:]))
    images = str(tmp_path / "images")

    def changes(name: str) -> Changes:
        return {
            **MET,
            "name": name,
            "training.eval_every": 2,
            "supervision.refinement_batches": 2,
            "data.train": {"path": str(tmp_path / "train.json"), "image_dir": images},
            "data.eval": {"path": str(tmp_path / f"{name}.json"), "image_dir": images},
        }

    fewer = run(tmp_path, changes("fewer"))
    cut(tmp_path, 2)
    folder = run(tmp_path, changes("eval"))
    losses = [[line["eval_loss"] for line in log_of(one) if "eval_loss" in line] for one in (fewer, folder)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(losses[0]) == 3
    dropped = [(line["step"], len(line["dropped"])) for line in log_of(folder) if "dropped" in line]
    assert dropped == [(2, 1), (4, 1), (5, 1)]
    assert sum("refinement" in line for line in log_of(folder)) == 4
    shutil.rmtree(tmp_path / "images")
    for number in range(5, 12):
        write_one(tmp_path, number)
    with pytest.raises(
        UserError, match=r"evaluation after step 2: none of the 5 held-out records can be read any more"
    ):
        run(tmp_path, {**changes("eval"), "name": "none", "data.check_images": "none"})
    # Once they are there again, the evaluation that is missing comes first.
    write_data(tmp_path, 12)
    again = run(tmp_path, {**changes("eval"), "name": "none", "data.check_images": "none"}, resume=True)
    assert [line["step"] for line in log_of(again) if "eval_loss" in line] == [2, 4, 5]


def write_one(folder: Path, number: int) -> None:
    from PIL import Image

    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (20, 16), (number, 0, 0)).save(folder / "images" / f"{number}.png")


@pytest.mark.long
def test_a_share_of_the_data_is_held_out(tmp_path: Path) -> None:
    """The run is the one whose data.train and data.eval name these records."""
    write_data(tmp_path, 12, text_only=3)
    changes: Changes = {**LOUD, "data.held_out": 0.3, "training.eval_every": 2, "supervision.refinement_batches": 1}
    console = quiet()
    folder = train(tiny_recipe(tmp_path, changes), console=console).folder
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "data.held_out: 4 of these records are kept for evaluation, 11 are trained on" in said
    data = json.loads((folder / "data.json").read_text())
    held = data["eval"]["held_out"]
    assert len(held) == data["eval"]["used"] == 4 and data["train"]["used"] == 11
    records = json.loads((tmp_path / "data.json").read_text())
    sides = {"train": [r for n, r in enumerate(records) if n not in held], "eval": [records[n] for n in held]}
    given: Changes = {"name": "given", "data.held_out": None}
    for name, side in sides.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(side))
        given[f"data.{name}"] = {"path": str(tmp_path / f"{name}.json"), "image_dir": str(tmp_path / "images")}
    other = run(tmp_path, {**changes, **given})
    assert_same_terms(folder, other, rel=0)
    assert_same_weights(folder / "final", other / "final")
    losses = [[line["eval_loss"] for line in log_of(one) if "eval_loss" in line] for one in (folder, other)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    # An export is checked on them.
    samples = choose_samples(open_source(folder, None, "auto", torch.device("cpu")), 9)
    assert [sample.record.number - 1 for sample in samples] == held
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoint-4", ignore_errors=True)
    run(tmp_path, changes, resume=True)
    assert_same_weights(folder / "final", other / "final")
    shutil.rmtree(folder / "final")
    with pytest.raises(UserError, match=r"data.held_out: 0.3 → 0.2"):
        run(tmp_path, {**changes, "data.held_out": 0.2, "training.save_every": 1}, resume=True)
