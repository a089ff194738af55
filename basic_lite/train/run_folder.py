"""The run folder: who owns it, and whether a run in it can go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basic_lite.errors import UserError
from basic_lite.recipe import dump_recipe, load_recipe
from basic_lite.recipe.schema import Recipe
from basic_lite.train.bundle import MANIFEST, checkpoints_of

RECIPE = "recipe.yaml"
# Keys that may differ between a run and its continuation: they don't change what is computed.
FREE = {
    "name",
    "output",
    "data.workers",
    "training.save_every",
    "training.keep",
    "training.log_every",
    "training.trackers",
    "training.micro_batch",
    "training.gradient_checkpointing",
    "training.offload_activations",
    "model.tower_on_host",
}


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the checkpoint it goes on from (None: from the start)."""

    path: Path
    checkpoint: Path | None
    finished: bool

    @property
    def final(self) -> Path:
        return self.path / "final"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    def begin(self, recipe: Recipe) -> None:
        """Take the folder: write the resolved recipe into it."""
        (self.path / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
        if self.checkpoint is None:
            self.log.unlink(missing_ok=True)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """Keys that differ and matter, each as ``key: old → new``."""
    flat_old, flat_new = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        f"{key}: {flat_old.get(key)!r} → {flat_new.get(key)!r}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if key not in FREE and flat_old.get(key) != flat_new.get(key)
    ]


def open_run_folder(recipe: Recipe, *, resume: bool) -> RunFolder:
    """Look at ``output/name`` before anything is loaded.

    The folder is made where there is none.

    Raises:
        UserError: it can't be written, it holds another run or other files, or --resume is given with another recipe.
    """
    path = Path(recipe.output) / recipe.name
    try:
        path.mkdir(parents=True, exist_ok=True)
        scratch = path / ".writable"
        scratch.touch()
        scratch.unlink()
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"can't write the run folder {path} ({why}); change name or output") from error
    old = path / RECIPE
    if not old.is_file():
        if path.is_dir() and any(path.iterdir()):
            raise UserError(f"{path} already holds other files and no run; change name or output, or empty the folder")
        return RunFolder(path, None, False)
    changed = differences(load_recipe(old, []), recipe)
    checkpoints = checkpoints_of(path)
    finished = (path / "final" / MANIFEST).is_file()
    if not resume:
        if not changed and not checkpoints and not finished:
            return RunFolder(path, None, False)  # an attempt that saved nothing
        what = "a finished run" if finished else f"a run with {len(checkpoints)} checkpoint(s)"
        if changed and not checkpoints and not finished:
            what = "a run"
        whose = f"another run (its recipe differs: {'; '.join(changed[:3])})" if changed else f"{what} of this recipe"
        mend = "" if changed or finished else "go on with it by --resume, or "
        raise UserError(
            f"the run folder {path} already holds {whose}; {mend}choose another folder with name=… or output=…, or "
            f"delete it"
        )
    if changed:
        raise UserError(
            f"--resume: the recipe is not the one {path} was started with:\n  - "
            + "\n  - ".join(changed)
            + "\nUse the same recipe and overrides, or start a new run with name=…"
        )
    return RunFolder(path, checkpoints[-1] if checkpoints else None, finished)


def write_json(path: Path, value: Any) -> None:
    """JSON with a newline at the end."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out
