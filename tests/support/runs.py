"""Tiny runs: a few coloured pictures with conversations, tiny checkpoints, and a recipe over them."""

from __future__ import annotations

import io
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from basic_lite.data.prepare import Prepared, prepare_data
from basic_lite.model.frontend import load_frontend
from basic_lite.model.load import load_base
from basic_lite.recipe.schema import Recipe
from basic_lite.run import train
from basic_lite.training.assembly import supervise
from basic_lite.training.batches import Schedule
from basic_lite.training.gate import Gate, make_gate
from basic_lite.training.processes import ALONE
from basic_lite.training.step import TrainStep
from tests.support.models import write_llm, write_vision

TERMS = ("loss", "lm", "das", "sds")
# Supervision that is felt: with the paper's λ2 a wrong SDS would vanish in rounding.
LOUD = {"supervision.lambda_das": 1.0, "supervision.lambda_sds": 1.0}
# BASIC's gradient guarded, and SDS on two visual tokens of each sample.
GUARDED = {"supervision.guard": 0.5, "supervision.sds_tokens": 2}
# What most runs of the tests have, and what a recipe has by default. A run of the latter takes half as long again.
LIGHT = {"lora.targets": ["q_proj", "down_proj"], "training.gradient_checkpointing": 1}
WHOLE = {"lora.targets": "all-linear", "training.gradient_checkpointing": True}
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 180, 30)}


def write_data(folder: Path, count: int = 12, *, text_only: int = 0, captions: bool = False) -> Path:
    """``count`` LLaVA records with pictures of one colour, then ``text_only`` without; lengths differ."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for i in range(count):
        colour = list(COLOURS)[i % 3]
        Image.new("RGB", (20, 16), COLOURS[colour]).save(folder / "images" / f"{i}.png")
        question = "describe the image" if captions else f"what colour is it ? {'there ' * (i % 4)}"
        records.append(
            {
                "id": i,
                "image": f"{i}.png",
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question}"},
                    {"from": "gpt", "value": f"it is {colour}"},
                ],
                "question_type": "colour",
            }
        )
    for i in range(text_only):
        turns = [{"from": "human", "value": "how many ?"}, {"from": "gpt", "value": "two " * (1 + i % 3)}]
        records.append({"id": f"t{i}", "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


def tiny_recipe(folder: Path, changes: dict[str, Any] | None = None, *, kind: str = "llama") -> Recipe:
    """A stage-2 recipe that trains in a second; ``changes``: dotted keys to values. Checkpoints are made once.

    A LLaMA has LoRA on a square linear layer and on an oblong one, and its first layer is recomputed. For what memory,
    plans and merges are about there is ``whole_recipe``.
    """
    # Other families name their layers otherwise.
    light = LIGHT if kind == "llama" else {}
    return whole_recipe(folder, {**light, **(changes or {})}, kind=kind)


def whole_recipe(folder: Path, changes: dict[str, Any] | None = None, *, kind: str = "llama") -> Recipe:
    """As ``tiny_recipe``, but LoRA is on each linear layer and each layer is recomputed, as in a recipe by default."""
    if not (folder / "llm").exists():
        made, generator = _models(kind)
        shutil.copytree(made.name, folder, dirs_exist_ok=True)
        torch.set_rng_state(generator)
    if not (folder / "data.json").exists():
        write_data(folder)
    tree: dict[str, Any] = {
        "name": "tiny",
        "stage": 2,
        "output": str(folder / "runs"),
        "model": {"llm": str(folder / "llm"), "vision": str(folder / "vision")},
        "lora": {"enabled": True, "rank": 4, "alpha": 8.0, "dropout": 0.0},
        "data": {
            "train": {"path": str(folder / "data.json"), "image_dir": str(folder / "images")},
            "template": "tokenizer",
            "max_length": 64,
            "workers": 0,
        },
        "supervision": {"refinement_batches": 0},
        "training": {
            "learning_rate": 1e-3,
            "projector_learning_rate": 1e-3,
            "global_batch": 4,
            "micro_batch": 2,
            "max_steps": 4,
            "device": "cpu",
            "trackers": [],
            "eval_answers": 0,  # generation costs more than these runs
            "text_probe": False,  # its own tests have it
        },
    }
    for key, value in (changes or {}).items():
        node = tree
        *path, last = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return Recipe.model_validate(tree)


@cache
def _models(kind: str) -> tuple[TemporaryDirectory[str], torch.Tensor]:
    """The checkpoints of all tiny runs, written once a process, and the generator's state after that."""
    made = TemporaryDirectory(prefix="tiny-models-")
    write_llm(Path(made.name) / "llm", kind)
    write_vision(Path(made.name) / "vision")
    return made, torch.get_rng_state()


def quiet() -> Console:
    """A console that keeps what it is told."""
    return Console(file=io.StringIO(), width=120)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The training lines of a run's log."""
    return [line for line in log_of(run) if "loss" in line]


def weights_of(bundle: Path) -> dict[str, torch.Tensor]:
    state = load_file(bundle / "projector.safetensors")
    adapter = bundle / "adapter" / "adapter_model.safetensors"
    return state | (load_file(adapter) if adapter.exists() else {})


def assert_same_weights(one: Path, other: Path, **tolerance: float) -> None:
    a, b = weights_of(one), weights_of(other)
    assert a.keys() == b.keys() and len(a) >= 4  # the projector's four at least
    for name in a:
        torch.testing.assert_close(a[name], b[name], **(tolerance or {"rtol": 0, "atol": 0}))


def assert_same_terms(one: Path, other: Path, rel: float, names: tuple[str, ...] = TERMS) -> None:
    a, b = steps_of(one), steps_of(other)
    assert [line["step"] for line in a] == [line["step"] for line in b] and a
    for left, right in zip(a, b, strict=True):
        for name in names:
            assert left[name] == pytest.approx(right[name], rel=rel, abs=1e-9), (name, left["step"])


def run(folder: Path, changes: dict[str, Any] | None = None, **kwargs: Any) -> Path:
    return train(tiny_recipe(folder, changes), **{"console": quiet()} | kwargs).folder


def inside_copy(folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a folder whose runs name their data relative to it; it is the current folder from here."""
    shutil.copytree(folder, scratch / "copy")
    monkeypatch.chdir(scratch / "copy")
    return scratch / "copy"


def gate_of(recipe: Recipe) -> tuple[Gate, Prepared]:
    """The gate of a run that hasn't begun, and its data."""
    frontend = load_frontend(recipe.model)
    data = prepare_data(recipe, frontend, say=lambda text: None)
    loaded = load_base(recipe, torch.device("cpu"), frontend)
    supervision = supervise(recipe, loaded, lambda text: None)
    step = TrainStep(loaded.parts, supervision, device=torch.device("cpu"))
    schedule, size = Schedule(data.sampler, recipe), recipe.training.micro_batch
    gate = make_gate(recipe, loaded, supervision, data, schedule, ALONE, lambda text: None, step, lambda: size)
    assert gate is not None
    return gate, data
