"""Read and tokenise all records before step 0, and report all problems at once."""

import hashlib
import multiprocessing
import os
import signal
import sys
import warnings
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from basic_lite.data.chat import IGNORE, Encoder
from basic_lite.data.images import check_image
from basic_lite.data.problems import RecordProblem, TooLong
from basic_lite.data.records import Records
from basic_lite.errors import UserError
from basic_lite.recipe.schema import DataSection

Progress = Callable[[int, int], None]

# Problems listed in a refusal; the rest is counted.
_SHOWN = 20
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
    """

    total: int
    kept: np.ndarray
    lengths: np.ndarray
    supervised: np.ndarray
    n_images: np.ndarray
    cut: np.ndarray
    fingerprint: str = ""
    problems: list[RecordProblem] = field(default_factory=list)

    @property
    def has_image(self) -> np.ndarray:
        """Whether each kept record has an image [n], for the sampler."""
        return self.n_images > 0

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
            lines.append(f"{cut:,} records had text cut from their end to fit ({int(self.cut.sum()):,} tokens)")
        if self.problems:
            lines.append(f"{len(self.problems):,} records dropped:")
            lines += _listing(self.problems)
        return lines


def check_data(
    records: Records,
    chat: Encoder,
    section: DataSection,
    *,
    processes: int | None = None,
    progress: Progress | None = None,
) -> DataReport:
    """Read, tokenise and look at the images of all records, as `data` says.

    Args:
        processes: Worker processes. None: as many as cores for large data on Linux, else this process alone.
        progress: Called now and then with (records done, records in all).

    Raises:
        UserError: a record can't be used and `data.bad_records` (for length, `data.too_long`) is refuse, or no record
            is left. Lists up to 20 problems and counts all.
    """
    total = len(records)
    columns = np.zeros((4, total), dtype=np.int32)
    problems: list[RecordProblem] = []
    job = partial(_check_range, records, chat, section)
    ranges = [range(start, min(start + _CHUNK_RECORDS, total)) for start in range(0, total, _CHUNK_RECORDS)]
    digest = hashlib.sha256()
    for done, (values, found, part) in zip(ranges, _results(job, ranges, total, processes), strict=True):
        columns[:, done.start : done.stop] = values
        problems += found
        digest.update(part)
        if progress is not None:
            progress(done.stop, total)
    refused = [one for one in problems if _policy(one, section) == "refuse"]
    if refused:
        raise UserError(_refusal(refused, total))
    kept = np.flatnonzero(columns[0])  # whatever can be used has tokens
    if not len(kept):
        listing = "\n".join(_listing(problems))
        raise UserError(f"none of the {total:,} records can be used:\n{listing}\nCorrect the data source.")
    lengths, supervised, n_images, cut = columns[:, kept]
    return DataReport(total, kept, lengths, supervised, n_images, cut, digest.hexdigest(), problems)


def _policy(problem: RecordProblem, section: DataSection) -> str:
    return section.too_long if problem.kind == TooLong.kind else section.bad_records


def _listing(problems: list[RecordProblem]) -> list[str]:
    lines = [f"  {problem}" for problem in problems[:_SHOWN]]
    return lines + ([f"  … and {len(problems) - _SHOWN:,} more"] if len(problems) > _SHOWN else [])


def _refusal(problems: list[RecordProblem], total: int) -> str:
    kinds = sorted({problem.kind for problem in problems})
    counts = ", ".join(f"{sum(one.kind == kind for one in problems):,} {kind}" for kind in kinds)
    keys = sorted({"data.too_long" if kind == TooLong.kind else "data.bad_records" for kind in kinds})
    s = "s" * (total != 1)
    return "\n".join(
        [
            f"{len(problems):,} of {total:,} record{s} can't be used ({counts}):",
            *_listing(problems),
            f"Fix them, or leave them out with {' and '.join(f'{key}: drop' for key in keys)}.",
        ]
    )


# Results of a range of records: length, supervised tokens, images, cut tokens [4, n]; problems; a hash of samples.
Checked = tuple[np.ndarray, list[RecordProblem], bytes]


def _check_range(records: Records, chat: Encoder, section: DataSection, indices: range) -> Checked:
    values = np.zeros((4, len(indices)), dtype=np.int32)
    problems: list[RecordProblem] = []
    digest = hashlib.sha256()
    for column, index in enumerate(indices):
        place = records.place(index)
        try:
            record = records[index]
            place = record.place
            encoded = chat.encode(record, section.max_length)
            for image in record.images:
                check_image(image, section.check_images)
        except RecordProblem as problem:
            problems.append(problem.at(place))
            continue
        supervised = len(encoded.labels) - encoded.labels.count(IGNORE)
        values[:, column] = len(encoded.input_ids), supervised, encoded.n_images, encoded.cut
        digest.update(array("q", [*encoded.input_ids, *encoded.labels]).tobytes())
        digest.update("\0".join(image.name for image in record.images).encode("utf-8", "surrogatepass"))
    return values, problems, digest.digest()


# A worker process's job. It comes there by fork: neither the records nor the tokenizer are pickled.
_job: Callable[[range], Checked]


def _start_worker(job: Callable[[range], Checked]) -> None:
    global _job
    _job = job
    # Ctrl-C goes to every process; the main one stops these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A fork inherits no threads, and records are tokenised one at a time.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _run(indices: range) -> Checked:
    return _job(indices)


def _results(
    job: Callable[[range], Checked], ranges: list[range], total: int, processes: int | None
) -> Iterator[Checked]:
    """The job's result for each range, in order."""
    if processes is None:
        processes = (os.cpu_count() or 1) if total >= _WORTH_PROCESSES else 1
    # Elsewhere than on Linux processes start empty: that costs more than it saves, and needs a guarded main.
    if processes < 2 or sys.platform != "linux":
        yield from map(job, ranges)
        return
    with warnings.catch_warnings():
        # Python 3.12 warns of fork beside threads; the workers only tokenise, one record at a time.
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(processes, _start_worker, (job,)) as pool:
            yield from pool.imap(_run, ranges)
