"""The run folder: who owns it, and whether a run in it can continue."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from basic_lite.errors import UserError
from basic_lite.recipe import Recipe, dump_recipe, flat_values
from basic_lite.train.bundle import MANIFEST, Bundle, checkpoints_of, open_bundle
from basic_lite.train.checkpoint import require_checkpoint
from basic_lite.train.log import LOG

RECIPE_YAML = "recipe.yaml"
LOCK = ".lock"
# Keys that may differ between a run and its continuation: they don't change what is computed.
FREE = {
    "name",
    "output",
    "data.workers",
    "training.save_every",
    "training.keep",
    "training.log_every",
    "training.eval_answers",
    "training.trackers",
    "training.micro_batch",
    "training.gradient_checkpointing",
    "training.offload_activations",
    "model.tower_on_host",
}


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and the checkpoint it continues from (None: from the start)."""

    path: Path
    checkpoint: Bundle | None = None
    finished: bool = False

    @property
    def final(self) -> Path:
        """The bundle that a finished run leaves."""
        return self.path / "final"

    def checkpoint_at(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"checkpoint-{step}"

    def begin(self, recipe: Recipe) -> list[Path]:
        """Take the folder: write the resolved recipe. What later steps have left is set aside; its new places."""
        (self.path / RECIPE_YAML).write_text(dump_recipe(recipe), encoding="utf-8")
        if self.checkpoint is None:
            (self.path / LOG).unlink(missing_ok=True)
            return []
        later = [p for p in checkpoints_of(self.path) if int(p.name.split("-")[1]) > self.checkpoint.step]
        moved = []
        for old in [*later, self.final]:
            if old.exists():
                moved.append(old.with_name(f"set-aside-{old.name}"))
                shutil.rmtree(moved[-1], ignore_errors=True)
                old.rename(moved[-1])
        return moved


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Own a run folder. The lock goes with the process, however that ends.

    Raises:
        UserError: another process owns it.
    """
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process trains in {path} now. "
            "Wait until it ends, or choose another folder with name=… or output=…"
        ) from error
    try:
        yield
    finally:
        (path / LOCK).unlink(missing_ok=True)  # while it is still ours
        lock.release()


def require_writable(path: Path) -> None:
    """Make the folder, and see that files can be made in it.

    Raises:
        UserError: they can't.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        scratch = path / ".writable"
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        raise UserError(
            f"can't write the run folder {path} ({error.strerror or error}); change name or output"
        ) from error


def look_at_run_folder(recipe: Recipe, *, resume: bool, step: int | None = None) -> RunFolder:
    """Look at ``output/name`` before anything is loaded; nothing is changed.

    Args:
        resume: continue the run that is there.
        step: the step of the checkpoint to start from; None: the newest.

    Raises:
        UserError: it holds another run or other files, or there is nothing that this recipe can continue from.
    """
    path = Path(recipe.output) / recipe.name
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; change name or output")
    final = path / "final"
    if final.exists() and not final.is_dir():
        raise UserError(f"{final} is a file, and the trained model must go there; move it away, or change name")
    checkpoints = checkpoints_of(path)
    finished = (final / MANIFEST).is_file()
    others = [p for p in path.iterdir() if p.name not in (LOCK, RECIPE_YAML)] if path.is_dir() else []
    if others and not (path / RECIPE_YAML).is_file() and not checkpoints and not finished:
        raise UserError(f"{path} already holds other files and no run; change name or output, or empty the folder")
    if resume and not (path / RECIPE_YAML).is_file() and not checkpoints and not finished:
        raise UserError(
            f"--resume: there is no run in {path} to continue; correct name or output, or leave --resume out"
        )
    if not resume:
        _require_free(recipe, path, checkpoints, final if finished else None)
        return RunFolder(path)
    chosen = _choose(path, checkpoints, step)
    if finished and step is None:
        changed = differences(open_bundle(final).recipe, recipe)
        _require_same_recipe(final, changed)
        return RunFolder(path, None, True)
    if chosen is None:
        return RunFolder(path)
    bundle = open_bundle(chosen, "--resume")
    require_checkpoint(bundle)
    _require_same_recipe(bundle.folder, differences(bundle.recipe, recipe))
    return RunFolder(path, bundle)


def _choose(path: Path, checkpoints: list[Path], step: int | None) -> Path | None:
    if step is None:
        return checkpoints[-1] if checkpoints else None
    by_step = {int(checkpoint.name.split("-")[1]): checkpoint for checkpoint in checkpoints}
    if step not in by_step:
        there = ", ".join(map(str, by_step)) or "none"
        raise UserError(f"--checkpoint {step}: {path} has no whole checkpoint of that step; it has {there}")
    return by_step[step]


def _require_free(recipe: Recipe, path: Path, checkpoints: list[Path], final: Path | None) -> None:
    """Refuse a folder in which a run saved something."""
    newest = final or (checkpoints[-1] if checkpoints else None)
    if newest is None:
        return
    try:
        changed = differences(open_bundle(newest).recipe, recipe)
    except UserError:
        changed = ["its newest bundle can't be read"]
    what = "a finished run" if final else f"a run with {len(checkpoints)} checkpoint(s)"
    whose = f"another run (its recipe differs: {'; '.join(changed[:3])})" if changed else f"{what} of this recipe"
    fix = "" if changed or final else "continue it with --resume, or "
    raise UserError(
        f"the run folder {path} already holds {whose}; {fix}choose another folder with name=… or output=…, or delete it"
    )


def _require_same_recipe(bundle: Path, changed: list[str]) -> None:
    if changed:
        raise UserError(
            f"--resume: the recipe is not the one that {bundle} was trained with:\n  - "
            + "\n  - ".join(changed)
            + "\nUse the same recipe and overrides, or start a new run with name=…"
        )


def require_same_data(folder: RunFolder, fingerprint: str) -> None:
    """Refuse to continue with other training data than the run has had so far.

    A picture that was replaced under its name isn't noticed: a broken one may be fixed between two parts of a run.

    Raises:
        UserError: the samples aren't those of the checkpoint.
    """
    if folder.checkpoint is not None and folder.checkpoint.manifest["data"].get("fingerprint") != fingerprint:
        raise UserError(
            f"--resume: the training data isn't what it was when {folder.checkpoint.folder} was saved: "
            "records, their order, their text or image names, or the tokenizer changed. "
            "Restore the files that data.train names, or start a new run with name=…"
        )


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Keys that differ and matter, each as ``key: old → new``."""
    flat_old, flat_new = _matters(old), _matters(new)
    return [
        f"{key}: {flat_old.get(key)!r} → {flat_new.get(key)!r}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key) != flat_new.get(key)
    ]


def _matters(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in flat_values(recipe).items() if key not in FREE}
