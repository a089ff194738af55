"""Several recipes that are run one after another; each takes the projector of the one before it."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from basic_lite.console import Say, command_line
from basic_lite.errors import UserError, in_one
from basic_lite.outside import at_home
from basic_lite.recipe.load import find_recipe, load_recipe
from basic_lite.recipe.schema import Recipe

_OF_ONE = re.compile(r"(\d{1,9}):(.+)", re.DOTALL)
_PROJECTOR = "model.projector"


def load_sequence(words: Sequence[str], say: Say) -> list[Recipe]:
    """The recipes that a command line names, with its overrides, and each one's projector from the recipe before.

    Args:
        words: recipes, and overrides: ``key=value`` for all recipes, ``2:key=value`` for the second alone.

    Raises:
        UserError: with all that is wrong with any of them.
    """
    names, overrides = _sorted_out(words)
    recipes: list[Recipe] = []
    problems: list[str] = []
    for name, own in zip(names, overrides, strict=True):
        try:
            recipe = load_recipe(name, own)
            if recipes:
                recipe = _after(recipes, recipe, name, own, say)
        except UserError as error:
            problems.append(str(error))
            continue
        if not os.path.isfile(at_home(name)):
            say(f"using the shipped recipe {find_recipe(name)}")
        recipes.append(recipe)
    if problems:
        raise in_one(problems)
    return recipes


def _sorted_out(words: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The recipes' names, and the overrides of each."""
    given = [word for word in words if "=" in word and not os.path.isfile(at_home(word))]
    names = [word for word in words if word not in given]
    if not names:
        raise UserError(
            "no recipe is named, only keys to change; name the recipes first, as in stage1.yaml stage2.yaml"
        )
    overrides: list[list[str]] = [[] for _ in names]
    for word in given:
        match = _OF_ONE.fullmatch(word)
        number, text = (int(match[1]), match[2]) if match else (0, word)
        if match and not 1 <= number <= len(names):
            raise UserError(f"{word} is for recipe {number}, and there are {len(names)}; count them from 1")
        for own in overrides if number == 0 else [overrides[number - 1]]:
            own.append(text)
    return names, overrides


def _after(earlier: list[Recipe], recipe: Recipe, name: str, overrides: list[str], say: Say) -> Recipe:
    """A recipe with the projector of the run before it."""
    before, number = earlier[-1], len(earlier) + 1
    places = [one.run_path.as_posix() for one in [*earlier, recipe]]
    if (own := places.pop()) in places:
        raise UserError(
            f"recipes {places.index(own) + 1} and {number} would both train in {own}; give one of them another name, "
            f"as in {number}:name=NEW, or move all of them with output=FOLDER"
        )
    if recipe.stage < before.stage:
        raise UserError(
            f"recipe {number - 1} ({before.name}) is for stage {before.stage}, and recipe {number} ({recipe.name}) for "
            f"stage {recipe.stage}; name them in their order"
        )
    if before.lora.enabled:
        raise UserError(
            f"recipe {number - 1} ({before.name}) trains a LoRA, and recipe {number} ({recipe.name}) would take its "
            "projector alone; train on from it with: "
            + command_line(["basic-lite", "train", name, f"model.start={places[-1]}"])
        )
    if recipe.model.start is not None:
        raise UserError(
            f"recipe {number} ({recipe.name}) names a run to start from in model.start, and here it takes the "
            f"projector of recipe {number - 1}; remove model.start, or train it alone with `basic-lite train`"
        )
    if any(text.partition("=")[0].strip() == _PROJECTOR for text in overrides):
        raise UserError(
            f"{_PROJECTOR} of recipe {number} ({recipe.name}) is the run of recipe {number - 1}; leave it out, "
            "or train each recipe alone with `basic-lite train`"
        )
    place, named = places[-1], recipe.model.projector
    if named is not None and Path(named) != Path(place):
        say(f"note: {recipe.name} takes the projector of {place}, and not of {named}, which its recipe names")
    return load_recipe(name, [*overrides, f"{_PROJECTOR}={json.dumps(place)}"])
