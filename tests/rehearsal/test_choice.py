"""What a run with a plan of its own says of its memory before it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from basic_lite.data.prepare import prepare_data
from basic_lite.model.frontend import load_frontend
from basic_lite.rehearsal import Machine, Rehearser, Shape, choice
from basic_lite.sizes import GIB, size_text
from tests.support.runs import whole_recipe

CPU = torch.device("cpu")


@pytest.fixture
def given(tmp_path: Path) -> tuple[Any, Any, Any]:
    """A recipe, its tokenizer and processor, and the report on its data."""
    recipe = whole_recipe(tmp_path)
    frontend = load_frontend(recipe.model)
    return recipe, frontend, prepare_data(recipe, frontend, say=lambda text: None).report


@pytest.mark.long
def test_the_memory_is_what_a_rehearsal_finds(given: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, frontend, report = given
    rehearser = Rehearser(recipe, frontend, Machine.here(recipe, CPU))
    found = rehearser.rehearse(Shape.longest(recipe, frontend, report))
    needs = size_text(found.needed_bytes)
    monkeypatch.setattr(choice, "memory_of", lambda device: (24 * GIB, 0))
    text = choice.memory_text(*given, CPU)
    assert text == f"memory: a step needs {needs} (rehearsed) of the device's 24.00 GiB"
    # It was rehearsed above; once more it would only take time.
    monkeypatch.setattr(Rehearser, "rehearse", lambda *_: found)
    monkeypatch.setattr(choice, "memory_of", lambda device: (24 * GIB, 24 * GIB - 1000))
    full = choice.memory_text(*given, CPU)
    assert full.startswith(f"warning: {text}, of which other programs hold 24.00 GiB; training.plan=auto takes")

    def broken(*_: Any) -> Any:
        raise ValueError("a fault")

    monkeypatch.setattr(choice, "Rehearser", broken)
    assert choice.memory_text(*given, CPU) == "note: the memory of a step can't be rehearsed here (ValueError: a fault)"


@pytest.mark.parametrize(("device", "told"), [("cuda", ["memory"]), ("cpu", [])])
def test_it_is_said_where_there_is_a_card(
    given: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch, device: str, told: list[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr(choice, "memory_text", lambda *_: "memory")
    assert choice.settle_plan(*given, torch.device(device), said.append) == given[0] and said == told
