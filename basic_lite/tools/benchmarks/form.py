"""What all benchmarks share: a published file, one question of it, and the question as it is asked."""

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from basic_lite.data.images import ImageRef
from basic_lite.data.json_source import JsonSource
from basic_lite.data.pictures import image_at
from basic_lite.data.problems import BadRecord, RecordProblem, shorten
from basic_lite.data.record import IMAGE_PLACEHOLDER, Record, Turn, numbered
from basic_lite.data.table_source import allow_long_cells
from basic_lite.data.turns import clean, name_of
from basic_lite.endings import JSON_ENDINGS
from basic_lite.errors import UserError
from basic_lite.outside import open_file
from basic_lite.recipe.schema import SourceSection
from basic_lite.scoring.metrics.named import MetricName
from basic_lite.scoring.questions import Question
from basic_lite.training.places import read_json

# What LLaVA-1.5 adds to the questions of a benchmark, and was trained with.
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Row:
    """One question of a published file.

    Attributes:
        image: a path, or the picture itself; None: it has none.
        answers: what counts as right; nothing where there are options.
        options: of a multiple choice; some may say the same.
        right: the place of the right option among them; None: it isn't known.
    """

    id: str
    text: str
    image: str | ImageRef | None
    answers: tuple[str, ...]
    question_type: str | None = None
    groups: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    right: int | None = None


class Published:
    """A published file, opened as far as is needed to see what it is.

    Attributes:
        top: what the file's one JSON object holds; None: it is a list, lines, or a table.
        first: the first record of a list or of lines, or the header of a table as a record without values.
        answers: the file with the answers, where a person has named one.
    """

    def __init__(self, path: Path, answers: Path | None = None) -> None:
        self.path, self.name, self.answers = path, path.as_posix(), answers
        self.top: Mapping[str, Any] | None = None
        self.first: Mapping[str, Any] | None = None
        if path.suffix.lower() == ".tsv":
            self.first = dict.fromkeys(self._header())
        elif path.suffix.lower() in JSON_ENDINGS:
            self.first = self._first_record()
            if self.first is None:
                top = read_json(path)
                self.top = top if isinstance(top, Mapping) else None

    def _header(self) -> Sequence[str]:
        try:
            allow_long_cells()
            with _text_of(self.path) as file:
                return next(csv.reader(file, delimiter="\t"), [])
        except (OSError, UnicodeDecodeError, csv.Error):
            return []

    def _first_record(self) -> Mapping[str, Any] | None:
        try:
            source = JsonSource(SourceSection(path=self.name, limit=1), Path.cwd())
            row = source.row(0) if len(source) else None
        except UserError:  # one object, or broken: whoever reads it as training data says where
            return None
        return row if isinstance(row, Mapping) else None

    def records(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The records of a list or of lines, each with its place.

        Raises:
            RecordProblem: one is no object.
        """
        source = JsonSource(SourceSection(path=self.name), Path.cwd())
        for index in range(len(source)):
            place = source.place(index)
            with placed(place):
                row = source.row(index)
                if not isinstance(row, Mapping):
                    raise BadRecord(f"a record must be an object, this is {shorten(row)}", "fetch the file again")
            yield place, row

    def table(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The rows of a table with tabs, each with its place.

        Raises:
            UserError: it is no such table.
        """
        allow_long_cells()
        with _text_of(self.path) as file:
            reader = csv.DictReader(file, delimiter="\t")
            try:
                yield from ((f"{self.name}, line {reader.line_num}", row) for row in reader)
            except (UnicodeDecodeError, csv.Error) as error:
                raise UserError(
                    f"{self.name}, line {reader.line_num + 1}: the table can't be read ({error}); fetch it again"
                ) from error

    def holds(self, names: set[str]) -> bool:
        """Whether the file's object holds records by their ids, the first of which has keys of these names."""
        first = next(iter((self.top or {}).values()), None)
        return isinstance(first, Mapping) and names <= first.keys()

    def lists(self, key: str, name: str) -> bool:
        """Whether the file's object has a list of records under a key, and the first of them a key of that name."""
        listed = (self.top or {}).get(key)
        return isinstance(listed, list) and bool(listed) and isinstance(listed[0], dict) and name in listed[0]

    def listed(self, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The records under a key of the file's object, each with its place."""
        assert self.top is not None
        return numbered_records(self.top, key, self.name)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: which files are its own, and the questions in them.

    Attributes:
        name: as ``--benchmark`` takes it.
        metric: how it is scored.
        instruction: what is added to each question.
        is_its: whether a file is surely one of this benchmark's.
        rows: its questions, each with its place.
        circular: each question is asked once for each of its options, and the options move on by one each time.
    """

    name: str
    metric: MetricName
    instruction: str
    is_its: Callable[[Published], bool]
    rows: Callable[[Published], Iterator[tuple[str, Row]]]
    circular: bool = False


def questions_of(benchmark: Benchmark, file: Published, instruction: str, limit: int | None) -> list[Question]:
    """The questions of a file, their pictures by their names alone.

    Args:
        limit: take only the first so many; rotations of one count as one.

    Raises:
        UserError: it isn't such a file.
    """
    found: list[Question] = []
    for place, row in itertools.islice(benchmark.rows(file), limit):
        for turned in range(len(row.options)) if benchmark.circular else (0,):
            found.append(_question(row, turned, place, file.name, instruction, len(found) + 1, benchmark.circular))
    if not found:
        raise UserError(f"{file.name}: there is no question of {benchmark.name} in it; fetch the file again")
    return found


def _question(
    row: Row, turned: int, place: str, source: str, instruction: str, number: int, circular: bool
) -> Question:
    """One question; ``turned``: how far its options have moved on."""
    options = row.options[turned:] + row.options[:turned]
    lines = [f"{letter}. {text}" for letter, text in zip(ascii_uppercase, options, strict=False)]
    answers = row.answers
    if row.right is not None:
        answers = (ascii_uppercase[(row.right - turned) % len(options)],)
    text = "\n".join(filter(None, [row.text.replace(IMAGE_PLACEHOLDER, "").strip(), *lines, instruction]))
    identity = name_of(row.id) or ""
    images: tuple[ImageRef, ...] = ()
    if row.image is not None:
        with placed(place):
            images = (image_at(row.image, ""),)
    record = Record(
        number=number,
        id=f"{identity}, options turned by {turned}" if turned else identity,
        source=source,
        images=images,
        turns=(Turn("human", clean(text)),),
        question_type=name_of(row.question_type),
        answer=clean(max(answers, key=len)) if answers else None,
        at=place,
    )
    return Question(record, tuple(map(clean, answers)), tuple(map(clean, row.groups)), identity if circular else "")


def numbered_records(top: Mapping[str, Any], key: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The records under a key of an object, each with its place.

    Raises:
        RecordProblem: it is no list of objects.
    """
    listed = top.get(key)
    if not isinstance(listed, list):
        raise UserError(f"{name}: its {key!r} is {shorten(listed)}, not a list; fetch the file again")
    for number, row in enumerate(listed, 1):
        place = numbered(f"{name}, {key}", number)
        if not isinstance(row, Mapping):
            raise BadRecord(f"a record must be an object, this is {shorten(row)}", "fetch the file again", place)
        yield place, row


def text_in(row: Mapping[str, Any], key: str) -> str:
    """A text or a number of a row, as text.

    Raises:
        BadRecord: there is none.
    """
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise BadRecord(f"its {key!r} is {shorten(value)}, where a text belongs", "fetch the file again")
    return name_of(value) or ""


def texts_in(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A list of texts of a row; nothing where it has no such key.

    Raises:
        BadRecord: it is something else.
    """
    values = row.get(key)
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise BadRecord(f"its {key!r} is {shorten(values)}, where a list of texts belongs", "fetch the file again")
    return tuple(values)


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Around reading a record: whatever is wrong with it is told with its place.

    Raises:
        RecordProblem: what was raised inside, with the place.
    """
    try:
        yield
    except RecordProblem as problem:
        raise problem.at(place) from None


def _text_of(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="")
