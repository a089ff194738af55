"""Recipes: read strictly, overridden from the command line, checked as a whole, written back.

    load_recipe("recipes/7b_qlora.yaml", ["training.micro_batch=2"]) -> Recipe

Everything wrong is reported at once: broken overrides, unknown and duplicate keys, wrong types, missing
keys and impossible combinations, each with file, line, column, key path and the nearest valid key or value.
The keys are in ``schema``; ``check`` looks at each key, ``combinations`` at keys together. No torch here: reading a
recipe is instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from basic_lite.errors import UserError
from basic_lite.recipe import combinations
from basic_lite.recipe.check import Checker
from basic_lite.recipe.overrides import apply_overrides
from basic_lite.recipe.problems import RecipeProblem
from basic_lite.recipe.read import read_document
from basic_lite.recipe.schema import Recipe
from basic_lite.recipe.shipped import find_recipe
from basic_lite.recipe.write import write_yaml


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply ``key.path=value`` overrides, and check everything.

    A name that is no file here but a shipped recipe's (``recipes/7b_qlora.yaml``, ``7b_qlora``) is that one.

    Raises:
        UserError: with every problem found, each on a line of its own: place, key path, what and mend.
    """
    path = find_recipe(path)
    document = read_document(_read_text(path), str(path))
    problems = document.problems
    overridden = apply_overrides(document, overrides)
    if document.values is None:
        return _refuse(path, problems + overridden)
    problems += overridden
    checker = Checker(document)
    checked = checker.section(Recipe, document.values, ())
    problems += checker.problems
    for keys, message in combinations.findings(checked):
        written = next((key for key in keys if tuple(key.split(".")) in document.places), keys[0])
        problems.append(RecipeProblem(document.place_of(tuple(written.split("."))), keys[0], message))
    if problems:
        return _refuse(path, problems)
    return Recipe.model_validate(checked)


def check_recipe(recipe: Recipe) -> None:
    """Refuse impossible combinations in a recipe built in Python; :func:`load_recipe` has done it already.

    Raises:
        UserError: with every combination found.
    """
    found = combinations.findings(recipe.model_dump())
    if found:
        raise UserError("\n".join([f"the recipe {recipe.name!r} can't work:", *(f"  {k[0]}: {m}" for k, m in found)]))


def _refuse(path: Path, problems: Iterable[RecipeProblem]) -> Recipe:
    unique = sorted(set(problems), key=lambda problem: (problem.place, problem.key))
    count = "a problem" if len(unique) == 1 else f"{len(unique)} problems"
    raise UserError("\n".join([f"the recipe {path} has {count}:", *(f"  {problem}" for problem in unique)]))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"the recipe {path} is not a text file in UTF-8 (line {line}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"the recipe {path} can't be read: {error.strerror or error}") from None


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that :func:`load_recipe` reads back to an equal one."""
    return write_yaml(recipe.model_dump())


def flat_values(recipe: Recipe) -> dict[str, Any]:
    """Every key's value by its dotted name, as JSON has it."""

    def flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(flat(recipe.model_dump(mode="json"), ""))
