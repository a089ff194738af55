"""What a run knows it was trained on, whatever becomes of its data and of the runs before it."""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from basic_lite.data.digests import DIGEST_BYTES
from basic_lite.data.images import ImageRef
from basic_lite.data.records import Record, Turn
from basic_lite.run import train
from basic_lite.training.bundle_files import look_at_bundle
from basic_lite.training.data_json import held_out_of
from basic_lite.training.files import new_folder, sha256
from basic_lite.training.places import TRAINED_ON
from basic_lite.training.tensor_files import save_tensors
from basic_lite.training.trained_on import Compared, TrainedOn, compare, read_record, record_of
from tests.support.data import write_image
from tests.support.runs import inside_copy, quiet, run, tiny_recipe

ONE_STEP = {"training.max_steps": 1, "supervision.enabled": False}
COUNT = 8
AGAIN = " (one that was resized or saved anew isn't recognised)"
FROM = {"model.llm": None, "model.vision": None}


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
    return inside_copy(trained, tmp_path, monkeypatch)


def test_other_users_may_read_it_as_any_file(tmp_path: Path) -> None:
    """Libraries keep their files from them, and another user's `eval` would not know what was trained on."""
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    TrainedOn(frozenset({b"x" * DIGEST_BYTES})).write(tmp_path)
    save_tensors({"x": torch.ones(1)}, tmp_path / "weights")
    with new_folder(tmp_path / "export", "make room"):
        pass
    for name, usual in ((TRAINED_ON, "plain"), ("weights", "plain"), ("export", "folder")):
        assert (tmp_path / name).stat().st_mode == (tmp_path / usual).stat().st_mode


def recipe_of(changes: dict[str, Any], name: str) -> dict[str, Any]:
    train = {"path": "t.csv", "image_dir": "images"}
    return {**ONE_STEP, "name": name, "data.train": train, "data.held_out": 0.25, **changes}


def made(place: Path, changes: dict[str, Any] | None = None, name: str = "one") -> Path:
    table(place, [f"{n}.png" for n in range(COUNT)])
    return run(place, recipe_of(changes or {}, name))


def more(place: Path, changes: dict[str, Any] | None = None, name: str = "two") -> Path:
    """A run that goes on from the first one, with another split."""
    return made(place, {**FROM, "model.start": "runs/one", "seed": 1, **(changes or {})}, name)


def asked(found: Path, records: list[Record]) -> Compared:
    return compare(record_of(look_at_bundle(found), lambda total: nullcontext(lambda done: None)), records)


def look(found: Path, *images: ImageRef) -> Compared:
    return asked(found, [Record(n, "", "s", (image,), ()) for n, image in enumerate(images, 1)])


def of(folder: Path, *numbers: int) -> list[ImageRef]:
    return [ImageRef(f"{n}.png", str(folder)) for n in numbers]


def held_in(found: Path) -> set[int]:
    return set(held_out_of(found) or [])


def test_copies_are_known_by_what_is_in_them(place: Path) -> None:
    found = place / "runs" / "one"
    held = held_in(found)
    assert len(held) == 2
    expected = [n not in held for n in range(COUNT)]
    seen = COUNT - len(held)
    told = look(found, *of(place / "images", *range(COUNT)))
    assert told.marks == expected
    assert list(told.notes()) == [f"note: {seen} of these {COUNT} pictures were trained on{AGAIN}"]
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
    assert list(told.notes()) == [f"note: {seen + 1} of these {COUNT + 3} pictures were trained on{AGAIN}"]
    assert list(look(found, *blobs[:1]).notes()) == ["note: the one picture was trained on"]
    assert list(look(found, *blobs[1:2]).notes()) == [f"the one picture wasn't recognised as trained on{AGAIN}"]
    assert list(look(found, *blobs[1:]).notes()) == [f"none of these 2 pictures was recognised as trained on{AGAIN}"]
    # Of a picture that a program made in memory it can't be told.
    made_here = ImageRef("y", blob=data, encoded_here=True)
    assert look(found, made_here).marks == [None]
    both = [Record(1, "", "s", (made_here, image), ()) for image in blobs[:2]]
    assert asked(found, both).marks == [True, None]


def test_it_stays_true_whatever_becomes_of_the_data(place: Path) -> None:
    found = place / "runs" / "one"
    expected = [n not in held_in(found) for n in range(COUNT)]
    shutil.copytree(place / "images", place / "kept")

    def still() -> None:
        new = ImageRef("new.png", str(place / "kept"))
        assert look(found, *of(place / "kept", *range(COUNT)), new).marks == [*expected, False]

    # New pictures in the folder and in the table, in another order; then all is gone.
    for folder in ("images", "kept"):
        write_image(place / folder / "new.png", size=(8, 6), seed=99)
    table(place, ["new.png", *(f"{n}.png" for n in reversed(range(COUNT)))])
    still()
    shutil.rmtree(place / "images")
    still()
    (place / "t.csv").unlink()
    (found / "data.json").unlink()
    still()


@pytest.mark.long
def test_what_earlier_runs_were_trained_on_counts_without_them(place: Path) -> None:
    first, second = place / "runs" / "one", more(place)
    never = held_in(first) & held_in(second)
    assert held_in(first) != held_in(second)
    third = more(place, {"model.start": "runs/two", "data.train": {"path": "t.csv", "image_dir": "images"}}, "three")
    fourth = made(place, {"model.projector": "runs/three", "seed": 1}, "four")
    for gone in (first, second, third):
        shutil.rmtree(gone)
    assert look(fourth, *of(place / "images", *range(COUNT))).marks == [n not in never for n in range(COUNT)]


def test_what_an_older_version_made_is_known_as_long_as_its_data_is_as_it_was(place: Path) -> None:
    found = place / "runs" / "one"
    (found / TRAINED_ON).unlink()
    expected = [n not in held_in(found) for n in range(COUNT)]
    shutil.copytree(place / "images", place / "kept")
    kept = of(place / "kept", *range(COUNT))
    assert look(found, *kept).marks == expected
    table(place, [f"{n}.png" for n in reversed(range(COUNT))])
    assert look(found, *kept).marks == expected
    first = expected.index(True)
    (place / "images" / f"{first}.png").unlink()
    told = look(found, *kept)
    assert told.marks == [True if seen and n != first else None for n, seen in enumerate(expected)]
    count, gone = list(told.notes())
    assert count == f"note: 5 of these {COUNT} pictures were trained on; of the others that isn't known"
    assert gone.startswith(f"note: 1 picture that {found} was trained on can't be found any more")
    table(place, [f"{n}.png" for n in range(COUNT + 1)])
    told = look(found, *kept)
    assert told.marks == [None] * COUNT
    count, why = list(told.notes())
    assert count == f"note: whether these {COUNT} pictures were trained on is not known"
    assert "an older version made it, and its data isn't where or as it was" in why


def test_an_older_run_before_a_new_one(place: Path) -> None:
    first = place / "runs" / "one"
    (first / TRAINED_ON).unlink()
    told = look(more(place), *of(place / "images", *range(COUNT)))
    assert told.marks.count(True) > 6 and None not in told.marks
    # Both are older ones, and another run is where the first one was.
    second = place / "runs" / "two"
    (second / TRAINED_ON).unlink()
    both = look(second, *of(place / "images", *range(COUNT)))
    assert both.marks == told.marks
    (first / "final" / "manifest.json").write_text((first / "final" / "manifest.json").read_text() + "\n")
    told = look(second, *of(place / "images", *range(COUNT)))
    assert told.marks == [None if n in held_in(second) else True for n in range(COUNT)]
    assert "runs/one/final, an earlier run, was trained on is not known: it isn't there" in list(told.notes())[-1]
    # A run that starts from one that isn't known isn't either, and says so.
    third, console = place / "runs" / "three", quiet()
    changes = recipe_of(
        {**FROM, "model.start": "runs/two", "data.held_out": None, "data.eval": {"path": "e.csv"}}, "three"
    )
    write_image(place / "new.png", seed=77)
    table(place, ["new.png"], "e.csv")
    train(tiny_recipe(place, changes), console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "note: whether the one picture of data.eval was trained on is not known\nnote: what" in said
    assert look(third, ImageRef("new.png", str(place))).marks == [None]


def test_a_run_that_goes_on_keeps_its_record(place: Path) -> None:
    changes = {"training.max_steps": 2, "training.save_every": 1}
    second = more(place, changes)
    record = (second / TRAINED_ON).read_bytes()
    shutil.rmtree(place / "runs" / "one")
    shutil.rmtree(second / "final")
    shutil.rmtree(second / "checkpoint-2")
    # A picture that is mended meanwhile: both were trained on.
    write_image(place / "images" / "0.png", size=(8, 6), seed=1234)
    recipe = tiny_recipe(place, recipe_of({**FROM, "model.start": "runs/one", "seed": 1, **changes}, "two"))
    train(recipe, resume=True, console=quiet())
    assert (second / TRAINED_ON).read_bytes() == record
    # Where an older version began the run, its own part is known.
    shutil.rmtree(second / "final")
    (second / TRAINED_ON).unlink()
    train(recipe, resume=True, console=quiet())
    told = read_record(second)
    assert told is not None and len(told.digests) == COUNT - 2 and "runs/one/final" in told.unknown[0]
    (second / TRAINED_ON).write_bytes(record[:-1])
    assert read_record(second) is None


def test_texts_without_pictures(place: Path) -> None:
    turns = [{"from": "human", "value": "how many ?"}, {"from": "gpt", "value": "two"}]
    image = {"image": "0.png", "question": "what is it ?", "answer": "it is red"}
    (place / "d.json").write_text(json.dumps([image, {"conversations": turns}]))
    train = {"path": str(place / "d.json"), "image_dir": str(place / "images")}
    found = made(place, {"data.train": train, "data.held_out": None}, "texts")
    same = (Turn("human", "how many ?"), Turn("gpt", "two"))
    records = [Record(1, "", "s", (), same), Record(2, "", "s", (), (Turn("human", "how ?"), *same[1:]))]
    told = asked(found, records)
    assert told.marks == [True, False]
    assert list(told.notes()) == ["note: 1 of these 2 records without a picture were trained on"]


def test_a_record_nested_too_deeply_is_none(tmp_path: Path) -> None:
    """As any other that somebody changed."""
    digests = {"digests": np.zeros((1, 16), np.uint8)}
    save_file(digests, tmp_path / TRAINED_ON, {"unknown": '["why"]'})
    assert read_record(tmp_path) is not None
    save_file(digests, tmp_path / TRAINED_ON, {"unknown": "[" * 100_000})
    assert read_record(tmp_path) is None


def test_the_hub_is_not_asked_for_a_strangers_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = place / "runs" / "one"
    (found / TRAINED_ON).unlink()
    recipe, manifest = found / "final" / "recipe.json", found / "final" / "manifest.json"
    tree = json.loads(recipe.read_text())
    tree["data"]["train"] = {"hub": "evil/data"}
    recipe.write_text(json.dumps(tree))
    facts = json.loads(manifest.read_text())
    facts["files"]["recipe.json"] = {"sha256": sha256(recipe), "bytes": recipe.stat().st_size}
    manifest.write_text(json.dumps(facts))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("basic_lite.data.sources.hub_is_away", refuse)
    told = look(found, *of(place / "images", *range(COUNT)))
    assert told.marks == [None] * COUNT
    assert "the hub isn't asked for its data (evil/data)" in list(told.notes())[1]
