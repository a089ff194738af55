"""What a recipe names and isn't there: all of it in one error, each with its key and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from basic_lite.cli import main
from basic_lite.errors import UserError, all_at_once, each_of, in_one
from basic_lite.recipe import load_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.tools.dry_run import dry_run
from basic_lite.tools.stages import look_ahead
from basic_lite.training.inputs import _looks_at_data
from tests.support.runs import quiet, run, tiny_recipe

STARTS = {
    "train": lambda recipe: train(recipe, console=quiet()),
    "dry run": lambda recipe: dry_run(recipe, quiet()),
    "run": lambda recipe: look_ahead([recipe], None, console=quiet()),
}
MISSING: dict[str, tuple[dict[str, Any], str]] = {
    "model.projector": ({"model.projector": "a"}, "model.projector: there is no folder a; give a run folder"),
    "model.vision": ({"model.vision": "/b"}, "model.vision: there is no folder /b; give model.vision a folder"),
    "model.llm": ({"model.llm": "/c"}, "model.llm: there is no folder /c; give model.llm a folder"),
    "data.train": (
        {"data.train": [{"path": "d.csv", "image_dir": "e"}, {"folder": "f"}, {"saved": "g"}, {"parquet": "h/*.pq"}]},
        "data.train.0.image_dir: there is no folder e; put it there, correct the path, or leave the key out\n"
        "data.train.0.path: there is no file d.csv; put it there, or correct the path\n"
        "data.train.1.folder: there is no folder f; put it there, or correct the path\n"
        "data.train.2.saved: there is no folder g; put it there, or correct the path\n"
        "data.train.3.parquet: no file matches h/*.pq; put it there, or correct the path",
    ),
    "data.eval": (
        {"data.eval": {"path": "zzz.csv"}},
        "data.eval.path: there is no file zzz.csv; put it there, or correct the path",
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(start: str, recipe: Recipe) -> list[str]:
    with pytest.raises(UserError) as caught:
        STARTS[start](recipe)
    return each_of(caught.value)


@pytest.mark.parametrize("start", STARTS)
def test_all_that_is_missing_is_told_at_once(here: Path, start: str) -> None:
    changes = {key: value for keys, _ in MISSING.values() for key, value in keys.items()}
    found = refused(start, tiny_recipe(here, changes))
    expected = "\n".join(text for _, text in MISSING.values()).split("\n")
    assert len(found) == len(expected)
    for text, one in zip(expected, found, strict=True):
        assert text in one
    assert not (here / "runs").exists()


@pytest.mark.parametrize("start", STARTS)
def test_a_missing_start_is_told_with_the_data(here: Path, start: str) -> None:
    """Of a run that goes on from another one, the models are the other one's."""
    changes = {"model.start": "a", "model.vision": None, "model.llm": None, "data.train.path": "nothing.csv"}
    start_missing, data_missing = refused(start, tiny_recipe(here, changes))
    assert "model.start: there is no folder a" in start_missing
    assert "data.train.path: there is no file nothing.csv; put it there, or correct the path" in data_missing


def test_a_start_of_another_shape_is_told_with_the_data(here: Path) -> None:
    run(here, {"name": "one", "training.max_steps": 1})
    changes = {
        "name": "two",
        "model.start": str(here / "runs" / "one"),
        "lora.rank": 2,
        "data.eval.path": "nothing.csv",
    }
    for start in STARTS:
        other_shape, data_missing = refused(start, tiny_recipe(here, changes))
        assert "has another shape than this recipe's (lora.rank is 2)" in other_shape
        assert "data.eval.path: there is no file nothing.csv; put it there, or correct the path" in data_missing


def test_a_projector_alone_is_told_after_the_plan(here: Path) -> None:
    console = quiet()
    with pytest.raises(UserError, match=r"^`train` would refuse to start: model\.projector: there is no folder a"):
        dry_run(tiny_recipe(here, {"model.projector": "a"}), console)
    assert "trainable parameters" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_that_goes_on_needs_its_projector_no_more(here: Path) -> None:
    run(here, {"name": "one", "stage": 1, "lora.enabled": False, "training.max_steps": 1})
    changes = {"model.projector": str(here / "runs" / "one"), "training.save_every": 1, "training.max_steps": 2}
    two = run(here, changes)
    (here / "runs" / "one").rename(here / "gone")
    for path in (two / "final", two / "checkpoint-2"):
        path.rename(here / path.name)
    assert (two / "checkpoint-1").is_dir()
    assert train(tiny_recipe(here, changes), resume=True, console=quiet()).steps == 2


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        ("train demo_stage1", ["data.train.image_dir", "data.train.path"]),
        ("train demo_stage2", ["model.projector", "data.train.image_dir", "data.train.path"]),
        ("train demo_stage2 --dry-run", ["model.projector", "data.train.image_dir", "data.train.path"]),
        ("estimate demo_stage2 model.start=runs/demo/stage1", ["model.start"]),
        ("eval runs/demo/stage2 --held-out", ["run folder"]),
        ("chat runs/demo/stage2", [""]),
        ("check runs/demo/world/instruct.json", [""]),
        ("report runs/demo/stage1", [""]),
        ("runs runs/demo", [""]),
    ],
)
def test_what_the_demo_makes_is_told(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, keys: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2 and len(lines) == len(keys)
    for key, line in zip(keys, lines, strict=True):
        assert line.startswith(f"error: {key}") and line.endswith("; `basic-lite demo` makes it, in a few minutes")


def test_data_of_a_shipped_recipe_is_to_be_downloaded_not_corrected(here: Path) -> None:
    """Nothing in the recipe is wrong."""
    for name, folder in (("small_pretrain", "LLaVA-Pretrain"), ("7b_qlora", "LLaVA-Instruct")):
        recipe = load_recipe(name, ["model.projector=null"] if name == "7b_qlora" else [])
        with pytest.raises(UserError) as caught:
            all_at_once(*_looks_at_data(recipe))
        said = each_of(caught.value)
        assert len(said) == 2 and all(f"data/{folder}" in one for one in said)
        for one in said:
            assert "; it is to be downloaded: the first lines of " in one
            assert one.endswith(f"/recipes/{name}.yaml have the commands")


def test_pictures_of_ones_own_are_to_be_put_there_or_named(here: Path) -> None:
    for name in ("my_photos", "my_photos_small"):
        with pytest.raises(UserError) as caught:
            all_at_once(*_looks_at_data(load_recipe(name)))
        said = each_of(caught.value)
        assert len(said) == 2
        assert all("; put your own there, or let `basic-lite data FOLDER` write a recipe" in one for one in said)


@pytest.mark.parametrize("path", ["data/LLaVA-Own/a.json", "data/LLaVA-Instruct/llava_150k.json"])
def test_data_that_nothing_fetches_is_to_be_put_there_or_its_path_corrected(here: Path, path: str) -> None:
    """In a folder that a shipped recipe fetches into, too."""
    with pytest.raises(UserError, match=rf"no file {path}; put it there, or correct the path$"):
        all_at_once(*_looks_at_data(tiny_recipe(here, {"data.train.path": path})))


@pytest.mark.parametrize("folder", ["data", "{here}/data"])
def test_an_own_recipe_is_told_which_shipped_one_fetches_its_file(here: Path, folder: str) -> None:
    """Several recipes fetch into that folder; one of them fetches this file."""
    place = f"{folder.format(here=here)}/LLaVA-Instruct"
    changes = {
        "data.train.path": f"{place}/llava_instruct_150k.json",
        "data.train.image_dir": f"{place}/coco/train2017",
    }
    with pytest.raises(UserError) as caught:
        all_at_once(*_looks_at_data(tiny_recipe(here, changes)))
    assert str(caught.value).count("/recipes/small_instruct.yaml have the commands") == 2


def test_what_the_demo_has_made_is_not_called_missing(here: Path) -> None:
    (here / "runs/demo/world").mkdir(parents=True)
    recipe = load_recipe("demo_stage1")
    (here / "runs/demo/world/pretrain.jsn").touch()
    assert refused("dry run", recipe) == [
        "data.train.image_dir: there is no folder runs/demo/world/images; "
        "put it there, correct the path, or leave the key out",
        "data.train.path: there is no file runs/demo/world/pretrain.json; did you mean runs/demo/world/pretrain.jsn?",
    ]


def test_all_is_told_at_once_and_a_shared_mend_once() -> None:
    texts = [
        f"recipe {n}: can't read model {'x' * 250}\n  fix: check the connection\n  or fetch it: {n}" for n in range(12)
    ]
    said = str(in_one(texts))
    assert "left out" not in said and len(each_of(in_one(texts))) == 12
    assert said.count("  fix: check the connection") == 1 and said.count("  or fetch it: ") == 12
    assert said.endswith("\n  fix: check the connection\n  or fetch it: 11")
