"""The run folder: who owns it, and whether a run in it can continue."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basic_lite.console import new_run_from
from basic_lite.data.names import EVAL, FINGERPRINT, HELD_OUT_FINGERPRINT, TRAIN
from basic_lite.errors import UserError
from basic_lite.recipe import Recipe, dump_recipe
from basic_lite.recipe.rules import best_by
from basic_lite.training.bundle_files import Bundle, open_bundle, require_checkpoint
from basic_lite.training.data_json import broken_at_start
from basic_lite.training.differences import differences
from basic_lite.training.earlier_run import (
    require_free,
    require_one_way,
    require_run_to_continue,
    require_same_recipe,
    saved_in,
)
from basic_lite.training.files import remove, saving, write_json
from basic_lite.training.own_files import edited_recipe, not_the_runs_own
from basic_lite.training.places import (
    BEFORE_A_RUN,
    BEST,
    DATA,
    FINAL,
    KEPT,
    PARTS,
    RECIPE_YAML,
    SCRATCH,
    SET_ASIDE,
    TENSORBOARD,
    best_between_names,
    best_record,
    bundles_of,
    checkpoints_of,
    is_finished,
    is_run,
    remains_of,
)
from basic_lite.training.software import write_software
from basic_lite.training.trained_on import TrainedOn
from basic_lite.whole_file import write_whole


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, and the checkpoint it continues from (None: from the start).

    Attributes:
        chosen: it continues from a checkpoint that --checkpoint names.
        broken: for a run that continues: which records it dropped for a picture when it started, by data key.
    """

    path: Path
    checkpoint: Bundle | None = None
    finished: bool = False
    overwrite: bool = False  # the run that is there is replaced
    chosen: bool = False
    broken: dict[str, list[int]] | None = None

    @property
    def final(self) -> Path:
        """The bundle that a finished run leaves."""
        return self.path / FINAL

    @property
    def best(self) -> Path:
        """The bundle of the best step, where one is kept."""
        return self.path / BEST

    @property
    def best_is_later(self) -> bool:
        """Whether the best step is set aside: the run goes back to a checkpoint before it.

        After a kill it stays: the same steps are made again, and the run goes on comparing with it.
        """
        record = best_record(best_between_names(self.path) or self.best)
        return self.chosen and record is not None and isinstance(record["step"], int) and record["step"] > self.step

    @property
    def step(self) -> int:
        """The step that the run continues after; 0: it starts."""
        return 0 if self.checkpoint is None else self.checkpoint.step

    @property
    def started_from(self) -> dict[str, Any] | None:
        """The checkpoint's record of the earlier run that its weights came from; None: there is none."""
        return None if self.checkpoint is None else self.checkpoint.manifest.get("started_from")

    def checkpoint_at(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"checkpoint-{step}"

    def begin(
        self,
        recipe: Recipe,
        parts: Sequence[Any],
        data: dict[str, Any],
        trained_on: TrainedOn,
        versions: dict[str, str],
    ) -> list[str]:
        """Take the folder: write the resolved recipe, the part table, the data's summary and what is trained on.

        A run from its start removes what a failed start has left, and with ``overwrite`` the run that is there; what
        isn't the run's own is moved away. A run that continues sets aside what later steps have left.

        Returns:
            What to say of it: what was moved, and where it is.
        """
        with saving(self.path, "Make room, or change name or output"):
            if (best := best_between_names(self.path)) is not None:
                best.rename(self.best)
            # The part table comes first: it is what marks the folder as a run's, also if this is killed half way.
            write_json(self.path / PARTS, [vars(part) for part in parts])
            moved = self._clear() if self.checkpoint is None else self._set_aside()
            # Before the others, so that it is seen later whether people have changed it (``own_files.edited_recipe``).
            write_whole(self.path / RECIPE_YAML, dump_recipe(recipe))
            write_json(self.path / DATA, data)
            write_software(self.path, self.step, versions)
            trained_on.write(self.path)
        return moved

    def _clear(self) -> list[str]:
        before = "--overwrite replaces the run" if self.overwrite else "this run replaces a start that saved nothing"
        said = self.keep(not_the_runs_own(self.path), f"{before} in {self.path}; what isn't the run's own")
        for old in [*(bundles_of(self.path) if self.overwrite else []), *remains_of(self.path)]:
            if old.name != PARTS:
                remove(old)
        return said

    def keep(self, found: Sequence[Path], what: str) -> list[str]:
        """Move files that people would miss out of the way, and say so."""
        if not found:
            return []
        place = kept_place(self.path)
        names = [path.relative_to(self.path) for path in found]
        for path, name in zip(found, names, strict=True):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(place / name)
        return [f"{what} was moved to {place}: " + ", ".join(name.as_posix() for name in names)]

    def _set_aside(self) -> list[str]:
        later = [p for p in checkpoints_of(self.path) if int(p.name.split("-")[1]) > self.step]
        changed = f"{self.path / RECIPE_YAML} was changed, and a run that continues doesn't read it; it"
        said, moved = self.keep(edited_recipe(self.path), changed), []
        for old in [*later, self.final, *[self.best] * self.best_is_later]:
            if os.path.lexists(old):
                moved.append(old.with_name(SET_ASIDE + old.name))
                if os.path.lexists(moved[-1]):
                    remove(moved[-1])
                old.rename(moved[-1])
        return [*said, *(f"set aside, since its steps are made again: {path}" for path in moved)]


def kept_place(run: Path) -> Path:
    """The folder that the next files of people's own are moved to."""
    return next(place for n in itertools.count(1) if not os.path.lexists(place := run / f"{KEPT}{n}"))


def missing_folders(path: Path) -> list[Path]:
    """The folders that must be made for a path, the innermost first."""
    return [one for one in (path, *path.parents) if not one.exists()]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those folders that hold nothing, in this order."""
    for folder in folders:
        with suppress(OSError):  # it isn't empty, or isn't there
            folder.rmdir()


def require_writable(path: Path) -> None:
    """Make the folder, and see that files can be made in it.

    Raises:
        UserError: they can't.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        scratch = path / SCRATCH
        scratch.unlink(missing_ok=True)
        scratch.touch(exist_ok=False)  # follows no link
        scratch.unlink()
    except OSError as error:
        raise UserError(
            f"can't write the run folder {path} ({error.strerror or error}); change name or output"
        ) from error


def try_writing(path: Path) -> None:
    """See that a run folder can be made and written, and leave nothing of the try.

    Raises:
        UserError: it can't.
    """
    new = missing_folders(path)
    try:
        require_writable(path)
    finally:
        remove_empty(new)


def look_at_run_folder(recipe: Recipe, *, resume: bool, step: int | None = None, overwrite: bool = False) -> RunFolder:
    """Look at ``output/name`` before anything is loaded; nothing is changed.

    Args:
        resume: continue the run that is there.
        step: the step of the checkpoint to start from; None: the newest.
        overwrite: replace the run that is there.

    Raises:
        UserError: it holds another run or other files, or there is nothing that this recipe can continue from.
    """
    require_one_way(resume=resume, overwrite=overwrite, checkpoint=step)
    path = recipe.run_path
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; change name or output")
    final, best = path / FINAL, best_between_names(path) or path / BEST
    if best_by(recipe) and not overwrite and best.exists() and best_record(best) is None:
        raise UserError(
            f"{best} is there and isn't this run's, which keeps its best step there; move it away, or set "
            "training.metric_for_best_model=off"
        )
    if final.exists() and not final.is_dir():
        raise UserError(f"{final} is a file, and the trained model must go there; move it away, or change name")
    checkpoints = checkpoints_of(path)
    finished, run = is_finished(path), is_run(path)
    others = [p for p in path.iterdir() if p.name not in BEFORE_A_RUN] if path.is_dir() else []
    if others and not run:
        raise UserError(f"{path} already holds other files and no run; change name or output, or empty the folder")
    if resume:
        require_run_to_continue(path)
    if overwrite:
        _require_not_used(recipe, path)
        return RunFolder(path, overwrite=True)
    if not resume:
        require_free(recipe, path, saved_in(path), final if finished else None)
        return RunFolder(path)
    chosen = _choose(path, checkpoints, step)
    if finished and step is None:
        changed = differences(open_bundle(final).recipe, recipe)
        require_same_recipe(path, final, changed)
        return RunFolder(path, None, True)
    if "tensorboard" in recipe.training.trackers:
        _require_no_links(path / TENSORBOARD)
    if chosen is None:
        if best_record(best) is not None:  # it will be compared with, so it must be of this recipe
            require_same_recipe(path, best, differences(open_bundle(best, "--resume").recipe, recipe))
        return RunFolder(path)
    bundle = open_bundle(chosen, "--resume")
    require_checkpoint(bundle)
    require_same_recipe(path, bundle.folder, differences(bundle.recipe, recipe))
    broken = broken_at_start(path) if recipe.data.bad_records == "drop" else None
    return RunFolder(path, bundle, chosen=step is not None, broken=broken)


def _require_no_links(curves: Path) -> None:
    """Refuse curves that lie elsewhere: TensorBoard's writer goes on in the files and folders that it finds."""
    if found := next((one for one in (curves, *curves.rglob("*")) if one.is_symlink()), None):
        raise UserError(
            f"--resume: {found} is a link, and a run writes nothing outside its folder; remove the link, or put what "
            "it leads to in its place"
        )


def _choose(path: Path, checkpoints: list[Path], step: int | None) -> Path | None:
    if step is None:
        return checkpoints[-1] if checkpoints else None
    by_step = {int(checkpoint.name.split("-")[1]): checkpoint for checkpoint in checkpoints}
    if step not in by_step:
        there = ", ".join(map(str, by_step)) or "none"
        raise UserError(f"--checkpoint {step}: {path} has no whole checkpoint of that step; it has {there}")
    return by_step[step]


def _require_not_used(recipe: Recipe, path: Path) -> None:
    """Refuse to replace a folder that the new run itself needs something of."""
    whole, own = recipe.model_dump(mode="json"), os.path.realpath(path)
    for key, text in [*_texts(whole["model"], "model"), *_texts(whole["data"], "data")]:
        if os.path.exists(text) and Path(os.path.realpath(text)).is_relative_to(own):
            raise UserError(
                f"--overwrite replaces the run in {path}, and {key} names something in it: {text}; "
                "give the new run another name with name=…"
            )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text below a section, with its key."""
    if isinstance(value, str):
        yield key, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in entries:
        yield from _texts(entry, f"{key}.{name}")


def require_same_data(folder: RunFolder, fingerprints: Mapping[str, str | None]) -> None:
    """Refuse to continue with other data than the run has had so far. Held-out data decides too: of the best step, and
    of whether BASIC is on.

    A picture that was replaced under its name isn't noticed: a broken one may be fixed between two parts of a run.

    Args:
        fingerprints: ``Prepared.fingerprints``.

    Raises:
        UserError: the samples aren't those of the checkpoint.
    """
    if folder.checkpoint is None:
        return
    was = folder.checkpoint.manifest["data"]
    for name, what, key in ((FINGERPRINT, "training", TRAIN), (HELD_OUT_FINGERPRINT, "held-out", EVAL)):
        # Older versions wrote nothing of held-out data.
        if was.get(name) != fingerprints[name] and (name == FINGERPRINT or name in was):
            raise UserError(
                f"--resume: the {what} data isn't what it was when {folder.checkpoint.folder} was saved: "
                "records, their order, their text or image names, or the tokenizer changed (or data.train is a list, "
                "and an older version read it in another order). "
                f"Restore the files that {key} names, or train on the new data in a new run: "
                + new_run_from(folder.path)
            )
