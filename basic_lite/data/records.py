"""Records: the conversations of one or more sources, read one at a time.

``Records`` reads a record when it is asked for. It holds only offsets into a file, the names of pictures, or a
memory-mapped Arrow table, so 665k records cost 16 MB (a folder's names: some 70).
"""

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from basic_lite.data.problems import RecordProblem
from basic_lite.data.record import IMAGE_PLACEHOLDER, Record, Role, Turn, named
from basic_lite.data.turns import NamedRow, read_row

__all__ = ["IMAGE_PLACEHOLDER", "Record", "Records", "Role", "Source", "Turn"]


class Source(Protocol):
    """Rows of one data source, read one at a time.

    Attributes:
        name: As the recipe names it.
        columns: Our column names to theirs, as the recipe maps them; the others are found in each row.
        present: All columns there are; empty where each record has its own.
        image_dir: Folder that image paths are relative to.
        prompts: What is asked about a picture that has a text but no question; a record's number chooses one.
        notes: What the user should know about the source as a whole.
    """

    name: str
    columns: Mapping[str, str]
    present: tuple[str, ...]
    image_dir: str
    prompts: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def row(self, index: int) -> Any:
        """The row at a 0-based position."""

    def place(self, index: int) -> str:
        """How messages name that row."""


class Records(Sequence[Record]):
    """All records of one or more sources, one after the other. Picklable; reading is lazy.

    ``records[i]`` raises `RecordProblem` where the i-th isn't a usable conversation.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._ends = list(itertools.accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def notes(self) -> list[str]:
        """What the user should know about the sources."""
        return [note for source in self.sources for note in source.notes]

    def place(self, index: int) -> str:
        """The place of a record that may not be readable.

        Raises:
            IndexError: there is no such record.
        """
        source, number = self._find(index)
        return source.place(number - 1)

    def _find(self, index: int) -> tuple[Source, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        which = bisect.bisect_right(self._ends, index)
        return self.sources[which], index - (self._ends[which - 1] if which else 0) + 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        source, number = self._find(index)
        return _record(source, number)

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))


def _record(source: Source, number: int) -> Record:
    place, identity = source.place(number - 1), ""
    try:
        row = NamedRow(source.row(number - 1), source.columns, source.image_dir)
        identity = row.id
        content = read_row(row, source.prompts, number)
    except RecordProblem as problem:
        raise problem.at(named(place, identity)) from None
    return Record(number=number, id=identity, source=source.name, at=place, **content._asdict())
