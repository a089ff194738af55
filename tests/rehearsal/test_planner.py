"""Its counts and predictions against whole ones, its choice against all plans, its peak against a real one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from basic_lite.cards import Card, card_of
from basic_lite.model import offload
from basic_lite.model.frontend import load_frontend
from basic_lite.recipe.rules import changed_recipe
from basic_lite.rehearsal import Machine, Rehearser, Shape
from basic_lite.rehearsal.counts import MicroBatchTime, _count, operations_seconds
from basic_lite.rehearsal.planner import Planner, best_of
from basic_lite.training.plan import FIELDS, Plan
from tests.support.peaks import measured_peak, recipe_of

LAYERS = 6
BF16 = {"model.dtype": "bfloat16", "training.autocast": "bfloat16"}
# No operation of a small model is large: this card has little of everything.
SLOW = Card("slow", 1.0, 20.0, 1.0, 1.0, 1.0, launch_s=8e-6)


def planner_of(folder: Path, changes: dict[str, Any] | None = None, **how: Any) -> Planner:
    recipe = recipe_of(folder, {"training.global_batch": 8, "supervision.refinement_batches": 4, **(changes or {})})
    machine = how.pop("machine", Machine.this_cpu)(recipe)
    rehearser = Rehearser(recipe, load_frontend(recipe.model), machine)
    return Planner(rehearser, Shape.of(recipe), SLOW, **how)


@pytest.mark.long
@pytest.mark.parametrize("samples", [1, pytest.param(4, marks=pytest.mark.soak)])
def test_time_of_one_layer_gives_that_of_all(folder: Path, samples: int) -> None:
    recipe = recipe_of(folder, BF16)
    frontend, machine, shape = load_frontend(recipe.model), Machine.card(recipe), Shape.of(recipe)
    time = MicroBatchTime(recipe, frontend, machine, shape)
    whole = Rehearser(recipe, frontend, machine, basic=False, in_full=True)
    for recomputed in (0, 2, LAYERS):
        counted = _count(whole, replace(shape, samples=samples, accumulation=2), recomputed=recomputed)
        busy, starts = sum(operations_seconds(operations, SLOW) for operations in counted.values())
        assert time.seconds(Plan(samples, recomputed, LAYERS), SLOW) == pytest.approx(max(busy, starts), rel=1e-9)
        assert busy > starts, "else the launches alone are compared"


@pytest.mark.long
def test_more_recomputed_layers_and_smaller_micro_batches_take_longer(folder: Path) -> None:
    recipe = recipe_of(folder, BF16)
    time = MicroBatchTime(recipe, load_frontend(recipe.model), Machine.card(recipe), Shape.of(recipe))
    card = card_of(24)
    for samples in (1, 2, 8):
        seconds = [time.seconds(Plan(samples, count, LAYERS), card) for count in range(LAYERS + 1)]
        assert seconds == sorted(seconds) and 1.2 < seconds[-1] / seconds[0] < 1.5
    # A small model on a large card waits for its launches, as many of them for one sample as for eight.
    assert time.seconds(Plan(1, 0, LAYERS), card) > 0.9 * time.seconds(Plan(2, 0, LAYERS), card)
    moved = time.seconds(Plan(2, 6, LAYERS, True, True), card) - time.seconds(Plan(2, 6, LAYERS), card)
    assert moved * card.link_a_second * 1e9 == pytest.approx(12 * 2 * time.input_bytes(time.shape) + time.tower_bytes)


GRID = [
    Plan(samples, count, LAYERS, moved)
    for samples, count, moved in itertools.product((1, 2, 8), (1, 4, 6), (False, True))
]


@pytest.mark.parametrize(
    "changes, some",
    [
        pytest.param(BF16, [Plan(2, 1, LAYERS), Plan(8, 4, LAYERS), Plan(8, 4, LAYERS, True)], marks=pytest.mark.long),
        pytest.param(BF16, [*GRID, Plan(8, 4, LAYERS, False, True)], marks=pytest.mark.soak),
        pytest.param({}, GRID, marks=pytest.mark.soak),
    ],
)
def test_every_plan_needs_what_is_predicted(
    folder: Path, changes: dict[str, Any], some: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offload, "MIN_BYTES", 2**16)
    planner = planner_of(folder, changes, machine=Machine.card)
    predicted = [planner.option(plan) for plan in some]
    assert not all(option.rehearsed for option in predicted)
    for option in predicted:
        found = planner.rehearse(option.plan)
        allowance = found.needed_bytes - found.peak_bytes
        assert option.needed_bytes - allowance == pytest.approx(found.peak_bytes, rel=0.02), option.plan
        assert option.host_bytes == pytest.approx(found.host_bytes, rel=0.1)


@pytest.mark.soak
def test_the_fastest_of_all_plans_is_taken(folder: Path) -> None:
    planner = planner_of(folder, BF16)
    everything = {plan: planner.rehearse(plan).needed_bytes for plan in planner.plans}
    most, least = max(everything.values()), min(everything.values())
    for share in (0.1, 0.4, 0.8):
        budget = int(least + share * (most - least))
        fresh = planner_of(folder, BF16)
        found = fresh.fastest(budget)
        assert found is not None and found.rehearsed and found.needed_bytes == everything[found.plan] <= budget
        best = min(planner.option(plan).seconds for plan, needed in everything.items() if needed <= budget)
        assert found.seconds <= 1.02 * best
        assert len(fresh._seen) <= 12, "a handful of rehearsals"
    assert planner.fastest(least - 1) is None
    assert planner.leanest().needed_bytes == least


@pytest.mark.long
def test_a_plan_that_fits_by_less_than_predictions_err_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = planner_of(folder, BF16, given=frozenset(FIELDS))
    needed = planner_of(folder, BF16, given=frozenset(FIELDS)).rehearse(planner.own).needed_bytes
    monkeypatch.setattr(planner, "_predicted", lambda plan: int(1.002 * needed))
    found = planner.fastest(needed)
    assert found is not None and (found.plan, found.needed_bytes, found.rehearsed) == (planner.own, needed, True)
    assert planner.fastest(needed - 1) is None


@pytest.mark.long
def test_what_the_recipe_gives_is_not_chosen(folder: Path) -> None:
    planner = planner_of(folder, given=frozenset({"training.micro_batch", "model.tower_on_host"}), machine=Machine.card)
    assert {plan.micro_batch for plan in planner.plans} == {4}
    assert {plan.recomputed for plan in planner.plans} == set(range(LAYERS + 1))
    assert not any(plan.tower_on_host for plan in planner.plans)
    assert planner.careful == Plan(4, LAYERS, LAYERS)
    two = planner_of(folder, processes=2)
    assert {plan.micro_batch for plan in two.plans} == {1, 2, 4}, "eight samples on two devices"


@pytest.mark.long
def test_nothing_goes_to_the_host_while_another_plan_fits(folder: Path) -> None:
    planner = planner_of(folder, machine=Machine.card)
    without = [not plan.on_host for plan in planner.plans]
    assert without == sorted(without, reverse=True) and not all(without)


@pytest.mark.soak
def test_the_plan_after_one_that_failed_needs_clearly_less(folder: Path) -> None:
    planner = planner_of(folder, BF16)
    failed = Plan(4, 1, LAYERS)
    found = planner.after(failed)
    assert found is not None and 4 % found.micro_batch == 0
    assert planner.rehearse(found).needed_bytes < planner.rehearse(failed).needed_bytes
    assert planner.after(planner.leanest().plan) is None


@pytest.mark.parametrize(
    "budget_share",
    [
        pytest.param(0.5, marks=pytest.mark.long),
        *(pytest.param(share, marks=pytest.mark.soak) for share in (0.05, 0.2, 0.9)),
    ],
)
def test_the_chosen_plans_peak_is_the_real_one(folder: Path, budget_share: float) -> None:
    planner = planner_of(folder, {**BF16, "supervision.refinement_batches": 0})
    needed = [planner.option(plan).needed_bytes for plan in planner.plans]
    found = planner.fastest(int(min(needed) + budget_share * (max(needed) - min(needed))))
    assert found is not None
    measured = measured_peak(found.plan.applied(planner.recipe))
    print(f"{found.plan}: rehearsed {found.needed_bytes / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB")
    assert found.needed_bytes == pytest.approx(measured, rel=0.02)


def test_of_equally_fast_plans_the_one_that_needs_least_is_taken() -> None:
    """One that is slower is taken only where no faster one fits, and one on the host only where no other does."""
    times = {Plan(8, 0, 4): 1.0, Plan(4, 0, 4): 1.004, Plan(2, 0, 4): 1.006, Plan(1, 4, 4): 1.3}
    times |= {Plan(1, 4, 4, True): 1.0}
    needed = {plan: 1 + plan.micro_batch for plan in times} | {Plan(1, 4, 4, True): 1}

    def best(budget: int) -> Plan | None:
        return best_of(times, budget, needed.__getitem__, times.__getitem__)

    assert best(9) == Plan(4, 0, 4) and best(8) == best(4) == Plan(2, 0, 4)
    assert best(2) == Plan(1, 4, 4) and best(1) == Plan(1, 4, 4, True) and best(0) is None


def test_a_plan_as_it_is_typed() -> None:
    plan = Plan(2, 1, 32, True)
    typed = "training.micro_batch=2 training.gradient_checkpointing=1 training.offload_activations=true"
    assert plan.overrides() == f"{typed} model.tower_on_host=false"
    assert plan.overrides(Plan(1, 32, 32)) == typed, "true isn't 1"
    assert Plan(2, 0, 32).overrides(Plan(2, 32, 32)) == "training.gradient_checkpointing=false"
    assert str(plan) == "micro-batch 2, 1 of 32 layers recomputed, their inputs on the host"


def test_a_plan_and_its_recipe(folder: Path) -> None:
    recipe = recipe_of(folder, {})
    for plan in (Plan(2, 0, LAYERS), Plan(1, 3, LAYERS, True), Plan(8, LAYERS, LAYERS, False, True)):
        assert Plan.of(plan.applied(recipe), LAYERS) == plan
    assert Plan.of(changed_recipe(recipe, {"training.gradient_checkpointing": True}), LAYERS).recomputed == LAYERS
