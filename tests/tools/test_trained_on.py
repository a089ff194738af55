"""Which pictures a run was trained on, wherever they lie now, and the score that is split by it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from basic_lite.data.images import ImageRef
from basic_lite.data.records import Record, Turn
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.runs import row_of
from basic_lite.tools.trained_on import TrainedOn, trained_on
from basic_lite.training.bundle_files import look_at_bundle
from basic_lite.training.data_json import held_out_of
from tests.support.data import write_image
from tests.support.runs import quiet, run, tiny_recipe

ONE_STEP = {"training.max_steps": 1, "supervision.enabled": False}
COUNT = 8


def table(folder: Path, names: list[str], path: str = "t.csv") -> Path:
    with (folder / path).open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("image", "question", "answer"), *((n, "what is it ?", "it is red") for n in names)]
        )
    return folder / path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held out two of eight pictures. Paths of its data are relative, so a copy of all is a run too."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_recipe(folder)
    shutil.rmtree(folder / "images")
    for n in range(COUNT):
        write_image(folder / "images" / f"{n}.png", size=(8, 6 + n % 4), seed=n)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made(folder)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def made(place: Path, changes: dict[str, Any] | None = None, name: str = "one") -> Path:
    table(place, [f"{n}.png" for n in range(COUNT)])
    train = {"path": "t.csv", "image_dir": "images"}
    return run(place, {**ONE_STEP, "name": name, "data.train": train, "data.held_out": 0.25, **(changes or {})})


def look(found: Path, *images: ImageRef) -> TrainedOn:
    records = [Record(n, "", "s", (image,), ()) for n, image in enumerate(images, 1)]
    return trained_on(look_at_bundle(found), records, lambda total: nullcontext(lambda done: None))


def of(folder: Path, *numbers: int) -> list[ImageRef]:
    return [ImageRef(f"{n}.png", str(folder)) for n in numbers]


def test_copies_are_known_by_what_is_in_them(place: Path) -> None:
    found = place / "runs" / "one"
    held = held_out_of(found)
    assert held and len(held) == 2
    expected = [n not in held for n in range(COUNT)]
    seen = COUNT - len(held)
    told = look(found, *of(place / "images", *range(COUNT)))
    assert told.marks == expected and told.notes == [f"note: {seen} of these {COUNT} pictures were trained on"]
    # Other folder, other names, one as bytes; and two files that have a trained one's size, but not its bytes.
    (place / "away").mkdir()
    for n in range(COUNT):
        shutil.copy(place / "images" / f"{n}.png", place / "away" / f"photo {n}.jpg")
    copies = [ImageRef(f"photo {n}.jpg", str(place / "away")) for n in range(COUNT)]
    trained = expected.index(True)
    data = (place / "images" / f"{trained}.png").read_bytes()
    other = data[:-1] + bytes([data[-1] ^ 1])
    (place / "away" / "0.png").write_bytes(other)
    blobs = [ImageRef("x", blob=data), ImageRef("x", blob=other), ImageRef("0.png", str(place / "away"))]
    told = look(found, *copies, *blobs)
    assert told.marks == [*expected, True, False, False]
    (note,) = told.notes
    assert note == f"note: {seen + 1} of these {COUNT + 3} pictures were trained on"


def test_order_and_names_of_the_table_may_change(place: Path) -> None:
    found = place / "runs" / "one"
    held = held_out_of(found) or []
    table(place, [f"{n}.png" for n in reversed(range(COUNT))])
    told = look(found, *of(place / "images", *range(COUNT)))
    assert told.marks == [n not in held for n in range(COUNT)]
    table(place, [f"{n}.png" for n in range(4)])
    told = look(found, *of(place / "images", *range(COUNT)))
    assert told.marks == [n not in held and n < 4 for n in range(COUNT)]
    assert any("has 4 records now and had 8" in note for note in told.notes)


def test_what_is_gone_is_said(place: Path) -> None:
    found = place / "runs" / "one"
    held = held_out_of(found) or []
    shutil.copytree(place / "images", place / "kept")
    first = next(n for n in range(COUNT) if n not in held)
    (place / "images" / f"{first}.png").unlink()
    told = look(found, *of(place / "kept", *range(COUNT)))
    assert told.marks == [n not in held and n != first for n in range(COUNT)]
    assert "note: 1 of 6 training pictures aren't where they were, so copies" in told.notes[1]
    shutil.rmtree(place / "images")
    (place / "images").mkdir()
    told = look(found, *of(place / "kept", *range(COUNT)))
    assert told.marks == [None] * COUNT and "6 of 6 training pictures aren't where they were" in told.notes[0]
    (place / "t.csv").unlink()
    told = look(found, *of(place / "kept", *range(COUNT)))
    assert told.marks == [None] * COUNT and "can't be told any more" in told.notes[0]


def test_what_an_earlier_run_was_trained_on_counts(place: Path) -> None:
    first = place / "runs" / "one"
    held = held_out_of(first) or []
    second = made(place, {"model.start": str(first), "model.llm": None, "model.vision": None, "seed": 1}, "two")
    assert set(held_out_of(second) or []) != set(held)
    told = look(second, *of(place / "images", *range(COUNT)))
    assert told.marks == [n not in set(held) & set(held_out_of(second) or []) for n in range(COUNT)]
    shutil.rmtree(first)
    told = look(second, *of(place / "images", *range(COUNT)))
    assert told.marks == [n not in (held_out_of(second) or []) for n in range(COUNT)]
    assert f"{first / 'final'}, which this run started from, can't be read" in told.notes[-1]


def test_texts_without_pictures(place: Path) -> None:
    turns = [{"from": "human", "value": "how many ?"}, {"from": "gpt", "value": "two"}]
    image = {"image": "0.png", "question": "what is it ?", "answer": "it is red"}
    (place / "d.json").write_text(json.dumps([image, {"conversations": turns}]))
    train = {"path": str(place / "d.json"), "image_dir": str(place / "images")}
    found = made(place, {"data.train": train, "data.held_out": None}, "texts")
    same = (Turn("human", "how many ?"), Turn("gpt", "two"))
    records = [Record(1, "", "s", (), same), Record(2, "", "s", (), (Turn("human", "how ?"), *same[1:]))]
    told = trained_on(look_at_bundle(found), records, lambda total: nullcontext(lambda done: None))
    assert told.marks == [True, False]
    assert told.notes == ["note: 1 of these 2 records without a picture were trained on"]


def test_the_table_shows_both_and_the_list_of_runs_the_new_ones(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = place / "runs" / "one"
    console = Console(file=io.StringIO(), width=120)
    shutil.copytree(place / "images", place / "copies")
    options: dict[str, Any] = {"image_dir": place / "copies", "max_new_tokens": 1, "console": console}
    result = evaluate_run(found, place / "t.csv", **options)
    new, old = result.not_trained_on, result.trained_on
    assert new and old and (new.n, old.n) == (2, 6) and result.counts["all"] == 8
    assert [one.trained_on for one in result.predictions] == [n not in held_out_of(found) for n in range(COUNT)]  # type: ignore[operator]
    head, row = console.file.getvalue().splitlines()[:2]  # type: ignore[attr-defined]
    assert head.split("  ") and head.index("not trained on") < head.rindex("trained on")
    assert row.split() == ["all", "2", "0.000", "0.00", "to", "0.66", "6", "0.000", "0.00", "to", "0.39"]
    said = capsys.readouterr().err
    assert "2 answers are few: among many more like these, the share may well be 0.00 to 0.66" in said
    assert said.count("exact match wants the reference word for word") == 1
    assert row_of(found).score.endswith("exact match 0.0% of 2 not trained on (t.csv), few: 0% to 66%")
    # Fewer answers of the same checkpoint don't take its place, as many later ones do.
    evaluate_run(found, held_out=True, limit=1, max_new_tokens=1, console=quiet())
    assert row_of(found).score.endswith("of 2 not trained on (t.csv), few: 0% to 66%")
    evaluate_run(found, held_out=True, max_new_tokens=1, console=quiet())
    assert row_of(found).score.endswith("of 2 not trained on (held-out), few: 0% to 66%")
    for path in found.glob("predictions_*"):
        path.unlink()
    seen = [f"{n}.png" for n in range(COUNT) if n not in (held_out_of(found) or [])]
    capsys.readouterr()
    evaluate_run(found, table(place, seen, "seen.csv"), **options)
    assert "all of it was trained on, so this doesn't say how the model does on new" in capsys.readouterr().err
    assert row_of(found).score.endswith("of 6 all trained on (seen.csv), few: 0% to 39%")
