"""Bad input through the command line: one clear message that names the place and the fix, exit 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from basic_lite.cli import main
from basic_lite.recipe import dump_recipe
from basic_lite.run import train
from tests.support.models import write_llava, write_llm, write_vision
from tests.support.runs import quiet, tiny_recipe, write_data


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    tiny_recipe(folder)
    (folder / "good.yaml").write_text(dump_recipe(tiny_recipe(folder)))
    write_llava(folder / "llava_without_image_token", image_token=False)
    train(tiny_recipe(folder, {"name": "finished", "training.max_steps": 1}), console=quiet())
    write_llm(folder / "wide", hidden_size=128)
    return folder


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    output = capsys.readouterr()
    assert stopped.value.code == 2, output
    assert output.err.lstrip().splitlines()[-1] and "error: " in output.err
    assert "Traceback" not in output.err + output.out
    return output.err


def q(value: object) -> str:
    return json.dumps(str(value) if isinstance(value, Path) else value)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry-run"])
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.lerning_rate=1"], ["training.lerning_rate", "training.learning_rate"]),
        (
            ["data.train.path=nowhere.json"],
            ["data.train.path: there is no file nowhere.json; put it there, or correct the path"],
        ),
        (["data.train.path={folder}/broken.json"], ["broken.json", "line 3"]),
        (["data.train.path={folder}/missing.json"], ["missing.json, record 2", "gone.png", "data.bad_records"]),
        (["data.train.path={folder}/outside.json"], ["outside.json, record 1", "../"]),
        (["data.train.path={folder}/silent.json"], ["silent.json, record 1", "answer"]),
        (["data.max_length=8"], ["data.max_length", "data.too_long"]),
        (["model.llm={folder}/vision"], ["model.llm", "clip_vision_model"]),
        (["model.vision={folder}/llm"], ["model.vision", "not CLIP or SigLIP"]),
        (["model.llm={folder}/nothing"], ["model.llm", "nothing"]),
        (
            ["model.base={folder}/llava_without_image_token", "model.llm=", "model.vision="],
            ["<image>", "model.image_token"],
        ),
        (['lora.targets=["q_proj", "lm_head"]'], ["lora.targets", "lm_head"]),
        (['lora.targets=["q_porj"]'], ["lora.targets", "q_porj", "q_proj"]),
        (["supervision.layers=5"], ["supervision.layers", "4"]),
        (["supervision.layers=0"], ["supervision.layers"]),
        (["kernels=triton"], ["kernels", "reference"]),
    ],
    ids=lambda value: value[0].split("/")[-1][:40] if isinstance(value, list) else None,
)
def test_refused_with_place_and_fix(
    overrides: list[str], expected: list[str], dry: list[str], material: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (material / "broken.json").write_text('[\n {"id": 1, "image": "0.png"},\n {"id": 2 "image": "1.png"}\n]\n')
    good = json.loads((material / "data.json").read_text())[:3]
    (material / "missing.json").write_text(json.dumps([good[0], {**good[1], "image": "gone.png"}]))
    (material / "outside.json").write_text(json.dumps([{**good[0], "image": "../llm/config.json"}]))
    silent = [{"from": "human", "value": "<image>\nwhat ?"}]
    (material / "silent.json").write_text(json.dumps([{**good[0], "conversations": silent}]))
    given = [one.replace("{folder}", str(material)) for one in overrides]
    shown = refused(["train", str(material / "good.yaml"), *given, *dry], capsys)
    for text in expected:
        assert text in shown, shown


def test_missing_recipe_and_unknown_command(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "7b_qlora" in refused(["train", "recipes/7b_qlroa.yaml"], capsys)
    refused(["trian"], capsys)
    refused(["train"], capsys)
    refused(["eval", "nowhere", "--data", str(material / "data.json")], capsys)


def test_a_folder_with_another_run(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refused(["train", str(material / "good.yaml"), "name=finished"], capsys)
    assert "already holds another run" in shown and "name=" in shown and "output=" in shown
    with pytest.raises(SystemExit) as stopped:  # a dry run shows the plan, then says so
        main(["train", str(material / "good.yaml"), "name=finished", "--dry-run"])
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert "one sample as the model gets it" in shown.out
    assert "error: `train` would refuse to start: the run folder" in shown.err and "another run" in shown.err


def test_all_problems_at_once(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refused(["train", str(material / "good.yaml"), "sede=1", "lora.rank=0", "training.epochs=soon"], capsys)
    assert "seed" in shown and "lora.rank" in shown and "training.epochs" in shown


def test_a_changed_bundle_is_refused(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(material, {"name": "changed", "training.max_steps": 1})
    folder = train(recipe, console=quiet()).folder
    path = folder / "final" / "projector.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    data = ["--data", str(material / "data.json"), "--image-dir", str(material / "images")]
    shown = refused(["eval", str(folder), *data], capsys)
    assert "projector.safetensors was changed" in shown
    stage = [f"model.projector={q(folder)}", "name=second"]
    assert "projector.safetensors was changed" in refused(["train", str(material / "good.yaml"), *stage], capsys)
    shown = refused(["chat", str(folder), str(material / "images" / "0.png"), "what ?"], capsys)
    assert "projector.safetensors was changed" in shown


def test_a_projector_of_another_width_is_refused(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"model.projector={q(material / 'runs' / 'finished')}", f"model.llm={q(material / 'wide')}", "name=wide"]
    shown = refused(["train", str(material / "good.yaml"), *given], capsys)
    assert "model.projector" in shown and "stage 1" in shown


def test_a_tracker_that_is_not_installed(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = refused(["train", str(material / "good.yaml"), 'training.trackers=["mlflow"]', "name=tracked"], capsys)
    assert "pip install mlflow" in shown


def test_a_broken_picture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path, 6)
    write_llm(tmp_path / "llm")
    write_vision(tmp_path / "vision")
    picture = tmp_path / "images" / "3.png"
    picture.write_bytes(picture.read_bytes()[:50])
    (tmp_path / "r.yaml").write_text(dump_recipe(tiny_recipe(tmp_path, {"data.workers": 1})))
    for more in (["--dry-run"], [], ["data.check_images=exists"]):  # the last meets it while training
        shown = refused(["train", str(tmp_path / "r.yaml"), *more], capsys)
        assert "data.json, record 4" in shown and "3.png" in shown
