"""Where a bundle is looked for, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from basic_lite.errors import UserError
from basic_lite.recipe import load_recipe, shipped_recipes
from basic_lite.tools.chat.command import chat
from basic_lite.training.bundle_files import find_bundle
from basic_lite.training.start import find_origin
from basic_lite.training.start_names import resolve_start
from tests.support.runs import tiny_recipe


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs called photos, in the usual folder and in another one, and a folder of pictures of that name."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/photos", "elsewhere/photos"):
        Path(folder, "final").mkdir(parents=True)
        Path(folder, "final", "manifest.json").write_text("{}")
    for folder in ("runs/photo", "photos", "photoz"):  # no run is in them
        Path(folder).mkdir()


@pytest.mark.parametrize("name", ["photos", "fotos", "runs/fotos", "photo"])
def test_a_run_is_found_by_its_name_and_not_taken(name: str) -> None:
    """Beside the runs there may be data of that name, so it is only said; `eval`, `chat` and `export` do the same."""
    with pytest.raises(UserError, match=r"did you mean runs/photos\?$"):
        find_bundle(Path(name))
    with pytest.raises(UserError, match=r"did you mean runs/photos\?$"):
        chat(name, [])


def test_the_recipes_own_output_is_searched(tmp_path: Path) -> None:
    changes = {"output": "elsewhere", "name": "more"}
    with pytest.raises(UserError, match=r"^model.start: .*; did you mean elsewhere/photos\?$"):
        resolve_start(tiny_recipe(tmp_path, {**changes, "model.start": "photos"}), print)
    with pytest.raises(UserError, match=r"^model.projector: .*; did you mean elsewhere/photos\?$"):
        find_origin(tiny_recipe(tmp_path, {**changes, "model.projector": "photos"}))


def test_the_run_of_a_shipped_recipe_is_made_by_its_recipe() -> None:
    with pytest.raises(UserError, match=r"runs/7b_pretrain; `basic-lite train 7b_pretrain` makes it$"):
        find_bundle(Path("runs/7b_pretrain"), "model.projector")
    recipes = [
        path for path in shipped_recipes() if f"`basic-lite train {path.stem}`" in refused(Path("runs", path.stem))
    ]
    assert recipes and all(load_recipe(path).name == path.stem for path in recipes)


def refused(place: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_bundle(place)
    return str(caught.value)


def test_a_model_of_the_hub_is_no_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, {"model.start": "Qwen/Qwen2.5-VL-7B-Instruct"})
    with pytest.raises(UserError, match=r"^model.start: .* is no run but, by its name, a Qwen-VL model, and models of"):
        resolve_start(recipe, print)
    Path("Qwen").mkdir()
    with pytest.raises(UserError, match=r"there is no folder Qwen/Qwen2.5-VL-7B-Instruct; give a run folder"):
        resolve_start(recipe, print)


def test_nothing_is_guessed_for_a_folder_that_is_there_or_far_from_all() -> None:
    for place in ("photoz", "runs/photo", "else"):
        with pytest.raises(UserError, match=r"give a run folder \(runs/NAME\)"):
            find_bundle(Path(place))


def test_an_export_is_no_run_and_the_key_that_opens_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"the key model\.base open it; all else takes the run that it was exported from"
    ):
        find_bundle(tmp_path, "model.start")
