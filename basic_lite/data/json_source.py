"""JSON (one list) and JSONL (one record a line), read by position: scanned once."""

from __future__ import annotations

import codecs
import itertools
import json
import os
from array import array
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from basic_lite.data.columns import KNOWN, plain_name
from basic_lite.data.held_file import HeldFile
from basic_lite.data.problems import BadRecord, RecordProblem, nearest, shorten
from basic_lite.data.prompts import prompts_of
from basic_lite.data.record import numbered
from basic_lite.data.top_level import HEAD, TAIL, require_flat, spread
from basic_lite.data.unclear import require_rows
from basic_lite.errors import UserError
from basic_lite.outside import TOO_DEEP, TOO_LONG_A_NUMBER, parse_json, place_in
from basic_lite.recipe.schema import SourceSection

# Bytes read at once while scanning.
_CHUNK = 1 << 24
# Characters. A parse error this near the end of what is read may come from a record cut in two: read on, try again.
_MARGIN = 4096
_SPACE = " \t\r\n"
# A file none of whose first lines is JSON isn't read on.
_FIRST_LINES = 1_000


class JsonSource:
    """Rows of a JSON file. Holds 24 bytes a record, and a small file; a row is parsed when it is asked for.

    Whether it is a list or lines is seen from the first character, not from the name: both endings are used
    for both. A list's records are named by their number, others by their line.
    """

    def __init__(self, section: SourceSection, root: Path) -> None:
        assert section.path is not None
        self.name = section.path
        self.columns: Mapping[str, str] = dict(section.columns)
        self.present: tuple[str, ...] = ()
        self.path, self.image_dir = places(section, root)
        self.prompts = prompts_of(section)
        self.notes: tuple[str, ...] = ()
        flat = array("q")
        self._file = HeldFile(self.path, self.name)
        spans = _spans(self._file, self.columns)
        for span in itertools.islice(spans, section.limit):
            flat.extend(span)
        alone = len(flat) == 3 and flat[2] > 0 and next(spans, None) is None
        self._file.require_same()
        self._spans = np.array(flat, dtype=np.int64).reshape(-1, 3)
        if alone:
            with suppress(BadRecord):
                require_rows(self.row(0), self.name)
        self._require_json()
        self._require_mapped()

    def __len__(self) -> int:
        return len(self._spans)

    def place(self, index: int) -> str:
        """File, and number or line of a record."""
        line = self._spans[index][2]
        return f"{self.name}, line {line}" if line else numbered(self.name, index + 1)

    def row(self, index: int) -> Any:
        """The record at a 0-based position, parsed anew each time.

        Raises:
            BadRecord: a line of a JSONL file that is no JSON.
        """
        start, end, _ = self._spans[index]
        try:
            return parse_json(self._file.bytes(start, end).rstrip(b"\r\n").decode("utf-8"))
        # Only a line gets here: a list is parsed as a whole when it is scanned.
        except UnicodeDecodeError as error:
            raise BadRecord(f"not UTF-8 (byte {start + error.start})", "save the file as UTF-8") from error
        except json.JSONDecodeError as error:
            what = f"column {error.colno}: broken JSON: {error.msg} (one record a line)"
            raise BadRecord(what, "fix the line") from error
        except ValueError as error:
            raise BadRecord(f"broken JSON: {error}", "fix the line") from error

    def _require_json(self) -> None:
        """Refuse a file none of whose first lines is JSON: it has another form, and no line of it need be listed."""
        first: RecordProblem | None = None
        for index in range(min(len(self), _FIRST_LINES)):
            try:
                self.row(index)
            except BadRecord as problem:
                first = first or problem.at(self.place(index))
            else:
                return
        if first is not None and len(self) > _FIRST_LINES:
            raise UserError(
                f"none of the first {_FIRST_LINES:,} lines of {self.name} is a record ({first.place}: {first.what}); "
                "write one record a line, as json.dumps of Python does, or all records as one list."
            )

    def _require_mapped(self) -> None:
        """Refuse a column map that names what no record has. Records are read until each name was met."""
        missing, seen = dict(self.columns), None
        for index in range(len(self)):
            if not missing:
                return
            with suppress(BadRecord):
                row = self.row(index)
                if isinstance(row, Mapping):
                    missing = {ours: theirs for ours, theirs in missing.items() if theirs not in row}
                    seen = seen or list(row)
        if missing and seen is not None:
            ours, theirs = next(iter(missing.items()))
            raise UserError(
                f"{self.name}: no record has a column {theirs!r}{nearest(theirs, seen)}; the first one has "
                f"{shorten(seen, 300)}. Correct columns.{ours} of this data source."
            )


def places(section: SourceSection, root: Path) -> tuple[Path, str]:
    """The file of a source, which is there, and its image folder.

    Raises:
        UserError: it is no file.
    """
    assert section.path is not None
    path = place_in(root, section.path)
    if os.path.isdir(path):
        raise UserError(
            f"{section.path}: this is a folder, and `path` must be a file; for pictures with texts beside them, "
            "write `folder` instead of `path`."
        )
    if not os.path.isfile(path):  # a device may have no end, and a pipe can't be read twice
        raise UserError(f"{section.path}: this is a device or a pipe, and `path` must be a file; save its data as one.")
    folder = place_in(root, section.image_dir) if section.image_dir is not None else path.parent
    return path, str(folder.absolute())


def _spans(held: HeldFile, columns: Mapping[str, str]) -> Iterator[tuple[int, int, int]]:
    """Byte range and line of each record; line 0 in a list, and of records that span several lines.

    A list is parsed: one that is broken has no end to its records.

    Raises:
        UserError: not a list of records nor lines; a list that isn't UTF-8 or JSON (line and column).
    """
    with held.open() as file:
        start = file.read(HEAD).removeprefix(codecs.BOM_UTF8).lstrip()
        if start.startswith(b"["):
            require_flat(start.decode("utf-8", "ignore"), held.size <= HEAD, columns, held.name)
        # A first line that is longer than what is read here is a long record, by the file's name.
        long_line = held.path.suffix.lower() == ".jsonl" and len(start) > HEAD // 2 and b"\n" not in start
        several = start.startswith(b"{") and not long_line and _several_lines(start, file, held, columns)
        file.seek(0)
        lines = held.path.suffix.lower() == ".jsonl" and start.startswith(b"{") and not several
        if not lines:
            lines = yield from _list_spans(_Reader(file, held.name), held.name)
        if lines and several:
            file.seek(0)
            yield from _value_spans(_Reader(file, held.name))
            return
    if lines:
        yield from _line_spans(held)


def _several_lines(start: bytes, file: BinaryIO, held: HeldFile, columns: Mapping[str, str]) -> bool:
    """Whether a file's first record spans several lines; refuses an object around the records."""
    file.seek(max(0, held.size - TAIL))
    tail = file.read().decode("utf-8", "ignore")
    return spread(start.decode("utf-8", "ignore"), tail, held.size <= HEAD, columns, held.name)


def _value_spans(reader: _Reader) -> Iterator[tuple[int, int, int]]:
    """Byte range of each record of those that stand one after the other, over several lines each."""
    while sign := reader.skip_space():
        if sign == ",":
            reader.fail("records with commas between them are a list, and '[' isn't before the first of them")
        if sign != "{":
            reader.fail("a record belongs here, in braces")
        yield (*reader.value()[:2], 0)


def _list_spans(reader: _Reader, name: str) -> Generator[tuple[int, int, int], None, bool]:
    """Byte range of each record of a list. Returns whether it is no list, but may hold lines."""
    first = reader.skip_space()
    if not first:
        raise UserError(f"{name}: the file is empty; write a list of records into it, or one record a line.")
    if first == "[":
        reader.at += 1
        if reader.skip_space() == "]":
            return False
        while True:
            yield (*reader.value()[:2], 0)
            sign = reader.skip_space()
            reader.at += 1
            if sign == "]":
                if rest := reader.skip_space():
                    reader.fail(f"something follows the list ({rest!r} …)")
                return False
            if sign != ",":
                reader.at -= 1
                reader.fail("a ',' or ']' belongs here" if sign else "the file ends inside the list; it was cut off")
            if reader.skip_space() == "]":
                reader.fail("a record belongs here, after the ','")
    if first != "{":
        table = as_table(reader.text[reader.at :], name)
        what = "the file should be a list of records, or have one record a line; this is neither"
        reader.fail(what + (f", but a table by its first line, so rename it to {table}" if table else ""))
    value = reader.value()[2]
    if not reader.skip_space():
        require_rows(value, name)
    if not reader.skip_space() and not KNOWN & {plain_name(key) for key in value}:
        raise UserError(
            f"{name}: the file's top level is an object with the keys {shorten(list(value))}, not a list "
            "of records, and none of these belongs to a record; write the records as one list, or one a line."
        )
    return True


def _line_spans(held: HeldFile) -> Iterator[tuple[int, int, int]]:
    """Byte range and number of each line that isn't blank.

    A broken line is one bad record: found when it is read, like others.
    """
    with held.open() as file:
        end = 0
        for number, line in enumerate(file, 1):
            start, end = end, end + len(line)
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                start, line = start + len(codecs.BOM_UTF8), line[len(codecs.BOM_UTF8) :]
            if not line.strip():
                continue
            yield start, end, number


def as_table(text: str, name: str) -> str | None:
    """What a file should be called whose first line has a table's usual columns; None: it has none of them."""
    head = text.partition("\n")[0]
    for sign, ending in {",": ".csv", ";": ".csv", "\t": ".tsv"}.items():
        columns = {plain_name(column.strip('" \r')) for column in head.split(sign)}
        if len(columns) > 1 and columns & KNOWN:
            return Path(name).with_suffix(ending).as_posix()
    return None


class _Reader:
    """Reads JSON values from a file piece by piece, knowing their byte positions."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.file = file
        head = self.file.read(4)
        if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{name}: the file is UTF-16; save it as UTF-8.")
        # Byte position of text[0], and the line and column (1-based) it is at.
        self.base = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        self.line = self.column = 1
        self.file.seek(self.base)
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.json = json.JSONDecoder()
        self.text, self.at, self.ended = "", 0, False
        # A character position at or before `at`, and its byte position: counting on from there keeps a scan
        # linear.
        self._known = (0, self.base)

    def _more(self) -> None:
        """Forget what is read, append the next piece."""
        self.base = self._byte(self.at)
        self._move(self.text[: self.at])
        where = self.file.tell() - len(self.decoder.getstate()[0])
        # As much again as is held: a long record is not read over and over.
        data = self.file.read(max(_CHUNK, len(self.text) - self.at))
        self.ended = not data
        try:
            self.text = self.text[self.at :] + self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            raise self._not_utf8(where + error.start) from error
        self.at = 0
        self._known = (0, self.base)

    def _not_utf8(self, byte: int) -> UserError:
        self.file.seek(0)
        line = 1 + sum(self.file.read(min(_CHUNK, byte - start)).count(b"\n") for start in range(0, byte, _CHUNK))
        return UserError(f"{self.name}, line {line}: not UTF-8 (byte {byte}); save the file as UTF-8.")

    def _byte(self, at: int) -> int:
        known, byte = self._known
        byte += at - known if self.text.isascii() else len(self.text[known:at].encode())
        self._known = (at, byte)
        return byte

    def _move(self, text: str) -> None:
        if lines := text.count("\n"):
            self.line += lines
            self.column = 1
        self.column += len(text) - 1 - text.rfind("\n") if lines else len(text)

    def skip_space(self) -> str:
        """The next character that isn't white space, not consumed; empty at the end of the file."""
        while True:
            while self.at < len(self.text):
                if (sign := self.text[self.at]) not in _SPACE:
                    return sign
                self.at += 1
            if self.ended:
                return ""
            self._more()

    def value(self) -> tuple[int, int, Any]:
        """Byte range of the next value, and the value."""
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
            except RecursionError:
                self.fail(TOO_DEEP)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - _MARGIN
                if self.ended or not cut:
                    self.at = error.pos
                    self.fail(error.msg if error.pos < len(self.text) else "the file ends inside a record")
            except ValueError:
                self.fail(TOO_LONG_A_NUMBER)
            else:
                # A bare number at the end of what was read may continue in the next piece.
                if end < len(self.text) or self.ended:
                    break
            self._more()
        start = self._byte(self.at)
        self.at = end
        return start, self._byte(end), value

    def fail(self, what: str) -> Any:
        """Raise what is wrong at the current position."""
        self._move(self.text[: self.at])
        raise UserError(
            f"{self.name}, line {self.line}, column {self.column}: broken JSON: {what}. "
            "Fix the file there, or set `path` to another "
            "(`python -m json.tool` checks it, for JSONL with --json-lines)."
        )
