"""Which shipped recipe is for a smaller card, by what each one's first lines say that it needs."""

import re

from basic_lite.outside import read_text
from basic_lite.recipe import load_recipe, shipped_recipes
from basic_lite.recipe.schema import Recipe

# Of a recipe's first lines. `tests/tools/test_estimate.py` holds that they say what a rehearsal finds.
CARD = re.compile(r"^# Card: (?P<gb>\d+) GB; (?P<needed_gib>[\d.]+) GiB needed", re.MULTILINE)


def shipped_for(recipe: Recipe, gib: float) -> str | None:
    """A line that names the shipped recipe of the same kind that needs most of those that a memory is enough for.

    Of the same kind: the same stage, and a finished model (``model.base``) or parts of one.

    Args:
        gib: what a run may take of the card.

    Returns:
        None where no shipped recipe is so small, or ``recipe`` has the name of the one that is.
    """
    found: list[tuple[float, str]] = []
    for path in shipped_recipes():
        card = CARD.search(read_text(path, encoding="utf-8"))
        if card is not None and float(card["needed_gib"]) <= gib and _kind(load_recipe(path)) == _kind(recipe):
            found.append((float(card["needed_gib"]), path.stem))
    if not found or (best := max(found))[1] == recipe.name:
        return None
    needs, name = best
    way = f"basic-lite data FOLDER --recipe {name}" if recipe.model.base else f"basic-lite train {name} --dry-run"
    return f"the shipped recipe {name} needs {needs:g} GiB at least and fits: {way}"


def _kind(recipe: Recipe) -> tuple[int, bool]:
    return recipe.stage, recipe.model.base is not None
