"""Which samples choose BASIC's target, decide, are asked again, and try its pull, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from basic_lite.data.batches import SupervisedDataset
from basic_lite.data.prepare import Prepared, prepare_data
from basic_lite.data.problems import RecordProblem
from basic_lite.model.frontend import load_frontend
from basic_lite.resampling import Interval
from basic_lite.supervision.premise import RefinementCurve
from basic_lite.training.gate import Gate
from basic_lite.training.pull import Pull
from basic_lite.training.recovery import samples_in
from basic_lite.training.refinement_log import curve_batches
from tests.support.runs import gate_of, tiny_recipe, write_data

MEASURED: dict[str, Any] = {"supervision.preset": "measured", "supervision.refinement_batches": 8}


def gate_data(folder: Path, changes: dict[str, Any]) -> Prepared:
    recipe = tiny_recipe(folder, {key.replace("__", "."): value for key, value in changes.items()})
    return prepare_data(recipe, load_frontend(recipe.model), say=lambda text: None)


def rows_of(batches: Sequence[dict[str, Tensor]]) -> list[list[int]]:
    """The token ids of each sample, without padding."""
    return [
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def measured_gate(folder: Path, pictures: int, **changes: Any) -> Gate:
    write_data(folder, pictures)
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    return gate_of(tiny_recipe(folder, MEASURED | changed))[0]


@pytest.mark.parametrize(("count", "decide"), [(17, 5), (47, 15), (48, 16), (50, 16), (60, 20)])
def test_every_process_knows_how_many_decide(tmp_path: Path, count: int, decide: int) -> None:
    gate = measured_gate(tmp_path, count, supervision__refinement_batches=16, training__max_steps=10**6)
    assert gate.deciding == samples_in(gate.again) == samples_in(gate.testing) == samples_in(gate.choosing) == decide
    assert gate.due(0, evaluated=True) is (decide >= 16)


def test_a_look_keeps_what_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = measured_gate(tmp_path, 60)
    assert gate.cost == gate.looks.cost(32) + gate.trials.cost and gate.trials.cost > 0.004
    monkeypatch.setattr(RefinementCurve, "verdict", "holds")
    monkeypatch.setattr(Pull, "tried", lambda self: Interval(0.02, 0.01, 0.03))
    for step in (1, 2):  # refused first, then spent
        assert gate.look(step) is not None and gate.state.asked == gate.trials.again_passes + gate.trials.passes


def test_samples_that_broke_are_missed_by_all_parts(tmp_path: Path) -> None:
    write_data(tmp_path, 60)
    recipe = tiny_recipe(tmp_path, MEASURED | {"data.bad_records": "drop"})
    assert gate_of(recipe)[0].deciding == 16

    every = Prepared.samples_with_images
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prepared, "samples_with_images", lambda self, count: every(self, count)[:45])
        gate = gate_of(recipe)[0]
    assert gate.deciding == samples_in(gate.again) == 15 and samples_in(gate.choosing) == samples_in(gate.testing) == 15


def test_a_sample_that_broke_has_the_next_one_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the curve, whose samples a look at an evaluation takes by their numbers."""
    write_data(tmp_path, 60)
    uneven = {"training.micro_batch": 3, "training.global_batch": 3}
    recipe = tiny_recipe(tmp_path, MEASURED | uneven | {"data.bad_records": "drop"})
    load, fourth = SupervisedDataset.__getitem__, int(torch.randperm(60, generator=torch.Generator().manual_seed(0))[3])

    def broken(self: SupervisedDataset, index: int) -> dict[str, Any]:
        if index == fourth:
            raise RecordProblem("the picture is gone", "bring it back")
        return load(self, index)

    monkeypatch.setattr(SupervisedDataset, "__getitem__", broken)
    gate, data = gate_of(recipe)
    assert gate.deciding == samples_in(gate.again) == 16
    curve = rows_of(data.batches_with_images(*curve_batches(recipe)))
    assert len(curve) == 32
    assert curve[::2] == rows_of(gate.choosing) and curve[1::2] == rows_of(gate.testing)


@pytest.mark.parametrize("micro_batch", [1, 32])
@pytest.mark.parametrize("held_out", [None, 0.1])
def test_enough_samples_decide_and_they_are_not_those_that_chose(
    tmp_path: Path, micro_batch: int, held_out: float | None
) -> None:
    changes: dict[str, Any] = {"training__micro_batch": micro_batch, "training__global_batch": 32}
    gate = measured_gate(tmp_path, 60, supervision__refinement_batches=16, data__held_out=held_out, **changes)
    assert samples_in(gate.testing) >= 16 and samples_in(gate.choosing) >= 16
    data, size = gate_data(tmp_path, changes | {"data__held_out": held_out}), gate.looks.samples
    samples = [sample["input_ids"] for sample in data.samples_with_images(size)]
    assert rows_of(gate.choosing) == samples[::2] and rows_of(gate.testing) == samples[1::2]
    # BASIC's pull is of those that chose, and others are asked; in a run so short not of all.
    assert rows_of(gate.pull.pulling) == samples[::2][:8]
    assert rows_of(gate.pull.asked) == samples[1::2][:16]
    more = [sample["input_ids"] for sample in data.samples_with_images(size + gate.deciding)]
    assert rows_of(gate.again) == more[size:] and len(more) - size == gate.deciding >= 16


def test_where_no_score_chooses_all_of_a_look_decide_and_others_try_the_pull(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = measured_gate(tmp_path, 40, supervision__layers=2, supervision__layer_weights="quadratic")
    assert rows_of(gate.choosing) == rows_of(gate.testing) and gate.deciding == samples_in(gate.testing) == 20
    assert rows_of(gate.pull.pulling) == rows_of(gate.testing)[:8]
    assert rows_of(gate.pull.asked) == rows_of(gate.again)[:16] != rows_of(gate.testing)[:16]
    # Of an evaluation's curve they are the first ones.
    curve = cast(Any, SimpleNamespace(curve=list))
    assert cast(Any, gate._tested(curve, changed=False)) == list(range(20))
    monkeypatch.setattr(Gate, "_gain_on", lambda self, batches: rows_of(batches))
    assert cast(Any, gate.ask_again()) == rows_of(gate.again) != rows_of(gate.testing)
