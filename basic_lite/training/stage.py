"""A stage in a command that can be given again: it starts, goes on, or is taken as it is when it is finished."""

from pathlib import Path

from basic_lite.console import Say
from basic_lite.errors import UserError
from basic_lite.recipe import Recipe
from basic_lite.training.bundle_files import find_bundle, look_at_bundle
from basic_lite.training.differences import differences
from basic_lite.training.files import sha256
from basic_lite.training.inputs import with_start
from basic_lite.training.places import MANIFEST, holds_bundle, is_run
from basic_lite.training.run_folder import RunFolder, look_at_run_folder
from basic_lite.training.start_names import PROJECTOR


def look_at_stage(recipe: Recipe, say: Say) -> tuple[Recipe, RunFolder]:
    """What a stage begins with, and its recipe with the names that `model.start` brings. Nothing is changed.

    Raises:
        UserError: its folder holds another run, or other files.
    """
    path = recipe.run_path
    begun = is_run(path)
    recipe = with_start(recipe, say, resume=begun)
    if changed := changes(recipe):
        raise UserError(
            f"the run folder {path} already holds another run ({'; '.join(changed[:3])}); "
            "choose another folder with name=… or output=…, or move that one away"
        )
    return recipe, look_at_run_folder(recipe, resume=begun)


def changes(recipe: Recipe) -> list[str]:
    """What differs between a recipe and the run in its folder, the projector that it began with included."""
    path = recipe.run_path
    if not holds_bundle(path):
        return []
    bundle = look_at_bundle(path)
    changed = differences(bundle.recipe, recipe)
    # The name of the earlier run may be the same, and its projector another one: it was trained anew.
    began = bundle.manifest.get("started_from") or {}
    if not changed and began.get("key") == PROJECTOR and began["manifest_sha256"] != _projector_of(recipe):
        changed.append(f"it began with another projector than {recipe.model.projector} has now")
    return changed


def _projector_of(recipe: Recipe) -> str | None:
    """The manifest's hash of the bundle that the projector is taken from; None: there is none yet."""
    try:
        bundle = find_bundle(Path(str(recipe.model.projector)), PROJECTOR)
    except UserError:
        return None
    return sha256(bundle / MANIFEST)
