"""How a run folder that holds an earlier run is gone on with, or left alone. Nothing heavy is imported here."""

from contextlib import suppress
from pathlib import Path

from basic_lite.console import new_run_from
from basic_lite.errors import UserError
from basic_lite.recipe import Recipe
from basic_lite.training.bundle_files import look_at_bundle
from basic_lite.training.differences import differences
from basic_lite.training.places import BEST, FINAL, best_between_names, best_record, checkpoints_of, is_finished, is_run
from basic_lite.training.start_names import resolve_start


def look_at_earlier_run(recipe: Recipe, *, resume: bool) -> str | None:
    """Tell in a moment what a run folder's names tell; ``look_at_run_folder`` looks at all else.

    Args:
        resume: the run that is there is to go on, from its newest checkpoint.

    Returns:
        What to say of a finished run that was to go on; None: there is something to do.

    Raises:
        UserError: the folder holds a run, or there is none to go on with, or it was another recipe's.
    """
    path = recipe.run_path
    if resume and not path.exists():
        require_run_to_continue(path)
    if not is_run(path):
        return None
    with suppress(UserError):  # a start that isn't there any more is named among what differs
        recipe = resolve_start(recipe, lambda text: None, resume=resume)
    saved, final = saved_in(path), path / FINAL if is_finished(path) else None
    if not resume:
        require_free(recipe, path, saved, final)
    elif (newest := final or (saved[-1] if saved else None)) is not None:
        require_same_recipe(path, newest, differences(look_at_bundle(newest, "--resume").recipe, recipe))
    return finished_text(path) if resume and final else None


def saved_in(path: Path) -> list[Path]:
    """What an unfinished run has saved: its best step, and its checkpoints, the newest last."""
    best = best_between_names(path) or path / BEST
    return [*([best] if best_record(best) else []), *checkpoints_of(path)]


def require_one_way(*, resume: bool, overwrite: bool, checkpoint: int | None = None) -> None:
    """Refuse to go on with a run and to replace it, and to begin at a checkpoint without going on.

    Raises:
        UserError: that is asked for.
    """
    if checkpoint is not None and not resume:
        raise UserError("--checkpoint chooses the checkpoint for --resume; add --resume")
    if resume and overwrite:
        raise UserError("--overwrite begins anew and --resume continues what is there; leave one of the two out")


def finished_text(path: Path) -> str:
    """What is said of a finished run that was to go on."""
    return f"{path} is finished; its bundle is {path / FINAL}"


def require_run_to_continue(path: Path) -> None:
    """Refuse to go on with a run that isn't there.

    Raises:
        UserError: it isn't.
    """
    if not is_run(path):
        other = f", give the command in the folder where the run was begun (this is {Path.cwd()})"
        begun = "" if path.is_absolute() else other
        raise UserError(
            f"--resume: there is no run in {path} to continue; correct name or output{begun}, or leave --resume out"
        )


def require_same_recipe(run: Path, bundle: Path, changed: list[str]) -> None:
    """Refuse to go on with another recipe.

    Args:
        changed: the keys that differ (``differences``).

    Raises:
        UserError: there are some.
    """
    if changed:
        raise UserError(
            f"--resume: the recipe is not the one that {bundle} was trained with:\n  - "
            + "\n  - ".join(changed)
            + f"\nUse the same recipe and overrides, or {going_on(run)}"
        )


def require_free(recipe: Recipe, path: Path, saved: list[Path], final: Path | None) -> None:
    """Refuse a folder in which a run saved something.

    Raises:
        UserError: one did.
    """
    newest = final or (saved[-1] if saved else None)
    if newest is None:
        return
    try:
        changed = differences(look_at_bundle(newest).recipe, recipe)
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
    return f"go on from its weights in a new run with {new_run_from(run)}"
