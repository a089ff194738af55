"""A run's own data, read again after it: what it kept for evaluation, and which pictures it was trained on."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from basic_lite.data.images import ImageRef, locate
from basic_lite.data.prepare import EVAL
from basic_lite.data.problems import BadImage, RecordProblem
from basic_lite.data.records import Record, Records
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.training.bundle import Bundle
from basic_lite.training.data_json import broken_at_start, held_out_of, held_out_pictures_of, train_records_of


def held_out_records(bundle: Bundle) -> list[Record]:
    """The records that a run kept for evaluation, in their order.

    Raises:
        UserError: it kept none, or they can't be told or read any more.
    """
    section, run = bundle.recipe.data, bundle.folder.parent
    if section.eval is not None:
        records = load_records(section.eval, root=Path.cwd())
        broken = set((broken_at_start(run) or {}).get(EVAL, []))
        chosen: Iterable[int] = [index for index in range(len(records)) if index not in broken]
    elif section.held_out is None:
        raise UserError(
            f"--held-out: {run} kept no data for evaluation (its recipe has neither data.eval nor data.held_out); "
            "name a file of questions with --data"
        )
    else:
        records, numbers = load_records(section.train, root=Path.cwd()), held_out_of(run)
        if numbers is None or train_records_of(run) != len(records) or _others(records, numbers, run):
            raise UserError(
                f"--held-out: which records of data.train were held out can't be told any more: {run / 'data.json'} "
                "and the data don't belong together. Restore them, or name a file of questions with --data"
            )
        chosen = numbers
    return list(_readable(records, chosen, drop=section.bad_records == "drop"))


def _others(records: Records, numbers: Sequence[int], run: Path) -> bool:
    """Whether other pictures stand now where the held-out records were, as in a table that was sorted anew."""
    names = held_out_pictures_of(run)
    try:
        now = [[image.name for image in records[number].images] for number in numbers]
    except (RecordProblem, IndexError):
        return True
    return names is not None and names != now


def note_on_trained(bundle: Bundle, records: Sequence[Record]) -> str | None:
    """Say how many of some records' pictures the run was trained on; None: none, or it can't be known."""
    asked = set(_paths(image for record in records for image in record.images))
    section, held = bundle.recipe.data, held_out_of(bundle.folder.parent)
    if not asked or (section.held_out is not None and held is None):
        return None
    try:
        trained = load_records(section.train, root=Path.cwd())
        left = sorted(set(range(len(trained))) - set(held or []))
        names = {os.path.basename(path) for path in asked} | {
            os.path.basename(image.name) for record in records for image in record.images
        }
        # Most pictures of large data have other names, and need not be looked up.
        images = (image for record in _readable(trained, left, drop=True) for image in record.images)
        found = asked & set(_paths(image for image in images if os.path.basename(image.name) in names))
    except UserError:
        return None
    return f"note: {len(found):,} of these {len(asked):,} pictures were trained on" if found else None


def _readable(records: Records, chosen: Iterable[int], *, drop: bool) -> Iterator[Record]:
    for index in chosen:
        try:
            yield records[index]
        except RecordProblem:
            if not drop:
                raise


def _paths(images: Iterable[ImageRef]) -> Iterator[str]:
    """Where those pictures lie that are files."""
    for image in images:
        if image.blob is None:
            try:
                yield os.path.realpath(locate(image))
            except BadImage:
                continue
