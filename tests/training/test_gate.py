"""BASIC is on only where its premise holds; what is left to measurement is measured once, and survives a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from basic_lite.recipe.schema import SupervisionSection
from basic_lite.run import train
from basic_lite.supervision.calibration import measured_weights
from basic_lite.supervision.interval import Interval
from basic_lite.supervision.premise import RefinementCurve
from basic_lite.training.files import sha256
from basic_lite.training.gate import COST, FEWEST_SAMPLES, Gate, Looks, plan_looks
from basic_lite.training.places import MANIFEST
from basic_lite.training.processes import ALONE
from tests.support.runs import assert_same_weights, log_of, quiet, tiny_recipe

MEASURED: dict[str, Any] = {"supervision.preset": "measured", "supervision.refinement_batches": 4}
ALL_ON: dict[str, Any] = MEASURED | {"supervision.gate": False, "training.max_steps": 6}


def test_looks_double_their_distance_and_leave_noise_out() -> None:
    looks = plan_looks(350, fresh=True, most_samples=64, passes=33_600, passes_a_look=1)
    assert looks == Looks((16, 32, 64, 128, 256), 64)
    assert plan_looks(350, fresh=False, most_samples=64, passes=1e9, passes_a_look=1).steps[:3] == (0, 16, 32)


@given(
    steps=st.integers(1, 100_000),
    fresh=st.booleans(),
    most=st.integers(16, 256),
    passes=st.floats(1, 1e7),
    cost=st.floats(0.5, 20),
)
def test_looks_cost_one_percent_or_are_one_small_look(
    steps: int, fresh: bool, most: int, passes: float, cost: float
) -> None:
    looks = plan_looks(steps, fresh=fresh, most_samples=most, passes=passes, passes_a_look=cost)
    assert looks.steps == tuple(sorted(set(looks.steps))) and looks.steps[0] >= 0 and looks.steps[-1] < max(steps, 1)
    spent = len(looks.steps) * looks.samples * cost
    assert spent <= COST * passes or (len(looks.steps) == 1 and looks.samples == FEWEST_SAMPLES)


def curve(low: float, high: float, samples: int = 64) -> RefinementCurve:
    gain = Interval((low + high) / 2, low, high)
    return RefinementCurve(["v", "target"], [0.2, 0.2], [0.1, 0.1], samples, 64, [gain], None)


def a_gate(said: list[str], gate: bool = True) -> Gate:
    looks = Looks((0,), 16)
    return Gate(None, SupervisionSection(gate=gate), looks, [], None, said.append, None, ALONE)  # type: ignore[arg-type]


def test_the_gate_opens_and_shuts_on_the_interval_alone() -> None:
    said: list[str] = []
    gate = a_gate(said)
    assert not gate.state.open
    for low, high, samples, open_, words in (
        (-0.1, 0.1, 64, False, "isn't shown here"),
        (0.01, 0.1, 64, True, "is on: its premise holds"),
        (0.02, 0.1, 64, True, "stays on"),
        (0.02, 0.1, 4, False, "off again"),  # four samples show nothing
        (-0.1, -0.01, 64, False, "does not hold here"),
    ):
        record = gate.decide(3, curve(low, high, samples))
        assert gate.state.open == record["open"] == open_
        assert words in said[-1] and f"[{low:+.3f}, {high:+.3f}]" in said[-1] and f"{samples} samples" in said[-1]


def test_without_a_gate_basic_is_on_from_the_start() -> None:
    assert a_gate([], gate=False).state.open


def test_layer_weights_are_the_gains_above_v() -> None:
    assert measured_weights([0.1, -0.2, 0.3]) == pytest.approx([0.25, 0, 0.75])
    assert measured_weights([-0.1, 0.0]) is None


def test_a_shut_gate_trains_as_llava_does(tmp_path: Path) -> None:
    shut = train(tiny_recipe(tmp_path, MEASURED | {"name": "shut"}), console=(console := quiet()))
    off = train(tiny_recipe(tmp_path, {"name": "off", "supervision.enabled": False}), console=quiet())
    assert_same_weights(shut.bundle, off.bundle)
    looks = [line["gate"] for line in log_of(shut.folder) if "gate" in line]
    assert [look["open"] for look in looks] == [False] and len(looks[0]["gain"]) == 3
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "BASIC is off until its premise is shown to hold" in text and "nothing is lost" in text
    assert "BASIC was on in 0 of 4 steps" in text
    assert not any("das" in line for line in log_of(shut.folder))


def test_what_was_chosen_survives_a_resume_bit_for_bit(tmp_path: Path) -> None:
    whole = train(tiny_recipe(tmp_path, ALL_ON | {"name": "whole"}), console=quiet())
    recipe = tiny_recipe(tmp_path, ALL_ON | {"name": "parts", "training.save_every": 3})
    train(recipe, console=quiet())
    run = tmp_path / "runs" / "parts"
    chosen = [line["gate"]["plan"] for line in log_of(run) if "gate" in line]
    assert len(chosen) == 1 and sum(chosen[0]["layer_weights"]) == pytest.approx(1)
    state = json.loads((run / "checkpoint-3" / "training.json").read_text())
    assert state["progress"]["gate"]["plan"] == chosen[0]
    for later in ("checkpoint-6", "final"):
        shutil.rmtree(run / later)
    train(recipe, resume=True, console=quiet())
    assert_same_weights(whole.bundle, run / "final")


def test_an_open_gate_has_basic_in_its_steps(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, MEASURED | {"training.save_every": 2, "training.max_steps": 4})
    train(recipe, console=quiet())
    run = tmp_path / "runs" / "tiny"
    path = run / "checkpoint-2" / "training.json"
    state = json.loads(path.read_text())
    state["progress"]["gate"]["open"] = True
    path.write_text(json.dumps(state))
    manifest = json.loads((path.parent / MANIFEST).read_text())
    manifest["files"][path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    (path.parent / MANIFEST).write_text(json.dumps(manifest))
    for later in ("checkpoint-4", "final"):
        shutil.rmtree(run / later)
    train(recipe, resume=True, console=(console := quiet()))
    assert {line["step"] for line in log_of(run) if "das" in line} == {3, 4}
    assert "BASIC was on in 2 of 4 steps" in console.file.getvalue()  # type: ignore[attr-defined]
