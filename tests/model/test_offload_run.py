"""Offloading in training: the same bits, and a whole run that lives with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from basic_lite.errors import UserError
from basic_lite.model import offload
from basic_lite.model.audit import audit
from basic_lite.model.frontend import load_frontend
from basic_lite.model.offload import ActivationOffload
from basic_lite.run import train
from basic_lite.tools.evaluate import evaluate_run
from basic_lite.training.assembly import check_machine, load_for_training
from tests.support.runs import log_of, quiet, steps_of, whole_recipe, write_data
from tests.support.steps import two_steps

CPU = torch.device("cpu")
LAYERS = 4  # of the tiny LLM
OFFLOAD, TOWER = {"training.offload_activations": True}, {"model.tower_on_host": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("offload")
    write_data(root, 8)
    whole_recipe(root)
    return root


CASES: dict[str, dict[str, Any]] = {
    "sdpa": {},
    "eager": {"model.attention": "eager"},
    "target with a graph": {"supervision.detach": False},
    "eager, target with a graph": {"model.attention": "eager", "supervision.detach": False},
    "final norm on every layer": {"supervision.target_norm": "final"},
    "layers of one size, no sinks": {"supervision.target_norm": "layer", "supervision.sinks": "drop"},
    "bfloat16": {"model.dtype": "bfloat16"},
}


def test_only_inputs_of_recomputed_layers_go(folder: Path, to_host: list[Any]) -> None:
    plain = list(two_steps(whole_recipe(folder, {"lora.dropout": 0.3})))
    moved = list(
        two_steps(whole_recipe(folder, {"lora.dropout": 0.3, **OFFLOAD, "training.gradient_checkpointing": 3}))
    )
    assert len(to_host) == 4 * 3 and {(shape[0], len(shape), shape[2]) for shape in to_host} == {(2, 3, 64)}
    assert all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))


@pytest.mark.parametrize(
    "changes",
    # The first is in a plain run.
    [
        pytest.param(changes, id=name, marks=[pytest.mark.long] * bool(n))
        for n, (name, changes) in enumerate(CASES.items())
    ],
)
def test_the_same_bits(folder: Path, changes: dict[str, Any], to_host: list[Any]) -> None:
    """On the CPU: on a GPU, attention and scatter kernels may differ from run to run by themselves."""
    changes = {"lora.dropout": 0.3, **changes}
    plain = list(two_steps(whole_recipe(folder, changes)))
    assert not to_host
    moved = list(two_steps(whole_recipe(folder, {**changes, **OFFLOAD, **TOWER})))
    # Each layer's input [B, T, D] of each of four micro-batches, and nothing else.
    assert len(to_host) == 4 * LAYERS and {(shape[0], len(shape), shape[2]) for shape in to_host} == {(2, 3, 64)}
    assert len(plain) == len(moved) > 20
    assert all(torch.equal(a, b) for a, b in zip(plain, moved, strict=True))
    assert not torch.equal(plain[0], plain[1])


def test_what_comes_back_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spoiled on the host, it spoils the gradients: the test above could fail."""
    monkeypatch.setattr(offload, "MIN_BYTES", 1)
    plain = list(two_steps(whole_recipe(folder)))
    really = ActivationOffload.to_host
    monkeypatch.setattr(ActivationOffload, "to_host", lambda self, tensor: really(self, tensor).mul_(1.01))
    spoiled = list(two_steps(whole_recipe(folder, OFFLOAD)))
    assert torch.equal(plain[0], spoiled[0])  # the first forward
    assert not all(torch.equal(a, b) for a, b in zip(plain, spoiled, strict=True))


def test_the_audit_sees_the_same_parts(folder: Path) -> None:
    tables = []
    for changes in ({}, TOWER):
        recipe = whole_recipe(folder, changes)
        loaded = load_for_training(recipe, CPU, load_frontend(recipe.model), lambda text: None)
        tables.append(audit(loaded.parts))
    assert tables[0] == tables[1]


@pytest.mark.long
def test_a_run_with_both_is_the_same_run(folder: Path, to_host: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, evaluation, uniform weights' extra forward, checkpoints, resume, and the tools afterwards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = {"path": str(folder / "data.json"), "image_dir": str(folder / "images")}
    changes = {
        "training.device": "auto",  # with `cpu` both keys are refused when the recipe is read
        "lora.dropout": 0.3,
        "data.eval": data,
        "training.eval_every": 2,
        "training.save_every": 2,
        "training.keep": 9,
        "supervision.token_weights": "uniform",
        "supervision.refinement_batches": 1,
    }
    plain = train(whole_recipe(folder, {**changes, "name": "plain"}), console=quiet())
    monkeypatch.setattr("basic_lite.training.assembly.check_machine", lambda recipe, device: None)  # it refuses a CPU
    recipe = whole_recipe(folder, {**changes, **OFFLOAD, **TOWER, "name": "moved"})
    moved = train(recipe, console=quiet())
    assert len(to_host) == 4 * 2 * LAYERS

    shutil.rmtree(moved.folder / "final")
    shutil.rmtree(moved.folder / "checkpoint-4")
    # A run may continue with other values of both keys, and with fewer recomputed layers.
    fewer = {**changes, **TOWER, "training.gradient_checkpointing": 1, "name": "moved"}
    train(whole_recipe(folder, fewer), resume=True, console=quiet())
    assert len(to_host) == 4 * 2 * LAYERS
    for name in ("projector.safetensors", "adapter/adapter_model.safetensors"):
        a, b = load_file(plain.folder / "final" / name), load_file(moved.folder / "final" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    terms = [[{k: line[k] for k in ("lm", "das", "sds")} for line in steps_of(r.folder)] for r in (plain, moved)]
    assert terms[0] == terms[1]
    losses = [[line["eval_loss"] for line in log_of(r.folder) if "eval_loss" in line] for r in (plain, moved)]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    parts = [json.loads((r.folder / "parts.json").read_text()) for r in (plain, moved)]
    assert parts[0] == parts[1]
    answers = [
        evaluate_run(r.folder, folder / "data.json", image_dir=folder / "images", limit=2, console=quiet()).predictions
        for r in (plain, moved)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("changes", [OFFLOAD, TOWER], ids=str)
def test_a_machine_without_a_gpu_refuses(folder: Path, changes: dict[str, Any]) -> None:
    recipe = whole_recipe(folder, {**changes, "training.device": "auto"})
    with pytest.raises(UserError, match=rf"{next(iter(changes))}: true needs a GPU .* the run is on the cpu"):
        check_machine(recipe, CPU)
    check_machine(recipe, None)  # a dry run for another machine
