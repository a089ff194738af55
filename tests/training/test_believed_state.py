"""A checkpoint's training state with the right hashes, changed by others: refused by name, or it changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from basic_lite.errors import UserError
from basic_lite.training import optimizer_state
from basic_lite.training.bundle_files import OPTIMIZER, TRAINING
from basic_lite.training.files import sha256
from basic_lite.training.places import MANIFEST
from tests.support.checkpoints import Restoring
from tests.support.runs import assert_same_weights, run

STEPS = 3
CHANGES = {"training.max_steps": STEPS, "training.save_every": 2, "training.keep": 9, "lora.dropout": 0.2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    run(place, CHANGES)
    return place


@pytest.fixture(scope="module")
def restoring(finished: Path) -> Restoring:
    return Restoring(finished, CHANGES)


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run without its end; gives the checkpoint that it goes on from."""
    folder = Path(shutil.copytree(finished / "runs" / "tiny", tmp_path / "runs" / "tiny"))
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    return folder / "checkpoint-2"


def seal(checkpoint: Path, **facts: Any) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text()) | facts
    for name in (TRAINING, OPTIMIZER):
        manifest["files"][name]["sha256"] = sha256(checkpoint / name)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def change(checkpoint: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    state = json.loads((checkpoint / TRAINING).read_text())
    edit(state)
    (checkpoint / TRAINING).write_text(json.dumps(state))
    seal(checkpoint)


def test_rates_and_the_schedules_place_are_the_recipes(finished: Path, checkpoint: Path) -> None:
    """What earlier versions wrote there is read over, so no file turns the training round."""
    hostile = {"lr": "x", "betas": [5, 5], "eps": 1.0, "maximize": True, "weight_decay": 1e9, "amsgrad": True}

    def edit(state: dict[str, Any]) -> None:
        for group in state["optimizer"]["groups"]:
            group.update(hostile)
        state["scheduler"] = {"last_epoch": "x", "base_lrs": [], "step": 5, "_last_lr": None}

    change(checkpoint, edit)
    went_on = run(finished, {**CHANGES, "output": str(checkpoint.parent.parent)}, resume=True)
    assert_same_weights(finished / "runs" / "tiny" / "final", went_on / "final")


def progress(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state["progress"].update(values)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "step 0": (progress(step=0), "of step 0, and its manifest of step 2"),
    "step 99": (progress(step=99), "of step 99, and its manifest of step 2"),
    "step -1": (progress(step=-1), "greater than or equal to 0"),
    "step true": (progress(step=True), "valid integer"),
    "step of text": (progress(step="2"), "valid integer"),
    "micro-batch -1": (progress(lowered_to=-1), "lowered_to"),
    "micro-batch 0": (progress(lowered_to=0), "lowered_to"),
    "layers -1": (progress(recomputed=-1), "recomputed"),
    "answers 0": (progress(answered_at_once=0), "answered_at_once"),
    "losses of text": (progress(losses=["x"]), "losses"),
    "losses of NaN": (progress(losses=[float("nan")]), "losses"),
    "terms of text": (progress(last_terms={"das": "x"}), "last_terms"),
    "terms with a step": (progress(last_terms={"step": 9.0}), "step is no term"),
    "terms with a time": (progress(last_terms={"time": 9.0}), "time is no term"),
    "gate of text": (progress(gate={"open": "x"}), "gate"),
    "gate below 0": (
        progress(gate={"open": True, "plan": {"layer_weights": [-1.0], "massive": None}, "chosen": True,
                       "steps_on": 1, "verdict": "holds"}),
        "gate",
    ),
    "progress a list": (lambda state: state.update(progress=[1]), "mapping"),
    "another group": (lambda state: state["optimizer"]["groups"][0].update(params=[1, 0]), "groups are others"),
    "a count of text": (lambda state: state["optimizer"]["numbers"].update({"0/step": "x"}), "has had 'x' updates"),
    "one entry more": (lambda state: state["optimizer"]["numbers"].update({"0/max_exp_avg_sq": 1}), "max_exp_avg_sq"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_training_state_out_of_bounds(restoring: Restoring, checkpoint: Path, what: str) -> None:
    edit, told = REFUSED[what]
    change(checkpoint, edit)
    with pytest.raises(UserError, match=rf"checkpoint-2 doesn't fit .*{told}[\s\S]*--checkpoint"):
        restoring(checkpoint)


def _count(state: dict[str, torch.Tensor], value: float) -> None:
    state["0/step"] = torch.tensor(value)


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "none": (lambda state: state.clear(), "of 0 parameters"),
    "one parameter less": (lambda state: [state.pop(name) for name in list(state) if name.startswith("3/")], "trained"),
    "no first moment": (lambda state: state.pop("0/exp_avg"), "parameter 0 has exp_avg_sq, step"),
    "more updates than steps": (lambda state: _count(state, 9.0), "has had 9.0 updates, and the run 2"),
    "half an update": (lambda state: _count(state, 1.5), "has had 1.5 updates"),
    "many counts": (lambda state: state.update({"0/step": torch.ones(3)}), "updates"),
    "a square below 0": (lambda state: state["0/exp_avg_sq"].sub_(1.0), "below 0 in exp_avg_sq"),
    "another type": (lambda state: state.update({"0/exp_avg": state["0/exp_avg"].half()}), "exp_avg of another type"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_an_optimizers_state_that_isnt_its_own(restoring: Restoring, checkpoint: Path, what: str) -> None:
    edit, told = TENSORS[what]
    state = load_file(checkpoint / OPTIMIZER)
    edit(state)
    save_file(state, checkpoint / OPTIMIZER)
    seal(checkpoint)
    with pytest.raises(UserError, match=rf"checkpoint-2 doesn't fit .*{told}[\s\S]*--checkpoint"):
        restoring(checkpoint)


def test_steps_that_contradict_each_other(restoring: Restoring, checkpoint: Path) -> None:
    change(checkpoint, progress(step=9))
    seal(checkpoint, step=9)
    with pytest.raises(UserError, match="it is of step 9, and the run has 3"):
        restoring(checkpoint)
    seal(checkpoint, step=1)
    change(checkpoint, progress(step=1))
    with pytest.raises(UserError, match=r"has had 2\.0 updates, and the run 1"):
        restoring(checkpoint)


def test_the_schedule_is_where_the_steps_have_brought_it(restoring: Restoring, checkpoint: Path) -> None:
    restored = restoring(checkpoint)
    stepped = restoring.new_step()
    for _ in range(2):
        stepped.optimizer.step()
        stepped.scheduler.step()
    assert restored.rates() == stepped.rates() and len(set(restored.rates().values()) - {0.0}) >= 1
    assert restored.scheduler.state_dict() == stepped.scheduler.state_dict()


def test_a_state_in_8_bit_goes_there_and_back(tmp_path: Path) -> None:
    """LoRA's large matrices are in blocks with factors, the projector in 32 bit."""
    kit = Restoring(tmp_path, {"training.max_steps": 4, "training.optimizer": "adamw_8bit", "lora.rank": 64})
    first, second = kit.new_step().optimizer, kit.new_step().optimizer
    assert first is not None and second is not None
    for group in first.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    first.step()
    tensors, numbers = optimizer_state.flatten(first.state_dict()["state"])
    assert any(one.dtype == torch.uint8 for one in tensors.values())
    optimizer_state.restore(second, tensors, numbers, steps=1)
    again, counts = optimizer_state.flatten(second.state_dict()["state"])
    assert counts == numbers and again.keys() == tensors.keys()
    assert all(torch.equal(again[name], one) and again[name].dtype == one.dtype for name, one in tensors.items())
    codes = next(name for name in tensors if name.endswith("qmap1"))
    factors = next(name for name in tensors if name.endswith("absmax2"))
    for name, value, told in ((codes, tensors[codes] * 2, "another qmap1"), (factors, -tensors[factors], "below 0")):
        with pytest.raises(ValueError, match=told):
            optimizer_state.restore(second, tensors | {name: value}, numbers, steps=1)
