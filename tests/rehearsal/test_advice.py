"""What is advised where a run doesn't fit: only what saves memory, with how much; and that nothing does."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from basic_lite.recipe import flat_values, load_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.rehearsal import advice
from basic_lite.rehearsal.advice import Advice, advice_lines, advise
from basic_lite.rehearsal.counts import MicroBatchTime
from basic_lite.rehearsal.planner import ROOM, smallest_cards
from basic_lite.sizes import GIB, size_text
from basic_lite.tools import estimate as estimates
from basic_lite.tools.estimate import Estimate, estimate
from tests.support.runs import whole_recipe

Needed = Callable[[Recipe], float]


def advised(recipe: Recipe, needed: Needed, budget: float, monkeypatch: pytest.MonkeyPatch) -> list[Advice]:
    """What is advised for a recipe whose need in GiB is told."""
    monkeypatch.setattr(advice, "_needed", lambda rehearser, changed: round(needed(changed) * GIB))
    frontend = SimpleNamespace(tokens_per_image=4)
    shape = SimpleNamespace(samples=recipe.training.micro_batch)
    first: Any = SimpleNamespace(needed_bytes=round(needed(recipe) * GIB), look_is_larger=False, shape=shape)
    rehearser: Any = SimpleNamespace(recipe=recipe, frontend=frontend)
    return list(advise(rehearser, first, round(budget * GIB)))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    keys = {"gradient_checkpointing": True, "optimizer": "paged_adamw_8bit", "device": "auto", "micro_batch": 2}
    return whole_recipe(tmp_path, {f"training.{key}": value for key, value in keys.items()})


def test_only_what_saves_is_advised(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloading saves 0.02 GiB of 9, which nobody notices; a smaller micro-batch saves nothing."""

    def needed(changed: Recipe) -> float:
        tower, offload = changed.model.tower_on_host, changed.training.offload_activations
        return 9 - 0.5 * tower - 0.02 * offload - 2 * (changed.lora.dtype == "bfloat16")

    found = advised(recipe, needed, 1, monkeypatch)
    assert [one.overrides for one in found] == [("model.tower_on_host=true",), ("lora.dtype=bfloat16",)]
    assert [one.saved_bytes / GIB for one in found] == [0.5, 2] and not any(one.fits for one in found)
    lines = list(advice_lines(found))
    assert lines[0].startswith("these changes save memory, but not enough, cheapest first")
    assert lines[2].startswith("  lora.dtype=bfloat16  →  6.50 GiB, 2.00 GiB less, not yet (")
    assert lines[-1].startswith("no further change of a key makes it fit: ")


def test_little_is_advised_where_it_is_enough(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = advised(recipe, lambda changed: 9 - 0.02 * (changed.training.micro_batch == 1), 8.99, monkeypatch)
    assert one.overrides == ("training.micro_batch=1",) and one.fits
    assert next(advice_lines([one])).startswith("to make it fit, cheapest first")


def test_that_nothing_helps_is_said(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert advised(recipe, lambda changed: 9, 1, monkeypatch) == []
    assert list(advice_lines([])) == ["no change of a key makes it fit: use a smaller LLM or more memory"]


@pytest.mark.parametrize("useless", [None, "training.gradient_checkpointing"])
def test_what_is_advised_is_read(useless: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever of it a person takes, from the first line on. Each change of a key saves, but for a useless one."""
    for shipped in ("7b_qlora", "demo_stage2"):
        own = load_recipe(shipped, ["training.gradient_checkpointing=false"])

        def needed(changed: Recipe, before: dict[str, Any] = flat_values(own)) -> float:
            return 99 - sum(before[key] != value for key, value in flat_values(changed).items() if key != useless)

        overrides = [text for one in advised(own, needed, 0, monkeypatch) for text in one.overrides]
        assert ("training.gradient_checkpointing=true" in overrides) == (useless is None)
        for count in range(1, len(overrides) + 1):
            load_recipe(shipped, ["training.gradient_checkpointing=false", *overrides[:count]])


def test_what_a_file_is_refused_for_is_not_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate needs looks, and offloading needs a layer that is recomputed."""
    recipe = whole_recipe(tmp_path, {"supervision.gate": True, "supervision.refinement_batches": 16})
    refused = {"supervision.refinement_batches": 0}, {"training.offload_activations": True}
    changes = [*refused, {"supervision.refinement_batches": 8}]
    monkeypatch.setattr(advice, "possible_changes", lambda recipe, visual: ((one, "") for one in changes))
    found = advised(recipe, lambda changed: changed.supervision.refinement_batches + 1, 1, monkeypatch)
    assert [one.overrides for one in found] == [("supervision.refinement_batches=8",)]


def test_the_smallest_cards() -> None:
    assert [card.name for card in smallest_cards(GIB)] == ["RTX 3050 6GB"]
    assert [card.name for card in smallest_cards(7 * GIB)] == [
        "RTX 3060 Ti",
        "RTX 3070",
        "RTX 3070 Ti",
        "RTX 4060",
        "RTX 5060",
    ]
    assert [card.name for card in smallest_cards(round(9 * GIB))] == ["RTX 3080"]
    assert {card.gib for card in smallest_cards(round(24.1 * GIB))} == {32}
    assert smallest_cards(142 * GIB) == []


def one_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A tiny model's recipe that gives all of the plan, so that one is looked at; nothing else can be changed."""
    monkeypatch.setattr(advice, "possible_changes", lambda recipe, visual: iter(()))
    monkeypatch.setattr(MicroBatchTime, "sample_seconds", lambda self, plan, card: 1.0)
    keys = {"plan": "auto", "micro_batch": 1, "global_batch": 1, "gradient_checkpointing": 4, "device": "auto"}
    keys |= {"offload_activations": False}
    changes = {"model.tower_on_host": False, "lora.enabled": False, "stage": 1, "supervision.enabled": False}
    return whole_recipe(tmp_path, {**changes, **{f"training.{key}": value for key, value in keys.items()}})


def said(recipe: Recipe, gpu_gib: float) -> tuple[Estimate, str]:
    console = Console(file=io.StringIO(), width=160)
    found = estimate(recipe, gpu=gpu_gib, console=console)
    return found, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.long
def test_what_is_too_much_is_more_than_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that needs 99 % of a card doesn't fit, since the plan leaves 2 % free: it is 1 % too much."""
    monkeypatch.setattr(estimates, "shipped_for", lambda recipe, gib: "the shipped one")
    recipe = one_plan(tmp_path, monkeypatch)
    needed = said(recipe, 80)[0].rehearsal.needed_bytes
    found, text = said(recipe, needed / 0.99 / GIB)
    assert not found.fits_somehow and found.fastest is None
    assert f"GiB: {size_text(needed - int(needed / 0.99 * ROOM))} too much" in text
    found, text = said(recipe, needed / 0.97 / GIB)
    assert (
        found.fits
        and f"with {size_text(int(needed / 0.97 * ROOM) - needed)} to spare (the plan leaves 2 % of it free)" in text
    )
    assert "that is close: a desktop takes memory of the card too" in text
    assert "\nthe shipped one\n" in text
    text = said(recipe, 80)[1]
    assert "that is close" not in text and "the shipped one" not in text


def test_no_hours_where_it_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is tiny, but a card's context alone takes half a GiB."""
    monkeypatch.setattr(estimates, "shipped_for", lambda recipe, gib: f"the shipped one for {gib:.3f} GiB")
    text = said(one_plan(tmp_path, monkeypatch), 0.3)[1]
    assert "\nthe shipped one for 0.294 GiB\n" in text
    assert "doesn't fit a card of 0.3 GiB" in text and "none fits" in text and "kWh" not in text
    assert "no change of a key makes it fit" in text
    assert "the smallest card for it as it is: 6 GB (RTX 3050 6GB)\n" in text
