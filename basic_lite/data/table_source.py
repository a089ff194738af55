"""CSV and TSV: a row is a record. Read by position, as a JSON file is: scanned once."""

import codecs
import csv
import io
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from basic_lite.console import python_line
from basic_lite.data.columns import KNOWN, plain_name, require_columns
from basic_lite.data.held_file import HeldFile
from basic_lite.data.json_source import places
from basic_lite.data.problems import BadRecord, shorten
from basic_lite.data.prompts import prompts_of
from basic_lite.endings import ends_as_picture
from basic_lite.errors import UserError
from basic_lite.recipe.schema import SourceSection
from basic_lite.sizes import number_of

_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# Lines that are looked at to find the delimiter, and characters of a cell.
_HEAD_LINES, _MOST_OF_CELL = 50, 1 << 26
# A cell in quotes, and spaces behind it that are no part of it.
_SPACES_BEHIND = re.compile(r'("[^"]*(?:""[^"]*)*")(?: +(?=[,;\t\r\n]|\Z))?')
# Bytes that are looked at to see what else a file may be.
_HEAD_BYTES = 4096
_JSON = re.compile(rb'\s*(\[\s*)?\{\s*"')
AS_UTF8 = 'save it as a table in UTF-8 (in Excel: Save As, "CSV UTF-8 (Comma delimited)")'
_AFTER_QUOTE = "a cell begins with a double quote, and more text follows where that is closed"
_QUOTES = 'write "" for each quote inside a text, and one more at both of its ends'


class TableSource:
    """Rows of a table. Holds 24 bytes a row, and a small file; a row is parsed when it is asked for.

    The scan takes some 3 s for 665k rows. The delimiter is found from the head of the file. Lines without a value are
    no records. A first line that starts with a picture's name is no header: the columns are then picture and caption.

    Raises:
        UserError: another encoding than UTF-8 and Excel's UTF-16, a quote that isn't closed, unknown columns.
    """

    def __init__(self, section: SourceSection, root: Path) -> None:
        self.path, self.image_dir = places(section, root)
        self.name, self.prompts = section.path or "", prompts_of(section)
        self.notes: tuple[str, ...] = ()
        self._file = HeldFile(self.path, self.name)
        head = self._file.bytes(0, _HEAD_BYTES)
        mark, self.encoding = next((one for one in _MARKS if head.startswith(one[0])), (b"", "utf-8"))
        if self.encoding == "utf-8" and (other := _what_else(head.removeprefix(mark), self.name)):
            raise UserError(f"{self.name}: {other}.")
        lines = list(itertools.islice(self._lines(len(mark)), _HEAD_LINES))
        skipped = bool(lines) and lines[0][2].lower().startswith("sep=")  # Excel's own hint, no row
        texts = [_SPACES_BEHIND.sub(r"\1", line) for _, _, line in lines[skipped:]]
        self.delimiter = _delimiter(texts, self.path.suffix.lower())
        first = next(_rows(texts, self.delimiter), None)
        if not first:
            broken = any(line.strip() for line in texts)
            what = f"its first line can't be read: {_AFTER_QUOTE}" if broken else "the file is empty"
            raise UserError(f"{self.name}: {what}; write a header line into it, and a row for each picture.")
        headed = not ends_as_picture(first[0]) or bool(set(first) & set(section.columns.values()))
        if headed:
            self._require_header(first, texts, section)
        self.header = [cell.strip() for cell in first] if headed else self._no_header(first)
        self.present = tuple(name for name in self.header if name)
        if twice := next((name for name, count in Counter(self.present).items() if count > 1), None):
            raise UserError(f"{self.name}: two columns are called {twice!r}; rename one in the file's first line.")
        self.columns: Mapping[str, str] = dict(section.columns)
        found = require_columns(section.columns, self.present, self.name)
        if self.prompts and found.keys() & {"question", "conversations"}:
            theirs = found.get("question") or found["conversations"]
            raise UserError(
                f"{self.name}: its column {theirs!r} has the questions, and this data source sets `prompt`, which is "
                "for captions; remove `prompt`."
            )
        rows = itertools.islice(self._spans(len(mark), skipped), int(headed), None)
        flat = array("q")
        for span in itertools.islice(rows, section.limit):
            flat.extend(span)
        self._spans_of = np.array(flat, dtype=np.int64).reshape(-1, 3)
        self._file.require_same()

    def __len__(self) -> int:
        return len(self._spans_of)

    def place(self, index: int) -> str:
        """File and line of a row."""
        return f"{self.name}, line {self._spans_of[index][2]}"

    def row(self, index: int) -> dict[str, str | None]:
        """The row at a 0-based position, without white space around the cells; empty cells are None.

        Raises:
            BadRecord: it has more cells than the header, or a cell with quotes that say nothing.
        """
        start, end, _ = self._spans_of[index]
        text = self._file.bytes(start, end).decode(self.encoding)
        cells = self._cells_of(text)
        extra = [cell for cell in cells[len(self.header) :] if cell.strip()]
        if extra:
            raise BadRecord(
                f"it has {len(cells)} cells for {len(self.header)} columns ({shorten(extra[0])} is too many)",
                f"put a text that has {_DELIMITERS[self.delimiter]} in it into double quotes",
            )
        pairs = itertools.zip_longest(self.header, cells[: len(self.header)], fillvalue="")
        return {name: cell.strip() or None for name, cell in pairs if name}

    def _cells_of(self, text: str) -> list[str]:
        """A row's cells; people write a space behind a quote, too."""
        with suppress(csv.Error):
            return next(_cells(io.StringIO(text, newline=""), self.delimiter))
        try:
            return next(_cells(io.StringIO(_SPACES_BEHIND.sub(r"\1", text), newline=""), self.delimiter))
        except csv.Error as error:
            raise BadRecord(_AFTER_QUOTE, _QUOTES) from error

    def _require_header(self, first: Sequence[str], lines: Sequence[str], section: SourceSection) -> None:
        """Refuse a first line that names no column, where what it is, or a line below it, says why."""
        cells = [cell.strip() for cell in first]
        if set(map(plain_name, cells)) & KNOWN or set(cells) & set(section.columns.values()):
            return
        filled = [line for line in lines if line.strip()]
        if all("|" in line for line in filled):
            each = f"[c.strip() for c in l.split('|',{filled[0].count('|')})]"
            raise UserError(
                f"{self.name}: its columns are separated by '|', and a table has commas, semicolons or tabs. Write "
                f"it with commas: {self._rewritten(each)}"
            )
        picture, _, number = cells[0].rpartition("#")
        if ends_as_picture(picture) and number.isdigit():
            each = f"[l.split({self.delimiter!r})[0].rpartition('#')[0],l.split({self.delimiter!r},1)[1].strip()]"
            raise UserError(
                f"{self.name}: a number follows each picture's name ({shorten(cells[0])}), as in Flickr8k's token "
                f"file, so none is found. Write the names alone: {self._rewritten(each, 'image', 'caption')}"
            )
        if {plain_name(cell.strip("'‘’“”`")) for cell in cells} & KNOWN:
            raise UserError(
                f"{self.name}: its cells are in quotes that a table doesn't know ({cells[0]}), so they are taken as "
                'text; write " in their place, or nothing.'
            )
        if header := next((number for number, line in enumerate(lines) if _names_columns(line)), None):
            raise UserError(
                f"{self.name}: its first line is {shorten(filled[0].strip())}, and one that names the columns comes "
                f"later ({shorten(lines[header].strip())}); remove the lines before that."
            )
        pictures = [cell for cell in cells if ends_as_picture(cell) or cell.startswith(("http://", "https://"))]
        if pictures:
            names = "caption,image" if len(first) == 2 else "a name for each column, image for the pictures"
            raise UserError(
                f"{self.name}: the table has no header, since its first line names a picture "
                f"({shorten(pictures[0])}); write the names of the columns above it: {names}."
            )

    def _rewritten(self, each: str, *header: str) -> str:
        """A command that writes the table anew, beside it.

        Args:
            each: Python for the cells of a line ``l``.
            header: cells of a first line that it lacks.
        """
        code = (
            "import csv,sys; csv.writer(open(sys.argv[2],'x',newline='',encoding='utf-8')).writerows("
            f"{[[*header]] if header else ''}{'+' * bool(header)}[{each} for l in open(sys.argv[1],encoding="
            "'utf-8-sig') if l.strip()])"
        )
        target = Path(self.name).with_name(f"{self.path.stem}_commas.csv").as_posix()
        return python_line(code, self.name, target)

    def _no_header(self, first: Sequence[str]) -> list[str]:
        if len(first) != 2:
            raise UserError(
                f"{self.name}: the first line is no header, since it starts with a picture ({first[0]}), and it has "
                f"{number_of(len(first), 'column')}, not picture and caption; write a first line with their names, as "
                "image,question,answer."
            )
        return ["image", "caption"]

    def _lines(self, start: int) -> Iterator[tuple[int, int, str]]:
        """Each line with its byte range. Lines end as Python's `newline=""` sees it, and as csv wants it."""
        with self._file.open() as raw:
            raw.seek(start)
            text = io.TextIOWrapper(raw, encoding=self.encoding, newline="")
            try:
                for line in text:
                    # Most lines are ASCII, and needn't be encoded to be counted.
                    plain = line.isascii() and self.encoding == "utf-8"
                    end = start + len(line if plain else line.encode(self.encoding))
                    yield start, end, line
                    start = end
            except UnicodeDecodeError:
                raise self._not_unicode() from None

    def _not_unicode(self) -> UserError:
        number = 0
        with self._file.open() as file:
            for number, line in enumerate(file, 1):  # noqa: B007
                try:
                    line.decode(self.encoding)
                except UnicodeDecodeError:
                    break
        return UserError(f"{self.name}, line {number}: this isn't UTF-8; {AS_UTF8}.")

    def _spans(self, start: int, skipped: bool) -> Iterator[tuple[int, int, int]]:
        """Byte range and first line of each row that has a value."""
        ends: list[int] = []

        def lines() -> Iterator[str]:
            for _, end, line in self._lines(start):
                ends.append(end)
                yield line

        source = lines()
        number = 1
        if skipped:
            next(source)
            start, number = ends.pop(), 2
        reader = _cells(source, self.delimiter)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if what := _open_quote(str(error), number + len(ends) - 1 if len(ends) > 1 else None):
                    raise UserError(f"{self.name}, line {number}: {what}; {_QUOTES}.") from None
                cells = ["a row that is named when it is read"]
            if cells is None:
                return
            count, end = len(ends), ends[-1]
            ends.clear()
            if any(cell.strip() for cell in cells):
                yield start, end, number
            start, number = end, number + count


def allow_long_cells() -> None:
    """Cells may hold whole pictures. All threads share csv's limit, so it stays: put back, it may refuse another's."""
    if csv.field_size_limit() < _MOST_OF_CELL:
        csv.field_size_limit(_MOST_OF_CELL)


def _open_quote(error: str, last: int | None) -> str | None:
    """What is wrong with a row that has swallowed others, so that nobody knows which; None: it is one line.

    Args:
        error: in csv's own words.
        last: the line it ends in, where that isn't its first.
    """
    if "field larger" in error:
        return f"a cell has more than {_MOST_OF_CELL:,} characters, perhaps because a double quote isn't closed"
    if "unexpected end" in error:
        return "a double quote is opened in this row and never closed"
    return f"a double quote is opened in this row and closed in line {last}, where more text follows" if last else None


def _cells(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Rows of cells. People write a space after a comma, and then a quote.

    Strictly: a quote that opens a cell must close it. Else it would swallow other rows, or be lost from the text.
    """
    allow_long_cells()
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)


def _rows(lines: Sequence[str], delimiter: str) -> Iterator[list[str]]:
    """Rows that have a value; up to a broken one, of which the scan tells the line."""
    with suppress(csv.Error):
        yield from (row for row in _cells(lines, delimiter) if any(cell.strip() for cell in row))


def _names_columns(line: str) -> bool:
    """Whether a line has two names of columns or more."""
    return any(len(KNOWN & set(map(plain_name, line.split(sign)))) > 1 for sign in _DELIMITERS)


def _what_else(head: bytes, name: str) -> str:
    """What a file is that is no table, by its first bytes, and what mends that; empty: it may be one."""
    if head.startswith(b"PK\3\4"):
        return f"it is no text but an archive, as Excel's workbooks are; {AS_UTF8}"
    if b"\0" in head[:2]:
        return f"it is UTF-16 without the mark that says so; {AS_UTF8}"
    if _JSON.match(head):
        return f"it holds JSON and no table; rename it to {Path(name).with_suffix('.jsonl').as_posix()}"
    return ""


def _delimiter(lines: Sequence[str], ending: str) -> str:
    """The delimiter under which the head makes most sense as a table.

    That is: most header cells have a usual name, or the first is a picture; then, most rows have as many cells as the
    first. Between equals, a .tsv has tabs.
    """

    def score(delimiter: str) -> tuple[int, float, bool]:
        rows = list(_rows(lines, delimiter))
        if not rows or len(rows[0]) < 2:
            return 0, 0.0, delimiter == ("\t" if ending == ".tsv" else ",")
        known = sum(plain_name(cell) in KNOWN for cell in rows[0]) + ends_as_picture(rows[0][0])
        alike = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        return known, alike, delimiter == "\t" and ending == ".tsv"

    return max(_DELIMITERS, key=score)
