"""What the planner is for, on the recipe that it was made for: `7b_qlora` on 24 GiB."""

from __future__ import annotations

import time
from typing import Any

import pytest

from basic_lite.cards import card_of
from basic_lite.model.known import known_frontend
from basic_lite.recipe import load_recipe, shipped_recipe
from basic_lite.rehearsal import Machine, Shape
from basic_lite.rehearsal.planner import Option, Planner
from basic_lite.rehearsal.step import Rehearser
from basic_lite.sizes import GIB
from basic_lite.training.plan import Plan


def planner_of_7b() -> Planner:
    recipe = load_recipe(shipped_recipe("7b_qlora"))
    frontend = known_frontend(recipe.model)
    assert frontend is not None
    return Planner(Rehearser(recipe, frontend, Machine.card(recipe)), Shape.of(recipe), card_of(24))


def fastest(planner: Planner) -> Option:
    found = planner.fastest(int(0.98 * card_of(24).gib * GIB))
    assert found is not None
    return found


@pytest.mark.soak
def test_a_plan_is_found_soon() -> None:
    """Of a processor that has nothing else to do."""
    began = time.process_time()
    fastest(planner_of_7b())
    assert time.process_time() - began <= 20


@pytest.mark.long
def test_its_plan_is_a_fifth_faster_than_the_recipe_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe had micro-batches of 8, all 32 layers recomputed. Its rehearsals are what the time goes to."""
    rehearse, made = Rehearser.rehearse, []

    def counted(*given: Any, **how: Any) -> Any:
        made.append(how)
        return rehearse(*given, **how)

    monkeypatch.setattr(Rehearser, "rehearse", counted)
    planner, card = planner_of_7b(), card_of(24)
    found = fastest(planner)
    assert len(made) <= 10
    before = planner.time.sample_seconds(Plan(8, 32, 32), card)
    assert found.seconds <= before / 1.2
    assert found.needed_bytes <= 24 * GIB
