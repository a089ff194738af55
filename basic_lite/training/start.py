"""Where a run's weights come from besides its models: ``model.start``, or ``model.projector``.

``model.start`` goes on from another run: its projector, its LoRA, its models' names. All else is new: optimizer,
learning rates and their warm-up begin at step 0, and supervision, data and quantization are the recipe's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basic_lite.console import Say
from basic_lite.errors import UserError
from basic_lite.model.base_files import digests_of_models
from basic_lite.model.parts import Parts
from basic_lite.recipe import Recipe, flat_values
from basic_lite.training.bundle import changed_files, restore_adapter, restore_projector
from basic_lite.training.bundle_files import Bundle, look_at_bundle, open_bundle
from basic_lite.training.inputs import require_inputs
from basic_lite.training.start_names import PROJECTOR, START, earlier_run_of, same_model

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
        of = self.bundle
        return {"key": self.key, "bundle": str(of.folder), "step": of.step, "manifest_sha256": of.digest}

    def restore(self, parts: Parts, recipe: Recipe, say: Say) -> None:
        """Load the projector, and the LoRA where it is taken, into an adapted model."""
        earlier = self.bundle
        restore_projector(earlier, parts, self.key)
        if self.with_adapter:
            restore_adapter(earlier, parts)
        what = "projector and LoRA" if self.with_adapter else "projector"
        say(f"{what} from {earlier.folder} (stage {earlier.manifest['stage']}, step {earlier.step})")
        names = {k: v for k, v in earlier.manifest["models"].items() if not same_model(v, getattr(recipe.model, k))}
        if names:
            say(f"note: it was trained with {names}; this recipe names other models of the same kind and size")
        elif changed := changed_files(earlier, digests_of_models(recipe.model)):
            say(f"note: {changed}. This run trains with the files as they are now")


def open_inputs(recipe: Recipe, *, earlier: bool) -> Origin | None:
    """The earlier run whose weights this one begins with, its files verified; None: it begins with none.

    Raises:
        UserError: as ``require_inputs``, or the earlier run's files aren't as it wrote them.
    """
    require_inputs(recipe, earlier=earlier)
    return find_origin(recipe) if earlier else None


def find_origin(recipe: Recipe) -> Origin | None:
    """Open and verify the bundle that the recipe starts from; None: it starts from its models alone.

    Raises:
        UserError: it isn't there or doesn't hold together.
    """
    if (named := earlier_run_of(recipe)) is None:
        return None
    return Origin(open_bundle(*named, Path(recipe.output)), named[1])


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
