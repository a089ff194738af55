"""Which files in a run folder the run didn't write: what people have put there, or changed. They are never deleted."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from basic_lite.errors import UserError
from basic_lite.outside import as_object, read_text
from basic_lite.recipe.load import dump_recipe
from basic_lite.training.bundle_files import look_at_bundle
from basic_lite.training.files import sha256
from basic_lite.training.places import (
    MANIFEST,
    PREDICTIONS,
    RECIPE_YAML,
    SUMMARIES,
    TENSORBOARD,
    TRAINED_ON,
    bundles_of,
    read_json,
)

# What TensorBoard's writer leaves.
_EVENTS = re.compile(r"events\.out\.tfevents\..*|hparams\.yml")
# A larger file that people have changed has another size.
_MOST_HASHED = 10_000_000


def not_the_runs_own(run: Path) -> list[Path]:
    """What people would miss if a run were deleted: answers, own files in its bundles and curves, a changed recipe."""
    answers = [path for name in (PREDICTIONS, SUMMARIES) for path in sorted(run.glob(name))]
    curves = [path for path in _files_in(run / TENSORBOARD) if not _EVENTS.fullmatch(path.name)]
    foreign = [path for bundle in bundles_of(run) for path in foreign_in(bundle)]
    return [*answers, *curves, *foreign, *edited_recipe(run)]


def edited_recipe(run: Path) -> list[Path]:
    """The run's recipe, if it was written after the start, and isn't as the run's newest bundle has it."""
    path, after = run / RECIPE_YAML, run / TRAINED_ON  # a start writes it later than the recipe
    if not path.is_file() or (after.is_file() and path.stat().st_mtime_ns <= after.stat().st_mtime_ns):
        return []
    try:
        own = dump_recipe(look_at_bundle(run).recipe)
    except UserError:  # there is none, or it is of another version
        own = ""
    return [path] * (read_text(path, errors="replace") != own)


def foreign_in(bundle: Path) -> Iterator[Path]:
    """Files of a bundle that its manifest doesn't list, or lists otherwise; all of them where it has no manifest."""
    own = as_object(as_object(read_json(bundle / MANIFEST)).get("files"))
    for path in _files_in(bundle):
        name = path.relative_to(bundle).as_posix()
        if name != MANIFEST and not _is_as_written(path, own.get(name)):
            yield path


def _is_as_written(path: Path, facts: Any) -> bool:
    if not isinstance(facts, dict) or path.is_symlink():
        return False
    size = path.stat().st_size
    return size == facts.get("bytes") and (size > _MOST_HASHED or sha256(path) == facts.get("sha256"))


def _files_in(folder: Path) -> Iterator[Path]:
    """Files, links and empty folders below a folder, or itself if it is a link; nothing behind links is looked at."""
    if folder.is_symlink():
        yield folder
        return
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            yield path
