"""A run's bundles, written whole: a checkpoint while older ones are still there, and the final one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from basic_lite.console import Say
from basic_lite.training.checkpoint import Progress, write_training_state
from basic_lite.training.files import written_whole
from basic_lite.training.own_files import foreign_in
from basic_lite.training.places import checkpoints_of
from basic_lite.training.run_folder import RunFolder
from basic_lite.training.step import TrainStep


def save_checkpoint(
    folder: RunFolder,
    progress: Progress,
    step: TrainStep,
    generators: list[list[Any]],
    write: Callable[[Path], None],
    *,
    keep: int,
    say: Say,
) -> None:
    """Save a checkpoint. Older ones are deleted only after it is complete, so that there is one at any time.

    Args:
        generators: each process's.
        write: writes the bundle into a folder.
        keep: checkpoints that stay; so does each that people have put files into.

    Raises:
        UserError: it can't be written; says which checkpoint is good.
    """
    good = checkpoints_of(folder.path)
    last = f"The run's last good checkpoint is {good[-1]}" if good else "The run has no checkpoint yet"
    fix = f"{last}; make room or allow writing there, and continue with --resume"
    with written_whole(folder.checkpoint_at(progress.step), fix) as scratch:
        write_training_state(scratch, progress, step.optimizer, generators)
        write(scratch)
    done_with = checkpoints_of(folder.path)[:-keep]
    for old in done_with:
        if not any(foreign_in(old)):
            shutil.rmtree(old, ignore_errors=True)
        elif old == done_with[-1]:  # at each save one more is done with, so this is said once of each
            say(f"note: {old} stays, since it has files that the run didn't write or that were changed")


def save_final(folder: RunFolder, write: Callable[[Path], None]) -> None:
    """Write the trained bundle.

    Raises:
        UserError: it can't be written.
    """
    fix = "Make room or allow writing there, and write it with --resume, which trains nothing anew"
    with written_whole(folder.final, fix) as scratch:
        write(scratch)
