"""A model's name that is nearly that of a shipped recipe."""

from __future__ import annotations

import pytest

from basic_lite.model import frontend
from basic_lite.model.frontend import unreadable
from basic_lite.model.known_names import nearest_known
from basic_lite.recipe import load_recipe, shipped_recipes

SEVEN = "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize(
    "name, near",
    [
        ("llava-hf/llava-1.5-7b", SEVEN),
        ("llava-1.5-7b-hf", SEVEN),
        ("LLaVA-HF/LLaVA-1.5-7B-hf", SEVEN),
        ("vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5"),
        ("./llava-1.5-7b-hf/", SEVEN),
        ("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14-336"),
        ("llava-hf/llava-1.5-13b-hf", None),
        ("lmsys/vicuna-7b-v1.3", None),
        (SEVEN, None),
        ("Qwen/Qwen2.5-7B-Instruct", None),
        ("google/siglip-so400m-patch14-384", None),
        ("", None),
    ],
)
def test_the_nearest_name(name: str, near: str | None) -> None:
    assert nearest_known(name) == near


def test_no_shipped_recipe_is_told_of_another_name() -> None:
    models = [load_recipe(path).model for path in shipped_recipes() if not path.stem.startswith("demo_")]
    names = {name for model in models for name in (model.base, model.vision, model.llm) if name}
    assert names and not any(map(nearest_known, names))


@pytest.mark.parametrize("away", [True, False])
def test_an_error_of_a_name_says_it(away: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontend, "hub_is_away", lambda: away)
    text = str(unreadable("llava-hf/llava-1.5-7b", "model.base", OSError("no"), "configuration"))
    assert text.endswith(f"\n  is the name right? A shipped recipe has {SEVEN}")
    text = str(unreadable("llava-1.5-7b", "model.base", OSError("no")))
    assert text.endswith(f"or a hub name; a shipped recipe has {SEVEN}")
    assert "shipped" not in str(unreadable(SEVEN, "model.base", OSError("no")))
