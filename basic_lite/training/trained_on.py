"""What a run was trained on, by itself and by the runs that it goes on from: written down when it starts.

A run's folder has a digest of each picture of its training records, and those of the run that its weights came from. So
it is known later too, whatever has become of the files, the tables and that run. All of a run's training records count,
also where it ends before it has seen each of them.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from basic_lite.data.batches import SupervisedDataset
from basic_lite.data.digests import DIGEST_BYTES, picture_digest, text_digest
from basic_lite.data.images import ImageRef, locate
from basic_lite.data.problems import BadImage
from basic_lite.data.records import Record
from basic_lite.errors import UserError
from basic_lite.outside import parse_json
from basic_lite.recipe.rules import sources_in
from basic_lite.sizes import number_of
from basic_lite.training.bundle_files import Bundle, look_at_bundle
from basic_lite.training.files import give_usual_rights
from basic_lite.training.places import TRAINED_ON
from basic_lite.training.run_data import trained_records

# Records that are looked at between two steps of a bar.
_EVERY = 1_000
# Files that are read at once: on a disk that is slow to answer they wait together.
_THREADS = 8
_DIGESTS, _UNKNOWN = "digests", "unknown"
# A bar for so many records; it takes how many more are done.
Bar = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class TrainedOn:
    """What a run was trained on.

    Attributes:
        digests: of its pictures, and of its records without one.
        unknown: why there may be more that isn't known; nothing: this is all.
    """

    digests: frozenset[bytes] = frozenset()
    unknown: tuple[str, ...] = ()

    def __or__(self, other: "TrainedOn") -> "TrainedOn":
        return TrainedOn(self.digests | other.digests, self.unknown + other.unknown)

    def write(self, run: Path) -> None:
        """Write it into a run's folder, 16 bytes a picture."""
        rows = np.frombuffer(b"".join(sorted(self.digests)), np.uint8).reshape(-1, DIGEST_BYTES)
        save_file({_DIGESTS: rows}, run / TRAINED_ON, {_UNKNOWN: json.dumps(self.unknown)})
        give_usual_rights(run / TRAINED_ON)


@dataclass(frozen=True)
class Met:
    """How many of some things were trained on."""

    total: int
    met: int


@dataclass(frozen=True)
class Compared:
    """Some records, compared with what a run was trained on.

    Attributes:
        marks: of each, whether the run was trained on one of its pictures (without pictures: on its text); None: that
            isn't known.
        pictures, texts: how many different pictures they have, and how many texts without one.
        unknown: as in ``TrainedOn``.
    """

    marks: list[bool | None]
    pictures: Met
    texts: Met
    unknown: tuple[str, ...]

    @property
    def parts(self) -> list[tuple[str, Met]]:
        """Pictures and texts with their names, where there are any."""
        named = (("pictures", self.pictures), ("records without a picture", self.texts))
        return [(name, one) for name, one in named if one.total]

    def summary(self) -> dict[str, Any]:
        """For the run's ``data.json``."""
        return {"of": {name: [one.met, one.total] for name, one in self.parts}, "known": not self.unknown}

    def notes(self) -> Iterator[str]:
        """What to say of records that are evaluated."""
        for name, one in self.parts:
            again = " (one that was resized or saved anew isn't recognised)" if name == "pictures" else ""
            these, some, were, none = _words(name, one, "these")
            if one.met:
                rest = "; of the others that isn't known" if self.unknown else again
                rest = rest if one.met < one.total else ""
                yield f"note: {some} {were} trained on{rest}"
            elif self.unknown:
                yield f"note: whether {these} {were} trained on is not known"
            else:
                yield f"{none} recognised as trained on{again}"
        yield from (f"note: {why}" for why in self.unknown)

    def notes_at_start(self, key: str) -> Iterator[str]:
        """What to say of a run's own evaluation data before its first step; ``key``: where it is from."""
        for name, one in self.parts:
            these, some, were, _ = _words(name, one, "the")
            if one.met:
                yield (
                    f"note: {some} of {key} {'is' if one.total == 1 else 'are'} trained on, by this run or one that "
                    "it goes on from: the held-out loss says little of new ones; name others in data.eval.path"
                )
            elif self.unknown:
                yield f"note: whether {these} of {key} {were} trained on is not known"
        yield from (f"note: {why}" for why in self.unknown)


def _words(name: str, one: Met, which: str) -> tuple[str, str, str, str]:
    """`these 5 pictures`, `3 of these 5 pictures`, `were`, `none of these 5 pictures was`; or the same of one alone."""
    if one.total == 1:
        # The first s is the plural's, of pictures and of records without one.
        alone = f"the one {name.replace('s', '', 1)}"
        return alone, alone, "was", f"{alone} wasn't"
    these = f"{which} {one.total:,} {name}"
    return these, f"{one.met:,} of {these}", "were", f"none of {these} was"


def read_record(run: Path) -> TrainedOn | None:
    """What a run's folder says that it was trained on; None: an older version made the run, or it can't be read."""
    try:
        with safe_open(str(run / TRAINED_ON), "numpy") as file:
            rows, unknown = file.get_tensor(_DIGESTS), parse_json(file.metadata()[_UNKNOWN])
        data = rows.tobytes()
        found = frozenset(data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))
        return TrainedOn(found, tuple(map(str, unknown)))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def record_at_start(train: SupervisedDataset, started_from: dict[str, Any] | None, bar: Bar) -> TrainedOn:
    """What a run will be trained on, and what the run was that its weights come from.

    A picture that can't be read is left out: the run can't read it either. Measured on 5,000 files of 100 kB in the
    system's memory, on one core: 50 to 90 µs a picture, so about a minute for 665,000, and 11 MB on disk.

    Args:
        started_from: the manifest's record of that run.
    """
    digests, _ = _collect((train.record(index) for index in range(len(train))), len(train), bar)
    return TrainedOn(frozenset(digests)) | _inherited(started_from, bar)


def record_of(bundle: Bundle, bar: Bar) -> TrainedOn:
    """What a run was trained on: as its folder says, or, where an older version made it, as its data says now."""
    known = read_record(bundle.folder.parent)
    if known is not None:
        return known
    return _told_by_data(bundle, bar) | _inherited(bundle.manifest.get("started_from"), bar)


def _inherited(started_from: dict[str, Any] | None, bar: Bar) -> TrainedOn:
    if not started_from:
        return TrainedOn()
    place = started_from["bundle"]
    try:
        bundle = look_at_bundle(Path(place))
        # Another run may be there by now; this also ends a chain that would come back to where it began.
        same = bundle.digest == started_from["manifest_sha256"]
    except (UserError, OSError):
        same = False
    if not same:
        return TrainedOn(
            unknown=(f"what {place}, an earlier run, was trained on is not known: it isn't there any more",)
        )
    return record_of(bundle, bar)


def _told_by_data(bundle: Bundle, bar: Bar) -> TrainedOn:
    run, section = bundle.folder.parent, bundle.recipe.data.train
    hubs = [one.hub for one in sources_in(section) if one.hub]
    if hubs:
        # The run may be a stranger's, and nobody has named a data set of the hub here.
        why = f"it has no record of it, and the hub isn't asked for its data ({', '.join(hubs)})"
        return TrainedOn(unknown=(f"what {run} was trained on is not known: {why}",))
    found = trained_records(bundle)
    if found is None:
        why = "an older version made it, and its data isn't where or as it was"
        return TrainedOn(unknown=(f"what {run} was trained on is not known: {why}",))
    digests, unread = _collect(found, found.total, bar)
    pictures = number_of(unread, "picture")
    gone = f"{pictures} that {run} was trained on can't be found any more, so no copy of them is recognised"
    return TrainedOn(frozenset(digests), (gone,) if unread else ())


def _collect(records: Iterable[Record], total: int, bar: Bar) -> tuple[set[bytes], int]:
    """Digests of all pictures and texts, and how many pictures can't be read."""
    digests: set[bytes] = set()
    files: set[tuple[str, str]] = set()
    unread, left = 0, iter(records)
    with ThreadPoolExecutor(_THREADS) as pool, bar(total) as count:
        while chunk := list(islice(left, _EVERY)):
            digests.update(text_digest(record) for record in chunk if not record.images)
            images = [image for record in chunk for image in record.images if not _is_in(files, image)]
            for found in pool.map(_digest_or_none, images):
                if found is None:
                    unread += 1
                else:
                    digests.add(found)
            count(len(chunk))
    return digests, unread


def _is_in(files: set[tuple[str, str]], image: ImageRef) -> bool:
    """Whether a file was met before; if not, it is now."""
    if image.blob is not None or (key := (image.folder, image.name)) in files:
        return image.blob is None
    files.add(key)
    return False


def _digest_or_none(image: ImageRef) -> bytes | None:
    try:
        return picture_digest(image)
    except (BadImage, OSError):
        return None


def compare(record: TrainedOn, asked: Iterable[Record]) -> Compared:
    """Find out which records a run was trained on."""
    otherwise = None if record.unknown else False
    marks: list[bool | None] = []
    pictures: dict[object, bool] = {}
    texts: dict[object, bool] = {}
    for one in asked:
        found = [_met(image, record.digests) for image in one.images]
        if not one.images:
            digest = text_digest(one)
            texts[digest] = digest in record.digests
            found = [(digest, texts[digest])]
        else:
            pictures.update(pair for pair in found if pair is not None)
        known = [pair[1] for pair in found if pair is not None]
        marks.append(True if any(known) else otherwise if len(known) == len(found) else None)
    return Compared(marks, _counted(pictures), _counted(texts), record.unknown)


def _met(image: ImageRef, digests: frozenset[bytes]) -> tuple[object, bool] | None:
    """What tells a picture from others, and whether it was trained on; None: that can't be told."""
    digest = None if image.encoded_here else _digest_or_none(image)
    if digest is None:
        return None
    return (digest if image.blob is not None else os.path.realpath(locate(image))), digest in digests


def _counted(found: dict[object, bool]) -> Met:
    return Met(len(found), sum(found.values()))
