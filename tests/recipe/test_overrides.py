"""``key.path=value`` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from basic_lite.recipe import load_recipe
from basic_lite.recipe.load import as_override, read_override
from tests.support.recipes import GOOD, problems, write_recipe


def test_overrides(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, GOOD)
    recipe = load_recipe(
        path,
        [
            "training.max_steps=3",
            "training.max_steps=4",
            "supervision.stages=[1]",
            "lora.targets=[q_proj, v_proj]",
            "data.eval={path: e.json, limit: 5}",
            "data.eval.limit=6",
            r"data.train.path=C:\data\x: 1 #.json",
            "model.projector='12'",
            "model.projector=",
            "output=*",
        ],
    )
    assert recipe.training.max_steps == 4
    assert recipe.supervision.stages == [1]
    assert recipe.lora.targets == ["q_proj", "v_proj"]
    assert recipe.data.eval.limit == 6  # type: ignore[union-attr]
    assert recipe.data.train.path == r"C:\data\x: 1 #.json"  # type: ignore[union-attr]
    assert recipe.model.projector is None
    assert recipe.output == "*"


def test_override_mends_a_wrong_value_and_reaches_into_lists(tmp_path: Path) -> None:
    text = GOOD.replace("    path: data.json\n", "    - path: a\n    - path: b\n") + "seed: x\n"
    recipe = load_recipe(write_recipe(tmp_path, text), ["seed=3", "data.train.1.path=c"])
    assert recipe.seed == 3
    assert [source.path for source in recipe.data.train] == ["a", "c"]  # type: ignore[union-attr]
    found = problems(tmp_path, text, "seed=3", "data.train.2.path=c", "data.train.path=c")
    assert all("`data.train` is a list here" in line for line in found)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("", None), ("3", 3), ("1e-3", 1e-3), ("true", True), ("off", "off"), ("'3'", "3"), ("[1, a]", [1, "a"])],
)
def test_override_values(text: str, value: Any) -> None:
    read = read_override(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("value", [True, False, 3, 0.25, 1e-5, "all-linear", ["q_proj", "v_proj"], [1, 2]])
def test_what_is_written_as_an_override_is_read_back(value: Any) -> None:
    read = read_override(as_override(value))
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("words", [["seed", "=", "3"], ["seed=", "3"], ["seed", "=3"]])
def test_spaces_round_the_equals_sign_are_one_problem(tmp_path: Path, words: list[str]) -> None:
    found = problems(tmp_path, GOOD, *words, "lora.rank=4", "name")
    assert len(found) == 2
    assert found[0].endswith(f"found spaces round the = of the text {' '.join(words)!r}; write it without: seed=3")
    assert "found 'name'" in found[1]
    assert load_recipe(write_recipe(tmp_path, GOOD), ["model.projector=", "seed=3"]).seed == 3


def test_a_list_without_brackets_is_told_its_brackets(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD, "lora.targets=q_proj,v_proj")
    assert found.endswith("found the text 'q_proj,v_proj'; write [q_proj,v_proj], in brackets")
    assert load_recipe(write_recipe(tmp_path, GOOD), ["lora.targets=[q_proj,v_proj]"]).lora.targets
