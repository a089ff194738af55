"""Recipes as fuzzers write them: read in a moment, or refused in a moment with place and reason."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from basic_lite.errors import UserError
from basic_lite.recipe import load_recipe
from basic_lite.recipe.schema import MOST, Recipe, Section
from tests.support.fuzzing import require_good
from tests.support.recipes import GOOD, problem, write_recipe

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 6)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "more than 20,000 values"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "[" * 150 + "]" * 150, "nested too deeply"),
        ("a: " + "{b: " * 1000 + "1" + "}" * 1000, "nested too deeply"),
        ("".join(f"k{n}: 1\n" for n in range(12_000)), "11,980 more keys from `k20` on are none"),
        pytest.param(
            "training:\n" + "".join(f"  k{n}: 1\n" for n in range(10_000)), "9,980 more keys", marks=pytest.mark.long
        ),
        ("? " + "x" * 150_000 + "\n: 1\n", "there is no such key"),
        ("name: " + "x" * 10_000_000, "characters are too many for a recipe"),
        (GOOD + "---\n", "a second document begins with `---`"),
        ("name: &a [*a]\n", "an alias that contains itself"),
        ('name: "a\\0b"\nstage: 2\n', "the character NUL"),
        ('output: "\\ud800"\n', "isn't Unicode"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_a_recipe_that_is_none_is_refused_in_a_moment(tmp_path: Path, text: str, said: str) -> None:
    path, started = write_recipe(tmp_path, text), time.process_time()
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert time.process_time() - started < 5
    require_good(str(caught.value))
    assert said in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_a_name_of_yaml_may_be_given_twice(tmp_path: Path) -> None:
    """ruamel.yaml warns of it in words of its own."""
    text = GOOD.replace("name: run", "name: &a run") + "training:\n  max_steps: &a 5\n  save_every: *a\n"
    assert load_recipe(write_recipe(tmp_path, text)).training.save_every == 5


@pytest.mark.parametrize(
    "override",
    [
        "training.threads=100000",
        "data.workers=300",
        "lora.rank=10000000000",
        "lora.alpha=1e300",
        "training.epochs=1e308",
        "training.epochs=.nan",
        f"training.epochs={'9' * 400}",
        f"training.epochs={'9' * 5000}",
        "training.learning_rate=1e308",
        "training.max_steps=99999999999999999999",
        "training.global_batch=1000000000039",
        "training.micro_batch=1000000000038",
        "training.betas=[0.9, .nan]",
        "data.max_length=99999999999999",
        "data.train.limit=9999999999999999999999",
        "supervision.temperature=1e-320",
        "supervision.token_weights=1e300",
        "model.vision_feature_layer=99999999999999999999",
        f"data.train.{'9' * 5000}.path=x",
        "data.train=[]\udc80",
        'data.train.path="a\\0"',
        f"data.train.path={'x' * 300}",
        f"data.train.path={'x/' * 3000}",
        f"model.start={'x' * 300}",
        'data.train.prompt=["a", "\\ud800"]',
        'data.train.columns={answer: "\\0"}',
        f"data.train.prompt={'x' * 200_000}",
        f"name={'é' * 130}",
        f"{'x' * 100_000}=1",
        "\x1b[31m=1",
    ],
    ids=lambda text: text[:30].encode("unicode_escape").decode(),
)
def test_one_value_out_of_bounds_is_one_problem(tmp_path: Path, override: str) -> None:
    started = time.process_time()
    line = problem(tmp_path, GOOD, override)
    assert line.startswith("command line: ") and len(line) < 1000 and "\x1b" not in line
    assert time.process_time() - started < 2


def test_two_thousand_overrides_that_are_none(tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(UserError, match="1,980 more keys"):
        load_recipe(write_recipe(tmp_path, GOOD), [f"k{n}=1" for n in range(2000)])
    assert time.process_time() - started < 3


def test_more_tokens_than_any_machine_holds(tmp_path: Path) -> None:
    given = ["training.micro_batch=4096", "training.global_batch=4096", "data.max_length=1048576"]
    assert "4,294,967,296 tokens in memory at once" in problem(tmp_path, GOOD, *given)


def test_home_stands_for_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    given = {"model.llm": "~/llm", "model.vision": "~/vision", "model.projector": "~/run", "output": "~/runs"}
    recipe = load_recipe(write_recipe(tmp_path, GOOD), given)
    home = os.path.expanduser("~")
    assert [recipe.model.llm, recipe.model.vision, recipe.output] == [f"{home}/llm", f"{home}/vision", f"{home}/runs"]
    assert recipe.model.projector == f"{home}/run"


def test_every_number_has_an_upper_bound() -> None:
    """But for counts of layers, which the model bounds, and numbers whose own check does."""
    free = {"token_weights", "layers", "betas"}

    def unbounded(section: type[Section]) -> set[str]:
        found = set()
        for key, field in section.model_fields.items():
            kinds = str(field.annotation)
            numeric = ("int" in kinds or "float" in kinds) and "Literal" not in kinds
            if numeric and not any(hasattr(one, "le") or hasattr(one, "lt") for one in field.metadata):
                found.add(key)
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                found |= unbounded(field.annotation)
        return found

    assert unbounded(Recipe) <= free
    assert MOST == 10**9
