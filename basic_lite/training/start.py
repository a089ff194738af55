"""Where a run's weights come from besides its models: ``model.start``, or ``model.projector``.

``model.start`` goes on from another run: its projector, its LoRA, its models' names. All else is new: optimizer,
learning rates and their warm-up begin at step 0, and supervision, data and quantization are the recipe's.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basic_lite.console import Say
from basic_lite.errors import UserError
from basic_lite.model.parts import Parts
from basic_lite.recipe import Recipe, flat_values
from basic_lite.recipe.load import as_override
from basic_lite.training.bundle import restore_adapter, restore_projector
from basic_lite.training.bundle_files import Bundle, look_at_bundle, open_bundle
from basic_lite.training.files import sha256
from basic_lite.training.places import BEST, FINAL, MANIFEST, checkpoints_of

START, PROJECTOR = "model.start", "model.projector"
NAMES = ("base", "vision", "llm")
# What belongs to the names; these have defaults, so what counts is whether the recipe gives them.
WITH_NAMES = ("image_token", "vision_feature_layer", "vision_feature_select")
SHAPE = ("rank", "alpha", "targets")
# What the start's weights see otherwise where a key differs.
SEEN = {
    "quantization.mode": "slightly other weights",
    "model.dtype": "slightly other weights",
    "data.template": "questions in another format",
    "data.image_fit": "pictures that are fitted otherwise",
}


@dataclass(frozen=True)
class Origin:
    """The bundle that a run's weights come from, and the recipe key that names it."""

    bundle: Bundle
    key: str

    @property
    def with_adapter(self) -> bool:
        """Whether its LoRA is taken."""
        return self.key == START and self.bundle.has_adapter

    def record(self) -> dict[str, Any]:
        """What the new run's manifest says of it."""
        digest = sha256(self.bundle.folder / MANIFEST)
        return {"key": self.key, "bundle": str(self.bundle.folder), "step": self.bundle.step, "manifest_sha256": digest}

    def restore(self, parts: Parts, recipe: Recipe, say: Say) -> None:
        """Load the projector, and the LoRA where it is taken, into an adapted model."""
        earlier = self.bundle
        restore_projector(earlier, parts, self.key)
        if self.with_adapter:
            restore_adapter(earlier, parts)
        what = "projector and LoRA" if self.with_adapter else "projector"
        say(f"{what} from {earlier.folder} (stage {earlier.manifest['stage']}, step {earlier.step})")
        names = {k: v for k, v in earlier.manifest["models"].items() if not _same(v, getattr(recipe.model, k))}
        if names:
            say(f"note: it was trained with {names}; this recipe names other models of the same kind and size")


def find_origin(recipe: Recipe) -> Origin | None:
    """Open and verify the bundle that the recipe starts from; None: it starts from its models alone.

    Raises:
        UserError: it isn't there or doesn't hold together.
    """
    for key, place in ((START, recipe.model.start), (PROJECTOR, recipe.model.projector)):
        if place is not None:
            return Origin(open_bundle(Path(place), key, Path(recipe.output)), key)
    return None


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
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"projector": None})})
    own = Path(recipe.output) / recipe.name
    if resume:
        for bundle in [own / FINAL, *reversed(checkpoints_of(own)), own / BEST]:
            with suppress(UserError):  # which of them is damaged is said where one is chosen
                begun = look_at_bundle(bundle).recipe
                return _named_as(begun, recipe)
    start = look_at_bundle(Path(place), START, Path(recipe.output))
    _require_same_names(start, recipe)
    _require_same_lora(start, recipe)
    return _named_as(start.recipe, recipe)


def rank_is_fixed(recipe: Recipe) -> bool:
    """Whether the LoRA comes from another run, so that its rank can't be chosen any more."""
    if recipe.model.start is None:
        return False
    try:
        return look_at_bundle(Path(recipe.model.start), START).has_adapter
    except UserError:  # a run that has begun doesn't need its start, and can't change its rank either
        return True


def notes_on(origin: Origin, recipe: Recipe) -> list[str]:
    """What a person may not expect of this start."""
    place, theirs = origin.bundle.folder, origin.bundle.recipe
    notes = []
    if origin.key == PROJECTOR:
        if origin.bundle.has_adapter:
            notes.append(
                f"warning: {PROJECTOR} takes the projector alone; the LoRA in {place} is not taken. "
                f"{START}={recipe.model.projector} takes both"
            )
        return notes
    before, now = flat_values(theirs), flat_values(recipe)
    # A projector alone is trained in one template to be used in another: stage 1 and stage 2.
    differ = [k for k in SEEN if before[k] != now[k] and (origin.with_adapter or k != "data.template")]
    notes += [
        f"note: {place} was trained with {key} {before[key]}, this run has {now[key]}: "
        f"its {'projector and LoRA see' if origin.with_adapter else 'projector sees'} {SEEN[key]}"
        for key in differ
    ]
    if origin.with_adapter and theirs.lora.dtype == "float32" and recipe.lora.dtype != "float32":
        notes.append(f"note: the LoRA in {place} is float32; lora.dtype {recipe.lora.dtype} rounds it")
    return notes


def _named_as(theirs: Recipe, recipe: Recipe) -> Recipe:
    """The recipe with the other one's names wherever it gives none."""
    mine, other = recipe.model, theirs.model
    missing = {key: getattr(other, key) for key in NAMES if getattr(mine, key) is None}
    missing |= {key: getattr(other, key) for key in WITH_NAMES if key not in mine.model_fields_set}
    return recipe.model_copy(update={"model": mine.model_copy(update=missing)})


def _same(one: str | None, other: str | None) -> bool:
    """Whether two names mean the same model: a folder may be written in several ways."""
    return one == other or (None not in (one, other) and os.path.realpath(str(one)) == os.path.realpath(str(other)))


def _require_same_names(start: Bundle, recipe: Recipe) -> None:
    mine, theirs = recipe.model, start.recipe.model
    wrong = [key for key in NAMES if getattr(mine, key) and not _same(getattr(mine, key), getattr(theirs, key))]
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
