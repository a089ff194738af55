"""Commands in a row, after which a run still knows what it was trained on, and says so wherever it names a score."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from basic_lite.cli import main
from basic_lite.errors import UserError
from basic_lite.recipe.load import dump_recipe
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.training.data_json import held_out_of
from basic_lite.training.places import TRAINED_ON
from tests.support.data import write_image
from tests.support.runs import inside_copy, tiny_recipe

COUNT, KEPT = 12, 3
Said = Callable[..., str]


def table(path: Path, names: list[str]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("image", "question", "answer"), *((n, "what is it ?", "it is red") for n in names)]
        )


def photos(first: int = 0) -> list[str]:
    return [f"p{n}.png" for n in range(first, COUNT)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos/`, `photos.yaml`, the finished `runs/photos`, and a copy of the photos in `grown/` with
    three new ones before them.
    """
    folder = tmp_path_factory.mktemp("trained")
    for name in ("photos", "grown"):
        for n in range(-3 if name == "grown" else 0, COUNT):
            write_image(folder / name / f"p{n}.png", size=(8, 8), seed=n + 3)
    table(folder / "photos" / "captions.csv", photos())
    table(folder / "grown" / "captions.csv", photos(-3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, model in (("photos", {}), ("grown", {"model.llm": None, "model.vision": None})):
            changes = {
                **model,
                "name": name,
                "output": "runs",
                "data.train": {"path": f"{name}/captions.csv"},
                "data.held_out": 0.25,
                "training.max_steps": 1,
                "supervision.enabled": False,
            }
            (folder / f"{name}.yaml").write_text(dump_recipe(tiny_recipe(folder, changes)))
        with pytest.raises(SystemExit) as stopped:
            main(["train", "photos.yaml"])
        assert not stopped.value.code
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return inside_copy(trained, tmp_path, monkeypatch)


@pytest.fixture
def said(place: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command prints, in one line."""

    def call(*words: str) -> str:
        capsys.readouterr()
        options = ["--max-new-tokens", "1", "--device", "cpu"] if words[0] == "eval" else []
        with pytest.raises(SystemExit) as stopped:
            main([*words, *options])
        assert not stopped.value.code
        captured = capsys.readouterr()
        return " ".join(f"{captured.out} {captured.err}".split())

    return call


def grown_seen(place: Path) -> int:
    """How many of the pictures that `runs/grown` holds out `runs/photos` was trained on."""
    first = set(range(COUNT)) - set(held_out_of(place / "runs" / "photos") or [])
    second = {n - 3 for n in held_out_of(place / "runs" / "grown") or []}
    assert len(second) == 4
    return len(first & second)


@pytest.mark.long
def test_a_loss_on_pictures_that_were_trained_on_is_marked(place: Path, said: Said) -> None:
    assert "held-out loss" in (list_of := said("runs")) and "trained on" not in list_of
    text = said("train", "grown.yaml", "model.start=runs/photos")
    seen = grown_seen(place)
    assert 0 < seen < 4
    note = "are trained on, by this run or one that it goes on from: the held-out loss says little of new ones; "
    note += "name others in data.eval.path"
    assert f"note: {seen} of the 4 pictures of data.held_out {note}" in text
    assert f"({seen} of 4 pictures trained on)" in said("runs", "runs/grown")
    # The same data, another split.
    names = ("model.start=runs/photos", "model.llm=null", "model.vision=null")
    text = said("train", "photos.yaml", "name=seed1", "seed=1", *names)
    first, second = (set(held_out_of(place / "runs" / name) or []) for name in ("photos", "seed1"))
    assert f"note: {len(second - first)} of the {KEPT} pictures of data.held_out {note}" in text and second - first
    # All that evaluates it is trained on.
    changes = ("name=evall", "data.held_out=null", "data.eval.path=photos/captions.csv")
    assert f"note: {COUNT} of the {COUNT} pictures of data.eval {note}" in said("train", "photos.yaml", *changes)
    assert f"({COUNT} of {COUNT} pictures trained on)" in said("runs", "runs/evall")


@pytest.mark.long
def test_it_is_known_after_the_first_run_has_moved(place: Path, said: Said) -> None:
    said("train", "grown.yaml", "model.start=runs/photos")
    seen = grown_seen(place)
    line = f"note: {seen} of these 4 pictures were trained on (one that was resized or saved anew isn't recognised)"
    assert line in said("eval", "runs/grown", "--held-out")
    shutil.move(place / "runs" / "photos", place / "gone")
    text = said("eval", "runs/grown", "--held-out")
    assert line in text and "not known" not in text and "can't be" not in text
    assert f"of {4 - seen} not recognised as trained on (held-out)" in said("runs", "runs/grown")


def test_less_knowledge_replaces_nothing(place: Path, said: Said) -> None:
    run = place / "runs" / "photos"
    said("eval", "runs/photos", "--held-out")
    before = {path.name: path.read_bytes() for path in run.glob("predictions_*")}
    score = said("runs", "runs/photos")
    assert f"of {KEPT} not recognised as trained on (held-out)" in score and len(before) == 2
    (run / TRAINED_ON).unlink()
    data = json.loads((run / "data.json").read_text())
    data["train"]["records"] += 1
    (run / "data.json").write_text(json.dumps(data))
    text = said("eval", "runs/photos", "--held-out")
    assert f"note: whether these {KEPT} pictures were trained on is not known" in text and "none of these" not in text
    assert "not known if trained on" in text and "(replaced)" not in text
    assert before == {name: (run / name).read_bytes() for name in before}
    assert said("runs", "runs/photos").split("exact match")[1] == score.split("exact match")[1]
    for name in before:
        (run / name).unlink()
    assert f"of {KEPT} not known if trained on (held-out)" in said("runs", "runs/photos")


def test_runs_tells_of_pictures_it_cannot_recognise_and_names_the_folder(place: Path, said: Said) -> None:
    (place / "small").mkdir()
    for name in photos():
        Image.open(place / "photos" / name).resize((4, 4)).save(place / "small" / name)
    table(place / "small" / "captions.csv", photos())
    text = said("eval", "runs/photos", "--data", "small/captions.csv")
    again = "(one that was resized or saved anew isn't recognised)"
    assert f"none of these {COUNT} pictures was recognised as trained on {again}" in text
    assert f"of {COUNT} not recognised as trained on (small/captions.csv)" in said("runs", "runs/photos")
    said("eval", "runs/photos", "--held-out")
    assert f"of {KEPT} not recognised as trained on (held-out)" in said("runs", "runs/photos")


def test_new_pictures_are_new_and_a_folder_may_move(place: Path, said: Said) -> None:
    for n in range(4):
        write_image(place / "photos" / f"new{n}.png", size=(8, 8), seed=900 + n)
    table(place / "photos" / "captions.csv", [*photos(), *(f"new{n}.png" for n in range(4))])
    line = f"note: {COUNT - KEPT} of these {COUNT + 4} pictures were trained on (one that was resized"
    assert line in said("eval", "runs/photos", "--data", "photos/captions.csv")
    shutil.move(place / "photos", place / "moved")
    with pytest.raises(UserError, match=r"--held-out: the run's data can't be read any more .* with --data FILE"):
        evaluate_run(Path("runs/photos"), held_out=True)
    text = said("eval", "runs/photos", "--data", "moved/captions.csv")
    assert line in text and "not known" not in text
    assert f"of {KEPT + 4} not recognised as trained on (moved/captions.csv)" in said("runs", "runs/photos")
