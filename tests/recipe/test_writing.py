"""A recipe written as YAML reads back the same; keys are described for a reader."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from basic_lite.recipe import describe_keys, dump_recipe, load_recipe, shipped_recipes
from basic_lite.recipe.schema import Recipe
from basic_lite.recipe.yaml import read_document, read_scalar, write_yaml

words = st.sampled_from(("yes", "off", "1e5", "0x1f", "1_000", "1:30", "2020-01-01", "~", "", "=", "<<", " a", "#"))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.dictionaries(st.text(min_size=1), scalars | st.lists(scalars) | st.dictionaries(st.text(), scalars)))
def test_written_yaml_reads_back_the_same(values: dict[str, Any]) -> None:
    if not values:
        return
    document = read_document(write_yaml(values), "x")
    assert document.problems == []
    assert repr(document.values) == repr(values)


@given(st.text(alphabet="0123456789+-.eExX_oainfNTr~: ", max_size=6))
def test_texts_that_look_like_numbers_stay_texts(text: str) -> None:
    assert read_document(write_yaml({"a": text}), "x").values == {"a": text}


@given(st.text())
def test_any_unquoted_scalar_reads_without_an_exception(text: str) -> None:
    read_scalar(text)


def test_shipped_recipes_read_the_same_under_yaml_11_and_12() -> None:
    for path in shipped_recipes():
        recipe = load_recipe(path)
        text = dump_recipe(recipe)
        expected = recipe.model_dump(mode="json")
        assert yaml.safe_load(text) == expected
        assert YAML(typ="safe", pure=True).load(text) == expected


@given(st.dictionaries(st.sampled_from("abc"), st.booleans() | st.integers() | st.floats(allow_nan=False) | words))
def test_any_values_read_the_same_under_yaml_11_and_12(values: dict[str, Any]) -> None:
    text = write_yaml({"all": values})
    assert repr(yaml.safe_load(text)["all"]) == repr(values)
    assert repr(YAML(typ="safe", pure=True).load(text)["all"]) == repr(values)


def test_describe_keys_covers_every_key_with_documentation() -> None:
    rows = {row.name: row for row in describe_keys()}
    assert {"name", "stage", "model.llm", "data.train.path", "training.betas", "lora.targets"} <= set(rows)
    assert all(row.doc and row.type and row.default for row in rows.values())
    assert rows["training.betas"].default == "[0.9, 0.999]"
    assert rows["supervision.layers"].type == "an integer or a number or measured"
    assert rows["data.train"].default == "required"
    assert {row.name for row in describe_keys("lora")} == {
        f"lora.{key}"
        for key in Recipe.model_fields["lora"].annotation.model_fields  # type: ignore[union-attr]
    }
