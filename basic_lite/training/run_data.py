"""A run's own data, read again after it: what it kept for evaluation, and what it was trained on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from basic_lite.data.names import EVAL
from basic_lite.data.problems import RecordProblem
from basic_lite.data.records import Record, Records
from basic_lite.data.sources import load_records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from basic_lite.training.bundle_files import Bundle
from basic_lite.training.data_json import broken_at_start, held_out_of, held_out_pictures_of, train_records_of


def held_out_records(bundle: Bundle) -> list[Record]:
    """The records that a run kept for evaluation, in their order.

    Raises:
        UserError: it kept none, or they can't be told or read any more.
    """
    section, run = bundle.recipe.data, bundle.folder.parent
    if section.eval is not None:
        records = _still_there(section.eval)
        broken = set((broken_at_start(run) or {}).get(EVAL, []))
        chosen: Iterable[int] = [index for index in range(len(records)) if index not in broken]
    elif section.held_out is None:
        raise UserError(
            f"--held-out: {run} kept no data for evaluation (its recipe has neither data.eval nor data.held_out); "
            "name a file of questions with --data"
        )
    else:
        records = _still_there(section.train)
        found = held_out_in(records, run)
        if found is None:
            raise UserError(
                f"--held-out: which records of data.train were held out can't be told any more: {run / 'data.json'} "
                "and the data don't belong together. Restore them, or name a file of questions with --data"
            )
        chosen = found
    return list(_readable(records, chosen, drop=section.bad_records == "drop"))


def _still_there(source: SourceSection | list[SourceSection]) -> Records:
    """A run's data, where it was when the run was trained."""
    try:
        return load_records(source, root=Path.cwd())
    except UserError as error:
        raise UserError(
            f"--held-out: the run's data can't be read any more ({error}). If it was moved, put it back, or name the "
            "file where it is now with --data FILE"
        ) from error


def held_out_in(records: Records, run: Path) -> Sequence[int] | None:
    """Where in data.train the records are now that ``data.held_out`` kept; None: that can't be told."""
    numbers = held_out_of(run)
    if numbers is None or _is_as_then(records, numbers, run):
        return numbers
    held = _names_held_out(run)
    if held is None or not all(held_out_pictures_of(run) or []):
        return None
    # In another order, or with more records. Whole pictures are held out, so their names tell.
    each = ((index, one) for index in range(len(records)) for one in _readable(records, [index], drop=True))
    found = [index for index, one in each if _shows_only(one, held)]
    return found if len(found) == len(numbers) else None


def _shows_only(record: Record, names: frozenset[str]) -> bool:
    """Whether a record has pictures of these names, and no others."""
    own = {image.name for image in record.images}
    return bool(own) and own <= names


def _names_held_out(run: Path) -> frozenset[str] | None:
    names = held_out_pictures_of(run)
    return None if names is None else frozenset(name for of_record in names for name in of_record)


def _is_as_then(records: Records, held_out: Sequence[int], run: Path) -> bool:
    """Whether data.train has as many records as then, and the held-out ones the same pictures, as far as is known."""
    if train_records_of(run) != len(records):
        return False
    try:
        now = [[image.name for image in records[number].images] for number in held_out]
    except (RecordProblem, IndexError):
        return False
    names = held_out_pictures_of(run)
    return names is None or names == now


@dataclass(frozen=True)
class TrainedRecords:
    """The records that a run was trained on, as its data is now; iterating gives those that can be read.

    Attributes:
        chosen: their positions in ``records``.
        held_out: names of pictures; a record that has only such was kept for evaluation.
    """

    records: Records
    chosen: Sequence[int]
    held_out: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """How many there are at most."""
        return len(self.chosen)

    def __iter__(self) -> Iterator[Record]:
        found = _readable(self.records, self.chosen, drop=True)
        return (record for record in found if not _shows_only(record, self.held_out))


def trained_records(bundle: Bundle) -> TrainedRecords | None:
    """What a run was trained on that wrote no record of it; None: that can't be told any more."""
    section, run = bundle.recipe.data, bundle.folder.parent
    try:
        records = load_records(section.train, root=Path.cwd())
    except UserError:
        return None
    count, numbers = train_records_of(run), held_out_of(run)
    if count != len(records):
        return None
    if section.held_out is None:
        return TrainedRecords(records, range(len(records)))
    if numbers is None:
        return None
    if _is_as_then(records, numbers, run):
        return TrainedRecords(records, sorted(set(range(len(records))) - set(numbers)))
    held = _names_held_out(run)
    return None if held is None else TrainedRecords(records, range(len(records)), held)


def _readable(records: Records, chosen: Iterable[int], *, drop: bool) -> Iterator[Record]:
    for index in chosen:
        try:
            yield records[index]
        except RecordProblem:
            if not drop:
                raise
