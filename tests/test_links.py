"""A stranger's run with links in it: nothing behind a link is written, made or deleted."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from basic_lite.errors import UserError
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.tools.clean import clean
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.tools.report.page import write_report
from basic_lite.tools.text_probe import probe_run
from basic_lite.whole_file import whole_file, write_whole
from tests.support.marks import rest_long
from tests.support.runs import quiet, tiny_recipe

FILES = ("report.html", "log.jsonl", "recipe.yaml", "parts.json", "data.json", "maps.json", "samples.json",
         "trained_on.safetensors", "text_probe_final.json", "predictions_q_final.jsonl",
         "predictions_q_final.summary.json")  # fmt: skip
FOLDERS = ("final", "checkpoint-3", "best", "set-aside-final", "kept-1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    train(recipe_in(folder), console=quiet())
    rows = json.loads((folder / "data.json").read_text())[:1]
    (folder / "q.json").write_text(json.dumps(rows))
    return folder


def recipe_in(folder: Path) -> Recipe:
    return tiny_recipe(folder, {"name": "a", "training.max_steps": 3, "training.save_every": 2, "training.keep": 5})


def plant(run: Path, elsewhere: Path, names: list[str], *, there: bool) -> None:
    """A link at each of these names, to a file or folder elsewhere, or to where nothing is."""
    elsewhere.mkdir()
    for number, name in enumerate(names):
        if there and name.split(".")[0] in FOLDERS:
            (elsewhere / str(number)).mkdir()
            (elsewhere / str(number) / "a").write_text("precious")
        elif there:
            (elsewhere / str(number)).write_text("precious")
        path = run / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(elsewhere / str(number))


def state_of(folder: Path) -> dict[str, bytes | None]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))}  # fmt: skip


@pytest.mark.parametrize("there", rest_long(True, False))
def test_no_file_is_written_through_a_link(made: Path, tmp_path: Path, there: bool) -> None:
    run = Path(shutil.copytree(made / "runs" / "a", tmp_path / "runs" / "a"))
    recipe = recipe_in(made).model_copy(update={"output": str(tmp_path / "runs")})
    # Of a finished run.
    names = [name + end for name in FILES[-3:] for end in ("", ".part", ".new")] + ["report.html", "report.html.part"]
    plant(run, tmp_path / "one", names, there=there)
    before = state_of(tmp_path / "one")
    evaluate_run(run, made / "q.json", image_dir=made / "images", console=quiet())
    assert probe_run(run, device="cpu", console=quiet())
    write_report(run)
    assert state_of(tmp_path / "one") == before
    assert (run / "predictions_q_final_2.jsonl").stat().st_size and (run / "report.html").stat().st_size > 1000
    # Of a run that goes on.
    ends = ("", ".part", ".old", ".new")
    kept = {"final.old", "checkpoint-3"}
    names = [name + end for name in FILES for end in ends] + [name + end for name in FOLDERS for end in ends]
    shutil.rmtree(run / "final")
    plant(run, tmp_path / "two", [".writable", *(name for name in names if name not in kept)], there=there)
    before = state_of(tmp_path / "two")
    train(recipe, resume=True, console=quiet(), report=write_report)
    clean([run], console=quiet(), yes=True)
    assert state_of(tmp_path / "two") == before
    for name in ("log.jsonl", "recipe.yaml", "final", "report.html"):
        assert not (run / name).is_symlink() and (run / name).exists(), name


def test_clean_follows_no_link(made: Path, tmp_path: Path) -> None:
    runs, outside, nothing = tmp_path / "runs", tmp_path / "outside", tmp_path / "runs" / "saved-nothing"
    for copy in (outside, runs / "a", runs / "b"):
        shutil.copytree(made / "runs" / "a", copy)
    for folder, names in ((nothing, ("log.jsonl",)), (runs / "curves", ("log.jsonl", "parts.json"))):
        folder.mkdir()
        for name in ("parts.json", *names):
            shutil.copy2(outside / name, folder / name)
    shutil.copytree(outside / "final", outside / ".basic-lite-old")
    shutil.rmtree(runs / "a" / "checkpoint-2")
    same = runs / "b" / "checkpoint-3" / "projector.safetensors"
    same.unlink()
    links = {
        runs / "linked": outside,  # a run, and what an export has left in it
        runs / ".basic-lite-linked": outside / ".basic-lite-old",
        runs / "a" / "checkpoint-2": outside / "checkpoint-2",
        runs / "a" / "checkpoint-9.part": outside / "final",
        runs / "a" / "checkpoint-3" / "inside": outside,
        same: outside / "checkpoint-3" / "projector.safetensors",
        runs / "curves" / "tensorboard": outside,
    }
    for place, target in links.items():
        place.symlink_to(target)
    (nothing / "checkpoint-5.part").symlink_to(outside / "final")
    for path in outside.rglob("*"):
        os.utime(path, (0, 0))
    before, console = state_of(outside), Console(file=io.StringIO(), width=400)
    clean([runs], yes=True, console=console)
    assert state_of(outside) == before
    assert [place for place in links if not place.is_symlink()] == []
    assert not nothing.exists() and not (runs / "b" / "checkpoint-2").exists()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(f"changed: {name}; move them" in text for name in ("inside", "tensorboard", "projector.safetensors"))


@pytest.mark.parametrize("name", [".lock", "tensorboard", "tensorboard/a/hparams.yml"])
def test_a_run_with_such_a_link_does_not_go_on(made: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(made / "runs" / "a", tmp_path / "runs" / "a"))
    shutil.rmtree(run / "final")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(tmp_path / "elsewhere")
    recipe = recipe_in(made)
    curves = recipe.training.model_copy(update={"trackers": ["tensorboard"]})
    recipe = recipe.model_copy(update={"output": str(tmp_path / "runs"), "training": curves})
    with pytest.raises(UserError, match=name.replace(".", r"\.") if name != ".lock" else "can't be locked"):
        train(recipe, resume=True, console=quiet())
    assert not os.path.lexists(tmp_path / "elsewhere")


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, "old")

    def break_off() -> None:
        with whole_file(path) as file:
            file.write(b"ne")
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert [one.name for one in tmp_path.iterdir()] == ["a"] and path.read_text() == "old"
    os.link(path, tmp_path / "a.part")
    write_whole(path, "new")
    assert path.read_text() == "new" and [one.name for one in tmp_path.iterdir()] == ["a"]
