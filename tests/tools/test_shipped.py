"""Which shipped recipe ``estimate`` names where a recipe doesn't fit a card."""

from __future__ import annotations

import pytest

from basic_lite.recipe import load_recipe, shipped_recipe
from basic_lite.tools.shipped import shipped_for


@pytest.mark.parametrize(
    "name, gib, said",
    [
        ("7b_qlora", 7.84, "the shipped recipe 7b_8gb needs 6.8 GiB at least and fits: basic-lite train 7b_8gb "),
        ("7b_qlora", 5.88, "small_instruct needs 2.1 GiB"),
        ("34b_24gb", 11.76, "7b_qlora needs 9 GiB"),
        ("34b_24gb", 15.68, "13b_qlora needs 12.1 GiB"),
        ("7b_pretrain", 5.88, "small_pretrain needs 1.6 GiB"),
        (
            "my_photos",
            3.92,
            "my_photos_small needs 2.3 GiB at least and fits: basic-lite data FOLDER --recipe my_photos_small",
        ),
        ("my_photos", 1.96, None),
        ("7b_qlora", 11.76, None),
    ],
)
def test_the_recipe_of_the_same_kind_that_fits(name: str, gib: float, said: str | None) -> None:
    line = shipped_for(load_recipe(shipped_recipe(name)), gib)
    assert line is None if said is None else said in str(line)


def test_a_recipe_of_ones_own_is_told_of_it_too() -> None:
    recipe = load_recipe(shipped_recipe("7b_qlora"), ["name=mine", "lora.rank=64"])
    assert "7b_8gb" in str(shipped_for(recipe, 7.84))
