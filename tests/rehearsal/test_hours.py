"""Hours before a run: one number wherever they are said, and in a recipe's first lines what `estimate` says."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from basic_lite.cards import CARDS, Card, card_of
from basic_lite.data.prepare import prepare_data
from basic_lite.model import liger_kernels
from basic_lite.model.audit import planned_parts
from basic_lite.model.frontend import load_frontend
from basic_lite.model.known import known_frontend
from basic_lite.recipe import load_recipe, shipped_recipes
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import Machine, Rehearser, Shape
from basic_lite.rehearsal import outlook as outlooks
from basic_lite.rehearsal.hours import CardTimes, Work, hours_text, time_line
from basic_lite.rehearsal.planner import Planner
from basic_lite.tools.dry_run import dry_run
from basic_lite.tools.estimate import estimate, longest_work
from basic_lite.training.plan import FIELDS, Plan
from tests.support.shapes import on_shapes

STEPS = 100_000
OVERRIDES = [f"training.max_steps={STEPS}", "training.global_batch=8", "data.max_length=64"]
# A run that chooses its plan names it before it says how long it will take.
OVERRIDES += ["training.plan=manual", "training.micro_batch=2", "training.gradient_checkpointing=false"]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A shipped recipe over a toy's shapes, with data whose samples are all cut to the most tokens allowed."""
    records = []
    for number in range(8):
        Image.new("RGB", (20, 16)).save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "w1 " * 99}]
        records.append({"id": number, "image": f"{number}.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(records))
    data = [f"data.train.path={tmp_path / 'data.json'}", f"data.train.image_dir={tmp_path}", f"output={tmp_path}"]
    return on_shapes("small_pretrain", tmp_path, [*OVERRIDES, *data, "data.train.limit=null"], size="toy")


def said(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("changes", "told"), [({}, ""), ({"held_out": 0.1}, "evaluations")])
def test_an_estimate_says_that_evaluations_come_on_top(recipe: Recipe, changes: dict[str, float], told: str) -> None:
    """It counts records and doesn't read them, so it doesn't know what these are."""
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"held_out": None} | changes)})
    frontend = load_frontend(recipe.model)
    parts = planned_parts(recipe, frontend, torch.bfloat16)
    assert longest_work(recipe, frontend, parts, Shape.of(recipe), STEPS, half=True).uncounted == told


@pytest.mark.long
def test_hours_are_one_number_wherever_they_are_said(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """`estimate` and the dry run by their tables, `train` by its line, the planner by its time for a sample."""
    card = card_of(24)
    consoles = [Console(file=io.StringIO(), width=160) for _ in range(2)]
    found = estimate(recipe, gpu=24, console=consoles[0])
    dry_run(recipe, consoles[1])
    rows = [re.search(rf"^{card.name} +24 GB +(\S.*\S) +about (\S+ kWh)", said(c), re.MULTILINE) for c in consoles]
    assert rows[0] is not None and rows[1] is not None and rows[0].groups() == rows[1].groups()

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(liger_kernels, "_obstacle", lambda device, by_name: None)
    monkeypatch.setattr(outlooks, "measured_card", lambda device, dtype: card)
    frontend = load_frontend(recipe.model)
    data, parts = prepare_data(recipe, frontend, say=lambda text: None), planned_parts(recipe, frontend, torch.bfloat16)
    line = next(outlooks.outlook(recipe, frontend, data, parts, torch.device("cuda")))
    assert line.startswith(f"time for {STEPS:,} steps: {rows[0][1].strip()}, about {rows[0][2]} (predicted ")

    work = outlooks.work_of(recipe, frontend, data, parts, half=True)
    assert work == longest_work(recipe, frontend, parts, Shape.of(recipe), STEPS, half=True)
    assert work.samples == 8 * STEPS and work.products > 0
    seconds = work.samples * found.own.seconds + work.products / card.reached_flops
    assert hours_text(seconds) == rows[0][1].strip() and seconds > 600, "rounded, they would all be the same"


@pytest.mark.soak
def test_each_card_takes_its_own_plan_where_the_plan_is_auto(recipe: Recipe) -> None:
    frontend, machine = load_frontend(recipe.model), Machine.card(recipe)
    planner = Planner(Rehearser(recipe, frontend, machine), Shape.of(recipe), CARDS[0])
    work = Work(1, 8)
    small, large = replace(CARDS[0], gib=0.52), replace(CARDS[0], gib=24)
    assert CardTimes(work, planner, auto=True).on(replace(small, gib=0.1)) is None
    needed = {plan: planner.option(plan).needed_bytes for plan in planner.plans}
    for card in (small, large):
        found = CardTimes(work, planner, auto=True).on(card)
        fitting = [plan for plan, most in needed.items() if most <= 0.98 * card.gib * 2**30]
        quickest = min(planner.time.sample_seconds(plan, card) for plan in fitting if not plan.on_host)
        assert found is not None and found[0] == pytest.approx(8 * quickest)
        own = CardTimes(work, planner, auto=False).on(card)
        assert own is not None and own[1] == str(Plan.of(recipe, frontend.layer_count)) and own[0] >= found[0]


def test_work_is_shared_by_processes() -> None:
    card = Card("one", 100, 1000, 25, 24, 300, measured=True)
    work = Work(10, 80, 50e12)
    assert work.seconds(0.25, card) == pytest.approx(80 * 0.25 + 0.5)
    assert replace(work, processes=4).seconds(0.25, card) == pytest.approx(20.5 / 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (99, "99 s"), (150, "2 min"), (3599, "1 h 00 min"), (40000, "11 h"), (3e5, "3.5 days")],
)
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert hours_text(seconds) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [
        *[(0.0, "under 0.01"), (0.00987, "under 0.01"), (0.0123, "about 0.012"), (0.123, "about 0.12")],
        *[(9.96, "about 10"), (99.7, "about 100"), (219, "about 219"), (12345, "about 12,345")],
    ],
)
def test_energy_is_said_in_full(hours: float, text: str) -> None:
    """Of a card that takes 1 kW."""
    card = Card("one", 100, 1000, 25, 24, 1000, measured=True)
    assert f", {text} kWh (" in time_line(Work(10, 80), 3600 * hours, card)


TIMED = [path for path in shipped_recipes() if "# Time: " in path.read_text(encoding="utf-8")]


def test_these_recipes_name_hours() -> None:
    named = {"7b_pretrain", "7b_qlora", "7b_8gb", "small_pretrain", "small_instruct"}
    assert {path.stem for path in TIMED} == named


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=pytest.mark.long if p.stem == "small_pretrain" else pytest.mark.soak)
        for p in TIMED
    ],
)
def test_the_hours_that_a_recipe_names_are_the_estimates(path: Path) -> None:
    """The header gives the tokens of a sample and the steps; a recipe with its own plan is reckoned with that."""
    text = path.read_text(encoding="utf-8")
    header = text.partition("\nname:")[0]
    named = re.findall(r"((?:RTX|A100|H100) [\w ]+?) ((?:\d+ h )?\d+ min|\d+ h|[\d.]+ days)[,: ]", header)
    timed = header.partition("# Time: ")[2]  # before it is another length, for the memory
    length, steps = re.search(r"data\.max_length=\d+", timed), re.search(r"about ([\d,]+) steps", text)
    assert length is not None and steps is not None and len(named) >= 3
    recipe = load_recipe(path, [length[0]])
    frontend, machine, shape = known_frontend(recipe.model), Machine.card(recipe), Shape.of(recipe)
    assert frontend is not None, "an estimate of a shipped recipe needs no network"
    auto = recipe.training.plan == "auto"
    given = frozenset() if auto else frozenset(FIELDS)
    planner = Planner(Rehearser(recipe, frontend, machine), shape, CARDS[0], given=given)
    parts = planned_parts(recipe, frontend, machine.dtype)
    work = longest_work(recipe, frontend, parts, shape, int(steps[1].replace(",", "")), half=machine.autocast)
    for name, hours in named:
        card = next(card for card in CARDS if card.name == name)
        found = CardTimes(work, planner, auto=auto).on(card)
        assert found is not None and hours_text(found[0]) == hours, (name, hours_text(found[0]) if found else None)
