"""``basic-lite clean``: frees what finished and stopped runs no longer need, after showing it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from basic_lite.console import speaker
from basic_lite.errors import UserError
from basic_lite.sizes import size_text
from basic_lite.tools.runs import folders_of, is_running, runs_in, size_and_time
from basic_lite.training.bundle_files import open_bundle, require_checkpoint
from basic_lite.training.files import remove
from basic_lite.training.lock import InUse, is_held, locked
from basic_lite.training.own_files import foreign_in, not_the_runs_own
from basic_lite.training.places import (
    BEST,
    FINAL,
    HELD,
    LOCK,
    OLD,
    UNFINISHED,
    checkpoints_of,
    has_best,
    is_finished,
    is_run,
    remains_of,
    set_aside_in,
)
from basic_lite.whole_file import PART

FINISHED, EARLIER, SET_ASIDE = "of a finished run", "an earlier step", "set aside when its steps were made again"
BEST_STEP = "the best step of a finished run"
# What can't be done any more once such a bundle is gone.
LOST = {
    FINISHED: "finished runs can't go on from an earlier step (--resume --checkpoint STEP)",
    EARLIER: "stopped runs go on from their newest checkpoint only",
    SET_ASIDE: "steps that were made again are there in their new form only",
    BEST_STEP: "of these runs only the last step is left, and RUN/best is gone for chat, eval and export",
}
# An export that is under way writes into a folder of that name now and then, and locks it where the disk has locks.
AT_REST_S = 3600.0


@dataclass(frozen=True)
class Plan:
    """What can go, by path with the reason, and what stays although one might expect otherwise."""

    items: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def clean(
    places: Sequence[Path],
    *,
    yes: bool = False,
    best: bool = False,
    ask: Callable[[], bool] | None = None,
    console: Console | None = None,
) -> int:
    """Show what the runs in some folders don't need, ask, and delete it.

    Args:
        places: run folders, or folders that hold some.
        yes: don't ask.
        best: also the best steps that finished runs have kept.
        ask: asks the user; None: nobody is there to be asked.

    Returns:
        Bytes freed.

    Raises:
        UserError: a folder is missing; nobody can be asked and ``yes`` isn't given; a file can't be deleted.
    """
    say = speaker(console or Console(highlight=False))
    by_place = {place: runs_in(place, links=False) for place in places}
    runs = list(dict.fromkeys(run for found in by_place.values() for run in found))
    plans = {run: plan_of(run, best=best) for run in runs}
    loose = list(dict.fromkeys(path for place in places for path in _loose_in(place)))
    notes = [_no_run(place) for place, found in by_place.items() if not found]
    for note in [*notes, *(note for plan in plans.values() for note in plan.notes)]:
        say(f"note: {note}")
    items = {path: why for plan in plans.values() for path, why in plan.items.items()}
    items |= dict.fromkeys(loose, "left by a command that was killed")
    if not items:
        say("nothing to free")
        return 0
    sizes = {path: size_and_time(path)[0] for path in items}
    for path, why in items.items():
        say(f"{size_text(sizes[path]):>10}  {path}  ({why})")
    say(f"{size_text(sum(sizes.values())):>10}  in all")
    if lost := [what for why, what in LOST.items() if why in items.values()]:
        say(f"Lost with it: {'; '.join(lost)}. eval, chat, export and model.start work as before.")
    if not yes and ask is None:
        raise UserError("clean asks before it deletes, and here is no terminal to ask on; add --yes")
    if not yes and ask is not None and not ask():
        say("nothing was deleted")
        return 0
    gone = [path for run, plan in plans.items() for path in _delete_in(run, plan.items, best=best)]
    for path in loose:
        _delete(path)
    freed = sum(sizes[path] for path in [*gone, *loose])
    say(f"freed {size_text(freed)}")
    return freed


def plan_of(run: Path, *, best: bool = False) -> Plan:
    """What a run doesn't need. Links are never followed, so what lies behind one stays."""
    if is_running(run):
        return Plan(notes=[f"{run}: a process trains there now; it is left alone"])
    return _plan(run, best=best)


def _plan(run: Path, *, best: bool) -> Plan:
    checkpoints, finished = checkpoints_of(run), is_finished(run)
    cut_off = {path: "never completed" for path in remains_of(run) if path.suffix in (PART, OLD)}
    if not finished and not checkpoints and has_best(run):
        return Plan(_own(cut_off), [f"{run} stopped before its first checkpoint; its best step stays"])
    if not finished and not checkpoints:
        others = {path for path in run.iterdir() if path.name != LOCK} - set(remains_of(run))
        names = sorted({path.relative_to(run).as_posix() for path in [*others, *not_the_runs_own(run)]})
        if not names:
            return Plan({run: "a start that saved nothing"})
        note = f"{run} saved nothing, and stays since it has what the run didn't write or what was changed: "
        return Plan(_own(cut_off), [f"{note}{', '.join(names)}; move them to free it"])
    kept = run / FINAL if finished else checkpoints[-1]
    items = dict.fromkeys(checkpoints, FINISHED) if finished else {}
    items |= dict.fromkeys(checkpoints[:-1] if not finished else [], EARLIER)
    items |= dict.fromkeys(set_aside_in(run), SET_ASIDE)
    if best and finished and has_best(run):
        items[run / BEST] = BEST_STEP
    if items and (damage := _damage(kept, finished)):
        return Plan(_own(cut_off), [f"{run}: its other bundles stay, since {damage}"])
    peoples = {path: names for path in items if (names := [one.name for one in foreign_in(path)])}
    notes = [
        f"{path} stays, since it has files that the run didn't write or that were changed: {', '.join(names)}; move "
        "them to free it"
        for path, names in peoples.items()
    ]
    return Plan(_own({path: why for path, why in items.items() if path not in peoples} | cut_off), notes)


def _no_run(place: Path) -> str:
    """What to say of a place that holds no run."""
    above = next((one for one in place.absolute().parents if is_run(one)), None)
    return f"{place} holds no runs" + (f"; it is in one: give {above}" if above is not None else "")


def _own(items: dict[Path, str]) -> dict[Path, str]:
    return {path: why for path, why in items.items() if not path.is_symlink()}


def _damage(kept: Path, finished: bool) -> str | None:
    """Why the one bundle that stays isn't whole; None: it is."""
    try:
        bundle = open_bundle(kept)
        if not finished:
            require_checkpoint(bundle)
    except UserError as error:
        return str(error)
    return None


def _loose_in(place: Path) -> Iterator[Path]:
    """Folders in which an export was killed before it was whole: in a folder, its folders and its runs."""
    for folder, _ in folders_of(place, links=False):
        for path in sorted(folder.glob(f"{UNFINISHED}*")):
            at_rest = time.time() - size_and_time(path)[1] > AT_REST_S
            if path.is_dir() and not path.is_symlink() and at_rest and not is_held(path / HELD):
                yield path


def _delete_in(run: Path, shown: dict[Path, str], *, best: bool) -> list[Path]:
    """Delete what was shown and still isn't needed, while no training can begin there."""
    if not shown:
        return []
    try:
        with locked(run):
            gone = [path for path in _plan(run, best=best).items if path in shown]
            for path in gone:
                for one in remains_of(run) if path == run else [path]:
                    _delete(one)
    except InUse:  # a training has begun since
        return []
    if run in gone:
        with suppress(OSError):  # a training has begun since
            run.rmdir()
    return gone


def _delete(path: Path) -> None:
    try:
        remove(path)
    except OSError as error:
        raise UserError(
            f"{path} can't be deleted ({error.strerror or error}); see who owns it, and try again"
        ) from error
