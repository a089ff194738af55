"""Which of some records a run was trained on: its pictures are known again by what is in their files.

Nothing is kept for it while a run trains. Sizes are compared first, and only files of equal size are read. A picture
that was copied to another folder or name is found; one that was saved anew isn't.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from basic_lite.data.images import ImageRef, locate
from basic_lite.data.problems import BadImage
from basic_lite.data.records import Record
from basic_lite.errors import UserError
from basic_lite.tools.run_data import trained_records
from basic_lite.training.bundle_files import Bundle, look_at_bundle

# Records that are looked at between two steps of a bar.
_EVERY = 1_000
# A record without a picture is known by it.
_Text = tuple[object, ...]
# A bar for so many records; it takes how many more are done.
Bar = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class TrainedOn:
    """What a run was trained on, of some records.

    Attributes:
        marks: of each, whether the run was trained on one of its pictures (without pictures: on its text); None: that
            can't be told.
        notes: what the user should know of it.
    """

    marks: list[bool | None]
    notes: list[str]


class _File:
    """A picture's bytes; they are read when their hash is wanted for the first time.

    Raises:
        BadImage, OSError: there is no such file.
    """

    def __init__(self, image: ImageRef) -> None:
        self._bytes: memoryview | None = None
        self.path = ""
        self.same: object = None  # equal for two paths of one file
        if image.blob is not None:
            self._bytes = memoryview(image.blob.as_buffer() if hasattr(image.blob, "as_buffer") else image.blob)
            self.size = self._bytes.nbytes
            return
        self.path = os.path.realpath(locate(image))
        found = os.stat(self.path)
        self.size, self.same = found.st_size, (found.st_dev, found.st_ino) if found.st_ino else self.path

    @cached_property
    def digest(self) -> bytes:
        """Of all bytes.

        Raises:
            OSError: the file can't be read any more.
        """
        if self._bytes is not None:
            return hashlib.blake2b(self._bytes).digest()
        with open(self.path, "rb") as stream:
            return hashlib.file_digest(stream, "blake2b").digest()

    def equals(self, other: "_File") -> bool:
        """Whether both have the same bytes; their sizes are known to be equal."""
        return (self.same is not None and self.same == other.same) or self.digest == other.digest


@dataclass
class _Search:
    """The pictures and texts that are asked about, and which of them were met in training data.

    Attributes:
        waiting: pictures that weren't met yet, by size.
        texts: those of records without pictures that weren't met yet.
        met: pictures and texts that were.
        looked, gone: training pictures looked at, and those that aren't there any more.
    """

    waiting: dict[int, list[_File]] = field(default_factory=dict)
    texts: set[_Text] = field(default_factory=set)
    met: set[object] = field(default_factory=set)
    looked: int = 0
    gone: int = 0

    def ask(self, records: Sequence[Record]) -> list[list[object]]:
        """Take in records. Gives the pictures of each, or its text."""
        files: dict[object, _File] = {}
        keys: list[list[object]] = []
        for record in records:
            found = [_File(image) for image in record.images if not image.encoded_here]
            one_each = [files.setdefault(one.same or one.digest, one) for one in found]
            keys.append([*one_each] if record.images else [_text(record)])
            self.texts.update([] if record.images else [_text(record)])
        for one in files.values():
            self.waiting.setdefault(one.size, []).append(one)
        return keys

    def go_through(self, trained: Iterable[Record], count: Callable[[int], None]) -> None:
        """Look at records that were trained on, until nothing is left to look for."""
        for done, record in enumerate(trained, 1):
            if not self.waiting and not self.texts:
                return
            self._look_at(record)
            if done % _EVERY == 0:
                count(_EVERY)

    def _look_at(self, record: Record) -> None:
        if not record.images and (text := _text(record)) in self.texts:
            self.texts.discard(text)
            self.met.add(text)
        for image in record.images:
            self.looked += 1
            try:
                self._meet(_File(image))
            except (BadImage, OSError):
                self.gone += 1

    def _meet(self, trained: _File) -> None:
        group = self.waiting.get(trained.size, [])
        for asked in [one for one in group if trained.equals(one)]:
            self.met.add(asked)
            group.remove(asked)
        if not group:
            self.waiting.pop(trained.size, None)


def _text(record: Record) -> _Text:
    return (record.turns, record.answer)


def trained_on(bundle: Bundle, records: Sequence[Record], bar: Bar) -> TrainedOn:
    """Find out which records a run was trained on, also by the runs that it started from.

    Extrapolated from 20,000 on one core, files in the system's memory: 665,000 training records with a picture each
    take 26 s, 11 of them to read the records; 10,000 pictures of 200 kB whose size agrees are hashed in 2.4 s.
    """
    search, known = _Search(), False
    notes: list[str] = []
    keys = search.ask(records)
    for run in _and_earlier(bundle, notes):
        found = trained_records(run)
        if found is None:
            notes.append(
                f"note: what {run.folder.parent} was trained on can't be told any more: its data.json and data.train "
                "of its recipe don't belong together, or can't be read"
            )
            continue
        notes += found.notes
        known = True
        with bar(found.total) as count:
            search.go_through(found, count)
    if search.gone:
        notes.append(
            f"note: {search.gone:,} of {search.looked:,} training pictures aren't where they were, so copies of them "
            "can't be known again"
        )
    otherwise = False if known and (search.gone < search.looked or not search.looked) else None
    marks = []
    for record, of_one in zip(records, keys, strict=True):
        untold = otherwise is None or any(image.encoded_here for image in record.images)
        marks.append(True if any(key in search.met for key in of_one) else None if untold else False)
    return TrainedOn(marks, [*_told(search, keys, otherwise), *notes])


def _told(search: _Search, keys: list[list[object]], otherwise: bool | None) -> Iterator[str]:
    """How many of the pictures were trained on, and how many of the texts without one."""
    asked = {key for of_one in keys for key in of_one}
    for kind, name in ((_File, "pictures"), (tuple, "records without a picture")):
        total, met = (sum(isinstance(key, kind) for key in some) for some in (asked, asked & search.met))
        if met:
            yield f"note: {met:,} of these {total:,} {name} were trained on"
        elif total and otherwise is False:
            again = " (a picture that was resized or saved anew isn't recognised)" if kind is _File else ""
            yield f"none of these {total:,} {name} was trained on{again}"


def _and_earlier(bundle: Bundle, notes: list[str]) -> Iterator[Bundle]:
    """A run, the one that it started from, and so on."""
    seen: set[Path] = set()
    while bundle.folder not in seen:
        seen.add(bundle.folder)
        yield bundle
        started = bundle.manifest.get("started_from")
        if not started:
            return
        try:
            bundle = look_at_bundle(Path(started["bundle"]))
        except (UserError, OSError):
            notes.append(
                f"note: {started['bundle']}, which this run started from, can't be read any more; what it was trained "
                "on counts as new here"
            )
            return
