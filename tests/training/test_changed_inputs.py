"""Held-out data and base models that were changed between two parts of a run: it isn't gone on with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from basic_lite.errors import UserError
from basic_lite.model.base_files import digests_of_models
from basic_lite.recipe.schema import ModelSection
from basic_lite.tools.export.command import export
from basic_lite.training.bundle import load_trained
from basic_lite.training.places import MANIFEST
from tests.support.marks import rest_long
from tests.support.runs import assert_same_weights, run, write_data

SAVING = {"training.max_steps": 2, "training.save_every": 1, "training.keep": 9, "lora.dropout": 0.2}


def unfinish(folder: Path) -> None:
    for name in ("final", "checkpoint-2"):
        shutil.rmtree(folder / name)


def test_changed_held_out_data_is_refused(tmp_path: Path) -> None:
    """It decides which step is the best one, and whether BASIC is turned on."""
    held_out = write_data(tmp_path / "held_out", 4)
    source = {"path": str(held_out), "image_dir": str(held_out.parent / "images")}
    changes = {**SAVING, "data.eval": source}
    folder = run(tmp_path, changes)
    unfinish(folder)
    records = json.loads(held_out.read_text())
    held_out.write_text(json.dumps(records[:-1]))
    with pytest.raises(UserError, match=r"--resume: the held-out data isn't what it was .*files that data\.eval names"):
        run(tmp_path, changes, resume=True)
    held_out.write_text(json.dumps(records))
    manifest = json.loads((folder / "checkpoint-1" / MANIFEST).read_text())
    del manifest["data"]["eval_fingerprint"]  # as an older version wrote it
    (folder / "checkpoint-1" / MANIFEST).write_text(json.dumps(manifest))
    run(tmp_path, changes, resume=True)


def noisy(file: Path) -> None:
    state = load_file(file)
    save_file({name: value + 0.01 * torch.randn_like(value) for name, value in state.items()}, file, {"format": "pt"})


def edited(**values: Any) -> Callable[[Path], None]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | values)) and None


BASES = {
    "weights of the LLM": ("llm/model.safetensors", noisy, "model.llm"),
    "its configuration": ("llm/config.json", edited(rms_norm_eps=0.1), "model.llm"),
    "weights of the tower": ("vision/model.safetensors", noisy, "model.vision"),
    "its image processor": ("vision/preprocessor_config.json", edited(image_mean=[0.1, 0.2, 0.3]), "model.vision"),
    "who wrote it": ("llm/config.json", edited(transformers_version="9.9"), None),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    run(place, SAVING)
    return place


@pytest.mark.parametrize("what", BASES)
def test_a_changed_base_model_is_refused(finished: Path, what: str) -> None:
    file, change, key = BASES[what]
    folder, before = finished / "runs" / "tiny", (finished / file).read_bytes()
    shutil.copytree(folder, whole := finished / what)
    unfinish(folder)
    change(finished / file)
    try:
        if key is None:
            assert_same_weights(run(finished, SAVING, resume=True) / "final", whole / "final")
        else:
            place = re.escape(str(finished / file.split("/")[0]))
            told = (
                rf"--resume: {key} \({place}\) changed since .*checkpoint-1 was saved: .*Restore these files, or train"
            )
            with pytest.raises(UserError, match=told):
                run(finished, SAVING, resume=True)
    finally:
        (finished / file).write_bytes(before)
        shutil.rmtree(folder)
        whole.rename(folder)


@pytest.mark.parametrize("what", rest_long("weights of the LLM", "weights of the tower", "who wrote it"))
def test_a_changed_base_model_is_told_wherever_the_run_is_used(
    finished: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, change, key = BASES[what]
    folder, before = finished / "runs" / "tiny", (finished / file).read_bytes()
    next_stage = {"model.start": str(folder), "name": "next"}
    uses = {
        "eval, chat and others": lambda place: load_trained(folder, torch.device("cpu")),
        "export": lambda place: export(folder, place / "exported", samples=1, limit=9.0),
        "export without its check": lambda place: export(folder, place / "unchecked", samples=0),
        "the next stage": lambda place: run(finished, next_stage, console=Console()),
    }
    change(finished / file)
    try:
        for use, act in uses.items():
            capsys.readouterr()
            act(finished / what.replace(" ", "_"))
            told = " ".join("".join(capsys.readouterr()).split())
            assert told.count("changed since") == (key is not None), use
            place = finished / file.split("/")[0]
            assert key is None or f"note: {key} ({place}) changed since {folder}" in told, use
            if use == "export":
                assert ("it answers as the trained model does" in told) == (key is None)
                card = (finished / what.replace(" ", "_") / "exported" / "README.md").read_text(encoding="utf-8")
                assert ("Files of its base models were changed after the training" in card) == (key is not None)
            assert key != "model.llm" or "was saved: weights or config.json." in told
    finally:
        (finished / file).write_bytes(before)
        shutil.rmtree(finished / "runs" / "next", ignore_errors=True)


@pytest.mark.parametrize("file", ["model.safetensors", "part-2.safetensors", "pytorch_model.bin"])
def test_large_files_are_known_by_pieces(tmp_path: Path, file: str) -> None:
    if file.startswith("part"):
        index = {"weight_map": {"a": "part-1.safetensors", "b": file}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    data = bytearray(1 << 20)
    section = ModelSection(base=str(tmp_path))
    found = set()
    for start in (None, 0, len(data) // 3, len(data) - 40_000):
        new = data.copy()
        if start is not None:
            new[start : start + 40_000] = b"x" * 40_000
        (tmp_path / file).write_bytes(new)
        found.add(digests_of_models(section)["model.base"])
    assert len(found) == 4


def test_settings_that_are_no_json_end_no_run(tmp_path: Path) -> None:
    """transformers reads no preprocessor_config.json where processor_config.json has its settings."""
    section, file = ModelSection(base=str(tmp_path)), tmp_path / "preprocessor_config.json"
    found = set()
    for text in ("{", "[", "{}", '{"a": 1, "b": 2}', '{"b": 2, "a": 1}'):
        file.write_text(text)
        found.add(digests_of_models(section)["model.base"])
    assert len(found) == 4  # in another order they say the same


def test_advice_to_train_in_a_new_run_is_typed_as_it_stands(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished / "runs" / "tiny", tmp_path / "my runs" / "tiny")
    changes, base = {**SAVING, "output": str(tmp_path / "my runs")}, finished / "llm" / "model.safetensors"
    before, data = base.read_bytes(), (finished / "data.json").read_text()

    def assert_told(changes: dict[str, Any], *, resume: bool) -> None:
        with pytest.raises(UserError) as told:
            run(finished, changes, resume=resume)
        assert f'"model.start={folder}" name=NEW' in str(told.value)

    assert_told({**changes, "seed": 5}, resume=False)
    assert_told({**changes, "seed": 5}, resume=True)
    unfinish(folder)
    try:
        noisy(base)
        assert_told(changes, resume=True)
        base.write_bytes(before)
        (finished / "data.json").write_text(data.replace("blue", "green"))
        assert_told(changes, resume=True)
    finally:
        base.write_bytes(before)
        (finished / "data.json").write_text(data)
