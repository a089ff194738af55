"""A device of this machine is rehearsed with the types and kernels that a run takes on it. No GPU is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from basic_lite.cards import CARDS, Card
from basic_lite.data.prepare import Prepared
from basic_lite.model import liger_kernels
from basic_lite.model.frontend import Frontend
from basic_lite.model.liger import fusions
from basic_lite.recipe.rules import changed_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Machine, Rehearser, advice, choice, rehearse
from basic_lite.rehearsal.hours import CardTimes, Work, show_cards
from basic_lite.rehearsal.planner import Planner
from basic_lite.tools import stages
from basic_lite.training.assembly import preflight
from basic_lite.training.plan import Plan
from tests.support.runs import quiet, whole_recipe

CARD = torch.device("cuda", 0)


def silent(text: str) -> None:
    """Say nothing."""


def have(monkeypatch: pytest.MonkeyPatch, *, bf16: bool, liger: bool) -> None:
    """A card that has or lacks bfloat16, and on which Liger's kernels can or can't run."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    monkeypatch.setattr(liger_kernels, "_obstacle", lambda device, by_name: None if liger else "it is too old")


def prepared(folder: Path) -> tuple[Recipe, Frontend, Prepared]:
    recipe = whole_recipe(folder, {"training.device": "auto", "training.autocast": "auto", "model.dtype": "auto"})
    return recipe, *preflight(recipe, None, silent)


@pytest.mark.parametrize(
    ("liger", "bf16"),
    [
        (True, True),
        *[pytest.param(*one, marks=pytest.mark.long) for one in ((True, False), (False, True), (False, False))],
    ],
)
def test_types_and_kernels_are_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool, liger: bool
) -> None:
    have(monkeypatch, bf16=bf16, liger=liger)
    recipe, frontend, _ = prepared(tmp_path)
    here = Machine.here(recipe, CARD)
    dtype = torch.bfloat16 if bf16 else torch.float32
    assert (here.dtype, here.compute_dtype, here.autocast, here.cuda, here.liger) == (dtype, dtype, bf16, True, liger)
    # What a recipe that names all of it needs on any card.
    named: dict[str, Any] = {
        "model.dtype": str(dtype).removeprefix("torch."),
        "training.autocast": "bfloat16" if bf16 else "off",
    }
    named |= {} if liger else {"training.use_liger_kernel": False}
    same = changed_recipe(recipe, named)
    rehearser = Rehearser(recipe, frontend, here)
    assert rehearser.rehearse().needed_bytes == rehearse(same, frontend, Machine.card(same)).needed_bytes
    assert any(one.fused for one in fusions(rehearser.parts.language_model)) == liger
    off = changed_recipe(recipe, {"training.use_liger_kernel": False})
    assert not Machine.here(off, CARD).liger


@pytest.mark.long
def test_plans_and_advice_are_for_the_card_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, bf16=False, liger=False)
    recipe, frontend, data = prepared(tmp_path)
    here = Machine.here(recipe, CARD)
    made: list[Planner] = []

    class Kept(Planner):
        def after(self, failed: Plan) -> Plan | None:
            made.append(self)
            return None

    monkeypatch.setattr(choice, "Planner", Kept)
    monkeypatch.setattr(choice, "measured_card", lambda device, dtype: CARDS[0])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=16 << 30))
    assert choice.planner_here(recipe, frontend, data.report, CARD).machine == here
    falls = choice.next_plan_finder(recipe, frontend, data.report, CARD)
    assert falls is not None and falls(Plan.of(recipe, frontend.layer_count)) is None
    assert [planner.machine for planner in made] == [here]
    advised: list[Machine] = []

    class Watched(Rehearser):
        def __init__(self, recipe: Recipe, frontend: Frontend, machine: Machine) -> None:
            advised.append(machine)
            super().__init__(recipe, frontend, machine)

    monkeypatch.setattr(advice, "Rehearser", Watched)
    monkeypatch.setattr(advice, "memory_of", lambda device: (16 << 30, 0))
    assert "this recipe needs" in advice.memory_advice(recipe, CARD)[0] and advised == [here]


@pytest.mark.long
def test_a_stage_is_looked_at_for_the_card_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, bf16=False, liger=False)
    recipe, frontend, data = prepared(tmp_path)
    monkeypatch.setattr(stages, "preflight", lambda *args, **rest: (frontend, data))
    for module in (stages, choice):
        monkeypatch.setattr(module, "memory_of", lambda device: (16 << 30, 0))
    monkeypatch.setattr(stages, "measured_card", lambda device, dtype: CARDS[0])
    timed: list[Machine] = []

    def seconds_on(
        recipe: Recipe, frontend: Frontend, data: Prepared, work: Work, machine: Machine, card: Card
    ) -> float:
        timed.append(machine)
        return 1.0

    monkeypatch.setattr(stages, "seconds_on", seconds_on)
    look = stages._look(recipe, None, CARD, silent, awaited=False)
    assert look.rehearsal is not None and look.seconds == 1.0
    assert [look.rehearsal.machine, *timed] == [Machine.here(recipe, CARD)] * 2


@pytest.mark.parametrize(
    ("dtype", "autocast", "name", "in_16_bit"),
    [
        ("auto", "auto", "a CUDA card with bfloat16", True),
        ("bfloat16", "off", "a CUDA card with bfloat16", True),
        ("float32", "off", "a CUDA card, in float32", False),
        ("float32", "auto", "a CUDA card, in float32 with bfloat16 autocast", True),
        ("float16", "off", "a CUDA card, in float16", True),
    ],
)
def test_a_card_is_said_with_the_types_asked_for(
    tmp_path: Path, dtype: str, autocast: str, name: str, in_16_bit: bool
) -> None:
    """And no hours are told from data sheets' speeds in another type."""
    machine = Machine.card(whole_recipe(tmp_path, {"model.dtype": dtype, "training.autocast": autocast}))
    assert (machine.name, machine.in_16_bit) == (name, in_16_bit)
    console, planner = quiet(), SimpleNamespace(machine=machine, on=lambda card, own: None)
    show_cards(console, {"one": CardTimes(Work(1, 8), planner, auto=False)})  # type: ignore[arg-type]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("not predicted for float32" in text) != in_16_bit and ("no card of the table" in text) == in_16_bit
