"""What the libraries and the program say: on a terminal of any width, in a log file, in a notebook."""

import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from basic_lite.printable import one_line, printable
from basic_lite.wrapping import wrapped

Say = Callable[[str], None]
# What is counted (records, pictures), how many are done, and of how many.
Count = Callable[[str, int, int], None]
# A column of notes may be wrapped, but not to less than this.
NOTE_WIDTH = 24
INDENT = 2
_MOST_OF_CELL = 2_000
# A word that no shell reads anything into, and what some shell reads inside double quotes.
_EVERYWHERE = re.compile(r"[\w./:+=-]+")
_SPECIAL = set('"$`!\\\n')


def speaker(console: Console) -> Say:
    """``say(text)``: one line, without markup. On a terminal it is broken between words, but in no command."""

    def say(text: str) -> None:
        if console.is_terminal:
            text = "\n".join(wrapped(printable(text), console.width))
        console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)

    return say


def shows_colours(console: Console) -> bool:
    """Whether colours can be told apart there: not in a file or a pipe, nor where NO_COLOR is set."""
    return console.color_system is not None and not console.no_color


def note(text: str) -> None:
    """Say on stderr what is no result; on a terminal, lines break between words."""
    if text:
        speaker(Console(stderr=True))(text.rstrip("\n"))


def command_line(words: Sequence[str]) -> str:
    """A command as it is typed: as every shell takes it where that can be, else as this system's does."""
    return " ".join(map(_typed, words))


def python_line(code: str, *files: str) -> str:
    """A command that runs a line of Python, without double quotes in it, on files."""
    return f'python -c "{code}" {command_line(files)}'


def new_run_from(start: Path) -> str:
    """The words that train on from a run or a bundle in a new run, as they are typed."""
    return command_line([f"model.start={start}", "name=NEW"])


def _typed(word: str) -> str:
    if _EVERYWHERE.fullmatch(word):
        return word
    if not set(word) & _SPECIAL:
        return f'"{word}"'
    return _windows_word(word) if sys.platform == "win32" else shlex.quote(word)


def _windows_word(word: str) -> str:
    """In double quotes where cmd or PowerShell would read a sign of the word as its own."""
    if re.fullmatch(r"[\w./\\:=+-]+", word):
        return word
    # The library quotes for the program's sake alone, so only where there is a space; it goes again here.
    return '"' + subprocess.list2cmdline([f" {word}"]).removeprefix('" ')


@contextmanager
def counting(console: Console, what: str, total: int) -> Iterator[Callable[[float], None]]:
    """A bar on a terminal, gone when it is full. Gives a function that takes how many more are done."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def counter(name: str) -> Count | None:
    """A line on stderr that is rewritten on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(what: str, done: int, total: int) -> None:
        end = "\n" if done == total else ""
        verb = "looked at" if what == "pictures" else "checked"
        print(f"\r{name}: {verb} {done:,} of {total:,} {what}", end=end, file=sys.stderr, flush=True)

    return show


def quiet_libraries() -> None:
    """Switch off transformers' loading bars and reports: the part table says the same better."""
    import huggingface_hub
    import transformers
    from PIL.Image import DecompressionBombWarning

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # The hub client reports each retry without a network; the error at the end is enough.
    huggingface_hub.utils.logging.set_verbosity_error()
    # PIL warns of 90 million pixels without the picture's name, and reads it; twice as many it refuses.
    warnings.filterwarnings("ignore", category=DecompressionBombWarning)
    # Where workers are more than cores and it is slow, the run's own line on its time says so, with the key.
    warnings.filterwarnings("ignore", message="This DataLoader will create")


@dataclass
class Sheet:
    """A table that stays whole: columns where they have room, else a paragraph for each row.

    Nothing is cut off and no number is broken. Only cells of columns without a name, which hold sentences, are
    wrapped. Where there is no terminal, lines are as long as they need to be and have no frame.

    Attributes:
        columns: Names. The first one is what a row is about; an empty name: notes.
        text: Names of further columns that hold words and stand to the left.
        notes: Names of columns that hold sentences, as those without a name do.
    """

    columns: Sequence[str]
    title: str = ""
    text: Sequence[str] = ()
    notes: Sequence[str] = ()
    rows: list[tuple[Sequence[str], str]] = field(default_factory=list)
    ends: set[int] = field(default_factory=set)  # rows that a section ends after

    def add(self, *cells: str, style: str = "") -> None:
        """Add a row: a cell for each column."""
        assert len(cells) == len(self.columns), f"{len(cells)} cells for {len(self.columns)} columns"
        self.rows.append(([one_line(cell, _MOST_OF_CELL) for cell in cells], style))

    def end_section(self) -> None:
        """Draw a line below the last row."""
        self.ends.add(len(self.rows) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield Text(self.title, style="italic")
        if not console.is_terminal:
            yield from self._lines()
            return
        for framed in (True, False):
            if self._width(framed=framed) <= options.max_width:
                yield self._table(framed=framed)
                return
        yield from self._paragraphs(options.max_width)

    def _widths(self) -> list[int]:
        """Each column's, with every cell whole."""
        columns = zip(*(cells for cells, _ in self.rows), strict=True) if self.rows else [()] * len(self.columns)
        return [max(map(cell_len, (name, *cells))) for name, cells in zip(self.columns, columns, strict=True)]

    def _width(self, *, framed: bool) -> int:
        """Columns of the terminal that the table takes, its notes as narrow as they may be."""
        count, widths = len(self.columns), self._widths()
        width = sum(min(one, NOTE_WIDTH) if self._is_note(place) else one for place, one in enumerate(widths))
        # A frame takes three places a column and one; without it there are two between columns.
        return width + (3 * count + 1 if framed and any(self.columns) else 2 * (count - 1))

    def _is_left(self, place: int) -> bool:
        return place == 0 or self._is_note(place) or self.columns[place] in self.text

    def _lines(self) -> Iterator[Text]:
        """The table without a frame, its lines as long as they need to be."""
        widths = self._widths()
        for cells in [self.columns] * any(self.columns) + [cells for cells, _ in self.rows]:
            line = ""
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
                blanks = " " * (width - cell_len(cell))
                line += (cell + blanks if self._is_left(place) else blanks + cell) + "  "
            yield Text(line.rstrip())

    def _is_note(self, place: int) -> bool:
        return place > 0 and (not self.columns[place] or self.columns[place] in self.notes)

    def _table(self, *, framed: bool) -> Table:
        named = any(self.columns)
        table = Table(header_style="bold", show_header=named)
        if not framed or not named:
            table.box, table.pad_edge, table.padding = None, False, (0, 2, 0, 0)
        for place, name in enumerate(self.columns):
            note = self._is_note(place)
            style = ("dim" if note else "") if named else "" if place else "bold"
            # What may not be wrapped would be cut off: the width has been seen to.
            table.add_column(
                name,
                justify="left" if self._is_left(place) else "right",
                no_wrap=not note,
                overflow="fold",
                style=style,
            )
        for number, (cells, style) in enumerate(self.rows):
            table.add_row(*map(Text, cells), style=style, end_section=number in self.ends)
        return table

    def _paragraphs(self, width: int) -> Iterator[Text | Padding]:
        for cells, style in self.rows:
            yield Text(cells[0], style=style or "bold")
            named = [place for place in range(1, len(cells)) if cells[place] and not self._is_note(place)]
            lines = _packed([f"{self.columns[place]} {cells[place]}" for place in named], width - INDENT)
            for line in [*lines, *(cell for place, cell in enumerate(cells) if cell and self._is_note(place))]:
                yield Padding(Text(line, style=style if style != "bold" else ""), (0, 0, 0, INDENT))


def _packed(items: Sequence[str], width: int) -> list[str]:
    """Items in as few lines as hold them, none of them broken."""
    lines: list[str] = []
    for item in items:
        if lines and cell_len(f"{lines[-1]}, {item}") < width:
            lines[-1] += f", {item}"
        else:
            if lines:
                lines[-1] += ","
            lines.append(item)
    return lines


def show(console: Console, *sheets: Sheet) -> None:
    """Print tables; where there is no terminal, longer lines than a terminal's are left whole."""
    for sheet in sheets:
        console.print(sheet, soft_wrap=not console.is_terminal)


def show_entry(console: Console, head: str, body: str) -> None:
    """Print a line, and a sentence indented below it."""
    say = speaker(console)
    say(head)
    say(" " * 2 * INDENT + body)
