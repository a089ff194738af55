"""What a recipe with ``model.start`` takes from that run: the names of its models. Nothing heavy is imported here."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from basic_lite.console import Say
from basic_lite.errors import UserError
from basic_lite.recipe import Recipe
from basic_lite.recipe.load import as_override
from basic_lite.recipe.rules import changed_recipe
from basic_lite.training.bundle_files import Bundle, look_at_bundle
from basic_lite.training.places import newest_first

START, PROJECTOR = "model.start", "model.projector"
NAMES = ("base", "vision", "llm")
# What belongs to the names; these have defaults, so what counts is whether the recipe gives them.
WITH_NAMES = ("image_token", "vision_feature_layer", "vision_feature_select")
SHAPE = ("rank", "alpha", "targets")


def earlier_run_of(recipe: Recipe) -> tuple[Path, str] | None:
    """The run that a recipe's weights come from, and the key that names it; None: they come from its models alone."""
    named = ((recipe.model.start, START), (recipe.model.projector, PROJECTOR))
    return next(((Path(place), key) for place, key in named if place is not None), None)


def resolve_start(recipe: Recipe, say: Say, *, resume: bool = False) -> Recipe:
    """Fill in what a recipe with ``model.start`` leaves to that run: the names of its models and what belongs to them.

    The start has the projector, so ``model.projector`` goes, as in the recipe that trained the start.

    Args:
        resume: the run has begun already. Then its own checkpoint has the names, and the start may be gone.

    Raises:
        UserError: the start is missing, or the recipe contradicts it.
    """
    place = recipe.model.start
    if place is None:
        return recipe
    if (projector := recipe.model.projector) is not None:
        say(f"note: {PROJECTOR}={projector} isn't read: {START} takes the projector of {place}")
        recipe = changed_recipe(recipe, {PROJECTOR: None})
    if resume:
        for bundle in newest_first(recipe.run_path):
            with suppress(UserError):  # which of them is damaged is said where one is chosen
                return _named_as(look_at_bundle(bundle).recipe, recipe)
    start = look_at_bundle(Path(place), START, Path(recipe.output))
    _require_same_names(start, recipe)
    _require_same_lora(start, recipe)
    return _named_as(start.recipe, recipe)


def _named_as(theirs: Recipe, recipe: Recipe) -> Recipe:
    """The recipe with the other one's names wherever it gives none."""
    mine, other = recipe.model, theirs.model
    missing = {key: getattr(other, key) for key in NAMES if getattr(mine, key) is None}
    missing |= {key: getattr(other, key) for key in WITH_NAMES if key not in mine.model_fields_set}
    return recipe.model_copy(update={"model": mine.model_copy(update=missing)})


def same_model(one: str | None, other: str | None) -> bool:
    """Whether two names mean the same model: a folder may be written in several ways."""
    return one == other or (None not in (one, other) and os.path.realpath(str(one)) == os.path.realpath(str(other)))


def _require_same_names(start: Bundle, recipe: Recipe) -> None:
    mine, theirs = recipe.model, start.recipe.model
    wrong = [key for key in NAMES if getattr(mine, key) and not same_model(getattr(mine, key), getattr(theirs, key))]
    wrong += [k for k in WITH_NAMES if k in mine.model_fields_set and getattr(mine, k) != getattr(theirs, k)]
    if wrong:
        has = "; ".join(f"model.{key}: {getattr(theirs, key)!r} there, {getattr(mine, key)!r} here" for key in wrong)
        mend = " ".join(f"model.{key}={'null' if key in NAMES else getattr(theirs, key)}" for key in wrong)
        raise UserError(
            f"{START}: a run goes on with the models that it had, and {start.folder} had others ({has}). "
            f"Leave these keys out (on the command line: {mend}), or train a projector for these models (stage 1)"
        )


def _require_same_lora(start: Bundle, recipe: Recipe) -> None:
    if not start.has_adapter:
        return
    mine, theirs = recipe.lora, start.recipe.lora
    if not mine.enabled:
        values = " ".join(f"lora.{key}={as_override(getattr(theirs, key))}" for key in SHAPE)
        raise UserError(
            f"{START}: {start.folder} has a LoRA, and this recipe has none, so the LoRA would be lost. "
            f"Set lora.enabled=true {values}; or, to take the projector alone, remove {START} and set "
            f"{PROJECTOR}={recipe.model.start}"
        )
    wrong = [key for key in SHAPE if _sorted(getattr(mine, key)) != _sorted(getattr(theirs, key))]
    if wrong:
        found = "; ".join(f"lora.{key} is {as_override(getattr(mine, key))}" for key in wrong)
        values = " ".join(f"lora.{key}={as_override(getattr(theirs, key))}" for key in wrong)
        raise UserError(
            f"{START}: the LoRA in {start.folder} has another shape than this recipe's ({found}), so it can't be "
            f"trained on. Set {values}"
        )


def _sorted(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value
