"""``eval --held-out``, what an export is checked with, and the note on pictures that a run was trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.data.digests import picture_digest
from basic_lite.data.images import ImageRef
from basic_lite.errors import UserError
from basic_lite.tools.compare.comparison import compared, sides_of
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.export.folder import open_source
from basic_lite.tools.export.samples import choose_samples
from basic_lite.tools.runs import row_of
from basic_lite.training.data_json import held_out_of
from tests.support.data import write_image
from tests.support.runs import quiet, run, tiny_recipe

ONE_STEP = {"training.max_steps": 1, "supervision.enabled": False}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held out a share of its twelve records."""
    folder = tmp_path_factory.mktemp("split")
    tiny_recipe(folder)
    for n, path in enumerate(sorted((folder / "images").iterdir())):  # no two are the same
        write_image(path, seed=n)
    return run(folder, {**ONE_STEP, "name": "split", "data.held_out": 0.25})


def numbers(found: Path, **how: Any) -> list[int]:
    result = evaluate_run(found, device="cpu", max_new_tokens=1, controls=0, console=quiet(), **how)
    return [one.number for one in result.predictions]


def checked_with(found: Path) -> tuple[set[int], bool]:
    """Numbers of the records that an export of the run would be checked with, and whether it calls them held out."""
    samples = choose_samples(open_source(found, None, "auto", torch.device("cpu")), 12)
    return {sample.record.number for sample in samples}, all(sample.held_out for sample in samples)


@pytest.mark.long
def test_what_a_run_held_out_is_evaluated(split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, held = split.parent.parent, held_out_of(split)
    assert held and len(held) == 3
    assert numbers(split, held_out=True) == [n + 1 for n in held]
    assert "\nnone of these 3 pictures was recognised as trained on (one that was resized" in capsys.readouterr().err
    shutil.copytree(place / "images", tmp_path / "there")
    (tmp_path / "linked").symlink_to(place / "images")
    for images in ("linked", "there"):
        evaluate_run(split, place / "data.json", image_dir=tmp_path / images, max_new_tokens=1, console=quiet())
        assert "note: 9 of these 12 pictures were trained on (one that" in capsys.readouterr().err
    loss = next(json.loads(line)["eval_loss"] for line in (split / "log.jsonl").open() if "eval_loss" in line)
    first = f"held-out loss {loss:.3f}; exact match 0.0% [0%, 56%] of 3 not recognised as trained on (held-out)"
    assert row_of(split).score == first  # whatever was measured later
    for path in split.glob("predictions_held-out*"):
        path.unlink()
    assert (
        row_of(split).score
        == f"held-out loss {loss:.3f}; exact match 0.0% [0%, 56%] of 3 not recognised as trained on (data.json)"
    )


def test_predictions_tell_a_picture_from_another_of_its_name(split: Path, tmp_path: Path) -> None:
    found = []
    for name in ("same", "other"):
        shutil.copytree(split.parent.parent / "images", tmp_path / name)
        if name == "other":
            write_image(tmp_path / name / "1.png", seed=99)
        found.append(tmp_path / f"{name}.jsonl")
        how = {"image_dir": tmp_path / name, "limit": 3, "max_new_tokens": 1, "controls": 0}
        evaluate_run(split, split.parent.parent / "data.json", out=found[-1], console=quiet(), device="cpu", **how)
    first = json.loads(found[0].read_text().splitlines()[0])
    assert first["image_digests"] == [picture_digest(ImageRef(first["images"][0], str(tmp_path / "same"))).hex()]
    with pytest.raises(UserError, match=r"other pictures: 1 of 3 have .* as number 2 \(.*1\.png"):
        compared(sides_of(found, []))


def test_held_out_records_are_found_where_they_are_now(split: Path) -> None:
    data, held = split.parent.parent / "data.json", held_out_of(split) or []
    text = data.read_text(encoding="utf-8")
    records = json.loads(text)
    try:
        data.write_text(json.dumps(records[::-1]), encoding="utf-8")
        found = sorted(len(records) - n for n in held)
        assert numbers(split, held_out=True) == found
        assert checked_with(split) == (set(found), True)
        data.write_text(json.dumps([*records[:1], *records]), encoding="utf-8")  # one more, at the top
        assert numbers(split, held_out=True) == [n + 2 for n in held]
        for others in (records[: held[-1]], [one | {"image": "0.png"} for one in records]):
            data.write_text(json.dumps(others), encoding="utf-8")
            with pytest.raises(UserError, match=r"which records of data.train were held out can't be told any more"):
                numbers(split, held_out=True)
            assert checked_with(split) == (set(range(1, len(others) + 1)), False)
    finally:
        data.write_text(text, encoding="utf-8")
    numbers(split, held_out=True)
    assert row_of(split).score.endswith(" 0.0% [0%, 56%] of 3 not recognised as trained on (held-out)")
    assert row_of(split).state == "finished, 1 step"


def test_data_of_its_own_is_evaluated_too(split: Path, tmp_path: Path) -> None:
    place = split.parent.parent
    (tmp_path / "e.json").write_text(json.dumps([*json.loads((place / "data.json").read_text())[4:6], {"id": 1}]))
    source = {"path": str(tmp_path / "e.json"), "image_dir": str(place / "images")}
    own = run(place, {**ONE_STEP, "name": "own", "data.eval": source, "data.bad_records": "drop"})
    assert numbers(own, held_out=True) == [1, 2] and numbers(own, held_out=True, limit=1) == [1]


def test_what_cannot_be_told_is_refused(split: Path, tmp_path: Path) -> None:
    place = split.parent.parent
    for how in ({}, {"data": place / "data.json", "held_out": True}):
        with pytest.raises(UserError, match="--data FILE, or --held-out"):
            evaluate_run(split, **how)  # type: ignore[arg-type]
    shutil.copytree(split / "final", tmp_path / "moved" / "final")
    with pytest.raises(UserError, match=r"can't be told any more: .*moved/data.json"):
        evaluate_run(tmp_path / "moved", held_out=True)
    nothing = run(place, {**ONE_STEP, "name": "nothing"})
    with pytest.raises(UserError, match="kept no data for evaluation"):
        evaluate_run(nothing, held_out=True)
