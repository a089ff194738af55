"""A run folder in which another run has saved something is not overwritten. Nothing heavy is imported here."""

from pathlib import Path

from basic_lite.errors import UserError
from basic_lite.recipe import Recipe
from basic_lite.training.bundle_files import open_bundle
from basic_lite.training.differences import differences
from basic_lite.training.places import FINAL, is_finished


def require_no_finished_run(recipe: Recipe) -> None:
    """Refuse a recipe whose run is finished, in a moment; ``look_at_run_folder`` looks at all else.

    Raises:
        UserError: the recipe's folder holds a finished run.
    """
    path = Path(recipe.output) / recipe.name
    # The names of models come from the earlier run, and what differs is known later.
    if recipe.model.start is None and is_finished(path):
        require_free(recipe, path, [], path / FINAL)


def require_free(recipe: Recipe, path: Path, saved: list[Path], final: Path | None) -> None:
    """Refuse a folder in which a run saved something."""
    newest = final or (saved[-1] if saved else None)
    if newest is None:
        return
    try:
        changed = differences(open_bundle(newest).recipe, recipe)
    except UserError:
        changed = ["its newest bundle can't be read"]
    what = "a finished run" if final else f"a run that has saved {', '.join(one.name for one in saved)}"
    whose = f"another run (its recipe differs: {'; '.join(changed[:3])})" if changed else f"{what} of this recipe"
    fix = f"{going_on(path)}, " if final else "" if changed else "continue it with --resume, "
    raise UserError(
        f"the run folder {path} already holds {whose}; {fix}choose another folder with name=… or output=…, "
        "or replace it with --overwrite"
    )


def going_on(run: Path) -> str:
    """How a new run goes on from another one, as advice."""
    return f"go on from its weights in a new run with model.start={run} name=NEW"
