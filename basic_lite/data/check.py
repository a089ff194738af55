"""Read and tokenise all records before step 0, and report all problems at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import sys
import warnings
from array import array
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basic_lite.console import Count, Say
from basic_lite.data.chat import Encoder
from basic_lite.data.images import check_image, picture_key
from basic_lite.data.opened import OpenedBefore, Unopened, open_all
from basic_lite.data.problems import BadImage, RecordProblem, TooLong
from basic_lite.data.records import Record, Records
from basic_lite.data.tokens import IGNORE
from basic_lite.errors import UserError
from basic_lite.recipe.schema import DataSection, ImageCheck
from basic_lite.sizes import number_of
from basic_lite.whole_file import write_whole

# Problems listed in a refusal; the rest is counted.
_SHOWN = 20
# Pictures with the same fault that are listed one by one: more of them have one cause, such as a wrong folder.
_ALONE = 5
# What differs between problems that are alike: names in quotes, those of texts, and numbers.
_NAMES = re.compile(r"'[^']*'|\"[^\"]*\"|\b[^/\"']*?\.txt|\d[\d,]*")
_CHUNK_RECORDS = 500
# Below this, starting processes takes longer than it saves.
_WORTH_PROCESSES = 20_000


@dataclass(frozen=True)
class DataReport:
    """What the audit found. Arrays are of the kept records, in the order of ``kept``.

    Attributes:
        total: Records there are.
        kept: Indices into `Records` of those that are used [n].
        lengths: Tokens of each, image tokens included, after cutting [n].
        supervised: Supervised tokens of each [n].
        n_images: Images of each [n].
        cut: Text tokens cut off each to fit `data.max_length` [n].
        fingerprint: A hash of what is trained on: every kept record's tokens, labels and image names, in order.
        problems: Of the records that were dropped.
        broken: Indices of those that were dropped for a picture.
        pictures: Of each, numbers that stand for its pictures; None: not asked for.
    """

    total: int
    kept: np.ndarray
    lengths: np.ndarray
    supervised: np.ndarray
    n_images: np.ndarray
    cut: np.ndarray
    fingerprint: str = ""
    problems: list[RecordProblem] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    pictures: list[tuple[int, ...]] | None = None

    @property
    def has_image(self) -> np.ndarray:
        """Whether each kept record has an image [n], for the sampler."""
        return self.n_images > 0

    def only(self, chosen: np.ndarray) -> DataReport:
        """The report of a part of the kept records; ``chosen`` [n] bool."""
        columns = {name: getattr(self, name)[chosen] for name in ("kept", "lengths", "supervised", "n_images", "cut")}
        pictures = None if self.pictures is None else [self.pictures[place] for place in np.flatnonzero(chosen)]
        return replace(self, **columns, pictures=pictures)

    def summary(self) -> list[str]:
        """Lines for the log: what is used, what was dropped and why."""
        n = len(self.kept)
        lines = [
            f"{n:,} of {self.total:,} records used: {int(self.has_image.sum()):,} with images "
            f"({int(self.n_images.sum()):,}), {int((~self.has_image).sum()):,} text only",
            f"{int(self.lengths.sum()):,} tokens, {int(self.supervised.sum()):,} of them supervised; "
            f"longest {int(self.lengths.max(initial=0)):,}, mean {self.lengths.mean() if n else 0:,.0f}",
        ]
        if cut := int((self.cut > 0).sum()):
            records, tokens = number_of(cut, "record"), number_of(int(self.cut.sum()), "token")
            lines.append(f"{records} had text cut off at the end to fit into data.max_length ({tokens})")
        if self.problems:
            lines.append(f"{number_of(len(self.problems), 'record')} dropped:")
            lines += listing(self.problems)
        return lines


def check_data(
    records: Records,
    chat: Encoder,
    section: DataSection,
    *,
    processes: int | None = None,
    progress: Count | None = None,
    say: Say = lambda text: None,
    cache: Path | None = None,
    broken: Collection[int] | None = None,
    pictures: bool = False,
    whole_list: Path | None = None,
) -> DataReport:
    """Read, tokenise and look at the images of all records, as `data` says.

    Args:
        processes: Worker processes. None: as many as cores for large data on Linux, else this process alone.
        cache: Where it is remembered which pictures are whole. None: nowhere.
        broken: Records that this run has dropped for a picture when it started. Pictures aren't looked at then, so that
            the run continues with the same samples. None: it starts now.
        pictures: Also tell which records share a picture.
        whole_list: Text file for the problems of a refusal that are too many to show. None: there is none.

    Raises:
        UserError: a record can't be used and `data.bad_records` (for length, `data.too_long`) is refuse, or no record
            is left. Lists up to 20 problems and counts all.
    """
    before = OpenedBefore(cache)
    look = _Look(section.check_images, before.known, pictures)
    if broken is not None:
        look = replace(look, how="none", broken=frozenset(broken))
    elif look.how == "open":
        before.load({source.image_dir for source in records.sources} | {""})
        look = replace(look, known=before.known)
    total = len(records)
    ranges = [range(start, min(start + _CHUNK_RECORDS, total)) for start in range(0, total, _CHUNK_RECORDS)]
    job = partial(_check_range, records, chat, section.max_length)
    parts = []
    for done, part in zip(ranges, _results(partial(job, look), ranges, processes), strict=True):
        parts.append(part)
        if progress is not None:
            progress("records", done.stop, total)

    late = _open_rest(records, parts, before, say, progress)
    hashes = [part.hash for part in parts]
    problems = dict(sorted([*late.items(), *(found for part in parts for found in part.problems)]))
    dropped_for_picture = [index for index, one in problems.items() if isinstance(one, BadImage)]
    # The hash is of kept records: ranges that lose some now are hashed again, without those.
    again = [number for number, one in enumerate(ranges) if any(index in late for index in one)]
    job = partial(job, _Look("none", frozenset(), False, frozenset(dropped_for_picture)))
    for number, part in zip(again, _results(job, [ranges[n] for n in again], processes), strict=True):
        hashes[number] = part.hash

    columns = np.concatenate([part.values for part in parts], axis=1)
    columns[:, list(late)] = 0
    _require_usable(list(problems.values()), columns, section, whole_list)
    kept = np.flatnonzero(columns[0])  # whatever can be used has tokens
    lengths, supervised, n_images, cut = columns[:, kept]
    digest = hashlib.sha256(b"".join(hashes)).hexdigest()
    shared = [keys for part in parts for keys in part.pictures]
    return DataReport(
        total, kept, lengths, supervised, n_images, cut, digest, list(problems.values()), dropped_for_picture,
        [shared[index] for index in kept] if pictures else None,
    )  # fmt: skip


def _open_rest(
    records: Records, parts: list[Checked], before: OpenedBefore, say: Say, progress: Count | None
) -> dict[int, RecordProblem]:
    """Open the pictures that aren't known to be whole. Gives the problem of each record that has a broken one."""
    unopened = [one for part in parts for one in part.unopened]
    broken = open_all(records, unopened, before, say, progress and partial(progress, "pictures"))
    late: dict[int, RecordProblem] = {}
    for one in unopened:
        if one.key in broken:
            late.setdefault(one.record, broken[one.key].at(records[one.record].place))
    return late


def _require_usable(
    problems: list[RecordProblem], columns: np.ndarray, section: DataSection, whole_list: Path | None
) -> None:
    total = columns.shape[1]
    refused = [one for one in problems if policy(one, section) == "refuse"]
    if refused:
        where = ""
        if len(refused) > _SHOWN and whole_list is not None:
            try:
                whole_list.parent.mkdir(parents=True, exist_ok=True)
                write_whole(whole_list, "".join(f"{one}\n" for one in refused))
                where = f" The whole list is in {whole_list}."
            except OSError as error:
                where = f" The whole list can't be written to {whole_list} ({error.strerror or error})."
        raise UserError(_refusal(refused, total) + where)
    if whole_list is not None:
        with suppress(OSError):  # a dry run may be where nothing can be written
            whole_list.unlink(missing_ok=True)  # an earlier start's
    if not columns[0].any():
        named = "\n".join(listing(problems))
        none = "the one record can't be used" if total == 1 else f"none of the {total:,} records can be used"
        raise UserError(f"{none}:\n{named}\nCorrect the data source.")


def policy(problem: RecordProblem, section: DataSection) -> str:
    """What the recipe says of a record with this problem: refuse or drop."""
    return section.too_long if problem.kind == TooLong.kind else section.bad_records


def key_of(problem: RecordProblem) -> str:
    """The key that says it."""
    return "data.too_long" if problem.kind == TooLong.kind else "data.bad_records"


def listing(problems: list[RecordProblem], shown: int = _SHOWN) -> list[str]:
    """Lines that name problems. Those alike but for names and numbers share two; a few pictures have own ones."""
    groups: dict[str, list[RecordProblem]] = {}
    for one in problems:
        groups.setdefault(f"{one.kind}: {_NAMES.sub('…', one.what)}", []).append(one)
    told: list[list[RecordProblem]] = []
    for group in groups.values():
        alone = isinstance(group[0], BadImage) and len(group) <= _ALONE
        told += [[one] for one in group] if alone else [group]
    lines = []
    for first, *more in told[:shown]:
        lines.append(f"  {first}")
        if more:
            places = ", ".join(one.place for one in more[:2]) + ", …" * (len(more) > 2)
            lines.append(f"    and {len(more):,} more like it: {places}")
    rest = sum(map(len, told[shown:]))
    return lines + ([f"  … and {rest:,} more"] if rest else [])


def _refusal(problems: list[RecordProblem], total: int) -> str:
    kinds = sorted({problem.kind for problem in problems})
    counts = ", ".join(f"{kind}: {sum(one.kind == kind for one in problems):,}" for kind in kinds)
    keys = sorted({key_of(problem) for problem in problems})
    return "\n".join(
        [
            f"{len(problems):,} of {number_of(total, 'record')} can't be used ({counts}):",
            *listing(problems),
            f"Fix them, or leave them out with {' and '.join(f'{key}=drop' for key in keys)}.",
        ]
    )


@dataclass(frozen=True)
class _Look:
    """How pictures are looked at.

    Attributes:
        how: as `data.check_images`.
        known: keys of pictures that need not be opened.
        identify: whether to tell which pictures a record has.
        broken: indices of records that are dropped without a look.
    """

    how: ImageCheck
    known: frozenset[int]
    identify: bool
    broken: frozenset[int] = frozenset()


class Checked(NamedTuple):
    """What a range of records gives.

    Attributes:
        values: Length, supervised tokens, images, cut tokens [4, n].
        problems: Each with its record's index.
        hash: Of the records that can be used.
        unopened: Their pictures that are still to be opened.
        pictures: Of each record, numbers that stand for its pictures.
    """

    values: np.ndarray
    problems: list[tuple[int, RecordProblem]]
    hash: bytes
    unopened: list[Unopened]
    pictures: list[tuple[int, ...]]


def _check_range(records: Records, chat: Encoder, max_length: int, look: _Look, indices: range) -> Checked:
    out = Checked(np.zeros((4, len(indices)), dtype=np.int32), [], b"", [], [])
    digest = hashlib.sha256()
    for column, index in enumerate(indices):
        out.pictures.append(())
        place = records.place(index)
        try:
            record = records[index]
            place = record.place
            encoded = chat.encode(record, max_length)
            unopened = _look_at(record, index, look)
            if look.identify:
                out.pictures[-1] = tuple(picture_key(image, as_it_is=False) for image in record.images)
        except RecordProblem as problem:
            out.problems.append((index, _alone(problem.at(place))))
            continue
        out.unopened.extend(unopened)
        supervised = len(encoded.labels) - encoded.labels.count(IGNORE)
        out.values[:, column] = len(encoded.input_ids), supervised, encoded.n_images, encoded.cut
        digest.update(array("q", [*encoded.input_ids, *encoded.labels]).tobytes())
        digest.update("\0".join(image.name for image in record.images).encode("utf-8", "surrogatepass"))
    return out._replace(hash=digest.digest())


def _alone(problem: RecordProblem) -> RecordProblem:
    """A problem without the frames it was raised in: of each record they are kept, and take kilobytes."""
    problem.__traceback__ = problem.__cause__ = problem.__context__ = None
    return problem


def _look_at(record: Record, index: int, look: _Look) -> list[Unopened]:
    """The pictures of a record that are still to be opened.

    Raises:
        BadImage: one is missing or outside its folder, or the record was dropped before.
    """
    if index in look.broken:
        raise BadImage("its picture was missing or broken when the run started, and the run continues without it")
    if look.how != "open":
        for image in record.images:
            check_image(image, look.how)
        return []
    keys = [picture_key(image) for image in record.images]
    return [
        Unopened(key, index, place, image if image.blob is None else None, image.folder)
        for place, (key, image) in enumerate(zip(keys, record.images, strict=True))
        if key not in look.known
    ]


# A worker process's job. It comes there by fork: neither the records nor the tokenizer are pickled.
_job: Callable[[range], Checked]


def _start_worker(job: Callable[[range], Checked]) -> None:
    global _job
    _job = job
    # Ctrl-C goes to every process; the main one stops these, by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A fork inherits no threads, and records are tokenised one at a time.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run(indices: range) -> Checked:
    return _job(indices)


def _results(job: Callable[[range], Checked], ranges: list[range], processes: int | None) -> Iterator[Checked]:
    """The job's result for each range, in order."""
    if processes is None:
        processes = (os.cpu_count() or 1) if sum(map(len, ranges)) >= _WORTH_PROCESSES else 1
    # Elsewhere than on Linux processes start empty: that costs more than it saves, and needs a guarded main.
    if processes < 2 or not ranges or sys.platform != "linux":
        yield from map(job, ranges)
        return
    with warnings.catch_warnings():
        # Python 3.12 warns of fork beside threads; the workers only tokenise, one record at a time.
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(processes, _start_worker, (job,)) as pool:
            yield from pool.imap(_run, ranges)
